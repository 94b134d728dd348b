"""Devices tell what they are: the probes on this machine, and answers of others as far as they are known."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from natdeploy.errors import DeviceError, UsageError
from natdeploy.hardware import check as checking
from natdeploy.hardware import probe
from natdeploy.hardware.add import add_device
from natdeploy.hardware.check import check, runtime_version
from natdeploy.hardware.device import Device, load_device, make_device
from natdeploy.hardware.transports import ProgramError

SHELL_PROBE = Path(checking.__file__).with_name("probe.sh")

PHONE = """os\tLinux 4.14.212 aarch64
model\tPixel 4
system\tAndroid 13
cpu\tQualcomm Technologies, Inc SM8150
memory_kb\t5734400
free_kb\t40000000
boot_id\t6f1c
core\t10\t\t
core\t0\t1785600\tschedutil
core\t4\t2419200\tschedutil
core\t7\t2841600\tschedutil
temperature\t/sys/class/thermal/thermal_zone3/temp\tbattery\t25000
temperature\t/sys/class/thermal/thermal_zone0/temp\tcpu-0-0-usr\t-273000
temperature\t/sys/class/thermal/thermal_zone1/temp\tcpu-1-3-usr\t38100
tool\tbenchmark_model\t/data/local/tmp/benchmark_model
end"""
ALL_TELL = PHONE.replace("core\t10\t\t\n", "")
LIBRARIES = {
    "python": "3.8.10",
    "numpy": {"version": "1.24.4"},
    "runtimes": {"tflite": {"version": "tflite_runtime 2.14.0"}, "ort": {"problem": "ImportError: no ort"}},
}


@dataclass
class Answers:
    """A way to a device that answers what it is told to, and keeps what it was asked."""

    shell: str
    told: str | Exception = ""
    python: str = "python3"
    settings: dict[str, str] = field(default_factory=dict)
    pushed: list[str] = field(default_factory=list)
    asked: list[list[str]] = field(default_factory=list)

    def push(self, local: Path, name: str) -> None:
        assert local.is_file()
        self.pushed.append(name)

    def pull(self, name: str, local: Path) -> None:
        raise AssertionError("nothing has to be fetched")

    def run(self, argv: Sequence[str], *, silence_s: float, on_line: Callable[[str], None]) -> None:
        self.asked.append(list(argv))
        answer = self.shell if argv[0] == "sh" else self.told
        if isinstance(answer, Exception):
            raise answer
        for line in answer.splitlines():
            on_line(line)


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch) -> Callable[[Answers], Answers]:
    def install(answers: Answers) -> Answers:
        @contextmanager
        def connect(device: Device) -> Iterator[Answers]:
            yield answers

        monkeypatch.setattr(checking, "connect", connect)
        return answers

    return install


def board(**changes: Any) -> Device:
    values = {
        "name": "pi",
        "description": "a board",
        "transport": "ssh",
        "addresses": ["me@pi"],
        "threads": 1,
        "runtimes": ["tflite", "onnxruntime"],
    }
    return make_device({**values, **changes}, "pi")


# ---- this machine


def test_this_machine_has_what_it_is_tested_with() -> None:
    report = check(load_device("host"))
    assert report.problems == ()
    assert report.numpy == np.__version__
    assert report.runtimes["onnxruntime"] == onnxruntime.__version__ == runtime_version(load_device("host"), "onnxruntime")
    assert report.memory_mb is not None and report.memory_mb > 100
    assert report.free_mb is not None
    assert [core.number for core in report.cores] == list(range(len(report.cores)))
    assert report.boot_id == Path("/proc/sys/kernel/random/boot_id").read_text().strip()


@pytest.mark.parametrize("shell", ["sh", "dash", "mksh", "busybox"])
def test_the_shell_probe_says_the_same_in_every_shell(tmp_path: Path, shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"the shell {shell} is not installed: apt-get install {shell}")
    tool = tmp_path / "trtexec"
    tool.write_text("")
    tool.chmod(0o755)
    argv = [shell, *(["sh"] if shell == "busybox" else []), str(SHELL_PROBE), f"trtexec={tool}", "no;such $(tool)="]
    lines = subprocess.run(argv, capture_output=True, text=True, check=True, cwd=tmp_path).stdout.splitlines()
    facts = [line.split("\t") for line in lines]
    assert lines[-1] == "end"
    assert ["tool", "trtexec", str(tool)] in facts
    assert {name for name, *_ in facts} >= {"os", "model", "cpu", "memory_kb", "free_kb", "boot_id", "core"}
    assert [fields for fields in facts if fields[0] == "tool" and "such" in fields[1]] == []


def test_the_python_probe_is_of_python_3_8() -> None:
    ast.parse(Path(probe.__file__).read_text(), feature_version=(3, 8))


def test_the_python_probe_loads_what_it_is_told_to(tmp_path: Path) -> None:
    for name, text in {"good": "def version():\n    return 'good 1'", "bad": "import not_there", "worse": "1 / 0"}.items():
        (tmp_path / f"{name}.py").write_text(text)
    shutil.copy(probe.__file__, tmp_path)
    printed = subprocess.run(
        ["python3", "probe.py", "good", "bad", "worse"], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    told = json.loads(printed.stdout)["runtimes"]
    assert told["good"] == {"version": "good 1"}
    assert "not_there" in told["bad"]["problem"]
    assert told["worse"]["problem"].startswith("ZeroDivisionError")


# ---- others


def test_a_phone_without_python_is_asked_by_shell_alone(answer: Callable[[Answers], Answers]) -> None:
    answers = answer(Answers(PHONE))
    report = check(load_device("pixel4"))
    assert [argv[0] for argv in answers.asked] == ["sh"]
    assert (report.model, report.system, report.memory_mb) == ("Pixel 4", "Android 13", 5600)
    assert [core.number for core in report.cores] == [0, 4, 7, 10]
    assert report.big_cores == (), "a core that says nothing may be a big one"
    assert report.tools == {"benchmark_model": "/data/local/tmp/benchmark_model"}
    assert [problem.split(":")[0] for problem in report.problems] == ["onnxruntime"]
    assert runtime_version(load_device("pixel4"), "tflite") == "benchmark_model"
    with pytest.raises(DeviceError, match="onnxruntime_perf_test was not found; copy it"):
        runtime_version(load_device("pixel4"), "onnxruntime")


def test_big_cores_are_those_faster_than_the_slowest(answer: Callable[[Answers], Answers]) -> None:
    answer(Answers(ALL_TELL))
    assert check(load_device("pixel4")).big_cores == (4, 7)


def test_what_a_board_lacks_is_said_with_the_command_that_installs_it(answer: Callable[[Answers], Answers]) -> None:
    answers = answer(Answers(PHONE, f"Welcome!\n{json.dumps(LIBRARIES)}"))
    report = check(board())
    assert {"probe.sh", "probe.py", "tflite.py", "ort.py"} == set(answers.pushed)
    assert report.runtimes == {"tflite": "tflite_runtime 2.14.0"}
    assert report.problems == (
        "onnxruntime does not load (ImportError: no ort); on the device: python3 -m pip install onnxruntime",
    )


@pytest.mark.parametrize(
    ("told", "says"),
    [
        (ProgramError("python3 ended with code 127: not found"), "python3 does not run .*needs Python 3.8 or later"),
        (json.dumps({**LIBRARIES, "python": "3.7.17"}), "python3 is Python 3.7.17; the runner needs Python 3.8 or later"),
        (
            json.dumps({**LIBRARIES, "numpy": {"problem": "ModuleNotFoundError: No module named 'numpy'"}}),
            "python3 -m pip install numpy",
        ),
    ],
)
def test_a_board_without_python_or_numpy(answer: Callable[[Answers], Answers], told: str | Exception, says: str) -> None:
    answer(Answers(PHONE, told))
    (problem,) = check(board()).problems
    assert re.search(says, problem)


def test_a_device_cannot_steer_the_terminal(answer: Callable[[Answers], Answers], devices: Path) -> None:
    answer(Answers(ALL_TELL.replace("Pixel 4", "\x1b[2JPixel\x07 4")))
    assert check(load_device("pixel4")).model == "[2JPixel 4"
    assert add_device("pixel4", "adb", "0A1B").device.verified


def test_there_are_never_more_threads_than_cores_to_pin_them_to(answer: Callable[[Answers], Answers], devices: Path) -> None:
    answer(Answers(ALL_TELL))
    devices.mkdir()
    (devices / "fast.toml").write_text(load_device("android").model_copy(update={"name": "fast", "threads": 3}).to_toml())
    assert add_device("fast", "adb", "0A1B", force=True).device.cores == ()


def test_a_full_disk_is_a_problem(answer: Callable[[Answers], Answers]) -> None:
    answer(Answers(PHONE.replace("40000000", "4096")))
    assert check(load_device("pixel4")).problems[0].startswith("only 4 MB are free")


@pytest.mark.parametrize(
    ("answers", "says"),
    [
        (Answers(""), "printed nothing"),
        (Answers("os\tLinux"), "its last line was"),
        (Answers(PHONE, "hello"), "printed something else"),
        (Answers(PHONE, ""), "printed something else"),
        (Answers(PHONE, '{"python": 3}'), "printed something else"),
        (Answers(PHONE, TimeoutError()), "said nothing for 120 s"),
    ],
)
def test_garbage_is_a_device_error(answer: Callable[[Answers], Answers], answers: Answers, says: str) -> None:
    answer(answers)
    with pytest.raises(DeviceError, match=says):
        check(board())


def test_a_device_without_an_address_is_not_asked(answer: Callable[[Answers], Answers]) -> None:
    answers = answer(Answers(PHONE))
    with pytest.raises(DeviceError, match="has no address yet"):
        check(load_device("jetson"))
    assert answers.asked == []


# ---- a device of one's own


def test_a_device_that_is_added_has_its_own_cores_memory_and_sensor(answer: Callable[[Answers], Answers], devices: Path) -> None:
    answer(Answers(ALL_TELL))
    added = add_device("android", "adb", "0A1B", name="mine")
    assert added.path == devices / "mine.toml"
    assert load_device("mine") == added.device
    device = added.device
    assert (device.addresses, device.cores, device.memory_mb) == (("0A1B",), (4, 7), 5600)
    assert device.temperature == "/sys/class/thermal/thermal_zone1/temp", "the one of the processor that works"
    assert device.clock == "/sys/devices/system/cpu/cpu7/cpufreq/scaling_cur_freq"
    assert device.tools == {"benchmark_model": "/data/local/tmp/benchmark_model"}
    assert device.verified is not None and device.verified.startswith("Pixel 4")
    assert device.sources == load_device("android").sources
    assert any("big cores: 4, 7" in line for line in added.found)


def test_what_a_device_does_not_tell_stays_as_its_kind_has_it(answer: Callable[[Answers], Answers], devices: Path) -> None:
    answer(Answers(PHONE.replace("memory_kb\t5734400", "memory_kb\t")))
    device = add_device("pixel4", "adb", "0A1B").device
    assert (device.cores, device.memory_mb) == ((4, 5, 6, 7), 6144)
    assert device.peak_gflops


def test_a_file_of_ones_own_is_replaced_only_by_force(answer: Callable[[Answers], Answers], devices: Path) -> None:
    answer(Answers(ALL_TELL))
    add_device("pixel4", "adb", "first")
    with pytest.raises(UsageError, match=r"pixel4\.toml already; give another --name, or replace it with --force"):
        add_device("pixel4", "adb", "second")
    assert load_device("pixel4").address == "first"
    add_device("pixel4", "adb", "second", force=True)
    assert load_device("pixel4").address == "second"


@pytest.mark.parametrize(
    ("like", "transport", "address", "name", "says"),
    [
        ("jetson", "adb", "0A1B", None, "jetson is reached by ssh, not by adb"),
        ("host", "ssh", "me@here", None, "host is reached by local"),
        ("jetson", "ssh", "-oProxyCommand=evil", None, "device jetson is wrong at 'addresses.0'"),
        ("jetson", "ssh", "me@jetson", "../x", "device ../x is wrong at 'name'"),
        ("toaster", "ssh", "me@t", None, "no device 'toaster'"),
    ],
)
def test_a_device_that_makes_no_sense_is_not_added(
    answer: Callable[[Answers], Answers],
    devices: Path,
    *,
    like: str,
    transport: Any,
    address: str,
    name: str | None,
    says: str,
) -> None:
    answers = answer(Answers(ALL_TELL))
    with pytest.raises(UsageError, match=says):
        add_device(like, transport, address, name=name)
    assert answers.asked == []
    assert not devices.exists()
