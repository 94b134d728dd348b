"""What every runtime of the registry does alike: computes what torch computes, at any size, and alone on a device."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from natdeploy.errors import DeviceError
from natdeploy.hardware.runtimes import RUNTIMES, Runtime, installed_version
from natdeploy.latency.blocks import input_shape, parse_block
from natdeploy.space.catalog import SPACES
from natdeploy.supernet import Subnet, build_block

FP32_LIMIT = 1e-4
"""Largest difference, relative to the largest number of the output."""
ROUGH_LIMITS = {"fp16": 0.01, "bf16": 0.02, "int8": 0.06}
"""Root mean square of the differences, relative to that of the output. Steps of 8 bits are 0.4 % of the range and add up."""
PLAIN = "mbconv-16x8-m24-o8-k3-s1"
BLOCKS = (
    "stem-32x3-m3-o8-k3-s2-hswish",
    PLAIN,
    "mbconv-16x8-m8-o8-k3-s1-plain",
    "mbconv-16x8-m24-o16-k5-s2-se8-hswish",
    "mbconv-16x8-m24-o8-k7-s1-se8-relu",
    "head-4x16-m16-o32-k1-s1-hswish",
    "mix-1x32-m32-o24-k1-s1-hswish",
    "mix-1x32-m32-o24-k1-s1-bias",
    "classifier-1x24-m24-o10-k1-s1",
)
SAME = "mbconv-16x8-m24-o16-k5-s2"
"""Padded as in TensorFlow: one row more behind than in front."""
NETS = {"mbv2": 64, "ofa_mbv3": 64, "proxyless": 64}
LIBRARIES = {
    "onnxruntime": ("onnxruntime",),
    "openvino": ("openvino",),
    "tflite": ("ai_edge_litert", "tflite_runtime"),
    "tensorrt": ("tensorrt",),
}
"""What each imports; a new runtime adds its own."""


def _settled(module: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    """The module with weights and statistics that differ from layer to layer, so that no part of it can be left out unnoticed."""
    generator = torch.Generator().manual_seed(0)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = 1.0
            with torch.no_grad():
                part.weight.uniform_(0.7, 1.5, generator=generator)
                part.bias.uniform_(-0.5, 0.5, generator=generator)
    with torch.no_grad():
        module.train()(torch.randn(8, *shape[1:], generator=generator))
    return module.eval()


@cache
def _module(name: str) -> tuple[nn.Module, Tensor]:
    """A block by its key, or the smallest network of a space; and an input."""
    torch.manual_seed(0)
    if name in NETS:
        space = SPACES[name].restrict(resolutions=(NETS[name],))
        module, shape = Subnet(space, space.decode(space.lower), 10), (1, 3, NETS[name], NETS[name])
    else:
        block = parse_block(name.removesuffix("-same"))
        module, shape = build_block(block, "same" if name.endswith("-same") else "symmetric"), input_shape(block)
    return _settled(module, shape), torch.randn(shape)


def _expected(name: str, x: Tensor) -> np.ndarray[Any, Any]:
    with torch.no_grad():
        return _module(name)[0](x).numpy()


def _largest(y: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> float:
    assert y.shape == expected.shape
    assert y.dtype == np.float32
    assert expected.std() > 0.01  # otherwise anything would be right
    return float(np.abs(y - expected).max() / np.abs(expected).max())


@dataclass
class Files:
    """Files of a runtime, each made when it is first asked for. All but nets are of dynamic size."""

    runtime: Runtime
    folder: Path
    _made: set[Path] = field(default_factory=set)

    def path(self, name: str, precision: str = "fp32") -> Path:
        path = self.folder / f"{name}-{precision}{self.runtime.SUFFIX}"
        if path not in self._made:
            module, example = _module(name)
            calibration = [torch.randn(example.shape) for _ in range(2)] if precision == "int8" else None
            dynamic = name not in NETS
            self.runtime.convert(module, example, path, precision=precision, dynamic_size=dynamic, calibration=calibration)
            self._made.add(path)
        return path

    def load(self, name: str, x: Tensor, precision: str = "fp32", threads: int = 1) -> Any:
        return self.runtime.load(self.path(name, precision), tuple(x.shape), threads, precision, self.runtime.DELEGATES[0])

    def run(self, name: str, x: Tensor, precision: str = "fp32", threads: int = 1) -> np.ndarray[Any, Any]:
        (y,) = self.runtime.run(self.load(name, x, precision, threads), [x.numpy()])
        return y


@pytest.fixture(scope="module", params=sorted(RUNTIMES))
def files(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Files:
    runtime = RUNTIMES[request.param]
    try:
        runtime.version()
    except ImportError as error:
        pytest.skip(f"{runtime.NAME} is not installed here ({error}); pip install {runtime.REQUIREMENT}")
    return Files(runtime, tmp_path_factory.mktemp(runtime.NAME))


@pytest.mark.parametrize("name", [*BLOCKS, f"{SAME}-same", *NETS])
def test_blocks_and_nets_agree_with_torch(files: Files, name: str) -> None:
    x = _module(name)[1]
    assert _largest(files.run(name, x), _expected(name, x)) <= FP32_LIMIT


@pytest.mark.parametrize("name", ["mbconv-16x8-m24-o16-k5-s2-se8-hswish", "head-4x16-m16-o32-k1-s1-hswish"])
@pytest.mark.parametrize("size", [8, 23, 40])
def test_one_file_computes_at_every_size(files: Files, name: str, size: int) -> None:
    x = torch.randn(1, _module(name)[1].shape[1], size, size)
    assert _largest(files.run(name, x), _expected(name, x)) <= FP32_LIMIT


def test_other_precisions_come_near(files: Files) -> None:
    name = "mbconv-16x8-m24-o16-k5-s2-se8-hswish"
    x = _module(name)[1]
    expected = _expected(name, x)
    for precision in set(files.runtime.PRECISIONS) - {"fp32"}:
        try:
            difference = files.run(name, x, precision) - expected
        except RuntimeError as error:
            # Not every processor has bfloat16, and then that is what is said.
            assert (precision, "take precision fp32" in str(error)) == ("bf16", True), error
            continue
        rough = np.sqrt((difference**2).mean() / (expected**2).mean())
        # As exact as fp32 would mean that it is fp32 under another name.
        assert 1e-5 < rough <= ROUGH_LIMITS[precision], precision


def test_an_fp16_file_is_half_as_large_and_quietly_made(files: Files, capfd: pytest.CaptureFixture[str]) -> None:
    sizes = {}
    for precision in ("fp32", "fp16"):
        path = files.path("mbv2", precision)
        sizes[precision] = sum(each.stat().st_size for each in (path, *files.runtime.companions(path)))
    assert 0.5 < sizes["fp16"] / sizes["fp32"] < 0.6
    assert "%" not in "".join(capfd.readouterr())  # no progress bar


def test_the_first_precision_is_fp32_and_all_have_a_limit(files: Files) -> None:
    assert files.runtime.PRECISIONS[0] == "fp32"
    assert set(files.runtime.PRECISIONS[1:]) <= set(ROUGH_LIMITS)
    assert files.runtime.DELEGATES


def test_reads_its_input_in_every_run_and_leaves_earlier_outputs_alone(files: Files) -> None:
    x = _module(PLAIN)[1]
    session = files.load(PLAIN, x)
    array = x.numpy().copy()
    (first,) = files.runtime.run(session, [array])
    part, kept = first[0, :1], first.copy()
    array += 1  # in place: the same array holds other numbers
    (second,) = files.runtime.run(session, [array])
    assert _largest(second, _expected(PLAIN, x + 1)) <= FP32_LIMIT
    del first
    (third,) = files.runtime.run(session, [x.numpy()])
    assert _largest(second, _expected(PLAIN, x + 1)) <= FP32_LIMIT
    np.testing.assert_array_equal(part, kept[0, :1])
    np.testing.assert_array_equal(third, kept)


def test_two_sessions_do_not_meet(files: Files) -> None:
    x = _module(PLAIN)[1]
    wide = torch.randn(1, x.shape[1], 40, 40)
    one, other = files.load(PLAIN, x), files.load(PLAIN, wide)
    files.runtime.run(other, [wide.numpy()])
    (y,) = files.runtime.run(one, [x.numpy()])
    assert _largest(y, _expected(PLAIN, x)) <= FP32_LIMIT


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="this process may use one core only, and two threads need two")
def test_two_threads_give_the_same_numbers(files: Files) -> None:
    x = _module(PLAIN)[1]
    assert _largest(files.run(PLAIN, x, threads=2), files.run(PLAIN, x)) <= 1e-6


def test_placement_counts_every_convolution(files: Files) -> None:
    placement = files.runtime.placement(files.load(PLAIN, _module(PLAIN)[1]))
    assert placement == sorted(placement)
    assert len({(kind, where) for kind, where, _ in placement}) == len(placement)
    assert all(kind and where and count > 0 for kind, where, count in placement)
    assert sum(count for kind, _, count in placement if "conv" in kind.lower()) == 3


def test_another_size_is_placed_as_if_converted_at_it(files: Files, tmp_path: Path) -> None:
    """What the optimiser does knowing the size, it also does in a file of dynamic size."""
    x = torch.randn(1, _module(PLAIN)[1].shape[1], 24, 24)
    path = tmp_path / f"static{files.runtime.SUFFIX}"
    files.runtime.convert(_module(PLAIN)[0], x, path, dynamic_size=False)
    static = files.runtime.load(path, tuple(x.shape), 1, "fp32", files.runtime.DELEGATES[0])
    assert files.runtime.placement(files.load(PLAIN, x)) == files.runtime.placement(static)


def test_details_say_what_numbers_depend_on(files: Files) -> None:
    for precision in files.runtime.PRECISIONS:
        details = files.runtime.details(precision, files.runtime.DELEGATES[0])
        assert set(details) == {"runtime", "runtime_version", "provider", "precision"}
        assert (details["runtime"], details["precision"]) == (files.runtime.NAME, precision)
        assert details["runtime_version"] == files.runtime.version()
        assert details["provider"]


def test_conversion_leaves_the_module_alone_and_no_litter(files: Files, tmp_path: Path) -> None:
    module, x = _module(PLAIN)
    path = tmp_path / f"net{files.runtime.SUFFIX}"
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    module.train()
    try:
        files.runtime.convert(module, x, path, dynamic_size=True)
        assert module.training
    finally:
        module.eval()
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert set(tmp_path.iterdir()) == {path, *files.runtime.companions(path)}


def test_failed_conversion_keeps_the_old_file(files: Files, tmp_path: Path) -> None:
    path = tmp_path / f"net{files.runtime.SUFFIX}"
    path.write_bytes(b"old")
    module, x = _module(PLAIN)
    with pytest.raises((RuntimeError, ValueError)):
        files.runtime.convert(module, torch.cat([x, x], dim=1), path, dynamic_size=False)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


DEVICE = """
import json, sys
sys.modules["natdeploy"] = sys.modules["torch"] = None  # neither can be imported
import numpy as np
import {module} as runtime
x = np.load("x.npy")
found = []
for name in json.loads(sys.argv[1]):
    try:
        session = runtime.load(name, x.shape, 1, "fp32", runtime.DELEGATES[0])
        (y,) = runtime.run(session, [x])
        found.append([runtime.version(), runtime.details("fp32", runtime.DELEGATES[0]), runtime.placement(session), y.tolist()])
    except Exception as error:
        found.append(type(error).__name__)
