"""Latency of architectures that nobody has measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from natdeploy.hardware.device import parse_target
from natdeploy.latency.predictor import Quality
from natdeploy.pipeline.config import HeadSettings
from natdeploy.pipeline.predictor import estimated, find_predictor, no_table
from natdeploy.progress import Progress, Silent
from natdeploy.space import Arch, cost, get_space
from natdeploy.space.nat_code import parse_nat


@dataclass(frozen=True)
class PredictedLatency:
    """Of one architecture.

    Attributes:
        arch: as text.
        id: short name of it.
        latency_ms: predicted.
        low_ms: lower end of an interval meant to hold 90 % of architectures; None where nothing tells.
        high_ms: upper end; likewise.
        known: False where a block of it lies outside what was measured: the number is then a guess.
        macs: multiply-accumulates.
        estimated: the number comes from the device's specification sheet, and nothing was measured there.
    """

    arch: str
    id: str
    latency_ms: float
    low_ms: float | None
    high_ms: float | None
    known: bool
    macs: int
    estimated: bool = False


def predict(
    archs: Sequence[str],
    target: str,
    *,
    space: str = "mbv2",
    classes: int = 1000,
    head: HeadSettings | None = None,
    aspect: float = 1.0,
    tables: Path | None = None,
    table: Path | None = None,
    allow_estimate: bool = False,
    progress: Progress | None = None,
) -> tuple[list[PredictedLatency], Quality | None]:
    """Predicts whole networks on a target that was profiled, and says how good such predictions are, if that is known.

    Args:
        archs: texts such as `r128-w1-k3e1-k3e6.k5e3`, or NAT's codes of `ofa_mbv3`, such as `08|0|1100 1440 5510 5220 8877`.
        target: device, optionally with runtime, precision and threads.
        space: name of a shipped space, or path of a TOML file.
        classes: outputs of the classifier.
        head: of a dense task, in place of the classifier.
        aspect: width of its images to their height.
        tables: folder of tables; the user's own by default.
        table: one table to use, instead of looking for one.
        allow_estimate: where there is no table, take the device's specification sheet.
        progress: is told why a table is not used.

    Raises:
        UsageError: target, space or an architecture is unknown, `table` is of something else, or this machine has no table of them.
        DeviceError: another device has no table of them; the message says how to measure one.
    """
    chosen, named = parse_target(target), get_space(space)
    if head is not None:
        named = head.on(named, aspect)
    parsed = [_parse(text) for text in archs]
    found: dict[Arch, PredictedLatency] = {}
    quality: Quality | None = None
    for width in sorted({arch.width for arch in parsed}):
        one, group = named.restrict(widths=(width,)), [arch for arch in parsed if arch.width == width]
        for arch in group:
            one.validate(arch)
        predictor = find_predictor(
            chosen,
            one,
            classes=classes,
            tables=tables,
            table=table,
            allow_estimate=allow_estimate,
            progress=progress or Silent(),
        )
        if predictor is None:
            raise no_table(target, chosen, space, one, classes, tables=tables, seed_weights=None)
        quality = predictor.quality
        ms, macs = predictor.predict(one, group, classes), cost(one, group, classes).macs
        for i, arch in enumerate(group):
            found[arch] = PredictedLatency(
                str(arch),
                arch.id,
                float(ms.latency_ms[i]),
                _finite(ms.low_ms[i]),
                _finite(ms.high_ms[i]),
                bool(ms.known[i]),
                int(macs[i]),
                estimated(predictor) is not None,
            )
    return [found[arch] for arch in parsed], quality


def _finite(bound: float) -> float | None:
    return float(bound) if 0 < bound < math.inf else None


def _parse(text: str) -> Arch:
    return parse_nat(text) if text[:1].isdigit() else Arch.parse(text)
