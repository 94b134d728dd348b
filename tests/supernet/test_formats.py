"""Networks in the names of other code bases compute here what they compute there."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import load_file, save_file
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn import functional as F

from natdeploy.errors import UsageError, WeightsError
from natdeploy.space import Arch, SearchSpace, Stage, get_space
from natdeploy.space.catalog import plain_arch
from natdeploy.supernet import Seed, Subnet, Supernet, read_seed, remap, write_seed

MBV2, MBV3, PROXYLESS = get_space("mbv2"), get_space("mbv3_large"), get_space("proxyless")
MOBILENET_V2 = (1, 2, 3, 4, 3, 3, 1)


def images(size: int = 96, n: int = 2) -> Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(0))


def randomised(network: nn.Module) -> nn.Module:
    """With statistics, scales and shifts unlike those of a fresh network, in evaluation mode."""
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            nn.init.uniform_(module.weight, 0.8, 1.2, generator=generator)
            nn.init.normal_(module.bias, 0, 0.2, generator=generator)
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
    return network.eval()


def in_supernet(seed: Seed) -> Supernet:
    """The supernet of the seed's space with its weights."""
    padding = seed.padding or "symmetric"
    supernet = Supernet(seed.space, seed.classes, width=seed.arch.width, padding=padding, norm_eps=seed.norm_eps)
    remap(seed, supernet)
    return supernet.eval()


def assert_computes(seed: Seed, x: Tensor, expected: Tensor, limit: float = 1e-5) -> None:
    """The seed's architecture, in the supernet and extracted from it, gives these logits; `limit` is relative to the largest."""
    supernet = in_supernet(seed)
    arch = replace(seed.arch, resolution=x.shape[-1])
    supernet.space = seed.space.restrict(resolutions=(x.shape[-1],))
    for logits in (supernet(x, arch), supernet.extract(arch)(x)):
        assert float((logits - expected).abs().max() / expected.abs().max()) <= limit


# ---- torchvision


@pytest.mark.parametrize("width", [0.35, 0.75, 1.0, 1.4])
@torch.no_grad()
def test_mobilenet_v2_of_torchvision(tmp_path: Path, width: float) -> None:
    torch.manual_seed(0)
    reference = randomised(torchvision.models.mobilenet_v2(num_classes=7, width_mult=width))
    torch.save(reference.state_dict(), tmp_path / "seed.pth")
    # At some widths stages of equal channels could be divided otherwise as well; their depths are given here.
    stages = tuple(replace(stage, min_depth=depth, max_depth=depth) for stage, depth in _depths())
    seed = read_seed(tmp_path / "seed.pth", replace(MBV2, stages=stages))
    assert (seed.arch, seed.classes, seed.norm_eps) == (plain_arch(224, width, MOBILENET_V2), 7, 1e-5)
    assert seed.format == "torchvision MobileNetV2" and not seed.metadata
    x = images()
    assert_computes(seed, x, reference(x))


def _depths() -> Iterator[tuple[Stage, int]]:
    return zip(MBV2.stages, MOBILENET_V2, strict=True)


@torch.no_grad()
def test_mobilenet_v3_large_of_torchvision(tmp_path: Path) -> None:
    torch.manual_seed(0)
    reference = randomised(torchvision.models.mobilenet_v3_large(weights=None, num_classes=7))
    save_file(reference.state_dict(), tmp_path / "seed.safetensors")
    seed = read_seed(tmp_path / "seed.safetensors")
    text = "k3e1-k3e4.k3e3-k5e3.k5e3.k5e3-k3e6.k3e2.5.k3e2.3.k3e2.3-k3e6.k3e6-k5e6.k5e6.k5e6"
    assert (seed.arch, seed.classes, seed.norm_eps) == (Arch.parse(f"r224-w1-{text}"), 7, 1e-3)
    x = images()
    assert_computes(seed, x, reference(x))


