"""Weight files: what they hold is recognised, what they should not hold is refused in one sentence."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from natdeploy.errors import NatdeployError, WeightsError
from natdeploy.space import Arch, Stage, get_space
from natdeploy.space.catalog import plain_arch
from natdeploy.supernet import Subnet, read_seed, write_seed

MBV2, DEMO = get_space("mbv2"), get_space("demo")
DEMO_ARCH = Arch.parse("r32-w1-k3e1-k3e6-k5e3-k3e3")
MOBILENET_V2 = (1, 2, 3, 4, 3, 3, 1)


def test_round_trip_of_random_networks(tmp_path: Path) -> None:
    path = tmp_path / "seed.safetensors"
    for arch in DEMO.decode_all(DEMO.sample(10, np.random.default_rng(0))):
        subnet = Subnet(DEMO, arch, 5, "same", 2e-5)
        write_seed(subnet, path, {"input": "RGB in [-1,1]"})
        seed = read_seed(path)
        assert (seed.arch, seed.classes, seed.source) == (arch, 5, "seed.safetensors")
        assert (seed.padding, seed.norm_eps, seed.format, seed.supernet) == ("same", 2e-5, "natdeploy", False)
        assert seed.metadata == {
            "input": "RGB in [-1,1]",
            "space": "demo",
            "arch": str(arch),
            "padding": "same",
            "norm_eps": "2e-05",
        }
        expected = {name: tensor for name, tensor in subnet.state_dict().items() if not name.endswith("num_batches_tracked")}
        assert seed.state.keys() == expected.keys()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in seed.state.items())
    assert [file.name for file in tmp_path.iterdir()] == ["seed.safetensors"]


@pytest.mark.parametrize("width", [0.1, 0.25, 0.35, 0.5, 0.75, 1.0, 1.3, 1.4])
def test_width_is_read_from_the_tensors(tmp_path: Path, width: float) -> None:
    space = replace(MBV2, stages=tuple(replace(stage, max_depth=depth, min_depth=depth) for stage, depth in _depths()))
    state = torchvision.models.mobilenet_v2(num_classes=2, width_mult=width).state_dict()
    save_file(state, tmp_path / "seed.safetensors")
    assert read_seed(tmp_path / "seed.safetensors", space).arch == plain_arch(224, width, MOBILENET_V2)


def _depths() -> list[tuple[Stage, int]]:
    return list(zip(MBV2.stages, MOBILENET_V2, strict=True))


def test_equal_channels_in_two_stages_need_the_architecture_in_the_file(tmp_path: Path) -> None:
    arch = plain_arch(96, 0.1, MOBILENET_V2)  # stages 1, 2 and 3 all have 8 channels
    state = torchvision.models.mobilenet_v2(num_classes=2, width_mult=0.1).state_dict()
    save_file(state, tmp_path / "seed.safetensors", {"arch": str(arch)})
    assert read_seed(tmp_path / "seed.safetensors", MBV2).arch == arch
    save_file(state, tmp_path / "seed.safetensors")
    with pytest.raises(WeightsError, match="networks of space mbv2"):
        read_seed(tmp_path / "seed.safetensors", MBV2)


@pytest.mark.parametrize(
    ("name", "width", "classes"),
    [("mobilenet_v2_imagenet.safetensors", 1.0, 1000), ("mobilenet_v2_0.35_imagenet_backbone.safetensors", 0.35, 0)],
)
def test_real_seeds(shared: Path, name: str, width: float, classes: int) -> None:
    seed = read_seed(shared / "weights" / name, MBV2)
    assert (seed.arch, seed.classes) == (plain_arch(224, width, MOBILENET_V2), classes)
    assert all(tensor.dtype == torch.float32 for tensor in seed.state.values())
    MBV2.restrict(widths=(width,)).validate(seed.arch)


# ---- refusals


def _saved(path: Path, state: dict[str, Tensor]) -> Path:
    save_file(state, path)
    return path


def _demo_state() -> dict[str, Tensor]:
    """A network of the demo space in torchvision's names of MobileNetV2."""
    state = Subnet(DEMO, DEMO_ARCH, 4).state_dict()
    modules = {"stem": "features.0", "head": "features.5", "classifier": "classifier.1"}
    result = {}
    for name, tensor in state.items():
        parts = name.split(".")
        if parts[-1] == "num_batches_tracked":
            continue
        if parts[0] != "stages":
            middle = {"conv": ".0", "norm": ".1"}.get(parts[1], "")
            result[f"{modules[parts[0]]}{middle}.{parts[-1]}"] = tensor
            continue
        _, number, _, part, kind, leaf = parts
        place = ("depthwise", "project").index(part) if number == "0" else ("expand", "depthwise", "project").index(part)
        end = {"conv": ".0", "norm": ".1"}[kind] if part != "project" else ""
        result[f"features.{int(number) + 1}.conv.{place + (part == 'project' and kind == 'norm')}{end}.{leaf}"] = tensor
    return result


def _without(state: dict[str, Tensor]) -> None:
    del state["features.3.conv.1.1.running_var"], state["features.5.0.weight"]


def _reshaped(state: dict[str, Tensor]) -> None:
    state["features.2.conv.1.0.weight"] = torch.zeros(96, 1, 7, 7)


def _renamed(state: dict[str, Tensor]) -> None:
    state["features.2.conv.se.weight"] = state["features.2.conv.2.weight"].clone()


