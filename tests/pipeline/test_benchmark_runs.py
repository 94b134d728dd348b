"""Several runs in one measurement, each kept in its own place, and throughput that is broken off and goes on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from natdeploy import pipeline
from natdeploy.errors import DeviceLostError, UsageError
from natdeploy.hardware.bench import QUICK, Candidate, MeasureSettings
from natdeploy.hardware.runner_bench import Runner
from natdeploy.pipeline import SearchConfig
from natdeploy.runtimes import ort
from natdeploy.store import RunStore

SHORT = MeasureSettings(warmup_s=0.02, warmup_runs=1, min_s=0.1, min_runs=1, reference_s=0.01, slices=2, processes=2)


@pytest.fixture(scope="module")
def runs(finished: SearchConfig, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two runs in folders of the same name, with the same nets."""
    pipeline.export(finished.out, "knee")
    other = tmp_path_factory.mktemp("other") / finished.out.name
    shutil.copytree(finished.out, other)
    return finished.out, other


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Models of every process that measures, of latency or of throughput."""
    rounds: list[list[str]] = []
    original = Runner.run

    def counting(self: Runner, models: Sequence[Candidate], *arguments: Any, **options: Any) -> Any:
        if arguments[0] is not None:  # else memory and energy, which have no reference
            rounds.append([each.id for each in models])
        return original(self, models, *arguments, **options)

    monkeypatch.setattr(Runner, "run", counting)
    return rounds


def latencies(folder: Path) -> set[tuple[str, str]]:
    with RunStore.open(folder) as store:
        return {(each.role, each.id) for each in store.latencies()}


def test_nets_of_several_runs_take_turns_and_each_run_keeps_its_own(
    runs: tuple[Path, Path], asked: list[list[str]], tmp_path: Path, notes: Any
) -> None:
    out = tmp_path / "times.json"
    again = runs[0].parent / ".." / runs[0].parent.name / runs[0].name
    result = pipeline.benchmark([*runs, again], settings=QUICK, out=out)
    (section,) = result.sections
    names = [model.name for model in section.models]
    assert [sorted(each) for each in asked] == [sorted(names)] * QUICK.processes, "all in every process, each once"
    assert len(names) == 4
    for run in runs:
        own = [model for model in section.models if model.run == str(run)]
        assert [model.name for model in own] == [f"{run}/{model.role}-{model.id}" for model in own]
        assert latencies(run) == {(model.role, model.id) for model in own}
        assert all(net.measured_p50_ms for net in pipeline.nets(run) if (net.role, net.id) in latencies(run))
    assert section.reference.startswith(f"{runs[0]}/baseline-")
    assert [found.run for found in result.agreements] == [str(runs[0])] * 2 + [str(runs[1])] * 2
    assert pipeline.read_result(out) == result
    assert {each["run"] for each in json.loads(out.read_text())["sections"][0]["models"]} == set(map(str, runs))

    pipeline.benchmark(runs, settings=QUICK, progress=notes)
    assert len(asked) == QUICK.processes, "what is known is not measured again"
    pipeline.benchmark(runs[0], settings=QUICK)
    assert len(asked) == QUICK.processes, "nor alone, beside the same reference"
    compared = pipeline.benchmark(runs[1], settings=QUICK, compare_with=out)
    assert compared.comparison is not None
    assert {pair.other for pair in compared.comparison.pairs} == {f"{runs[1]}/{model.name}" for model in compared.models}


def test_throughput_of_a_run_is_kept_process_by_process(
    runs: tuple[Path, Path], asked: list[list[str]], monkeypatch: pytest.MonkeyPatch, notes: Any
) -> None:
    counting = Runner.run

    def failing(self: Runner, *arguments: Any, **options: Any) -> Any:
        if len(asked) == 1:
            asked.append([])
            raise DeviceLostError("host does not answer any more")
        return counting(self, *arguments, **options)

    monkeypatch.setattr(Runner, "run", failing)
    with pytest.raises(DeviceLostError, match="what was measured is kept, and the same command goes on from there"):
        pipeline.benchmark(runs, settings=SHORT, mode="throughput")
    result = pipeline.benchmark(runs, settings=SHORT, mode="throughput", progress=notes)
    assert len(asked) == 3, "one process before, one without an answer, one more"
    assert len(list(result.models)) == 4
    assert all(len(model.throughput.processes) == 2 for model in result.models)
    assert [each["process"] for each in result.sections[0].environment["conditions"]] == [0, 1]
    again = pipeline.benchmark(runs, settings=SHORT, mode="throughput")
    assert len(asked) == 3
    assert [each.throughput for each in again.models] == [each.throughput for each in result.models]
    pipeline.benchmark(runs[1], settings=SHORT, mode="throughput", fresh=True)
    assert len(asked) == 5


def test_an_architecture_that_one_of_the_runs_lacks_is_said(runs: tuple[Path, Path]) -> None:
    with pytest.raises(UsageError, match=f"^{runs[0]}: 'ffff' begins no id of the front"):
        pipeline.benchmark(runs, arch="ffff", settings=QUICK)


_DRIVER = """
import json
import sys
from pathlib import Path
from natdeploy import pipeline
from natdeploy.hardware.bench import MeasureSettings
settings = MeasureSettings(**json.loads(sys.argv[3]))
pipeline.benchmark(Path(sys.argv[1]), mode="throughput", settings=settings, out=Path(sys.argv[2]))
"""


def test_throughput_goes_on_after_a_kill(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU6()).eval()
    ort.convert(net, torch.zeros(1, 3, 32, 32), tmp_path / "net.onnx", dynamic_size=False)
    out, part = tmp_path / "rates.json", tmp_path / "rates.json.part"
    model, settings = tmp_path / "net.onnx", replace(SHORT, min_s=0.3, processes=3)
    command = [sys.executable, "-c", _DRIVER, str(model), str(out), json.dumps(asdict(settings))]
    process = subprocess.Popen(command, start_new_session=True)
    deadline = time.monotonic() + 60
    while not part.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert part.exists()
    assert not out.exists()
    (kept,) = json.loads(part.read_text()).values()
    done = {name: next(iter(models.values()))["counts"] for name, models in kept["entries"].items()}
    assert 0 < len(done) < 3, "it was killed before its end"
    (found,) = pipeline.benchmark(model, mode="throughput", settings=settings, out=out).models
    assert found.throughput is not None
    assert len(found.throughput.processes) == 3
    for name, counts in done.items():
        assert list(found.throughput.processes[int(name.split()[1])].counts) == counts, "measured before the kill"
    assert out.is_file()
    assert not part.exists()
