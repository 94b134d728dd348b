"""Tables come back as they were written, and a damaged one says where it is damaged."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from natdeploy.errors import DamagedFileError
from natdeploy.latency.blocks import block_key
from natdeploy.latency.plan import space_blocks
from natdeploy.latency.table import (
    FORMAT,
    BlockRow,
    Origin,
    Provenance,
    SpaceBlocks,
    SubnetRow,
    Table,
    Timing,
    pool,
    read_table,
    strangers,
    write_table,
)
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
    st.none() | st.floats(1e-6, 1e6, exclude_min=True),
    st.none() | st.integers(1, 10**6),
    st.none() | st.integers(1, 9),
    st.none() | st.booleans(),
)
BLOCKS = st.sampled_from([block for name in ("demo", "mbv3_large", "proxyless") for block in space_blocks(get_space(name), 10)])
ARCHS = st.integers(0, 2**32 - 1).map(lambda seed: SPACE.decode([(seed >> shift) % 5 for shift in range(SPACE.variables)]))
BLOCK_ROWS = st.lists(st.builds(BlockRow, BLOCKS, TIMINGS), max_size=8, unique_by=lambda row: row.block)
SUBNET_ROWS = st.lists(
    st.builds(SubnetRow, ARCHS, st.sampled_from(["fit", "test"]), TIMINGS), max_size=8, unique_by=lambda row: row.arch
)


TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
FAILURES = st.dictionaries(BLOCKS.map(block_key) | ARCHS.map(str), TEXTS, max_size=4)
IMPORTED = Provenance(
    device="note10",
    space="demo",
    classes=None,
    tool_version="0",
    origin=Origin(kind="imported", format="ofa", licence='"MIT"', assumed=("the stem has relu", "a\n"), files={"a b.yaml": "00"}),
)


@given(BLOCK_ROWS, SUBNET_ROWS, FAILURES, st.sampled_from([PROVENANCE, IMPORTED]))
@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_round_trip_keeps_every_digit(
    tmp_path: Path, blocks: list[BlockRow], subnets: list[SubnetRow], failures: dict[str, str], provenance: Provenance
) -> None:
    measured = {*(block_key(row.block) for row in blocks), *(str(row.arch) for row in subnets)}
    failed = {name: reason for name, reason in failures.items() if name not in measured}
    write_table(tmp_path, "t", Table(tuple(blocks), tuple(subnets), provenance, failed))
    back = read_table(tmp_path, "t")
    assert set(back.blocks) == set(blocks)
    assert set(back.subnets) == set(subnets)
    assert back.provenance == provenance
    assert back.failures == failed


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
        ("t.csv", "\nmbconv", "\nclassifier-1x128-m128-o10-k1-s1,0.1,0.1,1,1,no\nmbconv", r"line 4: .*already, in line 2"),
        ("t.csv", ",30,", ",0,", r"t\.csv, line 2: n and processes must be 1 or more"),
        ("t.csv", ",30,", ",30,3,", r"t\.csv, line 2: 7 cells, not 6"),
        ("t.toml", 'kind = "measured"', 'kind = "guessed"', r"t\.toml: origin\.kind"),
        ("t.toml", "format = 2", "format = 0", r"t\.toml: format: "),
        ("t.toml", "[origin]", '[failures]\nblock = "crashed"\n[origin]', r"t\.toml: 'block' is no block"),
        ("t.toml", "[origin]", "[failures]\nclassifier-1x128-m128-o10-k1-s1 = 3\n[origin]", r"t\.toml: failures: must be"),
        (
            "t.toml",
            "[origin]",
            '[failures]\nclassifier-1x128-m128-o10-k1-s1 = "crashed"\n[origin]',
            r"t\.toml: failures: classifier-1x128-m128-o10-k1-s1 has a row as well",
        ),
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


def test_a_table_of_a_newer_natdeploy_asks_for_an_update(folder: Path) -> None:
    path = folder / "t.toml"
    path.write_text(path.read_text().replace(f"format = {FORMAT}", f"format = {FORMAT + 1}"))
    with pytest.raises(DamagedFileError, match=f"has format {FORMAT + 1} and .* update natdeploy"):
        read_table(folder, "t")


FORMAT_1 = {
    "t.csv": """block,latency_ms,p50_ms,n,processes,unstable
