"""Tables at the command line: listed, shown, imported, merged and compared, with one sentence where that cannot be."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from natdeploy.cli.main import app
from natdeploy.hardware.device import host_facts
from natdeploy.latency.blocks import block_key
from natdeploy.latency.plan import space_blocks
from natdeploy.latency.table import BlockRow, Provenance, SubnetRow, Table, Timing, read_table, write_table
from natdeploy.runtimes import ort
from natdeploy.space import get_space

SPACE = get_space("demo")
BLOCKS = space_blocks(SPACE, 10)[:6]
SMALL, LARGE = SPACE.decode(SPACE.lower), SPACE.decode(SPACE.upper)
NAME = "host/demo-w1/onnxruntime-fp32-1t"
QUALITY = {"n": 20, "within_5": 0.95, "within_10": 1.0, "mape": 0.02, "spearman": 0.99, "kendall": 0.95, "coverage": 0.9}
CRASH = block_key(BLOCKS[5])


def provenance(**changed: Any) -> Provenance:
    facts = host_facts()
    values: dict[str, Any] = {
        "device": "host",
        "runtime": "onnxruntime",
        "runtime_version": ort.version(),
        "provider": "CPUExecutionProvider",
        "precision": "fp32",
        "threads": 1,
        "batch": 1,
        "space": "demo",
        "classes": 10,
        "reference": str(SMALL),
        "reference_ms": 0.5,
        "harness": "natdeploy runner 1",
        "tool_version": "0",
        "utc": (datetime.now(UTC) - timedelta(days=3)).isoformat(),
        "measured_s": 12.5,
        "waiting_counted": True,
        "block_settings": {"min_s": 0.1},
        "subnet_settings": {"min_s": 0.3},
        "quality": QUALITY,
        **{name: facts[name] for name in ("cpu", "cores", "memory_mb", "os", "governor")},
    }
    return Provenance(**(values | changed))


def save(folder: Path, slug: str = "onnxruntime-fp32-1t", factor: float = 1.0, blocks: Any = BLOCKS[:4], **changed: Any) -> None:
    rows = tuple(BlockRow(block, Timing((i + 1) * factor, 1.0, 30, 3, i == 1)) for i, block in enumerate(blocks))
    nets = (
        SubnetRow(SMALL, "fit", Timing(10.0 * factor, 1.0, 24, 3, False)),
        SubnetRow(LARGE, "test", Timing(30.0, 1, 24, 3, False)),
    )
    write_table(folder, slug, Table(rows, nets, provenance(**changed), {CRASH: "no answer within 120 s"}))


@pytest.fixture
def tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "tables"
    monkeypatch.setenv("NATDEPLOY_TABLES", str(folder))
    save(folder / "host" / "demo-w1")
    return folder


def run(*arguments: Any) -> Result:
    return CliRunner().invoke(app, ["tables", *map(str, arguments)], catch_exceptions=False)


def mine(*arguments: Any) -> list[dict[str, Any]]:
    """The user's own tables, as `tables list` tells programs."""
    found = json.loads(run("list", "--json", *arguments).stdout)["tables"]
    return [line for line in found if not line["shipped"]]


def refused(*arguments: Any, code: int = 2) -> str:
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (code, "")
    (sentence,) = result.stderr.splitlines()
    assert sentence.startswith("error: ")
    assert json.loads(run(*arguments, "--json").stderr) == {"error": sentence.removeprefix("error: "), "exit_code": code}
    return sentence


def test_a_list_has_one_line_a_table(tables: Path) -> None:
    save(tables / "host" / "demo-w1", "onnxruntime-fp32-2t", runtime_version="0.1", quality=None)
    lines = [line for line in run("list").stdout.splitlines() if "(ships)" not in line]
    assert len(lines) == 2
    assert lines[0] == (
        f"{NAME}: host, onnxruntime {ort.version()}, fp32, 1 thread; measured; 4 blocks, 2 nets; 1 failed; 3 days old; "
        "within 5 % 95%, within 10 % 100%; usable here"
    )
    assert lines[1].endswith(f"3 days old; not usable here: onnxruntime version was 0.1, is {ort.version()}")
    assert [(line["rows"], line["usable"]) for line in mine()] == [(4, True), (4, False)]
    assert mine("--tables", tables / "none") == []


def test_a_list_goes_on_behind_a_damaged_table(tables: Path) -> None:
    save(tables / "host" / "demo-w1", "other")
    (tables / "host" / "demo-w1" / "other.csv").write_text("nothing")
    result = run("list")
    assert result.exit_code == 0
    assert NAME in result.stdout
    assert "damaged: " in result.stdout
    assert "other.csv, line 1: the columns must be" in json.loads(run("list", "--json").stdout)["damaged"][0]


