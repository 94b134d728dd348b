"""Choosing an architecture by gradient (DARTS, arXiv 1806.09055, first order; FNA, arXiv 2001.02525; FBNet, arXiv 1812.03443).

Every slot of a space has a softmax over its codes. Steps that train weights draw one architecture from it; in between, steps on
other images let the loss of the whole mixture, and what it is expected to cost, move the softmax. A cost counts as published,
lambda * log_tau, or as a hard budget, whose price rises while the expectation lies above and falls while it lies below (dual ascent
on the Lagrange multiplier): one run then meets a budget, where lambda has to be tuned by runs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from natdeploy.space import Arch, Genotypes, SearchSpace
from natdeploy.space.space import FIRST_SLOT
from natdeploy.stopwatch import timed
from natdeploy.supernet import Mixture, Supernet, codes_of, mixed, stages_of
from natdeploy.tasks import Task, moved
from natdeploy.training.loop import DivergedError

_PATHS = 1
"""Stream of chance: which two codes of each slot a step of two paths sees."""
_MOST = 0.5
"""A stage ends where that is likelier than that it goes on."""
_EPS = 1e-8
"""Adam's, as published."""


class GradientSettings(BaseModel):
    """How an architecture is chosen by gradient. Published values and reasons: docs/search.md.

    Attributes:
        learning_rate: Adam's, of the softmaxes' logits.
        betas: Adam's.
        weight_decay: L2, added to the gradient of the logits.
        prior: logits that the seed's own architecture begins with; those of all others are 0.
        temperature: the logits are divided by it.
        final_temperature: what it has become, geometrically, when the search ends.
        every: steps of weights after which one step moves the logits.
        batch_size: images of such a step.
        cost: what `penalty` is about: `latency`, `macs`, `params` or `size`.
        penalty: lambda; the loss grows by penalty * log(factor * cost) / log(base). 0 leaves it out.
        base: tau.
        factor: within the logarithm; it adds a constant to the loss and moves nothing.
        price_rate: a budget's price grows by this times log(cost / budget) in a step.
        price_slope: what is charged is the price and this times log(cost / budget), at least 0: the augmented Lagrangian (Hestenes
            1969, Powell 1969), which keeps the expectation from swinging around the budget.
        resolution: of all images, px; that of the baseline by default.
        memory: `full` keeps a step's mixture in memory; `recompute` computes layers anew instead; `two_path` mixes two drawn codes
            of every slot alone (ProxylessNAS, arXiv 1812.00332).
        weights: that the chosen network begins its training alone with: the `supernet`'s, or those of the `seed` remapped anew, as
            published; the classifier, which the seed lacks, stays as it is.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    learning_rate: float = Field(default=0.05, gt=0)
    betas: tuple[float, float] = (0.5, 0.999)
    weight_decay: float = Field(default=0.0, ge=0)
    prior: float = Field(default=0.0, ge=0)
    temperature: float = Field(default=1.0, gt=0)
    final_temperature: float = Field(default=1.0, gt=0)
    every: int = Field(default=1, ge=1)
    batch_size: int = Field(default=32, ge=2)
    cost: Literal["latency", "macs", "params", "size"] = "latency"
    penalty: float = Field(default=0.0, ge=0)
    base: float = Field(default=45.0, gt=1)
    factor: float = Field(default=10.0, gt=0)
    price_rate: float = Field(default=0.1, gt=0)
    price_slope: float = Field(default=2.0, ge=0)
    resolution: int | None = Field(default=None, ge=1)
    memory: Literal["full", "recompute", "two_path"] = "full"
    weights: Literal["supernet", "seed"] = "supernet"


@dataclass(frozen=True, eq=False)
class Cost:
    """A quantity that is a sum over blocks, at one resolution and width.

    Attributes:
        fixed: of all that every architecture has.
        added: by each code of each slot, (slots, 1 + codes).
        bound: what it may be at most; None where only the penalty asks.
    """

    fixed: float
    added: Tensor
    bound: float | None


@dataclass
class Draws:
    """A distribution that architectures are drawn from, small enough to be sent to other processes.

    Attributes:
        space: of the architectures, of one width.
        resolution: theirs, px.
        ends: (slots,) as of `Mixture`.
        holds: (slots, codes) as of `Mixture`.
    """

    space: SearchSpace
    resolution: int
    ends: npt.NDArray[np.float64]
    holds: npt.NDArray[np.float64]

    def __call__(self, count: int, rng: np.random.Generator) -> list[Arch]:
        """Architectures by chance."""
        codes = np.stack([rng.choice(self.holds.shape[1], size=count, p=row / row.sum()) + 1 for row in self.holds], axis=1)
        return self.space.decode_all(self.genotypes(codes, rng.random((count, len(self.ends))) < self.ends))

    def genotypes(self, codes: Genotypes, ends: npt.NDArray[np.bool_]) -> Genotypes:
        """Canonical genotypes of codes (n, slots) for slots that are filled, and where stages end that have not ended before."""
        codes = codes.copy()
        for _, columns in stages_of(self.space):
            codes[:, columns] *= np.cumsum(ends[:, columns], axis=1) == 0
        first = np.array([self.space.resolutions.index(self.resolution), 0])
        return np.column_stack([np.tile(first, (len(codes), 1)), codes])


class Chooser:
    """Logits over a supernet's architectures at one resolution, and the steps that move them.

    Args:
        supernet: the one that is being trained; never changed here.
        task: whose training images the logits learn from; none of those that weights learn from.
        resolution: of images and architectures, px.
        costs: by name; those with a bound have a price, and the one that `settings.cost` names is what a penalty counts.
        settings: how.
        start: first step of weights after which the logits move.
        stop: the last one.
        seed: of the paths that are drawn.
        own: the seed's own architecture, for `settings.prior`.
        autocast: computes in bfloat16 where torch finds it safe.
        block: steps of weights between two turns of the logits; more than one where weights are trained elsewhere.

    Attributes:
        logits: (slots, 1 + codes), fp64.
        draws: the distribution as steps of weights draw from it.
        prices: of every bounded cost, by name.
        step: of weights, up to which the logits have moved.
    """

    def __init__(
        self,
        supernet: Supernet,
        task: Task,
        resolution: int,
        costs: Mapping[str, Cost],
        settings: GradientSettings,
        *,
        start: int,
        stop: int,
        seed: int,
        own: Arch | None = None,
        autocast: bool = False,
        block: int = 1,
    ) -> None:
        self._supernet, self._task, self.resolution, self.settings = supernet, task, resolution, settings
        self._start, self._stop, self._seed, self._autocast, self._block = start, stop, seed, autocast, block
        self.space = supernet.space
        device = next(supernet.parameters()).device
        self._allowed = codes_of(self.space, device)
        self._costs = {name: Cost(cost.fixed, cost.added.to(device, torch.float64), cost.bound) for name, cost in costs.items()}
        self.logits = torch.zeros(self._allowed.shape, dtype=torch.float64, device=device)
        if own is not None:
            codes = torch.from_numpy(self.space.encode(own)[FIRST_SLOT : self.space.arch_variables])
            self.logits[torch.arange(len(codes)), codes] = settings.prior
        self._means = torch.zeros(2, *self.logits.shape, dtype=torch.float64, device=device)
        self.prices = {name: 0.0 for name, cost in self._costs.items() if cost.bound is not None}
        self.step = start
        self.draws = Draws(self.space, resolution, np.empty(0), np.empty((0, 0)))
        self._tell()

    def _tell(self) -> None:
        mixture = self.mixture()
        self.draws.ends, self.draws.holds = mixture.ends.cpu().numpy(), mixture.holds.cpu().numpy()

    @property
    def moves(self) -> int:
        """Steps that moved the logits."""
        return (self.step - self._start) // self.settings.every

    def temperature(self, step: int) -> float:
        """Geometrically from the first to the last."""
        share = min(1.0, max(0.0, (step - self._start) / max(1, self._stop - self._start)))
        first, last = self.settings.temperature, self.settings.final_temperature
        return float(first * (last / first) ** share)

    def mixture(self, allowed: Tensor | None = None) -> Mixture:
        """The distribution as it is, or of some codes alone, (slots, 1 + codes)."""
        return Mixture.of(self.space, self.logits / self.temperature(self.step), allowed)

    def expected(self) -> dict[str, float]:
        """Every cost's expectation, in its unit."""
        mixture = self.mixture()
        return {name: float(mixture.expected(self.space, cost.fixed, cost.added)) for name, cost in self._costs.items()}

    def asks(self) -> str:
        """What is asked of costs, in words and in their units."""
        bounds = [f"{name} of {cost.bound:.4g} at most" for name, cost in self._costs.items() if cost.bound is not None]
        if self.settings.penalty:
            bounds.append(f"{self.settings.penalty:g} * log_{self.settings.base:g} of {self.settings.cost}")
        return " and ".join(bounds)

    # ---- what comes of it

    def likeliest(self) -> Arch:
        """In every slot the likeliest choice; a stage ends before the first slot where that is likelier than all choices together.

        A plain arg-max over all codes would compare an end with choices one by one, and end a stage that most of the distribution
        goes on with: six kinds of layers share what is in favour of a layer. That is how published searches collapse to skips.
        """
        draws = self.draws
        (arch,) = self.space.decode_all(draws.genotypes(draws.holds.argmax(axis=1)[None] + 1, draws.ends[None] > _MOST))
        return arch

    def scores(self, genotypes: Genotypes) -> npt.NDArray[np.float64]:
        """How likely the depths and choices of architectures (n, arch_variables) are, (n,): the logarithm of the probability of
        their depths, and of each choice relative to the likeliest of its slot."""
        logits = (self.logits / self.temperature(self.step)).masked_fill(~self._allowed, -torch.inf)
        likely = logits.log_softmax(dim=1).cpu()  # of logarithms none is rounded to certainty
        choices = likely[:, 1:]
        stops, stays = likely[:, 0].numpy(), choices.logsumexp(dim=1).numpy()
        relative = (choices - choices.max(dim=1, keepdim=True).values).numpy()
        codes = genotypes[:, FIRST_SLOT : FIRST_SLOT + len(stops)]
        filled = codes > 0
        total = np.where(filled, relative[np.arange(len(stops)), np.maximum(codes - 1, 0)] + stays, 0.0)
        for _, columns in stages_of(self.space):
            first = np.zeros_like(filled[:, columns])
            first[:, 1:] = filled[:, columns][:, :-1] & ~filled[:, columns][:, 1:]
            total[:, columns] += np.where(first, stops[columns], 0.0)
        summed: npt.NDArray[np.float64] = total.sum(axis=1)
        return summed

    # ---- how it moves

    def after(self, step: int) -> None:
        """Catches up with the weights, of which `step` steps are done.

        Raises:
            DivergedError: the loss is not finite.
        """
        while self.step < min(step, self._stop):
            self.step += 1
            if (self.step - self._start) % self.settings.every == 0:
                self.move()
        self._tell()

    def pause(self, step: int) -> int | None:
        """The step of weights at which the logits' next turn is, if `step` steps are done; None where there is none any more."""
        if step >= self._stop:
            return None
        done = max(0, step - self._start)
        return min(self._stop, self._start + (done // self._block + 1) * self._block)

    def move(self) -> None:
        """One step of the logits, and of the prices."""
        settings, moves = self.settings, self.moves
        with timed("training: architecture"):
            gradient, costs = self.gradient()
            gradient = gradient + settings.weight_decay * self.logits
            for place, (beta, value) in enumerate(zip(settings.betas, (gradient, gradient**2), strict=True)):
                self._means[place].lerp_(value, 1 - beta)
            mean, square = (each / (1 - beta**moves) for each, beta in zip(self._means, settings.betas, strict=True))
            self.logits -= settings.learning_rate * mean / (square.sqrt() + _EPS)
            self.logits.masked_fill_(~self._allowed, 0.0)
        for name in self.prices:
            self.prices[name] = max(0.0, self.prices[name] + settings.price_rate * self._excess(name, costs[name]))

    def gradient(self) -> tuple[Tensor, dict[str, float]]:
        """Of the loss and of what its costs add, (slots, 1 + codes), on the images of the step; and the expected costs."""
        images, targets = self._task.train_batch(self.moves, self.resolution, self.settings.batch_size)
        device = self.logits.device
        with self._only_logits() as logits:
            allowed = self._paths() if self.settings.memory == "two_path" else self._allowed
            scaled = logits / self.temperature(self.step)
            with torch.autocast(device.type, torch.bfloat16, enabled=self._autocast):
                mixture = Mixture.of(self.space, scaled, allowed)
                answer = mixed(self._supernet, images.to(device), mixture, recompute=self.settings.memory == "recompute")
                loss = self._task.loss(answer, moved(targets, device))
            if not math.isfinite(value := float(loss.detach())):
                raise DivergedError(f"the loss of the mixture is {value}", self.step, self.settings.learning_rate)
            whole = Mixture.of(self.space, scaled)
            costs = {name: whole.expected(self.space, cost.fixed, cost.added) for name, cost in self._costs.items()}
            total = loss.double() + self._charged(costs)
            (gradient,) = torch.autograd.grad(total, logits)
        return gradient, {name: float(cost.detach()) for name, cost in costs.items()}

    def _charged(self, costs: Mapping[str, Tensor]) -> Tensor:
        """What costs add to the loss, (), but for constants: its gradient is what counts."""
        settings = self.settings
        total = torch.zeros((), dtype=torch.float64, device=self.logits.device)
        if settings.penalty:
            total = total + settings.penalty * (settings.factor * costs[settings.cost]).log() / math.log(settings.base)
        for name, price in self.prices.items():
            charge = max(0.0, price + self.settings.price_slope * self._excess(name, float(costs[name].detach())))
            total = total + charge * costs[name].log()
        return total

    def _excess(self, name: str, cost: float) -> float:
        bound = self._costs[name].bound
        assert bound is not None
        return math.log(cost / bound)

    def _paths(self) -> Tensor:
        """Two codes of every slot, drawn by their probabilities; one of them fills it."""
        rng = np.random.default_rng([self._seed, _PATHS, self.step])
        shares = (self.logits / self.temperature(self.step)).masked_fill(~self._allowed, -torch.inf).softmax(dim=1).cpu().numpy()
        left = torch.zeros_like(self._allowed, device="cpu")
        for slot, row in enumerate(shares):
            count = min(2, int(np.count_nonzero(row)))
            left[slot, rng.choice(len(row), size=count, replace=False, p=row / row.sum()).tolist()] = True
            if not left[slot, 1:].any():  # nearly everything ends here
                left[slot, 1 + int(row[1:].argmax())] = True
        return left.to(self._allowed.device)

    @contextmanager
    def _only_logits(self) -> Iterator[Tensor]:
        """The logits as what is differentiated; weights are left out, so that nothing is kept for their gradients."""
        learned = [parameter for parameter in self._supernet.parameters() if parameter.requires_grad]
        training = self._supernet.training
        _require(learned, False)
        self._supernet.train()
        try:
            yield self.logits.detach().clone().requires_grad_(True)
        finally:
            _require(learned, True)
            self._supernet.train(training)

    # ---- on disk

    def tensors(self) -> dict[str, Tensor]:
        """Everything a later process needs to go on, by name."""
        return {
            "logits": self.logits.clone(),
            "means": self._means.clone(),
            "prices": torch.tensor(list(self.prices.values()), dtype=torch.float64),
            "step": torch.tensor(self.step),
        }

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Goes back to the state that `tensors()` described."""
        self.logits = tensors["logits"].to(self.logits.device)
        self._means = tensors["means"].to(self.logits.device)
        self.prices = dict(zip(self.prices, tensors["prices"].tolist(), strict=True))
        self.step = int(tensors["step"])
        self._tell()


def _require(parameters: Sequence[nn.Parameter], gradient: bool) -> None:
    for parameter in parameters:
        parameter.requires_grad_(gradient)
