"""ONNX Runtime: convert a torch module, load a file, run it once.

Not named after the library: on a device this file lies beside the runner and must not hide what it imports.
The functions but `convert` and `read_inputs` need only numpy and onnxruntime, and run on Python 3.8.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import tempfile
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import torch

NAME = "onnxruntime"
SUFFIX = ".onnx"
REQUIREMENT = "onnxruntime"
PRECISIONS: tuple[str, ...] = ("fp32", "fp16", "int8")
DELEGATES: tuple[str, ...] = ("cpu", "cuda", "tensorrt")
PROVIDER = "CPUExecutionProvider"
_PROVIDERS: dict[str, tuple[tuple[str, dict[str, str]], ...]] = {
    "cpu": ((PROVIDER, {}),),
    # Without the option, GPUs multiply fp32 numbers with the mantissa of fp16.
    "cuda": (("CUDAExecutionProvider", {"use_tf32": "0"}), (PROVIDER, {})),
    "tensorrt": (("TensorrtExecutionProvider", {}), ("CUDAExecutionProvider", {"use_tf32": "0"}), (PROVIDER, {})),
}
"""In order of precedence: a provider leaves to the next what it cannot do."""
OPSET = 17
"""Read by every ONNX Runtime since 1.13, by OpenVINO and by TensorRT 8.6 and later."""
INPUT, OUTPUT = "input", "output"
EXACT_INT8 = ("session.x64quantprecision", "1")
"""Session option without which x86-64 processors that have no VNNI add two products of 8 bits in 16, which overflows."""


@dataclass(frozen=True)
class Int8:
    """How a file is quantised. The defaults are what lost least where it was measured (docs/quantisation.md).

    Attributes:
        ranges: of activations: `minmax`, the extremes over all images; `average`, a moving average of each image's; `percentile`
            and `entropy` cut off what is rare.
        percentile: of `percentile`.
        per_channel: of weights, else one scale a layer, which ruins depthwise layers.
        first: whether the first convolution is quantised.
        last: whether the classifier is.
        gates: whether squeeze-and-excitation is.
    """

    ranges: str = "minmax"
    percentile: float = 99.99
    per_channel: bool = True
    first: bool = True
    last: bool = True
    gates: bool = True


INT8 = Int8()


@dataclass(frozen=True)
class Session:
    """A loaded model.

    Attributes:
        native: of the library.
        inputs: their names, in the order in which `run` takes them.
        loaded: path, shape, threads and delegate that it was loaded with.
    """

    native: Any
    inputs: tuple[str, ...]
    loaded: tuple[Any, ...]


def version() -> str:
    """Version of the installed library. Raises ImportError where there is none."""
    import onnxruntime

    return str(onnxruntime.__version__)


def details(precision: str, delegate: str) -> dict[str, str]:
    """What else has to be known to compare numbers: version, execution provider and precision."""
    return {"runtime": NAME, "runtime_version": version(), "provider": _PROVIDERS[delegate][0][0], "precision": precision}


def convert(
    module: torch.nn.Module,
    example: torch.Tensor,
    path: Path,
    *,
    precision: str = "fp32",
    dynamic_size: bool,
    calibration: Sequence[torch.Tensor] | None = None,
    int8: Int8 = INT8,
) -> None:
    """Writes an ONNX file whose batch normalisation is folded into its convolutions. An existing file is replaced atomically.

    Args:
        module: takes and gives one tensor; exported in evaluation mode, left in the mode it was in.
        example: an input, (1, channels, height, width) or (1, features). The batch size stays 1.
        path: of the file to write.
        precision: of the file; `fp16` makes weights and activations float16 between float32 input and output; `int8` quantises
            weights, one scale a channel, and activations (QuantizeLinear, DequantizeLinear).
        dynamic_size: height and width may differ from the example's.
        calibration: inputs that quantisation learns its ranges from; the example alone by default.
        int8: how to quantise.
    """
    import torch

    axes = {INPUT: {2: "height", 3: "width"}} if dynamic_size and example.dim() == 4 else None
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with warnings.catch_warnings():
            # The TorchScript exporter is deprecated but ten times faster than its successor, and these graphs are plain.
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            # Said of the operators that compute an asymmetric padding, which are simplified below.
            warnings.filterwarnings("ignore", message="Constant folding - Only steps=1", category=UserWarning)
            torch.onnx.export(
                module,
                (example,),
                str(temporary),
                dynamo=False,
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_axes=axes,
            )
        if not dynamic_size:
            _simplify(temporary)
        if precision == "fp16":
            halve(temporary)
        elif precision == "int8":
            _quantise(temporary, [example] if calibration is None else calibration, int8)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _simplify(path: Path) -> None:
    """Rewrites a file of one size, in place, as ONNX Runtime's basic rewrites leave it: standard operators, right on every machine.

    The exporter writes an asymmetric padding as eight operators that compute its size, and not every runtime sees through them.
    """
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(path)
    options.intra_op_num_threads = 1
    options.log_severity_level = 3  # errors only
    onnxruntime.InferenceSession(path.read_bytes(), options, providers=[PROVIDER])
    model = onnx.load(path)
    # It also declares operator sets of its own, none of which is in use.
    used = {node.domain for node in model.graph.node}
    domains = [each for each in model.opset_import if each.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(domains)
    onnx.save(model, path)


def halve(path: Path) -> None:
    """Makes a file float16, in place, but for its input and output.

    On processors ONNX Runtime has few operators in float16; of the others it casts inputs and outputs and computes in float32.
    """
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    model = convert_float_to_float16(onnx.load(path), keep_io_types=True)
    OnnxModel.graph_topological_sort(model.graph)  # it appends the input's cast at the end
    onnx.save(model, path)


def _quantise(path: Path, calibration: Sequence[torch.Tensor], int8: Int8) -> None:
    """Quantises a file in place.

    Activations are unsigned, because ONNX Runtime has fewer signed 8-bit operators on CPUs: with them a MobileNetV2 takes twice as
    long, as long as in fp32.
    """
    from onnxruntime import quantization

    methods = quantization.CalibrationMethod
    method = {"percentile": methods.Percentile, "entropy": methods.Entropy}.get(int8.ranges, methods.MinMax)
    with tempfile.TemporaryDirectory() as folder:
        # Folds what stands between weights and convolutions, which would otherwise stay in fp32.
        prepared = Path(folder, "prepared.onnx")
        quantization.quant_pre_process(str(path), str(prepared), skip_symbolic_shape=True)
        with contextlib.redirect_stdout(io.StringIO()):  # some of the methods tell how they get on
            quantization.quantize_static(
                str(prepared),
                str(path),
                _Reader(calibration),
                quant_format=quantization.QuantFormat.QDQ,
                per_channel=int8.per_channel,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
                calibrate_method=method,
                nodes_to_exclude=_kept(prepared, int8),
                extra_options={"CalibMovingAverage": int8.ranges == "average", "CalibPercentile": int8.percentile},
            )


def _kept(path: Path, int8: Int8) -> list[str]:
    """Names of the nodes that are not to be quantised."""
    import onnx

    nodes = onnx.load(path).graph.node
    made_by = {name: node for node in nodes for name in node.output}
    weighted = [node.name for node in nodes if node.op_type in {"Conv", "Gemm", "MatMul"}]
    kept = weighted[: not int8.first] + weighted[len(weighted) - (not int8.last) :]
    gates = {node.output[0] for node in nodes if node.op_type == "HardSigmoid"}
    for node in nodes if not int8.gates else ():
        # A gate begins at the mean over a map and ends where the map is multiplied; h-swish multiplies by its own input.
        for gate in gates.intersection(node.input):
            chain, at = [node.name], made_by.get(gate)
            while at is not None and at.op_type != "GlobalAveragePool":
                chain.append(at.name)
                at = made_by.get(at.input[0])
            others = set(node.input) - {gate}
            if at is not None and made_by[gate].input[0] not in others:
                kept += [*chain, at.name]
    return kept


class _Reader:
    """Calibration inputs one by one, as the library asks for them."""

    def __init__(self, inputs: Sequence[torch.Tensor]) -> None:
        self._inputs = iter(inputs)

    def get_next(self) -> dict[str, Any] | None:
        tensor = next(self._inputs, None)
        return None if tensor is None else {INPUT: tensor.cpu().numpy()}


def companions(path: Path) -> tuple[Path, ...]:
    """None: an ONNX file holds its weights."""
    return ()


def read_inputs(path: Path) -> list[tuple[str, tuple[int | None, ...] | None, str]]:
    """Name, sizes and numpy's name of the type of every input of any ONNX file; an open size is None, and so is an open rank.

    Raises:
        ValueError: it is no such file, takes something else than tensors, or keeps its weights elsewhere.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        graph = onnx.load(path, load_external_data=False).graph
    except DecodeError as error:
        raise ValueError("it is no ONNX file") from error
    if not graph.node:
        raise ValueError("it holds no network")
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in graph.initializer):
        raise ValueError("it keeps its weights in another file; save it as one: onnx.save(onnx.load(old), new)")
    stored = {tensor.name for tensor in graph.initializer}
    found: list[tuple[str, tuple[int | None, ...] | None, str]] = []
    for value in graph.input:
        if value.name not in stored:
            tensor = value.type.tensor_type
            if not tensor.elem_type:
                raise ValueError(f"its input {value.name} is no tensor")
            sizes = tuple(size.dim_value if size.dim_value > 0 else None for size in tensor.shape.dim)
            kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
            found.append((value.name, sizes if tensor.HasField("shape") else None, kind))
    return found


