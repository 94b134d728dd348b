"""The nets of a run as files that a target runs: those that were exported, and for other targets conversions of the same nets."""

from __future__ import annotations

from pathlib import Path

import torch

from natdeploy.errors import UsageError
from natdeploy.export import read_bundle
from natdeploy.hardware.device import Target
from natdeploy.hardware.runtimes import CALIBRATION_IMAGES, get_runtime, installed_version
from natdeploy.pipeline.bundles import wanted
from natdeploy.pipeline.config import SearchConfig, target_of
from natdeploy.pipeline.export import export_net, file_for
from natdeploy.pipeline.finished import finished_nets, load_subnet, own_target, select_nets
from natdeploy.pipeline.model_files import Inputs, Shape, Subject, inputs_of, make_subject
from natdeploy.pipeline.outputs import calibration_images
from natdeploy.pipeline.search import read_config
from natdeploy.pipeline.setting import stored_space, stored_task
from natdeploy.progress import Progress
from natdeploy.space import Arch
from natdeploy.store import NetRecord, RunStore


def run_subjects(
    store: RunStore, target: str | None, arch: str | None, converted: Path, progress: Progress, *, prefix: str = ""
) -> list[Subject]:
    """The exported nets of a run, or those that are meant by `arch`, and the seed network, which is exported if it is not yet.

    Args:
        store: of a finished run.
        target: as the user wrote it; the run's own by default.
        arch: as in `select_nets`.
        converted: folder for files of nets that were not exported for the target.
        progress: is told which are.
        prefix: of their names.

    Raises:
        UsageError: nothing is exported, or the target is unknown.
        DeviceError: a net has to be converted and its runtime is not installed here.
    """
    config = read_config(store)
    chosen = target_of(config, target)
    chosen.device.require_address()
    exported = {(file.role, file.id) for file in store.files() if file.path is not None}
    nets = _chosen(store, config, arch, exported)
    if not any(net.role == "front" for net in nets) and arch != "baseline":
        which = arch or "front"
        missing = (
            f"{which} of {store.folder} is not"
            if exported - {(net.role, net.id) for net in nets}
            else f"nothing of {store.folder} is"
        )
        raise UsageError(f"{missing} exported yet; run `natdeploy export {store.folder} --arch {which}` first")
    subjects = []
    for net in nets:
        if (net.role, net.id) not in exported:
            export_net(store, net, wanted(("onnx",), ("fp32",)))
        exact = own_target(net, chosen)
        path, shape, inputs = _file(store, config, net, exact, converted)
        own = str(chosen) == str(target_of(config))
        subjects.append(
            make_subject(
                f"{prefix}{net.role}-{net.id}",
                path,
                shape,
                exact,
                inputs=inputs,
                id=net.id,
                run=store.folder,
                net=net,
                predicted_ms=net.predicted_ms if own else None,
                estimated=net.estimated if own else False,
            )
        )
    made = [each.id for each in subjects if each.candidate.model.parent == converted]
    if made:
        progress.note(
            f"no file for {chosen} that takes prepared images was exported of {', '.join(map(str, made))}; the same nets were "
            "converted, to be timed"
        )
    return subjects


def _chosen(store: RunStore, config: SearchConfig, arch: str | None, exported: set[tuple[str, str]]) -> list[NetRecord]:
    """The baseline and the nets of the front that are meant and were exported."""
    nets = finished_nets(store)
    meant = nets if arch is None else select_nets(nets, config, arch)
    return [net for net in nets if net.role == "baseline" or (net in meant and (net.role, net.id) in exported)]


def _file(store: RunStore, config: SearchConfig, net: NetRecord, target: Target, folder: Path) -> tuple[Path, Shape, Inputs]:
    """A file of a net for a target, with its inputs: the exported one, or one made in a folder.

    What resizes photos is not taken: the net's own time would be lost in theirs.
    """
    exported = file_for(store, net, target)
    if exported is not None and exported.path is not None and (store.folder / exported.path).is_file():
        path = store.folder / exported.path
        (file,) = [each for each in read_bundle(path.parent).files if each.name == path.name]
        taken = inputs_of(file)
        if taken is not None and not file.input.resized:
            return path, *taken
    size = stored_space(config, store).input_size(Arch.parse(net.arch).resolution)
    return convert(store, config, net, target, folder), (1, 3, *size), ()


def convert(store: RunStore, config: SearchConfig, net: NetRecord, target: Target, folder: Path) -> Path:
    """A file of a net for a target, with ranges of int8 from the run's calibration images."""
    runtime, arch = get_runtime(target.runtime), Arch.parse(net.arch)
    installed_version(runtime)
    path = folder / f"{net.role}-{net.id}{runtime.SUFFIX}"
    subnet = load_subnet(store, arch, tuned=net.tuned_accuracy is not None)
    runtime.convert(
        subnet,
        torch.zeros(subnet.input_shape),
        path,
        precision=target.precision,
        dynamic_size=False,
        calibration=calibration_images(stored_task(config, store), arch.resolution, CALIBRATION_IMAGES)
        if target.precision == "int8"
        else None,
    )
    return path
