"""Model files that are to be timed: what they take, by which runtime, and what they are known by."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from natdeploy.errors import MissingRuntimeError, UsageError
from natdeploy.export import FORMATS, ModelFile, read_bundle
from natdeploy.hardware.bench import Candidate
from natdeploy.hardware.device import Target, parse_target
from natdeploy.hardware.runtimes import RUNTIMES, get_runtime
from natdeploy.hardware.tools import timed_by_tool
from natdeploy.progress import Progress
from natdeploy.store import NetRecord

SUFFIXES = tuple(dict.fromkeys(runtime.SUFFIX for runtime in RUNTIMES.values()))
PLAIN = "float32"
Shape = tuple[int, ...]
Inputs = tuple[tuple[Shape, str], ...]
"""Shape and type of every input, where there is anything else than one float32 array."""

_SHAPE = re.compile(r"[1-9]\d*(x[1-9]\d*)*")


@dataclass(frozen=True)
class Subject:
    """A model file that is to be timed on a target.

    Attributes:
        name: tells it from the others: a path as the user gave it, or role and id of a run's net, after the run's folder where
            there are several.
        candidate: of it.
        target: in the file's precision, where that is known.
        sha256: of every file it consists of, by their names.
        size_mb: of all of them, 10^6 bytes.
        id: of the architecture, where it is known.
        run: folder of the run that it is of.
        net: of the run.
        predicted_ms: latency on the target; None where nothing tells it.
        estimated: it comes from a specification sheet.
    """

    name: str
    candidate: Candidate
    target: Target
    sha256: Mapping[str, str]
    size_mb: float
    id: str | None = None
    run: Path | None = None
    net: NetRecord | None = None
    predicted_ms: float | None = None
    estimated: bool = False

    @property
    def digest(self) -> str:
        """Changes with anything that its times depend on."""
        text = repr((sorted(self.sha256.items()), self.candidate.shape, self.candidate.inputs, self.candidate.precision))
        return hashlib.sha256(text.encode()).hexdigest()


def parse_shape(text: str) -> tuple[int, ...]:
    """Reads `1x3x224x224`.

    Raises:
        UsageError: it is no shape.
    """
    if not _SHAPE.fullmatch(text):
        raise UsageError(f"{text!r} is no shape; write the sizes of the input, batch first, as in 1x3x224x224")
    return tuple(map(int, text.split("x")))


def make_subject(
    name: str,
    model: Path,
    shape: tuple[int, ...],
    target: Target,
    *,
    inputs: Inputs = (),
    id: str | None = None,
    run: Path | None = None,
    net: NetRecord | None = None,
    predicted_ms: float | None = None,
    estimated: bool = False,
) -> Subject:
    """A subject whose files are read once, for their digests.

    Raises:
        UsageError: one of them is missing or cannot be read.
    """
    sha256, size = {}, 0
    for path in (model, *get_runtime(target.runtime).companions(model)):
        try:
            data = path.read_bytes()
        except OSError as error:
            raise UsageError(f"{path} cannot be read ({error.strerror}), and {model.name} does not run without it") from error
        sha256[path.name] = hashlib.sha256(data).hexdigest()
        size += len(data)
    candidate = Candidate(name, model, shape, inputs, target.precision)
    return Subject(name, candidate, target, sha256, size / 1e6, id, run, net, predicted_ms, estimated)


def foreign(path: Path, target: str | None, shape: Sequence[int] | None) -> Subject:
    """Any ONNX, TFLite or OpenVINO file.

    Args:
        path: of it.
        target: as the user wrote it; this machine by default. Where it names no runtime, the file's suffix does.
        shape: of the input, where the file leaves sizes open.

    Raises:
        UsageError: no such file, the target does not run it, or its inputs are not known; the message says what to give.
        MissingRuntimeError: the library that reads it is not installed here.
    """
    if not path.is_file():
        raise UsageError(f"there is no file {path}")
    if path.suffix not in SUFFIXES:
        raise UsageError(f"{path} is no model file that natdeploy times; those end in {', '.join(SUFFIXES)}")
    fitting = [name for name, runtime in RUNTIMES.items() if path.suffix == runtime.SUFFIX]
    chosen = parse_target(target or "host", runtime=fitting[0])
    runtime = get_runtime(chosen.runtime)
    if path.suffix != runtime.SUFFIX:
        raise UsageError(
            f"{path} is a file for {' or '.join(fitting)}, which {chosen} does not run; "
            f"give --target {chosen.device.name}/{fitting[0]}, or a {runtime.SUFFIX} file"
        )
    try:
        inputs = runtime.read_inputs(path)
    except ImportError as error:
        raise MissingRuntimeError(f"{path} cannot be read without its library: pip install {runtime.REQUIREMENT}") from error
    except ValueError as error:
        raise UsageError(f"{path} cannot be timed: {error}") from error
    known = [(_sizes(path, name, sizes, shape, len(inputs)), kind) for name, sizes, kind in inputs]
    if not known:
        raise UsageError(f"{path} takes no input, so there is nothing to time")
    if timed_by_tool(chosen.device) and (len(known) > 1 or known[0][1] != PLAIN):
        raise UsageError(
            f"{path} takes something else than one {PLAIN} input, which only natdeploy's runner times, not {chosen}'s tool"
        )
    plain = len(known) == 1 and known[0][1] == PLAIN
    return make_subject(str(path), path, known[0][0], chosen, inputs=() if plain else tuple(known))


def _sizes(path: Path, name: str, sizes: tuple[int | None, ...] | None, shape: Sequence[int] | None, count: int) -> tuple[int, ...]:
    """The shape of an input: the file's, or what the user gave for what the file leaves open."""
    fixed = sizes is not None and None not in sizes
    told = "any shape" if sizes is None else "x".join("?" if size is None else str(size) for size in sizes) or "a single number"
    if count > 1:
        if shape is not None:
            raise UsageError(f"{path} takes {count} inputs, and --shape tells the sizes of one only; leave it out")
        if not fixed:
            raise UsageError(
                f"{path} takes {count} inputs and leaves sizes open ({name}: {told}); convert it with fixed sizes to have it timed"
            )
    elif shape is None and not fixed:
        raise UsageError(
            f"{path} leaves sizes of its input open ({name}: {told}); say which to time with --shape, as in 1x3x224x224"
        )
    elif shape is not None:
        matches = sizes is None or (len(sizes) == len(shape) and all(a in (None, b) for a, b in zip(sizes, shape, strict=True)))
        if not matches:
            raise UsageError(f"{path} takes {told} ({name}), not {'x'.join(map(str, shape))}; give another --shape")
        return tuple(shape)
    assert sizes is not None
    return tuple(size for size in sizes if size is not None)


