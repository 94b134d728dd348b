"""Throughput and footprints on this machine, by real runtimes: what is counted, how it is told, and what fails alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from natdeploy.errors import DeviceError
from natdeploy.hardware.bench import Candidate, MeasureSettings
from natdeploy.hardware.device import parse_target
from natdeploy.hardware.footprint import Footprint, measure_footprints
from natdeploy.hardware.runner_bench import Runner
from natdeploy.hardware.runtimes import get_runtime
from natdeploy.hardware.throughput import measure_throughput
from natdeploy.progress import Silent

SHORT = MeasureSettings(warmup_s=0.02, warmup_runs=1, min_s=0.1, min_runs=1, reference_s=0.01, slices=2, processes=2)
LIBRARIES = {"onnxruntime": "onnxruntime", "openvino": "openvino", "tflite": "ai_edge_litert"}


@pytest.fixture(params=LIBRARIES)
def name(request: pytest.FixtureRequest) -> str:
    runtime = str(request.param)
    pytest.importorskip(
        LIBRARIES[runtime],
        reason=f"{runtime} is not installed; pip install {get_runtime(runtime).REQUIREMENT}",
        exc_type=ImportError,
    )
    return runtime


def candidate(name: str, folder: Path) -> Candidate:
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU6(), nn.Conv2d(8, 8, 3, padding=1)).eval()
    path = folder / f"net{get_runtime(name).SUFFIX}"
    get_runtime(name).convert(net, torch.zeros(1, 3, 32, 32), path, dynamic_size=False)
    return Candidate("net", path, (1, 3, 32, 32))


def test_images_a_second_are_counted(name: str, tmp_path: Path) -> None:
    model, target = candidate(name, tmp_path), parse_target(f"host/{name}")
    result = measure_throughput([model], model, target, SHORT, seed=0, progress=Silent())
    (found,) = result.measurements
    assert [len(each) for each in found.windows] == [2, 2]
    assert found.n == sum(map(sum, found.windows)) > 0
    for rate, counts in zip(found.process_images_per_s, found.windows, strict=True):
        assert rate == pytest.approx(sum(counts) / SHORT.min_s)
    assert ("AsyncInferQueue" in found.how) == (name == "openvino")
    assert [each["process"] for each in result.environment["conditions"]] == [0, 1]


def test_a_model_that_does_not_run_fails_alone(tmp_path: Path) -> None:
    model, target = candidate("onnxruntime", tmp_path), parse_target("host")
    broken = replace(model, id="broken", shape=(1, 4, 32, 32))
    result = measure_throughput([broken, model], model, target, SHORT, seed=0, progress=Silent())
    assert [each.id for each in result.measurements] == ["net"]
    assert list(result.failures) == ["broken"]
    assert "InvalidArgument" in result.failures["broken"]


def test_a_model_that_ends_no_request_has_no_rate_but_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, target = candidate("onnxruntime", tmp_path), parse_target("host")
    original = Runner.run

    def slow(self: Runner, *arguments: Any, **options: Any) -> Any:
        told = original(self, *arguments, **options)
        return replace(told, records=[each | {"counts": [0, 0]} for each in told.records])

    monkeypatch.setattr(Runner, "run", slow)
    result = measure_throughput([model], model, target, SHORT, seed=0, progress=Silent())
    assert result.measurements == ()
    assert result.failures == {"net": "no request ended within the 0.1 s in which they are counted"}


def test_a_vendors_tool_has_no_throughput(tmp_path: Path) -> None:
    model, target = candidate("onnxruntime", tmp_path), parse_target("pixel4")
    with pytest.raises(DeviceError, match="one request at a time; throughput needs Python"):
        measure_throughput([model], model, target, SHORT, seed=0, progress=Silent())
    failures = measure_footprints([model], target, seconds=0, seed=0, progress=Silent(), keep=lambda *_: None)
    assert failures == {"net": "memory and energy need Python on the device"}


def test_memory_of_a_model_holds_its_weights(tmp_path: Path) -> None:
    net, path = nn.Linear(3000, 4000).eval(), tmp_path / "large.onnx"
    get_runtime("onnxruntime").convert(net, torch.zeros(1, 3000), path, dynamic_size=False)
    found: dict[str, Footprint] = {}
    large = Candidate("large", path, (1, 3000))
    broken = Candidate("broken", path, (1, 2999))
    failures = measure_footprints(
        [large, broken], parse_target("host"), seconds=0, seed=0, progress=Silent(), keep=found.__setitem__
    )
    assert list(failures) == ["broken"]
    assert found["large"].memory is not None
    assert found["large"].memory["model_mb"] > 40, "48 MB of weights"
    assert found["large"].memory["peak_mb"] >= found["large"].memory["model_mb"]
