"""A run at any time: how far it is, and the front it has so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from natdeploy.pipeline.budget import Budget, spent_seconds
from natdeploy.pipeline.config import SearchConfig
from natdeploy.pipeline.predictor import estimated, load_predictor
from natdeploy.pipeline.problem import LATENCY, objectives_of, requirements
from natdeploy.pipeline.setting import stored_space
from natdeploy.pipeline.train import CHECKPOINT
from natdeploy.report import Standing
from natdeploy.search import Constraint, Objectives, non_dominated
from natdeploy.search.objectives import Floats
from natdeploy.space import Arch, Genotypes
from natdeploy.store import NetRecord, RunStore, in_use


def standing_of(store: RunStore) -> Standing:
    """How far a run is."""
    finished, budget = bool(store.get("finished")), Budget.from_json(store.get("budget"))
    saved = store.checkpoint_info(CHECKPOINT) or {"step": 0}
    return Standing(
        state="finished" if finished else "running" if in_use(store.folder) else "stopped",
        rounds_done=max(0, len(store.rounds()) - 1),
        rounds=budget.nat.rounds,
        steps_done=saved["step"],
        steps=budget.total_steps,
        spent_s=spent_seconds(store),
        minutes=budget.minutes,
    )


@dataclass(frozen=True)
class Cheap:
    """What is known of architectures without a network.

    Attributes:
        objectives: of the search, latencies as predicted at its start; where precisions are searched, in the first of them.
        constraints: of the search.
        genotypes: of the architectures, (n, variables).
        estimated: latencies come from a specification sheet.
    """

    objectives: Objectives
    constraints: Sequence[Constraint]
    genotypes: Genotypes
    estimated: bool

    def values(self) -> dict[str, Floats]:
        """(n,) of every objective and of every constrained quantity but the error, latency first, then MACs and parameters."""
        named = (LATENCY, "macs", "params", *self.objectives.names[1:], *(each.objective for each in self.constraints))
        return {name: self.objectives.cheap[name](self.genotypes) for name in dict.fromkeys(named)}


def cheap_values(store: RunStore, config: SearchConfig, archs: Sequence[Arch]) -> Cheap:
    """What a run knows of architectures, at least one, whether they were judged or not.

    Raises:
        NatdeployError: the space, a device or a predictor of the run is not there any more.
    """
    space = replace(stored_space(config, store).restrict(widths=(archs[0].width,)), precisions=config.precisions)
    targets, constraints = requirements(config)
    predictors = {name: load_predictor(store.folder, name.removeprefix(LATENCY)) for name in targets}
    classes = len(store.get("classes"))
    latencies = {name: predictors[name].total(space.archs_only, classes) for name in targets}
    genotypes = space.archs_only.encode_all(archs)
    if space.precisions:
        genotypes = space.in_precision(genotypes, space.precisions[0])
    return Cheap(
        objectives_of(config.objectives, space, latencies, classes, targets[LATENCY].precision),
        constraints,
        genotypes,
        estimated(predictors[LATENCY]) is not None,
    )


def front_so_far(store: RunStore, config: SearchConfig) -> tuple[NetRecord, ...]:
    """The nets of an unfinished search that keep the constraints and that no other one beats in all objectives.

    Only nets that were judged on all validation images count, each with the last verdict on it; where precisions are searched, as
    networks in the first of them. Latencies are predicted, without what measurements in the search may have corrected.

    Raises:
        NatdeployError: the space, a device or a predictor of the run is not there any more.
    """
    latest = {each.arch: each for each in store.evaluations() if each.whole}
    if not latest:
        return ()
    archs, accuracies = [Arch.parse(text) for text in latest], np.array([each.accuracy for each in latest.values()])
    known = cheap_values(store, config, archs)
    rows = (known.objectives.violation(known.genotypes, known.constraints) == 0).nonzero()[0]
    front = rows[non_dominated(known.objectives.values(known.genotypes[rows], 1 - accuracies[rows]))]
    values = {name: each.tolist() for name, each in known.values().items()}
    return tuple(
        NetRecord(
            arch=str(archs[row]),
            id=archs[row].id,
            role="front",
            validation_accuracy=float(accuracies[row]),
            test_accuracy=None,
            predicted_ms=values[LATENCY][row],
            measured_p50_ms=None,
            measured_p90_ms=None,
            measured_n=None,
            unstable=None,
            params=round(values["params"][row]),
            macs=round(values["macs"][row]),
            estimated=known.estimated,
            objectives={name: each[row] for name, each in values.items()},
        )
        for row in front
    )
