"""A network's folder of files, each made, tried in its own runtime and compared with torch before it is put there."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from natdeploy.errors import DamagedFileError, UsageError
from natdeploy.export import (
    FORMATS,
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
    Parity,
    PhotoSize,
    TensorFacts,
    add_file,
    as_input,
    check_photos,
    check_precision,
    compare,
    fitted,
    get_format,
    input_facts,
    onnx,
    prepared,
    quantisation,
    read_bundle,
    remove_file,
    sha256,
    size_mb,
    together,
    write,
)
from natdeploy.hardware.runtimes import CALIBRATION_IMAGES, Runtime, installed_version
from natdeploy.pipeline.outputs import Reference, calibration_images, file_outputs
from natdeploy.progress import Progress
from natdeploy.runtimes import ort
from natdeploy.space import Arch
from natdeploy.store import FileRecord
from natdeploy.supernet import Subnet
from natdeploy.tasks import SplitName, Task
from natdeploy.training.judge import BATCH, verdict_of

MAX_DROP = 1.0
FEW_IMAGES = 32
"""With fewer, what int8 learns of ranges is told to be unsure."""
NOISE_IMAGES = 16
"""Images of chance that files are compared on with torch where no others are given."""


@dataclass(frozen=True)
class Wanted:
    """What is wanted of every net.

    Attributes:
        formats: of its files.
        precisions: of its files; without any, the one the search chose for the net, or fp32.
        max_drop: points of the task's metric on validation images, accuracy or mean IoU, that a file may lose to torch.
        input: that its files take.
        photo_size: height and width, px, of the photos that files take whose format wants one size; others take any.
    """

    formats: tuple[Format, ...]
    precisions: tuple[str, ...] = ()
    max_drop: float = MAX_DROP
    input: InputKind = "nchw"
    photo_size: PhotoSize | None = None

    def input_of(self, format: Format, size: tuple[int, int]) -> TensorFacts:
        """The input of a format's file, for images of a size (height, width)."""
        return input_facts(ort.INPUT, self.input, size, self.photo_size if format.photos == "one" else None)

    def precisions_of(self, own: str | None) -> list[str]:
        """Of a net whose own precision the search chose, or not; the safest first, so that it is known what to offer for others."""
        return sorted(dict.fromkeys(self.precisions or (own or PRECISIONS[0],)), key=PRECISIONS.index)


def wanted(
    formats: Sequence[str],
    precisions: Sequence[str] = (),
    *,
    max_drop: float = MAX_DROP,
    input: str = "nchw",
    photo_size: PhotoSize | None = None,
) -> Wanted:
    """What a user asks for by names.

    Raises:
        UsageError: a name is unknown, nothing is asked for, or a format does not take photos as they are asked for.
        DeviceError: the runtime of a format is not installed.
    """
    for name in precisions:
        check_precision(name)
    known = next((each for each in INPUT_KINDS if each == input), None)
    if known is None:
        raise UsageError(f"there is no input {input!r} of files; choose {', '.join(INPUT_KINDS)}")
    if not max_drop >= 0:
        raise UsageError(f"at most {max_drop:g} points of accuracy may be lost? give 0 or more")
    chosen = tuple(get_format(name) for name in dict.fromkeys(formats))
    if not chosen:
        raise UsageError(f"no format is asked for; choose {', '.join(FORMATS)}")
    if photo_size is not None and not (known == "photo" and any(format.photos == "one" for format in chosen)):
        ones = " or ".join(each.name for each in FORMATS.values() if each.photos == "one")
        raise UsageError(f"--photo-size is for {ones} with --input photo; leave it out")
    for format in chosen:
        if known == "photo":
            check_photos(format, photo_size)
        installed_version(format.checked_by())
    return Wanted(chosen, tuple(precisions), max_drop, known, photo_size)