def _short(state: dict[str, Tensor]) -> None:
    state["features.2.conv.3.bias"] = torch.zeros(3)


def _infinite(state: dict[str, Tensor]) -> None:
    state["features.1.conv.1.weight"][0, 0] = torch.inf


def _empty(state: dict[str, Tensor]) -> None:
    state["features.2.conv.1.0.weight"] = torch.zeros(0, 1, 3, 3)


def _flat(state: dict[str, Tensor]) -> None:
    state["classifier.1.weight"] = torch.tensor(1.0)


def _wide(state: dict[str, Tensor]) -> None:
    state["features.0.0.weight"] = torch.zeros(20, 3, 3, 3)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_without, r"missing: features\.5\.0\.weight"),
        (_reshaped, r"no place for: features\.2\.conv\.0\.0\.weight .*features\.2\.conv\.1\.0\.weight \(96, 1, 7, 7\)"),
        (_renamed, r"unknown: features\.2\.conv\.se\.weight"),
        (_short, r"of another shape: features\.2\.conv\.3\.bias \(3,\)"),
        (_infinite, r"not finite in features\.1\.conv\.1\.weight"),
        (_empty, r"missing: features\.2\.conv\.1\.0\.weight"),
        (_flat, r"of another shape: classifier\.1\.weight \(\)"),
        (_wide, r"at no width: features\.0\.0\.weight \(20, 3, 3, 3\)"),
    ],
)
def test_wrong_tensors_are_named(tmp_path: Path, damage: Callable[[dict[str, Tensor]], None], message: str) -> None:
    state = _demo_state()
    damage(state)
    with pytest.raises(WeightsError, match=message) as error:
        read_seed(_saved(tmp_path / "seed.safetensors", state), DEMO)
    assert str(tmp_path / "seed.safetensors") in str(error.value)


def test_another_network_is_refused(tmp_path: Path) -> None:
    resnet = _saved(tmp_path / "resnet.safetensors", torchvision.models.resnet18(num_classes=2).state_dict())
    with pytest.raises(WeightsError, match=r"no network of a kind that is known \(torchvision MobileNetV2, .*bn1\.bias"):
        read_seed(resnet, MBV2)
    mobilenet = _saved(tmp_path / "v3.safetensors", torchvision.models.mobilenet_v3_small(num_classes=2).state_dict())
    with pytest.raises(
        WeightsError,
        match=r"not a network of space mbv2 but one as of mbv3_large: it has activations hswish/relu/hswish/hswish, not",
    ):
        read_seed(mobilenet, MBV2)
    with pytest.raises(WeightsError, match="not a network of space mbv3_large"):
        read_seed(mobilenet)
    with pytest.raises(WeightsError, match="not a network of space mbv2"):
        read_seed(_saved(tmp_path / "demo.safetensors", _demo_state()), MBV2)


def test_contradictory_metadata_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "seed.safetensors"
    save_file(_demo_state(), path, {"arch": "r32-w1-k3e1-k3e6-k5e3-k3e6"})
    with pytest.raises(WeightsError, match="its tensors are of another one"):
        read_seed(path, DEMO)
    save_file(_demo_state(), path, {"arch": "mobilenet"})
    with pytest.raises(WeightsError, match="cannot be read"):
        read_seed(path, DEMO)


def test_truncated_and_foreign_files_are_refused(tmp_path: Path) -> None:
    path = _saved(tmp_path / "seed.safetensors", _demo_state())
    whole = path.read_bytes()
    for length in (0, 5, 1000, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(WeightsError, match="not a whole safetensors file"):
            read_seed(path, DEMO)
    torch.save(_demo_state(), tmp_path / "seed.pth")
    (tmp_path / "seed.pth").write_bytes((tmp_path / "seed.pth").read_bytes()[:-500])
    with pytest.raises(WeightsError, match="not a whole file of torch weights"):
        read_seed(tmp_path / "seed.pth", DEMO)
    with pytest.raises(WeightsError, match="cannot be read: No such file"):
        read_seed(tmp_path / "absent.pth", DEMO)
    (tmp_path / "seed.onnx").write_bytes(whole)
    with pytest.raises(WeightsError, match="ending"):
        read_seed(tmp_path / "seed.onnx", DEMO)
    torch.save({"model": _demo_state(), "epoch": 3}, tmp_path / "seed.pth")
    with pytest.raises(WeightsError, match="more than a dictionary of tensors"):
        read_seed(tmp_path / "seed.pth", DEMO)
    torch.save({"state_dict": _demo_state(), "epoch": 3}, tmp_path / "seed.pth")
    assert read_seed(tmp_path / "seed.pth", DEMO).arch.stages == DEMO_ARCH.stages


class Malicious:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.mkdir, ("executed",))


def test_code_in_a_weight_file_is_not_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"features.0.0.weight": Malicious()}, tmp_path / "seed.pth")
    with pytest.raises(WeightsError, match="not a whole file of torch weights"):
        read_seed(tmp_path / "seed.pth", DEMO)
    assert not (tmp_path / "executed").exists()


@given(st.binary(max_size=200), st.sampled_from([".pth", ".safetensors"]))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_refused_in_one_sentence(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"seed{suffix}"
    path.write_bytes(content)
    with pytest.raises(WeightsError):
        read_seed(path, DEMO)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "seed.safetensors"
    subnet = Subnet(DEMO, DEMO_ARCH, 4)
    write_seed(subnet, path)
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(NatdeployError, match="No space left"):
        write_seed(subnet, path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
