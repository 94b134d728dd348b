"""A stand-in for TensorRT and for the CUDA driver, which tests of natdeploy.runtimes.trt run on where there is no GPU.

It has the classes, methods, properties, argument names and types that NVIDIA's bindings of one version have and natdeploy uses
(tensorrt_api.json, see record_tensorrt.py), and refuses everything else. What the documentation says of their meaning it keeps:
typed networks take no precision flags and untyped ones need them, an open shape needs a profile, weights belong to the parser, a
timing cache belongs to one GPU and version, an open shape's layers are told by the context alone, and nothing that was put into
a stream happens before somebody waits for it. The numbers are real: ONNX Runtime computes them from the same file.
"""

from __future__ import annotations

import ctypes
import enum
import itertools
import json
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnxruntime

API: dict[str, dict[str, dict[str, Any]]] = json.loads(Path(__file__).with_name("tensorrt_api.json").read_text())

C_TYPES = {
    "unsigned int": ctypes.c_uint,
    "int": ctypes.c_int,
    "size_t": ctypes.c_size_t,
    "char *": ctypes.c_char_p,
    "const char **": ctypes.POINTER(ctypes.c_char_p),
    "CUresult": ctypes.c_int,
    "CUdevice": ctypes.c_int,
    "CUdevice *": ctypes.POINTER(ctypes.c_int),
    "CUdeviceptr": ctypes.c_uint64,
    "CUdeviceptr *": ctypes.POINTER(ctypes.c_uint64),
    "CUcontext": ctypes.c_void_p,
    "CUcontext *": ctypes.POINTER(ctypes.c_void_p),
    "CUstream": ctypes.c_void_p,
    "CUstream *": ctypes.POINTER(ctypes.c_void_p),
    "void *": ctypes.c_void_p,
    "const void *": ctypes.c_void_p,
    "void **": ctypes.POINTER(ctypes.c_void_p),
}
PROTOTYPES = {
    "cuInit": ("unsigned int",),
    "cuGetErrorName": ("CUresult", "const char **"),
    "cuDeviceGet": ("CUdevice *", "int"),
    "cuDeviceGetName": ("char *", "int", "CUdevice"),
    "cuDevicePrimaryCtxRetain": ("CUcontext *", "CUdevice"),
    "cuCtxSetCurrent": ("CUcontext",),
    "cuStreamCreate": ("CUstream *", "unsigned int"),
    "cuStreamSynchronize": ("CUstream",),
    "cuStreamDestroy_v2": ("CUstream",),
    "cuMemAlloc_v2": ("CUdeviceptr *", "size_t"),
    "cuMemFree_v2": ("CUdeviceptr",),
    "cuMemHostAlloc": ("void **", "size_t", "unsigned int"),
    "cuMemFreeHost": ("void *",),
    "cuMemcpyHtoDAsync_v2": ("CUdeviceptr", "const void *", "size_t", "CUstream"),
    "cuMemcpyDtoHAsync_v2": ("void *", "CUdeviceptr", "size_t", "CUstream"),
}
"""As cuda.h has them; test_trt.py compares them with the header where it is installed."""

INVALID, OUT_OF_MEMORY, UNKNOWN = 1, 2, 999
ERRORS = {INVALID: b"CUDA_ERROR_INVALID_VALUE", OUT_OF_MEMORY: b"CUDA_ERROR_OUT_OF_MEMORY"}


def _failing(implementation: Callable[..., int]) -> Callable[..., int]:
    """Exceptions cannot leave a C function: they become an error that has no name."""

    def function(*args: Any) -> int:
        try:
            return implementation(*args)
        except Exception:
            return UNKNOWN

    return function


