"""Nets of a run as files: every format and precision, the gate, going on, and what is asked for wrongly."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from natdeploy import pipeline
from natdeploy.cli.main import app
from natdeploy.errors import DeviceError, NatdeployError, UsageError
from natdeploy.export import FORMATS, PRECISIONS, read_bundle
from natdeploy.hardware.device import parse_target
from natdeploy.pipeline import SearchConfig, model_files, run_files
from natdeploy.pipeline import export as verb
from natdeploy.pipeline.export import file_for
from natdeploy.pipeline.search import read_config
from natdeploy.pipeline.setting import stored_space
from natdeploy.progress import Silent
from natdeploy.runtimes import ort, tflite, trt
from natdeploy.space import space_toml
from natdeploy.store import RunStore

module = importlib.import_module("natdeploy.pipeline.bundles")


@pytest.fixture
def run(finished: SearchConfig) -> Iterator[Path]:
    """A finished run without files."""
    yield finished.out
    for file in sorted((finished.out / "models").rglob("*"), reverse=True):
        file.unlink() if file.is_file() else file.rmdir()
    with RunStore.open(finished.out) as store:
        store._write("DELETE FROM files")


def installed(name: str) -> bool:
    packages = {"openvino": ("openvino", "nncf"), "tflite": ("ai_edge_litert", "ai_edge_quantizer")}.get(name, ())
    return all(importlib.util.find_spec(each) for each in packages)


def test_every_format_in_every_precision(run: Path, notes: Any) -> None:
    formats = [name for name in FORMATS if installed(name)]
    files = verb(run, "knee", formats, PRECISIONS, max_drop=100, progress=notes)
    assert [(file.format, file.precision) for file in files] == [(name, precision) for name in formats for precision in PRECISIONS]
    assert pipeline.files(run) == files
    folder = run / "models" / files[0].id
    metadata = read_bundle(folder)
    described = {file.name: file for file in metadata.files}
    (net,) = [net for net in pipeline.nets(run) if (net.role, net.id) == ("front", files[0].id)]
    assert metadata.test_accuracy == net.test_accuracy, "two ways to the same number"
    for file in files:
        assert file.path is not None
        path = run / file.path
        format = FORMATS[file.format]
        assert path.name == format.file_name(file.precision)
        assert file.size_mb == sum(each.stat().st_size for each in (path, *format.runtime.companions(path))) / 1e6
        told = described[path.name]
        assert (told.validation_accuracy, told.test_accuracy) == (file.validation_accuracy, file.test_accuracy)
        assert told.drop == pytest.approx(100 * ((metadata.validation_accuracy or 0) - (file.validation_accuracy or 0)))
        if file.precision == "fp32":
            assert file.max_rel is not None
            assert file.max_rel < 1e-5
            assert (file.agreement, file.test_accuracy) == (1.0, net.test_accuracy)
        assert (told.quantisation is not None) == (file.precision == "int8")
    assert any(line.startswith("int8 learns its ranges from") for line in notes.lines), "there are few images"
    facts = json.loads((folder / "metadata.json").read_text())["description"]
    assert facts["labels"] == ["0", "1", "2"]
    assert facts["random_seed"] == 0
    assert len(facts["data_fingerprint"]) == 64
    assert "Use" in (folder / "README.md").read_text()


def test_what_is_there_and_whole_is_not_made_again(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = verb(run, "front", ("onnx",), ("fp32",))
    times = {file.path: (run / file.path).stat().st_mtime_ns for file in first if file.path}
    damaged = run / (first[0].path or "")
    damaged.write_bytes(b"damaged")
    made = 0
    original = module.write

    def counting(*arguments: Any, **options: Any) -> None:
        nonlocal made
        made += 1
        original(*arguments, **options)

    monkeypatch.setattr(module, "write", counting)
    assert verb(run, "front", ("onnx",), ("fp32",)) == first
    assert made == 1
    assert [path for path, time in times.items() if (run / path).stat().st_mtime_ns != time] == [first[0].path]
    verb(run, first[0].id, ("onnx",), ("fp16",))
    assert made == 2
    verb(run, first[0].id, ("onnx",), ("fp32",), input="image")
    assert made == 3, "another input is another file"


def test_files_that_resize_photos_are_tried_on_photos(run: Path) -> None:
    formats = [name for name in FORMATS if installed(name) and FORMATS[name].photos != "none"]
    files = verb(run, "knee", formats, ("fp32",), input="photo", photo_size=(40, 48) if "tflite" in formats else None, max_drop=100)
    (net,) = [net for net in pipeline.nets(run) if (net.role, net.id) == ("front", files[0].id)]
    metadata = read_bundle(run / "models" / net.id)
    for file, told in zip(files, metadata.files, strict=True):
        assert file.refused is None
        assert file.max_rel is not None
        assert file.max_rel < 1e-5, "of what torch makes of the same photos"
        assert told.input.resized
        assert told.trained_agreement is not None
        if told.input.sizes is None:
            assert told.input.shape == (1, None, None, 3)
            # The photos are 32 px and so is what training saw of them, so that no rounding is left.
            assert (told.trained_agreement, told.test_accuracy) == (1.0, net.test_accuracy)
    card = (run / "models" / net.id / "README.md").read_text(encoding="utf-8")
    assert "input 1xanyxanyx3 NHWC; takes bytes, resizes and scales them inside" in card
    assert "in torch's class of the images as training saw them" in card
    assert verb(run, "knee", formats, ("fp32",), input="photo", photo_size=(40, 48), max_drop=100) == files, "they are there"
    with RunStore.open(run) as store:
        path, shape, inputs = run_files._file(store, read_config(store), net, parse_target("host"), run)
    assert (shape[:2], inputs) == ((1, 3), ()), "what is timed is the net alone"
    path.unlink()
    with pytest.raises(UsageError, match="its time depends on the photo: time the file itself, with --shape 1x480x640x3"):
        model_files.bundle(run / "models" / net.id, "host/onnxruntime", Silent())


def test_an_export_that_breaks_keeps_what_is_done(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = module.add_file
    count = 0

    def breaking(*arguments: Any) -> Any:
        nonlocal count
        count += 1
        if count == 2:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(module, "add_file", breaking)
    with pytest.raises(KeyboardInterrupt):
        verb(run, "knee", ("onnx",), ("fp32", "fp16"))
    (done,) = pipeline.files(run)
    assert done.precision == "fp32"
    assert [file.name for file in read_bundle(run / "models" / done.id).files] == ["model.onnx"]
    assert len(verb(run, "knee", ("onnx",), ("fp32", "fp16"))) == 2


@pytest.mark.usefixtures("nothing_to_learn_from")
def test_a_file_that_loses_too_much_is_refused_and_a_better_one_offered(run: Path, notes: Any) -> None:
    (int8,) = verb(run, "best", ("onnx",), ("int8",), progress=notes)
    assert int8.path is None
    assert int8.refused is not None
    assert "points of validation accuracy, and at most 1 may be lost; export it with --precision fp16" in int8.refused
    assert any("model.int8.onnx is refused: it loses" in line for line in notes.lines)
    assert any(line.startswith("model.int8.onnx: on x86-64 without VNNI set session.x64quantprecision=1") for line in notes.lines)
    assert not (run / "models" / int8.id / "model.int8.onnx").exists()
    fp32, fp16, again = verb(run, "best", ("onnx",), ("int8", "fp16", "fp32"))
    assert (fp32.refused, fp16.refused) == (None, None)
    assert again.refused is not None
    assert again.refused.endswith("use model.fp16.onnx")
    assert [file.name for file in read_bundle(run / "models" / int8.id).files] == ["model.onnx", "model.fp16.onnx"]
    (kept,) = verb(run, "best", ("onnx",), ("int8",), max_drop=100)
    assert kept.path is not None
    (gone,) = verb(run, "best", ("onnx",), ("int8",), max_drop=1)
    assert gone.refused is not None, "a tighter gate takes back what a wider one let pass"
    assert not (run / kept.path).exists()

    with RunStore.open(run) as store:
        net = next(net for net in store.nets() if (net.role, net.id) == ("front", int8.id))
        assert file_for(store, net, parse_target("host")) == fp32
        assert file_for(store, net, parse_target("host", precision="int8")) is None, "it was refused"
        assert file_for(store, net, parse_target("host/openvino")) is None


@pytest.mark.usefixtures("nothing_to_learn_from")
def test_the_command_ends_with_4_where_it_is_asked_to(run: Path) -> None:
    both = ["export", str(run), "--precision", "fp32,int8"]
    assert CliRunner().invoke(app, both).exit_code == 0
    strict = CliRunner().invoke(app, [*both, "--strict"])
    assert strict.exit_code == 4
    assert "error: 1 of 2 files are refused; the reasons are above" in strict.stderr
    assert max(map(len, strict.stdout.splitlines()[:1])) <= 80


def test_a_net_whose_logits_are_not_torchs_is_a_fault(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PARITY_LIMIT", 0.0)
    (file,) = verb(run)
    assert file.refused is not None
    assert "report this as a fault of natdeploy" in file.refused


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"formats": ("coreml",)}, UsageError, r"there is no format 'coreml'; choose onnx, .*tensorrt"),
        ({"formats": ()}, UsageError, "no format is asked for"),
        ({"precisions": ("int4",)}, UsageError, "there is no precision 'int4' of files"),
        ({"input": "rgb"}, UsageError, "there is no input 'rgb' of files; choose nchw, nhwc, image, photo"),
        ({"formats": ("onnx", "tensorrt"), "input": "photo"}, UsageError, "tensorrt takes no photos"),
        ({"input": "photo", "photo_size": (48, 64)}, UsageError, "--photo-size is for tflite with --input photo; leave it out"),
        ({"max_drop": float("nan")}, UsageError, "give 0 or more"),
        ({"arch": "zzz"}, UsageError, "'zzz' begins no id of the front"),
    ],
)
def test_what_is_asked_for_wrongly_is_said(run: Path, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        verb(run, **options)
    assert pipeline.files(run) == []


def test_a_runtime_that_is_missing_is_said_before_anything_is_done(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> str:
        raise ImportError("none of ai_edge_litert, tflite_runtime is installed")

    monkeypatch.setattr(tflite, "version", missing)
    with pytest.raises(DeviceError, match=r"tflite is not installed here .* pip install ai-edge-litert"):
        verb(run, "knee", ("onnx", "tflite"))
    assert pipeline.files(run) == []


def test_tensorrts_files_are_checked_in_onnx_runtime_where_tensorrt_is_not(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> str:
        raise ImportError("no tensorrt")

    monkeypatch.setattr(trt, "version", missing)
    (file,) = verb(run, "knee", ("tensorrt",))
    (told,) = read_bundle(run / "models" / file.id).files
    assert told.checked_in == f"onnxruntime {ort.version()}"
    assert file.path == f"models/{file.id}/model.trt.onnx"
    script = (run / "models" / file.id / "build_tensorrt.sh").read_text()
    assert "--onnx=model.trt.onnx" in script
    assert "--timingCacheFile=tensorrt.timing" in script


def test_a_folder_that_cannot_be_written_is_said(run: Path) -> None:
    (run / "models").mkdir(exist_ok=True)
    (net,) = {net.id for net in pipeline.nets(run) if net.role == "baseline"}
    (run / "models" / net).write_text("a file in the way")
    with pytest.raises(NatdeployError, match="cannot be written"):
        verb(run, "baseline")
    (run / "models" / net).unlink()


def test_a_run_without_a_task_is_of_classification(finished: SearchConfig) -> None:
    with RunStore.open(finished.out) as store:
        old = {name: value for name, value in store.config.items() if name not in ("task", "head", "masks")}
        assert SearchConfig.model_validate(old) == finished and finished.task == "classification"
        assert space_toml(stored_space(finished, store)) == store.get("space")
