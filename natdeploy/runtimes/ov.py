"""OpenVINO: convert a torch module, load a file, run it once.

Not named after the library: on a device this file lies beside the runner and must not hide what it imports.
The functions but `convert` and `read_inputs` need only numpy and openvino, and run on Python 3.8.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import os
import sys
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    import torch

NAME = "openvino"
SUFFIX = ".xml"
REQUIREMENT = "openvino"
PRECISIONS: tuple[str, ...] = ("fp32", "fp16", "bf16", "int8")
DELEGATES: tuple[str, ...] = ("cpu", "gpu", "npu")
INPUT, OUTPUT = "input", "output"
_HINTS = {"fp32": "f32", "fp16": "f16", "bf16": "bf16", "int8": "f32"}
"""Precision of what is not quantised. Without a hint, CPUs that know bf16 compute in it and say nothing."""
FLOOR = 0.01
"""NNCF quantises no channel more finely than one whose largest weight is this share of the layer's largest."""


@dataclass(frozen=True)
class Int8:
    """How a model is quantised. The defaults are what lost least where it was measured (docs/quantisation.md).

    Attributes:
        ranges: of activations: `minmax`, the extremes over all images; `average`, the mean of each image's; `percentile`, that of
            each image's 99.99th; `histogram`, of least error; `default`, NNCF's.
        per_channel: of weights, else one scale a layer, which ruins depthwise layers.
        bias_correction: `none`, `fast` or `full`. The fast one makes layers worse whose channels are below FLOOR.
        uneven: whether depthwise convolutions are quantised that have channels below FLOOR. Such channels lose most of their
            bits: folded batch normalisation makes some a thousand times smaller than others.
        gates: whether squeeze-and-excitation's product is.
    """

    ranges: str = "minmax"
    per_channel: bool = True
    bias_correction: str = "fast"
    uneven: bool = False
    gates: bool = True


INT8 = Int8()


@dataclass
class Session:
    """A loaded model and the arrays that its tensors share their memory with.

    Attributes:
        native: the compiled model.
        request: that is run.
        tensor: class of the library's tensors.
        inputs: arrays that are read, in the order in which `run` takes them.
        outputs: arrays that are written.
        unheld: references to one of `outputs` while no caller has any.
    """

    native: Any
    request: Any
    tensor: Any
    inputs: list[Any]
    outputs: list[Any]
    unheld: int


def library() -> Any:
    """The library, whose import otherwise forks a process that reports it to its vendor, and waits for the network at exit.

    It does without the package that does so where that cannot be imported.
    """
    modules: dict[str, Any] = sys.modules
    modules.setdefault("openvino_telemetry", None)
    import openvino

    return openvino


def version() -> str:
    """Version of the installed library. Raises ImportError where there is none."""
    return str(library().__version__).split("-", 1)[0]  # the build follows


def details(precision: str, delegate: str) -> dict[str, str]:
    """What else has to be known to compare numbers: version, device and precision."""
    return {"runtime": NAME, "runtime_version": version(), "provider": delegate.upper(), "precision": precision}


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
    """Writes a file of OpenVINO's intermediate representation and its weights beside it. Existing files are replaced.

    Straight from torch: by way of an ONNX file, hard sigmoids end up in a reference kernel between conversions of layout.

    Args:
        module: takes and gives one tensor; converted in evaluation mode, left as it is.
        example: an input, (1, channels, height, width) or (1, features). The batch size stays 1.
        path: of the file to write.
        precision: of the file: `int8` quantises it, `fp16` keeps its weights in float16; `fp32` and `bf16` are one file.
        dynamic_size: height and width may differ from the example's.
        calibration: inputs that quantisation learns its ranges from; the example alone by default.
        int8: how to quantise.

    Raises:
        ImportError: the library is missing, or NNCF, which quantises.
    """
    import torch

    openvino = library()
    with warnings.catch_warnings(), torch.no_grad():
        # Deprecated, and what the converter itself would call; it would trace twice more to check what parity tests check.
        warnings.filterwarnings("ignore", message="`torch.jit", category=FutureWarning)
        traced: Any = torch.jit.trace(copy.deepcopy(module).cpu().eval(), example.cpu(), check_trace=False)  # type: ignore[no-untyped-call]
        model = openvino.convert_model(traced, example_input=example.cpu())
    model.reshape(list(example.shape))
    model.inputs[0].get_node().set_friendly_name(INPUT)
    model.inputs[0].get_tensor().set_names({INPUT})
    model.outputs[0].get_tensor().set_names({OUTPUT})
    if precision == "int8":
        model = _quantised(model, [example] if calibration is None else calibration, int8)
    if dynamic_size:
        model.reshape([*example.shape[:2], *[-1 for _ in example.shape[2:]]])
    model.set_rt_info(precision, ["natdeploy", "precision"])
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{SUFFIX}")
    weights = companions(temporary)[0]
    try:
        openvino.save_model(model, str(temporary), compress_to_fp16=precision == "fp16")
        # The weights first: a file that is there can be loaded.
        weights.replace(companions(path)[0])
        temporary.replace(path)
    finally:
        for leftover in (temporary, weights):
            leftover.unlink(missing_ok=True)


