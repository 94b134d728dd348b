"""The last stretch of a search: a few nets are chosen, train alone, and are judged on test images, which nothing else touches."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from natdeploy.errors import NatdeployError
from natdeploy.pipeline.budget import FILES, TEST, TUNED, Budget, settled, spent_seconds
from natdeploy.pipeline.choice import stand_out, take_few, take_of_each
from natdeploy.pipeline.config import SearchConfig
from natdeploy.pipeline.evaluate import Evaluator, ranking_error, ranking_noise
from natdeploy.pipeline.problem import LATENCY, Problem
from natdeploy.pipeline.quantise import NATIVE, PrecisionLoss, judge_in_runtime
from natdeploy.pipeline.setting import Setting
from natdeploy.pipeline.train import Training
from natdeploy.search import Archive, Objectives
from natdeploy.search.archive import Indices
from natdeploy.space import Arch, Genotypes
from natdeploy.stopwatch import take, timed
from natdeploy.store import Evaluation, NetRecord
from natdeploy.supernet import Subnet
from natdeploy.tasks import Task
from natdeploy.training.adapt import Lesson
from natdeploy.training.judge import calibrated_subnet, judge

CHOOSING_SECONDS = "choosing_seconds"
"""Fact of a run: what it had spent when its nets were chosen, in seconds."""
STATISTICS = "statistics"
"""BatchNorm statistics of the final nets; their weights are slices of the supernet's."""