def inputs_of(file: ModelFile) -> tuple[Shape, Inputs] | None:
    """What an exported file takes, as `Candidate` tells it; None where it takes any size."""
    shape = file.input.sizes
    if shape is None:
        return None
    return shape, () if file.input.dtype == PLAIN else ((shape, file.input.dtype),)


def bundle(folder: Path, target: str | None, progress: Progress) -> list[Subject]:
    """The files of an exported network that a target runs; without a target, those that this machine runs.

    Raises:
        UsageError: there are none.
        DamagedFileError: the folder does not hold what it says.
    """
    metadata = read_bundle(folder)
    found, others = [], []
    for file in metadata.files:
        runtime = FORMATS[file.format].runtime.NAME
        device = parse_target(target or "host").device
        if runtime not in device.runtimes:
            others.append(f"{file.name} ({device.name} has no {runtime})")
            continue
        chosen = parse_target(target or "host", runtime=runtime)
        written = target is not None and f"-{chosen.precision}" in target
        if runtime != chosen.runtime or (written and file.precision != chosen.precision):
            others.append(file.name)
            continue
        if file.precision not in chosen.device.precisions_of(runtime):
            others.append(f"{file.name} ({device.name} does not compute in {file.precision})")
            continue
        taken = inputs_of(file)
        if taken is None:
            others.append(f"{file.name} (its time depends on the photo: time the file itself, with --shape 1x480x640x3)")
            continue
        shape, inputs = taken
        exact = parse_target(target or "host", precision=file.precision, runtime=runtime)
        told = next((each for each in metadata.latencies if each.target == str(exact)), None)
        found.append(
            make_subject(
                f"{folder / file.name}",
                folder / file.name,
                shape,
                exact,
                inputs=inputs,
                id=metadata.description.id,
                predicted_ms=None if told is None else told.predicted_ms,
                estimated=told is not None and told.estimated,
            )
        )
    if not found:
        raise UsageError(f"{folder} holds no file that {target or 'this machine'} runs; it holds {', '.join(others)}")
    if others:
        progress.note(f"not timed of {folder}: {', '.join(others)}")
    return found
