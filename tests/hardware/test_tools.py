"""What the vendors' tools print is read in every known format, and nothing else ever gives a number."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from natdeploy.errors import DeviceError
from natdeploy.hardware.tools import benchmark_model, onnxruntime_perf_test, trtexec
from natdeploy.hardware.tools.tool import Job, Timings, Tool, UnreadableError

JOB = Job(
    Path("net.onnx"), "0.onnx", (1, 3, 32, 48), 2, "fp32", "cpu", 7, warmup_runs=2, warmup_s=0.0, min_runs=4, min_s=0.5, limit_s=9
)

# Printed by real builds, cut down to what matters; the first one on an emulated processor, where a run takes seconds.
SLOW = """STARTING!
Log parameter values verbosely: [0]
Num threads: [4]
Graph: [./mobilenet_v1_1.0_224.tflite]
Loaded model ./mobilenet_v1_1.0_224.tflite
The input model file size (MB): 16.9008
Initialized session in 17.187ms.
Running benchmark for at least 1 iterations and at least 0.5 seconds but terminate if exceeding 150 seconds.
count=1 curr=3512391

Running benchmark for at least 50 iterations and at least 1 seconds but terminate if exceeding 150 seconds.
count=50 first=2990275 curr=2913402 min=2727568 max=3189954 avg=2.95034e+06 std=109798

Inference timings in us: Init: 17187, First inference: 3512391, Warmup (avg): 3.51239e+06, Inference (avg): 2.95034e+06
Memory footprint delta from the start of the tool (MB): init=4.21094 overall=46.0859
"""
PLAIN = """XNNPACK delegate created.
Explicitly applied XNNPACK delegate, and the model graph will be partially executed by the delegate w/ 22 delegate kernels.
Initialized session in 18.738ms.
Running benchmark for at least 1 iterations and at least 0.5 seconds but terminate if exceeding 180 seconds.
count=6 first=140706 curr=74599 min=74599 max=140706 avg=85791.2 std=24559

Running benchmark for at least 50 iterations and at least 1 seconds but terminate if exceeding 180 seconds.
count=50 first=74456 curr=74516 min=73909 max=75323 avg=74481.6 std=268

Inference timings in us: Init: 18738, First inference: 140706, Warmup (avg): 85791.2, Inference (avg): 74481.6
"""
PREFIXED = """INFO: Created TensorFlow Lite XNNPACK delegate for CPU.
VERBOSE: Replacing 58 out of 58 node(s) with delegate (TfLiteXNNPackDelegate) node, yielding 1 partitions for the whole graph.
INFO: Initialized session in 3.337ms.
INFO: count=9 first=81913 curr=55502 min=55502 max=81913 avg=58984.7 std=8115
INFO: count=1061 first=56576 curr=56299 min=54669 max=60236 avg=56265.8 std=982
INFO: Inference timings in us: Init: 3337, First inference: 81913, Warmup (avg): 58984.7, Inference (avg): 56265.8
INFO: Overall peak memory footprint (MB) via periodic monitoring: 93.2383
"""
PERCENTILES = """INFO: Loaded model /data/local/tmp/best_int8.tflite
INFO: The input model file size (MB): 3.06409
INFO: Initialized session in 92.318ms.
INFO: count=3 first=235158 curr=200386 min=199462 max=235158 avg=211669 std=16613 p5=199462 median=200386 p95=235158

INFO: count=25 first=187533 curr=140990 min=140071 max=195121 avg=145528 std=13583 p5=140545 median=141253 p95=187533

