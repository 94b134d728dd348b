"""Tables come back as they were written, and a damaged one says where it is damaged."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from natdeploy.errors import DamagedFileError
from natdeploy.latency.profile import space_blocks
from natdeploy.latency.table import BlockRow, Provenance, SubnetRow, Table, Timing, read_table, write_table
from natdeploy.space import get_space

SPACE = get_space("demo")
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
    reference="r16",
    reference_ms=0.5,
    harness="natdeploy runner 1",
    tool_version="0",
    utc="2026-01-01T00:00:00+00:00",
    cpu='the "best" processor',
    cores=2,
    memory_mb=None,
    os="Linux",
    governor=None,
    temperature_c=41.5,
    waiting_counted=True,
    measured_s=12.5,
    block_settings={"min_s": 0.1},
    subnet_settings={"min_s": 0.3, "processes": 3},
)
TIMINGS = st.builds(
    Timing,
    st.floats(1e-6, 1e6, exclude_min=True),
    st.floats(1e-6, 1e6, exclude_min=True),
    st.integers(1, 10**6),
    st.integers(1, 9),
    st.booleans(),
)
BLOCKS = st.sampled_from([block for name in ("demo", "mbv3_large", "proxyless") for block in space_blocks(get_space(name), 10)])
ARCHS = st.integers(0, 2**32 - 1).map(lambda seed: SPACE.decode([(seed >> shift) % 5 for shift in range(SPACE.variables)]))
BLOCK_ROWS = st.lists(st.builds(BlockRow, BLOCKS, TIMINGS), max_size=8, unique_by=lambda row: row.block)
SUBNET_ROWS = st.lists(
    st.builds(SubnetRow, ARCHS, st.sampled_from(["fit", "test"]), TIMINGS), max_size=8, unique_by=lambda row: row.arch
)


@given(BLOCK_ROWS, SUBNET_ROWS)
@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_round_trip_keeps_every_digit(tmp_path: Path, blocks: list[BlockRow], subnets: list[SubnetRow]) -> None:
    write_table(tmp_path, "t", Table(tuple(blocks), tuple(subnets), PROVENANCE))
    back = read_table(tmp_path, "t")
    assert set(back.blocks) == set(blocks)
    assert set(back.subnets) == set(subnets)
    assert back.provenance == PROVENANCE


def test_order_of_rows_does_not_matter_and_nothing_else_is_left(tmp_path: Path) -> None:
    timing = Timing(0.1, 0.2, 30, 3, False)
    rows = [BlockRow(block, timing) for block in SPACE.blocks(SPACE.decode(SPACE.upper), 10)]
    write_table(tmp_path, "a", Table(tuple(rows), (), PROVENANCE))
    write_table(tmp_path, "b", Table(tuple(reversed(rows)), (), PROVENANCE))
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        f"{n}.{s}" for n in "ab" for s in ("csv", "subnets.csv", "toml")
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    arch = SPACE.decode(SPACE.lower)
    timing = Timing(0.125, 0.25, 30, 3, True)
    blocks = tuple(BlockRow(block, timing) for block in SPACE.blocks(arch, 10))
    write_table(tmp_path, "t", Table(blocks, (SubnetRow(arch, "fit", timing),), PROVENANCE))
    return tmp_path


@pytest.mark.parametrize(
    ("file", "old", "new", "says"),
    [
        ("t.csv", "latency_ms", "latency", r"t\.csv, line 1: the columns must be"),
        ("t.csv", "0.125", "fast", r"t\.csv, line 2: could not convert"),
        ("t.csv", "0.125", "-0.125", r"t\.csv, line 2: a latency must be positive"),
        ("t.csv", "0.125", "nan", r"t\.csv, line 2: a latency must be positive"),
        ("t.csv", "yes", "maybe", r"t\.csv, line 2: unstable must be"),
        ("t.csv", "classifier", "classier", r"t\.csv, line 2: .*is no block"),
        ("t.csv", ",30,", ",", r"t\.csv, line 2"),
        ("t.subnets.csv", "fit", "train", r"t\.subnets\.csv, line 2: role must be"),
        ("t.subnets.csv", "r16", "s16", r"t\.subnets\.csv, line 2: .*is no architecture"),
        ("t.toml", "threads = 1", "threads =", r"t\.toml: "),
        ("t.toml", "threads = 1", "", r"t\.toml: threads: field required"),
        ("t.toml", "threads = 1", "threads = 1\nbeads = 2", r"t\.toml: beads: extra"),
    ],
)
def test_damage_is_named_with_file_line_and_remedy(folder: Path, file: str, old: str, new: str, says: str) -> None:
    path = folder / file
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(DamagedFileError, match=says) as caught:
        read_table(folder, "t")
    assert "natdeploy profile" in str(caught.value)


@pytest.mark.parametrize("file", ["t.csv", "t.subnets.csv", "t.toml"])
def test_missing_and_binary_files_are_named(folder: Path, file: str) -> None:
    (folder / file).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DamagedFileError, match=f"{file} is no text"):
        read_table(folder, "t")
    (folder / file).unlink()
    with pytest.raises(DamagedFileError, match=f"{file} is missing"):
        read_table(folder, "t")


def test_mismatches_are_said_in_words() -> None:
    facts = {"cpu": 'the "best" processor', "cores": 2, "governor": None}
    assert PROVENANCE.mismatches(facts, "1.0") == ()
    assert PROVENANCE.mismatches(facts | {"cores": 4}, "1.1") == (
        "number of cores was 2, is 4",
        "onnxruntime version was 1.0, is 1.1",
    )
