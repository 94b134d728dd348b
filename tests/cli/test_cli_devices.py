"""`natdeploy devices`: exit codes, messages, and what people and programs are shown."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from natdeploy.cli.main import app
from natdeploy.errors import DeviceError
from natdeploy.hardware import add as adding
from natdeploy.hardware import check as checking
from natdeploy.hardware.check import Core, DeviceReport, Sensor
from natdeploy.hardware.device import Device, load_device


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["devices", *arguments], catch_exceptions=False)


def told(device: Device, **changes: Any) -> DeviceReport:
    """What a phone might tell."""
    facts: dict[str, Any] = {
        "model": "Pixel 4",
        "cores": tuple(Core(number, 1_785_600 if number < 4 else 2_419_200, "schedutil") for number in range(8)),
        "memory_mb": 5600,
        "sensors": (Sensor("/sys/class/thermal/thermal_zone1/temp", "cpu", 38.1),),
    }
    return DeviceReport(device, **{**facts, **changes})


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Changes to what every device tells."""
    changes: dict[str, Any] = {}

    def check(device: Device) -> DeviceReport:
        device.require_address()
        return told(device, **changes)

    monkeypatch.setattr(checking, "check", check)
    monkeypatch.setattr(adding, "check", check)
    return changes


def test_list_shows_what_ships_what_is_ones_own_and_what_is_damaged(devices: Path) -> None:
    devices.mkdir()
    (devices / "jetson.toml").write_text(load_device("jetson").model_copy(update={"addresses": ("me@jetson",)}).to_toml())
    (devices / "broken.toml").write_text("name = 3")
    lines = {line.split()[0]: line for line in run("list").stdout.splitlines()}
    assert "; ssh, me@jetson; tensorrt, onnxruntime, tflite; yours, not tried on any" in lines["jetson"]
    assert "; ssh, no address yet; " in lines["jetson_nano"]
    assert "; adb, the one that is attached; tflite, onnxruntime; ships, not tried on any" in lines["pixel4"]
    assert "; local; " in lines["host"] and "ships, tried on x86-64 Linux" in lines["host"]
    assert "broken.toml is wrong at 'name'" in lines["damaged:"]
    listed = json.loads(run("list", "--json").stdout)
    assert {each["name"]: each["file"] for each in listed["devices"]}["jetson"] == str(devices / "jetson.toml")
    assert len(listed["damaged"]) == 1


def test_show_tells_everything_with_sources(tmp_path: Path) -> None:
    shown = run("show", "pixel4").stdout
    assert "https://en.wikichip.org" in shown
    assert "pixel4.toml" in shown.splitlines()[-1]
    as_json = json.loads(run("show", "pixel4", "--json").stdout)
    assert (as_json["harness"], as_json["python"], as_json["cores"]) == ("tool", None, [4, 5, 6, 7])
    own = tmp_path / "pixel4.toml"
    own.write_text(load_device("pixel4").model_copy(update={"addresses": ("a", "b")}).to_toml())
    assert run("show", f"{own}#2").stdout.splitlines()[-1] == f"file: {own}"
    assert json.loads(run("show", f"{own}#2", "--json").stdout)["addresses"] == ["b"]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("show", "toaster"), 2, "there is no device 'toaster'"),
        (("show", "pixel4#2"), 2, "lists no addresses; list them there"),
        (("check", "jetson"), 5, "natdeploy devices add jetson --ssh USER@HOST"),
        (("add", "jetson"), 2, "either --ssh USER@HOST or --adb SERIAL"),
        (("add", "jetson", "--ssh", "a", "--adb", "b"), 2, "either --ssh USER@HOST or --adb SERIAL"),
        (("add", "jetson", "--adb", "b"), 2, "jetson is reached by ssh, not by adb"),
    ],
)
def test_mistakes_are_one_sentence(arguments: tuple[str, ...], code: int, says: str, answers: dict[str, Any]) -> None:
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (code, "")
    assert says in result.stderr
    assert result.stderr.count("\n") == 1


def test_check_of_this_machine_is_real() -> None:
    result = run("check", "host")
    assert result.exit_code == 0, result.output
    assert f"Python       {sys.version.split()[0]}, numpy" in result.stdout
    (report,) = json.loads(run("check", "host", "--json").stdout)
    assert report["ok"] is True
    assert report["runtimes"]["onnxruntime"]


def test_check_of_a_farm_asks_every_member_and_ends_with_one_when_something_is_missing(
    devices: Path, answers: dict[str, Any]
) -> None:
    devices.mkdir()
    (devices / "pixel4.toml").write_text(load_device("pixel4").model_copy(update={"addresses": ("0A", "1B")}).to_toml())
    assert [line for line in run("check", "pixel4").stdout.splitlines() if line.startswith("pixel4")] == [
        "pixel4 at 0A: Pixel 4",
        "pixel4 at 1B: Pixel 4",
    ]
    answers["problems"] = ("tflite: benchmark_model was not found",)
    result = run("check", "pixel4#2")
    assert result.exit_code == 1
    assert "missing: tflite: benchmark_model was not found" in result.stdout
    assert "cores        8, at most at 1.79, 2.42 GHz" in result.stdout
    assert "big cores    4, 5, 6, 7" in result.stdout
    assert [each["ok"] for each in json.loads(run("check", "pixel4", "--json").stdout)] == [False, False]


def test_add_writes_a_file_and_says_what_it_found(devices: Path, answers: dict[str, Any]) -> None:
    result = run("add", "my_phone", "--like", "android", "--adb", "0A1B")
    assert result.exit_code == 0, result.output
    assert "in the file: big cores: 4, 5, 6, 7" in result.stdout
    assert result.stdout.splitlines()[-1] == f"file: {devices / 'my_phone.toml'}"
    assert load_device("my_phone").addresses == ("0A1B",)
    again = run("add", "my_phone", "--like", "android", "--adb", "other")
    assert (again.exit_code, load_device("my_phone").address) == (2, "0A1B")
    forced = run("add", "my_phone", "--like", "android", "--adb", "other", "--force", "--json")
    assert json.loads(forced.stdout)["device"]["addresses"] == ["other"]
    named = run("add", "jetson", "--ssh", "me@there", "--name", "mine", "--python", "/opt/venv/bin/python", "--json")
    made = json.loads(named.stdout)["device"]
    assert (made["name"], made["python"], made["cores"]) == ("mine", "/opt/venv/bin/python", [4, 5, 6, 7])


def test_a_device_that_cannot_be_reached_is_not_added(devices: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def check(device: Device) -> DeviceReport:
        raise DeviceError(f"{device.name} cannot be reached")

    monkeypatch.setattr(adding, "check", check)
    result = run("add", "jetson", "--ssh", "me@nowhere")
    assert (result.exit_code, result.stderr) == (5, "error: jetson cannot be reached\n")
    assert not devices.exists()
