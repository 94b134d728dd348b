"""What detectors learn from: which anchor is to find which object, and how far the answers are from that."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, l1_loss, smooth_l1_loss

from natdeploy.space.detectors import DetectorKind
from natdeploy.supernet.detectors import BACKGROUND, anchors, encode, offsets_of

_NEGATIVES = 3
"""Anchors of the background that count, to one with an object: those that are most wrong (SSD, arXiv 1512.02325, section 2.2)."""
_SSD_OVERLAP = 0.5
_FPN_OVERLAPS = (0.5, 0.4)
"""At least, to find an object; at most, to be background (RetinaNet, arXiv 1708.02002, section 4)."""


def detection_loss(kind: DetectorKind, answers: Tensor, targets: Sequence[Tensor], classes: int) -> Tensor:
    """Loss () of a batch: SSD's or RetinaNet's, as in torchvision.

    But for one thing: torchvision's SSD learns nothing from an image that shows nothing; here its three worst anchors count.

    Args:
        kind: of the head.
        answers: (n, a, 4 + BACKGROUND + classes), of training; or decoded ones (n, a, 4 + classes), for judging.
        targets: (n) of (m, TARGET_COLUMNS); crowds are not learned from.
        classes: that are told apart.
    """
    places = anchors(kind, answers.shape[1]).to(answers.device)
    answers = answers.float() if answers.shape[2] == 4 + BACKGROUND + classes else encode(kind, answers.float())
    objects = [target[target[:, 5] == 0].to(answers.device) for target in targets]
    matched = torch.stack([match(kind, each[:, :4], places) for each in objects])
    return (_ssd if kind == "ssdlite" else _retinanet)(answers, objects, matched, places)


@torch.no_grad()
def match(kind: DetectorKind, boxes: Tensor, places: Tensor) -> Tensor:
    """Index (a) of the box that an anchor is to find; -1 for background, -2 where an anchor is neither.

    Args:
        kind: of the head.
        boxes: (m, 4).
        places: (a, 4), the anchors.
    """
    from torchvision.models.detection._utils import Matcher, SSDMatcher  # slow to import
    from torchvision.ops import box_iou

    if not len(boxes):
        return torch.full((len(places),), -1, device=places.device)
    matcher = SSDMatcher(_SSD_OVERLAP) if kind == "ssdlite" else Matcher(*_FPN_OVERLAPS, allow_low_quality_matches=True)
    result: Tensor = matcher(box_iou(boxes, places))
    return result


def _ssd(answers: Tensor, objects: Sequence[Tensor], matched: Tensor, places: Tensor) -> Tensor:
    labels = torch.zeros_like(matched)  # background
    moved = answers.new_zeros(())
    for row, (each, found) in enumerate(zip(objects, matched, strict=True)):
        finds = found >= 0
        labels[row, finds] = 1 + each[found[finds], 4].long()
        wanted = offsets_of("ssdlite", each[found[finds], :4], places[finds])
        moved = moved + smooth_l1_loss(answers[row, finds, :4], wanted, reduction="sum")
    wrong = cross_entropy(answers[..., 4:].flatten(0, 1), labels.flatten(), reduction="none").view_as(labels)
    positive = labels > 0
    # Of the background, the worst: the rank of every anchor among those of its image.
    ranks = wrong.detach().masked_fill(positive, -torch.inf).argsort(dim=1, descending=True).argsort(dim=1)
    worst = ranks < (_NEGATIVES * positive.sum(dim=1, keepdim=True)).clamp(min=_NEGATIVES)
    return (moved + wrong[positive | (worst & ~positive)].sum()) / positive.sum().clamp(min=1)


def _retinanet(answers: Tensor, objects: Sequence[Tensor], matched: Tensor, places: Tensor) -> Tensor:
    from torchvision.ops import sigmoid_focal_loss

    losses = []
    for answer, each, found in zip(answers, objects, matched, strict=True):
        finds, counts = found >= 0, found != -2
        wanted = torch.zeros_like(answer[:, 4 + BACKGROUND :])
        wanted[finds, each[found[finds], 4].long()] = 1
        wrong = sigmoid_focal_loss(answer[counts, 4 + BACKGROUND :], wanted[counts], reduction="sum")
        moved = l1_loss(answer[finds, :4], offsets_of("retinanet", each[found[finds], :4], places[finds]), reduction="sum")
        losses.append((wrong + moved) / finds.sum().clamp(min=1))
    return torch.stack(losses).mean()
