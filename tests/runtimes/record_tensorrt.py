"""Writes down what NVIDIA's bindings of TensorRT offer of what natdeploy uses: `python record_tensorrt.py tensorrt_api.json`.

The wheels have no type stubs, but their extension module documents its signatures, and loads without a GPU or TensorRT's
libraries where these few C functions exist. To add a version, with N its major number:

    pip download --no-deps tensorrt-cu12-bindings==VERSION; unzip *.whl
    for f in createInferBuilder_INTERNAL createInferRefitter_INTERNAL createInferRuntime_INTERNAL createNvOnnxParser_INTERNAL \\
        createNvOnnxParserRefitter_INTERNAL getNvOnnxParserVersion initLibNvInferPlugins getPluginRegistry \\
        getBuilderPluginRegistry; do echo "void *$f(void) {return 0;}"; done > stub.c
    for l in nvinfer nvonnxparser nvinfer_plugin; do cc -shared -fPIC -Wl,-soname,lib$l.so.N -o lib$l.so.N stub.c; done
    LD_LIBRARY_PATH=. python record_tensorrt.py tensorrt_api.json

(8.6 also wants libnvparsers.so.8 with a few functions that `nm -D -u` names.)
A method is a list of its overloads, each a list of `name:type`, with `=` at the end where there is a default.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

USED: dict[str, list[str]] = {
    "Builder": [
        "__init__",
        "create_network",
        "create_builder_config",
        "create_optimization_profile",
        "build_serialized_network",
    ],
    "OnnxParser": ["__init__", "parse", "num_errors", "get_error"],
    "ParserError": ["desc"],
    "INetworkDefinition": ["num_inputs", "get_input", "num_layers", "get_layer"],
    "ITensor": ["name", "shape", "dtype"],
    "ILayer": ["type", "get_output"],
    "IBuilderConfig": [
        "set_flag",
        "clear_flag",
        "profiling_verbosity",
        "add_optimization_profile",
        "create_timing_cache",
        "set_timing_cache",
        "get_timing_cache",
    ],
    "ITimingCache": ["serialize"],
    "IOptimizationProfile": ["set_shape"],
    "Runtime": ["__init__", "deserialize_cuda_engine"],
    "ICudaEngine": [
        "num_io_tensors",
        "get_tensor_name",
        "get_tensor_mode",
        "get_tensor_dtype",
        "create_execution_context",
        "create_engine_inspector",
    ],
    "IExecutionContext": ["set_input_shape", "get_tensor_shape", "set_tensor_address", "execute_async_v3"],
    "EngineInspector": ["execution_context", "get_engine_information"],
    "ILogger": ["__init__", "log"],
}
ENUMS = {
    "NetworkDefinitionCreationFlag": ["EXPLICIT_BATCH", "STRONGLY_TYPED"],
    "BuilderFlag": ["FP16", "INT8", "TF32"],
    "ProfilingVerbosity": ["LAYER_NAMES_ONLY", "DETAILED"],
    "LayerInformationFormat": ["JSON"],
    "TensorIOMode": ["INPUT", "OUTPUT"],
    "DataType": ["FLOAT", "HALF", "INT32"],
    "LayerType": ["QUANTIZE", "CONVOLUTION"],
    "ILogger.Severity": ["INTERNAL_ERROR", "ERROR", "WARNING"],
}
KINDS = {"typing.SupportsInt": "int", "typing_extensions.Buffer": "buffer"}


def overloads(name: str, doc: str) -> list[list[str]]:
    """Of a method, from its docstring as pybind11 writes it."""
    found = []
    for line in doc.splitlines():
        match = re.match(rf"^\s*(?:\d+\. )?{re.escape(name)}\(self: [\w.]+(?:, (.*))?\) -> ", line)
        if match:
            listed = re.sub("<[^>]*>", "", match[1] or "")  # a default's value
            arguments = re.findall(r"(\w+): ([\w.:]+)( =)?", listed)
            named = [(each, KINDS.get(kind, re.split("[.:]+", kind)[-1]), bool(end)) for each, kind, end in arguments]
            found.append([f"{each}:{kind}{'=' * default}" for each, kind, default in named])
    return found


def members(trt: Any, name: str) -> dict[str, Any]:
    """Methods and properties of a class; what it lacks is left out."""
    offered: dict[str, Any] = {}
    for member in USED[name]:
        it = getattr(getattr(trt, name), member, None)
        if isinstance(it, property):
            offered[member] = "read and write" if it.fset else "read"
        elif it is not None:
            offered[member] = overloads(member, it.__doc__)
            if not offered[member]:
                raise ValueError(f"{name}.{member} has no signature: {it.__doc__}")
    return offered


def enum(trt: Any, path: str) -> dict[str, int]:
    """Members that there are, and their values."""
    found = trt
    for part in path.split("."):
        found = getattr(found, part)
    return {name: int(found.__members__[name]) for name in ENUMS[path] if name in found.__members__}


def main() -> None:
    sys.path.insert(0, ".")
    import tensorrt_bindings as trt

    path = Path(sys.argv[1])
    known = json.loads(path.read_text()) if path.is_file() else {}
    known[trt.__version__] = {name: members(trt, name) for name in USED} | {name: enum(trt, name) for name in ENUMS}
    # a line a class: the differences between two versions can be read
    text = json.dumps(known).replace('}, "', '},\n"').replace(': {"Builder"', ': {\n"Builder"')
    path.write_text(text + "\n")


if __name__ == "__main__":
    main()
