"""Stretches of training, with states on disk from which a killed run, and one that diverged, goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from natdeploy.distributed.engine import Engine
from natdeploy.errors import NatdeployError
from natdeploy.progress import Progress
from natdeploy.space import Arch
from natdeploy.stopwatch import take, timed
from natdeploy.store import RunStore
from natdeploy.supernet import Subnet, Supernet, calibrate
from natdeploy.tasks import Task
from natdeploy.training.adapt import Adapter, Lesson
from natdeploy.training.gradient import Chooser
from natdeploy.training.judge import BATCH, calibrated_subnet
from natdeploy.training.loop import DivergedError
from natdeploy.training.plain import Finetuner

CHECKPOINT, TUNED = "supernet", "tuned"
"""Names of states on disk; those of nets that were trained alone end in their id."""
_CHOOSER = "chooser."
"""Before the names of a chooser's tensors."""
TUNE_RATE = 0.25
"""Of the supernet's rate, what a network learns at that is trained alone."""
MOST_DIVERGENCES = 4
"""Times that training may diverge; a sixteenth of the rate does not help where an eighth did not."""
LOWER = 0.5
"""Of the learning rate, what is left after a divergence."""


@dataclass(frozen=True)
class Training:
    """The supernet's training.

    Attributes:
        adapter: holds the weights.
        checkpoint_steps: steps between two states on disk.
        engine: computes.
        store: keeps the states.
        progress: is told about the work.
        chooser: moves the logits of architectures between steps; its state is kept with the weights. None where nothing does.
    """

    adapter: Adapter
    checkpoint_steps: int
    engine: Engine
    store: RunStore
    progress: Progress
    chooser: Chooser | None = None

    @property
    def averaged(self) -> Supernet:
        """The supernet with averaged weights, which is what is judged."""
        average = self.adapter.trainer.average
        assert isinstance(average, Supernet)
        return average

    def restore(self) -> None:
        """Goes to the last state on disk; the first one is stored where there is none."""
        if (saved := self.store.load_checkpoint(CHECKPOINT)) is None:
            self._save()
            return
        tensors, facts = saved
        own = {name.removeprefix(_CHOOSER): value for name, value in tensors.items() if name.startswith(_CHOOSER)}
        self.adapter.load_tensors({name: value for name, value in tensors.items() if not name.startswith(_CHOOSER)}, facts)
        if self.chooser is not None:
            self.chooser.load_tensors(own)

    def restart(self, weights: Mapping[str, Tensor]) -> None:
        """Takes weights, by their names in the supernet, in the place of what was learned, without momentum, and saves that."""
        kept = {}
        for key, value in self.adapter.tensors().items():
            part, _, name = key.partition(".")
            if part in ("model", "average"):
                kept[key] = weights.get(name, value)
        self.adapter.load_tensors(kept, self.adapter.facts())
        self._save()

    def train(self, stage: str, stop: int, lesson: Lesson) -> None:
        """Trains up to `stop` steps, shows and times them, and saves the state now and then and at the end.

        Where the loss is not finite any more, the last state is restored and the rate lowered.

        Raises:
            NatdeployError: that happened too often.
        """
        trainer = self.adapter.trainer
        while trainer.step < stop:
            try:
                with self.progress.task(stage, stop - trainer.step, "steps") as advance:
                    self._stretch(stop, lesson, advance)
            except DivergedError as error:
                self._recover(error)

    def _stretch(self, stop: int, lesson: Lesson, advance: Callable[[int], None]) -> None:
        trainer = self.adapter.trainer
        seen = saved = trainer.step
        pause: int | None = None

        def after_step() -> None:
            nonlocal seen, saved
            advance(trainer.step - seen)
            seen = trainer.step
            if self.chooser is not None and pause is not None:
                if seen < pause:  # a state between two turns of the logits is none to go on from
                    return
                self.chooser.after(seen)
            if seen == stop or seen // self.checkpoint_steps > saved // self.checkpoint_steps:
                self._save()
            saved = seen

        with timed("training: other"):
            while trainer.step < stop:
                pause = None if self.chooser is None else self.chooser.pause(trainer.step)
                self.engine.train(self.adapter, stop if pause is None else min(stop, pause), lesson, after_step)

    def _save(self) -> None:
        with timed("checkpoints"):
            own = {} if self.chooser is None else {f"{_CHOOSER}{name}": value for name, value in self.chooser.tensors().items()}
            self.store.save_checkpoint(CHECKPOINT, self.adapter.tensors() | own, self.adapter.facts())
        self.store.add_seconds(take())

    def tune(self, arch: Arch, teacher: Arch, task: Task, steps: int) -> Subnet | None:
        """A network trained alone, from the labels and the answer of a better one, BatchNorm calibrated; None if that diverged.

        It learns at a part of the rate: its weights are good, and are to stay near where they are.
        """
        name = f"{TUNED}-{arch.id}"
        settings = self.adapter.settings.train
        rate = TUNE_RATE * settings.learning_rate * self.adapter.trainer.rate_scale
        tuner = Finetuner(
            self.averaged.extract(arch).to(memory_format=torch.channels_last),
            task,
            settings.model_copy(update={"learning_rate": rate, "shards": 1}),
            steps,
            teacher=None if teacher == arch else calibrated_subnet(self.averaged, teacher, task),
        )
        trainer = tuner.trainer
        if (saved := self.store.load_checkpoint(name)) is not None:
            trainer.load_tensors(*saved)
        with self.progress.task(f"tuning {arch.id} alone", steps - trainer.step, "steps") as advance:

            def after_step() -> None:
                advance(1)
                if trainer.step == steps:
                    calibrate(tuner.average, (images for images, _ in task.batches("calibration", arch.resolution, BATCH)))
                if trainer.step == steps or trainer.step % self.checkpoint_steps == 0:
                    self.store.save_checkpoint(name, trainer.tensors(), trainer.facts())
                    self.store.add_seconds(take())

            try:
                tuner.run(steps, after_step)
            except DivergedError as error:
                self.progress.note(f"{arch.id} keeps the supernet's weights: alone, {error.what} at step {error.step}")
                return None
        return tuner.average.eval()

    def _recover(self, error: DivergedError) -> None:
        """Back to the last state, at half the rate; stored at once, so that a run killed now does not diverge there again."""
        what = f"{error.what} at step {error.step}"
        divergences = (self.store.get("divergences") or 0) + 1
        if divergences > MOST_DIVERGENCES:
            raise NatdeployError(
                f"{what}; that was the {divergences}th time, each after the rate had been halved: check the images and the seed, "
                f"or start again with a lower rate (`[adapt.train]`, `learning_rate`)"
            ) from error
        self.store.set("divergences", divergences)
        self.restore()
        trainer = self.adapter.trainer
        trainer.rate_scale *= LOWER
        self._save()
        self.progress.note(
            f"{what}: goes on from step {trainer.step} at {100 * trainer.rate_scale:g} % of the learning rate "
            f"({divergences} of {MOST_DIVERGENCES} times)"
        )
