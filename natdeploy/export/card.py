"""What an exported network is, told to people: a model card in Markdown, with the front matter that model hubs read."""

from __future__ import annotations

import re
from collections.abc import Iterable

from natdeploy.export.facts import Latency, Metadata, ModelFile
from natdeploy.export.formats import FORMATS, PRECISIONS
from natdeploy.export.scripts import script_name
from natdeploy.runtimes.ort import EXACT_INT8

_CARD = """---
library_name: {library}
license: {licence}
pipeline_tag: {pipeline}
tags: [{tags}]
metrics: [{metric_tag}]
---
# {id}

{what} for {classes} classes at {size} px, {origin} by natdeploy.

| device | runtime | precision | p50 | p90 | {metric} | size |
|---|---|---|---|---|---|---|
{rows}

Latency is of one image on one device, measured where it does not say otherwise; {metric} is that of the file in its runtime, on
test images.{slower}

| | |
|---|---|
{table}

## Use

{use}
{caution}
## Classes

In the order of the outputs: {labels}.
"""


_INT8_ONNX = FORMATS["onnx"].file_name("int8")
_CAUTION = f"""
In ONNX Runtime on an x86-64 processor without VNNI, `{_INT8_ONNX}` needs the session option `{EXACT_INT8[0]}` set to
`{EXACT_INT8[1]}`, as the program above does: sums of 8-bit products overflow there without it, and answers are wrong. Elsewhere
the option changes nothing.
"""

_TASKS = {
    "classification": ("An image classifier", "image-classification"),
    "detection": ("A network that finds objects, and draws a box around each,", "object-detection"),
    "segmentation": ("A network that tells what every pixel shows,", "image-segmentation"),
}
"""What a network is called, and how model hubs file it."""


def model_card(metadata: Metadata) -> str:
    """The card of a bundle."""
    what = metadata.description
    about = [
        ("architecture", f"`{what.arch}`, of space {what.space}"),
        ("size", f"{what.params / 1e6:.2f} M parameters, {what.macs / 1e6:.1f} M multiply-accumulates"),
        (f"{what.metric} in torch", _accuracy(metadata)),
        *((f"`{file.name}`", _file(file)) for file in metadata.files),
        ("pretrained weights", f"{_plain(what.seed)}, sha256 `{what.seed_sha256}`"),
        ("their licence", "not stated" if what.licence is None else _plain(what.licence)),
        *([("images", f"fingerprint `{what.data_fingerprint}`")] if what.data_fingerprint else []),
        ("made with", ", ".join(f"{name} {version}" for name, version in what.versions.items())),
    ]
    formats = list(dict.fromkeys(file.format for file in metadata.files))
    return _CARD.format(
        id=what.id,
        library=formats[0] if formats else "natdeploy",
        licence="apache-2.0" if "apache-2.0" in (what.licence or "").lower() else "unknown",
        tags=", ".join(["natdeploy", *formats]),
        origin="exported" if what.random_seed is None else "searched and adapted",
        classes=len(what.labels),
        size=_size(what.preprocessing.size),
        what=_TASKS[what.task][0],
        pipeline=_TASKS[what.task][1],
        metric=what.metric,
        metric_tag=what.metric.lower().replace(" ", "_"),
        rows="\n".join(_rows(metadata)),
        slower="".join(f" {sentence}" for sentence in _slower(metadata)),
        table="\n".join(f"| {name} | {value} |" for name, value in about),
        caution=_CAUTION if any(file.name == _INT8_ONNX for file in metadata.files) else "",
        use="\n".join(f"    python {script_name(each, what)} photo.jpg" for each in formats),
        labels=", ".join(map(_plain, what.labels)),
    )


def _size(size: tuple[int, int]) -> str:
    """Of an input: `160`, or width and height of a rectangle, as photos are measured."""
    height, width = size
    return str(height) if height == width else f"{width} x {height}"


