"""Networks of a finished run as files that can be handed on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx
import onnxruntime
import torch

from natdeploy._version import __version__
from natdeploy.errors import UsageError
from natdeploy.export import Description, Latency, Preprocessing, write_bundle
from natdeploy.logs import log_to
from natdeploy.pipeline.config import target_of
from natdeploy.pipeline.finished import finished_nets, load_subnet, own_target, select_nets
from natdeploy.pipeline.search import LOG, read_config
from natdeploy.pipeline.setting import stored_convention, stored_task
from natdeploy.progress import Progress, Silent
from natdeploy.space import Arch
from natdeploy.store import FileRecord, NetRecord, RunStore
from natdeploy.training.judge import BATCH

FORMATS = ("onnx",)


def export(
    folder: Path, arch: str = "knee", formats: Sequence[str] = ("onnx",), progress: Progress | None = None
) -> list[FileRecord]:
    """Writes nets of a run as files, each checked against torch and scored in its runtime on the test images.

    Args:
        folder: of the run.
        arch: `knee`, `best`, `fastest`, `front`, `baseline`, wished-for levels such as `error=5%,latency=1ms`, bounds such as
            `latency<=1ms`, or the beginning of an id.
        formats: of the files.
        progress: is told about every net.

    Raises:
        UsageError: the run is not finished, or a format or net is unknown.
        AccuracyGateError: a file does not compute what the net computes.
    """
    progress = progress or Silent()
    for name in formats:
        if name not in FORMATS:
            raise UsageError(f"there is no format {name!r} yet; choose {', '.join(FORMATS)}")
    with RunStore.open(folder) as store, log_to(folder / LOG):
        nets = select_nets(finished_nets(store), read_config(store), arch)
        files = []
        with progress.task("exporting", len(nets), "nets") as advance:
            for net in nets:
                files.append(export_net(store, net))
                advance(1)
        return files


def export_net(store: RunStore, net: NetRecord) -> FileRecord:
    """Writes one net of a run as its folder of files."""
    config, convention = read_config(store), stored_convention(store)
    arch = Arch.parse(net.arch)
    task = stored_task(config, store)
    test_accuracy = net.final_accuracy
    assert config.seed_weights is not None and test_accuracy is not None
    name = f"models/{net.id}"
    metadata = write_bundle(
        store.folder / name,
        load_subnet(store, arch, tuned=net.tuned_accuracy is not None),
        Description(
            arch=net.arch,
            id=net.id,
            space=config.space,
            params=net.params,
            macs=net.macs,
            labels=tuple(store.get("classes")),
            preprocessing=Preprocessing(
                square_px=task.pixels.size, size_px=arch.resolution, mean=convention.mean, std=convention.std
            ),
            seed=config.seed_weights.name,
            seed_sha256=store.get("seed_sha256"),
            versions={
                "natdeploy": __version__,
                "torch": torch.__version__,
                "onnx": onnx.__version__,
                "onnxruntime": onnxruntime.__version__,
            },
        ),
        test_images=lambda: task.batches("test", arch.resolution, BATCH),
        validation_accuracy=net.validation_accuracy,
        test_accuracy=test_accuracy,
        latency=latency_of(net, str(own_target(net, target_of(config)))),
    )
    (file,) = metadata.files
    record = FileRecord(
        role=net.role,
        id=net.id,
        format="onnx",
        precision="fp32",
        path=f"{name}/{file.name}",
        size_mb=file.size_mb,
        validation_accuracy=None,
        test_accuracy=file.test_accuracy,
        agreement=file.parity.top1_agreement,
        max_rel=file.parity.max_rel,
    )
    store.put_file(record)
    return record


def latency_of(net: NetRecord, target: str, mean_ms: float | None = None) -> Latency:
    """What is known of a net on a target, as its folder tells it."""
    names = ("predicted_ms", "measured_p50_ms", "measured_p90_ms", "measured_n", "unstable", "estimated")
    return Latency(target=target, measured_mean_ms=mean_ms, **{name: getattr(net, name) for name in names})
