"""A whole search on a cluster of two workers ends as one in this process with the same shards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from natdeploy import pipeline
from natdeploy.pipeline import Engine, SearchConfig
from natdeploy.store import RunStore
from natdeploy.training.adapt import AdaptSettings
from natdeploy.training.loop import TrainSettings


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    pytest.importorskip("ray", reason="Ray is not installed; pip install 'natdeploy[ray]'")
    with pipeline.open_engine("local", workers=2) as opened:
        yield opened


def outcome(folder: Path) -> dict[str, Any]:
    with RunStore.open(folder) as store:
        return {
            "evaluations": sorted((each.step, each.arch, each.correct, each.loss) for each in store.evaluations()),
            "rounds": store.rounds(),
            "nets": [(net.role, net.arch, net.validation_accuracy, net.test_accuracy) for net in store.nets()],
        }


def test_the_archive_is_the_same_bit_for_bit(config: SearchConfig, engine: Engine, notes: Any, tmp_path: Path) -> None:
    """One round, for every stretch of training starts processes."""
    config = config.model_copy(update={"nat": config.nat.model_copy(update={"rounds": 1})})
    there = config.model_copy(update={"out": tmp_path / "there"})
    pipeline.search(there, notes, engine)
    assert any("every batch is cut into 2 shards" in line for line in notes.lines)
    here = config.model_copy(
        update={"out": tmp_path / "here", "adapt": AdaptSettings(train=TrainSettings(batch_size=16, shards=2))}
    )
    pipeline.search(here)
    with RunStore.open(there.out) as store:
        assert store.config["adapt"] == here.adapt.model_dump(mode="json")
    assert outcome(there.out) == outcome(here.out)
