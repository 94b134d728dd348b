"""Supernet adaptation (NAT, arXiv 2005.05859, section on supernet adaptation): every step trains a few weight-sharing subnets.

A schedule has phases: the classifier alone, the largest net, sampled nets, and then the scheme of the settings. Who is trained
comes from a lesson: leaders, architectures known to be good; a sampler of others; and the ends of the space for the sandwich rule
(US-Nets, arXiv 1903.05134; BigNAS, arXiv 2003.11142). What they learn from is the labels and, if that is set, a teacher's answer to
the same crop. docs/training.md tells every setting's default, published value and reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from natdeploy.space import Arch
from natdeploy.supernet import Subnet, Supernet, calibrate
from natdeploy.tasks import Task
from natdeploy.training.batches import StepBatches
from natdeploy.training.group import ShardGroup
from natdeploy.training.loop import Trainer, TrainSettings, freeze_features

ArchSampler = Callable[[int, np.random.Generator], Sequence[Arch]]

Phase = Literal["head", "largest", "wide", "rounds"]

_TEACHER = "teacher."
"""Before the names of the averaged teacher's tensors."""
_GENOTYPE = f"{_TEACHER}genotype"


@dataclass(frozen=True)
class Lesson:
    """What is learned in a stretch of steps.

    Attributes:
        task: gives batches and the loss.
        leaders: one of them is drawn for a step that does not train a sampled architecture.
        sampler: draws the others, and students.
        largest: of the architectures worth training; first of a sandwich, and the averaged teacher.
        smallest: of them; second of a sandwich.
    """

    task: Task
    leaders: Sequence[Arch]
    sampler: ArchSampler
    largest: Arch
    smallest: Arch


