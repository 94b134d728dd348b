"""Networks of a run, exported bundles and any other model files, timed on a target."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path

from natdeploy._version import __version__
from natdeploy.errors import DeviceError, UsageError
from natdeploy.export import METADATA, record_latency
from natdeploy.hardware.bench import NETS, MeasureSettings
from natdeploy.hardware.device import Target
from natdeploy.hardware.measure import MeasureResult, measure
from natdeploy.hardware.runtimes import get_runtime, installed_version
from natdeploy.logs import log_to
from natdeploy.pipeline.book import SavedBook
from natdeploy.pipeline.config import target_of
from natdeploy.pipeline.export import bundle_name, latency_of
from natdeploy.pipeline.finished import latency_limit_ms
from natdeploy.pipeline.model_files import Subject, bundle, foreign
from natdeploy.pipeline.run_files import run_subjects
from natdeploy.pipeline.search import LOG, read_config
from natdeploy.pipeline.timings import BenchmarkResult, Mode, Section, model_times
from natdeploy.progress import Progress, Silent
from natdeploy.store import LatencyRecord, RunStore


def benchmark(
    paths: Path | str | Sequence[Path | str],
    target: str | None = None,
    progress: Progress | None = None,
    settings: MeasureSettings = NETS,
    out: Path | None = None,
    *,
    mode: Mode = "latency",
    arch: str | None = None,
    shape: Sequence[int] | None = None,
    fresh: bool = False,
) -> BenchmarkResult:
    """Measures model files on a target, those of one runtime together, in turns.

    Args:
        paths: each a run folder, of which every exported net and the seed network are measured; an exported bundle; or any ONNX,
            TFLite or OpenVINO file.
        target: where; a run's own by default, else this machine, in the runtime that a file's suffix tells.
        progress: is told about every model.
        settings: how long each model is measured.
        out: JSON file for the whole result: target, environment, flags, and every raw time.
        mode: latency of one request at a time, or throughput of as many as the target runs best at once.
        arch: nets of a run, as for `export`.
        shape: of the input, for files that leave its sizes open.
        fresh: measure again what the run holds already from the same file on the same target.

    Raises:
        UsageError: a path is nothing that can be timed on the target; the message says what to do.
        DeviceError: the target failed. What was measured until then is kept where the run, or `out`, can hold it, and the same
            call goes on from there.
        NatdeployError: `out` cannot be written; a run keeps what was measured.
    """
    progress = progress or Silent()
    begun = _utc()
    given = [paths] if isinstance(paths, Path | str) else list(paths)
    with ExitStack() as open_things:
        converted = Path(open_things.enter_context(tempfile.TemporaryDirectory()))
        store, subjects = _subjects(
            [Path(each) for each in given],
            target,
            arch=arch,
            shape=shape,
            converted=converted,
            open_things=open_things,
            progress=progress,
        )
        sections = [_section(group, store, settings, progress, fresh=fresh) for group in _grouped(subjects)]
    result = BenchmarkResult(
        tool=f"natdeploy {__version__}", mode=mode, begun_utc=begun, ended_utc=_utc(), sections=tuple(sections)
    )
    if out is not None:
        result.write(out)
    if not any(True for _ in result.models):
        raise DeviceError("; ".join(f"{name} does not run on its target: {why}" for name, why in result.failures.items()))
    return result


def _utc() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _subjects(
    paths: Sequence[Path],
    target: str | None,
    *,
    arch: str | None,
    shape: Sequence[int] | None,
    converted: Path,
    open_things: ExitStack,
    progress: Progress,
) -> tuple[RunStore | None, list[Subject]]:
    """What the paths mean, and the store of the run among them, which stays open."""
    runs = [path for path in dict.fromkeys(paths) if path.is_dir() and not (path / METADATA).is_file()]
    if len(runs) > 1:
        raise UsageError(f"{' and '.join(map(str, runs))} are two runs; measure one at a time")
    if arch is not None and not runs:
        raise UsageError("--arch chooses nets of a run, and no path is one; leave it out")
    store = None
    subjects: list[Subject] = []
    for path in dict.fromkeys(paths):
        if path in runs:
            store = open_things.enter_context(RunStore.open(path))
            open_things.enter_context(log_to(path / LOG))
            subjects += run_subjects(store, target, arch, converted, progress)
        elif path.is_dir():
            subjects += bundle(path, target, progress)
        else:
            subjects.append(foreign(path, target, shape))
    if not subjects:
        raise UsageError("there is nothing to time; name a run, an exported folder or a model file")
    return store, subjects


def _grouped(subjects: Sequence[Subject]) -> list[list[Subject]]:
    """Those of one runtime, delegate and number of threads together."""
    groups: dict[str, list[Subject]] = {}
    for subject in subjects:
        groups.setdefault(str(replace(subject.target, precision="any")), []).append(subject)
    return list(groups.values())


def _section(
    subjects: Sequence[Subject], store: RunStore | None, settings: MeasureSettings, progress: Progress, *, fresh: bool
) -> Section:
    """Measures models of one target together, and records what belongs to the run."""
    first = next((each for each in subjects if each.net is not None and each.net.role == "baseline"), subjects[0])
    chosen = first.target
    seed = 0 if store is None else read_config(store).seed
    book = _book(subjects, first, store, settings, seed, fresh=fresh)
    _check_version(book, chosen, progress)
    try:
        result = measure(
            [each.candidate for each in subjects],
            first.candidate,
            chosen,
            settings,
            seed=seed,
            progress=progress,
            keep_going=True,
            book=book,
        )
    except DeviceError as error:
        if book.environment:
            raise type(error)(f"{error}; what was measured is kept, and the same command goes on from there") from error
        raise
    measured = {each.id: each for each in result.measurements}
    if store is not None:
        _record(store, subjects, result, chosen, progress)
    return Section(
        target=str(chosen),
        environment=dict(result.environment),
        reference=first.name,
        reference_ms=result.reference_ms if measured else None,
        models=tuple(model_times(each, measured[each.name], result.environment) for each in subjects if each.name in measured),
        failures=dict(result.failures),
    )


def _book(
    subjects: Sequence[Subject], reference: Subject, store: RunStore | None, settings: MeasureSettings, seed: int, *, fresh: bool
) -> SavedBook:
    """What the run knows already of these files on this target."""
    name = f"times on {reference.target}"
    key = {"settings": asdict(settings), "seed": seed, "reference": reference.digest}
    digests = {each.name: each.digest for each in subjects}
    if store is None:
        return SavedBook(lambda: None, lambda value: None, key, digests)
    book = SavedBook(lambda: store.get(name), lambda value: store.set(name, value), key, digests)
    if fresh:
        book.forget()
    return book


def _check_version(book: SavedBook, target: Target, progress: Progress) -> None:
    """Forgets what another version of the runtime did here. Elsewhere that shows as soon as anything is measured."""
    old = book.environment.get("runtime_version")
    if old is None:
        return
    if target.device.transport == "local" and target.device.harness == "runner":
        now = installed_version(get_runtime(target.runtime))
        if now != old:
            progress.note(f"{target.runtime} was {old} and is {now}, so that everything is measured again")
            book.forget()
            return
    progress.note(f"what was measured on {target} until {book.environment['utc']} counts; --fresh measures it again")


def _record(store: RunStore, subjects: Sequence[Subject], result: MeasureResult, target: Target, progress: Progress) -> None:
    """Writes what was measured of a run's nets to the run, and to their exported folders."""
    config = read_config(store)
    own = str(target) == str(target_of(config))
    if not own:
        progress.note(f"the run was searched for {target_of(config)}; its predictions do not apply to {target}")
    found = {each.id: each for each in result.measurements}
    for subject in subjects:
        net, times = subject.net, found.get(subject.name)
        if net is None or times is None:
            continue
        place = str(subject.target)
        timed = replace(
            net, measured_p50_ms=times.p50_ms, measured_p90_ms=times.p90_ms, measured_n=times.n, unstable=times.unstable
        )
        told = timed if own else replace(timed, predicted_ms=None, estimated=False)
        record_latency(store.folder / bundle_name(net), latency_of(told, place, times.mean_ms if times.p50_ms is None else None))
        store.put_latency(
            LatencyRecord(net.role, net.id, place, times.p50_ms, times.p90_ms, times.mean_ms, times.n, times.unstable)
        )
        if own:
            store.put_net(timed)
    means = [f"{each.id} {each.mean_ms:.3f} ms" for each in result.measurements if each.p50_ms is None]
    if means:
        progress.note(f"{result.environment['harness']} tells no median; the means are {', '.join(means)}")
    if own:
        limit_ms = latency_limit_ms(config)
        fronts = [each for each in subjects if each.net is not None and each.net.role == "front" and each.name in found]
        over = [str(each.id) for each in fronts if found[each.name].typical_ms > limit_ms]
        if over:
            expected = "estimated" if store.get("estimate") else "predicted"
            progress.note(f"measured above the limit of {limit_ms:g} ms, though {expected} below it: {', '.join(over)}")
