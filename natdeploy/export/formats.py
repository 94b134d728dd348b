"""The formats that networks are handed on in: which runtime reads them, and how a file of one is made."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from natdeploy.errors import MissingRuntimeError, UsageError
from natdeploy.export import onnx, openvino, tflite
from natdeploy.export.facts import Description, Preprocessing, Quantisation, TensorFacts
from natdeploy.export.inputs import PhotoSize
from natdeploy.hardware.runtimes import Runtime
from natdeploy.runtimes import ort, ov, trt
from natdeploy.runtimes import tflite as litert
from natdeploy.supernet import Subnet
from natdeploy.supernet.detectors import Select

PRECISIONS = ("fp32", "fp16", "int8")
"""From the safest to the smallest."""


@dataclass(frozen=True)
class Format:
    """A kind of file.

    Attributes:
        name: what users type.
        suffix: of its files.
        runtime: that reads it, and converts a network to it.
        finish: gives a converted file, in place, another input and texts that say what it is.
        int8: settings that it is quantised with.
        quantiser: package that quantises.
        extra: of natdeploy, that installs what is needed to write it.
        photos: whether its files can resize photos: of `any` size, of `one` size that is said beforehand, or of `none`.
    """

    name: str
    suffix: str
    runtime: Runtime
    finish: Callable[[Path, TensorFacts, Preprocessing, Mapping[str, str]], None]
    int8: Mapping[str, str | float | bool | tuple[str, ...]]
    quantiser: str
    extra: str
    photos: Literal["any", "one", "none"]

    def file_name(self, precision: str) -> str:
        """`model.onnx`, `model.int8.onnx`."""
        return f"model{'' if precision == 'fp32' else f'.{precision}'}{self.suffix}"

    def checked_by(self) -> Runtime:
        """The runtime its files are checked in: its own; for TensorRT's, which are ONNX files, ONNX Runtime where there is none."""
        if self.runtime.NAME == trt.NAME:
            try:
                trt.version()
            except ImportError:
                return ort
        return self.runtime


FORMATS: Mapping[str, Format] = {
    each.name: each
    for each in (
        Format("onnx", ort.SUFFIX, ort, onnx.finish, asdict(ort.INT8), "onnxruntime", "", "any"),
        Format("openvino", ov.SUFFIX, ov, openvino.finish, asdict(ov.INT8), "nncf", "openvino", "any"),
        Format("tflite", litert.SUFFIX, litert, tflite.finish, asdict(litert.INT8), "ai-edge-quantizer", "tflite", "one"),
        Format("tensorrt", f".trt{trt.SUFFIX}", trt, onnx.finish, {"operators": trt.QUANTIZED}, "onnxruntime", "tensorrt", "none"),
    )
}


def get_format(name: str) -> Format:
    """The format of that name.

    Raises:
        UsageError: there is none; the message lists those there are, and what to install for those that cannot be written here.
    """
    if name not in FORMATS:
        raise UsageError(f"there is no format {name!r}; choose {', '.join(map(_choice, FORMATS.values()))}")
    return FORMATS[name]


def _choice(format: Format) -> str:
    try:
        format.checked_by().version()
    except ImportError:
        return f"{format.name} (after pip install 'natdeploy[{format.extra}]')"
    return format.name


def check_photos(format: Format, size: PhotoSize | None) -> None:
    """Raises UsageError where a format's files cannot resize photos of that size, or without one of any."""
    if format.photos == "none":
        raise UsageError(
            f"{format.name} takes no photos: resizing is not folded into what engines are built of; choose another "
            "--input, such as image, and resize before"
        )
    if format.photos == "one" and size is None:
        raise UsageError(f"{format.name} files resize photos of one size only; say which with --photo-size, as in 480x640")


def check_precision(name: str) -> None:
    """Raises UsageError where there is no such precision."""
    if name not in PRECISIONS:
        raise UsageError(f"there is no precision {name!r} of files; choose {', '.join(PRECISIONS)}")


def write(
    subnet: Subnet,
    path: Path,
    format: Format,
    precision: str,
    *,
    input: TensorFacts,
    description: Description,
    calibration: Sequence[torch.Tensor],
    suppressed: bool = False,
) -> None:
    """Writes a subnet, as it computes in evaluation mode, for one image; it is left as it is.

    Batch normalisation and asymmetric padding are folded into the convolutions: what is left are standard operators.

    Args:
        subnet: trained and calibrated, on any device.
        path: of the file, `format.file_name(precision)` in some folder.
        format: of the file.
        precision: of PRECISIONS.
        input: that it takes.
        description: is written into the file.
        calibration: images (1, 3, h, w) fp32 that int8 learns its ranges from; of no use to the others.
        suppressed: with non-maximum suppression inside, of a network that finds objects.

    Raises:
        MissingRuntimeError: a library is missing that it takes to write it.
    """
    module: nn.Module = copy.deepcopy(subnet).cpu().eval()
    if suppressed:
        module = nn.Sequential(module, Select(subnet.anchors, subnet.classes))
    example = torch.zeros(subnet.input_shape)
    try:
        format.runtime.convert(
            module, example, path, precision=precision, dynamic_size=False, calibration=calibration if precision == "int8" else None
        )
    except ImportError as error:
        raise MissingRuntimeError(
            f"{format.name} in {precision} cannot be written here ({error}); pip install 'natdeploy[{format.extra}]'"
        ) from error
    format.finish(path, input, description.preprocessing, description.properties() | {"precision": precision})


def quantisation(format: Format, images: int) -> Quantisation:
    """How `write` quantises."""
    from importlib.metadata import version

    return Quantisation(tool=f"{format.quantiser} {version(format.quantiser)}", images=images, settings=dict(format.int8))
