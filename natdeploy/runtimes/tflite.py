"""LiteRT, once TensorFlow Lite: convert a torch module, load a file, run it once.

Not named after the library: on a device this file lies beside the runner and must not hide what it imports.
The functions but `convert` and `read_inputs` need only numpy and `ai_edge_litert`, or its predecessor `tflite_runtime`, and run on
Python 3.8.
"""

from __future__ import annotations

import importlib
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import torch

NAME = "tflite"
SUFFIX = ".tflite"
REQUIREMENT = "ai-edge-litert"
PRECISIONS: tuple[str, ...] = ("fp32", "fp16", "int8")
DELEGATES: tuple[str, ...] = ("xnnpack", "reference")
LIBRARIES = ("ai_edge_litert", "tflite_runtime")
"""Best first. `tflite_runtime` ends at 2.14 and numpy 1; old devices have nothing else."""


@dataclass(frozen=True)
class Int8:
    """How a file is quantised. The defaults are what lost least where it was measured (docs/quantisation.md).

    Attributes:
        ranges: of activations: `minmax`, the extremes over all images; `average`, ai-edge-quantizer's moving average of each
            image's, which depends on the last twenty.
        per_channel: of weights, else one scale a layer, which ruins depthwise layers.
        kept: TFLite operators that stay in float32, such as `FULLY_CONNECTED`.
        fused_hswish: whether h-swish is one operator, which XNNPACK does not compute in 8 bits and which cuts the network into
            pieces for it; else a sum and two products.
    """

    ranges: str = "minmax"
    per_channel: bool = True
    kept: tuple[str, ...] = ()
    fused_hswish: bool = False


INT8 = Int8()


@dataclass(frozen=True)
class Session:
    """A loaded model; tensor numbers of its inputs and outputs."""

    native: Any
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def _library() -> tuple[Any, Any]:
    """The package and its interpreter module."""
    for name in LIBRARIES:
        try:
            return importlib.import_module(name), importlib.import_module(f"{name}.interpreter")
        except ModuleNotFoundError as error:
            if error.name != name:
                raise
    raise ImportError(f"none of {', '.join(LIBRARIES)} is installed", name=LIBRARIES[0])


def version() -> str:
    """Package and version of the installed library. Raises ImportError where there is none."""
    package, _ = _library()
    return f"{package.__name__} {package.__version__}"


def details(precision: str, delegate: str) -> dict[str, str]:
    """What else has to be known to compare numbers: the delegate, the precision and the version."""
    return {"runtime": NAME, "runtime_version": version(), "provider": delegate, "precision": precision}


def convert(
    module: torch.nn.Module,
    example: torch.Tensor,
    path: Path,
    *,
    precision: str = PRECISIONS[0],
    dynamic_size: bool,
    calibration: Sequence[torch.Tensor] | None = None,
    int8: Int8 = INT8,
) -> None:
    """Writes a .tflite file whose batch normalisation is folded into its convolutions. An existing file is replaced atomically.

    What the product's own networks consist of is written operator by operator: 12 ms a block and 0.2 s a network on a core where
    litert-torch takes 5 s and 30 s, mostly to trace the graph four times over. Anything else goes through litert-torch.

    Args:
        module: takes and gives one tensor; exported in evaluation mode, left in the mode it was in.
        example: an input, (1, channels, height, width) or (1, features). The batch size stays 1.
        path: of the file to write.
        precision: fp16 has float16 weights, and computes in float32; int8 has 8-bit weights, a scale a channel, and 8-bit
            activations; input and output stay float32.
        dynamic_size: height and width may differ from the example's.
        calibration: inputs that int8 ranges are taken from; the example alone when None.
        int8: how to quantise.

    Raises:
        ImportError: the module needs litert-torch, or the precision ai-edge-quantizer, and there is none.
    """
    import copy

    from natdeploy.runtimes.tflite_writer import UnknownModuleError, write

    frozen = copy.deepcopy(module).eval()
    try:
        content = write(frozen, example, dynamic_size, fused_hswish=precision != "int8" or int8.fused_hswish)
    except UnknownModuleError:
        content = _translate(frozen, example, dynamic_size)
    if precision == "fp16":
        content = _halve(content)
    elif precision == "int8":
        content = _quantise(content, [example] if calibration is None else calibration, int8)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _translate(module: torch.nn.Module, example: torch.Tensor, dynamic_size: bool) -> bytes:
    """A .tflite file of any module that torch.export and litert-torch take."""
    import logging

    # What the libraries below tell their own makers is not for whoever exports a network.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)
    import litert_torch
    import torch

    sizes = (dict.fromkeys((2, 3), torch.export.Dim.DYNAMIC),) if dynamic_size and example.ndim == 4 else None
    litert_torch.config.show_progress = False
    converted: Any = litert_torch.convert(module, (example,), dynamic_shapes=sizes)
    return bytes(converted.model_content())


def _halve(content: bytes) -> bytes:
    """A file whose weights are float16, and made float32 where they are used; XNNPACK does so once, when it is loaded."""
    import contextlib
    import io

    from ai_edge_quantizer import qtyping, quantizer
    from ai_edge_quantizer.algorithm_manager import AlgorithmName

    halves = qtyping.OpQuantizationConfig(
        weight_tensor_config=qtyping.TensorQuantizationConfig(num_bits=16, dtype=qtyping.TensorDataType.FLOAT),
        compute_precision=qtyping.ComputePrecision.FLOAT,
    )
    halver = quantizer.Quantizer(content)
    halver.update_quantization_recipe(".*", qtyping.TFLOperationName.ALL_SUPPORTED, halves, AlgorithmName.FLOAT_CASTING)
    with contextlib.redirect_stderr(io.StringIO()):  # it draws a progress bar even so
        halved: Any = halver.quantize(enable_progress_bar=False, enable_progress_report=False)
    return bytes(halved.quantized_model)


