"""Networks of a run, exported bundles and any other model files, timed on a target."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from natdeploy._version import __version__
from natdeploy.errors import DeviceError, UsageError
from natdeploy.export import METADATA
from natdeploy.files import require_writable
from natdeploy.hardware.bench import NETS, Candidate, MeasureSettings, Round
from natdeploy.hardware.device import Target, host_facts
from natdeploy.hardware.footprint import Footprint, measure_footprints
from natdeploy.hardware.measure import measure
from natdeploy.hardware.runtimes import get_runtime, installed_version
from natdeploy.hardware.throughput import STREAMS, Counts, measure_throughput
from natdeploy.logs import log_to
from natdeploy.pipeline.book import NOWHERE, JointBook, Keeper, SavedBook, file_keeper
from natdeploy.pipeline.compare_times import agreement, compare, compare_results, require_shared, slower_int8
from natdeploy.pipeline.model_files import SUFFIXES, Subject, bundle, foreign
from natdeploy.pipeline.record_times import record_footprints, record_times
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
from natdeploy.store import RunStore


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
            TFLite or OpenVINO file. Those of one runtime are measured in turns, of whichever run they are. Or one earlier result,
            from `out`, which is compared and nothing is measured.
        target: where; a run's own by default, else this machine, in the runtime that a file's suffix tells.
        progress: is told about every model.
        settings: how long each model is measured; by default as `NETS` or, of throughput, `STREAMS` says.
        out: JSON file for the whole result: target, environment, flags, and every raw time.
        mode: latency of one request at a time, by default, or throughput of as many as the target runs best at once.
        arch: nets of each run, as for `export`.
        shape: of the input, for files that leave its sizes open.
        compare_with: an earlier result, from `out`; every model that both have is compared.
        fresh: measure again what the run holds already from the same file on the same target.

    Raises:
        UsageError: a path is nothing that can be timed on the target; the message says what to do.
        DeviceError: the target failed. What was measured until then is kept where the run, or `out`, can hold it, and the same
            call goes on from there.
        NatdeployError: `out` cannot be written, which is tried before anything is measured.
    """
    progress = progress or Silent()
    begun = _utc()
    given = [Path(each) for each in ([paths] if isinstance(paths, Path | str) else paths)]
    if any(is_result(each) for each in given):
        options = {"--target": target, "--mode": mode, "--arch": arch, "--shape": shape, "--out": out, "--fresh": fresh or None}
        return _compared(given, compare_with, [name for name, value in options.items() if value is not None])
    mode = mode or "latency"
    other = None if compare_with is None else read_result(compare_with)
    if out is not None:
        require_writable(out)
    with ExitStack() as open_things:
        converted = Path(open_things.enter_context(tempfile.TemporaryDirectory()))
        stores, subjects = _subjects(
            given,
            target,
            arch=arch,
            shape=shape,
            converted=converted,
            open_things=open_things,
            progress=progress,
        )
        if other is not None and compare_with is not None:
            require_shared([facts(each) for each in subjects], other, mode, compare_with)
        call = _Call(stores, out, settings or (NETS if mode == "latency" else STREAMS), fresh, progress)
        sections = [_latencies(group, call) if mode == "latency" else _rates(group, call) for group in _grouped(subjects)]
        models = [model for section in sections for model in section.models]
        result = BenchmarkResult(
            tool=f"natdeploy {__version__}",
            mode=mode,
            begun_utc=begun,
            ended_utc=_utc(),
            sections=tuple(sections),
            agreements=tuple(_agreements(sections)),
            remarks=tuple(_remarks(models, stores)) if mode == "latency" else (),
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
        for run in dict.fromkeys(model.run for model in section.models):
            for found in (agreement(section, "p50", run), agreement(section, "undisturbed", run)):
                if found is not None:
                    yield found


def _remarks(models: Sequence[ModelTimes], stores: Mapping[Path, RunStore]) -> Iterator[str]:
    known = {str(folder): store.latencies() for folder, store in stores.items()}
    for run in dict.fromkeys(model.run for model in models):
        own = [model for model in models if model.run == run]
        if (slower := slower_int8(own, known.get(run or "", ()))) is not None:
            yield slower if len(known) < 2 or run is None else f"{run}: {slower}"
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
) -> tuple[Mapping[Path, RunStore], list[Subject]]:
    """What the paths mean, and the stores of the runs among them, which stay open."""
    named: dict[Path, Path] = {}
    for path in paths:
        named.setdefault(path.resolve(), path)
    paths = list(named.values())
    runs = [path for path in paths if path.is_dir() and not (path / METADATA).is_file()]
    if arch is not None and not runs:
        raise UsageError("--arch chooses nets of a run, and no path is one; leave it out")
    stores: dict[Path, RunStore] = {}
    subjects: list[Subject] = []
    for path in paths:
        if path in runs:
            if files := sorted(each.name for each in path.iterdir() if each.suffix in SUFFIXES):
                raise UsageError(f"{path} is neither a run nor an exported folder; name its model files, such as {path / files[0]}")
            stores[path] = open_things.enter_context(RunStore.open(path))
            open_things.enter_context(log_to(path / LOG))
            folder = converted / str(len(stores))
            folder.mkdir()
            prefix = f"{path}/" if len(runs) > 1 else ""  # as a book leaves it out
            try:
                subjects += run_subjects(stores[path], target, arch, folder, progress, prefix=prefix)
            except UsageError as error:
                if str(path) in str(error):
                    raise
                raise UsageError(f"{path}: {error}") from error
        elif path.is_dir():
            subjects += bundle(path, target, progress)
        else:
            subjects.append(foreign(path, target, shape))
    if not subjects:
        raise UsageError("there is nothing to time; name a run, an exported folder or a model file")
    return stores, subjects