class Bundle:
    """The folder of one net, and what is needed to add files to it.

    Args:
        folder: of the files.
        description: of the net.
        subnet: gives the net, in evaluation mode on the CPU; asked only if a file is made.
        task: gives images; None where there are none, and files are compared on noise.
        labelled: whether the images are of the net's own classes, so that there is an accuracy.
        wanted: of the files.
        progress: is told what is refused, and what else to know.
        latencies: what is known of a net whose folder is new.
    """

    def __init__(
        self,
        folder: Path,
        description: Description,
        subnet: Callable[[], Subnet],
        task: Task | None,
        *,
        wanted: Wanted,
        progress: Progress,
        labelled: bool = True,
        latencies: tuple[Latency, ...] = (),
    ) -> None:
        self._folder, self._description, self._load, self._task = folder, description, subnet, task
        self._wanted, self._progress, self._labelled = wanted, progress, labelled
        self._resolution, self._size = Arch.parse(description.arch).resolution, description.preprocessing.size
        self._metadata = self._known(latencies)
        self._photo_references: dict[PhotoSize | None, Reference] = {}

    def add(self, format: Format, precision: str, *, role: str, path: str) -> FileRecord:
        """Makes a file, unless it is there, and puts it into the folder, unless it is refused.

        Args:
            format: of the file.
            precision: of it.
            role: of the net, for the record.
            path: of the folder, for the record.

        Raises:
            UsageError: int8, and there are no images.
            MissingRuntimeError: what writes the format is not installed.
            NatdeployError: the file cannot be written.
        """
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
                    self._progress.note(f"{self._description.id}: {name} is refused: {refused}")
        return FileRecord(
            role=role,
            id=self._description.id,
            format=format.name,
            precision=precision,
            path=None if refused else f"{path}/{name}",
            size_mb=file.size_mb,
            validation_accuracy=file.validation_accuracy,
            test_accuracy=file.test_accuracy,
            agreement=file.parity.top1_agreement,
            max_rel=file.parity.max_rel,
            refused=refused,
        )

    @cached_property
    def _subnet(self) -> Subnet:
        return self._load()

    @property
    def _splits(self) -> tuple[SplitName, ...]:
        return ("validation",) if self._task is None else ("validation", "test")

    def _batches(self, split: SplitName) -> Iterable[Batch]:
        """Images as the network takes them."""
        return self._noise if self._task is None else self._task.batches(split, self._resolution, BATCH)

    def _photos(self, split: SplitName, size: PhotoSize | None) -> Iterator[tuple[list[Array], Any]]:
        """The same images as photos (height, width, 3) of bytes, as they are or, where there is one size for all, fitted to it."""
        how = self._description.preprocessing
        for photos, targets in self._noise_photos if self._task is None else self._task.whole(split, BATCH):
            yield [fitted(photo, size, how) for photo in photos], targets

    @cached_property
    def _noise_photos(self) -> list[tuple[list[Array], Tensor]]:
        """Pixels of chance in all shapes, and labels that mean nothing."""
        rng = np.random.default_rng(0)
        shapes = rng.integers(self._resolution // 2, 3 * self._resolution, (NOISE_IMAGES, 2))
        photos: list[Array] = [rng.integers(0, 256, (height, width, 3), dtype=np.uint8) for height, width in shapes]
        return [(photos, torch.zeros(NOISE_IMAGES, dtype=torch.int64))]

    @cached_property
    def _noise(self) -> list[Batch]:
        """Pixels of chance, as the network takes them, and labels that mean nothing."""
        generator = torch.Generator().manual_seed(0)
        pixels = torch.randint(0, 256, (NOISE_IMAGES, 3, *self._size), generator=generator)
        how = self._description.preprocessing
        mean, std = (torch.tensor(each).view(3, 1, 1) for each in (how.mean, how.std))
        return [((pixels / 255 - mean) / std, torch.zeros(NOISE_IMAGES, dtype=torch.int64))]

    @cached_property
    def _reference(self) -> Reference:
        """What torch answers."""
        return Reference(self._subnet, self._batches)

    @cached_property
    def _expected(self) -> dict[SplitName, float | None]:
        """Metric of what torch answers."""
        return {split: self._metric(self._reference(split)) for split in self._splits}

    def _metric(self, answers: Iterable[Batch]) -> float | None:
        """Of answers to the images of a split; None where these are not of the network's own classes."""
        return verdict_of(self._task, answers).metric if self._task and self._labelled else None

    def _tried(
        self, answers: Iterable[Batch], split: SplitName, references: Sequence[Reference]
    ) -> tuple[float | None, list[Parity]]:
        """Metric of a file's answers to the images of a split, and how far they are from each of torch's."""
        parities: list[list[Parity]] = []

        def compared() -> Iterator[Batch]:
            for (outputs, labels), *expected in zip(answers, *(each(split) for each in references), strict=True):
                parities.append([compare(outputs, own) for own, _ in expected])
                yield outputs, labels

        pairs = compared()
        metric = self._metric(pairs)
        for _ in pairs:  # which nobody has asked for where there is no metric
            pass
        return metric, [together(each) for each in zip(*parities, strict=True)]

    def _photo_reference(self, size: PhotoSize | None) -> Reference:
        """What torch answers to photos, which it resizes itself."""
        how = self._description.preprocessing

        def batches(split: SplitName) -> Iterator[Batch]:
            for photos, labels in self._photos(split, size):
                yield torch.stack([prepared(photo, how) for photo in photos]), labels

        return self._photo_references.setdefault(size, Reference(self._subnet, batches))

    @cached_property
    def _calibration(self) -> list[Tensor]:
        if self._task is None:
            raise UsageError("int8 learns its ranges from images, and none are given; give some with --data")
        images = calibration_images(self._task, self._resolution, CALIBRATION_IMAGES)
        if len(images) < FEW_IMAGES:
            self._progress.note(
                f"int8 learns its ranges from {len(images)} images, all that the calibration split has; {CALIBRATION_IMAGES} are "
                f"usual, and the {self._description.metric} may suffer"
            )
        return images

    def _known(self, latencies: tuple[Latency, ...]) -> Metadata:
        """What the folder says already, of this net; else nothing but the description."""
        try:
            found = read_bundle(self._folder) if (self._folder / METADATA).exists() else None
        except DamagedFileError as error:
            self._progress.note(f"{error.args[0].split('; ')[0]}: what is asked for is exported anew")
            found = None
        if found is not None and found.description.same_net(self._description):
            return found.model_copy(update={"description": self._description})
        return Metadata(description=self._description, validation_accuracy=None, test_accuracy=None, latencies=latencies)

    def _made_before(self, format: Format, precision: str) -> ModelFile | None:
        """A file that is there, and would come out the same and pass."""
        runtime = format.checked_by()
        for file in self._metadata.files:
            if (
                file.name == format.file_name(precision)
                and file.input == self._wanted.input_of(format, self._size)
                and file.checked_in == f"{runtime.NAME} {installed_version(runtime)}"
                and self._refusal(file) is None
            ):
                return file
        return None

    def _make(self, format: Format, precision: str, folder: Path) -> ModelFile:
        """Writes a file into a folder and tries it there."""
        runtime, path = format.checked_by(), folder / format.file_name(precision)
        wanted = self._wanted.input_of(format, self._size)
        calibration = self._calibration if precision == "int8" else []
        write(
            self._subnet,
            path,
            format,
            precision,
            input=wanted,
            description=self._description,
            calibration=calibration,
        )
        answers = {split: self._answers(path, runtime, precision, wanted, split) for split in self._splits}
        # A file that resizes is compared with torch that resizes alike, and with what training saw.
        resizing = [self._photo_reference(wanted.photo_size)] if wanted.resized else []
        references = {"validation": [*resizing, self._reference]}
        tried = {split: self._tried(each, split, references.get(split, ())) for split, each in answers.items()}
        before, (after, parities) = self._expected["validation"], tried["validation"]
        self._metadata = self._metadata.model_copy(
            update={"validation_accuracy": before, "test_accuracy": self._expected.get("test")}
        )
        companions = format.runtime.companions(path)
        if precision == "int8" and format.runtime is ort:
            self._progress.note(f"{path.name}: on x86-64 without VNNI set {'='.join(ort.EXACT_INT8)} of ONNX Runtime's session")
        return ModelFile(
            name=path.name,
            format=format.name,
            precision=precision,
            sha256=sha256(path),
            companions={each.name: sha256(each) for each in companions},
            size_mb=size_mb((path, *companions)),
            opset=onnx.opset(path) if path.suffix == ort.SUFFIX else None,
            input=wanted,
            output=TensorFacts(name=ort.OUTPUT, shape=self._subnet.output_shape),
            quantisation=quantisation(format, len(calibration)) if precision == "int8" else None,
            checked_in=f"{runtime.NAME} {installed_version(runtime)}",
            validation_accuracy=after,
            drop=None if before is None or after is None else 100 * (before - after),
            test_accuracy=tried["test"][0] if "test" in tried else None,
            parity=parities[0],
            trained_agreement=parities[-1].top1_agreement if wanted.resized and self._task else None,
        )

    def _answers(self, path: Path, runtime: Runtime, precision: str, wanted: TensorFacts, split: SplitName) -> Iterator[Batch]:
        if wanted.resized:
            photos = self._photos(split, wanted.photo_size)
            return file_outputs(path, runtime, precision, photos, shape=None, prepare=lambda photo: photo[None])

        def prepare(image: Tensor) -> Array:
            return as_input(image, wanted, self._description.preprocessing)

        return file_outputs(path, runtime, precision, self._batches(split), shape=wanted.sizes, prepare=prepare)

    def _refusal(self, file: ModelFile) -> str | None:
        """Why a file is not to be used, and what to use in its place."""
        if file.precision == PRECISIONS[0] and not file.parity.max_rel <= PARITY_LIMIT:
            return (
                f"its logits differ from torch's by {file.parity.max_rel:.0e} of an image's largest (at most {PARITY_LIMIT:g} is "
                "allowed); report this as a fault of natdeploy"
            )
        if file.drop is None or file.drop <= self._wanted.max_drop:
            return None
        better = PRECISIONS[: PRECISIONS.index(file.precision)][::-1]
        there = [
            each.name
            for precision in better
            for each in self._metadata.files
            if (each.format, each.precision) == (file.format, precision)
        ]
        instead = [f"use {there[0]}"] if there else [f"export it with --precision {each}" for each in better[:1]]
        lost = (
            f"it loses {file.drop:.1f} points of validation {self._description.metric}, and at most "
            f"{self._wanted.max_drop:g} may be lost"
        )
        return "; ".join([lost, *instead])
