"""The run folder: everything one search knows, written so that it can be killed at any moment and go on.

`run.sqlite` holds the facts, `checkpoints/` the weights, and `config.toml` a copy of the configuration for people to read. A
checkpoint is a new file, and counts from the moment the database names it; so facts and weights never disagree.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any

from natdeploy.errors import DamagedFileError, NatdeployError, UsageError
from natdeploy.files import write_atomic
from natdeploy.toml import toml_text

if TYPE_CHECKING:  # a report needs no torch, which takes seconds to import
    from torch import Tensor

SCHEMA_VERSION = 7

_FAILURES = """CREATE TABLE failures (
    step INTEGER NOT NULL, arch TEXT NOT NULL, whole INTEGER NOT NULL, reason TEXT NOT NULL, PRIMARY KEY (step, arch, whole)
) STRICT"""
_FILES = """CREATE TABLE files (
    role TEXT NOT NULL, id TEXT NOT NULL, format TEXT NOT NULL, precision TEXT NOT NULL, path TEXT, size_mb REAL,
    validation_accuracy REAL, test_accuracy REAL, agreement REAL, max_rel REAL, refused TEXT,
    PRIMARY KEY (role, id, format, precision)
) STRICT"""
_LATENCIES = """CREATE TABLE latencies (
    role TEXT NOT NULL, id TEXT NOT NULL, target TEXT NOT NULL, p50_ms REAL, p90_ms REAL, mean_ms REAL NOT NULL, n INTEGER NOT NULL,
    unstable INTEGER NOT NULL, peak_memory_mb REAL, energy_mj REAL, PRIMARY KEY (role, id, target)
) STRICT"""
_SCHEMA = f"""
CREATE TABLE facts (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE timings (stage TEXT PRIMARY KEY, seconds REAL NOT NULL) STRICT;
CREATE TABLE evaluations (
    step INTEGER NOT NULL, arch TEXT NOT NULL, correct INTEGER NOT NULL, total INTEGER NOT NULL, loss REAL NOT NULL,
    seconds REAL NOT NULL, whole INTEGER NOT NULL, metric REAL, PRIMARY KEY (step, arch, whole)
) STRICT;
{_FAILURES};
CREATE TABLE rounds (round INTEGER PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE checkpoints (
    name TEXT PRIMARY KEY, version INTEGER NOT NULL, file TEXT NOT NULL, sha256 TEXT NOT NULL, info TEXT NOT NULL
) STRICT;
CREATE TABLE nets (
    arch TEXT NOT NULL, id TEXT NOT NULL, role TEXT NOT NULL, validation_accuracy REAL NOT NULL, test_accuracy REAL,
    predicted_ms REAL, measured_p50_ms REAL, measured_p90_ms REAL, measured_n INTEGER, unstable INTEGER, params INTEGER NOT NULL,
    macs INTEGER NOT NULL, estimated INTEGER NOT NULL, tuned_accuracy REAL, objectives TEXT NOT NULL, precision TEXT,
    PRIMARY KEY (role, id)
) STRICT;
{_FILES};
{_LATENCIES};
PRAGMA user_version = {SCHEMA_VERSION};
"""
_MIGRATIONS = {
    1: ("ALTER TABLE nets ADD COLUMN estimated INTEGER NOT NULL DEFAULT 0",),
    2: (
        "ALTER TABLE evaluations RENAME TO old",
        """CREATE TABLE evaluations (
            step INTEGER NOT NULL, arch TEXT NOT NULL, correct INTEGER NOT NULL, total INTEGER NOT NULL, loss REAL NOT NULL,
            seconds REAL NOT NULL, whole INTEGER NOT NULL, PRIMARY KEY (step, arch, whole)
        ) STRICT""",
        "INSERT INTO evaluations SELECT *, 1 FROM old ORDER BY rowid",
        "DROP TABLE old",
        _FAILURES,
        "ALTER TABLE nets ADD COLUMN tuned_accuracy REAL",
        "ALTER TABLE nets ADD COLUMN objectives TEXT NOT NULL DEFAULT '{}'",
    ),
    3: (
        _FILES,
        _LATENCIES,
        """INSERT INTO files
            SELECT role, id, 'onnx', 'fp32', json_extract(files, '$[0]'), NULL, NULL, runtime_accuracy, NULL, NULL, NULL
            FROM nets WHERE json_array_length(files)""",
        "ALTER TABLE nets DROP COLUMN runtime_accuracy",
        "ALTER TABLE nets DROP COLUMN parity",
        "ALTER TABLE nets DROP COLUMN files",
    ),
    4: ("ALTER TABLE nets ADD COLUMN precision TEXT",),
    5: (
        "ALTER TABLE files RENAME TO old",
        _FILES,
        """INSERT INTO files
            SELECT role, id, format, precision, path, nullif(size_mb, 0), validation_accuracy, test_accuracy, agreement, max_rel,
                refused
            FROM old ORDER BY rowid""",
        "DROP TABLE old",
    ),
    6: ("ALTER TABLE evaluations ADD COLUMN metric REAL",),
}
"""From each earlier version to the next. In runs of version 1 no latency was an estimate; in those of version 2 every evaluation
saw all validation images, and no net was tuned alone; those of version 3 had ONNX files in fp32 only;
in those of version 4 the target decided the precision; those of version 5 wrote 0 for a size that was not known;
those of version 6 had one metric, the share of images that are right."""
_DATABASE, _LOCK = "run.sqlite", "run.lock"
_ATTEMPTS, _PAUSE_S = 4, 0.03
_RESTORE = "restore it from a copy, or start a new run in another folder"
_ROOM = "make room on the disk, or the folder writable, and go on with `natdeploy resume`: nothing stored before is lost"


@dataclass(frozen=True)
class Evaluation:
    """An architecture, tried on the validation images.

    Attributes:
        step: state of the supernet it was tried with; the search numbers them.
        arch: its text.
        correct: images it got right; where that is not what the task counts, as many as would be the same share.
        total: images it saw.
        loss: mean over the images.
        seconds: that it took.
        whole: it saw all validation images, not a part of them.
        metric: of the task, 0 to 1; None where it is the share of images it got right.
    """

    step: int
    arch: str
    correct: int
    total: int
    loss: float
    seconds: float
    whole: bool = True
    metric: float | None = None

    @property
    def accuracy(self) -> float:
        """The task's metric, 0 to 1: accuracy of classification, mean intersection over union of segmentation."""
        return self.correct / self.total if self.metric is None else self.metric


@dataclass(frozen=True)
class NetRecord:
    """A network that came out of the run. What has not been found out yet is None.

    An accuracy is the metric of the run's task, 0 to 1: of segmentation the mean intersection over union.

    Attributes:
        arch: its text.
        id: of the architecture, and of its precision where that is another than torch's: `0f18e5028b-int8`.
        role: `front`, or `baseline` for the seed network that the front is compared with.
        validation_accuracy: in torch, on the images the search saw; of a net whose id tells a precision, as a file in its runtime.
        test_accuracy: likewise, on images it never saw, with the weights of the supernet.
        predicted_ms: latency by the predictor.
        measured_p50_ms: median latency on the target.
        measured_p90_ms: 90th percentile of it.
        measured_n: runs behind the two.
        unstable: processes disagreed about the latency.
        params: trainable parameters.
        macs: multiply-accumulates of one image.
        estimated: `predicted_ms` comes from a specification sheet; nothing like it was ever measured on the device.
        tuned_accuracy: as `test_accuracy`, with weights that were trained alone at the end; those are exported then.
        objectives: value of every objective but the error, in its own unit.
        precision: that the search chose for it; None where the target decides.
    """

    arch: str
    id: str
    role: str
    validation_accuracy: float
    test_accuracy: float | None
    predicted_ms: float | None
    measured_p50_ms: float | None
    measured_p90_ms: float | None
    measured_n: int | None
    unstable: bool | None
    params: int
    macs: int
    estimated: bool = False
    tuned_accuracy: float | None = None
    objectives: Mapping[str, float] = field(default_factory=dict)
    precision: str | None = None

    @property
    def final_accuracy(self) -> float | None:
        """Test accuracy of the weights that are exported."""
        return self.test_accuracy if self.tuned_accuracy is None else self.tuned_accuracy


@dataclass(frozen=True)
class FileRecord:
    """A network of the run as a file, checked in the runtime that will run it. None is not known.

    An accuracy is the metric of the run's task, 0 to 1: of segmentation the mean intersection over union.

    Attributes:
        role: of the network.
        id: of its architecture.
        format: `onnx`, `openvino`, `tflite` or `tensorrt`.
        precision: of the file.
        path: of the file that is loaded, relative to the run folder; None where it was refused.
        size_mb: of it and all that belongs to it, in 10^6 bytes.
        validation_accuracy: in its runtime, on the images by which it is judged.
        test_accuracy: in its runtime, on the test images.
        agreement: share of validation images, or of their pixels, that it puts into the same class as torch.
        max_rel: largest difference of a logit from torch's, relative to the largest logit of its image.
        refused: why it is not to be used, and was not kept; None where it passed.
    """

    role: str
    id: str
    format: str
    precision: str
    path: str | None
    size_mb: float | None
    validation_accuracy: float | None
    test_accuracy: float | None
    agreement: float | None
    max_rel: float | None
    refused: str | None = None


@dataclass(frozen=True)
class LatencyRecord:
    """A network of the run, timed on a target. What has not been found out is None.

    Attributes:
        role: of the network.
        id: of its architecture.
        target: such as `host/onnxruntime-int8-1t`.
        p50_ms: median of `n` runs.
        p90_ms: 90th percentile.
        mean_ms: of the runs.
        n: timed runs.
        unstable: processes disagreed.
        peak_memory_mb: of a process of its own, beyond what the runtime takes without the network, in 10^6 bytes.
        energy_mj: of a run, beyond the idle machine, millijoules.
    """

    role: str
    id: str
    target: str
    p50_ms: float | None
    p90_ms: float | None
    mean_ms: float
    n: int
    unstable: bool
    peak_memory_mb: float | None = None
    energy_mj: float | None = None


class RunStore:
    """An open run folder; use it as a context manager. One process at a time may have it open; any number may look at a snapshot.

    Every method that writes is done, and on disk, when it returns. All of them raise NatdeployError when the disk is full or
    cannot be written, and what was stored before is still there; and DamagedFileError when the database is damaged.
    """

    def __init__(self, folder: Path, *, snapshot: bool = False) -> None:
        """What `open` and `snapshot` do."""
        if not (folder / _DATABASE).is_file():
            raise UsageError(f"there is no run in {folder}; start one with `natdeploy search --out {folder}`")
        self.folder = folder
        self._path = folder / _DATABASE
        with ExitStack() as resources:
            if not snapshot:
                resources.enter_context(_locked(folder))
            with _explained(self._path):
                self._database = resources.enter_context(closing(sqlite3.connect(":memory:" if snapshot else self._path)))
                if snapshot:
                    _copy(self._path, self._database)
            self._check()
            if snapshot:
                self._database.execute("PRAGMA query_only = ON")
            else:
                self._sweep()
            self._resources = resources.pop_all()

    @classmethod
    def create(cls, folder: Path, config: Mapping[str, Any], facts: Mapping[str, Any]) -> RunStore:
        """A new run in `folder`, which is made where it does not exist. It is there with all its first facts, or not at all.

        Args:
            folder: where.
            config: JSON values; `config.toml` shows them, without the keys that are None.
            facts: JSON values that `get` gives back, beside the configuration.

        Raises:
            UsageError: there is a run already, or another process is making one.
        """
        try:
            (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise NatdeployError(f"{folder} cannot be made ({error.strerror}); choose another folder for the run") from error
        with _locked(folder):
            if (folder / _DATABASE).exists():
                raise UsageError(f"{folder} holds a run already; go on with `natdeploy resume {folder}` or choose another folder")
            write_atomic(folder / "config.toml", f"{toml_text(config)}\n".encode(errors="replace"), _ROOM)
            write_atomic(folder / _DATABASE, _new_database({**facts, "config": dict(config)}), _ROOM)
        return cls.open(folder)

    @classmethod
    def open(cls, folder: Path) -> RunStore:
        """The run in `folder`.

        Raises:
            UsageError: there is none, another process has it open, or another version of natdeploy made it.
            DamagedFileError: its database is damaged.
        """
        return cls(folder)

    @classmethod
    def snapshot(cls, folder: Path) -> RunStore:
        """The run in `folder` as it is now, to be read only, whoever has it open: a copy of the facts in memory.

        Nothing is written into the folder, and nobody is kept waiting. Facts of one snapshot belong together; a checkpoint may have
        been replaced since.

        Raises:
            UsageError: there is none, or another version of natdeploy made it.
            DamagedFileError: its database is damaged.
        """
        return cls(folder, snapshot=True)

    def close(self) -> None:
        """Lets other processes in."""
        self._resources.close()

    def __enter__(self) -> RunStore:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _check(self) -> None:
        with self._transaction() as database:
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = FULL")
            (version,) = database.execute("PRAGMA user_version").fetchone()
            (verdict,) = database.execute("PRAGMA integrity_check(1)").fetchone()
        if verdict != "ok":
            raise DamagedFileError(f"{self._path} is damaged ({' '.join(verdict.split())}); {_RESTORE}")
        if version > SCHEMA_VERSION:
            raise UsageError(f"{self.folder} has format {version} and this natdeploy knows {SCHEMA_VERSION}; install a newer one")
        if version < min(_MIGRATIONS):
            raise DamagedFileError(f"{self._path} is damaged (it holds no run); {_RESTORE}")
        for number in range(version, SCHEMA_VERSION):
            with self._transaction() as database:
                database.execute("BEGIN IMMEDIATE")
                for statement in _MIGRATIONS[number]:
                    database.execute(statement)
                database.execute(f"PRAGMA user_version = {number + 1}")

    def _sweep(self) -> None:
        """Removes checkpoints that a killed process wrote and did not come to name, or replaced and did not come to remove."""
        named = {file for (file,) in self._rows("SELECT file FROM checkpoints")}
        for path in (self.folder / "checkpoints").glob("*.safetensors*"):
            if path.name not in named:
                path.unlink()

    # ---- facts

    @property
    def config(self) -> dict[str, Any]:
        """As given to `create`."""
        value: dict[str, Any] = self.get("config")
        return value

    def get(self, key: str) -> Any:
        """A JSON value, or None where there is none of that key."""
        rows = self._rows("SELECT value FROM facts WHERE key = ?", key)
        return json.loads(rows[0][0]) if rows else None

    def set(self, key: str, value: Any) -> None:
        """Stores a JSON value, in place of an earlier one."""
        self._write("INSERT OR REPLACE INTO facts VALUES (?, ?)", key, _json(value))

    def add_seconds(self, seconds: Mapping[str, float]) -> None:
        """Adds to the time that parts of the run have taken, over all processes that worked on it."""
        with self._transaction() as database:
            database.executemany(
                "INSERT INTO timings VALUES (?, ?) ON CONFLICT DO UPDATE SET seconds = seconds + excluded.seconds",
                list(seconds.items()),
            )

    def seconds(self) -> dict[str, float]:
        """Time of every part, in the order they were first booked."""
        return dict(self._rows("SELECT stage, seconds FROM timings ORDER BY rowid"))

    # ---- the search

    def evaluation(self, step: int, arch: str, *, whole: bool = True) -> Evaluation | None:
        """What is known of an architecture at a state of the supernet, from all validation images or from a part of them."""
        rows = self._rows("SELECT * FROM evaluations WHERE step = ? AND arch = ? AND whole = ?", step, arch, whole)
        return _evaluation(rows[0]) if rows else None

    def record(self, evaluation: Evaluation) -> None:
        """Stores an evaluation, in place of an earlier one of the same step and architecture.

        Raises:
            NatdeployError: its loss is not a finite number.
        """
        if not math.isfinite(evaluation.loss):
            raise NatdeployError(f"training diverged: {evaluation.arch} has loss {evaluation.loss}; use a lower learning rate")
        self._put("evaluations", vars(evaluation), key=("step", "arch", "whole"))

    def evaluations(self, step: int | None = None) -> list[Evaluation]:
        """All evaluations, or those of one state of the supernet, in the order they were made."""
        rows = self._rows("SELECT * FROM evaluations WHERE step = coalesce(?, step) ORDER BY rowid", step)
        return [_evaluation(row) for row in rows]

    def latest_evaluation(self, arch: str) -> Evaluation | None:
        """The one of an architecture at the last state of the supernet that it was tried with; of two, that on all images."""
        rows = self._rows("SELECT * FROM evaluations WHERE arch = ? ORDER BY step DESC, whole DESC LIMIT 1", arch)
        return _evaluation(rows[0]) if rows else None

    def record_failure(self, step: int, arch: str, reason: str, *, whole: bool = True) -> None:
        """Stores why an architecture could not be evaluated at a state of the supernet."""
        self._put("failures", {"step": step, "arch": arch, "whole": whole, "reason": reason}, key=("step", "arch", "whole"))

    def failure(self, step: int, arch: str, *, whole: bool = True) -> str | None:
        """Why an architecture could not be evaluated; None where it could, or was not tried."""
        rows = self._rows("SELECT reason FROM failures WHERE step = ? AND arch = ? AND whole = ?", step, arch, whole)
        return rows[0][0] if rows else None

    def failures(self) -> dict[str, str]:
        """Every architecture that could not be evaluated at some time, with the latest reason."""
        return dict(self._rows("SELECT arch, reason FROM failures ORDER BY step, rowid"))

    def add_round(self, facts: Mapping[str, Any]) -> None:
        """Stores what a round of the search found, JSON values, in place of an earlier one with the same `facts["round"]`."""
        self._write("INSERT OR REPLACE INTO rounds VALUES (?, ?)", facts["round"], _json(dict(facts)))

    def rounds(self) -> list[dict[str, Any]]:
        """Facts of every round, first to last."""
        return [json.loads(value) for (value,) in self._rows("SELECT value FROM rounds ORDER BY round")]

    # ---- networks

    def put_net(self, record: NetRecord) -> None:
        """Stores a network, in place of an earlier record of the same role and id."""
        self._put("nets", vars(record) | {"objectives": _json(dict(record.objectives))}, key=("role", "id"))

    def nets(self) -> list[NetRecord]:
        """All networks, in the order they were first stored."""
        return [_net(row) for row in self._rows("SELECT * FROM nets ORDER BY rowid")]

    def put_file(self, record: FileRecord) -> None:
        """Stores what is known of a file, in place of an earlier record of the same network, format and precision."""
        self._put("files", vars(record), key=("role", "id", "format", "precision"))

    def files(self) -> list[FileRecord]:
        """All files, in the order they were first stored."""
        return [FileRecord(*row) for row in self._rows("SELECT * FROM files ORDER BY rowid")]

    def put_latency(self, record: LatencyRecord) -> None:
        """Stores a latency, in place of an earlier one of the same network on the same target."""
        self._put("latencies", vars(record), key=("role", "id", "target"))

    def latencies(self) -> list[LatencyRecord]:
        """All latencies, in the order they were first stored."""
        rows = self._rows("SELECT * FROM latencies ORDER BY rowid")
        return [replace(LatencyRecord(*row), unstable=bool(row[7])) for row in rows]

    # ---- weights

    def save_checkpoint(self, name: str, tensors: Mapping[str, Tensor], info: Mapping[str, Any]) -> None:
        """Stores tensors and JSON values together, in place of the earlier checkpoint of that name, which is gone only afterwards.

        Args:
            name: goes into the file name.
            tensors: no two of them may share memory.
            info: JSON values.
        """
        import safetensors.torch

        rows = self._rows("SELECT version, file FROM checkpoints WHERE name = ?", name)
        version, old = rows[0] if rows else (0, None)
        file = f"{name}-{version + 1}.safetensors"
        data = safetensors.torch.save({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()})
        row = (name, version + 1, file, hashlib.sha256(data).hexdigest(), _json(dict(info)))
        write_atomic(self._checkpoint(file), data, _ROOM)
        try:
            self._write("INSERT OR REPLACE INTO checkpoints VALUES (?, ?, ?, ?, ?)", *row)
        except NatdeployError:
            self._checkpoint(file).unlink()
            raise
        if old is not None:
            self._checkpoint(old).unlink(missing_ok=True)

    def checkpoint_info(self, name: str) -> dict[str, Any] | None:
        """What was stored with the tensors of a checkpoint; None where none of that name was saved."""
        rows = self._rows("SELECT info FROM checkpoints WHERE name = ?", name)
        return json.loads(rows[0][0]) if rows else None

    def load_checkpoint(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Tensors (on the CPU) and info of a checkpoint; None where none of that name was saved.

        Raises:
            DamagedFileError: its file is gone or is not what was saved.
        """
        import safetensors.torch

        rows = self._rows("SELECT file, sha256, info FROM checkpoints WHERE name = ?", name)
        if not rows:
            return None
        file, digest, info = rows[0]
        path = self._checkpoint(file)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise DamagedFileError(f"{path} cannot be read ({error.strerror}); {_RESTORE}") from error
        if hashlib.sha256(data).hexdigest() != digest:
            raise DamagedFileError(f"{path} is damaged: it does not hold what was saved; {_RESTORE}")
        return safetensors.torch.load(data), json.loads(info)

    def _checkpoint(self, file: str) -> Path:
        return self.folder / "checkpoints" / file

    # ---- the database

    def _rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        with self._transaction() as database:
            return database.execute(query, values).fetchall()

    def _write(self, statement: str, *values: Any) -> None:
        with self._transaction() as database:
            database.execute(statement, values)

    def _put(self, table: str, row: Mapping[str, Any], *, key: tuple[str, ...]) -> None:
        """Inserts a row; where its key is there already, that row changes and keeps its place in the order."""
        changes = ", ".join(f"{column} = excluded.{column}" for column in row)
        self._write(
            f"INSERT INTO {table} ({', '.join(row)}) VALUES ({', '.join('?' * len(row))}) "
            f"ON CONFLICT ({', '.join(key)}) DO UPDATE SET {changes}",
            *row.values(),
        )

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Commits at the end, or leaves everything as it was."""
        with _explained(self._path), self._database:
            yield self._database


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turns what SQLite says of a full disk or a damaged file into an error for people."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.IntegrityError | sqlite3.ProgrammingError):  # a mistake of the caller
            raise
        if error.sqlite_errorcode in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            raise DamagedFileError(f"{path} is damaged ({error}); {_RESTORE}") from error
        raise _unwritable(path, str(error)) from error


def _copy(path: Path, target: sqlite3.Connection) -> None:
    """Copies a database that others may be writing, as it is between two of their transactions, and leaves no file behind.

    Readers of a database in WAL mode share a file with its writers. Where nobody has it open there is none, and SQLite would make
    one; it is told instead that the database does not change, and whether that was true is seen afterwards.
    """
    log = path.with_name(f"{path.name}-wal")

    def read(how: str) -> None:
        try:
            with closing(sqlite3.connect(f"{path.absolute().as_uri()}?{how}", uri=True)) as source:
                source.backup(target)
        except sqlite3.OperationalError as error:
            raise NatdeployError(f"{path} cannot be read ({error}); make it readable, and its folder too") from error

    before = path.stat()
    if not log.exists():
        read("immutable=1")
        after = path.stat()
        if not log.exists() and (after.st_mtime_ns, after.st_size) == (before.st_mtime_ns, before.st_size):
            return
    read("mode=ro")


def in_use(folder: Path) -> bool:
    """Whether a process has the run in a folder open, be it for a search or for an export."""
    try:
        file = (folder / _LOCK).open("rb")
    except OSError:
        return False
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keeps other processes out of a run folder; the system lifts the lock of a process that is killed."""
    path = folder / _LOCK
    try:
        file = path.open("ab+", buffering=0)
    except OSError as error:
        raise _unwritable(path, error.strerror) from error
    with file:
        try:
            _take(file)
            file.truncate(0)
            file.write(str(os.getpid()).encode())
        except BlockingIOError as error:
            file.seek(0)
            raise UsageError(f"{folder} is in use by process {file.read().decode()}; wait until it ends, or stop it") from error
        except OSError as error:
            raise _unwritable(path, error.strerror) from error
        yield


def _take(file: IO[bytes]) -> None:
    """Takes the lock of a file; tries again for a moment, because `in_use` holds it for one."""
    for _ in range(_ATTEMPTS - 1):
        with suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        time.sleep(_PAUSE_S)
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _new_database(facts: Mapping[str, Any]) -> bytes:
    with closing(sqlite3.connect(":memory:")) as database:
        database.executescript(_SCHEMA)
        database.executemany("INSERT INTO facts VALUES (?, ?)", [(key, _json(value)) for key, value in facts.items()])
        database.commit()
        return database.serialize()


def _evaluation(row: tuple[Any, ...]) -> Evaluation:
    evaluation = Evaluation(*row)
    return replace(evaluation, whole=bool(evaluation.whole))


def _net(row: tuple[Any, ...]) -> NetRecord:
    """From a row, whose columns have the order of the fields; SQLite knows neither bool nor tuple."""
    values = dict(zip((each.name for each in fields(NetRecord)), row, strict=True))
    return NetRecord(
        **values
        | {
            "unstable": None if values["unstable"] is None else bool(values["unstable"]),
            "estimated": bool(values["estimated"]),
            "objectives": json.loads(values["objectives"]),
        }
    )


def _json(value: Any) -> str:
    return json.dumps(value, allow_nan=False)


def _unwritable(path: Path, reason: str | None) -> NatdeployError:
    return NatdeployError(f"{path} cannot be written ({reason}); {_ROOM}")
