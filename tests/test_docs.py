"""The documentation says what the code does."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from natdeploy.cli.main import app

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


def _verbs(group: Any, before: str = "") -> dict[str, Any]:
    """Every verb by its words, those of a group after the group's."""
    found = {}
    for name, command in group.commands.items():
        found |= _verbs(command, f"{before}{name} ") if hasattr(command, "commands") else {before + name: command}
    return found


VERBS = _verbs(typer.main.get_command(app))


def commands(text: str) -> Iterator[list[str]]:
    """Every `natdeploy` command of a page's code blocks, joined over continued lines."""
    for block in re.findall(r"^ *```[^\n]*\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE):
        for line in block.replace("\\\n", " ").splitlines():
            match = re.match(r"\s*(?:\$ )?natdeploy (.*)", line)
            if match:
                yield shlex.split(match[1], comments=True)


def test_the_page_of_the_command_line_is_what_the_command_line_says() -> None:
    result = subprocess.run([sys.executable, ROOT / "docs/generate_cli.py", "--check"], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("name", VERBS)
def test_every_verb_explains_itself(name: str) -> None:
    verb = VERBS[name]
    assert re.search(rf"Example:\n +natdeploy {name}\b", verb.help)
    assert not [parameter.name for parameter in verb.params if not getattr(parameter, "help", None)]


def test_commands_are_found() -> None:
    page = 'text `natdeploy no`\n```sh\n$ natdeploy search --data x \\\n    --constraint "latency<=1 ms"  # why\nmake test\n```\n'
    assert list(commands(page)) == [["search", "--data", "x", "--constraint", "latency<=1 ms"]]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_in_the_docs_exist(page: Path) -> None:
    for verb, *arguments in commands(page.read_text(encoding="utf-8")):
        if arguments and f"{verb} {arguments[0]}" in VERBS:
            verb = f"{verb} {arguments[0]}"  # noqa: PLW2901
        if verb.startswith("-"):
            assert verb in ("--version", "--help")
            continue
        assert verb in VERBS, f"{page.name} shows `natdeploy {verb}`"
        known = {option for parameter in VERBS[verb].params for option in (*parameter.opts, *parameter.secondary_opts)} | {"--help"}
        shown = {argument.split("=")[0] for argument in arguments if argument.startswith("-")}
        assert shown <= known, f"{page.name} shows `natdeploy {verb} {' '.join(shown - known)}`"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_files_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^ *```.*?^ *```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)#\s]+)", text):
        assert "://" in target or (page.parent / target).exists(), f"{page.name} links to {target}"
