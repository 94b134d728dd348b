"""natdeploy's own harness on a device that has Python: the runner, one process for all models of a round."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from natdeploy.errors import DeviceError
from natdeploy.hardware.bench import Candidate, Round, Setup
from natdeploy.hardware.device import Target
from natdeploy.hardware.runtimes import get_runtime
from natdeploy.hardware.transports import ProgramError, Transport
from natdeploy.runtimes import runner


@dataclass(frozen=True)
class Told:
    """Of one process: what it found on the device, and a record a model."""

    environment: Mapping[str, Any]
    records: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Died:
    """A process that a model took down."""

    model: str
    why: str


class Runner:
    """The runner on a device, with the runtime's file beside it.

    Args:
        transport: to the device.
        target: device, runtime, precision and threads.
        settings: of the loop, JSON values.
        seed: of the input values.
        names: of the models' files in the device's folder.
        loop: file of a loop other than that of latencies.

    Raises:
        DeviceError: the device has no Python.
    """

    def __init__(
        self,
        transport: Transport,
        target: Target,
        settings: Mapping[str, Any],
        *,
        seed: int,
        names: Mapping[Path, str],
        loop: Path | None = None,
    ) -> None:
        if transport.python is None:
            raise DeviceError("there is no Python on this device to run the runner; name one as `python` in its file")
        code = Path(str(get_runtime(target.runtime).__file__))
        transport.push(code, code.name)
        transport.push(Path(runner.__file__), "runner.py")
        self._transport, self._names = transport, names
        self._program = [transport.python, "runner.py", "plan.json", "result.jsonl"]
        self._plan: dict[str, Any] = {
            "runtime": code.name,
            "threads": target.threads,
            "precision": target.precision,
            "delegate": target.delegate,
            "seed": seed,
            "settings": dict(settings),
        }
        if loop is not None:
            transport.push(loop, loop.name)
            self._plan["loop"] = loop.name

    @classmethod
    def of(cls, setup: Setup, loop: Path | None = None) -> Self:
        """With the settings of a measurement."""
        return cls(setup.transport, setup.target, asdict(setup.settings), seed=setup.seed, names=setup.names, loop=loop)

    def run(
        self,
        models: Sequence[Candidate],
        reference: Candidate | None,
        advance: Callable[[int], None],
        *,
        silence_s: float,
    ) -> Told | Died:
        """What one fresh process told, or which model took it down.

        Raises:
            DeviceError: the device failed, or the process before its first model.
        """
        running = ""

        def listen(line: str) -> None:
            nonlocal running
            try:
                running = json.loads(line)["id"]
            except (ValueError, TypeError, KeyError) as error:
                raise DeviceError(
                    f"the runner was to say which model it is at, but said {line!r}; does a library print?"
                ) from error
            advance(1)

        plan = self._plan | {"candidates": [self._model(each) for each in models]}
        if reference is not None:
            plan["reference"] = self._model(reference)
        with tempfile.TemporaryDirectory() as folder:
            here = Path(folder)
            (here / "plan.json").write_text(json.dumps(plan))
            self._transport.push(here / "plan.json", "plan.json")
            try:
                self._transport.run(self._program, silence_s=silence_s, on_line=listen)
            except TimeoutError as error:
                if not running:
                    raise DeviceError(
                        f"the runner said nothing for {silence_s:g} s before its first model; is the device busy?"
                    ) from error
                return Died(running, f"no answer within {silence_s:g} s")
            except ProgramError as error:
                if not running:
                    raise
                return Died(running, str(error))
            self._transport.pull("result.jsonl", here / "result.jsonl")
            environment, *records = [json.loads(line) for line in (here / "result.jsonl").read_text().splitlines()]
        return Told(environment, records)

    def _model(self, candidate: Candidate) -> dict[str, Any]:
        facts = {"id": candidate.id, "model": self._names[candidate.model], "shape": candidate.shape}
        return {**facts, "inputs": candidate.inputs, "precision": candidate.precision}


class RunnerBench:
    """The runner's loop of latencies.

    Raises:
        DeviceError: the device has no Python.
    """

    def __init__(self, setup: Setup) -> None:
        self.environment: Mapping[str, Any] = {}
        self._settings, self._reference = setup.settings, setup.reference
        self._runner = Runner.of(setup)

    def steps(self, models: int) -> int:
        return models * (self._settings.slices + 1)

    def round(self, models: Sequence[Candidate], advance: Callable[[int], None]) -> Mapping[str, Round | str]:
        answer = self._runner.run(models, self._reference, advance, silence_s=self._settings.silence_s)
        if isinstance(answer, Died):
            return {answer.model: answer.why}
        self.environment, counted = answer.environment, bool(answer.environment["waiting_counted"])
        return {each["id"]: each["error"] if "error" in each else _round(each, counted) for each in answer.records}


def _round(record: Mapping[str, Any], counted: bool) -> Round:
    slices = [(_undisturbed(part), part["reference_ms"]) for part in record["slices"]]
    samples = tuple(ms for part in record["slices"] for ms in part["wall_ms"])
    inside = [ms for part in record["slices"] for ms in part["inside_ms"]]
    return Round(
        references_ms=tuple(beside for _, beside in slices),
        ratios=tuple(runner.median(times) / beside for times, beside in slices),
        floors_ms=tuple(min(times) for times, _ in slices),
        n=len(samples),
        mean_ms=sum(samples) / len(samples),
        median_ms=runner.median(list(samples)),
        samples_ms=samples,
        load_ms=record["load_ms"],
        first_ms=record["first_ms"],
        waited=sum(ms for part in record["slices"] for ms in part["waited_ms"]) / sum(samples) if counted else None,
        inside_ms=runner.median(inside) if inside else None,
    )


def _undisturbed(part: Mapping[str, Sequence[float]]) -> list[float]:
    return [wall - waited for wall, waited in zip(part["wall_ms"], part["waited_ms"], strict=True)]
