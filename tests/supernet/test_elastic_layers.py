"""Padding, cropping, and the elastic convolution against hand-sliced torch calls."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from natdeploy.space import Block, Layer
from natdeploy.supernet.layers import ElasticConv, ElasticMBConv, Padding, _ReLU6, _WideDepthwise, crop, pads


@given(st.integers(1, 300), st.sampled_from([3, 5, 7]), st.sampled_from([1, 2]), st.sampled_from(["symmetric", "same"]))
def test_pads_give_the_rounded_up_size(size: int, kernel: int, stride: int, padding: Padding) -> None:
    before, after = pads(size, kernel, stride, padding)
    assert 0 <= before <= after <= before + 1
    assert (size + before + after - kernel) // stride + 1 == -(-size // stride)


def test_pads_of_tensorflow() -> None:
    assert [pads(224, kernel, 2, "same") for kernel in (3, 5, 7)] == [(0, 1), (1, 2), (2, 3)]
    assert [pads(7, kernel, 2, "same") for kernel in (3, 5, 7)] == [(1, 1), (2, 2), (3, 3)]
    assert pads(224, 5, 1, "same") == (2, 2)
    assert pads(224, 3, 2, "symmetric") == (1, 1)


def test_crop_takes_first_channels_and_the_centre_of_the_kernel() -> None:
    weight = torch.arange(4 * 3 * 7 * 7).view(4, 3, 7, 7)
    assert torch.equal(crop(weight, (2, 1, 3, 3)), weight[:2, :1, 2:5, 2:5])
    assert crop(weight, (2, 1, 3, 3)).untyped_storage().data_ptr() == weight.untyped_storage().data_ptr()  # a view
    assert crop(weight, weight.shape) is weight
    with pytest.raises(RuntimeError):
        crop(weight, (5, 3, 7, 7))
    with pytest.raises(RuntimeError):
        crop(weight, (4, 3, 9, 9))


def test_relu6_has_the_values_and_gradient_of_torch() -> None:
    x = torch.linspace(-3, 9, 241).view(1, 1, -1, 1)  # holds 0 and 6 exactly
    given, reference = x.clone().requires_grad_(), x.clone().requires_grad_()
    weights = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    inner = given * 1
    result = _ReLU6.apply(inner)
    assert result.data_ptr() == inner.data_ptr()
    (result * weights).sum().backward()
    expected = F.relu6(reference)
    (expected * weights).sum().backward()
    assert torch.equal(result, expected)
    assert given.grad is not None and reference.grad is not None
    assert torch.equal(given.grad, reference.grad)


@pytest.mark.parametrize("kernel", [5, 7, 9])
@pytest.mark.parametrize("size", [3, 4, 7, 10])
def test_strips_of_a_wide_kernel_add_up_to_torchs_gradient(kernel: int, size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, size, size + 1, dtype=torch.float64, generator=generator).requires_grad_()
    weight = torch.randn(3, 1, kernel, kernel, dtype=torch.float64, generator=generator).requires_grad_()
    result, expected = _WideDepthwise.apply(x, weight), F.conv2d(x, weight, padding=kernel // 2, groups=3)
    assert torch.equal(result, expected)
    gradient = torch.randn(result.shape, dtype=torch.float64, generator=generator)
    wanted = torch.autograd.grad(expected, (x, weight), gradient)
    torch.testing.assert_close(torch.autograd.grad(result, (x, weight), gradient), wanted)
    [alone] = torch.autograd.grad(_WideDepthwise.apply(x.detach(), weight), weight, gradient)  # as in a first layer
    torch.testing.assert_close(alone, wanted[1])


@pytest.mark.parametrize("depthwise", [True, False])
def test_gradients_of_fast_paths_are_torchs_in_either_precision(depthwise: bool) -> None:
    torch.manual_seed(0)
    kernel = 7 if depthwise else 1
    layer = ElasticConv(16, 16, kernel, depthwise=depthwise, activation=None)
    x = torch.randn(3, 8, 9, 9).contiguous(memory_format=torch.channels_last).requires_grad_()
    weight = layer.weight(8, 1 if depthwise else 8, kernel)
    y = F.batch_norm(F.conv2d(x, weight, padding=kernel // 2, groups=8 if depthwise else 1), None, None, training=True)
    coefficients = torch.randn_like(y)
    expected = torch.autograd.grad((y * coefficients).sum(), (x, layer.conv.weight))
    result = layer(x, 8, kernel)
    assert result.is_contiguous(memory_format=torch.channels_last)
    gradients = torch.autograd.grad((result * coefficients).sum(), (x, layer.conv.weight))
    torch.testing.assert_close(gradients, expected, rtol=1e-4, atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        lower = layer(x.bfloat16(), 8, kernel)
    assert lower.dtype == torch.bfloat16
    gradients = torch.autograd.grad((lower.float() * coefficients).sum(), (x, layer.conv.weight))
    for mine, wanted in zip(gradients, expected, strict=True):
        assert mine.dtype == torch.float32
        assert (mine - wanted).norm() < 0.03 * wanted.norm()


@pytest.mark.parametrize("padding", ["symmetric", "same"])
def test_elastic_convolution_is_the_sliced_convolution(padding: Padding) -> None:
    torch.manual_seed(0)
    layer = ElasticConv(12, 12, 7, 2, padding=padding, depthwise=True)
    _random_statistics(layer)
    x = torch.randn(2, 8, 10, 10)
    widths = (1, 2, 1, 2) if padding == "same" else (2, 2, 2, 2)
    y = F.conv2d(F.pad(x, widths), layer.conv.weight[:8, :, 1:6, 1:6], stride=2, groups=8)
    mean, variance, scale, shift = (tensor[:8, None, None] for tensor in _norm(layer))

    expected = ((y - mean) / (variance + 1e-5).sqrt() * scale + shift).clamp(0, 6)
    torch.testing.assert_close(layer.eval()(x, 8, 5), expected, atol=1e-5, rtol=1e-5)

    batch = (y - y.mean((0, 2, 3), keepdim=True)) / (y.var((0, 2, 3), keepdim=True, unbiased=False) + 1e-5).sqrt()
    torch.testing.assert_close(layer.train()(x, 8, 5), (batch * scale + shift).clamp(0, 6), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(_norm(layer)[0][:8], mean[:, 0, 0])  # training leaves the stored statistics alone


def test_block_without_expansion_refuses_one() -> None:
    block = ElasticMBConv(Block("mbconv", 4, 8, 8, 8, 3, 1, residual=True))
    assert block.residual and block.expand is None
    assert block(torch.zeros(2, 8, 4, 4), Layer(3, 1)).shape == (2, 8, 4, 4)
    with pytest.raises(AssertionError, match="without an expansion"):
        block(torch.zeros(2, 8, 4, 4), Layer(3, 6))


def _random_statistics(layer: ElasticConv) -> None:
    mean, variance, scale, shift = _norm(layer)
    with torch.no_grad():
        mean.normal_()
        variance.uniform_(0.5, 2)
        scale.uniform_(0.5, 2)
        shift.normal_()


def _norm(layer: ElasticConv) -> tuple[torch.Tensor, ...]:
    norm = layer.norm
    assert norm.running_mean is not None and norm.running_var is not None
    return norm.running_mean, norm.running_var, norm.weight, norm.bias
