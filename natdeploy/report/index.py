"""The runs of a folder in one table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from natdeploy.report.document import document
from natdeploy.report.markup import Markup, element
from natdeploy.report.standing import Standing, budget
from natdeploy.report.tables import MISSING, percent

COMPARE = "/compare"
_STATES = {"finished": "finished", "running": "goes on", "stopped": "stopped"}


@dataclass(frozen=True)
class Line:
    """One run, in short.

    Attributes:
        name: of its folder.
        key: the name as addresses hold it.
        address: of its page.
        target: of the search; None where the run cannot be read.
        standing: how far it is; None where the run cannot be read.
        front: how many nets are on the front, or were after the last round.
        best_error: least validation error of them, 0..1; None before any is known.
        hypervolume: of the front after the last round, in the search's own box; None before the first.
        trouble: why the run cannot be read; None where it can.
    """

    name: str
    key: str
    address: str
    target: str | None = None
    standing: Standing | None = None
    front: int | None = None
    best_error: float | None = None
    hypervolume: float | None = None
    trouble: str | None = None


_HEAD = ("state", "rounds", "training steps", "on the front", "least valid. error, %", "hypervolume", "time spent", "target")
_NUMBERS = 7


def index(folder: str, lines: Sequence[Line]) -> str:
    """The page's text.

    Args:
        folder: name of the one that the runs lie in.
        lines: of the runs, in the order in which they are shown.
    """
    heads = [element("th", each, class_="number" if 0 < place < _NUMBERS else "") for place, each in enumerate(_HEAD)]
    table = element(
        "table",
        element("thead", element("tr", element("th"), element("th", "run"), *heads)),
        element("tbody", *map(_row, lines)),
        class_="runs",
    )
    note = (
        "Hypervolume is the share of a run's own box, up to the worst values of its first nets, that its front dominates; to "
        "compare runs by one box, tick them. Time spent leaves out profiling and the judging at the end, as the budget does."
    )
    running = sum(line.standing is not None and line.standing.state == "running" for line in lines)
    facts = f"{len(lines)} {'run' if len(lines) == 1 else 'runs'}" + (f", {running} of them going on" if running else "")
    button = element("button", "Compare those ticked", type="submit")
    form = element("form", element("div", table, class_="wide"), button, action=COMPARE, method="get")
    found = element("section", form, element("p", note, class_="note"))
    body = element("main", element("header", element("h1", folder), element("p", facts)), found if lines else Markup())
    return document(folder, body, {}, {}, served=True, changing=True)


def _row(line: Line) -> Markup:
    if line.standing is None:
        return element("tr", element("td"), element("th", line.name), element("td", line.trouble or "", colspan=str(len(_HEAD))))
    standing = line.standing
    label = escape(f"compare {line.name}")
    box = Markup(f'<input type="checkbox" name="run" value="{escape(line.key)}" aria-label="{label}">')
    numbers = (
        f"{standing.rounds_done} of {standing.rounds}",
        f"{standing.steps_done} of {standing.steps}",
        MISSING if line.front is None else str(line.front),
        percent(line.best_error),
        MISSING if line.hypervolume is None else f"{line.hypervolume:.3f}",
        budget(standing),
    )
    return element(
        "tr",
        element("td", box),
        element("th", element("a", line.name, href=line.address)),
        element("td", _STATES[standing.state], class_=f"state {standing.state}"),
        *(element("td", number, class_="number") for number in numbers),
        element("td", line.target or MISSING),
    )
