"""The runtimes by name, and what each of their modules offers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from natdeploy.errors import DeviceError, UsageError
from natdeploy.runtimes import ort, ov, tflite, trt

if TYPE_CHECKING:
    import numpy as np
    import torch


class Runtime(Protocol):
    """A module of natdeploy.runtimes. All but `convert` and `read_inputs` also works alone on a device, with numpy and the library.

    Attributes:
        NAME: what users type.
        SUFFIX: of its files.
        REQUIREMENT: what `pip install` takes.
        PRECISIONS: that it computes in; the first is the default.
        DELEGATES: providers or devices that do the work; the first is the default.
    """

    NAME: str
    SUFFIX: str
    REQUIREMENT: str
    PRECISIONS: tuple[str, ...]
    DELEGATES: tuple[str, ...]
    __file__: str | None

    @property
    def queue(self) -> Callable[..., tuple[Any, str]] | None:
        """Where the library has a queue of its own for several requests at once, what makes it, with the arguments of `load`, and
        says what it is."""

    @property
    def inside_ms(self) -> Callable[[Any], float] | None:
        """Where the library counts itself what a run takes, milliseconds of a session's last one, without the call from Python."""

    def version(self) -> str:
        """Version of the installed library. Raises ImportError where there is none."""

    def details(self, precision: str, delegate: str) -> dict[str, str]:
        """What has to be known to compare numbers: runtime, runtime_version, provider, precision."""

    def convert(
        self,
        module: torch.nn.Module,
        example: torch.Tensor,
        path: Path,
        *,
        precision: str = "fp32",
        dynamic_size: bool,
        calibration: Sequence[torch.Tensor] | None = None,
    ) -> None:
        """Writes a module as a file of this runtime; int8 learns its ranges from `calibration`, of CALIBRATION_IMAGES images."""

    def companions(self, path: Path) -> tuple[Path, ...]:
        """Further files that belong to one that `convert` wrote and travel with it."""

    def read_inputs(self, path: Path) -> list[tuple[str, tuple[int | None, ...] | None, str]]:
        """Name, sizes and type of every input of any file of this runtime, read here. Raises ValueError where it is none."""

    def load(self, path: str | Path, shape: Sequence[int] | None, threads: int, precision: str, delegate: str) -> Any:
        """A session that computes inputs of exactly that shape, or of those that the file fixes."""

    def run(self, session: Any, inputs: Sequence[np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
        """Outputs of one run."""

    def placement(self, session: Any) -> list[tuple[str, str, int]]:
        """Operator type, where or how it runs, and how often it occurs; sorted."""


CALIBRATION_IMAGES = 128
"""How many training images int8 ranges are to be taken from, resized and scaled as for evaluation, not augmented.

Never from the images that a file is judged by: those of validation and test."""

RUNTIMES: Mapping[str, Runtime] = {module.NAME: module for module in (ort, ov, tflite, trt)}


def get_runtime(name: str) -> Runtime:
    """The runtime of that name.

    Raises:
        UsageError: there is none.
    """
    if name not in RUNTIMES:
        raise UsageError(f"there is no runtime {name!r}; known are {', '.join(RUNTIMES)}")
    return RUNTIMES[name]


def installed_version(runtime: Runtime) -> str:
    """Version of a runtime's library on this machine.

    Raises:
        DeviceError: it is not installed; the message says how to.
    """
    try:
        return runtime.version()
    except ImportError as error:
        raise DeviceError(
            f"{runtime.NAME} is not installed here ({error}); install it: pip install {runtime.REQUIREMENT}"
        ) from error
