"""Programs that come with a network: each needs its runtime, numpy and Pillow. They tell a photo's class, or draw mask or boxes."""

from __future__ import annotations

from collections.abc import Sequence

from natdeploy.export.facts import Description, ModelFile

_CLASSIFY = '''"""Prints the class of a photo: python {name} PHOTO [MODEL]. Needs {packages}, numpy and Pillow."""
import json, pathlib, sys
import numpy as np
{imports}
from PIL import Image, ImageOps

here = pathlib.Path(__file__).parent
facts = json.loads((here / "metadata.json").read_text("utf-8"))
model = sys.argv[2] if sys.argv[2:] else "{model}"
(file,) = [each for each in facts["files"] if each["name"] == model]
how = facts["description"]["preprocessing"]
photo = ImageOps.exif_transpose(Image.open(sys.argv[1])).convert("RGB")
square = ImageOps.fit(photo, (how["square_px"],) * 2, Image.Resampling.BILINEAR)
x = np.asarray(square.resize((how["size_px"],) * 2, Image.Resampling.BILINEAR))[None]
if file["input"]["dtype"] == "float32":  # a file that takes bytes does this inside
    x = ((x / 255 - how["mean"]) / how["std"]).astype(np.float32)
if file["input"]["layout"] == "NCHW":
    x = np.ascontiguousarray(x.transpose(0, 3, 1, 2))
{run}
print(facts["description"]["labels"][int(np.argmax(logits))])
'''

_SEGMENT = '''"""Draws onto a photo what its pixels show: python {name} PHOTO [MODEL]. Needs {packages}, numpy and Pillow.

Writes PHOTO_mask.png into the working directory, and prints the share of every class that is there.
"""
import json, pathlib, sys
import numpy as np
{imports}
from PIL import Image, ImageOps

here = pathlib.Path(__file__).parent
facts = json.loads((here / "metadata.json").read_text("utf-8"))
model = sys.argv[2] if sys.argv[2:] else "{model}"
(file,) = [each for each in facts["files"] if each["name"] == model]
what, how = facts["description"], facts["description"]["preprocessing"]
height, width = how["cut_px"] or [how["square_px"]] * 2
rows, columns = how["input_px"] or [how["size_px"]] * 2
photo = ImageOps.exif_transpose(Image.open(sys.argv[1])).convert("RGB")
photo = ImageOps.fit(photo, (width, height), Image.Resampling.BILINEAR)
x = np.asarray(photo.resize((columns, rows), Image.Resampling.BILINEAR))[None]
if file["input"]["dtype"] == "float32":  # a file that takes bytes does this inside
    x = ((x / 255 - how["mean"]) / how["std"]).astype(np.float32)
if file["input"]["layout"] == "NCHW":
    x = np.ascontiguousarray(x.transpose(0, 3, 1, 2))
{run}
mask = np.argmax(logits[0], axis=0)
colours = Image.fromarray(np.array(what["palette"], np.uint8)[mask]).resize(photo.size, Image.Resampling.NEAREST)
drawn = pathlib.Path(sys.argv[1]).stem + "_mask.png"
Image.blend(photo, colours, 0.5).save(drawn)
for label, count in zip(what["labels"], np.bincount(mask.ravel(), minlength=len(what["labels"]))):
    if count:
        print(f"{{100 * count / mask.size:5.1f}} % {{label}}")
print(drawn)
'''

_DETECT = '''"""Draws boxes around what a photo shows: python {name} PHOTO [MODEL]. Needs {packages}, numpy and Pillow.

Writes PHOTO_boxes.png into the working directory, and prints label, score and box (left, top, right, bottom, px) of every object.
"""
import json, pathlib, sys
import numpy as np
{imports}
from PIL import Image, ImageDraw, ImageOps

LEAST, OVERLAP, MOST = 0.3, 0.5, 100  # lower scores are not drawn; of boxes of a class that overlap more, the best is kept

here = pathlib.Path(__file__).parent
facts = json.loads((here / "metadata.json").read_text("utf-8"))
model = sys.argv[2] if sys.argv[2:] else "{model}"
(file,) = [each for each in facts["files"] if model in (each["name"], *each["companions"])]
what, how = facts["description"], facts["description"]["preprocessing"]
photo = ImageOps.exif_transpose(Image.open(sys.argv[1])).convert("RGB")
square = photo.resize((how["square_px"],) * 2, Image.Resampling.BILINEAR)  # the whole photo, warped
x = np.asarray(square.resize((how["size_px"],) * 2, Image.Resampling.BILINEAR))[None]
if file["input"]["dtype"] == "float32":  # a file that takes bytes does this inside
    x = ((x / 255 - how["mean"]) / how["std"]).astype(np.float32)
if file["input"]["layout"] == "NCHW":
    x = np.ascontiguousarray(x.transpose(0, 3, 1, 2))
{run}


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
        text = what["labels"][int(label)] + " " + format(score, ".2f")
        draw.rectangle(box, outline=(255, 32, 32), width=max(2, photo.width // 200))
        draw.text((box[0] + 3, box[1] + 2), text, fill=(255, 32, 32))
        print(text, *(round(float(side)) for side in box))
photo.save(pathlib.Path(sys.argv[1]).stem + "_boxes.png")
'''

_TASKS = {"classification": ("classify", _CLASSIFY), "segmentation": ("segment", _SEGMENT), "detection": ("detect", _DETECT)}
"""Beginning of a program's name, and its text."""

_RUNTIMES = {
    "onnx": (
        "onnxruntime",
        "import onnxruntime",
        """session = onnxruntime.InferenceSession(str(here / model), providers=["CPUExecutionProvider"])
(logits,) = session.run(None, {file["input"]["name"]: x})""",
    ),
    "openvino": (
        "openvino",
        "import openvino",
        """network = openvino.Core().compile_model(str(here / model), "CPU")
logits = network(x)[0]""",
    ),
    "tflite": (
        "ai-edge-litert (or tflite-runtime)",
        """try:
    from ai_edge_litert.interpreter import Interpreter
except ImportError:
    from tflite_runtime.interpreter import Interpreter""",
        """interpreter = Interpreter(str(here / model))
interpreter.allocate_tensors()
interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
interpreter.invoke()
logits = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])""",
    ),
    "tensorrt": (
        "onnxruntime-gpu built with TensorRT",
        "import onnxruntime",
        """providers = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
session = onnxruntime.InferenceSession(str(here / model), providers=providers)
(logits,) = session.run(None, {file["input"]["name"]: x})""",
    ),
}


def script_name(format: str, description: Description) -> str:
    """Of the program for a format, of what is described."""
    return f"{_TASKS[description.task][0]}_{format}.py"


def script(file: ModelFile, description: Description) -> str:
    """The program that runs a file of what is described, or another of its format."""
    packages, imports, run = _RUNTIMES[file.format]
    name, text = script_name(file.format, description), _TASKS[description.task][1]
    return text.format(name=name, packages=packages, imports=imports, run=run, model=file.name)


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
