"""Images a second, with as many requests at once as the machine runs best. A loop of the runner's.

Stands alone on the device: Python 3.8 and the standard library. The runtime's own queue keeps the requests going where its library
has one; elsewhere as many sessions as there are cores to share among them, each in a thread: the libraries compute outside of
Python's lock. Every request is one batch, and the next begins when it has ended.
"""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from types import ModuleType

GPU_DELEGATES = ("cuda", "tensorrt", "gpu")
GPU_SESSIONS = 2
"""One computes while the other's data travel."""


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _flood(runner: ModuleType, runtime: ModuleType, model: dict[str, Any], plan: dict[str, Any]) -> tuple[str, list[float]]:
    """How requests are kept going, and seconds from the beginning until each ended: while the model warms up and is measured."""
    inputs = runner.input_values(model, plan["seed"])
    seconds = plan["settings"]["warmup_s"] + plan["settings"]["min_s"]
    if runtime.queue is not None:
        return _by_queue(runtime, model, plan, inputs, seconds)
    threads = plan["threads"]
    count = GPU_SESSIONS if plan["delegate"] in GPU_DELEGATES else max(1, cores() // threads)

    def session() -> Any:
        return runner.load_model(runtime, model, plan, threads)

    each = f"{threads} thread{'s' if threads > 1 else ''}"
    how = f"{count} session{'s' if count > 1 else ''} of {each} each, every one in a thread of its own"
    return how, _by_threads(count, session, lambda loaded: runtime.run(loaded, inputs), seconds)


def _by_queue(
    runtime: ModuleType, model: dict[str, Any], plan: dict[str, Any], inputs: list[Any], seconds: float
) -> tuple[str, list[float]]:
    shape = None if len(model.get("inputs") or ()) > 1 else model["shape"]
    queue, how = runtime.queue(model["model"], shape, cores(), model.get("precision") or plan["precision"], plan["delegate"])
    numbered, ends = dict(enumerate(inputs)), []
    begin = time.perf_counter()
    queue.set_callback(lambda *_: ends.append(time.perf_counter() - begin))
    while time.perf_counter() - begin < seconds:
        queue.start_async(numbered, share_inputs=True)
    queue.wait_all()
    return how, ends


def _by_threads(count: int, load: Callable[[], Any], run: Callable[[Any], Any], seconds: float) -> list[float]:
    ends: list[float] = []
    begins: list[float] = []
    errors: list[Exception] = []
    barrier = threading.Barrier(count, action=lambda: begins.append(time.perf_counter()))

    def work() -> None:
        try:
            session = load()  # here, for some libraries tie a session to its thread
            run(session)
            barrier.wait()
            while time.perf_counter() - begins[0] < seconds:
                run(session)
                ends.append(time.perf_counter() - begins[0])
        except threading.BrokenBarrierError:
            pass  # another thread tells why
        except Exception as error:
            errors.append(error)
            barrier.abort()

    workers = [threading.Thread(target=work) for _ in range(count)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if errors:
        raise errors[0]
    return ends


def records(plan: dict[str, Any], folder: Path, runner: ModuleType) -> Iterator[dict[str, Any]]:
    """The environment, then one record a candidate: requests that ended in each window, and the reference's latency around."""
    settings, runtime = plan["settings"], runner.load_runtime(folder / plan["runtime"])
    details = runtime.details(plan["precision"], plan["delegate"])
    yield dict(runner.environment(), **details, threads=plan["threads"], settings=settings)
    reference = runner.Reference(runtime, plan)
    before = reference.median_ms(settings["reference_s"])
    window_s = settings["min_s"] / settings["slices"]
    for model in plan["candidates"]:
        runner.say(model["id"])
        try:
            how, ends = _flood(runner, runtime, model, plan)
        except Exception as error:
            yield {"id": model["id"], "error": f"{type(error).__name__}: {error}"}
            continue
        counts = [0] * settings["slices"]
        for end in ends:
            place = int((end - settings["warmup_s"]) // window_s)
            if 0 <= place < len(counts):
                counts[place] += 1
        after = reference.median_ms(settings["reference_s"])
        yield {"id": model["id"], "how": how, "counts": counts, "window_s": window_s, "reference_ms": (before + after) / 2}
        before = after
