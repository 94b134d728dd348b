"""TensorRT: convert a torch module to ONNX, build an engine for one shape on the GPU at hand, run it once.

Unverified on hardware: no GPU with TensorRT was at hand. Checked are the calls, against the signatures in NVIDIA's own bindings
of TensorRT 8.6, 10.0, 10.16 and 11.4, and the flow, with a stand-in that computes the file elsewhere (tests/runtimes/test_trt.py).

Not named after the library: on a device this file lies beside the runner and must not hide what it imports.
The functions but `convert` and `read_inputs` need only numpy and tensorrt, and run on Python 3.8. GPU memory comes from the CUDA
driver by ctypes: `libcuda.so.1` is part of every NVIDIA driver and JetPack under this one name, while a plain `pip install
tensorrt` has no Python package for CUDA, and the name of the runtime library changes with its version.

What the timing of a run holds: the input's copy into page-locked memory and to the GPU, the network, the output's copy back, and
the wait for it. That is what an application sees, as with the runtimes that compute on the CPU; `trtexec` calls it host latency.
"""

from __future__ import annotations

import ctypes
import json
import os
import tempfile
import weakref
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import torch

NAME = "tensorrt"
SUFFIX = ".onnx"
REQUIREMENT = "tensorrt"
PRECISIONS: tuple[str, ...] = ("fp32", "fp16", "int8")
DELEGATES: tuple[str, ...] = ("gpu",)
TIMING_CACHE = "tensorrt.timing"
"""File of measured kernels, beside the models: later builds of the same layers are faster and choose the same kernels."""
QUANTIZED = ("Conv", "Gemm")
"""Their inputs and weights become int8, their outputs do not: what follows fuses into the convolution, as NVIDIA advises."""

_POINTER = ctypes.POINTER(ctypes.c_void_p)
_ADDRESS, _STREAM, _SIZE = ctypes.c_uint64, ctypes.c_void_p, ctypes.c_size_t
_PROTOTYPES = {
    "cuInit": (ctypes.c_uint,),
    "cuGetErrorName": (ctypes.c_int, ctypes.POINTER(ctypes.c_char_p)),
    "cuDeviceGet": (ctypes.POINTER(ctypes.c_int), ctypes.c_int),
    "cuDeviceGetName": (ctypes.c_char_p, ctypes.c_int, ctypes.c_int),
    "cuDevicePrimaryCtxRetain": (_POINTER, ctypes.c_int),
    "cuCtxSetCurrent": (ctypes.c_void_p,),
    "cuStreamCreate": (_POINTER, ctypes.c_uint),
    "cuStreamSynchronize": (_STREAM,),
    "cuStreamDestroy_v2": (_STREAM,),
    "cuMemAlloc_v2": (ctypes.POINTER(_ADDRESS), _SIZE),
    "cuMemFree_v2": (_ADDRESS,),
    "cuMemHostAlloc": (_POINTER, _SIZE, ctypes.c_uint),
    "cuMemFreeHost": (ctypes.c_void_p,),
    "cuMemcpyHtoDAsync_v2": (_ADDRESS, ctypes.c_void_p, _SIZE, _STREAM),
    "cuMemcpyDtoHAsync_v2": (ctypes.c_void_p, _ADDRESS, _SIZE, _STREAM),
}
"""Of the CUDA driver API, as in cuda.h since CUDA 4; every function returns a CUresult."""


@dataclass(frozen=True)
class Buffer:
    """One input or output: page-locked memory, as an array and as an address, and its counterpart on the GPU."""

    array: np.ndarray[Any, Any]
    host: int
    device: int


@dataclass(frozen=True)
class Session:
    """An engine ready to run in the thread that loaded it, and its buffers; they are freed when it is forgotten."""

    engine: Any
    context: Any
    cuda: Any
    stream: int
    inputs: tuple[Buffer, ...]
    outputs: tuple[Buffer, ...]


def version() -> str:
    """Version of the installed library. Raises ImportError where there is none."""
    import tensorrt

    return str(tensorrt.__version__)


def details(precision: str, delegate: str) -> dict[str, str]:
    """What else has to be known to compare numbers: version, GPU and precision."""
    return {"runtime": NAME, "runtime_version": version(), "provider": _device_name(_driver()), "precision": precision}


