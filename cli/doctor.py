"""`natdeploy doctor`: whether this machine has what natdeploy needs."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
from dataclasses import asdict, dataclass
from typing import Any

import typer

from natdeploy._version import __version__

from .options import Json, Quiet, Verbose
from .terminal import session, write_json


@dataclass(frozen=True)
class Library:
    """What is imported, where it comes from, and how it gets here."""

    name: str
    module: str
    distribution: str
    install: str
    needed: bool = True


@dataclass(frozen=True)
class Finding:
    """A library as it is here; without a version it is not installed, with a problem it does not work."""

    name: str
    version: str | None
    problem: str | None
    install: str
    needed: bool


LIBRARIES = tuple(
    Library(name, module, name, f"pip install --force-reinstall {name}")
    for name, module in (
        ("torch", "torch"),
        ("torchvision", "torchvision"),
        ("onnx", "onnx"),
        ("pymoo", "pymoo"),
        ("scikit-learn", "sklearn"),
        ("scipy", "scipy"),
        ("xgboost", "xgboost"),
    )
)
RUNTIMES = (
    Library("onnxruntime", "onnxruntime", "onnxruntime", "pip install --force-reinstall onnxruntime"),
    Library("openvino", "openvino", "openvino", "pip install 'natdeploy[openvino]'", needed=False),
    Library("tflite", "ai_edge_litert", "ai-edge-litert", "pip install 'natdeploy[tflite]'", needed=False),
    Library("tensorrt", "tensorrt", "tensorrt", "pip install 'natdeploy[tensorrt]'", needed=False),
)


def doctor(*, as_json: Json = False, verbose: Verbose = False, quiet: Quiet = False) -> None:
    """Check what this machine has.

    Versions, runtimes, processor and accelerator. Exit code 1 when something that is needed does not work.

    \b
    Example:
      natdeploy doctor
    """
    with session(as_json=as_json, verbose=verbose, quiet=quiet):
        libraries = [examine(library) for library in LIBRARIES]
        runtimes = [examine(runtime) for runtime in RUNTIMES]
        machine = examine_machine()
    broken = [finding for finding in libraries + runtimes if finding.problem or (finding.needed and finding.version is None)]
    if as_json:
        write_json(
            {
                "natdeploy": __version__,
                "python": platform.python_version(),
                "libraries": [asdict(finding) for finding in libraries],
                "runtimes": [asdict(finding) for finding in runtimes],
                "machine": machine,
                "advice": advice(machine),
                "ok": not broken,
            }
        )
    else:
        _show(libraries, runtimes, machine)
    if broken:
        raise typer.Exit(1)


def examine(library: Library) -> Finding:
    """Imports a library for real: an installed one may still not load, such as torchvision beside another build of torch."""
    try:
        version = importlib.metadata.version(library.distribution)
    except importlib.metadata.PackageNotFoundError:
        return Finding(library.name, None, None, library.install, library.needed)
    problem = None
    try:
        importlib.import_module(library.module)
    except Exception as error:  # whatever a broken library raises, the doctor's answer is that it is broken
        problem = f"{type(error).__name__}: {error}".splitlines()[0]
    return Finding(library.name, version, problem, library.install, library.needed)


def examine_machine() -> dict[str, Any]:
    """Processor, memory, threads, accelerator."""
    from natdeploy.hardware.device import host_facts

    return {
        **host_facts(),
        "load_1min": round(os.getloadavg()[0], 2),
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
        "cuda": _cuda(),
    }


def _cuda() -> str | None:
    try:
        import torch
    except Exception:  # told as the library's own problem
        return None
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def advice(machine: dict[str, Any]) -> list[str]:
    """What would make measurements better here."""
    given = []
    governor = machine.get("governor")
    if governor not in (None, "performance"):
        given.append(f"the clock follows the load (governor {governor}); steadier: sudo cpupower frequency-set -g performance")
    if machine["load_1min"] > 0.5 * (os.cpu_count() or 1):
        given.append(f"other programs keep the processor busy (load {machine['load_1min']}); latency would be unstable")
    return given


def _show(libraries: list[Finding], runtimes: list[Finding], machine: dict[str, Any]) -> None:
    typer.echo(f"natdeploy {__version__}, Python {platform.python_version()}")
    for title, findings in (("Libraries", libraries), ("Runtimes", runtimes)):
        typer.echo(f"\n{title}")
        for finding in findings:
            typer.echo(f"  {finding.name:14} {_state(finding)}")
    typer.echo("\nMachine")
    usable = machine["cores"] if machine["affinity"] is None else len(machine["affinity"])
    rows = {
        "processor": f"{machine['cpu']}, {machine['cores']} cores, {usable} usable",
        "governor": machine["governor"] or "not readable",
        "memory": "not readable" if machine["memory_mb"] is None else f"{machine['memory_mb'] / 1024:.1f} GiB",
        "system": machine["os"],
        "load": machine["load_1min"],
        "threads": f"OMP_NUM_THREADS={machine['omp_num_threads']}" if machine["omp_num_threads"] else "OMP_NUM_THREADS is not set",
        "CUDA": machine["cuda"] or "none",
    }
    for name, value in rows.items():
        typer.echo(f"  {name:14} {value}")
    for line in advice(machine):
        typer.echo(f"\nadvice: {line}")


def _state(finding: Finding) -> str:
    if finding.version is None:
        return f"not installed; {finding.install}" + ("" if finding.needed else " (this version does not use it yet)")
    if finding.problem is not None:
        return f"{finding.version} does not load ({finding.problem}); {finding.install}"
    return finding.version
