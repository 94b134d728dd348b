"""What int8 costs, by runtime and setting: accuracy on real photos, agreement with fp32, size and latency.

Two networks, both for the classes of `--data`: one of a finished search, and one with h-swish and squeeze-and-excitation where
MobileNetV3 has them. There is no pretrained MobileNetV3 to be had here, so that one is a pretrained MobileNetV2 with other
activations and new squeeze-and-excitation, trained for `--epochs` on the training images; `--mbv3 FILE` keeps it.

    python benchmarks/quantisation.py --data DIR --run RUN --seed-weights mobilenet_v2_0.35.safetensors --mbv3 mbv3.safetensors \\
        --json quantisation.json --csv quantisation.csv

Each setting differs from the runtime's default in what its name says. Every file computes every validation and test photo, one at
a time; the loss is against the same runtime's fp32 file on the same photos, and its standard error is that of paired answers.
Latencies are ratios to fp32 measured beside it.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from natdeploy.errors import NatdeployError
from natdeploy.hardware.bench import SUBNETS, Candidate
from natdeploy.hardware.device import parse_target
from natdeploy.hardware.measure import measure
from natdeploy.hardware.runtimes import CALIBRATION_IMAGES, RUNTIMES
from natdeploy.pipeline.finished import finished_nets, load_subnet
from natdeploy.pipeline.search import read_config
from natdeploy.pipeline.setting import stored_task
from natdeploy.progress import Silent
from natdeploy.runtimes import ort, ov, tflite
from natdeploy.space import Arch
from natdeploy.store import RunStore
from natdeploy.supernet import Seed, Subnet, calibrate, choose_input, read_seed, write_seed
from natdeploy.tasks import Classification, SplitName, decode, scan_images, split
from natdeploy.training.judge import BATCH
from natdeploy.training.loop import TrainSettings
from natdeploy.training.plain import train_subnet

SQUEEZED, RELU_UNTIL = (2, 4, 5, 6), 3
"""Stages with squeeze-and-excitation, and how many have ReLU before h-swish begins: MobileNetV3-Large's, by feature map."""

SETTINGS: dict[str, dict[str, Any]] = {
    "onnxruntime": {
        "default": ort.Int8(),
        "one scale a layer": ort.Int8(per_channel=False),
        "moving average": ort.Int8(ranges="average"),
        "percentile 99.99": ort.Int8(ranges="percentile"),
        "percentile 99.9": ort.Int8(ranges="percentile", percentile=99.9),
        "entropy": ort.Int8(ranges="entropy"),
        "fp32 first convolution": ort.Int8(first=False),
        "fp32 classifier": ort.Int8(last=False),
        "fp32 squeeze-excite": ort.Int8(gates=False),
    },
    "openvino": {
        "default": ov.Int8(),
        "NNCF's own": ov.Int8(ranges="default", uneven=True),
        "one scale a layer": ov.Int8(per_channel=False),
        "uneven layers too": ov.Int8(uneven=True),
        "mean of extremes": ov.Int8(ranges="average"),
        "percentile 99.99": ov.Int8(ranges="percentile"),
        "histogram": ov.Int8(ranges="histogram"),
        "no bias correction": ov.Int8(bias_correction="none"),
        "full bias correction": ov.Int8(bias_correction="full"),
        "fp32 squeeze-excite": ov.Int8(gates=False),
    },
    "tflite": {
        "default": tflite.Int8(),
        "moving average": tflite.Int8(ranges="average"),
        "one scale a layer": tflite.Int8(per_channel=False),
        "fused h-swish": tflite.Int8(fused_hswish=True),
        "fp32 h-swish": tflite.Int8(fused_hswish=True, kept=("HARD_SWISH",)),
        "fused h-swish, fp32 squeeze-excite": tflite.Int8(fused_hswish=True, kept=("MUL", "MEAN")),
        "fp32 classifier": tflite.Int8(kept=("FULLY_CONNECTED",)),
    },
}
SIZES = (16, 64, 256)
"""Numbers of calibration images, beside the default."""


@dataclass(frozen=True)
class Row:
    """One file.

    Attributes:
        net: `mbv2` or `mbv3`.
        runtime: its name.
        setting: in words.
        images: that it was calibrated by.
        val_loss: points of accuracy on validation photos, fp32 less int8.
        val_se: its standard error.
        test_loss: points of accuracy on test photos.
        test_se: its standard error.
        agreement: percent of all photos in the same class as by fp32.
        sqnr_db: energy of fp32's logits over that of the differences.
        size_mb: of the file.
        fp32_mb: of the fp32 file.
        latency_ratio: to fp32, measured side by side.
        convert_s: time to convert.
    """

    net: str
    runtime: str
    setting: str
    images: int
    val_loss: float
    val_se: float
    test_loss: float
    test_se: float
    agreement: float
    sqnr_db: float
    size_mb: float
    fp32_mb: float
    latency_ratio: float | None
    convert_s: float


