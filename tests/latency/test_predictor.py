"""Predictors: on an invented machine whose law is known, and against damage."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from natdeploy.errors import DamagedFileError, UsageError
from natdeploy.latency.blocks import Parts, amounts, boundary, cold, parts_of, work, work_names
from natdeploy.latency.plan import make_plan, space_blocks
from natdeploy.latency.predictor import LatencyPredictor, quality_text
from natdeploy.latency.regression import count_parts
from natdeploy.latency.table import BlockRow, Origin, Provenance, SubnetRow, Table, Timing
from natdeploy.space import Block, get_space

SPACE = get_space("mbv2")
CLASSES = 10
CALL_MS = 0.02


def within_ms(block: Block) -> float:
    """The invented machine: every kernel has its own cost, each layer starts up, memory costs too."""
    depthwise = {3: 9e-8, 5: 5e-8, 7: 4e-8}.get(block.kernel, 0.0)
    traffic = 2e-8 * block.activation_bytes + 4e-8 * block.params
    macs = 1.3e-8 * (block.expand_macs + block.project_macs) + depthwise * block.depthwise_macs
    return macs + traffic + 0.004 * (block.kind == "mbconv")


def alone_ms(block: Block) -> float:
    return 0.9 * within_ms(block) + CALL_MS + 2e-7 * block.size**2 * block.in_channels


def timing(latency_ms: float) -> Timing:
    return Timing(latency_ms, latency_ms, 30, 3, False)


def invented_table(noise: float, *, fit: int = 24, least_ms: float = 0.0) -> Table:
    """No network takes less than `least_ms`: then the processor waits for the one that feeds it."""
    plan = make_plan(SPACE, CLASSES, blocks=90, least=90, fit=fit, test=30, seed=0)
    rng = np.random.default_rng(0)

    def noisy(latency_ms: float) -> Timing:
        return timing(latency_ms * float(np.exp(noise * rng.standard_normal())))

    subnets = [
        SubnetRow(arch, role, noisy(max(CALL_MS + sum(map(within_ms, blocks)), least_ms)))
        for role, archs in (("fit", plan.fit), ("test", plan.test))
        for arch in archs
        for blocks in [SPACE.blocks(arch, CLASSES)]
    ]
    provenance = Provenance.model_construct(
        device="host",
        runtime="onnxruntime",
        runtime_version="1",
        precision="fp32",
        threads=1,
        space=SPACE.name,
        classes=CLASSES,
        utc="2026-01-01T00:00:00+00:00",
    )
    return Table(tuple(BlockRow(block, noisy(alone_ms(block))) for block in plan.blocks), tuple(subnets), provenance)


@pytest.fixture(scope="module")
def table() -> Table:
    return invented_table(noise=0.02)


@pytest.fixture(scope="module")
def predictor(table: Table) -> LatencyPredictor:
    return LatencyPredictor.fit(table, SPACE)


def test_work_names_its_columns_and_puts_each_kernel_into_its_own() -> None:
    blocks = [block for block in space_blocks(SPACE, CLASSES) if block.kind == "mbconv"]
    parts = parts_of(blocks)
    names = work_names(parts)
    columns = work(blocks, parts)
    assert columns.shape == (len(blocks), len(names))
    own = [i for i, name in enumerate(names) if name.startswith("depthwise k")]
    assert ((columns[:, own] > 0).sum(axis=1) == 1).all()
    b = blocks[0]
    assert columns[0, names.index(f"depthwise k{b.kernel} s{b.stride} macs")] == b.depthwise_macs
    assert work([], parts).shape == (0, len(names))
    assert boundary([]).shape == cold([]).shape == (0, 2)


def test_a_dilated_kernel_has_a_column_of_its_own() -> None:
    dense = replace(SPACE, output_stride=SPACE.stem_stride)
    blocks = [block for block in space_blocks(dense, CLASSES) if block.kind == "mbconv"]
    assert {block.dilation for block in blocks} > {1}
    parts = parts_of(blocks)
    columns = [dict(zip(work_names(parts), row, strict=True)) for row in work(blocks, parts)]
    for block, row in zip(blocks, columns, strict=True):
        dilated = f" d{block.dilation}" if block.dilation > 1 else ""
        own = {name for name, value in row.items() if name.startswith("depthwise k") and value}
        assert own == {f"depthwise k{block.kernel} s{block.stride}{dilated} macs"}


def test_squeeze_and_hswish_have_columns_where_they_occur() -> None:
    assert not {"squeezes", "hswish elements"} & set(work_names(parts_of(space_blocks(SPACE, CLASSES))))
    blocks = space_blocks(get_space("mbv3_large"), CLASSES)
    parts = parts_of(blocks)
    assert (parts.squeeze, parts.hswish) == (True, True)
    names, columns = work_names(parts), work(blocks, parts)
    for row, block in zip(columns, blocks, strict=True):
        value = dict(zip(names, row, strict=True))
        assert value["squeezes"] == (block.squeeze > 0)
        assert (value["squeeze weights"] > 0) == (block.squeeze > 0)
        assert (value["hswish elements"] > 0) == (block.activation == "hswish")
    block = Block("mbconv", 16, 24, 96, 40, 5, 2, "hswish", squeeze=24)
    value = dict(zip(names, work([block], parts)[0], strict=True))
    assert value["hswish elements"] == 96 * (16**2 + 8**2), "behind expand and depthwise, at their own sizes"
    assert value["squeeze elements"] == 96 * 8**2
    assert value["squeeze weights"] == 96 * 24
    without = replace(block, activation="relu", squeeze=0)
    plain = Parts(parts.depthwise, squeeze=False, hswish=False)
    np.testing.assert_array_equal(work([block], plain), work([without], plain))


def test_unseen_networks_of_a_noisy_machine_are_predicted(predictor: LatencyPredictor) -> None:
    quality = predictor.quality
    assert quality.n == 30
    assert quality.within_5 >= 0.85
    assert quality.within_10 == 1.0
    assert quality.spearman > 0.99
    assert 0.7 <= quality.coverage <= 1.0
    assert re.search(r"30 unseen networks: within 5 % \d+%", quality_text(quality))


def test_the_smaller_the_noise_the_smaller_the_error() -> None:
    assert LatencyPredictor.fit(invented_table(noise=0.0), SPACE).quality.mape < 0.01


def test_totals_of_genotypes_are_predictions_of_architectures(predictor: LatencyPredictor) -> None:
    genotypes = SPACE.sample(50, np.random.default_rng(1))
    archs = SPACE.decode_all(genotypes)
    prediction = predictor.predict(SPACE, archs, CLASSES)
    total = predictor.total(SPACE, CLASSES)(genotypes)
    np.testing.assert_allclose(prediction.latency_ms, total)
    truth = np.array([CALL_MS + sum(map(within_ms, SPACE.blocks(arch, CLASSES))) for arch in archs])
    assert np.abs(total / truth - 1).mean() < 0.05
    assert (prediction.low_ms < prediction.latency_ms).all()
    assert (prediction.latency_ms < prediction.high_ms).all()
    assert prediction.known.all()


@pytest.fixture(scope="module")
def boosted() -> LatencyPredictor:
    """Of a machine whose networks are no sums of their blocks."""
    return LatencyPredictor.fit(invented_table(noise=0.005, fit=120, least_ms=1.5), SPACE)


def test_a_look_up_says_what_the_regression_says_of_counted_blocks(predictor: LatencyPredictor, boosted: LatencyPredictor) -> None:
    archs = SPACE.decode_all(SPACE.sample(40, np.random.default_rng(6)))
    found, counts = count_parts([SPACE.blocks(arch, CLASSES) for arch in archs])
    for each, has in ((predictor, False), (boosted, True)):
        state = each._regression
        assert (state.booster is not None) == has
        direct = state.predict(counts, amounts(found, each._parts, alone=False))
        np.testing.assert_allclose(each.predict(SPACE, archs, CLASSES).latency_ms, direct)


def test_what_no_sum_of_blocks_says_is_learned_from_networks(boosted: LatencyPredictor, tmp_path: Path) -> None:
    assert boosted.quality is not None
    assert boosted.quality.mape < 0.04
    boosted.save(tmp_path / "predictor.json")
    back = LatencyPredictor.load(tmp_path / "predictor.json")
    genotypes = SPACE.sample(30, np.random.default_rng(2))
    assert (back.total(SPACE, CLASSES)(genotypes) == boosted.total(SPACE, CLASSES)(genotypes)).all()


def test_convolutions_that_cost_by_tiles_are_recognised(predictor: LatencyPredictor, table: Table) -> None:
    def tiles_ms(block: Block) -> float:
        return 1.5e-4 * -(-(block.out_size**2) // 6) * block.mid_channels * (block.kind == "mbconv" and block.kernel == 7)

    slower = tuple(
        replace(row, timing=timing(row.timing.latency_ms + sum(map(tiles_ms, SPACE.blocks(row.arch, CLASSES)))))
        for row in table.subnets
    )
    blocks = tuple(replace(row, timing=timing(row.timing.latency_ms + tiles_ms(row.block))) for row in table.blocks)
    tiled = LatencyPredictor.fit(replace(table, subnets=slower, blocks=blocks), SPACE)
    assert predictor._parts.tile == 1
    assert tiled._parts.tile == 6
    assert tiled.quality is not None
    assert tiled.quality.mape < 0.04


def test_blocks_that_run_alone_are_predicted(predictor: LatencyPredictor) -> None:
    blocks = [block for block in space_blocks(SPACE, CLASSES) if block.kind == "mbconv"]
    error = np.abs(predictor.predict_blocks(blocks) / [alone_ms(block) for block in blocks] - 1)
    assert error.mean() < 0.05


def test_what_was_never_measured_is_flagged(table: Table) -> None:
    def seen(block: Block) -> bool:
        return block.kernel != 7 and block.size <= 128

    kept = tuple(row for row in table.blocks if seen(row.block))
    nets = tuple(row for row in table.subnets if row.role == "test" or all(map(seen, SPACE.blocks(row.arch, CLASSES))))
    small = SPACE.restrict(resolutions=[64, 96])
    rng = np.random.default_rng(3)
    extra = [arch for arch in small.decode_all(small.sample(1500, rng)) if all(map(seen, SPACE.blocks(arch, CLASSES)))][:6]
    nets += tuple(SubnetRow(arch, "fit", timing(1.0 + i)) for i, arch in enumerate(extra))
    predictor = LatencyPredictor.fit(replace(table, blocks=kept, subnets=nets), SPACE)
    archs = SPACE.decode_all(SPACE.sample(60, rng)) + extra
    known = predictor.predict(SPACE, archs, CLASSES).known
    assert known[-len(extra) :].all()
    assert [bool(each) for each in known] == [all(map(seen, SPACE.blocks(arch, CLASSES))) for arch in archs]


def test_an_activation_or_a_squeeze_that_was_never_measured_is_flagged(predictor: LatencyPredictor) -> None:
    archs = SPACE.decode_all(SPACE.sample(5, np.random.default_rng(4)))
    for change in ({"squeeze": True}, {"activation": "hswish"}):
        stages = [replace(stage, **change) if number == 3 else stage for number, stage in enumerate(SPACE.stages)]  # type: ignore[arg-type]
        assert not predictor.predict(replace(SPACE, name="other", stages=tuple(stages)), archs, CLASSES).known.any()


def test_more_classes_than_measured_are_flagged_and_fewer_are_not(predictor: LatencyPredictor) -> None:
    arch = SPACE.decode(SPACE.lower)
    assert predictor.predict(SPACE, [arch], 2).known.all()
    assert not predictor.predict(SPACE, [arch], 1000).known.any()


def test_too_small_a_table_is_refused(table: Table) -> None:
    with pytest.raises(UsageError, match="0 networks to learn from"):
        LatencyPredictor.fit(replace(table, subnets=tuple(row for row in table.subnets if row.role == "test")), SPACE)
    with pytest.raises(UsageError, match="3 blocks"):
        LatencyPredictor.fit(replace(table, blocks=table.blocks[:3]), SPACE)


def test_saved_and_loaded_it_predicts_the_same(predictor: LatencyPredictor, tmp_path: Path) -> None:
    path = tmp_path / "predictor.json"
    predictor.save(path)
    back = LatencyPredictor.load(path)
    genotypes = SPACE.sample(30, np.random.default_rng(2))
    assert (back.total(SPACE, CLASSES)(genotypes) == predictor.total(SPACE, CLASSES)(genotypes)).all()
    blocks = space_blocks(SPACE, CLASSES)
    assert (back.predict_blocks(blocks) == predictor.predict_blocks(blocks)).all()
    archs = SPACE.decode_all(genotypes)
    assert (back.predict(SPACE, archs, CLASSES).known == predictor.predict(SPACE, archs, CLASSES).known).all()
    assert (back.quality, back.made_for) == (predictor.quality, predictor.made_for)
    assert [each.name for each in tmp_path.iterdir()] == ["predictor.json"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda state: state["regression"].pop("call_ms"),
        lambda state: state.update(format="something else"),
        lambda state: state.update(surplus=1),
        lambda state: state["regression"].update(prices=state["regression"]["prices"][:-1], correction=None),
        lambda state: state["regression"].update(booster="{}"),
        lambda state: state["quality"].pop("mape"),
    ],
)
def test_a_damaged_file_is_refused(predictor: LatencyPredictor, tmp_path: Path, damage: object) -> None:
    assert callable(damage)
    path = tmp_path / "predictor.json"
    predictor.save(path)
    state = json.loads(path.read_text())
    damage(state)
    path.write_text(json.dumps(state))
    with pytest.raises(DamagedFileError, match=r"predictor\.json"):
        LatencyPredictor.load(path)


def test_a_truncated_or_missing_file_is_refused(predictor: LatencyPredictor, tmp_path: Path) -> None:
    path = tmp_path / "predictor.json"
    predictor.save(path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DamagedFileError, match="is no predictor"):
        LatencyPredictor.load(path)
    with pytest.raises(DamagedFileError, match="there is no predictor"):
        LatencyPredictor.load(tmp_path / "none.json")


def test_expected_latency_of_a_mixture_is_linear_and_agrees_with_predictions(predictor: LatencyPredictor) -> None:
    rng = np.random.default_rng(0)
    resolution, width = SPACE.resolutions[3], SPACE.widths[0]
    fixed, added = predictor.terms(SPACE, CLASSES, resolution, width)
    genotypes = SPACE.sample(50, rng)
    genotypes[:, 0], genotypes[:, 1] = 3, 0
    expected = predictor.total(SPACE, CLASSES)(genotypes)
    one_hot = np.eye(added.shape[1])[genotypes[:, 2:]]
    assert np.allclose(fixed + (one_hot * added).sum(axis=(1, 2)), expected)
    mixture = rng.dirichlet(np.ones(50))
    assert np.isclose(fixed + (np.tensordot(mixture, one_hot, 1) * added).sum(), mixture @ expected)
    assert (added[:, 0] == 0).all()


def slower_machine(table: Table, *, nets: int) -> Table:
    """Networks alone, on a machine twice as slow, whose depthwise convolutions are slower still."""
    rng = np.random.default_rng(5)
    fit, test = ([row for row in table.subnets if row.role == role] for role in ("fit", "test"))
    subnets = []
    for row in [*fit[:: len(fit) // nets][:nets], *test]:
        ms = 0.2 + sum(2 * within_ms(block) + 6e-8 * block.depthwise_macs for block in SPACE.blocks(row.arch, CLASSES))
        subnets.append(replace(row, timing=timing(ms * float(np.exp(0.01 * rng.standard_normal())))))
    return replace(table, blocks=(), subnets=tuple(subnets))


def test_a_few_networks_and_another_targets_blocks_make_a_predictor(table: Table) -> None:
    few = slower_machine(table, nets=12)
    with pytest.raises(UsageError, match="has 0 blocks"):
        LatencyPredictor.fit(few, SPACE)
    transferred = LatencyPredictor.fit(few.with_prior(table), SPACE)
    assert transferred.quality is not None
    assert transferred.quality.within_10 >= 0.9
    assert transferred.quality.spearman > 0.98


def test_an_imported_table_without_networks_predicts_sums_and_claims_nothing(table: Table) -> None:
    origin = Origin(kind="imported", format="ofa")
    imported = replace(table, subnets=(), provenance=table.provenance.model_copy(update={"origin": origin}))
    predictor = LatencyPredictor.fit(imported, SPACE)
    assert predictor.quality is None
    archs = SPACE.decode_all(SPACE.sample(20, np.random.default_rng(0)))
    found = predictor.predict(SPACE, archs, CLASSES)
    sums = [sum(alone_ms(block) for block in SPACE.blocks(arch, CLASSES)) for arch in archs]
    assert np.corrcoef(np.log(found.latency_ms), np.log(sums))[0, 1] > 0.98
    assert np.isinf(found.high_ms).all()
    assert (found.low_ms == 0).all()


def test_a_predictor_knows_what_it_was_made_for(predictor: LatencyPredictor) -> None:
    made = predictor.made_for
    assert made.differences(made) == ()
    other = made.model_copy(update={"runtime_version": "9.9", "threads": 2})
    assert made.differences(other) == (f"runtime version was {made.runtime_version}, is 9.9", "threads was 1, is 2")
