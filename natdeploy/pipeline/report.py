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
from natdeploy.errors import NatdeployError, UsageError
from natdeploy.files import write_atomic
from natdeploy.latency.predictor import LatencyPredictor, Quality
from natdeploy.pipeline.choice import stand_out
from natdeploy.pipeline.config import SearchConfig, target_of
from natdeploy.pipeline.finished import Adaptation, adaptation, finished_nets, latency_limit_ms
from natdeploy.pipeline.predictor import load_predictor
from natdeploy.pipeline.problem import LATENCY
from natdeploy.pipeline.search import read_config
from natdeploy.pipeline.setting import stored_space
from natdeploy.pipeline.underway import cheap_values, front_so_far, standing_of
from natdeploy.report import PageData, Pick, Round, Standing, file_json, net_json, sentence, write_page
from natdeploy.report.tables import MISSING
from natdeploy.space import Arch, Block
from natdeploy.store import NetRecord, RunStore
from natdeploy.tasks import METRICS

PAGE = "report.html"
_COLUMNS = {LATENCY: "predicted_latency_ms", "size": "size_mb", "energy": "energy_mj"}


@dataclass(frozen=True)
class ReportResult:
    """The outcome of a run, or what is known of it so far.

    Attributes:
        page: the HTML page.
        standing: how far the run is, in a sentence; empty for a finished one.
        nets: final front and baseline, or the front so far.
        picks: nets that stand out.
        seconds: by stage of the work.
        adaptation: the same by what was adapted; None where the run does not tell.
        metric: of the run's task, by which nets are judged.
        summary: the same for programs.
    """

    page: Path
    standing: str
    nets: tuple[NetRecord, ...]
    picks: tuple[Pick, ...]
    seconds: Mapping[str, float]
    adaptation: Adaptation | None
    metric: str
    summary: dict[str, Any]


def report(folder: Path) -> ReportResult:
    """Writes the page of a run, and says what it says. Another process may be searching in the folder.

    Raises:
        UsageError: there is no run.
    """
    with RunStore.snapshot(folder) as store:
        data, spent, config = page_data(store), adaptation(store), read_config(store)
    write_page(folder / PAGE, data)
    assert data.standing is not None
    summary = {
        "run": str(folder),
        "page": str(folder / PAGE),
        "state": data.standing.state,
        "progress": asdict(data.standing),
        "task": config.task,
        "metric": data.metric,
        "target": data.target,
        "nets": [net_json(net, data.picks) for net in data.nets],
        "files": [file_json(file) for file in data.files],
        "predictor_quality": None if data.quality is None else vars(data.quality),
        "estimate": data.estimate,
        "seconds": dict(data.seconds),
        "adaptation": spent and asdict(spent),
    }
    return ReportResult(
        page=folder / PAGE,
        standing=sentence(data.standing, data.command_name),
        nets=tuple(data.nets),
        picks=tuple(data.picks),
        seconds=data.seconds,
        adaptation=spent,
        metric=data.metric,
        summary=summary,
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
        settings={name: _told(value) for name, value in config.model_dump(mode="json").items() if name not in ("nat", "adapt")},
        plan={name: _told(value) for name, value in store.get("plan").items()},
        environment={name: _told(value) for name, value in store.get("environment").items()},
        latencies=store.latencies(),
        standing=standing,
        command_name=shlex.quote(str(store.folder)),
        unknown=unknown,
        metric=METRICS[config.task],
        **vars(_drawn(store, config, nets)),
    )


def _told(value: Any) -> str:
    """A JSON value for people."""
    if value is None or value in ([], {}):
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(_told, value))
    if isinstance(value, dict):
        return ", ".join(f"{name} {_told(each)}" for name, each in value.items())
    return f"{value:g}" if isinstance(value, float) else str(value)


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

    `validation_accuracy` (0 to 1), the metric of the run's task, is the latest one, in torch, from the state `step` of the
    supernet, on so many `validation_images`; `round` is empty where the run does not tell. `predicted_latency_ms` and further
    objectives, each in a column of its own with its unit, are what the search went by at its start, in the first precision where
    precisions are searched. `on_front` is 1 for nets of the final front, or of that so far, and `measured_p50_ms` is known of final
    ones only. What is not known is empty.

    Returns:
        how many rows.

    Raises:
        UsageError: there is no run, nothing was evaluated yet, or the space is another one by now.
        NatdeployError: the file cannot be written, or a predictor of the run is not there any more.
    """
    with RunStore.snapshot(folder) as store:
        config = read_config(store)
        texts = list(dict.fromkeys(each.arch for each in store.evaluations()))
        if not texts:
            raise UsageError(f"{folder} has not evaluated any architecture yet; wait for the first, or leave out --csv")
        archs = [Arch.parse(text) for text in texts]
        values = cheap_values(store, config, archs).values()
        nets, _ = _nets(store, config, standing_of(store))
        # In several precisions a net has several latencies; that of the first has the column of the prediction.
        measured = {net.arch: net.measured_p50_ms for net in nets if net.precision in (None, *config.precisions[:1])}
        front = {net.arch for net in nets if net.role == "front"}
        rounds = {id_: facts["round"] for facts in store.rounds() for id_ in facts.get("new", ())}
        rows = []
        for place, (text, arch) in enumerate(zip(texts, archs, strict=True)):
            evaluation = store.latest_evaluation(text)
            assert evaluation is not None
            rows.append(
                {
                    "id": arch.id,
                    "arch": text,
                    "round": rounds.get(arch.id, ""),
                    "step": evaluation.step,
                    "validation_accuracy": evaluation.accuracy,
                    "validation_images": evaluation.total,
                    "macs": round(values["macs"][place]),
                    "params": round(values["params"][place]),
                    "predicted_latency_ms": float(values[LATENCY][place]),
                    **{column(name): float(values[name][place]) for name in values if name not in (LATENCY, "macs", "params")},
                    "measured_p50_ms": _or_empty(measured.get(text)),
                    "on_front": int(text in front),
                }
            )
    text_file = io.StringIO()
    writer = csv.DictWriter(text_file, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(path, text_file.getvalue().encode())
    return len(rows)


def column(objective: str) -> str:
    """A further objective as the title of a column, with its unit: `size_mb`, `predicted_latency_ms@pixel4/tflite`."""
    kind, at, target = objective.partition("@")
    return f"{_COLUMNS[kind]}{at}{target}"


def _or_empty(value: float | None) -> float | str:
    return "" if value is None else value
