from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image, ImageOps
from torch import nn

from natdeploy.errors import AccuracyGateError, NatdeployError
from natdeploy.export import check, export_onnx, parity, runtime_accuracy
from natdeploy.space import SearchSpace, get_space
from natdeploy.supernet import Padding, Subnet, Supernet
from natdeploy.supernet.remap import remap
from natdeploy.supernet.weights import read_seed

SPACE = get_space("demo")
CLASSES = 7


def make_subnet(seed: int, padding: Padding = "symmetric", space: SearchSpace = SPACE, norm_eps: float = 1e-5) -> Subnet:
    """A random architecture with random weights and statistics, in evaluation mode."""
    torch.manual_seed(seed)
    arch = space.decode(space.sample(1, np.random.default_rng(seed))[0])
    subnet = Subnet(space, arch, CLASSES, padding, norm_eps)
    for module in subnet.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.8, 1.2)
            nn.init.normal_(module.bias, 0, 0.2)
            module.running_mean = torch.randn(module.num_features) * 0.1
            module.running_var = torch.rand(module.num_features) * 0.3 + 0.1
    return subnet.eval()


def batches(subnet: Subnet, n: int = 10) -> list[check.Batch]:
    size = subnet.arch.resolution
    images = torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(1)).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        labels = subnet(images).argmax(dim=1)
    return list(zip(images.split(4), labels.split(4), strict=True))


@pytest.mark.parametrize("padding", ["symmetric", "same"])
def test_file_computes_what_torch_computes(tmp_path: Path, padding: Padding) -> None:
    for seed in range(3):
        subnet = make_subnet(seed, padding)
        path = export_onnx(subnet, tmp_path / f"{seed}.onnx", {}).path
        images = batches(subnet)
        found = parity(subnet, path, images)
        assert found.max_rel < 1e-5
        assert 0 < found.max_abs < 1e-4
        assert (found.top1_agreement, found.n) == (1.0, 10)
        assert runtime_accuracy(path, images) == (10, 10)


@pytest.mark.parametrize("name", ["ofa_mbv3", "mbv3_large", "proxyless"])
def test_activations_and_squeezes_of_every_space(tmp_path: Path, name: str) -> None:
    subnet = make_subnet(0, space=get_space(name).restrict(resolutions=(64,)), norm_eps=1e-3)
    path = export_onnx(subnet, tmp_path / "model.onnx", {}).path
    assert parity(subnet, path, batches(subnet, 4)).max_rel < 1e-5
    kinds = Counter(node.op_type for node in onnx.load(path).graph.node)
    assert "BatchNormalization" not in kinds
    blocks = subnet.space.blocks(subnet.arch, CLASSES)
    # ONNX Runtime writes x * hardsigmoid(x) out, as its processors compute it. A layer that expands has two activations.
    hswish = sum(1 + block.expands for block in blocks if block.activation == "hswish")
    squeezes = sum(block.squeeze > 0 for block in blocks)
    assert kinds["HardSigmoid"] == kinds["Mul"] == hswish + squeezes
    assert kinds["GlobalAveragePool"] == 1 + squeezes
    standard = {"Conv", "Clip", "Relu", "HardSigmoid", "Mul", "Add", "GlobalAveragePool", "Flatten", "MatMul", "Gemm"}
    assert kinds.keys() <= standard


def test_epsilon_is_folded_in(tmp_path: Path) -> None:
    """Where variances are small, another epsilon is another network."""
    subnet = make_subnet(0, norm_eps=1e-3)
    for module in subnet.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_var is not None:
            module.running_var.mul_(0.01)
            nn.init.constant_(module.weight, 0.1)  # else every layer would magnify tenfold
    path = export_onnx(subnet, tmp_path / "model.onnx", {}).path
    images = batches(subnet)
    assert parity(subnet, path, images).max_rel < 1e-5
    for module in subnet.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-5
    with pytest.raises(AccuracyGateError):
        parity(subnet, path, images)


def test_real_weights_on_real_photos(shared: Path, tmp_path: Path) -> None:
    space = get_space("mbv2")
    seed = read_seed(shared / "weights" / "mobilenet_v2_imagenet.safetensors", space)
    supernet = Supernet(space, seed.classes, padding="same", generator=torch.Generator().manual_seed(0))
    remap(seed, supernet)
    subnet = supernet.extract(replace(seed.arch, resolution=96)).eval()
    path = export_onnx(subnet, tmp_path / "model.onnx", {}).path
    photos = [sorted(folder.glob("*.jpg"))[0] for folder in sorted((shared / "data" / "flowers12" / "test").iterdir())]
    squares = [np.asarray(ImageOps.fit(Image.open(photo).convert("RGB"), (96, 96)), np.float32) for photo in photos]
    images = torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2) / 127.5 - 1
    found = parity(subnet, path, [(images, torch.zeros(len(images)))])
    assert found.n == 12
    assert found.max_rel < 1e-4
    assert found.top1_agreement == 1.0


