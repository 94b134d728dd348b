"""Stand-in for onnxruntime_perf_test: runs the file in ONNX Runtime and prints what the real one prints.

See natdeploy/hardware/tools. $STAND_IN is the format it prints: `average`, or `total` as since 2025.
"""

from __future__ import annotations

import getopt
import os
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime


def number(value: float) -> str:
    return f"{value:.6g}"


def main() -> int:
    given, (model, result) = getopt.gnu_getopt(sys.argv[1:], "e:m:r:x:y:S:f:IZ")
    options = dict(given)
    if options["-e"] != "cpu" or options["-m"] != "times":
        print("the stand-in knows only -e cpu -m times", file=sys.stderr)
        return 1
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads, settings.inter_op_num_threads = int(options["-x"]), int(options["-y"])
    settings.log_severity_level = 3
    print(f"Setting intra_op_num_threads to {options['-x']}")
    print(f"Setting inter_op_num_threads to {options['-y']}")
    for name, size in (value.split(":") for option, value in given if option == "-f"):
        settings.add_free_dimension_override_by_name(name, int(size))
    if "-Z" in options:
        print("Disabling intra-op thread spinning between runs")
        settings.add_session_config_entry("session.force_spinning_stop", "1")
    start = time.perf_counter()
    try:
        session = onnxruntime.InferenceSession(model, settings, providers=["CPUExecutionProvider"])
    except Exception as error:
        print(f"Caught exception: {error}", file=sys.stderr)
        return 1
    created_s = time.perf_counter() - start
    # With -I an input is made up, dimensions that are still open being 1.
    (wanted,) = session.get_inputs()
    shape = [size if isinstance(size, int) else 1 for size in wanted.shape]
    inputs = {wanted.name: np.random.default_rng(int(options["-S"])).uniform(0, 1, shape).astype(np.float32)}
    start = time.perf_counter()
    try:
        session.run(None, inputs)
    except Exception as error:
        print(f"Caught exception: {error}", file=sys.stderr)
        return 1
    first_ms = int(1e3 * (time.perf_counter() - start))
    costs = []
    begin = time.perf_counter()
    for _ in range(int(options["-r"])):
        start = time.perf_counter()
        session.run(None, inputs)
        costs.append(time.perf_counter() - start)
    whole_s = time.perf_counter() - begin
    average = f"{1e3 * sum(costs) / len(costs)}"
    old = os.environ.get("STAND_IN") == "average"
    print(f"\nSession creation time cost: {number(created_s)} s")
    print(f"First inference time cost: {first_ms} ms")
    print(f"Total inference time cost: {number(sum(costs))} s")
    print(f"Total inference requests: {len(costs)}")
    print(
        f"Average inference time cost: {number(float(average))} ms"
        if old
        else f"Average inference time cost total: {float(average):f} ms"
    )
    print(f"Total inference run time: {number(whole_s)} s")
    print(f"Number of inferences per second: {number(len(costs) / whole_s)} ")
    print("Avg CPU usage: 99 %\nPeak working set size: 12345678 bytes")
    with Path(result).open("a") as file:
        for run, cost in enumerate(costs):
            parts = number(cost) if old else f"{number(cost)},{number(cost)}"
            file.write(f"{Path.cwd().name},{parts},12345678,99,{run}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
