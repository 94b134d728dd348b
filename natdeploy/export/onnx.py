"""What a plain ONNX file becomes before it is handed on: it takes another input, and says itself what it is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from natdeploy.export.facts import Preprocessing
from natdeploy.export.inputs import InputKind


def finish(path: Path, kind: InputKind, preprocessing: Preprocessing, texts: Mapping[str, str]) -> None:
    """Gives a file with one input (1, 3, r, r) fp32 the input of a kind, and texts as its `metadata_props`, in place."""
    model = onnx.load(path)
    if kind != "nchw":
        _take(model.graph, kind, preprocessing)
    model.graph.name = f"natdeploy-{texts['id']}"
    helper.set_model_props(model, dict(texts))
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString(deterministic=True))


def opset(path: Path) -> int:
    """Version of the standard operators."""
    return next(int(each.version) for each in onnx.load(path).opset_import if each.domain in ("", "ai.onnx"))


def _take(graph: onnx.GraphProto, kind: InputKind, preprocessing: Preprocessing) -> None:
    """Puts what prepares the input before the nodes of a graph."""
    (old,) = graph.input
    _, channels, height, width = (each.dim_value for each in old.type.tensor_type.shape.dim)
    for node in graph.node:
        node.input[:] = ["prepared" if name == old.name else name for name in node.input]
    nodes, at, element = [], old.name, TensorProto.FLOAT
    if kind == "image":
        element = TensorProto.UINT8
        mean, std = np.array(preprocessing.mean), np.array(preprocessing.std)
        for name, values in (("scale", 1 / (255 * std)), ("shift", mean / std)):
            graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), name))
        nodes = [
            helper.make_node("Cast", [at], ["floats"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["floats", "scale"], ["scaled"]),
            helper.make_node("Sub", ["scaled", "shift"], ["normalised"]),
        ]
        at = "normalised"
    nodes.append(helper.make_node("Transpose", [at], ["prepared"], perm=[0, 3, 1, 2]))
    for place, node in enumerate(nodes):
        node.name = f"preprocessing/{node.op_type}"
        graph.node.insert(place, node)
    old.CopyFrom(helper.make_tensor_value_info(old.name, element, [1, height, width, channels]))
