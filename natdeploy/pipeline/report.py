"""The page of a run, and the same for programs."""

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
from natdeploy.pipeline.finished import finished_nets, latency_limit_ms
from natdeploy.pipeline.predictor import load_predictor
from natdeploy.pipeline.search import read_config
from natdeploy.pipeline.setting import stored_space
from natdeploy.pipeline.underway import front_so_far, standing_of
from natdeploy.report import PageData, Pick, Round, Standing, file_json, net_json, sentence, write_page
from natdeploy.space import Arch, Block
from natdeploy.store import NetRecord, RunStore

PAGE = "report.html"


@dataclass(frozen=True)
class ReportResult:
    """The outcome of a run, or what is known of it so far.

    Attributes:
        page: the HTML page.
        standing: how far the run is, in a sentence; empty for a finished one.
        nets: final front and baseline, or the front so far.
        picks: nets that stand out.
        seconds: by stage of the work.
        summary: the same for programs.
    """

    page: Path
    standing: str
    nets: tuple[NetRecord, ...]
    picks: tuple[Pick, ...]
    seconds: Mapping[str, float]
    summary: dict[str, Any]


def report(folder: Path) -> ReportResult:
    """Writes the page of a run, and says what it says. Another process may be searching in the folder.

    Raises:
        UsageError: there is no run.
    """
    with RunStore.snapshot(folder) as store:
        data = page_data(store)
    write_page(folder / PAGE, data)
    assert data.standing is not None
    summary = {
        "run": str(folder),
        "page": str(folder / PAGE),
        "state": data.standing.state,
        "progress": asdict(data.standing),
        "target": data.target,
        "nets": [net_json(net, data.picks) for net in data.nets],
        "files": [file_json(file) for file in data.files],
        "predictor_quality": None if data.quality is None else vars(data.quality),
        "estimate": data.estimate,
        "seconds": dict(data.seconds),
    }
    return ReportResult(
        folder / PAGE, sentence(data.standing, data.command_name), tuple(data.nets), tuple(data.picks), data.seconds, summary
    )


def page_data(store: RunStore) -> PageData:
    """Everything the page of a run shows."""
    config, standing = read_config(store), standing_of(store)
    nets, unknown = _nets(store, config, standing)
    known = store.get("quality")
    limit_ms = latency_limit_ms(config)
    return PageData(
        title=store.folder.resolve().name,
        command=shlex.join(store.get("command")),
        target=str(target_of(config)),
        version=__version__,
        utc=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        nets=nets,
        files=store.files(),
        picks=stand_out(nets, config) if nets else (),
        constraints=config.constraints,
        latency_limit_ms=limit_ms if math.isfinite(limit_ms) else None,
        rounds=[Round.from_facts(facts) for facts in store.rounds()],
        quality=None if known is None else Quality(**known),
        estimate=store.get("estimate"),
        seconds=store.seconds(),
        data={"folder": str(config.data), "classes": ", ".join(store.get("classes")), "fingerprint": store.get("fingerprint")},
        splits={name: len(paths) for name, paths in store.get("splits").items()},
        settings={**store.get("plan"), **{name: str(value) for name, value in config if name not in ("nat", "adapt")}},
        environment={name: str(value) for name, value in store.get("environment").items()},
        latencies=store.latencies(),
        standing=standing,
        command_name=shlex.quote(str(store.folder)),
        unknown=unknown,
        **vars(_drawn(store, config, nets)),
    )


def _nets(store: RunStore, config: SearchConfig, standing: Standing) -> tuple[tuple[NetRecord, ...], str | None]:
    """The nets of a run at any time, and why there are none where that is not because nothing was judged yet."""
    if standing.finished:
        return finished_nets(store), None
    try:
        return front_so_far(store, config), None
    except NatdeployError as error:
        return (), f"The front so far cannot be shown: {error}."


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
