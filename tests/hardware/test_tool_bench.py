"""Every vendor's tool is driven alike, fails model by model, and what it does not tell stays unknown."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import nn

from natdeploy.errors import DeviceError
from natdeploy.hardware.bench import QUICK, Candidate, MeasureSettings
from natdeploy.hardware.device import Device, Target, load_device
from natdeploy.hardware.measure import harness, measure
from natdeploy.hardware.runtimes import get_runtime
from natdeploy.hardware.tools import TOOLS, Job, Timings, UnreadableError, benchmark_model, find, tool_of
from natdeploy.hardware.tools.tool import positive
from natdeploy.hardware.transports import connect
from natdeploy.progress import Silent


class Case(NamedTuple):
    tool: str
    version: str
    runtime: str
    delegate: str
    tells_median: bool
    tells_samples: bool
    runtime_version: str
    processes: int = 1


CASES = (
    Case("benchmark_model", "plain", "tflite", "xnnpack", False, False, "benchmark_model ", processes=2),
    Case("benchmark_model", "percentiles", "tflite", "reference", True, False, "benchmark_model "),
    Case("onnxruntime_perf_test", "average", "onnxruntime", "cpu", True, True, "onnxruntime_perf_test "),
    Case("onnxruntime_perf_test", "total", "onnxruntime", "cpu", True, True, "onnxruntime_perf_test "),
    Case("trtexec", "8.6.3", "tensorrt", "gpu", True, True, "8.6.3", processes=2),
    Case("trtexec", "10.3.0", "tensorrt", "gpu", True, True, "10.3.0"),
    Case("trtexec", "11.1.0", "tensorrt", "gpu", True, True, "11.1.0"),
)
BRIEF = MeasureSettings(warmup_s=0.0, warmup_runs=2, min_s=0.005, min_runs=6, reference_s=0.005, slices=4)


def device(runtime: str, tools: dict[str, str], harness: str = "tool") -> Device:
    return load_device("host").model_copy(update={"runtimes": (runtime,), "tools": tools, "harness": harness})


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Candidate]]:
    """Of a runtime: a file of open size at two sizes, one of fixed size, and one that is no model."""
    known: dict[str, dict[str, Candidate]] = {}

    def make(runtime: str) -> dict[str, Candidate]:
        if runtime not in known:
            folder, module = tmp_path_factory.mktemp(runtime), get_runtime(runtime)
            opened, fixed, broken = (folder / f"{name}{module.SUFFIX}" for name in ("opened", "fixed", "broken"))
            net = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU6(), nn.Conv2d(16, 16, 3, padding=1))
            module.convert(net, torch.zeros(1, 3, 32, 32), opened, dynamic_size=True)
            module.convert(net, torch.zeros(1, 3, 24, 24), fixed, dynamic_size=False)
            broken.write_bytes(b"no model")
            known[runtime] = {
                "small": Candidate("small", opened, (1, 3, 16, 16)),
                "large": Candidate("large", opened, (1, 3, 96, 96)),
                "fixed": Candidate("fixed", fixed, (1, 3, 24, 24)),
                "broken": Candidate("broken", broken, (1, 3, 24, 24)),
            }
        return known[runtime]

    return make


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.tool}-{case.version}")
def test_every_tool_measures_files_of_open_and_fixed_size_and_fails_by_model(
    case: Case, models: Callable[[str], dict[str, Candidate]], stand_in: Callable[[str, str], str]
) -> None:
    pytest.importorskip("ai_edge_litert", reason="tflite files are run by ai-edge-litert: pip install 'natdeploy[tflite]'")
    target = Target(
        device(case.runtime, {case.tool: stand_in(case.tool, case.version)}), case.runtime, case.delegate, "fp32", threads=1
    )
    files = models(case.runtime)
    result = measure(
        [files[name] for name in ("small", "broken", "large")],
        replace(files["fixed"], id="reference"),
        target,
        replace(BRIEF, processes=case.processes),
        seed=0,
        progress=Silent(),
        keep_going=True,
    )
    assert [each.id for each in result.measurements] == ["small", "large"]
    assert list(result.failures) == ["broken"]
    assert f"{case.tool} ended with code 1" in result.failures["broken"]
    for each in result.measurements:
        assert each.n >= case.processes * BRIEF.min_runs
        assert each.latency_ms == pytest.approx(each.relative * result.reference_ms)
        assert 0 < each.floor_ms <= each.mean_ms
        assert each.load_ms is not None
        assert len(each.process_p50_ms) == len(each.samples_ms) == case.processes
        assert all((median is not None) == case.tells_median for median in each.process_p50_ms)
        assert (each.p50_ms is not None) == case.tells_median
        assert sum(map(len, each.samples_ms)) == (each.n if case.tells_samples else 0)
        assert (each.p90_ms is not None) == (case.tells_samples and each.n >= 64)
    assert result["large"].floor_ms > result["small"].floor_ms, "36 times the work"
    facts = result.environment
    assert facts["harness"] == harness(target) == TOOLS[case.runtime].HARNESS
    assert facts["runtime_version"].startswith(case.runtime_version)
    assert facts["waiting_counted"] is False
    assert (facts["threads"], facts["precision"]) == (1, "fp32")


def test_each_build_of_a_tool_is_another_version(stand_in: Callable[[str, str], str]) -> None:
    versions = set()
    for version in ("plain", "percentiles", "percentiles"):
        here = device("tflite", {"benchmark_model": stand_in("benchmark_model", version)})
        with connect(here) as transport:
            versions.add(find(transport, here, TOOLS["tflite"]).version)
    assert len(versions) == 2


def test_a_tool_is_found_in_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stand_in: Callable[[str, str], str]) -> None:
    path = stand_in("benchmark_model", "percentiles")
    monkeypatch.setenv("PATH", f"{Path(path).parent}{os.pathsep}{os.environ['PATH']}")
    here = device("tflite", {})
    with connect(here) as transport:
        assert find(transport, here, TOOLS["tflite"]).path == path


@pytest.mark.parametrize("named", [None, "/no/such/tool; touch evil", "$(touch evil)/'tool'"])
def test_a_missing_tool_is_told_with_what_to_do_and_its_name_does_nothing(
    named: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    here = device("tflite", {"benchmark_model": named} if named else {})
    with connect(here) as transport:
        with pytest.raises(DeviceError, match=r"there is no .* on host; put it there .* tools = \{ benchmark_model = "):
            find(transport, here, TOOLS["tflite"])
        transport.run(["sh", "-c", "ls"], silence_s=20, on_line=lambda name: pytest.fail(name) if name == "evil" else None)
    assert not (tmp_path / "evil").exists()


def test_what_has_no_tool_is_refused() -> None:
    here = device("openvino", {})
    with pytest.raises(DeviceError, match="openvino has no tool"):
        tool_of(Target(here, "openvino", "cpu", "fp32", 1))
    with pytest.raises(DeviceError, match="onnxruntime_perf_test is not used with cuda, only with cpu"):
        tool_of(Target(here, "onnxruntime", "cuda", "fp32", 1))


def test_a_device_without_python_is_timed_by_a_tool() -> None:
    phone, host = load_device("pixel4"), load_device("host")
    assert phone.python is None
    assert harness(Target(phone, "tflite", "xnnpack", "fp32", 1)) == "TFLite benchmark_model"
    assert harness(Target(host, "tflite", "xnnpack", "fp32", 1)).startswith("natdeploy runner")


FAKE = """#!/bin/sh
for argument; do
  case $argument in --graph=*) word=$(cat "${argument#--graph=}") ;; esac
