"""ONNX Runtime gives what torch gives, for the size it was converted at and for others."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from natdeploy.runtimes import ort


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(8)
    norm.running_mean, norm.running_var = torch.randn(8), torch.rand(8) + 0.5
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1, bias=False), norm, nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
    )


@pytest.mark.parametrize("size", [16, 31, 64])
def test_agrees_with_torch_at_every_size(net: nn.Module, tmp_path: Path, size: int) -> None:
    path = tmp_path / "net.onnx"
    ort.convert(net, torch.randn(1, 3, 24, 24), path, dynamic_size=True)
    x = torch.randn(1, 3, size, size)
    (y,) = ort.run(ort.load(path, x.shape, 1, "fp32", "cpu"), [x.numpy()])
    assert np.abs(y - net.eval()(x).detach().numpy()).max() < 1e-5


def test_every_session_computes_int8_exactly_whatever_the_processor(net: nn.Module, tmp_path: Path) -> None:
    """What goes wrong without the option shows on processors without VNNI alone (tests/runtimes/test_int8.py)."""
    ort.convert(net, torch.randn(1, 3, 24, 24), tmp_path / "net.onnx", dynamic_size=False)
    options = ort.load(tmp_path / "net.onnx", (1, 3, 24, 24), 1, "fp32", "cpu").native.get_session_options()
    assert options.get_session_config_entry(ort.EXACT_INT8[0]) == ort.EXACT_INT8[1]


def test_static_size_stays_static(net: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    ort.convert(net, torch.randn(1, 3, 24, 24), path, dynamic_size=False)
    graph = onnx.load(path).graph
    assert [d.dim_value for d in graph.input[0].type.tensor_type.shape.dim] == [1, 3, 24, 24]
    assert "BatchNormalization" not in {node.op_type for node in graph.node}


def test_convert_leaves_mode_and_warnings_alone_and_no_litter(net: nn.Module, tmp_path: Path) -> None:
    net.train()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ort.convert(net, torch.randn(1, 3, 24, 24), tmp_path / "net.onnx", dynamic_size=False)
    assert net.training
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]


def test_failed_conversion_keeps_the_old_file(net: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError):
        ort.convert(net, torch.randn(1, 4, 24, 24), path, dynamic_size=False)
    assert path.read_bytes() == b"old"
    assert [each.name for each in tmp_path.iterdir()] == ["net.onnx"]


def test_details_name_provider_and_version() -> None:
    details = ort.details("fp32", "cpu")
    assert details["provider"] == "CPUExecutionProvider"
    assert details["runtime_version"] == ort.version()


def test_quantised_file_computes_in_integers(net: nn.Module, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = [torch.randn(1, 3, 24, 24) for _ in range(3)]
    for name in ("one", "two"):
        path = tmp_path / f"{name}.onnx"
        ort.convert(net, data[0], path, precision="int8", dynamic_size=True, calibration=data)
    assert capfd.readouterr() == ("", "")
    assert path.read_bytes() == (tmp_path / "one.onnx").read_bytes()
    session = ort.load(path, (1, 3, 40, 40), 1, "int8", "cpu")
    kinds = {kind: count for kind, _, count in ort.placement(session)}
    assert kinds["QLinearConv"] == 1
    assert "Conv" not in kinds
    graph = onnx.load(path).graph
    constants = {each.name: onnx.numpy_helper.to_array(each) for each in graph.initializer}
    scales = {node.output[0]: constants[node.input[1]] for node in graph.node if node.op_type == "DequantizeLinear"}
    (convolution,) = [node for node in graph.node if node.op_type == "Conv"]
    assert scales[convolution.input[1]].shape == (8,)  # one a channel
    zeros = [constants[node.input[2]] for node in graph.node if node.op_type == "QuantizeLinear"]
    assert {zero.dtype for zero in zeros} == {np.dtype(np.uint8)}


def test_placement_leaves_nothing_behind(net: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "net.onnx"
    ort.convert(net, torch.randn(1, 3, 24, 24), path, dynamic_size=False)
    monkeypatch.chdir(tmp_path)
    assert ("Conv", "CPUExecutionProvider", 1) in ort.placement(ort.load(path, (1, 3, 24, 24), 1, "fp32", "cpu"))
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("delegate", ["cuda", "tensorrt"])
def test_a_provider_that_is_not_built_in_is_an_error(net: nn.Module, tmp_path: Path, delegate: str) -> None:
    provider = ort.details("fp32", delegate)["provider"]
    if provider in onnxruntime.get_available_providers():
        pytest.skip(f"this onnxruntime has {provider}: what happens without it cannot be seen here")
    path = tmp_path / "net.onnx"
    ort.convert(net, torch.randn(1, 3, 24, 24), path, dynamic_size=False)
    with pytest.raises(ImportError, match=f"has no {provider}; .*pip install onnxruntime-gpu"):
        ort.load(path, (1, 3, 24, 24), 1, "fp32", delegate)


def test_a_provider_that_does_not_start_is_an_error(net: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "net.onnx"
    ort.convert(net, torch.randn(1, 3, 24, 24), path, dynamic_size=False)
    known = onnxruntime.get_available_providers()
    if "CUDAExecutionProvider" in known:
        pytest.skip("this onnxruntime has CUDA: what happens without it cannot be seen here")
    # Built in, so it says, but the session comes without it: what happens where the driver is missing.
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", *known])
    with (
        pytest.warns(UserWarning, match="CUDAExecutionProvider"),
        pytest.raises(RuntimeError, match="CUDAExecutionProvider cannot be used here, and ONNX Runtime took CPUExecutionProvider"),
    ):
        ort.load(path, (1, 3, 24, 24), 1, "fp32", "cuda")


def test_size_is_fixed_when_loaded(net: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    ort.convert(net, torch.randn(1, 3, 24, 24), path, dynamic_size=True)
    session = ort.load(path, (1, 3, 40, 48), 1, "fp32", "cpu")
    assert session.native.get_inputs()[0].shape == [1, 3, 40, 48]


def test_a_provider_that_fails_is_not_replaced_by_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    tries = []

    def fail(_session: object, providers: list[object], *_: object) -> None:
        tries.append(providers)
        raise RuntimeError("no device")

    monkeypatch.setattr(onnxruntime.InferenceSession, "_create_inference_session", fail)
    with pytest.raises(RuntimeError, match="no device"):
        ort.load(tmp_path / "net.onnx", (1, 3, 24, 24), 1, "fp32", "cpu")
    assert len(tries) == 1
    assert capfd.readouterr() == ("", "")


def test_quantised_files_are_for_cpus(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="for CPUs, not for tensorrt"):
        ort.load(tmp_path / "net.onnx", (1, 3, 24, 24), 1, "int8", "tensorrt")