stem-32x3-m16-o16-k3-s1,0.125,0.25,30,3,no
mbconv-32x16-m16-o16-k3-s1,0.25,0.5,31,3,yes
""",
    "t.subnets.csv": """arch,role,latency_ms,p50_ms,n,processes,unstable
r16-w1-k3e1-k3e3-k3e3-k3e3,fit,1.5,1.75,24,3,no
""",
    "t.toml": """device = "host"
runtime = "onnxruntime"
runtime_version = "1.20.1"
provider = "CPUExecutionProvider"
precision = "fp32"
threads = 1
batch = 1
space = "demo"
classes = 10
reference = "r16-w1-k3e1-k3e3-k3e3-k3e3"
reference_ms = 1.5
harness = "natdeploy runner 1"
tool_version = "0.1.0"
utc = "2026-01-01T00:00:00+00:00"
cpu = "some processor"
cores = 2
os = "Linux"
waiting_counted = true
measured_s = 12.5

[block_settings]
min_s = 0.1

[subnet_settings]
min_s = 0.2
""",
}
"""A table as the first version wrote it."""


def test_tables_of_the_first_format_are_read_and_written_anew(tmp_path: Path) -> None:
    for name, text in FORMAT_1.items():
        (tmp_path / name).write_text(text)
    table = read_table(tmp_path, "t")
    assert table.provenance.format == 1
    assert (table.provenance.origin.kind, table.failures, table.provenance.unknown) == ("measured", {}, ())
    assert [row.timing.latency_ms for row in table.blocks] == [0.125, 0.25]
    write_table(tmp_path, "u", table)
    again = read_table(tmp_path, "u")
    assert again.provenance == table.provenance.model_copy(update={"format": FORMAT})
    assert (tmp_path / "u.subnets.csv").read_text() == FORMAT_1["t.subnets.csv"]


def test_what_an_import_does_not_know_is_absent_and_named(tmp_path: Path) -> None:
    block = SPACE.blocks(SPACE.decode(SPACE.lower), 10)[0]
    write_table(tmp_path, "t", Table((BlockRow(block, Timing(0.5, None, None, None, None)),), (), IMPORTED))
    assert (tmp_path / "t.csv").read_text().splitlines()[1] == f"{block_key(block)},0.5,,,,"
    text = (tmp_path / "t.toml").read_text()
    assert not [name for name in IMPORTED.unknown if f"\n{name} =" in text]
    assert {"runtime", "threads", "reference_ms", "cpu", "utc"} <= set(IMPORTED.unknown)
    assert "processor was unknown, is x" in IMPORTED.mismatches({"cpu": "x", "cores": 2, "governor": None}, "1.0")


def test_a_quality_that_does_not_exist_is_left_out(tmp_path: Path) -> None:
    quality = {"within_5": 0.5, "spearman": float("nan")}
    write_table(tmp_path, "t", Table((), (), PROVENANCE.model_copy(update={"quality": quality})))
    assert read_table(tmp_path, "t").provenance.quality == {"within_5": 0.5}


def test_a_space_has_its_blocks_at_any_size_and_for_any_classes() -> None:
    space = get_space("ofa_mbv3").restrict(widths=[1.2])
    known = SpaceBlocks(space)
    assert all(block in known for block in space_blocks(space.restrict(resolutions=[96, 100]), 7))
    for other in (get_space("mbv2"), space.restrict(widths=[1.0])):
        rows = [BlockRow(block, Timing(1.0, 1.0, 1, 1, False)) for block in space_blocks(other.restrict(resolutions=[192]), 10)]
        assert len(strangers(Table(tuple(rows), (), PROVENANCE), space)) >= len(rows) - 2


def test_pooling_weighs_by_runs_and_shows_disagreement() -> None:
    one, other = Timing(1.0, 1.5, 30, 3, False), Timing(1.02, 2.5, 10, 1, False)
    assert pool([one, other]) == Timing(pytest.approx(1.005), pytest.approx(1.75), 40, 4, False)
    assert pool([one, Timing(1.04, None, None, 3, False)]) == Timing(pytest.approx(1.04 / 31 + 30 / 31), None, None, 6, True)
    assert pool([other]) is other
