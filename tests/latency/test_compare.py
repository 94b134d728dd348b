"""Tables are made into one only where their rows may stand side by side, and differences are told by name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from natdeploy.errors import UsageError
from natdeploy.latency.blocks import block_key
from natdeploy.latency.compare import diff_tables, merge_tables, mixture
from natdeploy.latency.plan import space_blocks
from natdeploy.latency.table import BlockRow, Origin, Provenance, Role, SubnetRow, Table, Timing
from natdeploy.space import get_space

SPACE = get_space("demo")
BLOCKS = space_blocks(SPACE, 10)[:6]
SMALL, LARGE = SPACE.decode(SPACE.lower), SPACE.decode(SPACE.upper)
PROVENANCE = Provenance(
    device="host",
    runtime="onnxruntime",
    runtime_version="1.0",
    provider="CPUExecutionProvider",
    precision="fp32",
    threads=1,
    batch=1,
    space="demo",
    classes=10,
    reference=str(SMALL),
    reference_ms=0.5,
    harness="natdeploy runner 1",
    tool_version="0",
    utc="2026-01-01T00:00:00+00:00",
    cpu="a processor",
    cores=2,
    os="Linux",
    waiting_counted=True,
    measured_s=12.5,
    block_settings={"min_s": 0.1},
    subnet_settings={"min_s": 0.3},
    quality={"n": 5},
)


def table(latencies: dict[int, float], nets: dict[Any, tuple[Role, float]] | None = None, **provenance: Any) -> Table:
    return Table(
        tuple(BlockRow(BLOCKS[i], Timing(ms, ms, 30, 3, False)) for i, ms in latencies.items()),
        tuple(SubnetRow(arch, role, Timing(ms, ms, 24, 3, False)) for arch, (role, ms) in (nets or {}).items()),
        PROVENANCE.model_copy(update=provenance),
    )


def test_merged_rows_are_on_the_scale_of_the_first_reference() -> None:
    one = table({0: 1.0, 1: 2.0}, {SMALL: ("fit", 10.0)})
    other = table({1: 2.2, 2: 3.3}, {LARGE: ("test", 33.0)}, reference_ms=0.55, utc="2026-02-01T00:00:00+00:00")
    merged = merge_tables(one, other, {"a": "00", "b": "11"})
    assert {row.block: row.timing.latency_ms for row in merged.blocks} == pytest.approx(
        {BLOCKS[0]: 1.0, BLOCKS[1]: 2.0, BLOCKS[2]: 3}
    )
    assert {row.arch: (row.role, row.timing.latency_ms) for row in merged.subnets} == {
        SMALL: ("fit", 10.0),
        LARGE: ("test", pytest.approx(30.0)),
    }
    both = next(row.timing for row in merged.blocks if row.block == BLOCKS[1])
    assert (both.n, both.processes, both.unstable, both.p50_ms) == (60, 6, False, pytest.approx(2.1))
    p = merged.provenance
    assert (p.reference_ms, p.measured_s, p.utc, p.quality) == (0.5, 25.0, "2026-02-01T00:00:00+00:00", None)
    assert p.origin == Origin(kind="measured", files={"a": "00", "b": "11"})


def test_a_table_merged_with_itself_says_the_same() -> None:
    one = table({0: 1.0, 1: 2.0}, {SMALL: ("fit", 10.0), LARGE: ("test", 30.0)})
    merged = merge_tables(one, one, {})
    assert not [each for each in diff_tables(one, merged).common if each.ratio != pytest.approx(1)]
    assert merged.provenance.reference_ms == one.provenance.reference_ms


def test_a_net_that_was_learned_from_judges_nothing_and_what_was_measured_did_not_fail() -> None:
    names = [block_key(block) for block in BLOCKS]
    one = replace(table({0: 1.0}, {SMALL: ("test", 10.0)}), failures={names[1]: "crashed", names[2]: "hung"})
    other = replace(table({1: 1.0}, {SMALL: ("fit", 10.0)}), failures={names[0]: "hung", names[3]: "hung"})
    merged = merge_tables(one, other, {})
    assert [row.role for row in merged.subnets] == ["fit"]
    assert merged.failures == {names[2]: "hung", names[3]: "hung"}


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"device": "other"}, "the device is host in one and other in the other"),
        ({"runtime_version": "1.1"}, "the version of the runtime is 1.0 in one and 1.1 in the other"),
        ({"harness": "benchmark_model"}, "the harness is natdeploy runner 1 in one and benchmark_model in the other"),
        ({"reference": "r32"}, "the reference network is"),
        ({"precision": "int8"}, "the precision is"),
        ({"threads": 2}, "the number of threads is"),
        ({"cpu": "b"}, "the processor is"),
        ({"governor": "powersave"}, "the governor is None in one and powersave in the other"),
        ({"space": "mbv2"}, "the space is"),
    ],
)
def test_tables_of_different_targets_are_not_merged(changed: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        merge_tables(table({0: 1.0}), table({1: 1.0}, **changed), {})


def test_imported_tables_are_not_merged() -> None:
    foreign = Table((), (), Provenance(device="host", space="demo", tool_version="0", origin=Origin(kind="imported")))
    with pytest.raises(UsageError, match="the runtime of an imported table is not known"):
        merge_tables(table({0: 1.0}), foreign, {})


def test_rows_that_differ_are_named_unless_more_is_allowed() -> None:
    one, other = table({0: 1.0, 1: 1.0, 2: 1.0}), table({0: 1.02, 1: 0.9, 2: 1.04})
    with pytest.raises(UsageError, match=rf"1 rows differ by more than 5% .*\({block_key(BLOCKS[1])} 1 and 0\.9 ms\)"):
        merge_tables(one, other, {})
    merged = merge_tables(one, other, {}, tolerance=0.2)
    assert {row.block: row.timing.unstable for row in merged.blocks} == {BLOCKS[0]: False, BLOCKS[1]: True, BLOCKS[2]: True}


def test_a_difference_is_freed_from_the_reference_and_the_most_different_comes_first() -> None:
    one = table({0: 1.0, 1: 1.0, 2: 1.0, 3: 1.0}, {SMALL: ("fit", 10.0)})
    other = table({1: 1.1, 2: 1.32, 3: 1.1, 4: 1.0}, {SMALL: ("fit", 11.0), LARGE: ("fit", 3.0)}, reference_ms=0.55)
    found = diff_tables(one, other)
    assert found.only_first == (block_key(BLOCKS[0]),)
    assert found.only_second == (block_key(BLOCKS[4]), str(LARGE))
    assert found.reference_ratio == pytest.approx(1.1)
    assert found.common[0].name == block_key(BLOCKS[2])
    assert [each.ratio for each in found.common] == pytest.approx([1.2, 1, 1, 1])
    assert found.ratios == pytest.approx((1.0, 1.0, 1.0, 1.17, 1.2))


def test_tables_of_different_references_are_compared_as_they_are() -> None:
    found = diff_tables(table({0: 1.0}), table({0: 2.0}, reference="r32", reference_ms=9.0))
    assert (found.reference_ratio, found.common[0].ratio) == (None, 2.0)
    assert diff_tables(table({0: 1.0}), table({1: 2.0})).ratios is None


def test_only_what_both_know_is_a_mixture() -> None:
    assert mixture({"harness": "a", "cpu": "x"}, {"harness": "a", "os": "y"}) is None
    assert mixture({"harness": "a"}, {"harness": "b"}) == "the harness is a in one and b in the other"
