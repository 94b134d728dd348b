"""Two results of `natdeploy benchmark` side by side, and predictions beside what was measured: what differs, and whether really."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy.stats import spearmanr
from scipy.stats import t as student

from natdeploy.errors import UsageError
from natdeploy.hardware.book import DECIDES
from natdeploy.hardware.measure import UNSTABLE
from natdeploy.pipeline.timings import Agreement, BenchmarkResult, Comparison, ModelTimes, Pair, Section, read_result
from natdeploy.store import LatencyRecord

CONFIDENCE = 0.95


def _keys(model: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    """By what a model is found in another result, the surest first: its files, its architecture, its name."""
    files, target, precision = tuple(sorted(model["sha256"].items())), model["target"], model["precision"]
    contents = tuple(digest for _, digest in files)
    found: list[tuple[Any, ...]] = [("files", contents, target, model["run"]), ("files", contents, target), ("files", contents)]
    if model["id"] is not None:
        found += [("run", model["run"], model["role"], model["id"], precision, target)]
        found += [("net", model["role"], model["id"], precision, target), ("net", model["role"], model["id"], precision)]
        found += [("id", model["id"], precision), ("id", model["id"])]
    return [*found, ("name", model["name"], target), ("name", model["name"]), ("file", Path(model["name"]).name)]


def shared(ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]]) -> list[tuple[int, int]]:
    """Places of the models that two results share, each used once.

    Args:
        ours: facts of models, as `facts` tells them.
        theirs: likewise.
    """
    pairs: dict[int, int] = {}
    depth = max((len(_keys(each)) for each in ours), default=0)
    for level in range(depth):
        for place, model in enumerate(ours):
            keys = _keys(model)
            if place in pairs or level >= len(keys):
                continue
            for other, their in enumerate(theirs):
                if other not in pairs.values() and keys[level] in _keys(their):
                    pairs[place] = other
                    break
    return sorted(pairs.items())


def _facts_of(result: BenchmarkResult) -> list[dict[str, Any]]:
    return [each.model_dump(exclude={"latency", "throughput"}) for each in result.models]


def require_shared(
    ours: Sequence[Mapping[str, Any]], other: BenchmarkResult, mode: str, path: Path, here: str | None = None
) -> None:
    """Raises UsageError where there is nothing to compare.

    Args:
        ours: facts of models.
        other: result.
        mode: of ours.
        path: of the other.
        here: name of the file that ours are of; None where they are yet to be measured.
    """
    if other.mode != mode:
        here, remedy = (f"{here} holds", "give two of the same mode") if here else ("this measures", f"give --mode {other.mode}")
        raise UsageError(f"{path} holds {other.mode} and {here} {mode}, which are never compared; {remedy}")
    if not shared(ours, _facts_of(other)):
        names = ", ".join(each.name for each in other.models) or "no measured model"
        raise UsageError(
            f"{path} and {here or 'this'} have no model in common, by content, architecture or name; {path.name} holds {names}"
        )


def compare_results(path: Path, other_path: Path) -> BenchmarkResult:
    """The result of a file, compared with that of another; nothing is measured.

    Raises:
        UsageError: one of them is no result, they are of two modes, or they have no model in common.
    """
    result, other = read_result(path), read_result(other_path)
    require_shared(_facts_of(result), other, result.mode, other_path, path.name)
    return result.model_copy(update={"comparison": compare(result, other, other_path)})


def compare(result: BenchmarkResult, other: BenchmarkResult, path: Path) -> Comparison:
    """What became of every model that both have."""
    here, there = ([(section, model) for section in each.sections for model in section.models] for each in (result, other))
    places = shared(_facts_of(result), _facts_of(other))
    sections = {(id(here[a][0]), id(there[b][0])): (here[a][0], there[b][0]) for a, b in places}
    differences = [f"tool is {result.tool} here and {other.tool} there"] if result.tool != other.tool else []
    differences += dict.fromkeys(text for pair in sections.values() for text in _differences(*pair))
    faster = result.mode == "throughput"
    pairs = tuple(_pair(here[a][1], there[b][1], more_is_faster=faster) for a, b in places)
    return Comparison(
        other=str(path),
        differences=tuple(differences),
        pairs=pairs,
        only_here=tuple(model.name for i, (_, model) in enumerate(here) if i not in dict(places)),
        only_there=tuple(model.name for i, (_, model) in enumerate(there) if i not in dict(places).values()),
    )


def _differences(here: Section, there: Section) -> Iterable[str]:
    if here.target != there.target:
        yield f"target is {here.target} here and {there.target} there"
    for name in DECIDES:
        one, other = here.environment.get(name), there.environment.get(name)
        if one != other:
            yield f"{name} is {one} here and {other} there"


def _pair(here: ModelTimes, there: ModelTimes, *, more_is_faster: bool) -> Pair:
    ratio, interval = here.value / there.value, ratio_interval(here.process_values, there.process_values)
    low, high = (None, None) if interval is None else interval
    if interval is not None:
        ratio = math.sqrt(interval[0] * interval[1])
    real = None if interval is None else not interval[0] <= 1 <= interval[1]
    change = f"{abs(ratio - 1):.1%}".replace("%", " %")
    words = f"{change} {'more' if ratio > 1 else 'less'} {'images a second' if more_is_faster else 'latency'}"
    if interval is None:
        verdict = f"{words}; too few processes to say whether really"
    else:
        between = f"ratio {ratio:.3f}, 95 % confidence {interval[0]:.3f} to {interval[1]:.3f}"
        verdict = f"{words}, really ({between})" if real else f"no real difference ({between})"
    return Pair(
        name=here.name,
        other=there.name,
        value=here.value,
        other_value=there.value,
        ratio=ratio,
        low=low,
        high=high,
        real=real,
        verdict=verdict,
        flags=here.flags.raised,
        other_flags=there.flags.raised,
    )


def ratio_interval(here: Sequence[float], there: Sequence[float]) -> tuple[float, float] | None:
    """95 % confidence interval of the ratio of what two groups of processes measured: Welch's, on logarithms.

    The processes are what varies independently; runs within one do not. None where a group has fewer than two.
    """
    if min(len(here), len(there)) < 2:
        return None
    a, b = np.log(here), np.log(there)
    parts = a.var(ddof=1) / len(a), b.var(ddof=1) / len(b)
    error = math.sqrt(sum(parts))
    freedom = sum(parts) ** 2 / (parts[0] ** 2 / (len(a) - 1) + parts[1] ** 2 / (len(b) - 1)) if error else len(a) + len(b) - 2
    half = float(student.ppf((1 + CONFIDENCE) / 2, freedom)) * error
    centre = float(a.mean() - b.mean())
    return math.exp(centre - half), math.exp(centre + half)


def agreement(section: Section, measured_as: Literal["p50", "undisturbed"] = "p50", run: str | None = None) -> Agreement | None:
    """Predicted against measured, of the nets of a run's front, or of those of no run; None where nothing is predicted."""
    pairs = [
        (model.predicted_ms, model.latency.typical_ms if measured_as == "p50" else model.latency.undisturbed_ms)
        for model in section.models
        if model.run == run and model.role != "baseline" and model.predicted_ms is not None and model.latency is not None
    ]
    if not pairs:
        return None
    predicted, measured = np.array(pairs).T
    error = np.abs(predicted - measured) / measured
    varied = len(pairs) > 2 and len(set(predicted)) > 1 and len(set(measured)) > 1
    return Agreement(
        run=run,
        target=section.target,
        measured=measured_as,
        n=len(pairs),
        within_5=float((error <= 0.05).mean()),
        within_10=float((error <= 0.10).mean()),
        mape=float(error.mean()),
        spearman=float(spearmanr(predicted, measured).statistic) if varied else None,
    )


def slower_int8(models: Iterable[ModelTimes], known: Iterable[LatencyRecord]) -> str | None:
    """Says of which nets int8 takes longer than fp32 in the same runtime; None where of none.

    Args:
        models: measured now.
        known: measured in the run at any time.
    """
    times: dict[tuple[str, str], dict[str, float]] = {}
    shaky: set[tuple[str, str]] = set()
    rows = [(each.id, each.target, each.p50_ms or each.mean_ms, each.unstable) for each in known]
    rows += [(each.id or each.name, each.target, each.value, each.flags.unstable) for each in models]
    for net, target, ms, unstable in rows:
        for precision in ("int8", "fp32"):
            if f"-{precision}-" in target:
                key = net.removesuffix("-int8"), target.replace(f"-{precision}-", "-")
                times.setdefault(key, {})[precision] = ms
                shaky |= {key} if unstable else set()
    slower = [
        f"{net} on {target} ({each['int8']:.3f} against {each['fp32']:.3f} ms{', unstable' if (net, target) in shaky else ''})"
        for (net, target), each in times.items()
        if len(each) == 2 and each["int8"] > (1 + UNSTABLE) * each["fp32"]
    ]
    return f"int8 is slower than fp32 here: {', '.join(slower)}" if slower else None