class Cuda:
    """The driver's functions, called through C, over ordinary memory.

    Attributes:
        memory: blocks by address, of the GPU and of the host; empty when everything was freed.
        streams: what waits in each stream.
        limit: bytes that one block may have.
    """

    def __init__(self, name: str = "Imaginary GPU") -> None:
        self.name, self.limit = name.encode(), 1 << 40
        self.memory: dict[int, Any] = {}
        self.streams: dict[int, list[Callable[[], None]]] = {}
        self._handles = itertools.count(1 << 40)  # wider than an int of C
        implementations = {
            "cuInit": lambda flags: 0 if flags == 0 else INVALID,
            "cuGetErrorName": self._error_name,
            "cuDeviceGet": _give,
            "cuDeviceGetName": lambda name, length, device: _write(name, self.name, length),
            "cuDevicePrimaryCtxRetain": lambda context, device: _give(context, next(self._handles)),
            "cuCtxSetCurrent": lambda context: 0 if context else INVALID,
            "cuStreamCreate": self._stream,
            "cuStreamSynchronize": self._synchronize,
            "cuStreamDestroy_v2": self._destroy,
            "cuMemAlloc_v2": self._allocate,
            "cuMemHostAlloc": lambda address, size, flags: self._allocate(address, size),
            "cuMemFree_v2": self._free,
            "cuMemFreeHost": self._free,
            "cuMemcpyHtoDAsync_v2": self._copy,
            "cuMemcpyDtoHAsync_v2": self._copy,
        }
        for function, types in PROTOTYPES.items():
            # a callback would be given a copy of a string instead of the place to write it
            seen = [ctypes.c_void_p if each == "char *" else C_TYPES[each] for each in types]
            made = ctypes.CFUNCTYPE(ctypes.c_int, *seen)(_failing(implementations[function]))
            made.__name__ = function
            setattr(self, function, made)

    def _error_name(self, result: int, name: Any) -> int:
        return _give(name, ERRORS[result])

    def _stream(self, stream: Any, flags: int) -> int:
        handle = next(self._handles)
        self.streams[handle] = []
        return _give(stream, handle)

    def _synchronize(self, stream: int) -> int:
        while self.streams[stream]:
            self.streams[stream].pop(0)()
        return 0

    def _destroy(self, stream: int) -> int:
        return INVALID if self.streams.pop(stream) else 0

    def _allocate(self, address: Any, size: int) -> int:
        if size > self.limit:
            return OUT_OF_MEMORY
        block = ctypes.create_string_buffer(b"\xff" * size, size)  # not a number, as float32
        self.memory[ctypes.addressof(block)] = block
        return _give(address, ctypes.addressof(block))

    def _free(self, address: int) -> int:
        del self.memory[address]
        return 0

    def _copy(self, target: int, source: int, size: int, stream: int) -> int:
        if len(self.memory[target]) != size or len(self.memory[source]) != size:
            return INVALID
        self.streams[stream].append(lambda: ctypes.memmove(target, source, size) and None)
        return 0


def _give(place: Any, value: Any) -> int:
    place[0] = value
    return 0


def _write(place: int, text: bytes, length: int) -> int:
    ctypes.memmove(place, text + b"\0", min(length, len(text) + 1))
    return 0


def fits(value: Any, kind: str, module: ModuleType) -> bool:
    """Whether pybind11 would take the value for an argument of that type."""
    if kind in ("int", "str", "bool", "tuple", "list"):
        return type(value).__name__ == kind
    if kind == "buffer":
        return isinstance(value, (bytes, bytearray, memoryview))
    if kind == "Dims":
        return isinstance(value, (tuple, list)) and all(type(each) is int for each in value)
    if kind == "Severity":
        return isinstance(value, module.ILogger.Severity)
    return hasattr(module, kind) and isinstance(value, getattr(module, kind))


def check(where: str, overloads: list[list[str]], args: tuple[Any, ...], kwargs: dict[str, Any], module: ModuleType) -> None:
    """Raises TypeError where no overload takes the arguments."""
    for overload in overloads:
        given = dict(kwargs)
        names = [argument.split(":")[0] for argument in overload]
        if len(args) > len(names) or set(names[: len(args)]) & given.keys():
            continue
        given |= dict(zip(names, args, strict=False))
        kinds = {name: argument.split(":")[1] for name, argument in zip(names, overload, strict=True)}
        needed = {name for name, kind in kinds.items() if not kind.endswith("=")}
        fit = all(fits(each, kinds[name].rstrip("="), module) for name, each in given.items() if name in kinds)
        if fit and needed <= given.keys() <= kinds.keys():
            return
    raise TypeError(f"{where}{args}{kwargs}: incompatible arguments; the bindings take {overloads}")


