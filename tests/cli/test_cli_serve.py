"""`natdeploy serve` as a program."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from typer.testing import CliRunner
from written_run import write_run

from natdeploy import pipeline
from natdeploy.cli.main import app


def start(*arguments: str) -> subprocess.Popen[str]:
    code = "from natdeploy.cli.main import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, "serve", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_it_says_where_and_ends_with_ctrl_c(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "first")
    with start(str(tmp_path / "runs"), "--port", "0") as program:
        assert program.stdout is not None
        line = program.stdout.readline()
        found = re.search(r"shown at (http://127\.0\.0\.1:\d+/); Ctrl-C ends this", line)
        assert found is not None, line
        with urllib.request.urlopen(found[1], timeout=20) as answer:
            assert b"/runs/first/" in answer.read()
        program.send_signal(signal.SIGINT)
        _, errors = program.communicate(timeout=20)
    assert (program.returncode, errors) == (0, "")


@pytest.mark.parametrize(("host", "warned"), [("127.0.0.1", False), ("localhost", False), ("0.0.0.0", True)])
def test_others_are_let_in_only_with_a_warning(host: str, warned: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path / "run")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("socketserver.BaseServer.serve_forever", interrupted)
    result = CliRunner().invoke(app, ["serve", str(tmp_path), "--host", host, "--port", "0", "--json"], catch_exceptions=False)
    assert result.exit_code == 0
    assert re.fullmatch(rf"http://{host}:\d+/", json.loads(result.stdout)["address"])
    assert ("without a password" in result.stderr) == warned


def test_bad_requests_are_one_sentence(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["serve", str(tmp_path)])
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: there are no runs in {tmp_path}; ")
    write_run(tmp_path / "run")
    with pipeline.serve(tmp_path, port=0) as server:
        result = CliRunner().invoke(app, ["serve", str(tmp_path), "--port", str(server.server_address[1])])
    assert result.exit_code == 2
    assert "choose another one with --port" in result.stderr
    assert CliRunner().invoke(app, ["serve", str(tmp_path), "--port", "70000"]).exit_code == 2