done
case $word in
  hang) sleep 60 ;;
  crash) kill -SEGV $$ ;;
  zero) set -- 0 0 0.0 ;;
  *) set -- 90 110 100.5 ;;
esac
echo "count=1 curr=500"
echo "count=20 first=110 curr=100 min=$1 max=$2 avg=$3 std=3"
echo "Inference timings in us: Init: 1000, First inference: 500, Warmup (avg): 500, Inference (avg): $3"
"""


@pytest.fixture
def fake(tmp_path: Path) -> tuple[Target, dict[str, Candidate]]:
    """A tool that does what the model's file says."""
    program = tmp_path / "bench mark's $(model)"
    program.write_text(FAKE)
    program.chmod(0o755)
    found = {}
    for name in ("reference", "well", "hang", "crash", "zero"):
        (tmp_path / f"{name}.tflite").write_text(name)
        found[name] = Candidate(name, tmp_path / f"{name}.tflite", (1, 3, 8, 8))
    return Target(device("tflite", {"benchmark_model": str(program)}), "tflite", "xnnpack", "fp32", 1), found


def test_hangs_crashes_and_zeros_are_recorded_and_the_others_are_measured(fake: tuple[Target, dict[str, Candidate]]) -> None:
    target, models = fake
    result = measure(
        [models[name] for name in ("hang", "well", "crash", "zero")],
        models["reference"],
        target,
        replace(QUICK, silence_s=2.0),
        seed=0,
        progress=Silent(),
        keep_going=True,
    )
    assert [each.id for each in result.measurements] == ["well"]
    assert result["well"].mean_ms == pytest.approx(0.1005)
    assert (result["well"].n, result["well"].relative) == (40, 1.0)
    assert result.failures["hang"] == "no answer within 2 s"
    assert "ended with code -11" in result.failures["crash"] or "code 139" in result.failures["crash"]
    assert "benchmark_model told '0.0' as a time: 'count=20 first=110" in result.failures["zero"]


