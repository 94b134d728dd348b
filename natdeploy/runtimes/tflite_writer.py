"""Plain networks as .tflite files, written operator by operator with the schema that ships with LiteRT.

Stays on this machine: a device gets the file and `tflite.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


class UnknownModuleError(Exception):
    """A module has something that `write` does not know."""


@dataclass(eq=False)
class _Tensor:
    """A tensor of a graph. Constants have data; what an operator makes has none, nor has the input."""

    name: str
    shape: tuple[int, ...]
    data: Any = None
    maker: _Operator | None = None


@dataclass(eq=False)
class _Operator:
    """An operator of a graph; its name and its options' names are those of TFLite's schema."""

    name: str
    inputs: list[_Tensor]
    options: dict[str, Any]


_SAME, _VALID = 0, 1
_RELU, _RELU6 = 1, 3
_OPTIONS = {
    "ADD": "AddOptions",
    "CONV_2D": "Conv2DOptions",
    "DEPTHWISE_CONV_2D": "DepthwiseConv2DOptions",
    "FULLY_CONNECTED": "FullyConnectedOptions",
    "MEAN": "ReducerOptions",
    "MUL": "MulOptions",
    "PAD": "PadOptions",
}
_WEIGHT_AXES = {"CONV_2D": (0, 2, 3, 1), "DEPTHWISE_CONV_2D": (1, 2, 3, 0), "FULLY_CONNECTED": (0, 1)}
"""Axes of torch's weights in TFLite's order; torch's first one counts the outputs."""


def write(module: torch.nn.Module, example: torch.Tensor, dynamic_size: bool, *, fused_hswish: bool = True) -> bytes:
    """A .tflite file of a module that consists of convolutions, linear layers and what stands between them.

    Its operators are those that litert-torch makes of the same module, all in version 1, which the oldest runtimes read. None has a
    size in it, so the file computes at any. Images are (1, height, width, channels) within.

    Args:
        module: in evaluation mode.
        example: an input.
        dynamic_size: whether the file is to say that height and width may differ.
        fused_hswish: whether h-swish is one operator, or a sum and two products.

    Raises:
        UnknownModuleError: the module has something else.
        ValueError: it does not take the example.
    """
    import torch

    try:
        traced = torch.fx.symbolic_trace(torch.nn.Sequential(module))
    except Exception as error:  # whatever the module's own code does not do to a proxy
        raise UnknownModuleError(str(error)) from error
    graph = _Graph(fused_hswish)
    made: dict[Any, _Tensor] = {}
    for node in list(traced.graph.nodes):
        called = traced.get_submodule(node.target) if node.op == "call_module" else node.target
        if type(called) in (torch.nn.Identity, torch.nn.Dropout):
            node.replace_all_uses_with(node.args[0])
            traced.graph.erase_node(node)
        elif node.op == "placeholder":
            made[node] = graph.add_input(tuple(example.shape))
        elif node.op == "output":
            if not isinstance(node.args[0], torch.fx.Node):
                raise UnknownModuleError("several outputs")
            graph.add_output(made[node.args[0]])
        elif not node.all_input_nodes:
            raise UnknownModuleError("a constant")
        else:
            made[node] = graph.add_layer(node, called, [made[each] for each in node.all_input_nodes])
    return graph.pack(dynamic_size)


