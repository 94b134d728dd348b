"""What holds for every way to a device: files, lines as they come, failures, silence, Ctrl-C, a cut link, the lock and clean-up."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from natdeploy.errors import DeviceError
from natdeploy.hardware.device import Device, Setting
from natdeploy.hardware.transports import ProgramError, Transport, connect
from natdeploy.hardware.transports.shells import quote

EVIL = [
    *("a b", "it's", '"$HOME"', "; touch evil", "$(touch evil)", "`touch evil`", "-rf", "--", "ä名\u202e", "a\nb", "\\"),
    *("\\'; touch evil '", "*", "~", "!!", "", "&|<>(){}#%"),
]

FAMILY = "import subprocess, time; p = subprocess.Popen(['sleep', '60']); print(p.pid, flush=True); time.sleep(60)"
"""A program with a child, whose number it prints."""


def run(transport: Transport, *argv: str, silence_s: float = 20.0) -> list[str]:
    lines: list[str] = []
    transport.run(argv, silence_s=silence_s, on_line=lines.append)
    return lines


def python(transport: Transport, code: str, *arguments: str, silence_s: float = 20.0) -> list[str]:
    return run(transport, sys.executable, "-c", code, *arguments, silence_s=silence_s)


def runs(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def soon(condition: Callable[[], bool]) -> bool:
    for _ in range(400):
        if condition():
            return True
        time.sleep(0.05)
    return False


def left(device: Device) -> list[str]:
    """What lies in the device's folder, but for the file that is locked."""
    return sorted(set(os.listdir(str(device.folder))) - {"natdeploy.lock"})  # noqa: PTH208 (names)


def test_push_run_pull_and_nothing_left(device: Device, tmp_path: Path) -> None:
    source, back = tmp_path / "a", tmp_path / "b"
    content = os.urandom(300_000) + b"\r\n\n"
    source.write_bytes(content)
    with connect(device) as transport:
        transport.push(source, "in.bin")
        lines = python(
            transport,
            "import os; c = open('in.bin', 'rb').read(); open('out.bin', 'wb').write(c[::-1]); print(os.getcwd()); print(len(c))",
        )
        transport.pull("out.bin", back)
        assert Path(lines[0]).is_relative_to(str(device.folder))
    assert back.read_bytes() == content[::-1]
    assert lines[1] == str(len(content))
    assert left(device) == []


def test_lines_come_as_the_program_writes_them(device: Device) -> None:
    with connect(device) as transport:
        assert python(transport, "print('a'); print(); print('b'); print(); print()") == ["a", "", "b", "", ""]
        assert python(transport, "import sys; sys.stdout.write('no end')") == ["no end"]
        assert python(transport, "pass") == []


def test_lines_come_while_the_program_runs(device: Device, tmp_path: Path) -> None:
    code = "import pathlib, sys, time\nprint('here', flush=True)\nwhile not pathlib.Path(sys.argv[1]).exists(): time.sleep(0.01)"
    with connect(device) as transport:
        transport.run([sys.executable, "-c", code, str(tmp_path / "go")], silence_s=20, on_line=lambda _: (tmp_path / "go").touch())
    assert (tmp_path / "go").exists()


def test_failure_carries_the_last_words(device: Device) -> None:
    with connect(device) as transport:
        with pytest.raises(ProgramError, match=r"code 3: .*out of cheese"):
            python(transport, "import sys; print('out of cheese', file=sys.stderr); sys.exit(3)")
        with pytest.raises(ProgramError, match="code 255: it said nothing"):
            python(transport, "import sys; sys.exit(255)")


def test_a_program_killed_for_its_memory(device: Device) -> None:
    with connect(device) as transport, pytest.raises(ProgramError, match=r"was killed on device \(signal 9\).*memory"):
        python(transport, "import os; os.kill(os.getpid(), 9)")


def test_a_program_that_is_not_there(device: Device) -> None:
    with connect(device) as transport, pytest.raises(DeviceError, match=r"has no program python9 .*install it, or correct"):
        run(transport, "python9", "runner.py")


def test_a_missing_file_is_a_device_error(device: Device, tmp_path: Path) -> None:
    with connect(device) as transport:
        with pytest.raises(DeviceError, match="no file nothing"):
            transport.pull("nothing", tmp_path / "x")
        assert not (tmp_path / "x").exists()


