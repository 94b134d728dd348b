"""A network of a file of weights as files, without a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from natdeploy import pipeline
from natdeploy.errors import UsageError, WeightsError
from natdeploy.export import read_bundle
from natdeploy.space import Arch
from natdeploy.supernet import calibrate, load_supernet, read_seed
from natdeploy.tasks import Classification, open_pixels, scan_images, split

SMALL = "r24-w1-k3e1-k3e3-k3e3.k3e3-k3e6"


@pytest.fixture(scope="module")
def supernet_file(tmp_path_factory: pytest.TempPathFactory, seed_file: Path) -> Path:
    path = tmp_path_factory.mktemp("weights") / "supernet.safetensors"
    pipeline.supernet_import(seed_file, path, space="demo", padding="symmetric")
    return path


def test_a_network_as_it_is(seed_file: Path, digits: Path, tmp_path: Path) -> None:
    (file,) = pipeline.export_weights(seed_file, tmp_path, data=digits)
    seed = read_seed(seed_file)
    assert file.path == f"{tmp_path}/{seed.arch.id}/model.onnx"
    metadata = read_bundle(tmp_path / seed.arch.id)
    assert metadata.description.labels == ("0", "1", "2")
    assert metadata.test_accuracy == file.test_accuracy
    assert metadata.description.random_seed is None
    assert "exported by natdeploy" in (tmp_path / seed.arch.id / "README.md").read_text()
    assert pipeline.export_weights(seed_file, tmp_path, data=digits) == [file], "it is there"


def test_any_architecture_of_a_supernet_with_statistics_of_its_own(supernet_file: Path, digits: Path, tmp_path: Path) -> None:
    files = pipeline.export_weights(supernet_file, tmp_path, SMALL, ("onnx",), ("fp32", "int8"), data=digits, max_drop=100)
    assert [file.precision for file in files] == ["fp32", "int8"]
    assert all(file.test_accuracy is not None and file.agreement is not None for file in files)
    assert files[0].path is not None
    description = read_bundle(Path(files[0].path).parent).description
    how = description.preprocessing
    supernet = load_supernet(supernet_file)
    assert description.arch == SMALL

    session = onnxruntime.InferenceSession(files[0].path)
    image = torch.rand(1, 3, 24, 24)
    (logits,) = session.run(None, {"input": image.numpy()})
    subnet = supernet.extract(Arch.parse(SMALL)).eval()
    assert np.abs(subnet(image).detach().numpy() - logits).max() > 1e-2, "the supernet's statistics are others"
    pixels = open_pixels(scan_images(digits), 24)
    task = Classification(pixels, split(pixels.source, 0), how.mean, how.std, 0)
    calibrate(subnet, (images for images, _ in task.batches("calibration", 24, 64)))
    np.testing.assert_allclose(subnet(image).detach().numpy(), logits, atol=1e-4)


def test_without_images_files_are_compared_on_noise(supernet_file: Path, tmp_path: Path, notes: Any) -> None:
    stated = tmp_path / "stated.safetensors"
    pipeline.supernet_import(supernet_file, stated, space="demo")
    for kind in ("photo", "image"):
        (file,) = pipeline.export_weights(stated, tmp_path, SMALL, input=kind, progress=notes)  # type: ignore[arg-type]
        assert (file.validation_accuracy, file.test_accuracy, file.agreement) == (None, None, 1.0)
        assert file.max_rel is not None
        assert file.max_rel < 1e-5
    assert any("BatchNorm statistics are the supernet's" in line for line in notes.lines)
    facts = json.loads((tmp_path / file.id / "metadata.json").read_text())
    assert (facts["test_accuracy"], facts["description"]["data_fingerprint"]) == (None, None)
    assert "not known: no images were given" in (tmp_path / file.id / "README.md").read_text()
    with pytest.raises(UsageError, match="int8 learns its ranges from images, and none are given; give some with --data"):
        pipeline.export_weights(stated, tmp_path, SMALL, precisions=("int8",))


def test_images_of_other_classes_give_no_accuracy(supernet_file: Path, digits: Path, tmp_path: Path, notes: Any) -> None:
    four = tmp_path / "four.safetensors"
    pipeline.supernet_import(supernet_file, four, space="demo", classes=4)
    (file,) = pipeline.export_weights(four, tmp_path, SMALL, precisions=("int8",), data=digits, progress=notes)
    assert (file.test_accuracy, file.refused) == (None, None)
    assert any("the images have 3 classes and four.safetensors tells 4 apart" in line for line in notes.lines)


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        (None, r"supernet.safetensors is a supernet of many architectures; say which with --arch, for instance"),
        ("knee", "'knee' is no architecture; expected a text like"),
        ("r24-w1-k3e1", "the architecture has 1 stages, space demo has 4"),
    ],
)
def test_an_architecture_that_is_none(supernet_file: Path, tmp_path: Path, arch: str | None, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        pipeline.export_weights(supernet_file, tmp_path, arch)


def test_weights_that_do_not_do(seed_file: Path, digits: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"holds one network, .* another one of it takes a supernet"):
        pipeline.export_weights(seed_file, tmp_path, SMALL, data=digits)
    with pytest.raises(WeightsError, match=r"cannot be read"):
        pipeline.export_weights(tmp_path / "nothing.safetensors", tmp_path)
