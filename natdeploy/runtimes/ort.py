"""ONNX Runtime: convert a torch module, load a file, run it once.

Not named after the library: on a device this file lies beside the runner and must not hide what it imports.
The functions but `convert` need only numpy and onnxruntime, and run on Python 3.8.
"""

from __future__ import annotations

import os
import warnings
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
PRECISIONS: tuple[str, ...] = ("fp32",)
DELEGATES: tuple[str, ...] = ("cpu",)
PROVIDER = "CPUExecutionProvider"
OPSET = 17
"""Read by every ONNX Runtime since 1.13, by OpenVINO and by TensorRT 8.6 and later."""
INPUT, OUTPUT = "input", "output"


@dataclass(frozen=True)
class Session:
    """A loaded model and the names of its inputs, in the order in which `run` takes them."""

    native: Any
    inputs: tuple[str, ...]


def version() -> str:
    """Version of the installed library. Raises ImportError where there is none."""
    import onnxruntime

    return str(onnxruntime.__version__)


def details(precision: str, delegate: str) -> dict[str, str]:
    """What else has to be known to compare numbers: version, execution provider and precision."""
    return {"runtime": NAME, "runtime_version": version(), "provider": PROVIDER, "precision": precision}


def convert(
    module: torch.nn.Module,
    example: torch.Tensor,
    path: Path,
    *,
    precision: str = "fp32",
    dynamic_size: bool,
    calibration: Sequence[torch.Tensor] | None = None,
) -> None:
    """Writes an ONNX file whose batch normalisation is folded into its convolutions. An existing file is replaced atomically.

    Args:
        module: takes and gives one tensor; exported in evaluation mode, left in the mode it was in.
        example: an input, (1, channels, height, width) or (1, features). The batch size stays 1.
        path: of the file to write.
        precision: of the file.
        dynamic_size: height and width may differ from the example's.
        calibration: inputs that quantisation learns its ranges from; the example alone by default.
    """
    import torch

    axes = {INPUT: {2: "height", 3: "width"}} if dynamic_size else None
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with warnings.catch_warnings():
            # The TorchScript exporter is deprecated but ten times faster than its successor, and these graphs are plain.
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            # Said of the operators that compute an asymmetric padding; ONNX Runtime folds them.
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
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def companions(path: Path) -> tuple[Path, ...]:
    """None: an ONNX file holds its weights."""
    return ()


def load(path: str | Path, shape: Sequence[int], threads: int, precision: str, delegate: str) -> Session:
    """A session for inputs of exactly that shape, with exactly that many threads, which sleep between runs instead of spinning."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3  # errors only
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if len(shape) == 4:
        # The optimiser then knows every size, as in a file that was converted at this one.
        options.add_free_dimension_override_by_name("height", shape[2])
        options.add_free_dimension_override_by_name("width", shape[3])
    native = onnxruntime.InferenceSession(str(path), options, providers=[PROVIDER])
    return Session(native, tuple(each.name for each in native.get_inputs()))


def run(session: Session, inputs: Sequence[np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
    """Outputs of one run.

    Args:
        session: from `load`.
        inputs: one array an input, float32.
    """
    outputs: list[np.ndarray[Any, Any]] = session.native.run(None, dict(zip(session.inputs, inputs)))  # noqa: B905 (Python 3.8 has no `strict`)
    return outputs


def placement(session: Session) -> list[tuple[str, str, int]]:
    """Operator type, provider, and how many nodes of the optimised graph it has, sorted."""
    raise NotImplementedError
