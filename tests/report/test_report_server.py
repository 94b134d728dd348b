"""What the server answers, whom it answers, and what it never gives away."""

from __future__ import annotations

import json
import os
import socket
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from urllib.parse import quote

import pytest
from written_run import add_round, write_run

from natdeploy import pipeline
from natdeploy.errors import UsageError
from natdeploy.pipeline.serve import runs_in, volumes
from natdeploy.report.compare import Compared
from natdeploy.report.server import is_loopback
from natdeploy.report.standing import Standing
from natdeploy.store import FileRecord, RunStore

Served = Callable[..., int]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served") / "runs"
    write_run(folder / "whole")
    write_run(folder / "half", rounds=1, finished=False)
    return folder


def ask(port: int, path: str, method: str = "GET", **headers: str) -> tuple[HTTPResponse, str]:
    with closing(HTTPConnection("127.0.0.1", port, timeout=20)) as connection:
        connection.request(method, path, headers=headers)
        response = connection.getresponse()
        return response, response.read().decode()


def test_all_runs_are_listed_with_how_far_they_are(runs: Path, served: Served) -> None:
    response, page = ask(served(runs), "/")
    assert response.status == 200
    half, whole = (page.split(f'href="/runs/{name}/">')[1].split("</tr>")[0] for name in ("half", "whole"))
    for shown in ("stopped", "1 of 2", "60 of 180", "0.550", "2.0 of about 10.0 min", "host/onnxruntime-fp32-1t"):
        assert shown in half, shown
    assert all(shown in whole for shown in ("finished", "2 of 2", "80 of 180", "0.600"))
    assert 'http-equiv="refresh"' in page.split("<noscript>")[1], "without JavaScript it is loaded again"


def test_a_run_has_the_page_of_its_report(runs: Path, served: Served) -> None:
    port = served(runs)
    _, page = ask(port, "/runs/whole/")
    pipeline.report(runs / "whole")
    report = (runs / "whole" / "report.html").read_text()
    (runs / "whole" / "report.html").unlink()
    body = report.split("<main>")[1].split("<footer>")[0]
    assert body in page
    assert "The search is not finished" in ask(port, "/runs/half/")[1]


@pytest.mark.parametrize("path", ["/", "/runs/whole/", "/compare?run=whole&run=half", "/nothing", "/assets/live.js"])
def test_every_answer_is_guarded(path: str, runs: Path, served: Served) -> None:
    response, _ = ask(served(runs), path)
    policy = response.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'self';")
    assert "frame-ancestors 'none'" in policy
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert response.headers["Access-Control-Allow-Origin"] is None
    assert "Python" not in response.headers["Server"]


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND"])
def test_only_looking_is_allowed(method: str, runs: Path, served: Served) -> None:
    before = {path: path.stat().st_mtime_ns for path in runs.rglob("*")}
    response, _ = ask(served(runs), "/runs/whole/", method)
    assert response.status == 405
    assert response.headers["Allow"] == "GET, HEAD"
    assert {path: path.stat().st_mtime_ns for path in runs.rglob("*")} == before


def test_head_tells_the_same_without_a_body(runs: Path, served: Served) -> None:
    port = served(runs)
    got, page = ask(port, "/runs/whole/")
    head, nothing = ask(port, "/runs/whole/", "HEAD")
    assert (head.status, nothing) == (200, "")
    assert head.headers["Content-Length"] == got.headers["Content-Length"] == str(len(page.encode()))


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200),
        ("127.0.0.1:1234", 200),
        ("LOCALHOST:8765", 200),
        ("[::1]:8765", 200),
        ("evil.example", 421),
        ("evil.example:8765", 421),
        ("127.0.0.1.evil.example", 421),
        ("localhost.evil.example", 421),
        ("", 421),
        ("[::1", 421),
    ],
)
def test_a_name_of_somebody_else_is_not_answered(host: str, status: int, runs: Path, served: Served) -> None:
    """A page of evil.example whose name was made to mean this machine (DNS rebinding) sends its own name."""
    response, page = ask(served(runs), "/", Host=host)
    assert response.status == status
    assert ("whole" in page) == (status == 200)


def test_a_request_without_or_with_two_hosts_is_not_answered(runs: Path, served: Served) -> None:
    port = served(runs)
    for hosts in ("", "Host: localhost\r\nHost: evil.example\r\n"):
        with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
            connection.sendall(f"GET / HTTP/1.1\r\n{hosts}\r\n".encode())
            assert connection.recv(20).startswith(b"HTTP/1.1 421")


