"""The front measured while the search goes on, and latencies corrected by it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from natdeploy.errors import DeviceError
from natdeploy.hardware.device import parse_target
from natdeploy.pipeline import SearchConfig, correct
from natdeploy.pipeline.correct import FrontMeasurer, corrected
from natdeploy.pipeline.predictor import find_predictor
from natdeploy.pipeline.problem import make_problem
from natdeploy.pipeline.setting import prepare
from natdeploy.progress import Silent
from natdeploy.search import Archive
from natdeploy.space import BlockSum, Genotypes, SearchSpace, get_space

SPACE = get_space("demo")


def predicted_ms(space: SearchSpace = SPACE) -> Any:
    return BlockSum(space, lambda blocks: [0.01 + block.macs / 1e6 for block in blocks], 3)


def archs(count: int, seed: int = 0) -> Genotypes:
    return SPACE.sample(count, np.random.default_rng(seed))


def test_a_measured_net_counts_with_what_was_measured() -> None:
    genotypes = archs(8)
    measured = dict(zip(SPACE.decode_all(genotypes), np.linspace(1, 9, 8).tolist(), strict=True))
    np.testing.assert_array_equal(corrected(predicted_ms(), SPACE, measured)(genotypes), np.linspace(1, 9, 8))


@settings(max_examples=30, deadline=None)
@given(level=st.floats(-0.7, 0.7), slope=st.floats(-0.2, 0.2), seed=st.integers(0, 1000))
def test_a_predictor_off_by_a_line_in_the_logarithm_is_put_right(level: float, slope: float, seed: int) -> None:
    total, known, others = predicted_ms(), archs(30, seed), archs(20, seed + 1)

    def true_ms(genotypes: Genotypes) -> Any:
        predicted = total(genotypes)
        return predicted * np.exp(level + slope * np.log(predicted))

    measured = dict(zip(SPACE.decode_all(known), true_ms(known).tolist(), strict=True))
    np.testing.assert_allclose(corrected(total, SPACE, measured)(others), true_ms(others), rtol=0.03)


def test_one_measurement_moves_all_predictions_alike() -> None:
    total, genotypes = predicted_ms(), archs(20)
    (first,) = SPACE.decode_all(genotypes[:1])
    ratio = corrected(total, SPACE, {first: 1.2 * float(total(genotypes[:1])[0])})(genotypes[1:]) / total(genotypes[1:])
    np.testing.assert_allclose(ratio, 1.2, rtol=0.01)


def test_right_predictions_stay_as_they_are() -> None:
    total, genotypes = predicted_ms(), archs(12)
    measured = dict(zip(SPACE.decode_all(genotypes[:6]), total(genotypes[:6]).tolist(), strict=True))
    np.testing.assert_allclose(corrected(total, SPACE, measured)(genotypes), total(genotypes), rtol=1e-12)


@pytest.fixture
def measurer(config: SearchConfig, front_measurer: Callable[..., FrontMeasurer]) -> Any:
    """A measurer of a real search's problem, and an archive of a few of its architectures."""
    setting = prepare(config, Silent())
    target = parse_target(config.target)
    predictor = find_predictor(target, setting.space, tables=config.tables, table=None, allow_estimate=False, progress=Silent())
    assert predictor is not None
    problem = make_problem(config, setting, {"latency": predictor})
    archive = Archive(setting.space, problem.objectives, problem.constraints)
    drawn = np.unique(setting.space.sample(6, np.random.default_rng(0)), axis=0)
    archive.add(drawn, np.linspace(0.5, 0.1, len(drawn)))
    return front_measurer(problem, setting), archive


def test_the_front_is_measured_on_the_target_once_and_remembered(
    measurer: Any, notes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure_front, archive = measurer
    objectives = measure_front(archive, 3)
    front = archive.genotypes[archive.front()]
    latencies = objectives.cheap["latency"](front)
    assert (latencies > 0).all()
    assert not np.allclose(latencies, archive.objectives.cheap["latency"](front)), "the table was made up"
    assert any(f"measured {len(front)} nets of the front on host/onnxruntime-fp32-1t" in line for line in notes.lines)

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(correct, "measure", never)
    np.testing.assert_array_equal(measure_front(archive, 3).cheap["latency"](front), latencies)
    np.testing.assert_array_equal(measure_front(archive, 6).cheap["latency"](front), latencies)


def test_a_target_out_of_reach_leaves_predictions_as_they_are(measurer: Any, notes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    measure_front, archive = measurer

    def gone(*_: Any, **__: Any) -> None:
        raise DeviceError("the battery is empty; charge it")

    monkeypatch.setattr(correct, "measure", gone)
    assert measure_front(archive, 3) is None
    (line,) = notes.lines
    assert line.endswith("predictions stay as they are: the battery is empty; charge it")
    monkeypatch.undo()
    assert measure_front(archive, 3) is None, "a resumed search goes by the same numbers"
