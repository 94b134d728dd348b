"""The only timing loop: `python runner.py plan.json result.jsonl`.

Stands alone on the device beside one runtime file: Python 3.8, the standard library, numpy and that runtime's library.
One call is one fresh process. It loads every model of the plan, times load and first run apart, and warms it up. Then it goes
round all of them several times: a slice of the one, a slice of the reference model, a slice of the next. So each model is timed
at many moments, and always between two moments of the reference: a machine that gets slower shows in both.

Every timed run gives two numbers: its wall time, and how much of it the thread stood runnable but without a core, which is
other processes' doing and no property of the model (Linux and Android count it, see `_Waited`; elsewhere it is 0). A third is
what the runtime's library counts itself, where it does (`inside_ms` of the runtime file), less the call from Python.

A plan that names another loop, a file beside this one, has that instead; it measures something else than latency.

The result file holds one JSON object a line: first the environment, then one record a model. Standard output says where the
loop is, one JSON object a step: each model's preparation is a step, and each of its slices.
"""

from __future__ import annotations

import gc
import importlib.util
import json
import math
import os
import platform
import sys
import time
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

HARNESS = "natdeploy runner 1"
"""Numbers of different harnesses are never ranked together."""


class _Waited:
    """Milliseconds that this thread has spent runnable without a core, from the scheduler's own count."""

    path = Path("/proc/thread-self/schedstat")

    def __init__(self) -> None:
        try:
            self._file: int | None = os.open(self.path, os.O_RDONLY)
            self()
        except (OSError, ValueError, IndexError):
            self._file = None

    @property
    def counted(self) -> bool:
        return self._file is not None

    def __call__(self) -> float:
        # time on the core, time waiting for it (ns), slices: Documentation/scheduler/sched-stats in Linux
        return int(os.pread(self._file, 64, 0).split()[1]) / 1e6 if self._file is not None else 0.0


def _first_line(path: str) -> str | None:
    try:
        return Path(path).read_text().splitlines()[0].strip()
    except (OSError, IndexError, UnicodeDecodeError):
        return None


def _field(path: str, name: str) -> str | None:
    try:
        lines = Path(path).read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(name) and ":" in line), None)


def _processor() -> str:
    name = _field("/proc/cpuinfo", "model name")
    family, model = _field("/proc/cpuinfo", "cpu family"), _field("/proc/cpuinfo", "model\t")
    if name and family and model:  # hypervisors shorten names until generations look alike
        return f"{name}, family {family} model {model}"
    return name or platform.processor() or platform.machine()


def load_average() -> float | None:
    """Processes that ran or wanted to, on the mean of the last minute."""
    try:
        return float((_first_line("/proc/loadavg") or "").split()[0])
    except (IndexError, ValueError):
        return None


