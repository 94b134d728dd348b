"""Networks of a finished run as files that can be handed on."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from natdeploy._version import __version__
from natdeploy.errors import DamagedFileError, UsageError
from natdeploy.export import (
    INPUT_KINDS,
    METADATA,
    PARITY_LIMIT,
    PRECISIONS,
    Array,
    Batch,
    Description,
    Format,
    InputKind,
    Latency,
    Metadata,
    ModelFile,
    Preprocessing,
    TensorFacts,
    add_file,
    as_input,
    check_precision,
    compare,
    get_format,
    input_facts,
    onnx,
    quantisation,
    read_bundle,
    remove_file,
    sha256,
    size_mb,
    write,
)
from natdeploy.export.formats import FORMATS
from natdeploy.hardware.device import Target
from natdeploy.hardware.runtimes import CALIBRATION_IMAGES, Runtime, installed_version
from natdeploy.logs import log_to
from natdeploy.pipeline.config import target_of
from natdeploy.pipeline.finished import finished_nets, load_subnet, own_target, select_nets
from natdeploy.pipeline.outputs import accuracy, calibration_images, file_outputs, torch_outputs
from natdeploy.pipeline.search import LOG, read_config
from natdeploy.pipeline.setting import stored_convention, stored_space, stored_task
from natdeploy.progress import Progress, Silent
from natdeploy.runtimes import ort
from natdeploy.space import Arch
from natdeploy.store import FileRecord, NetRecord, RunStore
from natdeploy.supernet import Subnet
from natdeploy.tasks import Classification, SplitName

MAX_DROP = 1.0
FEW_IMAGES = 32
"""With fewer, what int8 learns of ranges is told to be unsure."""


@dataclass(frozen=True)
class Export:
    """What is wanted of every net.

    Attributes:
        formats: of its files.
        precisions: of its files; without any, the one the search chose for the net, or fp32.
        max_drop: points of validation accuracy that a file may lose to torch.
        input: that its files take.
    """

    formats: tuple[Format, ...]
    precisions: tuple[str, ...] = ()
    max_drop: float = MAX_DROP
    input: InputKind = "nchw"

    def precisions_of(self, net: NetRecord) -> list[str]:
        """The safest first, so that what may be offered in the place of a refused one is known."""
        wanted = self.precisions or (net.precision or PRECISIONS[0],)
        return sorted(dict.fromkeys(wanted), key=PRECISIONS.index)


def export(
    folder: Path,
    arch: str = "knee",
    formats: Sequence[str] = ("onnx",),
    precisions: Sequence[str] = (),
    *,
    max_drop: float = MAX_DROP,
    input: InputKind = "nchw",
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
        max_drop: points of validation accuracy that a file may lose to torch in fp32.
        input: `nchw` or `nhwc` for prepared floats, `image` for the bytes of an image, which the file then prepares itself.
        progress: is told about every file.

    Raises:
        UsageError: the run is not finished, or a format, precision, input or net is unknown.
        DeviceError: the runtime of a format is not installed.
        MissingRuntimeError: what writes a format is not installed.
        NatdeployError: a file cannot be written.
    """
    progress = progress or Silent()
    wanted = _wanted(formats, precisions, max_drop, input)
    with RunStore.open(folder) as store, log_to(folder / LOG):
        nets = select_nets(finished_nets(store), read_config(store), arch)
        files = []
        count = len(wanted.formats) * sum(len(wanted.precisions_of(net)) for net in nets)
        with progress.task("exporting", count, "files") as advance:
            for net in nets:
                for file in export_net(store, net, wanted, progress, advance):
                    files.append(file)
        return files


def _wanted(formats: Sequence[str], precisions: Sequence[str], max_drop: float, input: str) -> Export:
    for name in precisions:
        check_precision(name)
    if input not in INPUT_KINDS:
        raise UsageError(f"there is no input {input!r} of files; choose {', '.join(INPUT_KINDS)}")
    if not max_drop >= 0:
        raise UsageError(f"at most {max_drop:g} points of accuracy may be lost? give 0 or more")
    chosen = tuple(get_format(name) for name in dict.fromkeys(formats))
    if not chosen:
        raise UsageError(f"no format is asked for; choose {', '.join(FORMATS)}")
    for format in chosen:
        installed_version(format.checked_by())
    return Export(chosen, tuple(precisions), max_drop, input)


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