class AdaptSettings(BaseModel):
    """How a supernet is adapted. Published values and reasons: docs/training.md.

    Attributes:
        train: how weights move.
        head_share: share of all steps in which only the classifier learns, so that a random one does not spoil the features.
        largest_share: share of all steps, after those, in which only the largest architecture learns.
        wide_share: share of all steps, after those, in which sampled architectures take the leaders' place.
        scheme: what a step trains. `single`: a leader or a sampled architecture, and students; `sandwich`: the largest, the
            smallest, and students.
        sampled_share: share of `single`'s steps that train a sampled architecture instead of a leader.
        students: further architectures of a step, sampled.
        student_weight: of the loss of every architecture of a step but the first, which weighs 1.
        resolution: `own`: every architecture sees the step's crops at its own resolution; `shared`: at that of one of them, drawn.
        teacher: whose answer to the same crop is learned from. `none`; `inplace`: that of the step's first architecture, as it is
            being trained, to all others of the step; `average`: that of a copy of the largest with averaged weights and BatchNorm
            statistics of its own, at its own resolution, to all architectures but the largest.
        teacher_weight: of the cross-entropy against the teacher's answer.
        label_weight: of the task's loss, where there is a teacher's answer as well.
        temperature: the logits of teacher and student are divided by it.
        teacher_every: steps after which the averaged teacher is copied anew.
        teacher_images: augmented training images by which its statistics are taken; the labels are not used.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    train: TrainSettings = TrainSettings()
    head_share: float = Field(default=0.08, ge=0, le=1)
    largest_share: float = Field(default=0.0, ge=0, le=1)
    wide_share: float = Field(default=0.0, ge=0, le=1)
    scheme: Literal["single", "sandwich"] = "single"
    sampled_share: float = Field(default=0.3, ge=0, le=1)
    students: int = Field(default=0, ge=0)
    student_weight: float = Field(default=0.5, gt=0)
    resolution: Literal["own", "shared"] = "own"
    teacher: Literal["none", "inplace", "average"] = "none"
    teacher_weight: float = Field(default=1.0, ge=0)
    label_weight: float = Field(default=1.0, ge=0)
    temperature: float = Field(default=1.0, gt=0)
    teacher_every: int = Field(default=50, ge=1)
    teacher_images: int = Field(default=256, ge=1)

    @property
    def first_share(self) -> float:
        """Share of all steps in the phases before the rounds."""
        return self.head_share + self.largest_share + self.wide_share

    @model_validator(mode="after")
    def _makes_sense(self) -> AdaptSettings:
        if self.first_share > 1:
            raise ValueError("head_share, largest_share and wide_share add up to more than 1; lower one of them")
        if self.teacher == "inplace" and self.scheme == "single" and not self.students:
            raise ValueError(
                'teacher = "inplace" has nobody to teach in a step of one architecture; set students, or scheme = "sandwich"'
            )
        return self


class Adapter:
    """Trains a supernet, in lessons.

    Args:
        supernet: trained in place; `trainer.average` holds what is evaluated.
        settings: how.
        total_steps: length of the whole schedule, its first phases included.
        seed: of the architectures that are drawn.
        group: processes that share each step's shards; all of them draw the same architectures.
    """

    def __init__(
        self, supernet: Supernet, settings: AdaptSettings, *, total_steps: int, seed: int, group: ShardGroup | None = None
    ) -> None:
        self.settings = settings
        self.trainer = Trainer(supernet, settings.train, total_steps, group)
        self._supernet = supernet
        self.seed = seed
        self._batches = StepBatches(settings.train.batch_size, next(supernet.parameters()).device)
        self._teacher: Subnet | None = None
        self._copied_at = -1

    def run(self, stop: int, lesson: Lesson, after_step: Callable[[], None]) -> None:
        """Adapts until `stop` steps are done.

        Raises:
            DivergedError: a loss or a gradient is not finite; `load_tensors` goes back to an earlier state.
        """
        self.trainer.run(stop, lambda step, rows: self._losses(step, rows, lesson), after_step)

    def phase(self, step: int) -> Phase:
        """Where in the schedule a step lies."""
        share, total = 0.0, self.trainer.total_steps
        settings = self.settings
        phases: tuple[tuple[Phase, float], ...] = (
            ("head", settings.head_share),
            ("largest", settings.largest_share),
            ("wide", settings.wide_share),
        )
        for name, part in phases:
            share += part
            if step < round(share * total):
                return name
        return "rounds"

    def archs(self, step: int, lesson: Lesson) -> list[Arch]:
        """What a step trains, first the one whose loss weighs 1: a function of the seed, the step and the lesson alone."""
        settings, phase = self.settings, self.phase(step)
        if phase == "largest":
            return [lesson.largest]
        rng = np.random.default_rng([self.seed, step])
        first = lesson.leaders[int(rng.integers(len(lesson.leaders)))]
        if phase == "head":
            return [first]
        if settings.scheme == "sandwich":
            archs = [lesson.largest, lesson.smallest]
        elif rng.random() < settings.sampled_share or phase == "wide":
            archs = [*lesson.sampler(1, rng)]
        else:
            archs = [first]
        if settings.students:
            archs += lesson.sampler(settings.students, rng)
        if settings.resolution == "shared":
            shared = archs[int(rng.integers(len(archs)))].resolution
            archs = [replace(arch, resolution=shared) for arch in archs]
        return archs

    def _losses(self, step: int, rows: slice, lesson: Lesson) -> Iterator[Tensor]:
        settings, phase = self.settings, self.phase(step)
        freeze_features(self._supernet, phase == "head")
        answer: Tensor | None = None
        if settings.teacher == "average" and phase in ("wide", "rounds"):
            answer = self._answer(step, rows, lesson)
        for place, arch in enumerate(self.archs(step, lesson)):
            images, targets = self._batches.get(lesson.task, step, arch.resolution, rows)
            logits = self._supernet(images, arch)
            loss = lesson.task.loss(logits, targets)
            # The largest net has nobody above it, at whatever resolution.
            taught = place > 0 if settings.teacher == "inplace" else arch.stages != lesson.largest.stages
            if answer is not None and taught:
                learned = lesson.task.distillation(logits, answer, settings.temperature)
                loss = settings.label_weight * loss + settings.teacher_weight * learned
            if settings.teacher == "inplace" and place == 0:
                answer = logits.detach()
            yield loss if place == 0 else settings.student_weight * loss

    def _answer(self, step: int, rows: slice, lesson: Lesson) -> Tensor:
        """Logits of the averaged teacher on the step's crops."""
        due = step % self.settings.teacher_every == 0 and step != self._copied_at  # every shard of the step asks
        if self._teacher is None or self._teacher.arch != lesson.largest or due:
            self._teacher, self._copied_at = self._copy(step, lesson), step
        images, _ = self._batches.get(lesson.task, step, lesson.largest.resolution, rows)
        with torch.no_grad():
            answer: Tensor = self._teacher(images)
        return answer

    def _copy(self, step: int, lesson: Lesson) -> Subnet:
        """The largest architecture with the averaged weights of now, and statistics of the crops that it will see."""
        batch, resolution = self.settings.train.batch_size, lesson.largest.resolution
        device = next(self._supernet.parameters()).device
        teacher = self._extract(lesson.largest)
        steps = range(step, step + -(-self.settings.teacher_images // batch))
        calibrate(teacher, (lesson.task.train_batch(each, resolution, batch)[0].to(device) for each in steps))
        return teacher

    def _extract(self, arch: Arch) -> Subnet:
        average = self.trainer.average
        assert isinstance(average, Supernet)
        return average.extract(arch).to(memory_format=torch.channels_last).requires_grad_(False)

    def tensors(self) -> dict[str, Tensor]:
        """Everything a later process needs to go on: the trainer's tensors and, where there is one, the teacher's."""
        tensors = self.trainer.tensors()
        if self._teacher is not None:
            tensors[_GENOTYPE] = torch.from_numpy(self._supernet.space.encode(self._teacher.arch))
            tensors |= {f"{_TEACHER}{name}": value.contiguous() for name, value in self._teacher.state_dict().items()}
        return tensors

    def facts(self) -> dict[str, float | int]:
        """What else a later process needs: the trainer's facts."""
        return self.trainer.facts()

    def load_tensors(self, tensors: Mapping[str, Tensor], facts: Mapping[str, float | int]) -> None:
        """Goes back to the state that `tensors()` and `facts()` described."""
        teacher = {name.removeprefix(_TEACHER): value for name, value in tensors.items() if name.startswith(_TEACHER)}
        self.trainer.load_tensors({name: value for name, value in tensors.items() if not name.startswith(_TEACHER)}, facts)
        self._teacher, self._copied_at = None, -1
        if teacher:
            self._teacher = self._extract(self._supernet.space.decode(teacher.pop("genotype").cpu().numpy()))
            self._teacher.load_state_dict(teacher)
