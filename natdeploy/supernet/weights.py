"""Pretrained networks as files, in torchvision's naming of MobileNetV2 (`features.0.0.weight` and so on).

What the network is, is read from its tensors: width, depths, expansions and kernels. Nothing is pickled or unpickled.
"""

from __future__ import annotations

import hashlib
import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from natdeploy.errors import UsageError, WeightsError
from natdeploy.space import Arch, Layer, SearchSpace, Stage
from natdeploy.supernet.layers import NORM_EPS, PADDINGS, Padding
from natdeploy.supernet.subnet import Subnet

_CONV = ("weight",)
_NORM = ("weight", "bias", "running_mean", "running_var")
_COUNTER = "num_batches_tracked"


@dataclass(frozen=True)
class Seed:
    """A pretrained network.

    Attributes:
        arch: what it is; its resolution is what the file states, else 224 px, or the nearest to it in the space.
        space: that it is an architecture of, with the seed's own channels.
        classes: outputs of its classifier; 0 where it has none.
        state: name in a `Subnet` of the architecture -> tensor, fp32, without counters of batches.
        norm_eps: added to the variance of batch normalisation.
        padding: of its convolutions of stride 2, None where the file does not say.
        source: name of the file it came from.
        sha256: of that file.
        metadata: what the file says about itself.
    """

    arch: Arch
    space: SearchSpace
    classes: int
    state: Mapping[str, Tensor]
    norm_eps: float
    padding: Padding | None
    source: str
    sha256: str
    metadata: Mapping[str, str]


def torchvision_names(arch: Arch, *, classifier: bool) -> dict[str, str]:
    """Name in a subnet of this architecture -> name in torchvision's MobileNetV2, of every tensor that matters."""
    pairs = [("stem.conv", "features.0.0"), ("stem.norm", "features.0.1")]
    number = 0
    for stage, layers in enumerate(arch.stages):
        for place, layer in enumerate(layers):
            number += 1
            ours, theirs = f"stages.{stage}.{place}", f"features.{number}.conv"
            parts = ("expand", "depthwise") if layer.expansion > 1 else ("depthwise",)
            for index, part in enumerate(parts):
                pairs += [(f"{ours}.{part}.conv", f"{theirs}.{index}.0"), (f"{ours}.{part}.norm", f"{theirs}.{index}.1")]
            pairs += [(f"{ours}.project.conv", f"{theirs}.{len(parts)}"), (f"{ours}.project.norm", f"{theirs}.{len(parts) + 1}")]
    pairs += [("head.conv", f"features.{number + 1}.0"), ("head.norm", f"features.{number + 1}.1")]
    names = {f"{ours}.{leaf}": f"{theirs}.{leaf}" for ours, theirs in pairs for leaf in (_NORM if ours.endswith("norm") else _CONV)}
    if classifier:
        names |= {f"classifier.{leaf}": f"classifier.1.{leaf}" for leaf in ("weight", "bias")}
    return names


# ---- writing


