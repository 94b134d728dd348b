"""What a plain ONNX file becomes before it is handed on: it takes another input, and says itself what it is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
from onnx import helper, numpy_helper

from natdeploy.export import photos
from natdeploy.export.facts import Preprocessing, TensorFacts

_PREPARED = "prepared"

_FROM_FLOATS = "prepare (float[1, {height}, {width}, 3] {name}) => (float[1, 3, {height}, {width}] prepared) {{ {transpose} }}"

_FROM_BYTES = """prepare (uint8[1, {height}, {width}, 3] {name}) => (float[1, 3, {height}, {width}] prepared) {{
    floats = Cast <to = 1> ({name})
    scaled = Mul (floats, scale)
    normalised = Sub (scaled, shift)
    {transpose}
}}"""

_TRANSPOSE = "prepared = Transpose <perm = [0, 3, 1, 2]> ({at})"

_FROM_PHOTO = """prepare (uint8[1, photo_height, photo_width, 3] {name}) => (float[1, 3, {size}, {size}] prepared) {{
    sides = Shape <start = 1, end = 3> ({name})
    side = ReduceMin <keepdims = 1> (sides)
    spare = Sub (sides, side)
    begin = Div (spare, two)
    end = Add (begin, side)
    square = Slice ({name}, begin, end, axes)

    length = Cast <to = 1> (side)
    pitch = Div (length, square_px)
    reach = Max (pitch, one)
    wanted_at = Mul (centres, pitch)
    count = Squeeze (side)
    place = Range (zero, count, step)
    corner = Cast <to = 1> (place)
    lies_at = Add (corner, half)
    apart = Sub (lies_at, wanted_at)
    distance = Abs (apart)
    share = Div (distance, reach)
    left = Sub (one, share)
    triangle = Relu (left)
    total = ReduceSum <keepdims = 1> (triangle, last)
    first = Div (triangle, total)
    taps = MatMul (second, first)

    floats = Cast <to = 1> (square)
    lines = Reshape (floats, as_lines)
    rows = MatMul (taps, lines)
    points = Reshape (rows, as_points)
    planes = Transpose <perm = [0, 3, 1, 2]> (points)
    across = Transpose <perm = [1, 0]> (taps)
    small = MatMul (planes, across)
    scaled = Mul (small, scale)
    prepared = Sub (scaled, shift)
}}"""
"""The products of natdeploy.export.photos, whose weights are found from the photo's size."""


def finish(path: Path, input: TensorFacts, preprocessing: Preprocessing, texts: Mapping[str, str]) -> None:
    """Gives a file with one input (1, 3, r, r) fp32 another input, and texts as its `metadata_props`, in place."""
    model = onnx.load(path)
    if input.layout != "NCHW":
        _take(model.graph, preparation(input, preprocessing))
    model.graph.name = f"natdeploy-{texts['id']}"
    helper.set_model_props(model, dict(texts))
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString(deterministic=True))


def opset(path: Path) -> int:
    """Version of the standard operators."""
    return next(int(each.version) for each in onnx.load(path).opset_import if each.domain in ("", "ai.onnx"))


def preparation(input: TensorFacts, preprocessing: Preprocessing) -> onnx.GraphProto:
    """What makes (1, 3, r, r) fp32 of an input with the colours last, in operators of opset 17; none has the photo's size."""
    name, (height, width) = input.name, preprocessing.size
    mean, std = np.array(preprocessing.mean), np.array(preprocessing.std)
    normalising = {"scale": (1 / (255 * std)).astype(np.float32), "shift": (mean / std).astype(np.float32)}
    if input.resized:
        square, size = preprocessing.cut[0], height  # photos are resized to squares alone
        text = _FROM_PHOTO.format(name=name, size=size)
        constants = {
            **{name: values.reshape(3, 1, 1) for name, values in normalising.items()},
            **{name: np.array(value) for name, value in (("zero", 0), ("step", 1))},
            **{name: np.array([value], np.float32) for name, value in (("one", 1), ("half", 0.5), ("square_px", square))},
            **{name: np.array(values) for name, values in (("two", [2]), ("axes", [1, 2]), ("last", [1]))},
            **{name: np.array(values) for name, values in (("as_lines", [1, 0, -1]), ("as_points", [1, size, -1, 3]))},
            "centres": photos.centres(square)[:, None].astype(np.float32),
            "second": photos.second_taps(preprocessing),
        }
    elif input.dtype == "uint8":
        text = _FROM_BYTES.format(name=name, height=height, width=width, transpose=_TRANSPOSE.format(at="normalised"))
        constants = normalising
    else:
        text = _FROM_FLOATS.format(name=name, height=height, width=width, transpose=_TRANSPOSE.format(at=name))
        constants = {}
    graph = onnx.parser.parse_graph(text)
    graph.initializer.extend(numpy_helper.from_array(values, name) for name, values in constants.items())
    return graph


def _take(graph: onnx.GraphProto, before: onnx.GraphProto) -> None:
    """Puts what prepares the input before the nodes of a graph; its names get a prefix, except the input's."""
    (old,), (new,) = graph.input, before.input

    def renamed(name: str) -> str:
        return name if name == new.name else f"preprocessing/{name}"

    for node in graph.node:
        node.input[:] = [renamed(_PREPARED) if name == old.name else name for name in node.input]
    for place, node in enumerate(before.node):
        node.input[:] = map(renamed, node.input)
        node.output[:] = map(renamed, node.output)
        node.name = node.output[0]
        graph.node.insert(place, node)
    for each in before.initializer:
        each.name = renamed(each.name)
        graph.initializer.append(each)
    old.CopyFrom(new)