def _grouped(subjects: Sequence[Subject]) -> list[list[Subject]]:
    """Those of one runtime, delegate and number of threads together."""
    groups: dict[str, list[Subject]] = {}
    for subject in subjects:
        groups.setdefault(str(replace(subject.target, precision="any")), []).append(subject)
    return list(groups.values())


@dataclass(frozen=True)
class _Call:
    """What holds for all that is measured in a call.

    Attributes:
        stores: the runs' stores, by their folders.
        out: file of the result.
        settings: how long each model is measured.
        fresh: what is known already is measured again.
        progress: is told about every model.
    """

    stores: Mapping[Path, RunStore]
    out: Path | None
    settings: MeasureSettings
    fresh: bool
    progress: Progress

    @property
    def keeps(self) -> bool:
        """Whether there is a place where what was measured is kept until all of it is."""
        return bool(self.stores) or self.out is not None

    @property
    def seed(self) -> int:
        """Of orders and input values: the first run's."""
        return next((read_config(store).seed for store in self.stores.values()), 0)

    def home(self, subject: Subject) -> Path | None:
        """Folder of the run in which it is kept: a net's own, the first for files beside runs; None where there is no run."""
        return subject.run or next(iter(self.stores), None)

    def book(self, subjects: Sequence[Subject], what: str, kind: type[Any]) -> JointBook[Any]:
        """What is known of models already, each in its place.

        Args:
            subjects: that are measured in turns.
            what: times or rates.
            kind: of its records.
        """
        first = _first(subjects)
        key = {"settings": asdict(self.settings), "seed": self.seed, "reference": first.digest}
        books = []
        for home in dict.fromkeys(map(self.home, subjects)):
            name = f"{what} on {first.target}"
            if home != self.home(first):  # beside its own seed network it was measured before, perhaps
                name += f" beside {first.digest[:12]}"
            digests = {each.name: each.digest for each in subjects if self.home(each) == home}
            books.append(SavedBook(self._keeper(home), name, kind, key, digests, prefix=f"{home}/"))
        book = JointBook(books)
        if self.fresh:
            book.forget()
        _check_version(book, first.target, self.progress)
        return book

    def _keeper(self, home: Path | None) -> Keeper:
        if home is not None:
            return Keeper(self.stores[home].get, self.stores[home].set)
        return NOWHERE if self.out is None else file_keeper(_part(self.out))

    def explained(self, error: DeviceError, book: JointBook[Any]) -> DeviceError:
        """The error, with the way to go on where there is one."""
        if not (book.environment and self.keeps):
            return error
        return type(error)(f"{error}; what was measured is kept, and the same command goes on from there")


