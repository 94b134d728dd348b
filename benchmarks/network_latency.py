"""Latency of networks that no file holds yet."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from natdeploy.hardware.bench import SUBNETS, Candidate
from natdeploy.hardware.device import parse_target
from natdeploy.hardware.measure import measure
from natdeploy.progress import Silent
from natdeploy.runtimes import ort
from natdeploy.supernet import Subnet


def latencies(nets: Sequence[Subnet]) -> list[float]:
    """p50 of networks as ONNX files on one thread of this machine, ms: in turns, so that what else it does hits all alike."""
    with tempfile.TemporaryDirectory() as folder:
        candidates = []
        for number, net in enumerate(nets):
            path = Path(folder, f"{number}.onnx")
            ort.convert(net, torch.zeros(net.input_shape), path, dynamic_size=False)
            candidates.append(Candidate(str(number), path, net.input_shape))
        target = parse_target("host/onnxruntime", threads=1)
        found = measure(candidates, candidates[0], target, SUBNETS, seed=0, progress=Silent())
        return [each.typical_ms for each in found.measurements]
