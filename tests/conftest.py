"""What every test may ask for."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

SHARED = Path(__file__).parents[1].parent / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real weights, photos and tables that lies beside the project; not part of it."""
    if not SHARED.is_dir():
        pytest.skip("real weights and photos are not here: the folder `shared` is missing beside the project")
    return SHARED


@pytest.fixture(autouse=True)
def devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the user's own devices: an empty one, whoever runs the tests."""
    folder = tmp_path / "own devices"
    monkeypatch.setenv("NATDEPLOY_DEVICES", str(folder))
    return folder


@pytest.fixture(autouse=True)
def _one_torch_thread() -> None:
    """Two spinning OpenMP threads on two busy cores are ten times slower than one."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture
def stand_in(tmp_path: Path) -> Callable[[str, str], str]:
    """Makes a program that stands for a vendor's tool, which no registry has, and tells its path.

    It runs the model for real and prints what a real one of a version or format prints (tests/vendor_tools).
    """

    def make(name: str, version: str) -> str:
        program = tmp_path / f"tools-{version}" / name
        program.parent.mkdir(exist_ok=True)
        script = Path(__file__).parent / "vendor_tools" / f"{name}.py"
        words = shlex.join(["env", f"STAND_IN={version}", sys.executable, str(script)])
        program.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
        program.chmod(0o755)
        return str(program)

    return make
