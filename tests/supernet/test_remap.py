"""Remapped networks: growing preserves the function, shrinking keeps the right channels, and every rule does what it says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from natdeploy.errors import WeightsError
from natdeploy.space import Arch, Layer, SearchSpace, get_space
from natdeploy.supernet import Padding, RemapRules, Seed, Subnet, Supernet, calibrate, read_seed, remap, write_seed
from natdeploy.supernet.remap import WidthRule, _dilate

MBV2, DEMO = get_space("mbv2"), get_space("demo")


@pytest.fixture(scope="module")
def imagenet(shared: Path) -> Seed:
    return read_seed(shared / "weights/mobilenet_v2_imagenet.safetensors", MBV2)


@pytest.fixture(scope="module")
def scaled(photos: Tensor) -> Tensor:
    return photos[:4] * 2 - 1


def remapped(seed: Seed, padding: Padding = "symmetric") -> Supernet:
    supernet = Supernet(MBV2, seed.classes, width=seed.arch.width, padding=padding).eval()
    remap(seed, supernet)
    return supernet


@torch.no_grad()
def test_the_real_seed_computes_what_torchvision_computes(imagenet: Seed, shared: Path, scaled: Tensor) -> None:
    reference = torchvision.models.mobilenet_v2().eval()
    reference.load_state_dict(load_file(shared / "weights/mobilenet_v2_imagenet.safetensors"))
    supernet = remapped(imagenet)
    expected = reference(scaled)
    assert float((supernet(scaled, imagenet.arch) - expected).abs().max()) <= 1e-4
    assert float((supernet.extract(imagenet.arch)(scaled) - expected).abs().max()) <= 1e-4


def tensorflow_convolution(x: Tensor, weight: Tensor, stride: int, groups: int = 1) -> Tensor:
    """TensorFlow's "SAME", written out: the input lies in a frame of zeros just large enough, the odd pixel behind."""
    n, channels, size, _ = x.shape
    kernel = weight.shape[-1]
    out = (size + stride - 1) // stride
    frame = max(size, (out - 1) * stride + kernel)
    start = (frame - size) // 2
    padded = x.new_zeros(n, channels, frame, frame)
    padded[:, :, start : start + size, start : start + size] = x
    return F.conv2d(padded, weight, stride=stride, groups=groups)


