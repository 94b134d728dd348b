"""What natdeploy writes as TFLite is what litert-torch would write, and old runtimes read it."""

from __future__ import annotations

import importlib.util
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from natdeploy.latency.blocks import input_shape, parse_block
from natdeploy.runtimes import tflite, tflite_writer
from natdeploy.supernet import build_block

schema = pytest.importorskip(
    "ai_edge_litert.schema_py_generated", reason="LiteRT is not installed; pip install ai-edge-litert", exc_type=ImportError
)
OPERATORS = {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}


def _model(content: bytes) -> Any:
    return schema.ModelT.InitFromPackedBuf(content, 0)


def _operators(content: bytes) -> Counter[str]:
    model = _model(content)
    return Counter(OPERATORS[model.operatorCodes[each.opcodeIndex].builtinCode] for each in model.subgraphs[0].operators)


def _settled(module: nn.Module) -> nn.Module:
    """With statistics that matter."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            assert part.running_mean is not None and part.running_var is not None
            part.running_mean, part.running_var = torch.randn(part.num_features), torch.rand(part.num_features) + 0.5
    return module.eval()


def _difference(content: bytes, module: nn.Module, x: Tensor, folder: Path, delegate: str = "xnnpack") -> float:
    """The largest, relative to the largest number."""
    (folder / "net.tflite").write_bytes(content)
    (y,) = tflite.run(tflite.load(folder / "net.tflite", x.shape, 1, "fp32", delegate), [x.numpy()])
    with torch.no_grad():
        expected = module(x).numpy()
    assert y.shape == expected.shape
    return float(np.abs(y - expected).max() / np.abs(expected).max())


class Gate(nn.Module):
    """Squeeze-and-excitation and a sum, in functions and methods."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.gate = nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)
        self.pool = nn.AdaptiveAvgPool2d((1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.relu(self.norm(self.conv(x)))
        y = y * nn.functional.hardsigmoid(self.gate(nn.functional.hardswish(y)))
        return torch.flatten(self.pool(torch.add(x, y)), 1)


class Detour(nn.Module):
    """What follows a layer that does nothing must not change what others read before it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.same, self.act = nn.Conv2d(4, 4, 1), nn.Identity(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.act(self.same(y)) + y


PLAIN = {
    "detour": (Detour(), (1, 4, 5, 5)),
    "gate": (Gate(), (1, 4, 9, 9)),
    "odd padding": (nn.Sequential(nn.ZeroPad2d((0, 1, 2, 0)), nn.Conv2d(4, 8, 3, 2, bias=False)), (1, 4, 9, 8)),
    "activations of sums": (nn.Sequential(nn.Hardswish(), nn.ReLU6(), nn.Hardsigmoid(), nn.ReLU()), (1, 4, 5, 5)),
    "hard sigmoid of a linear layer": (nn.Sequential(nn.Linear(6, 5, bias=False), nn.Hardsigmoid(), nn.Dropout()), (1, 6)),
    "normalisation twice": (nn.Sequential(nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6), nn.BatchNorm2d(6, affine=False)), (1, 4, 5, 5)),
    "torchvision's MobileNetV2": (torchvision.models.mobilenet_v2(num_classes=5), (1, 3, 64, 64)),
    "torchvision's MobileNetV3": (torchvision.models.mobilenet_v3_small(num_classes=5), (1, 3, 64, 64)),
}


@pytest.mark.parametrize("name", PLAIN)
def test_writes_what_torch_computes(name: str, tmp_path: Path) -> None:
    module, shape = PLAIN[name]
    content = tflite_writer.write(_settled(module), torch.randn(shape), True)
    for delegate in tflite.DELEGATES:
        assert _difference(content, module, torch.randn(shape), tmp_path, delegate) < 1e-5


def test_h_swish_is_written_out_where_xnnpack_would_leave_it_out(tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_quantizer", reason="ai-edge-quantizer is missing; pip install 'natdeploy[tflite]'")
    module, x = (
        _settled(nn.Sequential(nn.Conv2d(4, 8, 1), nn.Hardswish(), nn.Conv2d(8, 4, 1), nn.Hardswish())),
        torch.randn(1, 4, 9, 9),
    )
    assert _difference(tflite_writer.write(module, x, True, fused_hswish=False), module, x, tmp_path) < 1e-5
    for fused in (False, True):
        path = tmp_path / f"{fused}.tflite"
        tflite.convert(module, x, path, precision="int8", dynamic_size=False, int8=tflite.Int8(fused_hswish=fused))
        session = tflite.load(path, tuple(x.shape), 1)
        left = [(kind, count) for kind, where, count in tflite.placement(session) if where != "xnnpack"]
        assert left == ([("HARD_SWISH", 2)] if fused else [])
        (found,), expected = tflite.run(session, [x.numpy()]), module(x).detach().numpy()
        assert np.abs(found - expected).max() < 0.05 * np.abs(expected).max()


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_every_convolution_is_placed_and_padded_as_in_torch(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    def pair(low: int, high: int) -> tuple[int, int]:
        return data.draw(st.tuples(st.integers(low, high), st.integers(low, high)))

    kernel, stride, padding, size = pair(1, 7), pair(1, 3), pair(0, 3), pair(7, 12)
    groups, out_channels = data.draw(st.sampled_from([(1, 5), (4, 4), (4, 8)]))
    norm = data.draw(st.booleans())
    layers = [nn.Conv2d(4, out_channels, kernel, stride, padding, groups=groups, bias=not norm)]
    module = _settled(nn.Sequential(*layers, *([nn.BatchNorm2d(out_channels)] if norm else []), nn.ReLU6()))
    content = tflite_writer.write(module, torch.randn(1, 4, *size), True)
    folder = tmp_path_factory.mktemp("convolution")
    x, wider = torch.randn(1, 4, *size), torch.randn(1, 4, size[0] + 1, size[1] + 4)
    assert _difference(content, module, x, folder) < 1e-5
    assert _difference(content, module, wider, folder) < 1e-5


def test_unlike_ranks_shared_convolutions_and_the_like_are_not_written() -> None:
    class Function(nn.Module):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name, self.conv, self.norm = name, nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Any:
            y = self.conv(x)
            return {
                "normalised and used raw": lambda: self.norm(y) + y,
                "unlike ranks": lambda: y + self.conv.weight,
                "twice the same": lambda: y + y,
                "a number": lambda: y + 1.0,
                "a scaled sum": lambda: torch.add(x, y, alpha=2),
                "several outputs": lambda: (x, y),
                "by size": lambda: y if y.shape[2] > 3 else x,
                "flattened image": lambda: torch.flatten(y, 1),
            }[self.name]()

    layers: list[nn.Module] = [
        nn.Conv2d(4, 4, 1, groups=2),
        nn.Conv2d(4, 4, 3, dilation=2),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(4, 4, 3, padding="same"),
        nn.AdaptiveAvgPool2d(2),
        nn.BatchNorm2d(4),
        nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)),
        nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(), nn.BatchNorm2d(4)),
        nn.Linear(4, 4),
        nn.SiLU(),
    ]
    names = ("normalised and used raw", "unlike ranks", "twice the same", "a number", "a scaled sum", "several outputs", "by size")
    for module in [*layers, *map(Function, (*names, "flattened image"))]:
        with pytest.raises(tflite_writer.UnknownModuleError):
            tflite_writer.write(module.eval(), torch.randn(1, 4, 6, 4), False)


def needs_litert_torch() -> None:
    """Looks for it without importing it: how it is imported decides what it says."""
    if importlib.util.find_spec("litert_torch") is None:
        pytest.skip("litert-torch is not installed; pip install litert-torch")


def test_writes_the_operators_that_litert_torch_makes(tmp_path: Path) -> None:
    needs_litert_torch()
    torch.manual_seed(0)
    middle, head = parse_block("mbconv-8x6-m12-o8-k5-s2-se4-hswish"), parse_block("head-4x8-m8-o16-k1-s1")
    module = _settled(nn.Sequential(build_block(middle), build_block(head), nn.Linear(16, 5)))
    x = torch.randn(input_shape(middle))
    ours, theirs = (make(module, x, False) for make in (tflite_writer.write, tflite._translate))
    assert _operators(ours) == _operators(theirs)
    assert _difference(ours, module, x, tmp_path) < 1e-5
    assert _difference(theirs, module, x, tmp_path) < 1e-5


def test_translates_the_rest_in_silence_and_at_any_size(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    needs_litert_torch()
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)).eval()
    path = tmp_path / "net.tflite"
    tflite.convert(module, torch.randn(1, 3, 24, 24), path, dynamic_size=True)
    said = capfd.readouterr()
    assert (said.out, said.err) == ("", "")
    for size in (24, 33):
        x = torch.randn(1, 3, size, size)
        assert _difference(path.read_bytes(), module, x, tmp_path) < 1e-5
        assert {where for _, where, _ in tflite.placement(tflite.load(path, x.shape, 1))} == {"xnnpack"}


@pytest.fixture(scope="module")
def block() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    block = parse_block("mbconv-16x8-m24-o16-k5-s2-se8-hswish")
    return _settled(build_block(block)), torch.randn(input_shape(block))


def test_old_runtimes_read_it(block: tuple[nn.Module, Tensor], tmp_path: Path) -> None:
    """tflite-runtime 2.14 on numpy 1 was given such files and gave the same numbers; they must stay as they were then."""
    path = tmp_path / "block.tflite"
    for precision in tflite.PRECISIONS:
        tflite.convert(*block, path, precision=precision, dynamic_size=True)
        model = _model(path.read_bytes())
        assert {code.version for code in model.operatorCodes} == {1}
    assert all(code.deprecatedBuiltinCode == code.builtinCode for code in _model(tflite_writer.write(*block, True)).operatorCodes)


def test_buffers_are_aligned_and_the_height_is_open(block: tuple[nn.Module, Tensor]) -> None:
    for dynamic_size, signature in ((True, [1, 8, -1, -1]), (False, None)):
        content = tflite_writer.write(*block, dynamic_size)
        model = schema.Model.GetRootAs(content, 0)
        starts = [model.Buffers(i)._tab for i in range(1, model.BuffersLength())]
        assert starts and all(each.Vector(each.Offset(4)) % 16 == 0 for each in starts)
        found = _model(content).subgraphs[0].tensors[0].shapeSignature
        assert (None if found is None else list(found)) == signature


def test_int8_is_quantised_by_channel_and_said_to_nobody(
    block: tuple[nn.Module, Tensor], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "block.tflite"
    tflite.convert(*block, path, precision="int8", dynamic_size=True, calibration=[torch.randn(1, 8, 16, 16)] * 3)
    out, err = capfd.readouterr()
    assert out == ""
    assert [line for line in err.splitlines() if "XNNPACK delegate" not in line] == []
    model = _model(path.read_bytes())
    graph = model.subgraphs[0]
    scales = {
        OPERATORS[model.operatorCodes[each.opcodeIndex].builtinCode]: len(graph.tensors[each.inputs[1]].quantization.scale)
        for each in graph.operators
        if "CONV" in OPERATORS[model.operatorCodes[each.opcodeIndex].builtinCode]
    }
    assert scales == {"CONV_2D": 16, "DEPTHWISE_CONV_2D": 24}
    assert {graph.tensors[place].type for place in (graph.inputs[0], graph.outputs[0])} == {schema.TensorType.FLOAT32}


def test_placement_tells_delegates_apart(block: tuple[nn.Module, Tensor], tmp_path: Path) -> None:
    module, x = block
    (tmp_path / "block.tflite").write_bytes(tflite_writer.write(module, x, True))
    for delegate, where in (("xnnpack", "xnnpack"), ("reference", "builtin")):
        placement = tflite.placement(tflite.load(tmp_path / "block.tflite", (1, 8, 40, 40), 1, "fp32", delegate))
        assert {each[1] for each in placement} == {where}
        assert sum(count for _, _, count in placement) == sum(_operators((tmp_path / "block.tflite").read_bytes()).values())


def test_the_predecessor_serves_where_the_library_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("tflite_runtime", "tflite_runtime.interpreter"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setattr(sys.modules["tflite_runtime"], "__version__", "2.14.0", raising=False)
    assert tflite.version().startswith("ai_edge_litert ")
    monkeypatch.setitem(sys.modules, "ai_edge_litert", None)
    assert tflite.version() == "tflite_runtime 2.14.0"
    assert tflite.details("fp32", "xnnpack")["runtime_version"] == "tflite_runtime 2.14.0"