def test_a_reference_that_does_not_run_is_the_targets_fault(fake: tuple[Target, dict[str, Candidate]]) -> None:
    target, models = fake
    with pytest.raises(DeviceError, match=r"the reference network does not run on host.tflite-fp32-1t: benchmark_model told '0\.0"):
        measure([models["well"]], models["zero"], target, QUICK, seed=0, progress=Silent(), keep_going=True)


def test_a_failure_is_a_device_error_where_every_number_is_needed(fake: tuple[Target, dict[str, Candidate]]) -> None:
    target, models = fake
    with pytest.raises(DeviceError, match="zero does not run on"):
        measure([models["zero"]], models["reference"], target, QUICK, seed=0, progress=Silent())


class LiteRtBenchmark:
    """A real tool of LiteRT's makers, driven as one on a device would be. It comes with their Python package, so none needs it.

    It knows neither seconds nor the size of an input, and tells times in hundredths of a millisecond.
    """

    NAME = HARNESS = "litert-benchmark"
    RUNTIME = "tflite"
    DELEGATES = ("xnnpack",)
    PLACES = (str(Path(sys.executable).with_name(NAME)),)
    ASK = ()
    RESULT = True

    def __init__(self) -> None:
        self.printed: list[tuple[Sequence[str], Timings]] = []

    def version(self, digest: str, lines: Sequence[str]) -> str:
        return digest

    def prepare(self, job: Job, version: str) -> list[str]:
        return []

    def arguments(self, job: Job, version: str, result: str) -> list[str]:
        words = {"model": job.file, "num_threads": job.threads, "warmup_runs": job.warmup_runs, "num_runs": job.min_runs}
        return [f"--{name}={value}" for name, value in {**words, "result_json": result}.items()]

    def parse(self, job: Job, lines: Sequence[str], result: Sequence[str]) -> Timings:
        told = json.loads("\n".join(result))["latency"]
        mean, low, median = (positive(self.NAME, str(told[f"{name}_ms"]), str(told)) for name in ("avg", "min", "median"))
        times = Timings(told["num_runs"], mean, low, median, (), told["init_ms"], told["warmup_first_ms"])
        self.printed.append((lines, times))
        return times