def load(path: str | Path, shape: Sequence[int] | None, threads: int, precision: str, delegate: str) -> Session:
    """A session for inputs of exactly that shape, with exactly that many threads, which sleep between runs instead of spinning.

    Args:
        path: of the file.
        shape: of its one input; None where the file fixes those of several.
        threads: of an operator; operators run one after the other.
        precision: of the file.
        delegate: that computes.

    Raises:
        ImportError: the library was built without the provider.
        RuntimeError: the provider does not work here, or not in this precision; or the library's own.
    """
    if precision == "int8" and delegate != "cpu":
        raise RuntimeError(f"natdeploy's int8 files for ONNX Runtime are for CPUs, not for {delegate}; use fp32 there")
    native = _native(path, shape, threads, delegate)
    return Session(native, tuple(each.name for each in native.get_inputs()), (path, shape, threads, delegate))


def _native(path: str | Path, shape: Sequence[int] | None, threads: int, delegate: str, *, profile: str | None = None) -> Any:
    """The library's session; where `profile` is given, its runs are recorded in a file whose name begins so."""
    import onnxruntime

    wanted = _PROVIDERS[delegate][0][0]
    known = onnxruntime.get_available_providers()
    if wanted not in known:
        raise ImportError(f"the onnxruntime installed here has no {wanted}; install one that does: pip install onnxruntime-gpu")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3  # errors only
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.add_session_config_entry(*EXACT_INT8)
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = profile
    if shape is not None and len(shape) == 4:
        # The optimiser then knows every size, as in a file that was converted at this one.
        options.add_free_dimension_override_by_name("height", shape[2])
        options.add_free_dimension_override_by_name("width", shape[3])
    providers = [each for each in _PROVIDERS[delegate] if each[0] in known]
    # The library's own fallback would say on standard output that it uses the CPU, and use it.
    native = onnxruntime.InferenceSession(str(path), options, providers=providers, enable_fallback=0)
    if native.get_providers()[0] != wanted:
        raise RuntimeError(f"{wanted} cannot be used here, and ONNX Runtime took {native.get_providers()[0]} in its place")
    return native


