"""ONNX Runtime's onnxruntime_perf_test.

Known formats: builds that know the options -I, -S and -Z. Since 2025 (pull request 25895) a run is told in two parts, until it is
submitted and in total: the average is called `Average inference time cost total`, and the file of results got a column (26313).
Documented in onnxruntime/test/perftest: README.md, the options in command_args_parser.cc, what is printed and the file in
performance_runner.cc (`PerformanceResult::DumpToFile`: a line a run, `folder,seconds,peak memory,CPU usage,number`, or
`folder,seconds until submitted,seconds,peak memory,CPU usage,number`).

It warms up by one run only and knows either a number of runs or a time in whole seconds. So it is given a number, which grows once
it is known how long a run takes, and the first of them are left out as warm-up.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from natdeploy.hardware.tools.tool import NUMBER, Job, Timings, agree, only, positive, unreadable

NAME = "onnxruntime_perf_test"
RUNTIME = "onnxruntime"
HARNESS = "onnxruntime_perf_test"
DELEGATES = ("cpu",)
PLACES = (NAME, f"/data/local/tmp/{NAME}", f"/usr/local/bin/{NAME}")
ASK = ()
RESULT = True

_CREATED = re.compile(rf"Session creation time cost: ({NUMBER}) s")
_FIRST = re.compile(r"First inference time cost: (\d+) ms")
_REQUESTS = re.compile(r"Total inference requests: (\d+)")
_MEAN = re.compile(rf"Average inference time cost(?: total)?: ({NUMBER}) ms")


def version(digest: str, lines: Sequence[str]) -> str:
    return f"{NAME} {digest[:12]}"


def prepare(job: Job, version: str) -> list[str]:
    return []


def arguments(job: Job, version: str, result: str) -> list[str]:
    # The dimensions that natdeploy's own files leave open; where a file has none of the name, nothing happens.
    sizes = ["-f", f"height:{job.shape[2]}", "-f", f"width:{job.shape[3]}"] if len(job.shape) == 4 else []
    runs = _warmup(job) + job.runs(job.min_runs, job.min_s)
    return [
        *("-e", "cpu", "-m", "times", "-r", str(runs)),
        *("-x", str(job.threads), "-y", "1", "-Z"),  # as in natdeploy's own harness: one graph thread, none spins between runs
        *("-I", "-S", str(job.seed), *sizes),
        *(job.file, result),
    ]


def _warmup(job: Job) -> int:
    return job.runs(job.warmup_runs, job.warmup_s)


def parse(job: Job, lines: Sequence[str], result: Sequence[str]) -> Timings:
    plain = [line.strip() for line in lines]
    created = only(NAME, "Session creation time cost", _CREATED, plain)
    first = only(NAME, "First inference time cost", _FIRST, plain)
    requests = only(NAME, "Total inference requests", _REQUESTS, plain)
    mean = only(NAME, "Average inference time cost", _MEAN, plain)
    samples = [_milliseconds(line, number) for number, line in enumerate(result)]
    if len(samples) != int(requests[1]) or not samples:
        raise unreadable(NAME, f"timed {requests[1]} runs and left {len(samples)} in its file", requests[0])
    agree(NAME, positive(NAME, mean[1], mean[0]), sum(samples) / len(samples), 1e-3, mean[0])
    timed = samples[_warmup(job) :]
    if not timed:
        raise unreadable(NAME, "timed no run after its warm-up", requests[0])
    return Timings(
        n=len(timed),
        mean_ms=sum(timed) / len(timed),
        min_ms=min(timed),
        median_ms=sorted(timed)[(len(timed) - 1) // 2],
        samples_ms=tuple(timed),
        load_ms=1e3 * positive(NAME, created[1], created[0]),
        first_ms=float(first[1]) or None,  # in whole milliseconds: 0 says nothing
        provider="CPUExecutionProvider",
    )


def _milliseconds(line: str, number: int) -> float:
    """Of one line of the file."""
    cells = line.strip().split(",")
    if len(cells) not in (5, 6) or cells[-1] != str(number):
        raise unreadable(NAME, f"left a file without its run {number}", line)
    return 1e3 * positive(NAME, cells[-4], line)
