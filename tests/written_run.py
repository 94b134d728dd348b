"""Run folders as a search leaves them at any moment, without the search: real facts of made-up evaluations, in a moment."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from natdeploy.latency.estimate import Estimate
from natdeploy.pipeline import Budget, SearchConfig
from natdeploy.pipeline.predictor import save_predictor
from natdeploy.pipeline.underway import front_so_far
from natdeploy.search import NatSettings
from natdeploy.space import Arch, get_space, space_toml
from natdeploy.store import Evaluation, RunStore

CLASSES, IMAGES = ("aster", "daisy", "iris"), 200
SPACE = get_space("demo")
ESTIMATE = Estimate(
    target="host/onnxruntime-fp32-1t", precision="fp32", gflops=20.0, bandwidth_gbs=10.0, sources=("made up for a test",)
)


def write_run(folder: Path, *, rounds: int = 2, finished: bool = True, lead: int = 0, **changes: Any) -> Path:
    """A run of up to three rounds.

    Args:
        folder: new.
        rounds: that are over.
        finished: the front is chosen and tested.
        lead: images that every net gets right beyond what it does otherwise.
        changes: of the configuration.
    """
    config = SearchConfig(data=folder.parent / "photos", out=folder, space="demo", constraints=("latency<=5ms",), **changes)
    budget = Budget(
        warmup_steps=40,
        round_steps=20,
        final_steps=100,
        checkpoint_steps=50,
        tune_steps=0,
        nat=NatSettings(rounds=2),
        minutes=10.0,
        step_seconds=0.5,
        evaluation_seconds=0.2,
        source="a test",
    )
    facts = {
        "splits": {"train": ["a.png", "b.png"], "validation": ["c.png"], "test": ["d.png"]},
        "classes": list(CLASSES),
        "fingerprint": "0" * 64,
        "space": space_toml(SPACE),
        "searched_space": space_toml(SPACE),
        "command": ["natdeploy", "search", "--data", "photos"],
        "version": "0.1.0",
        "plan": {"data": "photos: 3 classes"},
        "budget": budget.to_json(),
        "environment": {"python": sys.version.split()[0], "governor": None},
        "quality": None,
        "estimate": "an estimate made up for a test",
        "knowledge": [],
    }
    with RunStore.create(folder, config.model_dump(mode="json"), facts) as store:
        save_predictor(ESTIMATE, folder)
        store.save_checkpoint("supernet", {}, {"step": 0, "rate_scale": 1.0})
        store.add_seconds({"images and weights": 30.0, "training: forward and backward": 90.0, "judging: forward passes": 30.0})
        for number in range(rounds + 1):
            add_round(store, number, lead=lead)
        if finished:
            finish(store, config)
    return folder


def archs(number: int) -> list[Arch]:
    """New ones of a round."""
    drawn = SPACE.decode_all(SPACE.sample(8 if number == 0 else 3, np.random.default_rng([7, number])))
    return [*([SPACE.decode(SPACE.lower), SPACE.decode(SPACE.upper)] if number == 0 else []), *drawn]


def add_round(store: RunStore, number: int, *, lead: int = 0) -> None:
    """What a search stores in a round: of two nets, that with more MACs gets more images right, and every round a few more."""
    known = [arch for each in range(number + 1) for arch in archs(each)]
    for arch in known:
        macs = sum(block.macs for block in SPACE.blocks(arch, len(CLASSES)))
        right = min(IMAGES, 60 + round(20 * np.log10(macs)) - 80 + 5 * number + lead)
        store.record(Evaluation(number, str(arch), right, IMAGES, 0.7, 0.2))
    accuracies = [each.accuracy for each in store.evaluations(number)]
    surrogate = {"name": "rbf", "taus": {}, "new_tau": 0.8, "new_spearman": 0.9, "new_rmse": 0.02}
    store.add_round(
        {
            "round": number,
            "evaluated": len(known),
            "failed": 0,
            "new": [arch.id for arch in archs(number)],
            "left": [],
            "surrogate": surrogate if number else None,
            "hypervolume": 0.5 + 0.05 * number,
            "reference": [0.9, 5.0],
            "front_size": 5,
            "best_error": 1 - max(accuracies),
        }
    )
    store.save_checkpoint("supernet", {}, {"step": 40 + 20 * number, "rate_scale": 1.0})


def finish(store: RunStore, config: SearchConfig) -> None:
    """The front, tested, and a baseline."""
    front = front_so_far(store, config)
    for net in front:
        store.put_net(replace(net, test_accuracy=net.validation_accuracy - 0.02))
    slowest = max(front, key=lambda net: net.macs)
    store.put_net(replace(slowest, role="baseline", validation_accuracy=0.4, test_accuracy=0.38))
    store.set("finished", True)
