"""Takes the picture of a run's page that the docs show: docs/report.png.

Usage: python docs/take_picture.py RUN [--dark] [--print] [--out FILE]

The page is drawn by a real browser (`apt install chromium chromium-driver`, `pip install selenium`). The picture ends below the
first nets of the table, above the command and the settings, which hold paths of the machine. --dark and --print show the other two
faces of the page, to look at.
"""

from __future__ import annotations

import argparse
import base64
import io
import shutil
import sys
import tempfile
from pathlib import Path

from PIL import Image

from natdeploy.pipeline.report import page_data
from natdeploy.report import write_page
from natdeploy.store import RunStore

WIDTH, MOST_BYTES = 1180, 300_000
NETS = 3
"""Of the table that are shown, the first of them with its blocks and files."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--dark", action="store_true")
    parser.add_argument("--print", action="store_true", dest="printed", help="all pages as PDF")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("report.png"))
    given = parser.parse_args()
    with RunStore.snapshot(given.run) as store:
        data = page_data(store)
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "report.html"
        write_page(page, data)
        given.out.write_bytes(picture(page, Path(folder), dark=given.dark, printed=given.printed))


def picture(page: Path, folder: Path, *, dark: bool, printed: bool) -> bytes:
    """PNG of the top of a page, or PDF of all of it."""
    from selenium import webdriver

    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        sys.exit("chromium or chromedriver is not installed: `apt install chromium chromium-driver`")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={folder / 'profile'}"):
        options.add_argument(flag)
    browser = webdriver.Chrome(options, webdriver.ChromeService(driver))
    try:
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        metrics = {"width": WIDTH, "height": 1400, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        browser.get(page.as_uri())
        if printed:
            browser.execute_script("paper(true)")  # what `beforeprint` does
            return base64.b64decode(browser.execute_cdp_cmd("Page.printToPDF", {"preferCSSPageSize": True})["data"])
        browser.execute_script("document.querySelector('.nets > tbody details').open = true")
        row = f"document.querySelectorAll('.nets > tbody')[{NETS - 1}]"
        bottom = browser.execute_script(f"return ({row}).getBoundingClientRect().bottom + scrollY")
        clip = {"x": 0, "y": 0, "width": WIDTH, "height": bottom, "scale": 1}
        shot = browser.execute_cdp_cmd("Page.captureScreenshot", {"clip": clip, "captureBeyondViewport": True})
    finally:
        browser.quit()
    return compressed(base64.b64decode(shot["data"]))


def compressed(png: bytes) -> bytes:
    """The same picture, packed as small as it gets."""
    file = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").save(file, "PNG", optimize=True)
    if len(file.getvalue()) > MOST_BYTES:
        sys.exit(f"the picture has {len(file.getvalue())} bytes, more than {MOST_BYTES}; show fewer nets")
    return file.getvalue()


if __name__ == "__main__":
    main()