def _quantised(model: Any, calibration: Sequence[torch.Tensor], int8: Int8) -> Any:
    """The model with 8-bit weights and activations, these with zero points, because hswish and projections go below zero."""
    with _quiet():
        import nncf
        from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, QuantizationParameters
        from nncf.quantization.range_estimator import RangeEstimatorParameters, RangeEstimatorParametersSet

        ranges = {
            "minmax": RangeEstimatorParametersSet.MINMAX,
            "average": RangeEstimatorParametersSet.MEAN_MINMAX,
            "percentile": RangeEstimatorParametersSet.MEAN_QUANTILE,
            "histogram": RangeEstimatorParametersSet.HISTOGRAM,
            "default": RangeEstimatorParameters(),
        }
        return nncf.quantize(
            model,
            nncf.Dataset([each.cpu().numpy() for each in calibration]),
            preset=nncf.QuantizationPreset.MIXED,
            target_device=nncf.TargetDevice.CPU,
            subset_size=len(calibration),
            fast_bias_correction=int8.bias_correction != "full",
            ignored_scope=nncf.IgnoredScope(names=_kept(model, int8)),
            advanced_parameters=AdvancedQuantizationParameters(
                disable_bias_correction=int8.bias_correction == "none",
                activations_range_estimator_params=ranges[int8.ranges],
                weights_quantization_params=None if int8.per_channel else QuantizationParameters(per_channel=False),
            ),
        )


def _kept(model: Any, int8: Int8) -> list[str]:
    """Names of the operators that are not to be quantised."""
    kept = []
    for operator in model.get_ordered_ops():
        kind, inputs = operator.get_type_name(), [value.get_node() for value in operator.input_values()]
        if kind == "GroupConvolution" and not int8.uneven and _is_uneven(inputs[1]):
            kept.append(operator.get_friendly_name())
        if kind == "Multiply" and not int8.gates and any(each.get_type_name() == "HSigmoid" for each in inputs):
            kept.append(operator.get_friendly_name())
    return kept


def _is_uneven(weights: Any) -> bool:
    """Whether a layer's weights, (groups, ...), have channels below FLOOR."""
    import numpy as np

    while weights.get_type_name() != "Constant":  # of the traced shape or type
        weights = weights.input_value(0).get_node()
    largest = np.abs(weights.data.reshape(len(weights.data), -1)).max(axis=1)
    return bool((largest < FLOOR * largest.max()).any())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps NNCF's bars and messages off the terminal, and its class of loggers to itself."""
    loggers, disabled = logging.getLoggerClass(), logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(disabled)
        logging.setLoggerClass(loggers)


def companions(path: Path) -> tuple[Path, ...]:
    """The file of the weights, which the library looks for beside the other."""
    return (path.with_suffix(".bin"),)


def read_inputs(path: Path) -> list[tuple[str, tuple[int | None, ...] | None, str]]:
    """Name, sizes and numpy's name of the type of every input of any file; an open size is None, and so is an open rank.

    Raises:
        ImportError: the library is missing.
        ValueError: it is no such file, or its weights are not beside it.
    """
    try:
        model = library().Core().read_model(str(path))
    except RuntimeError as error:
        raise ValueError(f"OpenVINO cannot read it: {str(error).strip().splitlines()[-1]}") from error
    found: list[tuple[str, tuple[int | None, ...] | None, str]] = []
    for value in model.inputs:
        shape, sizes = value.get_partial_shape(), None
        if shape.rank.is_static:
            sizes = tuple(size.get_length() if size.is_static else None for size in shape)
        found.append((value.any_name, sizes, value.get_element_type().to_dtype().name))
    return found


