"""The other verbs: arguments in, results out."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from natdeploy import pipeline
from natdeploy.cli.main import app
from natdeploy.errors import DamagedFileError
from natdeploy.latency.predictor import Quality
from natdeploy.search.decide import Choice
from natdeploy.space.catalog import plain_arch
from natdeploy.store import FileRecord, NetRecord

ARCH = plain_arch(24, 1.0, (1, 2, 3, 2))
NET = NetRecord(
    arch=str(ARCH),
    id=ARCH.id,
    role="front",
    validation_accuracy=0.95,
    test_accuracy=0.93,
    predicted_ms=0.41,
    measured_p50_ms=0.43,
    measured_p90_ms=0.45,
    measured_n=200,
    unstable=False,
    params=123_456,
    macs=7_890_123,
)
FILE = FileRecord("front", ARCH.id, "onnx", "fp32", f"models/{ARCH.id}/model.onnx", 8.0, 0.96, 0.95, 1.0, 1e-6)


def timings(*, unstable: bool = False, failures: dict[str, str] | None = None) -> pipeline.BenchmarkResult:
    """What one net was measured to take, in two processes."""
    process = {"p50_ms": 0.43, "samples_ms": [0.42, 0.43, 0.44]}
    model = {
        "name": f"front-{NET.id}",
        "target": "host/onnxruntime-fp32-1t",
        "precision": "fp32",
        "sha256": {"model.onnx": "0" * 64},
        "size_mb": 1.2,
        "shape": [1, 3, 24, 24],
        "role": "front",
        "id": NET.id,
        "predicted_ms": 0.41,
        "estimated": False,
        "latency": {
            **dict.fromkeys(("p90_ms", "p95_ms", "p99_ms", "load_ms", "first_ms"), None),
            "p50_ms": 0.43,
            "mean_ms": 0.43,
            "undisturbed_ms": 0.42,
            "n": 6,
            "processes": [process, process],
        },
        "flags": {"unstable": unstable, "few_runs": True, "disturbed": False, "drifted": False, "throttled": None},
    }
    section = {
        "target": "host/onnxruntime-fp32-1t",
        "environment": {"cpu": "a processor"},
        "reference": model["name"],
        "reference_ms": 0.42,
        "models": [model],
        "failures": failures or {},
    }
    utc = "2026-01-02T03:04:05+00:00"
    return pipeline.BenchmarkResult.model_validate(
        {"tool": "natdeploy 0", "mode": "latency", "begun_utc": utc, "ended_utc": utc, "sections": [section]}
    )


PAIR = {
    "name": "a.onnx",
    "other": "b.onnx",
    "value": 0.4,
    "other_value": 0.5,
    "ratio": 0.8,
    "low": 0.7,
    "high": 0.9,
    "real": True,
    "verdict": "20 % less",
    "flags": [],
    "other_flags": [],
}
COMPARISON = {
    "other": "old.json",
    "differences": ["cpu is x here and y there"],
    "pairs": [PAIR],
    "only_here": [],
    "only_there": ["c.onnx"],
}


@dataclass
class Report:
    page: Path = Path("runs/x/report.html")
    nets: tuple[NetRecord, ...] = (NET,)
    standing: str = ""
    picks: tuple[Choice, ...] = (Choice(0, NET.id, "knee", "Going faster costs more."),)
    seconds: dict[str, float] = field(default_factory=lambda: {"training": 1.0})
    adaptation: None = None
    metric: str = "accuracy"
    summary: dict[str, Any] = field(default_factory=lambda: {"nets": [NET.id]})


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments, catch_exceptions=False)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Every call of the pipeline, without its progress and its engine."""
    made: list[tuple[Any, ...]] = []

    def stand_in(name: str, answer: Any) -> None:
        def call(*arguments: Any, **named: Any) -> Any:
            shown = [argument for argument in arguments if not hasattr(argument, "task") and not hasattr(argument, "workers")]
            made.append((name, *shown, {key: value for key, value in named.items() if key != "progress"}))
            return answer

        monkeypatch.setattr(pipeline, name, call)

    stand_in("resume", None)
    stand_in("demo", None)
    stand_in("report", Report())
    stand_in("export", [FILE])
    stand_in("export_weights", [FILE])
    stand_in("benchmark", timings())
    return made


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["resume", "runs/x"], [("resume", Path("runs/x"), {}), ("report", Path("runs/x"), {})]),
        (["report", "runs/x"], [("report", Path("runs/x"), {})]),
        (["demo"], [("demo", Path("runs/demo"), {}), ("report", Path("runs/demo"), {})]),
        (["demo", "--out", "d"], [("demo", Path("d"), {}), ("report", Path("d"), {})]),
    ],
)
def test_verbs_that_end_with_the_report(calls: list[Any], arguments: list[str], expected: list[Any]) -> None:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    assert calls == expected
    assert NET.id in result.stdout
    assert "knee     Going faster costs more.\n" in result.stdout
    assert result.stdout.endswith("report: runs/x/report.html\n")
    assert json.loads(run(*arguments, "--json").stdout) == {"nets": [NET.id]}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["benchmark", "runs/x"], {}),
        (["benchmark", "runs/x", "--target", "host/tflite", "--out", "x"], {"target": "host/tflite", "out": Path("x")}),
        (["benchmark", "runs/x", "--arch", "knee", "--fresh"], {"arch": "knee", "fresh": True}),
        (["benchmark", "runs/x", "--shape", "1x3x224x224"], {"shape": (1, 3, 224, 224)}),
        (["benchmark", "runs/x", "--mode", "throughput", "--compare", "o"], {"mode": "throughput", "compare_with": Path("o")}),
    ],
)
def test_benchmark_ends_with_times(calls: list[Any], arguments: list[str], expected: dict[str, Any]) -> None:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    usual = {"target": None, "out": None, "mode": None, "arch": None, "shape": None, "compare_with": None, "fresh": False}
    assert calls == [("benchmark", [Path("runs/x")], usual | expected)]
    assert "0.430" in result.stdout, "measured p50"
    assert max(map(len, result.stdout.splitlines())) <= 80
    shown = json.loads(run(*arguments, "--json").stdout)
    (model,) = shown["sections"][0]["models"]
    assert model["latency"]["p50_ms"] == 0.43
    assert "samples_ms" not in model["latency"]["processes"][0], "raw times are for --out"


