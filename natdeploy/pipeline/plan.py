"""What a search will do: found out before it is done, and with nothing measured but the speed of training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from natdeploy.hardware.device import Target
from natdeploy.latency.predictor import quality_text
from natdeploy.pipeline.budget import Budget, make_budget
from natdeploy.pipeline.config import SearchConfig
from natdeploy.pipeline.gradient import gradient_lesson, make_chooser
from natdeploy.pipeline.predictor import Predictor, estimated, find_predictor, no_table
from natdeploy.pipeline.presets import Strategy
from natdeploy.pipeline.problem import LATENCY, Problem, first_lesson, make_problem, requirements
from natdeploy.pipeline.profile import DEFAULT_MINUTES, measure_table, tables_folder
from natdeploy.pipeline.setting import Setting, as_tabled, prepare
from natdeploy.progress import Progress, Silent
from natdeploy.search import show

STRATEGIES: Mapping[Strategy, str] = {
    "evolution": "evolution on a surrogate of the error (NAT)",
    "gradient": "one architecture by gradient (FNA)",
    "random": "architectures by chance",
}
"""In words."""


@dataclass(frozen=True)
class Plan:
    """What a search will do, shown before it is done.

    Attributes:
        config: what the user asked for.
        facts: line by line, name and text.
        reachable: (least, greatest) value of every cheap objective; empty before the target is profiled.
        budget: the work; None before the target is profiled.
        estimate: where latencies come from if they are an estimate; None where they were measured or learned from what was.
    """

    config: SearchConfig
    facts: Mapping[str, str]
    reachable: Mapping[str, tuple[float, float]]
    budget: Budget | None
    estimate: str | None = None

    def text(self) -> list[str]:
        """Lines for a person."""
        return [f"{name:12} {fact}" for name, fact in self.facts.items()]

    def to_json(self) -> dict[str, Any]:
        return {
            "config": self.config.model_dump(mode="json"),
            "facts": dict(self.facts),
            "reachable": {name: list(ends) for name, ends in self.reachable.items()},
            "budget": None if self.budget is None else self.budget.to_json(),
            "estimate": self.estimate,
        }


def plan(config: SearchConfig, progress: Progress | None = None) -> Plan:
    """What `search` would do. Nothing is measured but the speed of training, and no file is written.

    Raises:
        InfeasibleError: a constraint cannot be met.
        NatdeployError: anything else that `search` would refuse.
    """
    progress = progress or Silent()
    targets, _ = requirements(config)
    setting = prepare(config, progress)
    found = {name: find(config, name, setting, target, progress) for name, target in targets.items()}
    unknown = [str(targets[name]) for name, predictor in found.items() if predictor is None]
    if unknown:
        first = f"no table of this machine yet, it is profiled first (at most {DEFAULT_MINUTES:g} min)"
        facts = _facts(config, setting) | {
            "target": f"{', '.join(unknown)}: {first}",
            "reachable": "known once the target is profiled",
        }
        return Plan(config, facts, {}, None)
    predictors = {name: predictor for name, predictor in found.items() if predictor is not None}
    return make_plan(config, setting, make_problem(config, setting, predictors), predictors)


def _facts(config: SearchConfig, setting: Setting) -> dict[str, str]:
    parts = vars(setting.task.splits)
    images = ", ".join(f"{len(indices)} {name}" for name, indices in parts.items())
    return {
        "data": f"{config.data}: {len(setting.classes)} classes; images: {images}",
        "seed": f"{config.seed_weights}: {setting.report.summary()}",
        "input": setting.convention.evidence,
        "strategy": STRATEGIES[config.strategy],
        "space": f"{setting.space.name}, width {setting.seed.arch.width:g}: {setting.space.size:.2g} architectures",
    }


def make_plan(config: SearchConfig, setting: Setting, problem: Problem, predictors: Mapping[str, Predictor]) -> Plan:
    estimate = estimated(predictors[LATENCY])
    chooser = make_chooser(config, setting, problem, predictors) if config.strategy == "gradient" else None
    if chooser is None:
        lesson = first_lesson(setting, problem, uniform=config.nat.distribution == "uniform")
    else:
        lesson = gradient_lesson(setting, problem, chooser)
    budget = make_budget(config, setting, lesson, chooser)
    constraints = f"; {', '.join(config.constraints)} can be met" if config.constraints else ""
    facts = _facts(config, setting) | {
        "target": ", ".join(map(str, problem.targets.values())),
        "predictor": "; ".join(
            (f"{problem.targets[name]}: " if len(predictors) > 1 else "") + _worth(predictor)
            for name, predictor in predictors.items()
        ),
        "reachable": ", ".join(
            f"{problem.label(name)} {show(name, low)} to {show(name, high)}" for name, (low, high) in problem.reachable.items()
        )
        + constraints,
        "budget": str(budget),
    }
    if chooser is not None:
        facts["strategy"] += f" at {chooser.resolution} px; {chooser.asks()}"
    return Plan(config, facts, problem.reachable, budget, estimate)


def _worth(predictor: Predictor) -> str:
    """How good a predictor is, as far as anything tells."""
    if predictor.quality is not None:
        return quality_text(predictor.quality)
    return estimated(predictor) or "a sum of imported blocks; nothing tells how good it is"


def find(config: SearchConfig, name: str, setting: Setting, target: Target, progress: Progress) -> Predictor | None:
    """What there is to predict an objective with; None where this machine is still to be profiled. Another device is profiled on
    request only.

    Raises:
        DeviceError: of another device there is nothing; the message holds the command that profiles it.
    """
    space, own = as_tabled(setting.space, config), not name.startswith(f"{LATENCY}@")
    predictor = find_predictor(
        target,
        space,
        classes=len(setting.classes),
        tables=config.tables,
        table=config.table if name == LATENCY else None,
        allow_estimate=config.allow_estimate and own,
        progress=progress,
    )
    if predictor is None and target.device.transport != "local":
        raise no_table(
            config.target if own else name.removeprefix(f"{LATENCY}@"),
            target,
            config.space,
            space,
            len(setting.classes),
            tables=config.tables,
            seed_weights=config.seed_weights,
            own=own,
        )
    return predictor


def find_or_measure(config: SearchConfig, name: str, setting: Setting, target: Target, progress: Progress) -> Predictor:
    found = find(config, name, setting, target, progress)
    if found is not None:
        return found
    progress.note(f"no latency table of {target} for this space yet; measuring one, {DEFAULT_MINUTES:g} min at most")
    *_, measured = measure_table(
        tables_folder(config.tables),
        target,
        as_tabled(setting.space, config),
        classes=len(setting.classes),
        minutes=DEFAULT_MINUTES,
        seed=0,
        progress=progress,
    )
    return measured