def run(session: Session, inputs: Sequence[np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
    """Outputs of one run.

    Args:
        session: from `load`.
        inputs: one array an input, float32.
    """
    outputs: list[np.ndarray[Any, Any]] = session.native.run(None, dict(zip(session.inputs, inputs)))  # noqa: B905 (Python 3.8 has no `strict`)
    return outputs


queue = None
"""The library has none of its own: several requests at once are several sessions in threads."""

inside_ms = None
"""The library counts no run itself."""


def placement(session: Session) -> list[tuple[str, str, int]]:
    """Operator type, provider, and how many nodes are so, sorted.

    Taken from the profile of a run. What ONNX Runtime records of its assignment (`get_provider_graph_assignment_info`) is the graph
    before most of its nodes are fused, quantised or changed in layout.
    """
    import numpy as np

    _, shape, _, _ = session.loaded
    with tempfile.TemporaryDirectory() as folder:
        native = _native(*session.loaded, profile=str(Path(folder, "profile")))
        native.run(None, {name: np.zeros(shape, np.float32) for name in session.inputs})
        events = json.loads(Path(native.end_profiling()).read_text())
    facts = [event["args"] for event in events if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")]
    found = Counter((str(each["op_name"]), str(each["provider"])) for each in facts)
    return sorted((kind, where, count) for (kind, where), count in found.items())