def test_names_leave_the_folder_in_no_way(device: Device, tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    with connect(device) as transport:
        for name in ("../a", "/etc/a", "..", ""):
            with pytest.raises(ValueError, match="is no file name"):
                transport.push(tmp_path / "a", name)


def test_evil_words_and_names_arrive_as_they_are(device: Device, tmp_path: Path) -> None:
    code = "import sys; print(ascii(sys.argv[1:]))"
    with connect(device) as transport:
        assert python(transport, code, *EVIL) == [ascii(EVIL)]
        worst = ["-rf", "$(touch evil) ; touch evil", "ä\n'\\'\""]
        for name in worst:
            (tmp_path / "in").write_text(name)
            transport.push(tmp_path / "in", name)
            transport.pull(name, tmp_path / "out")
            assert (tmp_path / "out").read_text() == name
        names = python(transport, "import os; print(ascii(sorted(os.listdir())))")
    assert names == [ascii(sorted(worst))]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20), max_size=5))
def test_a_shell_reads_any_words_as_they_are(words: list[str]) -> None:
    assert read_by("sh", words) == words


@pytest.mark.parametrize("shell", ["dash", "bash", "zsh", "mksh", "fish"])
def test_login_shells_read_evil_words_as_they_are(shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed (Debian: apt install {shell})")
    assert read_by(shell, EVIL) == EVIL


def read_by(shell: str, words: list[str]) -> list[str]:
    line = " ".join(map(quote, ["env", "printf", r"%s\0", *words, "end"]))
    done = subprocess.run([shell, "-c", line], capture_output=True, check=True)
    *found, end, rest = done.stdout.decode().split("\0")
    assert (end, rest) == ("end", "")
    return found


def test_silence_kills_the_program_and_its_children_and_the_way_goes_on(device: Device) -> None:
    lines: list[str] = []
    with connect(device) as transport:
        with pytest.raises(TimeoutError):
            transport.run([sys.executable, "-c", FAMILY], silence_s=1.5, on_line=lines.append)
        assert soon(lambda: not runs(int(lines[0])))
        assert python(transport, "print('still here')") == ["still here"]
    assert left(device) == []


def test_interruption_kills_the_program_and_its_children(device: Device) -> None:
    def interrupt(line: str) -> None:
        raise KeyboardInterrupt(line)

    with pytest.raises(KeyboardInterrupt) as caught, connect(device) as transport:
        transport.run([sys.executable, "-c", FAMILY], silence_s=20.0, on_line=interrupt)
    assert soon(lambda: not runs(int(str(caught.value))))
    assert left(device) == []


CLIENT = """
import sys
from natdeploy.hardware.device import Device
from natdeploy.hardware.transports import connect
with connect(Device.model_validate_json(sys.argv[1])) as transport:
    transport.run([sys.executable, "-c", sys.argv[2]], silence_s=60, on_line=lambda line: print(line, flush=True))
"""


def test_a_killed_client_leaves_nothing(device: Device, tmp_path: Path) -> None:
    governor = tmp_path / "governor"
    governor.write_text("powersave\n")
    device = device.model_copy(update={"settings": (Setting(name="governor", file=str(governor), value="performance"),)})
    argv = [sys.executable, "-c", CLIENT, device.model_dump_json(), FAMILY]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as client:
        assert client.stdout is not None
        child = int(client.stdout.readline())
        assert runs(child)
        assert governor.read_text() == "performance\n"
        client.kill()
    assert soon(lambda: not runs(child))
    assert soon(lambda: left(device) == [])
    assert governor.read_text() == "powersave\n"


def test_ctrl_c_in_a_terminal_leaves_nothing(device: Device) -> None:
    """The terminal sends it to every process of the job at once."""
    argv = [sys.executable, "-c", CLIENT, device.model_dump_json(), FAMILY]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True) as client:
        assert client.stdout is not None
        child = int(client.stdout.readline())
        os.killpg(client.pid, signal.SIGINT)
        _, words = client.communicate(timeout=60)
    assert "KeyboardInterrupt" in words
    assert soon(lambda: not runs(child))
    assert left(device) == []