def convert(
    module: torch.nn.Module,
    example: torch.Tensor,
    path: Path,
    *,
    precision: str = "fp32",
    dynamic_size: bool,
    calibration: Sequence[torch.Tensor] | None = None,
) -> None:
    """Writes an ONNX file; `load` makes the engine of it, which fits only the GPU and the TensorRT that built it.

    An existing file is replaced atomically. The precision is the file's own, for TensorRT 11 takes no other word for it.
    fp16: every weight and activation between float32 input and output. int8: symmetric Q/DQ nodes at the inputs and weights
    (per channel) of convolutions and linear layers, because TensorRT 11 has no calibrators any more, while every version and
    ONNX Runtime read these nodes; the rest is float32.

    Args:
        module: takes and gives one tensor; exported in evaluation mode, left in the mode it was in.
        example: an input, (1, channels, height, width) or (1, features). The batch size stays 1.
        path: of the file to write.
        precision: one of PRECISIONS.
        dynamic_size: height and width may differ from the example's.
        calibration: inputs that quantisation learns its ranges from; the example alone by default.
    """
    from natdeploy.runtimes import ort

    if precision not in PRECISIONS:
        raise ValueError(f"TensorRT computes in {', '.join(PRECISIONS)}, not in {precision}")
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        written = Path(folder) / "fp32.onnx"
        ort.convert(module, example, written, dynamic_size=dynamic_size)
        _join_copies(written)
        if precision == "fp16":
            ort.halve(written)
        elif precision == "int8":
            written = _quantize(written, [{ort.INPUT: each.cpu().numpy()} for each in calibration or (example,)])
        written.replace(path)


def _join_copies(path: Path) -> None:
    """Of equal weights the exporter stores one and copies it by Identity nodes, behind which TensorRT sees no weight any more."""
    import onnx

    model = onnx.load(path)
    stored = {tensor.name for tensor in model.graph.initializer}
    copies = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "Identity" and node.input[0] in stored}
    nodes = [node for node in model.graph.node if node.output[0] not in copies]
    for node in nodes:
        node.input[:] = [copies.get(name, name) for name in node.input]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, path)


