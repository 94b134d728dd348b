"""The scripts run in every shell that devices have."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from natdeploy.errors import DeviceError
from natdeploy.hardware.device import Device, Setting
from natdeploy.hardware.transports import connect


@pytest.fixture(params=["dash", "bash", "busybox", "mksh"])
def shell(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes `sh` this one; with busybox, its own tools as well."""
    program = shutil.which(request.param)
    if program is None:
        pytest.skip(f"{request.param} is not installed (Debian: apt install {request.param})")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "sh").symlink_to(program)
    if request.param == "busybox":
        for name in ("cat", "date", "id", "ls", "mkdir", "mv", "rm", "rmdir", "setsid", "sleep", "tail", "taskset", "wc"):
            (tmp_path / "bin" / name).symlink_to(program)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")


def test_a_device_without_flock_is_used_and_told(
    make_device: Callable[..., Device], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "flock").write_text("#!/bin/sh\nexit 127\n")
    (tmp_path / "bin" / "flock").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    setting = Setting(name="nothing", save=("true",), apply=("true",), restore=("true",))
    with connect(make_device("local", settings=(setting,))) as transport:
        assert transport.settings == {"nothing": "changed"}
    assert "nothing keeps a second natdeploy from using it" in caplog.text


@pytest.mark.usefixtures("shell")
def test_folder_programs_settings_and_lock(make_device: Callable[..., Device], tmp_path: Path) -> None:
    (tmp_path / "governor").write_text("schedutil\n")
    (tmp_path / "model").write_text("3")
    settings = (
        Setting(name="governor", file=str(tmp_path / "governor"), value="performance"),
        Setting(
            name="mode",
            save=("echo", "NV * 2"),
            apply=("true",),
            restore=("sh", "-c", 'echo "$1" >"$0"', str(tmp_path / "mode"), "{state}"),
        ),
        Setting(name="turbo", file=str(tmp_path / "none" / "turbo"), value="0"),
    )
    device = make_device("local", settings=settings, cores=(max(os.sched_getaffinity(0)),))
    lines: list[str] = []
    with connect(device) as transport:
        assert {name: what.partition(":")[0] for name, what in transport.settings.items()} == {
            "governor": "changed",
            "mode": "changed",
            "turbo": "left alone",
        }
        transport.push(tmp_path / "model", "-a 'model'")
        transport.run(["cat", "./-a 'model'"], silence_s=20, on_line=lines.append)
        with pytest.raises(TimeoutError):
            transport.run(["sh", "-c", "sleep 60 & echo $!; wait"], silence_s=0.5, on_line=lines.append)
        with pytest.raises(DeviceError, match="device is in use by"):
            connect(device).__enter__()
        transport.pull("-a 'model'", tmp_path / "back")
    assert (tmp_path / "back").read_text() == lines[0] == "3"
    assert not Path(f"/proc/{lines[1]}").exists()
    assert (tmp_path / "governor").read_text() == "schedutil\n"
    assert (tmp_path / "mode").read_text() == "2\n"
    assert set(os.listdir(str(device.folder))) == {"natdeploy.lock"}  # noqa: PTH208 (names)
