"""natdeploy: hardware-aware architecture transfer and deployment."""

from natdeploy._version import __version__

__all__ = ["__version__"]
