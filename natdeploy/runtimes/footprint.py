"""What a model takes beside time: memory, and energy where the machine counts it. A loop of the runner's, for one model a process.

Stands alone on the device: Python 3.8 and the standard library.

Memory is the peak of what the process has resident (VmHWM), from right before the model is loaded until it has run a number of
times. Linux lets a process reset the peak (proc(5), clear_refs); where it does not, and the peak is an earlier one, the model's is
not known. What a GPU holds is no part of it.

Energy is counted by
- RAPL, in /sys/class/powercap: packages and their memory (Documentation/power/powercap/powercap.rst in Linux). Since 2020 only
  root may read it.
- INA sensors, in /sys/class/hwmon: a board's input rail, or all its rails together (Documentation/hwmon/ina3221.rst, ina2xx.rst).
  Those tell power, are read every 20 ms and summed up.
- NVML, by the driver's own library: the GPU since the driver was loaded (nvmlDeviceGetTotalEnergyConsumption), for models there.

Told are the energy of a run as counted, and what is left of it less that of the idle machine for as long, measured before.
Unverified on hardware: no machine with such a counter was at hand. Tests read a tree of files and a library that have the
documented interface.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import re
import threading
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType

SYS = Path("/sys")
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
GPU_DELEGATES = ("cuda", "tensorrt", "gpu")
POWER_SENSORS = ("ina219", "ina220", "ina226", "ina230", "ina231", "ina234", "ina238", "ina260", "ina3221")
INPUT_RAILS = ("VDD_IN", "POM_5V_IN")
"""By which a Jetson module gets all its power: Orin NX and Nano and Xavier NX, the first Nano and TX2."""
SAMPLE_S = 0.02


# ---- memory


def _status_mb(name: str) -> float | None:
    """A figure of this process, 10^6 bytes."""
    try:
        found = re.search(rf"^{name}:\s*(\d+) kB", STATUS.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 / 1e6 if found else None


class Peak:
    """Memory of this process from now on."""

    def __init__(self) -> None:
        gc.collect()
        with contextlib.suppress(OSError):  # then the peak is compared with the earlier one
            CLEAR.write_text("5")
        self.before_mb = _status_mb("VmRSS")
        self._earlier_mb = _status_mb("VmHWM")

    def facts(self) -> dict[str, float] | None:
        """`peak_mb` of the whole process, `before_mb` when this began, and `model_mb`, what has come since; None if not known."""
        peak_mb, earlier_mb, before_mb = _status_mb("VmHWM"), self._earlier_mb, self.before_mb
        if peak_mb is None or earlier_mb is None or before_mb is None or peak_mb <= earlier_mb > before_mb:
            return None
        return {"peak_mb": peak_mb, "before_mb": before_mb, "model_mb": peak_mb - before_mb}


# ---- energy


class Rapl:
    """A zone of the powercap tree. Its counter begins anew at `max_energy_range_uj`."""

    def __init__(self, folder: Path) -> None:
        self.name = "RAPL {}".format((folder / "name").read_text().strip())
        self._file, self._range = folder / "energy_uj", int((folder / "max_energy_range_uj").read_text())
        self._last, self._sum = int(self._file.read_text()), 0

    def joules(self) -> float:
        now = int(self._file.read_text())
        self._sum += now - self._last if now >= self._last else now + self._range - self._last
        self._last = now
        return self._sum / 1e6


class Sensor:
    """Power, read again and again in a thread and summed up."""

    def __init__(self, name: str, watts: Callable[[], float]) -> None:
        self.name, self._watts, self._joules = name, watts, 0.0
        self._lock, self._at = threading.Lock(), time.perf_counter()
        self._power = watts()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        while True:
            time.sleep(SAMPLE_S)
            self.joules()

    def joules(self) -> float:
        with self._lock:
            power, now = self._watts(), time.perf_counter()
            self._joules += (now - self._at) * (power + self._power) / 2
            self._power, self._at = power, now
            return self._joules


class Nvml:
    """The first GPU."""

    name = "NVML GPU 0"

    def __init__(self, library: Any) -> None:
        self._library, self._device = library, ctypes.c_void_p()
        self._call("nvmlInit_v2")
        self._call("nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(0), ctypes.byref(self._device))
        self.joules()

    def joules(self) -> float:
        millijoules = ctypes.c_ulonglong()
        self._call("nvmlDeviceGetTotalEnergyConsumption", self._device, ctypes.byref(millijoules))
        return millijoules.value / 1e3

    def _call(self, name: str, *arguments: Any) -> None:
        result = getattr(self._library, name)(*arguments)
        if result != 0:  # NVML_SUCCESS
            raise OSError(f"{name} answers {result}")


def _rapl(sys: Path) -> dict[str, Callable[[], Any]]:
    """By folder, what makes a counter of each package and of its memory. The platform's own zone holds them once more."""
    zones = {str(file.parent): file.read_text().strip() for file in sorted((sys / "class/powercap").glob("intel-rapl:*/name"))}
    return {place: partial(Rapl, Path(place)) for place, name in zones.items() if name.startswith("package") or name == "dram"}


