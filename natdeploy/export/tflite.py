"""What a plain .tflite file becomes before it is handed on: it takes another input, and says itself what it is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from natdeploy.errors import NatdeployError
from natdeploy.export import tflite_metadata
from natdeploy.export.check import Array
from natdeploy.export.facts import Preprocessing, TensorFacts
from natdeploy.export.photos import seen, taps
from natdeploy.runtimes.ort import OUTPUT
from natdeploy.runtimes.tflite_writer import Bytes, pack, unpack

METADATA = "natdeploy"
"""Name of the metadata in the file: the texts, as JSON."""
_MOVES = ("SLICE", "TRANSPOSE")


def finish(path: Path, input: TensorFacts, preprocessing: Preprocessing, texts: Mapping[str, str]) -> None:
    """Gives a file with one input (1, 3, r, r) fp32 another input, texts as metadata named METADATA, and TFLite's own, in place.

    Raises:
        NatdeployError: the input is not transposed as in the product's own files.
    """
    from ai_edge_litert import schema_py_generated as schema

    model = unpack(path.read_bytes())
    if input.layout != "NCHW":
        _take_channels_last(model, path)
    if input.dtype == "uint8":
        _take_bytes(model, input, preprocessing)
    for signature in model.signatureDefs or ():  # the converter of networks that we do not write ourselves has names of its own
        for name, (ends,) in ((input.name, signature.inputs), (OUTPUT, signature.outputs)):
            ends.name = name
    own = json.dumps(dict(texts), ensure_ascii=False).encode()
    standard = tflite_metadata.describe(input, OUTPUT, preprocessing, texts)
    for name, content in ((METADATA, own), (tflite_metadata.ENTRY, standard)):
        entry = schema.MetadataT()
        entry.name, entry.buffer = name, len(model.buffers)
        model.buffers.append(Bytes(content))
        model.metadata = [*(model.metadata or ()), entry]
    path.write_bytes(tflite_metadata.with_labels(pack(model), texts))


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
    before: list[Any] = []  # tensors that still have the input's axes
    padded: list[Any] = []  # operators that pad along them
    for operator in graph.operators:
        if operator.inputs[0] != at:
            continue
        before.append(graph.tensors[at])
        code = model.operatorCodes[operator.opcodeIndex].builtinCode
        if code == schema.BuiltinOperator.TRANSPOSE:
            order = _constant(model, operator.inputs[1])
            for each in before:
                each.shape = [each.shape[axis] for axis in order]
            for each in padded:  # the same constant may be another one's, too
                around = _constant(model, each.inputs[1]).reshape(4, 2)[order]
                each.inputs = [each.inputs[0], _Before(model).constant(around)]
            for other in graph.operators:
                other.inputs = [at if place == operator.outputs[0] else place for place in other.inputs]
            graph.operators.remove(operator)
            return
        if code == schema.BuiltinOperator.PAD:  # TensorFlow's, in front of the first convolution
            padded.append(operator)
        elif code != schema.BuiltinOperator.QUANTIZE:
            break
        (at,) = operator.outputs
    raise NatdeployError(f"{path.name} does not begin as natdeploy's own files do; export it with the input nchw")


def _constant(model: Any, tensor: int) -> Array:
    """The whole numbers of a constant."""
    return np.frombuffer(bytes(model.buffers[model.subgraphs[0].tensors[tensor].buffer].data), np.int32)


def _take_bytes(model: Any, input: TensorFacts, preprocessing: Preprocessing) -> None:
    """Puts the scaling of bytes before the first operator, and the resizing of photos before that where the file takes them."""
    from ai_edge_litert import schema_py_generated as schema

    (graph,) = model.subgraphs
    (old,) = graph.inputs
    assert input.sizes is not None
    before = _Before(model)
    image = before.tensor("image", schema.TensorType.UINT8, list(input.sizes))
    floats = before.made("CAST", [image], list(input.sizes)) if not input.resized else before.resized(image, preprocessing)
    mean, std = np.array(preprocessing.mean), np.array(preprocessing.std)
    scale, shift = (before.constant(values.astype(np.float32)) for values in (1 / (255 * std), mean / std))
    scaled = before.made("MUL", [floats, scale], [1, *preprocessing.size, 3])
    before.operator("SUB", [scaled, shift], old)
    graph.operators[:0] = before.operators
    graph.tensors[image].name, graph.tensors[old].name = graph.tensors[old].name, "preprocessing/normalised"
    graph.inputs = [image]
    for signature in model.signatureDefs or ():
        for ends in signature.inputs:
            ends.tensorIndex = image


class _Before:
    """Operators that are to come before those of a model, whose tensors and constants the model has already.

    Attributes:
        operators: in the order in which they run.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self.operators: list[Any] = []

    def tensor(self, name: str, type: int, shape: list[int], data: bytes | None = None) -> int:
        from ai_edge_litert import schema_py_generated as schema

        made = schema.TensorT()
        made.name, made.type, made.shape = name, type, shape
        if data is not None:
            made.buffer = len(self._model.buffers)
            self._model.buffers.append(Bytes(data))
        tensors = self._model.subgraphs[0].tensors
        tensors.append(made)
        return len(tensors) - 1

    def constant(self, values: Array) -> int:
        from ai_edge_litert import schema_py_generated as schema

        types = {"float32": schema.TensorType.FLOAT32, "int32": schema.TensorType.INT32}
        return self.tensor(self._name("constant"), types[values.dtype.name], list(values.shape), values.tobytes())

    def made(self, name: str, inputs: list[int], shape: list[int], **options: Any) -> int:
        """What an operator makes of its inputs: floats, or bytes where it only moves bytes."""
        from ai_edge_litert import schema_py_generated as schema

        old = self._model.subgraphs[0].tensors[inputs[0]].type
        type = old if name in _MOVES else schema.TensorType.FLOAT32
        made = self.tensor(self._name(name.lower()), type, shape)
        if name == "CAST":
            options = {"inDataType": old, "outDataType": type}
        self.operator(name, inputs, made, **options)
        return made

    def operator(self, name: str, inputs: list[int], output: int, **options: Any) -> None:
        from ai_edge_litert import schema_py_generated as schema

        code = schema.OperatorCodeT()
        code.builtinCode = getattr(schema.BuiltinOperator, name)
        code.deprecatedBuiltinCode, code.version = code.builtinCode, 1
        made = schema.OperatorT()
        made.opcodeIndex, made.inputs, made.outputs = len(self._model.operatorCodes), inputs, [output]
        kind = f"{name.title().replace('_', '')}Options"
        made.builtinOptionsType = getattr(schema.BuiltinOptions, kind)
        made.builtinOptions = getattr(schema, f"{kind}T")()
        for option, value in options.items():
            setattr(made.builtinOptions, option, value)
        self._model.operatorCodes.append(code)
        self.operators.append(made)

    def resized(self, image: int, preprocessing: Preprocessing) -> int:
        """The part of a photo of bytes that is seen, resized: floats (1, h, w, 3).

        The products of natdeploy.export.photos, as fully connected layers, which have the weights of this one size of photos. They
        work on the last axis, so that the columns come to lie there first and the rows after them.
        """
        height, width = preprocessing.size
        _, photo_height, photo_width, _ = self._model.subgraphs[0].tensors[image].shape
        window = seen((photo_height, photo_width), preprocessing)
        tall, wide = window.height, window.width
        begin, extent = (self.constant(np.array(each, np.int32)) for each in ([0, window.top, window.left, 0], [1, tall, wide, 3]))
        part = self.made("SLICE", [image, begin, extent], [1, tall, wide, 3])
        down, across = (
            self.constant(taps(*sides)) for sides in ((tall, preprocessing.cut[0], height), (wide, preprocessing.cut[1], width))
        )
        columns = self.made("CAST", [self._reordered(part, (0, 1, 3, 2), [1, tall, 3, wide])], [1, tall, 3, wide])
        narrow = self.made("FULLY_CONNECTED", [columns, across, -1], [1, tall, 3, width], keepNumDims=True)
        rows = self._reordered(narrow, (0, 3, 2, 1), [1, width, 3, tall])
        small = self.made("FULLY_CONNECTED", [rows, down, -1], [1, width, 3, height], keepNumDims=True)
        return self._reordered(small, (0, 3, 1, 2), [1, height, width, 3])

    def _reordered(self, x: int, order: tuple[int, ...], shape: list[int]) -> int:
        return self.made("TRANSPOSE", [x, self.constant(np.array(order, np.int32))], shape)

    def _name(self, what: str) -> str:
        return f"preprocessing/{what}/{len(self._model.subgraphs[0].tensors)}"