@dataclass(frozen=True)
class LastStretch:
    """What is left to do once the rounds are over. What the store holds already is not done again.

    Attributes:
        config: of the search.
        setting: images and supernet.
        problem: of the search.
        budget: of the search until now.
        training: of the supernet.
        evaluator: of networks by validation images.
        loss: what precisions cost; None where none are searched.
    """

    config: SearchConfig
    setting: Setting
    problem: Problem
    budget: Budget
    training: Training
    evaluator: Evaluator
    loss: PrecisionLoss | None

    def run(self, archive: Archive) -> None:
        """Trains the front's nets alone, on all images but the test ones, then judges them on those, only here.

        The front is chosen: validation and calibration images have done their work, and may be learned from as well. Nets that
        chance may have thrown off it stay.
        """
        chosen = self._halved(archive) if self.config.schedule.final_halvings else self._chosen(archive)
        if self.training.store.get(CHOOSING_SECONDS) is None:
            self.training.store.set(CHOOSING_SECONDS, spent_seconds(self.training.store))
        archs = archive.archs
        front = list(dict.fromkeys(archs[row] for row in chosen))
        by_error = list(dict.fromkeys(archs[row] for row in chosen[archive.values[chosen, 0].argsort(kind="stable")]))
        task = self.setting.final_task()
        records = [self._record("front", archive.genotypes[row], archive.objectives) for row in chosen]
        baseline = self._record("baseline", self.problem.space.encode(self.problem.baseline), archive.objectives)
        lesson = self._among(front, by_error[: math.ceil(self.config.schedule.final_leaders * len(front))], task)
        self.training.train("training the front", self._settled(lesson).total_steps, lesson)
        tuned = self._tune(records, by_error[0], task) if self.budget.tune_steps else {}
        self._judge([*records, baseline], tuned, task)
        self.training.store.set("finished", True)

    def _among(self, archs: Sequence[Arch], leaders: Sequence[Arch], task: Task) -> Lesson:
        """What a few networks learn together."""

        def sample(count: int, rng: np.random.Generator) -> list[Arch]:
            return [archs[index] for index in rng.integers(len(archs), size=count)]

        by_macs = sorted(archs, key=self.problem.macs)
        return Lesson(task, leaders, sample, largest=by_macs[-1], smallest=by_macs[0])

    def _halved(self, archive: Archive) -> Indices:
        """Rows of the nets that are left after halving: trained together for a while, the better half of them goes on.

        Successive halving (arXiv 1502.07943). What a network is worth after a little training says little about the end where
        inputs differ: small ones are learned first. Weights are shared, so what those learn that leave is not lost.
        """
        schedule, rounds = self.config.schedule, self.budget.nat.rounds
        rows: Indices = np.flatnonzero(archive.feasible)
        inputs = [archive.archs[row].resolution for row in rows]
        rows = rows[take_of_each(archive.values[rows], inputs, schedule.final_nets * 2**schedule.final_halvings)]
        for number in range(1, schedule.final_halvings + 1):
            archs = [archive.archs[row] for row in rows]
            lesson = self._among(archs, archs, self.setting.task)
            ahead_s = 0.0 if number > 1 else 2 * len(archs) * self.budget.evaluation_seconds
            stop = self._settled(lesson, ahead_s).halving_steps(number, schedule.final_halvings)
            self.training.train(f"training {len(archs)} nets before they are halved", stop, lesson)
            scores = self.evaluator(archs, rounds + number, True)
            known = np.isfinite(scores.errors)
            if not known.any():
                raise NatdeployError("none of the networks that were left could be evaluated; the log says why of each")
            rows = rows[known]
            archive.judged(rows, scores.errors[known])
            wanted = max(schedule.final_nets, len(archs) // 2)
            rows = rows[np.sort(take_few(archive.values[rows], scores.noise[known], self.config, wanted))]
            self._tell_halving(archs, [archive.archs[row] for row in rows])
        fastest_first: Indices = rows[archive.values[rows, 1].argsort(kind="stable")]
        return fastest_first

    def _tell_halving(self, archs: Sequence[Arch], left: Sequence[Arch]) -> None:
        metric = self.setting.task.metric_name
        shown = [
            f"{arch.resolution} px {100 * self._evaluation(arch).accuracy:.1f} %{'' if arch in left else ' (leaves)'}"
            for arch in sorted(archs, key=lambda arch: arch.resolution)
        ]
        self.training.progress.note(f"{len(left)} of {len(archs)} nets go on, validation {metric}: {', '.join(shown)}")

    def _chosen(self, archive: Archive) -> Indices:
        """Rows of the front, and those that chance may have thrown off it, fastest first, as many as share the last stretch.

        All of them are judged on all images and in their precision; to leave the others out, what a part of the images and the
        loss say is enough.
        """
        judged: set[int] = set()
        while True:
            noise = np.array(
                [
                    0.0 if failed else ranking_noise(self._evaluation(arch))
                    for arch, failed in zip(archive.archs, archive.failed, strict=True)
                ]
            )
            rows = archive.contenders(noise)
            count = self.config.schedule.final_nets
            chosen = rows[np.sort(take_few(archive.values[rows], noise[rows], self.config, count))]
            new = [row for row in chosen if row not in judged and self._provisional(archive.genotypes[row])]
            if not new:
                return chosen
            self.training.store.add_seconds(take())
            archive.judged(np.array(new), [ranking_error(each) for each in self._verdicts(archive.genotypes[new])])
            self.training.store.add_seconds({FILES: sum(take().values())})
            judged.update(new)

    def _provisional(self, genotype: Genotypes) -> bool:
        """Whether the archive's error of a network is of a part of the images, or goes by what its precision costs others."""
        space = self.problem.space
        return space.precision_of(genotype) not in (None, NATIVE) or not self._evaluation(space.decode(genotype)).whole

    def _verdicts(self, genotypes: Genotypes) -> list[Evaluation]:
        """The latest of networks (n, variables) on all images, each in its precision; files are of the last round's weights."""
        space = self.problem.space
        archs = space.decode_all(genotypes)
        found: dict[tuple[Arch, str | None], Evaluation] = {}
        for precision in dict.fromkeys(map(space.precision_of, genotypes)):
            own = [arch for arch, genotype in zip(archs, genotypes, strict=True) if space.precision_of(genotype) == precision]
            if precision is None or precision == NATIVE:
                partial = [arch for arch in own if not self._evaluation(arch).whole]
                self.evaluator(partial, self.budget.nat.rounds, True)
                verdicts = [self._evaluation(arch) for arch in own]
            else:
                assert self.loss is not None, "precisions are searched"
                verdicts = self.loss.verdicts(own, precision, self.budget.nat.rounds)
            found |= {(arch, precision): each for arch, each in zip(own, verdicts, strict=True)}
        return [found[arch, space.precision_of(genotype)] for arch, genotype in zip(archs, genotypes, strict=True)]

    def _settled(self, last: Lesson, ahead_s: float = 0.0) -> Budget:
        """The budget once it is decided what the minutes leave for the last stretch: once, and it is stored.

        Args:
            last: the lesson of it.
            ahead_s: of it, what will not be training.
        """
        before = Budget.from_json(self.training.store.get("budget"))
        budget = settled(before, self.config, self.setting, last, spent_seconds(self.training.store) + ahead_s)
        if budget != before:
            self.training.store.set("budget", budget.to_json())
            self.training.progress.note(
                f"{budget.final_steps} steps with the front alone instead of {before.final_steps}: so many fit"
            )
        self.training.adapter.trainer.total_steps = budget.total_steps
        return budget

    def _tune(self, records: Sequence[NetRecord], teacher: Arch, task: Task) -> dict[str, Subnet]:
        """The nets that stand out, each trained alone for a while, by the id of the architecture.

        Whether that paid is told, and decides nothing: test images are looked at once.
        """
        ids = list(dict.fromkeys(pick.id for pick in stand_out(records, self.config)))[:TUNED]
        wanted = dict.fromkeys(Arch.parse(record.arch) for record in records if record.id in ids)
        tuned = {arch.id: self.training.tune(arch, teacher, task, self.budget.tune_steps) for arch in wanted}
        return {name: subnet for name, subnet in tuned.items() if subnet is not None}

    def _judge(self, nets: Sequence[NetRecord], tuned: Mapping[str, Subnet], task: Task) -> None:
        """Judges the nets on the test images, and those that were tuned with their own weights as well."""
        self.training.store.add_seconds(take())
        statistics: dict[str, torch.Tensor] = {}
        with self.training.progress.task("judging on test images", len(nets), "nets") as advance, timed("judging: other"):
            for net in nets:
                arch = Arch.parse(net.arch)
                subnet = calibrated_subnet(self.training.averaged, arch, task)
                statistics |= {f"{arch.id}.{name}": value for name, value in subnet.named_buffers()}
                tested = replace(net, test_accuracy=self._test_accuracy(subnet, net, task))
                if net.role == "front" and arch.id in tuned:
                    tested = replace(tested, tuned_accuracy=self._test_accuracy(tuned[arch.id], net, task))
                self.training.store.put_net(tested)
                advance(1)
        self.training.store.save_checkpoint(STATISTICS, statistics, {})
        self.training.store.add_seconds({f"{TEST}: {part.removeprefix('judging: ')}": seconds for part, seconds in take().items()})

    def _test_accuracy(self, subnet: Subnet, net: NetRecord, task: Task) -> float:
        """In torch; of a net of another precision, as a file in its runtime."""
        if net.precision in (None, NATIVE):
            return judge(subnet, task, "test").metric
        assert self.loss is not None, "precisions are searched"
        return judge_in_runtime(subnet.cpu(), self.loss.targets[net.precision], task, "test").accuracy

    def _evaluation(self, arch: Arch) -> Evaluation:
        """The latest of an architecture."""
        evaluation = self.training.store.latest_evaluation(str(arch))
        if evaluation is None:
            why = self.training.store.failures()[str(arch)]
            raise NatdeployError(f"{arch.id} could not be evaluated ({why}), and the run needs it")
        return evaluation

    def _record(self, role: str, genotype: Genotypes, objectives: Objectives) -> NetRecord:
        arch, precision = self.problem.space.decode(genotype), self.problem.space.precision_of(genotype)
        predicted, now = (
            {name: float(known.cheap[name](genotype[None])[0]) for name in self.problem.reachable}
            for known in (self.problem.objectives, objectives)
        )
        return NetRecord(
            arch=str(arch),
            id=arch.id if precision in (None, NATIVE) else f"{arch.id}-{precision}",
            role=role,
            validation_accuracy=self._verdicts(genotype[None])[0].accuracy,
            test_accuracy=None,
            predicted_ms=predicted[LATENCY],
            measured_p50_ms=None,
            measured_p90_ms=None,
            measured_n=None,
            unstable=None,
            params=round(predicted["params"]),
            macs=round(predicted["macs"]),
            estimated=LATENCY in self.problem.estimated,
            objectives=now,
            precision=precision,
        )
