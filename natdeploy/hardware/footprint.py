"""What models take beside time on a target, each in a process of its own: memory, and energy where the device counts it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from natdeploy.hardware.bench import Candidate
from natdeploy.hardware.device import Target
from natdeploy.hardware.rounds import push_models
from natdeploy.hardware.runner_bench import Died, Runner
from natdeploy.hardware.runtimes import get_runtime
from natdeploy.hardware.tools import timed_by_tool
from natdeploy.hardware.transports import connect
from natdeploy.progress import Progress
from natdeploy.runtimes import footprint

RUNS = 20
"""At least, after which memory has reached its peak."""
SILENCE_S = 300.0


@dataclass(frozen=True)
class Footprint:
    """What one model takes. What the device does not tell is None.

    Attributes:
        memory: `model_mb`, by how much the process's peak resident memory rose from right before the model was loaded; `peak_mb` of
            the whole process; `before_mb`, Python and the library without a model; 10^6 bytes.
        energy: of a run in mJ: `net_mj`, less that of the idle device for as long; `gross_mj`, as counted; `idle_w`; `runs`; and
            the names of the `counters`.
        unreadable: counters that are there and cannot be read, each with the reason.
    """

    memory: Mapping[str, float] | None
    energy: Mapping[str, Any] | None
    unreadable: tuple[str, ...]


def measure_footprints(
    candidates: Sequence[Candidate],
    target: Target,
    *,
    seconds: float,
    seed: int,
    progress: Progress,
    keep: Callable[[str, Footprint], None],
) -> dict[str, str]:
    """Runs each model in a process of its own and hands on what it took, as soon as it is known.

    Args:
        candidates: with distinct ids.
        target: device, runtime, precision and threads.
        seconds: of which energy is counted while the model runs; and while the device is idle, before.
        seed: of the input values.
        progress: gets two steps a model.
        keep: takes what was found.

    Returns:
        By id, why there is nothing. On a device without Python, that of all.

    Raises:
        DeviceError: the device cannot be reached.
    """
    if timed_by_tool(target.device):
        return {each.id: "memory and energy need Python on the device" for each in candidates}
    failures: dict[str, str] = {}
    with connect(target.device) as transport:
        names = push_models(transport, get_runtime(target.runtime), candidates)
        settings = {"min_runs": RUNS, "idle_s": seconds, "busy_s": seconds}
        program = Runner(transport, target, settings, seed=seed, names=names, loop=Path(footprint.__file__))
        with progress.task(f"memory and energy on {target}", 2 * len(candidates), "steps") as advance:
            for candidate in candidates:
                answer = program.run([candidate], None, advance, silence_s=SILENCE_S)
                if isinstance(answer, Died):
                    failures[candidate.id] = answer.why
                else:
                    (record,) = answer.records
                    keep(candidate.id, Footprint(record["memory"], record["energy"], tuple(record["unreadable"])))
    return failures
