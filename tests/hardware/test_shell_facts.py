"""A device without Python tells by its shell what the runner finds on others, whichever POSIX shell and tools it has."""

from __future__ import annotations

import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest

from natdeploy.errors import DeviceError
from natdeploy.hardware.device import load_device
from natdeploy.hardware.shell_facts import SCRIPT, read_facts, shell_facts
from natdeploy.hardware.transports import connect
from natdeploy.runtimes import runner

SHELLS = {"dash": [], "bash": ["--posix"], "busybox": ["sh"], "mksh": []}
ALIKE = ("cpu", "cores", "affinity", "governor", "memory_mb")


def test_it_agrees_with_the_runner() -> None:
    with connect(load_device("host")) as transport:
        facts = shell_facts(transport)
    other = runner.environment()
    assert {name: facts[name] for name in ALIKE} == {name: other[name] for name in ALIKE}
    assert (facts["temperature_c"] is None) == (other["temperature_c"] is None)
    assert abs((datetime.fromisoformat(facts["utc"]) - datetime.now(UTC)).total_seconds()) < 60


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("tools", ["system", "busybox", "toybox"])
def test_it_runs_in_every_shell_with_every_set_of_tools(shell: str, tools: str, tmp_path: Path) -> None:
    found = {name: shutil.which(name) for name in {shell, tools} - {"system"}}
    for name, path in found.items():
        if path is None:
            pytest.skip(f"{name} is not installed; apt install {name}")
    path = "/usr/bin:/bin"
    if tools != "system":
        for name in ("uname", "head", "sed", "grep", "date", "printf"):  # mksh has no printf of its own
            (tmp_path / name).symlink_to(str(found[tools]))
        path = str(tmp_path)
    done = subprocess.run(
        [str(found[shell]), *SHELLS[shell], "-c", SCRIPT, "sh"], env={"PATH": path}, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    facts, other = read_facts(done.stdout.splitlines()), runner.environment()
    assert {name: facts[name] for name in ALIKE} == {name: other[name] for name in ALIKE}


def test_what_a_phone_tells_is_read() -> None:
    said = ["cpu\tQualcomm Technologies, Inc SM8150", "cores\t8", "affinity\t4-5,7", "governor\tschedutil", "temperature\t36800"]
    said += ["load\t3.20 2.11 1.90 2/1204 7031"]
    said += ["memory\t5692148 kB", "os\tLinux 4.14.212 aarch64, Android 12\r", "utc\t2026-01-02T03:04:05+00:00"]
    assert read_facts(said) == {
        "cpu": "Qualcomm Technologies, Inc SM8150",
        "cores": 8,
        "affinity": [4, 5, 7],
        "governor": "schedutil",
        "temperature_c": 36.8,
        "memory_mb": 5558,
        "os": "Linux 4.14.212 aarch64, Android 12",
        "load": 3.2,
        "utc": "2026-01-02T03:04:05+00:00",
    }


def test_what_is_hidden_is_unknown_and_another_answer_an_error() -> None:
    least = ["cpu\taarch64", "cores\t8", "temperature\thot", "os\tLinux", "utc\t2026-01-02T03:04:05+00:00"]
    assert {name for name, value in read_facts(least).items() if value is not None} == {"cpu", "cores", "os", "utc"}
    for said in (["Welcome!"], [], least[:1] + least[2:]):
        with pytest.raises(DeviceError, match="was asked for processor, cores, system and time, and answered"):
            read_facts(said)
