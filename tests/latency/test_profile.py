"""Measuring a plan: interrupted anywhere it goes on, what fails is left out and named, and it ends when it is good enough."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from natdeploy.errors import DamagedFileError, DeviceError, DeviceLostError
from natdeploy.hardware import farm
from natdeploy.hardware.bench import QUICK
from natdeploy.hardware.device import Target, parse_target
from natdeploy.hardware.measure import MeasureResult
from natdeploy.hardware.measure import measure as measure_on_device
from natdeploy.latency import journal, profile
from natdeploy.latency.blocks import block_key, input_shape
from natdeploy.latency.journal import Journal
from natdeploy.latency.plan import Plan, make_plan
from natdeploy.latency.profile import profile_table
from natdeploy.latency.table import Table
from natdeploy.progress import Progress, Silent
from natdeploy.runtimes import ort
from natdeploy.space import Arch, Block, get_space
from natdeploy.supernet.subnet import Subnet, build_block

DEMO = get_space("demo")
BRIEF = replace(QUICK, processes=1)


@pytest.fixture
def plan() -> Plan:
    return make_plan(DEMO, 4, blocks=6, least=2, fit=2, test=2, seed=0)


class Converter:
    """Writes models; is killed at the given one, and raises at certain rows."""

    def __init__(self, killed_at: int | None = None, refused: tuple[str, ...] = ()) -> None:
        self.written: list[str] = []
        self.killed_at, self.refused = killed_at, refused

    def __call__(self, what: Block | Arch, path: Path) -> None:
        name = profile.model_id(what)
        if len(self.written) == self.killed_at:
            raise KeyboardInterrupt
        if name in self.refused:
            raise ValueError("no such operator\nand much more")
        self.written.append(name)
        if isinstance(what, Block):
            ort.convert(build_block(what), torch.zeros(input_shape(what)), path, dynamic_size=True)
        else:
            example = torch.zeros(1, 3, what.resolution, what.resolution)
            ort.convert(Subnet(DEMO, what, 4), example, path, dynamic_size=False)


def measure(
    plan: Plan,
    path: Path,
    convert: Converter,
    *,
    budget_s: float = 1e6,
    good_enough: Callable[[Table], bool] = lambda _: False,
    targets: Sequence[Target] = (parse_target("host"),),
    progress: Progress | None = None,
) -> tuple[Table, Journal]:
    return profile_table(
        plan,
        convert,
        targets,
        path,
        budget_s=budget_s,
        good_enough=good_enough,
        progress=progress or Silent(),
        block_settings=BRIEF,
        subnet_settings=BRIEF,
    )


@pytest.fixture
def calm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is measured again, however noisy the machine."""
    monkeypatch.setattr(profile, "NOISY", float("inf"))


def test_interrupted_measuring_goes_on_where_it_was(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calm: None
) -> None:
    monkeypatch.setattr(profile, "CHUNK", 4)
    path = tmp_path / "journal.jsonl"
    with pytest.raises(KeyboardInterrupt):
        measure(plan, path, Converter(killed_at=6))
    before = path.read_text()
    assert before.count("\n") == 2
    path.write_text(before + '{"rows": [{"id": "half a li')
    second = Converter()
    table, _ = measure(plan, path, second)
    assert path.read_text().startswith(before)
    assert not {str(arch) for arch in (*plan.fit, *plan.test)} & set(second.written[1:])
    assert [row.block for row in table.blocks] == list(plan.blocks)
    assert {row.arch for row in table.subnets if row.role == "test"} == set(plan.test)
    assert all(row.timing.latency_ms > 0 and row.timing.n >= 8 for row in (*table.blocks, *table.subnets))
    assert table.provenance.reference_ms > 0
    third = Converter()
    assert measure(plan, path, third)[0] == table
    assert third.written == []


