"""What a device's Python has: `python probe.py ort tflite` prints one JSON object.

Stands alone on the device beside files of natdeploy.runtimes, whose names it is given: Python 3.8 and the standard library.
Libraries are loaded for real, because one that is installed may still not load.
"""

from __future__ import annotations

import importlib
import json
import platform
import sys
from functools import partial
from typing import Any, Callable


def attempt(version: Callable[[], Any]) -> dict[str, str]:
    """The version of something, or why there is none."""
    try:
        return {"version": str(version())}
    except Exception as error:  # whatever a broken library raises, it is broken
        return {"problem": "{}: {}".format(type(error).__name__, error).splitlines()[0]}


def runtime_version(name: str) -> str:
    """What a runtime file says of its library."""
    return str(importlib.import_module(name).version())


def main() -> None:
    found = {
        "python": platform.python_version(),
        "numpy": attempt(lambda: importlib.import_module("numpy").__version__),
        "runtimes": {name: attempt(partial(runtime_version, name)) for name in sys.argv[1:]},
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
