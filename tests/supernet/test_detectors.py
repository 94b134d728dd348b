"""Heads that find objects, against torchvision's own networks: anchors, answers, boxes."""

from __future__ import annotations

from collections import OrderedDict
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from natdeploy.space.detectors import DETECTOR_KINDS, FPN_MAPS, DetectorKind, anchor_count
from natdeploy.supernet.detectors import (
    BACKGROUND,
    CANDIDATES,
    LEAST,
    MOST,
    OVERLAP,
    WEIGHTS,
    Decode,
    RetinaNet,
    SSDLite,
    anchors,
    encode,
    select,
)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def features(side: int, channels: tuple[int, ...] = (8, 12, 20), n: int = 2) -> list[Tensor]:
    return [noise(n, each, -(-side // 2**number), -(-side // 2**number)) for number, each in enumerate(channels)]


def head(kind: DetectorKind, classes: int = 3) -> SSDLite | RetinaNet:
    torch.manual_seed(0)
    if kind == "ssdlite":
        return SSDLite((1, 2), (12, 20), 32, classes).eval()
    return RetinaNet((0, 1, 2), (8, 12, 20), 16, classes).eval()


def test_ssdlite_has_torchvisions_anchors_at_320_px() -> None:
    from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
    from torchvision.models.detection.image_list import ImageList

    published = DefaultBoxGenerator([[2, 3] for _ in range(6)], min_ratio=0.2, max_ratio=0.95)
    maps = [torch.empty(1, 1, side, side) for side in (20, 10, 5, 3, 2, 1)]
    expected = published(ImageList(torch.empty(1, 3, 320, 320), [(320, 320)]), maps)[0]
    assert len(expected) == 3234
    torch.testing.assert_close(320 * anchors("ssdlite", 3234), expected)


def test_retinanet_has_torchvisions_anchors_at_640_px() -> None:
    from torchvision.models.detection.image_list import ImageList
    from torchvision.models.detection.retinanet import _default_anchorgen

    maps = [torch.empty(1, 1, side, side) for side in (80, 40, 20, 10, 5)]
    expected = _default_anchorgen()(ImageList(torch.empty(1, 3, 640, 640), [(640, 640)]), maps)[0]
    torch.testing.assert_close(640 * anchors("retinanet", anchor_count("retinanet", 80)), expected)


@pytest.mark.parametrize("kind", DETECTOR_KINDS)
def test_the_number_of_answers_says_which_anchors_they_are_of(kind: DetectorKind) -> None:
    for side in (1, 2, 5, 10, 13):
        count = anchor_count(kind, side)
        assert (
            anchors(kind, count).shape == (count, 4)
            and head(kind)(features(side * (2 if kind == "ssdlite" else 1))).shape[1] == count
        )
        with pytest.raises(ValueError, match="for no square input"):
            anchors(kind, count + 1)
    with torch.inference_mode():
        kept = anchors(kind, anchor_count(kind, 9))
    assert not kept.is_inference(), "or nothing could be trained with it afterwards"


def test_ssdlite_answers_as_torchvisions_head_does() -> None:
    from torchvision.models.detection.ssdlite import SSDLiteHead

    ours, inputs = head("ssdlite"), features(20)
    maps = [*inputs[1:]]
    for block in ours.extra:
        maps.append(block(maps[-1]))
    assert [each.shape[-1] for each in maps] == [10, 5, 3, 2, 1, 1]
    theirs = SSDLiteHead([each.shape[1] for each in maps], [6] * 6, 4, nn.BatchNorm2d)
    theirs.regression_head, theirs.classification_head = ours.boxes, ours.scores
    expected = theirs(maps)
    torch.testing.assert_close(ours.answers(inputs[1:]), torch.cat([expected["bbox_regression"], expected["cls_logits"]], 2))


def test_retinanet_answers_as_torchvisions_head_does() -> None:
    ours, inputs = head("retinanet"), features(20)
    maps = list(ours.fpn(OrderedDict((str(number), each) for number, each in enumerate(inputs))).values())
    assert [each.shape[-1] for each in maps] == [20, 10, 5, 3, 2] and len(maps) == FPN_MAPS
    expected = ours.head(maps)
    nothing = torch.zeros(2, expected["cls_logits"].shape[1], BACKGROUND)
    parts = [expected["bbox_regression"], nothing, expected["cls_logits"]]
    torch.testing.assert_close(ours.answers(inputs), torch.cat(parts, 2))


@pytest.mark.parametrize("kind", DETECTOR_KINDS)
def test_initial_weights_follow_from_the_generator(kind: DetectorKind) -> None:
    one, other = head(kind), head(kind)
    for each in (one, other):
        each.initialise(torch.Generator().manual_seed(7))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    scores = one(features(20 if kind == "ssdlite" else 10))[..., 4:]
    assert scores.shape[-1] == 3
    if kind == "retinanet":
        assert 0.005 < float(scores.mean()) < 0.02, "few objects are expected"


@pytest.mark.parametrize("kind", DETECTOR_KINDS)
def test_boxes_are_decoded_as_torchvision_does(kind: DetectorKind) -> None:
    from torchvision.models.detection._utils import BoxCoder

    count = anchor_count(kind, 3)
    answers = 3 * noise(2, count, 4 + BACKGROUND + 3)
    decoded = Decode(kind)(answers)
    for each, boxes in zip(answers, decoded, strict=True):
        expected = BoxCoder(WEIGHTS[kind]).decode_single(each[:, :4], anchors(kind, count)).clamp(0, 1)
        torch.testing.assert_close(boxes[:, :4], expected)
    scores = answers[..., 4:].softmax(2)[..., 1:] if kind == "ssdlite" else answers[..., 5:].sigmoid()
    torch.testing.assert_close(decoded[..., 4:], scores)
    huge = torch.full((1, count, answers.shape[2]), 1e4)
    assert torch.isfinite(Decode(kind)(huge)).all()


def test_of_boxes_of_a_class_that_overlap_the_best_is_kept() -> None:
    boxes = torch.tensor([[0.1, 0.1, 0.5, 0.5], [0.1, 0.1, 0.5, 0.48], [0.1, 0.1, 0.5, 0.2], [0.6, 0.6, 0.9, 0.9]])
    scores = torch.tensor([[0.8, 0.1], [0.9, 0.7], [0.3, 0.0], [0.001, 0.4]])
    found = select(torch.cat([boxes, scores], 1))
    assert [(round(score, 2), int(label)) for label, score in found[:, 4:].tolist()] == [(0.9, 0), (0.7, 1), (0.4, 1), (0.3, 0)]
    torch.testing.assert_close(found[:, :4], boxes[[1, 1, 3, 2]])


def test_selection_is_that_of_every_box_against_every_other() -> None:
    generator = torch.Generator().manual_seed(1)
    corner = torch.rand(200, 2, generator=generator)
    decoded = torch.cat(
        [corner, corner + 0.3 * torch.rand(200, 2, generator=generator), torch.rand(200, 3, generator=generator)], 1
    )
    rows = sorted(((float(decoded[a, 4 + c]), c, decoded[a, :4].tolist()) for a in range(200) for c in range(3)), reverse=True)[
        :CANDIDATES
    ]
    kept: list[tuple[float, int, list[float]]] = []
    for score, label, box in rows:
        if score >= LEAST and all(label != other or overlap(box, known) <= OVERLAP for _, other, known in kept):
            kept.append((score, label, box))
    found = select(decoded)
    assert len(found) == min(MOST, len(kept)) and len(kept) < CANDIDATES
    torch.testing.assert_close(found, torch.tensor([[*box, label, score] for score, label, box in kept[:MOST]]))


def overlap(one: list[float], other: list[float]) -> float:
    wide, high = (min(one[i + 2], other[i + 2]) - max(one[i], other[i]) for i in (0, 1))
    common = max(wide, 0) * max(high, 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return common / (sum(areas) - common)


def test_nothing_is_found_where_no_score_is_high_enough() -> None:
    assert select(torch.cat([torch.rand(9, 4), torch.full((9, 2), LEAST / 2)], 1)).shape == (0, 6)


# ---- losses, against those of torchvision


def targets_of(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner = 0.7 * torch.rand(4, 2, generator=generator)
    labels = torch.randint(3, (4, 1), generator=generator)
    return torch.cat([corner, corner + 0.05 + 0.25 * torch.rand(4, 2, generator=generator), labels, torch.zeros(4, 1)], 1)


def matched_as_torchvision(kind: DetectorKind, targets: list[Tensor], places: Tensor) -> list[Tensor]:
    from torchvision.models.detection._utils import Matcher, SSDMatcher
    from torchvision.ops import box_iou

    matcher = SSDMatcher(0.5) if kind == "ssdlite" else Matcher(0.5, 0.4, allow_low_quality_matches=True)
    return [matcher(box_iou(each[:, :4], places)) for each in targets]


@pytest.mark.parametrize("kind", DETECTOR_KINDS)
def test_losses_are_torchvisions(kind: DetectorKind) -> None:
    from torchvision.models.detection._utils import BoxCoder
    from torchvision.models.detection.retinanet import RetinaNetHead
    from torchvision.models.detection.ssd import SSD

    from natdeploy.tasks.detection_loss import detection_loss

    count = anchor_count(kind, 10)
    answers = noise(2, count, 4 + BACKGROUND + 3).requires_grad_()
    targets, places = [targets_of(0), targets_of(1)], anchors(kind, count)
    matched = matched_as_torchvision(kind, targets, places)
    theirs = [{"boxes": each[:, :4], "labels": each[:, 4].long() + (kind == "ssdlite")} for each in targets]
    outputs = {"bbox_regression": answers[..., :4], "cls_logits": answers[..., 4 if kind == "ssdlite" else 5 :]}
    if kind == "ssdlite":
        settings = SimpleNamespace(box_coder=BoxCoder(WEIGHTS[kind]), neg_to_pos_ratio=3.0)
        parts = SSD.compute_loss(settings, theirs, outputs, [places] * 2, matched)
    else:
        parts = RetinaNetHead(8, 9, 3).compute_loss(theirs, outputs, [places] * 2, matched)
    loss = detection_loss(kind, answers, targets, 3)
    torch.testing.assert_close(loss, sum(parts.values()))
    loss.backward()  # type: ignore[no-untyped-call]
    assert answers.grad is not None and torch.isfinite(answers.grad).all()


@pytest.mark.parametrize("kind", DETECTOR_KINDS)
def test_images_that_show_nothing_teach_background_and_crowds_teach_nothing(kind: DetectorKind) -> None:
    from natdeploy.tasks.detection_loss import detection_loss

    answers = noise(1, anchor_count(kind, 5), 4 + BACKGROUND + 3).requires_grad_()
    crowd = targets_of(0)
    crowd[:, 5] = 1
    losses = [detection_loss(kind, answers, [each], 3) for each in (torch.empty(0, 6), crowd)]
    assert float(losses[0].detach()) > 0 and torch.equal(losses[0], losses[1])
    losses[0].backward()  # type: ignore[no-untyped-call]
    assert answers.grad is not None and not answers.grad[..., :4].any() and answers.grad[..., 4:].any()


@pytest.mark.parametrize("kind", DETECTOR_KINDS)
def test_decoded_answers_are_judged_like_those_they_come_from(kind: DetectorKind) -> None:
    from natdeploy.tasks.detection_loss import detection_loss

    # Small offsets: boxes that reach out of the image are cut off, and lose by that.
    answers = 0.1 * noise(2, anchor_count(kind, 10), 4 + BACKGROUND + 3)
    answers[..., 4:] *= 20
    answers[..., 4] = 0
    targets, decoded = [targets_of(0), targets_of(1)], Decode(kind)(answers)
    inside = ((decoded[..., :4] > 0) & (decoded[..., :4] < 1)).all(dim=2)
    torch.testing.assert_close(encode(kind, decoded)[inside][:, :4], answers[inside][:, :4], atol=1e-3, rtol=1e-3)
    losses = [float(detection_loss(kind, each, targets, 3)) for each in (answers, decoded)]
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
    gone = torch.zeros_like(decoded)
    gone[..., 4:] = torch.nn.functional.one_hot(torch.zeros(gone.shape[:2], dtype=torch.int64), 3)
    assert torch.isfinite(detection_loss(kind, gone, targets, 3)), "boxes of no size and scores of 0 and 1"
