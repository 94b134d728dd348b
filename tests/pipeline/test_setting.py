"""Seeds of several kinds become the supernet of a search."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from natdeploy.errors import UsageError, WeightsError
from natdeploy.pipeline import SearchConfig, supernet_import, supernet_info
from natdeploy.pipeline.setting import make_supernet, nearest, prepare, read_for
from natdeploy.progress import Silent
from natdeploy.space import Arch, cost, get_space
from natdeploy.supernet import RemapRules, Supernet, load_supernet, read_seed, save_supernet

MBV2, MBV3, OFA, PROXYLESS, DEMO = map(get_space, ("mbv2", "mbv3_large", "ofa_mbv3", "proxyless", "demo"))
STATED = {"input": "ImageNet mean and std", "padding": "symmetric"}


def chance() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def mobilenet_v3(folder: Path, classes: int = 5) -> Path:
    """torchvision's, with random weights."""
    torch.manual_seed(0)
    state = torchvision.models.mobilenet_v3_large(weights=None, num_classes=classes).state_dict()
    save_file(state, folder / "v3.safetensors", STATED)
    return folder / "v3.safetensors"


def epsilons(network: nn.Module) -> set[float]:
    return {module.eps for module in network.modules() if isinstance(module, nn.BatchNorm2d)}


