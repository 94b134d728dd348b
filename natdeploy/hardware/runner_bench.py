"""natdeploy's own harness on a device that has Python: the runner, one process for all models of a round."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from natdeploy.errors import DeviceError
from natdeploy.hardware.bench import Candidate, MeasureSettings, Round
from natdeploy.hardware.device import Target
from natdeploy.hardware.runtimes import Runtime
from natdeploy.hardware.transports import ProgramError, Transport
from natdeploy.runtimes import runner


class RunnerBench:
    """Pushes the runner and the runtime's file.

    Args:
        transport: to the device.
        runtime: of the models.
        target: device, runtime, precision and threads.
        settings: how long to measure.
        seed: of the input values.
        reference: timed beside each model.
        names: of the models' files in the device's folder.

    Raises:
        DeviceError: the device has no Python.
    """

    def __init__(
        self,
        transport: Transport,
        runtime: Runtime,
        target: Target,
        settings: MeasureSettings,
        *,
        seed: int,
        reference: Candidate,
        names: Mapping[Path, str],
    ) -> None:
        if transport.python is None:
            raise DeviceError("there is no Python on this device to run the runner; name one as `python` in its file")
        code = Path(str(runtime.__file__))
        transport.push(code, code.name)
        transport.push(Path(runner.__file__), "runner.py")
        self.environment: Mapping[str, Any] = {}
        self._transport, self._settings, self._names = transport, settings, names
        self._program = [transport.python, "runner.py", "plan.json", "result.jsonl"]
        self._plan = {
            "runtime": code.name,
            "threads": target.threads,
            "precision": target.precision,
            "delegate": target.delegate,
            "seed": seed,
            "settings": asdict(settings),
            "reference": self._model(reference),
        }

    def steps(self, models: int) -> int:
        return models * (self._settings.slices + 1)

    def round(self, models: Sequence[Candidate], advance: Callable[[int], None]) -> Mapping[str, Round | str]:
        plan = self._plan | {"candidates": [self._model(each) for each in models]}
        silence_s, running = self._settings.silence_s, ""

        def listen(line: str) -> None:
            nonlocal running
            try:
                running = json.loads(line)["id"]
            except (ValueError, TypeError, KeyError) as error:
                raise DeviceError(
                    f"the runner was to say which model it is at, but said {line!r}; does a library print?"
                ) from error
            advance(1)

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
                return {running: f"no answer within {silence_s:g} s"}
            except ProgramError as error:
                if not running:
                    raise
                return {running: str(error)}
            self._transport.pull("result.jsonl", here / "result.jsonl")
            self.environment, *records = [json.loads(line) for line in (here / "result.jsonl").read_text().splitlines()]
        counted = bool(self.environment["waiting_counted"])
        return {record["id"]: record["error"] if "error" in record else _round(record, counted) for record in records}

    def _model(self, candidate: Candidate) -> dict[str, Any]:
        facts = {"id": candidate.id, "model": self._names[candidate.model], "shape": candidate.shape}
        return {**facts, "inputs": candidate.inputs, "precision": candidate.precision}


def _round(record: Mapping[str, Any], counted: bool) -> Round:
    slices = [(_undisturbed(part), part["reference_ms"]) for part in record["slices"]]
    samples = tuple(ms for part in record["slices"] for ms in part["wall_ms"])
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
    )


def _undisturbed(part: Mapping[str, Sequence[float]]) -> list[float]:
    return [wall - waited for wall, waited in zip(part["wall_ms"], part["waited_ms"], strict=True)]
