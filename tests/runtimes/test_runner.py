"""The runner stands alone on old Pythons, and separates a model's time from waiting for other processes."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from natdeploy.runtimes import footprint, ort, ov, runner, tflite, throughput, trt

SLEEPER = """
import time
inside_ms = None
def version(): return "1"
def details(precision, delegate): return {"runtime": "sleeper", "runtime_version": "1"}
def load(path, shape, threads, precision, delegate): return float(open(path).read())
def run(session, inputs):
    if session < 0: raise ValueError("negative")
    end = time.perf_counter() + session
    while time.perf_counter() < end: pass
"""


@pytest.mark.parametrize("file", [each.__file__ for each in (runner, footprint, throughput, ort, ov, tflite, trt)])
def test_files_that_travel_are_python_3_8(file: str | None) -> None:
    assert file is not None
    ast.parse(Path(file).read_text(), feature_version=(3, 8))


@pytest.mark.parametrize(
    ("values", "expected"), [([3.0], 3.0), ([2.0, 1.0], 1.0), ([5.0, 1.0, 3.0], 3.0), ([4.0, 1.0, 3.0, 2.0], 2.0)]
)
def test_median_is_nearest_rank(values: list[float], expected: float) -> None:
    assert runner.median(values) == expected


def test_waiting_is_zero_where_the_system_does_not_count_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner._Waited, "path", tmp_path / "schedstat")
    assert not runner._Waited().counted
    assert runner._Waited()() == 0.0
    (tmp_path / "schedstat").write_text("words")
    assert not runner._Waited().counted
    (tmp_path / "schedstat").write_text("5000000 3000000 7\n")
    assert runner._Waited()() == 3.0


JUMPING = """
import itertools, time
jumps = itertools.count()
time.time = lambda: -1e9 * next(jumps)
"""
"""A device whose clock is set while it measures, by its network or by hand."""

COUNTING = """
def inside_ms(session): return 1e3 * session
"""
"""A library that tells what it takes itself."""


@pytest.mark.parametrize("extra", ["", JUMPING, COUNTING], ids=["steady", "jumping", "counting"])
def test_runs_as_a_program_and_times_what_it_says(extra: str, tmp_path: Path) -> None:
    (tmp_path / "sleeper.py").write_text(SLEEPER + extra)
    for name, seconds in (("reference", 0.002), ("one", 0.004), ("bad", -1.0)):
        (tmp_path / name).write_text(str(seconds))
    settings = {"warmup_s": 0.0, "warmup_runs": 2, "min_s": 0.0, "min_runs": 9, "reference_s": 0.0, "slices": 2}
    plan = {
        "runtime": "sleeper.py",
        "threads": 1,
        "precision": "fp32",
        "delegate": "cpu",
        "seed": 0,
        "settings": settings,
        "reference": {"id": "reference", "model": "reference", "shape": [1, 2]},
        "candidates": [{"id": name, "model": name, "shape": [1, 2]} for name in ("bad", "one")],
    }
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    start = time.perf_counter()
    output = subprocess.run(
        [sys.executable, runner.__file__, "plan.json", "result.jsonl"], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    assert time.perf_counter() - start < 20
    events = [json.loads(line) for line in output.stdout.splitlines()]
    assert [event["id"] for event in events] == ["bad", "one", "one", "one"]
    environment, bad, one = [json.loads(line) for line in (tmp_path / "result.jsonl").read_text().splitlines()]
    assert environment["runtime"] == "sleeper"
    assert environment["harness"] == runner.HARNESS
    assert bad == {"id": "bad", "slices": [], "error": "ValueError: negative"}
    assert one["warmup_runs"] == 2
    assert one["first_ms"] >= 4
    assert len(one["slices"]) == 2
    for part in one["slices"]:
        assert part["reference_ms"] == pytest.approx(2, rel=0.5)
        assert len(part["wall_ms"]) == len(part["waited_ms"]) == 5
        assert all(wall >= 4 and 0 <= waited <= wall for wall, waited in zip(part["wall_ms"], part["waited_ms"], strict=True))
        assert part["inside_ms"] == ([4.0] * 5 if extra == COUNTING else [])