def test_an_epsilon_in_the_metadata_wins(tmp_path: Path) -> None:
    state = torchvision.models.mobilenet_v3_large(weights=None, num_classes=2).state_dict()
    save_file(state, tmp_path / "seed.safetensors", {"norm_eps": "1e-5"})
    assert read_seed(tmp_path / "seed.safetensors").norm_eps == 1e-5
    for damaged in ("tiny", "nan", "0"):
        save_file(state, tmp_path / "seed.safetensors", {"norm_eps": damaged})
        with pytest.raises(WeightsError, match=f"states norm_eps '{damaged}'"):
            read_seed(tmp_path / "seed.safetensors")


WEIGHTS = "MobileNet_V3_Large_Weights.IMAGENET1K_V2"


def test_torchvision_weights_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    state = torchvision.models.mobilenet_v3_large(weights=None).state_dict()
    asked = []

    def download(url: str, to: str, digest: str | None, *, progress: bool) -> None:
        asked.append((url, digest, progress))
        torch.save(state, to)

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    for _ in range(2):  # the second time it lies in the cache
        seed = read_seed(Path(WEIGHTS))
        assert (seed.source, seed.space.name, seed.classes, seed.padding) == (WEIGHTS, "mbv3_large", 1000, "symmetric")
        assert seed.metadata["input"] == "ImageNet mean and std"
    assert asked == [("https://download.pytorch.org/models/mobilenet_v3_large-5c1a4163.pth", "5c1a4163", False)]


def test_torchvision_weights_that_cannot_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))

    def fail(*_: object, progress: bool) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    with pytest.raises(WeightsError, match=r"cannot be fetched from https://.* \(no route to host\); fetch it on another machine"):
        read_seed(Path(WEIGHTS))
    with pytest.raises(WeightsError, match="torchvision has no weights of that name"):
        read_seed(Path("MobileNet_V9_Weights.DEFAULT"))


# ---- timm


def timm_names(state: Mapping[str, Tensor], stages: tuple[int, ...]) -> dict[str, Tensor]:
    """torchvision's mobilenet_v3_large in timm's names of mobilenetv3_large_100."""
    places = [(stage, place) for stage, depth in enumerate(stages) for place in range(depth)]
    ends = {
        "features.0.0": "conv_stem",
        "features.0.1": "bn1",
        "features.16.0": "blocks.6.0.conv",
        "features.16.1": "blocks.6.0.bn1",
    }
    ends |= {"classifier.0": "conv_head", "classifier.3": "classifier"}
    result = {}
    for name, tensor in state.items():
        module, leaf = name.rsplit(".", 1)
        match = re.match(r"features\.(\d+)\.block\.(.*)", module)
        if match is None:
            new = tensor[:, :, None, None] if module == "classifier.0" and leaf == "weight" else tensor
            result[f"{ends[module]}.{leaf}"] = new
            continue
        number, part = int(match[1]), match[2]
        kinds = sorted({each.split(".")[3] for each in state if each.startswith(f"features.{number}.block.")})
        squeezes = any(each.startswith(f"features.{number}.block.") and ".fc1." in each for each in state)
        convolutions = [kind for kind in kinds if not (squeezes and kind == kinds[-2])]
        if part.split(".")[1].startswith("fc"):
            theirs = "se." + {"fc1": "conv_reduce", "fc2": "conv_expand"}[part.split(".")[1]]
        else:
            place = convolutions.index(part.split(".")[0])
            order = ("conv_dw", "conv_pw") if len(convolutions) == 2 else ("conv_pw", "conv_dw", "conv_pwl")
            theirs = order[place] if part.endswith(".0") else f"bn{place + 1}"
        stage, slot = places[number - 1]
        result[f"blocks.{stage}.{slot}.{theirs}.{leaf}"] = tensor
    return result


