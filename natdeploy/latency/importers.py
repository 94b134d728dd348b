"""Rows from the latency files of other tools, as blocks of a space.

Two formats: once-for-all's look-up tables (arXiv 1908.09791) and the kernel measurements of nn-Meter (MobiSys 2021). What a file
does not say is not made up: what its rows take for granted is listed with them, and so is what is no block of the space, by name.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from natdeploy.errors import DamagedFileError
from natdeploy.latency.table import BlockRow, SpaceBlocks, Timing, pool
from natdeploy.space import Block, SearchSpace
from natdeploy.space.blocks import ACTIVATIONS, Activation
from natdeploy.space.space import mid_channels, squeeze_channels


@dataclass(frozen=True)
class Imported:
    """What was found in files.

    Attributes:
        rows: blocks of the space, each once.
        assumed: what the files do not say and the rows take for granted.
        left_out: names of entries that are no row, by reason.
        entries: in the files.
    """

    rows: tuple[BlockRow, ...]
    assumed: tuple[str, ...]
    left_out: Mapping[str, tuple[str, ...]]
    entries: int


@dataclass(frozen=True)
class _Found:
    """The block that an entry is, and what was assumed to say so."""

    block: Block
    assumed: tuple[str, ...] = ()


class _Collector:
    """Sorts entries into rows and what is left out."""

    def __init__(self, space: SearchSpace) -> None:
        self._of_space = SpaceBlocks(space)
        self._elsewhere = f"no block of {space.name} at width {', '.join(f'{width:g}' for width in space.widths)}"
        self._rows: dict[Block, list[tuple[str, Timing]]] = defaultdict(list)
        self._pooling: dict[tuple[int, int], list[tuple[str, Timing]]] = defaultdict(list)
        self._left_out: dict[str, list[str]] = defaultdict(list)
        self._assumed: set[str] = {"latency is the mean of the file's runs"}

    def add(self, name: str, timing: Timing, found: _Found | str) -> None:
        """Takes an entry: a block, or why it is none."""
        if isinstance(found, str):
            self._left_out[found].append(name)
        elif found.block not in self._of_space:
            self._left_out[self._elsewhere].append(name)
        else:
            self._rows[found.block].append((name, timing))
            self._assumed.update(found.assumed)

    def add_pooling(self, name: str, timing: Timing, size: int, channels: int) -> None:
        """Takes an entry that is the global pooling behind a head."""
        self._pooling[size, channels].append((name, timing))

    def leave_out(self, name: str, reason: str) -> None:
        self._left_out[reason].append(name)

    def result(self, entries: int) -> Imported:
        rows = []
        for block, found in sorted(self._rows.items()):
            timing = pool([each for _, each in found])
            if block.kind == "head":
                pooling = self._pooling.pop((block.size, block.out_channels), [])
                if pooling:
                    timing = _together(timing, pool([each for _, each in pooling]))
                else:
                    self._assumed.add("the pooling behind a head is not in the files and not in its row")
            rows.append(BlockRow(block, timing))
        for found in self._pooling.values():
            self._left_out["pooling of a head that is no row"] += [name for name, _ in found]
        left_out = {why: tuple(names) for why, names in self._left_out.items()}
        return Imported(tuple(rows), tuple(sorted(self._assumed)), left_out, entries)


def _together(one: Timing, other: Timing) -> Timing:
    """Latency of two parts of a block that were timed apart."""
    counts = [timing.n for timing in (one, other) if timing.n is not None]
    return Timing(one.latency_ms + other.latency_ms, None, min(counts, default=None), None, one.unstable or other.unstable)


def _latency(text: object, where: str) -> float:
    """Milliseconds. Raises DamagedFileError where there are none."""
    try:
        latency_ms = float(str(text))
    except ValueError as error:
        raise DamagedFileError(f"{where}: the latency {text!r} is no number; repair the file or leave it out") from error
    if not 0 < latency_ms < math.inf:
        raise DamagedFileError(f"{where}: a latency must be positive and finite, not {text}; repair the file or leave it out")
    return latency_ms


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise DamagedFileError(f"{path} cannot be read ({error.strerror}); give another file") from error
    except UnicodeDecodeError as error:
        raise DamagedFileError(f"{path} is no text; give another file") from error


# ---- once-for-all

_OFA_KEY = re.compile(
    r"(?P<layer>\w+)-input:(\d+)x(\d+)x(\d+)-output:(?:(\d+)x(\d+)x)?(\d+)"
    r"(?:-expand:(?P<expand>\d+)-kernel:(?P<kernel>\d+)-stride:(?P<stride>\d+)-idskip:(?P<skip>[01])"
    r"(?:-se:(?P<squeeze>[01])-hs:(?P<hswish>[01]))?)?"
)
_OFA_COLUMNS = {"key", "mean_ms", "count"}
_NO_KEY = "no key of a look-up table"


def import_ofa(paths: Sequence[Path], space: SearchSpace) -> Imported:
    """Rows of once-for-all's look-up tables: its own YAML, one file an image size, or a CSV of the columns key, mean_ms, count.

    A `head` is the sum of two entries, convolution and pooling. Equal entries of several image sizes become one row. Activations of
    stem, head and mix are not in the keys; they are taken from the space.

    Raises:
        DamagedFileError: a file is no such table; the message names file and line.
    """
    found: dict[str, list[Timing]] = defaultdict(list)
    entries = 0
    for path in paths:
        read = _ofa_csv if path.suffix == ".csv" else _ofa_yaml
        for key, timing in read(path, _read(path)):
            found[key].append(timing)
            entries += 1
    collector = _Collector(space)
    for key, timings in found.items():
        match = _OFA_KEY.fullmatch(key)
        if match and match["layer"] == "AvgPool2D":
            collector.add_pooling(key, pool(timings), int(match[2]), int(match[4]))
        else:
            collector.add(key, pool(timings), _ofa_block(match, space) if match else _NO_KEY)
    return collector.result(entries)


def _ofa_csv(path: Path, text: str) -> Iterator[tuple[str, Timing]]:
    lines = csv.reader(text.splitlines())
    columns = next(lines, [])
    if not set(columns) >= _OFA_COLUMNS:
        raise DamagedFileError(f"{path}, line 1: there must be the columns {', '.join(sorted(_OFA_COLUMNS))}; give another file")
    for number, cells in enumerate(lines, start=2):
        where = f"{path}, line {number}"
        if len(cells) != len(columns):
            raise DamagedFileError(f"{where}: {len(cells)} cells, not {len(columns)}; repair the file or leave it out")
        row = dict(zip(columns, cells, strict=True))
        yield row["key"], _ofa_timing(row["mean_ms"], row["count"], where)


def _ofa_yaml(path: Path, text: str) -> Iterator[tuple[str, Timing]]:
    """Entries of a YAML file. It is composed into nodes, never constructed into objects, and nodes know their lines."""
    import yaml

    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark else ""
        raise DamagedFileError(f"{path}{place}: this is no YAML; give another file") from error
    if not isinstance(root, yaml.MappingNode):
        raise DamagedFileError(f"{path}: this is no look-up table, which maps keys to mean and count; give another file")
    seen: dict[str, int] = {}
    for key, value in root.value:
        line = key.start_mark.line + 1
        where = f"{path}, line {line}"
        name = str(key.value)
        if name in seen:
            raise DamagedFileError(f"{where}: {name} is there already, in line {seen[name]}; repair the file or leave it out")
        seen[name] = line
        cells = {str(k.value): v.value for k, v in value.value} if isinstance(value, yaml.MappingNode) else {}
        if not cells.keys() >= {"mean", "count"}:
            raise DamagedFileError(f"{where}: {name} has no mean and count; repair the file or leave it out")
        yield name, _ofa_timing(cells["mean"], cells["count"], where)


def _ofa_timing(mean: object, count: object, where: str) -> Timing:
    latency_ms = _latency(mean, where)
    if re.fullmatch(r"[1-9]\d*", str(count)) is None:
        raise DamagedFileError(f"{where}: the count must be 1 or more, not {count}; repair the file or leave it out")
    return Timing(latency_ms, None, int(str(count)), None, None)


def _ofa_block(match: re.Match[str], space: SearchSpace) -> _Found | str:
    """The block of a key, or why it is none."""
    size, width, inputs, out_size, out_width, outputs = (int(number or 1) for number in match.groups()[1:7])
    if (size, out_size) != (width, out_width):
        return "not square"
    layer = match["layer"]
    if layer == "expanded_conv" and match["kernel"]:
        return _ofa_mbconv(match, size, inputs, out_size, outputs)
    if layer == "Conv":
        stride = next((stride for stride in (1, 2) if -(-size // stride) == out_size), None)
        if stride is None:
            return "a stem of another stride than 1 or 2"
        block = Block("stem", size, inputs, outputs, outputs, 3, stride, space.stem_activation)
        return _Found(block, (f"the stem has a 3x3 kernel and {space.stem_activation}, as in {space.name}",))
    if layer == "Conv_1" and size == out_size:
        block = Block("head", size, inputs, inputs, outputs, 1, 1, space.head_activation)
        return _Found(block, (f"the head has {space.head_activation}, as in {space.name}",))
    if layer in {"Conv_2", "Logits"} and size > 1:
        return "pooling and linear layer timed as one, which are parts of two blocks"
    if layer == "Conv_2":
        block = Block("mix", 1, inputs, inputs, outputs, 1, 1, space.head_activation, bias=space.mix_bias)
        bias = "a" if space.mix_bias else "no"
        return _Found(block, (f"the mix has {space.head_activation} and {bias} bias, as in {space.name}",))
    if layer == "Logits":
        return _Found(Block("classifier", 1, inputs, inputs, outputs, 1, 1, bias=True), ("the classifier has a bias",))
    return _NO_KEY


def _ofa_mbconv(match: re.Match[str], size: int, inputs: int, out_size: int, outputs: int) -> _Found | str:
    expand, kernel, stride, skip = (int(match[name]) for name in ("expand", "kernel", "stride", "skip"))
    if stride < 1 or out_size != -(-size // stride):
        return "its output size does not follow from its stride"
    if skip and not (stride == 1 and inputs == outputs):
        return "a residual between different shapes"
    activation: Activation
    if match["squeeze"] is None:
        # ProxylessNAS's tables: the expansion is a ratio, and the networks have relu6 and no squeeze-and-excitation.
        mid, squeeze, activation = mid_channels(inputs, expand), 0, "relu6"
        assumed: tuple[str, ...] = ("blocks whose key does not tell have relu6 and no squeeze-and-excitation",)
    else:
        mid, activation = expand, "hswish" if match["hswish"] == "1" else "relu"
        squeeze = squeeze_channels(mid) if match["squeeze"] == "1" else 0
        assumed = ("squeeze-and-excitation has a quarter of the channels",) if squeeze else ()
    return _Found(Block("mbconv", size, inputs, mid, outputs, kernel, stride, activation, squeeze, residual=bool(skip)), assumed)


# ---- nn-Meter

_NN_METER_CONV = re.compile(r"conv(?:-bn)?-(relu6|relu|hswish)")
_INCOMPLETE = "its configuration is not complete"
_NN_METER_LATENCY = re.compile(r"\s*(\S+)\s*\+-\s*\S+\s*")


def import_nn_meter(paths: Sequence[Path], space: SearchSpace) -> Imported:
    """Rows of nn-Meter's kernel files, `{kernel: {id: {model, shapes, config}}}` and `{kernel: {id: {latency: "37.5 +- 0.3"}}}`.

    Both kinds of file are given together, or one that holds both. A kernel is a row where it is a whole block of the space: a 3x3
    convolution on the image, a 1x1 convolution with the shape of the head (with the global pooling where that was measured too), or
    a fully connected layer with that of the classifier.

    Raises:
        DamagedFileError: a file is no such file; the message names file, kernel and id.
    """
    kernels: dict[tuple[str, str], dict[str, Any]] = {}
    timings: dict[tuple[str, str], Timing] = {}
    for path in paths:
        for key, entry in _nn_meter_entries(path):
            kernels.setdefault(key, {}).update(entry)
            if "latency" in entry:
                timing = _nn_meter_timing(entry["latency"], f"{path}: {'/'.join(key)}")
                if timings.setdefault(key, timing) != timing:
                    raise DamagedFileError(f"{path}: {'/'.join(key)} has another latency in an earlier file; leave out one of them")
    collector = _Collector(space)
    for key, entry in kernels.items():
        name, config = "/".join(key), entry.get("config")
        if key not in timings:
            collector.leave_out(name, "never profiled")
        elif not isinstance(config, dict):
            collector.leave_out(name, "its configuration is not in the files")
        elif key[0] == "global-avgpool" and (numbers := _whole(config, "HW", "CIN")):
            collector.add_pooling(name, timings[key], *numbers)
        else:
            collector.add(name, timings[key], _nn_meter_block(key[0], config))
    return collector.result(len(kernels))


def _nn_meter_entries(path: Path) -> Iterator[tuple[tuple[str, str], dict[str, Any]]]:
    try:
        kernels = json.loads(_read(path), object_pairs_hook=_distinct)
    except (ValueError, RecursionError) as error:
        raise DamagedFileError(f"{path} is no JSON ({error}); give another file") from error
    if not isinstance(kernels, dict):
        raise DamagedFileError(f"{path}: this holds no kernels by name; give another file")
    for kernel, entries in kernels.items():
        if not isinstance(entries, dict):
            raise DamagedFileError(f"{path}: {kernel} holds no kernels by id; give another file")
        for name, entry in entries.items():
            if not isinstance(entry, dict):
                raise DamagedFileError(f"{path}: {kernel}/{name} is no kernel with a configuration or a latency; give another file")
            yield (kernel, name), entry


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = next(name for i, (name, _) in enumerate(pairs) if name in dict(pairs[:i]))
        raise ValueError(f"{twice} is there twice")
    return found


def _nn_meter_timing(latency: object, where: str) -> Timing:
    """Of `37.5 +- 0.3` (mean and standard deviation, ms) or a plain number."""
    match = _NN_METER_LATENCY.fullmatch(str(latency))
    return Timing(_latency(match[1] if match else latency, where), None, None, None, None)


def _nn_meter_block(kernel: str, config: Mapping[str, Any]) -> _Found | str:
    """The block that a kernel is, or why it is none."""
    match = _NN_METER_CONV.fullmatch(kernel)
    if kernel == "fc":
        if (numbers := _whole(config, "CIN", "COUT")) is None:
            return _INCOMPLETE
        inputs, outputs = numbers
        return _Found(Block("classifier", 1, inputs, inputs, outputs, 1, 1, bias=True), ("the classifier has a bias",))
    if match is None:
        return f"{kernel} is a part of a block"
    if (numbers := _whole(config, "HW", "CIN", "COUT", "KERNEL_SIZE", "STRIDES")) is None:
        return _INCOMPLETE
    size, inputs, outputs, side, stride = numbers
    activation = next(each for each in ACTIVATIONS if each == match[1])
    if (side, stride) == (1, 1):
        return _Found(Block("head", size, inputs, inputs, outputs, 1, 1, activation))
    if (side, inputs) == (3, 3):
        return _Found(Block("stem", size, inputs, outputs, outputs, 3, stride, activation))
    return "a convolution within the network, which is a part of a block"


def _whole(config: Mapping[str, Any], *names: str) -> tuple[int, ...] | None:
    """The numbers of those names; None where one is missing or is none."""
    numbers = tuple(config.get(name) for name in names)
    whole = tuple(number for number in numbers if isinstance(number, int) and number > 0)
    return whole if len(whole) == len(names) else None


IMPORTERS: Mapping[str, Callable[[Sequence[Path], SearchSpace], Imported]] = {"ofa": import_ofa, "nn-meter": import_nn_meter}
"""By the name of the format."""
