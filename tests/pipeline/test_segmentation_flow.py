"""Segmentation from end to end: the same verbs, another task."""

from __future__ import annotations

import importlib.util
import json
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
from natdeploy.errors import DataError, InfeasibleError, UsageError
from natdeploy.export import FORMATS, read_bundle
from natdeploy.hardware.device import parse_target
from natdeploy.latency.predictor import LatencyPredictor
from natdeploy.latency.table import read_table
from natdeploy.pipeline import SearchConfig
from natdeploy.pipeline import export as verb
from natdeploy.pipeline.config import HeadSettings
from natdeploy.pipeline.finished import finished_nets, load_subnet
from natdeploy.pipeline.profile import find_table, table_folder
from natdeploy.pipeline.setting import make_supernet, prepare, read_for, stored_space, stored_task
from natdeploy.progress import Silent
from natdeploy.space import Arch, cost, get_space
from natdeploy.store import NetRecord, RunStore
from natdeploy.supernet import read_seed
from natdeploy.tasks import Segmentation
from natdeploy.tasks.masks import CAMVID, CAMVID_VOID
from natdeploy.training.judge import judge

runner = CliRunner()


def changed(config: SearchConfig, **values: Any) -> SearchConfig:
    return SearchConfig.model_validate({**config.model_dump(exclude_unset=True), **values})


# ---- search


def test_a_search_ends_with_networks_that_tell_pixels_apart(dense_finished: SearchConfig) -> None:
    with RunStore.open(dense_finished.out) as store:
        nets, task, space = finished_nets(store), stored_task(dense_finished, store), stored_space(dense_finished, store)
        for net in nets:
            subnet = load_subnet(store, Arch.parse(net.arch))
            assert subnet.dense and net.test_accuracy is not None
            assert judge(subnet, task, "test").metric == pytest.approx(net.test_accuracy, abs=1e-6)
            whole = cost(space, [Arch.parse(net.arch)], len(task.classes))
            assert (net.macs, net.params) == (whole.macs[0], whole.params[0]), "head and shape of input count"
            assert net.params == sum(parameter.numel() for parameter in subnet.parameters())
        assert max(net.test_accuracy or 0 for net in nets) > 0.6
        evaluations = store.evaluations()
    assert all(each.metric is not None and 0 <= each.metric <= 1 for each in evaluations)


def test_the_report_calls_the_metric_by_its_name(dense_finished: SearchConfig) -> None:
    result = pipeline.report(dense_finished.out)
    assert (result.metric, result.summary["task"]) == ("mean IoU", "segmentation")
    page = result.page.read_text()
    assert "test mean IoU" in page and "accuracy" not in re.sub(r"<script.*?</script>|_accuracy", "", page, flags=re.DOTALL)
    shown = runner.invoke(app, ["report", str(dense_finished.out)])
    assert shown.exit_code == 0 and "test, valid.: mean IoU" in shown.output


def test_a_finished_run_stays_and_its_files_are_found_again(dense_finished: SearchConfig, notes: Any) -> None:
    assert pipeline.resume(dense_finished.out, progress=notes) == dense_finished.out
    with RunStore.open(dense_finished.out) as store:
        kept = {name: store.get(name) for name in ("fingerprint", "splits", "image_size", "aspect", "classes")}
        again = stored_task(dense_finished, store)
    assert isinstance(again, Segmentation) and kept["image_size"] == [32, 64] and kept["aspect"] == 2.0
    assert again.facts() == {name: value for name, value in kept.items() if name != "aspect"}