INFO: Inference timings in us: Init: 92318, First inference: 187533, Warmup (avg): 211669, Inference (avg): 145528
INFO: Memory footprint delta from the start of the tool (MB): init=54.2852 overall=73.4102
"""
ALIKE = """INFO: count=1 curr=21 p5=21 median=21 p95=21
INFO: count=40 curr=20(all same) p5=20 median=20 p95=20
INFO: Inference timings in us: Init: 310, First inference: 21, Warmup (avg): 21, Inference (avg): 20
"""
OTHER_TOOL = """INFO: Initialized session in 4.478ms.
INFO: count=1055 first=1033 curr=473 min=443 max=1033 avg=465.319 std=18 p5=459 median=463 p95=478
INFO: count=2112 first=463 curr=459 min=442 max=979 avg=464.545 std=13 p5=460 median=462 p95=478
INFO: [./litert/tools/benchmark_litert_model.h:88] Inference (avg):      0.46 ms (2112 runs)
"""

ORT_AVERAGE = """Setting intra_op_num_threads to 2
Disabling intra-op thread spinning between runs

Session creation time cost: 0.0102016 s
First inference time cost: 2 ms
Total inference time cost: 0.0110 s
Total inference requests: 6
Average inference time cost: 1.83333 ms
Total inference run time: 0.0111 s
Number of inferences per second: 538.184
Avg CPU usage: 96 %
Peak working set size: 36696064 bytes
"""
ORT_TOTAL = ORT_AVERAGE.replace("Average inference time cost: 1.83333 ms", "Average inference time cost total: 1.833333 ms")
ORT_FILE = "".join(
    f"natdeploy-host-x,{cost},36696064,96,{run}\n"
    for run, cost in enumerate(("0.003", "0.002", "0.0015", "0.0012", "0.0018", "0.0015"))
)
ORT_FILE_TOTAL = "".join(re.sub(r",(0\.\d+),", r",0.0001,\1,", line) for line in ORT_FILE.splitlines(keepends=True))


def trt(version: str, percentiles: str = "percentile(90%) = {0} ms, percentile(95%) = {0} ms, percentile(99%) = {0} ms") -> str:
    """What NVIDIA's sampleReporting.cpp prints of the two runs of TRT_FILE."""

    def summary(name: str, low: str, high: str, mean: str) -> str:
        shown = percentiles.format(high)
        return f"[05/13/2025-10:36:46] [I] {name}: min = {low} ms, max = {high} ms, mean = {mean} ms, median = {mean} ms, {shown}\n"

    return (
        f"&&&& RUNNING TensorRT.trtexec [TensorRT v{version}] # trtexec --loadEngine=0.engine\n"
        "[05/13/2025-10:36:40] [I] Selected Device: Orin\n"
        "[05/13/2025-10:36:41] [I] Engine loaded in 0.00218 sec.\n"
        "[05/13/2025-10:36:41] [I] Engine deserialized in 0.0125 sec.\n"
        "[05/13/2025-10:36:46] [I] Warmup completed 61 queries over 200 ms\n"
        "[05/13/2025-10:36:46] [I] Timing trace has 2 queries over 0.00644 s\n"
        "[05/13/2025-10:36:46] [I] === Performance summary ===\n"
        "[05/13/2025-10:36:46] [I] Throughput: 318.007 qps\n"
        + summary("Latency", "3.2", "3.4", "3.3")
        + summary("Enqueue Time", "0.844238", "2.05505", "0.887139")
        + summary("H2D Latency", "0.1", "0.1", "0.1")
        + summary("GPU Compute Time", "3", "3.2", "3.1")
        + summary("D2H Latency", "0.1", "0.1", "0.1")
        + "[05/13/2025-10:36:46] [W] * GPU compute time is unstable, with coefficient of variance = 3.2%.\n"
        f"&&&& PASSED TensorRT.trtexec [TensorRT v{version}] # trtexec --loadEngine=0.engine\n"
    )


TRT_FILE = """[
  { "startEnqMs" : 200.1, "endEnqMs" : 200.9, "startH2dMs" : 200.1, "endH2dMs" : 200.2, "startComputeMs" : 200.2, "endComputeMs" : 203.4, "startD2hMs" : 203.4, "endD2hMs" : 203.5, "h2dMs" : 0.1, "computeMs" : 3.2, "d2hMs" : 0.1, "latencyMs" : 3.4 }
, { "startEnqMs" : 203.5, "endEnqMs" : 204.3, "startH2dMs" : 203.5, "endH2dMs" : 203.6, "startComputeMs" : 203.6, "endComputeMs" : 206.6, "startD2hMs" : 206.6, "endD2hMs" : 206.7, "h2dMs" : 0.1, "computeMs" : 3, "d2hMs" : 0.1, "latencyMs" : 3.2 }
]
"""  # noqa: E501
TRT_86, TRT_103, TRT_111 = trt("8603"), trt("100300"), trt("110100")
TRT_852 = trt("8502", "percentile(99%) = {0} ms")

