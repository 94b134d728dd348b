"""The regression behind the predictor: what it recovers from made-up devices, and how it does on published rows."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import numpy.typing as npt
import pytest
import xgboost
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from natdeploy.errors import DamagedFileError, UsageError
from natdeploy.latency.blocks import amounts, boundary, cold, parts_of, work
from natdeploy.latency.regression import COVERAGE, Regression, RegressionState, count_parts
from natdeploy.space import get_space

Floats = npt.NDArray[np.float64]

PARTS, SAMPLES, UNSEEN = 40, 120, 300
CALL_MS = 0.3


class Device:
    """Networks of parts, and what a made-up processor takes for them."""

    def __init__(self, *, bend: float = 0.0, noise: float = 0.0, floor_ms: float = 0.0, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        # A large amount, a small one, and one that half of the parts lack.
        self.amounts = np.column_stack([rng.uniform(1e6, 9e6, PARTS), rng.uniform(10, 90, PARTS), rng.integers(0, 2, PARTS) * 50.0])
        priced = self.amounts @ [1e-7, 2e-3, 4e-3]
        # What no sum of amounts says: smooth in the logarithm of one of them.
        self.part_ms = priced * (1 + bend * np.sin(4 * np.log(self.amounts[:, 0] / 1e6)))
        counts = rng.poisson(0.25, (SAMPLES + UNSEEN, PARTS)) + np.eye(PARTS)[np.arange(SAMPLES + UNSEEN) % PARTS]
        self.counts = sparse.csr_array(counts)
        exact = np.maximum(CALL_MS + self.counts @ self.part_ms, floor_ms)
        self.latency_ms = exact * np.exp(noise * rng.standard_normal(len(exact)))

    def fit(self, latency_ms: Floats | None = None, weights: Floats | None = None) -> Regression:
        measured = self.latency_ms if latency_ms is None else latency_ms
        return Regression.fit(self.counts[:SAMPLES], self.amounts, measured[:SAMPLES], weights=weights)

    def errors(self, regression: Regression) -> Floats:
        """Relative errors of unseen samples."""
        unseen: Floats = np.abs(regression.predict(self.counts[SAMPLES:], self.amounts) / self.latency_ms[SAMPLES:] - 1)
        return unseen


def test_prices_of_a_linear_device_are_found_exactly() -> None:
    device = Device()
    regression = device.fit()
    assert device.errors(regression).max() < 1e-3
    np.testing.assert_allclose(regression.parts(device.amounts), device.part_ms, rtol=0.01)
    assert regression.call_ms == pytest.approx(CALL_MS, rel=0.02)
    assert regression.booster is None


def test_what_a_part_costs_beyond_its_price_is_learned_from_sums_alone() -> None:
    device = Device(bend=0.3, noise=0.005)
    regression = device.fit()
    assert regression.correction is not None
    physics, corrected, _ = regression.errors
    assert corrected < 0.3 * physics
    assert device.errors(regression).mean() < 0.02
    np.testing.assert_allclose(regression.parts(device.amounts), device.part_ms, rtol=0.15)
    assert np.corrcoef(regression.parts(device.amounts), device.part_ms)[0, 1] > 0.99


def test_the_booster_is_kept_where_a_sample_is_no_sum_and_only_there() -> None:
    floor_ms = 6.0
    device = Device(noise=0.01, floor_ms=floor_ms)
    at_floor = device.latency_ms[SAMPLES:] < 1.05 * floor_ms
    assert 0.1 < at_floor.mean() < 0.9
    regression = device.fit()
    assert regression.booster is not None
    assert regression.errors[2] < 0.8 * min(regression.errors[:2])
    sums = regression.call_ms + device.counts[SAMPLES:] @ regression.parts(device.amounts)
    assert device.errors(regression).mean() < 0.8 * np.abs(sums / device.latency_ms[SAMPLES:] - 1).mean()
    assert Device(noise=0.01).fit().booster is None


def test_without_a_booster_a_prediction_is_the_call_and_the_sum_over_parts() -> None:
    device = Device(bend=0.2, noise=0.01)
    regression = device.fit()
    assert regression.booster is None
    sums = regression.call_ms + device.counts @ regression.parts(device.amounts)
    np.testing.assert_allclose(regression.predict(device.counts, device.amounts), sums)


def test_a_few_disturbed_measurements_change_little() -> None:
    device = Device(bend=0.2, noise=0.005)
    disturbed = device.latency_ms.copy()
    disturbed[:SAMPLES:20] *= 2
    assert device.errors(device.fit(disturbed)).mean() < 1.5 * device.errors(device.fit()).mean()


def test_what_weighs_little_is_hardly_listened_to() -> None:
    device = Device(noise=0.005)
    wrong = device.latency_ms.copy()
    wrong[: SAMPLES // 3] *= 1.2
    weights = np.where(np.arange(SAMPLES) < SAMPLES // 3, 1e-6, 1.0)
    heard, ignored = (device.errors(device.fit(wrong, each)).mean() for each in (None, weights))
    assert ignored < 0.01 < heard


def test_choices_errors_and_interval_are_about_the_judged_alone() -> None:
    device = Device(noise=0.005)
    rng = np.random.default_rng(1)
    judged = np.arange(SAMPLES) % 2 == 0
    noisy = device.latency_ms[:SAMPLES] * np.exp(np.where(judged, 0.0, 0.2 * rng.standard_normal(SAMPLES)))
    weights = np.where(judged, 1.0, 1 / 1600)
    everything, half = (
        Regression.fit(device.counts[:SAMPLES], device.amounts, noisy, weights=weights, judged=each) for each in (None, judged)
    )
    assert half.spread < 0.03
    assert half.error < 0.02
    assert everything.spread > 0.2
    assert everything.error > 0.05
    assert device.errors(half).mean() < 0.02


def test_samples_that_are_one_part_need_no_counts() -> None:
    device = Device(bend=0.2)
    one = Regression.fit(None, device.amounts, device.part_ms)
    other = Regression.fit(sparse.eye_array(PARTS, format="csr"), device.amounts, device.part_ms)
    assert one.state() == other.state()
    np.testing.assert_array_equal(
        one.predict(None, device.amounts), other.predict(sparse.eye_array(PARTS, format="csr"), device.amounts)
    )


def test_the_interval_holds_about_as_many_as_it_is_meant_to() -> None:
    covered = []
    for seed in range(3):
        device = Device(bend=0.2, noise=0.03, seed=seed)
        regression = device.fit()
        predicted = regression.predict(device.counts[SAMPLES:], device.amounts)
        covered.append((np.abs(np.log(predicted / device.latency_ms[SAMPLES:])) <= regression.spread).mean())
    assert np.mean(covered) == pytest.approx(COVERAGE, abs=0.06)


def test_equal_measurements_give_equal_models() -> None:
    device = Device(bend=0.2, noise=0.02, floor_ms=6)
    assert device.fit().state() == device.fit().state()


@pytest.mark.parametrize("floor_ms", [0.0, 6.0])
def test_a_saved_model_predicts_the_same_numbers(floor_ms: float) -> None:
    device = Device(bend=0.2, noise=0.01, floor_ms=floor_ms)
    regression = device.fit()
    text = regression.state().model_dump_json()
    again = Regression.of(RegressionState.model_validate_json(text))
    assert (again.booster is not None) == (floor_ms > 0)
    np.testing.assert_array_equal(again.predict(device.counts, device.amounts), regression.predict(device.counts, device.amounts))
    assert (again.spread, again.errors) == (regression.spread, regression.errors)
    assert again.state().model_dump_json() == text


def test_a_state_whose_pieces_do_not_fit_is_refused() -> None:
    state = Device(bend=0.3, floor_ms=6).fit().state()
    assert state.correction is not None
    with pytest.raises(ValueError, match="does not fit"):
        Regression.of(state.model_copy(update={"prices": state.prices[:-1]}))
    shorter = state.correction.model_copy(update={"coefficients": state.correction.coefficients[:-1]})
    with pytest.raises(ValueError, match="does not fit"):
        Regression.of(state.model_copy(update={"correction": shorter}))
    with pytest.raises(xgboost.core.XGBoostError):
        Regression.of(state.model_copy(update={"booster": "{}"}))


def test_too_few_or_impossible_measurements_are_refused() -> None:
    device = Device()
    with pytest.raises(UsageError, match="5 measurements or more to judge by, not 4"):
        Regression.fit(device.counts[:4], device.amounts, device.latency_ms[:4])
    for latency_ms, each in ((np.zeros(SAMPLES), device.amounts), (np.full(SAMPLES, np.nan), device.amounts)):
        with pytest.raises(UsageError, match="must be positive"):
            Regression.fit(device.counts[:SAMPLES], each, latency_ms)
    with pytest.raises(UsageError, match="not negative"):
        Regression.fit(device.counts[:SAMPLES], -device.amounts, device.latency_ms[:SAMPLES])


def test_a_device_that_only_charges_for_the_call() -> None:
    device = Device()
    regression = device.fit(np.full(SAMPLES, 2.0))
    np.testing.assert_allclose(regression.predict(device.counts, device.amounts), 2.0, rtol=1e-3)


def test_unknown_columns_of_zeros_change_nothing() -> None:
    device = Device(noise=0.01)
    wider = np.hstack([device.amounts, np.zeros((PARTS, 1))])
    regression = Regression.fit(device.counts[:SAMPLES], wider, device.latency_ms[:SAMPLES])
    assert regression.prices[-1] == 0
    np.testing.assert_allclose(
        regression.predict(device.counts, wider), device.fit().predict(device.counts, device.amounts), rtol=2e-3
    )


@given(st.lists(st.lists(st.sampled_from("abcd"), max_size=6), min_size=1, max_size=8))
def test_parts_are_counted_and_can_be_read_back(samples: list[list[str]]) -> None:
    parts, counts = count_parts(samples)
    assert len(set(parts)) == len(parts)
    assert [{parts[i]: n for i, n in enumerate(row) if n} for row in counts.toarray()] == [
        {part: sample.count(part) for part in sample} for sample in samples
    ]


def test_amounts_are_all_columns_of_a_block_and_never_negative() -> None:
    space = get_space("ofa_mbv3")
    blocks, _ = count_parts([space.blocks(arch, 10) for arch in space.decode_all(space.sample(5, np.random.default_rng(0)))])
    parts = parts_of(blocks)
    common, inside, outside = work(blocks, parts), cold(blocks), boundary(blocks)
    nothing = np.zeros((len(blocks), 2))
    np.testing.assert_array_equal(amounts(blocks, parts, alone=False), np.hstack([common, inside, nothing]))
    np.testing.assert_array_equal(amounts(blocks, parts, alone=True), np.hstack([common, nothing, outside]))
    assert min(each.min() for each in (common, inside, outside)) >= 0


# ---- published rows


@pytest.fixture(scope="module")
def public() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
        return importlib.import_module("public_tables")


@pytest.mark.parametrize(
    ("name", "target", "bar"),
    [
        ("ofa_note10", "note10", (0.93, 0.99)),
        ("accel_nasbench", "latency_zcu102", (0.99, 0.999)),
        ("accel_nasbench", "throughput_tpuv2", (0.92, 0.99)),
    ],
)
def test_published_rows_are_predicted_from_a_few_of_them(
    shared: Path, public: ModuleType, name: str, target: str, bar: tuple[float, float]
) -> None:
    source = public.SOURCES[name]
    table = public.read_public(name, shared / "latency" / source.file)
    samples = [[block for stage in sample for block in stage] for sample in table.samples]
    latency_ms = table.latency_ms[target]
    train, rest = np.split(np.random.default_rng(100).permutation(len(samples)), [source.train])
    known, counts = count_parts([samples[i] for i in train])
    parts = parts_of(known)
    regression = Regression.fit(counts, amounts(known, parts, alone=table.alone), latency_ms[train])
    assert regression.correction is not None
    unseen, counts = count_parts([samples[i] for i in rest])
    error = np.abs(regression.predict(counts, amounts(unseen, parts, alone=table.alone)) / latency_ms[rest] - 1)
    assert (error <= 0.05).mean() >= bar[0]
    assert (error <= 0.10).mean() >= bar[1]


PUBLISHED = "4320 4511 4310 4510 1511 6531 4510"
"""Expansion, kernel, depth and squeeze-and-excitation of the stages of a network of Accel-NASBench (Apache-2.0)."""


def accel_row(**changes: str) -> dict[str, str]:
    stages = enumerate(PUBLISHED.split())
    choices = {f"block{i}_{what}": value for i, stage in stages for what, value in zip(("e", "k", "l", "se"), stage, strict=True)}
    row = choices | {"params_M": "3.610524", "latency_zcu102": "4.0", "latency_zcu102_std": "", "throughput_3090": "500"}
    return row | changes


def write(path: Path, *rows: dict[str, str]) -> Path:
    path.write_text("\n".join([",".join(rows[0]), *(",".join(row.values()) for row in rows)]) + "\n")
    return path


def test_an_accelerator_table_becomes_blocks_and_milliseconds(public: ModuleType, tmp_path: Path) -> None:
    table = public.read_public("accel_nasbench", write(tmp_path / "t.csv", accel_row(), accel_row(latency_zcu102="")))
    assert set(table.latency_ms) == {"latency_zcu102", "throughput_3090"}
    np.testing.assert_array_equal(table.latency_ms["latency_zcu102"], [4.0, np.nan])
    np.testing.assert_array_equal(table.latency_ms["throughput_3090"], [2.0, 2.0])
    stem, *stages, tail = table.samples[0]
    assert [len(each) for each in (stem, *stages, tail)] == [1, 2, 1, 1, 1, 1, 3, 1, 2]
    assert [stage[-1].out_size for stage in stages] == [112, 56, 28, 14, 14, 7, 7]
    assert [[block.squeeze for block in stage] for stage in stages if stage[0].squeeze] == [[4], [20], [28, 48, 48]]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (accel_row(params_M="4.2"), r"row 2 has 4\.2 M parameters"),
        (accel_row(block3_k="many"), "no table accel_nasbench"),
        ({key: value for key, value in accel_row().items() if key != "block6_se"}, "no column block6_se"),
    ],
)
def test_a_table_of_other_networks_is_refused(public: ModuleType, tmp_path: Path, row: dict[str, str], said: str) -> None:
    with pytest.raises(DamagedFileError, match=said):
        public.read_public("accel_nasbench", write(tmp_path / "t.csv", row))


def test_a_missing_table_is_said_to_be_so(public: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(DamagedFileError, match="cannot be read"):
        public.read_public("ofa_mbv3", tmp_path / "none.csv")


def test_a_padded_architecture_loses_its_padding(public: ModuleType, tmp_path: Path) -> None:
    row = {"r": "160"} | {f"d{i}": "2" for i in range(5)} | {f"ks{i}": "5" for i in range(20)} | {f"e{i}": "4" for i in range(20)}
    other = row | {"ks3": "7", "e3": "6", "ks2": "3"}
    table = public.read_public("ofa_mbv3", write(tmp_path / "t.csv", row | {"v100_64": "7.5"}, other | {"v100_64": "8"}))
    assert table.samples[0] == table.samples[1]
    np.testing.assert_array_equal(table.genomes[0], table.genomes[1])
    assert [len(each) for each in table.samples[0]] == [1, 1, 2, 2, 2, 2, 2, 3]
    assert {block.kernel for stage in table.samples[0][2:-1] for block in stage} == {5}
    assert list(table.latency_ms) == ["v100_64"]


def test_a_block_that_stands_in_several_tables_is_one_row(public: ModuleType, tmp_path: Path) -> None:
    key = "expanded_conv-input:10x10x136-output:10x10x136-expand:408-kernel:3-stride:1-idskip:1-se:1-hs:1"
    rows = [{"image_size": "160", "key": key, "mean_ms": ms, "std_ms": "0", "count": n} for ms, n in (("1", "300"), ("2", "100"))]
    table = public.read_public("ofa_note10", write(tmp_path / "t.csv", *rows))
    assert table.latency_ms["note10"].tolist() == [1.25]
    (((block,),),) = table.samples
    assert (block.size, block.mid_channels, block.squeeze, block.activation, block.residual) == (10, 408, 104, "hswish", True)
    assert json.dumps(table.genomes.tolist()) == "[[10, 136, 408, 136, 3, 1, 1]]"