@torch.no_grad()
def test_mobilenet_v3_large_of_timm(tmp_path: Path) -> None:
    torch.manual_seed(0)
    reference = torchvision.models.mobilenet_v3_large(weights=None, num_classes=7)
    randomised(reference)
    for module in reference.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-5  # timm's
    state = timm_names(reference.state_dict(), (1, 2, 3, 4, 2, 3))
    assert state["conv_head.weight"].shape == (1280, 960, 1, 1) and state["conv_head.bias"].shape == (1280,)
    assert state["blocks.0.0.conv_pw.weight"].shape == (16, 16, 1, 1)
    assert state["blocks.2.0.se.conv_reduce.weight"].shape == (24, 72, 1, 1)
    torch.save({"state_dict": state}, tmp_path / "seed.pth")
    seed = read_seed(tmp_path / "seed.pth")
    assert (seed.format, seed.classes, seed.norm_eps) == ("timm MobileNetV3", 7, 1e-5)
    x = images()
    assert_computes(seed, x, reference(x))


# ---- real networks


def proxyless(file: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """ProxylessNAS straight from its file: 22 places, a block left out where the file has none of that number."""

    def norm(x: Tensor, name: str) -> Tensor:
        values = (file[f"{name}.{leaf}"] for leaf in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, *values, eps=1e-3)

    def convolution(x: Tensor, name: str, stride: int = 1) -> Tensor:
        weight = file[f"{name}.conv.weight"]
        groups = x.shape[1] if weight.shape[1] == 1 and weight.shape[-1] > 1 else 1
        return norm(F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2, groups=groups), f"{name}.bn")

    x = F.relu6(convolution(x, "first_conv", 2))
    first = {
        0: 1,
        1: 2,
        5: 2,
        9: 2,
        13: 1,
        17: 2,
        21: 1,
    }  # first blocks of the stages, and their strides; none of them adds its input
    for number in range(22):
        name = f"blocks.{number}.mobile_inverted_conv"
        if f"{name}.depth_conv.conv.weight" not in file:
            continue
        y = x
        if f"{name}.inverted_bottleneck.conv.weight" in file:
            y = F.relu6(convolution(y, f"{name}.inverted_bottleneck"))
        y = F.relu6(convolution(y, f"{name}.depth_conv", first.get(number, 1)))
        y = convolution(y, f"{name}.point_linear")
        x = y if number in first else x + y
    x = F.relu6(convolution(x, "feature_mix_layer")).mean((2, 3))
    return F.linear(x, file["classifier.linear.weight"], file["classifier.linear.bias"])


@pytest.mark.parametrize(
    ("name", "space", "size"),
    [
        ("proxyless-w0.25-r112_imagenet.pth", PROXYLESS.restrict(widths=(0.25,)), 112),
        ("proxyless-w0.3-r176_imagenet.pth", PROXYLESS.with_channels(16, (8, 16, 16, 24, 32, 64, 96), 384), 176),
    ],
)
@torch.no_grad()
def test_real_proxyless(shared: Path, photos: Tensor, name: str, space: SearchSpace, size: int) -> None:
    path = shared / "weights" / name
    seed = read_seed(path)
    assert (seed.format, seed.space, seed.classes, seed.norm_eps) == ("ProxylessNAS", space, 1000, 1e-3)
    x = F.interpolate(photos[:4] * 2 - 1, size, mode="bilinear", antialias=True)
    expected = proxyless(torch.load(path, weights_only=True)["state_dict"], x)
    assert_computes(seed, x, expected)


@torch.no_grad()
def test_own_files_keep_channels_that_follow_no_width(shared: Path, tmp_path: Path) -> None:
    seed = read_seed(shared / "weights/proxyless-w0.3-r176_imagenet.pth")
    subnet = in_supernet(seed).extract(seed.arch)
    write_seed(subnet, tmp_path / "seed.safetensors", {"input": "[-1,1]"})
    again = read_seed(tmp_path / "seed.safetensors")
    assert (again.space, again.arch, again.norm_eps, again.padding) == (seed.space, seed.arch, 1e-3, "symmetric")
    assert all(torch.equal(tensor, seed.state[name]) for name, tensor in again.state.items() if not name.startswith("stages"))