def environment() -> dict[str, Any]:
    """What about this machine decides how fast it runs; None where it cannot be read."""
    import numpy as np

    temperature = _first_line("/sys/class/thermal/thermal_zone0/temp")
    memory = _field("/proc/meminfo", "MemTotal")
    return {
        "harness": HARNESS,
        "cpu": _processor(),
        "cores": os.cpu_count(),
        "affinity": sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "governor": _first_line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "temperature_c": int(temperature) / 1000 if temperature and temperature.lstrip("-").isdigit() else None,
        "memory_mb": int(memory.split()[0]) // 1024 if memory else None,
        "os": platform.platform(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "waiting_counted": _Waited().counted,
        "load": load_average(),
        "utc": datetime.now(timezone.utc).isoformat(timespec="seconds"),  # noqa: UP017 (Python 3.8 has no datetime.UTC)
    }


def load_runtime(path: Path, name: str = "runtime") -> ModuleType:
    """Imports a runtime file by its path."""
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def input_values(model: dict[str, Any], seed: int) -> list[Any]:
    """An array for every input of a model: normally distributed; over the whole range of 8-bit integers, which are pixels mostly;
    and ones where the numbers are indices, lengths or masks."""
    import numpy as np

    generator, arrays = np.random.default_rng(seed), []
    for shape, name in model.get("inputs") or [(model["shape"], "float32")]:
        kind = np.dtype(name)
        if kind.kind == "f":
            arrays.append(generator.standard_normal(shape).astype(kind))
        elif kind.kind in "iu" and kind.itemsize == 1:
            ends = np.iinfo(kind)
            arrays.append(generator.integers(ends.min, ends.max + 1, shape).astype(kind))
        else:
            arrays.append(np.ones(shape, kind))
    return arrays


def load_model(runtime: ModuleType, model: dict[str, Any], plan: dict[str, Any], threads: int) -> Any:
    """A session. Of several inputs the file itself fixes the shapes."""
    shape = None if len(model.get("inputs") or ()) > 1 else model["shape"]
    return runtime.load(model["model"], shape, threads, model.get("precision") or plan["precision"], plan["delegate"])


class _Timed:
    """A model in this process, ready to be run."""

    def __init__(self, runtime: ModuleType, model: dict[str, Any], plan: dict[str, Any], waited: _Waited) -> None:
        self._runtime, self._waited = runtime, waited
        self._inputs = input_values(model, plan["seed"])
        start = time.perf_counter()
        self._session = load_model(runtime, model, plan, plan["threads"])
        self.load_ms = (time.perf_counter() - start) * 1e3
        self.first_ms = self._once()[0]

    def _once(self) -> tuple[float, float]:
        waited, computed, start = self._waited(), time.thread_time(), time.perf_counter()
        self._runtime.run(self._session, self._inputs)
        wall_ms = (time.perf_counter() - start) * 1e3
        computed_ms = (time.thread_time() - computed) * 1e3
        # A thread loses its core mostly at a system call such as reading these clocks, and that wait is not the model's:
        # within the run it can have waited no longer than it did not compute.
        return wall_ms, max(0.0, min(self._waited() - waited, wall_ms - computed_ms))

    def warm_up(self, runs: int, seconds: float) -> int:
        start, count = time.perf_counter(), 0
        while count < runs or time.perf_counter() - start < seconds:
            self._once()
            count += 1
        return count

    def time(self, runs: int, seconds: float) -> tuple[list[float], list[float], list[float]]:
        """Milliseconds on the wall, waiting and inside the library of at least so many runs and so many seconds, after one run that
        fills the caches. Where the library counts none itself, the last list is empty."""
        self._once()
        wall: list[float] = []
        waited: list[float] = []
        inside: list[float] = []
        start = time.perf_counter()
        while len(wall) < runs or time.perf_counter() - start < seconds:
            wall_ms, waited_ms = self._once()
            wall.append(round(wall_ms, 6))
            waited.append(round(waited_ms, 6))
            if self._runtime.inside_ms is not None:
                inside.append(self._runtime.inside_ms(self._session))
        return wall, waited, inside


def median(values: list[float]) -> float:
    """Nearest rank, ceil(n / 2) - 1, as for every percentile of the product."""
    return sorted(values)[math.ceil(len(values) / 2) - 1]


class Reference:
    """The plan's reference model, warmed up. Ends the process with a sentence where it does not run."""

    def __init__(self, runtime: ModuleType, plan: dict[str, Any], waited: _Waited | None = None) -> None:
        try:
            self._model = _Timed(runtime, plan["reference"], plan, waited or _Waited())
            self._model.warm_up(plan["settings"]["warmup_runs"], plan["settings"]["warmup_s"])
        except Exception as error:
            raise SystemExit(f"{plan['reference']['id']}, beside which all are timed, does not run: {error}") from error

    def median_ms(self, seconds: float) -> float:
        """Undisturbed time of a run, over at least one and so many seconds."""
        wall, delay, _ = self._model.time(1, seconds)
        return median([total - lost for total, lost in zip(wall, delay)])  # noqa: B905 (Python 3.8 has no `strict`)


def records(plan: dict[str, Any], folder: Path) -> Iterator[dict[str, Any]]:
    """The environment, then one record a candidate in the plan's order. A model that fails has `error` instead of numbers."""
    settings = plan["settings"]
    runtime, waited = load_runtime(folder / plan["runtime"]), _Waited()
    details = runtime.details(plan["precision"], plan["delegate"])
    yield dict(environment(), **details, threads=plan["threads"], settings=settings)
    slices = settings["slices"]
    reference = Reference(runtime, plan, waited)
    models: dict[str, _Timed] = {}
    results: dict[str, dict[str, Any]] = {
        candidate["id"]: {"id": candidate["id"], "slices": []} for candidate in plan["candidates"]
    }

    for candidate in plan["candidates"]:
        with _step(candidate["id"], results):
            model = _Timed(runtime, candidate, plan, waited)
            warmup_runs = model.warm_up(settings["warmup_runs"], settings["warmup_s"])
            results[candidate["id"]].update(load_ms=model.load_ms, first_ms=model.first_ms, warmup_runs=warmup_runs)
            models[candidate["id"]] = model
    gc.collect()
    gc.disable()
    for _ in range(slices):
        before = reference.median_ms(settings["reference_s"] / slices)
        for name, model in models.items():
            with _step(name, results):
                wall, delay, inside = model.time(math.ceil(settings["min_runs"] / slices), settings["min_s"] / slices)
                after = reference.median_ms(settings["reference_s"] / slices)
                part = {"reference_ms": (before + after) / 2, "wall_ms": wall, "waited_ms": delay, "inside_ms": inside}
                results[name]["slices"].append(part)
                before = after
    yield from results.values()


def say(name: str) -> None:
    """A step: the model that the loop is at."""
    print(json.dumps({"id": name}), flush=True)


@contextmanager
def _step(name: str, results: dict[str, dict[str, Any]]) -> Iterator[None]:
    """Says where the loop is, and keeps what a runtime's library raises with the one model that it belongs to."""
    say(name)
    try:
        yield
    except Exception as error:
        results[name] = {"id": name, "slices": [], "error": f"{type(error).__name__}: {error}"}


def main() -> None:
    plan_path, result_path = map(Path, sys.argv[1:3])
    plan, folder = json.loads(plan_path.read_text()), plan_path.parent
    with result_path.open("w") as result:
        if "loop" in plan:
            found = load_runtime(folder / plan["loop"], "loop").records(plan, folder, sys.modules[__name__])
        else:
            found = records(plan, folder)
        for record in found:
            result.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