def _quantize(path: Path, samples: Sequence[dict[str, np.ndarray[Any, Any]]]) -> Path:
    """The file with Q/DQ nodes, beside it."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quant_pre_process, quantize_static

    class Samples(CalibrationDataReader):  # type: ignore[misc]
        left = iter(samples)

        def get_next(self) -> dict[str, np.ndarray[Any, Any]] | None:
            return next(self.left, None)

    prepared, quantized = path.with_name("prepared.onnx"), path.with_name("int8.onnx")
    quant_pre_process(path, prepared, skip_optimization=True, skip_symbolic_shape=True)
    quantize_static(
        prepared,
        quantized,
        Samples(),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=list(QUANTIZED),
        per_channel=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        extra_options={
            "ActivationSymmetric": True,  # a zero point other than 0 is refused
            "WeightSymmetric": True,
            "AddQDQPairToWeight": True,
            "QuantizeBias": False,  # int32 is no type of a quantised tensor there
            "OpTypesToExcludeOutputQuantization": list(QUANTIZED),
        },
    )
    return quantized


def companions(path: Path) -> tuple[Path, ...]:
    """None: an ONNX file holds its weights."""
    return ()


def read_inputs(path: Path) -> list[tuple[str, tuple[int | None, ...] | None, str]]:
    """Name, sizes and numpy's name of the type of every input of an ONNX file; an open size is None, and so is an open rank.

    Raises:
        ValueError: it is no such file, takes something else than tensors, or keeps its weights elsewhere.
    """
    from natdeploy.runtimes import ort

    return ort.read_inputs(path)


def load(path: str | Path, shape: Sequence[int] | None, threads: int, precision: str, delegate: str) -> Session:
    """Builds an engine for inputs of exactly that shape, as `trtexec --shapes` does, and gives it memory.

    Takes seconds to minutes, less with the timing cache that it leaves beside the file. CPU threads play no part in a run.
    Without a shape, the file fixes those of all inputs.

    Raises:
        RuntimeError: no GPU, or TensorRT refuses the file; the message holds what it said.
        ValueError: the file is of another precision or of another fixed shape.
    """
    import numpy as np
    import tensorrt as trt

    cuda = _driver()
    log = _logger(trt)
    plan = _build(trt, Path(path), None if shape is None else tuple(shape), precision, log)
    engine = _made(trt.Runtime(log).deserialize_cuda_engine(plan), "engine", log)
    context = _made(engine.create_execution_context(), "execution context", log)
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
    if shape is not None:
        for name in inputs:
            _made(context.set_input_shape(name, tuple(shape)), f"shape {tuple(shape)} of {name}", log)
    with ExitStack() as stack:
        stream = ctypes.c_void_p()
        cuda.cuStreamCreate(ctypes.byref(stream), 1)  # 1: does not wait for the default stream
        stack.callback(cuda.cuStreamDestroy_v2, stream)
        buffers = {}
        for name in names:
            if engine.get_tensor_dtype(name) != trt.DataType.FLOAT:
                raise ValueError(f"{name} is {engine.get_tensor_dtype(name)}; inputs and outputs have to be float32")
            sizes = tuple(context.get_tensor_shape(name))
            count = int(np.prod(sizes))
            host, device = ctypes.c_void_p(), _ADDRESS()
            cuda.cuMemHostAlloc(ctypes.byref(host), 4 * count, 0)
            stack.callback(cuda.cuMemFreeHost, host)
            cuda.cuMemAlloc_v2(ctypes.byref(device), 4 * count)
            stack.callback(cuda.cuMemFree_v2, device)
            array = np.ctypeslib.as_array((ctypes.c_float * count).from_address(host.value or 0)).reshape(sizes)
            buffers[name] = Buffer(array, host.value or 0, device.value)
            _made(context.set_tensor_address(name, device.value), f"address of {name}", log)
        outputs = [buffers[name] for name in names if name not in inputs]
        session = Session(engine, context, cuda, stream.value or 0, tuple(buffers[name] for name in inputs), tuple(outputs))
        weakref.finalize(session, stack.pop_all().close).atexit = False  # the process takes its memory along
    return session


def run(session: Session, inputs: Sequence[np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
    """Outputs of one run, the copies to and from the GPU included.

    Args:
        session: from `load`.
        inputs: one array an input, float32.
    """
    cuda, stream = session.cuda, session.stream
    for buffer, array in zip(session.inputs, inputs):  # noqa: B905 (Python 3.8 has no `strict`)
        if array.shape != buffer.array.shape:
            raise ValueError(f"the engine was built for {buffer.array.shape}, not for {array.shape}")
        buffer.array[...] = array
        cuda.cuMemcpyHtoDAsync_v2(buffer.device, buffer.host, buffer.array.nbytes, stream)
    if not session.context.execute_async_v3(stream):
        raise RuntimeError("TensorRT did not start the run")
    for buffer in session.outputs:
        cuda.cuMemcpyDtoHAsync_v2(buffer.host, buffer.device, buffer.array.nbytes, stream)
    cuda.cuStreamSynchronize(stream)
    return [buffer.array.copy() for buffer in session.outputs]


queue = None
"""The library has none of its own: several requests at once are several sessions in threads."""

inside_ms = None
"""The library counts no run itself."""


def placement(session: Session) -> list[tuple[str, str, int]]:
    """Kind of layer, type of its output and kernel, and how many layers of the engine are so, sorted."""
    import tensorrt as trt

    inspector = session.engine.create_engine_inspector()
    inspector.execution_context = session.context  # the engine alone does not know what a shape that was left open became
    layers = json.loads(inspector.get_engine_information(trt.LayerInformationFormat.JSON))["Layers"]
    counted = Counter((layer.get("LayerType", ""), _kernel(layer)) for layer in layers)
    return sorted((kind, kernel, count) for (kind, kernel), count in counted.items())


def _kernel(layer: dict[str, Any]) -> str:
    """Type of a layer's output, and the tactic. TensorRT 11 tells data type and format apart, earlier ones have one field."""
    output: dict[str, Any] = next(iter(layer.get("Outputs", ())), {})
    kind = next((output[key] for key in ("DataType", "Datatype", "Format/Datatype") if key in output), "")
    return f"{kind} {layer.get('TacticName', '')}".strip()


