"""What a plain file of OpenVINO becomes before it is handed on: it takes another input, and says itself what it is."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

from natdeploy.export.facts import Preprocessing
from natdeploy.export.inputs import InputKind
from natdeploy.runtimes import ov


def finish(path: Path, kind: InputKind, preprocessing: Preprocessing, texts: Mapping[str, str]) -> None:
    """Gives a file with one input (1, 3, r, r) fp32 the input of a kind, and texts as `rt_info` under `natdeploy`, in place."""
    openvino = ov.library()
    model = openvino.Core().read_model(str(path))
    if kind != "nchw":
        from openvino.preprocess import PrePostProcessor

        processor = PrePostProcessor(model)
        processor.input().tensor().set_layout(openvino.Layout("NHWC"))
        processor.input().model().set_layout(openvino.Layout("NCHW"))
        if kind == "image":
            processor.input().tensor().set_element_type(openvino.Type.u8)
            steps = processor.input().preprocess().convert_element_type(openvino.Type.f32)
            steps.mean([255 * each for each in preprocessing.mean]).scale([255 * each for each in preprocessing.std])
        model = processor.build()
    for key, text in texts.items():
        model.set_rt_info(text, ["natdeploy", key])
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:  # the library reads the old weights while it writes
        written = Path(folder, path.name)
        openvino.save_model(model, str(written), compress_to_fp16=False)
        del model
        for old, new in zip((path, *ov.companions(path)), (written, *ov.companions(written)), strict=True):
            new.replace(old)
