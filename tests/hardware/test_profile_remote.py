"""From a device with nothing but a Python of its own to a table: over a real sshd, with runtimes in environments that natdeploy is
not installed in.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import subprocess
import sys
import threading
import venv
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sshd as real_sshd

from natdeploy import pipeline
from natdeploy.hardware import farm
from natdeploy.hardware.bench import QUICK
from natdeploy.hardware.device import Target
from natdeploy.hardware.measure import MeasureResult, measure
from natdeploy.latency import journal, profile
from natdeploy.latency.table import read_table
from natdeploy.progress import Progress, Silent

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "natdeploy" / "test-devices"
BRIEF = replace(QUICK, processes=1)

MakeEnvironment = Callable[[str, list[str]], Path]


@pytest.fixture(scope="module")
def environment() -> MakeEnvironment:
    """Makes an environment with these packages alone, once for all runs of the tests; its Python."""

    def make(name: str, packages: list[str]) -> Path:
        key = hashlib.sha256("\n".join([sys.version, *packages]).encode()).hexdigest()[:12]
        folder = CACHE / f"{name}-{key}"
        python = folder / "bin" / "python"
        if not (folder / "complete").exists():
            venv.create(folder, with_pip=True, clear=True)
            done = subprocess.run([python, "-m", "pip", "install", "-q", *packages], check=False, capture_output=True, text=True)
            if done.returncode != 0:
                pytest.skip(
                    f"pip cannot install {', '.join(packages)} here, which takes a package index: {done.stderr[-200:].strip()}"
                )
            (folder / "complete").touch()
        return python

    return make


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules["natdeploy.pipeline.profile"]
    quick = partial(module.profile_table, block_settings=BRIEF, subnet_settings=BRIEF)
    for name, value in {"profile_table": quick, "FIT_SUBNETS": 6, "TEST_SUBNETS": 4, "LEAST_BLOCKS": 8, "MOST_BLOCKS": 8}.items():
        monkeypatch.setattr(module, name, value)


def write_device(folder: Path, servers: Sequence[real_sshd.Sshd], *, python: Path, runtime: str) -> Path:
    """A device file with an address for each server."""
    config = folder / "ssh_config"
    config.write_text("".join(server.config.read_text() for server in servers))
    path = folder / "board.toml"
    path.write_text(
        f'name = "board"\ndescription = "a board on loopback"\ntransport = "ssh"\n'
        f'addresses = {[server.address for server in servers]}\nssh_config = "{config}"\n'
        f'python = "{python}"\nruntimes = ["{runtime}"]\nthreads = 1\n'
    )
    return path


@pytest.mark.usefixtures("brief")
@pytest.mark.parametrize(
    "board",
    [
        ("onnxruntime", ["onnxruntime==1.20.1", "numpy<3"], "1.20.1"),
        # The last of its name, and the last numpy it works with: what old boards have.
        pytest.param(
            ("tflite", ["tflite-runtime==2.14.0", "numpy<2"], "tflite_runtime 2.14.0"),
            marks=pytest.mark.skipif(sys.version_info >= (3, 12), reason="tflite-runtime 2.14 is made for Python 3.11 and older"),
        ),
    ],
)
def test_a_board_is_profiled_with_its_own_libraries(
    board: tuple[str, list[str], str], environment: MakeEnvironment, sshd: real_sshd.Sshd, tmp_path: Path
) -> None:
    runtime, packages, version = board
    file = write_device(tmp_path, [sshd], python=environment(runtime, packages), runtime=runtime)
    result = pipeline.profile(str(file), space="demo", tables=tmp_path / "tables", budget_minutes=0.5)
    assert result.failures == {}
    table = read_table(result.folder, result.slug)
    assert table.provenance.runtime_version == version
    assert (table.provenance.device, table.provenance.harness) == ("board", "natdeploy runner 1")
    assert (len(table.subnets), result.quality.n) == (10, 4)
    assert len(table.blocks) >= 8
    archs = [str(row.arch) for row in table.subnets[:2]]
    predicted, _ = pipeline.predict(archs, str(file), space="demo", tables=tmp_path / "tables")
    assert all(each.latency_ms > 0 for each in predicted)
    assert not list((sshd.folder / "tmp").glob("natdeploy-*")), "nothing is left on the board"


class Notes(Silent):
    """Keeps what is noted."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


