from __future__ import annotations

import fcntl
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Timer

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from natdeploy.errors import DamagedFileError, NatdeployError, UsageError
from natdeploy.store import Evaluation, FileRecord, LatencyRecord, NetRecord, RunStore, in_use
from natdeploy.toml import toml_text

NET = NetRecord(
    arch="r128-w1-k3e1",
    id="0123456789",
    role="front",
    validation_accuracy=0.9375,
    test_accuracy=None,
    predicted_ms=1.25,
    measured_p50_ms=None,
    measured_p90_ms=None,
    measured_n=None,
    unstable=None,
    params=2_236_682,
    macs=98_000_000,
)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunStore]:
    with RunStore.create(tmp_path / "run", {"seed": 0}, {}) as opened:
        yield opened


def reopen(run: RunStore) -> RunStore:
    run.close()
    return RunStore.open(run.folder)


def checkpoint_files(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


# ---- what goes in comes out


def test_facts_and_timings_are_there_after_reopening(run: RunStore) -> None:
    run.set("splits", {"train": ["a/1.jpg"], "test": []})
    run.set("splits", {"train": ["ä/1.jpg"], "test": []})
    run.add_seconds({"train": 1.5, "evaluate": 0.25})
    run.add_seconds({"train": 2.0})
    with reopen(run) as again:
        assert again.get("splits") == {"train": ["ä/1.jpg"], "test": []}
        assert again.get("nothing") is None
        assert again.config == {"seed": 0}
        assert list(again.seconds().items()) == [("train", 3.5), ("evaluate", 0.25)]


def test_evaluations_are_kept_by_step_and_architecture_in_their_order(run: RunStore) -> None:
    first = Evaluation(step=0, arch="b", correct=5, total=8, loss=1.25, seconds=0.5)
    second = Evaluation(step=0, arch="a", correct=6, total=8, loss=1.0, seconds=0.5)
    third = Evaluation(step=1, arch="b", correct=7, total=8, loss=0.5, seconds=0.5)
    for evaluation in (first, second, third):
        run.record(evaluation)
    better = replace(first, correct=8)
    run.record(better)
    with reopen(run) as again:
        assert again.evaluations() == [better, second, third]
        assert again.evaluations(0) == [better, second]
        assert again.evaluation(1, "b") == third
        assert again.evaluation(1, "a") is None
        assert again.evaluation(0, "b") == better
        assert better.accuracy == 1.0


def test_a_loss_that_is_no_number_is_refused(run: RunStore) -> None:
    for loss in (float("nan"), float("inf")):
        with pytest.raises(NatdeployError, match="training diverged"):
            run.record(Evaluation(0, "a", 1, 2, loss, 0.1))
    assert run.evaluations() == []


def test_a_round_told_twice_is_stored_once(run: RunStore) -> None:
    run.add_round({"round": 2, "hypervolume": 0.5})
    run.add_round({"round": 1, "hypervolume": 0.25})
    run.add_round({"round": 2, "hypervolume": 0.75})
    assert run.rounds() == [{"round": 1, "hypervolume": 0.25}, {"round": 2, "hypervolume": 0.75}]


def test_nets_are_updated_in_place(run: RunStore) -> None:
    baseline = replace(NET, role="baseline", test_accuracy=0.5)
    measured = replace(
        NET,
        test_accuracy=0.875,
        measured_p50_ms=1.5,
        measured_p90_ms=1.75,
        measured_n=300,
        unstable=False,
    )
    run.put_net(NET)
    run.put_net(baseline)
    assert run.nets() == [NET, baseline]
    run.put_net(measured)
    with reopen(run) as again:
        assert again.nets() == [measured, baseline]
        assert again.nets()[0].unstable is False


def test_files_and_latencies_are_updated_in_place(run: RunStore) -> None:
    file = FileRecord("front", "abc", "tflite", "int8", "models/abc/int8.tflite", 2.5, 0.9, None, 0.97, 0.05)
    latency = LatencyRecord("front", "abc", "host/tflite-int8-1t", None, None, 1.5, 40, unstable=True, energy_mj=3.0)
    run.put_file(replace(file, precision="fp32"))
    run.put_file(file)
    run.put_file(refused := replace(file, refused="it loses 3.0 points"))
    run.put_latency(latency)
    run.put_latency(later := replace(latency, p50_ms=1.25, n=200, unstable=False))
    with reopen(run) as again:
        assert again.files() == [replace(file, precision="fp32"), refused]
        assert again.latencies() == [later]
        assert again.latencies()[0].unstable is False


def test_the_schema_has_the_fields_in_their_order(run: RunStore) -> None:
    with sqlite3.connect(run.folder / "run.sqlite") as database:
        for table, kind in (("nets", NetRecord), ("evaluations", Evaluation), ("files", FileRecord), ("latencies", LatencyRecord)):
            assert [row[1] for row in database.execute(f"PRAGMA table_info({table})")] == list(kind.__dataclass_fields__)
    database.close()


def test_a_number_of_numpy_that_sqlite_does_not_know_is_refused(run: RunStore) -> None:
    with pytest.raises(sqlite3.IntegrityError, match=r"cannot store BLOB value in INTEGER column nets\.params"):
        run.put_net(replace(NET, params=np.int64(3)))
    assert run.nets() == []


def test_checkpoints_come_back_bit_for_bit_and_replace_each_other(run: RunStore) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "weight": torch.randn(4, 3, 3, 3, generator=generator).to(memory_format=torch.channels_last),
        "half": torch.randn(5, generator=generator).half(),
        "count": torch.tensor(7),
        "empty": torch.empty(0, 3),
    }
    run.save_checkpoint("supernet", {"weight": torch.zeros(1)}, {"step": 1})
    run.save_checkpoint("supernet", tensors, {"step": 2, "name": "ü"})
    run.save_checkpoint("best", {"weight": torch.ones(1)}, {})
    with reopen(run) as again:
        loaded = again.load_checkpoint("supernet")
        assert loaded is not None
        assert loaded[1] == {"step": 2, "name": "ü"}
        assert loaded[0].keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert loaded[0][name].dtype == tensor.dtype
            assert torch.equal(loaded[0][name], tensor)
        assert again.load_checkpoint("other") is None
    assert checkpoint_files(run.folder) == ["best-1.safetensors", "supernet-2.safetensors"]


