"""Detection from end to end: the same verbs, a third task."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from natdeploy import pipeline
from natdeploy.cli.main import app
from natdeploy.errors import DataError, UsageError
from natdeploy.export import read_bundle
from natdeploy.pipeline import SearchConfig
from natdeploy.pipeline import export as verb
from natdeploy.pipeline.config import BoxSettings, HeadSettings
from natdeploy.pipeline.finished import finished_nets, load_subnet
from natdeploy.pipeline.setting import prepare, stored_task
from natdeploy.progress import Silent
from natdeploy.space import Arch, cost, get_space
from natdeploy.store import NetRecord, RunStore
from natdeploy.supernet.detectors import select
from natdeploy.tasks import Detection
from natdeploy.training.judge import judge
from tests.tasks.box_sets import annotation, coco
from tests.tasks.squares import squares

pytest.importorskip("faster_coco_eval", reason="faster-coco-eval is not installed; pip install 'natdeploy[detection]'")

runner = CliRunner()
HEAD = HeadSettings(kind="ssdlite", channels=16)
NAT = {"initial": 10, "rounds": 1, "infill": 2, "parents": 4, "population": 12, "generations": 4, "measure_every": 0}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A COCO file about photos of red and blue squares, and the photos."""
    folder = tmp_path_factory.mktemp("squares")
    data = squares(n=32, side=48, most=1)
    (folder / "images").mkdir()
    boxes: list[dict[str, Any]] = []
    for key, (image, objects) in enumerate(zip(data.images, data.source.objects, strict=True)):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"images/{key:012}.png")
        for (left, top, right, bottom), label in zip(objects.boxes.tolist(), objects.labels.tolist(), strict=True):
            boxes.append(annotation(len(boxes) + 1, key, label + 1, [left, top, right - left, bottom - top]))
    coco(folder / "instances.json", boxes, range(32), [(1, "red"), (2, "blue")], height=48, width=48)
    return folder


@pytest.fixture(scope="module")
def box_tables(tmp_path_factory: pytest.TempPathFactory, made_up_table: Callable[..., None]) -> Path:
    """A folder with a table of the demo space with either head."""
    folder = tmp_path_factory.mktemp("box tables")
    for head in (HEAD, HeadSettings(kind="retinanet", channels=8)):
        made_up_table(folder, head.on(get_space("demo"), 1.0), classes=2, macs_per_ms=2e7)
    return folder


def config_of(photos: Path, seed: Path, tables: Path, out: Path, **values: Any) -> SearchConfig:
    settings = {
        "task": "detection",
        "data": photos / "instances.json",
        "out": out,
        "space": "demo",
        "seed_weights": seed,
        "head": HEAD.model_dump(exclude_unset=True),
        "constraints": ("latency<=1ms",),
        "tables": tables,
        "schedule": {"epochs": 15},
        "nat": NAT,
        "adapt": {"train": {"batch_size": 8, "learning_rate": 0.05}},
    }
    return SearchConfig.model_validate({**settings, **values})


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, photos: Path, seed_file: Path, box_tables: Path) -> SearchConfig:
    """A search, run to its end, for all tests that only look at it."""
    config = config_of(photos, seed_file, box_tables, tmp_path_factory.mktemp("found") / "run")
    pipeline.search(config)
    return config


def test_a_search_ends_with_networks_that_find_objects(found: SearchConfig) -> None:
    with RunStore.open(found.out) as store:
        nets, task = finished_nets(store), stored_task(found, store)
        assert isinstance(task, Detection) and task.image_size == (48, 48)
        for net in nets:
            subnet = load_subnet(store, Arch.parse(net.arch))
            assert judge(subnet, task, "test").metric == pytest.approx(net.test_accuracy, abs=1e-6)
            whole = cost(subnet.space, [subnet.arch], 2)
            assert (net.macs, net.params) == (whole.macs[0], whole.params[0]), "the head counts"
            assert net.params == sum(parameter.numel() for parameter in subnet.parameters())
        assert max(net.test_accuracy or 0 for net in nets) > 0.1
    assert pipeline.report(found.out).metric == "mean AP"


