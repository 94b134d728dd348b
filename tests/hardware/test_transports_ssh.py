"""What goes wrong with ssh, by a real sshd: each failure is one sentence that says what to do, and nothing stays behind."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from sshd import Sshd, free_port, make_key

from natdeploy.errors import DeviceError
from natdeploy.hardware.device import Device
from natdeploy.hardware.transports import connect
from natdeploy.hardware.transports import session as session_module
from natdeploy.hardware.transports.shells import SshShell

MakeDevice = Callable[..., Device]


def fails(device: Device, words: str) -> None:
    with pytest.raises(DeviceError, match=words), connect(device):
        raise AssertionError("it let us in")


@pytest.fixture
def configured(sshd: Sshd, make_device: MakeDevice, tmp_path: Path) -> MakeDevice:
    """Makes the device of a user whose configuration differs in some options."""

    def make(**options: str | Path) -> Device:
        return make_device("ssh", addresses=(sshd.address,), ssh_config=sshd.write_config(tmp_path / "ssh_config", **options))

    return make


def test_a_banner_is_not_taken_for_an_answer(sshd: Sshd, configured: MakeDevice, tmp_path: Path) -> None:
    device = configured(IdentityFile=sshd.greeted)
    config = ["ssh", "-F", str(device.ssh_config), sshd.address, "echo as is"]
    assert subprocess.run(config, capture_output=True, text=True, check=True).stdout.splitlines() == [
        "Welcome to the lab",
        "{}",
        "as is",
    ]
    (tmp_path / "model").write_bytes(b"\x00natdeploy\n")
    lines: list[str] = []
    with connect(device) as transport:
        transport.push(tmp_path / "model", "model")
        transport.run(["cat", "model"], silence_s=20, on_line=lines.append)
        transport.pull("model", tmp_path / "back")
    assert lines == ["\0natdeploy"]
    assert (tmp_path / "back").read_bytes() == b"\x00natdeploy\n"


def test_the_wrong_key(configured: MakeDevice, tmp_path: Path) -> None:
    make_key(tmp_path / "stranger")
    fails(configured(IdentityFile=tmp_path / "stranger"), "cannot be reached: it does not accept your key; .*ssh-copy-id device")


def test_an_unknown_host_key_is_not_accepted(configured: MakeDevice, tmp_path: Path) -> None:
    fails(configured(UserKnownHostsFile=tmp_path / "none"), "its host key is not known here; connect once by hand")
    assert not (tmp_path / "none").exists()


def test_a_changed_host_key_is_refused(sshd: Sshd, configured: MakeDevice, tmp_path: Path) -> None:
    known = tmp_path / "known"
    known.write_text(f"[127.0.0.1]:{sshd.port} {make_key(tmp_path / 'other')}\n")
    before = known.read_bytes()
    fails(configured(UserKnownHostsFile=known), "host key is not the one on record, so the connection is refused.*ssh-keygen -R")
    assert known.read_bytes() == before


def test_nothing_listens(configured: MakeDevice) -> None:
    fails(configured(Port=str(free_port())), "nothing answers at its ssh port; start sshd")


def test_no_such_host(configured: MakeDevice) -> None:
    fails(configured(HostName="no-such-host.invalid"), "there is no machine of that name; correct the address")


def test_a_host_that_does_not_answer(configured: MakeDevice) -> None:
    # what the kernel says where no packet comes back; waiting for it would take as long as the limit
    fails(
        configured(ProxyCommand="sh -c 'echo connect to host x port 22: Connection timed out >&2; exit 1'"),
        "it does not answer; is it on",
    )


def test_no_ssh_here(ssh_device: Device, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    fails(ssh_device, "ssh is not installed here; install it")


def test_no_address(make_device: MakeDevice) -> None:
    fails(make_device("ssh"), "has no address; give user@host")


def test_an_address_is_no_option(make_device: MakeDevice, tmp_path: Path) -> None:
    # A device's file cannot hold such an address; the way to the device does not rely on that.
    evil = {"addresses": (f"-oProxyCommand=touch {tmp_path / 'evil'}",)}
    fails(make_device("ssh").model_copy(update=evil), "cannot be reached")
    assert not (tmp_path / "evil").exists()


def test_host_keys_are_checked_as_the_user_has_it(ssh_device: Device) -> None:
    argv = SshShell(ssh_device).argv("true", first=True)
    assert not [word for word in argv if "hostkey" in word.lower() or "knownhosts" in word.lower()]


def test_a_folder_that_is_not_there(make_device: MakeDevice, sshd: Sshd, tmp_path: Path) -> None:
    device = make_device("ssh", addresses=(sshd.address,), ssh_config=sshd.config, folder=str(tmp_path / "none"))
    fails(device, "no private folder can be made on device: .*No such file")


def test_a_folder_that_somebody_else_put_there(ssh_device: Device, tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    Path(str(ssh_device.folder), f"natdeploy-{os.getuid()}").symlink_to(tmp_path / "theirs")
    fails(ssh_device, "no private folder can be made on device: .*exists")


def test_a_cut_connection_is_told_and_the_device_is_free_again(ssh_device: Device, sshd: Sshd, tmp_path: Path) -> None:
    code = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    lines: list[str] = []

    def cut(line: str) -> None:
        lines.append(line)
        sshd.cut()

    with connect(ssh_device) as transport:
        with pytest.raises(DeviceError, match=r"the connection to device was cut .*run the command again"):
            transport.run([sys.executable, "-c", code], silence_s=30, on_line=cut)
        with pytest.raises(DeviceError, match="the connection to device was cut"):
            transport.push(Path(__file__), "x")
    with connect(ssh_device) as transport:  # waits until the first guard has cleaned up
        assert not Path(f"/proc/{lines[0]}").exists()
        transport.push(Path(__file__), "x")
    assert set(os.listdir(str(ssh_device.folder))) == {"natdeploy.lock"}  # noqa: PTH208 (names)


def test_a_connection_cut_for_good(ssh_device: Device, tmp_path: Path) -> None:
    with Sshd(tmp_path / "sshd") as server:
        device = ssh_device.model_copy(update={"ssh_config": server.config})

        with connect(device) as transport, pytest.raises(DeviceError, match="was cut, and it cannot be reached: nothing answers"):
            transport.run(["sh", "-c", "echo go; sleep 60"], silence_s=30, on_line=lambda _: server.cut(for_good=True))


def test_a_link_that_falls_silent_is_given_up_there(ssh_device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """No packet says that it ended: the guard misses the heartbeat."""
    monkeypatch.setattr(SshShell, "patience_s", 1)
    monkeypatch.setattr(session_module.Session, "_beat", lambda self: None)
    with connect(ssh_device) as transport, pytest.raises(DeviceError):
        transport.run(["sleep", "60"], silence_s=30, on_line=print)
    assert set(os.listdir(str(ssh_device.folder))) == {"natdeploy.lock"}  # noqa: PTH208 (names)


def test_a_beating_link_is_kept(ssh_device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SshShell, "patience_s", 1)
    with connect(ssh_device) as transport:
        transport.run(["sleep", "3"], silence_s=30, on_line=print)