TINY = """INFO: count=8 first=4 curr=0 min=0 max=5 avg=1.875 std=1 p5=0 median=2 p95=5
INFO: count=400 first=1 curr=0 min=0 max=9 avg=0.8 std=1 p5=0 median=0 p95=1
INFO: Inference timings in us: Init: 310, First inference: 4, Warmup (avg): 1.875, Inference (avg): 0.8
"""

KNOWN: dict[str, tuple[Tool, str, str, Timings]] = {
    "benchmark_model, slow": (benchmark_model, SLOW, "", Timings(50, 2950.34, 2727.568, None, (), 17.187, 3512.391)),
    "benchmark_model, plain": (benchmark_model, PLAIN, "", Timings(50, 74.4816, 73.909, None, (), 18.738, 140.706)),
    "benchmark_model, prefixed": (benchmark_model, PREFIXED, "", Timings(1061, 56.2658, 54.669, None, (), 3.337, 81.913)),
    "benchmark_model, percentiles": (benchmark_model, PERCENTILES, "", Timings(25, 145.528, 140.071, 141.253, (), 92.318, 187.533)),
    "benchmark_model, less than a microsecond": (benchmark_model, TINY, "", Timings(400, 0.0008, 0.0008, None, (), 0.31, 0.004)),
    "benchmark_model, runs alike": (benchmark_model, ALIKE, "", Timings(40, 0.02, 0.02, 0.02, (), 0.31, 0.021)),
    "onnxruntime_perf_test, average": (
        onnxruntime_perf_test,
        ORT_AVERAGE,
        ORT_FILE,
        Timings(4, 1.5, 1.2, 1.5, (1.5, 1.2, 1.8, 1.5), 10.2016, 2.0, "CPUExecutionProvider"),
    ),
    "onnxruntime_perf_test, total": (
        onnxruntime_perf_test,
        ORT_TOTAL,
        ORT_FILE_TOTAL,
        Timings(4, 1.5, 1.2, 1.5, (1.5, 1.2, 1.8, 1.5), 10.2016, 2.0, "CPUExecutionProvider"),
    ),
    **{
        f"TensorRT {name}": (trtexec, text, TRT_FILE, Timings(2, 3.3, 3.2, 3.2, (3.4, 3.2), 14.68, None, "Orin"))
        for name, text in (("8.5", TRT_852), ("8.6", TRT_86), ("10.3", TRT_103), ("11.1", TRT_111))
    },
}
EACH = pytest.mark.parametrize(("tool", "text", "file", "expected"), KNOWN.values(), ids=KNOWN.keys())


def read(tool: Tool, text: str, file: str) -> Timings:
    return tool.parse(JOB, text.splitlines(), file.splitlines())


def same(one: Timings, other: Timings) -> bool:
    numbers = [
        (each.n, each.mean_ms, each.min_ms, each.median_ms or 0, *each.samples_ms, each.load_ms or 0, each.first_ms or 0)
        for each in (one, other)
    ]
    return numbers[0] == pytest.approx(numbers[1]) and one.provider == other.provider


@EACH
def test_every_known_format_is_read(tool: Tool, text: str, file: str, expected: Timings) -> None:
    assert same(read(tool, text, file), expected)
    assert same(read(tool, text.replace("\n", "\r\n"), file), expected), "as adb's shell ends lines before Android 7"