def test_show_tells_provenance_rows_failures_and_strangers(tables: Path) -> None:
    stranger = next(block for block in space_blocks(get_space("mbv2"), 10) if block.kind == "mbconv")
    save(tables / "host" / "demo-w1", blocks=(*BLOCKS[:4], stranger))
    text = run("show", NAME).stdout
    for part in (
        "harness            natdeploy runner 1",
        "networks, fit         1 rows, 10 to 10 ms, median 10 ms",
        f"unstable: 1 ({block_key(BLOCKS[1])})",
        f"failed: 1\n  {CRASH}: no answer within 120 s",
        f"no blocks of its space: 1 ({block_key(stranger)})",
    ):
        assert part in text
    shown = json.loads(run("show", tables / "host" / "demo-w1" / "onnxruntime-fp32-1t.csv", "--json").stdout)
    assert shown["line"]["name"] == NAME
    assert shown["failures"] == {CRASH: "no answer within 120 s"}
    assert shown["strangers"] == [block_key(stranger)]
    assert sum(rows["rows"] for rows in shown["kinds"].values()) == 7


def test_unknown_and_damaged_tables_are_one_sentence(tables: Path) -> None:
    assert "did you mean host/demo-w1/onnxruntime-fp32-1t?" in refused("show", "host/demo-w1/onnxruntime-fp32-2t")
    assert "`natdeploy tables list` shows those there are" in refused("show", "x")
    assert "there is no table" in refused("show", tables / "none.csv")
    (tables / "host" / "demo-w1" / "onnxruntime-fp32-1t.subnets.csv").unlink()
    assert "onnxruntime-fp32-1t.subnets.csv is missing" in refused("show", NAME, code=1)


def yaml(folder: Path, text: str = "Logits-input:1x1x1536-output:1000: {mean: 0.5, count: 3}\nodd: {mean: 1, count: 1}\n") -> Path:
    path = folder / "224.yaml"
    path.write_text(text)
    return path


def test_an_import_says_what_it_took_and_what_not(tables: Path, tmp_path: Path) -> None:
    command = ["import", yaml(tmp_path), "--format", "ofa", "--device", "note10", "--space", "ofa_mbv3", "--width", "1.2"]
    trial = run(*command, "--dry-run")
    assert trial.exit_code == 0
    assert "2 entries: 1 blocks and 0 nets would be imported" in trial.stdout
    assert "left out, no key of a look-up table: 1 (odd)" in trial.stdout
    assert "not known: runtime, runtime_version" in trial.stdout
    assert not (tables / "note10").exists()

    (result,) = json.loads(run(*command, "--licence", "MIT", "--threads", "1", "--json").stdout)
    assert (result["name"], result["rows"], result["written"]) == ("note10/ofa_mbv3-w1.2/ofa-1t", 1, True)
    table = read_table(Path(result["folder"]), result["slug"])
    p = table.provenance
    assert (p.runtime, p.threads, p.classes, p.origin.format, p.origin.licence) == (None, 1, 1000, "ofa", "MIT")
    assert "threads as told at the import" in p.origin.assumed
    assert list(p.origin.files) == ["224.yaml"]
    (line,) = [line for line in mine() if line["origin"] == "imported from ofa"]
    assert (line["age_days"], line["why_not"]) == (
        None,
        "it has no whole networks, and without them a network's latency cannot be predicted",
    )
    assert "there is a table note10/ofa_mbv3-w1.2/ofa-1t already" in refused(*command, "--threads", "1")


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"--device": None}, "do not say whose latencies they hold; give --device and --space"),
        ({"--space": None}, "give --device and --space"),
        ({"--space": "mbv9"}, "there is no space 'mbv9'"),
        ({"--space": "demo"}, "nothing in the files is a block of demo at width 1.2 (1: no block of demo at width 1.2, 1: no key"),
        ({"--device": "../x"}, "'../x' cannot be the name of a device"),
        ({"--runtime": "a/b"}, "'a/b' cannot be the name of a runtime"),
    ],
)
def test_an_import_that_cannot_be_is_one_sentence(tables: Path, tmp_path: Path, changed: dict[str, str | None], says: str) -> None:
    options = {"--format": "ofa", "--device": "note10", "--space": "ofa_mbv3", "--width": "1.2"} | changed
    given = [part for name, value in options.items() if value is not None for part in (name, value)]
    assert says in refused("import", yaml(tmp_path), *given)
    assert not (tables / "note10").exists()


def test_a_damaged_import_names_the_line(tables: Path, tmp_path: Path) -> None:
    path = yaml(tmp_path, "a: {mean: 1, count: 1}\nb: {mean: 0, count: 1}\n")
    command = ["import", path, "--format", "ofa", "--device", "note10", "--space", "ofa_mbv3"]
    assert "224.yaml, line 2: a latency must be positive" in refused(*command, code=1)
    assert "a file is given twice" in refused(*command, path)


