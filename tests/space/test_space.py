"""Architectures, genotypes, spaces, blocks and cost."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from natdeploy.errors import UsageError
from natdeploy.space import Arch, Block, BlockSum, Layer, SearchSpace, Stage, cost, get_space
from natdeploy.space.catalog import DEMO, MBV2, NAMES, plain_arch
from natdeploy.space.space import make_divisible

MOBILENET_V2 = plain_arch(224, 1.0, (1, 2, 3, 4, 3, 3, 1))
TINY = SearchSpace("tiny", (8, 16), (1.0, 1.5), 8, 1, (Stage(8, 1, 1, 2, (3, 5), (1, 2)), Stage(16, 2, 1, 2, (3,), (2,))), 32)

spaces = st.sampled_from([MBV2, DEMO, TINY])
seeds = st.integers(0, 2**32 - 1)
fast = settings(deadline=None, max_examples=40)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@given(spaces, seeds, st.booleans())
@fast
def test_every_sample_round_trips_through_arch_text_and_genotype(space: SearchSpace, seed: int, balanced: bool) -> None:
    genotypes = space.sample(5, rng(seed), balanced=balanced)
    archs = space.decode_all(genotypes)
    np.testing.assert_array_equal(space.encode_all(archs), genotypes)
    for arch in archs:
        space.validate(arch)
        assert Arch.parse(str(arch)) == arch
        assert len(arch.id) == 10


@given(spaces, seeds)
@fast
def test_repair_maps_any_numbers_into_the_space_and_changes_nothing_twice(space: SearchSpace, seed: int) -> None:
    raw = rng(seed).normal(3, 6, (8, space.variables))
    once = space.repair(raw)
    np.testing.assert_array_equal(space.repair(once), once)
    for genotype in once:
        space.validate(space.decode(genotype))


@given(spaces, seeds)
@fast
def test_canonical_genotypes_are_equal_exactly_when_their_networks_are(space: SearchSpace, seed: int) -> None:
    genotypes = space.repair(rng(seed).integers(space.lower, space.upper, (30, space.variables), endpoint=True))
    archs = space.decode_all(genotypes)
    same = (genotypes[:, None] == genotypes[None]).all(axis=2)
    for first, arch in enumerate(archs):
        for second, other in enumerate(archs):
            assert same[first, second] == (arch == other) == (arch.id == other.id)


@given(spaces, seeds, st.floats(0, 1))
@fast
def test_mutation_and_crossover_stay_in_the_space(space: SearchSpace, seed: int, probability: float) -> None:
    chance = rng(seed)
    first, second = space.sample(6, chance), space.sample(6, chance)
    for children in (space.mutate(first, chance, probability), space.crossover(first, second, chance)):
        np.testing.assert_array_equal(space.repair(children), children)
    np.testing.assert_array_equal(space.mutate(first, chance, 0.0), first)


def test_a_layer_behind_a_skipped_slot_moves_forward() -> None:
    genotype = MBV2.encode(MOBILENET_V2)
    raw = genotype.copy()
    first = 2 + 1  # resolution, width, the first stage's only slot
    raw[first : first + 4] = [4, 0, 2, 0]
    assert MBV2.repair(raw)[first : first + 4].tolist() == [4, 2, 0, 0]


def test_size_is_the_number_of_different_architectures() -> None:
    every = np.stack(np.meshgrid(*[np.arange(high + 1) for high in TINY.upper], indexing="ij"), axis=-1).reshape(-1, TINY.variables)
    assert len(np.unique(TINY.repair(every), axis=0)) == TINY.size == 2 * 2 * (4 + 16) * (1 + 1)


def test_balanced_sampling_draws_every_depth_equally_often() -> None:
    depths = np.array([arch.depths for arch in MBV2.decode_all(MBV2.sample(4000, rng()))])
    shares = [(depths[:, 1] == depth).mean() for depth in (1, 2, 3, 4)]
    assert shares == pytest.approx([0.25] * 4, abs=0.03)
    unbalanced = np.array([arch.depths for arch in MBV2.decode_all(MBV2.sample(4000, rng(), balanced=False))])
    assert (unbalanced[:, 1] == 4).mean() > 0.5


def test_a_stage_needs_a_layer_and_choices() -> None:
    for wrong in ({"min_depth": 0}, {"max_depth": 1, "min_depth": 2}, {"kernels": ()}, {"expansions": ()}):
        with pytest.raises(UsageError, match="stage"):
            replace(MBV2.stages[1], **wrong)  # type: ignore[arg-type]


# ---- text


def test_text_and_id_are_stable() -> None:
    arch = Arch(96, 0.35, ((Layer(3, 1),), (Layer(5, 6), Layer(3, 3))))
    assert str(arch) == "r96-w0.35-k3e1-k5e6.k3e3"
    assert MOBILENET_V2.id == Arch.parse(str(MOBILENET_V2)).id == "1e7603bc20"


@pytest.mark.parametrize("text", ["", "r96", "r96-w1", "r96-w1-k3", "r96-w1-k3e1-", "x96-w1-k3e1", "r96-w1-k3e1;rm"])
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is no architecture"):
        Arch.parse(text)


def test_compact_and_padded_lists_give_the_same_architecture() -> None:
    compact = Arch.from_dict({"ks": [3, 5, 7], "e": [1, 6, 3], "d": [1, 2], "r": 64, "w": 1.0})
    padded = Arch.from_dict({"ks": [3, 7, 5, 7], "e": [1, 6, 6, 3], "d": [1, 2], "r": 64})
    assert compact == padded == Arch(64, 1.0, ((Layer(3, 1),), (Layer(5, 6), Layer(7, 3))))


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"ks": [3, 3], "e": [1], "d": [1, 1], "r": 64}, "ks has 2 entries and e has 1"),
        ({"ks": [3] * 5, "e": [1] * 5, "d": [1, 2], "r": 64}, "neither compact nor padded"),
    ],
)
def test_lists_that_do_not_fit_are_refused(values: dict[str, object], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        Arch.from_dict(values)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"resolution": 225}, "resolution 225"),
        ({"width": 0.5}, "width 0.5"),
        ({"stages": MOBILENET_V2.stages[:-1]}, "has 6 stages"),
        ({"stages": ((Layer(3, 1),) * 2, *MOBILENET_V2.stages[1:])}, "stage 0 has 2 layers"),
        ({"stages": ((Layer(9, 1),), *MOBILENET_V2.stages[1:])}, "kernel 9"),
    ],
)
def test_what_is_not_of_the_space_is_named(change: dict[str, object], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        MBV2.validate(replace(MOBILENET_V2, **change))  # type: ignore[arg-type]


def test_unknown_space_lists_the_known() -> None:
    assert [get_space(name).name for name in NAMES] == list(NAMES)
    with pytest.raises(UsageError, match="mbv2, demo"):
        get_space("mars")


# ---- blocks and cost


def test_mobilenet_v2_costs_what_the_paper_says() -> None:
    """3.4 M parameters and 300 M multiply-adds at 224 px (arXiv 1801.04381, table 4); 3,504,872 is torchvision's exact count."""
    found = cost(MBV2, [MOBILENET_V2])
    assert found.params[0] == 3_504_872
    assert found.macs[0] == 300_774_272


