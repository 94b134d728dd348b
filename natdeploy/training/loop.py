"""The only training loop: momentum SGD under a cosine schedule, averaged weights, and a state that goes to disk and back."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from natdeploy.errors import NatdeployError, UsageError
from natdeploy.stopwatch import timed
from natdeploy.training.group import ShardGroup
from natdeploy.training.optimizer import SharedSGD

Losses = Callable[[int, slice], Iterable[Tensor]]
"""(step, rows of the step's batch) -> losses on those rows, whose gradients add up; asked for one by one, so one graph is alive."""


class DivergedError(NatdeployError):
    """A loss or a gradient is not finite; the weights are still those before the step, but no further step can be good.

    Attributes:
        what: is not finite.
        step: steps done before.
        learning_rate: peak of the schedule.
    """

    def __init__(self, what: str, step: int, learning_rate: float) -> None:
        super().__init__(f"{what} at step {step}; start again with a lower learning rate than {learning_rate:g}")
        self.what, self.step, self.learning_rate = what, step, learning_rate


class TrainSettings(BaseModel):
    """How weights move.

    Attributes:
        learning_rate: peak of the schedule.
        warmup: share of all steps in which the rate rises linearly from a tenth.
        momentum: Nesterov's.
        weight_decay: on convolution and linear weights only, where a step uses them.
        clip: largest norm of the gradient.
        average: decay of the exponential moving average of the weights, which is what is evaluated and exported.
        batch_size: images a step.
        shards: equal parts a step's batch is cut into. Each is forwarded alone, so BatchNorm normalises it by its own images, and
            the gradients are averaged. Several processes share the shards (`ShardGroup`).
        autocast: computes in bfloat16 where torch finds it safe; weights stay fp32. Meant for GPUs; slower on the processors
            that it was measured on, with and without bfloat16 units (docs/benchmarks.md).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    learning_rate: float = 0.02
    warmup: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 4e-5
    clip: float = 5.0
    average: float = 0.98
    batch_size: int = 32
    shards: int = Field(default=1, ge=1)
    autocast: bool = False

    @model_validator(mode="after")
    def _shards_are_equal(self) -> TrainSettings:
        if self.shards > 1 and (self.batch_size % self.shards or self.batch_size < 2 * self.shards):
            raise ValueError(
                f"a batch of {self.batch_size} images cannot be cut into {self.shards} equal shards of two or more; "
                f"set batch_size to a multiple of {self.shards}, {2 * self.shards} at least"
            )
        return self


def freeze_features(model: nn.Module, frozen: bool) -> None:
    """Whether all but the classifier is left as it is: a fresh one would spoil pretrained features."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not frozen or name.startswith("classifier."))


class Trainer:
    """A model, its optimiser, the moving average of its weights, and the number of steps done.

    Args:
        model: trained in place.
        settings: how weights move.
        total_steps: length of the schedule; the rate is a function of the step alone, so a resumed run follows the same one.
        group: processes that train the same model from the same state; each computes its share of the shards. With as many shards
            as processes, two end with the bits of one process that computes both shards, more with those but for rounding.

    Attributes:
        step: number of steps done.
        rate_scale: the scheduled rate is multiplied by it; lowered by who restores an earlier state after a `DivergedError`.

    Raises:
        UsageError: the shards cannot be dealt out evenly.
    """

    def __init__(self, model: nn.Module, settings: TrainSettings, total_steps: int, group: ShardGroup | None = None) -> None:
        if group is not None and settings.shards % group.size:
            raise UsageError(
                f"{settings.shards} shards cannot be dealt out evenly to {group.size} processes; set train.shards to {group.size} "
                f"or a multiple of it"
            )
        self.model = model
        self.average = copy.deepcopy(model).eval()
        self.average.requires_grad_(False)
        self._averages: list[Tensor] = [*self.average.parameters()]
        self.settings = settings
        self.total_steps = total_steps
        self.step = 0
        self.rate_scale = 1.0
        self._group = group
        self._optimizer = SharedSGD(model.parameters(), momentum=settings.momentum, weight_decay=settings.weight_decay)

    def learning_rate(self, step: int) -> float:
        """Linear warm-up, then a cosine to zero (SGDR without restarts, arXiv 1608.03983)."""
        peak = self.rate_scale * self.settings.learning_rate
        rise = max(1, round(self.settings.warmup * self.total_steps))
        if step < rise:
            return peak * (0.1 + 0.9 * step / rise)
        share = min(1.0, (step - rise) / max(1, self.total_steps - rise))
        return peak * 0.5 * (1 + math.cos(math.pi * share))

    def run(self, stop: int, losses: Losses, after_step: Callable[[], None]) -> None:
        """Trains until `stop` steps are done.

        Args:
            stop: step count to reach; nothing happens when it is reached already.
            losses: of a step and a part of its batch. Every process and every shard is to train the same weights in a step.
            after_step: called after each step, when `self.step` counts it.

        Raises:
            DivergedError: a loss or the gradient is not finite; in all processes of the group at the same step.
        """
        while self.step < stop:
            if not self.model.training:
                self.model.train()
            with timed("training: forward and backward"):
                loss = self._backward(losses)
            gradients = self._optimizer.gradients()
            if self._group is not None:
                with timed("training: exchange"):
                    self._group.average([*gradients, loss])
            with timed("training: optimiser and averages"):
                norm = nn.utils.get_total_norm(gradients)
                self._check(float(loss), float(norm))
                if (scale := self.settings.clip / (norm + 1e-6)) < 1:
                    torch._foreach_mul_(gradients, scale)
                self._optimizer.step(self.learning_rate(self.step))
                self.step += 1
                self._update_average()
            after_step()

    def _check(self, loss: float, norm: float) -> None:
        if math.isfinite(loss) and math.isfinite(norm):
            return
        what = f"the loss is {loss}" if not math.isfinite(loss) else f"the norm of the gradient is {norm}"
        raise DivergedError(what, self.step, self.rate_scale * self.settings.learning_rate)

    def _backward(self, losses: Losses) -> Tensor:
        """Leaves in every parameter the mean gradient over this process's shards; gives the mean of their losses (1,)."""
        settings, group = self.settings, self._group
        mine = range(settings.shards) if group is None else range(group.rank, settings.shards, group.size)
        rows, total = settings.batch_size // settings.shards, torch.zeros(1, device=next(self.model.parameters()).device)
        earlier: list[Tensor] = []
        for shard in mine:
            self._optimizer.zero_grad()
            for loss in self._computed(losses(self.step, slice(shard * rows, (shard + 1) * rows))):
                loss.backward()  # type: ignore[no-untyped-call]
                total += loss.detach()
            # Summed shard by shard, and not as they come, so that it is the order in which processes sum theirs.
            gradients = self._optimizer.gradients()
            if earlier:
                torch._foreach_add_(gradients, earlier)
            earlier = gradients
        if len(mine) > 1:
            torch._foreach_div_(earlier, len(mine))
        return total / len(mine)

    def _computed(self, losses: Iterable[Tensor]) -> Iterator[Tensor]:
        """The losses, each computed in the precision of the settings; what the caller does with it is not."""
        waiting, kind = iter(losses), next(self.model.parameters()).device.type
        while True:
            with torch.autocast(kind, torch.bfloat16, enabled=self.settings.autocast):
                loss = next(waiting, None)
            if loss is None:
                return
            yield loss

    @torch.no_grad()
    def _update_average(self) -> None:
        # A young average would remember the start for long; it follows at most as slowly as the steps it has seen allow.
        decay = min(self.settings.average, self.step / (self.step + 9))
        weights: list[Tensor] = [*self._optimizer.parameters]
        torch._foreach_lerp_(self._averages, weights, 1 - decay)

    def tensors(self) -> dict[str, Tensor]:
        """Everything a later process needs to go on: weights, their average, and momentum, by name."""
        result = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        result |= {f"average.{name}": value for name, value in self.average.state_dict().items()}
        for name, parameter in self.model.named_parameters():
            if parameter in self._optimizer.velocity:
                result[f"momentum.{name}"] = self._optimizer.velocity[parameter]
        return {name: value.detach().contiguous() for name, value in result.items()}

    def facts(self) -> dict[str, float | int]:
        """What else a later process needs: `step` and `rate_scale`."""
        return {"step": self.step, "rate_scale": self.rate_scale}

    def load_tensors(self, tensors: Mapping[str, Tensor], facts: Mapping[str, float | int]) -> None:
        """Goes back to the state that `tensors()` and `facts()` described."""
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "average": {}, "momentum": {}}
        for key, value in tensors.items():
            part, _, name = key.partition(".")
            parts[part][name] = value
        self.model.load_state_dict(parts["model"])
        self.average.load_state_dict(parts["average"])
        self._optimizer.velocity = {
            parameter: torch.empty_like(parameter).copy_(parts["momentum"][name])
            for name, parameter in self.model.named_parameters()
            if name in parts["momentum"]
        }
        self.step, self.rate_scale = int(facts["step"]), float(facts["rate_scale"])
