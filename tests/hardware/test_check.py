"""The check tells what a device has, and for what it lacks the command that installs it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from natdeploy.errors import DeviceError
from natdeploy.hardware.check import check
from natdeploy.hardware.device import Device, Setting

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
    (tmp_path / "temp").write_text("41500\n")
    device = device.model_copy(
        update={
            "python": sys.executable,
            "temperature": str(tmp_path / "temp"),
            "settings": (Setting(name="governor", file=str(tmp_path / "governor"), value="performance"),),
        }
    )
    found = check(device)
    assert found.python == ".".join(map(str, sys.version_info[:3]))
    assert found.versions == {"numpy": np.__version__, "onnxruntime": onnxruntime.__version__}
    assert found.advice == ()
    assert found.settings == {"governor": "changed"}
    assert (tmp_path / "governor").read_text() == "powersave\n"
    assert found.temperature_c == 41.5
    assert found.os is not None
    assert os.uname().release in found.os
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert found.memory_mb is not None
    assert found.available_mb is not None
    assert found.memory_mb == pytest.approx(pages / 2**20, rel=0.05)
    assert 0 < found.available_mb <= found.memory_mb
    assert found.free_mb is not None
    assert found.free_mb > 0


def test_what_is_missing_comes_with_its_command(ssh_device: Device, tmp_path: Path) -> None:
    """-S hides the environment's libraries, as on a device that has none."""
    bare = stand_in(tmp_path / "python3", f'exec {sys.executable} -I -S "$@"')
    found = check(ssh_device.model_copy(update={"python": bare}))
    assert found.versions == {"numpy": None, "onnxruntime": None}
    assert [advice.rpartition("; ")[2] for advice in found.advice] == [
        f"install it there: {bare} -m pip install numpy",
        f"install it there: {bare} -m pip install onnxruntime",
    ]


def test_a_python_that_is_too_old(ssh_device: Device, tmp_path: Path) -> None:
    old = stand_in(tmp_path / "python3", """echo '{"version": [3, 6, 9]}'""")
    found = check(ssh_device.model_copy(update={"python": old}))
    assert found.python == "3.6.9"
    assert found.advice == ("Python there is 3.6.9; the runner needs 3.8 or later",)


def test_no_python(ssh_device: Device) -> None:
    found = check(ssh_device.model_copy(update={"python": "python9"}))
    assert found.python is None
    assert "has no program python9" in found.advice[0]
    assert "needs 3.8 or later" in found.advice[0]


def test_a_device_without_python_by_its_file(adb_device: Device) -> None:
    found = check(adb_device.model_copy(update={"python": None}))
    assert (found.python, found.versions, found.advice) == (None, {}, ())
    assert found.os is not None


def test_a_python_that_prints(ssh_device: Device, tmp_path: Path) -> None:
    chatty = stand_in(tmp_path / "python3", f'echo "Welcome to the lab"\nexec {sys.executable} "$@"')
    with pytest.raises(DeviceError, match="answered something else than was asked"):
        check(ssh_device.model_copy(update={"python": chatty}))
