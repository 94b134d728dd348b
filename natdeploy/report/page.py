"""One run as one HTML file: plots, tables and provenance, with nothing to fetch from anywhere."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Protocol

from natdeploy.files import write_atomic
from natdeploy.report.axes import Axis, axes
from natdeploy.report.document import document, plot, section, selects
from natdeploy.report.drawing import picture
from natdeploy.report.figures import (
    AccuracyKind,
    Figure,
    Round,
    accuracy,
    accuracy_kind,
    agreement_figure,
    anchor,
    front_figure,
    history_figure,
)
from natdeploy.report.markup import Markup, element, join
from natdeploy.report.standing import Standing, sentence
from natdeploy.report.tables import (
    ESTIMATED,
    MISSING,
    Pick,
    by_latency,
    further,
    labels,
    latency_ms,
    millions,
    milliseconds,
    percent,
    precisions_searched,
    predicted,
    quantity,
)
from natdeploy.space import Arch, Block
from natdeploy.stopwatch import share_of_passes
from natdeploy.store import FileRecord, LatencyRecord, NetRecord

_BEFORE = "before, %"
_COLUMNS = (
    "input, px",
    "test, %",
    _BEFORE,
    "valid., %",
    "in runtime, %",
    "p50, ms",
    "p90, ms",
    "runs",
    "predicted, ms",
    "off, %",
    "MACs, M",
    "params, M",
    "parity",
)


class Quality(Protocol):
    """How well a latency predictor does on whole nets it has not seen; fractions and relative errors in 0..1."""

    @property
    def n(self) -> int: ...
    @property
    def within_5(self) -> float: ...
    @property
    def within_10(self) -> float: ...
    @property
    def mape(self) -> float: ...
    @property
    def spearman(self) -> float: ...
    @property
    def kendall(self) -> float: ...


@dataclass(frozen=True)
class PageData:
    """Everything the page shows.

    Attributes:
        title: name of the run.
        command: exactly what was typed.
        target: device, runtime, precision and threads, such as `host/onnxruntime-fp32-1t`.
        version: of natdeploy.
        utc: when the page was written.
        nets: the final front and the baselines; the page orders them.
        files: of the nets.
        picks: nets of the front that stand out, in the order in which they are shown.
        constraints: as the user wrote them.
        latency_limit_ms: the tightest latency constraint, or None.
        rounds: of the search, in order.
        quality: of the latency predictor, or None where nobody knows it.
        estimate: where latencies come from if they are an estimate, or None.
        seconds: time spent by stage, in order.
        data: what the images are: folder, classes, fingerprint.
        splits: images by split.
        settings: resolved configuration.
        plan: what the search made of them before it began.
        environment: what the numbers were obtained with: processor, governor, versions.
        latencies: of the nets, on any target.
        blocks: of each net, by the text of its architecture.
        block_ms: predicted latency of each of them alone, milliseconds; empty where nobody knows.
        undrawn: why there are no blocks or no latencies of them; None where there are.
        standing: how far the run is; None is the same as finished.
        command_name: how the command line calls the run.
        unknown: why a part of what the page shows of other runs is missing; None where nothing is.
        metric: of the run's task, by which nets are judged; an error is what it lacks to 1.
    """

    title: str
    command: str
    target: str
    version: str
    utc: str
    nets: Sequence[NetRecord]
    files: Sequence[FileRecord]
    picks: Sequence[Pick]
    constraints: Sequence[str]
    latency_limit_ms: float | None
    rounds: Sequence[Round]
    quality: Quality | None
    estimate: str | None
    seconds: Mapping[str, float]
    data: Mapping[str, str]
    splits: Mapping[str, int]
    settings: Mapping[str, str]
    environment: Mapping[str, str]
    plan: Mapping[str, str] = field(default_factory=dict)
    latencies: Sequence[LatencyRecord] = ()
    blocks: Mapping[str, Sequence[Block]] = field(default_factory=dict)
    block_ms: Mapping[str, Sequence[float]] = field(default_factory=dict)
    undrawn: str | None = None
    standing: Standing | None = None
    command_name: str = "RUN"
    unknown: str | None = None
    metric: str = "accuracy"


def write_page(path: Path, data: PageData) -> None:
    """Writes the page, replacing an existing one atomically. Links to model files are relative to the page's folder.

    Raises:
        NatdeployError: it cannot be written; an existing page stays as it was.
    """
    # names of files need not be text
    write_atomic(path, render(data).encode(errors="replace"))


def render(data: PageData, *, served: bool = False) -> str:
    """The page's text, as a file or for the server."""
    figures = _figures(data)
    choices = axes(data.nets, data.files, data.latencies) if "front" in figures else {}
    parts = [_header(data), *_sections(data, figures, choices), _footer(data)]
    if served:
        parts.insert(0, element("nav", element("a", "all runs", href="/")))
    return document(data.title, element("main", *parts), figures, choices, served=served, changing=not _finished(data))