def _build(trt: Any, path: Path, shape: tuple[int, ...] | None, precision: str, log: Any) -> Any:
    """Serialised engine of a file, with the timing cache beside it."""
    builder = trt.Builder(log)
    # From TensorRT 10 on a network can be built as the file types it; from 11 on there is nothing else.
    kinds = trt.NetworkDefinitionCreationFlag
    typed = hasattr(kinds, "STRONGLY_TYPED")
    network = builder.create_network(1 << int(kinds.STRONGLY_TYPED if typed else kinds.EXPLICIT_BATCH))
    parser = trt.OnnxParser(network, log)  # owns the weights: lives until the engine is built
    if not parser.parse(path.read_bytes()):
        errors = [parser.get_error(i).desc() for i in range(parser.num_errors)]
        raise RuntimeError(f"TensorRT cannot read the file: {'; '.join(errors)}")
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # on by default, and not what is called fp32
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # for `placement`
    if typed:
        found = _file_precision(trt, network)
        if found != precision:
            raise ValueError(f"the file is {found}, not {precision}; convert it again")
    elif precision != "fp32":
        config.set_flag(trt.BuilderFlag.FP16 if precision == "fp16" else trt.BuilderFlag.INT8)
    profile = builder.create_optimization_profile()
    tensors = [network.get_input(i) for i in range(network.num_inputs)]
    for tensor in tensors if shape is not None else ():
        if -1 in tuple(tensor.shape):
            profile.set_shape(tensor.name, shape, shape, shape)
        elif tuple(tensor.shape) != shape:
            raise ValueError(f"the file is fixed at {tuple(tensor.shape)}, not {shape}; convert it with dynamic_size")
    if any(-1 in tuple(tensor.shape) for tensor in tensors):
        config.add_optimization_profile(profile)
    cache = path.with_name(TIMING_CACHE)
    known = config.create_timing_cache(cache.read_bytes() if cache.is_file() else b"")
    if known is None or not config.set_timing_cache(known, ignore_mismatch=False):  # damaged, or of another GPU or version
        known = config.create_timing_cache(b"")
        config.set_timing_cache(known, ignore_mismatch=False)
    plan = _made(builder.build_serialized_network(network, config), "engine", log)
    temporary = cache.with_name(f".{cache.name}.{os.getpid()}")
    temporary.write_bytes(config.get_timing_cache().serialize())
    temporary.replace(cache)
    return plan


def _file_precision(trt: Any, network: Any) -> str:
    """What a typed network computes in."""
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    if any(layer.type == trt.LayerType.QUANTIZE for layer in layers):
        return "int8"
    outputs = [layer.get_output(0) for layer in layers]
    return "fp16" if any(output is not None and output.dtype == trt.DataType.HALF for output in outputs) else "fp32"


def _logger(trt: Any) -> Any:
    """Keeps TensorRT's complaints, which it gives to a logger instead of raising them."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.complaints: list[str] = []

        def log(self, severity: Any, msg: str) -> None:
            if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
                self.complaints.append(msg)

    return Log()


def _made(thing: Any, what: str, log: Any) -> Any:
    """The thing, unless TensorRT gave None or False for it."""
    if thing is None or thing is False:
        raise RuntimeError(f"TensorRT made no {what}: {'; '.join(log.complaints) or 'it did not say why'}")
    return thing


def _driver() -> Any:
    """The CUDA driver, with the first GPU's primary context, the one TensorRT computes in, current in this thread.

    Raises:
        RuntimeError: there is no driver or no GPU, and by any later call that fails.
    """
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise RuntimeError(f"there is no NVIDIA driver here ({error})") from error

    def check(result: int, function: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        if result != 0:
            name = ctypes.c_char_p()
            cuda.cuGetErrorName(result, ctypes.byref(name))
            raise RuntimeError(f"{function.__name__} failed: {(name.value or b'CUDA error %d' % result).decode()}")
        return arguments

    for name, argtypes in _PROTOTYPES.items():
        function = getattr(cuda, name)
        function.argtypes, function.restype = argtypes, ctypes.c_int
        if name != "cuGetErrorName":
            function.errcheck = check
    device, context = ctypes.c_int(), ctypes.c_void_p()
    cuda.cuInit(0)
    cuda.cuDeviceGet(ctypes.byref(device), 0)
    cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device)
    cuda.cuCtxSetCurrent(context)
    return cuda


def _device_name(cuda: Any) -> str:
    name = ctypes.create_string_buffer(256)
    cuda.cuDeviceGetName(name, len(name), 0)
    return name.value.decode()