def loss(exact: np.ndarray, rough: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Points of accuracy lost, and the standard error, of paired answers; logits (n, classes)."""
    change = 100.0 * ((exact.argmax(1) == labels).astype(float) - (rough.argmax(1) == labels))
    return float(change.mean()), float(change.std() / math.sqrt(len(change)))


def mobilenet_v3_like(options: argparse.Namespace) -> tuple[Subnet, Classification]:
    """The seed as a network with h-swish and squeeze-and-excitation, trained, and its task; kept in `--mbv3`."""
    seed = read_seed(options.seed_weights)
    pixels = decode(scan_images(options.data), options.resolution)
    splits = split(pixels.source, 0)
    photos = pixels.images[list(splits.train[:: max(1, len(splits.train) // 32)][:32])].float() / 255
    convention = choose_input(replace(seed, arch=replace(seed.arch, resolution=options.resolution)), photos)
    learned = replace(splits, train=tuple(sorted(splits.train + splits.calibration)))
    task = Classification(pixels, learned, convention.mean, convention.std, 0)
    subnet = _dressed(replace(seed, padding=convention.padding), options.resolution, len(task.classes))
    if options.mbv3.exists():
        subnet.load_state_dict({**subnet.state_dict(), **read_seed(options.mbv3, subnet.space).state})
        return subnet.eval(), task
    steps = round(options.epochs * len(learned.train) / 32)
    subnet = train_subnet(subnet.to(memory_format=torch.channels_last), task, TrainSettings(), steps, lambda: None)
    calibrate(subnet, (images for images, _ in task.batches("train", options.resolution, BATCH)))
    write_seed(subnet, options.mbv3)
    return subnet.eval(), task


def _dressed(seed: Seed, resolution: int, classes: int) -> Subnet:
    """A MobileNetV2 with MobileNetV3's activations and squeeze-and-excitation, where the latter and the classifier are new."""
    stages = (
        replace(stage, activation="relu" if i < RELU_UNTIL else "hswish", squeeze=i in SQUEEZED)
        for i, stage in enumerate(seed.space.stages)
    )
    space = replace(
        seed.space,
        name="mbv2_hswish_se",
        resolutions=(resolution,),
        stages=tuple(stages),
        stem_activation="hswish",
        head_activation="hswish",
    )
    torch.manual_seed(0)
    subnet = Subnet(space, replace(seed.arch, resolution=resolution), classes, seed.padding or "symmetric", seed.norm_eps)
    own = subnet.state_dict()
    subnet.load_state_dict({**own, **{k: v for k, v in seed.state.items() if k in own and own[k].shape == v.shape}})
    return subnet


def searched(options: argparse.Namespace) -> tuple[Subnet, Classification]:
    """A net of a finished run, and the run's task."""
    with RunStore.open(options.run) as store:
        net = next((each for each in finished_nets(store) if each.id.startswith(options.arch)), None)
        if net is None:
            raise NatdeployError(f"there is no net {options.arch} in {options.run}")
        return load_subnet(store, Arch.parse(net.arch)), stored_task(read_config(store), store)


def photos(task: Classification, part: SplitName, resolution: int, limit: int | None = None) -> tuple[torch.Tensor, np.ndarray]:
    """Images (n, 3, r, r) and labels (n,) of a split."""
    batches = list(task.batches(part, resolution, BATCH, limit))
    return torch.cat([x for x, _ in batches]).contiguous(), torch.cat([y for _, y in batches]).numpy()


def rows(name: str, subnet: Subnet, task: Classification, runtime_name: str, folder: Path) -> Iterator[Row]:
    """Every setting of a runtime."""
    runtime: Any = RUNTIMES[runtime_name]
    size = subnet.arch.resolution
    calibration = [image[None] for image in photos(task, "train", size, max(SIZES))[0]]
    validation, test = photos(task, "validation", size), photos(task, "test", size)
    shape = (1, 3, size, size)

    def written(label: str, precision: str, **settings: Any) -> tuple[Path, float]:
        path, start = folder / f"{label}{runtime.SUFFIX}", time.perf_counter()
        runtime.convert(subnet, torch.zeros(shape), path, precision=precision, dynamic_size=False, **settings)
        return path, time.perf_counter() - start

    def megabytes(path: Path) -> float:
        return sum(each.stat().st_size for each in (path, *runtime.companions(path))) / 1e6

    def logits(path: Path, precision: str, images: torch.Tensor) -> np.ndarray:
        session = runtime.load(path, shape, 1, precision, runtime.DELEGATES[0])
        return np.concatenate([runtime.run(session, [image[None].numpy()])[0].copy() for image in images])

    exact, _ = written("fp32", "fp32")
    expected = [logits(exact, "fp32", images) for images, _ in (validation, test)]
    wanted = [(setting, CALIBRATION_IMAGES, int8) for setting, int8 in SETTINGS[runtime_name].items()]
    wanted[1:1] = [("default", count, SETTINGS[runtime_name]["default"]) for count in SIZES]
    found: list[tuple[Path, Row]] = []
    for i, (setting, count, int8) in enumerate(wanted):
        path, seconds = written(f"int8-{i}", "int8", calibration=calibration[:count], int8=int8)
        rough = [logits(path, "int8", images) for images, _ in (validation, test)]
        both, noisy = np.concatenate(expected), np.concatenate(rough)
        found.append(
            (
                path,
                Row(
                    name,
                    runtime_name,
                    setting,
                    count,
                    *loss(expected[0], rough[0], validation[1]),
                    *loss(expected[1], rough[1], test[1]),
                    agreement=100 * float((both.argmax(1) == noisy.argmax(1)).mean()),
                    sqnr_db=10 * math.log10(float((both**2).sum()) / float(((both - noisy) ** 2).sum())),
                    size_mb=megabytes(path),
                    fp32_mb=megabytes(exact),
                    latency_ratio=None,
                    convert_s=seconds,
                ),
            )
        )
        print(found[-1][1], file=sys.stderr, flush=True)
    # Of one target, since a file's own precision decides what is computed; OpenVINO's hint is the same for both.
    candidates = [Candidate(str(i), path, shape) for i, (path, row) in enumerate(found) if row.images == CALIBRATION_IMAGES]
    reference, target = Candidate("fp32", exact, shape), parse_target(f"host/{runtime_name}")
    times = measure(candidates, reference, target, SUBNETS, seed=0, progress=Silent())
    ratios = {each.id: each.relative for each in times.measurements}
    for i, (_, row) in enumerate(found):
        yield replace(row, latency_ratio=ratios.get(str(i)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--run", type=Path, required=True, help="a finished search on the same images")
    parser.add_argument("--arch", default="", help="beginning of the net's id in it; the first by default")
    parser.add_argument("--seed-weights", type=Path, required=True, help="a MobileNetV2")
    parser.add_argument("--mbv3", type=Path, required=True, help="where the network with h-swish is kept; trained if not there")
    parser.add_argument("--resolution", type=int, default=128)
    parser.add_argument("--epochs", type=float, default=30)
    parser.add_argument("--nets", nargs="+", choices=("mbv2", "mbv3"), default=["mbv2", "mbv3"])
    parser.add_argument("--runtimes", nargs="+", choices=tuple(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--csv", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: list[Row] = []
    print("| net | runtime | setting | images | validation loss | test loss | agreement | SQNR | size | latency / fp32 |")
    print("|" + " --- |" * 10)
    for name in options.nets:
        subnet, task = searched(options) if name == "mbv2" else mobilenet_v3_like(options)
        with torch.inference_mode():
            for part in ("validation", "test"):
                images, labels = photos(task, part, subnet.arch.resolution)
                accuracy = float((subnet(images).argmax(1).numpy() == labels).mean())
                print(f"{name}: {subnet.arch}, {100 * accuracy:.1f} % of {len(labels)} {part} photos", file=sys.stderr)
        for runtime in options.runtimes:
            with tempfile.TemporaryDirectory() as folder:
                for row in rows(name, subnet, task, runtime, Path(folder)):
                    found.append(row)
                    ratio = "" if row.latency_ratio is None else f"{row.latency_ratio:.2f}"
                    print(
                        f"| {row.net} | {row.runtime} | {row.setting} | {row.images} | {row.val_loss:+.1f} ± {row.val_se:.1f}"
                        f" | {row.test_loss:+.1f} ± {row.test_se:.1f} | {row.agreement:.1f} % | {row.sqnr_db:.1f} dB"
                        f" | {row.size_mb:.2f} of {row.fp32_mb:.2f} MB | {ratio} |",
                        flush=True,
                    )
            if options.json:
                options.json.write_text(json.dumps([asdict(each) for each in found], indent=1))
    if options.csv:
        with options.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, [each.name for each in fields(Row)])
            writer.writeheader()
            writer.writerows(asdict(each) for each in found)


if __name__ == "__main__":
    try:
        main()
    except NatdeployError as error:
        sys.exit(str(error))
