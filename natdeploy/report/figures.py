"""The plots of the page as plotly figures in plain dictionaries.

A colour is the name of a custom property of page.css (`--accent`); page.js looks it up when it draws, so that one figure serves
light, dark and paper.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Literal

from natdeploy.report.tables import Pick, by_latency, labels, latency_ms, millions, milliseconds, percent, predicted
from natdeploy.store import NetRecord

Figure = dict[str, Any]
AccuracyKind = Literal["test", "validation"]

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


def front_figure(nets: Sequence[NetRecord], picks: Sequence[Pick], limit_ms: float | None) -> Figure:
    """Error against latency. Filled marks are measured, hollow ones predicted; the line joins what nothing on the front beats.

    Args:
        nets: front and baselines; those without any latency are left out.
        picks: nets that get an arrow with their names.
        limit_ms: the latency constraint, or None.
    """
    kind = accuracy_kind(nets)
    guessed = "estimated, not measured" if any(net.estimated for net in nets) else "predicted"
    points = [(net, latency) for net in by_latency(nets) if (latency := latency_ms(net)) is not None]
    errors = {(net.role, net.id): 100 * (1 - accuracy(net, kind)) for net, _ in points}

    steps: list[tuple[float, float]] = []
    for net, latency in points:
        error = errors[net.role, net.id]
        if net.role == "front" and (not steps or error < steps[-1][1]):
            steps.append((latency, error))
    data: list[dict[str, Any]] = [
        {
            "type": "scatter",
            "mode": "lines",
            "x": [x for x, _ in steps],
            "y": [y for _, y in steps],
            "line": {"shape": "hv", "color": "--accent", "width": 1.5},
            "opacity": 0.5,
            "hoverinfo": "skip",
            "showlegend": False,
        }
    ]
    for role, symbol, colour, size in (("front", "circle", "--accent", 11), ("baseline", "diamond", "--baseline", 13)):
        for measured in (True, False):
            shown = [(net, x) for net, x in points if net.role == role and (net.measured_p50_ms is not None) == measured]
            if shown:
                data.append(
                    {
                        "type": "scatter",
                        "mode": "markers",
                        "name": f"{role}, latency {'measured' if measured else guessed}",
                        "x": [x for _, x in shown],
                        "y": [errors[net.role, net.id] for net, _ in shown],
                        "customdata": [anchor(net) for net, _ in shown],
                        "hovertext": [_hover(net, picks) for net, _ in shown],
                        "hovertemplate": "%{hovertext}<extra></extra>",
                        "marker": {
                            "symbol": symbol if measured else f"{symbol}-open",
                            "size": size,
                            "color": colour,
                            "line": {"color": "--card" if measured else colour, "width": 1.5 if measured else 2},
                        },
                    }
                )

    layout: dict[str, Any] = {
        **_LAYOUT,
        "height": 460,
        "margin": {"l": 60, "r": 20, "t": 10, "b": 50},
        "xaxis": _axis("latency, ms"),
        "yaxis": _axis(f"{kind} error, %"),
        "legend": {"orientation": "h", "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom"},
        "annotations": [
            {
                "name": anchor(net),
                "x": latency,
                "y": errors[net.role, net.id],
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
            for net, latency in points
            if net.role == "front" and (names := labels(net, picks))
        ],
        "shapes": [],
    }
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


def _hover(net: NetRecord, picks: Sequence[Pick]) -> str:
    lines = [f"<b>{escape(net.id)}</b> {escape(', '.join(labels(net, picks)))}"]
    alone = "" if net.tuned_accuracy is None else f" (before it was tuned alone {percent(net.test_accuracy)} %)"
    tested = "" if net.final_accuracy is None else f"test {percent(net.final_accuracy)} %{alone}, "
    lines.append(f"accuracy: {tested}validation {percent(net.validation_accuracy)} %")
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
