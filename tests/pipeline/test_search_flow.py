"""The whole flow on a few digits: search, export, benchmark, report; the same again; broken and resumed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torchvision
from safetensors.torch import save_file

from natdeploy import pipeline
from natdeploy.errors import DamagedFileError, DataError, DeviceLostError, InfeasibleError, UsageError, WeightsError
from natdeploy.hardware.bench import QUICK, Candidate
from natdeploy.hardware.runner_bench import RunnerBench
from natdeploy.pipeline import SearchConfig
from natdeploy.pipeline.evaluate import ranking_error, ranking_noise
from natdeploy.pipeline.setting import read_for
from natdeploy.search import NatSettings
from natdeploy.space import Arch, SearchSpace, get_space, space_toml
from natdeploy.space.catalog import plain_arch
from natdeploy.store import Evaluation, RunStore
from natdeploy.supernet import Subnet, read_seed, write_seed


def outcome(folder: Path) -> dict[str, object]:
    """What must not depend on how often a run was interrupted: every evaluation, every round, every final net."""
    with RunStore.open(folder) as store:
        return {
            "evaluations": sorted((e.step, e.arch, e.correct, e.total, e.loss) for e in store.evaluations()),
            "rounds": store.rounds(),
            "nets": [(n.role, n.arch, n.validation_accuracy, n.test_accuracy, n.predicted_ms) for n in store.nets()],
        }


def test_front_keeps_the_constraint_and_no_faster_net_is_better_beyond_noise(finished: SearchConfig) -> None:
    nets = pipeline.nets(finished.out)
    front = [net for net in nets if net.role == "front"]
    assert front
    assert all(net.predicted_ms is not None and net.predicted_ms <= 1.0 for net in front)
    with RunStore.open(finished.out) as store:
        found = {net.id: store.evaluation(2, net.arch) for net in front}
    by_latency = sorted(front, key=lambda net: net.predicted_ms or 0.0)
    evaluations = [evaluation for net in by_latency if (evaluation := found[net.id]) is not None]
    assert len(evaluations) == len(front)
    for place, evaluation in enumerate(evaluations):
        rival = min(map(ranking_error, evaluations[: place + 1]))
        assert ranking_error(evaluation) <= rival + ranking_noise(evaluation)
    assert [net.role for net in nets].count("baseline") == 1


def test_whole_archive_is_evaluated_at_every_version_and_nothing_twice(finished: SearchConfig) -> None:
    with RunStore.open(finished.out) as store:
        evaluations, rounds = store.evaluations(), store.rounds()
    assert [each["round"] for each in rounds] == [0, 1, 2]
    for version in (1, 2):
        archs = [each.arch for each in evaluations if each.step == version]
        assert rounds[version]["evaluated"] <= len(archs) <= rounds[version]["evaluated"] + 3
        assert len(archs) == len(set(archs))


def test_splits_are_stored_and_disjoint(finished: SearchConfig) -> None:
    with RunStore.open(finished.out) as store:
        splits = store.get("splits")
    paths = [path for part in splits.values() for path in part]
    assert len(paths) == len(set(paths)) == 48
    assert set(splits) == {"train", "validation", "calibration", "test"}


def test_same_command_on_a_finished_run_changes_nothing(finished: SearchConfig) -> None:
    before = outcome(finished.out)
    pipeline.search(finished)
    pipeline.resume(finished.out)
    assert outcome(finished.out) == before


def test_other_search_in_the_same_folder_is_refused(finished: SearchConfig) -> None:
    with pytest.raises(UsageError, match=r"holds another search \(seed differ\)"):
        pipeline.search(finished.model_copy(update={"seed": 1}))


def test_export_benchmark_report(finished: SearchConfig, tmp_path: Path) -> None:
    folder = finished.out
    (knee,) = pipeline.export(folder)
    (again,) = pipeline.export(folder, knee.id[:6])
    assert again == knee
    assert knee.path is not None
    model = folder / knee.path
    (net,) = [net for net in pipeline.nets(folder) if (net.role, net.id) == ("front", knee.id)]
    properties = {each.key: each.value for each in onnx.load(model).metadata_props}
    assert properties["arch"] == net.arch
    assert json.loads(properties["labels"]) == ["0", "1", "2"]
    assert knee.max_rel is not None
    assert knee.max_rel < 1e-4
    assert knee.test_accuracy == net.test_accuracy
    assert pipeline.files(folder) == [knee]
    with RunStore.open(folder) as store:
        subnet = pipeline.load_subnet(store, Arch.parse(net.arch))
    norms = [module for module in subnet.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert {norm.eps for norm in norms} == {2e-3}, "the seed's"
    images = torch.randn(1, 3, subnet.arch.resolution, subnet.arch.resolution)
    (logits,) = onnxruntime.InferenceSession(model).run(None, {"input": images.numpy()})
    np.testing.assert_allclose(logits, subnet(images).detach().numpy(), atol=1e-3)

    out = tmp_path / "times.json"
    result = pipeline.benchmark(folder, settings=QUICK, out=out)
    measured = [net for net in pipeline.nets(folder) if (net.role, net.id) in {(each.role, each.id) for each in result.models}]
    assert {net.role for net in measured} == {"front", "baseline"}
    assert pipeline.read_result(out) == result
    (section,) = json.loads(out.read_text())["sections"]
    assert section["environment"]["harness"]
    assert [each["process"] for each in section["environment"]["conditions"]] == [0, 1]
    times = {each["name"]: each for each in section["models"]}
    assert times.keys() == {f"{net.role}-{net.id}" for net in measured}
    for net in measured:
        told = times[f"{net.role}-{net.id}"]
        processes = [each["samples_ms"] for each in told["latency"]["processes"]]
        assert [len(each) for each in processes] == [8, 8]
        assert net.measured_p50_ms == sorted(time for each in processes for time in each)[7], "nearest rank of the raw times"
        assert told["sha256"] == {"model.onnx": hashlib.sha256((folder / f"models/{net.id}/model.onnx").read_bytes()).hexdigest()}
        assert told["flags"]["few_runs"] is True
    assert all(net.measured_p50_ms is not None and net.measured_n == 16 for net in measured)
    assert all(net.measured_p90_ms is None for net in measured), "16 runs are too few for a 90th percentile"

    report = pipeline.report(folder)
    page = report.page.read_text()
    assert knee.id in page
    assert "http://" not in page.split("<script")[0]
    assert [pick.rule for pick in report.picks] == ["knee", "best", "fastest"]
    json.dumps(report.summary, allow_nan=False)


@pytest.mark.parametrize(
    ("target", "library", "package"),
    [("host/tflite", "ai_edge_litert", "ai-edge-litert"), ("host/openvino", "openvino", "openvino")],
)
def test_benchmark_on_another_runtime_converts_the_same_nets(
    finished: SearchConfig, notes: Any, target: str, library: str, package: str
) -> None:
    pytest.importorskip(library, reason=f"{package} is not installed; pip install {package}", exc_type=ImportError)
    folder = finished.out
    pipeline.export(folder)
    before = [net.measured_p50_ms for net in read_nets(folder)]
    result = pipeline.benchmark(folder, target, notes, settings=QUICK)
    assert {(each.role, each.id) for each in result.models} == {(file.role, file.id) for file in pipeline.files(folder)}
    assert all(each.latency.typical_ms > 0 and each.predicted_ms is None for each in result.models)
    assert [net.measured_p50_ms for net in read_nets(folder)] == before, "what was measured elsewhere is not the run's own latency"
    assert any("were converted, to be timed" in line for line in notes.lines)


def test_a_tool_that_tells_no_median_leaves_it_open_and_its_means_are_told(
    finished: SearchConfig, notes: Any, tmp_path: Path, stand_in: Callable[[str, str], str]
) -> None:
    pytest.importorskip("ai_edge_litert", reason="LiteRT is not installed; pip install ai-edge-litert", exc_type=ImportError)
    pipeline.export(finished.out)
    device = tmp_path / "phone.toml"
    tool = json.dumps(stand_in("benchmark_model", "plain"))
    device.write_text(
        'name = "phone"\ndescription = "a phone"\ntransport = "local"\nruntimes = ["tflite"]\nthreads = 1\nharness = "tool"\n'
        f"[tools]\nbenchmark_model = {tool}\n"
    )
    result = pipeline.benchmark(finished.out, f"{device}/tflite", notes, settings=replace(QUICK, processes=1))
    assert all(each.latency.p50_ms is None and each.latency.n >= 8 for each in result.models)
    (told,) = [line for line in notes.lines if line.startswith("TFLite benchmark_model tells no median; the means are ")]
    assert all(f"{each.name} " in told for each in result.models)
    recorded = json.loads((finished.out / f"models/{next(result.models).id}/metadata.json").read_text())["latencies"]
    (mean_ms,) = [each["measured_mean_ms"] for each in recorded if each["target"].startswith("phone/")]
    assert mean_ms > 0


def test_what_was_measured_before_the_device_went_away_is_not_measured_again(
    finished: SearchConfig, notes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline.export(finished.out)
    original, asked = RunnerBench.round, []

    def failing(self: RunnerBench, models: Sequence[Candidate], advance: Callable[[int], None]) -> Any:
        asked.append([each.id for each in models])
        if len(asked) == 2:
            raise DeviceLostError("host does not answer any more")
        return original(self, models, advance)

    monkeypatch.setattr(RunnerBench, "round", failing)
    call = partial(pipeline.benchmark, finished.out, "host/onnxruntime-fp32-1t", notes, settings=replace(QUICK, min_runs=9))
    with pytest.raises(DeviceLostError, match="host does not answer any more; what was measured is kept, and the same command"):
        call()
    result = call()
    assert [len(each.latency.processes) for each in result.models] == [2, 2]
    assert len(asked) == 3, "one round before the device went away, one without an answer, and one more"
    again = call()
    assert len(asked) == 3
    assert [each.latency for each in again.models] == [each.latency for each in result.models]
    assert "counts; --fresh measures it again" in notes.lines[-1]
    call(fresh=True)
    assert len(asked) == 5
    module = sys.modules["natdeploy.pipeline.benchmark"]  # the package has a function of that name
    monkeypatch.setattr(module, "installed_version", lambda _: "0.1")
    call()
    assert len(asked) == 7, "another version of the runtime"


def seed_of(space: str, folder: Path, request: pytest.FixtureRequest) -> Path:
    """Weights a search in the space can begin with: random ones of a small network, torchvision's form, or a golden supernet."""
    if space == "ofa_mbv3":
        return Path(request.getfixturevalue("shared")) / "ofa_golden" / "ofa_mbv3_w0.25_newkeys.pth"
    path, stated = folder / "seed.safetensors", {"input": "ImageNet mean and std", "padding": "symmetric"}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if space == "mbv2":
            write_seed(Subnet(get_space("mbv2"), plain_arch(64, 0.35, (1, 2, 3, 4, 3, 3, 1)), 3), path, stated)
        else:
            save_file(torchvision.models.mobilenet_v3_large(weights=None, num_classes=3).state_dict(), path, stated)
    return path