def _figures(data: PageData) -> dict[str, Figure]:
    figures = {}
    if any(latency_ms(net) is not None for net in data.nets):
        figures["front"] = front_figure(data.nets, data.picks, data.latency_limit_ms, data.metric)
    if len(data.rounds) > 1:
        figures["history"] = history_figure(data.rounds)
    if (agreement := agreement_figure(data.nets)) is not None:
        figures["agreement"] = agreement
    return figures


# ---- sections


def _header(data: PageData) -> Markup:
    front = sum(net.role == "front" for net in data.nets)
    so_far = "" if _finished(data) else " so far"
    facts = [f"{front} {'net' if front == 1 else 'nets'} on the front{so_far}", f"target {data.target}", *data.constraints]
    told = "" if data.standing is None else sentence(data.standing, data.command_name)
    standing = element("p", told, class_=f"standing {data.standing.state}") if data.standing and told else ""
    warnings = [f"Predicted latency is {data.estimate}."] if data.estimate else []
    warnings += [data.unknown] if data.unknown else []
    return element(
        "header",
        element("h1", data.title),
        element("p", " · ".join(facts)),
        standing,
        *(element("p", warning, class_="estimate") for warning in warnings),
    )


def _finished(data: PageData) -> bool:
    return data.standing is None or data.standing.finished


def _sections(data: PageData, figures: Mapping[str, Figure], choices: Mapping[str, Axis]) -> Iterable[Markup]:
    if data.picks:
        yield _picks(data)
    if "front" in figures:
        yield section("Front", selects(choices), plot("front"), _front_note(data))
    if data.nets:
        yield section("Nets", _nets(data), class_="long")
    if data.rounds:
        yield section("Search", _history(data, drawn="history" in figures))
    if "agreement" in figures:
        yield section("Predicted against measured", plot("agreement"))
    predictor = Markup() if data.quality is None else _quality(data, data.quality)
    yield element("div", element("div", predictor, _data(data)), element("div", _time(data)), class_="columns")
    yield section("To get this again", element("pre", data.command), _pairs(data.settings), class_="long")
    if data.plan:
        yield section("Plan", _pairs(data.plan), class_="long")
    yield section("Environment", _pairs(data.environment), class_="long")


def _footer(data: PageData) -> Markup:
    return element("footer", f"natdeploy {data.version}, {data.utc}")


def _picks(data: PageData) -> Markup:
    nets = {net.id: net for net in data.nets if net.role == "front"}
    kind = accuracy_kind(data.nets)
    baseline = max((net for net in data.nets if net.role == "baseline"), key=lambda net: accuracy(net, kind), default=None)
    cards = []
    for pick in data.picks:
        net = nets[pick.id]
        latency = latency_ms(net)
        figures = [element("div", element("b", f"{percent(accuracy(net, kind))} %"), element("span", f"{kind} {data.metric}"))]
        if latency is not None:
            guessed = "estimated, not measured" if net.estimated else "predicted"
            how = guessed if net.measured_p50_ms is None else "p50, measured"
            figures.append(element("div", element("b", f"{milliseconds(latency)} ms"), element("span", how)))
        gain = _gain(net, baseline, kind) if baseline else ""
        cards.append(
            element(
                "div",
                element("h2", pick.rule, element("a", net.id, href=f"#{anchor(net)}")),
                element("div", *figures, class_="figures"),
                element("p", _validated(net, data.metric), class_="note") if kind == "test" else "",
                element("p", gain, class_="gain") if gain else "",
                element("p", pick.reason, class_="note"),
                class_="pick",
            )
        )
    return element("div", *cards, class_="picks")


