"""`natdeploy search`: what is typed, what is in a file, and what reaches the pipeline."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from natdeploy import pipeline
from natdeploy.cli.main import app
from natdeploy.cli.search import search
from natdeploy.errors import InfeasibleError
from natdeploy.pipeline import SearchConfig
from natdeploy.pipeline.finished import Adaptation

REPORT = SimpleNamespace(
    nets=(),
    picks=(),
    page=Path("report.html"),
    standing="",
    seconds={"training": 3.0, "images": 1.0},
    adaptation=Adaptation(architecture_s=2.4, parameters_s=1.2),
    summary={"nets": []},
)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[SearchConfig]:
    """What the pipeline was asked for, instead of hours of work."""
    configs: list[SearchConfig] = []

    def search(config: SearchConfig, *, progress: Any, engine: pipeline.Engine) -> None:
        assert engine.workers == 1
        progress.note("planned")
        configs.append(config)

    monkeypatch.setattr(pipeline, "search", search)
    monkeypatch.setattr(pipeline, "report", lambda _: REPORT)
    return configs


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["search", *map(str, arguments)], catch_exceptions=False)


def test_what_is_not_said_is_the_pipelines_default(asked: list[SearchConfig]) -> None:
    result = run("--data", "photos/flowers")
    assert result.exit_code == 0, result.output
    assert asked == [SearchConfig(data=Path("photos/flowers"), out=Path("runs/flowers"))]
    assert "report.html" in result.stdout
    assert "adaptation: architecture 2 s, parameters 1 s" in result.stdout
    assert "time: 4 s; training 75.0 %, images 25.0 %" in result.stdout
    assert result.stderr == "planned\n"


def test_defaults_in_the_help_are_the_pipelines() -> None:
    parameters = inspect.signature(search).parameters
    shared = parameters.keys() & SearchConfig.model_fields.keys() - {
        "data",
        "out",
        "constraints",
        "precisions",
        "warm_start",
        "finetune_minutes",
    }
    for name in shared:
        default = SearchConfig.model_fields[name].default
        assert parameters[name].default == (list(default) if isinstance(default, tuple) else default), name
    assert len(shared) > 10


def test_every_option_reaches_the_pipeline(asked: list[SearchConfig]) -> None:
    result = run(
        *("--data", "photos", "--out", "runs/x", "--target", "host/onnxruntime", "--seed-weights", "seed.safetensors"),
        *("--constraint", "latency<=1.5ms", "--constraint", "params<=3M", "--objective", "error", "--objective", "macs"),
        *("--space", "demo", "--rounds", "3", "--minutes", "7.5", "--accelerator", "cpu", "--threads", "2", "--seed", "9"),
        *("--strict", "--no-flip", "--tables", "tables", "--preset", "thorough", "--strategy", "random"),
        *("--prefer", "error=5%,latency=1ms"),
        *("--finetune", "90s", "--warm-start", "runs/a", "--warm-start", "runs/b", "--data-root", "sets", "--download"),
    )
    assert result.exit_code == 0, result.output
    assert asked == [
        SearchConfig(
            data=Path("photos"),
            out=Path("runs/x"),
            target="host/onnxruntime",
            seed_weights=Path("seed.safetensors"),
            constraints=("latency<=1.5ms", "params<=3M"),
            objectives=("error", "macs"),
            space="demo",
            rounds=3,
            minutes=7.5,
            accelerator="cpu",
            threads=2,
            seed=9,
            strict=True,
            flip=False,
            tables=Path("tables"),
            preset="thorough",
            strategy="random",
            prefer="error=5%,latency=1ms",
            finetune_minutes=1.5,
            warm_start=(Path("runs/a"), Path("runs/b")),
            data_root=Path("sets"),
            download=True,
        )
    ]


def test_options_win_over_the_file_and_the_file_over_defaults(asked: list[SearchConfig], tmp_path: Path) -> None:
    file = tmp_path / "search.toml"
    file.write_text('data = "photos"\nthreads = 4\nflip = false\nseed = 5\nconstraints = ["macs<=100M"]\n')
    result = run("--config", file, "--threads", "1", "--seed", "0")
    assert result.exit_code == 0, result.output
    wanted = SearchConfig(data=Path("photos"), out=Path("runs/photos"), flip=False, constraints=("macs<=100M",))
    assert asked == [wanted], "an option that is typed wins even where it equals the default"


def test_a_file_sets_rules_of_remapping_and_of_training(asked: list[SearchConfig], tmp_path: Path) -> None:
    file = tmp_path / "search.toml"
    file.write_text('data = "photos"\n[remap]\nwidth = "first"\ndepth = "copy"\n[adapt.train]\nautocast = true\n')
    assert run("--config", file).exit_code == 0
    [config] = asked
    assert (config.remap.width, config.remap.kernel, config.remap.depth) == ("first", "centre", "copy")
    assert config.adapt.train.autocast and not SearchConfig(data=Path(), out=Path()).adapt.train.autocast


def test_a_file_lies_over_the_preset(asked: list[SearchConfig], tmp_path: Path) -> None:
    file = tmp_path / "search.toml"
    file.write_text('data = "photos"\npreset = "paper"\n[nat]\nrounds = 4\n')
    assert run("--config", file).exit_code == 0
    [config] = asked
    assert (config.nat.rounds, config.nat.initial, config.adapt.students) == (4, 100, 3)


def test_a_cluster_that_is_not_there_is_said(asked: list[SearchConfig]) -> None:
    pytest.importorskip("ray", reason="Ray is not installed; pip install 'natdeploy[ray]'")
    result = run("--data", "photos", "--ray", "nowhere")
    assert result.exit_code != 0
    assert len(result.stderr.splitlines()) == 1
    assert "no Ray cluster can be used at nowhere" in result.stderr
    assert asked == []


@pytest.mark.parametrize(
    ("file", "options", "said"),
    [
        ('data = "photos"\nepochs = 3\n', [], "unknown setting 'epochs'; known are data, out,"),
        ('data = "photos"\nthreads = "many"\n', [], "threads = 'many' is not possible"),
        ("data = photos\n", [], "is not valid TOML"),
        ("threads = 2\n", [], "no images are given; name their folder with --data"),
        ('data = "photos"\n', ["--minutes", "-1"], "minutes = -1.0 is not possible"),
        ('data = "photos"\n[nat]\ntemperature = 3\n', [], "unknown setting 'nat.temperature'; known are initial, rounds,"),
        ('data = "photos"\n[remap]\nwidht = "first"\n', [], "unknown setting 'remap.widht'; known are width, kernel, depth"),
        (
            'data = "photos"\n[remap]\nkernel = "edges"\n',
            [],
            "remap.kernel = 'edges' is not possible: input should be 'centre' or 'd",
        ),
        (
            'data = "photos"\nstrategy = "gradient"\n',
            ["--precision", "fp32,int8"],
            "error: strategy gradient chooses among architectures alone; leave out --precision, or take another strategy",
        ),
        ('data = "photos"\n[gradient]\nbase = 0.5\n', [], "gradient.base = 0.5 is not possible: input should be greater than 1"),
        ('data = "photos"\n[adapt.train]\nbf16 = true\n', [], "unknown setting 'adapt.train.bf16'; known are learning_rate,"),
    ],
)
def test_impossible_settings_end_with_2(
    asked: list[SearchConfig], tmp_path: Path, file: str, options: list[str], said: str
) -> None:
    path = tmp_path / "search.toml"
    path.write_text(file)
    result = run("--config", path, *options)
    assert result.exit_code == 2
    assert said in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert asked == []


def test_a_file_that_is_not_there_ends_with_2(tmp_path: Path) -> None:
    file = tmp_path / "none.toml"
    result = run("--config", file, "--data", "photos", "--json")
    assert result.exit_code == 2
    assert json.loads(result.stderr) == {"error": f"{file} cannot be read: No such file or directory", "exit_code": 2}


def test_dry_run_shows_the_plan_and_stops(asked: list[SearchConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    class Plan:
        def text(self) -> list[str]:
            return ["12 classes", "0.4 to 3.1 ms"]

        def to_json(self) -> dict[str, Any]:
            return {"classes": 12}

    monkeypatch.setattr(pipeline, "plan", lambda _config, _progress: Plan())
    assert run("--data", "photos", "--dry-run").stdout == "12 classes\n0.4 to 3.1 ms\n"
    assert json.loads(run("--data", "photos", "--dry-run", "--json").stdout) == {"classes": 12}
    assert asked == []


def test_json_is_all_there_is_on_standard_output(asked: list[SearchConfig]) -> None:
    result = run("--data", "photos", "--json", "--quiet")
    assert json.loads(result.stdout) == REPORT.summary
    assert result.stderr == ""
    assert len(asked) == 1


def test_an_unreachable_constraint_ends_with_3(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise InfeasibleError("latency<=0.01ms cannot be met; this space reaches 0.4 to 3.1 ms")

    monkeypatch.setattr(pipeline, "search", refuse)
    result = run("--data", "photos")
    assert result.exit_code == 3
    assert result.stderr == "error: latency<=0.01ms cannot be met; this space reaches 0.4 to 3.1 ms\n"