def _ina(sys: Path) -> dict[str, Callable[[], Any]]:
    """By rail, what makes its counter. Of a board that tells its input rail it alone."""
    watts: dict[str, Callable[[], float]] = {}
    for file in sorted((sys / "class/hwmon").glob("hwmon*/name")):
        folder, kind = file.parent, file.read_text().strip()
        if kind not in POWER_SENSORS:
            continue
        if (folder / "power1_input").is_file():
            watts[f"{kind} {folder.name}"] = partial(_product, folder / "power1_input")  # microwatts
        for number in (1, 2, 3):
            volts, amperes = folder / f"in{number}_input", folder / f"curr{number}_input"
            rail = _first_line(folder / f"in{number}_label")
            if volts.is_file() and amperes.is_file() and rail not in (None, "NC"):
                watts[str(rail)] = partial(_product, volts, amperes)  # millivolts and milliamperes
    whole = {rail: read for rail, read in watts.items() if rail in INPUT_RAILS}
    return {f"INA {rail}": partial(Sensor, f"INA {rail}", read) for rail, read in (whole or watts).items()}


def _first_line(path: Path) -> str | None:
    try:
        return path.read_text().splitlines()[0].strip()
    except (OSError, IndexError):
        return None


def _product(*files: Path) -> float:
    """Millionths of it."""
    product = 1
    for file in files:
        product *= int(file.read_text())
    return product / 1e6


def counters(delegate: str, sys: Path = SYS) -> tuple[list[Any], list[str]]:
    """What counts energy here, and what there is but cannot be read, in words."""
    makers = _rapl(sys) or _ina(sys)
    if delegate in GPU_DELEGATES:
        with contextlib.suppress(OSError):  # without the driver there is no such library
            makers[Nvml.name] = partial(Nvml, ctypes.CDLL("libnvidia-ml.so.1"))
    found, unreadable = [], []
    for name, make in makers.items():
        try:
            found.append(make())
        except (OSError, ValueError) as error:
            unreadable.append(f"{name} ({getattr(error, 'strerror', None) or error})")
    return found, unreadable


def energy(found: list[Any], run: Callable[[], Any], idle_s: float, busy_s: float, runs: int) -> dict[str, Any] | None:
    """Millijoules of a run, by counter and in all, as counted (`gross_mj`) and less those of the idle machine (`net_mj`)."""
    if not found:
        return None
    run()
    before, start = [each.joules() for each in found], time.perf_counter()
    time.sleep(idle_s)
    idle, middle = [each.joules() for each in found], time.perf_counter()
    count = 0
    while count < runs or time.perf_counter() - middle < busy_s:
        run()
        count += 1
    after, end = [each.joules() for each in found], time.perf_counter()
    idle_w = [(b - a) / (middle - start) for a, b in zip(before, idle)]  # noqa: B905 (Python 3.8 has no `strict`)
    gross = [(b - a) * 1e3 / count for a, b in zip(idle, after)]  # noqa: B905
    return {
        "counters": [each.name for each in found],
        "runs": count,
        "idle_w": sum(idle_w),
        "gross_mj": sum(gross),
        "net_mj": sum(gross) - sum(idle_w) * (end - middle) * 1e3 / count,
    }


# ---- the loop


def records(plan: dict[str, Any], folder: Path, runner: ModuleType) -> Iterator[dict[str, Any]]:
    """The environment, then memory and energy of the plan's one candidate."""
    runtime, settings = runner.load_runtime(folder / plan["runtime"]), plan["settings"]
    details = runtime.details(plan["precision"], plan["delegate"])  # imports the library
    yield dict(runner.environment(), **details, threads=plan["threads"])
    (model,) = plan["candidates"]
    runner.say(model["id"])
    inputs = runner.input_values(model, plan["seed"])
    found, unreadable = counters(plan["delegate"])
    peak = Peak()
    session = runner.load_model(runtime, model, plan, plan["threads"])
    for _ in range(settings["min_runs"]):
        runtime.run(session, inputs)
    memory = peak.facts()
    runner.say(model["id"])
    used = energy(found, lambda: runtime.run(session, inputs), settings["idle_s"], settings["busy_s"], settings["min_runs"])
    yield {"id": model["id"], "memory": memory, "energy": used, "unreadable": unreadable}
