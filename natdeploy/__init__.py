"""natdeploy: hardware-aware architecture transfer and deployment."""

from typing import TYPE_CHECKING, Any

from natdeploy._version import __version__

if TYPE_CHECKING:
    from natdeploy.pipeline import benchmark

__all__ = ["__version__", "benchmark"]


def __getattr__(name: str) -> Any:
    """What is heavy to import is imported when it is asked for."""
    if name == "benchmark":
        from natdeploy import pipeline

        return pipeline.benchmark
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
