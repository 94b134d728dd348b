"""NVIDIA's trtexec.

Known formats: TensorRT 8.5 to 11.1, whose outputs are alike in all that is read. Documented in samples/trtexec/README.md and by the
source in samples/common of NVIDIA's repository: options in sampleOptions.cpp, what is printed in sampleReporting.cpp
(`printProlog`, `printEpilog`) and the file of --exportTimes in `exportJSONTrace`: an object a run after the warm-up.

A latency is the input's way to the GPU, the network and the output's way back, as in natdeploy's own harness. TensorRT 11 leaves
the two ways out and replays a CUDA graph unless it is told otherwise. The engine is built once and loaded by every call that times.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from natdeploy.hardware.tools.tool import NUMBER, Job, Timings, agree, only, positive, unreadable

NAME = "trtexec"
RUNTIME = "tensorrt"
HARNESS = "trtexec"
DELEGATES = ("gpu",)
PLACES = (NAME, f"/usr/src/tensorrt/bin/{NAME}", f"/opt/tensorrt/bin/{NAME}")
ASK = ("--help",)
RESULT = True

_STAMP = re.compile(r"^\[[0-9/]+-[0-9:]+\] \[[IW]\] ")
_VERSION = re.compile(r"&&&& RUNNING TensorRT\.trtexec \[TensorRT v(\d+)\]")
_COUNTED = re.compile(rf"Timing trace has (\d+) queries over {NUMBER} s")
_MS = f"{NUMBER} ms"
_SUMMARY = rf"min = {_MS}, max = {_MS}, mean = ({NUMBER}) ms, median = ({NUMBER}) ms(?:, percentile\({NUMBER}%\) = {_MS})*"
_LATENCY = re.compile(f"Latency: {_SUMMARY}")
_COMPUTE = re.compile(f"GPU Compute Time: {_SUMMARY}")
_LOADED = re.compile(rf"Engine (?:loaded|deserialized) in ({NUMBER}) sec\.")
"""Read from the disk, and made ready; both belong to loading."""
_DEVICE = re.compile(r"Selected Device: (.+)")
_PARTS = ("h2dMs", "computeMs", "d2hMs")


def version(digest: str, lines: Sequence[str]) -> str:
    found = next((match for line in lines if (match := _VERSION.match(line.strip()))), None)
    if found is None:
        raise unreadable(NAME, "does not tell its version", next(iter(lines), ""))
    number = int(found[1])  # 8603 is 8.6.3, 100300 is 10.3.0 (NV_TENSORRT_VERSION)
    major, rest = divmod(number, 10000) if number >= 100000 else divmod(number, 1000)
    return f"{major}.{rest // 100}.{rest % 100}"


def prepare(job: Job, version: str) -> list[str]:
    return [
        f"--onnx={job.file}",
        f"--saveEngine={_engine(job)}",
        "--timingCacheFile=tensorrt.timing",
        "--buildOnly" if _before(version, 8, 6) else "--skipInference",
        *_precision(job, version),
        *_shapes(job),
    ]


def arguments(job: Job, version: str, result: str) -> list[str]:
    return [
        f"--loadEngine={_engine(job)}",
        *_shapes(job),
        f"--iterations={job.min_runs}",
        f"--duration={job.min_s:g}",
        # It warms up for a time and not for a number of runs.
        f"--warmUp={max(1e3 * job.warmup_s, job.warmup_runs * (job.expected_ms or 0.0)):g}",
        f"--exportTimes={result}",
        *(() if _before(version, 11) else ("--includeDataTransfers", "--noCudaGraph")),
    ]


def _engine(job: Job) -> str:
    """One for every shape."""
    return f"{Path(job.file).stem}-{'x'.join(map(str, job.shape))}.engine"


def _before(version: str, *wanted: int) -> bool:
    return tuple(map(int, version.split("."))) < wanted


def _precision(job: Job, version: str) -> list[str]:
    """fp32 means fp32. From 10 on the file's own types decide, which is all that 11 knows."""
    if not _before(version, 10):
        return ["--noTF32", *(["--stronglyTyped"] if _before(version, 11) else [])]
    return ["--noTF32", *([f"--{job.precision}"] if job.precision != "fp32" else [])]


def _shapes(job: Job) -> list[str]:
    """Only of what the file leaves open: with a fixed shape the tool refuses any."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        (tensor,) = onnx.load(job.model, load_external_data=False).graph.input
    except (DecodeError, ValueError):  # no such file: what is wrong with it the tool will say
        return []
    fixed = all(dimension.HasField("dim_value") for dimension in tensor.type.tensor_type.shape.dim)
    return [] if fixed else [f"--shapes={tensor.name}:{'x'.join(map(str, job.shape))}"]


def parse(job: Job, lines: Sequence[str], result: Sequence[str]) -> Timings:
    plain = [_STAMP.sub("", line.strip()) for line in lines]
    if not any(line.startswith("&&&& PASSED TensorRT.trtexec") for line in plain):
        raise unreadable(NAME, "did not end with PASSED", next((line for line in reversed(plain) if line), ""))
    counted = only(NAME, "Timing trace has", _COUNTED, plain)
    latency = only(NAME, "Latency:", _LATENCY, plain)
    compute = only(NAME, "GPU Compute Time:", _COMPUTE, plain)
    runs = [_run(each) for each in _json("\n".join(result))]
    if len(runs) != int(counted[1]) or not runs:
        raise unreadable(NAME, f"timed {counted[1]} runs and exported {len(runs)}", counted[0])
    for match, samples in ((latency, [each["latencyMs"] for each in runs]), (compute, [each["computeMs"] for each in runs])):
        agree(NAME, positive(NAME, match[1], match[0]), sum(samples) / len(samples), 1e-3, match[0])
        positive(NAME, match[2], match[0])
    samples = [each["latencyMs"] for each in runs]
    loaded = [1e3 * positive(NAME, found[1], found[0]) for found in map(_LOADED.fullmatch, plain) if found]
    device = next((found[1] for found in map(_DEVICE.fullmatch, plain) if found), None)
    return Timings(
        n=len(samples),
        mean_ms=sum(samples) / len(samples),
        min_ms=min(samples),
        median_ms=sorted(samples)[(len(samples) - 1) // 2],
        samples_ms=tuple(samples),
        load_ms=sum(loaded) or None,
        provider=device,
    )


def _json(text: str) -> list[Any]:
    def refuse(name: str) -> NoReturn:
        raise unreadable(NAME, f"exported {name}")

    try:
        found = json.loads(text, parse_constant=refuse)
    except ValueError as error:
        raise unreadable(NAME, f"exported times that are no JSON ({error})", text[-100:]) from error
    if not isinstance(found, list):
        raise unreadable(NAME, "exported times that are no list", text[:100])
    return found


def _run(entry: Any) -> dict[str, float]:
    """Of one exported run, its latency and the parts of it."""
    line = json.dumps(entry)
    known = entry if isinstance(entry, dict) else {}
    times = {name: float(known[name]) for name in (*_PARTS, "latencyMs") if type(known.get(name)) in (int, float)}
    if len(times) != 4 or not all(0 <= each < math.inf for each in times.values()) or times["computeMs"] == 0:
        raise unreadable(NAME, "exported a run of another form", line)
    agree(NAME, times["latencyMs"], sum(times[name] for name in _PARTS), 1e-3, line)
    return times
