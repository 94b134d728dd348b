"""One search, from a configuration to a run folder. A broken one goes on by doing the same again, answered from the store."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from natdeploy._version import __version__
from natdeploy.distributed.engine import Engine, InProcess
from natdeploy.errors import DamagedFileError, UsageError
from natdeploy.hardware.device import Target, host_facts
from natdeploy.hardware.runtimes import get_runtime, installed_version
from natdeploy.invalid import faults
from natdeploy.latency.predictor import LatencyPredictor
from natdeploy.logs import log_to
from natdeploy.pipeline.budget import LOADING, PROFILING, Budget
from natdeploy.pipeline.config import SearchConfig
from natdeploy.pipeline.correct import FrontMeasurer
from natdeploy.pipeline.evaluate import Evaluator
from natdeploy.pipeline.gradient import RESTARTED, Rounds, gradient_lesson, make_chooser, remapped_anew
from natdeploy.pipeline.knowledge import read_knowledge, stored_knowledge
from natdeploy.pipeline.last_stretch import LastStretch
from natdeploy.pipeline.plan import find_or_measure, make_plan
from natdeploy.pipeline.predictor import Predictor, load_predictor, save_predictor
from natdeploy.pipeline.problem import LATENCY, Problem, first_archs, first_lesson, make_problem, requirements, within
from natdeploy.pipeline.quantise import PrecisionLoss
from natdeploy.pipeline.setting import Setting, prepare
from natdeploy.pipeline.train import Training
from natdeploy.progress import Progress, Silent
from natdeploy.search import Archive, Distribution, Objectives, RoundReport
from natdeploy.search import search as nat_search
from natdeploy.space import Arch, get_space, space_toml
from natdeploy.stopwatch import take
from natdeploy.store import RunStore
from natdeploy.supernet import Subnet
from natdeploy.training.adapt import Adapter, Lesson
from natdeploy.training.gradient import Chooser
from natdeploy.training.judge import calibrated_subnet
from natdeploy.training.loop import TrainSettings

LOG = "log.txt"


def search(config: SearchConfig, progress: Progress | None = None, engine: Engine | None = None) -> Path:
    """Searches, or goes on if `config.out` holds this very search.

    Args:
        config: what the user asks for.
        progress: is told about the work.
        engine: trains and judges; this process by default.

    Returns:
        The run folder.

    Raises:
        UsageError: the folder holds another search, or the request makes no sense.
        InfeasibleError: a constraint cannot be met; nothing has been trained.
        NatdeployError: anything else a user can mend.
    """
    progress = progress or Silent()
    engine = engine or InProcess()
    config = _sharded(config, engine, progress)
    targets, _ = requirements(config)
    if (config.out / "run.sqlite").exists():
        return _continue(config.out, progress, engine, config)
    start = time.perf_counter()
    setting = prepare(config, progress)
    knowledge = read_knowledge(config, setting.space)
    data_s, start = time.perf_counter() - start, time.perf_counter()
    predictors = {name: find_or_measure(config, name, setting, target, progress) for name, target in targets.items()}
    profiling_s = time.perf_counter() - start
    problem = make_problem(config, setting, predictors)
    made = make_plan(config, setting, problem, predictors)
    for line in made.text():
        progress.note(line)
    assert made.budget is not None
    config.out.mkdir(parents=True, exist_ok=True)
    for name, predictor in predictors.items():
        save_predictor(predictor, config.out, name.removeprefix(LATENCY))
    quality = predictors[LATENCY].quality
    facts = {
        **setting.facts(),
        "space": space_toml(get_space(config.space)),
        "searched_space": space_toml(setting.space),
        "command": sys.argv,
        "version": __version__,
        "plan": dict(made.facts),
        "budget": made.budget.to_json(),
        "environment": _environment(),
        "quality": quality and asdict(quality),
        "estimate": made.estimate,
        "knowledge": [[genotypes.tolist(), errors.tolist()] for genotypes, errors in knowledge],
    }
    with RunStore.create(config.out, config.model_dump(mode="json"), facts) as store, log_to(config.out / LOG):
        store.add_seconds({LOADING: data_s, PROFILING: profiling_s})
        _start(config, setting, problem, predictors, made.budget, store=store, progress=progress, engine=engine)
    return config.out


def _sharded(config: SearchConfig, engine: Engine, progress: Progress) -> SearchConfig:
    """With a shard of every batch for each of the engine's workers, unless shards were asked for."""
    train = config.adapt.train
    if engine.workers == 1 or "shards" in train.model_fields_set:
        return config
    progress.note(
        f"every batch is cut into {engine.workers} shards, one for each worker; BatchNorm normalises each alone, so results are "
        f"those of `[adapt.train]` with `shards = {engine.workers}`"
    )
    sharded = TrainSettings(**{**train.model_dump(exclude_unset=True), "shards": engine.workers})
    return config.model_copy(update={"adapt": config.adapt.model_copy(update={"train": sharded})})