def _validated(net: NetRecord, metric: str) -> str:
    return f"validation {metric} {percent(net.validation_accuracy)} % in the search, before the front was trained on"


def _gain(net: NetRecord, baseline: NetRecord, kind: AccuracyKind) -> str:
    """What a net is worth beside the baseline; only numbers of one kind are compared."""
    if net.measured_p50_ms is not None and baseline.measured_p50_ms is not None:
        ratio, how = net.measured_p50_ms / baseline.measured_p50_ms, "latency"
    elif net.predicted_ms is not None and baseline.predicted_ms is not None:
        ratio, how = net.predicted_ms / baseline.predicted_ms, f"{'estimated' if net.estimated else 'predicted'} latency"
    else:
        return ""
    points = 100 * (accuracy(net, kind) - accuracy(baseline, kind))
    return f"{_signed(points)} points at {ratio:.2f} of the {how} of the baseline at {Arch.parse(baseline.arch).resolution}\u00a0px"


def _front_note(data: PageData) -> Markup:
    kind = accuracy_kind(data.nets)
    front = [net for net in data.nets if net.role == "front"]
    metric = f"{data.metric[0].upper()}{data.metric[1:]}"
    sentences = [f"{metric} is of the {kind} images; latency is of one image, the median of n runs (p50)."]
    if not _finished(data):
        sentences = [
            f"{metric} is of the validation images, with the weights by which a net was last judged. At the end the front is "
            "trained on, tested, and compared with the seed network. Latency is of one image.",
        ]
    if any(net.measured_p50_ms is None for net in data.nets):
        sentences.append(f"Hollow marks: latency {'estimated' if data.estimate else 'predicted'}, not yet measured.")
    sentences.append("The line joins the nets of the front that no other one beats in both; a click on a mark opens its row.")
    if _finished(data) and any("latency" in net.objectives and net.objectives["latency"] != net.predicted_ms for net in front):
        sentences.append("Corrected latency is what the search went by once it had measured its front.")
    errors = [abs(net.predicted_ms / net.measured_p50_ms - 1) for net in front if net.predicted_ms and net.measured_p50_ms]
    if errors:
        what = "Estimated" if data.estimate else "Predicted"
        sentences.append(f"{what} and measured latency of the front differ by {100 * median(errors):.1f} % in the median.")
    return element("p", " ".join(sentences), class_="note")


def _nets(data: PageData) -> Markup:
    extra = further(data.nets)
    searched = ("precision",) if precisions_searched(data.nets) else ()
    columns = [each for each in _COLUMNS if each != _BEFORE or _tuned(data)]
    head = element("tr", element("th", "net"), *(element("th", each, class_="number") for each in (*searched, *columns, *extra)))
    bodies = [_net(net, data, extra) for net in by_latency(data.nets)]
    table = element("table", element("thead", head), *bodies, class_="nets")
    note = element(
        "p",
        "Fastest first. "
        + (f"Before: test {data.metric} before a net was tuned alone. " if _tuned(data) else "")
        + f"In runtime: test {data.metric} of the exported file in "
        "the target's runtime. p50, p90: latency, measured in so "
        "many runs. Off: prediction against p50. Parity: largest difference between the file's logits and torch's on real images, "
        "relative to the largest logit of the image."
        + (f" {ESTIMATED}: estimated from the device's specification sheet, not measured." if data.estimate else ""),
        class_="note",
    )
    return join(element("div", table, class_="wide"), note)


def _tuned(data: PageData) -> bool:
    """Whether a net was tuned alone at the end."""
    return any(net.tuned_accuracy is not None for net in data.nets)


def _files_of(net: NetRecord, files: Iterable[FileRecord]) -> list[FileRecord]:
    return [file for file in files if (file.role, file.id, file.refused) == (net.role, net.id, None)]


