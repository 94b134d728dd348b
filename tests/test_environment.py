"""How `make` gets its environment: the key it goes by, the pins, and the checkout's own `.venv`."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import setuptools
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]

PROJECT = """
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"
[project]
name = "tiny"
version = "1"
dependencies = ["numpy>=1"]
optional-dependencies.dev = ["pytest"]
[project.scripts]
tiny = "tiny:main"
[tool.setuptools]
py-modules = ["tiny"]
"""


@pytest.fixture
def environment() -> ModuleType:
    spec = importlib.util.spec_from_file_location("environment", ROOT / ".ci/environment.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def checkout(tmp_path: Path, environment: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small project in the place of this one."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    (folder / "pyproject.toml").write_text(PROJECT)
    (folder / "constraints.txt").write_text("numpy==2.0\n")
    (folder / "tiny.py").write_text("import sys\n\ndef main() -> None:\n    print('tiny', sys.prefix)\n")
    monkeypatch.setattr(environment, "ROOT", folder)
    return folder


def test_every_requirement_is_pinned_within_its_bounds(environment: ModuleType) -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pins = {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}
    assert len(pins) == len(lines)
    for requirement in map(Requirement, environment.requirements(ROOT)):
        version = pins.get(canonicalize_name(requirement.name))
        assert version is not None, f"constraints.txt has no {requirement.name}"
        assert requirement.specifier.contains(version), f"{requirement} does not allow the {version} of constraints.txt"


def test_only_what_is_installed_decides_the_key(environment: ModuleType, checkout: Path) -> None:
    def key() -> str:
        name: str = environment.key(environment.requirements(checkout), checkout)
        return name

    first = key()
    project = checkout / "pyproject.toml"
    project.write_text(PROJECT + "[tool.ruff]\nline-length = 99\n")
    assert key() == first
    project.write_text(PROJECT.replace("numpy>=1", "numpy>=2"))
    second = key()
    (checkout / "constraints.txt").write_text("numpy==2.1\n")
    assert len({first, second, key()}) == 3


def test_a_checkout_has_its_own_environment(environment: ModuleType, checkout: Path) -> None:
    # The libraries of the environment that runs this test stand in for those that make installs.
    libraries = Path(setuptools.__file__).parents[4]
    venv = checkout / ".venv"

    def tiny() -> str:
        return subprocess.run([venv / "bin/tiny"], capture_output=True, text=True, check=True, cwd=checkout.parent).stdout

    (venv / "bin").mkdir(parents=True)
    (venv / "bin/half").write_text("what an interrupted make left")
    (venv / environment.STAMP).touch()

    environment.link(venv, libraries)
    assert not (venv / "bin/half").exists()
    assert tiny() == f"tiny {venv}\n"
    version = subprocess.run([venv / "bin/pytest", "--version"], capture_output=True, text=True, check=True)
    assert version.stdout == f"pytest {pytest.__version__}\n"

    made = (venv / "bin/tiny").stat().st_mtime_ns
    environment.link(venv, libraries)
    assert (venv / "bin/tiny").stat().st_mtime_ns == made, "what fits is left alone"


def test_an_environment_of_somebody_else_is_left_alone(environment: ModuleType, checkout: Path) -> None:
    venv = checkout / ".venv"
    venv.mkdir()
    (venv / "pyvenv.cfg").write_text("home = elsewhere\n")
    with pytest.raises(SystemExit, match="was not made by make"):
        environment.link(venv, checkout / "libraries")
    assert [path.name for path in venv.iterdir()] == ["pyvenv.cfg"]


def test_two_at_once_wait_for_each_other(environment: ModuleType, tmp_path: Path) -> None:
    script = f"""
import importlib.util, pathlib
spec = importlib.util.spec_from_file_location("environment", {str(ROOT / ".ci/environment.py")!r})
environment = importlib.util.module_from_spec(spec)
spec.loader.exec_module(environment)
with environment.locked(pathlib.Path({str(tmp_path)!r})):
    print((pathlib.Path({str(tmp_path)!r}) / "done").exists())
"""
    with environment.locked(tmp_path):
        other = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert other.stderr is not None
        assert other.stderr.readline() == "natdeploy: waiting for another make that prepares its environment\n"
        (tmp_path / "done").touch()
    output, _ = other.communicate(timeout=60)
    assert output == "True\n"
