from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate

from natdeploy.errors import AccuracyGateError, DamagedFileError
from natdeploy.export import (
    Description,
    Latency,
    Metadata,
    OnnxFile,
    Preprocessing,
    export_onnx,
    read_bundle,
    record_latency,
    write_bundle,
)
from natdeploy.export.bundle import model_card
from natdeploy.space import get_space
from natdeploy.space.catalog import plain_arch
from natdeploy.supernet import Subnet

SPACE = get_space("demo")
ARCH = plain_arch(24, 1.0, (1, 1, 2, 1))
LABELS = ("colt's foot", "<b>|rose|</b>", "1. *daisy*")
MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.5, 0.2)
LATENCY = Latency(target="host/onnxruntime-fp32-1t", predicted_ms=0.61)
DESCRIPTION = Description(
    arch=str(ARCH),
    id=ARCH.id,
    space="demo",
    params=123_456,
    macs=7_000_000,
    labels=LABELS,
    preprocessing=Preprocessing(square_px=48, size_px=24, mean=MEAN, std=STD),
    seed="seed.safetensors",
    seed_sha256="0" * 64,
    versions={"natdeploy": "0.1.0"},
)


def make_subnet() -> Subnet:
    torch.manual_seed(0)
    return Subnet(SPACE, ARCH, len(LABELS)).eval()


SUBNET = make_subnet()
IMAGES = torch.randn(6, 3, 24, 24, generator=torch.Generator().manual_seed(0))
with torch.no_grad():
    TARGETS = SUBNET(IMAGES).argmax(dim=1)
TARGETS[0] = (TARGETS[0] + 1) % len(LABELS)


def bundle(folder: Path) -> Metadata:
    return write_bundle(
        folder,
        SUBNET,
        DESCRIPTION,
        test_images=lambda: zip(IMAGES.split(4), TARGETS.split(4), strict=True),
        validation_accuracy=0.951,
        test_accuracy=0.9425,
        latency=LATENCY,
    )


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / ARCH.id
    bundle(folder)
    return folder


@pytest.fixture
def folder(exported: Path, tmp_path: Path) -> Path:
    """A bundle to spoil."""
    return Path(shutil.copytree(exported, tmp_path / ARCH.id))


def test_bundle_is_whole_and_reads_back(tmp_path: Path) -> None:
    folder = tmp_path / "models" / ARCH.id
    written = bundle(folder)
    assert sorted(each.name for each in folder.iterdir()) == ["README.md", "metadata.json", "model.onnx"]
    assert read_bundle(folder) == written
    (file,) = written.files
    assert file.test_accuracy == 5 / 6
    assert (file.parity.n, file.parity.top1_agreement) == (6, 1.0)
    assert (file.input.shape, file.output.shape) == ((1, 3, 24, 24), (1, 3))
    facts = json.loads((folder / "metadata.json").read_text(encoding="utf-8"))
    assert facts["description"]["preprocessing"]["layout"] == "NCHW"
    assert facts["latencies"] == [LATENCY.model_dump()]


def test_model_carries_its_description(exported: Path) -> None:
    properties = {each.key: each.value for each in onnx.load(exported / "model.onnx").metadata_props}
    assert properties["arch"] == str(ARCH)
    assert json.loads(properties["labels"]) == list(LABELS)
    assert Preprocessing.model_validate_json(properties["preprocessing"]) == DESCRIPTION.preprocessing


def test_example_of_the_card_does_what_training_saw(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = np.random.default_rng(5).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    photo = Image.fromarray(blocks).resize((96, 72), Image.Resampling.BICUBIC)
    photo.save(folder / "photo.jpg", quality=100, subsampling=0)
    code = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert code is not None
    monkeypatch.chdir(folder)
    names: dict[str, object] = {}
    exec(code[1], names)

    square = Image.open("photo.jpg").resize((64, 48), Image.Resampling.BILINEAR).crop((8, 0, 56, 48))
    pixels = torch.from_numpy(np.array(square)).permute(2, 0, 1)[None].float()
    small = interpolate(pixels, size=(24, 24), mode="bilinear", antialias=True) / 255
    x = (small - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    with torch.inference_mode():
        expected = SUBNET(x)
    given = names["x"]
    assert isinstance(given, np.ndarray)
    assert np.abs(given - x.numpy()).max() < 3 / 255 / min(STD)
    assert capsys.readouterr().out == f"{LABELS[int(expected.argmax())]}\n"


def test_card_says_the_figures_and_takes_labels_for_text(exported: Path) -> None:
    card = model_card(read_bundle(exported))
    for shown in (
        str(ARCH),
        "0.12 M parameters, 7.0 M",
        "94.2 % on the test images, 95.1 %",
        "0.610 ms predicted",
        "83.3 % on the test images",
    ):
        assert shown in card
    assert r"colt's foot, \<b\>\|rose\|\</b\>, 1. \*daisy\*" in card
    assert (exported / "README.md").read_text(encoding="utf-8") == card


def test_latency_is_recorded_a_target(folder: Path) -> None:
    measured = LATENCY.model_copy(update={"measured_p50_ms": 0.624, "measured_p90_ms": 0.66, "measured_n": 192, "unstable": True})
    other = Latency(target="pi4/onnxruntime-fp32-4t", measured_p50_ms=9.5, measured_n=20)
    by_tool = Latency(target="pixel4/tflite-fp32-1t", measured_mean_ms=4.25, measured_n=50)
    record_latency(folder, measured)
    record_latency(folder, other)
    assert record_latency(folder, by_tool).latencies == (measured, other, by_tool)
    assert read_bundle(folder).latencies == (measured, other, by_tool)
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "| p50 0.624 ms, p90 0.660 ms (measured, 192 runs, unstable); 0.610 ms predicted |" in card
    assert "| latency on pi4/onnxruntime-fp32-4t | p50 9.500 ms (measured, 20 runs) |" in card
    assert "| latency on pixel4/tflite-fp32-1t | mean 4.250 ms (measured, 50 runs) |" in card


def test_a_file_that_fails_is_not_handed_out(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def faulty(subnet: Subnet, path: Path, metadata: Mapping[str, str]) -> OnnxFile:
        other = make_subnet()
        with torch.no_grad():
            other.classifier.bias[0] += 1
        return export_onnx(other, path, metadata)

    before = read_bundle(folder)
    monkeypatch.setattr("natdeploy.export.bundle.export_onnx", faulty)
    with pytest.raises(AccuracyGateError, match=r"model\.onnx differs"):
        bundle(folder)
    assert read_bundle(folder) == before


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def add_key(path: Path) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), "more": 1}), encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("model.onnx", cut, r"model\.onnx is not the file"),
        ("model.onnx", Path.unlink, r"model\.onnx cannot be read"),
        ("metadata.json", cut, r"metadata\.json is damaged"),
        ("metadata.json", add_key, r"metadata\.json is damaged \(Extra inputs are not permitted at more\)"),
        ("metadata.json", Path.unlink, r"metadata\.json cannot be read"),
    ],
)
def test_damage_is_named(folder: Path, name: str, damage: Callable[[Path], None], message: str) -> None:
    damage(folder / name)
    with pytest.raises(DamagedFileError, match=message):
        read_bundle(folder)