def test_a_table_of_another_machine_and_an_earlier_version_is_written_anew(tables: Path, tmp_path: Path) -> None:
    there = tmp_path / "there" / "demo-w1"
    save(there)
    (there / "onnxruntime-fp32-1t.1.0-10classes.measurements.jsonl").write_text("raw\n")
    toml = there / "onnxruntime-fp32-1t.toml"
    lines = toml.read_text().split("[origin]")[0].splitlines()
    old = [line for line in lines if line != "format = 2"]
    toml.write_text("\n".join(old) + "\n[block_settings]\nmin_s = 0.1\n[subnet_settings]\nmin_s = 0.1\n")
    csv = there / "onnxruntime-fp32-1t.csv"

    assert "there is a table host/demo-w1/onnxruntime-fp32-1t already" in refused("import", csv, "--format", "natdeploy")
    assert "says itself what" in refused("import", csv, "--format", "natdeploy", "--threads", 1)
    assert "is a table of space demo, not of mbv2" in refused("import", csv, "--format", "natdeploy", "--space", "mbv2")
    result = run("import", csv, "--format", "natdeploy", "--device", "server")
    assert result.exit_code == 0, result.stderr
    assert "read as format 1 of natdeploy's tables" in result.stdout
    folder = tables / "server" / "demo-w1"
    table = read_table(folder, "onnxruntime-fp32-1t")
    assert (table.provenance.format, table.provenance.device, len(table.blocks)) == (2, "server", 4)
    assert table.provenance.origin.kind == "measured"
    assert (folder / "onnxruntime-fp32-1t.1.0-10classes.measurements.jsonl").read_text() == "raw\n"

    loose = tmp_path / "loose"
    there.rename(loose)
    assert "does not tell the space, as demo-w1 would; give --space" in refused(
        "import", loose / csv.name, "--format", "natdeploy", "--device", "b"
    )
    assert run("import", loose / csv.name, "--format", "natdeploy", "--device", "b", "--space", "demo").exit_code == 0


def test_a_table_of_another_width_is_refused(tables: Path, tmp_path: Path) -> None:
    there = tmp_path / "ofa_mbv3-w1"
    save(there, blocks=space_blocks(get_space("ofa_mbv3").restrict(widths=[1.2], resolutions=[192]), 10)[:4], space="ofa_mbv3")
    says = refused("import", there / "onnxruntime-fp32-1t.csv", "--format", "natdeploy", "--device", "server")
    assert "is not of space ofa_mbv3 at width 1: " in says


def test_merged_and_compared(tables: Path, tmp_path: Path) -> None:
    night = tmp_path / "host" / "demo-w1"
    save(night, factor=1.1, blocks=BLOCKS[:5], reference_ms=0.55)
    other = night / "onnxruntime-fp32-1t.csv"
    # The large net took the same while the reference took a tenth longer, so they do not agree on it.
    says = refused("merge", NAME, other, "--out", NAME)
    assert "1 rows differ by more than 5%" in says
    assert str(LARGE) in says

    compared = run("diff", NAME, other).stdout
    assert "reference: 1.100 times what it took in the first" in compared
    assert f"only in the second: 1 ({block_key(BLOCKS[4])})" in compared
    assert "6 rows in both: ratio 1.000" in compared
    as_json = json.loads(run("diff", NAME, other, "--json").stdout)
    assert as_json["common"][0]["name"] == str(LARGE)
    assert as_json["measured"]["reference_ms"] == [0.5, 0.55]

    merged = run("merge", NAME, other, "--out", NAME, "--tolerance", "0.2", "--json")
    result = json.loads(merged.stdout)
    assert (result["name"], result["rows"], result["subnets"], result["common"]) == (NAME, 5, 2, 6)
    table = read_table(tables / "host" / "demo-w1", "onnxruntime-fp32-1t")
    assert {row.block: row.timing.latency_ms for row in table.blocks} == pytest.approx(
        {block: i + 1 for i, block in enumerate(BLOCKS[:5])}
    )
    assert len(table.provenance.origin.files) == 2
    assert all(name.startswith(f"{NAME} of 20") for name in table.provenance.origin.files)


def test_merging_what_does_not_belong_together_is_one_sentence(tables: Path, tmp_path: Path) -> None:
    folder = tables / "host" / "demo-w1"
    save(folder, "newer", runtime_version="99")
    save(folder, "harness", harness="benchmark_model")
    save(tables / "host" / "demo-w2", "onnxruntime-fp32-1t")
    out = tmp_path / "x.csv"
    assert f"version of the runtime is {ort.version()} in one and 99" in refused("merge", NAME, "host/demo-w1/newer", "--out", out)
    assert "the harness is natdeploy runner 1 in one" in refused("merge", NAME, "host/demo-w1/harness", "--out", out)
    assert "one is of demo-w1, the other of demo-w2" in refused("merge", NAME, "host/demo-w2/onnxruntime-fp32-1t", "--out", out)
    assert "there is a table host/demo-w1/newer already" in refused("merge", NAME, NAME, "--out", "host/demo-w1/newer")
    assert "names no table" in refused("merge", NAME, NAME, "--out", "x")
    assert not out.exists()
