"""What a plain .tflite file becomes before it is handed on: it takes another input, and says itself what it is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from natdeploy.errors import NatdeployError
from natdeploy.export.facts import Preprocessing
from natdeploy.export.inputs import InputKind
from natdeploy.runtimes.tflite_writer import Bytes, pack, unpack

METADATA = "natdeploy"
"""Name of the metadata in the file: the texts, as JSON."""


def finish(path: Path, kind: InputKind, preprocessing: Preprocessing, texts: Mapping[str, str]) -> None:
    """Gives a file with one input (1, 3, r, r) fp32 the input of a kind, and texts as metadata named METADATA, in place.

    Raises:
        NatdeployError: the input is not transposed as in the product's own files.
    """
    from ai_edge_litert import schema_py_generated as schema

    model = unpack(path.read_bytes())
    if kind != "nchw":
        _take_channels_last(model, path)
    if kind == "image":
        _take_bytes(model, preprocessing)
    entry = schema.MetadataT()
    entry.name, entry.buffer = METADATA, len(model.buffers)
    model.buffers.append(Bytes(json.dumps(dict(texts), ensure_ascii=False).encode()))
    model.metadata = [*(model.metadata or ()), entry]
    path.write_bytes(pack(model))


def read_texts(path: Path) -> dict[str, str]:
    """The texts that a file says of itself; none where it has none."""
    model = unpack(path.read_bytes())
    for entry in model.metadata or ():
        if entry.name.decode() == METADATA:
            return dict(json.loads(model.buffers[entry.buffer].data))
    return {}


def _take_channels_last(model: Any, path: Path) -> None:
    """Drops the transposition at the beginning: images are (1, r, r, 3) behind it."""
    from ai_edge_litert import schema_py_generated as schema

    (graph,) = model.subgraphs
    (at,) = graph.inputs
    before = []  # tensors that still have the input's axes
    for operator in graph.operators:
        if operator.inputs[0] != at:
            continue
        before.append(graph.tensors[at])
        code = model.operatorCodes[operator.opcodeIndex].builtinCode
        if code == schema.BuiltinOperator.TRANSPOSE:
            behind = graph.tensors[operator.outputs[0]]
            for each in before:
                each.shape = list(behind.shape)
            for other in graph.operators:
                other.inputs = [at if place == operator.outputs[0] else place for place in other.inputs]
            graph.operators.remove(operator)
            return
        if code != schema.BuiltinOperator.QUANTIZE:
            break
        (at,) = operator.outputs
    raise NatdeployError(f"{path.name} does not begin as natdeploy's own files do; export it with the input nchw")


def _take_bytes(model: Any, preprocessing: Preprocessing) -> None:
    """Puts the scaling of bytes before the first operator."""
    from ai_edge_litert import schema_py_generated as schema

    (graph,) = model.subgraphs
    (old,) = graph.inputs
    shape = list(graph.tensors[old].shape)

    def tensor(name: str, kind: int, shape: list[int], data: bytes | None = None) -> int:
        made = schema.TensorT()
        made.name, made.type, made.shape = name, kind, shape
        if data is not None:
            made.buffer = len(model.buffers)
            model.buffers.append(Bytes(data))
        graph.tensors.append(made)
        return len(graph.tensors) - 1

    def operator(name: str, options: str, inputs: list[int], output: int) -> Any:
        code = schema.OperatorCodeT()
        code.builtinCode = getattr(schema.BuiltinOperator, name)
        code.deprecatedBuiltinCode, code.version = code.builtinCode, 1
        made = schema.OperatorT()
        made.opcodeIndex, made.inputs, made.outputs = len(model.operatorCodes), inputs, [output]
        made.builtinOptionsType = getattr(schema.BuiltinOptions, options)
        made.builtinOptions = getattr(schema, f"{options}T")()
        model.operatorCodes.append(code)
        return made

    mean, std = np.array(preprocessing.mean), np.array(preprocessing.std)
    real = schema.TensorType.FLOAT32
    constants = [
        tensor(f"preprocessing/{name}", real, [3], values.astype(np.float32).tobytes())
        for name, values in (("scale", 1 / (255 * std)), ("shift", mean / std))
    ]
    image = tensor("image", schema.TensorType.UINT8, shape)
    floats, scaled = (tensor(f"preprocessing/{name}", real, shape) for name in ("floats", "scaled"))
    cast = operator("CAST", "CastOptions", [image], floats)
    cast.builtinOptions.inDataType, cast.builtinOptions.outDataType = schema.TensorType.UINT8, real
    graph.operators[:0] = [
        cast,
        operator("MUL", "MulOptions", [floats, constants[0]], scaled),
        operator("SUB", "SubOptions", [scaled, constants[1]], old),
    ]
    graph.tensors[image].name, graph.tensors[old].name = graph.tensors[old].name, "preprocessing/normalised"
    graph.inputs = [image]
    for signature in model.signatureDefs or ():
        for ends in signature.inputs:
            ends.tensorIndex = image
