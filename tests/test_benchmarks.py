"""Benchmarks take hours and are no tests, but each must still know the product that it measures."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "benchmarks"

HELP = """
import contextlib, io, runpy, sys
for path in sys.argv[1:]:
    sys.argv = [path, "--help"]
    shown = io.StringIO()
    try:
        with contextlib.redirect_stdout(shown):
            runpy.run_path(path, run_name="__main__")
    except SystemExit as end:
        assert not end.code, f"{path} ends with {end.code}"
    assert "usage" in shown.getvalue(), f"{path} shows no usage"
"""


def test_every_benchmark_starts() -> None:
    files = sorted(str(path) for path in FOLDER.glob("*.py") if '"__main__"' in path.read_text())
    assert files
    done = subprocess.run([sys.executable, "-c", HELP, *files], check=False, cwd=FOLDER, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
