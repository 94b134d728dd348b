"""Programs that come with a network: each needs its runtime, numpy and Pillow. They tell a photo's class, or draw mask or boxes."""

from __future__ import annotations

from collections.abc import Sequence

from natdeploy.export.facts import Description, ModelFile, Preprocessing
from natdeploy.export.inputs import PhotoSize
from natdeploy.export.photos import seen
from natdeploy.runtimes.ort import EXACT_INT8

_ANSWER = """here = pathlib.Path(__file__).parent
facts = json.loads((here / "metadata.json").read_text("utf-8"))["description"]
model = str(here / (sys.argv[2] if sys.argv[2:] else "{model}"))
photo = ImageOps.exif_transpose(Image.open(sys.argv[1])).convert("RGB")
{prepare}
{run}
"""
"""What all programs do first: from a photo to the network's answer."""

_CLASSIFY = (
    '''"""Prints the class of a photo: python {name} PHOTO [MODEL]. Needs {packages}, numpy and Pillow.

MODEL is {model}, or another file of this folder that takes the same input.
"""
import json, pathlib, sys
import numpy as np
{imports}
from PIL import Image, ImageOps

'''
    + _ANSWER
    + """print(facts["labels"][int(np.argmax(logits))])
"""
)

_SEGMENT = (
    '''"""Draws onto a photo what its pixels show: python {name} PHOTO [MODEL]. Needs {packages}, numpy and Pillow.

MODEL is {model}, or another file of this folder that takes the same input. Writes PHOTO_mask.png into the working directory, and
prints the share of every class that is there.
"""
import json, pathlib, sys
import numpy as np
{imports}
from PIL import Image, ImageOps

'''
    + _ANSWER
    + """mask = np.argmax(logits[0], axis=0)
colours = Image.fromarray(np.array(facts["palette"], np.uint8)[mask]).resize(photo.size, Image.Resampling.NEAREST)
drawn = pathlib.Path(sys.argv[1]).stem + "_mask.png"
Image.blend(photo, colours, 0.5).save(drawn)
for label, count in zip(facts["labels"], np.bincount(mask.ravel(), minlength=len(facts["labels"]))):
    if count:
        print(f"{{100 * count / mask.size:5.1f}} % {{label}}")
print(drawn)
"""
)

_DETECT = (
    '''"""Draws boxes around what a photo shows: python {name} PHOTO [MODEL]. Needs {packages}, numpy and Pillow.

MODEL is {model}, or another file of this folder that takes the same input. Writes PHOTO_boxes.png into the working directory, and
prints label, score and box (left, top, right, bottom, px) of every object.
"""
import json, pathlib, sys
import numpy as np
{imports}
from PIL import Image, ImageDraw, ImageOps

LEAST, OVERLAP, MOST = 0.3, 0.5, 100  # lower scores are not drawn; of boxes of a class that overlap more, the best is kept

'''
    + _ANSWER
    + '''

def overlaps(box, others):
    common = np.clip(np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2]), 0, None).prod(1)
    return common / ((box[2:] - box[:2]).prod() + (others[:, 2:] - others[:, :2]).prod(1) - common + 1e-9)


def best(answers):
    """Boxes and scores of all anchors -> rows of box, label, score, best first: non-maximum suppression, class by class."""
    anchors, labels = np.nonzero(answers[:, 4:] >= LEAST)
    rows = np.column_stack([answers[anchors, :4], labels, answers[anchors, 4 + labels]])
    rows, kept = rows[np.argsort(-rows[:, 5], kind="stable")], []
    while len(rows) and len(kept) < MOST:
        kept.append(rows[0])
        rows = rows[1:][(rows[1:, 4] != rows[0, 4]) | (overlaps(rows[0, :4], rows[1:, :4]) <= OVERLAP)]
    return kept


found = logits if logits.ndim == 2 else best(logits[0])  # a file with suppression inside answers with such rows itself
draw = ImageDraw.Draw(photo)
for left, top, right, bottom, label, score in found:
    if score >= LEAST:
        box = [left * photo.width, top * photo.height, right * photo.width, bottom * photo.height]
        text = facts["labels"][int(label)] + " " + format(score, ".2f")
        draw.rectangle(box, outline=(255, 32, 32), width=max(2, photo.width // 200))
        draw.text((box[0] + 3, box[1] + 2), text, fill=(255, 32, 32))
        print(text, *(round(float(side)) for side in box))
photo.save(pathlib.Path(sys.argv[1]).stem + "_boxes.png")
'''
)

_TASKS = {"classification": ("classify", _CLASSIFY), "segmentation": ("segment", _SEGMENT), "detection": ("detect", _DETECT)}
"""Beginning of a program's name, and its text."""

