"""Stand-in for TFLite's benchmark_model: runs the file in LiteRT and prints what the real one prints.

See natdeploy/hardware/tools. $STAND_IN is the format it prints: `plain`, or `percentiles` as LiteRT does.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType

OPTIONS = {
    "graph": "",
    "num_threads": "-1",
    "input_layer": "",
    "input_layer_shape": "",
    "use_xnnpack": "",
    "warmup_runs": "1",
    "warmup_min_secs": "0.5",
    "num_runs": "50",
    "min_secs": "1.0",
    "max_secs": "150",
}
NEW = os.environ.get("STAND_IN") != "plain"


def say(text: str) -> None:
    print(f"INFO: {text}" if NEW else text, flush=True)


def number(value: float) -> str:
    return f"{value:.6g}"


def runs(interpreter: Interpreter, least: int, least_s: float, most_s: float) -> list[int]:
    say(
        f"Running benchmark for at least {least} iterations and at least {number(least_s)} seconds but terminate if exceeding "
        f"{number(most_s)} seconds."
    )
    begin = time.perf_counter()
    took: list[int] = []
    while (len(took) < least or time.perf_counter() - begin < least_s) and time.perf_counter() - begin <= most_s:
        start = time.perf_counter_ns() // 1000
        interpreter.invoke()
        took.append(time.perf_counter_ns() // 1000 - start)
    say(f"{statistics(took)}\n")
    return took


def statistics(took: list[int]) -> str:
    if not took:
        line = "count=0"
    elif min(took) == max(took):
        line = f"count={len(took)} curr={took[-1]}{'(all same)' if len(took) > 1 else ''}"
    else:
        line = (
            f"count={len(took)} first={took[0]} curr={took[-1]} min={min(took)} max={max(took)} avg={number(np.mean(took))} "
            f"std={int(np.std(took))}"
        )
    if NEW:
        p5, median, p95 = (sorted(took)[len(took) * p // 100] if took else 0 for p in (5, 50, 95))
        line += f" p5={p5} median={median} p95={p95}"
    return line


def main() -> int:
    say("STARTING!")
    given = dict(argument.removeprefix("--").split("=", 1) for argument in sys.argv[1:])
    if unknown := given.keys() - OPTIONS.keys():
        say(f"Unconsumed cmdline flags: {' '.join(f'--{name}={given[name]}' for name in sorted(unknown))}")
    options = {**OPTIONS, **given}
    say(f"Graph: [{options['graph']}]")
    start = time.perf_counter_ns()
    resolver = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES if options["use_xnnpack"] == "false" else OpResolverType.AUTO
    try:
        interpreter = Interpreter(options["graph"], num_threads=int(options["num_threads"]), experimental_op_resolver_type=resolver)
    except (ValueError, RuntimeError) as error:
        print(f"ERROR: {error}\nERROR: Failed to load model {options['graph']}\nERROR: Benchmarking failed.", file=sys.stderr)
        return 1
    say(f"Loaded model {options['graph']}")
    (wanted,) = interpreter.get_input_details()
    if options["input_layer"] != wanted["name"]:
        say(f"Tensor # {wanted['index']} is named {wanted['name']} but flags call it {options['input_layer']}")
    interpreter.resize_tensor_input(wanted["index"], [int(each) for each in options["input_layer_shape"].split(",")])
    try:
        interpreter.allocate_tensors()
    except RuntimeError as error:
        print(f"ERROR: {error}\nERROR: Failed to allocate tensors!\nERROR: Benchmarking failed.", file=sys.stderr)
        return 1
    if options["use_xnnpack"] == "true":
        say("Explicitly applied XNNPACK delegate, and the model graph will be completely executed by the delegate.")
    load_us = (time.perf_counter_ns() - start) // 1000
    say(f"The input model file size (MB): {number(Path(options['graph']).stat().st_size / 1e6)}")
    say(f"Initialized session in {number(load_us / 1e3)}ms.")
    shape = interpreter.get_input_details()[0]["shape"]
    interpreter.set_tensor(wanted["index"], np.random.default_rng(0).uniform(-0.5, 0.5, shape).astype(np.float32))
    most_s = float(options["max_secs"])
    warmup = runs(interpreter, int(options["warmup_runs"]), float(options["warmup_min_secs"]), most_s)
    timed = runs(interpreter, int(options["num_runs"]), float(options["min_secs"]), most_s)
    say(
        f"Inference timings in us: Init: {load_us}, First inference: {warmup[0]}, Warmup (avg): {number(np.mean(warmup))}, "
        f"Inference (avg): {number(np.mean(timed))}"
    )
    say("Memory footprint delta from the start of the tool (MB): init=4.5 overall=6.25")
    return 0


if __name__ == "__main__":
    sys.exit(main())