def resume(folder: Path, progress: Progress | None = None, engine: Engine | None = None) -> Path:
    """Goes on with a search that was interrupted; one that is finished stays as it is.

    Args:
        folder: of the run.
        progress: is told about the work.
        engine: trains and judges; this process by default, whichever the run began with.

    Raises:
        UsageError: there is no run in the folder.
        DamagedFileError: a file of the run does not hold what it should.
        DataError: the images are not those the run began with.
    """
    return _continue(folder, progress or Silent(), engine or InProcess(), None)


def _continue(folder: Path, progress: Progress, engine: Engine, expected: SearchConfig | None) -> Path:
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
        targets, _ = requirements(config)
        predictors = {name: load_predictor(folder, name.removeprefix(LATENCY)) for name in targets}
        for name, target in targets.items():
            _warn_of_changes(predictors[name], target, progress)
        problem = make_problem(config, setting, predictors)
        budget = Budget.from_json(store.get("budget"))
        _start(config, setting, problem, predictors, budget, store=store, progress=progress, engine=engine)
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
            f"the configuration of {store.folder} is not one of natdeploy {__version__} ({faults(error)[0].reason}); "
            "start a new run"
        ) from error


def _environment() -> dict[str, Any]:
    return {**host_facts(), "natdeploy": __version__, "torch": torch.__version__}


def _start(
    config: SearchConfig,
    setting: Setting,
    problem: Problem,
    predictors: Mapping[str, Predictor],
    budget: Budget,
    *,
    store: RunStore,
    progress: Progress,
    engine: Engine,
) -> None:
    adapter = Adapter(setting.supernet, config.adapt, total_steps=budget.total_steps, seed=config.seed)
    start, stop = budget.steps(0), budget.steps(budget.nat.rounds)
    chooser = None
    if config.strategy == "gradient":
        chooser = make_chooser(config, setting, problem, predictors, start=start, stop=stop, workers=engine.workers)
    training = Training(adapter, budget.checkpoint_steps, engine, store, progress, chooser)
    _Search(config, setting, problem, budget, training).run()


