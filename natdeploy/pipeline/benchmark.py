"""Networks of a run, exported bundles and any other model files, timed on a target."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from natdeploy._version import __version__
from natdeploy.errors import DeviceError, UsageError
from natdeploy.export import METADATA, record_latency
from natdeploy.files import write_atomic
from natdeploy.hardware.bench import NETS, Candidate, MeasureSettings
from natdeploy.hardware.device import Target, host_facts
from natdeploy.hardware.footprint import Footprint, measure_footprints
from natdeploy.hardware.measure import MeasureResult, measure
from natdeploy.hardware.runtimes import get_runtime, installed_version
from natdeploy.hardware.throughput import STREAMS, measure_throughput
from natdeploy.logs import log_to
from natdeploy.pipeline.book import SavedBook
from natdeploy.pipeline.compare_times import agreement, compare, compare_results, require_shared, slower_int8
from natdeploy.pipeline.config import target_of
from natdeploy.pipeline.export import bundle_of, latency_of
from natdeploy.pipeline.finished import latency_limit_ms
from natdeploy.pipeline.model_files import Subject, bundle, foreign
from natdeploy.pipeline.run_files import run_subjects
from natdeploy.pipeline.search import LOG, read_config
from natdeploy.pipeline.timings import (
    Agreement,
    BenchmarkResult,
    Mode,
    ModelTimes,
    Section,
    facts,
    is_result,
    model_rates,
    model_times,
    read_result,
    with_footprint,
)
from natdeploy.progress import Progress, Silent
from natdeploy.store import LatencyRecord, RunStore


def benchmark(
    paths: Path | str | Sequence[Path | str],
    target: str | None = None,
    progress: Progress | None = None,
    settings: MeasureSettings | None = None,
    out: Path | None = None,
    *,
    mode: Mode | None = None,
    arch: str | None = None,
    shape: Sequence[int] | None = None,
    compare_with: Path | None = None,
    fresh: bool = False,
) -> BenchmarkResult:
    """Measures model files on a target, those of one runtime together, in turns.

    Args:
        paths: each a run folder, of which every exported net and the seed network are measured; an exported bundle; or any ONNX,
            TFLite or OpenVINO file. Or one earlier result, from `out`, which is compared and nothing is measured.
        target: where; a run's own by default, else this machine, in the runtime that a file's suffix tells.
        progress: is told about every model.
        settings: how long each model is measured; by default as `NETS` or, of throughput, `STREAMS` says.
        out: JSON file for the whole result: target, environment, flags, and every raw time.
        mode: latency of one request at a time, by default, or throughput of as many as the target runs best at once.
        arch: nets of a run, as for `export`.
        shape: of the input, for files that leave its sizes open.
        compare_with: an earlier result, from `out`; every model that both have is compared.
        fresh: measure again what the run holds already from the same file on the same target.

    Raises:
        UsageError: a path is nothing that can be timed on the target; the message says what to do.
        DeviceError: the target failed. What was measured until then is kept where the run, or `out`, can hold it, and the same
            call goes on from there.
        NatdeployError: `out` cannot be written; a run keeps what was measured.
    """
    progress = progress or Silent()
    begun = _utc()
    given = [Path(each) for each in ([paths] if isinstance(paths, Path | str) else paths)]
    if any(is_result(each) for each in given):
        options = {"--target": target, "--mode": mode, "--arch": arch, "--shape": shape, "--out": out, "--fresh": fresh or None}
        return _compared(given, compare_with, [name for name, value in options.items() if value is not None])
    mode = mode or "latency"
    with ExitStack() as open_things:
        converted = Path(open_things.enter_context(tempfile.TemporaryDirectory()))
        store, subjects = _subjects(
            given,
            target,
            arch=arch,
            shape=shape,
            converted=converted,
            open_things=open_things,
            progress=progress,
        )
        other = None if compare_with is None else read_result(compare_with)
        if other is not None and compare_with is not None:
            require_shared([facts(each) for each in subjects], other, mode, compare_with)
        if mode == "latency":
            keeper = _keeper(store, out)
            groups = _grouped(subjects)
            sections = [_latencies(group, store, settings or NETS, keeper, progress, fresh=fresh) for group in groups]
        else:
            sections = [_rates(group, store, settings or STREAMS, progress) for group in _grouped(subjects)]
        models = [model for section in sections for model in section.models]
        known = store.latencies() if store is not None and mode == "latency" else ()
        result = BenchmarkResult(
            tool=f"natdeploy {__version__}",
            mode=mode,
            begun_utc=begun,
            ended_utc=_utc(),
            sections=tuple(sections),
            agreements=tuple(_agreements(sections)),
            remarks=tuple(_remarks(models, known)) if mode == "latency" else (),
        )
        if other is not None and compare_with is not None and models:
            result = result.model_copy(update={"comparison": compare(result, other, compare_with)})
    if out is not None:
        result.write(out)
        _part(out).unlink(missing_ok=True)
    if not models:
        raise DeviceError("; ".join(f"{name} does not run on its target: {why}" for name, why in result.failures.items()))
    return result


def _compared(paths: Sequence[Path], other: Path | None, options: Sequence[str]) -> BenchmarkResult:
    """An earlier result beside another.

    Raises:
        UsageError: they are not two, or options of a measurement are given.
    """
    if len(paths) > 1:
        raise UsageError(
            f"{', '.join(map(str, paths))} are not one earlier result; give NEW.json --compare OLD.json, or models only"
        )
    if other is None:
        raise UsageError(f"{paths[0]} is an earlier result; say with which other one it is to be compared: --compare OTHER.json")
    if options:
        raise UsageError(f"two earlier results are compared as they are, without {', '.join(options)}; leave that out")
    return compare_results(paths[0], other)


def _agreements(sections: Sequence[Section]) -> Iterator[Agreement]:
    for section in sections:
        for found in (agreement(section, "p50"), agreement(section, "undisturbed")):
            if found is not None:
                yield found


def _remarks(models: Sequence[ModelTimes], known: Sequence[LatencyRecord]) -> Iterator[str]:
    if (slower := slower_int8(models, known)) is not None:
        yield slower
    if unreadable := dict.fromkeys(each for model in models for each in model.unreadable):
        yield f"energy is not known in full, for these counters cannot be read: {', '.join(unreadable)}"


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


class Keeper(NamedTuple):
    """Where what was measured is kept by name until all of it is; there may be no such place."""

    load: Callable[[str], Any]
    save: Callable[[str, Any], None]


def _keeper(store: RunStore | None, out: Path | None) -> Keeper:
    """The run, else a file beside the result's."""
    if store is not None:
        return Keeper(store.get, store.set)
    if out is None:
        return Keeper(lambda name: None, lambda name, value: None)
    part = _part(out)

    def everything() -> dict[str, Any]:
        try:
            held: dict[str, Any] = json.loads(part.read_text())
        except (OSError, ValueError):  # none yet; it holds nothing but what can be measured again
            return {}
        return held

    return Keeper(
        lambda name: everything().get(name),
        lambda name, value: write_atomic(part, json.dumps({**everything(), name: value}, allow_nan=False).encode()),
    )


