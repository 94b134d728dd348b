"""One search, from a configuration to a run folder. A broken one goes on by doing the same again, answered from the store."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError

from natdeploy._version import __version__
from natdeploy.errors import DamagedFileError, UsageError
from natdeploy.hardware.device import Target, host_facts
from natdeploy.hardware.runtimes import get_runtime, installed_version
from natdeploy.latency.predictor import LatencyPredictor, quality_text
from natdeploy.logs import log_to
from natdeploy.pipeline.budget import Budget, make_budget
from natdeploy.pipeline.config import SearchConfig, target_of
from natdeploy.pipeline.evaluate import Evaluator, ranking_noise
from natdeploy.pipeline.predictor import Predictor, estimated, find_predictor, load_predictor, no_table, save_predictor
from natdeploy.pipeline.problem import Problem, first_archs, first_lesson, make_problem, requirements, within
from natdeploy.pipeline.profile import DEFAULT_MINUTES, measure_table, tables_folder
from natdeploy.pipeline.setting import Setting, prepare
from natdeploy.progress import Progress, Silent
from natdeploy.search import Archive, Distribution, RoundReport, show
from natdeploy.search import search as nat_search
from natdeploy.space import Arch, get_space, space_toml
from natdeploy.store import Evaluation, NetRecord, RunStore
from natdeploy.supernet import Supernet
from natdeploy.training.adapt import Adapter, Lesson
from natdeploy.training.judge import calibrated_subnet, judge

CHECKPOINT = "supernet"
CHECKPOINT_SECONDS = 60.0
"""A killed run repeats at most this much training."""
LOG = "log.txt"
MOST_FINAL = 24
"""Nets that are trained to the end; more would each get too little."""
STATISTICS = "statistics"
"""BatchNorm statistics of the final nets; their weights are slices of the supernet's."""


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
    target, _ = requirements(config)
    setting = prepare(config, progress)
    predictor = _find(config, setting, target, progress)
    if predictor is None:
        facts = _facts(config, setting) | {
            "target": f"{target}: no table of this machine yet, it is profiled first (at most {DEFAULT_MINUTES:g} min)",
            "reachable": "known once the target is profiled",
        }
        return Plan(config, facts, {}, None)
    return _plan(config, setting, make_problem(config, setting, predictor), predictor)


def search(config: SearchConfig, progress: Progress | None = None) -> Path:
    """Searches, or goes on if `config.out` holds this very search.

    Returns:
        The run folder.

    Raises:
        UsageError: the folder holds another search, or the request makes no sense.
        InfeasibleError: a constraint cannot be met; nothing has been trained.
        NatdeployError: anything else a user can mend.
    """
    progress = progress or Silent()
    target, _ = requirements(config)
    if (config.out / "run.sqlite").exists():
        return _continue(config.out, progress, config)
    setting = prepare(config, progress)
    start = time.perf_counter()
    predictor = _predictor(config, setting, target, progress)
    profiling_s = time.perf_counter() - start
    problem = make_problem(config, setting, predictor)
    made = _plan(config, setting, problem, predictor)
    for line in made.text():
        progress.note(line)
    assert made.budget is not None
    config.out.mkdir(parents=True, exist_ok=True)
    save_predictor(predictor, config.out)
    facts = {
        **setting.facts(),
        "space": space_toml(get_space(config.space)),
        "command": sys.argv,
        "version": __version__,
        "plan": dict(made.facts),
        "budget": made.budget.to_json(),
        "environment": _environment(),
        "quality": predictor.quality and asdict(predictor.quality),
        "estimate": estimated(predictor),
    }
    with RunStore.create(config.out, config.model_dump(mode="json"), facts) as store, log_to(config.out / LOG):
        store.add_seconds("profiling", profiling_s)
        _start(config, setting, problem, made.budget, store=store, progress=progress)
    return config.out


def resume(folder: Path, progress: Progress | None = None) -> Path:
    """Goes on with a search that was interrupted; one that is finished stays as it is.

    Raises:
        UsageError: there is no run in the folder.
        DamagedFileError: a file of the run does not hold what it should.
        DataError: the images are not those the run began with.
    """
    return _continue(folder, progress or Silent(), None)


def _continue(folder: Path, progress: Progress, expected: SearchConfig | None) -> Path:
    with RunStore.open(folder) as store, log_to(folder / LOG):
        config = read_config(store)
        if expected is not None and expected != config:
            changed = [name for name, value in expected if getattr(config, name) != value]
            raise UsageError(
                f"{folder} holds another search ({', '.join(changed)} differ); give another --out, or go on with "
                f"`natdeploy resume {folder}`"
            )
        if store.get("finished"):
            progress.note(f"{folder} is finished")
            return folder
        setting = prepare(config, progress, store)
        predictor = load_predictor(folder)
        _warn_of_changes(predictor, target_of(config), progress)
        problem = make_problem(config, setting, predictor)
        _start(config, setting, problem, Budget.from_json(store.get("budget")), store=store, progress=progress)
    return folder


