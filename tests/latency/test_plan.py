"""Plans cover the space."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from natdeploy.latency.blocks import input_shape
from natdeploy.latency.plan import make_plan, plan_blocks, plan_subnets, reference_arch, space_blocks
from natdeploy.space import cost, get_space
from natdeploy.space.catalog import SPACES
from natdeploy.supernet.subnet import build_block

MBV2, DEMO = get_space("mbv2"), get_space("demo")


def test_space_blocks_are_those_of_its_architectures() -> None:
    known = space_blocks(DEMO, 10)
    assert len(set(known)) == len(known)
    seen = {block for arch in DEMO.decode_all(DEMO.sample(3000, np.random.default_rng(0))) for block in DEMO.blocks(arch, 10)}
    assert seen == set(known)


def test_block_plan_holds_every_choice_before_it_repeats_any() -> None:
    plan = plan_blocks(MBV2, 10, 150, np.random.default_rng(0))
    assert len(set(plan)) == len(plan) == 150
    families = {replace(block, size=0) for block in space_blocks(MBV2, 10)}
    first = plan[: len(families)]
    assert {replace(block, size=0) for block in first} == families
    assert {block.kind for block in plan[:3]} == {"stem", "head", "classifier"}
    sizes = {
        block.size for block in plan if (block.mid_channels, block.out_channels, block.kernel, block.stride) == (144, 24, 5, 1)
    }
    assert max(sizes) / min(sizes) >= 1.5


def test_no_subnet_is_planned_twice() -> None:
    space = replace(get_space("ofa_mbv3"), widths=(0.25,), resolutions=(24, 32))
    fit, test = plan_subnets(space, 14, 24, np.random.default_rng(10))  # a draw in which the smallest came twice
    assert len({*fit, *test}) == 38


def test_block_plan_never_asks_for_more_than_there_is() -> None:
    plan = plan_blocks(DEMO, 10, 10**6, np.random.default_rng(0))
    assert sorted(plan) == sorted(space_blocks(DEMO, 10))


def test_subnets_are_spread_and_disjoint_with_the_extremes_to_learn_from() -> None:
    fit, test = plan_subnets(MBV2, 14, 20, np.random.default_rng(0))
    assert (len(fit), len(test)) == (14, 20)
    assert len({*fit, *test}) == 34
    macs = {role: np.sort(cost(MBV2, archs).macs) for role, archs in (("fit", fit), ("test", test))}
    assert macs["fit"][0] < macs["test"][0]
    assert macs["test"][-1] < macs["fit"][-1]
    assert np.diff(np.log(macs["test"])).max() < 0.7


def test_reference_is_of_the_space() -> None:
    for space in SPACES.values():
        space.validate(reference_arch(space))


@pytest.mark.parametrize("name", SPACES)
def test_a_plan_of_any_space_can_be_built_in_torch(name: str) -> None:
    space = SPACES[name]
    plan = make_plan(space, 10, blocks=70, least=10, fit=5, test=5, seed=0)
    assert len({*plan.fit, *plan.test}) == 10
    always = {block.kind for block in space.fixed_blocks(space.resolutions[0], space.widths[0], 10)}
    assert {block.kind for block in plan.blocks} == always | {"mbconv"}
    for block in plan.blocks[::6]:
        small = replace(block, size=min(block.size, 8))
        shape = (1, block.out_channels, small.out_size, small.out_size)
        found = build_block(small).eval()(torch.zeros(input_shape(small))).shape
        assert found == (shape if block.kind in {"stem", "mbconv"} else shape[:2])


def test_plans_repeat_with_their_seed_and_differ_between_seeds() -> None:
    one, same, other = (make_plan(MBV2, 5, blocks=80, least=10, fit=5, test=5, seed=seed) for seed in (1, 1, 2))
    assert one == same
    assert one.blocks != other.blocks
    assert one.test != other.test
