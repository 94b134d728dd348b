from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, replace
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from natdeploy.errors import NatdeployError
from natdeploy.report import PageData, Round, write_page
from natdeploy.report.figures import front_figure, history_figure
from natdeploy.report.markup import Markup, element
from natdeploy.report.page import render
from natdeploy.search.decide import Choice
from natdeploy.search.nat import RoundReport, SurrogateQuality
from natdeploy.space import get_space
from natdeploy.space.catalog import plain_arch
from natdeploy.store import FileRecord, LatencyRecord, NetRecord

SPACE = get_space("mbv2")
TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]))
HOSTILE = "</script><script>alert(1)</script><img src=x onerror='alert(2)'>\"&amp;"


@dataclass(frozen=True)
class PredictorQuality:
    n: int = 24
    within_5: float = 0.83
    within_10: float = 0.96
    mape: float = 0.031
    spearman: float = 0.995
    kendall: float = 0.961


def net(resolution: int, accuracy: float, latency_ms: float, *, role: str = "front", measured: bool = True) -> NetRecord:
    arch = plain_arch(resolution, 1.0, (1, 2, 3, 4, 3, 3, 1))
    return NetRecord(
        arch=str(arch),
        id=arch.id,
        role=role,
        validation_accuracy=accuracy + 0.01,
        test_accuracy=accuracy,
        predicted_ms=1.1 * latency_ms,
        measured_p50_ms=latency_ms if measured else None,
        measured_p90_ms=1.2 * latency_ms if measured else None,
        measured_n=192 if measured else None,
        unstable=False if measured else None,
        params=2_000_000,
        macs=100_000_000,
    )


FASTEST, KNEE, BEATEN, BEST = net(64, 0.90, 0.4), net(96, 0.95, 0.6), net(112, 0.94, 0.8), net(128, 0.97, 1.2, measured=False)
FILES = tuple(
    FileRecord("front", each.id, "onnx", "fp32", f"models/{each.id}/model.onnx", 8.0, 0.95, each.test_accuracy, 1.0, 2e-6)
    for each in (FASTEST, KNEE)
)
BASELINE = net(160, 0.93, 2.0, role="baseline")
PICKS = (
    Choice(1, KNEE.id, "knee", "the bend"),
    Choice(2, BEST.id, "best", "most accurate"),
    Choice(0, FASTEST.id, "fastest", "least latency"),
)
DATA = PageData(
    title="flowers",
    command="natdeploy search --data photos",
    target="host/onnxruntime-fp32-1t",
    version="0.1.0",
    utc="2026-01-01 00:00 UTC",
    nets=(BASELINE, BEST, BEATEN, FASTEST, KNEE),
    files=FILES,
    picks=PICKS,
    constraints=("latency<=1.5ms",),
    latency_limit_ms=1.5,
    rounds=(Round(0, 40, 6, 0.09, 0.70), Round(1, 56, 7, 0.08, 0.75)),
    quality=PredictorQuality(),
    estimate=None,
    seconds={"profile": 312.0, "search": 3725.0, "export": 2.5},
    data={"folder": "photos"},
    splits={"train": 576, "test": 240},
    settings={"seed": "0"},
    environment={"processor": "a processor"},
)