def test_what_a_library_counts_itself_stands_in_the_means_place(monkeypatch: pytest.MonkeyPatch) -> None:
    found = timings().model_dump(mode="json")
    monkeypatch.setattr(pipeline, "benchmark", lambda *_, **__: pipeline.BenchmarkResult.model_validate(found))
    assert "inside" not in run("benchmark", "runs/x").stdout
    found["sections"][0]["models"][0]["latency"]["inside_ms"] = 0.395
    said = run("benchmark", "runs/x").stdout
    assert "0.395" in said and "mean" not in said
    assert "inside: what the runtime's library counts of a run itself" in said


def test_what_is_known_beside_the_times_is_said(calls: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    pair = PAIR | {"name": "a/b.onnx", "other_flags": ["disturbed"]}
    comparison = COMPARISON | {"pairs": [pair]}
    agreement = {"target": "host", "measured": "p50", "n": 4, "within_5": 0.5, "within_10": 1.0, "mape": 0.043, "spearman": 0.99}
    more = {"comparison": comparison, "agreements": [agreement], "remarks": ["int8 is slower than fp32 here: x"]}
    found = pipeline.BenchmarkResult.model_validate(timings().model_dump() | more)
    monkeypatch.setattr(pipeline, "benchmark", lambda *_, **__: found)
    said = run("benchmark", "runs/x").stdout
    assert "of 4 nets on host: 50 % within 5 %, 100 % within 10 %, mean error 4.3 %, Spearman 0.990" in said.replace("\n", " ")
    assert "int8 is slower than fp32 here: x" in said
    assert "here against old.json (there)" in said
    assert "a/b.onnx 0.500 0.400 0.800 0.700 0.900 faster d/–" in " ".join(said.split())
    assert "d: disturbed" in said
    assert "not the same: cpu is x here and y there\nonly there: c.onnx" in said


def test_names_are_told_apart_and_stay_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    found = timings().model_dump()
    (model,) = found["sections"][0]["models"]
    named = [model | {"name": name} for name in (f"one/x/front-{NET.id}", f"two/x/front-{NET.id}", "c/[b]y.onnx")]
    found["sections"][0]["models"] = named
    monkeypatch.setattr(pipeline, "benchmark", lambda *_, **__: pipeline.BenchmarkResult.model_validate(found))
    said = run("benchmark", "one/x", "two/x", "c/[b]y.onnx").stdout
    lines = [line.strip() for line in said.splitlines()]
    for run_name in ("one/x/", "two/x/"):
        (place,) = (i for i, line in enumerate(lines) if line.startswith(run_name))
        assert lines[place + 1] == f"front-{NET.id}"
    assert "c/[b]y.onnx" in said, "no markup"


def test_two_earlier_results_are_compared_without_measuring(tmp_path: Path) -> None:
    for name, ms in (("old", 0.5), ("new", 0.43)):
        found = timings(failures={"x": "no such operator"}).model_dump(mode="json")
        latency = found["sections"][0]["models"][0]["latency"]
        latency["p50_ms"], latency["processes"] = ms, [{"p50_ms": ms + i / 1000, "samples_ms": []} for i in range(3)]
        found["sections"][0]["environment"]["threads"] = int(1000 * ms)
        (tmp_path / f"{name}.json").write_text(json.dumps(found))
    arguments = ["benchmark", f"{tmp_path}/new.json", "--compare", f"{tmp_path}/old.json"]
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    assert f"front-{NET.id}" in result.stdout.replace("\n", "")
    assert "faster" in result.stdout
    assert "not the same: threads is 430 here and 500 there" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80
    comparison = json.loads(run(*arguments, "--json").stdout)["comparison"]
    assert comparison["pairs"][0]["real"] is True
    assert comparison["pairs"][0]["ratio"] == pytest.approx(0.86, rel=0.01)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["new.json"], "new.json is an earlier result; say with which other one it is to be compared: --compare OTHER.json"),
        (["new.json", "b.json", "--compare", "new.json"], "new.json, b.json are not one earlier result"),
        (["new.json", "a.onnx", "--compare", "new.json"], "new.json, a.onnx are not one earlier result"),
        (["new.json", "--compare", "new.json", "--target", "host", "--fresh"], "as they are, without --target, --fresh"),
        (["gone.json", "--compare", "new.json"], "gone.json cannot be read (No such file or directory)"),
        (["new.json", "--compare", "words.json"], "words.json is no result of `natdeploy benchmark --out` (invalid JSON"),
        (["new.json", "--compare", "later.json"], "later.json has format 2, and this natdeploy reads 1; measure again, or compare"),
        (["empty.json", "--compare", "new.json"], "is no result of `natdeploy benchmark --out` (front-"),
    ],
)
def test_what_cannot_be_compared_is_said(arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = timings().model_dump(mode="json")
    Path("new.json").write_text(json.dumps(found))
    Path("later.json").write_text(json.dumps(found | {"format": 2, "more": 1}))
    Path("words.json").write_text("Hello")
    found["sections"][0]["models"][0]["latency"] = None
    Path("empty.json").write_text(json.dumps(found))
    result = run("benchmark", *arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert said in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_shape_that_is_none_and_a_model_that_does_not_run_are_said(calls: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    refused = run("benchmark", "x.onnx", "--shape", "1,3,224,224")
    assert refused.exit_code == 2
    assert "'1,3,224,224' is no shape; write" in refused.stderr
    monkeypatch.setattr(pipeline, "benchmark", lambda *_, **__: timings(failures={"b.onnx": "no such operator"}))
    failed = run("benchmark", "a.onnx", "b.onnx")
    assert failed.exit_code == 5
    assert "0.430" in failed.stdout, "what was measured is shown all the same"
    assert "b.onnx does not run: no such operator" in failed.stderr


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["export", "runs/x"], {}),
        (["export", "runs/x", "--arch", "front"], {"arch": "front"}),
        (["export", "runs/x", "--format", "a", "--format", "b,c"], {"formats": ("a", "b", "c")}),
        (["export", "runs/x", "--precision", "fp16, int8"], {"precisions": ("fp16", "int8")}),
        (["export", "runs/x", "--max-drop", "0.5", "--input", "image"], {"max_drop": 0.5, "input": "image"}),
        (["export", "runs/x", "--input", "photo", "--photo-size", "480x640"], {"input": "photo", "photo_size": (480, 640)}),
        (["export", "runs/x", "--nms"], {"nms": True}),
    ],
)
def test_export_ends_with_files(calls: list[Any], arguments: list[str], expected: dict[str, Any]) -> None:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    usual = {
        "arch": "knee",
        "nms": False,
        "formats": ("onnx",),
        "precisions": (),
        "max_drop": 1.0,
        "input": "nchw",
        "photo_size": None,
    }
    assert calls == [("export", Path("runs/x"), usual | expected)]
    assert f"{FILE.path}\n" in result.stdout
    assert "test 95.0 %, as torch 100.0 %" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80
    (shown,) = json.loads(run(*arguments, "--json").stdout)
    assert (shown["path"], shown["test_accuracy"], shown["refused"]) == (FILE.path, 0.95, None)


