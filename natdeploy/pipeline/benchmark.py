"""Exported networks of a run, timed on a target."""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict, replace
from pathlib import Path

import torch

from natdeploy.errors import UsageError
from natdeploy.export import get_format, record_latency
from natdeploy.files import write_atomic
from natdeploy.hardware.bench import NETS, Candidate, MeasureSettings
from natdeploy.hardware.device import Target
from natdeploy.hardware.measure import measure
from natdeploy.hardware.runtimes import get_runtime
from natdeploy.logs import log_to
from natdeploy.pipeline.config import target_of
from natdeploy.pipeline.export import Export, export_net, latency_of
from natdeploy.pipeline.finished import finished_nets, latency_limit_ms, load_subnet, own_target
from natdeploy.pipeline.search import LOG, read_config
from natdeploy.progress import Progress, Silent
from natdeploy.space import Arch
from natdeploy.store import FileRecord, LatencyRecord, NetRecord, RunStore


def benchmark(
    folder: Path,
    target: str | None = None,
    progress: Progress | None = None,
    settings: MeasureSettings = NETS,
    out: Path | None = None,
) -> list[NetRecord]:
    """Measures every exported net of a run on a target; the seed network is exported and measured beside them.

    Nets whose precision the search chose are measured in it, all in one run.

    Args:
        folder: of the run.
        target: where; the run's own by default.
        progress: is told about every model.
        settings: how long each model is measured.
        out: JSON file for the whole result: the target, its environment, and every model with its raw times in milliseconds.

    Raises:
        UsageError: nothing is exported, or the target is unknown.
        DeviceError: the target failed.
        NatdeployError: `out` cannot be written; the run keeps what was measured.
    """
    progress = progress or Silent()
    with RunStore.open(folder) as store, log_to(folder / LOG):
        config = read_config(store)
        chosen = target_of(config, target)
        chosen.device.require_address()
        files = {(file.role, file.id): file for file in store.files() if file.path is not None}
        nets = [net for net in finished_nets(store) if net.role == "baseline" or (net.role, net.id) in files]
        if not any(net.role == "front" for net in nets):
            raise UsageError(f"nothing of {folder} is exported yet; run `natdeploy export {folder} --arch front` first")
        for net in nets:
            if (net.role, net.id) not in files:
                (files[net.role, net.id],) = export_net(store, net, Export((get_format("onnx"),), ("fp32",)))
        with tempfile.TemporaryDirectory() as converted:
            targets = {net.id: own_target(net, chosen) for net in nets}
            candidates = [_candidate(store, net, files[net.role, net.id], targets[net.id], Path(converted)) for net in nets]
            reference = next(each for net, each in zip(nets, candidates, strict=True) if net.role == "baseline")
            if any(candidate.model.parent == Path(converted) for candidate in candidates):
                progress.note(f"the run's files are ONNX in fp32; for {chosen} the same nets were converted, to be timed")
            result = measure(candidates, reference, chosen, settings, seed=config.seed, progress=progress)
        store.set(f"measured on {chosen}", asdict(result))
        if str(chosen) != str(target_of(config)):
            progress.note(f"the run was searched for {target_of(config)}; its predictions do not apply to {chosen}")
        measured = []
        for net in nets:
            found = result[f"{net.role}-{net.id}"]
            timed = replace(
                net, measured_p50_ms=found.p50_ms, measured_p90_ms=found.p90_ms, measured_n=found.n, unstable=found.unstable
            )
            own = str(chosen) == str(target_of(config))
            measured.append(timed if own else replace(timed, predicted_ms=None, estimated=False))
            mean_ms = found.mean_ms if found.p50_ms is None else None
            place = str(targets[net.id])
            record_latency(folder / f"models/{net.id}", latency_of(measured[-1], place, mean_ms))
            store.put_latency(
                LatencyRecord(net.role, net.id, place, found.p50_ms, found.p90_ms, found.mean_ms, found.n, found.unstable)
            )
        means = [f"{each.id} {each.mean_ms:.3f} ms" for each in result.measurements if each.p50_ms is None]
        if means:
            progress.note(f"{result.environment['harness']} tells no median; the means are {', '.join(means)}")
        if str(chosen) == str(target_of(config)):
            for net in measured:
                store.put_net(net)
            limit_ms = latency_limit_ms(config)
            over = [net.id for net in measured if net.role == "front" and result[f"front-{net.id}"].typical_ms > limit_ms]
            if over:
                expected = "estimated" if store.get("estimate") else "predicted"
                progress.note(f"measured above the limit of {limit_ms:g} ms, though {expected} below it: {', '.join(over)}")
        if out is not None:
            write_atomic(out, json.dumps({"target": str(chosen), **asdict(result)}, indent=1, allow_nan=False).encode())
        return measured


def _candidate(store: RunStore, net: NetRecord, file: FileRecord, target: Target, folder: Path) -> Candidate:
    """The exported file where the target reads it; else one of the same subnet for the target's runtime and precision."""
    arch, runtime = Arch.parse(net.arch), get_runtime(target.runtime)
    shape = (1, 3, arch.resolution, arch.resolution)
    assert file.path is not None
    path = store.folder / file.path
    if path.suffix != runtime.SUFFIX or target.precision != "fp32":
        path = folder / f"{net.role}-{net.id}{runtime.SUFFIX}"
        runtime.convert(
            load_subnet(store, arch, tuned=net.tuned_accuracy is not None),
            torch.zeros(shape),
            path,
            precision=target.precision,
            dynamic_size=False,
        )
    return Candidate(f"{net.role}-{net.id}", path, shape)
