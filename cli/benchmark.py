"""`natdeploy benchmark`: model files, timed on a target."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from natdeploy.errors import DeviceError, UnstableError

from .options import Json, NoProgress, Quiet, Verbose
from .terminal import echo_wrapped, print_table, session, write_json

if TYPE_CHECKING:
    from rich.table import Table

    from natdeploy.pipeline import BenchmarkResult
    from natdeploy.pipeline.timings import Comparison, Mode, Section

MARKS = {
    "unstable": ("u", "unstable, the processes differ by more than 3 %"),
    "few_runs": ("f", "too few runs for a p90"),
    "disturbed": ("d", "disturbed, other processes took more than 5 % of the time"),
    "drifted": ("r", "the reference became slower or faster by more than 10 %"),
    "throttled": ("t", "throttled, the device was held back"),
}
"""What speaks against a number: a letter for the table, and what it means."""


NAME_WIDTH = 20
"""Columns that tables have for a model's name; a longer one is broken after its folder."""


def benchmark(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="PATH",
            help="Run folders, exported folders, or any .onnx, .tflite or OpenVINO .xml files; or an earlier --out file.",
        ),
    ],
    *,
    target: Annotated[
        str | None,
        typer.Option(
            metavar="TARGET",
            help="Device, optionally with a runtime: host/onnxruntime.",
            show_default="the run's own, or this machine",
        ),
    ] = None,
    mode: Annotated[
        Literal["latency", "throughput"] | None,
        typer.Option(
            help="Latency of one request at a time, or images a second of as many as the target runs best.", show_default="latency"
        ),
    ] = None,
    arch: Annotated[
        str | None,
        typer.Option(metavar="WHICH", help="Nets of a run, as for export: knee, best, an id, ...", show_default="all exported"),
    ] = None,
    shape: Annotated[
        str | None, typer.Option(metavar="SIZES", help="Shape of the input where a file leaves it open: 1x3x224x224.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", dir_okay=False, help="JSON file for every raw time, the flags and the environment."),
    ] = None,
    compare: Annotated[
        Path | None,
        typer.Option(metavar="FILE", dir_okay=False, help="Earlier --out file: how much faster or slower, and whether really."),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure again what the run holds from the same files already.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="End with exit code 6 when a measurement is unstable.")] = False,
    as_json: Json = False,
    no_progress: NoProgress = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Time networks on a target: a run's, exported ones, or any model files.

    In several fresh processes, where models take turns with a reference. Shown are p50 and p90 beside what was predicted, the
    memory that a model takes, the energy of a run where the device counts it, and what speaks against a number.

    \b
    Example:
      natdeploy benchmark runs/flowers --target host
      natdeploy benchmark mine.onnx other.onnx --shape 1x3x224x224 --out times.json
      natdeploy benchmark mine.onnx --compare times.json
      natdeploy benchmark new.json --compare times.json
    """
    with session(as_json=as_json, verbose=verbose, quiet=quiet, no_progress=no_progress) as progress:
        from natdeploy import pipeline

        earlier = any(map(pipeline.is_result, paths))
        result = pipeline.benchmark(
            paths,
            target=target,
            out=out,
            progress=progress,
            mode=mode,
            arch=arch,
            compare_with=compare,
            shape=None if shape is None else pipeline.parse_shape(shape),
            fresh=fresh,
        )
        if as_json:
            write_json(result.summary())
        elif earlier:
            assert result.comparison is not None
            _show_comparison(result.comparison, f"{paths[0]} (here)", result.mode)
        else:
            _show(result)
        if result.failures and not earlier:
            raise DeviceError("; ".join(f"{name} does not run: {why}" for name, why in result.failures.items()))
        unstable = [model.name for model in result.models if model.flags.unstable]
        if strict and unstable:
            raise UnstableError(f"the latency of {', '.join(unstable)} is unstable; leave the machine alone and measure again")


def _show(result: BenchmarkResult) -> None:
    names = _short_names(model.name for model in result.models)
    runs = {model.run for model in result.models}
    for section in result.sections:
        print_table(_latency_table(section, names) if result.mode == "latency" else _throughput_table(section, names))
        if _library_counts(section):
            echo_wrapped("inside: what the runtime's library counts of a run itself, as its own tool prints it; median")
        for how in dict.fromkeys(model.throughput.how for model in section.models if model.throughput is not None):
            typer.echo(how)
    _say_marks(model.flags.raised for model in result.models)
    for found in result.agreements:
        whose = "" if found.run is None or len(runs) < 2 else f" of {found.run}"
        ranks = "" if found.spearman is None else f", Spearman {found.spearman:.3f}"
        echo_wrapped(
            f"predicted against measured {found.measured} of {found.n} net{'s' * (found.n > 1)}{whose} on {found.target}: "
            f"{100 * found.within_5:.0f} % within 5 %, {100 * found.within_10:.0f} % within 10 %, "
            f"mean error {100 * found.mape:.1f} %{ranks}"
        )
    for remark in result.remarks:
        echo_wrapped(remark)
    if result.comparison is not None:
        _show_comparison(result.comparison, "here", result.mode)


def _show_comparison(found: Comparison, here: str, mode: Mode) -> None:
    """What became of the models that two results share, where they were measured otherwise, and what only one has."""
    print_table(_comparison_table(found, f"{here} against {found.other} (there)", mode))
    _say_marks(flags for pair in found.pairs for flags in (pair.flags, pair.other_flags))
    for difference in found.differences:
        echo_wrapped(f"not the same: {difference}", 2)
    for where, names in (("here", found.only_here), ("there", found.only_there)):
        if names:
            echo_wrapped(f"only {where}: {', '.join(names)}", 2)


def _comparison_table(found: Comparison, title: str, mode: Mode) -> Table:
    from natdeploy.report.tables import MISSING

    unit = "ms" if mode == "latency" else "images/s"
    table = _table(title, [f"there\n{unit}", f"here\n{unit}", "ratio", "95 %\nfrom", "\nto", "really?"], "there\n/here")
    names = _short_names(pair.name for pair in found.pairs)
    for pair in found.pairs:
        faster = (pair.ratio < 1) == (mode == "latency")
        table.add_row(
            names[pair.name],
            _value(pair.other_value, mode),
            _value(pair.value, mode),
            *(MISSING if bound is None else f"{bound:.3f}" for bound in (pair.ratio, pair.low, pair.high)),
            MISSING if pair.real is None else "no" if not pair.real else "faster" if faster else "slower",
            f"{_marks(pair.other_flags) or MISSING}/{_marks(pair.flags) or MISSING}" if pair.flags or pair.other_flags else "",
        )
    return table


def _latency_table(section: Section, names: Mapping[str, str]) -> Table:
    from natdeploy.report.tables import ESTIMATED, milliseconds, quantity

    energy = any(model.energy is not None for model in section.models)
    counted = _library_counts(section)
    middle = "inside\nms" if counted else "mean\nms"
    headers = ["", "p50\nms", "p90\nms", middle, "runs", "pred.\nms", "file\nMB", "mem.\nMB", *(["net\nmJ"] if energy else [])]
    table = _table(section.target, headers)
    for model in section.models:
        latency = model.latency
        assert latency is not None
        estimated = ESTIMATED if model.estimated and model.predicted_ms is not None else ""
        table.add_row(
            names[model.name],
            model.precision,
            milliseconds(latency.p50_ms),
            milliseconds(latency.p90_ms),
            milliseconds(latency.inside_ms if counted else latency.mean_ms),
            str(latency.n),
            estimated + milliseconds(model.predicted_ms),
            f"{model.size_mb:.1f}",
            quantity(None if model.memory is None else model.memory.model_mb),
            *([quantity(None if model.energy is None else model.energy.net_mj)] if energy else []),
            _marks(model.flags.raised),
        )
    return table


def _library_counts(section: Section) -> bool:
    """Whether the section's runtime tells what it takes itself, which then stands in the mean's place: 80 columns hold no more."""
    return any(model.latency is not None and model.latency.inside_ms is not None for model in section.models)


def _throughput_table(section: Section, names: Mapping[str, str]) -> Table:
    table = _table(section.target, ["", "images\na second", "runs", "file\nMB"])
    for model in section.models:
        rate = model.throughput
        assert rate is not None
        cells = (model.precision, _value(rate.images_per_s, "throughput"), str(rate.n), f"{model.size_mb:.1f}")
        table.add_row(names[model.name], *cells, _marks(model.flags.raised))
    return table


def _table(title: str, headers: Sequence[str], marks: str = "") -> Table:
    """For a model a row, with numbers, and what speaks against them."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), collapse_padding=True, title=title)
    table.add_column("model", overflow="fold")
    for header in headers:
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column(marks)
    return table


def _value(value: float, mode: Mode) -> str:
    from natdeploy.report.tables import milliseconds

    return milliseconds(value) if mode == "latency" else f"{value:.1f}"


def _short_names(names: Iterable[str]) -> dict[str, str]:
    """Files with their folder's name, and with more of their paths where that would not tell them apart."""
    parts = {name: Path(name).parts for name in names}
    for kept in range(2, max(map(len, parts.values()), default=0) + 1):
        short = {name: "/".join(each[-kept:]) for name, each in parts.items()}
        if len(set(short.values())) == len(short):
            return {name: "/\n".join(each.rsplit("/", 1)) if len(each) > NAME_WIDTH else each for name, each in short.items()}
    return {name: name for name in parts}


def _marks(flags: Iterable[str]) -> str:
    return "".join(MARKS[name][0] for name in flags)


def _say_marks(flags: Iterable[Iterable[str]]) -> None:
    """What the letters mean that stand in a table."""
    raised = {name for each in flags for name in each}
    for name, (letter, meaning) in MARKS.items():
        if name in raised:
            typer.echo(f"{letter}: {meaning}")
