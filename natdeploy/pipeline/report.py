"""The page of a finished run, and the same for programs."""

from __future__ import annotations

import csv
import io
import math
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from natdeploy._version import __version__
from natdeploy.errors import NatdeployError
from natdeploy.files import write_atomic
from natdeploy.latency.predictor import LatencyPredictor, Quality
from natdeploy.pipeline.choice import stand_out
from natdeploy.pipeline.config import SearchConfig, target_of
from natdeploy.pipeline.finished import Adaptation, adaptation, finished_nets, latency_limit_ms
from natdeploy.pipeline.predictor import load_predictor
from natdeploy.pipeline.search import read_config
from natdeploy.pipeline.setting import stored_space
from natdeploy.report import PageData, Round, file_json, net_json, write_page
from natdeploy.search import Choice
from natdeploy.space import Arch, Block
from natdeploy.store import NetRecord, RunStore

PAGE = "report.html"


@dataclass(frozen=True)
class ReportResult:
    """The outcome of a run.

    Attributes:
        page: the HTML page.
        nets: final front and baseline.
        picks: nets that stand out.
        seconds: by stage of the work.
        adaptation: the same by what was adapted; None where the run does not tell.
        summary: the same for programs.
    """

    page: Path
    nets: tuple[NetRecord, ...]
    picks: tuple[Choice, ...]
    seconds: Mapping[str, float]
    adaptation: Adaptation | None
    summary: dict[str, Any]


def report(folder: Path) -> ReportResult:
    """Writes the page of a run, and says what it says.

    Raises:
        UsageError: the run is not finished.
    """
    with RunStore.open(folder) as store:
        nets = finished_nets(store)
        config = read_config(store)
        picks = stand_out(nets, config)
        known = store.get("quality")
        quality = None if known is None else Quality(**known)
        rounds = [Round.from_facts(facts) for facts in store.rounds()]
        limit_ms, spent = latency_limit_ms(config), adaptation(store)
        data = PageData(
            title=folder.resolve().name,
            command=shlex.join(store.get("command")),
            target=str(target_of(config)),
            version=__version__,
            utc=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            nets=nets,
            files=store.files(),
            picks=picks,
            constraints=config.constraints,
            latency_limit_ms=limit_ms if math.isfinite(limit_ms) else None,
            rounds=rounds,
            quality=quality,
            estimate=store.get("estimate"),
            seconds=store.seconds(),
            data={"folder": str(config.data), "classes": ", ".join(store.get("classes")), "fingerprint": store.get("fingerprint")},
            splits={name: len(paths) for name, paths in store.get("splits").items()},
            settings={**store.get("plan"), **{name: str(value) for name, value in config if name not in ("nat", "adapt")}},
            environment={name: str(value) for name, value in store.get("environment").items()},
            latencies=store.latencies(),
            **vars(_drawn(store, config, nets)),
        )
        write_page(folder / PAGE, data)
        summary = {
            "run": str(folder),
            "page": str(folder / PAGE),
            "target": data.target,
            "nets": [net_json(net, picks) for net in nets],
            "files": [file_json(file) for file in store.files()],
            "predictor_quality": known,
            "estimate": store.get("estimate"),
            "seconds": data.seconds,
            "adaptation": spent and asdict(spent),
        }
        return ReportResult(folder / PAGE, nets, picks, data.seconds, spent, summary)


@dataclass(frozen=True)
class _Drawn:
    """What the page draws of the nets, by the text of an architecture, and why something is missing."""

    blocks: Mapping[str, tuple[Block, ...]]
    block_ms: Mapping[str, list[float]]
    undrawn: str | None = None


def _drawn(store: RunStore, config: SearchConfig, nets: Iterable[NetRecord]) -> _Drawn:
    try:
        space = stored_space(config, store)
    except NatdeployError as error:
        return _Drawn({}, {}, f"The blocks cannot be drawn: {error}.")
    blocks = {net.arch: space.blocks(Arch.parse(net.arch), len(store.get("classes"))) for net in nets}
    if not any(net.predicted_ms is not None for net in nets):
        return _Drawn(blocks, {}, "Latencies of blocks are not known: the run predicted no latency.")
    try:
        predictor = load_predictor(store.folder)
    except NatdeployError as error:
        return _Drawn(blocks, {}, f"Latencies of blocks are not known: {error}.")
    if not isinstance(predictor, LatencyPredictor):
        return _Drawn(blocks, {}, "Latencies of blocks are not known: those of the nets are estimated from a specification sheet.")
    return _Drawn(blocks, {arch: predictor.predict_blocks(each).tolist() for arch, each in blocks.items()})


def write_archive(folder: Path, path: Path) -> int:
    """Writes a CSV file with one row for every architecture that the search evaluated, in the order they were first evaluated.

    `validation_accuracy` (0 to 1) is the latest one, from the state `step` of the supernet; `round` is empty where the run does not
    tell; `on_front` tells whether the net is on the final front. What is not known is empty.

    Returns:
        how many rows.

    Raises:
        UsageError: the search is not finished, or its space is another one by now.
        NatdeployError: the file cannot be written.
    """
    with RunStore.open(folder) as store:
        nets = {net.arch: net for net in finished_nets(store) if net.role == "front"}
        config = read_config(store)
        space, classes = stored_space(config, store), len(store.get("classes"))
        rounds = {id_: facts["round"] for facts in store.rounds() for id_ in facts.get("new", ())}
        texts = list(dict.fromkeys(each.arch for each in store.evaluations()))
        archs = [Arch.parse(text) for text in texts]
        rows = []
        for text, arch in zip(texts, archs, strict=True):
            evaluation, net, costs = store.latest_evaluation(text), nets.get(text), space.blocks(arch, classes)
            assert evaluation is not None
            rows.append(
                {
                    "id": arch.id,
                    "arch": text,
                    "round": rounds.get(arch.id, ""),
                    "step": evaluation.step,
                    "validation_accuracy": evaluation.accuracy,
                    "validation_images": evaluation.total,
                    "macs": sum(block.macs for block in costs),
                    "params": sum(block.params for block in costs),
                    "predicted_latency_ms": _or_empty(None if net is None else net.predicted_ms),
                    "measured_p50_ms": _or_empty(None if net is None else net.measured_p50_ms),
                    "on_front": int(net is not None),
                }
            )
    text_file = io.StringIO()
    writer = csv.DictWriter(text_file, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(path, text_file.getvalue().encode())
    return len(rows)


def _or_empty(value: float | None) -> float | str:
    return "" if value is None else value