def load(path: str | Path, shape: Sequence[int] | None, threads: int, precision: str, delegate: str) -> Session:
    """A session for inputs of exactly that shape, one request at a time, on exactly that many threads, not pinned to cores.

    Args:
        path: of the file.
        shape: of its one input; None where the file fixes those of several.
        threads: of the request.
        precision: that is computed in where nothing is quantised.
        delegate: device that computes.

    fp16 is computed where the device can, which few CPUs do; elsewhere the weights alone are float16, and the numbers float32.

    Raises:
        RuntimeError: the device is not there, or it gives fewer threads or another precision than asked for; or the library's own.
    """
    openvino = library()
    native = _compiled(path, shape, threads, precision, delegate=delegate, hints={"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1})
    request = native.create_infer_request()
    session = Session(native, request, openvino.Tensor, [None for _ in native.inputs], [None for _ in native.outputs], 0)
    for place in range(len(session.outputs)):
        _renew(session, place)
    session.unheld = _references(session, 0)
    return session


def queue(path: str | Path, shape: Sequence[int] | None, threads: int, precision: str, delegate: str) -> tuple[Any, str]:
    """The library's queue of as many requests as it thinks best for throughput on so many threads, and what it chose, in words.

    Raises as `load` does.
    """
    openvino = library()
    native = _compiled(path, shape, threads, precision, delegate=delegate, hints={"PERFORMANCE_HINT": "THROUGHPUT"})
    found = openvino.AsyncInferQueue(native)
    streams = native.get_property("NUM_STREAMS")
    return found, f"AsyncInferQueue of {len(found)} requests, PERFORMANCE_HINT THROUGHPUT: {streams} streams on {threads} threads"


def _compiled(
    path: str | Path,
    shape: Sequence[int] | None,
    threads: int,
    precision: str,
    *,
    delegate: str,
    hints: dict[str, Any],
) -> Any:
    """The compiled model."""
    core = library().Core()
    device = delegate.upper()
    if device not in {name.split(".")[0] for name in core.available_devices}:
        raise RuntimeError(f"OpenVINO finds no {device} here; it finds {', '.join(core.available_devices)}")
    wanted = _HINTS[precision]
    if precision == "fp16" and "FP16" not in core.get_property(device, "OPTIMIZATION_CAPABILITIES"):
        wanted = "f32"
    settings: dict[str, Any] = {**hints, "INFERENCE_PRECISION_HINT": wanted, "CACHE_DIR": ""}
    if device == "CPU":
        settings.update({"INFERENCE_NUM_THREADS": threads, "ENABLE_CPU_PINNING": False})
    model = core.read_model(str(path))
    if shape is not None:
        model.reshape(list(shape))
    native = core.compile_model(model, device, settings)
    hint = native.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    if hint != wanted:
        instead = next((f"; take precision {name}" for name, known in _HINTS.items() if known == hint), "")
        raise RuntimeError(f"OpenVINO computes in {hint} on this {device}, which has no {wanted}{instead}")
    if device == "CPU" and native.get_property("INFERENCE_NUM_THREADS") != threads:
        given = native.get_property("INFERENCE_NUM_THREADS")
        raise RuntimeError(f"OpenVINO gives {given} of {threads} threads: not more than the cores this process may use")
    return native


def _renew(session: Session, place: int) -> None:
    """Gives an output memory of its own."""
    output = session.native.outputs[place]
    tensor = session.tensor(output.get_element_type(), output.get_shape())
    session.request.set_output_tensor(place, tensor)
    session.outputs[place] = tensor.data


def _references(session: Session, place: int) -> int:
    return sys.getrefcount(session.outputs[place])


def run(session: Session, inputs: Sequence[np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
    """Outputs of one run.

    Copies nothing, as in ONNX Runtime: the model reads the caller's arrays, and an output's memory is used again once nobody
    holds it. To copy a block's large output would take as long as to compute a third of it.

    Args:
        session: from `load`.
        inputs: one array an input, float32.
    """
    for place, array in enumerate(inputs):
        if array is not session.inputs[place]:
            # Memory that cannot be shared is copied; the copy is no caller's array, so the next run makes a new one.
            shared = array if array.flags.carray else array.copy("C")
            session.request.set_input_tensor(place, session.tensor(shared, shared_memory=True))
            session.inputs[place] = shared
    for place in range(len(session.outputs)):
        if _references(session, place) != session.unheld:
            _renew(session, place)
    # Computes in this thread, if one is enough. The views that it returns are dropped.
    session.request.infer(share_outputs=True)
    return list(session.outputs)


def inside_ms(session: Session) -> float:
    """What the library counts of the last run, which is what its own `benchmark_app` prints: the call from Python is not in it."""
    return float(session.request.latency)


def placement(session: Session) -> list[tuple[str, str, int]]:
    """Layer type, primitive and precision (`brgconv_avx512_1x1_f32`), and how many layers of the compiled graph are so, sorted."""
    found: Counter[tuple[str, str]] = Counter()
    live = set()
    # Constants are folded when it is compiled; what counts depends on an input.
    for layer in session.native.get_runtime_model().get_ordered_ops():
        facts = layer.get_rt_info()
        kind = str(facts["layerType"].value)
        if kind == "Input" or any(value.get_node().get_friendly_name() in live for value in layer.input_values()):
            live.add(layer.get_friendly_name())
            if kind not in {"Input", "Output"}:
                found[kind, str(facts["primitiveType"].value)] += 1
    return sorted((kind, where, count) for (kind, where), count in found.items())