class AtFirst(Silent):
    """Does something once, at the first step of a task."""

    def __init__(self, act: Callable[[], object]) -> None:
        self._act = act

    @contextmanager
    def task(self, name: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
        acted = False

        def advance(_: int) -> None:
            nonlocal acted
            if not acted:
                acted = True
                self._act()

        yield advance


def test_a_board_of_two_dies_in_the_middle_and_the_table_is_complete(
    sshd: real_sshd.Sshd, tmp_path: Path, brief: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profile, "CHUNK", 3)
    monkeypatch.setattr(farm, "PAUSES_S", ())
    monkeypatch.setattr(journal, "AGREE", math.inf)  # two briefly timed names of one busy machine
    with real_sshd.Sshd(tmp_path / "second", "second") as second:
        file = write_device(tmp_path, [sshd, second], python=Path(sys.executable), runtime="onnxruntime")
        begun: dict[str | None, int] = {sshd.address: 0, second.address: 0}
        dying = threading.Event()

        def measured(*arguments: Any, progress: Progress, **options: Any) -> MeasureResult:
            """The first board waits with its second chunk until the other one is at its own, and dies."""
            board = next(each.device.address for each in arguments if isinstance(each, Target))
            begun[board] += 1
            if begun[board] == 2 and board == second.address:
                return measure(*arguments, progress=AtFirst(lambda: (second.cut(for_good=True), dying.set())), **options)
            if begun[board] == 2:
                assert dying.wait(120)
            return measure(*arguments, progress=progress, **options)

        monkeypatch.setattr(profile, "measure", measured)
        progress = Notes()
        result = pipeline.profile(str(file), space="demo", tables=tmp_path / "tables", budget_minutes=0.5, progress=progress)
    assert begun[second.address] == 2
    assert len([note for note in progress.notes if note.startswith("second: the connection to board was cut")]) == 1
    assert result.subnets == 10
    assert result.rows >= 8
    assert result.failures == {}
    chunks = [json.loads(line) for line in next(result.folder.glob("*.jsonl")).read_text().splitlines()[1:]]
    assert {chunk["device"] for chunk in chunks} == {sshd.address, "second"}
    rows = [row["id"] for chunk in chunks for row in chunk["rows"]]
    assert len(rows) == len(set(rows)), "nothing is measured twice"


@pytest.mark.usefixtures("brief")
@pytest.mark.parametrize("board", [("adb", "tflite", "benchmark_model"), ("ssh", "tensorrt", "trtexec")], ids=["phone", "jetson"])
def test_a_device_without_python_is_profiled_by_a_vendors_tool(
    board: tuple[str, str, str], stand_in: Callable[[str, str], str], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    way, runtime, tool = board
    program = stand_in(tool, "plain" if tool == "benchmark_model" else "10.3.0")
    lines = ['name = "board"', 'description = "a board"', f'transport = "{way}"', 'python = ""', f'runtimes = ["{runtime}"]']
    if way == "adb":
        lines += [f'addresses = ["{request.getfixturevalue("adbd").serial}"]', f'folder = "{tmp_path}"']
    else:
        server: real_sshd.Sshd = request.getfixturevalue("sshd")
        lines += [f'addresses = ["{server.address}"]', f'ssh_config = "{server.config}"']
    file = tmp_path / "board.toml"
    file.write_text("\n".join([*lines, "threads = 1", "[tools]", f"{tool} = {json.dumps(program)}", ""]))
    result = pipeline.profile(str(file), space="demo", tables=tmp_path / "tables", budget_minutes=0.5)
    assert result.failures == {}
    table = read_table(result.folder, result.slug)
    assert table.provenance.harness == {"benchmark_model": "TFLite benchmark_model", "trtexec": "trtexec"}[tool]
    assert (len(table.subnets), result.quality.n) == (10, 4)
    assert {row.timing.p50_ms is None for row in table.subnets} == {tool == "benchmark_model"}
