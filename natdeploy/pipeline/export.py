"""Networks of a finished run as files that can be handed on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from natdeploy._version import __version__
from natdeploy.export import FORMATS, Description, Format, InputKind, Latency, PhotoSize, Preprocessing
from natdeploy.hardware.device import Target
from natdeploy.logs import log_to
from natdeploy.pipeline.bundles import MAX_DROP, Bundle, Wanted, wanted
from natdeploy.pipeline.config import target_of
from natdeploy.pipeline.finished import finished_nets, load_subnet, own_target, select_nets
from natdeploy.pipeline.search import LOG, read_config
from natdeploy.pipeline.setting import stored_convention, stored_space, stored_task
from natdeploy.pipeline.suppressed import write_suppressed
from natdeploy.progress import Progress, Silent
from natdeploy.space import Arch
from natdeploy.store import FileRecord, NetRecord, RunStore
from natdeploy.supernet import InputConvention
from natdeploy.tasks import Task, TaskName, palette


def export(
    folder: Path,
    arch: str = "knee",
    formats: Sequence[str] = ("onnx",),
    precisions: Sequence[str] = (),
    *,
    max_drop: float = MAX_DROP,
    input: InputKind = "nchw",
    photo_size: PhotoSize | None = None,
    nms: bool = False,
    progress: Progress | None = None,
) -> list[FileRecord]:
    """Writes nets of a run as files, each compared with torch and scored in its own runtime before it is handed out.

    A file that loses more than `max_drop` is refused: its record says why, and no file is left. What was exported before and is
    whole is not made again.

    Args:
        folder: of the run.
        arch: `knee`, `best`, `fastest`, `front`, `baseline`, wished-for levels such as `error=5%,latency=1ms`, bounds such as
            `latency<=1ms`, or the beginning of an id.
        formats: `onnx`, `openvino`, `tflite`, `tensorrt`.
        precisions: `fp32`, `fp16`, `int8`; by default the one the search chose for a net, or fp32.
        max_drop: points of the task's metric on validation images, accuracy or mean IoU, that a file may lose to torch in fp32.
        input: `nchw` or `nhwc` for prepared floats, `image` for the bytes of an image, which the file then prepares itself,
            `photo` for those of a photo, which it resizes as well.
        photo_size: height and width of photos, px, for formats whose files resize photos of one size only: `tflite`.
        nms: also `model.nms.onnx`, of networks that find objects: with non-maximum suppression inside.
        progress: is told about every file.

    Raises:
        UsageError: the run is not finished, or a format, precision, input or net is unknown.
        DeviceError: the runtime of a format is not installed.
        MissingRuntimeError: what writes a format is not installed.
        NatdeployError: a file cannot be written.
    """
    progress = progress or Silent()
    asked = wanted(formats, precisions, max_drop=max_drop, input=input, photo_size=photo_size)
    with RunStore.open(folder) as store, log_to(folder / LOG):
        config = read_config(store)
        torch.set_num_threads(config.threads)  # as while it was searched: idle threads of torch spin where a core is busy
        nets = select_nets(finished_nets(store), config, arch)
        files: list[FileRecord] = []
        count = len(asked.formats) * sum(len(asked.precisions_of(net.precision)) for net in nets)
        with progress.task("exporting", count, "files") as advance:
            for net in nets:
                files += export_net(store, net, asked, progress, advance)
                if nms:
                    progress.note(f"{_suppressed(store, net)}: with non-maximum suppression inside, as good as torch on validation")
        return files


def export_net(
    store: RunStore,
    net: NetRecord,
    asked: Wanted,
    progress: Progress | None = None,
    advance: Callable[[int], None] = lambda _: None,
) -> list[FileRecord]:
    """Writes one net of a run into its folder, as `export` does."""
    config = read_config(store)
    stored_space(config, store)  # refuses one that has changed, also where every file is there
    task = stored_task(config, store)
    bundle = Bundle(
        store.folder / bundle_name(net),
        _describe(store, net, task),
        lambda: load_subnet(store, Arch.parse(net.arch), tuned=net.tuned_accuracy is not None),
        task,
        wanted=asked,
        progress=progress or Silent(),
        latencies=(latency_of(net, str(own_target(net, target_of(config)))),),
    )
    made = []
    for format in asked.formats:
        for precision in asked.precisions_of(net.precision):
            made.append(bundle.add(format, precision, role=net.role, path=bundle_name(net)))
            store.put_file(made[-1])
            advance(1)
    return made


def _suppressed(store: RunStore, net: NetRecord) -> Path:
    task = stored_task(read_config(store), store)
    subnet = load_subnet(store, Arch.parse(net.arch), tuned=net.tuned_accuracy is not None)
    return write_suppressed(store.folder / bundle_name(net), _describe(store, net, task), subnet, task)


def file_for(store: RunStore, net: NetRecord, target: Target) -> FileRecord | None:
    """The exported file of a net that a target's runtime reads, in its precision; None where there is none, or it was refused."""
    format = format_of(target)
    return next(
        (
            file
            for file in store.files()
            if (file.role, file.id, file.format, file.precision) == (net.role, net.id, format.name, target.precision)
            and file.path is not None
        ),
        None,
    )


