"""Devices and targets are read strictly, and every mistake is named."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from natdeploy.errors import DeviceError, UsageError
from natdeploy.hardware.device import (
    TOOLS,
    Device,
    device_names,
    device_of,
    host_facts,
    load_device,
    make_device,
    parse_target,
)
from natdeploy.hardware.runtimes import RUNTIMES

DEVICE = 'name = "pi"\ndescription = "a board"\ntransport = "local"\nruntimes = ["onnxruntime"]\nthreads = 2\n'
FARM = DEVICE.replace('"local"', '"ssh"') + 'addresses = ["me@one", "ssh://me@two:2222", "three"]\n'

SHIPPED = (
    "android",
    "host",
    "intel_cpu",
    "jetson",
    "jetson_agx_orin",
    "jetson_nano",
    "jetson_xavier_nx",
    "linux_arm64",
    "pixel4",
    "pixel6",
    "pixel8",
    "raspberrypi4",
    "raspberrypi5",
    "x86_server",
)


def write(folder: Path, text: str, name: str = "pi") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.toml"
    path.write_text(text)
    return path


# ---- the files that ship


def test_the_devices_that_ship() -> None:
    assert device_names() == SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_device_loads_under_its_own_name_and_names_its_sources(name: str) -> None:
    device = load_device(name)
    assert device.name == name
    assert device.sources or name == "host"
    assert not device.addresses, "nobody's address ships"
    assert device.harness == ("tool" if device.transport == "adb" else "runner")
    assert (device.verified is not None) == (name == "host"), "a file claims hardware that it was tried on"
    assert make_device(tomllib.loads(device.to_toml()), "itself") == device
    assert str(parse_target(name)).startswith(f"{name}/{device.runtimes[0]}-fp32-")


def test_published_figures_follow_from_cores_and_clocks() -> None:
    peaks = {
        (name, runtime): peak.gflops for name in SHIPPED for peak in load_device(name).peak_gflops for runtime in peak.runtimes
    }
    assert peaks["jetson", "tensorrt"]["fp32"] == 2 * 1024 * 0.625
    assert peaks["jetson_nano", "tensorrt"]["fp16"] == pytest.approx(2 * 2 * 128 * 0.9216, rel=0.001)
    assert peaks["jetson_agx_orin", "tensorrt"]["fp32"] == pytest.approx(2 * 2048 * 1.3, rel=0.001)
    assert peaks["jetson_xavier_nx", "tensorrt"]["fp32"] == pytest.approx(2 * 384 * 1.1, rel=0.001)
    assert peaks["pixel4", "tflite"]["fp32"] == pytest.approx(16 * (3 * 2.42 + 2.84), rel=0.001)
    assert peaks["raspberrypi4", "tflite"]["fp32"] == pytest.approx(4 * 8 * 1.8)
    assert peaks["raspberrypi5", "tflite"]["fp32"] == pytest.approx(4 * 16 * 2.4)
    assert load_device("pixel4").bandwidth_gbs == pytest.approx(4 * 2 * 4.266, rel=0.01)
    assert load_device("raspberrypi5").bandwidth_gbs == pytest.approx(4 * 4.267, rel=0.01)


# ---- which file counts


def test_own_file_comes_before_the_shipped_one_and_a_path_before_both(tmp_path: Path, devices: Path) -> None:
    write(devices, DEVICE.replace('"pi"', '"jetson"').replace("a board", "mine"), "jetson")
    assert load_device("jetson").description == "mine"
    path = write(tmp_path, DEVICE.replace('"pi"', '"jetson"').replace("a board", "another"), "jetson")
    assert load_device(str(path)).description == "another"
    write(devices, DEVICE)
    assert set(device_names()) == {*SHIPPED, "pi"}


def test_own_file_must_be_called_as_its_device(devices: Path) -> None:
    path = write(devices, DEVICE, "berry")
    with pytest.raises(UsageError, match=rf"{path} is wrong at 'name': it must be 'berry'"):
        load_device("berry")


# ---- several devices of one kind


def test_a_number_chooses_among_addresses(devices: Path) -> None:
    write(devices, FARM)
    assert load_device("pi").addresses == ("me@one", "ssh://me@two:2222", "three")
    assert load_device("pi").address is None
    assert load_device("pi#2").address == "ssh://me@two:2222"
    assert load_device("pi#3,pi#1").addresses == ("three", "me@one")
    assert [member.address for member in load_device("pi#1,pi#3").members()] == ["me@one", "three"]
    assert load_device("host").members() == (load_device("host"),)


def test_a_farm_is_one_target_with_one_table(devices: Path) -> None:
    path = write(devices, FARM)
    assert str(parse_target("pi#1,pi#2/onnxruntime")) == str(parse_target("pi")) == "pi/onnxruntime-fp32-2t"
    assert parse_target(f"{path}#2/onnxruntime-fp32-1t").device.address == "ssh://me@two:2222"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("pi#4", r"no pi #4: its file lists 3 addresses, the first is #1; list them there as addresses"),
        ("pi#0", "no pi #0"),
        ("pi#two", "no pi #two"),
        ("pi#", "no pi #:"),
        ("pi#1,pi", "no pi without a number"),
        ("pi#1,jetson#1", "several kinds"),
        ("pixel4#1", "lists no addresses"),
    ],
)
def test_a_member_that_is_not_listed_is_refused(devices: Path, text: str, says: str) -> None:
    write(devices, FARM)
    with pytest.raises(UsageError, match=says):
        load_device(text)


def test_ssh_needs_an_address_and_adb_finds_the_only_phone() -> None:
    with pytest.raises(DeviceError, match="natdeploy devices add jetson --ssh USER@HOST"):
        load_device("jetson").require_address()
    load_device("pixel4").require_address()
    load_device("host").require_address()


# ---- targets


@pytest.mark.parametrize("text", ["host", "host/onnxruntime", "host/onnxruntime-fp32-1t"])
def test_target_forms_mean_the_same(text: str) -> None:
    assert str(parse_target(text)) == "host/onnxruntime-fp32-1t"
    assert parse_target(text).slug == "onnxruntime-fp32-1t"
    assert device_of(text) == "host"


def test_threads_override_what_is_written() -> None:
    assert parse_target("host/onnxruntime-fp32-2t").threads == 2
    assert parse_target("host/onnxruntime-fp32-2t", threads=4).slug == "onnxruntime-fp32-4t"


def test_device_file_by_path(tmp_path: Path) -> None:
    path = write(tmp_path, DEVICE)
    assert str(parse_target(f"{path}/onnxruntime")) == "pi/onnxruntime-fp32-2t"
    assert device_of(f"{path}/onnxruntime") == str(path)


def test_a_device_has_its_own_defaults_of_precision_and_delegate(tmp_path: Path) -> None:
    own = 'precisions = { onnxruntime = ["int8", "fp32"] }\ndelegates = { onnxruntime = ["cuda", "cpu"] }\n'
    path = write(tmp_path, DEVICE + own)
    assert parse_target(str(path)).slug == "onnxruntime-int8-2t"
    assert parse_target(str(path)).delegate == "cuda"
    for slug in ("onnxruntime-fp32-2t", "onnxruntime+cpu-int8-2t"):
        assert parse_target(f"{path}/{slug}").slug == slug
    with pytest.raises(UsageError, match="no delegate 'tensorrt'; it has cuda, cpu"):
        parse_target(f"{path}/onnxruntime+tensorrt")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("toaster", "known are android, host"),
        ("host/tensorflow", "no runtime 'tensorflow'"),
        ("host/onnxruntime-bf16-1t", "not in bf16"),
        ("jetson_nano/tensorrt-int8", "tensorrt computes in fp32, fp16, not in int8"),
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


# ---- strictness


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("threads = 2", "threads = 0"), "'threads'"),
        (("threads = 2", 'threads = "2"'), "'threads'"),
        (("threads = 2", "threads = 2.0"), "'threads'"),
        (("threads = 2", "threads = true"), "'threads'"),
        (("threads = 2", "thread = 2"), "'thread"),
        (("local", "pigeon"), "'transport'"),
        (('"pi"', '"my pi"'), "'name'"),
        (('"pi"', '"pi\\n"'), "'name'"),
        (('"a board"', '"a\\nboard"'), "'description': it must be one line of text"),
        (('runtimes = ["onnxruntime"]', "runtimes = []"), "'runtimes'"),
        (('runtimes = ["onnxruntime"]', 'runtimes = ["tf"]'), "'runtimes': tf is no runtime; known are"),
        (('runtimes = ["onnxruntime"]', 'runtimes = "onnxruntime"'), "'runtimes'"),
        (('["onnxruntime"]', '["onnxruntime", "onnxruntime"]'), "'runtimes': onnxruntime is there twice"),
        (("threads = 2", "threads ="), "no TOML"),
        (("threads = 2", "threads = 2\nprecisions = { tflite = ['fp32'] }"), "names tflite, which is not among"),
        (("threads = 2", "threads = 2\nprecisions = { onnxruntime = ['fp8'] }"), "onnxruntime has fp32, fp16, int8 and no fp8"),
        (("threads = 2", "threads = 2\naddresses = ['a']"), "a local device has no addresses"),
        (("threads = 2", "threads = 2\ncores = [4]"), "more threads than cores"),
        (("threads = 2", "threads = 2\ncores = [-1, 2]"), "'cores.0'"),
        (("threads = 2", "threads = 2\ncool_c = 50.0"), "cool_c needs temperature"),
        (("threads = 2", "threads = 2\ntemperature = 'temp'"), "'temperature': a path on the device begins with '/'"),
        (("threads = 2", "threads = 2\ntools = { gdb = '/bin/gdb' }"), "'tools': gdb is no tool; known are benchmark_model"),
        (("threads = 2", "threads = 2\nbandwidth_gbs = inf"), "'bandwidth_gbs'"),
        (("threads = 2", "threads = 2\nbandwidth_gbs = -1"), "'bandwidth_gbs'"),
        (("threads = 2", "threads = 2\npython = ''\nharness = 'runner'"), "the runner needs Python"),
        (("threads = 2", "threads = 2\npython = 3"), "'python'"),
        (("threads = 2", "threads = 2\nssh_config = 'x'"), "for devices that are reached by ssh"),
        (
            ("threads = 2", "threads = 2\n[[settings]]\nname = 'g'\nfile = '/a'"),
            "'settings.0': a setting has either file and value",
        ),
        (("threads = 2", "threads = 2\n[[settings]]\nname = 'g'\napply = ['a']\nrestore = ['{state}']"), "no save that prints it"),
        (("threads = 2", "threads = 2\n[[peak_gflops]]\nruntimes = ['tflite']\ngflops = {}"), "'peak_gflops.0.gflops'"),
    ],
)
def test_wrong_device_files_name_file_key_and_reason(tmp_path: Path, change: tuple[str, str], says: str) -> None:
    path = write(tmp_path, DEVICE.replace(*change))
    with pytest.raises(UsageError, match=says) as caught:
        load_device(str(path))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("address", ["-oProxyCommand=evil", "two words", "line\nbreak", ""])
def test_an_address_is_never_an_option_of_ssh(tmp_path: Path, address: str) -> None:
    text = FARM.replace('"three"', repr(address) if address.isprintable() else '"line\\nbreak"')
    with pytest.raises(UsageError, match=r"'addresses\.2'"):
        load_device(str(write(tmp_path, text)))


LINES = st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1, max_size=12)
PATHS = LINES.map(lambda text: f"/{text}")
BY_FILE = st.fixed_dictionaries({"name": LINES, "file": PATHS, "value": LINES})
BY_COMMAND = st.fixed_dictionaries(
    {
        "name": LINES,
        "save": st.lists(LINES, min_size=1),
        "apply": st.lists(LINES, min_size=1),
        "restore": st.just(["set", "{state}"]),
    }
)
RUNTIME = st.sampled_from(sorted(RUNTIMES))
VALID = st.fixed_dictionaries(
    {
        "name": st.from_regex(r"[a-z0-9][a-z0-9_]{0,9}", fullmatch=True),
        "description": LINES,
        "transport": st.sampled_from(["ssh", "adb"]),
        "runtimes": st.lists(RUNTIME, min_size=1, unique=True),
        "threads": st.integers(1, 2),
    },
    optional={
        "sources": st.lists(LINES, max_size=3),
        "addresses": st.lists(LINES.filter(lambda text: not text.startswith("-")), unique=True, max_size=3),
        "python": LINES | st.just(""),
        "folder": PATHS,
        "cores": st.lists(st.integers(0, 63), unique=True, min_size=2, max_size=4),
        "settings": st.lists(BY_FILE | BY_COMMAND, max_size=3, unique_by=lambda setting: setting["name"]),
        "temperature": PATHS,
        "memory_mb": st.integers(1, 10**6),
        "bandwidth_gbs": st.floats(0.1, 1e4),
        "tools": st.dictionaries(st.sampled_from(TOOLS), PATHS),
        "peak_gflops": st.lists(
            st.fixed_dictionaries(
                {
                    "runtimes": st.lists(RUNTIME, min_size=1, unique=True),
                    "gflops": st.dictionaries(LINES, st.floats(0.1, 1e6), min_size=1),
                },
                optional={"cores": st.integers(1, 64)},
            ),
            max_size=2,
        ),
    },
)


@given(VALID)
def test_what_is_written_is_read_back(values: Mapping[str, Any]) -> None:
    device = make_device(values, "it")
    assert make_device(tomllib.loads(device.to_toml()), "it") == device
    assert device.python is None or device.harness == "runner"


@given(VALID, st.data())
def test_a_value_of_another_type_is_refused_and_named(values: Mapping[str, Any], data: st.DataObject) -> None:
    key = data.draw(st.sampled_from(sorted(values)))
    other = {"weird": True} if not isinstance(values[key], dict) else "weird"
    with pytest.raises(UsageError, match=f"it is wrong at '{key}"):
        make_device({**values, key: other}, "it")


@given(VALID, LINES)
def test_an_unknown_key_is_refused_and_named(values: Mapping[str, Any], key: str) -> None:
    if key in Device.model_fields:
        return
    with pytest.raises(UsageError) as caught:
        make_device({**values, key: 1}, "it")
    assert repr(key) in str(caught.value)


def test_host_facts_say_what_machine_this_is() -> None:
    facts = host_facts()
    assert facts["cpu"]
    assert facts["cores"] >= 1
    assert facts["os"]
