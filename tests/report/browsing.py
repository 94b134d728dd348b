"""What tests of pages in a browser have in common."""

from __future__ import annotations

from typing import Any

import pytest

WAIT_S = 30.0
"""At most; a page looks every second."""


def until(browser: Any, script: str) -> Any:
    """What a script gives once that is true."""
    wait = pytest.importorskip(
        "selenium.webdriver.support.wait", reason="selenium, which drives the browser, is not installed; pip install selenium"
    )
    return wait.WebDriverWait(browser, WAIT_S, 0.05).until(lambda shown: shown.execute_script(f"return {script}"))
