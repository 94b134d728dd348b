"""Published latencies as blocks of ours: Accel-NASBench, once-for-all networks on GPUs (HELP), once-for-all's Note10 blocks."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from natdeploy.errors import DamagedFileError
from natdeploy.space import Arch, Block, get_space
from natdeploy.space.arch import Layer
from natdeploy.space.blocks import Activation
from natdeploy.space.catalog import OFA_RESOLUTIONS
from natdeploy.space.space import squeeze_channels

Floats = npt.NDArray[np.float64]
Row = Mapping[str, str]


@dataclass(frozen=True)
class Bar:
    """What a predictor must reach; fractions of networks, and a rank correlation."""

    within_5: float
    within_10: float = 0.0
    kendall: float = 0.0


@dataclass(frozen=True)
class PublicTable:
    """Rows of a published table.

    Attributes:
        samples: blocks of each row, in groups: the stages of a network.
        genomes: the row's choices, as published (n, variables).
        latency_ms: of each target (n,); NaN where a row has none.
        alone: each sample is a block that ran alone.
    """

    samples: tuple[tuple[tuple[Block, ...], ...], ...]
    genomes: npt.NDArray[np.int64]
    latency_ms: dict[str, Floats]
    alone: bool = False


@dataclass(frozen=True)
class Source:
    """How a table is read and what is known about it.

    Attributes:
        read: rows of the CSV -> table.
        file: its usual name.
        train: rows that a predictor learns from.
        bars: of targets.
        before: of targets, within 5 % and 10 %, in %: the best of XGBoost, ridge, and ridge or non-negative least squares with
            XGBoost on what is left over, from as many rows of the same tables, in experiments that this work began with.
        rival: what others publish.
    """

    read: Callable[[Sequence[Row]], PublicTable]
    file: str
    train: int
    bars: Mapping[str, Bar]
    before: Mapping[str, str]
    rival: str


def read_public(name: str, path: Path) -> PublicTable:
    """The table `name` from a CSV.

    Raises:
        DamagedFileError: the file is missing or has other columns or values; the message says which.
    """
    try:
        with path.open(newline="") as file:
            return SOURCES[name].read(list(csv.DictReader(file)))
    except OSError as error:
        raise DamagedFileError(f"{path} cannot be read ({error.strerror})") from error
    except KeyError as error:
        raise DamagedFileError(f"{path} has no column {error.args[0]}, which a table {name} has") from error
    except ValueError as error:
        raise DamagedFileError(f"{path} is no table {name}: {error}") from error


def _ints(row: Row, names: Sequence[str]) -> list[int]:
    return [int(row[name]) for name in names]


def _floats(rows: Sequence[Row], name: str) -> Floats:
    return np.array([float(row[name] or "nan") for row in rows])


# ---- Accel-NASBench: MnasNet-like networks at 224 px, one kernel, expansion, depth and squeeze-and-excitation a stage

_B0_CHANNELS = (16, 24, 40, 80, 112, 192, 320)
_B0_STRIDES = (1, 2, 2, 2, 1, 2, 1)
_B0_GENOME = [f"block{stage}_{what}" for stage in range(7) for what in ("e", "k", "l", "se")]


def _accel_nasbench(rows: Sequence[Row]) -> PublicTable:
    genomes = np.array([_ints(row, _B0_GENOME) for row in rows]).reshape(-1, 28)
    samples = tuple(tuple(_b0_stages(genome.reshape(7, 4).tolist())) for genome in genomes)
    # The widths are EfficientNet-B0's; the published parameter counts tell whether that is so.
    ours = np.array([sum(block.params for stage in sample for block in stage) for sample in samples])
    strange = np.flatnonzero(np.abs(ours - 1e6 * _floats(rows, "params_M")) > 1)
    if len(strange):
        raise ValueError(
            f"row {strange[0] + 2} has {rows[strange[0]]['params_M']} M parameters, its choices mean {ours[strange[0]]}"
        )
    latency = {name: _floats(rows, name) for name in rows[0] if re.fullmatch(r"latency_(?!.*_std).*", name)}
    throughput = {name: 1000 / _floats(rows, name) for name in rows[0] if re.fullmatch(r"throughput_(?!.*_std).*", name)}
    return PublicTable(samples, genomes, latency | throughput)


def _b0_stages(stages: Sequence[Sequence[int]]) -> Iterator[tuple[Block, ...]]:
    yield (Block("stem", 224, 3, 32, 32, 3, 2),)
    size, inputs = 112, 32
    for (expansion, kernel, depth, squeeze), outputs, stride in zip(stages, _B0_CHANNELS, _B0_STRIDES, strict=True):
        blocks = []
        for place in range(depth):
            step = 1 if place else stride
            hidden = inputs // 4 if squeeze else 0
            residual = step == 1 and inputs == outputs
            blocks.append(Block("mbconv", size, inputs, inputs * expansion, outputs, kernel, step, "relu6", hidden, residual))
            size, inputs = blocks[-1].out_size, outputs
        yield tuple(blocks)
    yield (Block("head", size, inputs, 1280, 1280, 1, 1), Block("classifier", 1, 1280, 1280, 1000, 1, 1, bias=True))


# ---- HELP's measurements of once-for-all MobileNetV3 networks

_OFA_SLOTS = [[f"{what}{4 * stage + place}" for what in ("ks", "e") for place in range(4)] for stage in range(5)]
_OFA_GENOME = ["r", *(f"d{stage}" for stage in range(5)), *(f"ks{i}" for i in range(20)), *(f"e{i}" for i in range(20))]


def _ofa_mbv3(rows: Sequence[Row]) -> PublicTable:
    space = get_space("ofa_mbv3").restrict(resolutions=OFA_RESOLUTIONS, widths=(1.0,))
    samples, genomes = [], []
    for row in rows:
        stages = []
        for stage, slots in enumerate(_OFA_SLOTS):
            kernels, expansions = np.array(_ints(row, slots)).reshape(2, 4)[:, : int(row[f"d{stage}"])].tolist()
            stages.append(tuple(Layer(kernel, expansion) for kernel, expansion in zip(kernels, expansions, strict=True)))
        arch = Arch(int(row["r"]), 1.0, ((Layer(3, 1),), *stages))
        blocks = space.blocks(arch, 1000)
        ends = np.cumsum([1, *arch.depths])
        samples.append(tuple(blocks[start:end] for start, end in zip([0, *ends], [*ends, len(blocks)], strict=True)))
        # What a skipped layer would have been says nothing.
        codes = [[*(each for layer in stage for each in (layer.kernel, int(layer.expansion))), *[0] * 8][:8] for stage in stages]
        genomes.append([arch.resolution, *arch.depths[1:], *(code for stage in codes for code in stage)])
    targets = [name for name in rows[0] if name not in _OFA_GENOME]
    return PublicTable(tuple(samples), np.array(genomes), {name: _floats(rows, name) for name in targets})


# ---- once-for-all's look-up table of a Samsung Note10

_NOTE10_KEY = re.compile(
    r"expanded_conv-input:(\d+)x\d+x(\d+)-output:\d+x\d+x(\d+)-expand:(\d+)-kernel:(\d)-stride:(\d)-idskip:(\d)-se:(\d)-hs:(\d)"
)


def _ofa_note10(rows: Sequence[Row]) -> PublicTable:
    """MBConv blocks; one that stands in the tables of several image sizes is one row, the mean over all of its runs."""
    found: dict[Block, list[tuple[float, float]]] = {}
    for row in rows:
        if match := _NOTE10_KEY.fullmatch(row["key"]):
            size, inputs, outputs, mid, kernel, stride, skip, squeeze, hswish = map(int, match.groups())
            hidden = squeeze_channels(mid) if squeeze else 0
            style: Activation = "hswish" if hswish else "relu"
            block = Block("mbconv", size, inputs, mid, outputs, kernel, stride, style, hidden, bool(skip))
            found.setdefault(block, []).append((float(row["mean_ms"]), float(row["count"])))
    if not found:
        raise ValueError("its keys name no MBConv block")
    means = {block: np.average([ms for ms, _ in runs], weights=[count for _, count in runs]) for block, runs in found.items()}
    genomes = [[b.size, b.in_channels, b.mid_channels, b.out_channels, b.kernel, b.stride, b.squeeze > 0] for b in means]
    return PublicTable(
        tuple(((block,),) for block in means), np.array(genomes), {"note10": np.array(list(means.values()))}, alone=True
    )


SOURCES: Mapping[str, Source] = {
    "accel_nasbench": Source(
        _accel_nasbench,
        "accel_nasbench_first2500.csv",
        300,
        {
            "latency_zcu102": Bar(0.98, kendall=0.97),
            "latency_vck190": Bar(0.98, kendall=0.97),
            "throughput_3090": Bar(0.96, kendall=0.97),
            "throughput_a100": Bar(0.96, kendall=0.97),
            "throughput_tpuv2": Bar(0.92),
        },
        {
            "latency_zcu102": "98.6/100",
            "latency_vck190": "98.5/100",
            "throughput_3090": "96/99",
            "throughput_a100": "99.5/99.8",
            "throughput_tpuv2": "92/99.6",
            "throughput_tpuv3": "82/96",
        },
        "none published on these rows; LitePred on phones, from 1400 or more kernels: 79-98 within 5 %, 98.6-100 within 10 %",
    ),
    "ofa_mbv3": Source(
        _ofa_mbv3,
        "ofa_mbv3_gpus_first2500.csv",
        300,
        {"titan_rtx_64": Bar(0.98), "v100_64": Bar(0.98)},
        {"titan_rtx_64": "100/100", "titan_xp_64": "90/98", "2080ti_64": "78/90", "v100_1": "64/90", "titan_rtx_1": "67/75"},
        "HELP misses the latency that a search asks for by 2 to 14 %",
    ),
    "ofa_note10": Source(
        _ofa_note10,
        "ofa_note10_blocks.csv",
        100,
        {"note10": Bar(0.91, 0.99)},
        {"note10": "91/99.6"},
        "once-for-all measured all of its 1632 rows and predicts none",
    ),
}
