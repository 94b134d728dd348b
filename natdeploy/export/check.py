"""Whether an exported file does what the network does that it was made from."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from natdeploy.errors import AccuracyGateError
from natdeploy.runtimes import ort
from natdeploy.supernet import Subnet

Batch = tuple[Tensor, Tensor]
"""Images (b, 3, r, r) fp32, as the network takes them, and labels (b,)."""

PARITY_LIMIT = 1e-3
"""Relative to the largest logit of an image. Other orders of summation in fp32 come to 1e-6 or 1e-5; more is a fault."""


@dataclass(frozen=True)
class Parity:
    """How far a file is from torch on real images.

    Attributes:
        max_abs: largest absolute difference of any logit.
        max_rel: largest difference of any logit, relative to the largest absolute logit of its image.
        top1_agreement: share of the images that both put into the same class, 0..1.
        n: images.
    """

    max_abs: float
    max_rel: float
    top1_agreement: float
    n: int


def parity(subnet: Subnet, path: Path, batches: Iterable[Batch], *, threads: int = 1) -> Parity:
    """Compares a file, in ONNX Runtime, image by image with the subnet in torch, both on the CPU and in evaluation mode.

    Raises:
        AccuracyGateError: they differ by more than PARITY_LIMIT, or one of them gives something else than numbers.
        ValueError: there are no images.
    """
    session = ort.load(path, (1, 3, subnet.arch.resolution, subnet.arch.resolution), threads, "fp32", "cpu")
    module = copy.deepcopy(subnet).cpu().eval()
    max_abs = max_rel = 0.0
    agree = n = 0
    with torch.inference_mode():
        for images, _ in batches:
            expected = module(images).numpy()
            actual = np.concatenate([_logits(session, image) for image in images])
            difference = np.abs(actual - expected).max(axis=1)
            relative = difference / np.abs(expected).max(axis=1)
            if not (relative <= PARITY_LIMIT).all():  # so that NaN does not pass
                raise AccuracyGateError(
                    f"{path} differs from the network it was made from by {relative.max():.1e} of its largest logit "
                    f"(at most {PARITY_LIMIT:g} is allowed); do not use it, and report this as a fault of natdeploy"
                )
            max_abs = max(max_abs, float(difference.max()))
            max_rel = max(max_rel, float(relative.max()))
            agree += int((actual.argmax(axis=1) == expected.argmax(axis=1)).sum())
            n += len(images)
    if not n:
        raise ValueError("parity needs images")
    return Parity(max_abs, max_rel, agree / n, n)


def runtime_accuracy(path: Path, batches: Iterable[Batch], *, threads: int = 1) -> tuple[int, int]:
    """Images that a file classifies correctly in ONNX Runtime, one at a time, and images in all."""
    correct = total = 0
    session: ort.Session | None = None
    for images, labels in batches:
        session = session or ort.load(path, (1, *images.shape[1:]), threads, "fp32", "cpu")
        predicted = np.concatenate([_logits(session, image) for image in images]).argmax(axis=1)
        correct += int((predicted == labels.numpy()).sum())
        total += len(labels)
    return correct, total


def _logits(session: ort.Session, image: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """(1, classes) of one image (3, r, r)."""
    (logits,) = ort.run(session, [np.ascontiguousarray(image.numpy()[None])])
    return logits
