"""Measuring over a real connection: the runner, a runtime and the models travel, and numbers come back."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from natdeploy.errors import DeviceError
from natdeploy.hardware.bench import QUICK, Candidate
from natdeploy.hardware.device import Device, Setting, Target
from natdeploy.hardware.measure import MeasureResult, measure
from natdeploy.progress import Silent
from natdeploy.runtimes import ort


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Candidate:
    path = tmp_path_factory.mktemp("model") / "net.onnx"
    ort.convert(nn.Conv2d(3, 8, 3), torch.randn(1, 3, 32, 32), path, dynamic_size=False)
    return Candidate("net", path, (1, 3, 32, 32))


def timed(device: Device, model: Candidate) -> MeasureResult:
    target = Target(device, "onnxruntime", "cpu", "fp32", 1)
    return measure([model], Candidate("reference", model.model, model.shape), target, QUICK, seed=0, progress=Silent())


@pytest.mark.parametrize("way", ["ssh", "adb"])
def test_a_model_is_measured(way: str, request: pytest.FixtureRequest, model: Candidate, tmp_path: Path) -> None:
    (tmp_path / "governor").write_text("powersave\n")
    (tmp_path / "temp").write_text("41500\n")
    device = request.getfixturevalue(f"{way}_device").model_copy(
        update={
            "python": sys.executable,
            "harness": "runner",
            "temperature": str(tmp_path / "temp"),
            "settings": (Setting(name="governor", file=str(tmp_path / "governor"), value="performance"),),
        }
    )
    result = timed(device, model)
    assert result.failures == {}
    assert result["net"].n >= QUICK.min_runs * QUICK.processes
    assert result["net"].p50_ms > 0
    assert result["net"].latency_ms > 0
    assert result.environment["provider"] == "CPUExecutionProvider"
    assert result.environment["settings"] == "governor: changed"
    assert result.environment["temperature_c"] == 41.5
    assert (tmp_path / "governor").read_text() == "powersave\n"


def test_garbage_among_the_lines_of_the_runner(ssh_device: Device, model: Candidate, tmp_path: Path) -> None:
    chatty = tmp_path / "python3"
    chatty.write_text(f'#!/bin/sh\necho "Welcome to the lab"\nexec {sys.executable} "$@"\n')
    chatty.chmod(0o755)
    with pytest.raises(DeviceError, match=r"was to say which model it is at, but said 'Welcome to the lab'"):
        timed(ssh_device.model_copy(update={"python": str(chatty)}), model)


def test_no_python_is_told_before_anything_runs(ssh_device: Device, model: Candidate) -> None:
    with pytest.raises(DeviceError, match="there is no Python on this device"):
        timed(ssh_device.model_copy(update={"python": None}), model)
