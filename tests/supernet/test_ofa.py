"""Once-for-all's supernet: its checkpoints compute here what its own code computed when it wrote the golden files."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from natdeploy.errors import WeightsError
from natdeploy.space import Arch, Layer, cost, get_space
from natdeploy.supernet import Subnet, Supernet, load_supernet, read_seed, save_supernet, sort_channels, write_seed

SPACE = get_space("ofa_mbv3").restrict(resolutions=(48, 64, 80), widths=(0.25,))
LARGEST = 1
"""The golden subnet that is the whole supernet."""

Golden = list[tuple[Arch, int, dict[str, Tensor]]]


@pytest.fixture(scope="module")
def folder(shared: Path) -> Path:
    return shared / "ofa_golden"


@pytest.fixture(scope="module")
def golden(folder: Path) -> Golden:
    """Architecture, parameters, and x, y, ysorted of every subnet."""
    arrays = np.load(folder / "io.npz")
    result = []
    for number, values in enumerate(json.loads((folder / "subnets.json").read_text())):
        given: dict[str, Any] = {**values, "w": 0.25}
        arch = Arch.from_dict(given)
        arch = Arch(arch.resolution, arch.width, ((Layer(3, 1),), *arch.stages))
        result.append(
            (arch, given["params"], {name: torch.from_numpy(arrays[f"{name}{number}"]) for name in ("x", "y", "ysorted")})
        )
    return result


@pytest.fixture(params=["new", "old"])
def supernet(folder: Path, request: pytest.FixtureRequest) -> Supernet:
    return load_supernet(folder / f"ofa_mbv3_w0.25_{request.param}keys.pth", SPACE)


def error(actual: Tensor, expected: Tensor) -> float:
    """Largest difference relative to the largest value."""
    return float((actual - expected).abs().max() / expected.abs().max())


def noise(supernet: Supernet, arch: Arch, x: Tensor) -> float:
    """By how much weights and input that were rounded to fp32 another time move the exact output: nothing in fp32 is surer."""
    exact = supernet.extract(arch).double()
    expected, errors = exact(x.double()), []
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)

        def rounded(tensor: Tensor, generator: torch.Generator = generator) -> Tensor:
            return tensor * (1 + 2**-24 * torch.randn(tensor.shape, generator=generator).double())

        moved = copy.deepcopy(exact)
        for tensor in (*moved.parameters(), *(buffer for buffer in moved.buffers() if buffer.is_floating_point())):
            tensor.copy_(rounded(tensor))
        errors.append(error(moved(rounded(x.double())), expected))
    return max(errors)


@torch.no_grad()
def test_subnets_compute_what_they_did(supernet: Supernet, golden: Golden) -> None:
    for number, (arch, params, arrays) in enumerate(golden):
        x, y = arrays["x"], arrays["y"]
        subnet = supernet.extract(arch)
        # The largest net with its random statistics is ill-conditioned: rounding its weights once more moves its output by
        # 1e-4, and the golden one itself lies 7e-5 from what fp64 gives. Ours lies as far, by processor 4e-5 to 1e-4, on any side.
        limit = 1e-5 if number != LARGEST else noise(supernet, arch, x)
        assert limit < 2e-4
        assert error(copy.deepcopy(subnet).double()(x.double()), y.double()) <= limit
        rounded_twice = limit if number != LARGEST else 2 * limit
        assert error(supernet(x, arch), y) <= rounded_twice
        assert error(subnet(x), y) <= rounded_twice
        assert sum(parameter.numel() for parameter in subnet.parameters()) == params
        assert cost(SPACE, [arch], 10).params.tolist() == [params]


def test_the_file_is_recognised(folder: Path) -> None:
    for name, style in (("old", "once-for-all MobileNetV3"), ("new", "once-for-all MobileNetV3, nested names")):
        seed = read_seed(folder / f"ofa_mbv3_w0.25_{name}keys.pth")
        assert (seed.format, seed.space.name, seed.arch.width, seed.classes) == (style, "ofa_mbv3", 0.25, 10)
        assert seed.supernet and seed.kernel_transforms
        assert seed.arch.depths == (1, 4, 4, 4, 4, 4) and {layer for stage in seed.arch.stages[1:] for layer in stage} == {
            Layer(7, 6)
        }


@pytest.mark.parametrize(("width", "channels"), [(1.0, 16), (1.2, 24)])
def test_widths_of_the_released_checkpoints(folder: Path, tmp_path: Path, width: float, channels: int) -> None:
    space = get_space("ofa_mbv3")
    own = Supernet(space, 3, width=width, kernel_transforms=True).state_dict()
    # The golden file says how a supernet of any width names its tensors: those of equal values are the same.
    named = torch.load(folder / "ofa_mbv3_w0.25_oldkeys.pth", weights_only=True)["state_dict"]
    small = read_seed(folder / "ofa_mbv3_w0.25_oldkeys.pth").state
    state = {next(name for name in named if same(named[name], value)): own[ours] for ours, value in small.items()}
    state["feature_mix_layer.conv.weight"] = state["feature_mix_layer.conv.weight"][:, :, None, None]
    torch.save({"state_dict": state}, tmp_path / "ofa.pth")
    seed = read_seed(tmp_path / "ofa.pth")
    assert (seed.arch.width, seed.classes, seed.space.widths) == (width, 3, (width,))
    assert len(seed.state["stem.conv.weight"]) == channels
    loaded = load_supernet(tmp_path / "ofa.pth")
    assert all(torch.equal(tensor, own[name]) for name, tensor in loaded.state_dict().items())


def same(tensor: Tensor, other: Tensor) -> bool:
    return tensor.numel() == other.numel() and torch.equal(tensor.flatten().float(), other.flatten())


# ---- channel sorting


@torch.no_grad()
def test_sorting_gives_what_the_reference_gives(supernet: Supernet, golden: Golden) -> None:
    """It was made while expansions 6 and 4 were in use, which keep the channels they have."""
    largest, _, arrays = golden[LARGEST]
    limit = noise(supernet, largest, arrays["x"])
    before = supernet.extract(largest).double()(arrays["x"].double())
    sort_channels(supernet, (4, 6))
    for number, (arch, _, arrays) in enumerate(golden):
        assert error(supernet(arrays["x"], arch), arrays["ysorted"]) <= (1e-5 if number != LARGEST else 1e-3)
    largest, _, arrays = golden[LARGEST]
    after = supernet.extract(largest).double()(arrays["x"].double())
    assert error(after, before) <= 1e-9 < limit


@torch.no_grad()
def test_sorting_without_groups_puts_the_most_important_first(folder: Path, golden: Golden) -> None:
    supernet = load_supernet(folder / "ofa_mbv3_w0.25_newkeys.pth", SPACE)
    arch, _, arrays = golden[LARGEST]
    before = supernet.extract(arch).double()(arrays["x"].double())
    sort_channels(supernet)
    assert error(supernet.extract(arch).double()(arrays["x"].double()), before) <= 1e-9
    state = supernet.state_dict()
    for number, place in ((1, 0), (2, 3), (5, 1)):
        importance = state[f"stages.{number}.{place}.project.conv.weight"].abs().sum((0, 2, 3))
        assert bool((importance.diff() <= 0).all())
    hidden = state["stages.2.3.squeeze.expand.weight"].abs().sum((0, 2, 3))
    assert bool((hidden.diff() <= 1e-6).all())


# ---- our own files


@torch.no_grad()
def test_round_trip(supernet: Supernet, golden: Golden, tmp_path: Path) -> None:
    save_supernet(supernet, tmp_path / "supernet.safetensors", {"input": "ImageNet mean and std"})
    seed = read_seed(tmp_path / "supernet.safetensors", SPACE)
    assert (seed.format, seed.padding, seed.supernet, seed.kernel_transforms) == ("natdeploy", "symmetric", True, True)
    assert seed.metadata["space"] == "ofa_mbv3" and seed.metadata["input"] == "ImageNet mean and std"
    again = load_supernet(tmp_path / "supernet.safetensors", SPACE)
    arch, _, arrays = golden[0]
    assert torch.equal(again(arrays["x"], arch), supernet(arrays["x"], arch))


def test_supernets_without_transformations(tmp_path: Path) -> None:
    demo = get_space("demo")
    supernet = Supernet(demo, 4, padding="same", norm_eps=2e-4)
    save_supernet(supernet, tmp_path / "supernet.safetensors")
    again = load_supernet(tmp_path / "supernet.safetensors")
    assert (again.space, again.classes, again.padding, again.norm_eps) == (demo, 4, "same", 2e-4)
    assert not again.stages[1][0].depthwise.transformed  # type: ignore[index, union-attr]
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), supernet.state_dict().values(), strict=True))


def test_one_network_is_no_supernet(tmp_path: Path) -> None:
    demo = get_space("demo")
    write_seed(Subnet(demo, demo.decode(demo.upper), 4), tmp_path / "seed.safetensors")
    with pytest.raises(WeightsError, match=r"holds one network, .* and no supernet; make one of it"):
        load_supernet(tmp_path / "seed.safetensors")


def test_a_supernet_must_be_whole(tmp_path: Path) -> None:
    demo = get_space("demo")
    state = {name: tensor for name, tensor in Supernet(demo, 4).state_dict().items() if not name.startswith("stages.2.2.")}
    save_file(state, tmp_path / "supernet.safetensors", {"holds": "supernet", "space": "demo"})
    with pytest.raises(WeightsError, match="not those of the largest one of demo"):
        load_supernet(tmp_path / "supernet.safetensors")
    state = Supernet(demo, 4, kernel_transforms=True).state_dict()
    del state["stages.1.0.depthwise.transforms.3"]
    save_file(state, tmp_path / "supernet.safetensors", {"holds": "supernet", "space": "demo"})
    with pytest.raises(WeightsError, match=r"missing: stages\.1\.0\.depthwise\.transforms\.3"):
        load_supernet(tmp_path / "supernet.safetensors")
