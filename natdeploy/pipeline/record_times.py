"""What was measured of a run's nets, written to the run and to their exported folders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from natdeploy.export import record_latency
from natdeploy.hardware.device import Target
from natdeploy.hardware.measure import MeasureResult
from natdeploy.pipeline.config import target_of
from natdeploy.pipeline.export import bundle_of, latency_of
from natdeploy.pipeline.finished import latency_limit_ms
from natdeploy.pipeline.model_files import Subject
from natdeploy.pipeline.search import read_config
from natdeploy.pipeline.timings import ModelTimes
from natdeploy.progress import Progress
from natdeploy.store import LatencyRecord, RunStore


def record_times(store: RunStore, subjects: Sequence[Subject], result: MeasureResult, target: Target, progress: Progress) -> None:
    """Writes what was measured of a run's nets to the run, and to their exported folders.

    Args:
        store: of the run.
        subjects: its nets.
        result: in which they are.
        target: on which its seed network was timed.
        progress: is told what to know about the times.
    """
    config = read_config(store)
    own = str(target) == str(target_of(config))
    if not own:
        progress.note(f"{store.folder} was searched for {target_of(config)}; its predictions do not apply to {target}")
    found = {each.id: each for each in result.measurements}
    for subject in subjects:
        net, times = subject.net, found.get(subject.name)
        if net is None or times is None:
            continue
        place = str(subject.target)
        timed = replace(
            net, measured_p50_ms=times.p50_ms, measured_p90_ms=times.p90_ms, measured_n=times.n, unstable=times.unstable
        )
        told = timed if own else replace(timed, predicted_ms=None, estimated=False)
        record_latency(bundle_of(store, net), latency_of(told, place, times.mean_ms if times.p50_ms is None else None))
        store.put_latency(
            LatencyRecord(net.role, net.id, place, times.p50_ms, times.p90_ms, times.mean_ms, times.n, times.unstable)
        )
        if own:
            store.put_net(timed)
    if own:
        limit_ms = latency_limit_ms(config)
        fronts = [each for each in subjects if each.net is not None and each.net.role == "front" and each.name in found]
        over = [str(each.id) for each in fronts if found[each.name].typical_ms > limit_ms]
        if over:
            expected = "estimated" if store.get("estimate") else "predicted"
            progress.note(
                f"measured above the limit of {limit_ms:g} ms in {store.folder}, though {expected} below it: {', '.join(over)}"
            )


def record_footprints(store: RunStore, models: Sequence[ModelTimes]) -> None:
    """Adds to the run's latencies what else was measured."""
    found = {(each.role, each.id, each.target): each for each in models}
    for record in store.latencies():
        model = found.get((record.role, record.id, record.target))
        if model is not None:
            memory = None if model.memory is None else model.memory.model_mb
            energy = None if model.energy is None else model.energy.net_mj
            store.put_latency(replace(record, peak_memory_mb=memory, energy_mj=energy))