def test_more_budget_appends_and_measures_nothing_twice(plan: Plan, tmp_path: Path, calm: None) -> None:
    path = tmp_path / "journal.jsonl"
    table, journal = measure(plan, path, Converter(), budget_s=0.0)
    assert [row.block for row in table.blocks] == list(plan.blocks[: plan.least])
    assert len(table.subnets) == 4
    again = Converter()
    longer, whole = measure(plan, path, again)
    assert [row.block for row in longer.blocks] == list(plan.blocks)
    assert longer.blocks[: plan.least] != ()
    assert whole.measuring_s > journal.measuring_s
    assert not {block_key(block) for block in plan.blocks[: plan.least]} & set(again.written)


def test_it_ends_when_the_predictor_is_good_enough(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calm: None) -> None:
    monkeypatch.setattr(profile, "CHUNK", 2)
    table, _ = measure(plan, tmp_path / "journal.jsonl", Converter(), good_enough=lambda so_far: len(so_far.blocks) >= 4)
    assert [row.block for row in table.blocks] == list(plan.blocks[:4])


def test_blocks_that_differ_in_size_alone_share_a_file(tmp_path: Path, calm: None) -> None:
    plan = make_plan(DEMO, 4, blocks=6, least=2, fit=2, test=2, seed=0)
    block = next(block for block in plan.blocks if block.kind == "mbconv")
    sizes = tuple(replace(block, size=size) for size in (8, 12, 16))
    convert = Converter()
    table, _ = measure(replace(plan, blocks=sizes), tmp_path / "journal.jsonl", convert)
    assert [row.block for row in table.blocks] == list(sizes)
    assert len([name for name in convert.written if name.startswith("mbconv")]) == 1


def test_what_cannot_be_converted_is_left_out_named_and_not_tried_again(plan: Plan, tmp_path: Path, calm: None) -> None:
    bad = block_key(plan.blocks[3])
    table, _ = measure(plan, tmp_path / "journal.jsonl", Converter(refused=(bad,)))
    assert table.failures == {bad: "not converted: ValueError: no such operator"}
    assert bad not in {block_key(row.block) for row in table.blocks}
    assert len(table.blocks) == len(plan.blocks) - 1
    again = Converter()
    assert measure(plan, tmp_path / "journal.jsonl", again)[0] == table
    assert again.written == []


def test_a_reference_that_cannot_run_is_the_targets_fault(plan: Plan, tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="cannot run the reference network"):
        measure(plan, tmp_path / "journal.jsonl", Converter(refused=(str(plan.reference),)))


def test_noisy_rows_are_measured_once_more_and_the_calmer_one_counts(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profile, "NOISY", -1.0)
    table, _ = measure(plan, tmp_path / "journal.jsonl", Converter())
    lines = (tmp_path / "journal.jsonl").read_text().splitlines()[1:]
    rows = [row for line in lines for row in json.loads(line)["rows"]]
    for row in table.subnets:
        calmest = min((each for each in rows if each["id"] == str(row.arch)), key=lambda each: each["spread"])
        assert row.timing.p50_ms == calmest["p50_ms"]
    assert len(rows) == 2 * (len(plan.blocks) + 4)


