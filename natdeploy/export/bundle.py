"""A network as a folder that can be handed on: model.onnx, its facts for programs (metadata.json) and for people (README.md)."""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from natdeploy.errors import DamagedFileError
from natdeploy.export.check import Batch, Parity, parity, runtime_accuracy
from natdeploy.export.onnx import export_onnx
from natdeploy.files import write_atomic
from natdeploy.runtimes import ort
from natdeploy.supernet import Subnet

MODEL = "model.onnx"
CARD = "README.md"
METADATA = "metadata.json"

Share = Annotated[float, Field(ge=0, le=1)]


class _Facts(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Preprocessing(_Facts):
    """From a photo to the network's input: upright, RGB, its centre square at `square_px`, resized to `size_px` (both bilinear with
    antialiasing), scaled to 0..1, minus `mean`, divided by `std`.

    Attributes:
        square_px: side at which the square was cut out of the photo, as for the training images.
        size_px: side of the input.
        mean: of each colour.
        std: of each colour.
    """

    square_px: int
    size_px: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    colours: Literal["RGB"] = "RGB"
    value_range: Literal["0..1"] = "0..1"
    layout: Literal["NCHW"] = "NCHW"


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
        versions: of natdeploy and the libraries it used.
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
    versions: dict[str, str]

    def properties(self) -> dict[str, str]:
        """As texts, for formats that hold nothing else; what is not text becomes JSON."""
        values = self.model_dump(mode="json")
        return {key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for key, value in values.items()}


class TensorFacts(_Facts):
    """An input or output of a file."""

    name: str
    shape: tuple[int, ...]
    dtype: Literal["float32"] = "float32"


class ModelFile(_Facts):
    """One file of the network.

    Attributes:
        name: in the folder.
        sha256: of its bytes.
        size_mb: megabytes, of 10^6 bytes.
        opset: of its ONNX operators.
        input: images.
        output: logits.
        test_accuracy: in its runtime.
        parity: with torch, on the test images.
    """

    name: str
    sha256: str
    size_mb: float
    opset: int
    input: TensorFacts
    output: TensorFacts
    test_accuracy: Share
    parity: Parity


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
        validation_accuracy: in torch, on images that the search saw.
        test_accuracy: in torch, on images that it never saw.
        files: of the network.
        latencies: one a target.
    """

    description: Description
    validation_accuracy: Share
    test_accuracy: Share
    files: tuple[ModelFile, ...]
    latencies: tuple[Latency, ...]


def write_bundle(
    folder: Path,
    subnet: Subnet,
    description: Description,
    *,
    test_images: Callable[[], Iterable[Batch]],
    validation_accuracy: float,
    test_accuracy: float,
    latency: Latency,
) -> Metadata:
    """Exports a network, checks the file against torch and on the test images, and writes the folder.

    The model is put into its place only when it has passed, and metadata.json last: a folder with it is whole.

    Args:
        folder: made where it is missing; files in it are replaced one by one, each atomically.
        subnet: trained and calibrated.
        description: of it; also written into the model file.
        test_images: starts an iteration over the test images at the network's resolution; called twice.
        validation_accuracy: in torch, 0..1.
        test_accuracy: in torch, 0..1.
        latency: as far as it is known.

    Raises:
        AccuracyGateError: the file does not compute what the subnet computes.
        NatdeployError: a file cannot be written.
    """
    resolution = subnet.arch.resolution
    with tempfile.TemporaryDirectory() as unchecked:
        file = export_onnx(subnet, Path(unchecked, MODEL), description.properties())
        agreement = parity(subnet, file.path, test_images())
        correct, total = runtime_accuracy(file.path, test_images())
        write_atomic(folder / MODEL, file.path.read_bytes())
    model = ModelFile(
        name=MODEL,
        sha256=file.sha256,
        size_mb=file.size_mb,
        opset=file.opset,
        input=TensorFacts(name=ort.INPUT, shape=(1, 3, resolution, resolution)),
        output=TensorFacts(name=ort.OUTPUT, shape=(1, subnet.classes)),
        test_accuracy=correct / total,
        parity=agreement,
    )
    metadata = Metadata(
        description=description,
        validation_accuracy=validation_accuracy,
        test_accuracy=test_accuracy,
        files=(model,),
        latencies=(latency,),
    )
    _write(folder, metadata)
    return metadata


def record_latency(folder: Path, latency: Latency) -> Metadata:
    """Replaces what a bundle says about one target, or adds it.

    Raises:
        DamagedFileError: the bundle is not whole.
        NatdeployError: it cannot be written.
    """
    metadata = read_bundle(folder)
    others = tuple(each for each in metadata.latencies if each.target != latency.target)
    metadata = metadata.model_copy(update={"latencies": (*others, latency)})
    _write(folder, metadata)
    return metadata


def read_bundle(folder: Path) -> Metadata:
    """The metadata of a bundle whose model files are those it speaks of.

    Raises:
        DamagedFileError: a file is missing, or holds something else.
    """
    path = folder / METADATA
    try:
        metadata = Metadata.model_validate_json(path.read_bytes())
        for file in metadata.files:
            path = folder / file.name
            if hashlib.sha256(path.read_bytes()).hexdigest() != file.sha256:
                raise DamagedFileError(f"{path} is not the file that {METADATA} speaks of; export it again")
    except OSError as error:
        raise DamagedFileError(f"{path} cannot be read ({error.strerror}); export it again") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise DamagedFileError(f"{path} is damaged ({first['msg']}{f' at {place}' if place else ''}); export it again") from error
    return metadata


def _write(folder: Path, metadata: Metadata) -> None:
    write_atomic(folder / CARD, model_card(metadata).encode())
    write_atomic(folder / METADATA, (metadata.model_dump_json(indent=2) + "\n").encode())


def model_card(metadata: Metadata) -> str:
    """A short card in Markdown, with the front matter that model hubs read."""
    what = metadata.description
    rows = [
        ("architecture", f"`{what.arch}`, of space {what.space}"),
        ("size", f"{what.params / 1e6:.2f} M parameters, {what.macs / 1e6:.1f} M multiply-accumulates"),
        (
            "accuracy",
            f"{_percent(metadata.test_accuracy)} on the test images, {_percent(metadata.validation_accuracy)} in validation",
        ),
        *((f"latency on {latency.target}", _latency(latency)) for latency in metadata.latencies),
        *((f"`{file.name}`", _file(file)) for file in metadata.files),
        ("pretrained weights", f"{_plain(what.seed)}, sha256 `{what.seed_sha256}`"),
        ("made with", ", ".join(f"{name} {version}" for name, version in what.versions.items())),
    ]
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    return _CARD.format(
        id=what.id,
        classes=len(what.labels),
        size=what.preprocessing.size_px,
        table=table,
        labels=", ".join(map(_plain, what.labels)),
    )


_CARD = """---
library_name: onnx
pipeline_tag: image-classification
tags: [natdeploy]
---
# {id}

An image classifier for {classes} classes at {size} px, searched and adapted by natdeploy.

| | |
|---|---|
{table}

## Use

```python
import json
import numpy as np
import onnxruntime
from PIL import Image, ImageOps

facts = json.load(open("metadata.json"))["description"]
how = facts["preprocessing"]
photo = ImageOps.exif_transpose(Image.open("photo.jpg")).convert("RGB")
square = ImageOps.fit(photo, (how["square_px"],) * 2, Image.Resampling.BILINEAR)
pixels = np.asarray(square.resize((how["size_px"],) * 2, Image.Resampling.BILINEAR)) / 255
x = ((pixels - how["mean"]) / how["std"]).transpose(2, 0, 1)[None].astype(np.float32)
session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
(logits,) = session.run(None, {{"input": x}})
print(facts["labels"][logits.argmax()])
```

## Classes

In the order of the outputs: {labels}.
"""


def _latency(latency: Latency) -> str:
    parts, unstable = [], ", unstable" if latency.unstable else ""
    if latency.measured_p50_ms is not None:
        p90 = "" if latency.measured_p90_ms is None else f", p90 {latency.measured_p90_ms:.3f} ms"
        parts.append(f"p50 {latency.measured_p50_ms:.3f} ms{p90} (measured, {latency.measured_n} runs{unstable})")
    elif latency.measured_mean_ms is not None:
        parts.append(f"mean {latency.measured_mean_ms:.3f} ms (measured, {latency.measured_n} runs{unstable})")
    if latency.predicted_ms is not None:
        how = "estimated from the device's specification sheet, not measured" if latency.estimated else "predicted"
        parts.append(f"{latency.predicted_ms:.3f} ms {how}")
    return "; ".join(parts) or "not known"


def _file(file: ModelFile) -> str:
    return (
        f"{file.size_mb:.1f} MB, opset {file.opset}, sha256 `{file.sha256}`; in ONNX Runtime {_percent(file.test_accuracy)} on the "
        f"test images; logits within {file.parity.max_abs:.0e} of torch's on {file.parity.n} of them, "
        f"{_percent(file.parity.top1_agreement)} in the same class"
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _plain(text: str) -> str:
    """Text that Markdown takes for nothing else."""
    return re.sub(r"([\\`*_{}\[\]<>()#+!|~&])", r"\\\1", " ".join(text.split()))
