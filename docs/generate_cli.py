"""Writes docs/cli.md from the command line's own help; with --check, says whether it is up to date.

Usage: python docs/generate_cli.py [--check]
"""

from __future__ import annotations

import sys
from pathlib import Path

from typer.testing import CliRunner

from natdeploy import errors
from natdeploy.cli.main import app

PAGE = Path(__file__).with_name("cli.md")


def page() -> str:
    """The page's text."""
    verbs: list[tuple[str, ...]] = [(command.callback.__name__,) for command in app.registered_commands if command.callback]
    for group in app.registered_groups:
        assert group.name is not None and group.typer_instance is not None
        names = [
            command.name or command.callback.__name__ for command in group.typer_instance.registered_commands if command.callback
        ]
        verbs += [(group.name, name) for name in names]
    sections = [
        "# The command line",
        "Written by `make docs` from the command's own help.",
        _help(),
        *(f"## natdeploy {' '.join(verb)}\n\n{_help(*verb)}" for verb in verbs),
        f"## Exit codes\n\n{_exit_codes()}",
    ]
    return "\n\n".join(sections) + "\n"


def _help(*verb: str) -> str:
    result = CliRunner().invoke(app, [*verb, "--help"], prog_name="natdeploy", env={"COLUMNS": "80"}, catch_exceptions=False)
    return f"```text\n{result.stdout.strip()}\n```"


def _exit_codes() -> str:
    meanings = {0: ["Done."], errors.EXIT_INTERRUPTED: ["Interrupted with Ctrl-C; the message says how to go on."]}
    for error in errors.NatdeployError.__subclasses__():
        meanings.setdefault(error.exit_code, []).append((error.__doc__ or "").strip())
    meanings[errors.NatdeployError.exit_code].append("Anything else that failed.")
    rows = [f"| {code} | {' '.join(meaning)} |" for code, meaning in sorted(meanings.items())]
    return "\n".join(["| code | meaning |", "| --- | --- |", *rows])


def main() -> None:
    if sys.argv[1:] == ["--check"]:
        if not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != page():
            sys.exit("docs/cli.md is not what the command line says; `make docs` writes it anew")
    elif not sys.argv[1:]:
        PAGE.write_text(page(), encoding="utf-8")
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
