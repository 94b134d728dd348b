"""TensorRT as far as it can be tested without a GPU: every call against NVIDIA's own signatures, and the flow on a stand-in.

Nothing here shows that an engine computes the right numbers on a GPU, or how fast.
"""

from __future__ import annotations

import ast
import ctypes
import gc
import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from fake_tensorrt import API, C_TYPES, PROTOTYPES, Cuda, fake_tensorrt
from torch import nn

from natdeploy.errors import DeviceError
from natdeploy.hardware.runtimes import installed_version
from natdeploy.runtimes import runner, trt

OLDEST, NEWEST = "8.6.1", "11.4.0.106"
SIZES = (24, 33)
CLOSE = {"fp32": 1e-5, "fp16": 2e-3, "int8": 6e-2}
"""Largest error as a part of the largest output: float32 rounding, float16 rounding, 8 bits with ranges of three inputs."""


class Squeeze(nn.Module):
    """Squeeze and excitation, with a residual. The biases are equal, which the exporter stores once."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.Hardsigmoid())
        with torch.no_grad():
            self.gate[1].bias.copy_(self.gate[3].bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + x * self.gate(x)


def make_net() -> nn.Module:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(8)
    norm.running_mean, norm.running_var = torch.randn(8), torch.rand(8) + 0.5
    layers = (
        nn.Conv2d(3, 8, 3, 2, 1, bias=False),
        norm,
        nn.Hardswish(),
        nn.Conv2d(8, 8, 5, 1, 2, groups=8),
        nn.ReLU6(),
        Squeeze(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    )
    return nn.Sequential(*layers).eval()


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return make_net()


@pytest.fixture(scope="module")
def converted(net: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The net by precision, open in height and width, and once fixed at 24."""
    folder = tmp_path_factory.mktemp("converted")
    torch.manual_seed(1)
    samples = [torch.randn(1, 3, size, size) for size in (24, 24, 33)]
    for precision in trt.PRECISIONS:
        path = folder / f"{precision}.onnx"
        trt.convert(net, samples[0], path, precision=precision, dynamic_size=True, calibration=samples)
    trt.convert(net, samples[0], folder / "fixed.onnx", dynamic_size=False)
    return {path.stem: path for path in folder.iterdir()}


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    """A driver, which ctypes finds under the name that every real one has."""
    driver, found = Cuda(), ctypes.CDLL
    monkeypatch.setattr(
        ctypes, "CDLL", lambda name, *rest, **more: driver if name == "libcuda.so.1" else found(name, *rest, **more)
    )
    return driver


