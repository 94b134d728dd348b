"""What the axes of the front can show: every quantity of the nets that is known of at least two of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from natdeploy.report.figures import AccuracyKind, accuracy, accuracy_kind, anchor
from natdeploy.report.tables import further, latency_ms
from natdeploy.store import FileRecord, LatencyRecord, NetRecord

LATENCY, ERROR = "latency", "error"
"""What the axes show at first."""


@dataclass(frozen=True)
class Axis:
    """One quantity; less is better.

    Attributes:
        title: with the unit.
        values: by a net's place in the page; those that are not known are not there.
    """

    title: str
    values: Mapping[str, float]


def axes(
    nets: Sequence[NetRecord],
    files: Iterable[FileRecord],
    latencies: Iterable[LatencyRecord],
    kind: AccuracyKind | None = None,
) -> dict[str, Axis]:
    """By name. The first two are those of the figure as it is drawn at first.

    Args:
        nets: of one run.
        files: of them.
        latencies: of them.
        kind: of the accuracy; by default the one that all the nets have.
    """
    kind = kind or accuracy_kind(nets)
    found: dict[str, tuple[str, dict[str, float]]] = {}

    def add(name: str, title: str, net: str, value: float | None) -> None:
        if value is not None:
            found.setdefault(name, (title, {}))[1][net] = value

    for net in nets:
        place = anchor(net)
        add(LATENCY, "latency, ms", place, latency_ms(net))
        add(ERROR, f"{kind} error, %", place, 100 * (1 - accuracy(net, kind)))
        if kind == "test":
            add("validation error", "validation error, %", place, 100 * (1 - net.validation_accuracy))
        add("measured latency", "measured latency (p50), ms", place, net.measured_p50_ms)
        add("predicted latency", f"{'estimated' if net.estimated else 'predicted'} latency, ms", place, net.predicted_ms)
        add("macs", "MACs, M", place, net.macs / 1e6)
        add("params", "parameters, M", place, net.params / 1e6)
        for name in further(nets):
            add(f"objective {name}", f"{name}, in the objective's unit", place, net.objectives.get(name))
    for record in latencies:
        add(f"latency on {record.target}", f"measured on {record.target} (p50), ms", f"{record.role}-{record.id}", record.p50_ms)
    for file in files:
        if file.refused is None and file.size_mb:
            name = f"{file.format} {file.precision}"
            add(f"size of {name}", f"file, {name}, MB", f"{file.role}-{file.id}", file.size_mb)
    return {name: Axis(title, values) for name, (title, values) in found.items() if len(values) > 1 or name in (LATENCY, ERROR)}
