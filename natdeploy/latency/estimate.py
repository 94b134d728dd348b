"""Latency from a specification sheet, for devices that nobody has measured yet.

The roofline model (Williams, Waterman and Patterson 2009), block by block: a block takes as long as its arithmetic at the peak of
the processor, or as reading its weights and writing its feature maps at the bandwidth of the memory, whichever is longer; a network
is the sum of its blocks. That is a kind of lower bound: runtimes reach a fraction of the peak, and only caches work the other way.
It tells how networks compare rather than what one takes, and whoever shows it has to say that it is an estimate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from natdeploy.errors import DamagedFileError, UsageError
from natdeploy.files import write_atomic
from natdeploy.hardware.device import Target
from natdeploy.latency.blocks import Floats
from natdeploy.latency.predictor import Prediction
from natdeploy.space import Arch, Block, BlockSum, Genotypes, SearchSpace

BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "int8": 1}
"""Of a number, by precision."""


class Estimate(BaseModel):
    """Estimates the latency of a space's networks on a target.

    Attributes:
        target: device, runtime, precision and threads.
        precision: of weights and feature maps.
        gflops: the most arithmetic that the target does; a multiply-accumulate is two operations.
        bandwidth_gbs: of the device's memory.
        sources: of these figures.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    format: Literal["natdeploy latency estimate 1"] = "natdeploy latency estimate 1"
    target: str
    precision: str
    gflops: float
    bandwidth_gbs: float
    sources: tuple[str, ...]

    @classmethod
    def of(cls, target: Target) -> Estimate:
        """The estimate that a device's file allows.

        Raises:
            UsageError: the file lacks a figure; the message says which.
        """
        device = target.device
        peak = next((each for each in device.peak_gflops if target.runtime in each.runtimes), None)
        if target.delegate != device.delegates_of(target.runtime)[0]:
            missing = f"peak_gflops of {target.runtime} on {target.delegate}"
        elif peak is None or target.precision not in peak.gflops:
            missing = f"peak_gflops of {target.runtime} in {target.precision}"
        elif device.bandwidth_gbs is None:
            missing = "bandwidth_gbs"
        else:
            share = 1.0 if peak.cores is None else min(target.threads, peak.cores) / peak.cores
            return cls(
                target=str(target),
                precision=target.precision,
                gflops=peak.gflops[target.precision] * share,
                bandwidth_gbs=device.bandwidth_gbs,
                sources=device.sources,
            )
        raise UsageError(
            f"the latency on {target} cannot be estimated: the file of {device.name} has no {missing}; measure it with "
            f"`natdeploy profile`, or add the figure and its source to a device file of your own"
        )

    @property
    def quality(self) -> None:
        """Nobody knows how good an estimate is."""
        return None

    @property
    def text(self) -> str:
        """What it is and where its figures come from, in a sentence."""
        return (
            f"estimated from the specification sheet of {self.target}, not measured: {self.gflops:g} GFLOPS in "
            f"{self.precision} and {self.bandwidth_gbs:g} GB/s at most, which no runtime reaches"
        )

    def block_ms(self, blocks: Sequence[Block]) -> Floats:
        """Of each block, ms, (blocks,)."""
        macs = np.array([block.macs for block in blocks], dtype=np.float64)
        numbers = np.array([block.params + block.activation_bytes / 4 for block in blocks], dtype=np.float64)
        arithmetic_s = 2 * macs / (self.gflops * 1e9)
        memory_s = BYTES[self.precision] * numbers / (self.bandwidth_gbs * 1e9)
        longer: Floats = 1e3 * np.maximum(arithmetic_s, memory_s)
        return longer

    def total(self, space: SearchSpace, classes: int) -> Callable[[Genotypes], Floats]:
        """The function from genotypes (n, variables) to whole-network latency in ms, (n,)."""
        return BlockSum(space, self.block_ms, classes)

    def terms(self, space: SearchSpace, classes: int, resolution: int, width: float) -> tuple[float, Floats]:
        """As `LatencyPredictor.terms`; their sum is `total` exactly."""
        sums = BlockSum(space, self.block_ms, classes)
        return sums.terms(space.resolutions.index(resolution), space.widths.index(width))

    def predict(self, space: SearchSpace, archs: Sequence[Arch], classes: int) -> Prediction:
        """Latency of architectures. Nothing bounds it from above, and nothing of it is known."""
        latency_ms = self.total(space, classes)(space.encode_all(archs))
        return Prediction(latency_ms, latency_ms, np.full(len(archs), np.inf), np.zeros(len(archs), dtype=np.bool_))

    def save(self, path: Path) -> None:
        """Writes JSON, replacing an older file atomically."""
        write_atomic(path, (self.model_dump_json(indent=1) + "\n").encode())

    @classmethod
    def load(cls, path: Path) -> Estimate:
        """Reads what `save` wrote.

        Raises:
            DamagedFileError: the file is missing or holds something else.
        """
        try:
            return cls.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            raise DamagedFileError(f"{path} is no latency estimate; start a new run") from error
