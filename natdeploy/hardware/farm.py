"""Devices of one kind that share a queue of work: what one of them cannot finish, another does, or it waits until one is back."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TypeVar

from natdeploy.errors import UnreachableError

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
_Device = TypeVar("_Device", bound=Hashable)

PAUSES_S = (5.0, 30.0, 60.0)
"""A device out of reach is left alone for so long, longer each time in a row, and tried again; then it is given up. A board takes
about a minute to start.
"""


class Stopped(Exception):  # noqa: N818 (no error: the work is not wanted any more)
    """Ends the work of a device whose result nobody waits for."""


def share(
    items: Iterator[_Item],
    devices: Sequence[_Device],
    work: Callable[[_Item, _Device, Callable[[], None]], _Result],
    take: Callable[[_Item, _Device, _Result], None],
    *,
    note: Callable[[str], None],
    pauses_s: Sequence[float] = PAUSES_S,
) -> None:
    """Works on all items, one at a time on each device. `items` and `take` are called from this thread alone.

    Args:
        items: asked for the next one when a device is free, so that it may end as soon as enough is known.
        devices: that can do the work; `str` names them.
        work: item, device, and a function to be called often: it raises `Stopped` when the work is not wanted any more.
        take: gets item, device and result, as they come. If it raises UnreachableError, the item is worked on again.
        note: is told which device is out of reach, and why.
        pauses_s: see `PAUSES_S`.

    Raises:
        UnreachableError: items are left, and no device is.
        Exception: whatever else `work` and `take` raise; work on other devices is stopped.
    """
    stop = threading.Event()

    def still_wanted() -> None:
        if stop.is_set():
            raise Stopped

    free, returned = deque(devices), deque[_Item]()
    resting: dict[_Device, float] = {}
    failures = dict.fromkeys(devices, 0)
    running: dict[Future[_Result], tuple[_Item, _Device]] = {}
    why = ""
    with ThreadPoolExecutor(len(devices)) as pool:
        # A single device works in this thread, where an interruption ends it at once.
        begin = pool.submit if len(devices) > 1 else _here
        try:
            while True:
                now = time.monotonic()
                for device in [each for each, until in resting.items() if until <= now]:
                    del resting[device]
                    free.append(device)
                while free:
                    item = returned.popleft() if returned else next(items, None)
                    if item is None:
                        break
                    device = free.popleft()
                    running[begin(work, item, device, still_wanted)] = item, device
                if not running:
                    if not returned:
                        return
                    if not resting:
                        raise UnreachableError(f"none of the devices is within reach any more; {why}")
                    time.sleep(max(0.0, min(resting.values()) - time.monotonic()))
                    continue
                patience = min(resting.values()) - time.monotonic() if resting and returned else None
                for future in wait(running, timeout=patience, return_when=FIRST_COMPLETED).done:
                    item, device = running.pop(future)
                    try:
                        take(item, device, future.result())
                    except UnreachableError as error:
                        why = f"{device}: {error}"
                        returned.append(item)
                        if failures[device] < len(pauses_s):
                            pause_s = pauses_s[failures[device]]
                            resting[device] = time.monotonic() + pause_s
                            note(f"{why}; its work goes back to the queue, and it is tried again in {pause_s:g} s")
                        else:
                            note(f"{why}; it is given up")
                        failures[device] += 1
                    else:
                        failures[device] = 0
                        free.append(device)
        finally:
            stop.set()


def _here(work: Callable[..., _Result], *arguments: object) -> Future[_Result]:
    """As `Executor.submit`, but done when it returns."""
    future: Future[_Result] = Future()
    try:
        future.set_result(work(*arguments))
    except Exception as error:
        future.set_exception(error)
    return future