@given(spaces, seeds)
@fast
def test_cost_by_look_up_equals_the_sum_over_blocks(space: SearchSpace, seed: int) -> None:
    archs = space.decode_all(space.sample(5, rng(seed)))
    found = cost(space, archs, classes=7)
    for row, arch in enumerate(archs):
        blocks = space.blocks(arch, 7)
        assert found.macs[row] == sum(block.macs for block in blocks)
        assert found.params[row] == sum(block.params for block in blocks)
        assert found.activation_bytes[row] == sum(block.activation_bytes for block in blocks)


@given(spaces, seeds)
@fast
def test_blocks_fit_each_other(space: SearchSpace, seed: int) -> None:
    for arch in space.decode_all(space.sample(3, rng(seed))):
        *blocks, head, classifier = space.blocks(arch, 5)
        for block, following in zip(blocks, [*blocks[1:], head], strict=True):
            assert (block.out_channels, block.out_size) == (following.in_channels, following.size)
        assert (head.out_channels, classifier.out_channels) == (classifier.in_channels, 5)


def test_every_block_is_asked_for_once() -> None:
    seen: list[Block] = []

    def value(blocks: object) -> list[float]:
        assert isinstance(blocks, list)
        seen.extend(blocks)
        return [1.0] * len(blocks)

    total = BlockSum(DEMO, value, 10)
    assert len(seen) == len(set(seen))
    archs = DEMO.decode_all(DEMO.sample(20, rng()))
    assert total(DEMO.encode_all(archs)).tolist() == [len(DEMO.blocks(arch, 10)) for arch in archs]


@pytest.mark.parametrize(
    ("wanted", "rounded"), [(32 * 0.35, 16), (16 * 0.35, 8), (64 * 0.35, 24), (96 * 0.35, 32), (17, 16), (4, 8)]
)
def test_make_divisible_rounds_to_eight_and_loses_a_tenth_at_most(wanted: float, rounded: int) -> None:
    assert make_divisible(wanted) == rounded
    assert rounded >= 0.9 * wanted
