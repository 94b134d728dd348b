"""`natdeploy supernet`: what it says of files, and the files it writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from natdeploy.cli.main import app
from natdeploy.space import get_space
from natdeploy.supernet import Subnet, load_supernet, write_seed

DEMO = get_space("demo")


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["supernet", *map(str, arguments)], catch_exceptions=False)


@pytest.fixture
def seed_file(tmp_path: Path) -> Path:
    write_seed(Subnet(DEMO, DEMO.decode(DEMO.lower), 4), tmp_path / "seed.safetensors", {"input": "RGB in [-1,1]"})
    return tmp_path / "seed.safetensors"


def test_info_for_people_and_programs(seed_file: Path) -> None:
    result = run("info", seed_file)
    assert result.exit_code == 0
    lines = {line[:11].strip(): line[11:].strip() for line in result.stdout.splitlines()}
    assert lines["format"].startswith("natdeploy, ") and lines["holds"] == "a network of space demo, width 1"
    assert lines["channels"] == "16 16 24 32 48 128" and lines["classes"] == "4"
    assert (lines["norm eps"], lines["padding"], lines["input"]) == ("1e-05", "symmetric", "RGB in [-1,1]")
    assert lines["network"].startswith("r16-w1-k3e1-k3e3-k3e3-k3e3: 0.0")

    facts = json.loads(run("info", seed_file, "--json").stdout)
    assert (facts["space"], facts["holds"], facts["channels"]) == ("demo", "network", [16, 16, 24, 32, 48, 128])
    assert facts["largest"] == facts["smallest"] and f"{facts['largest']['params'] / 1e6:.3f}M" in lines["network"]


def test_import_writes_a_supernet(seed_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "supernet.safetensors"
    result = run("import", seed_file, "--space", "demo", "--classes", "7", "--out", out)
    assert result.exit_code == 0
    assert "kernels grew" in result.stdout and "a supernet of space demo" in result.stdout and str(out) in result.stdout
    assert load_supernet(out).classes == 7
    facts = json.loads(run("import", out, "--out", tmp_path / "again.safetensors", "--json").stdout)
    assert facts["seed"]["holds"] == facts["supernet"]["holds"] == "supernet" and facts["report"]["unmapped"] == []


def test_refusals_are_one_sentence(seed_file: Path, tmp_path: Path) -> None:
    for arguments, code, message in [
        (("info", tmp_path / "absent.pth"), 1, "cannot be read: No such file"),
        (("info", seed_file, "--space", "mbv2"), 1, "not a network of space mbv2"),
        (("import", seed_file, "--space", "nowhere"), 2, "there is no space 'nowhere'"),
    ]:
        result = run(*arguments)
        assert result.exit_code == code and message in result.stderr and result.stderr.count("\n") == 1


def test_the_group_alone_shows_its_verbs() -> None:
    result = run()
    assert "info" in result.output and "import" in result.output
