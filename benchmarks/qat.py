"""What quantisation-aware fine-tuning brings to int8: the same training on from the same network, with and without rounding in it.

The network is that of `quantisation.py`, with h-swish and squeeze-and-excitation. For `--epochs` it is trained on, once plainly and
once with weights and activations rounded to 8 bits as the runtimes do it, gradients passing as if they were not (arXiv 1712.05877).
Both, and the network as it was, are then quantised by each runtime's defaults, which find their ranges on calibration images.

    python benchmarks/qat.py --data DIR --seed-weights mobilenet_v2_0.35.safetensors --mbv3 mbv3.safetensors --json qat.json

Rounded are weights, a scale a channel, and what activations, squeeze-and-excitation, the blocks' last layers and their sums put
out, one scale and zero point a tensor, over the extremes that were seen. A scale a channel goes through batch normalisation, so
that it need not be folded while it learns.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from quantisation import loss, mobilenet_v3_like, photos
from torch import Tensor, nn
from torch.nn.functional import linear

from natdeploy.errors import NatdeployError
from natdeploy.hardware.runtimes import CALIBRATION_IMAGES, RUNTIMES
from natdeploy.supernet import Subnet, calibrate
from natdeploy.supernet.subnet import MBConv, SqueezeExcite
from natdeploy.tasks import Classification
from natdeploy.training.judge import BATCH
from natdeploy.training.loop import TrainSettings
from natdeploy.training.plain import train_subnet

FORGET = 0.02
"""Share of the extremes' distance by which they follow a batch that does not reach them."""


@dataclass(frozen=True)
class Row:
    """One network in one runtime, in percent and points.

    Attributes:
        net: `as it was`, `trained on` or `trained on, rounded`.
        seed: of the order and augmentation of the images.
        runtime: its name.
        fp32_val: accuracy on validation photos.
        fp32_test: accuracy on test photos.
        val: of int8.
        test: of int8.
        val_loss: fp32 less int8, points.
        test_loss: fp32 less int8, points.
        test_se: standard error of the test loss, of paired answers.
        agreement: share of all photos in the same class as by fp32.
        sqnr_db: energy of fp32's logits over that of the differences.
    """

    net: str
    seed: int
    runtime: str
    fp32_val: float
    fp32_test: float
    val: float
    test: float
    val_loss: float
    test_loss: float
    test_se: float
    agreement: float
    sqnr_db: float


def round_inside(subnet: Subnet) -> Subnet:
    """Makes a network compute with rounded weights and activations, in place; its state keeps its names."""
    for module in subnet.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            vars(module)["forward"] = _rounded_layer(module)  # hides the method of the class
        if isinstance(module, (nn.ReLU, nn.ReLU6, nn.Hardswish, nn.Hardsigmoid, SqueezeExcite, MBConv)):
            module.register_forward_hook(_Rounding())
        if isinstance(module, MBConv):
            module.project.register_forward_hook(_Rounding())
    return subnet


def _rounded_layer(layer: nn.Conv2d | nn.Linear) -> Any:
    def forward(x: Tensor) -> Tensor:
        weight = layer.weight
        scale = weight.detach().abs().flatten(1).amax(dim=1).clamp(min=1e-12) / 127
        weight = torch.fake_quantize_per_channel_affine(weight, scale, torch.zeros_like(scale, dtype=torch.int32), 0, -127, 127)
        if isinstance(layer, nn.Linear):
            return linear(x, weight, layer.bias)
        return layer._conv_forward(x, weight, layer.bias)

    return forward


