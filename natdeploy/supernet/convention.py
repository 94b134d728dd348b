"""How a seed wants its input: what its file states, and for the rest what its batch-normalisation statistics remember.

A seed that sees images scaled and padded as in its training finds the channel means it has stored. Measured on four kinds of images
and two MobileNetV2 seeds of known origin, this told the right one of four conventions every time.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from natdeploy.supernet.calibrate import calibrate
from natdeploy.supernet.layers import PADDINGS, Padding
from natdeploy.supernet.subnet import Subnet
from natdeploy.supernet.weights import Seed

_BATCH = 16


@dataclass(frozen=True)
class Scaling:
    """Images in [0, 1] become (image - mean) / std, per colour channel."""

    name: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


SIGNED = Scaling("[-1,1]", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
IMAGENET = Scaling("ImageNet mean and std", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_SCALINGS = SIGNED, IMAGENET


@dataclass(frozen=True)
class InputConvention:
    """How to prepare images in [0, 1] for a network, and how it pads at stride 2.

    Attributes:
        mean: subtracted, per colour channel.
        std: divided by afterwards.
        padding: of the convolutions of stride 2.
        evidence: how this is known, in one sentence.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    padding: Padding
    evidence: str

    @property
    def stated(self) -> str:
        """How a file of weights says how images are normalised; `stated_input` understands it."""
        return next(each.name for each in _SCALINGS if (each.mean, each.std) == (self.mean, self.std))


def choose_input(seed: Seed, images: Tensor) -> InputConvention:
    """The convention that the seed's file states; what it leaves open is measured on images.

    Tries [-1, 1] and ImageNet's mean and std, with either padding, and takes the one under which the means of the seed's channels
    are nearest to the stored ones, in stored standard deviations, averaged over channels and layers. Variances are left out: they
    follow the contrast of the images more than the convention.

    Args:
        seed: pretrained network.
        images: (n, 3, h, w) in [0, 1], real ones; 16 are enough. Resized to the seed's resolution.
    """
    if (stated := stated_input(seed)) is not None:
        return stated
    candidates = _candidates(seed)
    resized = F.interpolate(images, size=seed.arch.resolution, mode="bilinear", antialias=True)
    distances = [_distance(seed, resized, scaling, padding) for scaling, padding in candidates]
    scaling, padding = candidates[distances.index(min(distances))]
    tried = ", ".join(f"{s.name} {p} {d:.4f}" for (s, p), d in zip(candidates, distances, strict=True))
    evidence = f"distance of channel means on {len(images)} images from those stored in {seed.source}: {tried}"
    return InputConvention(scaling.mean, scaling.std, padding, evidence)


def stated_input(seed: Seed) -> InputConvention | None:
    """The convention that the seed's file states; None where it leaves anything open."""
    candidates = _candidates(seed)
    if len(candidates) > 1:
        return None
    [(scaling, padding)] = candidates
    return InputConvention(scaling.mean, scaling.std, padding, f"{seed.source} states {scaling.name}, padding {padding}")


def _candidates(seed: Seed) -> list[tuple[Scaling, Padding]]:
    """The conventions that a seed's file leaves open."""
    about = seed.metadata.get("input", "")
    scalings = tuple(each for each in _SCALINGS if each.name.replace(" ", "") in about.replace(" ", ""))
    stated = ("same",) if "TensorFlow" in about and "padding" in about else PADDINGS
    paddings: tuple[Padding, ...] = stated if seed.padding is None else (seed.padding,)
    return list(product(scalings or _SCALINGS, paddings))


def _distance(seed: Seed, images: Tensor, scaling: Scaling, padding: Padding) -> float:
    network = _network(seed, padding)
    own = [part for part in (network.stem, network.stages, network.head) if part is not None]  # a dense head is another one
    norms = [module for part in own for module in part.modules() if isinstance(module, nn.BatchNorm2d)]
    stored = [_mean_and_std(norm) for norm in norms]
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (scaling.mean, scaling.std))
    scaled = ((images - mean) / std).contiguous(memory_format=torch.channels_last)
    calibrate(network, (scaled[start : start + _BATCH] for start in range(0, len(scaled), _BATCH)))
    pairs = zip(stored, map(_mean_and_std, norms), strict=True)
    distances = [((now - before).abs() / deviation).mean() for (before, deviation), (now, _) in pairs]
    return float(torch.stack(distances).mean())


def _mean_and_std(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    assert norm.running_mean is not None and norm.running_var is not None
    return norm.running_mean.clone(), (norm.running_var + norm.eps).sqrt()


def _network(seed: Seed, padding: Padding) -> Subnet:
    """The seed without its classifier, which no statistic depends on."""
    network = Subnet(seed.space, seed.arch, 1, padding, seed.norm_eps)
    state = network.state_dict()
    for name, tensor in seed.state.items():
        if name in state and not name.startswith("classifier."):  # not the kernel transformations of a supernet
            state[name].copy_(tensor)
    return network