def tensorflow_mobilenet(state: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """MobileNetV2 in terms of torchvision's tensor names and TensorFlow's padding."""

    def norm(x: Tensor, name: str) -> Tensor:
        mean, variance = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        return F.batch_norm(x, mean, variance, state[f"{name}.weight"], state[f"{name}.bias"])

    x = F.relu6(norm(tensorflow_convolution(x, state["features.0.0.weight"], 2), "features.0.1"))
    strides = [1, 2, 1, 2, 1, 1, 2, 1, 1, 1, 1, 1, 1, 2, 1, 1, 1]
    for number, stride in enumerate(strides, 1):
        name, y, place = f"features.{number}.conv", x, 0
        if number > 1:
            y, place = F.relu6(norm(F.conv2d(y, state[f"{name}.0.0.weight"]), f"{name}.0.1")), 1
        y = tensorflow_convolution(y, state[f"{name}.{place}.0.weight"], stride, groups=y.shape[1])
        y = F.relu6(norm(y, f"{name}.{place}.1"))
        y = norm(F.conv2d(y, state[f"{name}.{place + 1}.weight"]), f"{name}.{place + 2}")
        x = x + y if x.shape == y.shape else y
    x = F.relu6(norm(F.conv2d(x, state["features.18.0.weight"]), "features.18.1")).mean((2, 3))
    return F.linear(x, state["classifier.1.weight"], state["classifier.1.bias"])


@pytest.mark.parametrize("resolution", [224, 112])  # at 112 px the last stride sees an odd size
@torch.no_grad()
def test_the_real_seed_computes_what_tensorflow_computes(imagenet: Seed, shared: Path, scaled: Tensor, resolution: int) -> None:
    x = F.interpolate(scaled, resolution)
    supernet = remapped(imagenet, "same")
    file = load_file(shared / "weights/mobilenet_v2_imagenet.safetensors")
    expected = tensorflow_mobilenet({name: tensor.float() for name, tensor in file.items()}, x)
    arch = replace(imagenet.arch, resolution=resolution)
    assert float((supernet(x, arch) - expected).abs().max()) <= 1e-4
    assert float((supernet.extract(arch)(x) - expected).abs().max()) <= 1e-4


@pytest.mark.parametrize("padding", ["symmetric", "same"])
@torch.no_grad()
def test_deeper_and_larger_kernels_preserve_the_function(imagenet: Seed, scaled: Tensor, padding: Padding) -> None:
    supernet = remapped(imagenet, padding)
    expected = supernet(scaled[:2], imagenet.arch)
    for kernel in (3, 5, 7):
        deep = tuple((Layer(kernel, 6),) * stage.max_depth for stage in MBV2.stages[1:])
        arch = Arch(224, 1.0, (imagenet.arch.stages[0], *deep))
        assert float((supernet(scaled[:2], arch) - expected).abs().max()) <= 1e-4


@torch.no_grad()
def test_random_architectures_of_the_real_supernet_extract(imagenet: Seed, scaled: Tensor) -> None:
    supernet = remapped(imagenet, "same")
    for arch in MBV2.decode_all(MBV2.sample(3, np.random.default_rng(1))):
        x = F.interpolate(scaled[:2], arch.resolution)
        assert float((supernet.extract(arch)(x) - supernet(x, arch)).abs().max()) <= 1e-5


@pytest.mark.parametrize("name", ["proxyless-w0.25-r112_imagenet.pth", "proxyless-w0.3-r176_imagenet.pth"])
@torch.no_grad()
def test_real_seeds_of_mixed_kernels_and_expansions_grow_without_change(name: str, shared: Path, scaled: Tensor) -> None:
    seed = read_seed(shared / "weights" / name)
    same = Subnet(seed.space, seed.arch, seed.classes, norm_eps=seed.norm_eps).eval()
    report = remap(seed, same)
    assert (report.unmapped, report.unused, report.copied_layers) == ((), (), 0)
    expected = same(scaled)
    assert float(expected.std()) > 0.5
    stages = seed.space.stages
    largest = tuple((Layer(max(stage.kernels), max(stage.expansions)),) * stage.max_depth for stage in stages)
    supernet = Supernet(seed.space, seed.classes, width=seed.arch.width, norm_eps=seed.norm_eps).eval()
    remap(seed, supernet)
    for arch in (seed.arch, replace(seed.arch, stages=largest)):
        assert float((supernet(scaled, arch) - expected).abs().max()) <= 1e-4


def test_channels_are_in_order_of_importance(imagenet: Seed) -> None:
    supernet = remapped(imagenet)
    state = supernet.state_dict()
    importance = state["stages.3.1.project.conv.weight"].abs().sum((0, 2, 3))
    assert bool((importance[:-1] >= importance[1:]).all())
    # Every channel took its whole path along: expansion, both normalisations and depthwise kernel.
    order = imagenet.state["stages.3.1.project.conv.weight"].abs().sum((0, 2, 3)).argsort(descending=True, stable=True)
    for name in ("expand.conv.weight", "expand.norm.bias", "depthwise.norm.running_var"):
        assert torch.equal(state[f"stages.3.1.{name}"], imagenet.state[f"stages.3.1.{name}"][order])
    name = "stages.3.1.depthwise.conv.weight"
    assert torch.equal(state[name][:, :, 2:5, 2:5], imagenet.state[name][order])


def test_report_of_the_real_seed(imagenet: Seed) -> None:
    report = remap(imagenet, Supernet(MBV2, 1000))
    assert (report.copied_layers, report.grown_kernels, report.unmapped, report.unused) == (5, 21, (), ())
    assert report.mapped == sum(not name.endswith("num_batches_tracked") for name in Supernet(MBV2, 1000).state_dict())
    report = remap(imagenet, Supernet(MBV2, 12))
    assert report.unmapped == ("classifier.bias", "classifier.weight")
    assert report.unused == ("classifier.bias", "classifier.weight")
    assert "5 layers" in report.summary() and "new: classifier.bias" in report.summary()


# ---- seeds smaller than the space, in the small space


def small_seed(text: str, folder: Path, classes: int = 4) -> Seed:
    subnet = Supernet(DEMO, classes, generator=torch.Generator().manual_seed(5)).extract(Arch.parse(text))
    calibrate(subnet, [torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(1))])
    write_seed(subnet, folder / "seed.safetensors")
    return read_seed(folder / "seed.safetensors", DEMO)


