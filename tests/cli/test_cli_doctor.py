"""`natdeploy doctor`: what it finds, and what it makes of it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from natdeploy import __version__
from natdeploy.cli import doctor
from natdeploy.cli.main import app


def test_this_machine_has_what_is_needed() -> None:
    result = CliRunner().invoke(app, ["doctor", "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["natdeploy"], found["ok"]) == (__version__, True)
    versions = {library["name"]: library["version"] for library in found["libraries"] + found["runtimes"]}
    assert versions["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert versions["onnxruntime"]
    assert found["machine"]["cores"] == os.cpu_count()


def test_a_library_that_is_not_installed() -> None:
    absent = doctor.examine(doctor.Library("openvino", "no_such_module", "no-such-distribution", "pip install it", needed=False))
    assert absent == doctor.Finding("openvino", None, None, "pip install it", needed=False)


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> doctor.Library:
    """An installed library that does not load."""
    (tmp_path / "brokenlib.py").write_text("raise RuntimeError('operator does not exist\\nand more')")
    info = tmp_path / "brokenlib-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: brokenlib\nVersion: 1.2\n")
    monkeypatch.syspath_prepend(tmp_path)
    return doctor.Library("brokenlib", "brokenlib", "brokenlib", "pip install --force-reinstall brokenlib")


def test_a_library_that_does_not_load_ends_with_1(broken: doctor.Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "LIBRARIES", (broken,))
    result = CliRunner().invoke(app, ["doctor"], catch_exceptions=False)
    assert result.exit_code == 1
    assert "1.2 does not load (RuntimeError: operator does not exist); pip install --force-reinstall brokenlib" in result.stdout


def test_advice_is_about_what_disturbs_measurements() -> None:
    cores = os.cpu_count() or 1
    assert doctor.advice({"governor": "performance", "load_1min": 0.0}) == []
    assert doctor.advice({"governor": None, "load_1min": 0.4 * cores}) == []
    slow, busy = doctor.advice({"governor": "powersave", "load_1min": float(cores)})
    assert "governor powersave" in slow
    assert f"load {float(cores)}" in busy
