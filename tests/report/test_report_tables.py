from __future__ import annotations

import io
import json
from dataclasses import replace

from rich.console import Console

from natdeploy.report import front_table, net_json
from natdeploy.report.tables import by_latency, millions, milliseconds, percent
from natdeploy.search.decide import Choice
from natdeploy.space import Arch, Layer
from natdeploy.store import NetRecord

FRONT = NetRecord(
    arch=str(ARCH := Arch(128, 1.0, ((Layer(3, 1),), (Layer(7, 6), Layer(5, 3))))),
    id=ARCH.id,
    role="front",
    validation_accuracy=0.951,
    test_accuracy=0.9425,
    predicted_ms=0.61,
    measured_p50_ms=0.624,
    measured_p90_ms=0.66,
    measured_n=192,
    unstable=True,
    params=1_900_000,
    macs=56_200_000,
)
PREDICTED = replace(
    FRONT, id="b" * 10, measured_p50_ms=None, measured_p90_ms=None, measured_n=None, unstable=None, predicted_ms=12.345
)
BASELINE = replace(FRONT, id="c" * 10, role="baseline", measured_p50_ms=153.21, unstable=False, macs=5_300_000_000)
UNKNOWN = replace(PREDICTED, id="d" * 10, predicted_ms=None, test_accuracy=None)
NETS = (UNKNOWN, BASELINE, PREDICTED, FRONT)
PICKS = (Choice(0, FRONT.id, "knee", ""), Choice(1, PREDICTED.id, "best", ""), Choice(0, FRONT.id, "fastest", ""))


def lines(*nets: NetRecord) -> list[str]:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(front_table(nets, PICKS))
    return console.export_text().splitlines()


def test_fastest_first_and_nets_without_latency_last() -> None:
    assert [net.id for net in by_latency(NETS)] == [FRONT.id, PREDICTED.id, BASELINE.id, UNKNOWN.id]


def test_table_shows_every_number_within_80_columns() -> None:
    shown = lines(*NETS)
    assert max(map(len, shown)) <= 80
    assert "…" not in "".join(shown)
    rows = {line.split()[0]: line.split()[1:] for line in shown if line.split()}
    assert rows[FRONT.id] == ["128", "94.2", "95.1", "0.624*", "0.660", "0.610", "56.2", "1.9", "knee,"]
    assert rows[PREDICTED.id] == ["128", "94.2", "95.1", "–", "–", "12.35", "56.2", "1.9", "best"]
    assert rows[BASELINE.id] == ["128", "94.2", "95.1", "153.2", "0.660", "0.610", "5300", "1.9", "baseline"]
    assert rows[UNKNOWN.id] == ["128", "–", "95.1", "–", "–", "–", "56.2", "1.9"]
    assert "fastest" in "".join(shown)


def test_star_is_explained_only_where_there_is_one() -> None:
    assert any("unstable" in line for line in lines(FRONT))
    assert not any("unstable" in line for line in lines(PREDICTED, BASELINE))


def test_json_keeps_units_and_unknowns() -> None:
    values = json.loads(json.dumps(net_json(FRONT, PICKS)))
    assert values["picks"] == ["knee", "fastest"]
    assert (values["measured_p50_ms"], values["test_accuracy"], values["macs"]) == (0.624, 0.9425, 56_200_000)
    assert net_json(UNKNOWN, PICKS)["predicted_ms"] is None


def test_a_baseline_of_a_picked_architecture_is_not_picked() -> None:
    assert net_json(replace(BASELINE, id=FRONT.id), PICKS)["picks"] == []


def test_numbers() -> None:
    assert [milliseconds(value) for value in (0.0314, 9.9994, 10.0, 99.99, 100.0, None)] == [
        "0.031",
        "9.999",
        "10.00",
        "99.99",
        "100.0",
        "–",
    ]
    assert (percent(0.9625), percent(None)) == ("96.2", "–")
    assert (millions(1_234_567), millions(5_300_000_000)) == ("1.2", "5300")


def test_table_tells_the_precision_that_was_searched_within_80_columns() -> None:
    further = {"size": 3.21, "latency@pixel4/tflite": 12.5, "latency@rpi/onnxruntime": 9.5}
    int8 = replace(FRONT, id=f"{FRONT.id}-int8", precision="int8", tuned_accuracy=0.95, objectives=further)
    shown = lines(int8, replace(FRONT, precision="fp32", objectives=further), BASELINE)
    assert max(map(len, shown)) <= 80
    rows = {line.split()[0]: line.split()[1:] for line in shown if line.split()}
    assert (rows[int8.id][0], rows[FRONT.id][0], rows[BASELINE.id][0]) == ("int8", "fp32", "–")
    assert not any("…" in line for line in shown)
    assert "baseline" in "".join(shown)
    assert not any("prec." in line for line in lines(FRONT)), "no column where the target decides"