@torch.no_grad()
def test_narrow_and_shallow_seeds_grow_without_change(tmp_path: Path) -> None:
    seed = small_seed("r32-w1-k3e1-k3e3-k5e3.k3e6-k3e6", tmp_path)
    supernet = Supernet(DEMO, 4).eval()
    report = remap(seed, supernet)
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = supernet(x, seed.arch)
    assert float(expected.abs().max()) > 1e-3
    for text in ("k3e1-k5e6.k3e3-k5e6.k5e6.k3e6-k5e6.k5e3", "k3e1-k3e6-k5e6.k5e6-k5e6"):
        torch.testing.assert_close(supernet(x, Arch.parse(f"r32-w1-{text}")), expected, atol=1e-5, rtol=1e-4)
    # Stages 1 and 3 have one layer in the seed, which changes the shape: their second slots are new.
    assert report.copied_layers == 1
    assert {name.rsplit(".", 3)[0] for name in report.unmapped} == {"stages.1.1", "stages.3.1"}


def test_smaller_supernets_take_what_they_have_room_for(tmp_path: Path) -> None:
    seed = small_seed("r32-w1-k3e1-k3e3-k5e3.k3e6-k3e6", tmp_path)
    smaller = replace(DEMO, stages=tuple(replace(stage, kernels=(3,), max_depth=1) for stage in DEMO.stages))
    supernet = Supernet(smaller, 4)
    report = remap(seed, supernet)
    assert (report.shrunk_kernels, report.dropped_layers, report.copied_layers, report.unmapped) == (1, 1, 0, ())
    assert {name.rsplit(".", 3)[0] for name in report.unused} == {"stages.2.1"}
    assert report.summary().startswith(f"{report.mapped} tensors take the seed's values, 1 layers were dropped, 1 kernels shrank")
    assert [move.kernel for move in report.layers] == [(3, 3), (3, 3), (5, 3), (3, 3)]


def test_what_does_not_fit_is_named_and_nothing_is_changed(tmp_path: Path, imagenet: Seed) -> None:
    seed = small_seed("r32-w1-k3e1-k3e3-k5e3.k3e6-k3e6", tmp_path)

    def refused(source: Seed, target: Supernet, message: str) -> None:
        before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
        with pytest.raises(WeightsError, match=message):
            remap(source, target)
        assert all(torch.equal(tensor, before[name]) for name, tensor in target.state_dict().items())

    refused(seed, Supernet(MBV2, 4), "4 stages, space mbv2 has 7")
    refused(
        imagenet, Supernet(MBV2, 1000, width=0.35), r"at width 0\.35: no place for stem\.conv\.weight \(32, 3, 3, 3\), .* more$"
    )
    first, second, *others = DEMO.stages
    wider = replace(DEMO, stages=(first, replace(second, out_channels=40), *others))
    named = r"no place for stages\.1\.0\.project\.conv\.weight \(24, 48, 1, 1\), .*stages\.2\.0\.expand\.conv\.weight|and \d+ more"
    refused(seed, Supernet(wider, 4), named)
    unexpanded = replace(DEMO, stages=(first, replace(second, kernels=(3,), expansions=(1,)), *others))
    refused(seed, Supernet(unexpanded, 4), r"no place for stages\.1\.0\.expand\.conv\.weight \(48, 16, 1, 1\)")
    active = replace(DEMO, stages=(first, replace(second, activation="hswish", stride=1), *others))
    refused(seed, Supernet(active, 4), "stage 1 has stride 2 and relu6 in the one and stride 1 and hswish in the other")
    refused(seed, Supernet(replace(DEMO, head_activation="relu"), 4), "the head has relu6 and no linear layer")
    refused(seed, Supernet(DEMO, 4, norm_eps=1e-3), "adds 1e-05 .* 0.001; build it with the same norm_eps")


# ---- any architecture into any other, in double precision

MBV3 = get_space("mbv3_large").restrict(widths=(0.25,), resolutions=(32,))
PROXYLESS = get_space("proxyless").restrict(widths=(0.25,), resolutions=(32,))
WIDTHS: tuple[WidthRule, ...] = get_args(WidthRule)


