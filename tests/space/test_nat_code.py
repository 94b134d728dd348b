"""NAT's encodings: those that were released, and every other one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from natdeploy.errors import UsageError
from natdeploy.space import Arch, cost, nat_text, parse_nat
from natdeploy.space.catalog import OFA_MBV3

M1 = "08|0|1100 1440 5510 5220 8877"
M2 = "08|1|1100 3100 6320 7600 9771"
M3 = "08|1|2110 5451 5811 8975 9771"
M4 = "12|1|1510 5572 9815 7894 7781"

RELEASED = {
    M1: {
        "ks": [3, 3, 3, 3, 3, 5, 5, 3, 5, 5, 5, 5, 5, 3, 3],
        "e": [3, 3, 3, 4, 4, 4, 4, 3, 4, 3, 3, 6, 6, 6, 6],
        "d": [2, 3, 3, 3, 4],
        "r": 224,
        "w": 1.0,
    },
    M2: {
        "ks": [3, 3, 7, 3, 7, 7, 5, 3, 7, 7, 3, 3, 3],
        "e": [3, 3, 3, 3, 4, 3, 3, 6, 4, 6, 6, 6, 3],
        "d": [2, 2, 3, 2, 4],
        "r": 224,
        "w": 1.2,
    },
    M3: {
        "ks": [5, 3, 3, 5, 3, 5, 3, 5, 5, 3, 3, 5, 7, 3, 5, 7, 3, 3, 3],
        "e": [3, 3, 3, 4, 4, 4, 3, 4, 6, 3, 3, 6, 6, 6, 4, 6, 6, 6, 3],
        "d": [3, 4, 4, 4, 4],
        "r": 224,
        "w": 1.2,
    },
    M4: {
        "ks": [3, 5, 3, 5, 5, 3, 5, 7, 5, 3, 5, 3, 5, 7, 3, 3, 3, 5, 3],
        "e": [3, 4, 3, 4, 4, 6, 3, 6, 6, 3, 4, 6, 6, 6, 4, 6, 6, 6, 3],
        "d": [3, 4, 4, 4, 4],
        "r": 240,
        "w": 1.2,
    },
}
"""The encodings of NAT-M1 to M4 and their lists, which leave out the fixed first stage."""


def with_first_stage(lists: dict[str, object]) -> Arch:
    arch = Arch.from_dict(lists)
    return Arch(arch.resolution, arch.width, (OFA_MBV3.stages[0].choices, *arch.stages))


@pytest.mark.parametrize("text", RELEASED)
def test_the_released_networks_round_trip(text: str) -> None:
    digits = text.replace("|", "").replace(" ", "")
    arch = parse_nat(digits)
    assert arch == parse_nat(text) == with_first_stage(RELEASED[text])
    assert nat_text(arch) == text


def test_the_released_networks_cost_what_is_known() -> None:
    """Counted on the networks that once-for-all's code builds from the released lists, 1000 classes."""
    found = cost(OFA_MBV3, [parse_nat(text) for text in (M1, M2, M3, M4)])
    np.testing.assert_allclose(found.macs / 1e6, [222.6, 302.9, 482.4, 599.7], atol=0.05)
    np.testing.assert_allclose(found.params / 1e6, [6.07, 7.69, 9.07, 9.14], atol=0.005)


@given(st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_every_architecture_round_trips(seed: int) -> None:
    genotypes = OFA_MBV3.sample(3, np.random.default_rng(seed))
    for arch, genotype in zip(OFA_MBV3.decode_all(genotypes), genotypes, strict=True):
        text = nat_text(arch)
        assert parse_nat(text) == arch
        digits = text.replace("|", "").replace(" ", "")
        assert [int(digits[:2]), *map(int, digits[2:])] == genotype.tolist()


def test_a_gap_is_closed_as_in_any_genotype() -> None:
    assert nat_text(parse_nat("08|0|1102 1404 5510 5220 8877")) == "08|0|1120 1440 5510 5220 8877"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected 23 digits"),
        ("08|0|1100 1440 5510 5220 887", "expected 23 digits"),
        ("08|0|1100 1440 5510 5220 887x", "expected 23 digits"),
        ("17|0|1100 1440 5510 5220 8877", "its resolution index is 17, not 0 to 16"),
        ("08|2|1100 1440 5510 5220 8877", "its width index is 2, not 0 to 1"),
        ("08|0|1000 1440 5510 5220 8877", "its code 2 is 0, not 1 to 9"),
    ],
)
def test_other_texts_are_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_nat(text)


def test_architectures_of_other_spaces_have_no_code() -> None:
    with pytest.raises(UsageError, match="space ofa_mbv3"):
        nat_text(Arch(100, 1.0, parse_nat(M1).stages))
