"""What an exported file wants as its input."""

from __future__ import annotations

import re
from typing import Literal, get_args

import numpy as np
from torch import Tensor

from natdeploy.errors import UsageError
from natdeploy.export.check import Array
from natdeploy.export.facts import Preprocessing, TensorFacts

InputKind = Literal["nchw", "nhwc", "image", "photo"]
"""`nchw` and `nhwc` want prepared floats, (1, 3, h, w) as torch has them or (1, h, w, 3); `image` wants the pixels themselves,
bytes (1, h, w, 3), and scales and normalises them inside; `photo` wants the bytes of a photo, (1, height, width, 3), and cuts out
its middle, or warps the whole, and resizes it as well."""
INPUT_KINDS: tuple[InputKind, ...] = get_args(InputKind)

PhotoSize = tuple[int, int]
"""Height and width, px."""


def parse_photo_size(text: str) -> PhotoSize:
    """Reads `480x640`, height and width.

    Raises:
        UsageError: it is no size.
    """
    found = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text)
    if found is None:
        raise UsageError(f"{text!r} is no size of photos; write height and width in pixels, as in 480x640")
    return int(found[1]), int(found[2])


def input_facts(name: str, kind: InputKind, size: tuple[int, int], photo_size: PhotoSize | None = None) -> TensorFacts:
    """The input of a file of a kind, for images of a size (height, width), px, or photos of one size or, by default, of any."""
    if kind == "photo":
        return TensorFacts(name=name, shape=(1, *(photo_size or (None, None)), 3), dtype="uint8", layout="NHWC", resized=True)
    shape = (1, 3, *size) if kind == "nchw" else (1, *size, 3)
    return TensorFacts(
        name=name, shape=shape, dtype="uint8" if kind == "image" else "float32", layout="NCHW" if kind == "nchw" else "NHWC"
    )


def as_input(image: Tensor, wanted: TensorFacts, preprocessing: Preprocessing) -> Array:
    """An image as the network takes it, (3, h, w) fp32, as the input that a file wants; its bytes are found again.

    Raises:
        ValueError: the file wants a photo, which an image does not tell.
    """
    if wanted.resized:
        raise ValueError("a prepared image tells no photo")
    array = image.cpu().numpy()
    if wanted.layout == "NHWC":
        array = array.transpose(1, 2, 0)
    if wanted.dtype == "uint8":
        array = np.rint(255 * (array * np.array(preprocessing.std) + np.array(preprocessing.mean))).astype(np.uint8)
    return np.ascontiguousarray(array[None])