def test_equal_tensors_may_be_another_network(shared: Path, tmp_path: Path) -> None:
    """MobileNetV2's space has places for all of ProxylessNAS's layers, but adds inputs to outputs where that does not."""
    path = shared / "weights/proxyless-w0.25-r112_imagenet.pth"
    with pytest.raises(
        WeightsError, match=r"not a network of space mbv2 but one as of proxyless: it has no residual in first layers"
    ):
        read_seed(path, MBV2)
    other = replace(PROXYLESS, name="mine", stages=tuple(replace(stage, activation="hswish") for stage in PROXYLESS.stages))
    with pytest.raises(WeightsError, match="activations relu6/relu6/relu6, not activations relu6/hswish/relu6"):
        read_seed(path, other)
    assert read_seed(path, replace(PROXYLESS, name="mine", resolutions=(112,))).arch.resolution == 112


def test_an_unknown_space_must_be_given(tmp_path: Path) -> None:
    space = replace(MBV3, name="mine", resolutions=(64,))
    write_seed(Subnet(space, space.decode(space.lower), 2), tmp_path / "seed.safetensors")
    with pytest.raises(WeightsError, match="does not say where space mine is described; give the space"):
        read_seed(tmp_path / "seed.safetensors")
    assert read_seed(tmp_path / "seed.safetensors", space).arch == space.decode(space.lower)


def test_channels_must_be_those_of_a_space() -> None:
    with pytest.raises(UsageError, match="channels must be multiples of 8"):
        PROXYLESS.with_channels(12, (8, 16, 16, 24, 32, 64, 96), 384)
    with pytest.raises(UsageError, match="stages must have 7"):
        PROXYLESS.with_channels(16, (8, 16), 384)


def _swapped(state: dict[str, Tensor]) -> None:
    state["blocks.5.mobile_inverted_conv.depth_conv.conv.weight"] = torch.zeros(24, 1, 9, 9)


def _beyond(state: dict[str, Tensor]) -> None:
    for name in [each for each in state if each.startswith("blocks.20.")]:
        state[name.replace("blocks.20.", "blocks.25.")] = state[name]


def _gap(state: dict[str, Tensor]) -> None:
    for name in [each for each in state if each.startswith("blocks.6.")]:
        state.pop(name)


def _transformed(state: dict[str, Tensor]) -> None:
    state["blocks.6.mobile_inverted_conv.depth_conv.conv.7to5_matrix"] = torch.eye(25)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_swapped, r"no place for: .*blocks\.5\..*\(24, 1, 9, 9\)"),
        (_beyond, r"no place for: .*blocks\.25\."),
        (_gap, r"no place for: .*blocks\.7\."),  # it would be the second layer of its stage, its first one missing
        (_transformed, r"unknown: blocks\.6\.mobile_inverted_conv\.depth_conv\.conv\.7to5_matrix"),
    ],
)
def test_what_does_not_fit_is_named_as_the_file_names_it(
    shared: Path, tmp_path: Path, damage: Callable[[dict[str, Tensor]], None], message: str
) -> None:
    state = torch.load(shared / "weights/proxyless-w0.25-r112_imagenet.pth", weights_only=True)["state_dict"]
    damage(state)
    torch.save(state, tmp_path / "seed.pth")
    with pytest.raises(WeightsError, match=message):
        read_seed(tmp_path / "seed.pth")


def test_damaged_linear_layers_are_named(tmp_path: Path) -> None:
    state = torchvision.models.mobilenet_v3_large(weights=None, num_classes=2).state_dict()
    torch.save(state | {"classifier.0.weight": torch.tensor(1.0)}, tmp_path / "seed.pth")
    with pytest.raises(WeightsError, match=r"at no width: features\.0\.0\.weight .*classifier\.0\.weight \(\)"):
        read_seed(tmp_path / "seed.pth")
    torch.save(state | {"classifier.3.bias": torch.zeros(3)}, tmp_path / "seed.pth")
    with pytest.raises(WeightsError, match=r"of another shape: classifier\.3\.bias \(3,\)"):
        read_seed(tmp_path / "seed.pth")


