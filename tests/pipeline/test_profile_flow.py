"""Profiling for real, as briefly as it goes: its numbers mean nothing here, what is done with them does."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from natdeploy import pipeline
from natdeploy.errors import UsageError
from natdeploy.hardware.bench import QUICK
from natdeploy.hardware.device import parse_target
from natdeploy.latency.predictor import LatencyPredictor
from natdeploy.latency.table import read_table
from natdeploy.pipeline.config import HeadSettings
from natdeploy.pipeline.profile import find_table, table_folder
from natdeploy.progress import Silent
from natdeploy.space import cost, get_space

profile_module = sys.modules["natdeploy.pipeline.profile"]
"""The package exports the function of that name."""


@pytest.fixture(scope="module", autouse=True)
def brief() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        quick = partial(profile_module.profile_table, block_settings=QUICK, subnet_settings=QUICK)
        patch.setattr(profile_module, "profile_table", quick)
        patch.setattr(profile_module, "FIT_SUBNETS", 6)
        patch.setattr(profile_module, "TEST_SUBNETS", 8)
        yield


@pytest.fixture(scope="module")
def result(brief: None, tmp_path_factory: pytest.TempPathFactory) -> pipeline.ProfileResult:
    return pipeline.profile("host", "onnxruntime", space="demo", tables=tmp_path_factory.mktemp("tables"), budget_minutes=0.1)


def test_table_holds_what_was_measured_and_its_quality_is_of_unseen_nets(result: pipeline.ProfileResult) -> None:
    table = read_table(result.folder, result.slug)
    assert (len(table.blocks), len(table.subnets)) == (result.rows, result.subnets)
    assert result.subnets == 14
    assert result.quality.n == 8
    assert {row.block.out_channels for row in table.blocks if row.block.kind == "classifier"} == {10, 100, 1000}
    assert all(row.timing.latency_ms > 0 for row in table.blocks)
    assert table.provenance.runtime_version
    assert not list(result.folder.glob(".*")), "the measurement's work folder is gone once the table is written"


def test_table_is_found_again_but_not_for_another_machine(result: pipeline.ProfileResult, notes: Any) -> None:
    target, space, tables = parse_target("host"), get_space("demo"), result.folder.parents[1]
    assert result.folder == table_folder(tables, target, space)
    assert find_table(tables, target, space, Silent()) == read_table(result.folder, result.slug)
    provenance = result.folder / f"{result.slug}.toml"
    text = provenance.read_text()
    try:
        provenance.write_text(text.replace("cpu = ", 'cpu = "another" # ', 1))
        assert find_table(tables, target, space, notes) is None
        assert "processor was another" in notes.lines[0]
    finally:
        provenance.write_text(text)


def test_every_width_and_every_form_of_an_own_space_has_a_table_of_its_own(tmp_path: Path) -> None:
    target, space = parse_target("host"), get_space("ofa_mbv3")
    assert table_folder(tmp_path, target, space.restrict(widths=[1.2])).name == "ofa_mbv3-w1.2"
    assert table_folder(tmp_path, target, replace(space, head_channels=640)).name != "ofa_mbv3-w1"
    own = replace(space, name="own")
    folder = table_folder(tmp_path, target, own)
    assert folder.name.startswith("own-")
    assert table_folder(tmp_path, target, own.restrict(resolutions=[96])) == folder
    assert table_folder(tmp_path, target, replace(own, head_channels=640)) != folder


def test_two_threads_are_another_target(result: pipeline.ProfileResult) -> None:
    tables = result.folder.parents[1]
    assert find_table(tables, parse_target("host", threads=2), get_space("demo"), Silent()) is None


def test_a_target_starts_from_another_ones_table(result: pipeline.ProfileResult) -> None:
    pytest.importorskip("ai_edge_litert", reason="LiteRT is not installed; pip install ai-edge-litert", exc_type=ImportError)
    tables = result.folder.parents[1]
    arguments = {"space": "demo", "tables": tables, "budget_minutes": 1e-6}
    with pytest.raises(UsageError, match="no table of host/openvino-fp32-1t and demo"):
        pipeline.profile("host", "tflite", source="host/openvino", **arguments)
    started = pipeline.profile("host", "tflite", source="host/onnxruntime", **arguments)
    assert (started.rows, started.subnets) == (0, 14), "networks alone"
    table = read_table(started.folder, started.slug)
    source = read_table(result.folder, result.slug)
    assert table.prior == source.blocks
    assert (table.provenance.prior or "").startswith("host/onnxruntime-fp32-1t")
    assert LatencyPredictor.fit(table, get_space("demo")).quality == started.quality


def test_predictions_come_with_an_interval_and_say_when_they_are_guesses(result: pipeline.ProfileResult) -> None:
    tables, space = result.folder.parents[1], get_space("demo")
    archs = space.decode_all(space.sample(3, np.random.default_rng(0)))
    found, quality = pipeline.predict([str(arch) for arch in archs], "host", space="demo", classes=10, tables=tables)
    assert [each.arch for each in found] == [str(arch) for arch in archs]
    assert all(0 < each.low_ms < each.latency_ms < each.high_ms for each in found)
    assert [each.macs for each in found] == cost(space, archs, 10).macs.tolist()
    assert quality == result.quality
    many, _ = pipeline.predict([str(archs[0])], "host", space="demo", classes=5000, tables=tables)
    assert not many[0].known, "so large a classifier was never measured"
    for arguments, says in (
        (
            ([str(archs[0])], "host/openvino"),
            "no latency table of host/openvino-fp32-1t for demo at width 1; measure it: nat",
        ),
        (
            ([str(replace(archs[0], width=0.5))], "host"),
            "no latency table of host/onnxruntime-fp32-1t for demo at width 0.5; measure it: .* --width 0.5",
        ),
        ((["r128-nonsense"], "host"), "is no architecture"),
    ):
        with pytest.raises(UsageError, match=says):
            pipeline.predict(*arguments, space="demo", tables=tables)


def test_unknown_device_runtime_and_space_are_refused(tmp_path: Path) -> None:
    for arguments, sentence in (
        (("toaster", "onnxruntime"), "no device 'toaster'"),
        (("host", "tensorrt"), "no runtime 'tensorrt'"),
    ):
        with pytest.raises(UsageError, match=sentence):
            pipeline.profile(*arguments, tables=tmp_path)
    with pytest.raises(UsageError, match="no space 'mars'"):
        pipeline.profile(space="mars", tables=tmp_path)


def test_a_dense_head_is_measured_at_every_resolution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile_module, "LEAST_BLOCKS", 8)
    head = HeadSettings(channels=8, output_stride=4)
    result = pipeline.profile("host", space="demo", classes=2, head=head, aspect=2.0, tables=tmp_path, budget_minutes=0.001)
    table, space = read_table(result.folder, result.slug), head.on(get_space("demo"), 2.0)
    assert {row.block.size for row in table.blocks if row.block.kind == "lraspp"} == {16, 24, 32} and not result.failures
    assert {(row.block.size, row.block.wide) for row in table.blocks if row.block.kind == "lraspp"} >= {(24, 56), (32, 64)}
    assert find_table(tmp_path, parse_target("host"), space, Silent(), 2) == table
    assert find_table(tmp_path, parse_target("host"), space, Silent(), 3) is None