def _part(out: Path) -> Path:
    return out.with_name(f"{out.name}.part")


def _first(subjects: Sequence[Subject]) -> Subject:
    """That beside which all are timed: the seed network, or the first file."""
    return next((each for each in subjects if each.net is not None and each.net.role == "baseline"), subjects[0])


def _latencies(
    subjects: Sequence[Subject],
    store: RunStore | None,
    settings: MeasureSettings,
    keeper: Keeper,
    progress: Progress,
    *,
    fresh: bool,
) -> Section:
    """Times models of one target together, and records what belongs to the run."""
    first = _first(subjects)
    chosen, seed = first.target, 0 if store is None else read_config(store).seed
    name = f"times on {chosen}"
    book = SavedBook(
        partial(keeper.load, name),
        partial(keeper.save, name),
        {"settings": asdict(settings), "seed": seed, "reference": first.digest},
        {each.name: each.digest for each in subjects},
    )
    if fresh:
        book.forget()
    _check_version(book, chosen, progress)
    candidates = [each.candidate for each in subjects]
    try:
        result = measure(candidates, first.candidate, chosen, settings, seed=seed, progress=progress, keep_going=True, book=book)
        measured = {each.id: each for each in result.measurements}
        if store is not None:
            _record(store, subjects, result, chosen, progress)
        footprints = _footprints([each for each in candidates if each.id in measured], book, chosen, settings, progress)
    except DeviceError as error:
        if book.environment and (store is not None or keeper.load(name) is not None):
            raise type(error)(f"{error}; what was measured is kept, and the same command goes on from there") from error
        raise
    models = [model_times(each, measured[each.name], result.environment) for each in subjects if each.name in measured]
    models = [with_footprint(each, footprints[each.name]) if each.name in footprints else each for each in models]
    if store is not None:
        _record_footprints(store, models)
    return Section(
        target=str(chosen),
        environment=dict(result.environment),
        reference=first.name,
        reference_ms=result.reference_ms if measured else None,
        models=tuple(models),
        failures=dict(result.failures),
    )