# ---- the copy of the configuration

JSON_KEYS = st.text(min_size=1, max_size=8)
SCALARS = st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=12)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(JSON_KEYS, inner, max_size=3), max_leaves=8
)


@settings(deadline=None, max_examples=50)
@given(st.dictionaries(JSON_KEYS, VALUES, max_size=5))
def test_the_configuration_is_written_as_toml(config: dict[str, object]) -> None:
    assert tomllib.loads(toml_text(config)) == config


def test_the_configuration_lies_in_the_folder_without_what_is_not_set(tmp_path: Path) -> None:
    config = {"data": "/photos", "rounds": None, "constraints": ["latency<=1.5ms"], "nat": {"initial": 16}}
    with RunStore.create(tmp_path / "run", config, {}) as run:
        assert run.config == config
    text = (tmp_path / "run" / "config.toml").read_text()
    assert tomllib.loads(text) == {"data": "/photos", "constraints": ["latency<=1.5ms"], "nat": {"initial": 16}}
    assert text == 'data = "/photos"\nconstraints = ["latency<=1.5ms"]\n\n[nat]\ninitial = 16\n'


# ---- who may open what


def test_a_second_writer_is_told_the_process(run: RunStore) -> None:
    script = "import sys, pathlib; from natdeploy.store import RunStore; RunStore.open(pathlib.Path(sys.argv[1]))"
    other = subprocess.run([sys.executable, "-c", script, run.folder], capture_output=True, text=True, check=False)
    assert other.returncode == 1
    assert f"UsageError: {run.folder} is in use by process {os.getpid()};" in other.stderr
    run.close()
    subprocess.run([sys.executable, "-c", script, run.folder], check=True)


def test_the_store_needs_no_torch() -> None:
    script = "import sys, natdeploy.store; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_run_is_not_made_over_another(run: RunStore) -> None:
    run.close()
    with pytest.raises(UsageError, match="holds a run already; go on with `natdeploy resume"):
        RunStore.create(run.folder, {}, {})
    with reopen(run) as again:
        assert again.config == {"seed": 0}


def test_a_run_whose_making_was_interrupted_can_be_made_again(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / ".run.sqlite.1").write_bytes(b"half")
    with RunStore.create(folder, {"seed": 1}, {}) as run:
        assert run.config == {"seed": 1}


@pytest.mark.parametrize("exists", [False, True])
def test_a_folder_without_a_run_is_said_to_be_one(tmp_path: Path, exists: bool) -> None:
    folder = tmp_path / "run"
    if exists:
        folder.mkdir()
    with pytest.raises(UsageError, match="there is no run in"):
        RunStore.open(folder)


def test_a_run_cannot_be_made_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NatdeployError, match="cannot be made"):
        RunStore.create(tmp_path / "file" / "run", {}, {})


# ---- damage


