"""Devices and targets are read strictly, and every mistake is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from natdeploy.errors import UsageError
from natdeploy.hardware.device import device_names, host_facts, load_device, parse_target

DEVICE = 'name = "pi"\ndescription = "a board"\ntransport = "local"\nruntimes = ["onnxruntime"]\nthreads = 2\n'


def test_every_shipped_device_loads_under_its_own_name() -> None:
    assert "host" in device_names()
    assert [load_device(name).name for name in device_names()] == list(device_names())


@pytest.mark.parametrize("text", ["host", "host/onnxruntime", "host/onnxruntime-fp32-1t"])
def test_target_forms_mean_the_same(text: str) -> None:
    assert str(parse_target(text)) == "host/onnxruntime-fp32-1t"
    assert parse_target(text).slug == "onnxruntime-fp32-1t"


def test_threads_override_what_is_written() -> None:
    assert parse_target("host/onnxruntime-fp32-2t").threads == 2
    assert parse_target("host/onnxruntime-fp32-2t", threads=4).slug == "onnxruntime-fp32-4t"


def test_device_file_by_path(tmp_path: Path) -> None:
    path = tmp_path / "pi.toml"
    path.write_text(DEVICE)
    assert str(parse_target(f"{path}/onnxruntime")) == "pi/onnxruntime-fp32-2t"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("toaster", "known are host"),
        ("host/tensorflow", "no runtime 'tensorflow'"),
        ("host/onnxruntime-bf16-1t", "not in bf16"),
        ("host/onnxruntime/x", "expected DEVICE"),
        ("nowhere/pi.toml", "no device file"),
    ],
)
def test_unusable_targets_are_explained(text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        parse_target(text)


def test_no_threads_at_all_is_refused() -> None:
    with pytest.raises(UsageError, match="1 or more"):
        parse_target("host", threads=0)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("threads = 2", "threads = 0"), "'threads'"),
        (("threads = 2", "thread = 2"), "'thread"),
        (("local", "pigeon"), "'transport'"),
        (('runtimes = ["onnxruntime"]', "runtimes = []"), "'runtimes'"),
        (("threads = 2", "threads ="), "no TOML"),
    ],
)
def test_wrong_device_files_name_the_place(tmp_path: Path, change: tuple[str, str], says: str) -> None:
    path = tmp_path / "pi.toml"
    path.write_text(DEVICE.replace(*change))
    with pytest.raises(UsageError, match=says):
        load_device(str(path))


def test_host_facts_say_what_machine_this_is() -> None:
    facts = host_facts()
    assert facts["cpu"]
    assert facts["cores"] >= 1
    assert facts["os"]
