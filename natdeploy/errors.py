"""Every error natdeploy raises on purpose, with the exit code the command line ends with.

A message says what is wrong and what to do next, in one sentence or two; it never needs a traceback.
"""

from __future__ import annotations

EXIT_INTERRUPTED = 130


class NatdeployError(Exception):
    """Base of the tree; `exit_code` is what a shell sees."""

    exit_code = 1


class UsageError(NatdeployError):
    """The request itself cannot be carried out: a wrong option, value or configuration key."""

    exit_code = 2


class DataError(NatdeployError):
    """The user's images are missing, too few, or damaged."""


class WeightsError(NatdeployError):
    """A weight file is damaged, or belongs to another network."""


class DamagedFileError(NatdeployError):
    """A file of a run folder or a latency table does not hold what it should."""


class MissingRuntimeError(NatdeployError):
    """An optional library is not installed; the message holds the command that installs it."""


class InfeasibleError(NatdeployError):
    """No architecture of the space can meet the constraint on this target."""

    exit_code = 3


class AccuracyGateError(NatdeployError):
    """An exported file lost more accuracy than the user allows."""

    exit_code = 4


class DeviceError(NatdeployError):
    """A device or the way to it failed."""

    exit_code = 5


class DeviceLostError(DeviceError):
    """A device cannot go on: the way to it is cut, or it is no longer like the others. It may come back, or another do its work."""


class UnstableError(NatdeployError):
    """A measurement is too noisy to be used, under --strict."""

    exit_code = 6