def test_export_of_weights(calls: list[Any]) -> None:
    options = ["--arch", "r96-w1-k3e1", "--data", "photos", "--space", "mbv2", "--out", "o"]
    assert run("export", "a/seed.safetensors", *options).exit_code == 0
    usual = {"formats": ("onnx",), "precisions": (), "max_drop": 1.0, "input": "nchw", "photo_size": None}
    given = {"arch": "r96-w1-k3e1", "data": Path("photos"), "space": "mbv2", "nms": False, "settings": None}
    assert calls == [("export_weights", Path("a/seed.safetensors"), Path("o"), usual | given)]
    refused = run("export", "runs/x", "--data", "photos")
    assert (refused.exit_code, len(calls)) == (2, 1)
    assert "a run knows its own" in refused.stderr


@pytest.mark.parametrize(("refused", "options", "code"), [(1, (), 0), (1, ("--strict",), 4), (2, (), 4), (0, ("--strict",), 0)])
def test_refused_files_end_with_4_when_strict_or_when_nothing_is_left(
    monkeypatch: pytest.MonkeyPatch, refused: int, options: tuple[str, ...], code: int
) -> None:
    bad = replace(FILE, precision="int8", path=None, refused="it loses 2.5 points")
    monkeypatch.setattr(pipeline, "export", lambda *_, **__: [bad] * refused + [FILE] * (2 - refused))
    result = run("export", "runs/x", *options)
    assert result.exit_code == code
    assert result.stdout.count("refused: it loses 2.5 points") == refused
    assert (f"{refused} of 2 files are refused" in result.stderr) == (code == 4)


