"""A device that a vendor's tool times: its table and its predictor are made as any other's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from natdeploy.errors import DeviceError
from natdeploy.hardware.bench import QUICK
from natdeploy.hardware.device import Target, load_device
from natdeploy.latency import profile
from natdeploy.latency.blocks import block_key, input_shape
from natdeploy.latency.compare import mixture
from natdeploy.latency.journal import Journal
from natdeploy.latency.plan import make_plan
from natdeploy.latency.predictor import LatencyPredictor
from natdeploy.latency.profile import profile_table
from natdeploy.latency.table import Table, read_table, write_table
from natdeploy.progress import Silent
from natdeploy.runtimes import tflite
from natdeploy.space import Arch, Block, get_space
from natdeploy.supernet.subnet import Subnet, build_block

DEMO = get_space("demo")
BRIEF = replace(QUICK, processes=1)


def convert(what: Block | Arch, path: Path) -> None:
    if isinstance(what, Block):
        tflite.convert(build_block(what), torch.zeros(input_shape(what)), path, dynamic_size=True)
    else:
        tflite.convert(Subnet(DEMO, what, 4), torch.zeros(1, 3, what.resolution, what.resolution), path, dynamic_size=False)


def test_from_a_device_with_a_tool_to_a_table_and_a_predictor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stand_in: Callable[[str, str], str]
) -> None:
    pytest.importorskip("ai_edge_litert", reason="tflite files are run by ai-edge-litert: pip install 'natdeploy[tflite]'")
    monkeypatch.setattr(profile, "NOISY", float("inf"))
    plan = make_plan(DEMO, 4, blocks=5, least=5, fit=5, test=2, seed=0)
    journal = tmp_path / "journal.jsonl"

    def measure(tool: str) -> tuple[Table, Journal]:
        device = load_device("host").model_copy(update={"harness": "tool", "tools": {"benchmark_model": tool}})
        return profile_table(
            plan,
            convert,
            [Target(device, "tflite", "xnnpack", "fp32", threads=1)],
            journal,
            budget_s=1e6,
            good_enough=lambda _: False,
            progress=Silent(),
            block_settings=BRIEF,
            subnet_settings=BRIEF,
        )

    old = stand_in("benchmark_model", "plain")
    table, _ = measure(old)
    write_table(tmp_path, "table", table)
    table = read_table(tmp_path, "table")
    assert table.failures == {}
    assert {block_key(row.block) for row in table.blocks} == {block_key(block) for block in plan.blocks}
    assert len(table.subnets) == 7
    timings = [row.timing for row in (*table.blocks, *table.subnets)]
    assert all(timing.p50_ms is None and (timing.n or 0) >= 8 and timing.processes == 1 for timing in timings)
    found = table.provenance
    assert (found.harness, found.waiting_counted) == ("TFLite benchmark_model", False)
    assert (found.runtime_version or "").startswith("benchmark_model ")
    assert "harness" in str(mixture(found.model_dump(), found.model_copy(update={"harness": "natdeploy runner 1"}).model_dump()))

    predictor = LatencyPredictor.fit(table, DEMO)
    prediction = predictor.predict(DEMO, list(plan.test), 4)
    assert (prediction.latency_ms > 0).all()

    first, *lines = journal.read_text().splitlines()
    journal.write_text("\n".join([first, *lines[:-1]]) + "\n")
    with pytest.raises(DeviceError, match=r"the runtime version was benchmark_model .* when this table was begun"):
        measure(stand_in("benchmark_model", "percentiles"))