def test_graph_is_folded_and_standard(tmp_path: Path) -> None:
    for padding in ("symmetric", "same"):
        subnet = make_subnet(0, padding)
        model = onnx.load(export_onnx(subnet, tmp_path / "model.onnx", {}).path)
        convolutions = sum(isinstance(module, nn.Conv2d) for module in subnet.modules())
        activations = sum(isinstance(module, nn.ReLU6) for module in subnet.modules())
        kinds = Counter(node.op_type for node in model.graph.node)
        residuals = sum(block.residual for block in SPACE.blocks(subnet.arch, CLASSES))
        expected = {"Conv": convolutions, "Clip": activations, "Add": residuals, "GlobalAveragePool": 1, "Flatten": 1, "Gemm": 1}
        assert kinds == Counter(expected)
        assert [each.domain for each in model.opset_import] == [""]


def test_asymmetric_padding_is_in_the_convolution(tmp_path: Path) -> None:
    model = onnx.load(export_onnx(make_subnet(0, "same"), tmp_path / "model.onnx", {}).path)
    strided = [
        {attribute.name: list(attribute.ints) for attribute in node.attribute}
        for node in model.graph.node
        if node.op_type == "Conv" and any(each.name == "strides" and list(each.ints) == [2, 2] for each in node.attribute)
    ]
    assert len(strided) == sum(stage.stride == 2 for stage in SPACE.stages)
    for each in strided:
        smaller = (each["kernel_shape"][0] - 2) // 2
        assert each["pads"] == [smaller, smaller, smaller + 1, smaller + 1]


def test_file_describes_itself(tmp_path: Path) -> None:
    subnet = make_subnet(1)
    written = export_onnx(subnet, tmp_path / "new" / "model.onnx", {"arch": str(subnet.arch), "labels": '["colt’s foot"]'})
    data = written.path.read_bytes()
    assert written.sha256 == hashlib.sha256(data).hexdigest()
    assert written.size_mb == len(data) / 1e6
    assert b"site-packages" not in data
    session = onnxruntime.InferenceSession(written.path, providers=["CPUExecutionProvider"])
    assert session.get_modelmeta().custom_metadata_map == {"arch": str(subnet.arch), "labels": '["colt’s foot"]'}
    size = subnet.arch.resolution
    assert [(each.name, each.shape, each.type) for each in session.get_inputs()] == [("input", [1, 3, size, size], "tensor(float)")]
    assert [(each.name, each.shape) for each in session.get_outputs()] == [("output", [1, CLASSES])]
    assert onnx.load(written.path).opset_import[0].version == written.opset


def test_export_is_repeatable_and_leaves_the_subnet_alone(tmp_path: Path) -> None:
    subnet = make_subnet(2).to(memory_format=torch.channels_last)
    images = batches(subnet)
    subnet.train()
    before = {name: value.clone() for name, value in subnet.state_dict().items()}
    first = export_onnx(subnet, tmp_path / "model.onnx", {"a": "1", "b": "2"})
    second = export_onnx(subnet, tmp_path / "model.onnx", {"a": "1", "b": "2"})
    assert first == second
    assert parity(subnet, first.path, images).max_rel < 1e-5
    assert subnet.training
    assert all(torch.equal(value, before[name]) for name, value in subnet.state_dict().items())


def test_another_network_is_found_out(tmp_path: Path) -> None:
    subnet = make_subnet(3)
    path = export_onnx(subnet, tmp_path / "model.onnx", {}).path
    images = batches(subnet)
    with torch.no_grad():
        subnet.classifier.weight[0, 0] += 1.0
    with pytest.raises(AccuracyGateError, match=r"model\.onnx differs from the network"):
        parity(subnet, path, images)
    with torch.no_grad():
        subnet.classifier.weight[0, 0] = torch.nan
    with pytest.raises(AccuracyGateError):
        parity(subnet, path, images)


def test_accuracy_counts_what_is_right(tmp_path: Path) -> None:
    subnet = make_subnet(4)
    path = export_onnx(subnet, tmp_path / "model.onnx", {}).path
    (images, labels), *rest = batches(subnet)
    wrong = labels.clone()
    wrong[:3] = (wrong[:3] + 1) % CLASSES
    assert runtime_accuracy(path, [(images, wrong), *rest]) == (7, 10)


def test_parity_needs_images(tmp_path: Path) -> None:
    subnet = make_subnet(4)
    path = export_onnx(subnet, tmp_path / "model.onnx", {}).path
    with pytest.raises(ValueError, match="images"):
        parity(subnet, path, [])


def test_full_disk_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(NatdeployError, match=r"cannot be written \(No space left on device\)"):
        export_onnx(make_subnet(0), path, {})
    assert path.read_bytes() == b"old"
    assert [each.name for each in tmp_path.iterdir()] == ["model.onnx"]
