"""A search that chooses the precision of each net as well: tables of both, the loss from a few quantised nets, and a real front."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from natdeploy import pipeline
from natdeploy.errors import UsageError
from natdeploy.hardware.bench import QUICK
from natdeploy.hardware.device import parse_target
from natdeploy.pipeline import SearchConfig, last_stretch, quantise
from natdeploy.pipeline.correct import FrontMeasurer
from natdeploy.pipeline.evaluate import ranking_error
from natdeploy.pipeline.predictor import find_predictor
from natdeploy.pipeline.problem import make_problem, requirements
from natdeploy.pipeline.quantise import PrecisionLoss, judge_in_runtime
from natdeploy.pipeline.setting import Setting, prepare
from natdeploy.progress import Silent
from natdeploy.search import Archive, Scores
from natdeploy.space import Arch, get_space
from natdeploy.store import RunStore
from natdeploy.training.judge import calibrated_subnet, judge

PRECISIONS = ("fp32", "int8")


@pytest.fixture(scope="module")
def both_tables(tmp_path_factory: pytest.TempPathFactory, made_up_table: Callable[..., None]) -> Path:
    """Tables of a target whose int8 takes half of the time."""
    folder = tmp_path_factory.mktemp("both")
    made_up_table(folder, get_space("demo"))
    made_up_table(folder, get_space("demo"), "int8", 10e6)
    return folder


def joint(config: SearchConfig, tables: Path, **changes: Any) -> SearchConfig:
    return config.model_copy(update={"precisions": PRECISIONS, "tables": tables, **changes})


def predictors(config: SearchConfig, setting: Setting) -> dict[str, Any]:
    found = {}
    for name, target in requirements(config)[0].items():
        found[name] = find_predictor(
            target, setting.space, tables=config.tables, table=None, allow_estimate=False, progress=Silent()
        )
    return found


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, digits: Path, seed_file: Path, both_tables: Path) -> SearchConfig:
    config = SearchConfig(
        data=digits,
        out=tmp_path_factory.mktemp("joint") / "run",
        precisions=PRECISIONS,
        space="demo",
        seed_weights=seed_file,
        constraints=("latency<=0.4ms",),
        flip=False,
        tables=both_tables,
        nat={"initial": 10, "rounds": 1, "infill": 2, "parents": 5, "population": 12, "generations": 4, "measure_every": 0},
        schedule={"epochs": 10.0, "final_nets": 6},
        adapt={"train": {"batch_size": 16}},
    )
    pipeline.search(config)
    return config


def test_nets_of_int8_are_known_by_their_id_and_latencies_are_of_their_own_table(finished: SearchConfig) -> None:
    nets = pipeline.nets(finished.out)
    front = [net for net in nets if net.role == "front"]
    assert {net.precision for net in front} >= {"int8"}, "it halves latencies"
    for net in nets:
        assert net.id == Arch.parse(net.arch).id + ("-int8" if net.precision == "int8" else "")
        macs_per_ms = {"fp32": 5e6, "int8": 10e6}[net.precision or ""]
        assert net.predicted_ms == pytest.approx(net.macs / macs_per_ms, rel=0.25)
    assert max(net.predicted_ms or 0.0 for net in front) <= 0.4
    assert [net.precision for net in nets if net.role == "baseline"] == ["fp32"]


def test_accuracies_of_int8_nets_are_those_of_files_in_the_runtime(finished: SearchConfig) -> None:
    net = next(net for net in pipeline.nets(finished.out) if net.precision == "int8")
    arch = Arch.parse(net.arch)
    with RunStore.open(finished.out) as store:
        (verdict,) = [
            found[net.arch] for version, found in store.get("judged in int8").items() if version == "1" and net.arch in found
        ]
        subnet = pipeline.load_subnet(store, arch)
        # Ranges are learned from the images that also calibrate BatchNorm: those of the last stretch.
        task = prepare(finished, Silent(), store).final_task()
    assert net.validation_accuracy == verdict["correct"] / verdict["total"]
    assert net.test_accuracy == judge_in_runtime(subnet, parse_target("host", precision="int8"), task, "test").accuracy


def test_an_architecture_is_judged_in_torch_once_for_both_precisions(finished: SearchConfig) -> None:
    with RunStore.open(finished.out) as store:
        keys = [(each.step, each.arch, each.whole) for each in store.evaluations()]
        rounds = store.rounds()
    assert len(keys) == len(set(keys))
    assert rounds[0]["evaluated"] == len(rounds[0]["new"]) == 10


def test_report_and_choice_tell_the_two_apart(finished: SearchConfig) -> None:
    result = pipeline.report(finished.out)
    quantised = next(net.id for net in result.nets if net.precision == "int8")
    assert quantised in result.page.read_text()
    (net,) = [each for each in result.summary["nets"] if each["id"] == quantised]
    assert net["precision"] == "int8"


def test_each_net_is_timed_as_a_file_of_its_precision(finished: SearchConfig) -> None:
    pipeline.export(finished.out, "front")
    measured = list(pipeline.benchmark(finished.out, settings=QUICK).models)
    assert {each.precision for each in measured} == {"fp32", "int8"}
    with RunStore.open(finished.out) as store:
        found = {each.id: each.target for each in store.latencies()}
    assert found == {each.id: f"host/onnxruntime-{each.precision}-1t" for each in measured}


def test_an_interrupted_search_ends_as_an_unbroken_one(
    finished: SearchConfig, tmp_path: Path, to_the_end: Callable[[SearchConfig], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken off while files are judged: before the first round, in the choice of the front, and on the test images."""
    config = finished.model_copy(update={"out": tmp_path / "run"})
    original, calls = quantise.judge_in_runtime, 0

    def breaking(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls in (2, 7, 12):
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(quantise, "judge_in_runtime", breaking)
    monkeypatch.setattr(last_stretch, "judge_in_runtime", breaking)
    assert 2 <= to_the_end(config) < 5
    one, other = (
        [replace(net, measured_p50_ms=None, measured_n=None, unstable=None) for net in pipeline.nets(each.out)]
        for each in (finished, config)
    )
    assert one == other


@pytest.fixture
def setting(config: SearchConfig) -> Setting:
    return prepare(config, Silent())


def test_a_file_in_fp32_gives_the_verdict_of_torch(setting: Setting, config: SearchConfig) -> None:
    subnet = calibrated_subnet(setting.supernet, setting.seed_arch(32), setting.task).eval()
    file = judge_in_runtime(subnet, parse_target("host"), setting.task, "validation")
    torch = judge(subnet, setting.task, "validation")
    assert (file.correct, file.total) == (torch.correct, torch.total)
    assert file.loss == pytest.approx(torch.loss, rel=1e-4)


def test_the_loss_is_a_line_through_a_few_quantised_nets(
    setting: Setting, config: SearchConfig, notes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = replace(setting.space, precisions=PRECISIONS)
    targets = {each: parse_target("host", precision=each) for each in PRECISIONS}
    genotypes = np.unique(setting.space.sample(9, np.random.default_rng(0)), axis=0)
    archs = setting.space.decode_all(genotypes)

    def evaluate(wanted: list[Arch], version: int, whole: bool) -> Scores:
        return Scores(np.full(len(wanted), 0.1), np.zeros(len(wanted)))

    def network(arch: Arch) -> Any:
        return calibrated_subnet(setting.supernet, arch, setting.task).eval()

    with RunStore.create(tmp_path / "store", {}, {}) as store:
        loss = PrecisionLoss(space, targets, network, evaluate, setting.task, store, notes)
        learned = loss.learn(archs, 0)
        assert len(store.get("judged in int8")["0"]) == quantise.SAMPLES
        monkeypatch.setattr(quantise, "judge_in_runtime", None)
        again = loss.learn(archs, 0)
        sampled = [Arch.parse(text) for text in store.get("judged in int8")["0"]]
        found = [ranking_error(each) - 0.1 for each in loss.verdicts(sampled, "int8", 0)]
    quantised = learned(space.in_precision(space.encode_all(sampled), "int8"))
    assert quantised.mean() == pytest.approx(np.mean(found), rel=0.05)
    twins = space.in_every_precision(space.encode_all(archs))
    np.testing.assert_array_equal(learned(twins), again(twins))
    assert not learned(twins)[::2].any(), "torch computes in fp32"
    assert any(line.startswith("int8 costs ") for line in notes.lines)


def test_the_front_is_measured_in_each_precision(
    config: SearchConfig, both_tables: Path, front_measurer: Callable[..., FrontMeasurer], new_store: RunStore
) -> None:
    asked = joint(config, both_tables)
    setting = prepare(asked, Silent())
    problem = make_problem(asked, setting, predictors(asked, setting))
    archive = Archive(problem.space, problem.objectives, problem.constraints)
    archive.add(np.unique(problem.space.sample(5, np.random.default_rng(0)), axis=0)[:3], [0.5, 0.4, 0.3])
    objectives = front_measurer(problem, setting)(archive, 2)
    assert objectives is not None
    front = archive.genotypes[archive.front()]
    measured = {name: new_store.get(f"measured {name}")["2"] for name in problem.targets}
    for genotype in front:
        name = {"fp32": "latency", "int8": "latency-int8"}[problem.space.precision_of(genotype) or ""]
        expected = measured[name][str(problem.space.decode(genotype))]
        assert objectives.cheap["latency"](genotype[None])[0] == expected


def test_a_limit_that_only_int8_keeps_is_possible(config: SearchConfig, both_tables: Path) -> None:
    plain = prepare(config, Silent())
    (least, _) = make_problem(config.model_copy(update={"constraints": ()}), plain, predictors(config, plain)).reachable["latency"]
    asked = joint(config, both_tables, constraints=(f"latency<={0.8 * least}ms",))
    problem = make_problem(asked, plain, predictors(asked, plain))
    assert problem.reachable["latency"][0] < 0.8 * least
    size = problem.objectives.cheap["size"](problem.space.in_every_precision(problem.space.encode(problem.smallest)[None]))
    assert size[0] == pytest.approx(4 * size[1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"precisions": ("fp32", "fp4")}, r"onnxruntime computes in fp32, .*not in fp4"),
        (
            {"objectives": ("error", "latency", "latency@host/openvino")},
            r"one target only; leave out latency@host/openvino, or --precision",
        ),
    ],
)
def test_what_is_not_possible_is_said_before_anything_is_read(config: SearchConfig, changes: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        requirements(config.model_copy(update={"precisions": PRECISIONS, **changes}))


def test_precisions_are_read_from_a_list_and_named_once(config: SearchConfig) -> None:
    assert SearchConfig.model_validate({"data": "d", "out": "o", "precisions": "fp32, int8"}).precisions == PRECISIONS
    with pytest.raises(ValueError, match="names a precision twice"):
        SearchConfig.model_validate({"data": "d", "out": "o", "precisions": ["int8", "int8"]})