class Reader(HTMLParser):
    """Collects what a browser would show, run and fetch."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.text: list[str] = []
        self.scripts: list[str] = []
        self.links: list[str] = []
        self.handlers: list[str] = []
        self.ids: list[str] = []
        self._open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag != "meta":
            self._open.append(tag)
        for key, value in attrs:
            if key in ("href", "src"):
                self.links.append(value or "")
            if key == "id":
                self.ids.append(value or "")
            if key.startswith("on"):
                self.handlers.append(key)
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] == "script":
            self.scripts[-1] += data
        elif self._open and self._open[-1] != "style":
            self.text.append(data)


@pytest.fixture(scope="module")
def page() -> Reader:
    return Reader(render(DATA))


def traces(figure: dict[str, Any]) -> dict[str, list[tuple[float, float]]]:
    return {each.get("name", "line"): list(zip(each["x"], each["y"], strict=True)) for each in figure["data"]}


def test_every_net_is_readable_without_javascript(page: Reader) -> None:
    text = " ".join(page.text)
    for each in DATA.nets:
        assert each.id in text
        assert each.arch in text
    for shown in (
        "natdeploy search --data photos",
        "a processor",
        "240 images",
        "83.0 % of nets",
        "5 min 12 s",
        "1 h 02 min",
        "0.7500",
    ):
        assert shown in text


def test_nothing_comes_from_elsewhere(page: Reader) -> None:
    assert page.links
    for link in page.links:
        assert link.startswith("models/") or link.removeprefix("#") in page.ids
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', render(DATA))
    assert policy is not None
    assert policy[1].startswith("default-src 'none'")
    assert "http" not in policy[1]


def test_plotly_sends_nothing_anywhere() -> None:
    script = resources.files("natdeploy.report").joinpath("page.js").read_text(encoding="utf-8")
    assert "showSendToCloud: false" in script


def test_text_is_only_text(page: Reader) -> None:
    hostile = replace(
        DATA,
        title=HOSTILE,
        command=HOSTILE,
        target=HOSTILE,
        constraints=(HOSTILE,),
        picks=(Choice(1, KNEE.id, HOSTILE, HOSTILE),),
        files=tuple(replace(each, path=HOSTILE) for each in DATA.files),
        seconds={HOSTILE: 1.0},
        data={HOSTILE: HOSTILE},
        splits={HOSTILE: 1},
        settings={HOSTILE: HOSTILE},
        environment={HOSTILE: HOSTILE},
    )
    read = Reader(render(hostile))
    assert len(read.scripts) == len(page.scripts)
    assert read.scripts[1:] == page.scripts[1:]
    assert read.handlers == []
    assert "".join(read.text).count(HOSTILE) >= 12
    # plotly reads a little HTML in hover texts and annotations
    assert "<script" not in json.dumps(json.loads(read.scripts[0]))


@settings(deadline=None)
@given(TEXT, TEXT)
def test_elements_escape(text: str, attribute: str) -> None:
    read = Reader(element("p", text, Markup("<b>bold</b>"), id=attribute))
    assert "".join(read.text) == text + "bold"
    assert read.ids == [attribute]
    assert read.scripts == []


def test_line_joins_what_nothing_beats() -> None:
    shown = traces(front_figure(DATA.nets, PICKS, 1.5))
    front = [(0.4, 10.0), (0.6, 5.0), (0.8, 6.0), (1.1 * 1.2, 3.0)]
    beaten = {b for b in front for a in front if a != b and a[0] <= b[0] and a[1] <= b[1]}
    assert shown["line"] == [pytest.approx(point) for point in front if point not in beaten]


def test_measured_and_predicted_are_told_apart() -> None:
    figure = front_figure(DATA.nets, PICKS, None)
    shown = traces(figure)
    assert shown["front, latency measured"] == [pytest.approx(point) for point in ((0.4, 10.0), (0.6, 5.0), (0.8, 6.0))]
    assert shown["front, latency predicted"] == [pytest.approx((1.32, 3.0))]
    assert shown["baseline, latency measured"] == [pytest.approx((2.0, 7.0))]
    symbols = {each["name"]: each["marker"]["symbol"] for each in figure["data"] if "name" in each}
    assert symbols["front, latency predicted"] == "circle-open"


def test_plot_shows_one_kind_of_accuracy() -> None:
    untested = (*DATA.nets[:-1], replace(KNEE, test_accuracy=None))
    assert front_figure(DATA.nets, (), None)["layout"]["yaxis"]["title"]["text"] == "test error, %"
    figure = front_figure(untested, (), None)
    assert figure["layout"]["yaxis"]["title"]["text"] == "validation error, %"
    assert traces(figure)["baseline, latency measured"] == [pytest.approx((2.0, 6.0))]


def test_picks_and_limit_are_marked() -> None:
    layout = front_figure(DATA.nets, (*PICKS, Choice(1, KNEE.id, "best", "")), 1.5)["layout"]
    assert [each["text"] for each in layout["annotations"]] == [
        "<b>fastest</b>",
        "<b>knee, best</b>",
        "<b>best</b>",
        "limit 1.5 ms",
    ]
    assert [each["x0"] for each in layout["shapes"]] == [1.5]
    assert front_figure(DATA.nets, (), None)["layout"]["shapes"] == []


def test_hover_names_the_architecture() -> None:
    (hover,) = front_figure((KNEE,), PICKS, None)["data"][1]["hovertext"]
    assert hover.startswith(
        f"<b>{KNEE.id}</b> knee<br>accuracy: test 95.0 %, validation 96.0 %<br>measured: p50 0.600 ms, p90 0.720 ms"
    )
    assert "-".join(hover.split("<br>")[5:]) == KNEE.arch


def test_rounds_are_read_from_what_the_search_reports() -> None:
    report = RoundReport(
        round=3,
        evaluated=88,
        failed=1,
        new=("a",),
        left=("b",),
        surrogate=SurrogateQuality("gp", {"gp": 0.7}, 0.6, 0.75, 0.02),
        hypervolume=0.8,
        reference=(0.5, 2.0),
        front_size=7,
        best_error=0.05,
    )
    assert Round.from_facts(asdict(report)) == Round(3, 88, 7, 0.05, 0.8, "gp", 0.6, 0.75, 0.02, 1, ("b",))


def test_marks_lead_to_rows(page: Reader) -> None:
    figure = json.loads(page.scripts[0])["front"]
    places = [place for each in figure["data"] for place in each.get("customdata", [])]
    assert len(places) == len(DATA.nets)
    assert set(places) <= set(page.ids)


def test_stylesheet_knows_every_colour_of_the_figures() -> None:
    style = resources.files("natdeploy.report").joinpath("page.css").read_text(encoding="utf-8")
    text = json.dumps([front_figure(DATA.nets, PICKS, 1.5), history_figure(DATA.rounds)])
    colours = set(re.findall(r'"(--[a-z]+)"', text))
    assert len(colours) > 4
    for colour in colours:
        assert len(re.findall(rf"{colour}: #", style)) == 2, f"{colour} must have a light and a dark value"


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (DATA, "+2.0 points at 0.30 of the latency of the baseline at 160\u00a0px"),
        (
            replace(DATA, nets=(BASELINE, net(96, 0.92, 0.6, measured=False)), picks=PICKS[:1]),
            "−1.0 points at 0.30 of the predicted latency",
        ),
    ],
)
def test_gain_compares_numbers_of_one_kind(data: PageData, sentence: str) -> None:
    assert sentence in " ".join(Reader(render(data)).text)


def test_gain_is_silent_where_kinds_differ() -> None:
    nets = (replace(BASELINE, predicted_ms=None), replace(KNEE, measured_p50_ms=None))
    assert "points at" not in " ".join(Reader(render(replace(DATA, nets=nets, picks=PICKS[:1]))).text)


def test_the_most_accurate_baseline_is_compared_with() -> None:
    nets = (*DATA.nets, net(80, 0.80, 0.2, role="baseline"))
    assert "of the baseline at 160\u00a0px" in " ".join(Reader(render(replace(DATA, nets=nets))).text)


def test_what_is_missing_leaves_no_trace() -> None:
    bare = replace(DATA, nets=(), picks=(), rounds=(), quality=None, constraints=(), latency_limit_ms=None)
    read = Reader(render(bare))
    text = " ".join(read.text)
    assert "0 nets on the front" in text
    for absent in ("across", "Latency predictor", "hypervolume", "Fastest first"):
        assert absent not in text
    assert read.scripts == []


def test_page_replaces_the_old_one_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.html"
    write_page(path, DATA)
    first = path.read_text(encoding="utf-8")
    assert first.startswith("<!doctype html>")
    write_page(path, replace(DATA, title="second"))
    assert "<h1>second</h1>" in path.read_text(encoding="utf-8")

    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(NatdeployError, match=r"report\.html cannot be written \(No space left on device\)"):
        write_page(path, DATA)
    assert "<h1>second</h1>" in path.read_text(encoding="utf-8")
    assert [each.name for each in tmp_path.iterdir()] == ["report.html"]


def test_where_a_net_was_timed_and_what_it_takes_is_in_its_row() -> None:
    timed = LatencyRecord("front", KNEE.id, "host/tflite-int8-1t", 0.5, None, 0.52, 30, True, 16.53, None)
    shown = Reader(render(replace(DATA, latencies=(timed,)))).text
    begin = shown.index("timed on")
    assert shown[begin + 1 : begin + 7] == ["p50, ms", "p90, ms", "mean, ms", "runs", "memory, MB", "energy, mJ"]
    assert shown[begin + 7 : begin + 15] == ["host/tflite-int8-1t", "0.500", "–", "0.520", "30", "16.5", "–", "unstable"]
    assert "timed on" not in Reader(render(DATA)).text


def test_accuracy_before_tuning_has_a_column_where_a_net_was_tuned() -> None:
    assert "before, %" not in Reader(render(DATA)).text
    tuned = replace(DATA, nets=[replace(each, tuned_accuracy=0.99) for each in DATA.nets])
    shown = Reader(render(tuned)).text
    assert "before, %" in shown
    assert any("Before: test accuracy before a net was tuned alone." in each for each in shown)
