"""Estimates from specification sheets: the roofline, computed once more by hand, and what cannot be estimated."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from natdeploy.errors import DamagedFileError, UsageError
from natdeploy.hardware.device import Target, device_names, load_device, parse_target
from natdeploy.latency.estimate import Estimate
from natdeploy.space import Arch, cost, get_space

SPACE = get_space("demo")


def by_hand(arch: Arch, target: Target, classes: int, gflops: float, bytes_each: int) -> float:
    """Of every block the longer of its arithmetic and its traffic, ms."""
    total = 0.0
    for block in SPACE.blocks(arch, classes):
        operations = 2 * block.macs
        traffic = bytes_each * (block.params + block.activation_bytes // 4)
        assert target.device.bandwidth_gbs is not None
        total += max(operations / gflops / 1e6, traffic / target.device.bandwidth_gbs / 1e6)
    return total


@pytest.mark.parametrize(
    ("text", "gflops", "bytes_each"),
    [
        ("jetson", 1280.0, 4),
        ("jetson/tensorrt-int8", 20000.0, 1),
        ("jetson_nano/tensorrt-fp16", 472.0, 2),
        ("jetson/onnxruntime", 144.0 / 6, 4),
        ("pixel4", 161.6 / 4, 4),
        ("pixel4/tflite-fp32-4t", 161.6, 4),
        ("pixel4/tflite-fp32-8t", 161.6, 4),
        ("raspberrypi5/onnxruntime-fp32-2t", 153.6 / 2, 4),
    ],
)
def test_it_is_the_roofline_of_every_block(text: str, gflops: float, bytes_each: int) -> None:
    target = parse_target(text)
    estimate = Estimate.of(target)
    genotypes = SPACE.sample(20, np.random.default_rng(0))
    archs = SPACE.decode_all(genotypes)
    expected = [by_hand(arch, target, 7, gflops, bytes_each) for arch in archs]
    np.testing.assert_allclose(estimate.total(SPACE, 7)(genotypes), expected, rtol=1e-12)
    prediction = estimate.predict(SPACE, archs, 7)
    np.testing.assert_allclose(prediction.latency_ms, expected, rtol=1e-12)
    assert not prediction.known.any()
    assert np.isinf(prediction.high_ms).all()
    assert "not measured" in estimate.text and target.device.name in estimate.text
    assert estimate.sources == target.device.sources
    assert estimate.quality is None


@given(gflops=st.floats(1, 1e5), bandwidth=st.floats(1, 1e4))
def test_it_lies_between_the_whole_networks_roofline_and_the_sum_of_both(gflops: float, bandwidth: float) -> None:
    estimate = Estimate(target="x", precision="fp32", gflops=gflops, bandwidth_gbs=bandwidth, sources=())
    genotypes = SPACE.sample(5, np.random.default_rng(1))
    amounts = cost(SPACE, genotypes, 7)
    arithmetic = 2 * amounts.macs / gflops / 1e6
    memory = (4 * amounts.params + amounts.activation_bytes) / bandwidth / 1e6
    latency = estimate.total(SPACE, 7)(genotypes)
    assert (latency >= np.maximum(arithmetic, memory) * (1 - 1e-9)).all()
    assert (latency <= (arithmetic + memory) * (1 + 1e-9)).all()


@pytest.mark.parametrize(
    ("text", "lacks"),
    [
        ("host", "peak_gflops of onnxruntime in fp32"),
        ("pixel6", "peak_gflops of tflite in fp32"),
        ("raspberrypi4", "bandwidth_gbs"),
        ("jetson/tensorrt-fp16", "peak_gflops of tensorrt in fp16"),
        ("jetson/onnxruntime+cuda", "peak_gflops of onnxruntime on cuda"),
    ],
)
def test_a_figure_that_no_source_gives_is_not_invented(text: str, lacks: str) -> None:
    with pytest.raises(UsageError, match=f"the file of {parse_target(text).device.name} has no {lacks.replace('+', '.')}"):
        Estimate.of(parse_target(text))


def test_every_device_with_figures_can_be_estimated_by_default_or_says_what_lacks() -> None:
    known = set()
    for name in device_names():
        try:
            estimate = Estimate.of(parse_target(name))
        except UsageError as error:
            assert f"the file of {name} has no" in str(error)
        else:
            known.add(name)
            assert estimate.bandwidth_gbs == load_device(name).bandwidth_gbs
    assert known == {"jetson", "jetson_nano", "jetson_xavier_nx", "jetson_agx_orin", "pixel4", "raspberrypi5"}


def test_it_is_kept_as_json(tmp_path: Path) -> None:
    estimate, path = Estimate.of(parse_target("pixel4")), tmp_path / "estimate.json"
    estimate.save(path)
    assert Estimate.load(path) == estimate
    for text in ("", "{}", path.read_text().replace("161.6", "1e999").replace("40.4", "1e999")):
        path.write_text(text)
        with pytest.raises(DamagedFileError, match="no latency estimate"):
            Estimate.load(path)
    with pytest.raises(DamagedFileError, match="no latency estimate"):
        Estimate.load(tmp_path / "nothing.json")
