"""What a search can be asked for beside accuracy and one latency, and what it can begin from and end with."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from natdeploy import pipeline
from natdeploy.errors import DeviceError, InfeasibleError, UsageError
from natdeploy.pipeline import SearchConfig
from natdeploy.pipeline.evaluate import PART_IMAGES, part_of
from natdeploy.space import Arch, get_space
from natdeploy.store import RunStore

OTHER = "latency@host/onnxruntime-int8"


@pytest.fixture
def two_targets(config: SearchConfig, tmp_path: Path, made_up_table: Callable[..., None]) -> SearchConfig:
    """Five objectives, two of them latencies, and a bound on a third kind."""
    tables = tmp_path / "tables"
    made_up_table(tables, get_space("demo"))
    made_up_table(tables, get_space("demo"), "int8")
    objectives = ("error", "latency", OTHER, "macs", "size")
    return config.model_copy(update={"tables": tables, "objectives": objectives, "constraints": ("latency<=1ms", "size<=0.4MB")})


def test_five_objectives_two_of_them_latencies(two_targets: SearchConfig, notes: Any) -> None:
    config = two_targets.model_copy(update={"prefer": f"error=50%,{OTHER}=0.2ms"})
    pipeline.search(config, notes)
    front = [net for net in pipeline.nets(config.out) if net.role == "front"]
    for net in front:
        assert set(net.objectives) == {"latency", OTHER, "macs", "params", "size"}
        assert net.objectives["size"] == pytest.approx(4 * net.params / 1e6)
        assert net.objectives["size"] <= 0.4
        assert net.objectives["macs"] == net.macs
    result = pipeline.report(config.out)
    assert [pick.rule for pick in result.picks] == ["knee", "best", "fastest", "levels"]
    page = result.page.read_text()
    assert OTHER in page
    assert all(pick.reason in page for pick in result.picks if "'" not in pick.reason and "<" not in pick.reason)
    assert any("host/onnxruntime-fp32-1t, host/onnxruntime-int8-1t" in line for line in notes.lines)
    json.dumps(result.summary, allow_nan=False)
    (file,) = pipeline.export(config.out, f"{OTHER}<=10ms,size<=0.3MB")
    chosen = next(net for net in front if net.id == file.id)
    assert chosen.objectives["size"] <= 0.3
    with pytest.raises(InfeasibleError, match=r"nothing on the front keeps size<=0\.001 MB"):
        pipeline.export(config.out, "size<=1kB")


def test_a_target_of_an_objective_without_a_table_is_named(two_targets: SearchConfig) -> None:
    unknown = two_targets.model_copy(update={"objectives": ("error", "latency@pixel4/tflite")})
    with pytest.raises(DeviceError, match=r"there is no latency table of pixel4/.*natdeploy profile --device pixel4"):
        pipeline.plan(unknown)


def test_the_nets_that_stand_out_are_tuned_alone_and_exported_so(config: SearchConfig, notes: Any) -> None:
    tuned = config.model_copy(update={"finetune_minutes": 0.02})
    pipeline.search(tuned, notes)
    nets = [net for net in pipeline.nets(tuned.out) if net.tuned_accuracy is not None]
    picked = {pick.id for pick in pipeline.report(tuned.out).picks}
    assert nets
    assert {net.id for net in nets} == picked
    assert all(net.test_accuracy is not None for net in nets), "without, for comparison"
    arch = Arch.parse(nets[0].arch)
    with RunStore.open(tuned.out) as store:
        alone, shared = pipeline.load_subnet(store, arch, tuned=True), pipeline.load_subnet(store, arch)
    x = torch.randn(2, 3, arch.resolution, arch.resolution, generator=torch.Generator().manual_seed(0))
    assert not torch.allclose(alone(x), shared(x))
    (file,) = pipeline.export(tuned.out, nets[0].id)
    assert file.test_accuracy == nets[0].tuned_accuracy
    (logits,) = onnxruntime.InferenceSession(tuned.out / file.path).run(None, {"input": x[:1].numpy()})
    np.testing.assert_allclose(logits, alone(x[:1]).detach().numpy(), atol=1e-3)
    with RunStore.open(tuned.out) as store:
        store.put_net(replace(nets[0], role="baseline", tuned_accuracy=None))
    (other,) = (each for each in pipeline.export(tuned.out, "baseline") if each.id == file.id)
    assert other.test_accuracy == nets[0].test_accuracy
    for path, network in ((file.path, alone), (other.path, shared)):
        (logits,) = onnxruntime.InferenceSession(tuned.out / path).run(None, {"input": x[:1].numpy()})
        np.testing.assert_allclose(logits, network(x[:1]).detach().numpy(), atol=1e-3, err_msg="the two share an id, not a file")


def test_tuning_alone_that_was_interrupted_goes_on_to_the_same_net(
    config: SearchConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = config.model_copy(update={"finetune_minutes": 0.02, "out": tmp_path / "whole"})
    pipeline.search(whole)
    broken = whole.model_copy(update={"out": tmp_path / "broken"})
    with RunStore.open(whole.out) as store:
        budget = store.get("budget")
    # The name is a function's too.
    module = sys.modules["natdeploy.pipeline.plan"]
    monkeypatch.setattr(module, "make_budget", lambda *_: pipeline.Budget.from_json(budget))
    save, saves = RunStore.save_checkpoint, 0

    def stop(self: RunStore, name: str, *args: Any) -> None:
        nonlocal saves
        save(self, name, *args)
        saves += name.startswith("tuned")
        if saves == 1:
            saves += 1
            raise KeyboardInterrupt

    monkeypatch.setattr(RunStore, "save_checkpoint", stop)
    with pytest.raises(KeyboardInterrupt):
        pipeline.search(broken)
    pipeline.resume(broken.out)
    assert [(net.id, net.test_accuracy, net.tuned_accuracy) for net in pipeline.nets(broken.out)] == [
        (net.id, net.test_accuracy, net.tuned_accuracy) for net in pipeline.nets(whole.out)
    ]


def test_an_earlier_run_teaches_the_surrogate(config: SearchConfig, tmp_path: Path) -> None:
    pipeline.search(config)
    taught = config.model_copy(update={"out": tmp_path / "taught", "warm_start": (config.out,)})
    pipeline.search(taught)
    with RunStore.open(taught.out) as store:
        ((genotypes, errors),) = store.get("knowledge")
        taus = [each["surrogate"]["taus"] for each in store.rounds() if each["surrogate"]]
    assert len(genotypes) == len(errors) >= 16
    assert all(any(name.endswith("+earlier") for name in each) for each in taus)


def test_a_run_on_another_space_cannot_teach(config: SearchConfig, tmp_path: Path) -> None:
    pipeline.search(config)
    with RunStore.open(config.out) as store:
        store.set("searched_space", "another")
    with pytest.raises(UsageError, match="cannot teach this search: it searched another space than demo"):
        pipeline.search(config.model_copy(update={"out": tmp_path / "taught", "warm_start": (config.out,)}))


@pytest.mark.parametrize("preset", ["paper", "thorough"])
def test_presets_for_accelerators_run_from_end_to_end(config: SearchConfig, preset: str) -> None:
    """With every part they switch on, and sizes of seconds."""
    small = SearchConfig(
        **{name: getattr(config, name) for name in ("data", "out", "space", "seed_weights", "constraints", "flip", "tables")},
        preset=preset,
        nat={"initial": 10, "rounds": 2, "infill": 2, "parents": 4, "population": 12, "generations": 3, "measure_every": 0},
        adapt={"train": {"batch_size": 16}, "teacher_images": 16},
        schedule={"epochs": 8.0},
        finetune_minutes=0.0,
    )
    pipeline.search(small)
    with RunStore.open(small.out) as store:
        assert store.get("finished")
        assert [each["surrogate"]["name"] for each in store.rounds()[1:]] == ["rbf"] * 2 or preset == "thorough"
        budget = store.get("budget")
    assert (budget["final_steps"] == 0) == (preset == "paper")


def test_resolutions_can_be_narrowed(config: SearchConfig) -> None:
    made = pipeline.plan(config.model_copy(update={"resolutions": (16, 24, 999)}))
    wide = pipeline.plan(config)
    assert made.reachable["macs"][1] < wide.reachable["macs"][1]
    with pytest.raises(UsageError, match=r"space demo has none of the resolutions \[999\]; it has \["):
        pipeline.plan(config.model_copy(update={"resolutions": (999,)}))


def test_many_validation_images_are_seen_in_part_first() -> None:
    assert part_of(108) is None
    assert part_of(2 * PART_IMAGES) is None
    assert part_of(2 * PART_IMAGES + 1) == PART_IMAGES
    assert part_of(10_000) == 1250


def test_an_archive_screened_on_a_part_ends_with_a_front_judged_on_all(
    config: SearchConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("natdeploy.pipeline.evaluate.part_of", lambda _: 4)
    pipeline.search(config)
    with RunStore.open(config.out) as store:
        last = store.evaluations(2)
        nets = {net.arch for net in store.nets()}
    whole = {each.arch for each in last if each.whole}
    assert {each.total for each in last if not each.whole} == {4}
    assert nets <= whole, "those as well that only chance may have thrown off the front, and the baseline"
    assert len(whole) < len({each.arch for each in last}), "the others were spared"
