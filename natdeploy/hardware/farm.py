"""Devices of one kind that share a queue of work: what one of them cannot finish, another does, or it waits until one is back."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Generic, TypeVar

from natdeploy.errors import DeviceLostError

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
_Device = TypeVar("_Device")

PAUSES_S = (5.0, 30.0, 60.0)
"""A device that is lost is left alone for so long, longer each time in a row, and tried again; then it is given up. One that never
did any work is given up at once. A board takes about a minute to start.
"""


class Stopped(Exception):  # noqa: N818 (no error: the work is not wanted any more)
    """Ends the work of a device whose result nobody waits for."""


class Farm(Generic[_Device]):
    """Devices that share work.

    Args:
        devices: that are alike.
        note: is told which device is lost, and why.
        name: of a device, for people.
        pauses_s: instead of `PAUSES_S`.
    """

    def __init__(
        self,
        devices: Sequence[_Device],
        note: Callable[[str], None],
        *,
        name: Callable[[_Device], str] = str,
        pauses_s: Sequence[float] | None = None,
    ) -> None:
        # Devices by their numbers; those of `_resting` have the time at which they are free again.
        self._devices = devices
        self._free = deque(range(len(devices)))
        self._resting: dict[int, float] = {}
        self._failures = [0] * len(devices)
        self._worked = [False] * len(devices)
        self._note, self._name = note, name
        self._pauses_s = PAUSES_S if pauses_s is None else pauses_s
        self._why = ""

    def work_on(
        self,
        items: Iterator[_Item],
        work: Callable[[_Item, _Device, Callable[[], None]], _Result],
        take: Callable[[_Item, _Device, _Result], None],
    ) -> None:
        """Works on all items, one at a time on each device. `items` and `take` are called from this thread alone.

        Args:
            items: asked for the next one when a device is free, so that it may end as soon as enough is known.
            work: item, device, and a function to be called often: it raises `Stopped` when the work is not wanted any more.
            take: gets item, device and result, as they come. If it raises DeviceLostError, the item is worked on again.

        Raises:
            DeviceLostError: items are left, and no device is.
            Exception: whatever else `work` and `take` raise; work on other devices is stopped.
        """
        stop = threading.Event()

        def still_wanted() -> None:
            if stop.is_set():
                raise Stopped

        returned = deque[_Item]()
        running: dict[Future[_Result], tuple[_Item, int]] = {}
        devices = len(self._free) + len(self._resting)
        with ThreadPoolExecutor(max(1, devices)) as pool:
            # A single device works in this thread, where an interruption ends it at once.
            begin = pool.submit if devices > 1 else _here
            try:
                while True:
                    self._rested()
                    while self._free:
                        item = returned.popleft() if returned else next(items, None)
                        if item is None:
                            break
                        number = self._free.popleft()
                        running[begin(work, item, self._devices[number], still_wanted)] = item, number
                    if not running:
                        if self._free:
                            return
                        if not self._resting:
                            raise DeviceLostError(f"none of the devices can go on; {self._why}")
                        time.sleep(max(0.0, min(self._resting.values()) - time.monotonic()))
                        continue
                    patience = min(self._resting.values()) - time.monotonic() if self._resting else None
                    for future in wait(running, timeout=patience, return_when=FIRST_COMPLETED).done:
                        item, number = running.pop(future)
                        try:
                            take(item, self._devices[number], future.result())
                        except DeviceLostError as error:
                            if devices == 1 and not self._worked[number]:
                                raise
                            returned.append(item)
                            self._lost(number, error)
                        else:
                            self._failures[number], self._worked[number] = 0, True
                            self._free.append(number)
            finally:
                stop.set()

    def _rested(self) -> None:
        """Devices that have been left alone for long enough are free again."""
        now = time.monotonic()
        for number in [each for each, until in self._resting.items() if until <= now]:
            del self._resting[number]
            self._free.append(number)

    def _lost(self, number: int, error: DeviceLostError) -> None:
        self._why = f"{self._name(self._devices[number])}: {error}"
        failures, self._failures[number] = self._failures[number], self._failures[number] + 1
        if self._worked[number] and failures < len(self._pauses_s):
            pause_s = self._pauses_s[failures]
            self._resting[number] = time.monotonic() + pause_s
            self._note(f"{self._why}; its work goes back to the queue, and it is tried again in {pause_s:g} s")
        else:
            self._note(f"{self._why}; it is given up")


def _here(work: Callable[..., _Result], *arguments: object) -> Future[_Result]:
    """As `Executor.submit`, but done when it returns."""
    future: Future[_Result] = Future()
    try:
        future.set_result(work(*arguments))
    except Exception as error:
        future.set_exception(error)
    return future