def bundle_of(store: RunStore, net: NetRecord) -> Path:
    """The folder that the files of a net were exported to; by an earlier version perhaps under another name."""
    paths = (file.path for file in store.files() if (file.role, file.id) == (net.role, net.id) and file.path is not None)
    return (store.folder / next(paths)).parent


def format_of(target: Target) -> Format:
    """The format that a target's runtime reads."""
    return next(each for each in FORMATS.values() if target.runtime == each.runtime.NAME)


def bundle_name(net: NetRecord) -> str:
    """The folder of a net's files, relative to the run's; weights that were trained alone have one of their own, since the baseline
    may have the same architecture and weights of the supernet."""
    return f"models/{net.id}-tuned" if net.tuned_accuracy is not None else f"models/{net.id}"


def _describe(store: RunStore, net: NetRecord, task: Task) -> Description:
    config, convention = read_config(store), stored_convention(store)
    assert config.seed_weights is not None
    about: dict[str, str] = store.get("seed_metadata") or {}
    return Description(
        arch=net.arch,
        id=net.id,
        space=config.space,
        params=net.params,
        macs=net.macs,
        labels=tuple(store.get("classes")),
        preprocessing=preprocessing(task.name, task.image_size, task.input_size(Arch.parse(net.arch).resolution), convention),
        seed=config.seed_weights.name,
        seed_sha256=store.get("seed_sha256"),
        licence=about.get("licence") or about.get("source"),
        data_fingerprint=store.get("fingerprint"),
        random_seed=config.seed,
        versions={"natdeploy": __version__, "torch": torch.__version__},
        task=task.name,
        metric=task.metric_name,
        palette=palette(len(task.classes)) if task.name == "segmentation" else None,
    )


def preprocessing(task: TaskName, cut: tuple[int, int], size: tuple[int, int], convention: InputConvention) -> Preprocessing:
    """How photos become inputs (height, width) of a network, by way of images of the size that it learned from."""
    if cut[0] == cut[1] and size[0] == size[1]:
        whole = task == "detection"  # whose boxes would be cut off
        return Preprocessing(square_px=cut[0], size_px=size[0], mean=convention.mean, std=convention.std, whole=whole)
    return Preprocessing(cut_px=cut, input_px=size, mean=convention.mean, std=convention.std)


def latency_of(net: NetRecord, target: str, mean_ms: float | None = None) -> Latency:
    """What is known of a net on a target, as its folder tells it."""
    names = ("predicted_ms", "measured_p50_ms", "measured_p90_ms", "measured_n", "unstable", "estimated")
    return Latency(target=target, measured_mean_ms=mean_ms, **{name: getattr(net, name) for name in names})
