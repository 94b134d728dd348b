"""What users install: the wheel, built from a clean copy and tried far from the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from natdeploy import __version__

ROOT = Path(__file__).parents[1]
MAPPED = {"cli": "natdeploy/cli", "devices": "natdeploy/devices", "latency_tables": "natdeploy/latency_tables"}


def run(*command: str | Path, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    result = subprocess.run(list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from what git would give a newcomer: no caches, nothing left by an earlier build."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("natdeploy", *MAPPED):
        shutil.copytree(ROOT / name, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, folder / "source", cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


def test_every_file_is_in_the_wheel(wheel: Path) -> None:
    wanted = set()
    for folder in ("natdeploy", *MAPPED):
        for file in (ROOT / folder).rglob("*"):
            if file.is_file() and "__pycache__" not in file.parts:
                wanted.add(f"{MAPPED.get(folder, folder)}/{file.relative_to(ROOT / folder).as_posix()}")
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert packed == wanted
    assert {"natdeploy/py.typed", "natdeploy/devices/host.toml", "natdeploy/cli/main.py"} <= packed


def test_only_one_name_is_taken_in_site_packages(wheel: Path) -> None:
    info = f"natdeploy-{__version__}.dist-info"
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"natdeploy", info}
    assert f"{info}/licenses/LICENSE" in names


def test_it_runs_where_the_checkout_is_not(wheel: Path, tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", venv, cwd=tmp_path)
    (packages,) = venv.glob("lib/python*/site-packages")
    # The libraries as this environment has them. Lines of a .pth file inside a folder named here are not followed, so neither is
    # the one of this checkout.
    libraries = [path for path in sys.path if path.endswith("-packages")]
    (packages / "libraries.pth").write_text("\n".join(libraries), encoding="utf-8")
    python = venv / "bin/python"
    run(python, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--ignore-installed", wheel, cwd=tmp_path)

    assert run(venv / "bin/natdeploy", "--version", cwd=tmp_path) == f"natdeploy {__version__}\n"
    script = """
import natdeploy, natdeploy.cli, pathlib
from importlib import resources
from natdeploy.hardware.device import load_device
print(natdeploy.__file__, natdeploy.cli.__file__, resources.files("natdeploy.latency_tables"), load_device("host").name, sep="\\n")
"""
    *places, device = run(python, "-c", script, cwd=tmp_path).splitlines()
    assert all(Path(place).is_relative_to(packages) for place in places), places
    assert device == "host"
