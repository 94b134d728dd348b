"""The folder that is handed on: whole or not there, its card, and its programs in environments of their runtime alone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import venv
from collections.abc import Callable, Iterable
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

import numpy as np
import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image
from torch.nn.functional import interpolate

from natdeploy.errors import DamagedFileError, NatdeployError
from natdeploy.export import (
    FORMATS,
    INPUT_KINDS,
    Description,
    InputKind,
    Latency,
    Metadata,
    ModelFile,
    Parity,
    TensorFacts,
    add_file,
    input_facts,
    model_card,
    quantisation,
    read_bundle,
    record_latency,
    remove_file,
    sha256,
    size_mb,
    write,
)
from natdeploy.runtimes.ort import EXACT_INT8
from natdeploy.supernet import Subnet

PHOTO = (60, 90)
SETTINGS_LINES = {"onnx": 2, "tensorrt": 1}
"""Of a program that a reader takes in at a glance, those that tell the runtime what it would do wrong by itself."""
LATENCY = Latency(target="host/onnxruntime-fp32-1t", predicted_ms=0.61)
Add = Callable[..., Metadata]


@pytest.fixture
def subnet(make_subnet: Callable[..., Subnet]) -> Subnet:
    return make_subnet(1, "same")


@pytest.fixture
def add(
    needs: Callable[[str], None],
    subnet: Subnet,
    describe: Callable[[Subnet], Description],
    pictures: Callable[[Subnet, int], tuple[torch.Tensor, torch.Tensor]],
    tmp_path: Path,
) -> Add:
    """What adds a file to a bundle."""

    def make(
        folder: Path, name: str, precision: str = "fp32", kind: InputKind = "nchw", metadata: Metadata | None = None
    ) -> Metadata:
        needs(name)
        format, description = FORMATS[name], describe(subnet)
        made = tmp_path / "made"
        made.mkdir(exist_ok=True)
        path = made / format.file_name(precision)
        calibration = [image[None] for image in pictures(subnet, 8)[1]]
        taken = input_facts("input", kind, subnet.input_shape[2:], PHOTO if format.photos == "one" else None)
        write(subnet, path, format, precision, input=taken, description=description, calibration=calibration)
        companions = format.runtime.companions(path)
        file = ModelFile(
            name=path.name,
            format=name,
            precision=precision,
            sha256=sha256(path),
            companions={each.name: sha256(each) for each in companions},
            size_mb=size_mb((path, *companions)),
            opset=17 if path.suffix == ".onnx" else None,
            input=taken,
            output=TensorFacts(name="output", shape=(1, 7)),
            quantisation=quantisation(format, 8) if precision == "int8" else None,
            checked_in="onnxruntime 1.0",
            validation_accuracy=0.951,
            drop=0.2,
            test_accuracy=0.833,
            parity=Parity(1e-6, 1e-6, 1.0, 6),
        )
        metadata = metadata or Metadata(
            description=description, validation_accuracy=0.953, test_accuracy=0.9425, latencies=(LATENCY,)
        )
        return add_file(folder, metadata, file, made)

    return make


@pytest.fixture
def folder(add: Add, tmp_path: Path) -> Path:
    """A bundle of one ONNX file."""
    add(tmp_path / "bundle", "onnx")
    return tmp_path / "bundle"


def test_a_bundle_is_whole_and_reads_back(add: Add, folder: Path) -> None:
    first = read_bundle(folder)
    assert sorted(each.name for each in folder.iterdir()) == ["README.md", "classify_onnx.py", "metadata.json", "model.onnx"]
    second = add(folder, "onnx", "int8", metadata=first)
    assert read_bundle(folder) == second
    assert [file.name for file in second.files] == ["model.onnx", "model.int8.onnx"], "the safest first"
    assert second.files[1].quantisation is not None
    assert second.files[1].quantisation.images == 8
    again = add(folder, "onnx", metadata=second)
    assert [file.name for file in again.files] == ["model.onnx", "model.int8.onnx"]
    left = remove_file(folder, again, "model.int8.onnx")
    assert read_bundle(folder) == left
    assert not (folder / "model.int8.onnx").exists()
    assert remove_file(folder, left, "model.int8.onnx") is left


def test_a_file_of_two_is_whole_with_both(add: Add, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    (file,) = add(folder, "openvino").files
    assert file.companions.keys() == {"model.bin"}
    assert file.size_mb == sum((folder / name).stat().st_size for name in ("model.xml", "model.bin")) / 1e6
    (folder / "model.bin").write_bytes(b"other")
    with pytest.raises(DamagedFileError, match=r"model\.bin is not the file"):
        read_bundle(folder)
    metadata = add(folder, "openvino")
    remove_file(folder, metadata, "model.xml")
    assert not list(folder.glob("model.*"))


def test_the_card_says_the_figures_and_takes_labels_for_text(folder: Path) -> None:
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert card == model_card(read_bundle(folder))
    assert card.startswith("---\nlibrary_name: onnx\nlicense: unknown\npipeline_tag: image-classification\n")
    assert "| host | onnxruntime, 1 thread | fp32 | 0.610 ms predicted |  | 83.3 % |" in card
    assert "94.2 % on the test images, 95.3 % in validation" in card
    assert r"colt’s foot, \<b\>\|rose\|\</b\>, 1. \*daisy\*" in card


def test_card_and_program_say_what_int8_needs_in_onnx_runtime(add: Add, folder: Path) -> None:
    option, caution = f"settings.add_session_config_entry{EXACT_INT8}".replace("'", '"'), "without VNNI, `model.int8.onnx` needs"
    assert option in (folder / "classify_onnx.py").read_text(encoding="utf-8")
    assert caution not in (folder / "README.md").read_text(encoding="utf-8")
    add(folder, "onnx", "int8", metadata=read_bundle(folder))
    assert caution in (folder / "README.md").read_text(encoding="utf-8")


def test_a_latency_is_recorded_a_target(folder: Path) -> None:
    measured = LATENCY.model_copy(update={"measured_p50_ms": 0.624, "measured_p90_ms": 0.66, "measured_n": 192, "unstable": True})
    other = Latency(target="pi4/onnxruntime-fp32-4t", measured_p50_ms=9.5, measured_n=20)
    by_tool = Latency(target="pixel4/tflite-fp32-1t", measured_mean_ms=4.25, measured_n=50)
    record_latency(folder, measured)
    record_latency(folder, other)
    assert record_latency(folder, by_tool).latencies == (measured, other, by_tool)
    assert read_bundle(folder).latencies == (measured, other, by_tool)
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "| host | onnxruntime, 1 thread | fp32 | 0.624 ms (192 runs, unstable) | 0.660 ms | 83.3 % |" in card
    assert "| pi4 | onnxruntime, 4 threads | fp32 | 9.500 ms (20 runs) |" in card
    assert "| pixel4 | tflite, 1 thread | fp32 | mean 4.250 ms (50 runs) |  |  |  |" in card, "there is no such file"


def test_a_precision_that_is_no_faster_is_said_to_be_so(folder: Path) -> None:
    record_latency(folder, LATENCY.model_copy(update={"measured_p50_ms": 0.6, "measured_n": 100}))
    faster = Latency(target="host/onnxruntime-fp16-1t", measured_p50_ms=0.5, measured_n=100)
    elsewhere = Latency(target="pi4/onnxruntime-int8-1t", measured_p50_ms=9.0, measured_n=100)
    for each in (faster, elsewhere, Latency(target="host/onnxruntime-int8-1t", measured_p50_ms=0.7, measured_n=100)):
        record_latency(folder, each)
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "On host/onnxruntime, int8 is no faster than fp32 (0.700 and 0.600 ms): use the fp32 file there." in card
    assert card.count("is no faster than") == 1


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
        ("metadata.json", add_key, r"metadata\.json is damaged \(extra inputs are not permitted at more\)"),
        ("metadata.json", Path.unlink, r"metadata\.json cannot be read"),
    ],
)
def test_damage_is_named(folder: Path, name: str, damage: Callable[[Path], None], message: str) -> None:
    damage(folder / name)
    with pytest.raises(DamagedFileError, match=message):
        read_bundle(folder)


def test_a_full_disk_keeps_the_old_file(add: Add, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = read_bundle(folder)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(NatdeployError, match=r"cannot be written \(No space left on device\)"):
        add(folder, "onnx", kind="image")
    assert read_bundle(folder) == before


RUNTIMES = {"onnx": "onnxruntime", "openvino": "openvino", "tflite": "ai-edge-litert", "tensorrt": "onnxruntime"}
"""The distribution that the program of a format needs, beside numpy and Pillow."""
PACKAGES = {"onnx": "onnxruntime", "openvino": "openvino", "tflite": "ai_edge_litert"}
REPORTS = "openvino-telemetry"
"""Reports to its vendor when it is imported; OpenVINO does without it."""


def required(names: Iterable[str], found: dict[str, Distribution] | None = None) -> dict[str, Distribution]:
    """Distributions, and what they say they need here."""
    found = {} if found is None else found
    for name in names:
        if canonicalize_name(name) not in found and name != REPORTS:
            found[canonicalize_name(name)] = each = distribution(name)
            needs = [Requirement(line) for line in each.requires or ()]
            required([need.name for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})], found)
    return found


def link(packages: Distribution, folder: Path) -> None:
    """Puts the packages of a distribution into a folder, as links."""
    for file in packages.files or ():
        # Of packages that several distributions share a folder of, only its own part.
        depth = 1 if len(file.parts) == 1 or (Path(str(packages.locate_file(file.parts[0]))) / "__init__.py").exists() else 2
        part = Path(*file.parts[:depth])
        if ".." not in part.parts and "__pycache__" not in part.parts and not os.path.lexists(folder / part):
            (folder / part).parent.mkdir(exist_ok=True)
            (folder / part).symlink_to(Path(str(packages.locate_file(part))))


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """What makes a virtual environment that has a runtime, numpy, Pillow and what these need, and tells its interpreter."""

    def make(name: str) -> Path:
        if name not in made:
            try:
                packages = required((RUNTIMES[name], "numpy", "pillow"))
            except PackageNotFoundError as error:
                pytest.skip(f"{error.name} is missing; pip install 'natdeploy[{FORMATS[name].extra or 'all'}]'")
            folder = tmp_path_factory.mktemp(name)
            venv.create(folder, symlinks=os.name != "nt", with_pip=False)
            (site,) = folder.glob("lib/python*/site-packages")
            for each in packages.values():
                link(each, site)
            made[name] = folder / "bin" / "python"
        return made[name]

    made: dict[str, Path] = {}
    return make


def run(python: Path, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Without what the environment's variables would add."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run([str(python), *arguments], cwd=folder, env=kept, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("name", PACKAGES)
def test_the_environment_has_nothing_else(clean: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    others = ["torch", "natdeploy", "onnx", "nncf", "ai_edge_quantizer", "pip"]
    others += [package for format, package in PACKAGES.items() if format != name]
    for package in ("torch", "natdeploy"):
        done = run(clean(name), "-c", f"import {package}", folder=tmp_path)
        assert (done.returncode, f"No module named '{package}'" in done.stderr) == (1, True), package
    there = f"import importlib.util; print([name for name in {[PACKAGES[name], *others]} if importlib.util.find_spec(name)])"
    assert run(clean(name), "-c", there, folder=tmp_path).stdout.strip() == str([PACKAGES[name]])


def code_lines(program: Path) -> list[str]:
    """Without the docstring and what is blank."""
    return [line for line in program.read_text(encoding="utf-8").split('"""')[2].splitlines() if line]