def _warn_of_changes(predictor: Predictor, target: Target, progress: Progress) -> None:
    """Where the runtime of this machine is not the one any more that the predictor learned from. Other devices are not asked."""
    if not isinstance(predictor, LatencyPredictor) or target.device.transport != "local":
        return
    now = predictor.made_for.model_copy(update={"runtime_version": installed_version(get_runtime(target.runtime))})
    if changes := predictor.made_for.differences(now):
        progress.note(
            f"latencies of this run are predicted for another {target.runtime} ({'; '.join(changes)}): they may be off; install "
            f"that version again, or profile this one and start a new run"
        )


def read_config(store: RunStore) -> SearchConfig:
    """The configuration a run was made with.

    Raises:
        DamagedFileError: it is not one of this version.
    """
    try:
        return SearchConfig.model_validate(store.config)
    except ValidationError as error:
        raise DamagedFileError(
            f"the configuration of {store.folder} is not one of natdeploy {__version__} ({error.errors()[0]['msg']}); "
            "start a new run"
        ) from error


def _find(config: SearchConfig, setting: Setting, target: Target, progress: Progress) -> Predictor | None:
    """What there is to predict with; None where this machine is still to be profiled. Another device is profiled on request only.

    Raises:
        DeviceError: of another device there is nothing; the message holds the command that profiles it.
    """
    predictor = find_predictor(
        target,
        setting.space,
        tables=config.tables,
        table=config.table,
        allow_estimate=config.allow_estimate,
        progress=progress,
    )
    if predictor is None and target.device.transport != "local":
        raise no_table(
            config.target,
            target,
            config.space,
            setting.space,
            len(setting.classes),
            tables=config.tables,
            seed_weights=config.seed_weights,
        )
    return predictor


def _predictor(config: SearchConfig, setting: Setting, target: Target, progress: Progress) -> Predictor:
    found = _find(config, setting, target, progress)
    if found is not None:
        return found
    progress.note(f"no latency table of {target} for this space yet; measuring one, {DEFAULT_MINUTES:g} min at most")
    *_, measured = measure_table(
        tables_folder(config.tables),
        target,
        setting.space,
        classes=len(setting.classes),
        minutes=DEFAULT_MINUTES,
        seed=0,
        progress=progress,
    )
    return measured


def _facts(config: SearchConfig, setting: Setting) -> dict[str, str]:
    parts = vars(setting.task.splits)
    images = ", ".join(f"{len(indices)} {name}" for name, indices in parts.items())
    return {
        "data": f"{config.data}: {len(setting.classes)} classes; images: {images}",
        "seed": f"{config.seed_weights}: {setting.report.summary()}",
        "input": setting.convention.evidence,
        "space": f"{setting.space.name}, width {setting.seed.arch.width:g}: {setting.space.size:.2g} architectures",
    }


def _plan(config: SearchConfig, setting: Setting, problem: Problem, predictor: Predictor) -> Plan:
    quality, estimate = predictor.quality, estimated(predictor)
    unknown = estimate or "a sum of imported blocks; nothing tells how good it is"
    budget = make_budget(config, setting, first_lesson(setting, problem))
    constraints = f"; {', '.join(config.constraints)} can be met" if config.constraints else ""
    facts = _facts(config, setting) | {
        "target": str(problem.target),
        "predictor": quality_text(quality) if quality else unknown,
        "reachable": ", ".join(
            f"{problem.label(name)} {show(name, low)} to {show(name, high)}" for name, (low, high) in problem.reachable.items()
        )
        + constraints,
        "budget": str(budget),
    }
    return Plan(config, facts, problem.reachable, budget, estimate)


def _environment() -> dict[str, Any]:
    return {**host_facts(), "natdeploy": __version__, "torch": torch.__version__}


def _start(
    config: SearchConfig, setting: Setting, problem: Problem, budget: Budget, *, store: RunStore, progress: Progress
) -> None:
    adapter = Adapter(setting.supernet, config.adapt, total_steps=budget.total_steps, seed=config.seed)
    _Search(setting, problem, budget, adapter, store, progress).run(config.seed)