def format_of(target: Target) -> Format:
    """The format that a target's runtime reads."""
    return next(each for each in FORMATS.values() if target.runtime == each.runtime.NAME)


def export_net(
    store: RunStore,
    net: NetRecord,
    wanted: Export,
    progress: Progress | None = None,
    advance: Callable[[int], None] = lambda _: None,
) -> list[FileRecord]:
    """Writes one net of a run into its folder, as `export` does."""
    config = read_config(store)
    stored_space(config, store)  # refuses one that has changed, also where every file is there
    task = stored_task(config, store)
    bundle = _Bundle(store, net, task, wanted, progress or Silent())
    made = []
    for format in wanted.formats:
        for precision in wanted.precisions_of(net):
            made.append(bundle.add(format, precision))
            advance(1)
    return made


SPLITS: tuple[SplitName, SplitName] = ("validation", "test")


class _Bundle:
    """The folder of one net, and what is needed to add files to it."""

    def __init__(self, store: RunStore, net: NetRecord, task: Classification, wanted: Export, progress: Progress) -> None:
        self._store, self._net, self._task, self._wanted, self._progress = store, net, task, wanted, progress
        self._name = bundle_name(net)
        self._folder = store.folder / self._name
        self._arch = Arch.parse(net.arch)
        self._description = _describe(store, net, task)
        self._metadata = self._known()

    def add(self, format: Format, precision: str) -> FileRecord:
        """Makes a file, unless it is there, and puts it into the folder and into the run, unless it is refused."""
        name = format.file_name(precision)
        file = self._made_before(format, precision)
        refused = None
        if file is None:
            with tempfile.TemporaryDirectory() as unchecked:
                file = self._make(format, precision, Path(unchecked))
                refused = self._refusal(file)
                if refused is None:
                    self._metadata = add_file(self._folder, self._metadata, file, Path(unchecked))
                else:
                    self._metadata = remove_file(self._folder, self._metadata, name)
                    self._progress.note(f"{self._net.id}: {name} is refused: {refused}")
        record = FileRecord(
            role=self._net.role,
            id=self._net.id,
            format=format.name,
            precision=precision,
            path=None if refused else f"{self._name}/{name}",
            size_mb=file.size_mb,
            validation_accuracy=file.validation_accuracy,
            test_accuracy=file.test_accuracy,
            agreement=file.parity.top1_agreement,
            max_rel=file.parity.max_rel,
            refused=refused,
        )
        self._store.put_file(record)
        return record

    @cached_property
    def _subnet(self) -> Subnet:
        return load_subnet(self._store, self._arch, tuned=self._net.tuned_accuracy is not None)

    @cached_property
    def _reference(self) -> dict[SplitName, Batch]:
        return {split: torch_outputs(self._subnet, self._task, split) for split in SPLITS}

    @cached_property
    def _calibration(self) -> list[Tensor]:
        images = calibration_images(self._task, self._arch.resolution, CALIBRATION_IMAGES)
        if len(images) < FEW_IMAGES:
            self._progress.note(
                f"int8 learns its ranges from {len(images)} images, all that the calibration split has; {CALIBRATION_IMAGES} are "
                "usual, and the accuracy may suffer"
            )
        return images

    def _known(self) -> Metadata:
        """What the folder says already, of this net; else nothing but the description."""
        try:
            found = read_bundle(self._folder) if (self._folder / METADATA).exists() else None
        except DamagedFileError as error:
            self._progress.note(f"{error.args[0].split('; ')[0]}: what is asked for is exported anew")
            found = None
        if found is not None and found.description.arch == self._net.arch:
            return found.model_copy(update={"description": self._description})
        latency = latency_of(self._net, str(own_target(self._net, target_of(read_config(self._store)))))
        return Metadata(description=self._description, validation_accuracy=None, test_accuracy=None, latencies=(latency,))

    def _made_before(self, format: Format, precision: str) -> ModelFile | None:
        """A file that is there, and would come out the same and pass."""
        runtime = format.checked_by()
        for file in self._metadata.files:
            if (
                file.name == format.file_name(precision)
                and file.input == input_facts(ort.INPUT, self._wanted.input, self._arch.resolution)
                and file.checked_in == f"{runtime.NAME} {installed_version(runtime)}"
                and self._refusal(file) is None
            ):
                return file
        return None

    def _make(self, format: Format, precision: str, folder: Path) -> ModelFile:
        """Writes a file into a folder and tries it there."""
        runtime, path = format.checked_by(), folder / format.file_name(precision)
        wanted = input_facts(ort.INPUT, self._wanted.input, self._arch.resolution)
        calibration = self._calibration if precision == "int8" else []
        write(
            self._subnet,
            path,
            format,
            precision,
            kind=self._wanted.input,
            description=self._description,
            calibration=calibration,
        )
        outputs = {split: self._outputs(path, runtime, precision, wanted, split) for split in SPLITS}
        found, expected = ({split: accuracy(self._task, each[split]) for split in SPLITS} for each in (outputs, self._reference))
        self._metadata = self._metadata.model_copy(
            update={"validation_accuracy": expected["validation"], "test_accuracy": expected["test"]}
        )
        companions = format.runtime.companions(path)
        return ModelFile(
            name=path.name,
            format=format.name,
            precision=precision,
            sha256=sha256(path),
            companions={each.name: sha256(each) for each in companions},
            size_mb=size_mb((path, *companions)),
            opset=onnx.opset(path) if path.suffix == ort.SUFFIX else None,
            input=wanted,
            output=TensorFacts(name=ort.OUTPUT, shape=(1, len(self._description.labels))),
            quantisation=quantisation(format, len(calibration)) if precision == "int8" else None,
            checked_in=f"{runtime.NAME} {installed_version(runtime)}",
            validation_accuracy=found["validation"],
            drop=100 * (expected["validation"] - found["validation"]),
            test_accuracy=found["test"],
            parity=compare(outputs["validation"][0], self._reference["validation"][0]),
        )

    def _outputs(self, path: Path, runtime: Runtime, precision: str, wanted: TensorFacts, split: SplitName) -> Batch:
        def prepare(image: Tensor) -> Array:
            return as_input(image, wanted, self._description.preprocessing)

        return file_outputs(
            path,
            runtime,
            precision,
            resolution=self._arch.resolution,
            task=self._task,
            split=split,
            shape=wanted.shape,
            prepare=prepare,
        )

    def _refusal(self, file: ModelFile) -> str | None:
        """Why a file is not to be used, and what to use in its place."""
        if file.precision == PRECISIONS[0] and not file.parity.max_rel <= PARITY_LIMIT:
            return (
                f"its logits differ from torch's by {file.parity.max_rel:.0e} of an image's largest (at most {PARITY_LIMIT:g} is "
                "allowed); report this as a fault of natdeploy"
            )
        if file.drop is None or file.drop <= self._wanted.max_drop:
            return None
        better = PRECISIONS[PRECISIONS.index(file.precision) - 1 :: -1]
        there = [
            each.name
            for precision in better
            for each in self._metadata.files
            if (each.format, each.precision) == (file.format, precision)
        ]
        instead = f"use {there[0]}" if there else f"export it with --precision {better[0]}"
        return (
            f"it loses {file.drop:.1f} points of validation accuracy, and at most {self._wanted.max_drop:g} may be lost; {instead}"
        )


def bundle_name(net: NetRecord) -> str:
    """The folder of a net's files, relative to the run's."""
    return f"models/{net.id}"


def _describe(store: RunStore, net: NetRecord, task: Classification) -> Description:
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
        preprocessing=Preprocessing(
            square_px=task.pixels.size, size_px=Arch.parse(net.arch).resolution, mean=convention.mean, std=convention.std
        ),
        seed=config.seed_weights.name,
        seed_sha256=store.get("seed_sha256"),
        licence=about.get("licence") or about.get("source"),
        data_fingerprint=store.get("fingerprint"),
        random_seed=config.seed,
        versions={"natdeploy": __version__, "torch": torch.__version__},
    )


def latency_of(net: NetRecord, target: str, mean_ms: float | None = None) -> Latency:
    """What is known of a net on a target, as its folder tells it."""
    names = ("predicted_ms", "measured_p50_ms", "measured_p90_ms", "measured_n", "unstable", "estimated")
    return Latency(target=target, measured_mean_ms=mean_ms, **{name: getattr(net, name) for name in names})
