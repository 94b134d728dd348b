"""Networks with a head for dense prediction."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from natdeploy.errors import UsageError
from natdeploy.space import PIXEL_KINDS, Arch, HeadKind, HeadSpec, SearchSpace, get_space
from natdeploy.supernet import (
    Padding,
    Subnet,
    Supernet,
    build_head,
    calibrate,
    remap,
)

DEMO = replace(get_space("demo"), output_stride=4)
MBV2 = get_space("mbv2").restrict(resolutions=(64,))


def dense(kind: HeadKind, space: SearchSpace = DEMO) -> SearchSpace:
    return replace(space, dense=HeadSpec(kind, channels=16, rates=(1, 2)))


def sample(space: SearchSpace, n: int) -> list[Arch]:
    return space.decode_all(space.sample(n, np.random.default_rng(0)))


def images(n: int, height: int, width: int) -> Tensor:
    return torch.randn(n, 3, height, width, generator=torch.Generator().manual_seed(0))


def dense_subnet(space: SearchSpace, arch: Arch, kind: HeadKind, classes: int = 5) -> Subnet:
    torch.manual_seed(0)
    return Subnet(dense(kind, space), arch, classes).eval()


@pytest.mark.parametrize("kind", PIXEL_KINDS)
@pytest.mark.parametrize("padding", ["symmetric", "same"])
def test_an_extracted_network_computes_what_the_supernet_computes_on_images_of_any_shape(kind: HeadKind, padding: Padding) -> None:
    supernet = Supernet(dense(kind), 5, padding=padding).eval()
    calibrate(supernet.extract(sample(DEMO, 1)[0]), [images(4, 32, 32)])
    for arch in sample(DEMO, 3):
        for shape in ((arch.resolution, arch.resolution), (24, 40)):
            subnet, x = supernet.extract(arch), images(2, *shape)
            with torch.no_grad():
                logits = subnet(x)
                assert logits.shape == (2, 5, *shape)
                torch.testing.assert_close(logits, supernet(x, arch), atol=1e-5, rtol=1e-5)
            assert not subnet.training and all(parameter.requires_grad for parameter in subnet.parameters())


@pytest.mark.parametrize("kind", PIXEL_KINDS)
def test_a_network_with_a_head_has_the_names_of_its_supernet_and_an_ordinary_backbone(kind: HeadKind) -> None:
    arch = DEMO.decode(DEMO.upper)
    subnet, supernet = dense_subnet(DEMO, arch, kind).state_dict(), Supernet(dense(kind), 5).state_dict()
    assert {name: tensor.shape for name, tensor in subnet.items()} == {name: tensor.shape for name, tensor in supernet.items()}
    plain = Subnet(DEMO, arch, 5).state_dict()
    stages = [name for name in plain if name.startswith(("stem.", "stages."))]
    assert [name for name in subnet if not name.startswith("classifier.")] == stages


def test_aspp_is_separable_without_chance_and_looks_as_far_at_either_output_stride() -> None:
    for output_stride, rates in ((16, [6, 12, 18]), (8, [12, 24, 36])):
        space = replace(MBV2, output_stride=output_stride)
        head = build_head(replace(space, dense=HeadSpec("deeplabv3", 32)), 1.0, 5)
        wide = [each for each in head.modules() if isinstance(each, nn.Conv2d) and each.kernel_size == (3, 3)]
        assert [each.dilation for each in wide] == [(rate, rate) for rate in rates]
        assert all(each.groups == each.in_channels == 320 for each in wide)
        assert not any(isinstance(each, nn.Dropout) for each in head.modules())
        features = [torch.zeros(2, 1, 1, 1)] * 6 + [images(2, 8, 8).mean(1, keepdim=True).expand(2, 320, 8, 8)]
        assert torch.equal(head.train()(features), head(features))


def test_lraspp_reads_the_last_features_and_those_of_stride_8() -> None:
    space = replace(MBV2, output_stride=8)
    subnet = dense_subnet(space, space.decode(space.upper), "lraspp")
    head = subnet.classifier.lraspp
    assert (head.low_classifier.in_channels, head.cbr[0].in_channels) == (32, 320), (
        "channels of MobileNetV2 at stride 8 and the last"
    )
    x = images(1, 64, 64)
    with torch.no_grad():
        y, features = subnet.stem(x), []
        for stage in subnet.stages:
            y = stage(y)
            features.append(y)
        assert features[2].shape[-1] == features[-1].shape[-1] == 8
        high = head.cbr(features[-1]) * head.scale(features[-1])
        expected = head.low_classifier(features[2]) + head.high_classifier(high)
        torch.testing.assert_close(subnet(x), F.interpolate(expected, (64, 64), mode="bilinear"), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", PIXEL_KINDS)
def test_a_classification_network_gives_its_backbone_to_a_dense_one(kind: HeadKind) -> None:
    arch = sample(DEMO, 1)[0]
    torch.manual_seed(1)
    source = Subnet(get_space("demo"), arch, 7).eval()
    for target in (dense_subnet(DEMO, arch, kind, 7), Supernet(dense(kind), 7)):
        before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
        report = remap(source, target)
        assert {"head.conv.weight", "classifier.weight"} <= set(report.unused)
        assert all(name.startswith("classifier.") or "stages." in name for name in report.unmapped)
        if kind == "deeplabv3":
            assert f"classifier ({sum(name.startswith('classifier.') for name in report.unmapped)} tensors)" in report.summary()
        after = target.state_dict()
        fresh = [name for name in before if name.startswith("classifier.")]
        assert fresh and all(torch.equal(before[name], after[name]) for name in fresh)
        assert torch.equal(after["stem.conv.weight"], source.state_dict()["stem.conv.weight"])
    back = Subnet(get_space("demo"), arch, 7).eval()
    remap(dense_subnet(DEMO, arch, kind, 7), back)


def test_dense_networks_give_their_head_too_where_the_classes_agree() -> None:
    arch = sample(DEMO, 1)[0]
    source = dense_subnet(DEMO, arch, "deeplabv3")
    same, other = Supernet(dense("deeplabv3"), 5).eval(), Supernet(dense("deeplabv3"), 6).eval()
    assert not [name for name in remap(source, same).unmapped if name.startswith("classifier.")]
    with torch.no_grad():
        torch.testing.assert_close(same(images(2, 32, 32), arch), source(images(2, 32, 32)), atol=1e-4, rtol=1e-4)
    assert [name for name in remap(source, other).unmapped if name.startswith("classifier.")]


def test_a_fresh_head_for_other_classes() -> None:
    supernet = Supernet(dense("deeplabv3"), 5).eval()
    supernet.reset_classifier(9, torch.Generator().manual_seed(3))
    again = Supernet(dense("deeplabv3"), 4)
    again.reset_classifier(9, torch.Generator().manual_seed(3))
    first, second = supernet.classifier.state_dict(), again.classifier.state_dict()
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    with torch.no_grad():
        assert supernet(images(2, 32, 32), sample(DEMO, 1)[0]).shape == (2, 9, 32, 32)
    assert not any(module.training for module in supernet.modules())


def test_impossible_heads_are_refused() -> None:
    with pytest.raises(UsageError, match="there is no head 'fcn'; choose one of deeplabv3, lraspp"):
        HeadSpec("fcn")  # type: ignore[arg-type]
    for wrong in ({"channels": 0}, {"rates": ()}, {"rates": (6, 0)}):
        with pytest.raises(UsageError, match="channels and rates of 1 or more"):
            replace(HeadSpec("deeplabv3"), **wrong)
