"""Stand-in for trtexec: takes its options, prints its lines and writes its file of times (see natdeploy/hardware/tools).

There is no GPU in it: the times of the "GPU" are those of running the ONNX file in ONNX Runtime, and an "engine" is that file.
$STAND_IN is the version that it takes itself for, 8.6.3 or 10.3.0 or 11.1.0; each has its own options.
"""

from __future__ import annotations

import json
import os
import sys
import time
from datetime import datetime
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
import onnxruntime

VERSION = tuple(int(part) for part in os.environ.get("STAND_IN", "8.6.3").split("."))
MAJOR = VERSION[0]
NAME = f"TensorRT.trtexec [TensorRT v{VERSION[0] * (10000 if MAJOR > 9 else 1000) + VERSION[1] * 100 + VERSION[2]}]"
OPTIONS = {
    *("onnx", "saveEngine", "loadEngine", "shapes", "timingCacheFile", "skipInference", "noTF32"),
    *("iterations", "duration", "warmUp", "exportTimes", "avgRuns"),
    *(("fp16", "int8") if MAJOR < 11 else ("includeDataTransfers", "noCudaGraph")),
    *(("stronglyTyped",) if MAJOR >= 10 else ()),
}


def info(text: str) -> None:
    print(f"[{datetime.now():%m/%d/%Y-%H:%M:%S}] [I] {text}", flush=True)


def end(verdict: str) -> int:
    print(f"&&&& {verdict} {NAME} # {' '.join(sys.argv)}")
    return 0 if verdict == "PASSED" else 1


def failed(text: str) -> int:
    print(f"[{datetime.now():%m/%d/%Y-%H:%M:%S}] [E] {text}", file=sys.stderr)
    return end("FAILED")


def number(value: float) -> str:
    return f"{value:.6g}"


def main() -> int:
    given = dict(argument.removeprefix("--").partition("=")[::2] for argument in sys.argv[1:])
    print(f"&&&& RUNNING {NAME} # {' '.join(sys.argv)}")
    if "help" in given:
        print("=== Model Options ===\n  --onnx=<file>               ONNX model")
        return end("PASSED")
    if unknown := given.keys() - OPTIONS:
        return failed(f"Unknown option: --{sorted(unknown)[0]}")
    info("Selected Device: none, this is a stand-in")
    start = time.perf_counter()
    content = Path(given.get("loadEngine") or given["onnx"]).read_bytes()
    try:
        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    except Exception as error:
        return failed(f"Failed to parse onnx file: {str(error).splitlines()[0]}")
    (tensor,) = session.get_inputs()
    sizes = [size if isinstance(size, int) else 0 for size in tensor.shape]
    if "shapes" in given:
        name, _, text = given["shapes"].partition(":")
        if 0 not in sizes:
            return failed("Static model does not take explicit shapes")
        if name != tensor.name:
            return failed(f'Cannot find input tensor with name "{name}" in the network inputs!')
        sizes = [int(size) for size in text.split("x")]
    elif 0 in sizes:
        return failed("Dynamic dimensions required for input")
    what = "loaded" if "loadEngine" in given else "built"
    info(f"Engine {what} in {number(time.perf_counter() - start)} sec.")
    if "saveEngine" in given:
        Path(given["saveEngine"]).write_bytes(content)
    if "skipInference" in given:
        info("Skipped inference phase since --skipInference is added.")
        return end("PASSED")
    inputs = {tensor.name: np.zeros(sizes, np.float32)}
    try:
        session.run(None, inputs)
    except Exception as error:
        return failed(f"Error occurred during inference: {str(error).splitlines()[0]}")
    time_runs(session, inputs, given)
    return end("PASSED")


def time_runs(session: Any, inputs: dict[str, Any], given: dict[str, str]) -> None:
    transfers_ms = 0.0 if MAJOR >= 11 and "includeDataTransfers" not in given else 0.002
    warmup_ms, iterations, duration_s = float(given["warmUp"]), int(given["iterations"]), float(given["duration"])
    begin, warmups = time.perf_counter(), 0
    while 1e3 * (time.perf_counter() - begin) < warmup_ms:
        session.run(None, inputs)
        warmups += 1
    begin = time.perf_counter()
    computes: list[float] = []
    while len(computes) < iterations or time.perf_counter() - begin < duration_s:
        start = time.perf_counter()
        session.run(None, inputs)
        computes.append(1e3 * (time.perf_counter() - start))
    wall_s = time.perf_counter() - begin
    latencies = [compute + 2 * transfers_ms for compute in computes]
    info(f"Warmup completed {warmups} queries over {number(warmup_ms)} ms")
    info(f"Timing trace has {len(computes)} queries over {number(wall_s)} s")
    info("")
    info("=== Performance summary ===")
    info(f"Throughput: {number(len(computes) / wall_s)} qps")
    transfers = [transfers_ms] * len(computes)
    for name, times in (
        ("Latency", latencies),
        ("Enqueue Time", transfers),
        ("H2D Latency", transfers),
        ("GPU Compute Time", computes),
        ("D2H Latency", transfers),
    ):
        info(f"{name}: {summary(times)}")
    info(f"Total Host Walltime: {number(wall_s)} s")
    info(f"Total GPU Compute Time: {number(sum(computes) / 1e3)} s")
    info("Explanations of the performance metrics are printed in the verbose logs.")
    info("")
    clock, entries = 0.0, []
    for compute in computes:
        marks = [clock, clock + transfers_ms, clock + transfers_ms + compute, clock + 2 * transfers_ms + compute]
        times = {
            "startEnqMs": marks[0],
            "endEnqMs": marks[1],
            "startH2dMs": marks[0],
            "endH2dMs": marks[1],
            "startComputeMs": marks[1],
            "endComputeMs": marks[2],
            "startD2hMs": marks[2],
            "endD2hMs": marks[3],
            "h2dMs": transfers_ms,
            "computeMs": compute,
            "d2hMs": transfers_ms,
            "latencyMs": compute + 2 * transfers_ms,
        }
        entries.append("{ " + ", ".join(f"{json.dumps(name)} : {number(value)}" for name, value in times.items()) + " }\n")
        clock = marks[3]
    Path(given["exportTimes"]).write_text("[\n  " + ", ".join(entries) + "]\n")


def summary(times: list[float]) -> str:
    ordered = sorted(times)
    percentiles = ", ".join(
        f"percentile({p}%) = {number(ordered[min(len(times) - 1, len(times) * p // 100)])} ms" for p in (90, 95, 99)
    )
    return (
        f"min = {number(ordered[0])} ms, max = {number(ordered[-1])} ms, mean = {number(mean(times))} ms, "
        f"median = {number(median(times))} ms, {percentiles}"
    )


if __name__ == "__main__":
    sys.exit(main())
