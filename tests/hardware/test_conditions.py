"""A hot device is waited for, but not for ever; what cannot be read is said and is no number."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from natdeploy.hardware.conditions import settle
from natdeploy.hardware.device import Device
from natdeploy.hardware.transports import connect
from natdeploy.progress import Silent


class Notes(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


@pytest.fixture
def zone(tmp_path: Path) -> Path:
    file = tmp_path / "temp"
    file.write_text("71000\n")
    return file


def test_a_hot_device_cools_down_first(zone: Path, make_device: Callable[..., Device], tmp_path: Path) -> None:
    (tmp_path / "clock").write_text("1420800\n")
    device = make_device("local", temperature=str(zone), cool_c=50, clock=str(tmp_path / "clock"))

    def sleep(_: float) -> None:
        zone.write_text(f"{int(zone.read_text()) - 15000}\n")

    seen = Notes()
    with connect(device) as transport:
        found = settle(transport, device, seen, sleep=sleep)
    assert found == {"temperature_c": 41.0, "cooled_s": 10.0, "hot": False, "clock_mhz": 1420.8}
    assert seen.notes == ["device has 71 °C; waiting until it is below 50 °C"]


def test_one_that_stays_hot_is_timed_and_told(zone: Path, make_device: Callable[..., Device]) -> None:
    device, seen = make_device("local", temperature=str(zone), cool_c=50), Notes()
    with connect(device) as transport:
        found = settle(transport, device, seen, limit_s=10, sleep=lambda _: None)
    assert found == {"temperature_c": 71.0, "cooled_s": 10.0, "hot": True}
    assert seen.notes[1:] == ["device still has 71 °C after 10 s and is timed so; cool it better"]


@pytest.mark.parametrize("content", ["", "hot\n", None])
def test_no_reading_is_no_number(content: str | None, make_device: Callable[..., Device], tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "temp").write_text(content)
    device, seen = make_device("local", temperature=str(tmp_path / "temp"), cool_c=50), Notes()
    with connect(device) as transport:
        assert settle(transport, device, seen) == {"temperature_c": None, "cooled_s": 0.0, "hot": None}
    assert len(seen.notes) == 1
    assert "does not tell its temperature" in seen.notes[0]


def test_a_device_that_names_nothing_is_asked_nothing(make_device: Callable[..., Device]) -> None:
    device = make_device("local")
    with connect(device) as transport:
        assert settle(transport, device, Silent()) == {}
