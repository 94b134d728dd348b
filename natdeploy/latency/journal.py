"""Everything measured for one table, raw samples included: one line a chunk, so that a kill costs one chunk at most."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from natdeploy.errors import DamagedFileError, DeviceError
from natdeploy.files import write_atomic
from natdeploy.hardware.measure import MeasureResult
from natdeploy.latency.blocks import block_key
from natdeploy.latency.table import BlockRow, Role, SubnetRow, Timing
from natdeploy.space import Arch, Block

STEADY = ("harness", "runtime_version", "provider", "cpu", "cores", "governor")
"""What must not change while one table is measured: numbers from before and after could not be compared."""

AGREE = 0.1
"""Devices of one kind whose references differ by more than this are not of one kind."""


class Journal:
    """What is measured so far.

    Args:
        path: of the file; it need not exist.
        signature: latencies with the same signature may stand in one table.

    Raises:
        DamagedFileError: the file belongs to another measurement, or cannot be read.
    """

    def __init__(self, path: Path, signature: Mapping[str, Any]) -> None:
        self.path = path
        self.failures: dict[str, str] = {}
        self.chunks: list[dict[str, Any]] = []
        self._rows: dict[str, list[dict[str, Any]]] = {}
        only = signature["target"].partition("/")[0]  # what measured before several devices could
        # A kill in the midst of writing leaves a last line without its end; that chunk is measured again.
        text = path.read_text() if path.exists() else ""
        first, *lines = text[: text.rfind("\n") + 1].splitlines() or [json.dumps(signature)]
        try:
            begun = json.loads(first)
            for line in lines:
                chunk = json.loads(line)
                chunk.setdefault("device", only)
                self._take(chunk)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DamagedFileError(f"{path} is damaged; remove it to measure again") from error
        if begun != signature:
            differences = [f"{key} is {now!r}, was {begun.get(key)!r}" for key, now in signature.items() if begun.get(key) != now]
            raise DamagedFileError(
                f"{path} belongs to another measurement ({', '.join(differences)}); remove it, or give another folder with --tables"
            )
        write_atomic(path, "".join(f"{line}\n" for line in [first, *lines]).encode())

    def add(
        self, result: MeasureResult, failures: Mapping[str, str], *, device: str, measuring_s: float, converting_s: float
    ) -> None:
        """Keeps a chunk for good.

        Args:
            result: of measuring it.
            failures: reason by id, of what could not be converted.
            device: which of several of one kind it was.
            measuring_s: that the device was busy.
            converting_s: before that, here.

        Raises:
            DeviceError: the device is no longer the one that the table was begun on, or not like the others.
        """
        if self.chunks:
            self._compare(result.environment)
            self._agree(device, result.reference_ms)
        rows = [asdict(measurement) | {"reference_ms": result.reference_ms} for measurement in result.measurements]
        chunk = {
            "device": device,
            "reference_ms": result.reference_ms,
            "measuring_s": measuring_s,
            "converting_s": converting_s,
            "environment": result.environment,
            "failures": {**failures, **result.failures},
            "rows": rows,
        }
        with self.path.open("a") as file:
            file.write(json.dumps(chunk) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._take(json.loads(json.dumps(chunk)))

    def _compare(self, environment: Mapping[str, Any]) -> None:
        begun = self.chunks[0]["environment"]
        for name in STEADY:
            if environment.get(name) != begun.get(name):
                raise DeviceError(
                    f"the {name.replace('_', ' ')} was {begun.get(name)} when this table was begun and is {environment.get(name)} "
                    f"now; set it back, or remove {self.path} to measure anew"
                )

    def _agree(self, device: str, reference_ms: float) -> None:
        for other, found in self._references().items():
            beside = median(found)
            if other != device and abs(reference_ms / beside - 1) > AGREE:
                raise DeviceError(
                    f"the reference network takes {reference_ms:.3g} ms on {device} and {beside:.3g} ms on {other}, which should "
                    "be alike: let the slower one cool down, charge it or look at its governor, or leave one of them out"
                )

    def _references(self) -> dict[str, list[float]]:
        found: dict[str, list[float]] = {}
        for chunk in self.chunks:
            found.setdefault(chunk["device"], []).append(chunk["reference_ms"])
        return found

    def _take(self, chunk: dict[str, Any]) -> None:
        for row in chunk.pop("rows"):
            self._rows.setdefault(row["id"], []).append(row)
        self.failures |= chunk["failures"]
        self.chunks.append(chunk)

    def __contains__(self, model_id: str) -> bool:
        return model_id in self._rows or model_id in self.failures

    def measured(self, model_id: str) -> bool:
        """Whether there is a latency of it, and not only a failure."""
        return model_id in self._rows

    def noisy(self, limit: float) -> list[str]:
        """Ids of what was measured once, by processes that differ by more than a limit."""
        return [name for name, rows in self._rows.items() if len(rows) == 1 and rows[0]["spread"] > limit]

    @property
    def measuring_s(self) -> float:
        return float(sum(chunk["measuring_s"] for chunk in self.chunks))

    @property
    def converting_s(self) -> float:
        return float(sum(chunk["converting_s"] for chunk in self.chunks))

    @property
    def environment(self) -> Mapping[str, Any]:
        """Of the device when the table was begun."""
        found: Mapping[str, Any] = self.chunks[0]["environment"]
        return found

    @property
    def reference_ms(self) -> float:
        """The reference's latency over all chunks, which turns relative latencies into milliseconds."""
        return float(median(chunk["reference_ms"] for chunk in self.chunks))

    @property
    def drifts(self) -> Mapping[str, float]:
        """How much the reference's latency changed between chunks, at most, on each device: 0.1 is 10 %."""
        return {device: max(found) / min(found) - 1 for device, found in self._references().items()}

    @property
    def drift(self) -> float:
        """That of the device that drifted most."""
        return max(self.drifts.values())

    def blocks(self, wanted: Sequence[Block]) -> tuple[BlockRow, ...]:
        """Rows of those that were measured. Blocks are short: their floor is steadier than their ratio to a longer reference."""
        rows = []
        for block in wanted:
            if self.measured(block_key(block)):
                row = self._calmest(block_key(block))
                rows.append(BlockRow(block, _timing(row, row["floor_ms"] * self.reference_ms / row["reference_ms"])))
        return tuple(rows)

    def subnets(self, wanted: Sequence[tuple[Role, Arch]]) -> tuple[SubnetRow, ...]:
        """Rows of those that were measured."""
        rows = []
        for role, arch in wanted:
            if self.measured(str(arch)):
                row = self._calmest(str(arch))
                rows.append(SubnetRow(arch, role, _timing(row, row["relative"] * self.reference_ms)))
        return tuple(rows)

    def _calmest(self, model_id: str) -> Mapping[str, Any]:
        return min(self._rows[model_id], key=lambda row: row["spread"])


def _timing(row: Mapping[str, Any], latency_ms: float) -> Timing:
    return Timing(latency_ms, row["p50_ms"], row["n"], len(row["process_p50_ms"]), row["unstable"])