def guarded(behaviour: type, members: dict[str, Any], module: ModuleType) -> type:
    """A class that has what the bindings have of it, and nothing else but names with an underscore."""
    name = behaviour.__name__

    def getattribute(self: Any, attribute: str) -> Any:
        if attribute.startswith("_") or type(self) is not cls:  # a logger is derived from, and may have what it likes
            return object.__getattribute__(self, attribute)
        if attribute not in members:
            raise AttributeError(f"TensorRT {module.__version__} has no {name}.{attribute}")
        value = object.__getattribute__(self, attribute)
        if isinstance(members[attribute], str):
            return value

        def method(*args: Any, **kwargs: Any) -> Any:
            check(f"{name}.{attribute}", members[attribute], args, kwargs, module)
            return value(*args, **kwargs)

        return method

    def setattribute(self: Any, attribute: str, value: Any) -> None:
        if not attribute.startswith("_") and type(self) is cls and members.get(attribute) != "read and write":
            raise AttributeError(f"TensorRT {module.__version__} does not let {name}.{attribute} be set")
        object.__setattr__(self, attribute, value)

    cls = type(name, (behaviour,), {"__getattribute__": getattribute, "__setattr__": setattribute, "_module": module})
    if "__init__" in members:

        def init(self: Any, *args: Any, **kwargs: Any) -> None:
            check(name, members["__init__"], args, kwargs, module)
            behaviour.__init__(self, *args, **kwargs)  # type: ignore[misc]

        cls.__init__ = init  # type: ignore[misc]
    return cls


def fake_tensorrt(version: str, cuda: Cuda, gpu: str = "Imaginary GPU") -> ModuleType:
    """The stand-in as a module.

    Args:
        version: one of API.
        cuda: the driver in whose streams it computes.
        gpu: what timing caches belong to.
    """
    module: Any = ModuleType("tensorrt")
    module.__version__ = version
    module._cuda, module._gpu = cuda, gpu
    module._timed = []  # layers whose kernels were timed by builders, for want of a cache
    module._built = []  # configurations that engines were built with
    for path, members in API[version].items():
        if path == "ILogger.Severity":
            module.ILogger.Severity = enum.Enum("Severity", members)
        elif path in BEHAVIOURS:
            setattr(module, path, guarded(BEHAVIOURS[path], members, module))
        else:
            setattr(module, path, enum.Enum(path, members, type=_Number))
    return module


class _Number:
    """pybind11's enumerations become an int when asked to."""

    def __int__(self) -> int:
        return int(self.value)  # type: ignore[attr-defined]


class ILogger:
    def __init__(self) -> None:
        self._ready = True

    def log(self, severity: Any, msg: str) -> None:
        raise NotImplementedError


class Builder:
    def __init__(self, logger: Any) -> None:
        assert logger._ready, "pybind11 insists on ILogger.__init__"
        self._logger = logger

    def create_network(self, flags: int = 0) -> Any:
        kinds = self._module.NetworkDefinitionCreationFlag.__members__
        known = {name: bool(flags >> int(kind) & 1) for name, kind in kinds.items()}
        if "STRONGLY_TYPED" not in known:
            assert known["EXPLICIT_BATCH"], "ONNX networks have explicit batches"
        typed = known.get("STRONGLY_TYPED", False) or self._module.__version__.startswith("11.")
        return self._module.INetworkDefinition(typed)

    def create_builder_config(self) -> Any:
        return self._module.IBuilderConfig()

    def create_optimization_profile(self) -> Any:
        return self._module.IOptimizationProfile()

    def build_serialized_network(self, network: Any, config: Any) -> memoryview | None:
        try:
            return memoryview(self._build(network, config))
        except ValueError as error:
            self._logger.log(self._module.ILogger.Severity.WARNING, "something harmless")
            self._logger.log(self._module.ILogger.Severity.ERROR, str(error))
            return None

    def _build(self, network: Any, config: Any) -> bytes:
        model = network._parser()._model  # the weights: fails where the parser is gone
        flags = {flag.name for flag in config._flags} - {"TF32"}
        quantized = any(node.op_type == "QuantizeLinear" for node in model.graph.node)
        if network._typed and flags:
            raise ValueError(f"a strongly typed network takes no flags {flags}")
        if not network._typed and quantized and "INT8" not in flags:
            raise ValueError("Q/DQ layers need the INT8 flag")
        opened = [tensor for tensor in network._inputs if -1 in tensor.shape]
        for tensor in opened:
            if not any(tensor.name in profile._shapes for profile in config._profiles):
                raise ValueError(f"input {tensor.name} has an open shape and no optimization profile")
        shapes = {tensor.name: tensor.shape for tensor in network._inputs}
        shapes |= {name: shape for profile in config._profiles for name, shape in profile._shapes.items()}
        timings = config._cache._timings if config._cache else set()
        for node in model.graph.node:
            kernel = f"{node.op_type} {sorted(shapes.values())} {sorted(flags)}"
            if kernel not in timings:
                self._module._timed.append(kernel)
                timings.add(kernel)
        self._module._built.append({"flags": {flag.name for flag in config._flags}, "typed": network._typed, "shapes": shapes})
        head = {"shapes": shapes, "open": bool(opened), "verbosity": config.profiling_verbosity.name}
        return json.dumps(head).encode() + b"\0" + model.SerializeToString()


