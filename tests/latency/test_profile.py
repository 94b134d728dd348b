"""Plans cover the space, and measuring one can be interrupted anywhere."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from natdeploy.errors import DamagedFileError
from natdeploy.hardware.device import parse_target
from natdeploy.hardware.measure import QUICK
from natdeploy.latency import profile
from natdeploy.latency.blocks import block_key, input_shape
from natdeploy.latency.profile import Plan, make_plan, plan_blocks, plan_subnets, profile_table, reference_arch, space_blocks
from natdeploy.latency.table import Table
from natdeploy.progress import Silent
from natdeploy.runtimes import ort
from natdeploy.space import Arch, Block, cost, get_space
from natdeploy.space.catalog import SPACES
from natdeploy.supernet.subnet import Subnet, build_block

MBV2, DEMO = get_space("mbv2"), get_space("demo")


def test_space_blocks_are_those_of_its_architectures() -> None:
    known = space_blocks(DEMO, 10)
    assert len(set(known)) == len(known)
    seen = {block for arch in DEMO.decode_all(DEMO.sample(3000, np.random.default_rng(0))) for block in DEMO.blocks(arch, 10)}
    assert seen == set(known)


def test_block_plan_holds_every_choice_before_it_repeats_any() -> None:
    plan = plan_blocks(MBV2, 10, 150, np.random.default_rng(0))
    assert len(set(plan)) == len(plan) == 150
    families = {replace(block, size=0) for block in space_blocks(MBV2, 10)}
    first = plan[: len(families)]
    assert {replace(block, size=0) for block in first} == families
    assert {block.kind for block in plan[:3]} == {"stem", "head", "classifier"}
    sizes = {
        block.size for block in plan if (block.mid_channels, block.out_channels, block.kernel, block.stride) == (144, 24, 5, 1)
    }
    assert max(sizes) / min(sizes) >= 1.5


def test_block_plan_never_asks_for_more_than_there_is() -> None:
    plan = plan_blocks(DEMO, 10, 10**6, np.random.default_rng(0))
    assert sorted(plan) == sorted(space_blocks(DEMO, 10))


def test_subnets_are_spread_and_disjoint_with_the_extremes_to_learn_from() -> None:
    fit, test = plan_subnets(MBV2, 14, 20, np.random.default_rng(0))
    assert (len(fit), len(test)) == (14, 20)
    assert len({*fit, *test}) == 34
    macs = {role: np.sort(cost(MBV2, archs).macs) for role, archs in (("fit", fit), ("test", test))}
    assert macs["fit"][0] < macs["test"][0]
    assert macs["test"][-1] < macs["fit"][-1]
    assert np.diff(np.log(macs["test"])).max() < 0.7


def test_reference_is_of_the_space() -> None:
    for space in SPACES.values():
        space.validate(reference_arch(space))


@pytest.mark.parametrize("name", SPACES)
def test_a_plan_of_any_space_can_be_built_in_torch(name: str) -> None:
    space = SPACES[name]
    plan = make_plan(space, 10, blocks=70, fit=5, test=5, seed=0)
    assert len({*plan.fit, *plan.test}) == 10
    always = {block.kind for block in space.fixed_blocks(space.resolutions[0], space.widths[0], 10)}
    assert {block.kind for block in plan.blocks} == always | {"mbconv"}
    for block in plan.blocks[::6]:
        small = replace(block, size=min(block.size, 8))
        shape = (1, block.out_channels, small.out_size, small.out_size)
        found = build_block(small).eval()(torch.zeros(input_shape(small))).shape
        assert found == (shape if block.kind in {"stem", "mbconv"} else shape[:2])


def test_plans_repeat_with_their_seed_and_differ_between_seeds() -> None:
    one, same, other = (make_plan(MBV2, 5, blocks=80, fit=5, test=5, seed=seed) for seed in (1, 1, 2))
    assert one == same
    assert one.blocks != other.blocks
    assert one.test != other.test


@pytest.fixture
def plan() -> Plan:
    return make_plan(DEMO, 4, blocks=6, fit=2, test=2, seed=0)


class Converter:
    """Writes models, and is killed at the given one."""

    def __init__(self, killed_at: int | None = None) -> None:
        self.written: list[str] = []
        self.killed_at = killed_at

    def block(self, block: Block, path: Path) -> None:
        self._write(block_key(block), build_block(block), input_shape(block), path)

    def net(self, arch: Arch, path: Path) -> None:
        self._write(str(arch), Subnet(DEMO, arch, 4), (1, 3, arch.resolution, arch.resolution), path)

    def _write(self, name: str, module: torch.nn.Module, shape: tuple[int, ...], path: Path) -> None:
        if len(self.written) == self.killed_at:
            raise KeyboardInterrupt
        self.written.append(name)
        ort.convert(module, torch.zeros(shape), path, dynamic_size=False)


def measure(plan: Plan, folder: Path, converter: Converter) -> Table:
    target = parse_target("host")
    return profile_table(
        plan, converter.block, converter.net, target, folder, progress=Silent(), block_settings=QUICK, subnet_settings=QUICK
    )


def test_interrupted_measuring_goes_on_where_it_was(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile, "CHUNK", 4)
    with pytest.raises(KeyboardInterrupt):
        measure(plan, tmp_path, Converter(killed_at=7))
    journal = tmp_path / "measurements.jsonl"
    before = journal.read_text()
    assert before.count("\n") == 2
    journal.write_text(before + '{"rows": [{"id": "half a li')
    second = Converter()
    table = measure(plan, tmp_path, second)
    assert journal.read_text().startswith(before)
    assert not {str(arch) for arch in (*plan.fit, *plan.test)} & set(second.written[1:])
    assert [row.block for row in table.blocks] == list(plan.blocks)
    assert [row.arch for row in table.subnets if row.role == "test"] == list(plan.test)
    assert all(row.timing.latency_ms > 0 and row.timing.n >= 16 for row in (*table.blocks, *table.subnets))
    assert table.provenance.reference_ms > 0
    third = Converter()
    assert measure(plan, tmp_path, third) == table
    assert third.written == []


def test_another_measurement_or_a_damaged_journal_is_refused(plan: Plan, tmp_path: Path) -> None:
    journal = tmp_path / "measurements.jsonl"
    journal.write_text('{"target": "toaster"}\n')
    with pytest.raises(DamagedFileError, match="another measurement"):
        measure(plan, tmp_path, Converter())
    journal.unlink()
    with pytest.raises(KeyboardInterrupt):
        measure(plan, tmp_path, Converter(killed_at=0))
    journal.write_text(journal.read_text() + "{}\n")
    with pytest.raises(DamagedFileError, match="is damaged"):
        measure(plan, tmp_path, Converter())
    with pytest.raises(DamagedFileError, match="another measurement"):
        measure(replace(plan, classes=5), tmp_path, Converter())
