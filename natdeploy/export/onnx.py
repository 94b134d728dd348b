"""What a plain ONNX file becomes before it is handed on: it takes another input, and says itself what it is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
from onnx import helper, numpy_helper

from natdeploy.export import photos
from natdeploy.export.check import Array
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

_FROM_PHOTO = """prepare (uint8[1, photo_height, photo_width, 3] {name}) => (float[1, 3, {height}, {width}] prepared) {{
    sides = Shape <start = 1, end = 3> ({name})
    {window}
    spare = Sub (sides, extent)
    begin = Div (spare, two)
    end = Add (begin, extent)
    part = Slice ({name}, begin, end, axes)
    tall, wide = Split <axis = 0> (extent, ones)
    {rows}
    {columns}
    floats = Cast <to = 1> (part)
    lines = Reshape (floats, as_lines)
    lower = MatMul (tall_taps, lines)
    points = Reshape (lower, as_points)
    planes = Transpose <perm = [0, 3, 1, 2]> (points)
    across = Transpose <perm = [1, 0]> (wide_taps)
    small = MatMul (planes, across)
    scaled = Mul (small, scale)
    prepared = Sub (scaled, shift)
}}"""
"""The products of natdeploy.export.photos, whose weights are found from the photo's size."""

_WHOLE = "extent = Identity (sides)"

_MIDDLE = """others = Gather (sides, swapped)
    crossed = Mul (others, cut)
    reached = Div (crossed, cut_swapped)
    inner = Min (sides, reached)
    extent = Max (inner, least)"""

_TAPS = """{side}_length = Cast <to = 1> ({side})
    {side}_pitch = Div ({side}_length, {side}_cut)
    {side}_reach = Max ({side}_pitch, one)
    {side}_wanted_at = Mul ({side}_centres, {side}_pitch)
    {side}_count = Squeeze ({side})
    {side}_place = Range (zero, {side}_count, step)
    {side}_corner = Cast <to = 1> ({side}_place)
    {side}_lies_at = Add ({side}_corner, half)
    {side}_apart = Sub ({side}_lies_at, {side}_wanted_at)
    {side}_distance = Abs ({side}_apart)
    {side}_share = Div ({side}_distance, {side}_reach)
    {side}_left = Sub (one, {side}_share)
    {side}_triangle = Relu ({side}_left)
    {side}_total = ReduceSum <keepdims = 1> ({side}_triangle, last)
    {side}_first = Div ({side}_triangle, {side}_total)
    {side}_taps = MatMul ({side}_second, {side}_first)"""


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
        window = _WHOLE if preprocessing.whole else _MIDDLE
        rows, columns = (_TAPS.format(side=side) for side in ("tall", "wide"))
        text = _FROM_PHOTO.format(name=name, height=height, width=width, window=window, rows=rows, columns=columns)
        constants = {name: values.reshape(3, 1, 1) for name, values in normalising.items()} | _of_photos(preprocessing)
    elif input.dtype == "uint8":
        text = _FROM_BYTES.format(name=name, height=height, width=width, transpose=_TRANSPOSE.format(at="normalised"))
        constants = dict(normalising)
    else:
        text = _FROM_FLOATS.format(name=name, height=height, width=width, transpose=_TRANSPOSE.format(at=name))
        constants = {}
    graph = onnx.parser.parse_graph(text)
    graph.initializer.extend(numpy_helper.from_array(values, name) for name, values in constants.items())
    return graph


def _of_photos(preprocessing: Preprocessing) -> dict[str, Array]:
    """Constants of what resizes photos."""
    cut, size = preprocessing.cut, preprocessing.size
    whole_numbers = {"two": [2], "ones": [1, 1], "axes": [1, 2], "last": [1]}
    whole_numbers |= {"as_lines": [1, 0, -1], "as_points": [1, size[0], -1, 3]}
    if not preprocessing.whole:
        whole_numbers |= {"swapped": [1, 0], "cut": [*cut], "cut_swapped": [*cut[::-1]], "least": [1, 1]}
    constants: dict[str, Array] = {name: np.array(values) for name, values in whole_numbers.items()}
    constants |= {"zero": np.array(0), "step": np.array(1)}
    constants |= {name: np.array([value], np.float32) for name, value in (("one", 1), ("half", 0.5))}
    for side, old, new in zip(("tall", "wide"), cut, size, strict=True):
        constants |= {
            f"{side}_cut": np.array([old], np.float32),
            f"{side}_centres": photos.centres(old)[:, None].astype(np.float32),
            f"{side}_second": photos.second_taps(old, new),
        }
    return constants


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
