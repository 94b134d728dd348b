"""A seed in the supernet: computes what the seed computes, at its own size, deeper, and with larger kernels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from natdeploy.errors import WeightsError
from natdeploy.space import Arch, Layer, get_space
from natdeploy.supernet import Padding, Seed, Supernet, calibrate, read_seed, remap, write_seed

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


def test_what_does_not_fit_is_named(tmp_path: Path, imagenet: Seed) -> None:
    seed = small_seed("r32-w1-k3e1-k3e3-k5e3.k3e6-k3e6", tmp_path)
    with pytest.raises(WeightsError, match="4 stages, space mbv2 has 7"):
        remap(seed, Supernet(MBV2, 4))
    smaller = replace(DEMO, stages=tuple(replace(stage, kernels=(3,)) for stage in DEMO.stages))
    with pytest.raises(WeightsError, match=r"no place for stages\.2\.0\.depthwise\.conv\.weight \(72, 1, 5, 5\)$"):
        remap(seed, Supernet(smaller, 4))
    shallower = replace(DEMO, stages=tuple(replace(stage, max_depth=1) for stage in DEMO.stages))
    with pytest.raises(WeightsError, match=r"stages\.2\.1\.expand\.conv\.weight .* and \d+ more"):
        remap(seed, Supernet(shallower, 4))
    with pytest.raises(WeightsError, match=r"at width 0\.35: no place for stem\.conv\.weight \(32, 3, 3, 3\)"):
        remap(imagenet, Supernet(MBV2, 1000, width=0.35))
