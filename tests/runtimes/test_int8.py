"""int8 by the default settings keeps what a network with h-swish and squeeze-and-excitation says, where the naive ones do not.

What makes it hard is real: batch normalisation, once folded, leaves channels a thousand times smaller than others in one layer.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from natdeploy.hardware.runtimes import RUNTIMES
from natdeploy.runtimes import ort, ov, tflite
from natdeploy.space import SearchSpace
from natdeploy.space.space import Stage
from natdeploy.supernet import Subnet

KEPT = 0.85
"""Share of images that stay in their class."""
UNEVEN = 3000.0
"""Weights of the one channel over those of the others."""
NAIVE: dict[str, Any] = {
    "onnxruntime": ort.Int8(per_channel=False),
    "openvino": ov.Int8(ranges="default", uneven=True),  # NNCF's own
    "tflite": tflite.Int8(per_channel=False),
}
NEEDED = {"onnxruntime": "onnx", "openvino": "nncf", "tflite": "ai_edge_quantizer"}
SPACE = SearchSpace(
    name="small",
    resolutions=(32,),
    widths=(1.0,),
    stem_channels=16,
    stem_stride=2,
    stages=(
        Stage(16, 1, 1, 1, (3,), (2,), "relu"),
        Stage(24, 2, 1, 1, (3,), (3,), "hswish", squeeze=True),
        Stage(32, 2, 1, 1, (5,), (3,), "hswish", squeeze=True),
    ),
    head_channels=64,
    stem_activation="hswish",
    head_activation="hswish",
)


@cache
def _net() -> tuple[Subnet, Tensor]:
    """A network each of whose depthwise layers has one channel of far larger weights; its ten classes are about as frequent.

    The channel comes in as much smaller than the others, batch normalisation makes up for it, and little depends on it.
    """
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    net = Subnet(SPACE, SPACE.decode(SPACE.lower), 10, norm_eps=1e-12)
    images = nn.functional.interpolate(torch.randn(160, 3, 8, 8, generator=generator), size=32, mode="bilinear")
    state = net.state_dict()
    with torch.no_grad():
        for name, tensor in state.items():
            if ".expand.norm." in name and name.endswith(("weight", "bias")):
                tensor[0] /= UNEVEN
            if name.endswith("project.conv.weight"):
                tensor[:, 0] /= 100
        for part in net.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.momentum = 1.0
        net.train()(images)
        net.eval()
        logits = net(images)
        net.classifier.weight.div_(logits.std(0)[:, None])
        net.classifier.bias.sub_(logits.mean(0)).div_(logits.std(0))
    return net, images


@pytest.fixture(params=sorted(NAIVE))
def runtime(request: pytest.FixtureRequest) -> Any:
    module = RUNTIMES[request.param]
    for library in (NEEDED[module.NAME], *({"tflite": ["ai_edge_litert"]}.get(module.NAME, []))):
        if importlib.util.find_spec(library) is None:
            pytest.skip(f"{library} is not installed here; pip install {library.replace('_', '-')}")
    return module


def _agreement(runtime: Any, path: Path, **settings: Any) -> float:
    net, images = _net()
    learned, judged = images[:32], images[32:]
    runtime.convert(net, images[:1], path, precision="int8", dynamic_size=False, calibration=list(learned[:, None]), **settings)
    session = runtime.load(path, (1, 3, 32, 32), 1, "int8", runtime.DELEGATES[0])
    answers = [runtime.run(session, [image[None].numpy()])[0].argmax() for image in judged]
    with torch.no_grad():
        return float(np.mean(np.array(answers) == net(judged).argmax(1).numpy()))


def test_the_defaults_keep_what_naive_settings_lose(runtime: Any, tmp_path: Path) -> None:
    with torch.no_grad():
        assert len(_net()[0](_net()[1]).argmax(1).unique()) >= 8  # one class alone would be kept by anything
    assert _agreement(runtime, tmp_path / f"default{runtime.SUFFIX}") >= KEPT
    assert _agreement(runtime, tmp_path / f"naive{runtime.SUFFIX}", int8=NAIVE[runtime.NAME]) < KEPT - 0.05
