"""The page of a finished run, and the same for programs."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from natdeploy._version import __version__
from natdeploy.latency.predictor import Quality
from natdeploy.pipeline.choice import stand_out
from natdeploy.pipeline.config import target_of
from natdeploy.pipeline.finished import finished_nets, latency_limit_ms
from natdeploy.pipeline.search import read_config
from natdeploy.report import PageData, Round, file_json, net_json, write_page
from natdeploy.search import Choice
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
        summary: the same for programs.
    """

    page: Path
    nets: tuple[NetRecord, ...]
    picks: tuple[Choice, ...]
    seconds: Mapping[str, float]
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
        limit_ms = latency_limit_ms(config)
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
        }
        return ReportResult(folder / PAGE, nets, picks, data.seconds, summary)
