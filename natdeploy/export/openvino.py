"""What a plain file of OpenVINO becomes before it is handed on: it takes another input, and says itself what it is."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onnx import helper

from natdeploy.export.facts import Preprocessing, TensorFacts
from natdeploy.export.onnx import preparation
from natdeploy.runtimes import ort, ov


def finish(path: Path, input: TensorFacts, preprocessing: Preprocessing, texts: Mapping[str, str]) -> None:
    """Gives a file with one input (1, 3, r, r) fp32 another input, and texts as `rt_info` under `natdeploy`, in place."""
    openvino = ov.library()
    core = openvino.Core()
    model = core.read_model(str(path))
    if input.layout != "NCHW":
        before = helper.make_model(preparation(input, preprocessing), opset_imports=[helper.make_opsetid("", ort.OPSET)])
        model = _joined(core.read_model(before.SerializeToString()), model, input.name)
    for key, text in texts.items():
        model.set_rt_info(text, ["natdeploy", key])
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:  # the library reads the old weights while it writes
        written = Path(folder, path.name)
        openvino.save_model(model, str(written), compress_to_fp16=False)
        del model
        for old, new in zip((path, *ov.companions(path)), (written, *ov.companions(written)), strict=True):
            new.replace(old)


def _joined(before: Any, model: Any, name: str) -> Any:
    """A model that has another one before its input, which is called as its own was."""
    (end,), (start,) = before.results, model.get_parameters()
    made = end.input_value(0)
    for reader in start.output(0).get_target_inputs():
        reader.replace_source_output(made)
    joined = ov.library().Model(model.get_results(), before.get_parameters(), model.get_friendly_name())
    joined.inputs[0].get_tensor().set_names({name})
    made.get_tensor().set_names({"preprocessing/prepared"})
    joined.validate_nodes_and_infer_types()
    return joined
