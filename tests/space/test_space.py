"""Architectures, genotypes and spaces."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from natdeploy.errors import UsageError
from natdeploy.space import Arch, Layer, SearchSpace, Stage
from natdeploy.space.catalog import MBV2, OFA_MBV3, SPACES, plain_arch

MOBILENET_V2 = plain_arch(224, 1.0, (1, 2, 3, 4, 3, 3, 1))
TINY = SearchSpace("tiny", (8, 16), (1.0, 1.5), 8, 1, (Stage(8, 1, 1, 2, (3, 5), (1, 2)), Stage(16, 2, 1, 2, (3,), (2,))), 32)

spaces = st.sampled_from([*SPACES.values(), TINY])
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
    assert archs == [space.decode(genotype) for genotype in genotypes]
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
    raw[2:6] = [4, 0, 2, 0]
    assert MBV2.repair(raw)[2:6].tolist() == [4, 2, 0, 0]


def everything(space: SearchSpace) -> np.ndarray:
    """Every canonical genotype, from every raw one."""
    ranges = [np.arange(low, high + 1) for low, high in zip(space.lower, space.upper, strict=True)]
    return np.unique(space.repair(np.stack(np.meshgrid(*ranges, indexing="ij"), axis=-1).reshape(-1, space.variables)), axis=0)


def test_size_is_the_number_of_different_architectures() -> None:
    assert len(everything(TINY)) == TINY.size == 2 * 2 * (4 + 16) * (1 + 1)
    assert len(set(TINY.decode_all(everything(TINY)))) == TINY.size


def test_size_of_nats_space() -> None:
    """2 widths, 17 resolutions, and a stage of 2 to 4 layers with 9 choices each, 5 times."""
    assert OFA_MBV3.size == 2 * 17 * (9**2 + 9**3 + 9**4) ** 5
    assert MBV2.size == 21 * 6 * (6 + 6**2 + 6**3 + 6**4) ** 5


def test_balanced_sampling_draws_every_depth_equally_often() -> None:
    depths = np.array([arch.depths for arch in MBV2.decode_all(MBV2.sample(4000, rng()))])
    shares = [(depths[:, 1] == depth).mean() for depth in (1, 2, 3, 4)]
    assert shares == pytest.approx([0.25] * 4, abs=0.03)


def test_unbalanced_sampling_draws_every_architecture_equally_often() -> None:
    drawn = TINY.sample(160 * 400, rng(), balanced=False)
    found, counts = np.unique(drawn, axis=0, return_counts=True)
    np.testing.assert_array_equal(found, everything(TINY))
    chi_square = ((counts - 400) ** 2 / 400).sum()
    assert chi_square == pytest.approx(159, abs=4 * (2 * 159) ** 0.5)
    deepest = (OFA_MBV3.sample(4000, rng(), balanced=False)[:, 2:6] > 0).sum(axis=1) == 4
    assert deepest.mean() == pytest.approx(9**4 / (9**2 + 9**3 + 9**4), abs=0.02)


@given(spaces, seeds)
@fast
def test_neighbours_are_the_architectures_one_variable_away(space: SearchSpace, seed: int) -> None:
    genotype = space.sample(1, rng(seed))[0]
    found = space.neighbours(genotype)
    np.testing.assert_array_equal(space.repair(found), found)
    assert len(np.unique(found, axis=0)) == len(found)
    assert ((found != genotype).sum(axis=1) == 1).all()
    back = space.neighbours(found[rng(seed).integers(len(found))])
    assert (back == genotype).all(axis=1).any(), "the relation is symmetric"
    depths = (genotype[2:] > 0).sum() - (found[:, 2:] > 0).sum(axis=1)
    assert set(np.abs(depths)) <= {0, 1}


def test_no_neighbour_is_forgotten() -> None:
    every = everything(TINY)
    for genotype in every:
        expected = every[(every != genotype).sum(axis=1) == 1]
        np.testing.assert_array_equal(np.unique(TINY.neighbours(genotype), axis=0), expected)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"min_depth": 0}, "min_depth must be 1 or more, not 0"),
        ({"max_depth": 1, "min_depth": 2}, r"max_depth must be min_depth \(2\) or more, not 1"),
        ({"kernels": ()}, r"kernels must be positive, ascending .*, not \[\]"),
        ({"kernels": (5, 3)}, r"kernels must be .*ascending"),
        ({"kernels": (3, 4)}, r"kernels must be odd, not \[3, 4\]"),
        ({"expansions": ()}, "expansions must be"),
        ({"expansions": (3, 3)}, "expansions must be .*without repetition"),
        ({"expansions": (0.5, 2)}, "expansions must be 1, or 1.25 or more"),
        ({"expansions": (1, 1.1)}, r"expansions must be 1, or 1.25 or more, not \[1, 1.1\]"),
        ({"stride": 3}, "stride must be 1 or 2, not 3"),
        ({"out_channels": 0}, "out_channels must be 1 or more"),
        ({"activation": "tanh"}, "activation must be one of relu, relu6, hswish, not 'tanh'"),
    ],
)
def test_an_impossible_stage_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        replace(MBV2.stages[1], **wrong)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"name": "my space"}, "name must be lower-case letters, digits and _, not 'my space'"),
        ({"resolutions": ()}, "resolutions must be"),
        ({"resolutions": (64, 32)}, r"resolutions must be .*ascending.*, not \[64, 32\]"),
        ({"widths": (0.0, 1.0)}, "widths must be positive"),
        ({"stem_channels": 0}, "stem_channels must be 1 or more"),
        ({"stem_stride": 4}, "stem_stride must be 1 or 2"),
        ({"stages": ()}, "stages must not be empty"),
        ({"mix_channels": -1}, "mix_channels must not be negative"),
        ({"head_activation": "swish"}, "head_activation must be one of"),
        ({"output_stride": 12}, "output_stride must be one of 2, 4, 8, 16, 32, where a stage of space mbv2 ends, not 12"),
        ({"output_stride": 64}, "output_stride must be one of .*, not 64"),
    ],
)
def test_an_impossible_space_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        replace(MBV2, **wrong)


# ---- output stride


def test_strides_past_the_output_stride_become_dilations() -> None:
    """TensorFlow's slim: the layer that had the stride keeps the dilation before it, those behind it get it."""
    assert MBV2.strides == ((1, 1, 1), (2, 1, 1), (2, 1, 1), (2, 1, 1), (1, 1, 1), (2, 1, 1), (1, 1, 1))
    assert replace(MBV2, output_stride=32).strides == MBV2.strides
    assert replace(MBV2, output_stride=16).strides[4:] == ((1, 1, 1), (1, 1, 2), (1, 2, 2))
    assert replace(MBV2, output_stride=8).strides[2:] == ((2, 1, 1), (1, 1, 2), (1, 2, 2), (1, 2, 4), (1, 4, 4))


@given(spaces, seeds, st.data())
@fast
def test_an_output_stride_changes_neither_weights_nor_shortcuts(space: SearchSpace, seed: int, data: st.DataObject) -> None:
    whole = space.stem_stride * prod(stage.stride for stage in space.stages)
    reached = data.draw(st.sampled_from([2**power for power in range(6) if space.stem_stride <= 2**power <= whole]))
    dense = replace(space, output_stride=reached)
    arch = space.decode(space.sample(1, rng(seed))[0])
    assert dense.stage_size(len(space.stages), 32 * arch.resolution) == (32 * arch.resolution // reached, 0)
    for block, other in zip(space.blocks(arch, 5), dense.blocks(arch, 5), strict=True):
        assert (block.params, block.residual) == (other.params, other.residual)
        assert other.stride in {1, block.stride}
        assert other.kernel > 1 or other.dilation == 1


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