@EACH
def test_what_is_cut_off_anywhere_gives_the_whole_or_nothing(tool: Tool, text: str, file: str, expected: Timings) -> None:
    for cut, whole in ((lambda length: (text[:length], file), text), (lambda length: (text, file[:length]), file)):
        for length in range(len(whole)):
            try:
                found = read(tool, *cut(length))
            except UnreadableError as error:
                assert tool.NAME in str(error)
            else:
                assert same(found, expected), f"{length} characters"


@EACH
@given(data=st.data())
def test_a_lost_or_doubled_line_gives_the_same_or_nothing(
    tool: Tool, text: str, file: str, expected: Timings, data: st.DataObject
) -> None:
    lines = text.splitlines()
    at = data.draw(st.integers(0, len(lines) - 1))
    changed = data.draw(st.sampled_from([lines[:at] + lines[at + 1 :], lines[: at + 1] + lines[at:]]))
    try:
        found = tool.parse(JOB, changed, file.splitlines())
    except UnreadableError:
        return
    # Loading is told in lines of its own, which not every version has.
    assert (found.n, found.mean_ms, found.min_ms, found.median_ms) == pytest.approx(
        (expected.n, expected.mean_ms, expected.min_ms, expected.median_ms)
    )


@EACH
@given(noise=st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\n\r"), max_size=60), max_size=8))
def test_noise_alone_never_gives_a_number(tool: Tool, text: str, file: str, expected: Timings, noise: list[str]) -> None:
    with pytest.raises(UnreadableError, match=tool.NAME):
        tool.parse(JOB, noise, file.splitlines())
    with pytest.raises(UnreadableError, match=tool.NAME):
        tool.parse(JOB, [], noise)


def change(text: str, old: str, new: str) -> str:
    assert old in text
    return text.replace(old, new)


WRONG: dict[str, tuple[Tool, str, str, str]] = {
    "no run": (
        benchmark_model,
        change(PLAIN, "count=50 first=74456 curr=74516 min=73909 max=75323 avg=74481.6 std=268", "count=0"),
        "",
        "timed no run: 'count=0'",
    ),
    "zero": (benchmark_model, change(PERCENTILES, "min=140071", "min=0"), "", "told '0' as a time: 'count=25"),
    "negative": (benchmark_model, change(PERCENTILES, "avg=145528", "avg=-145528"), "", "another form: 'count=25"),
    "not a number": (benchmark_model, change(PERCENTILES, "avg=145528", "avg=nan"), "", "another form: 'count=25"),
    "infinite": (
        benchmark_model,
        change(PERCENTILES, "Inference (avg): 145528", "Inference (avg): inf"),
        "",
        "another form: 'Inference timings",
    ),
    "too large": (
        benchmark_model,
        change(PERCENTILES, "max=195121 avg=145528", "max=195121 avg=1e+999"),
        "",
        "told '1e\\+999' as a time",
    ),
    "other unit": (
        benchmark_model,
        change(PERCENTILES, "timings in us", "timings in ms"),
        "",
        "another form: 'Inference timings in ms",
    ),
    "mean of another run": (
        benchmark_model,
        change(PERCENTILES, "Inference (avg): 145528", "Inference (avg): 145529"),
        "",
        "contradicts itself",
    ),
    "mean out of range": (benchmark_model, change(PERCENTILES, "max=195121", "max=140072"), "", "contradicts itself"),
    "median out of range": (benchmark_model, change(PERCENTILES, "median=141253", "median=14125"), "", "contradicts itself"),
    "first zero": (benchmark_model, change(PERCENTILES, "First inference: 187533", "First inference: 0"), "", "told '0' as a time"),
    "option not known": (
        benchmark_model,
        f"Unconsumed cmdline flags: --input_layer_shape=1,3,8,8\n{PERCENTILES}",
        "",
        "does not have: 'Unconsumed",
    ),
    "no XNNPACK": (
        benchmark_model,
        f"Though XNNPACK delegate is explicitly applied, the model graph will not be executed by the delegate.\n{PERCENTILES}",
        "",
        "did not use XNNPACK",
    ),
    "LiteRT's other tool": (benchmark_model, OTHER_TOOL, "", "printed 'Inference timings' 0 times instead of once"),
    "other requests": (
        onnxruntime_perf_test,
        change(ORT_AVERAGE, "requests: 6", "requests: 7"),
        ORT_FILE,
        "timed 7 runs and left 6",
    ),
    "other mean": (
        onnxruntime_perf_test,
        change(ORT_AVERAGE, "1.83333 ms", "1.9 ms"),
        ORT_FILE,
        r"contradicts itself \(1.9 and 1.83333\)",
    ),
    "mean in seconds": (onnxruntime_perf_test, change(ORT_AVERAGE, "1.83333 ms", "0.00183 s"), ORT_FILE, "another form: 'Average"),
    "created in no time": (
        onnxruntime_perf_test,
        change(ORT_AVERAGE, "cost: 0.0102016 s", "cost: 0 s"),
        ORT_FILE,
        "told '0' as a time",
    ),
    "zero among the runs": (
        onnxruntime_perf_test,
        ORT_AVERAGE,
        change(ORT_FILE, ",0.0012,", ",0,"),
        "told '0' as a time: 'natdeploy",
    ),
    "nan among the runs": (onnxruntime_perf_test, ORT_AVERAGE, change(ORT_FILE, ",0.0012,", ",nan,"), "told 'nan' as a time"),
    "another call's runs before": (onnxruntime_perf_test, ORT_AVERAGE, ORT_FILE * 2, "left a file without its run 6"),
    "only a warm-up": (
        onnxruntime_perf_test,
        change(change(ORT_AVERAGE, "requests: 6", "requests: 2"), "1.83333 ms", "2.5 ms"),
        "".join(ORT_FILE.splitlines(keepends=True)[:2]),
        "timed no run after its warm-up",
    ),
    "not passed": (trtexec, change(TRT_86, "&&&& PASSED", "&&&& FAILED"), TRT_FILE, "did not end with PASSED"),
    "queries": (trtexec, change(TRT_86, "has 2 queries", "has 3 queries"), TRT_FILE, "timed 3 runs and exported 2"),
    "no queries": (trtexec, change(TRT_86, "has 2 queries", "has 0 queries"), "[]", "timed 0 runs and exported 0"),
    "latency in seconds": (
        trtexec,
        change(TRT_86, "Latency: min = 3.2 ms", "Latency: min = 3.2 s"),
        TRT_FILE,
        "another form: 'Latency",
    ),
    "compute of other runs": (trtexec, change(TRT_86, "mean = 3.1 ms", "mean = 3.2 ms"), TRT_FILE, "contradicts itself"),
    "no compute": (trtexec, TRT_86, change(TRT_FILE, '"computeMs" : 3.2', '"computeMs" : 0'), "exported a run of another form"),
    "NaN": (trtexec, TRT_86, change(TRT_FILE, '"computeMs" : 3.2', '"computeMs" : NaN'), "exported NaN"),
    "negative way": (trtexec, TRT_86, change(TRT_FILE, '"h2dMs" : 0.1', '"h2dMs" : -0.1'), "exported a run of another form"),
    "parts that do not add up": (trtexec, TRT_86, change(TRT_FILE, '"latencyMs" : 3.4', '"latencyMs" : 4.4'), "contradicts itself"),
    "runs that are words": (trtexec, TRT_86, change(TRT_FILE, '"latencyMs" : 3.4', '"latencyMs" : "3.4"'), "of another form"),
    "no list": (trtexec, TRT_86, '{"latencyMs" : 3.4}', "no list"),
}


@pytest.mark.parametrize(("tool", "text", "file", "why"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_number_is_an_error_that_names_tool_and_line(tool: Tool, text: str, file: str, why: str) -> None:
    with pytest.raises(DeviceError, match=f"^{tool.NAME} .*{why}"):
        read(tool, text, file)


def test_options_of_benchmark_model() -> None:
    job = Job(Path("a.tflite"), "0.tflite", (1, 3, 32, 48), 2, "fp32", "reference", 7, 0, 0.25, 16, 0.2, limit_s=100.0)
    assert benchmark_model.arguments(job, "", "") == [
        "--graph=0.tflite",
        "--num_threads=2",
        "--input_layer=input",
        "--input_layer_shape=1,3,32,48",
        "--use_xnnpack=false",
        "--warmup_runs=1",
        "--warmup_min_secs=0.25",
        "--num_runs=16",
        "--min_secs=0.2",
        "--max_secs=100",
    ]
    assert benchmark_model.version("abcdef0123456789", []) == "benchmark_model abcdef012345"


def test_onnxruntime_perf_test_is_given_runs_for_the_time_once_it_is_known() -> None:
    def runs(job: Job) -> str:
        arguments = onnxruntime_perf_test.arguments(job, "", "r.txt")
        assert arguments[-2:] == ["0.onnx", "r.txt"]
        assert {"-I", "-Z", "height:32", "width:48"} <= set(arguments)
        assert "-t" not in arguments, "with a time beside the number, newer versions take the time"
        return arguments[arguments.index("-r") + 1]

    assert runs(JOB) == "6"
    assert runs(replace(JOB, expected_ms=2.0)) == str(2 + 250)


@pytest.fixture
def onnx_files(tmp_path: Path) -> Callable[[bool], Path]:
    def make(opened: bool) -> Path:
        import onnx
        from onnx import TensorProto, helper

        sizes = [1, 3, "height", "width"] if opened else [1, 3, 32, 48]
        ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes) for name in ("input", "output")]
        graph = helper.make_graph([helper.make_node("Relu", ["input"], ["output"])], "net", ends[:1], ends[1:])
        path = tmp_path / f"{opened}.onnx"
        onnx.save(helper.make_model(graph), path)
        return path

    return make


@pytest.mark.parametrize(
    ("version", "precision", "build", "run"),
    [
        ("8.5.2", "fp16", ["--buildOnly", "--noTF32", "--fp16"], []),
        ("8.6.1", "fp32", ["--skipInference", "--noTF32"], []),
        ("8.6.3", "int8", ["--skipInference", "--noTF32", "--int8"], []),
        ("10.3.0", "fp16", ["--skipInference", "--noTF32", "--stronglyTyped"], []),
        ("11.1.0", "fp16", ["--skipInference", "--noTF32"], ["--includeDataTransfers", "--noCudaGraph"]),
    ],
)
def test_options_of_each_trtexec(
    version: str, precision: str, build: Sequence[str], run: Sequence[str], onnx_files: Callable[[bool], Path]
) -> None:
    for opened, shapes in ((True, ["--shapes=input:1x3x32x48"]), (False, [])):
        job = Job(onnx_files(opened), "0.onnx", (1, 3, 32, 48), 1, precision, "gpu", 7, 5, 0.03, 24, 0.1, 100.0, expected_ms=20.0)
        assert trtexec.prepare(job, version) == [
            "--onnx=0.onnx",
            "--saveEngine=0-1x3x32x48.engine",
            "--timingCacheFile=tensorrt.timing",
            *build,
            *shapes,
        ]
        assert trtexec.arguments(job, version, "r.json") == [
            "--loadEngine=0-1x3x32x48.engine",
            *shapes,
            "--iterations=24",
            "--duration=0.1",
            "--warmUp=100",
            "--exportTimes=r.json",
            *run,
        ]


@pytest.mark.parametrize(
    ("said", "version"),
    [("v8502", "8.5.2"), ("v8603", "8.6.3"), ("v100300", "10.3.0"), ("v101600] [b20", "10.16.0"), ("v110100", "11.1.0")],
)
def test_trtexec_tells_its_version(said: str, version: str) -> None:
    assert trtexec.version("", ["", f"&&&& RUNNING TensorRT.trtexec [TensorRT {said}] # trtexec --help"]) == version
    with pytest.raises(UnreadableError, match="trtexec does not tell its version"):
        trtexec.version("", ["trtexec: not found"])


def test_the_recorded_times_of_trtexec_are_json() -> None:
    assert [each["latencyMs"] for each in json.loads(TRT_FILE)] == [3.4, 3.2]