@pytest.mark.parametrize("name", ["mbv2", "mbv3_large", "ofa_mbv3"])
def test_search_report_export_in_the_spaces_of_real_networks(
    name: str, digits: Path, made_up_table: Callable[[Path, SearchSpace], None], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """At resolutions that make it a matter of seconds; everything else is the space as it ships."""
    seed, small = seed_of(name, tmp_path, request), tmp_path / "small.toml"
    width = read_seed(seed).arch.width
    small.write_text(space_toml(replace(get_space(name), name="small", resolutions=(24, 32), widths=(width,))))
    _, space = read_for(seed, get_space(str(small)))
    made_up_table(tmp_path / "tables", space)
    config = SearchConfig(
        data=digits,
        out=tmp_path / "run",
        space=str(small),
        seed_weights=seed,
        flip=False,
        tables=tmp_path / "tables",
        nat={"initial": 10, "rounds": 1, "infill": 2, "parents": 2, "population": 10, "generations": 2},
        adapt={"train": {"batch_size": 4}},
    )
    pipeline.search(config)
    result = pipeline.report(config.out)
    assert str(space.name) in result.page.read_text()
    (file,) = pipeline.export(config.out)
    net = next(net for net in pipeline.nets(config.out) if (net.role, net.id) == (file.role, file.id))
    assert file.test_accuracy == net.test_accuracy
    arch = Arch.parse(net.arch)
    space.validate(arch)
    with RunStore.open(config.out) as store:
        subnet = pipeline.load_subnet(store, arch)
    x = torch.randn(1, 3, arch.resolution, arch.resolution, generator=torch.Generator().manual_seed(0))
    (logits,) = onnxruntime.InferenceSession(config.out / file.path).run(None, {"input": x.numpy()})
    expected = subnet(x).detach().numpy()
    limit = 1e-4 * np.abs(expected).max()  # the golden supernet's logits are hundreds
    np.testing.assert_allclose(logits, expected, atol=limit, rtol=0)
    assert file.max_rel is not None


def read_nets(folder: Path) -> list[Any]:
    with RunStore.open(folder) as store:
        return list(store.nets())


def test_benchmark_before_export_says_what_to_do(config: SearchConfig, finished: SearchConfig, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished.out, copy)
    with closing(sqlite3.connect(copy / "run.sqlite")) as database:
        database.execute("DELETE FROM files")
        database.commit()
    with pytest.raises(UsageError, match="natdeploy export"):
        pipeline.benchmark(copy)


_DRIVER = """
import sys
from pathlib import Path
from natdeploy import pipeline
pipeline.search(pipeline.SearchConfig.model_validate_json(Path(sys.argv[1]).read_text()))
"""


def test_killed_at_any_moment_it_ends_as_an_unbroken_run(finished: SearchConfig, tmp_path: Path) -> None:
    config = finished.model_copy(update={"out": tmp_path / "broken"})
    (tmp_path / "config.json").write_text(config.model_dump_json())
    database = config.out / "run.sqlite"
    kills = 0
    # Each process is killed once it has got a little farther than the one before: in warm-up, evaluation, a round, the end.
    for evaluations in (0, 1, 11, 14, 30, None):
        process = subprocess.Popen(
            [sys.executable, "-c", _DRIVER, str(tmp_path / "config.json")], env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if evaluations is not None and _progress(database) >= evaluations:
                process.send_signal(signal.SIGKILL)
                process.wait()
                kills += 1
            time.sleep(0.02)
        assert process.poll() is not None, "the search hangs"
    assert kills >= 4
    assert outcome(config.out) == outcome(finished.out)


def _progress(database: Path) -> int:
    """Evaluations stored so far; -1 before the run exists."""
    if not database.exists():
        return -1
    try:
        with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
            return int(connection.execute("SELECT count(*) FROM evaluations").fetchone()[0])
    except sqlite3.OperationalError:
        return -1


def test_ranking_error_grows_with_error_and_with_loss() -> None:
    def rank(correct: int, loss: float) -> float:
        return ranking_error(Evaluation(0, "r16", correct, 100, loss, 0.0))

    assert rank(100, 0.0) == 0.0
    assert rank(90, 0.7) > rank(91, 0.7)
    assert rank(90, 0.7) > rank(90, 0.6)
    assert 0.0 < rank(0, 50.0) <= 1.0


# ---- bad input


def test_unreachable_constraint_names_the_range_and_leaves_no_run(config: SearchConfig) -> None:
    impossible = config.model_copy(update={"constraints": ("latency<=1us",)})
    with pytest.raises(InfeasibleError, match=r"latency from [\d.]+ ms to [\d.]+ ms") as caught:
        pipeline.search(impossible)
    assert caught.value.exit_code == 3
    assert not impossible.out.exists()


def test_plan_tells_budget_and_range_without_a_run(config: SearchConfig) -> None:
    made = pipeline.plan(config)
    assert "latency<=1ms can be met" in made.facts["reachable"]
    assert made.budget is not None
    assert made.budget.nat.rounds == 2
    assert not config.out.exists()
    json.dumps(made.to_json(), allow_nan=False)


def test_minutes_bound_the_work(config: SearchConfig) -> None:
    made = pipeline.plan(config.model_copy(update={"minutes": 10.0, "nat": NatSettings()}))
    assert made.budget is not None
    assert made.budget.minutes <= 10.5
    assert made.budget.total_steps > 60


def test_corrupt_image_is_named_and_counted_or_refused(config: SearchConfig, tmp_path: Path, notes: Any) -> None:

    data = tmp_path / "data"
    shutil.copytree(config.data, data)
    (data / "0" / "99.png").write_bytes(b"no image")

    pipeline.plan(config.model_copy(update={"data": data}), notes)
    assert any("0/99.png" in line for line in notes.lines)
    assert any("1 damaged image was skipped" in line for line in notes.lines)
    with pytest.raises(DataError, match=r"99\.png"):
        pipeline.plan(config.model_copy(update={"data": data, "strict": True}))


def test_seed_of_another_network_is_refused(config: SearchConfig, tmp_path: Path) -> None:
    save_file({"layer1.0.conv1.weight": torch.zeros(64, 64, 3, 3)}, tmp_path / "resnet.safetensors")
    with pytest.raises(WeightsError, match="layer1"):
        pipeline.plan(config.model_copy(update={"seed_weights": tmp_path / "resnet.safetensors"}))


def test_changed_images_stop_a_resumed_run(config: SearchConfig, finished: SearchConfig, tmp_path: Path) -> None:
    data, copy = tmp_path / "data", tmp_path / "copy"
    shutil.copytree(config.data, data)
    shutil.copytree(finished.out, copy)
    with RunStore.open(copy) as store:
        store.set("config", {**store.config, "data": str(data)})
        store.set("finished", False)
    (data / "0" / "00.png").unlink()
    with pytest.raises(DataError, match="not those this run began with"):
        pipeline.resume(copy)


def test_another_seed_file_stops_a_resumed_run(finished: SearchConfig, tmp_path: Path) -> None:
    copy, seed = tmp_path / "copy", tmp_path / "seed.safetensors"
    shutil.copytree(finished.out, copy)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        write_seed(Subnet(get_space("demo"), plain_arch(32, 1.0, (1, 2, 3, 2)), 3), seed, {"input": "RGB, scaled to [-1,1]"})
    with RunStore.open(copy) as store:
        store.set("config", {**store.config, "seed_weights": str(seed)})
        store.set("finished", False)
    with pytest.raises(WeightsError, match="not the file this run began with"):
        pipeline.resume(copy)


def test_a_changed_space_file_stops_a_resumed_run_and_an_export(finished: SearchConfig, tmp_path: Path) -> None:
    copy, file = tmp_path / "copy", tmp_path / "own.toml"
    shutil.copytree(finished.out, copy)
    own = replace(get_space("demo"), name="own")
    file.write_text(space_toml(own))
    with RunStore.open(copy) as store:
        store.set("config", {**store.config, "space": str(file)})
        store.set("space", space_toml(own))
    pipeline.export(copy, "knee")
    file.write_text(space_toml(replace(own, resolutions=(16, 32))))
    with pytest.raises(UsageError, match="not the one this run began with"):
        pipeline.export(copy, "knee")
    with RunStore.open(copy) as store:
        store.set("finished", False)
    with pytest.raises(UsageError, match="not the one this run began with"):
        pipeline.resume(copy)


def test_damaged_checkpoint_is_named(finished: SearchConfig, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished.out, copy)
    (checkpoint,) = (copy / "checkpoints").glob("supernet-*.safetensors")
    data = bytearray(checkpoint.read_bytes())
    data[-1] ^= 1
    checkpoint.write_bytes(bytes(data))
    shutil.rmtree(copy / "models", ignore_errors=True)  # of a file that is there, nothing is read
    with pytest.raises(DamagedFileError, match="supernet-"):
        pipeline.export(copy)


def test_damaged_table_is_named_with_its_line(config: SearchConfig, tmp_path: Path) -> None:
    assert config.tables is not None
    tables = tmp_path / "tables"
    shutil.copytree(config.tables, tables)
    (csv,) = [path for path in tables.rglob("*.csv") if "subnets" not in path.name]
    lines = csv.read_text().splitlines()
    lines[4] = lines[4].replace(",3,", ",three,")
    csv.write_text("\n".join(lines))
    with pytest.raises(DamagedFileError, match="line 5"):
        pipeline.plan(config.model_copy(update={"tables": tables}))
