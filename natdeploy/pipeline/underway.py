"""A run at any time: how far it is, and the front it has so far."""

from __future__ import annotations

from dataclasses import replace

from natdeploy.pipeline.budget import Budget
from natdeploy.pipeline.config import SearchConfig
from natdeploy.pipeline.predictor import estimated, load_predictor
from natdeploy.pipeline.problem import LATENCY, objectives_of, requirements
from natdeploy.pipeline.search import BESIDE_THE_MINUTES
from natdeploy.pipeline.setting import stored_space
from natdeploy.pipeline.train import CHECKPOINT
from natdeploy.report import Standing
from natdeploy.search import non_dominated
from natdeploy.space import Arch
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
        spent_s=sum(seconds for part, seconds in store.seconds().items() if part not in BESIDE_THE_MINUTES),
        minutes=budget.minutes,
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
    archs = [Arch.parse(text) for text in latest]
    space = replace(stored_space(config, store).restrict(widths=(archs[0].width,)), precisions=config.precisions)
    targets, constraints = requirements(config)
    predictors = {name: load_predictor(store.folder, name.removeprefix(LATENCY)) for name in targets}
    classes = len(store.get("classes"))
    latencies = {name: predictors[name].total(space.archs_only, classes) for name in targets}
    objectives = objectives_of(config.objectives, space, latencies, classes, targets[LATENCY].precision)
    genotypes = space.archs_only.encode_all(archs)
    if space.precisions:
        genotypes = space.in_precision(genotypes, space.precisions[0])
    errors = [1 - each.accuracy for each in latest.values()]
    feasible = objectives.violation(genotypes, constraints) == 0
    rows = feasible.nonzero()[0]
    front = rows[non_dominated(objectives.values(genotypes[rows], [errors[row] for row in rows]))]
    named = dict.fromkeys([LATENCY, *config.objectives[1:], *(each.objective for each in constraints), "macs", "params"])
    known = {name: objectives.cheap[name](genotypes[front]).tolist() for name in named}
    guessed = estimated(predictors[LATENCY]) is not None
    return tuple(
        NetRecord(
            arch=str(archs[row]),
            id=archs[row].id,
            role="front",
            validation_accuracy=1 - errors[row],
            test_accuracy=None,
            predicted_ms=known[LATENCY][place],
            measured_p50_ms=None,
            measured_p90_ms=None,
            measured_n=None,
            unstable=None,
            params=round(known["params"][place]),
            macs=round(known["macs"][place]),
            estimated=guessed,
            objectives={name: values[place] for name, values in known.items()},
        )
        for place, row in enumerate(front)
    )
