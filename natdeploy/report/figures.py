"""The plots of the page as plotly figures in plain dictionaries.

A colour is the name of a custom property of page.css (`--accent`); page.js looks it up when it draws, so that one figure serves
light, dark and paper.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from html import escape
from typing import Any, Literal

from natdeploy.report.tables import Pick, by_latency, labels, latency_ms, millions, milliseconds, percent, predicted
from natdeploy.store import NetRecord

Figure = dict[str, Any]
AccuracyKind = Literal["test", "validation"]

RUN_COLOURS = 6
"""Custom properties `--run-0` and so on that page.css has."""
_SYMBOLS = ("circle", "square", "triangle-up", "diamond", "pentagon", "cross", "star")
_LINE_LENGTH = 58
_FONT = {"family": "system-ui, sans-serif", "size": 13, "color": "--ink"}
_LAYOUT = {
    "font": _FONT,
    "paper_bgcolor": "--card",
    "plot_bgcolor": "--card",
    "hoverlabel": {"align": "left", "bgcolor": "--page", "bordercolor": "--muted", "font": _FONT},
    "hovermode": "closest",
    "dragmode": "zoom",
}


@dataclass(frozen=True)
class Round:
    """What one round of the search came to.

    Attributes:
        round: 0 is the initial sample.
        evaluated: architectures evaluated so far.
        front_size: how many of them are on the front.
        best_error: smallest validation error of the front, 0..1.
        hypervolume: of the front, with the reference point fixed at the start of the search.
        surrogate: which one predicted the errors of this round's architectures; None in round 0.
        new_tau: Kendall's rank correlation of those predictions with what was then found; None for fewer than two.
        new_spearman: Spearman's; likewise.
        new_rmse: root mean square of their difference; None without new ones.
        failed: architectures that could not be evaluated so far.
        left: ids that left the front when it was measured.
    """

    round: int
    evaluated: int
    front_size: int
    best_error: float
    hypervolume: float
    surrogate: str | None = None
    new_tau: float | None = None
    new_spearman: float | None = None
    new_rmse: float | None = None
    failed: int = 0
    left: tuple[str, ...] = ()

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> Round:
        """From a round as the store keeps it, which knows more; those of earlier versions know less."""
        surrogate = facts.get("surrogate") or {}
        return cls(
            round=facts["round"],
            evaluated=facts["evaluated"],
            front_size=facts["front_size"],
            best_error=facts["best_error"],
            hypervolume=facts["hypervolume"],
            surrogate=surrogate.get("name"),
            new_tau=surrogate.get("new_tau"),
            new_spearman=surrogate.get("new_spearman"),
            new_rmse=surrogate.get("new_rmse"),
            failed=facts.get("failed", 0),
            left=tuple(facts.get("left", ())),
        )


def accuracy_kind(nets: Sequence[NetRecord]) -> AccuracyKind:
    """`test` where every net was tested; one plot never mixes two kinds."""
    return "test" if nets and all(net.test_accuracy is not None for net in nets) else "validation"


def accuracy(net: NetRecord, kind: AccuracyKind) -> float:
    if kind == "validation":
        return net.validation_accuracy
    if net.test_accuracy is None:
        raise ValueError(f"net {net.id} was not tested")
    assert net.final_accuracy is not None
    return net.final_accuracy


def front_figure(nets: Sequence[NetRecord], picks: Sequence[Pick], limit_ms: float | None, metric: str = "accuracy") -> Figure:
    """Error against latency. Filled marks are measured, hollow ones predicted; the line joins what nothing on the front beats.

    Args:
        nets: front and baselines; those without any latency are left out.
        picks: nets that get an arrow with their names.
        limit_ms: the latency constraint, or None.
        metric: of the task; the error is what it lacks to 1.
    """
    kind = accuracy_kind(nets)
    points = _points(nets, kind)
    data = [_line([point for point in points if point.net.role == "front"], "--accent", "front")]
    for role, symbol, colour, size in (("front", "circle", "--accent", 11), ("baseline", "diamond", "--baseline", 13)):
        own = [point for point in points if point.net.role == role]
        data += _marks(own, _Look(symbol, colour, size), picks, role, anchor, metric=metric)
    layout = _front_layout(kind)
    layout["annotations"] = [
        {
            "name": anchor(point.net),
            "x": point.latency_ms,
            "y": point.error_percent,
            "text": f"<b>{escape(', '.join(names))}</b>",
            "ax": 30,
            "ay": -34,
            "standoff": 7,
            "arrowcolor": "--muted",
            "arrowwidth": 1,
            "arrowhead": 0,
            "xanchor": "left",
            "font": {"color": "--ink"},
        }
        for point in points
        if point.net.role == "front" and (names := labels(point.net, picks))
    ]
    if limit_ms is not None:
        line = {"color": "--limit", "width": 1.5, "dash": "dash"}
        layout["shapes"].append({"type": "line", "x0": limit_ms, "x1": limit_ms, "yref": "paper", "y0": 0, "y1": 1, "line": line})
        layout["annotations"].append(
            {
                "x": limit_ms,
                "yref": "paper",
                "y": 1,
                "text": f"limit {limit_ms:g} ms",
                "showarrow": False,
                "xanchor": "right",
                "yanchor": "top",
                "xshift": -4,
                "font": {"color": "--limit", "size": 12},
            }
        )
    return {"data": data, "layout": layout}


def fronts_figure(fronts: Mapping[str, Sequence[NetRecord]], kind: AccuracyKind, place: Callable[[str, NetRecord], str]) -> Figure:
    """The fronts of several runs in one figure, each in a colour and with a mark of its own.

    Args:
        fronts: by the name of the run.
        kind: of the accuracy, of which all nets have one.
        place: where a click on a net's mark goes.
    """
    data: list[dict[str, Any]] = []
    for number, (run, nets) in enumerate(fronts.items()):
        points, colour = _points(nets, kind), f"--run-{number % RUN_COLOURS}"
        look = _Look(_SYMBOLS[number % len(_SYMBOLS)], colour, 11)
        data += [_line(points, colour, run), *_marks(points, look, (), run, partial(place, run))]
    named: set[str] = set()
    for trace in data:
        trace["legendgroup"] = run = trace["meta"]
        if "name" in trace:
            trace |= {"name": escape(run), "showlegend": run not in named}
            named.add(run)
    return {"data": data, "layout": _front_layout(kind)}


@dataclass(frozen=True)
class _Point:
    net: NetRecord
    latency_ms: float
    error_percent: float


@dataclass(frozen=True)
class _Look:
    symbol: str
    colour: str
    size: int


def _points(nets: Sequence[NetRecord], kind: AccuracyKind) -> list[_Point]:
    """Nets of which a latency is known, fastest first."""
    known = ((net, latency_ms(net)) for net in by_latency(nets))
    return [_Point(net, latency, 100 * (1 - accuracy(net, kind))) for net, latency in known if latency is not None]


def _line(points: Sequence[_Point], colour: str, group: str) -> dict[str, Any]:
    """Through what no other point beats; page.js draws it anew through the marks of the same `meta` when axes are chosen."""
    steps: list[_Point] = []
    for point in points:
        if not steps or point.error_percent < steps[-1].error_percent:
            steps.append(point)
    return {
        "type": "scatter",
        "mode": "lines",
        "x": [point.latency_ms for point in steps],
        "y": [point.error_percent for point in steps],
        "line": {"shape": "hv", "color": colour, "width": 1.5},
        "opacity": 0.5,
        "hoverinfo": "skip",
        "showlegend": False,
        "meta": group,
    }


def _marks(
    points: Sequence[_Point],
    look: _Look,
    picks: Sequence[Pick],
    group: str,
    place: Callable[[NetRecord], str],
    *,
    metric: str = "accuracy",
) -> list[dict[str, Any]]:
    """Filled marks of what was measured, hollow ones of the rest."""
    guessed = "estimated, not measured" if any(point.net.estimated for point in points) else "predicted"
    traces = []
    for measured in (True, False):
        shown = [point for point in points if (point.net.measured_p50_ms is not None) == measured]
        if shown:
            traces.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "name": f"{escape(group)}, latency {'measured' if measured else guessed}",
                    "x": [point.latency_ms for point in shown],
                    "y": [point.error_percent for point in shown],
                    "customdata": [place(point.net) for point in shown],
                    "hovertext": [_hover(point.net, picks, metric) for point in shown],
                    "hovertemplate": "%{hovertext}<extra></extra>",
                    "meta": group,
                    "marker": {
                        "symbol": look.symbol if measured else f"{look.symbol}-open",
                        "size": look.size,
                        "color": look.colour,
                        "line": {"color": "--card" if measured else look.colour, "width": 1.5 if measured else 2},
                    },
                }
            )
    return traces


def _front_layout(kind: AccuracyKind) -> dict[str, Any]:
    return {
        **_LAYOUT,
        "height": 460,
        "margin": {"l": 60, "r": 20, "t": 10, "b": 50},
        "xaxis": _axis("latency, ms"),
        "yaxis": _axis(f"{kind} error, %"),
        "legend": {"orientation": "h", "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom"},
        "annotations": [],
        "shapes": [],
    }


def agreement_figure(nets: Sequence[NetRecord]) -> Figure | None:
    """Predicted against measured latency with the line on which they agree; None with fewer than two nets that have both."""
    pairs = [(net, net.measured_p50_ms, net.predicted_ms) for net in by_latency(nets)]
    known = [(net, measured, guess) for net, measured, guess in pairs if measured is not None and guess is not None]
    if len(known) < 2:
        return None
    ends = [min(min(x, y) for _, x, y in known), max(max(x, y) for _, x, y in known)]
    guessed = "estimated" if any(net.estimated for net, _, _ in known) else "predicted"
    return {
        "data": [
            {
                "type": "scatter",
                "mode": "lines",
                "x": ends,
                "y": ends,
                "line": {"color": "--muted", "width": 1, "dash": "dot"},
                "hoverinfo": "skip",
            },
            {
                "type": "scatter",
                "mode": "markers",
                "x": [x for _, x, _ in known],
                "y": [y for _, _, y in known],
                "customdata": [anchor(net) for net, _, _ in known],
                "hovertext": [f"<b>{escape(net.id)}</b> {100 * (y / x - 1):+.1f} %" for net, x, y in known],
                "hovertemplate": "%{hovertext}<extra></extra>",
                "marker": {"size": 9, "color": "--accent"},
            },
        ],
        "layout": {
            **_LAYOUT,
            "height": 320,
            "margin": {"l": 60, "r": 16, "t": 16, "b": 46},
            "xaxis": _axis("measured latency (p50), ms"),
            "yaxis": _axis(f"{guessed} latency, ms"),
            "showlegend": False,
        },
    }


def history_figure(rounds: Sequence[Round]) -> Figure:
    """Hypervolume of the front after every round."""
    return {
        "data": [
            {
                "type": "scatter",
                "mode": "lines+markers",
                "x": [each.round for each in rounds],
                "y": [each.hypervolume for each in rounds],
                "hovertext": [f"round {each.round}: {each.evaluated} evaluated, {each.front_size} on the front" for each in rounds],
                "hovertemplate": "%{hovertext}<br>hypervolume %{y:.4f}<extra></extra>",
                "line": {"color": "--accent", "width": 2},
                "marker": {"size": 7},
            }
        ],
        "layout": {
            **_LAYOUT,
            "height": 280,
            "margin": {"l": 60, "r": 16, "t": 26, "b": 46},
            "xaxis": {**_axis("round"), "dtick": max(1, len(rounds) // 8)},
            "yaxis": _axis("hypervolume"),
            "showlegend": False,
        },
    }


def anchor(net: NetRecord) -> str:
    """Id of a net's rows in the page, which a click on its mark goes to."""
    return f"{net.role}-{net.id}"


