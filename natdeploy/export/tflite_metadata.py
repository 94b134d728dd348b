"""TensorFlow Lite Metadata: what TFLite's own tools read of a file, by metadata_schema.fbs of TensorFlow Lite Support.

A flatbuffer in the file tells what goes in and comes out; the labels are a file in an archive behind it, so that the model is a zip
file as well. Written here slot by slot, because the package that has the schema's code needs a protobuf of 2022.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from typing import Any

from natdeploy.export.facts import Preprocessing, TensorFacts

ENTRY = "TFLITE_METADATA"
"""Name of the entry in a model's metadata."""
LABELS = "labels.txt"
IDENTIFIER = b"M001"
PARSER = "1.0.0"
"""Version of the readers that know every field used here."""

Value = str | int | tuple[float, ...] | list["Table"] | Mapping[int, Any]
"""Text, an enumerator of a byte, numbers, tables, or a table."""
Table = Mapping[int, Value]
"""Fields of a table by their place in the schema."""

_FEATURE, _IMAGE, _RGB, _NORMALISATION, _UNKNOWN, _AXIS_LABELS = 1, 2, 1, 1, 0, 2
"""Enumerators: ContentProperties, ColorSpaceType, ProcessUnitOptions, AssociatedFileType."""


_TASKS = {
    "classification": ("Classifier of images", "Logits, one a class."),
    "segmentation": ("Segmentation of images", "Logits of every pixel: (1, classes, height, width)."),
    "detection": (
        "Detection of objects",
        "Of every anchor its box (left, top, right, bottom, shares of the sides) and a score a class: (1, anchors, 4 + classes).",
    ),
}
"""What a network does and what it answers, in words."""


def describe(input: TensorFacts, output: str, preprocessing: Preprocessing, texts: Mapping[str, str]) -> bytes:
    """The flatbuffer.

    Args:
        input: an image, or a photo.
        output: name of the logits.
        preprocessing: of the image.
        texts: of `Description.properties`.
    """
    import flatbuffers

    # TFLite's tools hand over pixels from 0 to 255 with the colours last, less the mean, divided by the deviation.
    mean, std = (tuple(255 * each for each in values) for values in (preprocessing.mean, preprocessing.std))
    if input.dtype == "uint8":  # done in the file
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    normalisation: Table = {0: _NORMALISATION, 1: {0: mean, 1: std}}
    colours_last = input.layout == "NHWC"
    content: Table = {0: _IMAGE, 1: {0: _RGB}} if colours_last else {0: _FEATURE, 1: {}}
    # The axis of an anchor's numbers begins with its box, which has no labels.
    kind = _UNKNOWN if texts["task"] == "detection" else _AXIS_LABELS
    labels: Table = {0: LABELS, 1: "Names of the classes, in the order of the output.", 2: kind}
    what, answers = _TASKS[texts["task"]]
    model: Table = {
        0: texts["id"],
        1: f"{what}, {texts['precision']}, of architecture {texts['arch']}, by natdeploy.",
        2: json.loads(texts["versions"])["natdeploy"],
        3: [
            {
                2: [{0: input.name, 1: _told(input, preprocessing), 3: content, 4: [normalisation]}],
                3: [{0: output, 1: answers, 3: {0: _FEATURE, 1: {}}, 6: [labels]}],
            }
        ],
        7: PARSER,
    }
    if "licence" in texts:
        model = {**model, 5: texts["licence"]}
    builder = flatbuffers.Builder(1024)
    builder.Finish(_written(builder, model), file_identifier=IDENTIFIER)
    return bytes(builder.Output())


def with_labels(content: bytes, texts: Mapping[str, str]) -> bytes:
    """A model file with its labels in an archive behind it, a line a class."""
    lines = [" ".join(label.split()) for label in json.loads(texts["labels"])]
    buffer = io.BytesIO(content)
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr(zipfile.ZipInfo(LABELS), "".join(f"{line}\n" for line in lines))  # its date is always the same
    return buffer.getvalue()


def _told(input: TensorFacts, preprocessing: Preprocessing) -> str:
    """What goes in, in words."""
    height, width = preprocessing.size
    shape = f"{preprocessing.cut[1]}x{preprocessing.cut[0]}"
    if input.resized:
        part = "square" if preprocessing.cut_px is None else f"part of the shape {shape}"
        done = "the whole of it is" if preprocessing.whole else f"its centre {part} is cut out and"
        return f"An upright RGB photo; {done} resized in the file."
    part = "square" if preprocessing.cut_px is None else f"part, {shape},"
    taken = "The whole" if preprocessing.whole else f"The centre {part}"
    square = f"{taken} of an upright RGB photo, resized to {width}x{height} (bilinear, antialiased)"
    if input.dtype == "uint8":
        return f"{square}; it is normalised in the file."
    return f"{square}, normalised{'' if input.layout == 'NHWC' else ', with the colours first: (1, 3, height, width)'}."


def _written(builder: Any, value: Value) -> int:
    """Where something of more than a byte lies that was written now."""
    if isinstance(value, str):
        return int(builder.CreateString(value))
    if isinstance(value, tuple):
        builder.StartVector(4, len(value), 4)
        for number in reversed(value):
            builder.PrependFloat32(number)
        return int(builder.EndVector())
    if isinstance(value, list):
        places = [_written(builder, each) for each in value]
        builder.StartVector(4, len(places), 4)
        for place in reversed(places):
            builder.PrependUOffsetTRelative(place)
        return int(builder.EndVector())
    assert isinstance(value, Mapping)
    fields = {slot: each if isinstance(each, int) else _written(builder, each) for slot, each in value.items()}
    builder.StartObject(1 + max(fields, default=-1))
    for slot, written in fields.items():
        if isinstance(value[slot], int):
            builder.PrependInt8Slot(slot, written, 0)
        else:
            builder.PrependUOffsetTRelativeSlot(slot, written, 0)
    return int(builder.EndObject())
