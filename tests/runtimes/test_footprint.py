"""Memory and energy, read by the documented interfaces from trees of files and a library that have them."""

from __future__ import annotations

import ctypes
import time
from pathlib import Path
from typing import Any

import pytest

from natdeploy.runtimes import footprint


def write(folder: Path, **files: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        (folder / name).write_text(f"{value}\n")
    return folder


@pytest.fixture
def rapl(tmp_path: Path) -> Path:
    """A server of two packages, with the memory of one, as Linux shows them."""
    zones = {"intel-rapl:0": "package-0", "intel-rapl:1": "package-1", "intel-rapl:0:0": "core", "intel-rapl:0:1": "dram"}
    zones |= {"intel-rapl:2": "psys", "intel-rapl-mmio:0": "package-0"}
    for place, name in zones.items():
        write(tmp_path / "class/powercap" / place, name=name, energy_uj=5_000_000, max_energy_range_uj=262_143_328_850)
    write(tmp_path / "class/powercap/intel-rapl", enabled=1)
    return tmp_path


def test_packages_and_their_memory_are_counted_once(rapl: Path) -> None:
    found, unreadable = footprint.counters("cpu", rapl)
    assert [each.name for each in found] == ["RAPL package-0", "RAPL dram", "RAPL package-1"]
    assert unreadable == []
    write(rapl / "class/powercap/intel-rapl:0", energy_uj=7_500_000)
    assert [each.joules() for each in found] == [2.5, 0, 0]


def test_a_counter_that_begins_anew_goes_on(rapl: Path) -> None:
    zone = write(rapl / "class/powercap/intel-rapl:0", energy_uj=262_143_000_000)
    counter = footprint.Rapl(zone)
    write(zone, energy_uj=671_150)
    assert counter.joules() == pytest.approx(1.0)


def test_a_counter_for_root_alone_is_named(rapl: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = Path.read_text

    def refused(path: Path, *arguments: Any, **named: Any) -> str:
        if path.name == "energy_uj":
            raise PermissionError(13, "Permission denied", str(path))
        return read(path, *arguments, **named)

    monkeypatch.setattr(Path, "read_text", refused)
    found, unreadable = footprint.counters("cpu", rapl)
    assert found == []
    assert unreadable[0].endswith("intel-rapl:0 (Permission denied)")


def test_nothing_counts_where_there_is_nothing(tmp_path: Path) -> None:
    assert footprint.counters("cpu", tmp_path) == ([], [])
    assert footprint.energy([], lambda: None, 0, 0, 1) is None


@pytest.mark.parametrize(("first", "names"), [("VDD_IN", ["INA VDD_IN"]), ("VDD_GPU_SOC", ["INA VDD_GPU_SOC", "INA VDD_CPU_CV"])])
def test_rails_of_a_jetson(first: str, names: list[str], tmp_path: Path) -> None:
    folder = write(tmp_path / "class/hwmon/hwmon3", name="ina3221", in1_label=first, in1_input=5000, curr1_input=2000)
    write(folder, in2_label="VDD_CPU_CV", in2_input=5000, curr2_input=400, in3_label="NC", in3_input=0, curr3_input=0)
    write(tmp_path / "class/hwmon/hwmon0", name="coretemp", temp1_input=40000)
    found, _ = footprint.counters("cpu", tmp_path)
    assert [each.name for each in found] == names
    start, joules = time.perf_counter(), found[0].joules()
    time.sleep(0.05)
    used, seconds = found[0].joules() - joules, time.perf_counter() - start
    assert 10 * 0.05 <= used <= 10 * seconds, "10 W, summed up"


def test_a_board_whose_sensor_tells_its_power(tmp_path: Path) -> None:
    write(tmp_path / "class/hwmon/hwmon1", name="ina226", power1_input=3_000_000, in1_input=12000, curr1_input=250)
    (counter,), _ = footprint.counters("cpu", tmp_path)
    assert counter.name == "INA ina226 hwmon1"
    time.sleep(0.02)
    assert counter.joules() >= 3 * 0.02


class Library:
    """NVML, as nvml.h has it: a GPU that has used 12.5 J since its driver was loaded, and more at every look."""

    def __init__(self, result: int = 0) -> None:
        self.result, self.millijoules = result, 12_000

    def nvmlInit_v2(self) -> int:  # noqa: N802 (the library's name)
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index: Any, handle: Any) -> int:  # noqa: N802 (the library's name)
        assert index.value == 0
        handle._obj.value = 77
        return 0

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: Any, energy: Any) -> int:  # noqa: N802 (the library's name)
        assert handle.value == 77
        self.millijoules += 500
        energy._obj.value = self.millijoules
        return self.result


def test_a_gpu_counts_for_what_runs_on_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: {"libnvidia-ml.so.1": Library()}[name])
    (counter,), unreadable = footprint.counters("cuda", tmp_path)
    assert (counter.name, counter.joules(), unreadable) == ("NVML GPU 0", 13.0, [])
    assert footprint.counters("cpu", tmp_path) == ([], [])
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Library(result=3))  # NVML_ERROR_NOT_SUPPORTED
    found, unreadable = footprint.counters("cuda", tmp_path)
    assert (found, unreadable) == ([], ["NVML GPU 0 (nvmlDeviceGetTotalEnergyConsumption answers 3)"])


def test_energy_of_a_run_is_what_it_takes_beyond_the_idle_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(footprint, "time", clock)
    found = footprint.energy([clock, clock], clock.run, 2.0, 1.0, 3)
    assert found == {
        "counters": ["wall", "wall"],
        "runs": 4,
        "idle_w": pytest.approx(2 * 5),
        "gross_mj": pytest.approx(2 * 0.25 * 9e3),
        "net_mj": pytest.approx(2 * 0.25 * 4e3),
    }


class Clock:
    """A machine of 5 W that takes 9 W while it computes, and a quarter of a second for a run."""

    name = "wall"

    def __init__(self) -> None:
        self.now, self.used = 0.0, 0.0

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.used += 5 * seconds

    def run(self) -> None:
        self.now += 0.25
        self.used += 9 * 0.25

    def joules(self) -> float:
        return self.used


def test_memory_is_the_rise_of_the_peak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status = write(tmp_path, status="Name:\tx\nVmHWM:\t  100000 kB\nVmRSS:\t   40000 kB") / "status"
    monkeypatch.setattr(footprint, "STATUS", status)
    monkeypatch.setattr(footprint, "CLEAR", tmp_path / "nowhere" / "clear_refs")
    peak = footprint.Peak()
    assert peak.facts() is None, "the peak is an earlier one"
    status.write_text("VmHWM:\t  110000 kB\nVmRSS:\t   90000 kB\n")
    assert peak.facts() == {"peak_mb": 112.64, "before_mb": 40.96, "model_mb": pytest.approx(71.68)}
    monkeypatch.setattr(footprint, "STATUS", tmp_path / "nothing")
    assert footprint.Peak().facts() is None
