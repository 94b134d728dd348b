"""What is told about an exported network: the contents of metadata.json, and of the texts inside the files."""

from __future__ import annotations

import json
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from natdeploy.export.check import Parity

Share = Annotated[float, Field(ge=0, le=1)]


class _Facts(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Preprocessing(_Facts):
    """From a photo to the network's input: upright, RGB, its centre cut out at `square_px` or `cut_px`, resized to `size_px` or
    `input_px` (both bilinear with antialiasing), scaled to 0..1, minus `mean`, divided by `std`.

    Attributes:
        square_px: side at which a square was cut out of the photo, as for the training images; None where it is no square.
        size_px: side of the input; likewise.
        mean: of each colour.
        std: of each colour.
        cut_px: height and width in the place of `square_px`; None of a square.
        input_px: height and width in the place of `size_px`; None of a square.
        whole: the whole photo is warped to `square_px`, instead of its centre being cut out.
    """

    square_px: int | None = None
    size_px: int | None = None
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    colours: Literal["RGB"] = "RGB"
    value_range: Literal["0..1"] = "0..1"
    cut_px: tuple[int, int] | None = None
    input_px: tuple[int, int] | None = None
    whole: bool = False

    @model_validator(mode="after")
    def _is_told_once(self) -> Preprocessing:
        if (self.square_px is None) == (self.cut_px is None) or (self.size_px is None) == (self.input_px is None):
            raise ValueError("it needs square_px and size_px, or cut_px and input_px")
        return self

    @property
    def cut(self) -> tuple[int, int]:
        """Height and width at which the centre is cut out of the photo."""
        return _both(self.square_px, self.cut_px)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the input."""
        return _both(self.size_px, self.input_px)


def _both(side: int | None, sides: tuple[int, int] | None) -> tuple[int, int]:
    if sides is not None:
        return sides
    assert side is not None, "a model says one of the two"
    return side, side


class Description(_Facts):
    """What a network is, known before any file of it is written.

    Attributes:
        arch: its text.
        id: of the architecture.
        space: name of its search space.
        params: trainable parameters.
        macs: multiply-accumulates of one image.
        labels: names of the outputs, in order.
        preprocessing: of its input.
        seed: name of the file of pretrained weights that it descends from.
        seed_sha256: of that file.
        licence: what that file says of its origin and licence; None where it says nothing.
        data_fingerprint: sha256 over names and sizes of the images it was adapted to; None where it was adapted to none.
        random_seed: of the search; None without one.
        versions: of natdeploy and torch, which computed the weights.
        task: what it does with an image.
        metric: by which it is judged, where the facts say accuracy: `accuracy`, `mean IoU`.
        palette: colour (R, G, B) that stands for each label in a drawn mask; None where none is drawn.
    """

    arch: str
    id: str
    space: str
    params: int
    macs: int
    labels: tuple[str, ...]
    preprocessing: Preprocessing
    seed: str
    seed_sha256: str
    licence: str | None = None
    data_fingerprint: str | None = None
    random_seed: int | None = None
    versions: dict[str, str]
    task: Literal["classification", "segmentation", "detection"] = "classification"
    metric: str = "accuracy"
    palette: tuple[tuple[int, int, int], ...] | None = None

    def same_net(self, other: Description) -> bool:
        """Whether the other describes the same architecture with the same weights; versions of tools may differ."""
        return self.model_copy(update={"versions": other.versions, "licence": other.licence}) == other

    def properties(self) -> dict[str, str]:
        """As texts, for formats that hold nothing else; what is not text becomes JSON, what is not known is left out."""
        values = self.model_dump(mode="json", exclude_none=True)
        return {key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for key, value in values.items()}


class TensorFacts(_Facts):
    """An input or output of a file.

    Attributes:
        name: in the file.
        shape: with the batch of 1; None is any size.
        dtype: of the numbers it takes or gives.
        layout: order of an image's axes: batch N, colours C, height H, width W; None of logits.
        resized: whether the file makes an image of the network's size of it itself.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: Literal["float32", "uint8"] = "float32"
    layout: Literal["NCHW", "NHWC"] | None = None
    resized: bool = False

    @property
    def photo_size(self) -> tuple[int, int] | None:
        """Height and width of the photos that a file resizes, where it takes one size only."""
        return None if self.sizes is None or not self.resized else (self.sizes[1], self.sizes[2])

    @property
    def sizes(self) -> tuple[int, ...] | None:
        """The shape where it is fixed."""
        sizes = tuple(size for size in self.shape if size is not None)
        return sizes if len(sizes) == len(self.shape) else None


class Quantisation(_Facts):
    """How an int8 file was made.

    Attributes:
        tool: that made it, with its version.
        images: that ranges of activations were learned from, of the calibration split.
        settings: of the tool, as natdeploy gave them (docs/quantisation.md).
    """

    tool: str
    images: int
    settings: dict[str, str | float | bool | tuple[str, ...]]


class ModelFile(_Facts):
    """One file of the network.

    Attributes:
        name: in the folder.
        format: of FORMATS.
        precision: of its weights and, in int8, of its activations.
        sha256: of its bytes.
        companions: sha256 of further files that belong to it, by name.
        size_mb: of all of them, megabytes of 10^6 bytes.
        opset: of its ONNX operators; None in other formats.
        input: an image.
        output: logits, of the image or of each of its pixels.
        quantisation: of an int8 file.
        checked_in: runtime and version in which the following was found.
        validation_accuracy: the task's metric (`Description.metric`) on all validation images.
        drop: points of it that torch, in fp32, has more.
        test_accuracy: the same metric on all test images, which decide nothing.
        parity: with torch, on the validation images; where the file resizes them, with torch on photos that torch resized.
        trained_agreement: of a file that resizes: share of the validation images that it puts into the class that torch finds in
            what training saw, which Pillow had resized; None of others, and where there are no images.
    """

    name: str
    format: str
    precision: str
    sha256: str
    companions: dict[str, str] = {}
    size_mb: float
    opset: int | None = None
    input: TensorFacts
    output: TensorFacts
    quantisation: Quantisation | None = None
    checked_in: str
    validation_accuracy: Share | None
    drop: float | None
    test_accuracy: Share | None
    parity: Parity
    trained_agreement: Share | None = None


class Latency(_Facts):
    """Of one image on a target such as `host/onnxruntime-fp32-1t`. What has not been found out yet is None.

    `predicted_ms` is `estimated` where it comes from a specification sheet, and nothing was measured on the device. The mean is
    there where what measured tells no median.
    """

    target: str
    predicted_ms: float | None = None
    measured_p50_ms: float | None = None
    measured_p90_ms: float | None = None
    measured_mean_ms: float | None = None
    measured_n: int | None = None
    unstable: bool | None = None
    estimated: bool = False


class Metadata(_Facts):
    """Everything known about an exported network; `metadata.json` holds it.

    Attributes:
        description: what it is.
        validation_accuracy: the task's metric in torch, fp32, of the weights in the files; the images may have been learned from at
            the end.
        test_accuracy: in torch, fp32, on images that were never looked at before.
        files: of the network.
        latencies: one a target.
    """

    description: Description
    validation_accuracy: Share | None
    test_accuracy: Share | None
    files: tuple[ModelFile, ...] = ()
    latencies: tuple[Latency, ...] = ()