class INetworkDefinition:
    def __init__(self, typed: bool) -> None:
        self._typed = typed
        self._inputs: list[Any] = []
        self._layers: list[Any] = []
        self._parser: Any = None

    num_inputs = property(lambda self: len(self._inputs))
    num_layers = property(lambda self: len(self._layers))

    def get_input(self, index: int) -> Any:
        return self._inputs[index]

    def get_layer(self, index: int) -> Any:
        return self._layers[index]


class ITensor:
    def __init__(self, name: str, shape: tuple[int, ...], element: int) -> None:
        self._name, self._shape, self._element = name, shape, element

    name = property(lambda self: self._name)
    shape = property(lambda self: self._shape)

    @property
    def dtype(self) -> Any:
        kinds = {onnx.TensorProto.FLOAT: "FLOAT", onnx.TensorProto.FLOAT16: "HALF"}
        return self._module.DataType[kinds.get(self._element, "INT32")]


class ILayer:
    def __init__(self, node: Any, output: Any) -> None:
        self._node, self._output = node, output

    @property
    def type(self) -> Any:
        return self._module.LayerType["QUANTIZE" if self._node.op_type == "QuantizeLinear" else "CONVOLUTION"]

    def get_output(self, index: int) -> Any:
        return self._output if index == 0 else None


class ParserError:
    def __init__(self, text: str) -> None:
        self._text = text

    def desc(self) -> str:
        return self._text


class OnnxParser:
    def __init__(self, network: Any, logger: Any) -> None:
        self._network, self._errors = network, []
        network._parser = weakref.ref(self)

    num_errors = property(lambda self: len(self._errors))

    def get_error(self, index: int) -> Any:
        return self._errors[index]

    def parse(self, model: Any, path: str | None = None) -> bool:
        try:
            self._model = onnx.load_from_string(bytes(model))
            inferred = onnx.shape_inference.infer_shapes(self._model, strict_mode=True)
        except Exception as error:
            self._errors.append(self._module.ParserError(f"Failed to parse the model: {type(error).__name__}"))
            return False
        values = {value.name: value for value in (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output)}
        constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in inferred.graph.initializer}
        for node in inferred.graph.node:
            for name in node.input[2:] if node.op_type in ("QuantizeLinear", "DequantizeLinear") else ():
                if constants[name].any() or constants[name].dtype != np.int8:
                    self._errors.append(self._module.ParserError("only symmetric int8 quantization is supported"))
                    return False
            self._network._layers.append(self._module.ILayer(node, self._tensor(values.get(node.output[0]), node.output[0])))
        self._network._inputs = [self._tensor(value, value.name) for value in inferred.graph.input]
        return True

    def _tensor(self, value: Any, name: str) -> Any:
        if value is None:
            return None
        sizes = value.type.tensor_type.shape.dim
        shape = tuple(size.dim_value if size.HasField("dim_value") else -1 for size in sizes)
        return self._module.ITensor(name, shape, value.type.tensor_type.elem_type)


class IOptimizationProfile:
    def __init__(self) -> None:
        self._shapes: dict[str, tuple[int, ...]] = {}

    def set_shape(self, input: str, min: tuple[int, ...], opt: tuple[int, ...], max: tuple[int, ...]) -> None:
        assert min == opt == max, "the engine is for one shape"
        self._shapes[input] = opt


class ITimingCache:
    def __init__(self, owner: str, timings: set[str]) -> None:
        self._owner, self._timings = owner, timings

    def serialize(self) -> memoryview:
        return memoryview(json.dumps([self._owner, sorted(self._timings)]).encode())


class IBuilderConfig:
    def __init__(self) -> None:
        self._flags = {self._module.BuilderFlag.TF32}  # on by default
        self._profiles: list[Any] = []
        self._cache: Any = None
        self._verbosity = self._module.ProfilingVerbosity.LAYER_NAMES_ONLY

    @property
    def profiling_verbosity(self) -> Any:
        return self._verbosity

    @profiling_verbosity.setter
    def profiling_verbosity(self, verbosity: Any) -> None:
        self._verbosity = verbosity

    def set_flag(self, flag: Any) -> None:
        self._flags.add(flag)

    def clear_flag(self, flag: Any) -> None:
        self._flags.discard(flag)

    def add_optimization_profile(self, profile: Any) -> int:
        self._profiles.append(profile)
        return len(self._profiles) - 1

    def _owner(self) -> str:
        return f"{self._module._gpu}, {self._module.__version__}"

    def create_timing_cache(self, serialized_timing_cache: Any) -> Any:
        if not serialized_timing_cache:
            return self._module.ITimingCache(self._owner(), set())
        try:
            owner, timings = json.loads(bytes(serialized_timing_cache))
        except ValueError:
            return None
        return self._module.ITimingCache(owner, set(timings))

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        if cache._owner != self._owner() and not ignore_mismatch:
            return False
        self._cache = cache
        return True

    def get_timing_cache(self) -> Any:
        return self._cache


