"""`natdeploy doctor`: what it finds, and what it makes of it."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from natdeploy import __version__
from natdeploy.cli import doctor
from natdeploy.cli.main import app
from natdeploy.hardware import runtimes
from natdeploy.runtimes import ort, trt


def test_this_machine_has_what_is_needed() -> None:
    result = CliRunner().invoke(app, ["doctor", "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["natdeploy"], found["ok"]) == (__version__, True)
    versions = {library["name"]: library["version"] for library in found["libraries"] + found["runtimes"]}
    assert versions["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert versions["onnxruntime"]
    first = next(runtime for runtime in found["runtimes"] if runtime["name"] == "onnxruntime")
    assert first["delegates"]["cpu"] is None
    assert {runtime["name"] for runtime in found["runtimes"]} == runtimes.RUNTIMES.keys()
    assert found["machine"]["cores"] == os.cpu_count()


def test_a_library_that_is_not_installed() -> None:
    absent = doctor.examine(doctor.Library("scipy", "no_such_module", "no-such-distribution", "pip install it"))
    assert absent == doctor.Finding("scipy", None, None, "pip install it")
    assert absent.broken
    spare = doctor.examine(doctor.Library("ray", "no_such_module", "no-such-distribution", "pip install it", needed=False))
    assert (spare.version, spare.broken) == (None, False)


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
    monkeypatch.setattr(runtimes, "RUNTIMES", {})
    result = CliRunner().invoke(app, ["doctor"], catch_exceptions=False)
    assert result.exit_code == 1
    assert "1.2 does not load (RuntimeError: operator does not exist); pip install --force-reinstall brokenlib" in result.stdout


class Pretended:
    """A runtime that runs on `cpu` only, by ONNX Runtime."""

    NAME = "pretended"
    SUFFIX = ".onnx"
    REQUIREMENT = "pretended-runtime"
    PRECISIONS = ("fp32", "int8")
    DELEGATES = ("cpu", "npu")
    convert = staticmethod(ort.convert)
    run = staticmethod(ort.run)

    def __init__(self, *, fails: Exception | None = None) -> None:
        self.fails = fails

    def version(self) -> str:
        if self.fails is not None:
            raise self.fails
        return "3.1"

    def load(self, path: Path, shape: tuple[int, ...], threads: int, precision: str, delegate: str) -> Any:
        if delegate != "cpu":
            raise RuntimeError("there is no NPU\nand more")
        return ort.load(path, shape, threads, precision, delegate)


def _doctor(monkeypatch: pytest.MonkeyPatch, runtime: Any) -> tuple[int, str, Any]:
    """Exit code, the line about a runtime, and the same for machines."""
    monkeypatch.setattr(doctor, "LIBRARIES", ())
    monkeypatch.setattr(runtimes, "RUNTIMES", {runtime.NAME: runtime})
    result = CliRunner().invoke(app, ["doctor"], catch_exceptions=False)
    found = json.loads(CliRunner().invoke(app, ["doctor", "--json"], catch_exceptions=False).stdout)
    assert found["ok"] == (result.exit_code == 0)
    return result.exit_code, next(line for line in result.stdout.splitlines() if runtime.NAME in line), found["runtimes"][0]


def test_a_runtime_is_tried_on_every_delegate(monkeypatch: pytest.MonkeyPatch) -> None:
    code, line, found = _doctor(monkeypatch, Pretended())
    assert code == 0
    assert line.split(maxsplit=1)[1] == "3.1; fp32, int8; runs on cpu; not on npu (why: natdeploy doctor --json)"
    assert found["delegates"] == {"cpu": None, "npu": "RuntimeError: there is no NPU"}


def test_a_runtime_that_is_not_installed_is_a_fault_only_if_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = Pretended(fails=ImportError("No module named 'pretended'"))
    code, line, found = _doctor(monkeypatch, absent)
    assert code == 0
    assert line.endswith("pretended is not installed here (No module named 'pretended'); install it: pip install pretended-runtime")
    assert (found["version"], found["delegates"]) == (None, {})
    monkeypatch.setattr(doctor, "NEEDED", ("pretended",))
    assert _doctor(monkeypatch, absent)[0] == 1


def test_an_installed_runtime_that_fails_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("operator does not exist\nand more")

    runtime: Any = Pretended()
    runtime.convert = fail
    code, line, _ = _doctor(monkeypatch, runtime)
    assert code == 1
    assert line.split(maxsplit=1)[1] == "3.1; RuntimeError: operator does not exist"


def test_tensorrt_is_marked_unverified(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    code, line, found = _doctor(monkeypatch, trt)
    assert code == 0
    assert "install it: pip install tensorrt; unverified: natdeploy's use of it was never run on a GPU" in line
    assert found["note"].startswith("unverified")


def test_advice_is_about_what_disturbs_measurements() -> None:
    cores = os.cpu_count() or 1
    assert doctor.advice({"governor": "performance", "load_1min": 0.0}) == []
    assert doctor.advice({"governor": None, "load_1min": 0.4 * cores}) == []
    slow, busy = doctor.advice({"governor": "powersave", "load_1min": float(cores)})
    assert "governor powersave" in slow
    assert f"load {float(cores)}" in busy
