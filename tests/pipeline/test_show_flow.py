"""What is shown of a run at any time: its page and its rows, also while another process searches."""

from __future__ import annotations

import csv
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from written_run import ESTIMATE, write_run

from natdeploy import pipeline
from natdeploy.errors import UsageError
from natdeploy.pipeline.predictor import save_predictor
from natdeploy.pipeline.report import column
from natdeploy.search.archive import non_dominated
from natdeploy.store import RunStore


@pytest.fixture
def half(tmp_path: Path) -> Path:
    return write_run(tmp_path / "half", rounds=1, finished=False, objectives=("error", "latency", "size"))


def test_an_unfinished_run_is_shown_as_far_as_it_is(half: Path) -> None:
    result = pipeline.report(half)
    assert result.standing.startswith("The search is not finished, and nothing works on it: 1 of 2 rounds and ")
    assert f"natdeploy resume {half}" in result.standing
    assert (result.summary["state"], result.summary["progress"]["rounds_done"]) == ("stopped", 1)
    page = result.page.read_text()
    assert "on the front so far" in page
    assert "test accuracy" not in page.split("<h2>Nets</h2>")[0], "nothing was tested yet"
    with RunStore.snapshot(half) as store:
        archs = {each.arch for each in store.evaluations()}
        latest = {net.arch: store.latest_evaluation(net.arch) for net in result.nets}
    assert result.nets
    assert {net.arch for net in result.nets} <= archs
    assert all(net.validation_accuracy == each.accuracy for net in result.nets if (each := latest[net.arch]))
    assert all(net.test_accuracy is None and (net.predicted_ms or 9.0) <= 5.0 for net in result.nets)
    rows = [(1 - net.validation_accuracy, net.objectives["latency"], net.objectives["size"]) for net in result.nets]
    assert non_dominated(np.array(rows)).all()
    assert [pick.rule for pick in result.picks] == ["knee", "best", "fastest"]


def test_a_run_that_a_process_works_on_is_shown_and_not_touched(half: Path) -> None:
    with RunStore.open(half) as searching:
        result = pipeline.report(half)
        assert result.standing.startswith("The search goes on: 1 of 2 rounds and ")
        searching.set("finished", True)  # the lock and the database are as they were
        assert pipeline.report(half).standing == ""


def test_a_run_that_has_judged_nothing_yet_says_so_and_draws_nothing(half: Path) -> None:
    with closing(sqlite3.connect(half / "run.sqlite")) as database:
        database.execute("DELETE FROM evaluations")
        database.execute("DELETE FROM rounds")
        database.commit()
    result = pipeline.report(half)
    assert result.nets == () == result.picks
    assert "0 nets on the front so far" in result.page.read_text()


def test_a_run_without_its_predictor_says_why_there_is_no_front(half: Path) -> None:
    (half / "estimate.json").unlink()
    result = pipeline.report(half)
    assert result.nets == ()
    assert "The front so far cannot be shown: " in result.page.read_text()


def test_report_of_no_run(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no run in"):
        pipeline.report(tmp_path)


def test_where_precisions_are_searched_nets_count_in_the_first_of_them(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", rounds=0, finished=False, precisions=("fp32", "int8"))
    save_predictor(ESTIMATE, run, "-int8")
    nets = pipeline.report(run).nets
    assert nets
    assert {net.precision for net in nets} == {None}
    alone = pipeline.report(write_run(tmp_path / "alone", rounds=0, finished=False)).nets
    assert [(net.id, net.predicted_ms) for net in nets] == [(net.id, net.predicted_ms) for net in alone]


# ---- the archive as CSV


def test_the_archive_has_a_row_for_every_net_and_a_column_for_every_objective(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", objectives=("error", "latency", "size", "macs"))
    measured = pipeline.nets(run)[0]
    with RunStore.open(run) as store:
        store.put_net(replace(measured, measured_p50_ms=0.5))
        evaluated = [each.arch for each in store.evaluations(2)]
        nets = {net.arch: net for net in store.nets() if net.role == "front"}
    assert pipeline.write_archive(run, tmp_path / "archive.csv") == len(evaluated)
    with (tmp_path / "archive.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[6:] == ["macs", "params", "predicted_latency_ms", "size_mb", "measured_p50_ms", "on_front"]
    assert {row["arch"] for row in rows} == set(evaluated)
    assert {row["arch"] for row in rows if row["on_front"] == "1"} == set(nets)
    assert 0 < len(nets) < len(rows)
    for row in rows:
        assert float(row["size_mb"]) == pytest.approx(4 * int(row["params"]) / 1e6)
        assert float(row["predicted_latency_ms"]) > 0, "also of nets off the front"
        assert (row["step"], row["validation_images"]) == ("2", "200")
        if (net := nets.get(row["arch"])) is not None:
            assert float(row["predicted_latency_ms"]) == pytest.approx(net.predicted_ms)
            assert (int(row["macs"]), int(row["params"])) == (net.macs, net.params)
    assert [row["arch"] for row in rows if row["measured_p50_ms"] == "0.5"] == [measured.arch]
    assert {row["measured_p50_ms"] for row in rows} == {"", "0.5"}
    assert {row["round"] for row in rows} == {"0", "1", "2"}


def test_the_archive_of_an_unfinished_run_is_what_it_is_so_far(half: Path, tmp_path: Path) -> None:
    with RunStore.open(half):
        assert pipeline.write_archive(half, tmp_path / "archive.csv") == 13
    with (tmp_path / "archive.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["id"] for row in rows if row["on_front"] == "1"} == {net.id for net in pipeline.report(half).nets}


def test_an_archive_that_is_empty_or_has_no_place_is_said(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", rounds=-1, finished=False)
    with pytest.raises(UsageError, match="has not evaluated any architecture yet"):
        pipeline.write_archive(run, tmp_path / "archive.csv")
    assert not (tmp_path / "archive.csv").exists()


def test_further_objectives_are_columns_with_their_unit() -> None:
    assert [column(name) for name in ("size", "latency@pixel4/tflite")] == ["size_mb", "predicted_latency_ms@pixel4/tflite"]