@pytest.mark.parametrize(
    "path",
    [
        "/runs/../../etc/passwd",
        "/runs/%2e%2e/",
        "/runs/..%2f..%2fetc/passwd",
        "/runs/whole/../half/config.toml",
        "/runs/whole/run.sqlite",
        "/runs/whole/%2e%2e/half/config.toml",
        "/runs/whole//etc/passwd",
        "/assets/../page.py",
        "/assets/page.py",
        "/assets/%2e%2e%2fpage.py",
        "/runs/whole",
        "//etc/passwd",
        "/runs//",
        "/%ff%00",
    ],
)
def test_nothing_is_found_by_its_path(path: str, runs: Path, served: Served) -> None:
    response, page = ask(served(runs), path)
    assert response.status in (400, 404)
    assert "root:" not in page
    assert "SQLite" not in page


@pytest.mark.parametrize(("line", "status"), [("GET http://[/ HTTP/1.1", 400), ("GET * HTTP/1.1", 404)])
def test_what_is_no_address_is_refused(line: str, status: int, runs: Path, served: Served) -> None:
    with socket.create_connection(("127.0.0.1", served(runs)), timeout=20) as connection:
        connection.sendall(f"{line}\r\nHost: localhost\r\n\r\n".encode())
        assert f" {status} ".encode() in connection.makefile("rb").readline()


def test_files_of_nets_are_given_and_nothing_else(tmp_path: Path, served: Served) -> None:
    run = write_run(tmp_path / "run")
    (tmp_path / "secret").write_text("a secret")
    (run / "models").mkdir()
    (run / "models" / "a b.onnx").write_text("a model")
    (run / "models" / "link.onnx").symlink_to(tmp_path / "secret")
    paths = ("models/a b.onnx", "models/link.onnx", "../secret", str(tmp_path / "secret"), "models/gone.onnx")
    with RunStore.open(run) as store:
        net = store.nets()[0]
        for number, path in enumerate(paths):
            store.put_file(FileRecord(net.role, net.id, f"format{number}", "fp32", path, 1.0, None, None, None, None))
    port = served(run)
    response, text = ask(port, "/runs/run/models/a%20b.onnx")
    assert (response.status, text, response.headers["Content-Type"]) == (200, "a model", "application/octet-stream")
    for path in (*paths[1:], "config.toml"):
        response, text = ask(port, f"/runs/run/{quote(path)}")
        assert (response.status, "secret" in text) == (404, False), path


def test_an_unchanged_page_is_not_sent_again(tmp_path: Path, served: Served) -> None:
    run = write_run(tmp_path / "run", rounds=0, finished=False)
    port = served(tmp_path)
    first, page = ask(port, "/runs/run/")
    tag = first.headers["ETag"]
    again, nothing = ask(port, "/runs/run/", **{"If-None-Match": tag})
    assert (again.status, nothing, again.headers["ETag"]) == (304, "", tag)
    with RunStore.open(run) as store:
        add_round(store, 1)
        changed, live = ask(port, "/runs/run/", **{"If-None-Match": tag})
    assert changed.status == 200
    assert changed.headers["ETag"] != tag
    assert "The search goes on: 1 of 2 rounds" in live
    assert "0 of 2 rounds" in page


def test_runs_that_come_later_are_shown(tmp_path: Path, served: Served) -> None:
    write_run(tmp_path / "first", rounds=0, finished=False)
    port = served(tmp_path)
    assert "second" not in ask(port, "/")[1]
    write_run(tmp_path / "second", rounds=0, finished=False)
    assert 'href="/runs/second/"' in ask(port, "/")[1]


def test_a_run_that_cannot_be_read_does_not_hide_the_others(tmp_path: Path, served: Served) -> None:
    write_run(tmp_path / "good", rounds=0, finished=False)
    write_run(tmp_path / "damaged", rounds=0, finished=False)
    (tmp_path / "damaged" / "run.sqlite").write_bytes(b"nothing that a database begins with" * 99)
    other = write_run(tmp_path / "other", rounds=0, finished=False)
    with closing(sqlite3.connect(other / "run.sqlite")) as database:
        database.execute("UPDATE facts SET value = ? WHERE key = 'config'", [json.dumps({"data": "photos"})])
        database.commit()
    port = served(tmp_path)
    response, page = ask(port, "/")
    assert response.status == 200
    assert "is damaged" in page
    assert "is not one of natdeploy" in page
    assert ask(port, "/runs/good/")[0].status == 200
    response, page = ask(port, "/runs/damaged/")
    assert response.status == 500
    assert "is damaged" in page


