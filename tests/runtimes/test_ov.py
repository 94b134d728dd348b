"""OpenVINO computes in the precision it is told, says nothing to anybody, and copies nothing while it is timed."""

from __future__ import annotations

import importlib.util
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from natdeploy.runtimes import ov

openvino = pytest.importorskip("openvino", reason="OpenVINO is not installed; pip install openvino", exc_type=ImportError)
SHAPE = (1, 3, 24, 24)


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(8)
    norm.running_mean, norm.running_var = torch.randn(8), torch.rand(8) + 0.5
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), norm, nn.ReLU6(), nn.Conv2d(8, 16, 1), nn.Hardswish()).eval()


@pytest.fixture(scope="module")
def path(net: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ov") / "net.xml"
    ov.convert(net, torch.randn(SHAPE), path, dynamic_size=True)
    return path


def test_importing_it_tells_nobody_and_writes_nothing(tmp_path: Path) -> None:
    code = "from natdeploy.runtimes import ov; ov.version(); import openvino.tools.ovc.convert_impl as i; print(i.tm.__name__)"
    environment = os.environ | {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    output = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True)
    assert output.stdout.strip() == "openvino.tools.ovc.telemetry_stub"
    assert list(tmp_path.iterdir()) == []


def test_the_file_holds_full_weights_and_says_what_it_is(net: nn.Module, path: Path) -> None:
    model = openvino.Core().read_model(str(path))
    assert model.get_rt_info(["natdeploy", "precision"]).value == "fp32"
    assert str(model.inputs[0].partial_shape) == "[1,3,?,?]"
    assert (model.inputs[0].any_name, model.outputs[0].any_name) == (ov.INPUT, ov.OUTPUT)
    weights = sum(layer.weight.numel() for layer in net if isinstance(layer, nn.Conv2d))
    assert path.with_suffix(".bin").stat().st_size >= 4 * weights


@pytest.mark.parametrize(("precision", "hint"), [("fp32", "f32"), ("bf16", "bf16")])
def test_precision_is_explicit(path: Path, precision: str, hint: str) -> None:
    if precision.upper() not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        with pytest.raises(RuntimeError, match=f"computes in f32 on this CPU, which has no {hint}; take precision fp32"):
            ov.load(path, SHAPE, 1, precision, "cpu")
        return
    session = ov.load(path, SHAPE, 1, precision, "cpu")
    assert session.native.get_property("INFERENCE_PRECISION_HINT").get_type_name() == hint
    convolutions = [where for kind, where, _ in ov.placement(session) if kind == "Convolution"]
    assert convolutions
    assert all(where.endswith(f"_{hint}") for where in convolutions)


@pytest.mark.skipif(
    importlib.util.find_spec("nncf") is None, reason="NNCF, which quantises for OpenVINO, is not installed; pip install nncf"
)
def test_quantisation_is_silent_and_deterministic(net: nn.Module, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    loggers, data = logging.getLoggerClass(), [torch.randn(SHAPE) for _ in range(3)]
    capfd.readouterr()
    for name in ("one", "two"):
        ov.convert(net, data[0], tmp_path / f"{name}.xml", precision="int8", dynamic_size=True, calibration=data)
    assert capfd.readouterr() == ("", "")
    assert logging.getLoggerClass() is loggers
    assert logging.root.manager.disable == 0
    assert (tmp_path / "one.bin").read_bytes() == (tmp_path / "two.bin").read_bytes()
    session = ov.load(tmp_path / "one.xml", SHAPE, 1, "int8", "cpu")
    assert all(where.lower().endswith("i8") for kind, where, _ in ov.placement(session) if kind == "Convolution")


def test_fewer_threads_than_asked_for_are_an_error(path: Path) -> None:
    cores = len(os.sched_getaffinity(0))
    with pytest.raises(RuntimeError, match=f"gives {cores} of {cores + 1} threads"):
        ov.load(path, SHAPE, cores + 1, "fp32", "cpu")


def test_an_absent_device_is_an_error(path: Path) -> None:
    absent = next(name for name in ov.DELEGATES if name.upper() not in openvino.Core().available_devices)
    with pytest.raises(RuntimeError, match=f"finds no {absent.upper()} here"):
        ov.load(path, SHAPE, 1, "fp32", absent)


def test_memory_of_an_output_is_used_again_once_nobody_holds_it(path: Path) -> None:
    session = ov.load(path, SHAPE, 1, "fp32", "cpu")
    x = torch.randn(SHAPE).numpy()

    def address() -> int:
        (y,) = ov.run(session, [x])
        return int(y.ctypes.data)

    first = address()
    assert address() == first
    (held,) = ov.run(session, [x])
    assert address() != held.ctypes.data
    row = held[0, 0]
    del held
    assert address() != row.ctypes.data


def test_takes_arrays_whose_memory_cannot_be_shared(path: Path) -> None:
    session = ov.load(path, SHAPE, 1, "fp32", "cpu")
    x = torch.randn(SHAPE).numpy()
    (expected,) = ov.run(session, [x])
    fixed = x.copy()
    fixed.flags.writeable = False
    for other in (fixed, np.asfortranarray(x), np.repeat(x, 2, axis=3)[..., ::2]):
        np.testing.assert_array_equal(ov.run(session, [other])[0], expected)
    turned = np.asfortranarray(x)
    ov.run(session, [turned])
    turned += 1
    assert not np.array_equal(ov.run(session, [turned])[0], expected)
