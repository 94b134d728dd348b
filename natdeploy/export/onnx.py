"""A subnet as an ONNX file that says itself what it is."""

from __future__ import annotations

import copy
import hashlib
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnxruntime
import torch

from natdeploy.files import write_atomic
from natdeploy.runtimes import ort
from natdeploy.supernet import Subnet


@dataclass(frozen=True)
class OnnxFile:
    """A written file.

    Attributes:
        path: where it lies.
        sha256: of its bytes.
        size_mb: megabytes, of 10^6 bytes.
        opset: of the ONNX operators.
    """

    path: Path
    sha256: str
    size_mb: float
    opset: int


def export_onnx(subnet: Subnet, path: Path, metadata: Mapping[str, str]) -> OnnxFile:
    """Writes a subnet, as it computes in evaluation mode, for one image (1, 3, r, r) fp32; it is left as it is.

    Batch normalisation and asymmetric padding are folded into the convolutions: what is left is Conv, activations (Clip, Relu,
    HardSigmoid with Mul), Add, global means, Flatten, MatMul and Gemm, all standard operators.

    Args:
        subnet: trained and calibrated, on any device.
        path: of the file; an existing one is replaced atomically, folders above it are made.
        metadata: written into the file as its `metadata_props`.

    Raises:
        NatdeployError: the file cannot be written.
    """
    module = copy.deepcopy(subnet).cpu()
    example = torch.zeros(1, 3, subnet.arch.resolution, subnet.arch.resolution)
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder, "raw.onnx")
        ort.convert(module, example, raw, dynamic_size=False)
        model = _simplified(raw)
    model.graph.name = f"natdeploy-{subnet.arch.id}"
    onnx.helper.set_model_props(model, dict(metadata))
    onnx.checker.check_model(model, full_check=True)
    data = model.SerializeToString(deterministic=True)
    write_atomic(path, data)
    opset = next(each.version for each in model.opset_import if each.domain == "")
    return OnnxFile(path, hashlib.sha256(data).hexdigest(), len(data) / 1e6, opset)


def _simplified(path: Path) -> onnx.ModelProto:
    """The model after ONNX Runtime's basic rewrites, which keep to standard operators and hold on every machine.

    The exporter writes an asymmetric padding as eight operators that compute its size, and not every runtime sees through them.
    """
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(path.with_suffix(".basic.onnx"))
    options.intra_op_num_threads = 1
    options.log_severity_level = 3  # errors only
    onnxruntime.InferenceSession(str(path), options, providers=[ort.PROVIDER])
    model = onnx.load(options.optimized_model_filepath)
    # It also declares operator sets of its own, none of which is in use.
    used = {node.domain for node in model.graph.node}
    domains = [each for each in model.opset_import if each.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(domains)
    return model
