"""Any model file is timed: what it takes is read from it, and what cannot be known or run is said in one sentence."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

import natdeploy
from natdeploy import pipeline
from natdeploy.errors import DeviceError, DeviceLostError, UsageError
from natdeploy.hardware.bench import QUICK, Candidate, MeasureSettings
from natdeploy.hardware.runner_bench import RunnerBench
from natdeploy.hardware.runtimes import get_runtime
from natdeploy.pipeline.model_files import foreign, parse_shape
from natdeploy.runtimes import ort, runner


@pytest.fixture(scope="module")
def net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU6(), nn.Conv2d(8, 8, 3, padding=1)).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("foreign")


@pytest.fixture(scope="module")
def fixed(net: nn.Module, folder: Path) -> Path:
    ort.convert(net, torch.zeros(1, 3, 32, 32), folder / "fixed.onnx", dynamic_size=False)
    return folder / "fixed.onnx"


@pytest.fixture(scope="module")
def open_sizes(net: nn.Module, folder: Path) -> Path:
    ort.convert(net, torch.zeros(1, 3, 32, 32), folder / "open.onnx", dynamic_size=True)
    return folder / "open.onnx"


def add(path: Path, shapes: Sequence[Sequence[int | str]], kind: int = TensorProto.FLOAT) -> Path:
    """An ONNX file that adds its inputs, which have these shapes."""
    inputs = [helper.make_tensor_value_info(f"x{i}", kind, shape) for i, shape in enumerate(shapes)]
    nodes = [helper.make_node("Sum" if kind == TensorProto.FLOAT else "Identity", [each.name for each in inputs], ["y"])]
    graph = helper.make_graph(nodes, "sum", inputs, [helper.make_tensor_value_info("y", kind, None)])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_a_foreign_file_is_timed_in_its_runtime(fixed: Path, tmp_path: Path) -> None:
    out = tmp_path / "times.json"
    result = pipeline.benchmark(fixed, settings=QUICK, out=out)
    (model,) = result.models
    assert (model.name, model.target, model.shape) == (str(fixed), "host/onnxruntime-fp32-1t", (1, 3, 32, 32))
    assert model.role is model.id is model.predicted_ms is None
    assert model.latency is not None
    assert [len(each.samples_ms) for each in model.latency.processes] == [8, 8]
    told = json.loads(out.read_text())
    assert told["sections"][0]["environment"]["runtime_version"] == ort.version()
    assert told["begun_utc"] <= told["sections"][0]["environment"]["conditions"][0]["utc"] <= told["ended_utc"]


def test_files_of_several_runtimes_are_timed_each_with_its_own(net: nn.Module, fixed: Path, tmp_path: Path) -> None:
    files = [fixed]
    for name, package in (("tflite", "ai_edge_litert"), ("openvino", "openvino")):
        pytest.importorskip(
            package, reason=f"{name} is not installed; pip install {get_runtime(name).REQUIREMENT}", exc_type=ImportError
        )
        path = tmp_path / f"net{get_runtime(name).SUFFIX}"
        get_runtime(name).convert(net, torch.zeros(1, 3, 32, 32), path, dynamic_size=False)
        files.append(path)
    result = pipeline.benchmark(files, settings=QUICK)
    assert [section.target for section in result.sections] == [f"host/{n}-fp32-1t" for n in ("onnxruntime", "tflite", "openvino")]
    assert sorted(next(iter(result.sections[2].models)).sha256) == ["net.bin", "net.xml"]
    for path in files[1:]:
        with pytest.raises(UsageError, match=f"{path.name} is a file for .*, which host/onnxruntime-fp32-1t does not run; give"):
            pipeline.benchmark(path, "host/onnxruntime", settings=QUICK)


def test_open_sizes_ask_for_a_shape(open_sizes: Path, fixed: Path) -> None:
    with pytest.raises(UsageError, match=r"leaves sizes of its input open \(input: 1x3x\?x\?\); say which to time with --shape"):
        foreign(open_sizes, None, None)
    result = pipeline.benchmark(open_sizes, settings=QUICK, shape=(1, 3, 16, 24))
    assert next(result.models).shape == (1, 3, 16, 24)
    with pytest.raises(UsageError, match=r"takes 1x3x32x32 \(input\), not 1x3x16x16; give another --shape"):
        foreign(fixed, None, (1, 3, 16, 16))
    assert foreign(fixed, None, (1, 3, 32, 32)).candidate.shape == (1, 3, 32, 32)


def test_an_openvino_file_of_open_sizes_asks_too(net: nn.Module, tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="OpenVINO is not installed; pip install openvino", exc_type=ImportError)
    path = tmp_path / "net.xml"
    get_runtime("openvino").convert(net, torch.zeros(1, 3, 32, 32), path, dynamic_size=True)
    with pytest.raises(UsageError, match=r"leaves sizes of its input open \(input: 1x3x\?x\?\)"):
        foreign(path, None, None)
    path.with_suffix(".bin").unlink()
    with pytest.raises(UsageError, match=r"net\.xml cannot be timed|net\.bin cannot be read"):
        foreign(path, None, (1, 3, 32, 32))


def test_several_inputs_are_filled_where_the_file_fixes_them(tmp_path: Path) -> None:
    two = add(tmp_path / "two.onnx", [(1, 4), (1, 4)])
    subject = foreign(two, None, None)
    assert subject.candidate.inputs == (((1, 4), "float32"), ((1, 4), "float32"))
    assert next(pipeline.benchmark(two, settings=QUICK).models).latency is not None
    with pytest.raises(UsageError, match="takes 2 inputs, and --shape tells the sizes of one only"):
        foreign(two, None, (1, 4))
    with pytest.raises(UsageError, match=r"takes 2 inputs and leaves sizes open \(x1: 1x\?\); convert it with fixed sizes"):
        foreign(add(tmp_path / "half.onnx", [(1, 4), (1, "n")]), None, None)


def test_inputs_of_other_types_are_filled_by_what_they_mostly_are(tmp_path: Path) -> None:
    pixels = add(tmp_path / "pixels.onnx", [(1, 4)], TensorProto.UINT8)
    assert foreign(pixels, None, None).candidate.inputs == (((1, 4), "uint8"),)
    assert next(pipeline.benchmark(pixels, settings=QUICK).models).latency is not None
    kinds = ("float32", "float16", "uint8", "int64", "bool")
    values = runner.input_values({"inputs": [((2, 50), kind) for kind in kinds]}, 0)
    assert [value.dtype.name for value in values] == list(kinds)
    assert 200 < values[2].max() <= 255
    assert np.all(values[3] == 1)
    (plain,) = runner.input_values({"shape": (2, 50)}, 0)
    assert np.array_equal(plain, values[0])


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("missing.onnx", None, "there is no file .*missing.onnx"),
        ("words.onnx", b"Hello, this is no model at all.", "words.onnx cannot be timed: it "),
        ("empty.onnx", b"", "cannot be timed: it holds no network"),
        ("model.pt", b"x", r"is no model file that natdeploy times; those end in \.onnx, \.xml, \.tflite"),
        ("words.tflite", b"Hello", "words.tflite cannot be timed: LiteRT cannot read it"),
        ("words.xml", b"Hello", "words.xml cannot be timed: OpenVINO cannot read it"),
    ],
)
def test_what_is_no_model_is_said(name: str, content: bytes | None, reason: str, tmp_path: Path) -> None:
    library = {".tflite": "ai_edge_litert", ".xml": "openvino"}.get(Path(name).suffix)
    if library is not None:
        pytest.importorskip(library, reason=f"{library} is not installed; pip install {library}", exc_type=ImportError)
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=reason):
        foreign(tmp_path / name, None, None)


def test_weights_in_another_file_are_refused_with_the_remedy(fixed: Path, tmp_path: Path) -> None:
    onnx.save(onnx.load(fixed), tmp_path / "split.onnx", save_as_external_data=True, size_threshold=0, location="weights")
    with pytest.raises(UsageError, match=r"keeps its weights in another file; save it as one: onnx\.save"):
        foreign(tmp_path / "split.onnx", None, None)


@pytest.mark.parametrize("text", ["", "1x", "1x0x3", "axb", "1,3,4", "1x-3"])
def test_other_texts_are_no_shape(text: str) -> None:
    assert parse_shape("1x3x224x224") == (1, 3, 224, 224)
    with pytest.raises(UsageError, match="is no shape; write the sizes"):
        parse_shape(text)


def test_a_model_that_does_not_run_leaves_the_others_their_times(fixed: Path, tmp_path: Path) -> None:
    broken = add(tmp_path / "broken.onnx", [(1, 4), (2, 3)])  # shapes that do not add up
    result = pipeline.benchmark([fixed, broken], settings=QUICK)
    assert [each.name for each in result.models] == [str(fixed)]
    assert list(result.failures) == [str(broken)]
    with pytest.raises(DeviceError, match=r"broken\.onnx, beside which all are timed, does not run: .*Incompatible dim"):
        pipeline.benchmark(broken, settings=QUICK)


def test_two_measurements_are_compared(fixed: Path, open_sizes: Path, tmp_path: Path) -> None:
    out = tmp_path / "times.json"
    pipeline.benchmark(fixed, settings=QUICK, out=out)
    result = pipeline.benchmark(fixed, settings=QUICK, compare_with=out)
    assert result.comparison is not None
    (pair,) = result.comparison.pairs
    assert pair.low is not None
    assert 0 < pair.low <= pair.ratio
    with pytest.raises(UsageError, match="have no model in common"):
        pipeline.benchmark(open_sizes, settings=QUICK, shape=(1, 3, 16, 16), compare_with=out)


def test_throughput_of_a_file(fixed: Path, tmp_path: Path) -> None:
    settings = MeasureSettings(warmup_s=0.02, warmup_runs=1, min_s=0.1, min_runs=1, reference_s=0.01, slices=2, processes=2)
    out = tmp_path / "rates.json"
    result = pipeline.benchmark(fixed, settings=settings, mode="throughput", out=out)
    (model,) = result.models
    assert model.latency is None
    assert model.throughput is not None
    assert model.value == model.throughput.images_per_s > 0
    assert "session" in model.throughput.how
    assert pipeline.read_result(out) == result
    with pytest.raises(UsageError, match="which are never compared"):
        pipeline.benchmark(fixed, settings=QUICK, compare_with=out)


def test_memory_is_measured_in_a_process_of_its_own(fixed: Path) -> None:
    (model,) = pipeline.benchmark(fixed, settings=QUICK).models
    assert model.memory is not None
    assert model.memory.peak_mb > model.memory.before_mb > 0


def test_a_device_that_goes_away_leaves_a_part_from_which_the_same_call_goes_on(
    fixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, asked = RunnerBench.round, []

    def failing(self: RunnerBench, models: Sequence[Candidate], advance: Callable[[int], None]) -> Any:
        asked.append([each.id for each in models])
        if len(asked) == 2:
            raise DeviceLostError("host does not answer any more")
        return original(self, models, advance)

    monkeypatch.setattr(RunnerBench, "round", failing)
    out = tmp_path / "times.json"
    with pytest.raises(DeviceLostError, match="the same command goes on from there"):
        pipeline.benchmark(fixed, settings=QUICK, out=out)
    part = tmp_path / "times.json.part"
    assert part.is_file()
    result = pipeline.benchmark(fixed, settings=QUICK, out=out)
    assert len(asked) == 3
    assert [each["process"] for each in result.sections[0].environment["conditions"]] == [0, 1]
    assert out.is_file()
    assert not part.exists()


def test_it_is_called_from_python() -> None:
    assert natdeploy.benchmark is pipeline.benchmark
    with pytest.raises(AttributeError, match="no attribute 'bench'"):
        natdeploy.bench  # noqa: B018


def test_other_requests_that_make_no_sense(fixed: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--arch chooses nets of a run, and no path is one"):
        pipeline.benchmark(fixed, arch="knee", settings=QUICK)
    with pytest.raises(UsageError, match="there is nothing to time"):
        pipeline.benchmark([], settings=QUICK)
    with pytest.raises(UsageError, match="there is no run in"):
        pipeline.benchmark(tmp_path, settings=QUICK)
    with pytest.raises(UsageError, match=r"is neither a run nor an exported folder; name its model files, such as .*fixed\.onnx"):
        pipeline.benchmark(fixed.parent, settings=QUICK)


def test_another_json_is_no_result(tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    for content in ("{}", "[1]", "words"):
        path.write_text(content)
        with pytest.raises(UsageError, match=r"other\.json is no result of `natdeploy benchmark --out`"):
            pipeline.read_result(path)
    with pytest.raises(UsageError, match="cannot be read"):
        pipeline.read_result(tmp_path / "missing.json")