def _net(net: NetRecord, data: PageData, extra: Sequence[str]) -> Markup:
    files = _files_of(net, data.files)
    tags = [element("span", label, class_=f"tag {net.role}") for label in labels(net, data.picks)]
    if net.unstable:
        tags.append(element("span", "unstable", class_="tag unstable", title="processes differ by more than 3 %"))
    off = MISSING
    if net.predicted_ms is not None and net.measured_p50_ms is not None:
        off = (ESTIMATED if net.estimated else "") + _signed(100 * (net.predicted_ms / net.measured_p50_ms - 1))
    cells = (
        *((net.precision or MISSING,) if precisions_searched(data.nets) else ()),
        str(Arch.parse(net.arch).resolution),
        percent(net.final_accuracy),
        *((MISSING if net.tuned_accuracy is None else percent(net.test_accuracy),) if _tuned(data) else ()),
        percent(net.validation_accuracy),
        percent(files[0].test_accuracy if files else None),
        milliseconds(net.measured_p50_ms),
        milliseconds(net.measured_p90_ms),
        MISSING if net.measured_n is None else str(net.measured_n),
        predicted(net),
        off,
        millions(net.macs),
        millions(net.params),
        MISSING if not files or files[0].max_rel is None else f"{files[0].max_rel:.0e}",
        *(quantity(net.objectives.get(name)) for name in extra),
    )
    numbers = element("tr", element("th", net.id, *tags), *(element("td", cell, class_="number") for cell in cells))
    paths = (file.path for file in files if file.path is not None)
    links = element("span", *(element("a", Path(path).name, href=path) for path in paths), class_="files")
    arch = element("tr", element("td", links, net.arch, class_="arch", colspan=str(len(cells) + 1)))
    shown = element("tr", element("td", _details(net, data), class_="shape", colspan=str(len(cells) + 1)))
    return element("tbody", numbers, arch, shown, id=anchor(net))


_LEGEND = (
    "A box is a block: as wide as its output has channels (the number below it), as high as that has pixels, both by square root; "
    "k is the kernel, e the expansion; an outlined box lowers the resolution."
)


def _details(net: NetRecord, data: PageData) -> Markup:
    """What a net looks like, what its blocks cost, its files, and where it was timed; closed until somebody asks."""
    parts: list[str] = []
    if blocks := data.blocks.get(net.arch):
        block_ms = data.block_ms.get(net.arch)
        bars = " Bars: latency of the block run alone, predicted, µs; their sum is not the network's latency." if block_ms else ""
        parts += [element("div", picture(blocks, block_ms), class_="wide"), element("p", _LEGEND + bars, class_="note")]
    if data.undrawn:
        parts.append(element("p", data.undrawn, class_="note"))
    files = [file for file in data.files if (file.role, file.id) == (net.role, net.id)]
    parts.append(_file_table(files) if files else element("p", "No files were exported.", class_="note"))
    if timed := [each for each in data.latencies if (each.role, each.id) == (net.role, net.id)]:
        parts.append(_latency_table(timed))
    return element("details", element("summary", "blocks, files and times"), *parts)


def _file_table(files: Sequence[FileRecord]) -> Markup:
    head = ("file", "format", "precision", "size, MB", "valid., %", "test, %", "same class as torch, %", "")
    rows = []
    for file in files:
        size = MISSING if file.size_mb is None else f"{file.size_mb:.2f}"
        name = MISSING if file.path is None else element("a", Path(file.path).name, href=file.path)
        numbers = (size, percent(file.validation_accuracy), percent(file.test_accuracy), percent(file.agreement))
        rows.append(
            element(
                "tr",
                element("td", name),
                element("td", file.format),
                element("td", file.precision),
                *(element("td", number, class_="number") for number in numbers),
                element("td", f"refused: {file.refused}" if file.refused else ""),
            )
        )
    return _small_table(head, rows)