def _quantise(content: bytes, calibration: Sequence[torch.Tensor], int8: Int8) -> bytes:
    """A file quantised by the ranges that its tensors have on some inputs."""
    import contextlib
    import io
    import warnings

    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_quantizer import qtyping, quantizer
    from ai_edge_quantizer.algorithm_manager import AlgorithmName
    from ai_edge_quantizer.calibrator import Calibrator
    from ai_edge_quantizer.recipe_manager import RecipeManager
    from ai_edge_quantizer.utils.qsv_utils import min_max_update, moving_average_update

    recipe, operators = RecipeManager(), qtyping.TFLOperationName
    granularity = qtyping.QuantGranularity.CHANNELWISE if int8.per_channel else qtyping.QuantGranularity.TENSORWISE
    recipe.add_static_config(".*", operators.ALL_SUPPORTED, 8, 8, weight_granularity=granularity)
    for kind in (operators.INPUT, operators.OUTPUT, *map(operators, int8.kept)):
        recipe.add_quantization_config(".*", kind, algorithm_key=AlgorithmName.NO_QUANTIZE)
    ((key, ends),) = Interpreter(model_content=content).get_signature_list().items()
    data = {key: [{ends["inputs"][0]: each.numpy()} for each in calibration]}
    # It draws progress bars, and the interpreter advises against keeping all tensors, which is how it sees their ranges.
    with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        update = min_max_update if int8.ranges == "minmax" else moving_average_update
        calibrator = Calibrator(content, num_threads=1, qsv_update_func=update)
        calibrator.calibrate(data, recipe)
        quantised: Any = quantizer.Quantizer(content, recipe.get_quantization_recipe()).quantize(
            calibrator.get_model_qsvs(), enable_progress_bar=False, enable_progress_report=False
        )
    return bytes(quantised.quantized_model)


def companions(path: Path) -> tuple[Path, ...]:
    """Further files that belong to a converted one: none."""
    return ()


def read_inputs(path: Path) -> list[tuple[str, tuple[int | None, ...] | None, str]]:
    """Name, sizes and numpy's name of the type of every input of any file; an open size is None.

    Raises:
        ImportError: the library is missing.
        ValueError: it is no such file.
    """
    _, library = _library()
    try:
        details = library.Interpreter(str(path)).get_input_details()
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"LiteRT cannot read it: {str(error).strip().splitlines()[0]}") from error
    return [
        (str(each["name"]), tuple(int(size) if size > 0 else None for size in each["shape_signature"]), each["dtype"].__name__)
        for each in details
    ]


def load(
    path: str | Path,
    shape: Sequence[int] | None,
    threads: int,
    precision: str = PRECISIONS[0],
    delegate: str = DELEGATES[0],
) -> Session:
    """A session with exactly that many threads, for inputs of exactly that shape.

    Args:
        path: of the file.
        shape: of its one input; None where the file fixes those of several. Delegates are chosen when memory is first allocated,
            which is after the size is known.
        threads: of the interpreter.
        precision: that the file was converted to.
        delegate: `xnnpack`, or `reference` for the library's own kernels.
    """
    _, library = _library()
    resolvers = library.OpResolverType
    resolver = resolvers.AUTO if delegate == "xnnpack" else resolvers.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    native = library.Interpreter(str(path), num_threads=threads, experimental_op_resolver_type=resolver)
    wanted = native.get_input_details()
    if shape is not None:
        (only,) = wanted
        if tuple(only["shape"]) != tuple(shape):
            native.resize_tensor_input(only["index"], list(shape))
    native.allocate_tensors()
    return Session(native, tuple(each["index"] for each in wanted), tuple(each["index"] for each in native.get_output_details()))


def run(session: Session, inputs: Sequence[np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
    """Outputs of one run.

    Args:
        session: from `load`.
        inputs: one array an input, float32.
    """
    native = session.native
    for index, value in zip(session.inputs, inputs):  # noqa: B905 (Python 3.8 has no `strict`)
        native.set_tensor(index, value)
    native.invoke()
    return [native.get_tensor(index) for index in session.outputs]


queue = None
"""The library has none of its own: several requests at once are several sessions in threads."""

inside_ms = None
"""The library counts no run itself."""


def placement(session: Session) -> list[tuple[str, str, int]]:
    """How many operators of each type run where: in the delegate, or in the library's own kernels (`builtin`)."""
    nodes = session.native._get_ops_details()
    made_by = {int(tensor): node for node in nodes if node["op_name"] != "DELEGATE" for tensor in node["outputs"]}
    delegated: set[int] = set()
    for node in nodes:
        if node["op_name"] == "DELEGATE":
            # What a delegate has taken lies between its inputs and its outputs.
            inputs, todo = {int(tensor) for tensor in node["inputs"]}, [int(tensor) for tensor in node["outputs"]]
            while todo:
                tensor = todo.pop()
                if tensor not in inputs and tensor in made_by and made_by[tensor]["index"] not in delegated:
                    delegated.add(made_by[tensor]["index"])
                    todo.extend(int(each) for each in made_by[tensor]["inputs"])
    counts = Counter(
        (node["op_name"], "xnnpack" if node["index"] in delegated else "builtin") for node in nodes if node["op_name"] != "DELEGATE"
    )
    return sorted((name, place, count) for (name, place), count in counts.items())
