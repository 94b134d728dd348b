"""A whole search on a cluster of two workers ends as one in this process with the same shards."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from natdeploy import pipeline
from natdeploy.pipeline import SearchConfig
from natdeploy.pipeline.config import Schedule
from natdeploy.store import RunStore
from natdeploy.training.adapt import AdaptSettings
from natdeploy.training.loop import TrainSettings

_DRIVER = """
import sys
from pathlib import Path
from natdeploy import pipeline
with pipeline.open_engine("local", workers=2) as engine:
    pipeline.search(pipeline.SearchConfig.model_validate_json(Path(sys.argv[1]).read_text()), engine=engine)
"""
"""In a process of its own, as users have it: Ray forks, and a process full of other libraries' threads may not survive that."""


def outcome(folder: Path) -> dict[str, Any]:
    with RunStore.open(folder) as store:
        return {
            "evaluations": sorted((each.step, each.arch, each.correct, each.loss) for each in store.evaluations()),
            "rounds": store.rounds(),
            "nets": [(net.role, net.arch, net.validation_accuracy, net.test_accuracy) for net in store.nets()],
        }


def test_the_archive_is_the_same_bit_for_bit(config: SearchConfig, tmp_path: Path) -> None:
    """All training in one stretch, for every one starts processes; and one round."""
    pytest.importorskip("ray", reason="Ray is not installed; pip install 'natdeploy[ray]'")
    whole = {"nat": config.nat.model_copy(update={"rounds": 1}), "schedule": Schedule(warmup=1.0, final=0.0)}
    config = config.model_copy(update=whole)
    here, there = (
        config.model_copy(update={"out": tmp_path / name, "adapt": AdaptSettings(train=TrainSettings(batch_size=16, **shards))})
        for name, shards in (("here", {"shards": 2}), ("there", {}))
    )
    file = tmp_path / "config.json"
    file.write_text(there.model_dump_json(exclude_unset=True))
    subprocess.run([sys.executable, "-c", _DRIVER, str(file)], env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True, timeout=300)
    pipeline.search(here)
    with RunStore.open(there.out) as store:
        assert store.config["adapt"]["train"]["shards"] == 2, "one for each worker, unless they are given"
    assert outcome(there.out) == outcome(here.out)
