"""`natdeploy doctor`: whether this machine has what natdeploy needs."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from natdeploy._version import __version__

from .options import Json, Quiet, Verbose
from .terminal import session, write_json

if TYPE_CHECKING:
    from natdeploy.hardware.runtimes import Runtime


@dataclass(frozen=True)
class Library:
    """What is imported, where it comes from, and how it gets here; natdeploy may be able to do without it."""

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
    needed: bool = True

    @property
    def broken(self) -> bool:
        """As for a runtime: to lack an optional library is no fault."""
        return self.problem is not None or (self.needed and self.version is None)


@dataclass(frozen=True)
class RuntimeFinding:
    """A runtime as it is here.

    Attributes:
        name: of the runtime.
        version: of its library; None where that cannot be imported.
        problem: why not, and how to install it; or why a tiny network cannot be converted.
        needed: natdeploy cannot do without it.
        precisions: that it computes in.
        delegates: that it computes on, and why a tiny network does not run there, None where it does.
        note: what else to know.
    """

    name: str
    version: str | None
    problem: str | None
    needed: bool
    precisions: tuple[str, ...]
    delegates: dict[str, str | None]
    note: str | None

    @property
    def broken(self) -> bool:
        """A library that is not installed is no fault, unless it is needed; one that is installed and fails is."""
        works = any(problem is None for problem in self.delegates.values())
        return (self.version is not None and self.problem is not None) or (self.needed and not works)


LIBRARIES = (
    *(
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
    ),
    Library("ray", "ray", "ray", "pip install 'natdeploy[ray]'", needed=False),
)
NEEDED = ("onnxruntime",)
NOTES = {"tensorrt": "unverified: natdeploy's use of it was never run on a GPU"}


def doctor(*, as_json: Json = False, verbose: Verbose = False, quiet: Quiet = False) -> None:
    """Check what this machine has.

    Versions, processor and accelerator; a tiny network is run on every runtime. Exit code 1 when something does not work.

    \b
    Example:
      natdeploy doctor
    """
    with session(as_json=as_json, verbose=verbose, quiet=quiet):
        libraries = [examine(library) for library in LIBRARIES]
        runtimes = examine_runtimes()
        machine = examine_machine()
    broken = any(library.broken for library in libraries) or any(runtime.broken for runtime in runtimes)
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
        problem = _first_line(error)
    return Finding(library.name, version, problem, library.install, library.needed)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def examine_runtimes() -> list[RuntimeFinding]:
    """Every runtime that natdeploy knows."""
    from natdeploy.hardware.runtimes import RUNTIMES

    return [examine_runtime(runtime) for runtime in RUNTIMES.values()]


def examine_runtime(runtime: Runtime) -> RuntimeFinding:
    """Converts a tiny network and runs it on each delegate, in the default precision: only that shows what works."""
    from natdeploy.errors import DeviceError
    from natdeploy.hardware.runtimes import installed_version

    version, problem = None, None
    delegates: dict[str, str | None] = {}
    try:
        version = installed_version(runtime)
        delegates = _try_delegates(runtime)
    except DeviceError as error:
        problem = str(error)
    except Exception as error:  # as with any other library
        problem = _first_line(error)
    note = NOTES.get(runtime.NAME)
    return RuntimeFinding(runtime.NAME, version, problem, runtime.NAME in NEEDED, runtime.PRECISIONS, delegates, note)


def _try_delegates(runtime: Runtime) -> dict[str, str | None]:
    import torch

    net, example = torch.nn.Conv2d(3, 4, 3).eval(), torch.zeros(1, 3, 8, 8)
    problems: dict[str, str | None] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "tiny").with_suffix(runtime.SUFFIX)
        precision = runtime.PRECISIONS[0]
        runtime.convert(net, example, path, precision=precision, dynamic_size=False)
        for delegate in runtime.DELEGATES:
            problems[delegate] = None
            try:
                runtime.run(runtime.load(path, tuple(example.shape), 1, precision, delegate), [example.numpy()])
            except Exception as error:  # a GPU that is not there is told in the library's own way
                problems[delegate] = _first_line(error)
    return problems


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


def _show(libraries: list[Finding], runtimes: list[RuntimeFinding], machine: dict[str, Any]) -> None:
    typer.echo(f"natdeploy {__version__}, Python {platform.python_version()}")
    typer.echo("\nLibraries")
    for finding in libraries:
        typer.echo(f"  {finding.name:14} {_state(finding)}")
    typer.echo("\nRuntimes")
    for runtime in runtimes:
        typer.echo(f"  {runtime.name:14} {_runtime_state(runtime)}")
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
        return f"not installed; {finding.install}"
    if finding.problem is not None:
        return f"{finding.version} does not load ({finding.problem}); {finding.install}"
    return finding.version


def _runtime_state(finding: RuntimeFinding) -> str:
    """Version, precisions, where it runs and where not; or why it cannot be used."""
    parts = [finding.version] if finding.version else []
    if finding.problem is not None:
        parts.append(finding.problem)
    else:
        parts.append(", ".join(finding.precisions))
        where: dict[bool, list[str]] = {True: [], False: []}
        for delegate, failure in finding.delegates.items():
            where[failure is None].append(delegate)
        parts.append(f"runs on {', '.join(where[True])}" if where[True] else "runs nowhere here")
        if where[False]:
            parts.append(f"not on {', '.join(where[False])} (why: natdeploy doctor --json)")
    return "; ".join(part for part in (*parts, finding.note) if part)
