"""Strategies other than evolution, from end to end."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from natdeploy import pipeline
from natdeploy.distributed.engine import InProcess
from natdeploy.errors import InfeasibleError, UsageError
from natdeploy.pipeline import SearchConfig
from natdeploy.pipeline.gradient import CHOSEN, RESTARTED
from natdeploy.pipeline.train import Training
from natdeploy.progress import Silent
from natdeploy.space import Arch, get_space
from natdeploy.store import RunStore
from natdeploy.supernet import Supernet
from natdeploy.training.adapt import Adapter, AdaptSettings, Lesson
from natdeploy.training.loop import TrainSettings


class Notes(Silent):
    """Keeps what is noted."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, message: str) -> None:
        self.lines.append(message)


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, digits: Path, seed_file: Path, tables: Path
) -> tuple[SearchConfig, list[str]]:
    """A search by gradient that ran to its end, and what it noted."""
    config = SearchConfig(
        data=digits,
        out=tmp_path_factory.mktemp("gradient") / "run",
        space="demo",
        seed_weights=seed_file,
        constraints=("latency<=0.4ms",),
        flip=False,
        tables=tables,
        strategy="gradient",
        rounds=2,
        schedule={"epochs": 1.0, "final": 0.5},
        adapt={"train": {"batch_size": 8}},
        gradient={"batch_size": 4, "resolution": 16, "weights": "seed"},
    )
    notes = Notes()
    pipeline.search(config, notes)
    return config, notes.lines


def outcome(folder: Path) -> dict[str, object]:
    with RunStore.open(folder) as store:
        return {
            "chosen": store.get(CHOSEN),
            "evaluations": sorted((e.step, e.arch, e.correct, e.total, e.loss) for e in store.evaluations()),
            "rounds": store.rounds(),
            "nets": [(n.role, n.arch, n.validation_accuracy, n.test_accuracy, n.predicted_ms) for n in store.nets()],
        }


def test_a_search_by_gradient_ends_with_one_net_that_keeps_its_budget(finished: tuple[SearchConfig, list[str]]) -> None:
    by_gradient, notes = finished
    (net,) = [net for net in pipeline.nets(by_gradient.out) if net.role == "front"]
    assert net.predicted_ms is not None and net.predicted_ms <= 0.4
    assert any("one architecture by gradient" in line and "latency of 0.4 at most" in line for line in notes)
    assert any("the mixture is expected to take latency" in line and "price" in line for line in notes)
    assert sum(Arch.parse(net.arch).depths) > len(Arch.parse(net.arch).depths), "it did not end every stage where it could"
    (file,) = pipeline.export(by_gradient.out, "front")
    assert file.test_accuracy == net.test_accuracy
    result = pipeline.report(by_gradient.out)
    assert net.id in result.page.read_text()
    assert result.adaptation is not None
    assert min(result.adaptation.architecture_s, result.adaptation.parameters_s) > 0
    assert result.adaptation.architecture_s + result.adaptation.parameters_s < sum(result.seconds.values())
    assert result.summary["adaptation"] == asdict(result.adaptation)
    with RunStore.open(by_gradient.out) as store:
        assert [each["round"] for each in store.rounds()] == [0, 1, 2]
        assert store.seconds()["training: architecture"] > 0
        assert store.get(RESTARTED)


def test_broken_off_anywhere_it_ends_as_an_unbroken_run(
    finished: tuple[SearchConfig, list[str]],
    tmp_path: Path,
    to_the_end: Callable[[SearchConfig], int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    by_gradient, _ = finished
    whole = outcome(by_gradient.out)
    with RunStore.open(by_gradient.out) as store:
        budget = store.get("budget") | {"checkpoint_steps": 7}
    monkeypatch.setattr(sys.modules["natdeploy.pipeline.plan"], "make_budget", lambda *_: pipeline.Budget.from_json(budget))
    broken = by_gradient.model_copy(update={"out": tmp_path / "broken"})
    save, saves = RunStore.save_checkpoint, 0

    def stop(self: RunStore, name: str, *args: Any) -> None:
        nonlocal saves
        save(self, name, *args)
        saves += 1
        if saves % 3 == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(RunStore, "save_checkpoint", stop)
    assert to_the_end(broken) > 1
    assert saves > 6
    assert outcome(broken.out) == whole


def test_a_restart_takes_weights_without_momentum_and_is_what_a_run_goes_on_from(tmp_path: Path) -> None:
    space = get_space("demo").restrict(resolutions=(16,))
    largest = space.decode(space.upper)

    class Bright:
        classes = ("dark", "bright")

        def train_batch(self, step: int, resolution: int, batch_size: int) -> tuple[torch.Tensor, torch.Tensor]:
            labels = torch.arange(batch_size) % 2
            noise = torch.rand(batch_size, 3, resolution, resolution, generator=torch.Generator().manual_seed(step))
            return noise + labels[:, None, None, None], labels

        def loss(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.cross_entropy(logits, targets)

    def training(store: RunStore) -> Training:
        settings = AdaptSettings(train=TrainSettings(batch_size=4), head_share=0.0, sampled_share=0.0)
        adapter = Adapter(Supernet(space, 2), settings, total_steps=9, seed=0)
        return Training(adapter, 100, InProcess(), store, Silent())

    lesson: Any = Lesson(Bright(), [largest], lambda count, rng: [largest] * count, largest, largest)  # type: ignore[arg-type]
    fresh = {name: value for name, value in Supernet(space, 2).state_dict().items() if not name.startswith("classifier.")}
    with RunStore.create(tmp_path / "run", {}, {}) as store:
        first = training(store)
        first.train("some steps", 2, lesson)
        learned = first.averaged.classifier.weight.clone()
        assert not torch.equal(first.averaged.stem.conv.weight, fresh["stem.conv.weight"])
        first.restart(fresh)
        later = training(store)
        later.restore()
        for each in (first, later):
            assert each.adapter.trainer.step == 2
            assert torch.equal(each.averaged.classifier.weight, learned)
            assert all(torch.equal(each.averaged.state_dict()[name], value) for name, value in fresh.items())
            assert not any(name.startswith("momentum.") for name in each.adapter.tensors())


def test_without_a_bound_the_seeds_own_latency_is_one(finished: tuple[SearchConfig, list[str]]) -> None:
    by_gradient, _ = finished
    made = pipeline.plan(by_gradient.model_copy(update={"constraints": ()}))
    assert "latency of" in made.facts["strategy"]
    given = ("data", "out", "space", "seed_weights", "flip", "tables")
    published = SearchConfig(**{name: getattr(by_gradient, name) for name in given}, preset="paper", strategy="gradient")
    assert pipeline.plan(published).facts["strategy"].endswith("; 0.009 * log_45 of macs")
    with pytest.raises(UsageError, match=r"gradient\.resolution 17 is not in space demo; it has \[16, 24, 32\]"):
        pipeline.plan(by_gradient.model_copy(update={"gradient": by_gradient.gradient.model_copy(update={"resolution": 17})}))


def test_a_resolution_at_which_nothing_keeps_the_bound_is_refused(finished: tuple[SearchConfig, list[str]]) -> None:
    by_gradient, _ = finished
    fixed = by_gradient.gradient.model_copy(update={"resolution": 32})
    with pytest.raises(InfeasibleError, match=r"no architecture of space demo keeps macs<=1M at 32 px; choose another bound"):
        pipeline.plan(by_gradient.model_copy(update={"constraints": ("macs<=1M",), "gradient": fixed}))
