"""What the user asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from natdeploy.hardware.device import Target, parse_target
from natdeploy.search.nat import NatSettings
from natdeploy.supernet import RemapRules
from natdeploy.training.adapt import AdaptSettings

Accelerator = Literal["auto", "cpu", "cuda"]


class SearchConfig(BaseModel):
    """One search, whole. It is written to the run folder, and with the same data and machine it gives the same run again.

    Attributes:
        data: image folder, with `train/` and `test/` or one flat folder of classes.
        out: run folder, created.
        target: device, optionally with runtime: `host`, `host/onnxruntime`.
        space: name of a shipped space, or path of a TOML file (docs/spaces.md).
        seed_weights: pretrained network; its width and depths are read from the file.
        constraints: `latency<=1.5ms`, `macs<=100M`, `params<=3M`.
        objectives: minimised together; `error` is always one of them.
        rounds: rounds of search and adaptation; follows from the budget when not given.
        minutes: budget of the whole search on this machine, profiling apart; follows from the data when not given.
        accelerator: where weights are trained.
        threads: CPU threads for training, and for the target's runtime where the target is this machine.
        seed: of every random choice.
        strict: a damaged image is an error instead of being skipped.
        flip: mirrored copies of an image mean the same (not so for digits).
        tables: folder of latency tables; the user's own by default.
        table: one table to predict latency from, instead of looking for one.
        allow_estimate: where there is no table, take latency from the device's specification sheet. All of it is marked.
        remap: how the seed's layers become larger or smaller ones (docs/remap.md); a supernet of the space is taken as it is.
        nat: the search's settings; follow from the budget when not given.
        adapt: the adaptation's settings.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: Path
    out: Path
    target: str = "host"
    space: str = "mbv2"
    seed_weights: Path | None = None
    constraints: tuple[str, ...] = ()
    objectives: tuple[str, ...] = ("error", "latency")
    rounds: int | None = Field(default=None, ge=1)
    minutes: float | None = Field(default=None, gt=0)
    accelerator: Accelerator = "auto"
    threads: int = Field(default=1, ge=1)
    seed: int = Field(default=0, ge=0)
    strict: bool = False
    flip: bool = True
    tables: Path | None = None
    table: Path | None = None
    allow_estimate: bool = False
    remap: RemapRules = RemapRules()
    nat: NatSettings | None = None
    adapt: AdaptSettings = AdaptSettings()


def target_of(config: SearchConfig, target: str | None = None) -> Target:
    """The target of a search, or another one. This machine's runs on as many threads as the search, another device on its own."""
    found = parse_target(target or config.target)
    return parse_target(target or config.target, threads=config.threads) if found.device.transport == "local" else found