def write_seed(subnet: Subnet, path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Writes a subnet's weights as safetensors under torchvision's names; `read_seed` gives them back.

    The file states architecture and padding itself; `metadata` adds to that, for example how images are normalised.
    """
    state = subnet.state_dict()
    tensors = {theirs: state[ours].cpu().contiguous() for ours, theirs in torchvision_names(subnet.arch, classifier=True).items()}
    temporary = path.with_name(f".{path.name}.part")
    try:
        save_file(tensors, temporary, {**(metadata or {}), "arch": str(subnet.arch), "padding": subnet.padding})
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


# ---- reading


def read_seed(path: Path, space: SearchSpace) -> Seed:
    """Reads a network of `space` from a safetensors or .pth file.

    Its width need not be one of the space's: `seed.arch` is an architecture of `space.restrict(widths=(seed.arch.width,))`.

    Raises:
        WeightsError: the file cannot be read, or holds another network; names the tensors that do not fit.
    """
    tensors, metadata = _load(path)
    state = {name: tensor.float() for name, tensor in tensors.items() if not name.endswith(_COUNTER)}
    arch = _read_arch(path, state, space, metadata.get("arch"))
    classifier = "classifier.1.weight" in state
    classes = state["classifier.1.weight"].shape[:1].numel() if classifier else 0
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in Subnet(space, arch, max(classes, 1)).state_dict().items()}
    expected = {theirs: shapes[ours] for ours, theirs in torchvision_names(arch, classifier=classifier).items()}
    missing = [name for name in expected if name not in state]
    unknown = [name for name in state if name not in expected]
    misshapen = [_describe(state, name) for name in expected if name in state and state[name].shape != expected[name]]
    if missing or unknown or misshapen:
        raise _misfit(path, space, {"missing": missing, "unknown": unknown, "of another shape": misshapen})
    broken = [name for name, tensor in state.items() if not tensor.isfinite().all()]
    if broken:
        raise WeightsError(f"{path} holds numbers that are not finite in {_some(broken)}; use an undamaged copy")
    names = torchvision_names(arch, classifier=classifier)
    stated = metadata.get("padding")
    return Seed(
        arch=arch,
        space=space.restrict(widths=(arch.width,)),
        classes=classes,
        state={ours: state[theirs] for ours, theirs in names.items()},
        norm_eps=float(metadata.get("norm_eps", NORM_EPS)),
        padding=stated if stated in PADDINGS else None,
        source=path.name,
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        metadata=metadata,
    )


def _load(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a file."""
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
        content = path.read_bytes()
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror or error}") from error
    except SafetensorError as error:
        raise WeightsError(f"{path} is not a whole safetensors file ({error}); use an undamaged copy") from error
    if path.suffix not in {".pth", ".pt"}:
        raise WeightsError(f"{path} has no ending that says what it is; weights come as .safetensors, .pth or .pt")
    try:
        with warnings.catch_warnings(action="ignore"):
            tensors = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:
        # On bytes of another kind torch warns and raises whatever its reader trips over. Its message is left out: it recommends to
        # load without `weights_only`, which executes what is in the file.
        raise WeightsError(f"{path} is not a whole file of torch weights; use an undamaged copy, or safetensors") from error
    if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise WeightsError(f"{path} holds more than a dictionary of tensors; save the network's state_dict() alone")
    return tensors, {}


@dataclass(frozen=True)
class _Shape:
    """What the tensors of one MBConv layer say about it."""

    in_channels: int
    mid_channels: int
    out_channels: int
    kernel: int

    def fits(self, stage: Stage, out_channels: int) -> bool:
        expansion, rest = divmod(self.mid_channels, self.in_channels)
        return self.out_channels == out_channels and rest == 0 and Layer(self.kernel, expansion) in stage.choices


def _read_arch(path: Path, state: Mapping[str, Tensor], space: SearchSpace, stated: str | None) -> Arch:
    """The architecture whose layers have the shapes of these tensors. Strides cannot be seen and are taken to be the space's."""
    stem, layers, head = _read_shapes(path, state, space)
    try:
        claim = None if stated is None else Arch.parse(stated)
    except UsageError as error:
        raise WeightsError(f"{path} states an architecture that cannot be read: {error}") from error
    resolution = min(space.resolutions, key=lambda choice: abs(choice - (224 if claim is None else claim.resolution)))

    candidates = _widths(space) if claim is None else [claim.width]
    widths = [width for width in candidates if (stem, head) == (space.stem_out(width), space.head_out(width))]
    if not widths:
        last = len(layers) + 1
        raise _misfit(path, space, {"at no width": [_describe(state, f"features.{number}.0.weight") for number in (0, last)]})
    for width in widths:
        ways = [stages for stages in _divide(layers, space, width) if claim is None or stages == claim.stages]
        if len(ways) > 1:
            raise WeightsError(f"{path} fits {len(ways)} networks of space {space.name}; name one in its metadata, as 'arch'")
        if ways:
            return Arch(resolution, width, ways[0])
    if claim is not None:
        raise WeightsError(f"{path} states the architecture {claim}, its tensors are of another one")
    fitting = max(_fitting(layers, space, width) for width in widths)
    if fitting == len(layers):
        raise WeightsError(f"{path} is not a network of space {space.name}: its {len(layers)} layers are too few for its stages")
    names = [name for name in state if name.startswith(f"features.{fitting + 1}.") and state[name].ndim == 4]
    raise _misfit(path, space, {"no place for": [_describe(state, name) for name in names]})