class _Graph:
    """A network in TFLite's operators."""

    def __init__(self, fused_hswish: bool) -> None:
        self._fused_hswish = fused_hswish
        self._inputs: list[_Tensor] = []
        self._outputs: list[_Tensor] = []
        self._made: list[_Tensor] = []

    def add_input(self, shape: tuple[int, ...]) -> _Tensor:
        if self._inputs:
            raise UnknownModuleError("several inputs")
        self._inputs.append(_Tensor("input", shape))
        return self._transposed(self._inputs[0], (0, 2, 3, 1)) if len(shape) == 4 else self._inputs[0]

    def add_output(self, tensor: _Tensor) -> None:
        self._outputs.append(self._transposed(tensor, (0, 3, 1, 2)) if len(tensor.shape) == 4 else tensor)

    def add_layer(self, node: torch.fx.Node, called: Any, inputs: list[_Tensor]) -> _Tensor:
        """What a node of a traced module makes of its inputs, which it has in the order of its arguments."""
        import numpy as np

        kind = called if isinstance(called, str) else getattr(called, "__name__", type(called).__name__)
        x, *others = inputs
        # What only this node reads may be changed where it is made.
        maker = x.maker if all(len(each.users) == 1 for each in node.all_input_nodes) else None
        plain = not set(node.kwargs) - {"inplace"} and len(node.args) == len(inputs)
        if kind == "Conv2d":
            return self._convolution(node.name, x, called)
        if kind == "Linear" and len(x.shape) == 2:
            return self._weighted("FULLY_CONNECTED", node.name, x, called, shape=(1, called.out_features), options={})
        if kind == "BatchNorm2d" and maker and self._is_linear(maker):
            return self._normalised(x, maker, called)
        if kind in {"ReLU", "relu"} and plain:
            return self._activated(node.name, x, maker, _RELU)
        if kind in {"ReLU6", "relu6"} and plain:
            return self._activated(node.name, x, maker, _RELU6)
        if kind in {"Hardswish", "hardswish"} and plain:
            if self._fused_hswish:
                return self._made_by("HARD_SWISH", node.name, [x], x.shape)
            gate = self._hard_sigmoid(f"{node.name}/gate", x, None)  # not into the bias before: x is a factor as well
            return self._made_by("MUL", node.name, [x, gate], x.shape)
        if kind in {"Hardsigmoid", "hardsigmoid"} and plain:
            return self._hard_sigmoid(node.name, x, maker)
        if kind in {"add", "iadd", "mul", "imul"} and plain and others and len(x.shape) == len(others[0].shape):
            return self._made_by(kind.lstrip("i").upper(), node.name, inputs, np.broadcast_shapes(x.shape, others[0].shape))
        if kind == "ZeroPad2d":
            left, right, top, bottom = called.padding
            return self._padded(node.name, x, (top, bottom), (left, right))
        sides = called.output_size if kind == "AdaptiveAvgPool2d" else node.args[1:]
        if kind in {"AdaptiveAvgPool2d", "adaptive_avg_pool2d"} and sides in (1, (1,), (1, 1), ((1, 1),)):
            axes = self._constant(f"{node.name}/axes", [1, 2])
            return self._made_by("MEAN", node.name, [x, axes], (1, 1, 1, x.shape[3]), keepDims=True)
        first = called.start_dim if kind == "Flatten" else node.args[1:]
        if kind in {"Flatten", "flatten"} and first in (1, (1,)) and maker and maker.name == "MEAN":
            maker.options["keepDims"] = False
            x.shape = (1, x.shape[3])
            return x
        raise UnknownModuleError(kind)

    def _made_by(self, operator: str, name: str, inputs: list[_Tensor], shape: tuple[int, ...], **options: Any) -> _Tensor:
        self._made.append(_Tensor(name, shape, maker=_Operator(operator, inputs, options)))
        return self._made[-1]

    def _constant(self, name: str, values: Any) -> _Tensor:
        import numpy as np

        data = np.ascontiguousarray(values, np.int32 if isinstance(values, list) else np.float32)
        return _Tensor(name, data.shape, data)

    def _transposed(self, x: _Tensor, order: tuple[int, ...]) -> _Tensor:
        name = f"{x.name}/transposed"
        return self._made_by(
            "TRANSPOSE", name, [x, self._constant(f"{name}/order", list(order))], tuple(x.shape[axis] for axis in order)
        )

    def _padded(self, name: str, x: _Tensor, rows: tuple[int, int], columns: tuple[int, int]) -> _Tensor:
        zeros = self._constant(f"{name}/zeros", [[0, 0], [*rows], [*columns], [0, 0]])
        return self._made_by("PAD", name, [x, zeros], (1, x.shape[1] + sum(rows), x.shape[2] + sum(columns), x.shape[3]))

    def _convolution(self, name: str, x: _Tensor, layer: Any) -> _Tensor:
        depthwise = layer.groups == layer.in_channels > 1
        known = depthwise or layer.groups == 1
        if not known or layer.dilation != (1, 1) or layer.padding_mode != "zeros" or isinstance(layer.padding, str):
            raise UnknownModuleError(str(layer))
        (rows, columns), padding = layer.padding, _VALID
        if any(layer.padding):
            # At a stride, TFLite's own padding is not torch's: it depends on the size and puts the odd pixel behind.
            if layer.stride == (1, 1) and all(2 * pad == side - 1 for pad, side in zip(layer.padding, layer.kernel_size)):  # noqa: B905
                padding = _SAME
            else:
                x, rows, columns = self._padded(f"{name}/padded", x, (rows, rows), (columns, columns)), 0, 0
        shape = tuple(
            (length + 2 * pad - side) // step + 1
            for length, pad, side, step in zip(x.shape[1:3], (rows, columns), layer.kernel_size, layer.stride)  # noqa: B905
        )
        options = {"padding": padding, "strideH": layer.stride[0], "strideW": layer.stride[1]}
        if depthwise:
            options["depthMultiplier"] = layer.out_channels // layer.in_channels
        operator = "DEPTHWISE_CONV_2D" if depthwise else "CONV_2D"
        return self._weighted(operator, name, x, layer, shape=(1, *shape, layer.out_channels), options=options)

    def _weighted(
        self, operator: str, name: str, x: _Tensor, layer: Any, *, shape: tuple[int, ...], options: dict[str, Any]
    ) -> _Tensor:
        import numpy as np

        if x.shape[-1] != (layer.in_features if operator == "FULLY_CONNECTED" else layer.in_channels):
            raise ValueError(f"{layer} is given {x.shape[-1]} channels")
        weight = self._constant(f"{name}/weight", layer.weight.detach().permute(_WEIGHT_AXES[operator]).numpy())
        bias = np.zeros(shape[-1]) if layer.bias is None else layer.bias.detach().numpy()
        return self._made_by(operator, name, [x, weight, self._constant(f"{name}/bias", bias)], shape, **options)

    @staticmethod
    def _is_linear(maker: _Operator) -> bool:
        """Whether it has weights and nothing behind them, so that what follows can be folded in."""
        return maker.name in _WEIGHT_AXES and "fusedActivationFunction" not in maker.options

    @staticmethod
    def _normalised(x: _Tensor, maker: _Operator, norm: Any) -> _Tensor:
        """Folds batch normalisation into the weights before it."""
        import numpy as np

        if norm.running_mean is None:
            raise UnknownModuleError("batch normalisation without statistics")
        variance, mean = norm.running_var.double().numpy(), norm.running_mean.double().numpy()
        scale, shift = (1.0, 0.0) if norm.weight is None else (each.detach().double().numpy() for each in (norm.weight, norm.bias))
        scale = scale / np.sqrt(variance + norm.eps)
        _, weight, bias = maker.inputs
        axes = [-1 if axis == 0 else 1 for axis in _WEIGHT_AXES[maker.name]]
        weight.data = (weight.data * scale.reshape(axes)).astype(np.float32)
        bias.data = ((bias.data - mean) * scale + shift).astype(np.float32)
        return x

    def _activated(self, name: str, x: _Tensor, maker: _Operator | None, activation: int) -> _Tensor:
        if maker and self._is_linear(maker):
            maker.options["fusedActivationFunction"] = activation
            return x
        return self._made_by({_RELU: "RELU", _RELU6: "RELU6"}[activation], name, [x], x.shape)

    def _hard_sigmoid(self, name: str, x: _Tensor, maker: _Operator | None) -> _Tensor:
        """relu6(x + 3) / 6, the sum taken by the bias before it where there is one."""
        import numpy as np

        if maker and self._is_linear(maker):
            maker.inputs[2].data = maker.inputs[2].data + np.float32(3)
        else:
            x = self._made_by("ADD", f"{name}/sum", [x, self._constant(f"{name}/three", 3.0)], x.shape)
        assert x.maker is not None
        x.maker.options["fusedActivationFunction"] = _RELU6
        return self._made_by("MUL", name, [x, self._constant(f"{name}/sixth", 1 / 6)], x.shape)

    def pack(self, dynamic_size: bool) -> bytes:
        """The graph as a .tflite file."""
        import numpy as np
        from ai_edge_litert import schema_py_generated as schema

        operators = [(made.maker, made) for made in self._made if made.maker is not None]
        tensors = [*self._inputs, *(each for maker, made in operators for each in (*maker.inputs, made))]
        tensors = list(dict.fromkeys(tensors))
        place = {tensor: i for i, tensor in enumerate(tensors)}
        names = sorted({maker.name for maker, _ in operators})

        model, graph = schema.ModelT(), schema.SubGraphT()
        model.version, model.description, model.subgraphs = 3, "natdeploy", [graph]
        model.buffers, graph.name = [schema.BufferT()], "main"  # the first buffer stays empty and stands for no data
        graph.inputs, graph.outputs = ([place[each] for each in ends] for ends in (self._inputs, self._outputs))
        graph.tensors, graph.operators, model.operatorCodes = [], [], []
        for tensor in tensors:
            packed = schema.TensorT()
            packed.name, packed.shape = tensor.name, list(tensor.shape)
            if dynamic_size and tensor in self._inputs and len(tensor.shape) == 4:
                packed.shapeSignature = [*tensor.shape[:2], -1, -1]
            if tensor.data is not None:
                integers = tensor.data.dtype == np.int32
                packed.type = schema.TensorType.INT32 if integers else schema.TensorType.FLOAT32
                packed.buffer = len(model.buffers)
                model.buffers.append(Bytes(tensor.data.tobytes()))
            graph.tensors.append(packed)
        for maker, made in operators:
            operator = schema.OperatorT()
            operator.opcodeIndex = names.index(maker.name)
            operator.inputs, operator.outputs = [place[each] for each in maker.inputs], [place[made]]
            if maker.name in _OPTIONS:
                operator.builtinOptionsType = getattr(schema.BuiltinOptions, _OPTIONS[maker.name])
                operator.builtinOptions = getattr(schema, _OPTIONS[maker.name] + "T")()
                for name, value in maker.options.items():
                    setattr(operator.builtinOptions, name, value)
            graph.operators.append(operator)
        for name in names:
            code = schema.OperatorCodeT()
            code.builtinCode = getattr(schema.BuiltinOperator, name)
            # Readers older than 2.4 know this field alone; it ends at 127.
            code.deprecatedBuiltinCode, code.version = min(code.builtinCode, 127), 1
            model.operatorCodes.append(code)
        signature = schema.SignatureDefT()
        signature.signatureKey, signature.subgraphIndex = "serving_default", 0
        signature.inputs, signature.outputs = [schema.TensorMapT()], [schema.TensorMapT()]
        signature.inputs[0].name, signature.inputs[0].tensorIndex = "input", graph.inputs[0]
        signature.outputs[0].name, signature.outputs[0].tensorIndex = "output", graph.outputs[0]
        model.signatureDefs = [signature]

        return pack(model)


