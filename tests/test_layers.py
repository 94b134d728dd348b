"""Who may import whom."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

OPEN = {"errors", "files", "invalid", "progress", "logs", "stopwatch", "toml", "_version"}
"""Modules that every room may import, but the runtimes."""

ROOMS = {
    "space": set(),
    "runtimes": set(),
    "supernet": {"space"},
    "tasks": {"supernet", "space"},
    "training": {"tasks", "supernet", "space"},
    "distributed": {"training", "tasks", "supernet", "space"},
    "hardware": {"runtimes"},
    "latency": {"space", "hardware"},
    "search": {"space"},
    "export": {"supernet", "space", "runtimes", "hardware"},
    "store": set(),
    "report": {"store", "space"},
    "devices": set(),
    "latency_tables": set(),
}
ROOMS["pipeline"] = set(ROOMS)
ROOMS["cli"] = set(ROOMS)

SHARED_BY_VERBS = {"config", "options", "results", "terminal"}


FOLDERS = {"natdeploy": "natdeploy", **{name: f"natdeploy.{name}" for name in ("cli", "devices", "latency_tables")}}


def sources() -> Iterator[tuple[str, Path]]:
    """(module, file) of every module that ships."""
    for folder, package in FOLDERS.items():
        for file in sorted((ROOT / folder).rglob("*.py")):
            parts = [package, *file.relative_to(ROOT / folder).with_suffix("").parts]
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), file


def imports(module: str, source: str, *, package: bool) -> set[str]:
    """Full names of everything a module imports, wherever in it: `from a import b` counts as `a.b`."""
    folder = module.split(".") if package else module.split(".")[:-1]
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = folder[: len(folder) - node.level + 1] if node.level else []
            base = [*above, *([node.module] if node.module else [])]
            found |= {".".join([*base, alias.name]) for alias in node.names}
    return found


def room(name: str) -> str | None:
    """The room of natdeploy that a name belongs to."""
    parts = name.split(".")
    return parts[1] if parts[0] == "natdeploy" and len(parts) > 1 else None


MODULES = dict(sources())
IMPORTS = {name: imports(name, file.read_text("utf-8"), package=file.name == "__init__.py") for name, file in MODULES.items()}


def test_the_walk_sees_every_way_to_import() -> None:
    source = """
import torch.nn
from natdeploy.space import Arch
from . import near
from .near import thing
from ..far import other
def late():
    import natdeploy.store
"""
    common = {"torch.nn", "natdeploy.space.Arch", "natdeploy.store"}
    inside = common | {"natdeploy.room.near", "natdeploy.room.near.thing", "natdeploy.far.other"}
    assert imports("natdeploy.room.module", source, package=False) == inside
    assert imports("natdeploy.room", source.replace("..far", ".far"), package=True) == common | {
        "natdeploy.room.near",
        "natdeploy.room.near.thing",
        "natdeploy.room.far.other",
    }


def test_every_module_has_a_place() -> None:
    assert {room(name) for name in MODULES} - {None} <= ROOMS.keys() | OPEN
    assert len(MODULES) > 40


@pytest.mark.parametrize("name", [name for name in MODULES if room(name) != "runtimes"])
def test_a_room_imports_only_what_it_may(name: str) -> None:
    own = room(name)
    allowed = OPEN if own is None or own in OPEN else ROOMS[own] | OPEN | {own}
    if name == "natdeploy":  # what a library offers stands at its top
        allowed = allowed | {"pipeline"}
    assert {room(imported) for imported in IMPORTS[name]} - {None} <= allowed


@pytest.mark.parametrize("name", [name for name in MODULES if room(name) == "runtimes"])
def test_a_runtime_travels_alone_and_converts_at_home(name: str) -> None:
    """`convert` and `read_inputs` stay on this machine, so that one runtime may write and read what another one does."""
    tree = ast.parse(MODULES[name].read_text("utf-8"))
    here = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name in {"convert", "read_inputs"}]
    tree.body = [node for node in tree.body if node not in here]
    assert not {room(imported) for imported in imports(name, ast.unparse(tree), package=False)} - {None}
    at_home = {imported for function in here for imported in imports(name, ast.unparse(function), package=False)}
    assert {room(imported) for imported in at_home} - {None} <= {"runtimes"}


@pytest.mark.parametrize("name", [name for name in MODULES if room(name) == "search"])
def test_the_search_knows_no_torch(name: str) -> None:
    assert not {imported for imported in IMPORTS[name] if imported.split(".")[0] in ("torch", "torchvision")}


def test_the_runner_travels_alone() -> None:
    libraries = {imported.split(".")[0] for imported in IMPORTS["natdeploy.runtimes.runner"]}
    assert libraries <= {*sys.stdlib_module_names, "numpy"}


@pytest.mark.parametrize("name", [name for name in MODULES if room(name) == "cli" and name.count(".") == 2])
def test_no_verb_imports_another(name: str) -> None:
    if name == "natdeploy.cli.main":
        return
    modules = {imported.split(".")[2] for imported in IMPORTS[name] if imported.startswith("natdeploy.cli.")}
    assert modules <= SHARED_BY_VERBS