def test_an_unstable_measurement_ends_with_6_when_strict(calls: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "benchmark", lambda *_, **__: timings(unstable=True))
    noted = run("benchmark", "runs/x")
    assert noted.exit_code == 0
    assert "u: unstable, the processes differ by more than 3 %" in noted.stdout
    strict = run("benchmark", "runs/x", "--strict", "--json")
    assert strict.exit_code == 6
    told = json.loads(strict.stdout)["sections"][0]["models"][0]
    assert told["flags"]["unstable"] is True, "what was measured is shown all the same"
    assert NET.id in json.loads(strict.stderr)["error"]


def test_profile_says_how_well_it_predicts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    quality = Quality(n=20, within_5=0.8, within_10=1.0, mape=0.031, spearman=0.99, kendall=0.95, coverage=0.9)
    found = pipeline.ProfileResult(
        folder=tmp_path,
        slug="onnxruntime-fp32-1t",
        rows=150,
        subnets=34,
        quality=quality,
        failures={"mbconv-8x16-m96-o24-k3-s2": "no answer within 300 s"},
        measuring_s=200.0,
        converting_s=20.0,
        drifts={"host": 0.04},
    )
    asked: dict[str, Any] = {}

    def profile(device: str, runtime: str | None, **named: Any) -> pipeline.ProfileResult:
        asked.update(named, device=device, runtime=runtime)
        return found

    monkeypatch.setattr(pipeline, "profile", profile)
    result = run("profile", "--classes", "12", "--budget", "240s", "--from", "host/tflite", "--tables", str(tmp_path))
    assert result.exit_code == 0, result.output
    asked.pop("progress")
    assert asked == {
        "device": "host",
        "runtime": None,
        "space": "mbv2",
        "seed_weights": None,
        "classes": 12,
        "head": None,
        "aspect": 1.0,
        "tables": tmp_path,
        "precision": None,
        "threads": None,
        "source": "host/tflite",
        "budget_minutes": 4.0,
        "seed": 0,
        "width": None,
    }
    assert "150 blocks and 34 nets, measured in 3 min 20 s and converted in 20 s; the reference net drifted by 4%" in result.stdout
    assert "not measured: mbconv-8x16-m96-o24-k3-s2: no answer within 300 s" in result.stdout
    assert "predicted on 20 unseen nets: within 5 % 80%, within 10 % 100%, mean error 3.1%" in result.stdout
    as_json = json.loads(run("profile", "--json").stdout)
    assert (as_json["rows"], as_json["quality"]["within_10"], as_json["folder"]) == (150, 1.0, str(tmp_path))