@torch.no_grad()
def test_mobilenet_v3_prepares_a_search(digits: Path, tmp_path: Path) -> None:
    config = SearchConfig(data=digits, out=tmp_path / "run", space="mbv3_large", seed_weights=mobilenet_v3(tmp_path))
    setting = prepare(config, Silent())
    assert (setting.space.name, setting.convention.padding, setting.convention.mean[0]) == ("mbv3_large", "symmetric", 0.485)
    assert epsilons(setting.supernet) == {1e-3} and setting.facts()["norm_eps"] == 1e-3
    assert setting.report.unmapped == ("classifier.bias", "classifier.weight")
    arch = setting.seed_arch(64)
    x = torch.randn(2, 3, 64, 64, generator=chance())
    torch.testing.assert_close(setting.supernet.eval().extract(arch)(x), setting.supernet(x, arch), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_a_search_remaps_by_the_rules_it_is_given(digits: Path, tmp_path: Path) -> None:
    config = SearchConfig(data=digits, out=tmp_path / "run", space="mbv3_large", seed_weights=mobilenet_v3(tmp_path))
    first = config.model_copy(update={"remap": RemapRules(width="first")})
    own = read_for(mobilenet_v3(tmp_path), MBV3)[0].state["stages.1.0.expand.conv.weight"]
    for asked, kept in ((config, False), (first, True)):
        weight = prepare(asked, Silent()).supernet.state_dict()["stages.1.0.expand.conv.weight"]
        assert torch.equal(weight[: len(own)], own) == kept, "the default sorts channels"


@pytest.mark.parametrize("name", ["proxyless-w0.25-r112_imagenet.pth", "proxyless-w0.3-r176_imagenet.pth"])
def test_real_proxyless_makes_a_supernet(shared: Path, name: str) -> None:
    seed, space = read_for(shared / "weights" / name, PROXYLESS)
    supernet, report = make_supernet(seed, space, 12, "symmetric", chance())
    assert supernet.space.size == PROXYLESS.restrict(widths=(1.0,)).size and epsilons(supernet) == {1e-3}
    assert report.unmapped == ("classifier.bias", "classifier.weight") and report.copied_layers == 2
    assert space.encode(nearest(space, seed.arch)).tolist() == space.encode(seed.arch).tolist()


def test_a_supernet_is_taken_as_it_is(shared: Path, tmp_path: Path) -> None:
    path = shared / "ofa_golden/ofa_mbv3_w0.25_newkeys.pth"
    seed, space = read_for(path, OFA)
    supernet, report = make_supernet(seed, space, 12, "symmetric", chance())
    assert report.unmapped == report.unused == ("classifier.bias", "classifier.weight")
    own, state = load_supernet(path).state_dict(), supernet.state_dict()
    assert supernet.classes == 12 and epsilons(supernet) == {1e-5}
    assert all(torch.equal(state[name], tensor) for name, tensor in own.items() if not name.startswith("classifier."))
    whole, report = make_supernet(seed, space, 10, "symmetric", chance())
    assert not report.unmapped and torch.equal(whole.classifier.weight, own["classifier.weight"])


@torch.no_grad()
def test_a_seed_of_one_space_in_another(tmp_path: Path) -> None:
    """A space whose networks are made of larger layers takes the seed all the same, at the architecture that has room for it."""
    stages = tuple(
        stage if stage.fixed else replace(stage, kernels=(5, 7), expansions=(4, 6), min_depth=3, max_depth=4)
        for stage in MBV3.stages
    )
    space = replace(MBV3, name="mine", stages=stages)
    seed, chosen = read_for(mobilenet_v3(tmp_path), space)
    assert seed.space.name == "mbv3_large" and chosen == space
    supernet, _ = make_supernet(seed, chosen, 5, "symmetric", chance())
    arch = nearest(space, Arch(64, 1.0, seed.arch.stages))
    space.validate(arch)
    assert str(arch) == "r64-w1-k3e1-k5e4.k5e4.k5e4-k5e4.k5e4.k5e4-k5e6.k5e4.k5e4.k5e4-k5e6.k5e6.k5e6-k5e6.k5e6.k5e6"
    own, _ = make_supernet(*read_for(tmp_path / "v3.safetensors", MBV3), 5, "symmetric", chance())
    x = torch.randn(2, 3, 64, 64, generator=chance())
    torch.testing.assert_close(supernet.eval()(x, arch), own.eval()(x, seed.arch), atol=1e-5, rtol=1e-4)


def test_a_seed_without_a_place_in_the_space_is_refused(tmp_path: Path) -> None:
    seed, chosen = read_for(mobilenet_v3(tmp_path), OFA)
    with pytest.raises(WeightsError, match=r"no place for mix\.linear\.bias"):
        make_supernet(seed, chosen, 5, "symmetric", chance())


# ---- files


def test_info_of_a_network_counts_what_torchvision_has(tmp_path: Path) -> None:
    info = supernet_info(mobilenet_v3(tmp_path, 1000))
    reference = torchvision.models.mobilenet_v3_large(weights=None)
    assert info.largest == info.smallest
    assert info.largest.params == sum(parameter.numel() for parameter in reference.parameters())
    assert (info.holds, info.format, info.space, info.classes) == ("network", "torchvision MobileNetV3", "mbv3_large", 1000)
    assert (info.norm_eps, info.padding, info.input) == (1e-3, "symmetric", "ImageNet mean and std")
    assert info.channels == (16, 16, 24, 40, 80, 112, 160, 960, 1280)


def test_info_of_a_supernet_spans_its_architectures(shared: Path) -> None:
    info = supernet_info(shared / "ofa_golden/ofa_mbv3_w0.25_oldkeys.pth")
    assert (info.holds, info.kernel_transforms, info.width, info.tensors) == ("supernet", True, 0.25, 411)
    space = OFA.restrict(widths=(0.25,))
    ends = cost(space, [Arch.parse(info.smallest.arch), Arch.parse(info.largest.arch)], 10)
    assert [info.smallest.params, info.largest.params] == ends.params.tolist()
    assert [info.smallest.macs, info.largest.macs] == ends.macs.tolist()


def test_import_writes_a_supernet_that_a_search_can_start_from(shared: Path, tmp_path: Path) -> None:
    source, out = shared / "weights/proxyless-w0.3-r176_imagenet.pth", tmp_path / "supernet.safetensors"
    result = supernet_import(source, out, classes=12)
    assert (result.seed.holds, result.supernet.holds) == ("network", "supernet")
    assert result.supernet.channels == result.seed.channels and result.supernet.classes == 12
    assert result.report.copied_layers == 2
    seed, space = read_for(out, PROXYLESS)
    assert (space.name, seed.metadata["seed"], seed.norm_eps) == ("proxyless_c16_8_16_16_24_32_64_96_384", source.name, 1e-3)
    supernet, report = make_supernet(seed, space, 12, "symmetric", chance())
    assert not report.unmapped and epsilons(supernet) == {1e-3}
    again = supernet_import(out, tmp_path / "again.safetensors")
    assert again.seed.holds == "supernet" and not again.report.unmapped


def test_import_says_what_it_needs(shared: Path, tmp_path: Path) -> None:
    backbone, out = shared / "weights/mobilenet_v2_0.35_imagenet_backbone.safetensors", tmp_path / "supernet.safetensors"
    with pytest.raises(UsageError, match="has no classifier; give the number of classes"):
        supernet_import(backbone, out)
    with pytest.raises(UsageError, match=r"is written as \.safetensors"):
        supernet_import(backbone, tmp_path / "supernet.pth", classes=2)
    with pytest.raises(UsageError, match="there is no space 'mbv9'"):
        supernet_import(backbone, out, space="mbv9")
    with pytest.raises(UsageError, match="states padding symmetric, not same"):
        supernet_import(mobilenet_v3(tmp_path), out, padding="same")
    assert supernet_import(backbone, out, classes=2, padding="same").supernet.padding == "same"


def test_demo_supernet_round_trip(tmp_path: Path) -> None:
    save_supernet(Supernet(DEMO, 4), tmp_path / "demo.safetensors")
    assert supernet_info(tmp_path / "demo.safetensors").space == "demo"
    with pytest.raises(WeightsError, match="not a network of space mbv2"):
        read_seed(tmp_path / "demo.safetensors", MBV2)
