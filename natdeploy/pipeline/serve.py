"""The runs of a folder as pages of a server: a list, a page of each, and comparisons; all as they are at the moment."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from http.server import ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from typing import Generic, TypeVar
from urllib.parse import quote, unquote_to_bytes

import numpy as np

from natdeploy.errors import NatdeployError, UsageError
from natdeploy.pipeline.report import page_data
from natdeploy.report.compare import Compared, Volumes, compare, differences, kind_of_all
from natdeploy.report.document import asset
from natdeploy.report.figures import accuracy
from natdeploy.report.index import COMPARE, Line, index
from natdeploy.report.page import render
from natdeploy.report.server import Answer, Request, open_server, said
from natdeploy.search.archive import hypervolume
from natdeploy.store import RunStore, in_use

_ASSETS = {"page.css": "text/css", "page.js": "text/javascript", "live.js": "text/javascript", "plotly.js": "text/javascript"}
_MARGIN = 1.01
"""Of the box of a hypervolume beyond the worst values, so that the nets that have them count."""
_DATABASE = ("run.sqlite", "run.sqlite-wal")

_Made = TypeVar("_Made")


def serve(folder: Path, *, host: str = "127.0.0.1", port: int = 8765) -> ThreadingHTTPServer:
    """A server of all runs in a folder, or of the one that the folder is; it listens, and answers once `serve_forever` is called.

    Args:
        folder: whose subfolders are runs; those that come later are shown as well.
        host: address to listen on; any but a loopback one shows the runs to whoever can reach this machine.
        port: 0 takes a free one.

    Raises:
        UsageError: there are no runs, or the address cannot be listened on.
    """
    if not runs_in(folder):
        raise UsageError(f"there are no runs in {folder}; start one with `natdeploy search --out {folder / 'NAME'}`")
    return open_server(_Site(folder), host, port)


def runs_in(folder: Path) -> dict[str, Path]:
    """Folders of runs by their names, percent-encoded."""
    found = [folder.resolve()] if (folder / _DATABASE[0]).is_file() else sorted(path.parent for path in folder.glob("*/run.sqlite"))
    return {_encoded(os.fsencode(run.name)): run for run in found}


def _encoded(name: bytes) -> str:
    return quote(name, safe="")


class _Kept(Generic[_Made]):
    """What is made of a run, kept until the run changes."""

    def __init__(self, make: Callable[[Path], _Made]) -> None:
        self._make, self._lock = make, Lock()
        self._known: dict[Path, tuple[object, _Made]] = {}

    def __call__(self, run: Path) -> _Made:
        with self._lock:
            state = _state(run)  # of before, so that a change while it is made is noticed next time
            if run not in self._known or self._known[run][0] != state:
                self._known[run] = state, self._make(run)
            return self._known[run][1]


def _state(run: Path) -> tuple[object, ...]:
    """Another one whenever a run has changed: every transaction writes one of the files."""
    found: list[object] = [in_use(run)]
    for name in _DATABASE:
        try:
            known = (run / name).stat()
        except OSError:
            continue
        found.append((name, known.st_mtime_ns, known.st_size))
    return tuple(found)


class _Site:
    """What the server answers to a request. Of a path only names are taken, which are looked up among those that were found."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._line, self._compared, self._page = _Kept(_line), _Kept(_compared), _Kept(_page)

    def __call__(self, request: Request) -> Answer:
        runs = runs_in(self._folder)
        top, *parts = [_encoded(unquote_to_bytes(part)) for part in request.path.split("/")]
        if top or not parts:
            return said(HTTPStatus.NOT_FOUND, "There is no such page.")
        if parts == [""]:
            return Answer(_utf8(index(self._folder.resolve().name, [self._line(run) for run in runs.values()])))
        if parts == [COMPARE.strip("/")]:
            return self._comparison(runs, request.query.get("run", []))
        if parts[0] == "assets" and len(parts) == 2 and parts[1] in _ASSETS:
            return Answer(asset(parts[1]).encode(), f"{_ASSETS[parts[1]]}; charset=utf-8")
        if parts[0] == "runs" and len(parts) > 2 and parts[1] in runs:
            run = runs[parts[1]]
            return self._page(run) if parts[2:] == [""] else _file(run, "/".join(parts[2:]))
        return said(HTTPStatus.NOT_FOUND, "There is no such page.")

    def _comparison(self, runs: Mapping[str, Path], names: Sequence[str]) -> Answer:
        if unknown := [name for name in names if name not in runs]:
            return said(HTTPStatus.NOT_FOUND, f"There is no run {unknown[0]}.")
        compared = [self._compared(runs[name]) for name in dict.fromkeys(names)]
        if len(compared) < 2:
            return said(HTTPStatus.BAD_REQUEST, "To compare takes two runs or more: tick them in the list of all runs.")
        return Answer(_utf8(compare(compared, volumes(compared))))


