"""What a harness gives of a model in one fresh process, whichever harness it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from natdeploy.hardware.measure import Candidate


@dataclass(frozen=True)
class Round:
    """A model's times in one process, in milliseconds. What the harness does not tell is None.

    Attributes:
        references_ms: the reference's latency beside each slice of the model's runs.
        ratios: by slice, the model's latency in units of the reference's.
        floors_ms: by slice, the fastest run.
        n: timed runs.
        mean_ms: wall time of a run.
        median_ms: wall time of a run.
        samples_ms: wall time of every run; none where they are not told.
        load_ms: time to load the model.
        first_ms: time of the first run.
    """

    references_ms: tuple[float, ...]
    ratios: tuple[float, ...]
    floors_ms: tuple[float, ...]
    n: int
    mean_ms: float
    median_ms: float | None
    samples_ms: tuple[float, ...]
    load_ms: float | None
    first_ms: float | None


class Bench(Protocol):
    """A harness on a device to which the models have been pushed."""

    @property
    def environment(self) -> Mapping[str, Any]:
        """What is known of the device and the harness; complete after the first round."""

    def steps(self, models: int) -> int:
        """How often `round` calls `advance` for so many models."""

    def round(self, models: Sequence[Candidate], advance: Callable[[int], None]) -> Mapping[str, Round | str]:
        """Times models in a fresh process (or one each), in the order given, the reference between them.

        Returns:
            By id, the times or why there are none. Models without an answer have to be asked for again: another one took the
            process down that they were in.

        Raises:
            DeviceError: the device failed, or the reference does not run.
        """