def _footprints(
    candidates: Sequence[Candidate], book: SavedBook, target: Target, settings: MeasureSettings, progress: Progress
) -> dict[str, Footprint]:
    """What models take beside time, of those that are not known already measured now."""
    found = {
        name: Footprint(value["memory"], value["energy"], tuple(value["unreadable"]))
        for name, value in book.notes("footprint").items()
    }

    def keep(name: str, footprint: Footprint) -> None:
        found[name] = footprint
        book.note("footprint", name, asdict(footprint))

    missing = [each for each in candidates if each.id not in found]
    if missing:
        seconds = settings.processes * settings.min_s
        why = measure_footprints(missing, target, seconds=seconds, seed=0, progress=progress, keep=keep)
        for reason in dict.fromkeys(why.values()):
            names = ", ".join(name for name, each in why.items() if each == reason)
            progress.note(f"memory and energy of {names} are not known: {reason}")
    return found


def _record_footprints(store: RunStore, models: Sequence[ModelTimes]) -> None:
    """Adds to the run's latencies what else was measured."""
    found = {(each.role, each.id, each.target): each for each in models}
    for record in store.latencies():
        model = found.get((record.role, record.id, record.target))
        if model is not None:
            memory = None if model.memory is None else model.memory.model_mb
            energy = None if model.energy is None else model.energy.net_mj
            store.put_latency(replace(record, peak_memory_mb=memory, energy_mj=energy))


def _rates(subjects: Sequence[Subject], store: RunStore | None, settings: MeasureSettings, progress: Progress) -> Section:
    """Images a second of models of one target; a run keeps them too."""
    first = _first(subjects)
    seed = 0 if store is None else read_config(store).seed
    candidates = [each.candidate for each in subjects]
    result = measure_throughput(candidates, first.candidate, first.target, settings, seed=seed, progress=progress)
    measured = {each.id: each for each in result.measurements}
    section = Section(
        target=str(first.target),
        environment=dict(result.environment),
        reference=first.name,
        reference_ms=None,
        models=tuple(model_rates(each, measured[each.name], result.environment) for each in subjects if each.name in measured),
        failures=dict(result.failures),
    )
    if store is not None:
        store.set(f"throughput on {first.target}", section.model_dump(mode="json"))
    return section


def _check_version(book: SavedBook, target: Target, progress: Progress) -> None:
    """Forgets what another version of the runtime or another processor did here. Elsewhere that shows once anything is measured."""
    if not book.known(0):
        return
    if target.device.transport == "local" and target.device.harness == "runner":
        here = host_facts() | {"runtime_version": installed_version(get_runtime(target.runtime))}
        for name in ("runtime_version", "cpu", "cores"):
            if here[name] != book.environment[name]:
                progress.note(f"{name} was {book.environment[name]} and is {here[name]}, so that everything is measured again")
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
        record_latency(bundle_of(store, net), latency_of(told, place, times.mean_ms if times.p50_ms is None else None))
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
