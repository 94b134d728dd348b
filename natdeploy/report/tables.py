"""The nets of a run as rows: for a terminal 80 columns wide, and for programs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any, Protocol

from rich import box
from rich.table import Table

from natdeploy.space import Arch
from natdeploy.store import FileRecord, NetRecord

MISSING = "–"
UNSTABLE = "*"
ESTIMATED = "~"
"""Before a latency from a specification sheet."""
MOST_FURTHER = 2
"""Columns of further objectives that 80 columns have room for; JSON and the page have all of them."""


class Pick(Protocol):
    """A net that stands out: the id of its architecture, by which rule (`knee`, `best`, `fastest`), and why in one sentence."""

    @property
    def id(self) -> str: ...
    @property
    def rule(self) -> str: ...
    @property
    def reason(self) -> str: ...


def latency_ms(net: NetRecord) -> float | None:
    """Measured p50 where there is one, the prediction otherwise."""
    return net.measured_p50_ms if net.measured_p50_ms is not None else net.predicted_ms


def by_latency(nets: Iterable[NetRecord]) -> list[NetRecord]:
    """Fastest first; nets without any latency come last."""
    return sorted(nets, key=lambda net: (math.inf if (latency := latency_ms(net)) is None else latency, net.role, net.id))


def labels(net: NetRecord, picks: Iterable[Pick]) -> tuple[str, ...]:
    """What to call a net besides its id: `baseline`, or the rules by which it was picked."""
    return (net.role,) if net.role == "baseline" else tuple(pick.rule for pick in picks if pick.id == net.id)


def milliseconds(value: float | None) -> str:
    """Microseconds matter below 10 ms, and nobody reads them above."""
    if value is None:
        return MISSING
    return f"{value:.3f}" if value < 10 else f"{value:.2f}" if value < 100 else f"{value:.1f}"


def predicted(net: NetRecord) -> str:
    """The predicted latency, ms, marked where it is an estimate."""
    mark = ESTIMATED if net.estimated and net.predicted_ms is not None else ""
    return mark + milliseconds(net.predicted_ms)


def percent(fraction: float | None) -> str:
    return MISSING if fraction is None else f"{100 * fraction:.1f}"


def millions(count: int) -> str:
    return f"{count / 1e6:.1f}" if count < 1e9 else f"{count / 1e6:.0f}"


def further(nets: Iterable[NetRecord]) -> tuple[str, ...]:
    """Objectives that have no column of their own, in the order in which they were asked for."""
    named = dict.fromkeys(name for net in nets for name in net.objectives)
    return tuple(name for name in named if name not in ("latency", "macs", "params"))


def precisions_searched(nets: Iterable[NetRecord]) -> bool:
    """Whether the search chose the precision of each net."""
    return any(net.precision is not None for net in nets)


def quantity(value: float | None) -> str:
    """A value of any objective, in its own unit."""
    return MISSING if value is None else f"{value:.3g}"


def front_table(nets: Sequence[NetRecord], picks: Sequence[Pick] = (), metric: str = "accuracy") -> Table:
    """The nets, fastest first, one line each, no wider than 80 columns: where precision was searched, it takes the place of further
    objectives and of the accuracy before tuning. Of another `metric` than accuracy a line below tells the name.
    """
    searched = precisions_searched(nets)
    # Ids that tell a precision are longer: the gap of the box between columns has to do then.
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 0 if searched else 1), collapse_padding=True)
    table.add_column("net", no_wrap=True)
    if searched:
        table.add_column("prec.", no_wrap=True)
    for header in ("px", "test\n%", "valid.\n%", "p50\nms", "p90\nms", "pred.\nms", "MACs\nM", "params\nM"):
        table.add_column(header, justify="right", no_wrap=True)
    tuned = any(net.tuned_accuracy is not None for net in nets) and not searched
    if tuned:
        table.add_column("before\n%", justify="right", no_wrap=True)
    extra = () if searched else further(nets)[:MOST_FURTHER]
    for name in extra:
        table.add_column(name.replace("@", "\n@"), justify="right", overflow="fold", max_width=8)
    table.add_column("")
    for net in by_latency(nets):
        table.add_row(
            net.id,
            *([net.precision or MISSING] if searched else []),
            str(Arch.parse(net.arch).resolution),
            percent(net.final_accuracy),
            percent(net.validation_accuracy),
            milliseconds(net.measured_p50_ms) + (UNSTABLE if net.unstable else ""),
            milliseconds(net.measured_p90_ms),
            predicted(net),
            millions(net.macs),
            millions(net.params),
            *([percent(net.test_accuracy if net.tuned_accuracy is not None else None)] if tuned else []),
            *(quantity(net.objectives.get(name)) for name in extra),
            ", ".join(labels(net, picks)),
            style="dim" if net.role == "baseline" else None,
        )
    notes = {
        f"{UNSTABLE} unstable: processes differ by more than 3 %": any(net.unstable for net in nets),
        f"{ESTIMATED} estimated from the device's specification sheet, not measured": any(net.estimated for net in nets),
        f"before: test {metric} before the net was tuned alone": tuned,
        f"test, valid.: {metric}": metric != "accuracy",
    }
    if any(notes.values()):
        table.caption = "\n".join(note for note, applies in notes.items() if applies)
        table.caption_justify = "left"
    return table


def net_json(net: NetRecord, picks: Sequence[Pick] = ()) -> dict[str, Any]:
    """One net for programs: accuracies, which are the task's metric, in 0..1, latencies in ms, counts in units."""
    record = asdict(net)
    return {
        "id": record.pop("id"),
        "role": record.pop("role"),
        "picks": [pick.rule for pick in picks if pick.id == net.id and net.role == "front"],
        **record,
    }


def file_json(file: FileRecord) -> dict[str, Any]:
    """One file for programs: accuracies, which are the task's metric, in 0..1."""
    return asdict(file)