def _latency_table(latencies: Sequence[LatencyRecord]) -> Markup:
    head = ("timed on", "p50, ms", "p90, ms", "mean, ms", "runs", "memory, MB", "energy, mJ", "")
    rows = []
    for each in latencies:
        times = (milliseconds(each.p50_ms), milliseconds(each.p90_ms), milliseconds(each.mean_ms), str(each.n))
        others = (quantity(each.peak_memory_mb), quantity(each.energy_mj))
        rows.append(
            element(
                "tr",
                element("td", each.target),
                *(element("td", number, class_="number") for number in (*times, *others)),
                element("td", "unstable" if each.unstable else ""),
            )
        )
    note = (
        "Memory: what the process's peak rose by when the net was loaded and run. Energy: of a run, less that of the idle device."
    )
    return join(_small_table(head, rows), element("p", note, class_="note"))


def _small_table(head: Sequence[str], rows: Sequence[Markup]) -> Markup:
    """Of one net; numbers have a unit, or are runs."""
    heads = (element("th", each, class_="number" if "," in each or each == "runs" else "") for each in head)
    return element("table", element("thead", element("tr", *heads)), element("tbody", *rows), class_="exported")


def _history(data: PageData, *, drawn: bool) -> Markup:
    head = ("round", "evaluated", "on the front", "best error, %", "hypervolume", "surrogate", "tau", "Spearman", "RMSE, %")
    rows = [
        (
            str(each.round),
            str(each.evaluated),
            str(each.front_size),
            percent(each.best_error),
            f"{each.hypervolume:.4f}",
            each.surrogate or MISSING,
            *(MISSING if value is None else f"{value:.2f}" for value in (each.new_tau, each.new_spearman)),
            percent(each.new_rmse),
        )
        for each in data.rounds
    ]
    table = element(
        "table",
        element("thead", element("tr", *(element("th", each, class_="number") for each in head))),
        element("tbody", *(element("tr", *(element("td", cell, class_="number") for cell in row)) for row in rows)),
    )
    notes = [
        "Tau, Spearman and RMSE compare the errors that the surrogate predicted for a round's new nets with those found then.",
        *(f"Round {each.round}: measured, {', '.join(each.left)} left the front." for each in data.rounds if each.left),
    ]
    if data.rounds[-1].failed:
        notes.append(f"{data.rounds[-1].failed} could not be evaluated and were left out.")
    history = element("div", plot("history") if drawn else "", element("div", table, class_="scroll"), class_="history")
    return join(history, element("p", " ".join(notes), class_="note"))


def _quality(data: PageData, quality: Quality) -> Markup:
    rows = {
        "within 5 %": f"{percent(quality.within_5)} % of nets",
        "within 10 %": f"{percent(quality.within_10)} % of nets",
        "mean relative error": f"{percent(quality.mape)} %",
        "rank correlation": f"Spearman {quality.spearman:.3f}, Kendall {quality.kendall:.3f}",
    }
    note = element("p", f"On {quality.n} whole nets that it has not seen, measured end to end on {data.target}.", class_="note")
    return section("Latency predictor", _pairs(rows), note)


def _data(data: PageData) -> Markup:
    return section("Data", _pairs({**data.data, **{split: f"{count} images" for split, count in data.splits.items()}}))


def _time(data: PageData) -> Markup:
    total = sum(data.seconds.values())
    rows = [
        element(
            "tr",
            element("th", stage),
            element("td", _duration(seconds), class_="number"),
            element("td", f"{100 * seconds / total if total else 0:.1f} %", class_="number"),
            element("td", element("div", style=f"width: {100 * seconds / total if total else 0:.1f}%"), class_="bar"),
        )
        for stage, seconds in data.seconds.items()
    ]
    rows.append(
        element("tr", element("th", "total"), element("td", _duration(total), class_="number"), element("td"), element("td"))
    )
    passes, notes = share_of_passes(data.seconds), []
    if passes is not None:
        told = f"Forward and backward passes are {100 * passes:.0f} % of what is not profiling or measuring."
        notes.append(element("p", told, class_="note"))
    return section("Where the time went", element("table", element("tbody", *rows), class_="times"), *notes)


def _pairs(values: Mapping[str, str]) -> Markup:
    rows = [element("tr", element("th", key), element("td", value)) for key, value in values.items()]
    return element("table", element("tbody", *rows), class_="pairs")


def _signed(value: float) -> str:
    return f"{value:+.1f}".replace("-", "−")


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