class Runtime:
    def __init__(self, logger: Any) -> None:
        self._logger = logger

    def deserialize_cuda_engine(self, serialized_engine: Any) -> Any:
        head, _, model = bytes(serialized_engine).partition(b"\0")
        return self._module.ICudaEngine(json.loads(head), model)


class ICudaEngine:
    def __init__(self, head: dict[str, Any], model: bytes) -> None:
        self._head, self._bytes = head, model
        self._graph = onnx.load_from_string(model).graph
        self._tensors = [*self._graph.input, *self._graph.output]

    num_io_tensors = property(lambda self: len(self._tensors))

    def get_tensor_name(self, index: int) -> str:
        return str(self._tensors[index].name)

    def get_tensor_mode(self, name: str) -> Any:
        inputs = {tensor.name for tensor in self._graph.input}
        return self._module.TensorIOMode.INPUT if name in inputs else self._module.TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> Any:
        found = next(tensor for tensor in self._tensors if tensor.name == name)
        single = found.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
        return self._module.DataType.FLOAT if single else self._module.DataType.HALF

    def create_execution_context(self) -> Any:
        return self._module.IExecutionContext(self)

    def create_engine_inspector(self) -> Any:
        return self._module.EngineInspector(self)


class IExecutionContext:
    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._native = onnxruntime.InferenceSession(engine._bytes, providers=["CPUExecutionProvider"])
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._shapes[name] = tuple(shape)
        return tuple(shape) == tuple(self._engine._head["shapes"][name])

    def get_tensor_shape(self, name: str) -> list[int]:
        if name in self._shapes:
            return list(self._shapes[name])
        zeros = {each: np.zeros(shape, np.float32) for each, shape in self._shapes.items()}
        return list(self._native.run([name], zeros)[0].shape)

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._addresses[name] = memory
        return memory in self._module._cuda.memory

    def execute_async_v3(self, stream_handle: int) -> bool:
        if self._addresses.keys() != {tensor.name for tensor in self._engine._tensors}:
            return False
        self._module._cuda.streams[stream_handle].append(self._compute)
        return True

    def _view(self, name: str) -> np.ndarray[Any, Any]:
        block = self._module._cuda.memory[self._addresses[name]]
        return np.frombuffer(block, np.float32).reshape(self.get_tensor_shape(name))

    def _compute(self) -> None:
        inputs = {name: self._view(name).copy() for name in self._shapes}
        outputs = [tensor.name for tensor in self._engine._graph.output]
        for name, value in zip(outputs, self._native.run(outputs, inputs), strict=True):
            self._view(name)[...] = value


class EngineInspector:
    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._context: Any = None

    @property
    def execution_context(self) -> Any:
        return self._context

    @execution_context.setter
    def execution_context(self, context: Any) -> None:
        self._context = context

    def get_engine_information(self, format: Any) -> str:
        return json.dumps({"Layers": list(self._layers())})

    def _layers(self) -> Iterator[Any]:
        known = self._context is not None or not self._engine._head["open"]
        for node in self._engine._graph.node:
            if self._engine._head["verbosity"] != "DETAILED":
                yield node.name
                continue
            if self._module.__version__.startswith("11."):
                output = {"Name": node.output[0], "DataType": "Float", "Format": "Row major linear FP32 format (kLINEAR)"}
            else:
                output = {"Name": node.output[0], "Format/Datatype": "Row major linear FP32"}
            if not known:
                output = {key: "N/A due to dynamic shapes" if "Format" in key else value for key, value in output.items()}
            layer = {"Name": node.name, "LayerType": node.op_type, "Outputs": [output]}
            yield layer | ({"TacticName": "sm00_fprop"} if node.op_type == "Conv" else {})


BEHAVIOURS = {
    each.__name__: each
    for each in (
        Builder,
        OnnxParser,
        ParserError,
        INetworkDefinition,
        ITensor,
        ILayer,
        IBuilderConfig,
        ITimingCache,
        IOptimizationProfile,
        Runtime,
        ICudaEngine,
        IExecutionContext,
        EngineInspector,
        ILogger,
    )
}
