"""A finished run: its networks, and their weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from natdeploy.errors import UsageError
from natdeploy.hardware.device import Target
from natdeploy.pipeline.budget import spent_seconds
from natdeploy.pipeline.choice import choose_net
from natdeploy.pipeline.config import SearchConfig
from natdeploy.pipeline.last_stretch import CHOOSING_SECONDS, STATISTICS
from natdeploy.pipeline.search import read_config
from natdeploy.pipeline.setting import stored_convention, stored_space
from natdeploy.pipeline.train import CHECKPOINT, TUNED
from natdeploy.search import parse_constraint
from natdeploy.space import Arch
from natdeploy.store import FileRecord, NetRecord, RunStore
from natdeploy.supernet import Subnet, Supernet, restore


def nets(folder: Path) -> list[NetRecord]:
    """The final front and the baseline of a finished run.

    Raises:
        UsageError: there is no run, or it is not finished.
    """
    with RunStore.open(folder) as store:
        return list(finished_nets(store))


def files(folder: Path) -> list[FileRecord]:
    """Every file that was exported from a run, and those that were refused.

    Raises:
        UsageError: there is no run.
    """
    with RunStore.open(folder) as store:
        return store.files()


def finished_nets(store: RunStore) -> tuple[NetRecord, ...]:
    """The final front and the baseline.

    Raises:
        UsageError: the search is not finished.
    """
    if not store.get("finished"):
        raise UsageError(f"the search in {store.folder} is not finished; go on with `natdeploy resume {store.folder}`")
    return tuple(store.nets())


@dataclass(frozen=True)
class Adaptation:
    """What a run took to adapt the seed, as FNA (arXiv 2001.02525) splits it, in seconds of the machine that trained.

    Images, profiling, and judging on test images are in neither.

    Attributes:
        architecture_s: until its nets were chosen: the supernet's training, and the search.
        parameters_s: training of the chosen nets.
    """

    architecture_s: float
    parameters_s: float


def adaptation(store: RunStore) -> Adaptation | None:
    """Of a run whose nets are chosen, so far; None where they are not, or an earlier version of natdeploy did not tell."""
    chosen_s = store.get(CHOOSING_SECONDS)
    return None if chosen_s is None else Adaptation(chosen_s, spent_seconds(store) - chosen_s)


def select_nets(nets: Sequence[NetRecord], config: SearchConfig, which: str) -> list[NetRecord]:
    """Those that are meant by `front`, `baseline`, a rule, levels, bounds, or the beginning of an id (`choose_net`)."""
    if which in ("front", "baseline"):
        return [net for net in nets if net.role == which]
    chosen = choose_net(nets, config, which).id
    return [net for net in nets if net.role == "front" and net.id == chosen]


def own_target(net: NetRecord, target: Target) -> Target:
    """A target in the precision that the search chose for a net, if it chose one."""
    return replace(target, precision=net.precision or target.precision)


def latency_limit_ms(config: SearchConfig) -> float:
    """The tightest bound on latency; infinite where there is none."""
    constraints = map(parse_constraint, config.constraints)
    return min((each.bound for each in constraints if each.objective == "latency"), default=math.inf)


def load_supernet(store: RunStore) -> Supernet:
    """The supernet of a finished run, with averaged weights, in evaluation mode on the CPU.

    Raises:
        UsageError: the search is not finished.
        DamagedFileError: a checkpoint is.
    """
    width = Arch.parse(finished_nets(store)[0].arch).width
    weights = store.load_checkpoint(CHECKPOINT)
    assert weights is not None, "a finished run has them"
    return restore(
        _averaged(weights[0]),
        stored_space(read_config(store), store),
        width=width,
        padding=stored_convention(store).padding,
        norm_eps=store.get("norm_eps"),
        classes=len(store.get("classes")),
    )


def load_subnet(store: RunStore, arch: Arch, *, tuned: bool = False) -> Subnet:
    """A final net of a run, with its weights and its BatchNorm statistics, in evaluation mode on the CPU.

    Args:
        store: of the run.
        arch: one of its nets.
        tuned: with the weights that it was trained to alone.

    Raises:
        DamagedFileError: a checkpoint is.
    """
    subnet = load_supernet(store).extract(arch)
    if tuned:
        alone = store.load_checkpoint(f"{TUNED}-{arch.id}")
        assert alone is not None, "a tuned net has its weights in the run"
        subnet.load_state_dict(_averaged(alone[0]))
        return subnet.eval()
    statistics = store.load_checkpoint(STATISTICS)
    assert statistics is not None, "a finished run has them"
    own = {name.removeprefix(f"{arch.id}."): value for name, value in statistics[0].items() if name.startswith(f"{arch.id}.")}
    subnet.load_state_dict({**subnet.state_dict(), **own})
    return subnet.eval()


def _averaged(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix("average."): value for name, value in tensors.items() if name.startswith("average.")}