def _read_shapes(path: Path, state: Mapping[str, Tensor], space: SearchSpace) -> tuple[int, list[_Shape], int]:
    """Channels of the stem, shapes of the layers, channels of the head."""
    numbers = [int(match[1]) for name in state if (match := re.match(r"features\.(\d+)\.", name))]
    last = max(numbers, default=0)
    names = [f"features.{number}.0.weight" for number in (0, last)]
    for number in range(1, last):
        depthwise = 1 if f"features.{number}.conv.1.0.weight" in state else 0
        names += [f"features.{number}.conv.{part}.weight" for part in ("0.0", f"{depthwise}.0", f"{depthwise + 1}")]
    missing = [name for name in names if name not in state or state[name].ndim != 4 or not state[name].numel()]
    if last == 0 or missing:
        raise _misfit(path, space, {"missing": missing, "instead it holds": [name for name in state if name not in names]})
    (stem, head), weights = (len(state[name]) for name in names[:2]), [state[name] for name in names[2:]]
    layers = [
        _Shape(first.shape[1] if first is not depthwise else len(depthwise), len(depthwise), len(project), depthwise.shape[-1])
        for first, depthwise, project in zip(weights[::3], weights[1::3], weights[2::3], strict=True)
    ]
    return stem, layers, head


def _widths(space: SearchSpace) -> list[float]:
    """Widths to try: the space's own, then the roundest hundredths, since rounded channels may fit several."""
    hundredths = sorted(range(5, 201), key=lambda number: [number % step != 0 for step in (25, 10, 5)])
    return [*space.widths, *(number / 100 for number in hundredths)]


def _divide(layers: Sequence[_Shape], space: SearchSpace, width: float, stage: int = 0) -> Iterator[tuple[tuple[Layer, ...], ...]]:
    """Every way to make these layers the stages of the space, from `stage` on."""
    if stage == len(space.stages):
        if not layers:
            yield ()
        return
    spec, out = space.stages[stage], space.stage_out(stage, width)
    for depth in range(spec.min_depth, min(spec.max_depth, len(layers)) + 1):
        taken = layers[:depth]
        if all(layer.fits(spec, out) for layer in taken):
            here = tuple(Layer(layer.kernel, layer.mid_channels // layer.in_channels) for layer in taken)
            yield from ((here, *rest) for rest in _divide(layers[depth:], space, width, stage + 1))


def _fitting(layers: Sequence[_Shape], space: SearchSpace, width: float) -> int:
    """How many layers, from the first on, find a place when every stage takes all it can."""
    start = 0
    for number, stage in enumerate(space.stages):
        places = layers[start : start + stage.max_depth]
        depth = len(list(takewhile(lambda layer: layer.fits(stage, space.stage_out(number, width)), places)))  # noqa: B023
        start += depth
        if depth < stage.min_depth:
            break
    return start


def _misfit(path: Path, space: SearchSpace, tensors: Mapping[str, Sequence[str]]) -> WeightsError:
    found = "; ".join(f"{what}: {_some(names)}" for what, names in tensors.items() if names)
    return WeightsError(f"{path} is not a network of space {space.name} in torchvision's naming ({found})")


def _describe(state: Mapping[str, Tensor], name: str) -> str:
    return f"{name} {tuple(state[name].shape)}"


def _some(names: Sequence[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