@dataclass(frozen=True)
class _Search:
    """A search under way. What the store holds already is not done again."""

    config: SearchConfig
    setting: Setting
    problem: Problem
    budget: Budget
    training: Training

    @property
    def store(self) -> RunStore:
        return self.training.store

    @property
    def progress(self) -> Progress:
        return self.training.progress

    def run(self) -> None:
        take()  # of what this process did before
        self.training.restore()
        self.training.train("warm-up", self.budget.steps(0), self._lesson())
        archive = self._evolve() if self.training.chooser is None else self._descend(self.training.chooser)
        loss = self._loss if self.problem.space.precisions else None
        LastStretch(self.config, self.setting, self.problem, self.budget, self.training, self._evaluator, loss).run(archive)

    def _evolve(self) -> Archive:
        first = first_archs(self.setting, self.problem, self.budget.nat.initial, self.config.seed)
        return nat_search(
            self.problem.space,
            self._with_loss(self.problem.objectives, first, 0),
            self.problem.constraints,
            evaluate=self._evaluator,
            adapt=self._adapt,
            settings=self.budget.nat,
            seed=self.config.seed,
            include=first,
            correct=self._correct,
            knowledge=stored_knowledge(self.store),
            on_round=self._tell,
        )

    def _descend(self, chooser: Chooser) -> Archive:
        rounds = Rounds(self.problem, self.setting.space, chooser, self._evaluator, self.store, self.progress.note)
        for version in range(self.budget.nat.rounds + 1):
            self.training.train(f"choosing, round {version}", self.budget.steps(version), self._lesson())
            archive, report = rounds.look(version)
            self._tell(report)
        if self.config.gradient.weights == "seed" and not self.store.get(RESTARTED):
            self.training.restart(remapped_anew(self.setting, self.config))
            self.store.set(RESTARTED, True)
        return archive

    @cached_property
    def _evaluator(self) -> Evaluator:
        return Evaluator(self.store, self.training.engine, self.training.averaged, self.setting.task, self.progress)

    @cached_property
    def _loss(self) -> PrecisionLoss:
        targets = {target.precision: target for target in self.problem.targets.values()}
        return PrecisionLoss(
            self.problem.space, targets, self._network, self._evaluator, self.setting.task, self.store, self.progress
        )

    def _with_loss(self, objectives: Objectives, archs: Sequence[Arch], version: int) -> Objectives:
        """Objectives with what precisions cost some of the architectures with the weights of a version."""
        if not self.problem.space.precisions:
            return objectives
        return replace(objectives, loss=self._loss.learn(sorted(set(archs), key=self.problem.macs), version))

    def _correct(self, archive: Archive, number: int) -> Objectives | None:
        """The objectives once the front is measured on the target and, where precisions are searched, judged in them."""
        measurer = FrontMeasurer(
            self.problem, self.setting.space, self._extract, self.config.seed, store=self.store, progress=self.progress
        )
        corrected = measurer(archive, number)
        if not self.problem.space.precisions:
            return corrected
        front = [archive.archs[row] for row in archive.front()]
        return self._with_loss(corrected or archive.objectives, front, number)

    def _lesson(self) -> Lesson:
        if self.training.chooser is not None:
            return gradient_lesson(self.setting, self.problem, self.training.chooser)
        return first_lesson(self.setting, self.problem, uniform=self.budget.nat.distribution == "uniform")

    def _extract(self, arch: Arch) -> Subnet:
        return self.training.averaged.extract(arch).cpu().eval()

    def _network(self, arch: Arch) -> Subnet:
        return calibrated_subnet(self.training.averaged, arch, self.setting.task).cpu().eval()

    def _adapt(self, distribution: Distribution, version: int) -> None:
        sampler = within(self.problem, self.setting.space, distribution.sample)
        lesson = replace(self._lesson(), sampler=sampler)
        self.training.train(f"adapting, round {version}", self.budget.steps(version), lesson)

    def _tell(self, report: RoundReport) -> None:
        # A replayed search finds evaluations in the store that are of later rounds.
        before = (each["new"] for each in self.store.rounds() if each["round"] < report.round)
        known = {*report.new, *chain.from_iterable(before)}
        evaluations = [each for each in self.store.evaluations(report.round) if Arch.parse(each.arch).id in known]
        best_error = min((1 - each.accuracy for each in evaluations if each.whole), default=report.best_error)
        changed = {"new": list(report.new), "reference": list(report.reference), "best_error": best_error}
        self.store.add_round(asdict(report) | changed)
        surrogate = ""
        if report.surrogate is not None and report.surrogate.new_tau is not None:
            surrogate = f"; surrogate {report.surrogate.name}, tau {report.surrogate.new_tau:.2f} on new nets"
        failed = f"; {report.failed} could not be evaluated" if report.failed else ""
        self.progress.note(
            f"round {report.round}: {report.evaluated} nets, front of {report.front_size}, least validation error "
            f"{100 * best_error:.1f} %, hypervolume {report.hypervolume:.3f}{surrogate}{failed}"
        )
        if report.left:
            self.progress.note(f"left the front once it was measured: {', '.join(report.left)}")