_RUNTIMES = {
    "onnx": (
        "onnxruntime",
        "import onnxruntime",
        f"""settings = onnxruntime.SessionOptions()
settings.add_session_config_entry("{EXACT_INT8[0]}", "{EXACT_INT8[1]}")  # or int8 is wrong on x86-64 without VNNI
(logits,) = onnxruntime.InferenceSession(model, settings, providers=["CPUExecutionProvider"]).run(None, {{"input": x}})""",
    ),
    "openvino": (
        "openvino",
        "import openvino",
        """logits = openvino.Core().compile_model(model, "CPU")(x)[0]""",
    ),
    "tflite": (
        "ai-edge-litert",
        "from ai_edge_litert.interpreter import Interpreter  # or, on old devices: from tflite_runtime.interpreter",
        """logits = Interpreter(model).get_signature_runner()(input=x)["output"]""",
    ),
    "tensorrt": (
        "onnxruntime-gpu built with TensorRT",
        "import onnxruntime",
        """fastest_first = onnxruntime.get_available_providers()  # TensorRT's before the others
(logits,) = onnxruntime.InferenceSession(model, providers=fastest_first).run(None, {"input": x})""",
    ),
}

_RESIZED = """how = facts["preprocessing"]
photo = ImageOps.fit(photo, (how["square_px"],) * 2, Image.Resampling.BILINEAR)
x = np.asarray(photo.resize((how["size_px"],) * 2, Image.Resampling.BILINEAR))[None]"""
_RECTANGULAR = """how = facts["preprocessing"]
photo = ImageOps.fit(photo, how["cut_px"][::-1], Image.Resampling.BILINEAR)
x = np.asarray(photo.resize(how["input_px"][::-1], Image.Resampling.BILINEAR))[None]"""
_WHOLE = """how = facts["preprocessing"]
square = photo.resize((how["square_px"],) * 2, Image.Resampling.BILINEAR)
x = np.asarray(square.resize((how["size_px"],) * 2, Image.Resampling.BILINEAR))[None]"""
_NORMALISED = """x = ((x / 255 - how["mean"]) / how["std"]).astype(np.float32)"""


def script_name(format: str, description: Description) -> str:
    """Of the program for a format, of what is described."""
    return f"{_TASKS[description.task][0]}_{format}.py"


def script(file: ModelFile, description: Description) -> str:
    """The program that runs a file of what is described, or another of its format that takes the same input."""
    packages, imports, run = _RUNTIMES[file.format]
    name, text = script_name(file.format, description), _TASKS[description.task][1]
    prepare = _prepare(file, description.preprocessing)
    return text.format(name=name, packages=packages, imports=imports, prepare=prepare, run=run, model=file.name)


def _prepare(file: ModelFile, preprocessing: Preprocessing) -> str:
    """What is left to do to a photo for the file's input."""
    if file.input.resized:
        return _for_one_size(size, preprocessing) if (size := file.input.photo_size) is not None else _for_any_size(preprocessing)
    lines = [_WHOLE if preprocessing.whole else _RESIZED if preprocessing.cut_px is None else _RECTANGULAR]
    if file.input.dtype == "float32":
        lines.append(_NORMALISED)
    if file.input.layout == "NCHW":
        lines.append("x = np.ascontiguousarray(x.transpose(0, 3, 1, 2))")
    return "\n".join(lines)


def _for_any_size(preprocessing: Preprocessing) -> str:
    lines = ["x = np.asarray(photo)[None]"]
    if preprocessing.cut_px is not None:  # what is drawn onto is what the network has seen
        lines.append(f"photo = ImageOps.fit(photo, {preprocessing.cut[::-1]}, Image.Resampling.BILINEAR)")
    return "\n".join(lines)


def _for_one_size(size: PhotoSize, preprocessing: Preprocessing) -> str:
    """Puts what is seen of a photo where it is seen in one of that size."""
    if preprocessing.whole:
        return f"x = np.asarray(photo.resize({size[::-1]}, Image.Resampling.BILINEAR))[None]"
    window = seen(size, preprocessing)
    return "\n".join(
        [
            f"photo = ImageOps.fit(photo, {window.width, window.height}, Image.Resampling.BILINEAR)",
            f"x = np.zeros((1, *{size}, 3), np.uint8)",
            f"x[0, {window.top}:{window.top + window.height}, {window.left}:{window.left + window.width}] = photo",
        ]
    )


BUILD = "build_tensorrt.sh"


def build_script(files: Sequence[ModelFile]) -> str:
    """Commands that build TensorRT's engines, which fit only the GPU and the version that built them."""
    lines = [
        "#!/bin/sh",
        "# Builds TensorRT's engines on the device that will run them, with trtexec of TensorRT 10 or later. tensorrt.timing keeps",
        "# what was tried, so that the next build is faster. Not tried on hardware by natdeploy's makers.",
        'cd "$(dirname "$0")" || exit 1',
    ]
    for file in files:
        engine = f"{file.name.removesuffix('.trt.onnx')}.engine"
        lines.append(
            f"trtexec --onnx={file.name} --saveEngine={engine} --stronglyTyped --timingCacheFile=tensorrt.timing --skipInference"
        )
    return "\n".join([*lines, ""])
