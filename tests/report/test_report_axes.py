"""What the axes of the front offer."""

from __future__ import annotations

from dataclasses import replace

import pytest
from test_report_page import BASELINE, BEST, DATA, FASTEST, FILES, KNEE

from natdeploy.report.axes import ERROR, LATENCY, axes
from natdeploy.store import FileRecord, LatencyRecord

NETS = (BASELINE, FASTEST, KNEE, BEST)


def place(net: object) -> str:
    return f"{net.role}-{net.id}"  # type: ignore[attr-defined]


def test_what_the_figure_shows_at_first_comes_first() -> None:
    found = axes(NETS, (), ())
    assert list(found)[:2] == [LATENCY, ERROR]
    assert found[LATENCY].values[place(BEST)] == pytest.approx(1.1 * 1.2), "predicted, as it was not measured"
    assert found[LATENCY].values[place(KNEE)] == 0.6
    assert found[ERROR].title == "test error, %"
    assert found[ERROR].values[place(KNEE)] == pytest.approx(5.0)
    assert found["validation error"].values[place(KNEE)] == pytest.approx(4.0)


def test_what_is_not_known_of_a_net_has_no_value() -> None:
    found = axes(NETS, (), ())
    assert place(BEST) not in found["measured latency"].values
    assert set(found["predicted latency"].values) == {place(net) for net in NETS}


def test_what_is_known_of_one_net_only_is_no_axis() -> None:
    one = axes((KNEE, BEST), (), ())
    assert "measured latency" not in one
    assert {LATENCY, ERROR} <= set(axes((BEST,), (), ())), "but for those of the figure"


def test_without_a_test_there_is_one_kind_of_error() -> None:
    untested = tuple(replace(net, test_accuracy=None) for net in NETS)
    found = axes(untested, (), ())
    assert found[ERROR].title == "validation error, %"
    assert "validation error" not in found
    assert axes(NETS, (), (), "validation")[ERROR].values == found[ERROR].values, "the kind can be asked for"


def test_counts_are_shown_in_millions_and_estimates_as_such() -> None:
    found = axes(tuple(replace(net, estimated=True) for net in NETS), (), ())
    assert (found["macs"].title, found["macs"].values[place(KNEE)]) == ("MACs, M", 100.0)
    assert (found["params"].title, found["params"].values[place(KNEE)]) == ("parameters, M", 2.0)
    assert found["predicted latency"].title == "estimated latency, ms"


def test_further_objectives_other_targets_and_files() -> None:
    nets = tuple(replace(net, objectives={"latency": 1.0, "size": size}) for size, net in enumerate(NETS))
    latencies = [LatencyRecord(net.role, net.id, "pixel4/tflite", 2.0, None, 2.1, 20, False) for net in (FASTEST, KNEE)]
    latencies.append(LatencyRecord(BEST.role, BEST.id, "pixel4/tflite", None, None, 3.0, 9, False))
    refused = replace(FILES[0], id=BEST.id, refused="lost too much")
    unsized = FileRecord("front", FASTEST.id, "tflite", "int8", "models/x.tflite", 0.0, None, None, None, None)
    found = axes(nets, [*FILES, refused, unsized, replace(unsized, id=KNEE.id)], latencies)
    assert found["objective size"].values == {place(net): size for size, net in enumerate(NETS)}
    assert "objective latency" not in found, "it has an axis already"
    assert found["latency on pixel4/tflite"].values == {place(FASTEST): 2.0, place(KNEE): 2.0}
    assert found["size of onnx fp32"].values == {place(FASTEST): 8.0, place(KNEE): 8.0}, "no file that was refused"
    assert "size of tflite int8" not in found, "nobody knows how large"


def test_every_axis_has_a_unit_or_says_whose_it_has() -> None:
    for axis in axes(DATA.nets, DATA.files, ()).values():
        assert axis.title.rpartition(", ")[2] in ("ms", "%", "M", "MB", "in the objective's unit")
