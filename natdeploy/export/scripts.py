"""Programs that come with a network: each needs its runtime, numpy and Pillow, and tells a photo's class, or draws its mask."""

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

_TASKS = {"classification": ("classify", _CLASSIFY), "segmentation": ("segment", _SEGMENT)}
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