def test_another_measurement_or_a_damaged_journal_is_refused(plan: Plan, tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_text('{"target": "toaster"}\n')
    with pytest.raises(DamagedFileError, match=r"another measurement .*was 'toaster'"):
        measure(plan, path, Converter())
    path.unlink()
    with pytest.raises(KeyboardInterrupt):
        measure(plan, path, Converter(killed_at=0))
    path.write_text(path.read_text() + "{}\n")
    with pytest.raises(DamagedFileError, match="is damaged"):
        measure(plan, path, Converter())
    path.write_text(path.read_text().splitlines()[0] + "\n")
    with pytest.raises(DamagedFileError, match="another measurement"):
        measure(replace(plan, classes=5), path, Converter())


def test_a_journal_of_before_several_devices_goes_on(plan: Plan, tmp_path: Path, calm: None) -> None:
    path = tmp_path / "journal.jsonl"
    table, _ = measure(plan, path, Converter())
    first, *lines = path.read_text().splitlines()
    chunks = [json.loads(line) for line in lines]
    assert {chunk.pop("device") for chunk in chunks} == {"host"}
    path.write_text("\n".join([first, *map(json.dumps, chunks)]) + "\n")
    again, kept = measure(plan, path, Converter())
    assert again == table
    assert list(kept.drifts) == ["host"]


def test_a_device_that_changed_meanwhile_is_refused(plan: Plan, tmp_path: Path, calm: None) -> None:
    path = tmp_path / "journal.jsonl"
    measure(plan, path, Converter(), budget_s=0.0)
    first, *lines = path.read_text().splitlines()
    chunks = [json.loads(line) for line in lines]
    for chunk in chunks:
        chunk["environment"]["governor"] = "another"
    path.write_text("\n".join([first, *map(json.dumps, chunks)]) + "\n")
    with pytest.raises(DeviceError, match="governor was another when this table was begun"):
        measure(plan, path, Converter())


class Notes(Silent):
    """Keeps what is noted."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


def two_hosts() -> list[Target]:
    """This machine twice, as two devices of one kind."""
    host = parse_target("host")
    return [replace(host, device=host.device.model_copy(update={"name": f"host#{n}"})) for n in (1, 2)]


def test_two_devices_share_the_work_and_one_that_dies_leaves_it_to_the_other(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calm: None
) -> None:
    monkeypatch.setattr(profile, "CHUNK", 2)
    monkeypatch.setattr(farm, "PAUSES_S", ())
    monkeypatch.setattr(journal, "AGREE", math.inf)
    begun: list[str] = []

    def dies(candidates: Any, reference: Any, target: Target, *arguments: Any, **options: Any) -> MeasureResult:
        begun.append(target.device.name)
        if begun.count("host#2") == 2 and target.device.name == "host#2":
            raise DeviceLostError("its battery is empty")
        return measure_on_device(candidates, reference, target, *arguments, **options)

    monkeypatch.setattr(profile, "measure", dies)
    notes = Notes()
    table, kept = measure(plan, tmp_path / "journal.jsonl", Converter(), targets=two_hosts(), progress=notes)
    assert [row.block for row in table.blocks] == list(plan.blocks)
    assert len(table.subnets) == 4
    assert notes.notes == ["host#2: its battery is empty; it is given up"]
    assert begun.count("host#2") == 2
    assert set(kept.drifts) == {"host#1", "host#2"}


def test_results_of_a_device_unlike_the_others_are_not_taken(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calm: None
) -> None:
    monkeypatch.setattr(profile, "CHUNK", 2)
    monkeypatch.setattr(farm, "PAUSES_S", ())

    def reports(candidates: Any, reference: Any, target: Target, *arguments: Any, **options: Any) -> MeasureResult:
        found = measure_on_device(candidates, reference, target, *arguments, **options)
        return replace(found, reference_ms=1.0 if target.device.name == "host#1" else 1.5)

    monkeypatch.setattr(profile, "measure", reports)
    notes = Notes()
    _, kept = measure(plan, tmp_path / "journal.jsonl", Converter(), targets=two_hosts(), progress=notes)
    assert len(kept.drifts) == 1
    (note,) = notes.notes
    assert re.search(r"the reference network takes 1(\.5)? ms on host#\d and 1(\.5)? ms on host#\d, which should be alike", note)


KILLED = """
import sys
sys.path.insert(0, {folder!r})
import test_profile
from natdeploy.latency import profile
profile.CHUNK = 2
plan = test_profile.make_plan(test_profile.DEMO, 4, blocks=6, least=2, fit=2, test=2, seed=0)
test_profile.measure(plan, test_profile.Path({path!r}), test_profile.Converter())
"""


def test_a_killed_process_loses_one_chunk_at_most(plan: Plan, tmp_path: Path, calm: None) -> None:
    path = tmp_path / "journal.jsonl"
    code = KILLED.format(folder=str(Path(__file__).parent), path=str(path))
    process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    try:
        while not path.exists() or path.read_text().count("\n") < 2:
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.01)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    kept = [row["id"] for line in path.read_text().splitlines()[1:] if line.endswith("}") for row in json.loads(line)["rows"]]
    assert len(kept) >= 2
    convert = Converter()
    table, _ = measure(plan, path, convert)
    assert not set(kept) & set(convert.written[1:])
    assert (len(table.blocks), len(table.subnets)) == (len(plan.blocks), 4)