PROGRAMS: dict[str, tuple[InputKind, ...]] = {
    "onnx": ("nchw", "photo"),
    "openvino": ("nchw", "photo"),
    "tflite": INPUT_KINDS,
    "tensorrt": ("nchw", "image"),
}


@pytest.mark.parametrize(("name", "kind"), [(name, kind) for name, kinds in PROGRAMS.items() for kind in kinds])
def test_its_program_prints_the_class_of_a_photo(
    add: Add, subnet: Subnet, clean: Callable[[str], Path], tmp_path: Path, *, name: str, kind: InputKind
) -> None:
    folder, photo = tmp_path / "bundle", tmp_path / "a photo.jpg"
    metadata = add(folder, name, kind=kind)
    blocks = np.random.default_rng(5).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    size = metadata.description.preprocessing.square_px
    Image.fromarray(blocks).resize((2 * size, size), Image.Resampling.BICUBIC).save(photo, quality=100, subsampling=0)
    elsewhere = shutil.copytree(folder, tmp_path / "elsewhere")

    pixels = torch.from_numpy(np.array(Image.open(photo).crop((size // 2, 0, size // 2 + size, size))))
    small = interpolate(pixels.permute(2, 0, 1)[None].float(), size=(size // 2, size // 2), mode="bilinear", antialias=True) / 255
    how = metadata.description.preprocessing
    mean, std = (torch.tensor(each)[:, None, None] for each in (how.mean, how.std))
    with torch.inference_mode():
        expected = subnet((small - mean) / std)
    first, second = expected.topk(2).values[0]
    assert first - second > 0.05, "rounding decides nothing"

    done = run(clean(name), str(elsewhere / f"classify_{name}.py"), str(photo), folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(code_lines(elsewhere / f"classify_{name}.py")) <= 15 + SETTINGS_LINES.get(name, 0)
    assert done.stdout.splitlines()[-1] == metadata.description.labels[int(expected.argmax())]
