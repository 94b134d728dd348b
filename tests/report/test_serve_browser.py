"""The server's pages in a real browser: they follow a search, and compare runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from browsing import until
from written_run import add_round, write_run

from natdeploy.pipeline.search import read_config
from natdeploy.pipeline.underway import front_so_far
from natdeploy.report.figures import anchor
from natdeploy.store import RunStore

Served = Callable[..., int]


def marks(browser: Any) -> dict[str, list[float]]:
    """Where every net is in the plot of the front, by where a click on it goes."""
    script = """return Object.fromEntries(document.getElementById("front").data.filter((trace) => trace.customdata)
        .flatMap((trace) => trace.customdata.map((place, number) => [place, [trace.x[number], trace.y[number]]])))"""
    found: dict[str, list[float]] = browser.execute_script(script)
    return found


def choose(browser: Any, select: str, value: str) -> None:
    browser.find_element("css selector", f"#{select} option[value='{value}']").click()


def test_a_page_follows_its_search(browser: Any, served: Served, tmp_path: Path) -> None:
    write_run(tmp_path / "live", rounds=0, finished=False)
    port = served(tmp_path)
    browser.get_log("browser")
    with RunStore.open(tmp_path / "live") as searching:
        browser.get(f"http://127.0.0.1:{port}/runs/live/")
        assert "The search goes on: 0 of 2 rounds" in browser.find_element("css selector", ".standing").text
        before = marks(browser)
        assert set(before) == {anchor(net) for net in front_so_far(searching, read_config(searching))}
        choose(browser, "across", "macs")
        opened = max(before, key=lambda place: before[place][0])
        browser.execute_script("show(arguments[0])", opened)  # what a click on the mark does

        add_round(searching, 1)
        until(browser, "document.querySelector('.standing').textContent.includes('1 of 2 rounds')")
        new = front_so_far(searching, read_config(searching))
        assert marks(browser) == {
            anchor(net): pytest.approx([net.macs / 1e6, 100 * (1 - net.validation_accuracy)]) for net in new
        }, "the new generation, on the axis that was chosen"
        assert browser.execute_script("return document.getElementById('across').value") == "macs"
        assert opened in {anchor(net) for net in new}
        assert browser.find_element("css selector", f"#{opened} details").get_attribute("open") == "true"
        assert len(browser.find_elements("css selector", "#front .main-svg")) == 3, "one plot, drawn into the same place"
    assert browser.get_log("browser") == []
    assert browser.get_screenshot_as_file(str(tmp_path / "live.png"))
    assert (tmp_path / "live.png").stat().st_size > 20_000


def test_a_page_that_began_without_a_front_draws_the_first(browser: Any, served: Served, tmp_path: Path) -> None:
    write_run(tmp_path / "new", rounds=-1, finished=False)
    browser.get(f"http://127.0.0.1:{served(tmp_path)}/runs/new/")
    assert not browser.find_elements("css selector", "#front")
    with RunStore.open(tmp_path / "new") as searching:
        add_round(searching, 0)
    until(browser, "document.querySelectorAll('#front .point').length > 3")
    assert browser.get_log("browser") == []


def test_runs_are_ticked_and_compared(browser: Any, served: Served, tmp_path: Path) -> None:
    for name, lead in (("first", 0), ("second one", 20), ("third", 40)):
        write_run(tmp_path / name, lead=lead)
    port = served(tmp_path)
    browser.get_log("browser")
    browser.get(f"http://127.0.0.1:{port}/")
    for box in browser.find_elements("css selector", "input[type=checkbox]")[:2]:
        box.click()
    browser.find_element("css selector", "button").click()
    until(browser, "document.querySelectorAll('#front .point').length > 3")
    found = marks(browser)
    assert {place.split("#")[0] for place in found} == {"/runs/first/", "/runs/second%20one/"}
    lines = "return document.getElementById('front').data.filter((trace) => !trace.customdata).map((trace) => [...trace.y])"
    errors = browser.execute_script(lines)
    assert len(errors) == 2
    assert all(own == sorted(own, reverse=True) and own for own in errors), "what nothing of its own run beats"
    assert min(errors[1]) < min(errors[0])

    choose(browser, "across", "params")
    choose(browser, "up", "validation error")
    place = next(iter(found))
    with RunStore.snapshot(tmp_path / "first") as store:
        nets = {f"/runs/first/#{anchor(net)}": net for net in store.nets()}
    net = nets[place]
    assert marks(browser)[place] == pytest.approx([net.params / 1e6, 100 * (1 - net.validation_accuracy)])
    axis = browser.find_element("css selector", "#front .xtitle").text
    assert axis == "parameters, M"

    browser.execute_script("show(arguments[0])", place)  # what a click on the mark does
    until(browser, "document.querySelector('tbody[id] details[open]') !== null")
    assert browser.current_url == f"http://127.0.0.1:{port}{place}"
    assert browser.find_element("css selector", f"#{anchor(net)} svg.blocks").is_displayed()
    assert browser.get_log("browser") == []


def test_without_javascript_the_numbers_are_there(browser: Any, served: Served, tmp_path: Path) -> None:
    write_run(tmp_path / "first", rounds=0, finished=False)
    write_run(tmp_path / "second", rounds=1, finished=False)
    port = served(tmp_path)
    browser.get("about:blank")
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.get(f"http://127.0.0.1:{port}/compare?run=first&run=second")
        assert "0 of 2" in browser.find_element("css selector", ".runs").text
        browser.get(f"http://127.0.0.1:{port}/runs/first/")
        row = browser.find_element("css selector", ".nets tbody")
        row.find_element("css selector", "summary").click()
        assert row.find_element("css selector", "svg .block").is_displayed()
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_a_server_that_is_gone_is_noticed(browser: Any, served: Served, tmp_path: Path) -> None:
    write_run(tmp_path / "run", rounds=0, finished=False)
    browser.get(f"http://127.0.0.1:{served(tmp_path)}/")
    browser.execute_script("window.fetch = () => Promise.reject(new TypeError('gone'))")
    until(browser, "document.documentElement.classList.contains('lost')")
    before = browser.execute_script("return getComputedStyle(document.querySelector('main'), '::before').content")
    assert "does not answer" in before