@pytest.fixture
def install(cuda: Cuda, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Makes `import tensorrt` find the stand-in of a version."""

    def install(version: str = NEWEST, gpu: str = "Imaginary GPU") -> Any:
        module = fake_tensorrt(version, cuda, gpu)
        monkeypatch.setitem(sys.modules, "tensorrt", module)
        return module

    return install


def load(path: Path, size: int = 24, precision: str = "fp32") -> trt.Session:
    return trt.load(path, (1, 3, size, size), 1, precision, "gpu")


@pytest.mark.parametrize("version", API)
@pytest.mark.parametrize("precision", trt.PRECISIONS)
def test_every_version_computes_one_file_at_every_size(
    net: nn.Module, converted: dict[str, Path], install: Callable[..., Any], version: str, precision: str
) -> None:
    module = install(version)
    for size in SIZES:
        session = load(converted[precision], size, precision)
        for seed in (1, 2):  # the second run must not see the first one's buffers
            x = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(seed))
            (y,) = trt.run(session, [x.numpy()])
            expected = net(x).detach().numpy()
            assert y.dtype == np.float32
            assert np.abs(y - expected).max() <= CLOSE[precision] * np.abs(expected).max()
    flags = {"fp32": set(), "fp16": {"FP16"}, "int8": {"INT8"}}[precision] if version == OLDEST else set()
    assert [(build["flags"], build["typed"]) for build in module._built] == [(flags, version != OLDEST)] * 2  # and TF32 is off


def test_outputs_are_not_overwritten_by_the_next_run(converted: dict[str, Path], install: Callable[..., Any]) -> None:
    install()
    session = load(converted["fp32"])
    (first,) = trt.run(session, [np.zeros((1, 3, 24, 24), np.float32)])
    kept = first.copy()
    trt.run(session, [np.ones((1, 3, 24, 24), np.float32)])
    assert (first == kept).all()


@pytest.mark.parametrize("version", API)
def test_placement_names_type_and_kernel_of_every_layer(
    converted: dict[str, Path], install: Callable[..., Any], version: str
) -> None:
    install(version)
    placed = trt.placement(load(converted["fp32"]))
    text = "Float" if version == NEWEST else "Row major linear FP32"
    assert placed == sorted(placed)
    assert ("Conv", f"{text} sm00_fprop", 4) in placed
    assert ("HardSwish", text, 1) in placed
    assert sum(count for _, _, count in placed) == len(onnx.load(converted["fp32"]).graph.node)


def test_kernels_are_timed_once(converted: dict[str, Path], install: Callable[..., Any], tmp_path: Path) -> None:
    module = install()
    path = tmp_path / "net.onnx"
    path.write_bytes(converted["fp32"].read_bytes())
    load(path)
    timed = len(module._timed)
    assert timed > 0
    load(path)
    assert len(module._timed) == timed
    load(path, 33)
    assert len(module._timed) == 2 * timed
    load(path)
    assert len(module._timed) == 2 * timed
    assert sorted(each.name for each in tmp_path.iterdir()) == ["net.onnx", trt.TIMING_CACHE]


@pytest.mark.parametrize("other", ["damaged", "another GPU"])
def test_a_timing_cache_that_does_not_fit_is_made_anew(
    converted: dict[str, Path], install: Callable[..., Any], tmp_path: Path, other: str
) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(converted["fp32"].read_bytes())
    install(gpu="Another GPU")
    load(path)
    if other == "damaged":
        (tmp_path / trt.TIMING_CACHE).write_bytes(b"\x00no cache")
    module = install()
    for _ in range(2):
        load(path)
    assert len(module._timed) == len(set(module._timed)) > 0


def test_what_does_not_fit_is_refused_in_one_sentence(
    converted: dict[str, Path], install: Callable[..., Any], tmp_path: Path
) -> None:
    install()
    with pytest.raises(ValueError, match="the file is fp32, not fp16"):
        load(converted["fp32"], precision="fp16")
    with pytest.raises(ValueError, match="the file is int8, not fp32"):
        load(converted["int8"])
    with pytest.raises(ValueError, match=r"fixed at \(1, 3, 24, 24\), not \(1, 3, 33, 33\)"):
        load(converted["fixed"], 33)
    load(converted["fixed"])
    with pytest.raises(ValueError, match=r"built for \(1, 3, 24, 24\), not for \(1, 3, 1, 1\)"):
        trt.run(load(converted["fp32"]), [np.zeros((1, 3, 1, 1), np.float32)])
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(converted["fp32"].read_bytes()[:500])
    with pytest.raises(RuntimeError, match="cannot read the file: Failed to parse"):
        load(damaged)


def test_what_tensorrt_only_tells_its_logger_is_in_the_message(
    converted: dict[str, Path], install: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = install()
    monkeypatch.setattr(module.IBuilderConfig, "add_optimization_profile", lambda self, profile: -1)
    with pytest.raises(RuntimeError, match=r"^TensorRT made no engine: input input has an open shape and no optimization profile$"):
        load(converted["fp32"])


def test_memory_and_stream_are_given_back(converted: dict[str, Path], install: Callable[..., Any], cuda: Cuda) -> None:
    install()
    session = load(converted["fp32"])
    assert (len(cuda.memory), len(cuda.streams)) == (4, 1)
    del session
    gc.collect()
    assert (cuda.memory, cuda.streams) == ({}, {})
    cuda.limit = 100
    with pytest.raises(RuntimeError, match="cuMemHostAlloc failed: CUDA_ERROR_OUT_OF_MEMORY"):
        load(converted["fp32"])
    assert (cuda.memory, cuda.streams) == ({}, {})


def test_details_name_version_and_gpu(install: Callable[..., Any]) -> None:
    install(OLDEST)
    expected = {"runtime": "tensorrt", "runtime_version": OLDEST, "provider": "Imaginary GPU", "precision": "fp16"}
    assert trt.details("fp16", "gpu") == expected


def test_without_library_or_driver(converted: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(DeviceError, match=r"tensorrt is not installed here .*: pip install tensorrt$"):
        installed_version(trt)
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt(NEWEST, Cuda()))
    monkeypatch.setattr(ctypes, "CDLL", absent)
    with pytest.raises(RuntimeError, match=r"there is no NVIDIA driver here \(libcuda"):
        load(converted["fp32"])


def test_the_runner_times_it(converted: dict[str, Path], install: Callable[..., Any], tmp_path: Path) -> None:
    install()
    for name, file in (("trt.py", Path(str(trt.__file__))), ("0.onnx", converted["fp16"]), ("1.onnx", converted["fp32"])):
        (tmp_path / name).write_bytes(file.read_bytes())
    candidates = [{"id": each, "model": f"{each}.onnx", "shape": [1, 3, 24, 24]} for each in "01"]
    settings = {"warmup_s": 0.0, "warmup_runs": 1, "min_s": 0.0, "min_runs": 4, "reference_s": 0.0, "slices": 2}
    plan = {"runtime": "trt.py", "threads": 1, "precision": "fp32", "delegate": "gpu", "seed": 0, "settings": settings}
    plan |= {"reference": candidates[1] | {"model": str(tmp_path / "1.onnx")}, "candidates": candidates}
    for candidate in candidates:
        candidate["model"] = str(tmp_path / str(candidate["model"]))
    environment, wrong, right = runner.records(plan, tmp_path)
    assert environment["runtime_version"] == NEWEST
    assert wrong["error"] == "ValueError: the file is fp16, not fp32; convert it again"
    assert [len(part["wall_ms"]) for part in right["slices"]] == [2, 2]


def test_every_precision_is_a_valid_file_with_float32_outside(converted: dict[str, Path]) -> None:
    for path in converted.values():
        model = onnx.load(path)
        onnx.checker.check_model(model, full_check=True)
        for value in (*model.graph.input, *model.graph.output):
            assert value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
        assert [(each.domain, each.version) for each in model.opset_import] == [("", 17)]  # the newest that TensorRT 8.6 reads
        weights = {tensor.name for tensor in model.graph.initializer}
        assert not any(node.op_type == "Identity" for node in model.graph.node)
        assert all(name in weights for node in model.graph.node if node.op_type == "Conv" for name in node.input[2:])


def test_fp16_is_half_between_two_casts(converted: dict[str, Path]) -> None:
    model = onnx.shape_inference.infer_shapes(onnx.load(converted["fp16"]), strict_mode=True)
    nodes = model.graph.node
    casts = [node for node in nodes if node.op_type == "Cast"]
    assert [casts[0].input[0], casts[-1].output[0], len(casts)] == ["input", "output", 2]
    assert {tensor.data_type for tensor in model.graph.initializer} == {onnx.TensorProto.FLOAT16}
    kinds = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
    assert {kinds[node.output[0]] for node in nodes if node is not casts[-1]} == {onnx.TensorProto.FLOAT16}


def test_int8_is_quantised_as_tensorrt_asks(converted: dict[str, Path]) -> None:
    graph = onnx.load(converted["int8"]).graph
    makers = {output: node for node in graph.node for output in node.output}
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    weighted = [node for node in graph.node if node.op_type in trt.QUANTIZED]
    assert len(weighted) == 5
    for node in weighted:
        for place, source in enumerate(node.input[:2]):
            dequantize = makers[source]
            quantize = makers[dequantize.input[0]]
            assert (quantize.op_type, dequantize.op_type) == ("QuantizeLinear", "DequantizeLinear")
            assert list(quantize.input[1:]) == list(dequantize.input[1:])
            scale, zero = (constants[name] for name in quantize.input[1:])
            channels = constants[quantize.input[0]].shape[:1] if place else ()
            assert scale.shape == channels
            assert (scale > 0).all()
            assert zero.dtype == np.int8
            assert not zero.any()
        assert all(name in constants and constants[name].dtype == np.float32 for name in node.input[2:])
    quantized = {makers[source].input[0] for node in weighted for source in node.input[:2]}
    assert {node.output[0] for node in graph.node if node.op_type == "QuantizeLinear"} == quantized  # and no output is


def test_convert_leaves_no_litter_and_keeps_the_old_file_when_it_fails(net: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match="computes in fp32, fp16, int8, not in bf16"):
        trt.convert(net, torch.randn(1, 3, 24, 24), path, precision="bf16", dynamic_size=True)
    with pytest.raises(RuntimeError):
        trt.convert(net, torch.randn(1, 4, 24, 24), path, precision="int8", dynamic_size=True)
    assert path.read_bytes() == b"old"
    trt.convert(net, torch.randn(1, 3, 24, 24), path, precision="int8", dynamic_size=True)
    assert [each.name for each in tmp_path.iterdir()] == ["net.onnx"]
    assert trt.companions(path) == ()


def test_quantisation_is_the_same_every_time(net: nn.Module, converted: dict[str, Path], tmp_path: Path) -> None:
    torch.manual_seed(1)
    samples = [torch.randn(1, 3, size, size) for size in (24, 24, 33)]
    trt.convert(net, samples[0], tmp_path / "again.onnx", precision="int8", dynamic_size=True, calibration=samples)
    assert (tmp_path / "again.onnx").read_bytes() == converted["int8"].read_bytes()


def test_the_file_stands_alone_on_python_3_8() -> None:
    tree = ast.parse(Path(str(trt.__file__)).read_text(), feature_version=(3, 8))
    at_home = ("convert", "read_inputs", "_join_copies", "_quantize")
    inside = {id(each) for node in tree.body if getattr(node, "name", None) in at_home for each in ast.walk(node)}
    type_checking = {id(each) for node in tree.body if isinstance(node, ast.If) for each in ast.walk(node)}
    libraries = set()
    for node in ast.walk(tree):
        if id(node) not in inside | type_checking:
            libraries |= {alias.name.split(".")[0] for alias in node.names} if isinstance(node, ast.Import) else set()
            libraries |= {str(node.module).split(".")[0]} if isinstance(node, ast.ImportFrom) else set()
    assert libraries <= {*sys.stdlib_module_names, "numpy", "tensorrt"}
    program = "import sys; sys.path[:0] = sys.argv[1:]; import trt; assert 'numpy' not in sys.modules; print(trt.NAME)"
    command = [sys.executable, "-I", "-S", "-c", program, str(Path(str(trt.__file__)).parent)]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == "tensorrt\n"


def test_the_driver_is_called_as_its_header_says(cuda: Cuda, install: Callable[..., Any]) -> None:
    install()
    trt.details("fp32", "gpu")
    assert {name: tuple(getattr(cuda, name).argtypes) for name in trt._PROTOTYPES} == {
        name: tuple(C_TYPES[each] for each in types) for name, types in PROTOTYPES.items()
    }


def test_the_header_says_what_the_stand_in_says() -> None:
    found = importlib.util.find_spec("nvidia")
    folders = found.submodule_search_locations if found else None
    headers = [header for folder in folders or () for header in Path(folder).rglob("cuda.h")]
    if not headers:
        pytest.skip("cuda.h is not here; it comes with the CUDA libraries that torch installs on Linux")
    text = headers[0].read_text(errors="replace")
    renamed = dict(re.findall(r"#define (cu\w+) +(?:__CUDA_API_PTSZ\()?(cu\w+_v2)\b", text))
    for name, arguments in re.findall(r"^CUresult CUDAAPI (cu\w+)\((.*)\);", text, re.M):
        if renamed.get(name, name) in PROTOTYPES:
            kinds = tuple(re.sub(r"(\w+) (\**)\w+$", r"\1 \2", each.strip()).strip() for each in arguments.split(","))
            assert kinds == PROTOTYPES[renamed.get(name, name)], name
            renamed[name] = "seen"
    assert sum(1 for each in renamed.values() if each == "seen") == len(PROTOTYPES)


def test_the_stand_in_refuses_what_the_bindings_lack(cuda: Cuda) -> None:
    module: Any = fake_tensorrt(NEWEST, cuda)

    class Log(module.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            module.ILogger.__init__(self)

    builder = module.Builder(Log())
    with pytest.raises(AttributeError, match=r"has no Builder.max_workspace_size"):
        _ = builder.max_workspace_size
    with pytest.raises(AttributeError, match=r"does not let Builder.max_batch_size be set"):
        builder.max_batch_size = 1
    with pytest.raises(AttributeError, match="FP16"):
        _ = module.BuilderFlag.FP16
    config = builder.create_builder_config()
    for wrong in (lambda: config.set_flag(0), lambda: config.create_timing_cache("text"), lambda: builder.create_network(flag=1)):
        with pytest.raises(TypeError, match="incompatible arguments"):
            wrong()


def test_recorded_versions_differ_only_where_expected() -> None:
    """A new version is recorded beside these; what it drops shows here and in every test above."""
    lists = {version: json.dumps(API[version]) for version in API}
    assert len(set(lists.values())) == len(lists)
    for name, members in API[OLDEST].items():
        for version in API:
            lost = members.keys() - API[version][name].keys()
            assert lost <= ({"EXPLICIT_BATCH", "FP16", "INT8"} if version == NEWEST else set()), (version, name)


def test_module_has_what_the_protocol_asks(converted: dict[str, Path]) -> None:
    assert isinstance(trt, ModuleType)
    assert (trt.NAME, trt.SUFFIX, trt.PRECISIONS[0], trt.DELEGATES) == ("tensorrt", ".onnx", "fp32", ("gpu",))
