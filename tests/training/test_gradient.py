"""Architectures by gradient: the mixture, what it is expected to cost, where it goes, and that it can be broken off."""

from __future__ import annotations

import pickle
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from colours import TASK, Colours
from safetensors.torch import load, save
from torch import Tensor

from natdeploy.space import BlockSum, Genotypes, HeadSpec, Layer, SearchSpace, get_space
from natdeploy.space.blocks import Block
from natdeploy.space.space import FIRST_SLOT, squeeze_channels
from natdeploy.supernet import Mixture, Supernet, codes_of, mixed
from natdeploy.supernet.layers import ElasticMBConv
from natdeploy.training.gradient import Chooser, Cost, GradientSettings

SPACE = get_space("demo").restrict(resolutions=(16,))
MACS = BlockSum(SPACE, lambda blocks: [block.macs / 1e6 for block in blocks], 2)


def cost(bound: float | None = None) -> Cost:
    """Multiply-accumulates, 10^6."""
    fixed, added = MACS.terms(0, 0)
    return Cost(fixed, torch.from_numpy(added), bound)


def chooser(
    *, bound: float | None = None, task: Any = TASK, supernet: Supernet | None = None, stop: int = 100, **settings: Any
) -> Chooser:
    return Chooser(
        supernet or Supernet(SPACE, 2),
        task,
        16,
        {"macs": cost(bound)},
        GradientSettings(**{"batch_size": 4, "cost": "macs", **settings}),
        start=0,
        stop=stop,
        seed=3,
    )


def at(logits: Tensor) -> Chooser:
    """One that has come to these logits."""
    searching = chooser()
    searching.load_tensors(searching.tensors() | {"logits": logits})
    return searching