@pytest.mark.parametrize("strategy", ["random", "gradient"])
def test_other_strategies_choose_networks_for_it(
    dense_config: SearchConfig, made_up_table: Callable[..., None], tmp_path: Path, strategy: str
) -> None:
    head = HeadSettings(kind="deeplabv3", channels=8, output_stride=8)
    made_up_table(tmp_path, head.on(get_space("demo"), 2.0), classes=2, macs_per_ms=2e7)
    config = changed(dense_config, strategy=strategy, nat=NAT if strategy == "random" else {}, head=head, tables=tmp_path)
    config = changed(config, schedule={"epochs": 1}, rounds=1, resolutions=(16,), gradient={"batch_size": 2})
    pipeline.search(config)
    nets = pipeline.nets(config.out)
    assert {net.role for net in nets} == {"front", "baseline"} and all(net.test_accuracy is not None for net in nets)
    assert all(net.predicted_ms is not None and net.predicted_ms <= 1 for net in nets if net.role == "front")


NAT = {"initial": 10, "infill": 2, "parents": 4, "population": 12, "generations": 4, "measure_every": 0}


# ---- files


def installed(name: str) -> bool:
    packages = {"openvino": ("openvino", "nncf"), "tflite": ("ai_edge_litert", "ai_edge_quantizer")}.get(name, ())
    return all(importlib.util.find_spec(each) for each in packages)


def test_every_format_is_judged_by_mean_iou_in_its_runtime(dense_finished: SearchConfig, scenes: Path, tmp_path: Path) -> None:
    formats = [name for name in FORMATS if installed(name)]
    files = verb(dense_finished.out, "best", formats)
    assert [file.format for file in files] == formats
    (net,) = [net for net in pipeline.nets(dense_finished.out) if (net.role, net.id) == ("front", files[0].id)]
    metadata = read_bundle(dense_finished.out / "models" / net.id)
    assert metadata.test_accuracy == pytest.approx(net.test_accuracy)
    what, how = metadata.description, metadata.description.preprocessing
    assert (what.task, what.metric, what.labels, how.cut) == ("segmentation", "mean IoU", ("ground", "thing"), (32, 64))
    assert what.palette == ((0, 0, 0), (128, 0, 0))
    for file, told in zip(files, metadata.files, strict=True):
        assert told.output.shape == (1, 2, *how.size) and told.input.shape == (1, 3, *how.size)
        assert file.max_rel is not None and file.max_rel < 1e-4
        assert file.test_accuracy == pytest.approx(net.test_accuracy, abs=1e-3)
    card = (dense_finished.out / "models" / net.id / "README.md").read_text()
    assert "pipeline_tag: image-segmentation" in card and "metrics: [mean_iou]" in card and "mean IoU" in card
    assert "accuracy" not in card
    for name in formats:
        draws_the_mask(dense_finished, net, name, scenes, tmp_path)


def test_a_quantised_file_passes_the_gate_by_mean_iou(dense_finished: SearchConfig) -> None:
    (kept,) = verb(dense_finished.out, "best", ["onnx"], ["int8"], max_drop=100, input="image")
    assert kept.test_accuracy is not None and kept.test_accuracy > 0.4 and kept.refused is None


@pytest.mark.usefixtures("nothing_to_learn_from")
def test_a_quantised_file_is_refused_by_mean_iou(dense_finished: SearchConfig) -> None:
    (refused,) = verb(dense_finished.out, "fastest", ["onnx"], ["int8"])
    assert re.fullmatch(r"it loses .* points of validation mean IoU, and at most 1 may be lost; .*", refused.refused or "")


