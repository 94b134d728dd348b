"""The supernet against the subnets it holds."""

from __future__ import annotations

import copy
import gc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from natdeploy.errors import UsageError
from natdeploy.space import Arch, SearchSpace, get_space
from natdeploy.supernet import Padding, Subnet, Supernet
from natdeploy.supernet.layers import ElasticConv

MBV2, DEMO = get_space("mbv2"), get_space("demo")
MBV3 = get_space("mbv3_large").restrict(resolutions=(64,))
"""It has every kind of part: squeeze-and-excitation, a mixing layer, three activations."""


def random_supernet(space: SearchSpace, padding: Padding = "symmetric", classes: int = 7, **kwargs: float) -> Supernet:
    """A supernet whose statistics, scales and shifts are unlike those of a fresh one."""
    generator = torch.Generator().manual_seed(1)
    supernet = Supernet(space, classes, padding=padding, **kwargs).eval()
    for name, tensor in supernet.state_dict().items():
        if name.endswith(("running_mean", "norm.bias")):
            tensor.normal_(0, 0.1, generator=generator)
        elif name.endswith(("running_var", "norm.weight")):
            tensor.uniform_(0.5, 1.5, generator=generator)
    return supernet


def sample(space: SearchSpace, n: int, seed: int = 0) -> list[Arch]:
    return space.decode_all(space.sample(n, np.random.default_rng(seed)))


