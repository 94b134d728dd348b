"""The check tells what a device has, and for what it lacks the command that installs it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from sshd import Sshd
from typer.testing import CliRunner

from natdeploy.cli.main import app
from natdeploy.hardware.check import check
from natdeploy.hardware.device import Device, Setting, load_device

MakeDevice = Callable[..., Device]


def stand_in(path: Path, script: str) -> str:
    """A Python of another kind."""
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize("way", ["local", "ssh", "adb"])
def test_a_device_with_everything(way: str, request: pytest.FixtureRequest, make_device: MakeDevice, tmp_path: Path) -> None:
    device = make_device("local") if way == "local" else request.getfixturevalue(f"{way}_device")
    (tmp_path / "governor").write_text("powersave\n")
    device = device.model_copy(
        update={
            "python": sys.executable,
            "harness": "runner",
            "settings": (Setting(name="governor", file=str(tmp_path / "governor"), value="performance"),),
        }
    )
    found = check(device)
    assert found.python == ".".join(map(str, sys.version_info[:3]))
    assert (found.numpy, found.runtimes) == (np.__version__, {"onnxruntime": onnxruntime.__version__})
    assert found.problems == ()
    assert found.settings == {"governor": "changed"}
    assert (tmp_path / "governor").read_text() == "powersave\n"
    assert found.os is not None
    assert os.uname().release in found.os
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert found.memory_mb is not None
    assert found.memory_mb == pytest.approx(pages / 2**20, rel=0.05)
    assert found.free_mb is not None
    assert found.free_mb > 0


def test_what_is_missing_comes_with_its_command(ssh_device: Device, tmp_path: Path) -> None:
    """-S hides the environment's libraries, as on a device that has none."""
    bare = stand_in(tmp_path / "python3", f'exec {sys.executable} -I -S "$@"')
    found = check(ssh_device.model_copy(update={"python": bare}))
    assert (found.numpy, found.runtimes) == (None, {})
    assert [problem.rpartition("; ")[2] for problem in found.problems] == [f"on the device: {bare} -m pip install numpy"]


def test_a_python_that_is_too_old(ssh_device: Device, tmp_path: Path) -> None:
    told = '{"python": "3.7.9", "numpy": {"version": "1"}, "runtimes": {}}'
    old = stand_in(tmp_path / "python3", f"echo '{told}'")
    found = check(ssh_device.model_copy(update={"python": old}))
    assert found.python == "3.7.9"
    assert [f"{old} is Python 3.7.9; the runner needs Python 3.8 or later" in each for each in found.problems] == [True]


def test_no_python(ssh_device: Device) -> None:
    found = check(ssh_device.model_copy(update={"python": "python9"}))
    assert found.python is None
    assert "has no program python9" in found.problems[0]
    assert "needs Python 3.8 or later" in found.problems[0]


def test_a_device_without_python_by_its_file(adb_device: Device) -> None:
    found = check(adb_device)
    assert (found.python, found.runtimes) == (None, {})
    assert "onnxruntime_perf_test was not found" in found.problems[0]
    assert found.os is not None


def test_a_python_that_prints(ssh_device: Device, tmp_path: Path) -> None:
    chatty = stand_in(tmp_path / "python3", f'echo "Welcome to the lab"\nexec {sys.executable} "$@"')
    assert check(ssh_device.model_copy(update={"python": chatty})).problems == ()


def test_a_board_over_ssh_becomes_a_device(sshd: Sshd, devices: Path, tmp_path: Path) -> None:
    """From an address to a file of one's own, by which it is found again."""

    def run(*arguments: str) -> str:
        result = CliRunner().invoke(app, ["devices", *arguments], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.stdout

    devices.mkdir()
    text = f'name = "board"\ndescription = ""\ntransport = "ssh"\nssh_config = "{sshd.config}"\nfolder = "{tmp_path}"\n'
    (devices / "board.toml").write_text(f'{text}runtimes = ["onnxruntime"]\nthreads = 1\n')
    run("add", "board", "--name", "mine", "--ssh", sshd.address, "--python", sys.executable)
    assert load_device("mine").addresses == (sshd.address,)
    assert f"onnxruntime {onnxruntime.__version__}" in run("check", "mine")
