"""Files of weights with a dense head: what they hold comes back, and another network takes of it what fits."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from natdeploy.errors import WeightsError
from natdeploy.pipeline.setting import make_supernet, read_for
from natdeploy.space import HEAD_KINDS, HeadKind, HeadSpec, SearchSpace, get_space
from natdeploy.space.catalog import SPACES
from natdeploy.space.detectors import finds
from natdeploy.supernet import Seed, Subnet, Supernet, load_supernet, read_seed, remap, save_supernet, write_seed

CLASSES = 3


def headed(space: SearchSpace, kind: HeadKind, channels: int = 16) -> SearchSpace:
    """A space with a small head, for images that are no squares where the head does not ask for them."""
    spec = HeadSpec(kind, channels, rates=(1, 2))
    return replace(space, dense=spec, **({} if finds(kind) else {"output_stride": space.total_stride // 2, "aspect": 1.5}))


def noise(space: SearchSpace, resolution: int) -> Tensor:
    return torch.randn(1, 3, *space.input_size(resolution), generator=torch.Generator().manual_seed(0))


def supernet_of(space: SearchSpace, classes: int = CLASSES, seed: int = 0) -> Supernet:
    width = space.widths[0]
    return Supernet(space, classes, width=width, generator=torch.Generator().manual_seed(seed)).eval()


EVERY_HEAD = [("demo", kind) for kind in HEAD_KINDS]
EVERY_SPACE = list(zip([name for name in SPACES if name != "demo"], HEAD_KINDS, strict=False))


@pytest.mark.parametrize(("name", "kind"), [*EVERY_HEAD, *EVERY_SPACE])
@torch.no_grad()
def test_networks_and_supernets_come_back(name: str, kind: HeadKind, tmp_path: Path) -> None:
    space = headed(get_space(name).restrict(widths=(0.25,), resolutions=get_space(name).resolutions[:1]), kind)
    supernet, path = supernet_of(space), tmp_path / "net.safetensors"
    arch = space.decode(space.sample(1, np.random.default_rng(0))[0])
    x = noise(space, arch.resolution)
    expected = supernet(x, arch)

    save_supernet(supernet, path, {"input": "RGB in [-1,1]"})
    seed = read_seed(path)
    assert (seed.supernet, seed.classes, seed.padding) == (True, CLASSES, "symmetric")
    assert (seed.space.dense, seed.space.aspect, seed.space.output_stride) == (space.dense, space.aspect, space.output_stride)
    again = load_supernet(path)
    torch.testing.assert_close(again(x, arch), expected, rtol=0, atol=0)

    write_seed(supernet.extract(arch), path)
    seed = read_seed(path)
    assert (seed.supernet, seed.classes, seed.arch.stages, seed.space.dense) == (False, CLASSES, arch.stages, space.dense)
    network = Subnet(replace(seed.space, resolutions=(arch.resolution,)), replace(seed.arch, resolution=arch.resolution), CLASSES)
    network.load_state_dict({**network.state_dict(), **seed.state})
    torch.testing.assert_close(network.eval()(x), supernet.extract(arch)(x), rtol=0, atol=0)


@given(channels=st.lists(st.integers(1, 6), min_size=5, max_size=5), kind=st.sampled_from(HEAD_KINDS))
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_channels_that_follow_no_width_come_back(channels: list[int], kind: HeadKind, tmp_path: Path) -> None:
    own = get_space("demo").with_channels(8 * channels[0], [8 * count for count in channels[1:]], 64)
    supernet = supernet_of(headed(own, kind))
    save_supernet(supernet, tmp_path / "net.safetensors")
    again = load_supernet(tmp_path / "net.safetensors").state_dict()
    expected = supernet.state_dict()
    assert again.keys() == expected.keys() and all(torch.equal(again[name], tensor) for name, tensor in expected.items())


# ---- as seeds


def read_back(supernet: Supernet, path: Path, *, shared: bool) -> tuple[Seed, SearchSpace]:
    """A supernet, or its largest network alone, as a seed from a file, and the space for a search from it."""
    if shared:
        save_supernet(supernet, path)
    else:
        write_seed(supernet.extract(supernet.space.decode(supernet.space.upper)), path)
    return read_for(path, get_space("demo"))


@pytest.mark.parametrize("kind", HEAD_KINDS)
@pytest.mark.parametrize("shared", [True, False], ids=["supernet", "network"])
def test_the_same_head_keeps_all_but_what_depends_on_its_classes(kind: HeadKind, shared: bool, tmp_path: Path) -> None:
    given_ = supernet_of(headed(get_space("demo"), kind), seed=1)
    seed, plain = read_back(given_, tmp_path / "seed.safetensors", shared=shared)
    assert plain.dense is None
    generator = torch.Generator().manual_seed(2)
    same, report = make_supernet(seed, headed(plain, kind), CLASSES, "symmetric", generator)
    assert not report.unused and not report.unmapped
    theirs, ours = given_.state_dict(), same.state_dict()
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items() if name.startswith(("classifier.", "stem.")))

    other, report = make_supernet(seed, headed(plain, kind), CLASSES + 2, "symmetric", generator)
    ours = other.state_dict()
    head = {name for name in ours if name.startswith("classifier.") and not name.endswith("num_batches_tracked")}
    alike = {name for name in head if ours[name].shape == theirs[name].shape}
    assert alike and alike < head
    assert {*report.unmapped} == head - alike
    assert all(torch.equal(ours[name], theirs[name]) for name in alike)


@pytest.mark.parametrize("shared", [True, False], ids=["supernet", "network"])
def test_another_head_or_a_classifier_takes_the_stages(shared: bool, tmp_path: Path) -> None:
    given_ = supernet_of(headed(get_space("demo"), "lraspp"), seed=1)
    seed, plain = read_back(given_, tmp_path / "seed.safetensors", shared=shared)
    for wanted in (headed(plain, "deeplabv3"), headed(plain, "lraspp", channels=8), headed(plain, "ssdlite"), plain):
        supernet, report = make_supernet(seed, wanted, CLASSES, "symmetric", torch.Generator().manual_seed(2))
        theirs, ours = given_.state_dict(), supernet.state_dict()
        assert all(name.startswith(("classifier.", "head.")) for name in report.unmapped), report.unmapped
        assert {name.partition(".")[0] for name in report.unused} == {"classifier"}
        assert torch.equal(ours["stages.3.0.project.norm.weight"], theirs["stages.3.0.project.norm.weight"])


def test_remapping_between_networks_of_the_same_head(tmp_path: Path) -> None:
    space = headed(get_space("demo"), "deeplabv3")
    arch = space.decode(space.upper)
    source = supernet_of(space, seed=1).extract(arch)
    target = supernet_of(space, classes=CLASSES + 1).extract(arch)
    report = remap(source, target)
    assert set(report.unmapped) == {"classifier.logits.weight", "classifier.logits.bias"} == set(report.unused)


# ---- refusals


def _saved(path: Path, change: Callable[[dict[str, Tensor], dict[str, str]], None]) -> Path:
    save_supernet(supernet_of(headed(get_space("demo"), "deeplabv3")), path)
    with safe_open(path, "pt") as file:
        tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata())  # noqa: SIM118
    change(tensors, metadata)
    save_file(tensors, path, metadata)
    return path


def _head(metadata: dict[str, str], **values: object) -> None:
    metadata["head"] = json.dumps({**json.loads(metadata["head"]), **values})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda _, m: m.update(head="deeplabv3"), "states a dense head that cannot be read: invalid JSON"),
        (lambda _, m: _head(m, kind="fcn"), "states a dense head that does not fit space demo: there is no head 'fcn'; choose"),
        (lambda _, m: _head(m, classes=0), "states a dense head that cannot be read: classes: "),
        (lambda _, m: _head(m, code="print(1)"), "states a dense head that cannot be read: code: "),
        (lambda _, m: _head(m, output_stride=5), "states a dense head that does not fit space demo: output_stride must be one of"),
        (lambda _, m: _head(m, channels=0), "states a dense head that does not fit space demo: a head needs channels"),
        (lambda _, m: _head(m, aspect=-1), "states a dense head that does not fit space demo: aspect must be positive"),
        (lambda _, m: _head(m, classes=4), r"of another shape: classifier\.logits\.weight"),
        (lambda _, m: _head(m, kind="lraspp"), r"missing: classifier\.lraspp"),
        (lambda _, m: m.pop("head"), r"missing: head\.conv\.weight"),
        (lambda t, _: t.pop("classifier.logits.bias"), r"missing: classifier\.logits\.bias"),
        (lambda t, _: t["classifier.logits.bias"].fill_(torch.nan), r"not finite in classifier\.logits\.bias"),
    ],
)
def test_what_is_no_head_is_refused(
    change: Callable[[dict[str, Tensor], dict[str, str]], None], message: str, tmp_path: Path
) -> None:
    path = _saved(tmp_path / "net.safetensors", change)
    with pytest.raises(WeightsError, match=message):
        read_seed(path)