@pytest.mark.parametrize("padding", ["symmetric", "same"])
@pytest.mark.parametrize(("space", "count"), [(DEMO, 8), (MBV2.restrict(resolutions=(80, 96)), 2)])
def test_extracted_subnet_computes_what_the_supernet_computes(space: SearchSpace, count: int, padding: Padding) -> None:
    supernet = random_supernet(space, padding)
    generator = torch.Generator().manual_seed(0)
    for arch in sample(space, count):
        # At 80 px odd sizes occur, where TensorFlow's padding is symmetric.
        x = torch.randn(2, 3, arch.resolution, arch.resolution, generator=generator)
        with torch.no_grad():
            torch.testing.assert_close(supernet.extract(arch)(x), supernet(x, arch), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("padding", ["symmetric", "same"])
@pytest.mark.parametrize(("space", "output_stride"), [(MBV2.restrict(resolutions=(64, 80)), 16), (MBV3, 8), (DEMO, 2)])
def test_a_dilated_subnet_computes_what_its_supernet_computes(space: SearchSpace, output_stride: int, padding: Padding) -> None:
    supernet = random_supernet(replace(space, output_stride=output_stride), padding)
    for arch in sample(space, 2):
        x = torch.randn(2, 3, arch.resolution, arch.resolution, generator=torch.Generator().manual_seed(0))
        subnet = supernet.extract(arch)
        assert any(module.dilation != (1, 1) for module in subnet.modules() if isinstance(module, nn.Conv2d))
        with torch.no_grad():
            torch.testing.assert_close(subnet(x), supernet(x, arch), atol=1e-5, rtol=1e-5)


def test_dilation_looks_at_every_other_place_as_a_stride_would() -> None:
    """Every second row and column of the large map of a stage that dilates is the small map of the stage that has the stride."""
    space = DEMO.restrict(resolutions=(32,))
    dense = replace(space, output_stride=4)
    arch = sample(space, 1)[0]
    strided, dilated = Subnet(space, arch, 7).eval(), Subnet(dense, arch, 7).eval()
    dilated.load_state_dict(strided.state_dict())
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        small, large = (nn.Sequential(each.stem, *each.stages)(x) for each in (strided, dilated))
    torch.testing.assert_close(large[..., ::2, ::2], small, atol=1e-5, rtol=1e-5)


def test_width_scales_all_channels() -> None:
    supernet = random_supernet(MBV2, width=0.35)
    arch = Arch(64, 0.35, sample(MBV2, 1)[0].stages)
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(supernet.extract(arch)(x), supernet(x, arch), atol=1e-5, rtol=1e-5)
    assert supernet.stem.conv.out_channels == 16


def test_extraction_copies() -> None:
    supernet = random_supernet(DEMO)
    arch = DEMO.decode(DEMO.upper)  # the largest: nothing is cropped
    subnet = supernet.extract(arch)
    before = supernet.stem.conv.weight.clone()
    with torch.no_grad():
        for parameter in subnet.parameters():
            parameter.zero_()
    assert torch.equal(supernet.stem.conv.weight, before)
    assert not subnet.training and all(parameter.requires_grad for parameter in subnet.parameters())


@pytest.mark.parametrize("kernel", [5, 7])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_wide_kernels_train_on_maps_smaller_than_themselves(kernel: int, size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    layer = ElasticConv(4, 4, kernel, depthwise=True, activation=None).double()
    x = torch.randn(2, 4, size, size, generator=generator, dtype=torch.float64)
    weight = layer.conv.weight
    layer(x, 4, kernel).pow(3).sum().backward()
    expected = torch.nn.functional.conv2d(x, weight, padding=kernel // 2, groups=4)
    expected = torch.nn.functional.batch_norm(expected, None, None, training=True, eps=layer.norm.eps)
    (gradient,) = torch.autograd.grad(expected.pow(3).sum(), weight)
    torch.testing.assert_close(weight.grad, gradient)


def tables(network: nn.Module) -> list[Any]:
    """Everything in the modules of a network that can be changed in place, tensors apart."""
    return [value for module in network.modules() for value in vars(module).values() if isinstance(value, dict | set)]


@pytest.mark.parametrize("padding", ["symmetric", "same"])
def test_extracted_modules_are_those_that_torch_constructs(padding: Padding) -> None:
    (arch,) = sample(MBV3, 1)
    extracted = random_supernet(MBV3, padding).extract(arch)
    constructed = Subnet(extracted.space, arch, 7, padding).eval()
    assert str(extracted) == str(constructed)
    for (name, one), (other_name, other) in zip(extracted.named_modules(), constructed.named_modules(), strict=True):
        assert (name, type(one), set(vars(one))) == (other_name, type(other), set(vars(other)))
        for key, value in vars(other).items():
            mine = vars(one)[key]
            assert type(mine) is type(value), (name, key)
            assert list(mine) == list(value) if isinstance(value, dict | set) else mine == value, (name, key)
    for (name, tensor), (other_name, expected) in zip(
        extracted.state_dict(keep_vars=True).items(), constructed.state_dict(keep_vars=True).items(), strict=True
    ):
        assert (name, type(tensor), tensor.shape, tensor.dtype) == (other_name, type(expected), expected.shape, expected.dtype)
        assert tensor.requires_grad == expected.requires_grad and tensor.is_leaf


def test_extracted_networks_share_nothing_that_can_change() -> None:
    supernet = random_supernet(MBV3)
    largest = MBV3.decode(MBV3.upper)  # nothing is cropped
    networks = [supernet, supernet.extract(largest), supernet.extract(largest)]
    storages = [tensor.untyped_storage().data_ptr() for network in networks for tensor in network.state_dict().values()]
    assert len(storages) == len(set(storages))
    ids = [id(table) for network in networks for table in tables(network)]
    assert len(ids) == len(set(ids))


def test_extracted_network_is_an_ordinary_module() -> None:
    (arch,) = sample(DEMO, 1)
    subnet = random_supernet(DEMO).extract(arch)
    x = torch.randn(2, 3, arch.resolution, arch.resolution, generator=torch.Generator().manual_seed(0))
    expected, order = subnet(x), []
    twin = copy.deepcopy(subnet)
    subnet.head.register_forward_hook(lambda *_: order.append("second"))
    subnet.head.register_forward_hook(lambda *_: order.append("first"), prepend=True)
    optimizer = torch.optim.SGD(subnet.parameters(), lr=0.1)
    subnet.train()(x).square().sum().backward()
    assert order == ["first", "second"]
    assert all(parameter.grad is not None for parameter in subnet.parameters())
    optimizer.step()
    assert not torch.equal(subnet.eval()(x), expected)
    assert torch.equal(twin(x), expected)


def test_extraction_keeps_the_memory_format() -> None:
    supernet = random_supernet(MBV3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for arch in (*sample(MBV3, 2), MBV3.decode(MBV3.upper)):
        weights = [tensor for tensor in supernet.extract(arch).parameters() if tensor.dim() == 4]
        assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device here; run this on a machine with one")
def test_extraction_on_cuda_is_that_on_the_cpu() -> None:
    supernet = random_supernet(MBV3)
    archs = sample(MBV3, 2)
    expected = [supernet.extract(arch).state_dict() for arch in archs]
    supernet.to("cuda")
    for arch, state in zip(archs, expected, strict=True):
        subnet = supernet.extract(arch)
        for name, tensor in subnet.state_dict().items():
            assert tensor.is_cuda and torch.equal(tensor.cpu(), state[name]), name
        assert all(isinstance(parameter, nn.Parameter) and parameter.requires_grad for parameter in subnet.parameters())


def test_extraction_refuses_another_space_and_width() -> None:
    supernet = Supernet(DEMO, 3)
    with pytest.raises(UsageError, match="stages"):
        supernet.extract(sample(MBV2.restrict(resolutions=[16]), 1)[0])
    with pytest.raises(UsageError, match=r"width 0\.5"):
        supernet.extract(Arch(16, 0.5, sample(DEMO, 1)[0].stages))


def test_training_touches_no_statistics_and_only_what_the_architecture_uses() -> None:
    supernet = random_supernet(DEMO).train()
    buffers = {name: buffer.clone() for name, buffer in supernet.named_buffers()}
    arch = Arch.parse("r16-w1-k3e1-k3e3-k3e6-k5e3")
    x = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    supernet(x, arch).square().sum().backward()
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in supernet.named_buffers())

    grads = {name: parameter.grad for name, parameter in supernet.named_parameters()}
    used = grads["stages.1.0.depthwise.conv.weight"]
    assert used is not None and used[:48, :, 1:4, 1:4].abs().min() > 0
    assert used[48:].abs().max() == 0 and used[:, :, 0].abs().max() == 0 and used[:, :, :, 0].abs().max() == 0
    assert grads["stages.1.1.project.conv.weight"] is None


def test_memory_format_stays_channels_last() -> None:
    supernet = random_supernet(MBV2, "same").train()
    formats = []
    for module in supernet.modules():
        if type(module).__name__ in {"ElasticConv", "ElasticMBConv"}:
            module.register_forward_hook(lambda _, __, y: formats.append(y.is_contiguous(memory_format=torch.channels_last)))
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    supernet(x.contiguous(memory_format=torch.channels_last), sample(MBV2, 1)[0])
    assert len(formats) > 20 and all(formats)


def test_equal_calls_give_equal_networks_and_leave_global_chance_alone() -> None:
    state = torch.random.get_rng_state()
    first, second = Supernet(DEMO, 5), Supernet(DEMO, 5)
    other = Supernet(DEMO, 5, generator=torch.Generator().manual_seed(1))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True))
    assert not torch.equal(first.stem.conv.weight, other.stem.conv.weight)
    # He et al., fan out: variance 2 / (out_channels * kernel^2).
    assert float(first.head.conv.weight.detach().std()) == pytest.approx((2 / 128) ** 0.5, rel=0.05)


def test_reset_classifier() -> None:
    supernet = Supernet(DEMO, 5)
    supernet.reset_classifier(9, torch.Generator().manual_seed(3))
    weight = supernet.classifier.weight.detach().clone()
    assert weight.shape == (9, 128) and supernet.classifier.weight.requires_grad and supernet.classes == 9
    assert float(weight.std()) == pytest.approx(0.01, rel=0.1) and not supernet.classifier.bias.any()
    supernet.reset_classifier(9, torch.Generator().manual_seed(3))
    assert torch.equal(weight, supernet.classifier.weight)
    assert supernet.extract(sample(DEMO, 1)[0]).classifier.out_features == 9


def test_switching_architectures_leaves_nothing_behind() -> None:
    supernet = random_supernet(DEMO).train()
    supernet(torch.ones(2, 3, 16, 16), DEMO.decode(DEMO.upper)).sum().backward()
    gc.collect()
    before = _tensors()
    for arch in sample(DEMO, 6):
        for parameter in supernet.parameters():
            parameter.grad = None
        supernet(torch.ones(2, 3, 16, 16), arch).sum().backward()
    gc.collect()
    assert _tensors() <= before


def _tensors() -> int:
    """How many there are in this process."""
    return sum(issubclass(type(each), torch.Tensor) for each in gc.get_objects())