def test_files_that_take_photos_are_judged_by_photos(dense_finished: SearchConfig, scenes: Path, tmp_path: Path) -> None:
    formats = [name for name in FORMATS if installed(name) and FORMATS[name].photos != "none"]
    size = (48, 64) if "tflite" in formats else None  # higher than the photos, which lie in the middle then
    files = verb(dense_finished.out, "best", formats, input="photo", photo_size=size)
    (net,) = [net for net in pipeline.nets(dense_finished.out) if (net.role, net.id) == ("front", files[0].id)]
    made = [each for each in read_bundle(dense_finished.out / "models" / net.id).files if each.precision == "fp32"]
    assert [each.format for each in made if each.input.resized] == formats
    for file in files:
        (told,) = [each for each in made if each.format == file.format]
        assert file.refused is None and file.max_rel is not None and file.max_rel < 1e-4
        assert told.input.resized and told.trained_agreement is not None and told.trained_agreement > 0.97
        assert file.test_accuracy == pytest.approx(files[0].test_accuracy, abs=1e-3), "the same is seen"
        assert file.test_accuracy == pytest.approx(net.test_accuracy, abs=0.05), "photos are not rounded on the way"
    for name in formats:
        draws_the_mask(dense_finished, net, name, scenes, tmp_path)
    # A photo of another shape: what is drawn is the part that was seen.
    upright = tmp_path / "upright.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 50, 3), dtype=np.uint8)).save(upright)
    command = [sys.executable, str(dense_finished.out / "models" / net.id / "segment_onnx.py"), str(upright)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert Image.open(tmp_path / "upright_mask.png").size == (64, 32)


def draws_the_mask(config: SearchConfig, net: NetRecord, name: str, scenes: Path, folder: Path) -> None:
    """The program beside the files, run as a user would, on a photo whose answer torch knows."""
    photo = shutil.copy(scenes / "images/03.png", folder / f"{name}.png")
    command = [sys.executable, str(config.out / "models" / net.id / f"segment_{name}.py"), str(photo)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    *shares, drawn = done.stdout.splitlines()
    assert drawn == f"{name}_mask.png" and all(re.fullmatch(r" *\d+\.\d % (ground|thing)", line) for line in shares)
    with RunStore.open(config.out) as store:
        subnet, task = load_subnet(store, Arch.parse(net.arch)), stored_task(config, store)
    assert isinstance(task, Segmentation)
    place = task.data.source.images.index("images/03.png")
    alone = task.with_splits(type(task.splits)((place,), (place,), (place,), (place,)))
    images, _ = next(alone.batches("test", subnet.arch.resolution, 1))
    with torch.inference_mode():
        expected = subnet(images).argmax(1)[0].numpy()
    pixels = np.asarray(Image.open(folder / drawn).convert("RGB")).astype(int)
    original = np.asarray(Image.open(photo)).astype(int)
    size = (original.shape[1], original.shape[0])
    things = np.asarray(Image.fromarray(expected.astype(np.uint8)).resize(size, Image.Resampling.NEAREST))
    red = 2 * pixels[..., 0] - original[..., 0] > 64
    assert (red == (things == 1)).mean() > 0.97, "the photo is resized by Pillow there and by torch here"


# ---- latency of the whole network


def test_tables_hold_the_head_and_are_of_these_classes(dense_tables: Path, dense_finished: SearchConfig, notes: Any) -> None:
    target = parse_target("host")
    assert dense_finished.head is not None
    space = dense_finished.head.on(get_space("demo"), 2.0)
    table = read_table(table_folder(dense_tables, target, space, 2), target.slug)
    kinds = {row.block.kind for row in table.blocks}
    assert {"stem", "mbconv", "lraspp", "lraspp_low"} == kinds
    predictor = LatencyPredictor.fit(table, space)
    archs = space.decode_all(space.sample(20, np.random.default_rng(1)))
    found = predictor.predict(space, archs, 2)
    whole = 0.002 + cost(space, archs, 2).macs / 2e7
    assert found.known.all() and np.abs(found.latency_ms / whole - 1).mean() < 0.04, "the table is made of the whole networks' MACs"
    assert find_table(dense_tables, target, space, notes, 2) is not None
    for other in (3, None):
        assert find_table(dense_tables, target, space, notes, other) is None


# ---- bad input


def test_what_is_no_task_of_masks_is_refused_in_a_sentence(dense_config: SearchConfig, scenes: Path, tmp_path: Path) -> None:
    for name, value, message in (
        ("head", {"kind": "fcn"}, "lraspp"),
        ("head", {"output_stride": 0}, "greater than or equal to 1"),
    ):
        with pytest.raises(ValueError, match=message):
            changed(dense_config, **{name: value})
    with pytest.raises(ValueError, match="task classification has a linear layer for its head; leave out the head, or add --task"):
        changed(dense_config, task="classification")
    with pytest.raises(UsageError, match="output_stride must be one of 1, 2, 4, 8, where a stage of space demo ends, not 16"):
        pipeline.search(changed(dense_config, head={"output_stride": 16}))
    with pytest.raises(InfeasibleError, match=r"latency.*ms"):
        pipeline.search(changed(dense_config, constraints=("latency<=0.0001ms",)))
    broken = shutil.copytree(scenes, tmp_path / "broken")
    Image.new("L", (10, 10)).save(broken / "masks/01.png")
    Image.new("L", (64, 32), 7).save(broken / "masks/02.png")
    config = changed(dense_config, data=broken, strict=True)
    with pytest.raises(DataError, match=r"01\.png \(its mask has 10 x 10 px, the image 64 x 32\).*labels that no class has: 7"):
        pipeline.search(config)
    (broken / "classes.txt").write_text("ground\nthing\nsky\n")
    with pytest.raises(DataError, match=r"no pixel of the .* training images in .* is of class sky; add images of it, or remove"):
        pipeline.search(changed(config, strict=False))
    assert not config.out.exists()


def test_the_command_line_says_what_is_wrong(scenes: Path, seed_file: Path, tmp_path: Path) -> None:
    common = ["search", "--data", str(scenes), "--seed-weights", str(seed_file), "--space", "demo", "--out", str(tmp_path / "run")]
    done = runner.invoke(app, [*common, "--task", "segmentation", "--output-stride", "16"])
    assert done.exit_code == 2 and "output_stride must be one of 1, 2, 4, 8" in done.output
    done = runner.invoke(app, [*common, "--head", "lraspp"])
    assert done.exit_code == 2 and "--task segmentation" in " ".join(done.output.split())
    done = runner.invoke(app, ["profile", "--output-stride", "8"])
    assert done.exit_code == 2 and "name it with --head" in " ".join(done.output.split())
    done = runner.invoke(app, ["profile", "--head", "lraspp", "--aspect", "wide"])
    assert done.exit_code == 2 and "no shape of images" in " ".join(done.output.split())


# ---- seeds


def test_a_supernet_of_the_space_keeps_its_weights_under_a_dense_head(shared: Path) -> None:
    seed, space = read_for(shared / "ofa_golden/ofa_mbv3_w0.25_newkeys.pth", get_space("ofa_mbv3"))
    dense = HeadSettings(channels=8).on(space, 1.0)
    supernet, report = make_supernet(seed, dense, 3, "symmetric", torch.Generator().manual_seed(0))
    state = supernet.state_dict()
    kept = [name for name in seed.state if name.startswith(("stem.", "stages."))]
    assert kept and all(torch.equal(state[name], seed.state[name]) for name in kept)
    assert all(name.startswith("classifier.") for name in report.unmapped)
    assert {name.partition(".")[0] for name in report.unused} == {"head", "mix", "classifier"}


def test_real_weights_prepare_a_search_on_camvid(shared: Path, tmp_path: Path) -> None:
    config = SearchConfig(
        task="segmentation",
        data=shared / "data/camvid240",
        out=tmp_path / "run",
        seed_weights=shared / "weights/mobilenet_v2_0.35_imagenet_backbone.safetensors",
        resolutions=(96, 128),
        masks={"height": 90, "classes": CAMVID, "void": (CAMVID_VOID,)},
    )
    setting = prepare(config, Silent())
    assert len(setting.classes) == 11 and setting.task.image_size == (90, 120)
    assert (setting.space.output_stride, setting.space.dense) == (16, HeadSettings().on(setting.space, 1.0).dense)
    arch = setting.seed_arch(96)
    assert setting.supernet.eval()(torch.zeros(1, 3, *setting.task.input_size(96)), arch).shape == (1, 11, 96, 128)
    assert read_seed(config.seed_weights, get_space("mbv2")).classes == 0
    assert json.dumps(setting.facts())
