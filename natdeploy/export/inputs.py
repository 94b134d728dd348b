"""What an exported file wants as its input."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from torch import Tensor

from natdeploy.export.check import Array
from natdeploy.export.facts import Preprocessing, TensorFacts

InputKind = Literal["nchw", "nhwc", "image"]
"""`nchw` and `nhwc` want prepared floats, (1, 3, h, w) as torch has them or (1, h, w, 3); `image` wants the pixels themselves,
bytes (1, h, w, 3), and scales and normalises them inside."""
INPUT_KINDS: tuple[InputKind, ...] = get_args(InputKind)


def input_facts(name: str, kind: InputKind, size: tuple[int, int]) -> TensorFacts:
    """The input of a file of a kind, for images of a size (height, width), px."""
    shape = (1, 3, *size) if kind == "nchw" else (1, *size, 3)
    return TensorFacts(
        name=name, shape=shape, dtype="uint8" if kind == "image" else "float32", layout="NCHW" if kind == "nchw" else "NHWC"
    )


def as_input(image: Tensor, wanted: TensorFacts, preprocessing: Preprocessing) -> Array:
    """An image as the network takes it, (3, h, w) fp32, as the input that a file wants; its bytes are found again."""
    array = image.cpu().numpy()
    if wanted.layout == "NHWC":
        array = array.transpose(1, 2, 0)
    if wanted.dtype == "uint8":
        array = np.rint(255 * (array * np.array(preprocessing.std) + np.array(preprocessing.mean))).astype(np.uint8)
    return np.ascontiguousarray(array[None])