def unpack(content: bytes) -> Any:
    """A .tflite file as objects of its schema, to be changed and packed again."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(content)
    for i, buffer in enumerate(model.buffers):
        if buffer.offset > 1:  # behind the tables, where ai-edge-quantizer puts them
            model.buffers[i] = Bytes(content[buffer.offset : buffer.offset + buffer.size])
        elif buffer.data is not None and len(buffer.data):
            model.buffers[i] = Bytes(bytes(buffer.data))
    return model


def pack(model: Any) -> bytes:
    """A .tflite file of objects of its schema."""
    import flatbuffers

    builder = flatbuffers.Builder(2 * sum(len(each.data) for each in model.buffers if each.data is not None) + 4096)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


@dataclass(frozen=True)
class Bytes:
    """A buffer of the file that starts at a multiple of 16 bytes, as the schema demands and its Python code forgets."""

    data: bytes

    def Pack(self, builder: Any) -> Any:  # noqa: N802 (called by the schema's code)
        from ai_edge_litert import schema_py_generated as schema

        builder.StartVector(1, len(self.data), 16)
        builder.head -= len(self.data)
        builder.Bytes[builder.head : builder.head + len(self.data)] = self.data
        vector = builder.EndVector()
        schema.BufferStart(builder)
        schema.BufferAddData(builder, vector)
        return schema.BufferEnd(builder)
