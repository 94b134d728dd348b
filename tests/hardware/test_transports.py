"""The local way to a device: files, lines as they come, failures with their last words, silence and clean-up."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from natdeploy.errors import DeviceError
from natdeploy.hardware.device import load_device
from natdeploy.hardware.transports import Transport, connect


def run(transport: Transport, code: str, silence_s: float = 20.0) -> list[str]:
    lines: list[str] = []
    transport.run([transport.python, "-c", code], silence_s=silence_s, on_line=lines.append)
    return lines


def test_push_run_pull_and_nothing_left(tmp_path: Path) -> None:
    source, back = tmp_path / "a", tmp_path / "b"
    source.write_text("3")
    with connect(load_device("host")) as transport:
        transport.push(source, "in.txt")
        lines = run(
            transport,
            "import os; n = int(open('in.txt').read()); open('out.txt', 'w').write(str(n * n)); print('done'); print(os.getcwd())",
        )
        transport.pull("out.txt", back)
    assert back.read_text() == "9"
    assert lines[0] == "done"
    assert not Path(lines[1]).exists()


def test_failure_carries_the_last_words() -> None:
    with connect(load_device("host")) as transport, pytest.raises(DeviceError, match=r"code 3: .*out of cheese"):
        run(transport, "import sys; print('out of cheese', file=sys.stderr); sys.exit(3)")


def test_missing_file_is_a_device_error(tmp_path: Path) -> None:
    with connect(load_device("host")) as transport, pytest.raises(DeviceError, match="no file nothing"):
        transport.pull("nothing", tmp_path / "x")


def test_silence_kills_the_program_and_its_children() -> None:
    code = "import subprocess, sys, time; p = subprocess.Popen(['sleep', '60']); print(p.pid, flush=True); time.sleep(60)"
    lines: list[str] = []
    start = time.monotonic()
    with connect(load_device("host")) as transport, pytest.raises(TimeoutError):
        transport.run([transport.python, "-c", code], silence_s=1.0, on_line=lines.append)
    assert time.monotonic() - start < 20
    child = int(lines[0])
    for _ in range(100):
        if not Path(f"/proc/{child}").exists() or "State:\tZ" in Path(f"/proc/{child}/status").read_text():
            return
        time.sleep(0.05)
    os.kill(child, 9)
    raise AssertionError("the program's child was still running")


def test_interruption_kills_the_program() -> None:
    def interrupt(line: str) -> None:
        raise KeyboardInterrupt(line)

    with connect(load_device("host")) as transport, pytest.raises(KeyboardInterrupt) as caught:
        transport.run(
            [transport.python, "-c", "import os, time; print(os.getpid(), flush=True); time.sleep(60)"],
            silence_s=20.0,
            on_line=interrupt,
        )
    assert not Path(f"/proc/{caught.value}").exists()
