"""The page in a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from browsing import until
from test_report_page import BASELINE, BEATEN, BEST, DATA, FASTEST, KNEE

from natdeploy.report import PageData, write_page
from natdeploy.space import Arch, get_space

webdriver = pytest.importorskip(
    "selenium.webdriver", reason="selenium, which drives the browser, is not installed; pip install selenium"
)

BODY = "getComputedStyle(document.body).backgroundColor"
SPACE = get_space("mbv2")
BLOCKS = {each.arch: SPACE.blocks(Arch.parse(each.arch), 12) for each in DATA.nets}
DRAWN = replace(DATA, blocks=BLOCKS, block_ms={arch: [0.01 * block.stride for block in each] for arch, each in BLOCKS.items()})


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _written(tmp_path_factory.mktemp("page") / "report.html", DRAWN)


def _written(path: Path, data: PageData) -> Path:
    write_page(path, data)
    return path


@pytest.fixture
def shown(browser: webdriver.Chrome, page: Path) -> Iterator[webdriver.Chrome]:
    """The page, freshly loaded; what it says to the console at any time in a test fails that test."""
    browser.get_log("browser")
    browser.get("about:blank")
    browser.get(page.as_uri())
    yield browser
    assert browser.get_log("browser") == []


def marks(browser: webdriver.Chrome) -> dict[str, tuple[float, float]]:
    """Where every net is in the plot of the front."""
    script = """return document.getElementById("front").data.filter((trace) => trace.customdata)
        .flatMap((trace) => trace.customdata.map((place, number) => [place, [trace.x[number], trace.y[number]]]))"""
    return {place: tuple(point) for place, point in browser.execute_script(script)}


def choose(browser: webdriver.Chrome, select: str, value: str) -> None:
    browser.find_element("css selector", f"#{select} option[value='{value}']").click()


def test_front_is_drawn(shown: webdriver.Chrome, tmp_path: Path) -> None:
    assert set(marks(shown)) == {f"front-{each.id}" for each in (FASTEST, KNEE, BEATEN, BEST)} | {f"baseline-{BASELINE.id}"}
    assert len(shown.find_elements("css selector", "#front .scatterlayer .point")) == len(DATA.nets)
    assert shown.get_screenshot_as_file(str(tmp_path / "page.png"))
    assert (tmp_path / "page.png").stat().st_size > 20_000


def test_axes_can_be_chosen(shown: webdriver.Chrome) -> None:
    choose(shown, "across", "predicted latency")
    choose(shown, "up", "validation error")
    assert marks(shown)[f"front-{KNEE.id}"] == pytest.approx((1.1 * 0.6, 4.0))
    titles = [shown.find_element("css selector", f"#front .{name}title").text for name in ("x", "y")]
    assert titles == ["predicted latency, ms", "validation error, %"]
    choose(shown, "across", "measured latency")
    assert f"front-{BEST.id}" not in marks(shown), "what was not measured has no place on that axis"
    line = shown.execute_script("const { x, y } = document.getElementById('front').data[0]; return [x, y]")
    assert line == [[0.4, 0.6], pytest.approx([9.0, 4.0])]
    assert shown.execute_script("return document.getElementById('front').layout.shapes.length") == 0
    choose(shown, "across", "latency")
    choose(shown, "up", "error")
    assert marks(shown)[f"front-{KNEE.id}"] == pytest.approx((0.6, 5.0))


def test_a_click_shows_the_net(shown: webdriver.Chrome) -> None:
    details = shown.find_element("css selector", f"#front-{KNEE.id} details")
    assert details.get_attribute("open") is None
    place = shown.execute_script(
        """const plot = document.getElementById("front");
        const { xaxis, yaxis, margin } = plot._fullLayout, box = plot.getBoundingClientRect();
        return [box.left + xaxis._offset + xaxis.d2p(arguments[0]), box.top + yaxis._offset + yaxis.d2p(arguments[1])]""",
        0.6,
        5.0,
    )
    actions = webdriver.ActionChains(shown)
    actions.w3c_actions.pointer_action.move_to_location(*map(round, place))
    actions.perform()
    assert KNEE.id in shown.find_element("css selector", "#front .hoverlayer").text
    webdriver.ActionChains(shown).click().perform()
    assert details.get_attribute("open") == "true"
    assert shown.current_url.endswith(f"#front-{KNEE.id}")
    assert len(details.find_elements("css selector", "svg .block")) == len(BLOCKS[KNEE.arch])
    assert len(details.find_elements("css selector", "svg .latency")) == len(BLOCKS[KNEE.arch])
    assert details.find_element("css selector", ".exported").is_displayed()


def test_dark_mode_has_other_colours(shown: webdriver.Chrome) -> None:
    paper = "document.getElementById('front').layout.paper_bgcolor"
    light, body = (shown.execute_script(f"return {each}") for each in (paper, BODY))
    shown.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": "dark"}]})
    assert shown.execute_script(f"return {BODY}") != body
    # The figure is drawn anew once the browser says that the scheme has changed, which is a little later.
    assert until(shown, f"{paper} != '{light}'")
    shown.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert until(shown, f"{paper} == '{light}'")


def test_without_javascript_the_table_and_the_pictures_are_there(shown: webdriver.Chrome, page: Path) -> None:
    shown.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        shown.get(page.as_uri())
        assert not shown.find_element("css selector", ".axes").is_displayed()
        row = shown.find_element("css selector", f"#front-{KNEE.id}")
        assert KNEE.id in row.text and "0.600" in row.text
        row.find_element("css selector", "summary").click()
        assert row.find_element("css selector", "svg .block").is_displayed()
    finally:
        shown.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_a_phone_shows_it_without_scrolling_sideways(shown: webdriver.Chrome, page: Path) -> None:
    size = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    shown.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        shown.get("about:blank")
        shown.get(page.as_uri())
        assert shown.execute_script("return document.documentElement.scrollWidth") == 390
        assert not shown.find_element("css selector", "#front .modebar").is_displayed(), "it would hide what the marks mean"
    finally:
        shown.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