def _rows(metadata: Metadata) -> Iterable[str]:
    """A row a latency, and one for every file that was timed nowhere."""
    timed = set()
    for latency in metadata.latencies:
        device, _, rest = latency.target.partition("/")
        runtime, precision, threads = rest.rsplit("-", 2)  # onnxruntime+cuda-fp32-1t
        file = next(
            (each for each in metadata.files if (_runtime_of(each), each.precision) == (runtime.split("+")[0], precision)), None
        )
        if file is not None:
            timed.add(file.name)
        count = threads.removesuffix("t")
        yield _row(device, f"{runtime}, {count} thread{'' if count == '1' else 's'}", precision, _times(latency), file)
    for file in metadata.files:
        if file.name not in timed:
            yield _row("", _runtime_of(file), file.precision, ("", ""), file)


def _slower(metadata: Metadata) -> Iterable[str]:
    """What a smaller precision does not bring: a sentence a target where it was measured and is no faster than fp32."""
    measured = {each.target: each.measured_p50_ms for each in metadata.latencies if each.measured_p50_ms is not None}
    for target, p50_ms in measured.items():
        rest, precision, threads = target.rsplit("-", 2)
        whole_ms = measured.get(f"{rest}-{PRECISIONS[0]}-{threads}")
        if precision != PRECISIONS[0] and whole_ms is not None and p50_ms >= whole_ms:
            yield f"On {rest}, {precision} is no faster than fp32 ({p50_ms:.3f} and {whole_ms:.3f} ms): use the fp32 file there."


def _runtime_of(file: ModelFile) -> str:
    return FORMATS[file.format].runtime.NAME


def _row(device: str, runtime: str, precision: str, times: tuple[str, str], file: ModelFile | None) -> str:
    accuracy = "" if file is None else percent(file.test_accuracy)
    size = "" if file is None else f"{file.size_mb:.2f} MB"
    p50, p90 = times
    return f"| {device} | {runtime} | {precision} | {p50} | {p90} | {accuracy} | {size} |"


def _times(latency: Latency) -> tuple[str, str]:
    doubt = ", unstable" if latency.unstable else ""
    if latency.measured_p50_ms is not None:
        p90 = "" if latency.measured_p90_ms is None else f"{latency.measured_p90_ms:.3f} ms"
        return f"{latency.measured_p50_ms:.3f} ms ({latency.measured_n} runs{doubt})", p90
    if latency.measured_mean_ms is not None:
        return f"mean {latency.measured_mean_ms:.3f} ms ({latency.measured_n} runs{doubt})", ""
    if latency.predicted_ms is not None:
        how = "estimated from the device's specification sheet" if latency.estimated else "predicted"
        return f"{latency.predicted_ms:.3f} ms {how}", ""
    return "", ""


def _accuracy(metadata: Metadata) -> str:
    if metadata.test_accuracy is None:
        return "not known: no images were given"
    return f"{percent(metadata.test_accuracy)} on the test images, {percent(metadata.validation_accuracy)} in validation"


def _file(file: ModelFile) -> str:
    opset = "" if file.opset is None else f", opset {file.opset}"
    inside = f"; takes bytes, {'resizes and ' * file.input.resized}scales them inside" if file.input.dtype == "uint8" else ""
    shape = "x".join("any" if size is None else str(size) for size in file.input.shape)
    judged = (
        ""
        if file.test_accuracy is None
        else f"{percent(file.test_accuracy)} on the test images, {percent(file.validation_accuracy)} in validation; "
    )
    trained = (
        ""
        if file.trained_agreement is None
        else f", {percent(file.trained_agreement)} in torch's class of the images as training saw them, resized by Pillow"
    )
    learned = "" if file.quantisation is None else f"; ranges from {file.quantisation.images} images by {file.quantisation.tool}"
    return (
        f"{file.precision}, {file.size_mb:.2f} MB{opset}, sha256 `{file.sha256}`; input {shape} {file.input.layout}{inside}; in "
        f"{file.checked_in} {judged}logits within {file.parity.max_abs:.0e} of torch's on {file.parity.n} images, "
        f"{percent(file.parity.top1_agreement)} in the same class{trained}{learned}"
    )


def percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"


def _plain(text: str) -> str:
    """Text that Markdown takes for nothing else."""
    return re.sub(r"([\\`*_{}\[\]<>()#+!|~&])", r"\\\1", " ".join(text.split()))