@dataclass(frozen=True)
class _Search:
    """A search under way. What the store holds already is not done again."""

    setting: Setting
    problem: Problem
    budget: Budget
    adapter: Adapter
    store: RunStore
    progress: Progress

    @property
    def averaged(self) -> Supernet:
        """The supernet with averaged weights, which is what is judged."""
        average = self.adapter.trainer.average
        assert isinstance(average, Supernet)
        return average

    def run(self, seed: int) -> None:
        if (saved := self.store.load_checkpoint(CHECKPOINT)) is not None:
            tensors, info = saved
            self.adapter.trainer.load_tensors(tensors, info["step"])
        self._train("warm-up", self.budget.steps(0), first_lesson(self.setting, self.problem))
        before, start = self._worked(), time.perf_counter()
        archive = nat_search(
            self.setting.space,
            self.problem.objectives,
            self.problem.constraints,
            evaluate=Evaluator(self.store, self.averaged, self.setting.task, self.progress),
            adapt=self._adapt,
            settings=self.budget.nat,
            seed=seed,
            include=first_archs(self.setting, self.problem, self.budget.nat.initial, seed),
            on_round=self._tell,
        )
        self.store.add_seconds("search", time.perf_counter() - start - (self._worked() - before))
        self._finish(archive)

    def _worked(self) -> float:
        seconds = self.store.seconds()
        return seconds.get("evaluation", 0.0) + seconds.get("training", 0.0)

    def _adapt(self, distribution: Distribution, version: int) -> None:
        sampler = within(self.problem, self.setting.space, distribution.sample)
        lesson = replace(first_lesson(self.setting, self.problem), sampler=sampler)
        self._train(f"adapting, round {version}", self.budget.steps(version), lesson)

    def _train(self, stage: str, stop: int, lesson: Lesson) -> None:
        """Trains up to `stop` steps, shows and times them, and saves the state now and then and at the end."""
        trainer = self.adapter.trainer
        if trainer.step >= stop:
            return
        with self.progress.task(stage, stop - trainer.step, "steps") as advance:
            last = time.perf_counter()

            def after_step() -> None:
                nonlocal last
                advance(1)
                if trainer.step == stop or time.perf_counter() - last > CHECKPOINT_SECONDS:
                    self.store.save_checkpoint(CHECKPOINT, trainer.tensors(), {"step": trainer.step})
                    self.store.add_seconds("training", time.perf_counter() - last)
                    last = time.perf_counter()

            self.adapter.run(stop, lesson, after_step)

    def _tell(self, report: RoundReport) -> None:
        # A replayed search finds evaluations in the store that are of later rounds.
        before = (each["new"] for each in self.store.rounds() if each["round"] < report.round)
        known = {*report.new, *chain.from_iterable(before)}
        evaluations = [each for each in self.store.evaluations(report.round) if Arch.parse(each.arch).id in known]
        best_error = min(1 - evaluation.accuracy for evaluation in evaluations)
        changed = {"new": list(report.new), "reference": list(report.reference), "best_error": best_error}
        self.store.add_round(asdict(report) | changed)
        surrogate = ""
        if report.surrogate is not None and report.surrogate.new_tau is not None:
            surrogate = f"; surrogate {report.surrogate.name}, tau {report.surrogate.new_tau:.2f} on new nets"
        self.progress.note(
            f"round {report.round}: {report.evaluated} nets, front of {report.front_size}, least validation error "
            f"{100 * best_error:.1f} %, hypervolume {report.hypervolume:.3f}{surrogate}"
        )

    def _finish(self, archive: Archive) -> None:
        """Trains the front's nets alone, on all images but the test ones, then judges them on those, only here.

        The front is chosen: validation and calibration images have done their work, and may be learned from as well. Nets that
        chance may have thrown off it stay.
        """
        noise = [ranking_noise(self._evaluation(arch)) for arch in archive.archs]
        chosen = archive.contenders(noise, MOST_FINAL)
        front = [archive.archs[index] for index in chosen]
        by_error = [front[index] for index in archive.values[chosen, 0].argsort(kind="stable")]
        task = self.setting.final_task()

        def sample(count: int, rng: np.random.Generator) -> list[Arch]:
            return [front[index] for index in rng.integers(len(front), size=count)]

        self._train("training the front", self.budget.total_steps, Lesson(task, by_error[: -(-len(front) // 2)], sample))
        start = time.perf_counter()
        nets = [("front", arch) for arch in front] + [("baseline", self.problem.baseline)]
        statistics: dict[str, torch.Tensor] = {}
        with self.progress.task("judging on test images", len(nets), "nets") as advance:
            for role, arch in nets:
                subnet = calibrated_subnet(self.averaged, arch, task)
                self.store.put_net(self._record(role, arch, judge(subnet, task, "test").accuracy))
                statistics |= {f"{arch.id}.{name}": value for name, value in subnet.named_buffers()}
                advance(1)
        self.store.save_checkpoint(STATISTICS, statistics, {})
        self.store.add_seconds("test", time.perf_counter() - start)
        self.store.set("finished", True)

    def _evaluation(self, arch: Arch) -> Evaluation:
        evaluation = self.store.evaluation(self.budget.nat.rounds, str(arch))
        assert evaluation is not None, "the last round evaluates the whole archive"
        return evaluation

    def _record(self, role: str, arch: Arch, test_accuracy: float) -> NetRecord:
        evaluation = self._evaluation(arch)
        genotype = self.setting.space.encode(arch)[None]
        cheap = {name: float(function(genotype)[0]) for name, function in self.problem.objectives.cheap.items()}
        return NetRecord(
            arch=str(arch),
            id=arch.id,
            role=role,
            validation_accuracy=evaluation.accuracy,
            test_accuracy=test_accuracy,
            predicted_ms=cheap["latency"],
            measured_p50_ms=None,
            measured_p90_ms=None,
            measured_n=None,
            unstable=None,
            params=round(cheap["params"]),
            macs=round(cheap["macs"]),
            runtime_accuracy=None,
            parity=None,
            files=(),
            estimated=self.problem.estimated,
        )
