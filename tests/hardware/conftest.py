"""Devices that tests reach by every transport."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import adbd as adbd_stand_in
import pytest
import sshd as real_sshd

from natdeploy.hardware.device import Device

MakeDevice = Callable[..., Device]


@pytest.fixture(scope="session")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[real_sshd.Sshd]:
    if not real_sshd.installed():
        pytest.skip(real_sshd.MISSING)
    with real_sshd.Sshd(tmp_path_factory.mktemp("ssh") / "sshd") as server:
        yield server


@pytest.fixture(scope="session")
def adb_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A server of adb for these tests alone: a developer's own, and its phones, stay as they are."""
    if not adbd_stand_in.installed():
        pytest.skip(adbd_stand_in.MISSING)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADB_LOCAL_TRANSPORT_MAX_PORT", "5554")  # no search for emulators
        patch.setenv("HOME", str(tmp_path_factory.mktemp("adb")))  # where its keys lie
        patch.delenv("ANDROID_SERIAL", raising=False)
        for _ in range(3):  # a port that was free a moment ago may be taken by now
            patch.setenv("ANDROID_ADB_SERVER_PORT", str(real_sshd.free_port()))
            started = subprocess.run(["adb", "start-server"], check=False, capture_output=True, text=True)
            if started.returncode == 0:
                break
        assert started.returncode == 0, started.stderr
        yield
        subprocess.run(["adb", "kill-server"], check=True, capture_output=True)


@pytest.fixture(scope="session")
def adbd(adb_server: None) -> Iterator[adbd_stand_in.Adbd]:
    with adbd_stand_in.Adbd() as device:
        yield device


@pytest.fixture(scope="session")
def old_adbd(adb_server: None) -> Iterator[adbd_stand_in.Adbd]:
    """Android 6: no shell protocol, so no exit status and no end of input."""
    with adbd_stand_in.Adbd(features=("cmd",)) as device:
        yield device


@pytest.fixture
def make_device(tmp_path: Path) -> MakeDevice:
    """Makes a device whose private folders lie in a scratch folder that other tests do not see."""
    folder = tmp_path / "device's $HOME; 'and' more"
    folder.mkdir()

    def make(transport: str, **fields: Any) -> Device:
        given = {"name": "device", "description": "", "runtimes": ("onnxruntime",), "threads": 1, "folder": str(folder)}
        return Device.model_validate({"transport": transport, **given, **fields})

    return make


@pytest.fixture
def ssh_device(sshd: real_sshd.Sshd, make_device: MakeDevice) -> Device:
    return make_device("ssh", addresses=(sshd.address,), ssh_config=sshd.config)


@pytest.fixture
def adb_device(adbd: adbd_stand_in.Adbd, make_device: MakeDevice) -> Device:
    return make_device("adb", addresses=(adbd.serial,))


@pytest.fixture(params=["local", "ssh", "adb", "old adb"])
def device(request: pytest.FixtureRequest, make_device: MakeDevice) -> Device:
    """A device by each transport in turn."""
    match request.param:
        case "local":
            return make_device("local")
        case "ssh":
            found: Device = request.getfixturevalue("ssh_device")
            return found
        case "adb":
            return make_device("adb", addresses=(request.getfixturevalue("adbd").serial,))
        case _:
            return make_device("adb", addresses=(request.getfixturevalue("old_adbd").serial,))
