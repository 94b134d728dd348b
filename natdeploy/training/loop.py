"""The only training loop: momentum SGD under a cosine schedule, averaged weights, and a state that goes to disk and back."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from natdeploy.errors import NatdeployError
from natdeploy.training.optimizer import SharedSGD


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
    autocast: bool = False


class Trainer:
    """A model, its optimiser, the moving average of its weights, and the number of steps done.

    Args:
        model: trained in place.
        settings: how weights move.
        total_steps: length of the schedule; the rate is a function of the step alone, so a resumed run follows the same one.
    """

    def __init__(self, model: nn.Module, settings: TrainSettings, total_steps: int) -> None:
        self.model = model
        self.average = copy.deepcopy(model).eval()
        self.average.requires_grad_(False)
        self.settings = settings
        self.total_steps = total_steps
        self.step = 0
        self._optimizer = SharedSGD(model.parameters(), momentum=settings.momentum, weight_decay=settings.weight_decay)

    def learning_rate(self, step: int) -> float:
        """Linear warm-up, then a cosine to zero (SGDR without restarts, arXiv 1608.03983)."""
        rise = max(1, round(self.settings.warmup * self.total_steps))
        if step < rise:
            return self.settings.learning_rate * (0.1 + 0.9 * step / rise)
        share = min(1.0, (step - rise) / max(1, self.total_steps - rise))
        return self.settings.learning_rate * 0.5 * (1 + math.cos(math.pi * share))

    def run(self, stop: int, losses: Callable[[int], Iterable[Tensor]], after_step: Callable[[], None]) -> None:
        """Trains until `stop` steps are done.

        Args:
            stop: step count to reach; nothing happens when it is reached already.
            losses: step -> the losses whose gradients add up to that step's; asked for one by one, so only one graph is alive.
            after_step: called after each step, when `self.step` counts it.

        Raises:
            NatdeployError: a loss is not finite.
        """
        while self.step < stop:
            self.model.train()
            self._optimizer.zero_grad()
            for loss in self._computed(losses(self.step)):
                if not torch.isfinite(loss):
                    raise NatdeployError(
                        f"the loss is {loss.item()} at step {self.step}; start again with a lower learning rate "
                        f"than {self.settings.learning_rate:g}"
                    )
                loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip)
            self._optimizer.step(self.learning_rate(self.step))
            self.step += 1
            self._update_average()
            after_step()

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
        averages: list[Tensor] = [*self.average.parameters()]
        weights: list[Tensor] = [*self.model.parameters()]
        torch._foreach_lerp_(averages, weights, 1 - decay)

    def tensors(self) -> dict[str, Tensor]:
        """Everything a later process needs to go on: weights, their average, and momentum, by name."""
        result = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        result |= {f"average.{name}": value for name, value in self.average.state_dict().items()}
        for name, parameter in self.model.named_parameters():
            if parameter in self._optimizer.velocity:
                result[f"momentum.{name}"] = self._optimizer.velocity[parameter]
        return {name: value.detach().contiguous() for name, value in result.items()}

    def load_tensors(self, tensors: Mapping[str, Tensor], step: int) -> None:
        """Goes back to the state that `tensors()` described after `step` steps."""
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
        self.step = step
