"""Files of weights: read without executing anything in them, written whole or not at all."""

from __future__ import annotations

import hashlib
import io
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from natdeploy.errors import WeightsError
from natdeploy.files import write_atomic


@dataclass(frozen=True)
class WeightFile:
    """What a file holds.

    Attributes:
        source: its name, or the name that it was asked for by.
        sha256: of its bytes.
        tensors: by the names that the file gives them.
        metadata: what the file says about itself, or what is known about it by its name.
    """

    source: str
    sha256: str
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]


def read_file(path: Path) -> WeightFile:
    """Reads safetensors, or torch weights: a dictionary of tensors, or one that holds such a dictionary as `state_dict`.

    Args:
        path: of the file, or torchvision's name for weights (`MobileNet_V2_Weights.IMAGENET1K_V2`), which are downloaded once.

    Raises:
        WeightsError: it cannot be read or fetched, is damaged, or holds something else.
    """
    known: Mapping[str, str] = {}
    file = path
    if re.fullmatch(r"\w+_Weights\.\w+", path.name) and not path.exists():
        file, known = _fetch(path.name)
    try:
        content = file.read_bytes()
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror or error}") from error
    if file.suffix == ".safetensors":
        tensors, metadata = _safetensors(path)
    elif file.suffix in {".pth", ".pt"}:
        tensors, metadata = _torch(path, content), {}
    else:
        raise WeightsError(f"{path} has no ending that says what it is; weights come as .safetensors, .pth or .pt")
    return WeightFile(path.name, hashlib.sha256(content).hexdigest(), tensors, {**known, **metadata})


def write_file(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes safetensors.

    Raises:
        NatdeployError: the file cannot be written.
    """
    write_atomic(path, save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, dict(metadata)))


def _safetensors(path: Path) -> tuple[Mapping[str, Tensor], Mapping[str, str]]:
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise WeightsError(f"{path} is not a whole safetensors file ({error}); use an undamaged copy") from error


def _torch(path: Path, content: bytes) -> Mapping[str, Tensor]:
    try:
        with warnings.catch_warnings(action="ignore"):
            found = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:
        # On bytes of another kind torch warns and raises whatever its reader trips over. Its message is left out: it recommends to
        # load without `weights_only`, which executes what is in the file.
        raise WeightsError(f"{path} is not a whole file of torch weights; use an undamaged copy, or safetensors") from error
    if isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
        found = found["state_dict"]
    if not isinstance(found, dict) or not all(isinstance(name, str) and isinstance(each, Tensor) for name, each in found.items()):
        raise WeightsError(f"{path} holds more than a dictionary of tensors; save the network's state_dict() alone")
    return found


def _fetch(name: str) -> tuple[Path, Mapping[str, str]]:
    """torchvision's file of some weights, from torch's cache or else from the network, and how it wants its images."""
    from torchvision.models import get_weight

    try:
        weights = get_weight(name)
    except (ValueError, KeyError, AttributeError) as error:
        raise WeightsError(f"there is no file {name}, and torchvision has no weights of that name") from error
    file = Path(torch.hub.get_dir(), "checkpoints", weights.url.rpartition("/")[2])
    if not file.is_file():
        digest = re.search(r"-([0-9a-f]{8,})\.pth$", file.name)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(weights.url, str(file), digest and digest[1], progress=False)
        except (OSError, RuntimeError) as error:  # no network, no room; another digest than the name's
            raise WeightsError(
                f"{name} cannot be fetched from {weights.url} ({error}); fetch it on another machine and give the file"
            ) from error
    return file, {"input": "ImageNet mean and std", "padding": "symmetric"}  # so are all of torchvision's own
