"""Ratios with their intervals against scipy's own test, matching, and what is said of int8 and of predictions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import ttest_ind

from natdeploy.errors import UsageError
from natdeploy.pipeline.compare_times import agreement, compare, ratio_interval, require_shared, shared, slower_int8
from natdeploy.pipeline.timings import BenchmarkResult, Flags, Latency, ModelTimes, Process, Rate, Section, Throughput
from natdeploy.store import LatencyRecord

FLAGS = Flags(unstable=False, few_runs=False, disturbed=None, drifted=False, throttled=None)


def model(name: str, medians: Sequence[float] = (1.0, 1.0), *, rates: Sequence[float] = (), **facts: Any) -> ModelTimes:
    values = {"target": "host/onnxruntime-fp32-1t", "precision": "fp32", "sha256": {"f": name}, "size_mb": 1.0, "shape": (1, 3)}
    values |= {"role": None, "id": None, "predicted_ms": None, "estimated": False} | facts
    if rates:
        processes = tuple(Rate(images_per_s=each, counts=(1,)) for each in rates)
        throughput = Throughput(images_per_s=float(np.median(rates)), n=1, how="", window_s=1, processes=processes)
        return ModelTimes(name=name, **values, throughput=throughput, flags=FLAGS)
    unknown = dict.fromkeys(("p90_ms", "p95_ms", "p99_ms", "load_ms", "first_ms"))
    processes_ms = tuple(Process(p50_ms=each, samples_ms=()) for each in medians)
    p50_ms = float(np.median(medians))
    latency = Latency(p50_ms=p50_ms, mean_ms=p50_ms, n=100, undisturbed_ms=p50_ms, processes=processes_ms, **unknown)
    return ModelTimes(name=name, **values, latency=latency, flags=FLAGS)


def result(*models: ModelTimes, mode: Any = "latency", **environment: Any) -> BenchmarkResult:
    section = Section(target=models[0].target, environment=environment, reference="r", reference_ms=1, models=models, failures={})
    return BenchmarkResult(tool="natdeploy", mode=mode, begun_utc="", ended_utc="", sections=(section,))


@pytest.mark.parametrize(
    ("here", "there"),
    [((1.0, 1.1, 1.05), (1.2, 1.25, 1.3)), ((2.0, 2.1), (2.05, 1.9, 2.2, 2.0)), ((1.0, 4.0, 9.0), (1.01, 1.02, 1.03))],
)
def test_the_interval_is_welchs_on_logarithms(here: tuple[float, ...], there: tuple[float, ...]) -> None:
    expected = ttest_ind(np.log(here), np.log(there), equal_var=False).confidence_interval(0.95)
    assert ratio_interval(here, there) == pytest.approx((np.exp(expected.low), np.exp(expected.high)))


def test_an_interval_needs_two_processes_and_equal_ones_have_none_to_speak_of() -> None:
    assert ratio_interval([1.0], [1.0, 2.0]) is None
    assert ratio_interval([2.0, 2.0], [1.0, 1.0]) == pytest.approx((2.0, 2.0))


def test_what_is_said_of_a_pair() -> None:
    old = result(model("a", (1.0, 1.01, 0.99)), model("b", (1.0, 1.01, 0.99)), model("c", (1.0,)))
    new = result(model("a", (0.8, 0.81, 0.79)), model("b", (1.01, 0.99, 1.0)), model("c", (1.5,)))
    a, b, c = compare(new, old, Path("old.json")).pairs
    assert (a.real, b.real, c.real) == (True, False, None)
    assert a.verdict.startswith("20.0 % less latency, really (ratio 0.800, 95 % confidence 0.7")
    assert b.verdict.startswith("no real difference (ratio 1.000, 95 % confidence 0.9")
    assert c.verdict == "50.0 % more latency; too few processes to say whether really"
    fast, slow = (result(model("a", rates=rates), mode="throughput") for rates in ((300, 301, 299), (200, 201, 199)))
    (pair,) = compare(fast, slow, Path("old.json")).pairs
    assert pair.verdict.startswith("50.0 % more images a second, really")


def test_the_surest_match_comes_first() -> None:
    def facts(*models: ModelTimes) -> list[dict[str, Any]]:
        return [each.model_dump() for each in models]

    same_name = model("x.onnx", sha256={"f": "1"})
    moved = model("elsewhere/y.onnx", sha256={"g": "1"})
    assert shared(facts(same_name), facts(model("x.onnx", sha256={"f": "2"}), moved)) == [(0, 1)]
    copies = [model(f"{run}/front-4f", id="4f", role="front", run=run) for run in ("a", "b")]
    alike = [each.model_copy(update={"sha256": {"f": "1"}}) for each in copies]
    assert shared(facts(*alike), facts(*alike[::-1])) == [(0, 1), (1, 0)], "of the same run, where files are alike"
    assert shared(facts(*copies), facts(*alike[::-1])) == [(0, 1), (1, 0)]
    fp32, int8 = (model(each, id="4f", precision=each, sha256={each: each}) for each in ("fp32", "int8"))
    other32, other8 = (model(f"o{each}", id="4f", precision=each, sha256={each: f"o{each}"}) for each in ("fp32", "int8"))
    assert shared(facts(fp32, int8), facts(other8, other32)) == [(0, 1), (1, 0)]
    assert shared(facts(int8), facts(other32)) == [(0, 0)], "two precisions of one net may be compared, if nothing is nearer"
    assert shared(facts(model("a")), facts(model("b"))) == []


def test_where_environments_differ_is_said_and_all_is_compared_even_so() -> None:
    old = result(model("a"), cpu="one", runtime_version="1.0", threads=1)
    new = result(model("a"), cpu="other", runtime_version="1.0", threads=1)
    found = compare(new, old, Path("old.json"))
    assert found.differences == ("cpu is other here and one there",)
    assert len(found.pairs) == 1


def test_what_only_one_has_and_what_speaks_against_a_number_is_told() -> None:
    doubtful = model("a", (1.0, 1.1)).model_copy(update={"flags": FLAGS.model_copy(update={"unstable": True, "disturbed": True})})
    found = compare(result(doubtful, model("c")), result(model("b"), model("a")), Path("old.json"))
    assert (found.only_here, found.only_there) == (("c",), ("b",))
    assert [(pair.flags, pair.other_flags) for pair in found.pairs] == [(("unstable", "disturbed"), ())]
    assert (found.pairs[0].value, found.pairs[0].other_value) == (pytest.approx(1.05), 1.0)


def test_nothing_in_common_and_another_mode_are_refused() -> None:
    facts = [model("a").model_dump()]
    with pytest.raises(UsageError, match=r"old\.json and this have no model in common, .* holds b$"):
        require_shared(facts, result(model("b")), "latency", Path("old.json"))
    with pytest.raises(
        UsageError, match="holds latency and this measures throughput, which are never compared; give --mode latency"
    ):
        require_shared(facts, result(model("a")), "throughput", Path("old.json"))
    with pytest.raises(UsageError, match=r"holds latency and new\.json holds throughput, which are never compared; give two of"):
        require_shared(facts, result(model("a")), "throughput", Path("old.json"), "new.json")


def test_int8_that_is_slower_is_named() -> None:
    fp32 = LatencyRecord("front", "4f", "host/onnxruntime-fp32-1t", 1.0, None, 1.0, 9, False)
    slower = model("front-4f", (1.2, 1.2), id="4f", target="host/onnxruntime-int8-1t", precision="int8")
    assert slower_int8([slower], [fp32]) == ("int8 is slower than fp32 here: 4f on host/onnxruntime-1t (1.200 against 1.000 ms)")
    said = slower_int8([slower.model_copy(update={"flags": FLAGS.model_copy(update={"unstable": True})})], [fp32])
    assert said is not None
    assert said.endswith("ms, unstable)")
    searched = model("front-4f-int8", (1.2, 1.2), id="4f-int8", target="host/onnxruntime-int8-1t", precision="int8")
    assert slower_int8([searched], [fp32]) is not None
    assert slower_int8([model("x", (1.2, 1.2), id="4f", target="host/tflite-int8-1t")], [fp32]) is None, "another runtime"
    assert slower_int8([model("x", (1.02, 1.02), id="4f", target="host/onnxruntime-int8-1t")], [fp32]) is None, "within noise"


def test_predictions_are_held_against_what_was_measured() -> None:
    nets = [model(f"n{i}", (ms, ms), role="front", predicted_ms=p) for i, (ms, p) in enumerate([(1, 1.04), (2, 2.16), (4, 5)])]
    section = result(*nets, model("base", (9, 9), role="baseline", predicted_ms=1.0)).sections[0]
    found = agreement(section)
    assert found is not None
    assert (found.n, found.within_5, found.within_10, found.spearman) == (3, pytest.approx(1 / 3), pytest.approx(2 / 3), 1)
    assert found.mape == pytest.approx((0.04 + 0.08 + 0.25) / 3)
    undisturbed = agreement(section, "undisturbed")
    assert undisturbed is not None
    assert undisturbed.measured == "undisturbed"
    assert agreement(result(model("a")).sections[0]) is None
