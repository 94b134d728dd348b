"""The ONNX file of a network that finds objects with non-maximum suppression inside: it answers with objects instead of anchors."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from natdeploy.errors import AccuracyGateError, UsageError
from natdeploy.export import Description, get_format, input_facts, write
from natdeploy.files import write_atomic
from natdeploy.runtimes import ort
from natdeploy.supernet import Subnet
from natdeploy.supernet.detectors import select
from natdeploy.tasks import Detection, Task
from natdeploy.tasks.mean_ap import Found

SUPPRESSED = "model.nms.onnx"

_ALIKE = 1e-3
"""In mean average precision: the same boxes in the same order, but for scores that differ by rounding."""


def write_suppressed(folder: Path, description: Description, subnet: Subnet, task: Task) -> Path:
    """Writes `SUPPRESSED` into a network's folder. Its output is (d, 6): left, top, right and bottom as shares of the photo's
    sides, label, score; best first.

    It is run in ONNX Runtime on all validation images before, and must be worth there what the network is worth in torch.

    Args:
        folder: of the network's files.
        description: of the network.
        subnet: the network, in evaluation mode on the CPU.
        task: gives the images.

    Raises:
        UsageError: the network does not find objects.
        AccuracyGateError: the file finds something else than torch does.
    """
    if not isinstance(task, Detection):
        raise UsageError(f"there is nothing to suppress in answers of {task.name}; leave out --nms")
    size = task.input_size(subnet.arch.resolution)
    with tempfile.TemporaryDirectory() as unchecked:
        path = Path(unchecked) / SUPPRESSED
        taken = input_facts(ort.INPUT, "nchw", size)
        write(subnet, path, get_format("onnx"), "fp32", input=taken, description=description, calibration=(), suppressed=True)
        session = ort.load(path, subnet.input_shape, 1, "fp32", ort.DELEGATES[0])
        there, here = Found(), Found()
        with torch.inference_mode():
            for images, targets in task.batches("validation", subnet.arch.resolution, 32):
                answers = [torch.from_numpy(ort.run(session, [image[None].numpy()])[0]) for image in images]
                there += Found(tuple(zip(answers, targets, strict=True)))
                here += Found(tuple((select(answer), target) for answer, target in zip(subnet(images), targets, strict=True)))
        found, expected = task.metric(there), task.metric(here)
        if not abs(found - expected) <= _ALIKE:
            raise AccuracyGateError(
                f"{SUPPRESSED} has {100 * found:.1f} % {task.metric_name} on validation images and torch {100 * expected:.1f} %; "
                "report this as a fault of natdeploy"
            )
        write_atomic(folder / SUPPRESSED, path.read_bytes())
    return folder / SUPPRESSED