def probe(subnet: Subnet, folder: Path, size: int, counts: tuple[int, int]) -> float:
    """Share of test photos that a linear probe on a network's features has right, given numbers of photos a species."""
    subnet.classifier = nn.Identity()

    def features(split: str, count: int) -> tuple[Tensor, list[int]]:
        folders = sorted((folder / split).iterdir())
        photos = [(path, number) for number, species in enumerate(folders) for path in sorted(species.iterdir())[:count]]
        pixels = [np.asarray(Image.open(path).convert("RGB").resize((size, size))) for path, _ in photos]
        return subnet(torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2) / 127.5 - 1), [number for _, number in photos]

    (learned, species), (tested, truth) = features("train", counts[0]), features("test", counts[1])
    mean, std = learned.mean(0), learned.std(0) + 1e-6
    fitted = LogisticRegression(C=0.1, max_iter=200).fit((learned - mean) / std, species)
    return float(fitted.score((tested - mean) / std, truth))


@torch.no_grad()
def test_features_of_the_small_proxyless_tell_flowers_apart(shared: Path) -> None:
    """12 species; with random weights a probe has a third of the test photos right."""
    seed = read_seed(shared / "weights/proxyless-w0.25-r112_imagenet.pth")
    subnet = in_supernet(seed).extract(seed.arch)
    assert probe(subnet, shared / "data/flowers12", 112, (15, 8)) >= 0.93  # 0.969 when this was written


# ---- TensorFlow's padding


def test_a_kernel_off_centre_gives_tensorflows_padding() -> None:
    """A 3x3 kernel in the lower right of a 5x5 one, padded alike on all sides, computes what it does alone, padded (0, 1)."""
    generator = torch.Generator().manual_seed(0)
    x, small = torch.randn(2, 8, 16, 16, generator=generator), torch.randn(8, 1, 3, 3, generator=generator)
    expected = F.conv2d(F.pad(x, (0, 1, 0, 1)), small, stride=2, groups=8)
    large = torch.zeros(8, 1, 5, 5)
    large[:, :, 2:, 2:] = small
    torch.testing.assert_close(F.conv2d(x, large, stride=2, padding=2, groups=8), expected, atol=1e-6, rtol=0)


@torch.no_grad()
def test_tensorflows_padding_of_a_real_seed_as_larger_kernels(shared: Path, photos: Tensor) -> None:
    """The real TensorFlow network with its strided kernels off centre in the next larger ones, padded as torch pads."""
    seed = read_seed(shared / "weights/mobilenet_v2_imagenet.safetensors")
    x = F.interpolate(photos[:2] * 2 - 1, 128)
    arch = replace(seed.arch, resolution=128)
    expected = in_supernet(replace(seed, padding="same"))(x, arch)

    state = dict(seed.state)
    stages = list(seed.arch.stages)
    for number, stage in enumerate(MBV2.stages):
        if stage.stride == 2:
            name = f"stages.{number}.0.depthwise.conv.weight"
            grown = torch.zeros(len(state[name]), 1, 5, 5)
            grown[:, :, 2:, 2:] = state[name]
            state[name] = grown
            stages[number] = (replace(stages[number][0], kernel=5), *stages[number][1:])
    moved = replace(seed, state=state, arch=Arch(128, 1.0, tuple(stages)))
    subnet = in_supernet(moved).extract(moved.arch)
    # The stem is a full 3x3 convolution without a choice of kernel: it alone needs the padding itself.
    stem = F.conv2d(F.pad(x, (0, 1, 0, 1)), subnet.stem.conv.weight, stride=2)  # type: ignore[union-attr, arg-type]
    y = subnet.stem.act(subnet.stem.norm(stem))  # type: ignore[operator, union-attr]
    for stage in subnet.stages:
        y = stage(y)
    actual = subnet.classifier(subnet.head(y))  # type: ignore[operator]
    assert float((actual - expected).abs().max() / expected.abs().max()) <= 1e-5


def test_torchvision_names_of_the_real_seed(shared: Path) -> None:
    path = shared / "weights/mobilenet_v2_imagenet.safetensors"
    seed, file = read_seed(path), load_file(path)
    assert torch.equal(seed.state["stages.3.1.depthwise.norm.bias"], file["features.8.conv.1.1.bias"].float())
    assert torch.equal(seed.state["head.conv.weight"], file["features.18.0.weight"].float())
