"""A search for a device that is not at hand: refused with what to do, with a colleague's table, or with marked estimates."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from natdeploy import pipeline
from natdeploy.cli.main import app
from natdeploy.errors import DeviceError, InfeasibleError, UsageError
from natdeploy.export.bundle import read_bundle
from natdeploy.hardware.device import load_device, parse_target
from natdeploy.latency.estimate import Estimate
from natdeploy.latency.predictor import LatencyPredictor
from natdeploy.latency.table import Table, read_table, write_table
from natdeploy.pipeline import SearchConfig
from natdeploy.pipeline.config import target_of
from natdeploy.pipeline.predictor import ESTIMATE, PREDICTOR, no_table
from natdeploy.pipeline.profile import table_folder
from natdeploy.pipeline.setting import read_for
from natdeploy.progress import Silent
from natdeploy.space import Arch, get_space
from natdeploy.space.catalog import plain_arch
from natdeploy.store import RunStore
from natdeploy.supernet import Subnet, write_seed

SLOW = """name = "board"
description = "a board that is elsewhere"
sources = ["https://example.org/board"]
transport = "ssh"
runtimes = ["onnxruntime"]
threads = 1
bandwidth_gbs = 0.4

[[peak_gflops]]
runtimes = ["onnxruntime"]
cores = 2
gflops = { fp32 = 8.0 }
"""


def write_board(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "board.toml").write_text(SLOW)
    return folder / "board.toml"


@pytest.fixture
def board(devices: Path, config: SearchConfig) -> SearchConfig:
    """A search for a board that nobody has measured; the tables there are know this machine alone."""
    write_board(devices)
    return config.model_copy(update={"target": "board"})


@pytest.fixture
def board_table(tables: Path, tmp_path: Path) -> Path:
    """This machine's table, as if a colleague had measured the board."""
    target, space = parse_target("host"), get_space("demo")
    table = read_table(table_folder(tables, target, space), target.slug)
    return write(tmp_path / "colleague", table, device="board", cpu="another processor", cores=17)


def write(folder: Path, table: Table, **changes: Any) -> Path:
    write_table(folder, "received", replace(table, provenance=table.provenance.model_copy(update=changes)))
    return folder / "received.csv"


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments, catch_exceptions=False)


# ---- without anything


def test_a_device_without_a_table_ends_with_the_command_that_measures_it(board: SearchConfig) -> None:
    for act in (pipeline.search, pipeline.plan):
        with pytest.raises(DeviceError) as caught:
            act(board)
        assert caught.value.exit_code == 5
    message = str(caught.value)
    assert "no latency table of board/onnxruntime-fp32-1t for demo at width 1; attach the device" in message
    assert "--table FILE" in message and "--allow-estimate" in message
    command = message.split("measure it: ")[1].split(" (or ", maxsplit=1)[0]
    what = "--device board --runtime onnxruntime --precision fp32 --threads 1 --space demo --width 1 --classes 3"
    assert command == f"natdeploy profile {what} --tables {shlex.quote(str(board.tables))}"
    assert not board.out.exists()
    result = run(*shlex.split(command)[1:])
    assert (result.exit_code, result.stderr.count("\n")) == (5, 1)
    assert "natdeploy devices add board --ssh USER@HOST" in result.stderr


def test_the_command_line_ends_with_five_and_one_sentence(board: SearchConfig) -> None:
    arguments = ["search", "--data", str(board.data), "--seed-weights", str(board.seed_weights), "--space", "demo"]
    result = run(*arguments, "--target", "board", "--out", str(board.out), "--tables", str(board.tables), "--no-progress", "--json")
    assert result.exit_code == 5
    error = json.loads(result.stderr.splitlines()[-1])
    assert error["exit_code"] == 5
    assert "natdeploy profile --device board" in error["error"]


def test_threads_of_the_search_are_not_those_of_another_device(board: SearchConfig) -> None:
    many = board.model_copy(update={"threads": 4})
    assert target_of(many).threads == 1
    assert target_of(many, "host").threads == 4
    assert str(target_of(many, "board/onnxruntime-fp32-2t")) == "board/onnxruntime-fp32-2t"


# ---- with a colleague's table


def test_a_colleagues_table_is_searched_with(board: SearchConfig, board_table: Path) -> None:
    plan = pipeline.plan(board.model_copy(update={"table": board_table}))
    assert plan.estimate is None
    assert plan.reachable["latency"][1] > plan.reachable["latency"][0] > 0
    assert plan.to_json()["estimate"] is None
    (found,), quality = pipeline.predict([str(ARCH)], "board", space="demo", classes=3, table=board_table)
    assert quality is not None and not found.estimated
    table = read_table(board_table.parent, "received")
    predictor = LatencyPredictor.fit(table, get_space("demo"))
    assert found.latency_ms == predictor.predict(get_space("demo"), [ARCH], 3).latency_ms[0]