class _Rounding:
    """A hook that rounds what a module puts out to 256 steps between the extremes seen so far, zero being one of them."""

    def __init__(self) -> None:
        self.low = self.high = 0.0

    def __call__(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        if module.training:
            low, high = float(output.detach().min()), float(output.detach().max())
            self.low = min(low, self.low + FORGET * (low - self.low), 0.0)
            self.high = max(high, self.high + FORGET * (high - self.high), 1e-6)
        scale = (self.high - self.low) / 255
        return torch.fake_quantize_per_tensor_affine(output, scale, round(-self.low / scale), 0, 255)


def trained_on(subnet: Subnet, task: Classification, options: argparse.Namespace, *, rounded: bool) -> Subnet:
    """The network after more training, in evaluation mode and without any rounding in it."""
    plain = copy.deepcopy(subnet)
    student = copy.deepcopy(subnet).to(memory_format=torch.channels_last)
    steps = round(options.epochs * len(task.splits.train) / 32)
    settings = TrainSettings(learning_rate=options.learning_rate)
    average = train_subnet(round_inside(student) if rounded else student, task, settings, steps, lambda: None)
    plain.load_state_dict(average.state_dict())
    calibrate(plain, (images for images, _ in task.batches("train", plain.arch.resolution, BATCH)))
    return plain.eval()


def judge(subnet: Subnet, task: Classification, runtime_name: str, folder: Path, **named: Any) -> Row:
    """A network in a runtime, in fp32 and by the defaults in int8."""
    runtime: Any = RUNTIMES[runtime_name]
    size = subnet.arch.resolution
    shape = (1, 3, size, size)
    calibration = [image[None] for image in photos(task, "train", size, CALIBRATION_IMAGES)[0]]
    parts = [photos(task, part, size) for part in ("validation", "test")]
    answers = []
    for precision in ("fp32", "int8"):
        path = folder / f"{precision}{runtime.SUFFIX}"
        given = calibration if precision == "int8" else None
        runtime.convert(subnet, torch.zeros(shape), path, precision=precision, dynamic_size=False, calibration=given)
        session = runtime.load(path, shape, 1, precision, runtime.DELEGATES[0])
        answers.append([np.concatenate([runtime.run(session, [x[None].numpy()])[0].copy() for x in images]) for images, _ in parts])
    exact, rough = answers
    right = [[100 * float((a.argmax(1) == y).mean()) for a, (_, y) in zip(each, parts, strict=True)] for each in answers]
    both, noisy = np.concatenate(exact), np.concatenate(rough)
    test_loss, test_se = loss(exact[1], rough[1], parts[1][1])
    return Row(
        **named,
        runtime=runtime_name,
        fp32_val=right[0][0],
        fp32_test=right[0][1],
        val=right[1][0],
        test=right[1][1],
        val_loss=loss(exact[0], rough[0], parts[0][1])[0],
        test_loss=test_loss,
        test_se=test_se,
        agreement=100 * float((both.argmax(1) == noisy.argmax(1)).mean()),
        sqnr_db=10 * float(np.log10((both**2).sum() / ((both - noisy) ** 2).sum())),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seed-weights", type=Path, required=True, help="a MobileNetV2")
    parser.add_argument("--mbv3", type=Path, required=True, help="the network with h-swish that quantisation.py keeps")
    parser.add_argument("--resolution", type=int, default=128)
    parser.add_argument("--epochs", type=float, default=8, help="of training on")
    parser.add_argument("--learning-rate", type=float, default=0.005)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--runtimes", nargs="+", choices=tuple(RUNTIMES), default=["onnxruntime", "openvino", "tflite"])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if not options.mbv3.exists():
        raise NatdeployError(f"there is no {options.mbv3}; benchmarks/quantisation.py trains it")
    subnet, task = mobilenet_v3_like(options)
    found: list[Row] = []
    print("| net | seed | runtime | validation, fp32 to int8 | test, fp32 to int8 | test loss | agreement | SQNR |")
    print("|" + " --- |" * 8)
    for seed in options.seeds:
        own = Classification(task.pixels, task.splits, task.mean, task.std, seed)
        nets = [("as it was", subnet)] if seed == options.seeds[0] else []
        nets += [(name, trained_on(subnet, own, options, rounded=rounded)) for name, rounded in TRAINED]
        for name, net in nets:
            for runtime in options.runtimes:
                with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
                    row = judge(net, task, runtime, Path(folder), net=name, seed=seed)
                found.append(row)
                accuracies = f"{row.fp32_val:.1f} to {row.val:.1f} % | {row.fp32_test:.1f} to {row.test:.1f} %"
                distance = f"{row.test_loss:+.1f} ± {row.test_se:.1f} | {row.agreement:.1f} % | {row.sqnr_db:.1f} dB"
                print(f"| {name} | {seed} | {runtime} | {accuracies} | {distance} |", flush=True)
        if options.json:
            options.json.write_text(json.dumps([asdict(each) for each in found], indent=1))


TRAINED = (("trained on", False), ("trained on, rounded", True))

if __name__ == "__main__":
    try:
        main()
    except NatdeployError as error:
        sys.exit(str(error))