print(json.dumps(found))
"""


def _on_a_device(files: Files, folder: Path, damage: Callable[[Path], None] | None = None) -> Any:
    """What a program finds that has nothing but the runtime's file and the model's files, all in one folder."""
    code = Path(str(files.runtime.__file__))
    shutil.copy(code, folder)
    (folder / "main.py").write_text(DEVICE.format(module=code.stem))
    x = _module(PLAIN)[1]
    np.save(folder / "x.npy", x.numpy())
    names = [f"model{files.runtime.SUFFIX}"]
    source = files.path(PLAIN)
    target = folder / names[0]
    for old, new in zip((source, *files.runtime.companions(source)), (target, *files.runtime.companions(target)), strict=True):
        shutil.copy(old, new)
    if damage is not None:
        damage(target)
        names = sorted(path.name for path in folder.glob(f"*{files.runtime.SUFFIX}"))
    process = subprocess.run(
        [sys.executable, "main.py", json.dumps(names)], cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )
    assert process.returncode == 0, process.stderr[-2000:]
    return json.loads(process.stdout.splitlines()[-1])


def test_stands_alone(files: Files, tmp_path: Path) -> None:
    ((version, details, placement, y),) = _on_a_device(files, tmp_path)
    x = _module(PLAIN)[1]
    assert _largest(np.array(y, np.float32), _expected(PLAIN, x)) <= FP32_LIMIT
    assert version == files.runtime.version()
    assert details == files.runtime.details("fp32", files.runtime.DELEGATES[0])
    assert [tuple(each) for each in placement] == files.runtime.placement(files.load(PLAIN, x))


def test_a_damaged_file_is_an_error_and_no_crash(files: Files, tmp_path: Path) -> None:
    def damage(model: Path) -> None:
        """Every file of the model cut to nothing, cut in the middle, and replaced by other bytes."""
        whole = {path: path.read_bytes() for path in (model, *files.runtime.companions(model))}
        for place, broken in enumerate(whole):
            for kind, change in enumerate((lambda _: b"", lambda data: data[: len(data) // 2], lambda data: b"\x00natdeploy" * 50)):
                copy = model.with_name(f"{place}{kind}{model.suffix}")
                for path, target in zip(whole, (copy, *files.runtime.companions(copy)), strict=True):
                    target.write_bytes(change(whole[path]) if path == broken else whole[path])
        model.unlink()

    found = _on_a_device(files, tmp_path, damage)
    assert len(found) == 3 * (1 + len(files.runtime.companions(Path("model"))))
    assert all(isinstance(each, str) for each in found), found


@pytest.mark.parametrize("name", sorted(RUNTIMES))
def test_a_missing_library_is_one_sentence(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for library in LIBRARIES[name]:
        monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(DeviceError, match=f"^{name} is not installed here .*pip install {RUNTIMES[name].REQUIREMENT}$") as error:
        installed_version(RUNTIMES[name])
    assert "\n" not in str(error.value)