def test_another_strategy_and_head(photos: Path, seed_file: Path, box_tables: Path, tmp_path: Path) -> None:
    small: dict[str, Any] = {"schedule": {"epochs": 0.5}, "rounds": 1, "resolutions": (16,), "nat": {}}
    head = {"kind": "retinanet", "channels": 8}
    config = config_of(photos, seed_file, box_tables, tmp_path / "run", strategy="gradient", head=head, **small)
    pipeline.search(config)
    nets = pipeline.nets(config.out)
    assert {net.role for net in nets} == {"front", "baseline"} and all(net.test_accuracy is not None for net in nets)


# ---- files


def test_files_are_judged_by_mean_precision_in_their_runtimes(
    found: SearchConfig, photos: Path, tmp_path: Path, notes: Any
) -> None:
    formats = ["onnx", *(["openvino"] if importlib.util.find_spec("openvino") else [])]
    files = verb(found.out, "best", formats, ["fp32"], nms=True, progress=notes)
    (net,) = [net for net in pipeline.nets(found.out) if (net.role, net.id) == ("front", files[0].id)]
    metadata = read_bundle(found.out / "models" / net.id)
    what, how = metadata.description, metadata.description.preprocessing
    assert (what.task, what.metric, what.labels, how.whole, how.square_px) == ("detection", "mean AP", ("red", "blue"), True, 48)
    assert [file.format for file in files] == formats
    for file, told in zip(files, metadata.files, strict=True):
        assert file.max_rel is not None and file.max_rel < 1e-4
        assert file.test_accuracy == pytest.approx(net.test_accuracy, abs=1e-3)
        assert told.output.shape[0] == 1 and told.output.shape[2] == 6
        draws_boxes(found, net, file.format, photos, tmp_path)
    assert any("model.nms.onnx: with non-maximum suppression inside" in line for line in notes.lines)
    draws_boxes(found, net, "onnx", photos, tmp_path, "model.nms.onnx")
    assert "pipeline_tag: object-detection" in (found.out / "models" / net.id / "README.md").read_text()


def test_files_that_take_photos_find_the_same(found: SearchConfig, photos: Path, tmp_path: Path) -> None:
    formats = ["onnx", *(["openvino"] if importlib.util.find_spec("openvino") else [])]
    tflite = ["tflite"] if importlib.util.find_spec("ai_edge_litert") else []
    files = verb(
        found.out, "best", [*formats, *tflite], ["fp32"], input="photo", photo_size=(48, 64) if tflite else None, max_drop=100
    )
    (net,) = [net for net in pipeline.nets(found.out) if (net.role, net.id) == ("front", files[0].id)]
    for file in files:
        assert file.refused is None and file.max_rel is not None and file.max_rel < 1e-4
        assert file.test_accuracy == pytest.approx(net.test_accuracy, abs=0.1)
    for name in formats:
        draws_boxes(found, net, name, photos, tmp_path)


def test_its_supernet_as_a_file_gives_the_same_files(found: SearchConfig, photos: Path, tmp_path: Path, notes: Any) -> None:
    path = tmp_path / "adapted.safetensors"
    assert pipeline.supernet_save(found.out, path).head == "ssdlite"
    net = max((net for net in pipeline.nets(found.out) if net.role == "front"), key=lambda net: net.validation_accuracy)
    data, settings = photos / "instances.json", found.model_copy(update={"boxes": BoxSettings(side=48)})
    (file,) = pipeline.export_weights(
        path, tmp_path / "models", net.arch, data=data, settings=settings, nms=True, progress=notes, max_drop=100
    )
    what = read_bundle(tmp_path / "models" / net.id).description
    assert (what.task, what.labels, what.macs) == ("detection", ("red", "blue"), net.macs)
    assert what.preprocessing.whole and what.preprocessing.square_px == 48
    assert file.validation_accuracy is not None and file.max_rel is not None and file.max_rel < 1e-4
    assert (tmp_path / "models" / net.id / "model.nms.onnx").is_file()
    with pytest.raises(UsageError, match="what --nms writes is judged by images, and none are given"):
        pipeline.export_weights(path, tmp_path, net.arch, nms=True)


