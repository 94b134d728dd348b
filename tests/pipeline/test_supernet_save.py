"""The supernet of a finished run as a file: a seed for other searches, and a source of networks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from natdeploy import pipeline
from natdeploy.cli.main import app
from natdeploy.errors import WeightsError
from natdeploy.export import read_bundle
from natdeploy.pipeline import SearchConfig
from natdeploy.pipeline.finished import load_subnet
from natdeploy.pipeline.setting import prepare
from natdeploy.progress import Silent
from natdeploy.space import Arch
from natdeploy.store import RunStore
from natdeploy.supernet import load_supernet, read_seed, save_supernet, write_seed

runner = CliRunner()


def saved(run: SearchConfig, folder: Path) -> Path:
    path = folder / "adapted.safetensors"
    shown = runner.invoke(app, ["supernet", "save", str(run.out), "--out", str(path)])
    assert shown.exit_code == 0, shown.output
    assert f"written     {path}" in shown.output
    return path


def has_the_weights_of(path: Path, run: SearchConfig) -> None:
    """All but BatchNorm's statistics, which the networks of a run have of their own."""
    supernet = load_supernet(path)
    nets = pipeline.nets(run.out)
    with RunStore.open(run.out) as store:
        for net in nets:
            arch = Arch.parse(net.arch)
            mine, theirs = supernet.extract(arch).state_dict(), load_subnet(store, arch).state_dict()
            assert mine.keys() == theirs.keys()
            assert all(torch.equal(mine[name], theirs[name]) for name in mine if "running_" not in name and "num_" not in name)


def is_a_seed(path: Path, run: SearchConfig, folder: Path) -> None:
    again = run.model_copy(update={"seed_weights": path, "out": folder / "next"})
    setting = prepare(again, Silent())
    assert not setting.report.unmapped and not setting.report.unused
    other = load_supernet(path).state_dict()
    assert all(torch.equal(tensor, other[name]) for name, tensor in setting.supernet.state_dict().items() if "num_" not in name)


def test_of_classification(finished: SearchConfig, digits: Path, tmp_path: Path) -> None:
    path = saved(finished, tmp_path)
    seed = read_seed(path)
    assert (seed.supernet, seed.space.dense, seed.classes) == (True, None, 3)
    assert json.loads(seed.metadata["labels"]) == ["0", "1", "2"]
    has_the_weights_of(path, finished)
    is_a_seed(path, finished, tmp_path)
    best = max(pipeline.nets(finished.out), key=lambda net: net.validation_accuracy)
    (file,) = pipeline.export_weights(path, tmp_path / "models", best.arch, data=digits)
    assert file.test_accuracy is not None and file.max_rel is not None and file.max_rel < 1e-4
    assert file.test_accuracy == pytest.approx(best.test_accuracy, abs=0.25), "calibrated by fewer images"


def test_of_segmentation(dense_finished: SearchConfig, scenes: Path, tmp_path: Path) -> None:
    path = saved(dense_finished, tmp_path)
    has_the_weights_of(path, dense_finished)
    is_a_seed(path, dense_finished, tmp_path)
    net = next(net for net in pipeline.nets(dense_finished.out) if net.role == "front")

    files = pipeline.export_weights(path, tmp_path / "models", net.arch, precisions=("fp32", "int8"), data=scenes, max_drop=100)
    assert all(file.test_accuracy is not None and file.validation_accuracy is not None for file in files)
    told = read_bundle(tmp_path / "models" / net.id).description
    assert (told.task, told.metric, told.labels) == ("segmentation", "mean IoU", ("ground", "thing"))
    assert (told.params, told.macs) == (net.params, net.macs)
    assert told.preprocessing.cut == (32, 64) and told.palette is not None and len(told.palette) == 2
    assert (tmp_path / "models" / net.id / "segment_onnx.py").is_file()

    (file,) = pipeline.export_weights(path, tmp_path / "noise", net.arch, input="photo")
    assert (file.test_accuracy, file.refused) == (None, None), "compared with torch on noise"
    assert read_bundle(tmp_path / "noise" / net.id).description.labels == ("ground", "thing"), "the file says them"


def test_settings_of_reading_images_come_from_a_file(dense_finished: SearchConfig, scenes: Path, tmp_path: Path) -> None:
    path = saved(dense_finished, tmp_path)
    net = next(net for net in pipeline.nets(dense_finished.out) if net.role == "front")
    config = tmp_path / "search.toml"
    masks = 'masks = { height = 16, classes = ["thing", "ground"] }'
    config.write_text(f'constraints = ["latency<=1ms"]\nhead = {{ channels = 16 }}\n{masks}\n')
    arguments = ["export", str(path), "--arch", net.arch, "--out", str(tmp_path / "models"), "--config", str(config)]
    shown = runner.invoke(app, [*arguments, "--data", str(scenes)])
    assert shown.exit_code == 0, shown.output
    assert read_bundle(tmp_path / "models" / net.id).description.preprocessing.cut == (16, 32)
    assert "the images have 2 classes and adapted.safetensors tells others apart" in shown.output
    shown = runner.invoke(app, arguments)
    assert (shown.exit_code, shown.stderr) == (2, "error: --config says how images are read; give some with --data\n")


def test_bare_weights_with_a_dense_head(dense_finished: SearchConfig, scenes: Path, tmp_path: Path, notes: Any) -> None:
    net = next(net for net in pipeline.nets(dense_finished.out) if net.role == "front")
    with RunStore.open(dense_finished.out) as store:
        write_seed(load_subnet(store, Arch.parse(net.arch)), tmp_path / "net.safetensors", {"input": "RGB in [-1,1]"})
    (file,) = pipeline.export_weights(tmp_path / "net.safetensors", tmp_path, net.arch, data=scenes, progress=notes)
    assert file.test_accuracy == pytest.approx(net.test_accuracy, abs=1e-6), "with the statistics that it has"


def test_what_cannot_be_done_is_said_in_a_sentence(dense_finished: SearchConfig, scenes: Path, tmp_path: Path) -> None:
    path = saved(dense_finished, tmp_path)
    arch = pipeline.nets(dense_finished.out)[0].arch
    for arguments, message in [
        (["supernet", "save", str(tmp_path / "nowhere")], "there is no run"),
        (
            ["supernet", "save", str(dense_finished.out), "--out", str(tmp_path / "net.pth")],
            "a supernet is written as .safetensors",
        ),
        (
            ["export", str(path), "--arch", arch, "--nms"],
            "there is nothing to suppress in answers of segmentation; leave out --nms",
        ),
        (["export", str(dense_finished.out), "--config", "any.toml"], "are for files of weights; a run knows its own"),
    ]:
        shown = runner.invoke(app, [*arguments, *(["--out", str(tmp_path)] if "export" in arguments else [])])
        assert shown.exit_code == 2 and message in shown.stderr and shown.stderr.count("\n") == 1, shown.output
    seed = read_seed(path)
    save_supernet(load_supernet(path), tmp_path / "odd.safetensors", {**seed.metadata, "labels": '["one"]'})
    with pytest.raises(WeightsError, match="states labels that are no list of 2 names"):
        pipeline.export_weights(tmp_path / "odd.safetensors", tmp_path, arch)
