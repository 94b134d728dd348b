"""What goes wrong with adb, by the real program and a stand-in of adbd: each failure is one sentence that says what to do."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from adbd import Adbd
from sshd import free_port

from natdeploy.errors import DeviceError
from natdeploy.hardware.device import Device
from natdeploy.hardware.transports import connect
from natdeploy.hardware.transports.shells import AdbShell

ANDROID_TOOLS = (
    *("cat", "chmod", "cp", "date", "env", "flock", "grep", "head", "id", "kill", "ls", "mkdir", "mv", "printf", "rm", "rmdir"),
    *("setsid", "sleep", "tail", "taskset", "wc"),
)
"""What the scripts may use, all of it in Android's toybox since version 7."""

MakeDevice = Callable[..., Device]


def fails(device: Device, words: str) -> None:
    with pytest.raises(DeviceError, match=words), connect(device):
        raise AssertionError("it let us in")


def test_nothing_listens(adb_server: None, make_device: MakeDevice) -> None:
    fails(make_device("adb", addresses=(f"127.0.0.1:{free_port()}",)), "it does not answer; is it on, in this network")


def test_no_such_serial(adb_server: None, make_device: MakeDevice) -> None:
    fails(make_device("adb", addresses=("99131FFAZ0031V",)), "adb knows no such device; `adb devices` lists")


def test_a_device_that_does_not_trust_us(adb_server: None, make_device: MakeDevice) -> None:
    with Adbd(authorized=False) as stranger:
        fails(make_device("adb", addresses=(stranger.serial,)), "does not trust this computer yet; unlock it and allow")


def test_no_adb_here(make_device: MakeDevice, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    fails(make_device("adb"), "adb is not installed here; install it")


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("error: no devices/emulators found", "adb knows no device; plug it in"),
        ("error: more than one device/emulator", "give the serial of one"),
        ("error: device offline", "has it as offline; plug it in anew"),
        ("error: device unauthorized.\nThis adb server's $ADB_VENDOR_KEYS is not set", "unlock it and allow USB debugging"),
        ("error: device still authorizing", "unlock it and allow USB debugging"),
        ("error: cannot connect to daemon", "`adb start-server`"),
    ],
)
def test_what_adb_says_of_its_devices(
    said: str, meant: str, make_device: MakeDevice, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Words of adb 29 and 35, whatever is plugged into this machine."""
    (tmp_path / "adb").write_text(f"#!/bin/sh\ncat >&2 <<'END'\n{said}\nEND\nexit 1\n")
    (tmp_path / "adb").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    fails(make_device("adb"), meant)


def test_a_full_device(adb_server: None, make_device: MakeDevice, tmp_path: Path) -> None:
    (tmp_path / "model").write_bytes(b"x" * 300_000)
    with Adbd(room=100_000) as full, connect(make_device("adb", addresses=(full.serial,))) as transport:
        with pytest.raises(DeviceError, match="device has no space left"):
            transport.push(tmp_path / "model", "model")
        with pytest.raises(DeviceError, match="no file model"):
            transport.pull("model", tmp_path / "back")


def test_a_pulled_cable_is_told_and_the_device_is_free_again(adb_server: None, make_device: MakeDevice) -> None:
    with Adbd() as phone:
        device = make_device("adb", addresses=(phone.serial,))
        lines: list[str] = []

        def cut(line: str) -> None:
            lines.append(line)
            phone.cut()

        code = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
        with connect(device) as transport, pytest.raises(DeviceError, match="the connection to device was cut"):
            transport.run([sys.executable, "-c", code], silence_s=30, on_line=cut)
        # adb needs a moment to see that the cable is in again.
        subprocess.run(["adb", "-s", phone.serial, "wait-for-device"], check=True, timeout=60)
        with connect(device):
            assert not Path(f"/proc/{lines[0]}").exists()


def test_the_shell_and_the_tools_of_android(adb_server: None, make_device: MakeDevice, tmp_path: Path) -> None:
    """mksh with toybox alone, as on a phone."""
    mksh, toybox = shutil.which("mksh"), shutil.which("toybox")
    if mksh is None or toybox is None:
        pytest.skip("mksh and toybox are not installed (Debian: apt install mksh toybox)")
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ANDROID_TOOLS:
        (tools / name).symlink_to(toybox)
    (tools / "sh").symlink_to(mksh)
    (tmp_path / "model").write_text("3")
    core = max(os.sched_getaffinity(0))
    lines: list[str] = []
    with Adbd(shell=("env", f"PATH={tools}", mksh)) as phone:
        device = make_device("adb", addresses=(phone.serial,), cores=(core,))
        with connect(device) as transport:
            transport.push(tmp_path / "model", "a model")
            transport.run(["cat", "a model"], silence_s=20, on_line=lines.append)
            transport.run(["grep", "Cpus_allowed_list", "/proc/self/status"], silence_s=20, on_line=lines.append)
            with pytest.raises(TimeoutError):
                transport.run(["sh", "-c", "sleep 60 & echo $!; wait"], silence_s=1, on_line=lines.append)
            with pytest.raises(DeviceError, match="device is in use by"):
                connect(device).__enter__()
            transport.pull("a model", tmp_path / "back")
    assert lines[:2] == ["3", f"Cpus_allowed_list:\t{core}"]
    assert not Path(f"/proc/{lines[2]}").exists()
    assert (tmp_path / "back").read_text() == "3"
    assert set(os.listdir(str(device.folder))) == {"natdeploy.lock"}  # noqa: PTH208 (names)


def test_the_default_folder_is_where_programs_may_run(adbd: Adbd, make_device: MakeDevice) -> None:
    assert AdbShell(make_device("adb", addresses=(adbd.serial,), folder=None)).base == "/data/local/tmp"