def draws_boxes(config: SearchConfig, net: NetRecord, name: str, photos: Path, folder: Path, *model: str) -> None:
    """The program beside the files, run as a user would, on a photo whose answer torch knows."""
    photo = shutil.copy(photos / "images/000000000003.png", folder / f"{name}.png")
    command = [sys.executable, str(config.out / "models" / net.id / f"detect_{name}.py"), str(photo), *model]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    with RunStore.open(config.out) as store:
        subnet, task = load_subnet(store, Arch.parse(net.arch)), stored_task(config, store)
    assert isinstance(task, Detection)
    place = task.data.source.images.index("images/000000000003.png")
    alone = task.with_splits(type(task.splits)((place,), (place,), (place,), (place,)))
    images, _ = next(alone.batches("test", subnet.arch.resolution, 1))
    with torch.inference_mode():
        expected = [row for row in select(subnet(images)[0]).tolist() if row[5] >= 0.31]
    lines = [re.fullmatch(r"(red|blue) (0\.\d\d|1\.00)((?: -?\d+){4})", line) for line in done.stdout.splitlines()]
    told = [(each[1], float(each[2]), [int(side) for side in each[3].split()]) for each in lines if each is not None]
    assert len(told) == len(lines) and [score for _, score, _ in told] == sorted((score for _, score, _ in told), reverse=True)
    for *box, label, score in expected:
        # The photo is resized by Pillow there and by torch here.
        assert any(
            (name, number) == (task.classes[int(label)], pytest.approx(score, abs=0.05))
            and np.allclose(sides, [48 * side for side in box], atol=2)
            for name, number, sides in told
        ), (told, expected)
    drawn = np.asarray(Image.open(folder / f"{name}_boxes.png")).astype(int)
    assert (drawn != np.asarray(Image.open(photo)).astype(int)).any()


# ---- bad input


def test_what_is_no_task_of_boxes_is_refused_in_a_sentence(
    photos: Path, seed_file: Path, box_tables: Path, tmp_path: Path, notes: Any
) -> None:
    def config(**values: Any) -> SearchConfig:
        return config_of(photos, seed_file, box_tables, tmp_path / "run", **values)

    with pytest.raises(ValueError, match="head lraspp is not for detection; choose ssdlite or retinanet"):
        config(head={"kind": "lraspp"})
    with pytest.raises(ValueError, match="head ssdlite is not for segmentation; choose deeplabv3 or lraspp"):
        config(task="segmentation")
    with pytest.raises(ValueError, match="reads features of several strides; leave out the output stride"):
        config(head={"output_stride": 8})
    assert config(head=None).head == HeadSettings(kind="ssdlite")
    broken = shutil.copytree(photos, tmp_path / "broken")
    (broken / "images/000000000001.png").unlink()
    with pytest.raises(DataError, match=r"1 images of .* cannot be used: images/000000000001\.png \(is named by instances\.json"):
        pipeline.search(config(data=broken / "instances.json", strict=True))
    assert prepare(config(data=broken / "instances.json"), notes).task.classes == ("red", "blue")
    assert any("1 images of" in line for line in notes.lines)
    assert not (tmp_path / "run").exists()


def test_the_command_line_says_what_is_wrong(photos: Path, seed_file: Path, tmp_path: Path) -> None:
    common = ["search", "--seed-weights", str(seed_file), "--space", "demo", "--out", str(tmp_path / "run"), "--task", "detection"]
    done = runner.invoke(app, [*common, "--data", str(tmp_path)])
    assert done.exit_code == 1 and "holds neither annotations/*.json (COCO) nor Annotations/" in " ".join(done.output.split())
    done = runner.invoke(app, [*common, "--data", str(photos / "instances.json"), "--head", "lraspp"])
    assert done.exit_code == 2 and "choose ssdlite or retinanet" in " ".join(done.output.split())


def test_real_weights_prepare_a_search_on_blood_cells(shared: Path, tmp_path: Path) -> None:
    config = SearchConfig(
        task="detection",
        data=shared / "data/bccd",
        out=tmp_path / "run",
        seed_weights=shared / "weights/mobilenet_v2_0.35_imagenet_backbone.safetensors",
        resolutions=(96,),
        head={"kind": "ssdlite", "channels": 32},
        boxes={"side": 96},
    )
    setting = prepare(config, Silent())
    assert setting.classes == ("Platelets", "RBC", "WBC") and setting.task.image_size == (96, 96)
    subnet = setting.supernet.extract(setting.seed_arch(96))
    assert subnet(torch.zeros(1, 3, 96, 96)).shape == subnet.output_shape == (1, 6 * (36 + 9 + 4 + 1 + 1 + 1), 7)
