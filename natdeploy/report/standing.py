"""How far a run is, in numbers and in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["finished", "running", "stopped"]


@dataclass(frozen=True)
class Standing:
    """How far a run is.

    Attributes:
        state: `finished`; `running` while a process works on it; `stopped` if none does and there is something left to do.
        rounds_done: the first nets, which are evaluated before round 1, not counted.
        rounds: of the search, planned.
        steps_done: of the training, at the state on disk.
        steps: of the training, planned; those for nets that are trained alone not counted.
        spent_s: seconds of the budget that are over.
        minutes: of the budget, as asked for or as estimated at the start.
    """

    state: State
    rounds_done: int
    rounds: int
    steps_done: int
    steps: int
    spent_s: float
    minutes: float

    @property
    def finished(self) -> bool:
        return self.state == "finished"


def progress(standing: Standing) -> str:
    """What is done of what was planned, in half a sentence."""
    rounds = f"{standing.rounds_done} of {standing.rounds} rounds"
    steps = f"{standing.steps_done} of {standing.steps} training steps"
    return f"{rounds} and {steps} are done, {budget(standing)} are spent"


def budget(standing: Standing) -> str:
    """Time spent beside the time planned."""
    return f"{standing.spent_s / 60:.1f} of about {standing.minutes:.1f} min"


def sentence(standing: Standing, run: str) -> str:
    """What a person who opens a run has to know first; empty for a finished one.

    Args:
        standing: of the run.
        run: how the command line calls it.
    """
    if standing.finished:
        return ""
    known = f"{progress(standing)}; this is what is known so far"
    if standing.state == "running":
        return f"The search goes on: {known}."
    return f"The search is not finished, and nothing works on it: {known}. Go on with `natdeploy resume {run}`."