@pytest.mark.parametrize("damage", ["text", "empty", "zeros", "cut"])
def test_a_damaged_database_is_named(run: RunStore, damage: str) -> None:
    for step in range(60):
        run.record(Evaluation(step, "a" * 1000, 1, 2, 0.5, 0.1))
    run.close()
    path = run.folder / "run.sqlite"
    data = path.read_bytes()
    middle = len(data) // 2
    path.write_bytes(
        {
            "text": b"this is not a database " * 500,
            "empty": b"",
            "zeros": data[:middle] + bytes(8192) + data[middle + 8192 :],
            "cut": data[: middle // 4096 * 4096],
        }[damage]
    )
    with pytest.raises(DamagedFileError, match=r"run\.sqlite is damaged .* start a new run"):
        RunStore.open(run.folder)
    path.write_bytes(data)
    with RunStore.open(run.folder) as again:  # the lock is free again
        assert len(again.evaluations()) == 60


_OLD_TABLES = """
DROP TABLE failures;
DROP TABLE evaluations;
DROP TABLE nets;
DROP TABLE files;
DROP TABLE latencies;
CREATE TABLE evaluations (
    step INTEGER NOT NULL, arch TEXT NOT NULL, correct INTEGER NOT NULL, total INTEGER NOT NULL, loss REAL NOT NULL,
    seconds REAL NOT NULL, PRIMARY KEY (step, arch)
) STRICT;
CREATE TABLE nets (
    arch TEXT NOT NULL, id TEXT NOT NULL, role TEXT NOT NULL, validation_accuracy REAL NOT NULL, test_accuracy REAL,
    predicted_ms REAL, measured_p50_ms REAL, measured_p90_ms REAL, measured_n INTEGER, unstable INTEGER, params INTEGER NOT NULL,
    macs INTEGER NOT NULL, runtime_accuracy REAL, parity REAL, files TEXT NOT NULL, PRIMARY KEY (role, id)
) STRICT;
INSERT INTO evaluations VALUES (0, 'r16', 7, 10, 0.5, 0.1), (0, 'r24', 8, 10, 0.4, 0.2);
INSERT INTO nets VALUES ('r16', 'abc', 'front', 0.7, 0.6, 1.5, NULL, NULL, NULL, NULL, 10, 20, 0.75, 1e-6, '["a.onnx"]');
"""
"""A run of version 1, as that version made it."""


@pytest.mark.parametrize("version", [1, 2])
def test_a_run_of_an_earlier_version_is_read(run: RunStore, version: int) -> None:
    run.close()
    with closing(sqlite3.connect(run.folder / "run.sqlite")) as database:
        database.executescript(_OLD_TABLES)
        if version == 2:
            database.execute("ALTER TABLE nets ADD COLUMN estimated INTEGER NOT NULL DEFAULT 0")
            database.execute("UPDATE nets SET estimated = 1")
        database.execute(f"PRAGMA user_version = {version}")
        database.commit()
    for _ in range(2):
        with RunStore.open(run.folder) as old:
            assert old.evaluations() == [Evaluation(0, "r16", 7, 10, 0.5, 0.1), Evaluation(0, "r24", 8, 10, 0.4, 0.2)]
            (net,) = old.nets()
            (file,) = old.files()
    assert (net.arch, net.test_accuracy, net.final_accuracy, net.predicted_ms) == ("r16", 0.6, 0.6, 1.5)
    assert (net.estimated, net.tuned_accuracy, net.objectives, net.precision) == (version == 2, None, {}, None)
    assert file == FileRecord("front", "abc", "onnx", "fp32", "a.onnx", None, None, 0.75, None, None)
    with RunStore.open(run.folder) as old:
        old.put_net(replace(net, tuned_accuracy=0.8, objectives={"latency@phone": 2.5}))
        old.record(Evaluation(0, "r16", 3, 4, 0.6, 0.1, whole=False))
        assert old.nets()[0].final_accuracy == 0.8
        assert old.nets()[0].objectives == {"latency@phone": 2.5}
        assert old.evaluation(0, "r16") == Evaluation(0, "r16", 7, 10, 0.5, 0.1)


def test_a_part_of_the_images_and_all_of_them_are_told_apart(run: RunStore) -> None:
    part, whole = Evaluation(3, "r16", 3, 4, 0.6, 0.1, whole=False), Evaluation(3, "r16", 7, 10, 0.5, 0.1)
    run.record(part)
    assert run.evaluation(3, "r16") is None
    run.record(whole)
    assert (run.evaluation(3, "r16", whole=False), run.evaluation(3, "r16")) == (part, whole)


def test_failures_are_kept_with_their_reason(run: RunStore) -> None:
    run.record_failure(1, "r16", "out of memory")
    run.record_failure(2, "r16", "still out of memory", whole=False)
    assert run.failure(1, "r16") == "out of memory"
    assert run.failure(2, "r16") is None
    assert run.failure(2, "r16", whole=False) == "still out of memory"
    assert run.failures() == {"r16": "still out of memory"}
    assert run.evaluation(1, "r16") is None


def test_a_run_of_a_newer_version_is_refused(run: RunStore) -> None:
    run.close()
    with sqlite3.connect(run.folder / "run.sqlite") as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(UsageError, match=r"has format 99 .* install a newer one"):
        RunStore.open(run.folder)


@pytest.mark.parametrize("damage", ["gone", "cut", "one bit"])
def test_a_damaged_checkpoint_is_named(run: RunStore, damage: str) -> None:
    run.save_checkpoint("supernet", {"weight": torch.arange(1000.0)}, {"step": 1})
    path = run.folder / "checkpoints" / "supernet-1.safetensors"
    data = bytearray(path.read_bytes())
    if damage == "gone":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(data[:-1])
    else:
        data[-100] ^= 1
        path.write_bytes(data)
    with pytest.raises(DamagedFileError, match=r"supernet-1\.safetensors .* start a new run"):
        run.load_checkpoint("supernet")


# ---- a full disk


@pytest.mark.parametrize("call", ["fsync", "write"])
def test_a_full_disk_leaves_the_old_checkpoint(run: RunStore, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    run.save_checkpoint("supernet", {"weight": torch.zeros(3)}, {"step": 1})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(NatdeployError, match=r"No space left on device.*make room") as caught:
        if call == "fsync":
            patch.setattr(os, "fsync", full)
        else:
            patch.setattr(Path, "replace", full)
        run.save_checkpoint("supernet", {"weight": torch.ones(3)}, {"step": 2})
    assert "\n" not in str(caught.value)
    assert checkpoint_files(run.folder) == ["supernet-1.safetensors"]
    loaded = run.load_checkpoint("supernet")
    assert loaded is not None
    assert loaded[1] == {"step": 1}
    assert torch.equal(loaded[0]["weight"], torch.zeros(3))
    run.save_checkpoint("supernet", {"weight": torch.ones(3)}, {"step": 2})
    assert checkpoint_files(run.folder) == ["supernet-2.safetensors"]


def _write_until_full(folder: Path, connection: Connection) -> None:
    """In a process of its own, where no file may grow beyond 200 kB."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    messages = []
    with RunStore.open(folder) as run:
        try:
            run.save_checkpoint("supernet", {"weight": torch.ones(100_000)}, {"step": 2})
        except NatdeployError as error:
            messages.append(str(error))
        stored = 0
        try:
            while stored < 1000:
                run.set(f"key {stored}", "x" * 10_000)
                stored += 1
        except NatdeployError as error:
            messages.append(str(error))
        readable = run.get(f"key {stored - 1}") == "x" * 10_000
        connection.send((messages, stored, readable))


def test_what_the_disk_has_no_room_for_is_not_stored_and_all_else_is(run: RunStore) -> None:
    run.save_checkpoint("supernet", {"weight": torch.zeros(3)}, {"step": 1})
    run.close()
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_write_until_full, args=(run.folder, sender))
    process.start()
    messages, stored, readable = receiver.recv()
    process.join()
    assert len(messages) == 2
    assert "supernet-2.safetensors cannot be written (File too large)" in messages[0]
    assert "run.sqlite cannot be written" in messages[1]
    assert 0 < stored < 1000
    assert readable
    with RunStore.open(run.folder) as again:
        assert [again.get(f"key {i}") is not None for i in range(stored + 1)] == [True] * stored + [False]
        loaded = again.load_checkpoint("supernet")
        assert loaded is not None
        assert loaded[1] == {"step": 1}


def test_a_checkpoint_the_database_cannot_name_takes_no_room(run: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise NatdeployError("full")

    with monkeypatch.context() as patch, pytest.raises(NatdeployError):
        patch.setattr(run, "_write", full)
        run.save_checkpoint("supernet", {"weight": torch.zeros(3)}, {})
    assert checkpoint_files(run.folder) == []


# ---- kill -9


def _work(folder: Path, connection: Connection) -> None:
    """Stores as fast as it can, and says after each step what is stored."""
    with RunStore.open(folder) as run:
        loaded = run.load_checkpoint("supernet")
        step = loaded[1]["step"] if loaded else 0
        while True:
            step += 1
            run.record(Evaluation(step, "arch", step, step, 0.0, 0.0))
            run.set("last", step)
            run.save_checkpoint("supernet", {"weight": torch.full((20_000,), float(step))}, {"step": step})
            connection.send(step)


def test_a_killed_run_is_whole(run: RunStore) -> None:
    run.close()
    chance = random.Random(0)
    context = multiprocessing.get_context("fork")
    for _ in range(8):
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_work, args=(run.folder, sender))
        process.start()
        sender.close()
        said = receiver.recv()
        time.sleep(chance.uniform(0, 0.1))
        process.kill()
        process.join()
        while receiver.poll():
            try:
                said = receiver.recv()
            except EOFError:
                break
        with RunStore.open(run.folder) as again:
            loaded = again.load_checkpoint("supernet")
            assert loaded is not None
            tensors, info = loaded
            assert said <= info["step"] <= said + 1
            assert torch.equal(tensors["weight"], torch.full((20_000,), float(info["step"])))
            assert info["step"] <= again.get("last") <= info["step"] + 1
            evaluations = again.evaluations()
            assert [evaluation.step for evaluation in evaluations] == list(range(1, len(evaluations) + 1))
            assert again.get("last") <= len(evaluations) <= again.get("last") + 1
            assert len(checkpoint_files(run.folder)) == 1


def test_people_can_read_the_database_with_any_tool(run: RunStore) -> None:
    run.record(Evaluation(3, "r128", 7, 8, 0.5, 0.25))
    with sqlite3.connect(f"file:{run.folder / 'run.sqlite'}?mode=ro", uri=True) as database:  # while the run goes on
        assert database.execute("SELECT arch, correct * 1.0 / total FROM evaluations").fetchall() == [("r128", 0.875)]
        assert json.loads(database.execute("SELECT value FROM facts WHERE key = 'config'").fetchone()[0]) == {"seed": 0}
    database.close()


# ---- looking on


def test_a_snapshot_is_the_run_of_a_moment_and_disturbs_nobody(run: RunStore) -> None:
    run.set("rounds", 1)
    run.put_net(NET)
    before = sorted(path.name for path in run.folder.iterdir())
    with RunStore.snapshot(run.folder) as seen:
        run.set("rounds", 2)
        assert seen.get("rounds") == 1
        assert seen.nets() == [NET]
        assert sorted(path.name for path in run.folder.iterdir()) == before
    with RunStore.snapshot(run.folder) as seen:
        assert seen.get("rounds") == 2
        with pytest.raises(NatdeployError, match="readonly"):
            seen.set("rounds", 3)
        assert seen.get("rounds") == 2


def test_a_snapshot_of_a_run_that_is_closed_leaves_nothing_in_its_folder(run: RunStore) -> None:
    run.save_checkpoint("supernet", {"weight": torch.ones(2)}, {"step": 7})
    run.close()
    # What a killed process leaves is swept by the next one that opens the run, not by one that only looks.
    (run.folder / "checkpoints" / "left.safetensors").write_bytes(b"")
    before = {path.name: path.stat().st_mtime_ns for path in run.folder.rglob("*")}
    with RunStore.snapshot(run.folder) as seen:
        assert seen.checkpoint_info("supernet") == {"step": 7}
        assert seen.checkpoint_info("other") is None
    assert {path.name: path.stat().st_mtime_ns for path in run.folder.rglob("*")} == before


def test_a_snapshot_of_a_killed_run_has_what_was_stored(run: RunStore, tmp_path: Path) -> None:
    run.set("rounds", 2)
    copy = tmp_path / "killed"
    shutil.copytree(run.folder, copy)
    assert (copy / "run.sqlite-wal").stat().st_size, "not yet in the database itself"
    with RunStore.snapshot(copy) as seen:
        assert seen.get("rounds") == 2


def test_snapshots_of_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no run in"):
        RunStore.snapshot(tmp_path)
    (tmp_path / "run.sqlite").write_bytes(b"no database, but as long as the header of one" * 10)
    with pytest.raises(DamagedFileError, match="is damaged"):
        RunStore.snapshot(tmp_path)


def test_whether_a_run_is_in_use_is_seen_without_getting_in_the_way(run: RunStore, tmp_path: Path) -> None:
    assert in_use(run.folder)
    run.close()
    assert not in_use(run.folder)
    assert not in_use(tmp_path / "nowhere")
    # Somebody looks at this very moment.
    with (run.folder / "run.lock").open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        Timer(0.03, fcntl.flock, (file, fcntl.LOCK_UN)).start()
        RunStore.open(run.folder).close()