def _utf8(page: str) -> bytes:
    # Names of files need not be text.
    return page.encode(errors="replace")


def _address(run: Path) -> str:
    return f"/runs/{_encoded(os.fsencode(run.name))}/"


def _page(run: Path) -> Answer:
    with RunStore.snapshot(run) as store:
        return Answer(_utf8(render(page_data(store), served=True)))


def _file(run: Path, name: str) -> Answer:
    """A file of a net, if the run knows it by that name, percent-encoded, and it lies in its folder."""
    with RunStore.snapshot(run) as store:
        paths = [file.path for file in store.files() if file.path is not None]
    known = {quote(os.fsencode(path)): run / path for path in paths}
    if name in known and known[name].resolve().is_relative_to(run.resolve()) and known[name].is_file():
        return Answer(known[name].read_bytes(), "application/octet-stream")
    return said(HTTPStatus.NOT_FOUND, "The run has no such file.")


def _line(run: Path) -> Line:
    """A run in short; one that cannot be read does not hide the others."""
    name = _encoded(os.fsencode(run.name))
    try:
        with RunStore.snapshot(run) as store:
            data = page_data(store)
    except NatdeployError as error:
        return Line(run.name, name, _address(run), trouble=str(error))
    assert data.standing is not None
    front = [net for net in data.nets if net.role == "front"]
    return Line(
        run.name,
        name,
        _address(run),
        target=data.target,
        standing=data.standing,
        front=len(front) if data.rounds else None,
        best_error=min((1 - net.validation_accuracy for net in front), default=None),
        hypervolume=data.rounds[-1].hypervolume if data.rounds else None,
    )


def _compared(run: Path) -> Compared:
    with RunStore.snapshot(run) as store:
        data = page_data(store)
    assert data.standing is not None
    return Compared(
        name=run.name,
        command_name=data.command_name,
        address=_address(run),
        target=data.target,
        data=data.data["fingerprint"],
        constraints=data.constraints,
        standing=data.standing,
        front=[net for net in data.nets if net.role == "front"],
        picks=data.picks,
        files=data.files,
        latencies=data.latencies,
    )


def volumes(runs: Sequence[Compared]) -> Volumes | None:
    """How much the fronts of the runs dominate of one box of latency and error; None where their numbers cannot be compared.

    Latencies are all measured ones, or all predicted ones where a net of any run was not measured.
    """
    nets, kind = [net for run in runs for net in run.front], kind_of_all(runs)
    measured = all(net.measured_p50_ms is not None for net in nets)
    points = {
        run.name: [(net.measured_p50_ms if measured else net.predicted_ms, 1 - accuracy(net, kind)) for net in run.front]
        for run in runs
    }
    every = [point for each in points.values() for point in each]
    if not every or any(latency is None for latency, _ in every) or differences(runs):
        return None
    reference = _MARGIN * np.array(every, dtype=np.float64).max(axis=0)
    if not (reference > 0).all():  # every net is right about everything
        return None
    shares = [hypervolume(np.array(each, dtype=np.float64) / reference, np.ones(2)) if each else None for each in points.values()]
    return Volumes((float(reference[0]), float(reference[1])), shares, measured)