def _axis(title: str) -> dict[str, Any]:
    return {
        "title": {"text": title, "font": {"size": 13}},
        "gridcolor": "--rule",
        "linecolor": "--rule",
        "tickcolor": "--rule",
        "ticks": "outside",
        "zeroline": False,
        "automargin": True,
    }


def _hover(net: NetRecord, picks: Sequence[Pick], metric: str) -> str:
    lines = [f"<b>{escape(net.id)}</b> {escape(', '.join(labels(net, picks)))}"]
    alone = "" if net.tuned_accuracy is None else f" (before it was tuned alone {percent(net.test_accuracy)} %)"
    tested = "" if net.final_accuracy is None else f"test {percent(net.final_accuracy)} %{alone}, "
    lines.append(f"{metric}: {tested}validation {percent(net.validation_accuracy)} %")
    if net.measured_p50_ms is not None:
        p90 = "" if net.measured_p90_ms is None else f", p90 {milliseconds(net.measured_p90_ms)} ms"
        lines.append(f"measured: p50 {milliseconds(net.measured_p50_ms)} ms{p90}{', unstable' if net.unstable else ''}")
    if net.predicted_ms is not None:
        lines.append(f"{'estimated' if net.estimated else 'predicted'}: {predicted(net)} ms")
    lines.append(f"{millions(net.macs)} M MACs, {millions(net.params)} M parameters")
    return "<br>".join([*lines, *map(escape, _wrap(net.arch))])


def _wrap(arch: str) -> list[str]:
    """An architecture's text in lines, broken between stages."""
    lines = [""]
    for part in arch.split("-"):
        joined = f"{lines[-1]}-{part}" if lines[-1] else part
        if len(joined) > _LINE_LENGTH and lines[-1]:
            lines.append(part)
        else:
            lines[-1] = joined
    return lines
