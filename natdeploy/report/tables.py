"""The nets of a run as rows: for a terminal 80 columns wide, and for programs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any, Protocol

from rich import box
from rich.table import Table

from natdeploy.space import Arch
from natdeploy.store import NetRecord

MISSING = "–"
UNSTABLE = "*"
ESTIMATED = "~"
"""Before a latency from a specification sheet."""


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


def front_table(nets: Sequence[NetRecord], picks: Sequence[Pick] = ()) -> Table:
    """The nets, fastest first, one line each, no wider than 80 columns."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), collapse_padding=True)
    table.add_column("net", no_wrap=True)
    for header in ("px", "test\n%", "valid.\n%", "p50\nms", "p90\nms", "pred.\nms", "MACs\nM", "params\nM"):
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column("")
    for net in by_latency(nets):
        table.add_row(
            net.id,
            str(Arch.parse(net.arch).resolution),
            percent(net.test_accuracy),
            percent(net.validation_accuracy),
            milliseconds(net.measured_p50_ms) + (UNSTABLE if net.unstable else ""),
            milliseconds(net.measured_p90_ms),
            predicted(net),
            millions(net.macs),
            millions(net.params),
            ", ".join(labels(net, picks)),
            style="dim" if net.role == "baseline" else None,
        )
    notes = {
        f"{UNSTABLE} unstable: processes differ by more than 3 %": any(net.unstable for net in nets),
        f"{ESTIMATED} estimated from the device's specification sheet, not measured": any(net.estimated for net in nets),
    }
    if any(notes.values()):
        table.caption = "\n".join(note for note, applies in notes.items() if applies)
        table.caption_justify = "left"
    return table


def net_json(net: NetRecord, picks: Sequence[Pick] = ()) -> dict[str, Any]:
    """One net for programs: accuracies in 0..1, latencies in ms, counts in units."""
    record = asdict(net)
    return {
        "id": record.pop("id"),
        "role": record.pop("role"),
        "picks": [pick.rule for pick in picks if pick.id == net.id and net.role == "front"],
        **record,
        "files": list(net.files),
    }
