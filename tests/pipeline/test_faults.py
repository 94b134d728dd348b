"""What goes wrong while a search runs: training that diverges, architectures that fail, constraints that become impossible."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from natdeploy import pipeline
from natdeploy.distributed import engine
from natdeploy.errors import InfeasibleError, NatdeployError, UsageError
from natdeploy.pipeline import SearchConfig, correct
from natdeploy.space import Arch
from natdeploy.store import RunStore
from natdeploy.tasks import Classification


def test_a_loss_that_is_not_finite_goes_back_and_lowers_the_rate(
    config: SearchConfig, notes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss, calls = Classification.loss, 0

    def spoiled(self: Classification, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += logits.requires_grad
        return loss(self, logits, targets) * (float("nan") if calls == 45 and logits.requires_grad else 1.0)

    monkeypatch.setattr(Classification, "loss", spoiled)
    pipeline.search(config, notes)
    (line,) = [line for line in notes.lines if "goes on from step" in line]
    assert "the loss is nan" in line
    assert "at 50 % of the learning rate (1 of 4 times)" in line
    with RunStore.open(config.out) as store:
        assert store.get("finished")
        checkpoint = store.load_checkpoint("supernet")
        assert checkpoint is not None
        assert checkpoint[1]["rate_scale"] == 0.5


def test_training_that_diverges_again_and_again_is_given_up(config: SearchConfig, notes: Any) -> None:
    hot = config.model_copy(
        update={"adapt": config.adapt.model_copy(update={"train": config.adapt.train.model_copy(update={"learning_rate": 1e12})})}
    )
    with pytest.raises(NatdeployError, match=r"that was the 5th time, .* start again with a lower rate"):
        pipeline.search(hot, notes)
    assert len([line for line in notes.lines if "goes on from step" in line]) == 4


def test_an_architecture_that_fails_is_recorded_left_out_and_counted(
    config: SearchConfig, notes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, asked, failing = engine.judge_arch, 0, set()

    def judge(supernet: Any, arch: Arch, *args: Any) -> Any:
        nonlocal asked
        asked += 1
        if asked == 8:  # not the baseline, nor another that the search cannot do without
            failing.add(arch)
        return "out of memory" if arch in failing else real(supernet, arch, *args)

    monkeypatch.setattr(engine, "judge_arch", judge)
    pipeline.search(config, notes)
    (failed,) = failing
    with RunStore.open(config.out) as store:
        assert store.failures() == {str(failed): "out of memory"}
        assert [each["failed"] for each in store.rounds()] == [1, 1, 1]
        assert str(failed) not in {each.arch for each in store.evaluations()}
        assert failed.id not in {net.id for net in store.nets() if net.role == "front"}
    assert any(f"{failed.id} could not be evaluated and is left out: out of memory" in line for line in notes.lines)


def test_a_constraint_that_measuring_shows_to_be_impossible_is_said_to_be(
    config: SearchConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(self: correct.FrontMeasurer, name: str, archs: Any, target: Any) -> Any:
        return dict.fromkeys(archs, 1000.0)

    monkeypatch.setattr(correct.FrontMeasurer, "_measure", slow)
    often = config.model_copy(update={"nat": config.nat.model_copy(update={"measure_every": 1})})
    with pytest.raises(InfeasibleError, match=r"latency<=1ms"):
        pipeline.search(often)


@pytest.mark.parametrize(
    ("objectives", "text"),
    [
        (("error", "speed"), r"there is no objective 'speed'; .*latency.*macs.*params.*size"),
        (("error", "energy"), "latency tables hold no measured energy"),
        (("error", "latency@host"), "is the search's own target"),
        (("error",), "at least one"),
    ],
)
def test_an_objective_that_makes_no_sense_is_named(config: SearchConfig, objectives: tuple[str, ...], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        pipeline.plan(config.model_copy(update={"objectives": objectives}))
