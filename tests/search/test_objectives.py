from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from natdeploy.errors import NatdeployError, UsageError
from natdeploy.search import Constraint, Objectives, parse_constraint, show


@pytest.mark.parametrize(
    ("text", "objective", "bound"),
    [
        ("latency<=1.5ms", "latency", 1.5),
        ("latency<=800us", "latency", 0.8),
        (" latency <= 0.002 s ", "latency", 2.0),
        ("macs<=100M", "macs", 1e8),
        ("macs<=0.1G", "macs", 1e8),
        ("params<=3M", "params", 3e6),
        ("params<=3e6", "params", 3e6),
        ("params<=250k", "params", 250e3),
        ("latency@pixel4/tflite-fp32-1t<=20ms", "latency@pixel4/tflite-fp32-1t", 20.0),
        ("size<=5MB", "size", 5.0),
        ("size<=500kB", "size", 0.5),
        ("energy@jetson<=0.003J", "energy@jetson", 3.0),
    ],
)
def test_a_bound_is_read_in_its_unit(text: str, objective: str, bound: float) -> None:
    constraint = parse_constraint(text)
    assert constraint.objective == objective
    assert constraint.bound == pytest.approx(bound, rel=1e-12)


@settings(deadline=None)
@given(
    st.sampled_from([("latency", "us"), ("latency", "ms"), ("latency", "s"), ("macs", "M"), ("macs", ""), ("params", "k")]),
    st.integers(1, 10**6).map(lambda n: n / 1000),
)
def test_a_constraint_survives_its_text(what: tuple[str, str], number: float) -> None:
    constraint = parse_constraint(f"{what[0]}<={number}{what[1]}")
    again = parse_constraint(str(constraint))
    assert (again.objective, again.unit) == (constraint.objective, constraint.unit)
    assert again.bound == pytest.approx(constraint.bound, rel=1e-12)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("latency<1ms", "write it like"),
        ("latency<=fast", "write it like"),
        ("latency<=-1ms", "write it like"),
        ("latency<=1", "'us' or 'ms' or 's'"),
        ("latency<=1M", "'us' or 'ms' or 's'"),
        ("macs<=1ms", "unit of macs"),
        ("error<=0.1", "latency, macs, params"),
        ("energy<=1", "'uj' or 'mj' or 'j'"),
        ("size<=1ms", "unit of size: 'kb' or 'mb' or 'gb'"),
        (
            "latncy<=1ms",
            "there is no objective 'latncy'; choose among error, latency, macs, params, size, energy, or latency@TARGET",
        ),
        ("macs@pixel4<=1M", "no objective 'macs@pixel4'"),
        ("latency@<=1ms", "write it like"),
        ("latency<=0ms", "positive"),
        ("latency<=1e999ms", "positive"),
    ],
)
def test_a_bad_constraint_is_refused_with_what_to_write(text: str, word: str) -> None:
    with pytest.raises(UsageError, match=word) as refused:
        parse_constraint(text)
    assert refused.value.exit_code == 2


def test_values_and_violations_have_a_row_an_architecture() -> None:
    objectives = Objectives(
        ("error", "latency"), {"latency": lambda g: g[:, 0] * 1.0, "macs": lambda g: g[:, 1] * 1e6, "params": lambda g: g[:, 1]}
    )
    genotypes = np.array([[1, 5], [2, 10], [4, 20]])
    np.testing.assert_array_equal(objectives.values(genotypes, [0.3, 0.2, 0.1]), [[0.3, 1], [0.2, 2], [0.1, 4]])
    constraints = [Constraint("latency", 2.0, "ms"), Constraint("macs", 10e6, "M")]
    np.testing.assert_allclose(objectives.violations(genotypes, constraints), [[0, 0], [0, 0], [1, 1]])
    np.testing.assert_allclose(objectives.violation(genotypes, constraints), [0, 0, 2])
    np.testing.assert_array_equal(objectives.violation(genotypes, []), [0, 0, 0])


def test_not_a_number_is_an_error() -> None:
    objectives = Objectives(("error", "latency"), {"latency": lambda g: g[:, 0] * np.nan})
    with pytest.raises(NatdeployError, match="latency of genotype"):
        objectives.values(np.array([[1, 2]]), [0.5])


def test_errors_alone_may_be_unknown() -> None:
    objectives = Objectives(("error", "latency"), {"latency": lambda g: g[:, 0] * 1.0})
    assert np.isnan(objectives.values(np.array([[1, 2]]), [np.nan])[0, 0])
    with pytest.raises(NatdeployError, match="error of genotype"):
        objectives.values(np.array([[1, 2]]), [np.inf])


def test_a_bound_on_what_nothing_computes_is_refused() -> None:
    objectives = Objectives(("error", "latency"), {"latency": lambda g: g[:, 0] * 1.0})
    with pytest.raises(UsageError, match="nothing computes size, which size<=5MB bounds; bound one of latency"):
        objectives.violation(np.array([[1, 2]]), [parse_constraint("size<=5MB")])


def test_objectives_of_several_targets_stand_side_by_side() -> None:
    names = ("error", "latency@pixel4", "latency@host", "energy@pixel4", "size")
    objectives = Objectives(names, {name: lambda g, i=i: g[:, 0] * float(i) for i, name in enumerate(names)})
    np.testing.assert_array_equal(objectives.values(np.array([[2, 0]]), [0.5]), [[0.5, 2, 4, 6, 8]])


@pytest.mark.parametrize(
    "names",
    [
        ("error",),
        ("latency", "error"),
        ("error", "latency", "latency"),
        ("error", "energy"),
        ("error", "macs"),
        ("error", "macs@a"),
    ],
)
def test_objectives_must_be_known_distinct_and_computable(names: tuple[str, ...]) -> None:
    with pytest.raises(UsageError):
        Objectives(names, {"latency": lambda g: g[:, 0]})


def test_values_are_shown_with_their_unit() -> None:
    assert show("error", 0.0812) == "8.1 %"
    assert show("latency", 0.6234) == "0.623 ms"
    assert (show("latency@pixel4", 12.34), show("size", 5.04), show("energy@x", 3.2)) == ("12.3 ms", "5.04 MB", "3.2 mJ")
    assert (show("macs", 62.1e6), show("params", 3.5e9), show("params", 12)) == ("62.1M", "3.5G", "12")