def test_predict_shows_intervals_and_guesses(monkeypatch: pytest.MonkeyPatch) -> None:
    quality = Quality(n=20, within_5=0.95, within_10=1.0, mape=0.02, spearman=0.99, kendall=0.95, coverage=0.9)
    one = pipeline.PredictedLatency("r64-w1-k3e1", "abc", 1.5, 1.4, 1.6, known=True, macs=10_000_000)
    monkeypatch.setattr(pipeline, "predict", lambda *_, **__: ([one, replace(one, known=False)], quality))
    result = run("predict", "r64-w1-k3e1", "r64-w1-k3e1")
    first, second, last = result.stdout.splitlines()
    assert first == "1.500 ms (1.400 to 1.600)  10.0M MACs  r64-w1-k3e1"
    assert second == f"{first}  outside of what was measured: a guess"
    assert "within 5 % for 95%" in last
    as_json = json.loads(run("predict", "r64-w1-k3e1", "--json").stdout)
    assert [each["known"] for each in as_json["predictions"]] == [True, False]


@pytest.mark.parametrize("text", ["soon", "0min", "-3min", "5 weeks"])
def test_a_budget_that_is_no_time_is_refused(text: str) -> None:
    result = run("profile", "--budget", text)
    assert result.exit_code == 2
    assert "10min, 90s or 1.5h" in result.stderr


def test_a_damaged_run_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Path) -> None:
        raise DamagedFileError("runs/x/run.sqlite is damaged; restore it from a copy")

    monkeypatch.setattr(pipeline, "report", refuse)
    result = run("report", "runs/x")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "error: runs/x/run.sqlite is damaged; restore it from a copy\n"


def test_what_follows_the_table_fits_80_columns(calls: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    told = Report(
        standing=f"The search goes on: {'so many things are done, ' * 6}and so on.",
        picks=(Choice(0, NET.id, "knee", f"{NET.id} has validation error 2.5 %, latency 0.43 ms: {'everything costs ' * 5}."),),
        seconds={
            "images": 1.0,
            **{f"training: part {number}": 9.0 for number in range(9)},
            "measuring the front": 6.0,
            "test": 0.0,
        },
    )
    monkeypatch.setattr(pipeline, "report", lambda _: told)
    shown = run("report", "runs/x").stdout
    assert max(map(len, shown.splitlines())) <= 80
    assert "time: 88 s; training 92.0 %, measuring the front 6.8 %, images 1.1 %; forward and backward passes 0 %" in " ".join(
        shown.split()
    )
    assert told.standing in " ".join(shown.split())
    assert all(line.startswith("         ") for line in shown.splitlines() if line.startswith(" ") and "costs" in line)