def test_a_real_tool_is_driven_as_the_stand_ins_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = LiteRtBenchmark()
    if not Path(real.PLACES[0]).exists():
        pytest.skip("litert-benchmark is not installed here; pip install ai-edge-litert")
    monkeypatch.setitem(TOOLS, "tflite", real)  # type: ignore[misc]
    models = {}
    for name, channels in (("reference", 48), ("large", 96)):
        net = nn.Sequential(nn.Conv2d(3, channels, 3, padding=1), nn.ReLU6(), nn.Conv2d(channels, channels, 3, padding=1))
        path = tmp_path / f"{name}.tflite"
        get_runtime("tflite").convert(net, torch.zeros(1, 3, 64, 64), path, dynamic_size=False)
        models[name] = Candidate(name, path, (1, 3, 64, 64))
    (tmp_path / "broken.tflite").write_bytes(b"no model")
    models["broken"] = Candidate("broken", tmp_path / "broken.tflite", (1, 3, 64, 64))
    target = Target(device("tflite", {}), "tflite", "xnnpack", "fp32", threads=1)
    result = measure(
        [models["large"], models["broken"]],
        models["reference"],
        target,
        replace(BRIEF, processes=1),
        seed=0,
        progress=Silent(),
        keep_going=True,
    )
    assert list(result.failures) == ["broken"]
    large = result["large"]
    assert (large.n, large.samples_ms, len(real.printed)) == (BRIEF.min_runs, ((),), 3)
    assert large.p50_ms == large.process_p50_ms[0] is not None
    assert large.latency_ms == pytest.approx(large.relative * result.reference_ms)
    assert result.environment["harness"] == "litert-benchmark"
    for lines, times in real.printed:
        shown = next(line for line in lines if line.startswith("Inference (median):"))
        assert float(shown.split()[2]) == times.median_ms, "printed and in its file"
        with pytest.raises(UnreadableError, match="benchmark_model"):
            benchmark_model.parse(None, lines, ())  # type: ignore[arg-type]


def test_the_stand_ins_refuse_what_the_tools_refuse(stand_in: Callable[[str, str], str]) -> None:
    done = subprocess.run([stand_in("trtexec", "11.1.0"), "--fp16"], capture_output=True, text=True, check=False)
    assert (done.returncode, "Unknown option: --fp16" in done.stderr) == (1, True)


SHARED = """#!/bin/sh
for argument; do
  case $argument in --graph=*) word=$(cat "${argument#--graph=}") ;; esac
done
case $word in
  reference) set -- 490 100490 500 1000 ;;
  *) set -- 19000 45000 42000 40000 ;;
esac
echo "INFO: count=1 curr=900 p5=900 median=900 p95=900"
echo "INFO: count=20 first=$1 curr=$1 min=$1 max=$2 avg=$4 std=3 p5=$1 median=$3 p95=$2"
echo "INFO: Inference timings in us: Init: 1000, First inference: 900, Warmup (avg): 900, Inference (avg): $4"
"""


def test_latency_is_relative_by_means_which_a_shared_core_slows_alike(tmp_path: Path) -> None:
    """A reference of 0.5 ms is rarely interrupted and a net of 20 ms always, by a program that takes half of the core."""
    program = tmp_path / "benchmark_model"
    program.write_text(SHARED)
    program.chmod(0o755)
    models = {}
    for name in ("reference", "net"):
        (tmp_path / f"{name}.tflite").write_text(name)
        models[name] = Candidate(name, tmp_path / f"{name}.tflite", (1, 3, 8, 8))
    target = Target(device("tflite", {"benchmark_model": str(program)}), "tflite", "xnnpack", "fp32", 1)
    result = measure([models["net"]], models["reference"], target, QUICK, seed=0, progress=Silent())
    net = result["net"]
    assert (net.relative, net.latency_ms, net.p50_ms, net.mean_ms) == pytest.approx((40.0, 20.0, 42.0, 40.0))
