"""Measurements follow the protocol: fresh processes, honest percentiles, failures recorded and never turned into numbers."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from natdeploy.errors import DeviceError
from natdeploy.hardware import runtimes as registry
from natdeploy.hardware.bench import NETS, QUICK, Candidate, MeasureSettings
from natdeploy.hardware.device import parse_target
from natdeploy.hardware.measure import RUNS_NEEDED, measure, percentile
from natdeploy.progress import Silent
from natdeploy.runtimes import ort, ov

HANGING_RUNTIME = """
import os, time
import numpy as np
NAME, SUFFIX, PRECISIONS, DELEGATES = "hanging", ".txt", ("fp32",), ("cpu",)
def version(): return "1"
def details(precision, delegate): return {"runtime": NAME, "runtime_version": "1", "provider": "none"}
def companions(path): return ()
inside_ms = None
def load(path, shape, threads, precision, delegate):
    with open(path) as file: return file.read()
def run(session, inputs):
    if session == "hang": time.sleep(60)
    if session == "crash": os._exit(7)
    if session == "print": print("hello from a library", flush=True)
    if session == "raise": raise ValueError("no such operator")
    time.sleep(0.001)
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Candidate]:
    folder = tmp_path_factory.mktemp("models")
    found = {}
    for name, channels in (("reference", 16), ("small", 8), ("large", 96)):
        net = nn.Sequential(nn.Conv2d(3, channels, 3, padding=1), nn.ReLU6(), nn.Conv2d(channels, channels, 3, padding=1))
        ort.convert(net, torch.randn(1, 3, 32, 32), folder / f"{name}.onnx", dynamic_size=False)
        found[name] = Candidate(name, folder / f"{name}.onnx", (1, 3, 32, 32))
    return found


@pytest.fixture
def text_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Candidate]:
    """Models of a runtime that does what the file says, in place of ONNX Runtime."""
    (tmp_path / "hanging.py").write_text(HANGING_RUNTIME)
    spec = importlib.util.spec_from_file_location("hanging", tmp_path / "hanging.py")
    assert spec is not None
    assert spec.loader is not None
    runtime = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(runtime)
    monkeypatch.setitem(registry.RUNTIMES, "onnxruntime", runtime)
    found = {}
    for name in ("reference", "well", "hang", "crash", "raise", "print"):
        (tmp_path / f"{name}.txt").write_text(name)
        found[name] = Candidate(name, tmp_path / f"{name}.txt", (1, 2))
    return found


@pytest.mark.parametrize(("p", "n"), RUNS_NEEDED.items())
def test_percentile_is_nearest_rank_and_none_below_its_count(p: int, n: int) -> None:
    assert percentile([1.0] * (n - 1), p) is None
    samples = [float(i) for i in range(1, n + 1)]
    assert percentile(list(reversed(samples)), p) == -(-n * p // 100)


def test_nets_are_run_often_enough_for_p95() -> None:
    assert NETS.min_runs * NETS.processes >= RUNS_NEEDED[95]
    assert NETS.processes >= 3


def test_measures_every_candidate_in_fresh_processes(models: dict[str, Candidate]) -> None:
    settings = MeasureSettings(warmup_s=0.0, warmup_runs=3, min_s=0.02, min_runs=20, reference_s=0.01, slices=3, processes=2)
    result = measure(
        [models["large"], models["small"]], models["reference"], parse_target("host"), settings, seed=0, progress=Silent()
    )
    assert [each.id for each in result.measurements] == ["large", "small"]
    assert result.failures == {}
    for each in result.measurements:
        assert each.n == sum(map(len, each.samples_ms)) >= 2 * 20
        assert len(each.process_p50_ms) == len(each.samples_ms) == 2
        assert 0 < min(map(min, each.samples_ms)) <= each.p50_ms <= max(map(max, each.samples_ms))
        assert each.latency_ms == pytest.approx(each.relative * result.reference_ms)
        assert each.load_ms > 0 < each.first_ms
        assert (each.p90_ms is not None) == (each.n >= 64)
    assert result["large"].relative > result["small"].relative
    assert result.environment["provider"] == "CPUExecutionProvider"
    assert result.environment["threads"] == 1


def test_what_a_library_counts_itself_is_within_the_call(models: dict[str, Candidate], tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="OpenVINO is not installed; pip install openvino", exc_type=ImportError)
    settings = replace(QUICK, processes=1)  # run by run the one is within the other, so in one process their medians are as well
    ov.convert(nn.Conv2d(3, 8, 3), torch.zeros(1, 3, 32, 32), tmp_path / "net.xml", dynamic_size=False)
    counting = Candidate("net", tmp_path / "net.xml", (1, 3, 32, 32))
    for candidate, runtime, counted in ((counting, "openvino", True), (models["small"], "onnxruntime", False)):
        target = parse_target(f"host/{runtime}")
        (found,) = measure([candidate], candidate, target, settings, seed=0, progress=Silent()).measurements
        if counted:
            assert 0 < found.inside_ms < found.p50_ms
        else:
            assert found.inside_ms is None


def test_a_model_that_raises_is_recorded_or_stops_everything(models: dict[str, Candidate]) -> None:
    broken = replace(models["small"], id="broken", shape=(1, 4, 32, 32))
    result = measure(
        [broken, models["small"]], models["reference"], parse_target("host"), QUICK, seed=0, progress=Silent(), keep_going=True
    )
    assert [each.id for each in result.measurements] == ["small"]
    assert "broken" in result.failures
    with pytest.raises(DeviceError, match="broken does not run"):
        measure([broken], models["reference"], parse_target("host"), QUICK, seed=0, progress=Silent())


def test_a_hanging_model_is_recorded_and_the_others_are_measured(text_models: dict[str, Candidate]) -> None:
    candidates = [text_models[name] for name in ("well", "hang", "raise")]
    settings = replace(QUICK, silence_s=3.0)
    result = measure(
        candidates, text_models["reference"], parse_target("host"), settings, seed=0, progress=Silent(), keep_going=True
    )
    assert [each.id for each in result.measurements] == ["well"]
    assert result.failures == {"hang": "no answer within 3 s", "raise": "ValueError: no such operator"}
    assert result["well"].p50_ms > 1


def test_a_crashing_model_is_recorded_and_the_others_are_measured(text_models: dict[str, Candidate]) -> None:
    candidates = [text_models[name] for name in ("crash", "well")]
    result = measure(candidates, text_models["reference"], parse_target("host"), QUICK, seed=0, progress=Silent(), keep_going=True)
    assert [each.id for each in result.measurements] == ["well"]
    assert "ended with code 7" in result.failures["crash"]


def test_a_crash_is_a_device_error_where_every_number_is_needed(text_models: dict[str, Candidate]) -> None:
    with pytest.raises(DeviceError, match="ended with code 7"):
        measure([text_models["crash"]], text_models["reference"], parse_target("host"), QUICK, seed=0, progress=Silent())


def test_a_library_that_prints_is_named(text_models: dict[str, Candidate]) -> None:
    with pytest.raises(DeviceError, match="but said 'hello from a library'; does a library print"):
        measure([text_models["print"]], text_models["reference"], parse_target("host"), QUICK, seed=0, progress=Silent())
