"""Several runs side by side: their fronts in one figure, and what each came to in one table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from natdeploy.report.axes import Axis, axes
from natdeploy.report.document import document, plot, section, selects
from natdeploy.report.figures import AccuracyKind, accuracy, accuracy_kind, anchor, fronts_figure
from natdeploy.report.markup import Markup, element
from natdeploy.report.standing import Standing, budget, sentence
from natdeploy.report.tables import MISSING, Pick, latency_ms, milliseconds, percent
from natdeploy.store import FileRecord, LatencyRecord, NetRecord


@dataclass(frozen=True)
class Compared:
    """One of the runs.

    Attributes:
        name: of its folder.
        command_name: how the command line calls it.
        address: of its page.
        target: of the search.
        data: fingerprint of the images.
        constraints: as the user wrote them.
        standing: how far it is.
        front: its final nets, or those so far.
        picks: nets that stand out.
        files: of the nets.
        latencies: of the nets.
    """

    name: str
    command_name: str
    address: str
    target: str
    data: str
    constraints: Sequence[str]
    standing: Standing
    front: Sequence[NetRecord]
    picks: Sequence[Pick]
    files: Sequence[FileRecord]
    latencies: Sequence[LatencyRecord]


@dataclass(frozen=True)
class Volumes:
    """How much the fronts dominate of one box.

    Attributes:
        reference: corner of the box, the other one being zero: latency, ms, and error, 0..1.
        shares: of the box, 0..1, by run; None of a run without a front.
        measured: latencies are measured ones, not predicted.
    """

    reference: tuple[float, float]
    shares: Sequence[float | None]
    measured: bool


def kind_of_all(runs: Sequence[Compared]) -> AccuracyKind:
    """`test` where every net of every run was tested."""
    return accuracy_kind([net for run in runs for net in run.front])


def differences(runs: Sequence[Compared]) -> list[str]:
    """What makes numbers of the runs incomparable, as sentences; none where they can be compared."""
    found = []
    if len({run.target for run in runs}) > 1:
        targets = ", ".join(dict.fromkeys(run.target for run in runs))
        found.append(f"Latencies are of different targets ({targets}) and cannot be compared.")
    if len({run.data for run in runs}) > 1:
        found.append("The runs were trained and judged on different images, so their errors cannot be compared.")
    return found


def compare(runs: Sequence[Compared], volumes: Volumes | None) -> str:
    """The page's text.

    Args:
        runs: two or more.
        volumes: of their fronts; None where these cannot be compared.
    """
    kind = kind_of_all(runs)
    places = {run.name: run for run in runs}

    def place(run: str, net: NetRecord) -> str:
        return f"{places[run].address}#{anchor(net)}"

    drawn = any(latency_ms(net) is not None for run in runs for net in run.front)
    figures = {"front": fronts_figure({run.name: run.front for run in runs}, kind, place)} if drawn else {}
    choices = _axes(runs, kind) if drawn else {}
    notes = [*differences(runs), *(f"{run.name}: {told}" for run in runs if (told := sentence(run.standing, run.command_name)))]
    heading = element("header", element("h1", " · ".join(places)), *(element("p", note, class_="estimate") for note in notes))
    parts = [element("nav", element("a", "all runs", href="/")), heading]
    if drawn:
        marks = "Filled marks: latency measured; hollow ones: predicted. A click opens the net."
        note = f"What nets are judged by is of the {kind} images. {marks}"
        parts.append(section("Fronts", selects(choices), plot("front"), element("p", note, class_="note")))
    parts.append(section("Runs", element("div", _table(runs, kind, volumes), class_="wide"), _note(volumes)))
    changing = any(not run.standing.finished for run in runs)
    return document(" · ".join(places), element("main", *parts), figures, choices, served=True, changing=changing)


def _axes(runs: Sequence[Compared], kind: AccuracyKind) -> dict[str, Axis]:
    """What is known of nets of every run, as one quantity each."""
    found = [axes(run.front, run.files, run.latencies, kind) for run in runs]
    shared = [name for name in found[0] if all(name in each for each in found)]
    return {
        name: Axis(
            found[0][name].title,
            {
                f"{run.address}#{net}": value
                for run, each in zip(runs, found, strict=True)
                for net, value in each[name].values.items()
            },
        )
        for name in shared
    }


def _table(runs: Sequence[Compared], kind: AccuracyKind, volumes: Volumes | None) -> Markup:
    head = ("nets", "least error, %", "least latency, ms", "knee: error, %", "knee: latency, ms", "hypervolume", "rounds", "spent")
    rows = []
    for number, run in enumerate(runs):
        knees = {pick.id for pick in run.picks if pick.rule == "knee"}
        knee = next((net for net in run.front if net.id in knees), None)
        known = [latency for net in run.front if (latency := latency_ms(net)) is not None]
        numbers = (
            str(len(run.front)),
            percent(min((1 - accuracy(net, kind) for net in run.front), default=None)),
            milliseconds(min(known, default=None)),
            percent(None if knee is None else 1 - accuracy(knee, kind)),
            milliseconds(None if knee is None else latency_ms(knee)),
            MISSING if (share := None if volumes is None else volumes.shares[number]) is None else f"{share:.4f}",
            f"{run.standing.rounds_done} of {run.standing.rounds}",
            budget(run.standing),
        )
        cells = (element("td", each, class_="number") for each in numbers)
        limits = element("td", ", ".join(run.constraints) or "none")
        rows.append(element("tr", element("th", element("a", run.name, href=run.address)), *cells, limits))
    heads = [element("th", "run"), *(element("th", each, class_="number") for each in head), element("th", "constraints")]
    return element("table", element("thead", element("tr", *heads)), element("tbody", *rows), class_="runs")


def _note(volumes: Volumes | None) -> Markup:
    if volumes is None:
        return element("p", "There is no hypervolume of fronts that cannot be compared.", class_="note")
    corner = f"{milliseconds(volumes.reference[0])} ms and {percent(volumes.reference[1])} %"
    return element(
        "p",
        f"Hypervolume: share of the box from zero to {corner} error that a front dominates. The box is the same for all, 1.01 "
        f"times the worst of their nets, and latency is the {'measured' if volumes.measured else 'predicted'} one.",
        class_="note",
    )
