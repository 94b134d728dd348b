"""Makes `.venv` ready: `make` runs this before everything else, with nothing but a plain Python.

The libraries (torch with CUDA is most of their 8 GB) are installed once for every set of requirements, into the user's cache,
and each checkout has a small `.venv` of its own that links to them and holds only this checkout's natdeploy. Two checkouts
never see each other's code, and a fresh clone is ready in seconds.

An interrupted build is begun anew, and two at once wait for each other.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LINK = "natdeploy-libraries.pth"
STAMP = "made-by-make"
GROUPS = ("detection", "openvino", "tflite", "ray", "dev")


def main() -> None:
    if sys.version_info < (3, 11):  # noqa: UP036 (the one file that may meet an older Python)
        sys.exit(f"natdeploy needs Python 3.11 or newer, this is {platform.python_version()}; try: make PYTHON=python3.11 ...")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "natdeploy" / "venvs"
    wanted = requirements(ROOT)
    libraries = cache / key(wanted, ROOT)
    with locked(cache):
        if not libraries.is_dir():
            build(libraries, wanted)
        link(ROOT / ".venv", libraries)


def requirements(root: Path) -> list[str]:
    """What pyproject.toml asks for: to build, to run with every runtime that the registry serves, and to develop."""
    import tomllib

    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    groups = project["project"].get("optional-dependencies", {})
    chosen = [requirement for name in GROUPS for requirement in groups.get(name, [])]
    return sorted({*project["build-system"]["requires"], *project["project"]["dependencies"], *chosen})


def key(wanted: list[str], root: Path) -> str:
    """Names an environment after everything its contents follow from."""
    interpreter = [sys.implementation.cache_tag, sys.platform, platform.machine()]
    contents = json.dumps([wanted, (root / "constraints.txt").read_text(encoding="utf-8"), interpreter])
    return hashlib.sha256(contents.encode()).hexdigest()[:16]


@contextmanager
def locked(cache: Path) -> Iterator[None]:
    """Holds back every other make of this user. The system lets go of the lock when the process ends, however it ends."""
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another make that prepares its environment")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def build(libraries: Path, wanted: list[str]) -> None:
    """Installs the requirements, at the versions of constraints.txt.

    Every attempt has a folder of its own, because a killed one may leave a pip that goes on writing; `libraries` becomes a link
    to the first that is complete.
    """
    say(f"installing the libraries into {libraries} (once; torch with CUDA: some 8 GB and a few minutes)")
    start = time.monotonic()
    cache = libraries.parent
    complete = {path.resolve() for path in cache.iterdir() if path.is_symlink()}
    for attempt in cache.glob("*-*"):
        if attempt.resolve() not in complete:
            shutil.rmtree(attempt, ignore_errors=True)
    folder = tempfile.mkdtemp(prefix=f"{libraries.name}-", dir=cache)
    run(sys.executable, "-m", "venv", folder)
    # -qq leaves errors only: package indexes that are configured but absent would else give a warning a package.
    run(f"{folder}/bin/python", "-m", "pip", "install", "-qq", "-c", str(ROOT / "constraints.txt"), *wanted)
    libraries.unlink(missing_ok=True)
    libraries.symlink_to(Path(folder).name)
    say(f"installed in {time.monotonic() - start:.0f} s")


def link(venv: Path, libraries: Path) -> None:
    """Makes the checkout's own environment, unless it is there already and still fits."""
    stamp = venv / STAMP
    fits = f"{libraries}\n{hashlib.sha256((ROOT / 'pyproject.toml').read_bytes()).hexdigest()}\n{venv}\n"
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == fits and (venv / "bin/python").exists():
        return
    if venv.is_symlink():
        venv.unlink()
    elif venv.exists() and not stamp.exists() and any(venv.iterdir()):
        sys.exit(f"{venv} was not made by make; move it away, and make builds its own")
    elif venv.exists():
        empty(venv, stamp)
    venv.mkdir(exist_ok=True)
    stamp.write_text("", encoding="utf-8")
    run(sys.executable, "-m", "venv", "--without-pip", "--prompt", "natdeploy", str(venv))
    packages = site_packages(venv)
    (packages / LINK).write_text(f"{site_packages(libraries)}\n", encoding="utf-8")
    link_scripts(libraries, venv)
    python = str(venv / "bin/python")
    run(python, "-m", "pip", "install", "-qq", "--no-index", "--no-deps", "--no-build-isolation", "-e", str(ROOT))
    stamp.write_text(fits, encoding="utf-8")


def empty(venv: Path, stamp: Path) -> None:
    """Removes everything but the stamp, by which an environment whose removal was interrupted is still known as ours."""
    stamp.write_text("", encoding="utf-8")
    for path in venv.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path != stamp:
            path.unlink()


def site_packages(venv: Path) -> Path:
    return venv / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"


def link_scripts(libraries: Path, venv: Path) -> None:
    """Offers the libraries' commands (pytest, mypy, ruff...) in `.venv/bin` too, run by its own Python."""
    built = f"{libraries.resolve()}/bin/".encode()
    for source in (libraries / "bin").iterdir():
        target = venv / "bin" / source.name
        if target.exists() or source.is_symlink():
            continue
        contents = source.read_bytes()
        if contents.startswith(b"#!"):
            target.write_bytes(contents.replace(built, f"{venv}/bin/".encode()))
            target.chmod(0o755)
        else:
            target.symlink_to(source)


def run(*arguments: str) -> None:
    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    try:
        subprocess.run(arguments, check=True, env=environment)
    except subprocess.CalledProcessError as error:
        hint = " (Debian and Ubuntu: apt install python3-venv)" if "venv" in arguments else ""
        sys.exit(f"the environment could not be built{hint}: {' '.join(arguments[:5])} ... ended with {error.returncode}")


def say(message: str) -> None:
    sys.stderr.write(f"natdeploy: {message}\n")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the installer under way is ended too
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
