"""What measuring costs: the runner beside a bare loop over the runtime, and beside the runtime's own tool.

    python benchmarks/harness.py [--space mbv2] [--nets 3] [--turns 5]

Everything runs in turns on the same files, so that a machine that gets slower slows all of them:

- runner: the product's measurement, wall time of a run (p50 of one process);
- bare: `session.run` alone in a loop, the whole loop's time over its runs, so no clock is read between them (mean; the
  clock-free counterpart of the runner's mean);
- own tool: latency by OpenVINO's benchmark_app and LiteRT's litert-benchmark, one thread, as many runs, beside the same quantity of
  the runner. LiteRT's tool tells a median. benchmark_app tells the median of what the request itself counts, and so does the runner
  (`inside_ms`); its wall time has the call from Python besides. ONNX Runtime's perf test is no part of its Python package; what
  is, `onnxruntime.tools.onnxruntime_test`, tells the mean. Its sessions are given one thread, for which it has no option. Its
  profiler is no yardstick: it times every operator, and a network of 0.6 ms takes a third longer.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
import torch

from natdeploy.hardware.bench import SUBNETS, Candidate
from natdeploy.hardware.device import parse_target
from natdeploy.hardware.measure import measure
from natdeploy.hardware.runtimes import RUNTIMES, get_runtime
from natdeploy.latency.plan import plan_subnets
from natdeploy.progress import Silent
from natdeploy.space import get_space
from natdeploy.supernet import Subnet

SECONDS = 1.5
BESIDE = {"onnxruntime": "mean", "openvino": "inside", "tflite": "p50"}
"""Which of the runner's numbers is what the runtime's own tool tells."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--space", default="mbv2")
    parser.add_argument("--nets", type=int, default=3)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--runtime", action="append", help="one of this machine's, may be repeated; default all")
    options = parser.parse_args()
    torch.set_num_threads(1)
    named = get_space(options.space)
    space = named.restrict(widths=(named.widths[0],))
    archs = plan_subnets(space, options.nets, 0, np.random.default_rng(0))[0]
    device = parse_target("host").device
    print("runtime      net  runner p50  runner mean  bare mean  runner/bare    own tool   beside it  runner/own tool")
    for name in options.runtime or device.runtimes:
        runtime, target = get_runtime(name), parse_target(f"host/{name}")
        for i, arch in enumerate(archs):
            shape = (1, 3, arch.resolution, arch.resolution)
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder, f"net{runtime.SUFFIX}")
                runtime.convert(Subnet(space, arch, 1000), torch.zeros(shape), path, dynamic_size=False)
                candidate = Candidate("net", path, shape)
                settings = replace(SUBNETS, min_s=SECONDS, warmup_s=0.5, slices=1, processes=1, reference_s=0.05)
                turns = []
                for turn in range(options.turns):
                    found = measure([candidate], candidate, target, settings, seed=turn, progress=Silent())["net"]
                    told = {"p50": found.p50_ms, "mean": found.mean_ms, "inside": found.inside_ms}[BESIDE[name]]
                    own = own_tool_ms(name, path, found.n)
                    turns.append((found.p50_ms, found.mean_ms, bare_ms(name, path, shape), own, told))
            p50, average, bare, owns, beside = ([turn[column] for turn in turns] for column in range(5))
            loop = median(a / b for a, b in zip(average, bare, strict=True))
            tool = median(a / b for a, b in zip(beside, owns, strict=True))
            print(
                f"{name:12} {i:3}  {median(p50):7.3f} ms  {median(average):8.3f} ms  {median(bare):6.3f} ms  {loop:11.4f}"
                f"  {median(owns):7.3f} ms  {BESIDE[name]:>6} {median(beside):6.3f}  {tool:13.4f}",
                flush=True,
            )


BARE = """
import sys, time
sys.path.insert(0, {folder!r})
import numpy as np
import {module} as runtime
session = runtime.load({path!r}, {shape!r}, 1, "fp32", runtime.DELEGATES[0])
inputs = [np.random.default_rng(0).standard_normal({shape!r}).astype(np.float32)]
run = runtime.run
end = time.perf_counter() + 0.5
while time.perf_counter() < end:
    run(session, inputs)
start = time.perf_counter()
run(session, inputs)
count = max(10, int({seconds} / (time.perf_counter() - start)))
start = time.perf_counter()
for _ in range(count):
    run(session, inputs)
print((time.perf_counter() - start) * 1e3 / count)
"""


def bare_ms(name: str, path: Path, shape: tuple[int, ...]) -> float:
    """Mean of a loop in a fresh process that reads no clock between runs."""
    file = Path(str(RUNTIMES[name].__file__))
    code = BARE.format(folder=str(file.parent), module=file.stem, path=str(path), shape=shape, seconds=SECONDS)
    return float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()[-1])


OWN_ORT = """
import onnxruntime
from onnxruntime.tools import onnxruntime_test
make = onnxruntime.InferenceSession
def one_thread(path, sess_options=None, providers=None):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return make(path, options, providers=["CPUExecutionProvider"])
onnxruntime.InferenceSession = one_thread
onnxruntime_test.run_model({path!r}, {runs})
"""


def own_tool_ms(name: str, path: Path, runs: int) -> float:
    """Latency by the runtime's own tool: of BESIDE."""
    if name == "onnxruntime":
        code = OWN_ORT.format(path=str(path), runs=runs)
        text = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
        found = re.search(r"avg latency: ([\d.]+) (ms)", text)
    elif name == "openvino":
        text = _output(
            "benchmark_app",
            "-m",
            path,
            "-api",
            "sync",
            "-hint",
            "none",
            "-nstreams",
            1,
            "-nthreads",
            1,
            "-niter",
            runs,
            "-infer_precision",
            "f32",
        )
        found = re.search(r"Median:\s+([\d.]+) (ms|us)", text)
    elif name == "tflite":
        text = _output("litert-benchmark", "--model", path, "--num_threads", 1, "--warmup_runs", 20, "--num_runs", runs)
        found = re.search(r"(?i)(?:median|p50)\D*([\d.]+) ?(ms|us)?", text)
    else:
        raise ValueError(f"no tool of {name} is known")
    if found is None:
        raise RuntimeError(f"the tool of {name} printed no latency:\n{text}")
    return float(found[1]) * (1e-3 if found[2] == "us" else 1)


def _output(tool: str, *arguments: object) -> str:
    path = Path(sys.executable).with_name(tool)
    done = subprocess.run([str(path), *map(str, arguments)], check=True, capture_output=True, text=True)
    return done.stdout + done.stderr


if __name__ == "__main__":
    start = time.monotonic()
    main()
    print(f"{time.monotonic() - start:.0f} s")