def _part(out: Path) -> Path:
    return out.with_name(f"{out.name}.part")


def _first(subjects: Sequence[Subject]) -> Subject:
    """That beside which all are timed: the seed network, or the first file."""
    return next((each for each in subjects if each.net is not None and each.net.role == "baseline"), subjects[0])


def _latencies(subjects: Sequence[Subject], call: _Call) -> Section:
    """Times models of one target together, and records what belongs to runs."""
    first = _first(subjects)
    book = call.book(subjects, "times", Round)
    candidates = [each.candidate for each in subjects]
    try:
        result = measure(
            candidates,
            first.candidate,
            first.target,
            call.settings,
            seed=call.seed,
            progress=call.progress,
            keep_going=True,
            book=book,
        )
        measured = {each.id: each for each in result.measurements}
        for folder, store in call.stores.items():
            if own := [each for each in subjects if each.run == folder]:
                record_times(store, own, result, _first(own).target, call.progress)
        footprints = _footprints([each for each in candidates if each.id in measured], book, first.target, call)
    except DeviceError as error:
        raise call.explained(error, book) from error
    if means := [f"{each.id} {each.mean_ms:.3f} ms" for each in result.measurements if each.p50_ms is None]:
        call.progress.note(f"{result.environment['harness']} tells no median; the means are {', '.join(means)}")
    models = [model_times(each, measured[each.name], result.environment) for each in subjects if each.name in measured]
    models = [with_footprint(each, footprints[each.name]) if each.name in footprints else each for each in models]
    for folder, store in call.stores.items():
        record_footprints(store, [each for each in models if each.run == str(folder)])
    return Section(
        target=str(first.target),
        environment=dict(result.environment),
        reference=first.name,
        reference_ms=result.reference_ms if measured else None,
        models=tuple(models),
        failures=dict(result.failures),
    )


def _footprints(candidates: Sequence[Candidate], book: JointBook[Any], target: Target, call: _Call) -> dict[str, Footprint]:
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
        seconds = call.settings.processes * call.settings.min_s
        why = measure_footprints(missing, target, seconds=seconds, seed=0, progress=call.progress, keep=keep)
        for reason in dict.fromkeys(why.values()):
            names = ", ".join(name for name, each in why.items() if each == reason)
            call.progress.note(f"memory and energy of {names} are not known: {reason}")
    return found


def _rates(subjects: Sequence[Subject], call: _Call) -> Section:
    """Images a second of models of one target."""
    first = _first(subjects)
    book = call.book(subjects, "rates", Counts)
    try:
        result = measure_throughput(
            [each.candidate for each in subjects],
            first.candidate,
            first.target,
            call.settings,
            seed=call.seed,
            progress=call.progress,
            book=book,
        )
    except DeviceError as error:
        raise call.explained(error, book) from error
    measured = {each.id: each for each in result.measurements}
    return Section(
        target=str(first.target),
        environment=dict(result.environment),
        reference=first.name,
        reference_ms=None,
        models=tuple(model_rates(each, measured[each.name], result.environment) for each in subjects if each.name in measured),
        failures=dict(result.failures),
    )


def _check_version(book: JointBook[Any], target: Target, progress: Progress) -> None:
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