def network(space: SearchSpace, arch: Arch, seed: int) -> Subnet:
    """With no tensor at a value that could hide a mistake."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        subnet = Subnet(space, arch, 5).double().eval()
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in subnet.state_dict().items():
        if tensor.is_floating_point() and (".norm." in name or name.endswith("bias")):
            positive = name.endswith(("running_var", "norm.weight"))
            tensor.copy_(
                torch.rand(tensor.shape, generator=generator) + 0.5 if positive else torch.randn(tensor.shape, generator=generator)
            )
    return subnet


def pair(space: SearchSpace, seed: int) -> tuple[Arch, Arch]:
    """An architecture by chance, and one that is nowhere smaller."""
    rng = np.random.default_rng(seed)
    small, other = space.decode_all(space.sample(2, rng))
    stages = []
    for layers, more in zip(small.stages, other.stages, strict=True):
        grown = [Layer(max(a.kernel, b.kernel), max(a.expansion, b.expansion)) for a, b in zip(layers, more, strict=False)]
        stages.append((*grown, *layers[len(grown) :], *more[len(grown) :]))
    return replace(small, resolution=32), replace(small, resolution=32, stages=tuple(stages))


def images(count: int = 2) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("space", [DEMO, MBV3, PROXYLESS], ids=lambda space: space.name)
@pytest.mark.parametrize("seed", range(3))
@torch.no_grad()
def test_growing_preserves_the_function(space: SearchSpace, seed: int) -> None:
    small, large = pair(space, seed)
    rules = RemapRules(width=WIDTHS[seed % len(WIDTHS)])
    source, x = network(space, small, seed), images()
    expected = source(x)
    static = network(space, large, seed + 10)
    remap(source, static, rules)
    torch.testing.assert_close(static(x), expected, atol=1e-9, rtol=1e-9)
    supernet = Supernet(space, 5, width=small.width, kernel_transforms=seed % 2 == 0).double().eval()
    for tensor in (tensor for name, tensor in supernet.state_dict().items() if ".transforms." in name):
        tensor.fill_(7)  # as if it had learned
    remap(source, supernet, rules)
    for arch in (small, large):
        torch.testing.assert_close(supernet(x, arch), expected, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("width", WIDTHS)
@torch.no_grad()
def test_narrowing_is_masking_the_least_important_channels(width: WidthRule) -> None:
    """The narrow network computes what the wide one computes when the channels that it lacks are switched off."""
    wide = Arch(
        32, 0.25, tuple((Layer(3, max(stage.expansions)),) * 2 if not stage.fixed else (Layer(3, 1),) for stage in MBV3.stages)
    )
    narrow = replace(
        wide,
        stages=tuple(
            tuple(Layer(3, min(stage.expansions)) for _ in layers) for stage, layers in zip(MBV3.stages, wide.stages, strict=True)
        ),
    )
    source, target, x = network(MBV3, wide, 0), network(MBV3, narrow, 1), images()
    report = remap(source, target, RemapRules(width=width))
    assert (report.narrowed_layers, report.widened_layers, report.unmapped, report.unused) == (10, 0, (), ())
    state, smaller = source.state_dict(), target.state_dict()
    scores = {
        "first": lambda layer: -torch.arange(len(state[f"{layer}.depthwise.norm.weight"])),
        "expand_scale": lambda layer: state[f"{layer}.expand.norm.weight"].abs(),
        "depthwise_scale": lambda layer: state[f"{layer}.depthwise.norm.weight"].abs(),
        "expand_l1": lambda layer: state[f"{layer}.expand.conv.weight"].abs().flatten(1).sum(1),
        "expand_std": lambda layer: state[f"{layer}.expand.conv.weight"].flatten(1).var(1),
        "project_l1": lambda layer: state[f"{layer}.project.conv.weight"].abs().flatten(2).sum((0, 2)),
    }[width]
    for move in report.layers[1:]:
        layer = move.source
        lacking = torch.tensor(
            sorted(range(move.mid_channels[0]), key=lambda at: -float(scores(layer)[at]))[move.mid_channels[1] :]
        )
        state[f"{layer}.project.conv.weight"][:, lacking] = 0
        if f"{layer}.squeeze.reduce.weight" in state:
            hidden = len(smaller[f"{layer}.squeeze.reduce.bias"])
            weight = state[f"{layer}.squeeze.expand.weight"]
            order = range(weight.shape[1]) if width == "first" else weight.abs().flatten(2).sum((0, 2)).argsort(descending=True)
            state[f"{layer}.squeeze.reduce.weight"][:, lacking] = 0
            weight[:, list(order)[hidden:]] = 0
    torch.testing.assert_close(target(x), source(x), atol=1e-9, rtol=1e-9)


@torch.no_grad()
def test_smaller_kernels_are_the_centres_of_larger_ones() -> None:
    source = network(DEMO, Arch.parse("r32-w1-k3e1-k5e3-k5e3-k5e3"), 0)
    target = network(DEMO, Arch.parse("r32-w1-k3e1-k3e3-k3e3-k3e3"), 1)
    assert remap(source, target, RemapRules(width="first")).shrunk_kernels == 3
    kernel = target.state_dict()["stages.2.0.depthwise.conv.weight"]
    assert torch.equal(kernel, source.state_dict()["stages.2.0.depthwise.conv.weight"][:, :, 1:4, 1:4])


@pytest.mark.parametrize("side", [5, 7])
@torch.no_grad()
def test_dilated_kernels_are_dilated_convolutions(side: int) -> None:
    source = network(MBV3, Arch(32, 0.25, tuple((Layer(3, stage.expansions[-1]),) for stage in MBV3.stages)), 0)
    target = network(
        MBV3, Arch(32, 0.25, tuple((Layer(min(side, stage.kernels[-1]), stage.expansions[-1]),) for stage in MBV3.stages)), 1
    )
    remap(source, target, RemapRules(kernel="dilated", width="first"))
    name = "stages.4.0.depthwise.conv.weight"
    small, large = source.state_dict()[name], target.state_dict()[name]
    x = torch.randn(1, len(small), 16, 16, dtype=torch.float64)
    dilation = side // 2
    expected = F.conv2d(x, small, padding=dilation, dilation=dilation, groups=len(small))
    torch.testing.assert_close(F.conv2d(x, large, padding=side // 2, groups=len(large)), expected)


def test_dilation_by_part_of_a_pixel_stays_symmetric() -> None:
    spread = _dilate(torch.arange(1.0, 26).view(1, 1, 5, 5), 7)[0, 0]
    at = torch.tensor([0, 1, 3, 5, 6])
    assert torch.equal(spread[at[:, None], at], torch.arange(1.0, 26).view(5, 5)) and int((spread != 0).sum()) == 25


@torch.no_grad()
def test_added_layers_are_copies_with_or_without_effect() -> None:
    source = network(DEMO, Arch.parse("r32-w1-k3e1-k3e3-k3e3.k5e6-k3e3"), 0)
    copied, silent = (network(DEMO, Arch.parse("r32-w1-k3e1-k3e3-k3e3.k5e6.k5e6-k3e3.k3e3"), 1) for _ in range(2))
    report = remap(source, copied, RemapRules(depth="copy", width="first"))
    remap(source, silent, RemapRules(width="first"))
    assert [(move.target, move.source) for move in report.layers if move.added] == [("stages.2.2", "stages.2.1")]
    theirs, ours, quiet = source.state_dict(), copied.state_dict(), silent.state_dict()
    for leaf in (move.removeprefix("stages.2.2.") for move in report.sources if move.startswith("stages.2.2.")):
        assert torch.equal(ours[f"stages.2.2.{leaf}"], theirs[f"stages.2.1.{leaf}"])
        if leaf not in {"project.norm.weight", "project.norm.bias"}:
            assert torch.equal(quiet[f"stages.2.2.{leaf}"], theirs[f"stages.2.1.{leaf}"])
    # Stage 3 has one layer, which changes the shape: there is nothing to copy, so its new layer is an identity by either rule.
    assert not ours["stages.3.1.project.norm.weight"].any() and not quiet["stages.2.2.project.norm.weight"].any()
    assert ours["stages.2.2.project.norm.weight"].all()


def test_rules_are_checked_and_stay_as_they_are() -> None:
    with pytest.raises(ValueError, match="width"):
        RemapRules(width="random")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="frozen"):
        RemapRules().depth = "copy"  # type: ignore[misc]
