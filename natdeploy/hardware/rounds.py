"""Models measured in fresh processes, in a new order in each: what is known already, and what fails, is not asked for again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from natdeploy.errors import DeviceError
from natdeploy.hardware.bench import Bench, Candidate, MeasureSettings, Setup
from natdeploy.hardware.book import Book, changed
from natdeploy.hardware.conditions import settle
from natdeploy.hardware.device import Target
from natdeploy.hardware.runtimes import Runtime, get_runtime
from natdeploy.hardware.transports import Transport, connect
from natdeploy.progress import Progress

_Record = TypeVar("_Record")


@dataclass(frozen=True)
class Rounds(Generic[_Record]):
    """What was measured.

    Attributes:
        records: one a process, of every candidate that ran in all of them, in the order of the candidates.
        failures: why the others did not, by id.
        environment: what the harness found on the device, and what it is called. `conditions` tells when each process began and
            the state of the device then.
    """

    records: Mapping[str, Sequence[_Record]]
    failures: Mapping[str, str]
    environment: Mapping[str, Any]


@dataclass(frozen=True)
class Work(Generic[_Record]):
    """What is to be measured.

    Attributes:
        candidates: with distinct ids.
        reference: measured beside each of them.
        target: device, runtime, precision and threads.
        settings: how long.
        seed: of the order in each process and of the input values.
        make_bench: the harness.
        doing: words for the progress.
        keep_going: report candidates that fail in the result instead of raising.
        book: what is known already, and where each process's records are kept as soon as it has ended.
    """

    candidates: Sequence[Candidate]
    reference: Candidate
    target: Target
    settings: MeasureSettings
    seed: int
    make_bench: Callable[[Setup], Bench[_Record]]
    doing: str
    keep_going: bool
    book: Book[_Record]


def run_rounds(work: Work[_Record], progress: Progress) -> Rounds[_Record]:
    """Measures what the book does not know; everything, where the target turns out to be another than it was then.

    Raises:
        DeviceError: the device cannot be reached, the harness is not there or failed before its first model, or (without
            keep_going) a model raised, crashed or hung.
    """
    try:
        return _run(work, progress)
    except _ChangedError as changes:
        progress.note(f"{work.target} is not what it was ({changes}), so that everything is measured again")
        work.book.forget()
        return _run(work, progress)


class _ChangedError(Exception):
    """The target is another than it was when the book was written; the message says in what."""


def _run(work: Work[_Record], progress: Progress) -> Rounds[_Record]:
    candidates, book = work.candidates, work.book
    rounds = {process: dict(book.known(process)) for process in range(work.settings.processes)}
    missing = [candidate for candidate in candidates if any(candidate.id not in found for found in rounds.values())]
    failures: dict[str, str] = {}
    environment = book.environment
    if missing:
        with connect(work.target.device) as transport:
            names = push_models(transport, get_runtime(work.target.runtime), [work.reference, *missing])
            bench = work.make_bench(Setup(transport, work.target, work.settings, work.seed, work.reference, names))
            begun = list(book.environment.get("conditions", ()))
            steps = sum(bench.steps(sum(each.id not in found for each in missing)) for found in rounds.values())
            with progress.task(f"{work.doing} on {work.target}", steps, "steps") as advance:
                for process, found in rounds.items():
                    order = [candidates[i] for i in np.random.default_rng([work.seed, process]).permutation(len(candidates))]
                    unanswered = [each for each in order if each.id not in found and each.id not in failures]
                    if not unanswered:
                        continue
                    utc = datetime.now(UTC).isoformat(timespec="seconds")
                    conditions = settle(transport, work.target.device, progress)
                    begun.append({"process": process, "utc": utc, **conditions})
                    while unanswered:
                        answers = bench.round(unanswered, advance)
                        environment = {**bench.environment, **conditions, "conditions": [*begun]}
                        _raise_if_changed(book.environment, environment)
                        failures |= {name: answer for name, answer in answers.items() if isinstance(answer, str)}
                        _raise_unless(work.keep_going, failures, work.target)
                        records = {name: answer for name, answer in answers.items() if not isinstance(answer, str)}
                        book.keep(process, records, environment)
                        found.update(records)
                        unanswered = [candidate for candidate in unanswered if candidate.id not in answers]
    good = {each.id: [found[each.id] for found in rounds.values()] for each in candidates if each.id not in failures}
    return Rounds(good, failures, environment)


def _raise_if_changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    if differences := changed(old, new):
        raise _ChangedError(", ".join(differences))


def _raise_unless(keep_going: bool, failures: Mapping[str, str], target: Target) -> None:
    if failures and not keep_going:
        name, why = next(iter(failures.items()))
        raise DeviceError(f"{name} does not run on {target}: {why}")


def push_models(transport: Transport, runtime: Runtime, candidates: Sequence[Candidate]) -> dict[Path, str]:
    """Pushes every file once, whatever number of candidates share it; its name on the device by its path here."""
    names: dict[Path, str] = {}
    for candidate in candidates:
        if candidate.model not in names:
            names[candidate.model] = name = f"{len(names)}{candidate.model.suffix}"
            transport.push(candidate.model, name)
            for companion in runtime.companions(candidate.model):
                transport.push(companion, Path(name).with_suffix(companion.suffix).name)
    return names