@pytest.mark.parametrize("name", ["a b & <c>", "für 100%", "..x", os.fsdecode(b"latin-1 \xe9"), "' or 1=1 --"])
def test_odd_names(name: str, tmp_path: Path, served: Served) -> None:
    write_run(tmp_path / name, rounds=0, finished=False)
    write_run(tmp_path / "plain", rounds=0, finished=False)
    port = served(tmp_path)
    (key,) = [key for key, run in runs_in(tmp_path).items() if run.name == name]
    page = ask(port, "/")[1]
    assert f'href="/runs/{key}/"'.replace("&", "&amp;").replace("'", "&#x27;") in page
    assert "<c>" not in page
    assert ask(port, f"/runs/{key}/")[0].status == 200
    assert ask(port, f"/compare?run=plain&run={quote(key)}")[0].status == 200


# ---- comparing


def test_runs_are_compared_in_one_box(tmp_path: Path, served: Served) -> None:
    for name, lead in (("a", 0), ("b", 30)):
        write_run(tmp_path / name, lead=lead)
    write_run(tmp_path / "c", finished=False, rounds=0)
    port = served(tmp_path)
    response, page = ask(port, "/compare?run=a&run=b&run=c")
    assert response.status == 200
    rows = [row.split("</tr>")[0] for row in page.split("<h2>Runs</h2>")[1].split("<tr>")[2:]]
    shares = [float(row.split("</td>")[5].split(">")[-1]) for row in rows]
    assert len(shares) == 3
    assert shares[1] > shares[0] > shares[2] > 0
    assert "What nets are judged by is of the validation images" in page, "not every net was tested"
    assert "c: The search is not finished" in page
    figure = json.loads(page.split('id="figures">')[1].split("</script>")[0])["front"]
    assert [trace["meta"] for trace in figure["data"] if "customdata" not in trace] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("query", "status", "told"),
    [("", 400, "takes two runs or more"), ("?run=half&run=half", 400, "takes two"), ("?run=half&run=x", 404, "There is no run x.")],
)
def test_what_cannot_be_compared_is_said(query: str, status: int, told: str, runs: Path, served: Served) -> None:
    response, page = ask(served(runs), f"/compare{query}")
    assert response.status == status
    assert told in page


def test_numbers_of_other_targets_and_images_are_not_put_into_one_box(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    with RunStore.snapshot(run) as store:
        front = [net for net in store.nets() if net.role == "front"]
    one = Compared("one", "one", "/runs/one/", "host", "0", (), Standing("finished", 2, 2, 1, 1, 1.0, 1.0), front, (), (), ())
    same = volumes([one, replace(one, name="two")])
    assert same is not None
    assert same.shares[0] == same.shares[1]
    assert not same.measured
    timed = replace(one, front=[replace(net, measured_p50_ms=1.0) for net in front])
    assert (both := volumes([timed, replace(timed, name="two")])) is not None
    assert both.measured
    assert (mixed := volumes([timed, replace(one, name="two")])) is not None
    assert not mixed.measured, "one kind of latency for all"
    empty = volumes([one, replace(one, name="two", front=())])
    assert empty is not None
    assert empty.shares[1] is None
    assert volumes([one, replace(one, name="two", target="pixel4")]) is None
    assert volumes([one, replace(one, name="two", data="1")]) is None
    assert volumes([replace(one, front=()), replace(one, name="two", front=())]) is None


# ---- beginning


def test_a_folder_without_runs(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UsageError, match="there are no runs in"):
            pipeline.serve(folder)


def test_a_port_in_use_and_an_address_of_nobody(runs: Path, served: Served) -> None:
    port = served(runs)
    with pytest.raises(UsageError, match=f"port {port} of 127.0.0.1 cannot be listened on .*; choose another one with --port"):
        pipeline.serve(runs, port=port)
    with pytest.raises(UsageError, match=r"there is no address nowhere\.invalid"):
        pipeline.serve(runs, host="nowhere.invalid", port=0)
    with pytest.raises(UsageError, match="cannot be listened on"):
        pipeline.serve(runs, host="192.0.2.1", port=0)


@pytest.mark.parametrize(
    ("host", "own"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("box", False),
    ],
)
def test_addresses_that_only_this_machine_reaches(host: str, own: bool) -> None:
    assert is_loopback(host) == own


def test_a_server_for_others_goes_by_its_machines_name(runs: Path, served: Served) -> None:
    port = served(runs, "0.0.0.0")
    assert ask(port, "/", Host=f"{socket.gethostname()}:{port}")[0].status == 200
    assert ask(port, "/", Host="evil.example")[0].status == 421