ARCH = get_space("demo").decode(get_space("demo").lower)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"device": "note10"}, "its device is note10, not board"),
        ({"space": "mbv2"}, "its space is mbv2, not demo"),
        ({"runtime": "openvino"}, "its runtime is openvino, not onnxruntime"),
        ({"precision": "int8"}, "its precision is int8, not fp32"),
        ({"threads": 4}, "its number of threads is 4, not 1"),
        ({"delegate": "cuda"}, "its delegate is cuda, not cpu"),
    ],
)
def test_a_table_of_something_else_is_refused_with_the_reason(
    board: SearchConfig, board_table: Path, tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    other = write(tmp_path / "other", read_table(board_table.parent, "received"), **changes)
    with pytest.raises(UsageError, match=f"does not tell latencies of demo on board/onnxruntime-fp32-1t: {says}"):
        pipeline.plan(board.model_copy(update={"table": other}))


def test_a_table_of_another_machine_is_refused_for_this_one(config: SearchConfig, board_table: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "other", read_table(board_table.parent, "received"), device="host")
    with pytest.raises(UsageError, match="processor was another processor, is"):
        pipeline.plan(config.model_copy(update={"table": other}))


def test_a_table_that_is_not_there(board: SearchConfig, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no table"):
        pipeline.plan(board.model_copy(update={"table": tmp_path / "none.csv"}))


# ---- with an estimate


@pytest.fixture(scope="module")
def estimated(
    tmp_path_factory: pytest.TempPathFactory, digits: Path, seed_file: Path, tables: Path
) -> tuple[SearchConfig, list[str]]:
    """A search with estimates, to its end, and what it said."""
    folder = tmp_path_factory.mktemp("estimated")
    config = SearchConfig(
        data=digits,
        out=folder / "run",
        target=str(write_board(folder)),
        space="demo",
        seed_weights=seed_file,
        constraints=("latency<=4ms",),
        flip=False,
        tables=tables,
        allow_estimate=True,
        nat={"initial": 10, "rounds": 2, "infill": 3, "parents": 5, "population": 12, "generations": 4},
        adapt={"train": {"batch_size": 16}},
    )
    notes = Notes()
    pipeline.search(config, notes)
    return config, notes.lines


class Notes(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, message: str) -> None:
        self.lines.append(message)


def test_every_number_of_the_run_is_the_estimate_and_says_so(estimated: tuple[SearchConfig, list[str]]) -> None:
    config, notes = estimated
    estimate = Estimate.of(target_of(config))
    nets = pipeline.nets(config.out)
    assert nets and all(net.estimated for net in nets)
    archs = [Arch.parse(net.arch) for net in nets]
    assert [net.predicted_ms for net in nets] == pytest.approx(list(estimate.predict(get_space("demo"), archs, 3).latency_ms))
    with RunStore.open(config.out) as store:
        assert store.get("estimate") == estimate.text
        assert store.get("quality") is None
        assert "estimated latency" in store.get("plan")["reachable"]
        assert store.get("plan")["predictor"] == estimate.text
    assert (config.out / f"{ESTIMATE}.json").exists() and not (config.out / f"{PREDICTOR}.json").exists()
    assert any("all latencies are estimated from the specification sheet" in line for line in notes)
    assert all("estimated" in line for line in notes if " ms" in line)


def test_report_marks_every_latency(estimated: tuple[SearchConfig, list[str]]) -> None:
    config, _ = estimated
    result = run("report", str(config.out))
    assert result.exit_code == 0, result.output
    assert "estimated from the device's specification sheet, not measured" in result.stdout
    for net in pipeline.nets(config.out):
        row = next(line for line in result.stdout.splitlines() if net.id in line)
        assert f"~{net.predicted_ms:.3f}" in row
    for line in result.stdout.splitlines():
        assert "estimated latency" in line or not re.search(r"\d ms", line)
    summary = json.loads(run("report", str(config.out), "--json").stdout)
    assert summary["estimate"].startswith("estimated from the specification sheet")
    assert summary["predictor_quality"] is None
    assert all(net["estimated"] is True for net in summary["nets"])
    page = (config.out / "report.html").read_text().split('<script type="application/json"')
    assert "Predicted latency is estimated from the specification sheet" in page[0]
    assert "estimated, not measured" in page[0]
    for net in pipeline.nets(config.out):
        assert f">~{net.predicted_ms:.3f}<" in page[0]
    assert "latency estimated, not measured" in page[1]
    assert "latency predicted" not in page[1]


def test_export_needs_no_device_and_its_files_say_what_the_latency_is(estimated: tuple[SearchConfig, list[str]]) -> None:
    config, _ = estimated
    (knee,) = pipeline.export(config.out)
    (latency,) = read_bundle(config.out / f"models/{knee.id}").latencies
    (net,) = [net for net in pipeline.nets(config.out) if (net.role, net.id) == ("front", knee.id)]
    assert net.estimated and latency.estimated and latency.predicted_ms == net.predicted_ms
    card = (config.out / f"models/{knee.id}/README.md").read_text()
    assert "ms estimated from the device's specification sheet" in card
    assert " ms predicted" not in card
    shown = run("export", str(config.out), "--json")
    assert [file["path"] for file in json.loads(shown.stdout)] == [f"models/{knee.id}/model.onnx"]


def test_benchmark_says_what_is_missing(estimated: tuple[SearchConfig, list[str]]) -> None:
    config, _ = estimated
    pipeline.export(config.out, "front")
    result = run("benchmark", str(config.out))
    assert result.exit_code == 5
    assert "device board has no address yet; say where it is: natdeploy devices add board --ssh USER@HOST" in result.stderr


def test_resume_of_an_estimated_search_changes_nothing(estimated: tuple[SearchConfig, list[str]]) -> None:
    config, _ = estimated
    before = pipeline.nets(config.out)
    with RunStore.open(config.out) as store:
        store.set("finished", False)
    pipeline.resume(config.out)
    assert before == pipeline.nets(config.out)


def test_the_plan_is_marked_before_anything_is_spent(board: SearchConfig) -> None:
    arguments = ["search", "--data", str(board.data), "--seed-weights", str(board.seed_weights), "--space", "demo", "--dry-run"]
    arguments += ["--target", "board", "--out", str(board.out), "--tables", str(board.tables), "--no-progress", "--allow-estimate"]
    shown = run(*arguments)
    assert shown.exit_code == 0, shown.output
    assert "estimated latency" in shown.stdout
    assert "estimated from the specification sheet of board/onnxruntime-fp32-1t, not measured: 4 GFLOPS" in shown.stdout
    assert json.loads(run(*arguments, "--json").stdout)["estimate"].startswith("estimated from")


def test_an_estimate_that_cannot_keep_the_constraint_says_what_it_is(board: SearchConfig) -> None:
    with pytest.raises(InfeasibleError, match="latency is estimated from the specification sheet of board"):
        pipeline.plan(board.model_copy(update={"allow_estimate": True, "constraints": ("latency<=0.0001ms",)}))


def test_predict_marks_estimates(board: SearchConfig) -> None:
    arguments = ["predict", str(ARCH), "--target", "board", "--space", "demo", "--classes", "3", "--tables", str(board.tables)]
    refused = run(*arguments)
    assert refused.exit_code == 5
    shown = run(*arguments, "--allow-estimate", "--quiet")
    expected = Estimate.of(parse_target("board")).predict(get_space("demo"), [ARCH], 3).latency_ms[0]
    assert shown.stdout.startswith(f"~{expected:.3f} ms  ")
    assert "estimated from the device's specification sheet, not measured" in shown.stdout
    (found,) = json.loads(run(*arguments, "--allow-estimate", "--json").stdout)["predictions"]
    assert (found["estimated"], found["low_ms"], found["high_ms"]) == (True, pytest.approx(expected), None)


def test_this_machine_is_profiled_and_not_estimated(config: SearchConfig, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the file of host has no peak_gflops"):
        pipeline.plan(config.model_copy(update={"allow_estimate": True, "tables": tmp_path / "none"}))
    assert load_device("host").transport == "local"


def test_the_command_for_a_seed_with_channels_of_its_own_measures_the_space_of_its_search(tmp_path: Path, devices: Path) -> None:
    write_board(devices)
    space = get_space("demo").with_channels(16, (8, 16, 24, 40), 64)
    path = tmp_path / "own channels.safetensors"
    write_seed(Subnet(space, plain_arch(32, 1.0, (1, 2, 3, 2)), 3), path, {"input": "RGB, scaled to [-1,1]"})
    _, chosen = read_for(path, get_space("demo"))
    error = no_table("board", parse_target("board"), "demo", chosen, 3, tables=None, seed_weights=path)
    command = shlex.split(str(error).split("measure it: ")[1].split(" (or ", maxsplit=1)[0])
    assert command[command.index("--seed-weights") + 1] == str(path)
    assert "--width" not in command
    result = run(*command[1:])
    assert (result.exit_code, "has no address yet" in result.stderr) == (5, True), result.output
    with pytest.raises(UsageError, match="the width is that of the seed weights"):
        pipeline.profile("host", space="demo", seed_weights=path, width=1.0)
