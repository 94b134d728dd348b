"""The nets of a run as files that a target runs: those that were exported, and for other targets conversions of the same nets."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import torch

from natdeploy.errors import UsageError
from natdeploy.hardware.device import Target
from natdeploy.hardware.runtimes import get_runtime, installed_version
from natdeploy.pipeline.config import SearchConfig, target_of
from natdeploy.pipeline.export import export_net
from natdeploy.pipeline.finished import finished_nets, load_subnet, own_target, select_nets
from natdeploy.pipeline.model_files import Subject, make_subject
from natdeploy.pipeline.quantise import CALIBRATION
from natdeploy.pipeline.search import read_config
from natdeploy.pipeline.setting import stored_task
from natdeploy.progress import Progress
from natdeploy.space import Arch
from natdeploy.store import FileRecord, NetRecord, RunStore


def run_subjects(store: RunStore, target: str | None, arch: str | None, converted: Path, progress: Progress) -> list[Subject]:
    """The exported nets of a run, or those that are meant by `arch`, and the seed network, which is exported if it is not yet.

    Args:
        store: of a finished run.
        target: as the user wrote it; the run's own by default.
        arch: as in `select_nets`.
        converted: folder for files of nets that were not exported for the target.
        progress: is told which are.

    Raises:
        UsageError: nothing is exported, or the target is unknown.
        DeviceError: a net has to be converted and its runtime is not installed here.
    """
    config = read_config(store)
    chosen = target_of(config, target)
    chosen.device.require_address()
    exported = {(file.role, file.id) for file in store.files() if file.refused is None}
    nets = _chosen(store, config, arch, exported)
    if not any(net.role == "front" for net in nets) and arch != "baseline":
        wanted = arch or "front"
        raise UsageError(
            f"nothing of {store.folder} is exported yet; run `natdeploy export {store.folder} --arch {wanted}` first"
            if not exported - {(net.role, net.id) for net in nets}
            else f"{wanted} of {store.folder} is not exported yet; run `natdeploy export {store.folder} --arch {wanted}` first"
        )
    subjects = []
    for net in nets:
        if (net.role, net.id) not in exported:
            export_net(store, net)
        exact = own_target(net, chosen)
        file = file_on(store, net, exact)
        path = convert(store, config, net, exact, converted) if file is None else store.folder / file.path
        resolution = Arch.parse(net.arch).resolution
        own = str(chosen) == str(target_of(config))
        subjects.append(
            make_subject(
                f"{net.role}-{net.id}",
                path,
                (1, 3, resolution, resolution),
                exact,
                id=net.id,
                net=net,
                predicted_ms=net.predicted_ms if own else None,
                estimated=net.estimated if own else False,
            )
        )
    made = [each.id for each in subjects if each.candidate.model.parent == converted]
    if made:
        progress.note(
            f"no file for {chosen} was exported of {', '.join(map(str, made))}; the same nets were converted, to be timed"
        )
    return subjects


def _chosen(store: RunStore, config: SearchConfig, arch: str | None, exported: set[tuple[str, str]]) -> list[NetRecord]:
    """The baseline and the nets of the front that are meant and were exported."""
    nets = finished_nets(store)
    wanted = nets if arch is None else select_nets(nets, config, arch)
    return [net for net in nets if net.role == "baseline" or (net in wanted and (net.role, net.id) in exported)]


def file_on(store: RunStore, net: NetRecord, target: Target) -> FileRecord | None:
    """The exported file of a net that a target's runtime runs in its precision; None where there is none."""
    runtime = get_runtime(target.runtime)
    if runtime.NAME == "tensorrt" and target.precision != "fp32":
        return None  # its ONNX files of other precisions are made for it alone
    for file in store.files():
        mine = (file.role, file.id, file.precision) == (net.role, net.id, target.precision) and file.refused is None
        path = store.folder / file.path
        if mine and path.suffix == runtime.SUFFIX and path.is_file():
            return file
    return None


def convert(store: RunStore, config: SearchConfig, net: NetRecord, target: Target, folder: Path) -> Path:
    """A file of a net for a target, with ranges of int8 from the run's calibration images."""
    runtime, arch = get_runtime(target.runtime), Arch.parse(net.arch)
    installed_version(runtime)
    path = folder / f"{net.role}-{net.id}{runtime.SUFFIX}"
    runtime.convert(
        load_subnet(store, arch, tuned=net.tuned_accuracy is not None),
        torch.zeros(1, 3, arch.resolution, arch.resolution),
        path,
        precision=target.precision,
        dynamic_size=False,
        calibration=_calibration(store, config, arch.resolution) if target.precision == "int8" else None,
    )
    return path


def _calibration(store: RunStore, config: SearchConfig, resolution: int) -> Sequence[torch.Tensor]:
    batches = stored_task(config, store).batches("calibration", resolution, CALIBRATION)
    return list(islice((image[None] for batch, _ in batches for image in batch), CALIBRATION))
