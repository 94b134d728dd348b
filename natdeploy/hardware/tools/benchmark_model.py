"""TensorFlow Lite's and LiteRT's benchmark_model, the one of their folder tools/benchmark.

Known formats: those of TensorFlow since 2.4 tell count, minimum, mean and maximum of the runs; LiteRT's also the median and two
percentiles; either may put `INFO: ` before every line. Documented in tensorflow/lite/tools/benchmark (README.md;
`BenchmarkModel::Run` and `BenchmarkLoggingListener` in benchmark_model.cc; `Stat` and `StatWithPercentiles` in stats_calculator.h
of TensorFlow's core), in LiteRT in tflite/tools/benchmark. Each run is timed in whole microseconds. What LiteRT builds from
litert/tools under the same name cannot be told the size of an input; its output is refused.

The mean stands in the line of the runs and in the summary, which must agree; it and the median must lie between the extremes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from natdeploy.hardware.tools.tool import DIGITS, NUMBER, Job, Timings, only, positive, unreadable

NAME = "benchmark_model"
RUNTIME = "tflite"
HARNESS = "TFLite benchmark_model"
DELEGATES = ("xnnpack", "reference")
PLACES = (NAME, f"/data/local/tmp/{NAME}", f"/usr/local/bin/{NAME}")
ASK = ()
RESULT = False
INPUT = "input"
"""Of natdeploy's own files; of another name in a file the tool takes no notice but for a warning."""

_REFUSALS = {
    "Unconsumed cmdline flags": "was given options that this build does not have",
    "the model graph will not be executed by the delegate": "did not use XNNPACK (time tflite+reference instead)",
}
"""What it says and goes on: it would time something else than was asked for."""

_COARSE_US = 10.0
"""Up to this mean, a shortest or a median run of 0 us is one that the clock could not tell, and the mean stands for it; above
it, it is a fault."""

_PERCENTILES = r"(?: p5=\d+ median=(?P<median>\d+) p95=\d+)?"
_ALIKE = re.compile(rf"count=(?P<count>\d+) curr=(?P<curr>\d+)(?P<same>\(all same\))?{_PERCENTILES}")
_DIFFERENT = re.compile(
    rf"count=(?P<count>\d+) first=\d+ curr=\d+ min=(?P<min>\d+) max=(?P<max>\d+) avg=(?P<avg>{NUMBER}) std={NUMBER}{_PERCENTILES}"
)
_SUMMARY = re.compile(
    rf"Inference timings in us: Init: (?P<init>\d+), First inference: (?P<first>\d+), Warmup \(avg\): (?P<warmup>{NUMBER}), "
    rf"Inference \(avg\): (?P<mean>{NUMBER})"
)


def version(digest: str, lines: Sequence[str]) -> str:
    return f"{NAME} {digest[:12]}"


def prepare(job: Job, version: str) -> list[str]:
    return []


def arguments(job: Job, version: str, result: str) -> list[str]:
    return [
        f"--graph={job.file}",
        f"--num_threads={job.threads}",
        f"--input_layer={INPUT}",
        f"--input_layer_shape={','.join(map(str, job.shape))}",
        # Given either way, for what the tool does without it differs from build to build.
        f"--use_xnnpack={'true' if job.delegate == 'xnnpack' else 'false'}",
        f"--warmup_runs={max(1, job.warmup_runs)}",
        f"--warmup_min_secs={job.warmup_s:g}",
        f"--num_runs={job.min_runs}",
        f"--min_secs={job.min_s:g}",
        f"--max_secs={job.limit_s:g}",
    ]


def parse(job: Job, lines: Sequence[str], result: Sequence[str]) -> Timings:
    plain = [line.strip().removeprefix("INFO: ") for line in lines]
    for sign, what in _REFUSALS.items():
        if refusal := next((line for line in plain if sign in line), None):
            raise unreadable(NAME, what, refusal)
    counted = [line for line in plain if line.startswith("count=")]
    if len(counted) != 2:
        last = counted[-1] if counted else next((line for line in reversed(plain) if line), "")
        raise unreadable(
            NAME, f"printed {len(counted)} lines 'count=', not one of the warm-up and one of the runs; the last was", last
        )
    warmup, timed = (_runs(line) for line in counted)
    summary = only(NAME, "Inference timings", _SUMMARY, plain)
    for told, runs in ((summary["warmup"], warmup), (summary["mean"], timed)):
        if float(told) != runs.printed_us:
            raise unreadable(NAME, f"contradicts itself (mean {told} and {runs.printed_us:g})", summary[0])
    return Timings(
        n=timed.n,
        mean_ms=timed.mean_us / 1e3,
        min_ms=(timed.min_us or timed.mean_us) / 1e3,
        median_ms=None if timed.median_us is None else timed.median_us / 1e3,
        load_ms=positive(NAME, summary["init"], summary[0]) / 1e3,
        first_ms=positive(NAME, summary["first"], summary[0]) / 1e3,
    )


@dataclass(frozen=True)
class _Runs:
    n: int
    min_us: float
    mean_us: float
    median_us: float | None

    @property
    def printed_us(self) -> float:
        """The mean as a stream prints it."""
        return float(f"{self.mean_us:.{DIGITS}g}")


def _runs(line: str) -> _Runs:
    if match := _DIFFERENT.fullmatch(line):
        mean, high = (positive(NAME, match[name], line) for name in ("avg", "max"))
        low = 0.0 if match["min"] == "0" and mean <= _COARSE_US else positive(NAME, match["min"], line)
        well = int(match["count"]) > 1 and low < high
    elif match := _ALIKE.fullmatch(line):
        low = mean = high = positive(NAME, match["curr"], line)
        well = (int(match["count"]) > 1) == (match["same"] is not None)
    else:
        raise unreadable(NAME, "timed no run" if line.startswith("count=0") else "printed a line of another form", line)
    n, median = int(match["count"]), match["median"]
    untold = median is None or (median == "0" and mean <= _COARSE_US)
    median_us = None if untold else positive(NAME, median, line)
    # A mean of large numbers is printed in six digits and may leave the range by its last one.
    if n < 1 or not well or not all(low <= each * 1.00001 and each <= high * 1.00001 for each in (mean, median_us or mean)):
        raise unreadable(NAME, "contradicts itself", line)
    return _Runs(n, low, mean, median_us)