def test_settings_are_changed_recorded_and_put_back(device: Device, tmp_path: Path) -> None:
    governor, mode = tmp_path / "gov 'ernor", tmp_path / "mode"
    governor.write_text("schedutil\n")
    mode.write_text("NV Power Mode: 15W\n2\n")
    device = device.model_copy(
        update={
            "settings": (
                Setting(name="governor of $(cpu0)", file=str(governor), value="performance"),
                Setting(
                    name="power mode",
                    save=("cat", str(mode)),
                    apply=("sh", "-c", 'echo 0 >"$0"', str(mode)),
                    restore=("sh", "-c", 'echo "mode $1 again" >"$0"', str(mode), "{state}"),
                ),
                Setting(name="turbo", file=str(tmp_path / "no" / "such"), value="0"),
                Setting(name="clocks", save=("echo", "1"), apply=("sh", "-c", "echo not allowed >&2; exit 1"), restore=("true",)),
            )
        }
    )
    with connect(device) as transport:
        assert governor.read_text() == "performance\n"
        assert mode.read_text() == "0\n"
        settings = dict(transport.settings)
    assert governor.read_text() == "schedutil\n"
    assert mode.read_text() == "mode 2 again\n"
    assert settings.pop("turbo").endswith("No such file or directory")
    assert settings == {"governor of $(cpu0)": "changed", "power mode": "changed", "clocks": "left alone: not allowed"}
    assert left(device) == []


def test_a_setting_that_cannot_be_put_back_is_told(device: Device, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    stuck = Setting(name="fan", save=("echo", "7"), apply=("true",), restore=("sh", "-c", "echo fan broken >&2; exit 1"))
    with connect(device.model_copy(update={"settings": (stuck,)})):
        pass
    assert "fan could not be put back: fan broken" in caplog.text


def exclusive(device: Device) -> Device:
    """This machine is had alone only where something is changed on it."""
    return device.model_copy(update={"settings": (Setting(name="nothing", save=("true",), apply=("true",), restore=("true",)),)})


def test_the_second_is_told_who_holds_a_device(device: Device) -> None:
    with connect(exclusive(device)) as first:
        with pytest.raises(DeviceError, match=rf"device is in use by .*@.* \(process {os.getpid()}\) since \d+.*wait"):
            connect(exclusive(device)).__enter__()
        assert python(first, "print('undisturbed')") == ["undisturbed"]
    with connect(exclusive(device)):
        pass


def guards(device: Device) -> list[int]:
    """Numbers of the guards of a device's folder."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if words[:2] == [b"sh", b"-c"] and str(device.folder).encode() in words and b"ready" in words[2]:
            found.append(int(entry.name))
    return found


def test_what_a_dead_guard_left_is_taken_over(device: Device, tmp_path: Path) -> None:
    governor = tmp_path / "governor"
    governor.write_text("powersave\n")
    device = device.model_copy(update={"settings": (Setting(name="governor", file=str(governor), value="performance"),)})
    started = threading.Event()
    lines: list[str] = []

    def work() -> None:
        with pytest.raises(DeviceError), connect(device) as transport:
            transport.run([sys.executable, "-c", FAMILY], silence_s=60, on_line=lambda line: (lines.append(line), started.set())[1])

    worker = threading.Thread(target=work)
    worker.start()
    assert started.wait(20)
    (outer, *others) = guards(device)
    for guard in (outer, *others):
        os.kill(guard, signal.SIGKILL)
    assert runs(int(lines[0]))
    with connect(device):
        assert soon(lambda: not runs(int(lines[0])))
        assert governor.read_text() == "performance\n"
    worker.join(30)
    assert not worker.is_alive()
    assert governor.read_text() == "powersave\n"
    assert left(device) == []


def test_a_restarted_device_is_told_apart(device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    boot = tmp_path / "boot_id"
    boot.write_text("one\n")
    monkeypatch.setattr("natdeploy.hardware.transports.session.BOOT_ID", str(boot))
    code = "import shutil, os; shutil.rmtree(os.path.dirname(os.getcwd()))"
    with connect(device) as transport:
        python(transport, code)
        with pytest.raises(DeviceError, match="the private folder on device was removed"):
            python(transport, "pass")
        boot.write_text("two\n")
        with pytest.raises(DeviceError, match="device restarted meanwhile"):
            python(transport, "pass")


def test_programs_are_pinned(device: Device) -> None:
    core = max(os.sched_getaffinity(0))
    with connect(device.model_copy(update={"cores": (core,)})) as transport:
        assert python(transport, "import os; print(os.sched_getaffinity(0))") == [str({core})]


@pytest.mark.parametrize("way", ["local", "ssh"])
def test_a_full_device(way: str, request: pytest.FixtureRequest, make_device: Callable[..., Device], tmp_path: Path) -> None:
    device = make_device("local") if way == "local" else request.getfixturevalue("ssh_device")
    (tmp_path / "model").write_bytes(b"x" * 100_000)
    with connect(device) as transport:
        run(transport, "ln", "-s", "/dev/full", "model.part")
        with pytest.raises(DeviceError, match="device has no space left"):
            transport.push(tmp_path / "model", "model")
        with pytest.raises(DeviceError, match="no file model"):
            transport.pull("model", tmp_path / "back")
