"""From what a user gives as data to the task of a search, and to the same task when the run goes on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from named_files import CLASSES, LEARN, LEARNED, TESTED, cifar10
from typer.testing import CliRunner, Result

from natdeploy.cli.main import app
from natdeploy.errors import DataError
from natdeploy.pipeline import SearchConfig
from natdeploy.pipeline.setting import Setting, prepare, stored_task
from natdeploy.pipeline.tasks import data_folder
from natdeploy.progress import Silent
from natdeploy.space import get_space, space_toml
from natdeploy.store import RunStore
from natdeploy.tasks import NAMED, Augmentation, Pixels, pixels
from natdeploy.tasks.pixels import OnDemand


@pytest.fixture
def named(config: SearchConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SearchConfig:
    """A search on a CIFAR-10 of a few images, in CIFAR-10's own files."""
    cifar10(tmp_path / "sets", monkeypatch)
    tiny = replace(NAMED["cifar10"], classes=CLASSES, train=CLASSES * LEARNED, test=CLASSES * TESTED)
    monkeypatch.setitem(NAMED, "cifar10", tiny)  # type: ignore[arg-type]
    monkeypatch.chdir(tmp_path)
    return config.model_copy(update={"data": Path("cifar10"), "data_root": tmp_path / "sets"})


def run(config: SearchConfig, *more: str) -> Result:
    options = {
        "data": config.data,
        "seed-weights": config.seed_weights,
        "space": "demo",
        "tables": config.tables,
        "out": config.out,
    }
    arguments = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return CliRunner().invoke(app, ["search", *arguments, *more, "--no-progress"], catch_exceptions=False)


def stored(config: SearchConfig, setting: Setting) -> RunStore:
    facts = {**setting.facts(), "space": space_toml(get_space(config.space))}
    RunStore.create(config.out, config.model_dump(mode="json"), facts).close()
    return RunStore.open(config.out)


def same(one: Any, other: Any) -> bool:
    return all(torch.equal(mine, theirs) for mine, theirs in zip(one, other, strict=True))


def test_a_set_is_searched_by_its_name(named: SearchConfig) -> None:
    result = run(named, "--data-root", str(named.data_root), "--dry-run")
    assert result.exit_code == 0, result.output
    assert "images: 24 decoded once, 0.0 GB in memory" in result.stderr
    assert "cifar10: 3 classes; images: 9 train, 6 validation, 3 calibration, 6 test" in result.stdout


def test_without_its_files_a_set_is_not_fetched_unasked(named: SearchConfig, tmp_path: Path) -> None:
    result = run(named, "--data-root", str(tmp_path / "none"), "--dry-run", "--json")
    assert result.exit_code == 1
    [line] = result.stderr.splitlines()
    assert f"cifar10 is not in {tmp_path / 'none'}: cifar-10-batches-py missing; --download fetches it" in json.loads(line)["error"]
    assert not (tmp_path / "none").exists()


def test_download_is_consent(named: SearchConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, notes: Any) -> None:
    def fetch(root: Path) -> None:
        (tmp_path / "sets" / "cifar-10-batches-py").rename(root / "cifar-10-batches-py")

    monkeypatch.setitem(NAMED, "cifar10", replace(NAMED["cifar10"], fetch=fetch))  # type: ignore[arg-type]
    config = named.model_copy(update={"data_root": tmp_path / "new"})
    with pytest.raises(DataError, match="--download fetches it"):
        prepare(config, notes)
    assert not (tmp_path / "new").exists()
    assert prepare(config.model_copy(update={"download": True}), notes).task.classes == ("bird", "cat", "dog")
    assert f"downloading cifar10 to {tmp_path / 'new'}; its makers' terms are on https://" in notes.lines[0]


def test_files_lie_in_the_users_folder_by_default(config: SearchConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("natdeploy.pipeline.tasks.user_data_path", lambda name: tmp_path / name)
    assert data_folder(config) == tmp_path / "natdeploy" / "data"
    assert data_folder(config.model_copy(update={"data_root": Path("mine")})) == Path("mine")


def test_a_folder_of_the_same_name_is_taken_and_said(named: SearchConfig, digits: Path, tmp_path: Path, notes: Any) -> None:
    (tmp_path / "cifar10").symlink_to(digits)
    setting = prepare(named, notes)
    assert len(setting.task.pixels.source) == 48
    assert notes.lines[0] == "data: the folder cifar10, not the data set of that name; call the folder otherwise to get the set"


def test_a_run_opens_the_same_set_again(named: SearchConfig) -> None:
    config = named.model_copy(update={"augmentation": Augmentation(cutmix=1.0, policy="randaugment")})
    setting = prepare(config, Silent())
    assert setting.task.pixels.size == 32 and setting.task.augmentation == config.augmentation
    with stored(config, setting) as store:
        reopened = SearchConfig.model_validate(store.config)
        assert reopened == config
        task = stored_task(reopened, store)
        assert task.splits == setting.task.splits
        assert same(task.train_batch(5, 32, 4), setting.task.train_batch(5, 32, 4))
        assert same(prepare(reopened, Silent(), store).task.train_batch(5, 32, 4), task.train_batch(5, 32, 4))


def test_other_files_are_not_the_set_of_the_run(named: SearchConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with stored(named, prepare(named, Silent())) as store:
        others = [replace(shade, number=LEARNED - 1 - shade.number) for shade in LEARN]
        cifar10(tmp_path / "other", monkeypatch, others)
        with pytest.raises(DataError, match="the images in cifar10 are not those this run began with"):
            stored_task(named.model_copy(update={"data_root": tmp_path / "other"}), store)


def test_a_run_that_decodes_on_demand_goes_on_so(config: SearchConfig, monkeypatch: pytest.MonkeyPatch, notes: Any) -> None:
    """Images on demand include damaged ones, so more memory later must not change what the set is."""
    held = prepare(config, Silent())
    assert isinstance(held.task.pixels, Pixels)
    with monkeypatch.context() as patch:
        patch.setattr(pixels, "available_bytes", lambda: 1000)
        setting = prepare(config, notes)
    assert isinstance(setting.task.pixels, OnDemand)
    assert "decoded again whenever they are needed" in notes.lines[0]
    assert same(setting.task.train_batch(3, 32, 8), held.task.train_batch(3, 32, 8))
    assert {**setting.facts(), "on_demand": False} == held.facts()
    with stored(config, setting) as store:
        assert isinstance(stored_task(config, store).pixels, OnDemand)
    final = setting.final_task()
    assert isinstance(final.pixels, OnDemand)
    assert np.isin(final.splits.calibration, final.splits.train).all()
