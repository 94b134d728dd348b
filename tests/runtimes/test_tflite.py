"""LiteRT gives what torch gives, for the size it was converted at and for others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("ai_edge_litert", reason="pip install natdeploy[tflite]")

from natdeploy.runtimes import tflite


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(8)
    norm.running_mean, norm.running_var = torch.randn(8), torch.rand(8) + 0.5
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1, bias=False), norm, nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
    )


@pytest.fixture(scope="module")
def file(net: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tflite") / "net.tflite"
    tflite.convert(net, torch.randn(1, 3, 24, 24), path, dynamic_size=True)
    return path


@pytest.mark.parametrize("delegate", tflite.DELEGATES)
@pytest.mark.parametrize("size", [16, 24, 31, 64])
def test_agrees_with_torch_at_every_size(net: nn.Module, file: Path, size: int, delegate: str) -> None:
    x = torch.randn(1, 3, size, size)
    session = tflite.load(file, (1, 3, size, size), 1, "fp32", delegate)
    (y,) = tflite.run(session, [x.numpy()])
    assert np.abs(y - net.eval()(x).detach().numpy()).max() < 1e-5
    places = {place for _, place, _ in tflite.placement(session)}
    assert places == {"xnnpack" if delegate == "xnnpack" else "builtin"}


def test_details_name_library_delegate_and_precision() -> None:
    details = tflite.details("fp32", "reference")
    assert details == {"runtime": "tflite", "runtime_version": tflite.version(), "provider": "reference", "precision": "fp32"}
    assert details["runtime_version"].startswith("ai_edge_litert ")