def some_logits(space: SearchSpace = SPACE, seed: int = 0) -> Tensor:
    return torch.randn(codes_of(space).shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def every_genotype() -> Genotypes:
    choices = [range(low, high + 1) for low, high in zip(SPACE.lower, SPACE.upper, strict=True)]
    found = np.array(list(product(*choices)))
    return found[(SPACE.repair(found) == found).all(axis=1)]


def probabilities(mixture: Mixture, genotypes: Genotypes) -> np.ndarray:
    """Of architectures, slot by slot as the words of `Mixture` say."""
    ends, holds, total = mixture.ends.numpy(), mixture.holds.numpy(), np.ones(len(genotypes))
    for slot, (_, place) in enumerate(SPACE.slots):
        code = genotypes[:, FIRST_SLOT + slot]
        reached = np.ones(len(genotypes), dtype=bool) if place == 0 else genotypes[:, FIRST_SLOT + slot - 1] > 0
        filled = (1 - ends[slot]) * holds[slot][np.maximum(code - 1, 0)]
        total *= np.where(reached, np.where(code > 0, filled, ends[slot]), 1.0)
    return total


def test_what_a_mixture_costs_is_the_mean_over_all_architectures() -> None:
    mixture = Mixture.of(SPACE, some_logits())
    genotypes = every_genotype()
    assert len(genotypes) == SPACE.size
    likely = probabilities(mixture, genotypes)
    assert likely.sum() == pytest.approx(1.0, abs=1e-12)
    term = cost()
    assert float(mixture.expected(SPACE, term.fixed, term.added)) == pytest.approx(likely @ MACS(genotypes), rel=1e-12)


def test_architectures_are_drawn_as_the_mixture_says() -> None:
    searching = at(some_logits())
    drawn = SPACE.encode_all(searching.draws(5_000, np.random.default_rng(0)))
    expected = searching.expected()["macs"]
    values = MACS(drawn)
    assert abs(values.mean() - expected) < 4 * values.std() / np.sqrt(len(values))


def test_scores_rank_the_likeliest_first_and_follow_the_probabilities() -> None:
    searching = at(some_logits())
    genotypes = every_genotype()
    scores, mixture = searching.scores(genotypes), searching.mixture()
    expected = np.log(probabilities(mixture, genotypes))
    cold = chooser(temperature=0.01, final_temperature=0.01)
    cold.load_tensors(cold.tensors() | {"logits": some_logits()})
    assert np.isfinite(cold.scores(genotypes)).all(), "what is nearly impossible can be told from what is impossible"
    for slot in range(len(SPACE.slots)):  # the likeliest choice of a slot counts as certain
        expected -= np.where(genotypes[:, FIRST_SLOT + slot] > 0, np.log(mixture.holds[slot].max().item()), 0.0)
    np.testing.assert_allclose(scores, expected, atol=1e-9)


@pytest.mark.parametrize("head", [None, HeadSpec("lraspp", channels=8)])
def test_a_mixture_of_one_architecture_is_that_architecture(head: HeadSpec | None) -> None:
    supernet = Supernet(replace(SPACE, dense=head), 2).double()
    images = torch.randn(3, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for genotype in SPACE.sample(4, np.random.default_rng(0)):
        allowed = torch.zeros_like(codes_of(SPACE))
        allowed[torch.arange(len(SPACE.slots)), torch.from_numpy(genotype[FIRST_SLOT:])] = True
        allowed[~allowed[:, 1:].any(dim=1), 1] = True  # never reached
        logits = some_logits()
        logits[torch.from_numpy(genotype[FIRST_SLOT:] == 0), 0] = 1e3
        mixture = Mixture.of(SPACE, logits, allowed)
        torch.testing.assert_close(mixed(supernet, images, mixture), supernet(images, SPACE.decode(genotype)))


@pytest.mark.parametrize("squeeze", [False, True])
@pytest.mark.parametrize("expansions", [(3.0, 6.0), (1.0, 4.0)])
def test_layers_computed_together_are_the_sum_of_layers_computed_apart(squeeze: bool, expansions: tuple[float, float]) -> None:
    mid = int(8 * expansions[1])
    largest = Block("mbconv", 8, 8, mid, 8, 7, 1, "hswish", squeeze_channels(mid) if squeeze else 0, residual=True)
    module = ElasticMBConv(largest, transformed=(5, 3)).double()
    layers = [Layer(kernel, expansion) for expansion in expansions for kernel in (3, 5, 7)]
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, 0.3, 0.5, generator=generator)
    x = torch.randn(2, 8, 8, 8, dtype=torch.float64, generator=generator)
    shares = [*torch.rand(len(layers), dtype=torch.float64, generator=generator).softmax(dim=0)]
    apart = sum(share * module(x.clone(), layer) for share, layer in zip(shares, layers, strict=True))
    torch.testing.assert_close(module.mix(x, layers, shares), apart)


@pytest.mark.parametrize("memory", ["full", "recompute"])
def test_gradients_agree_with_finite_differences(memory: str) -> None:
    class Doubles(Colours):
        def train_batch(self, step: int, resolution: int, batch_size: int) -> tuple[Tensor, Tensor]:
            images, targets = super().train_batch(step, resolution, batch_size)
            noise = torch.randn(images.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
            return images.double() + 0.1 * noise, targets

    supernet = Supernet(SPACE, 2).double()
    searching = chooser(
        supernet=supernet, task=Doubles(), bound=0.5, penalty=0.3, price_slope=2.0, temperature=0.7, memory=memory, stop=0
    )
    searching.logits, searching.prices["macs"] = some_logits(), 0.8

    def loss(logits: Tensor) -> float:
        images, targets = searching._task.train_batch(0, 16, 4)
        mixture = Mixture.of(SPACE, logits / 0.7)
        term = cost()
        expected = mixture.expected(SPACE, term.fixed, term.added)
        searching._supernet.train()
        task = Doubles().loss(mixed(searching._supernet, images, mixture), targets)
        excess = (expected / 0.5).log()
        return float(task + 0.3 * (10 * expected).log() / np.log(45) + 0.8 * excess + excess**2)

    gradient, _ = searching.gradient()
    assert gradient[~codes_of(SPACE)].abs().max() == 0
    checked = [(0, 1), (1, 0), (1, 2), (3, 0), (4, 3), (6, 0), (6, 4)]
    for place in checked:
        assert codes_of(SPACE)[place]
        step = torch.zeros_like(searching.logits)
        step[place] = 1e-5
        with torch.no_grad():
            slope = (loss(searching.logits + step) - loss(searching.logits - step)) / 2e-5
        assert float(gradient[place]) == pytest.approx(slope, rel=1e-4, abs=1e-8)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in searching._supernet.parameters())


class Indifferent(Colours):
    """Nothing is learned from: only costs move the logits."""

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        return logits.sum() * 0.0


def test_a_budget_is_met_from_above_and_not_undercut() -> None:
    uniform = chooser().expected()["macs"]
    bound = 0.8 * uniform
    # Decay pulls back to all architectures alike, as a loss pulls to larger ones.
    searching = chooser(task=Indifferent(), bound=bound, weight_decay=0.02, stop=80)
    searching.after(80)
    assert searching.expected()["macs"] == pytest.approx(bound, rel=0.02)
    assert searching.likeliest().depths[1:] != (1, 1, 1)
    above = chooser(task=Indifferent(), bound=2 * uniform, stop=10)
    above.after(10)
    assert above.prices == {"macs": 0.0}
    assert above.expected()["macs"] == pytest.approx(uniform), "a budget that is kept costs nothing"


def test_a_layer_stays_while_its_choices_together_are_likelier_than_none() -> None:
    logits = torch.zeros(codes_of(SPACE).shape, dtype=torch.float64)
    logits[:, 0] = 0.5  # likelier than each of four choices, less likely than all of them
    assert at(logits).likeliest().depths == SPACE.decode(SPACE.upper).depths
    logits[:, 0] = 2.0
    assert at(logits).likeliest().depths == SPACE.decode(SPACE.lower).depths


@pytest.mark.parametrize("memory", ["full", "two_path"])
def test_a_search_that_was_broken_off_goes_on_to_the_same_bits(memory: str) -> None:
    settings: dict[str, Any] = {"bound": 0.5, "memory": memory, "every": 2, "final_temperature": 0.5, "prior": 1.0, "stop": 12}
    whole = chooser(**settings)
    whole.after(12)
    broken = chooser(**settings)
    broken.after(5)
    later = chooser(**settings)
    later.load_tensors(load(save(broken.tensors())))
    later.after(12)
    assert whole.moves == later.moves == 6
    for name, value in whole.tensors().items():
        assert torch.equal(value, later.tensors()[name]), name
    assert not torch.equal(whole.logits, chooser(**settings).logits)


def test_turns_of_the_logits_are_named_and_what_is_drawn_travels() -> None:
    settings = GradientSettings(batch_size=4, cost="macs")
    searching = Chooser(Supernet(SPACE, 2), TASK, 16, {"macs": cost()}, settings, start=5, stop=24, seed=3, block=10)
    assert [searching.pause(step) for step in (0, 5, 14, 15, 23, 24)] == [15, 15, 15, 24, 24, None]
    searching.after(15)
    assert (searching.step, searching.moves) == (15, 10), "it catches up with the weights"
    sent = pickle.dumps(searching.draws)
    assert len(sent) < 10_000
    rng = [np.random.default_rng(1) for _ in range(2)]
    assert pickle.loads(sent)(3, rng[0]) == searching.draws(3, rng[1])  # noqa: S301 (made a line above)


def test_two_paths_move_two_codes_of_a_slot_alone() -> None:
    searching = chooser(memory="two_path")
    gradient, _ = searching.gradient()
    assert ((gradient != 0).sum(dim=1) <= 2).all()
    assert (gradient != 0).any()
