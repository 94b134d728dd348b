"""A network as a folder that can be handed on: files, their facts for programs (metadata.json) and for people (README.md)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from pydantic import ValidationError

from natdeploy.errors import DamagedFileError
from natdeploy.export.card import model_card
from natdeploy.export.facts import Latency, Metadata, ModelFile
from natdeploy.export.formats import FORMATS, PRECISIONS
from natdeploy.export.scripts import BUILD, build_script, script, script_name
from natdeploy.files import write_atomic
from natdeploy.invalid import faults

CARD = "README.md"
METADATA = "metadata.json"


def add_file(folder: Path, metadata: Metadata, file: ModelFile, made: Path) -> Metadata:
    """Puts a checked file into a bundle, in the place of an earlier one of its name, and writes what tells of it.

    The file is there whole before metadata.json speaks of it.

    Args:
        folder: of the bundle; made where it is missing.
        metadata: what the bundle is to say of the network and its other files.
        file: what it is to say of this one.
        made: where the file and its companions lie.

    Raises:
        NatdeployError: a file cannot be written.
    """
    for name in (*file.companions, file.name):
        write_atomic(folder / name, (made / name).read_bytes())
    others = [each for each in metadata.files if each.name != file.name]
    metadata = metadata.model_copy(update={"files": tuple(sorted([*others, file], key=_place))})
    alike = [each for each in metadata.files if each.format == file.format]
    what = metadata.description
    write_atomic(folder / script_name(file.format, what), script(alike[0], what).encode())
    if file.format == "tensorrt":
        write_atomic(folder / BUILD, build_script(alike).encode())
    write_metadata(folder, metadata)
    return metadata


def remove_file(folder: Path, metadata: Metadata, name: str) -> Metadata:
    """Takes a file that is not to be used any more out of a bundle.

    Raises:
        NatdeployError: metadata.json cannot be written.
    """
    gone = [each for each in metadata.files if each.name == name]
    if not gone:
        return metadata
    metadata = metadata.model_copy(update={"files": tuple(each for each in metadata.files if each.name != name)})
    write_metadata(folder, metadata)
    for each in (name, *gone[0].companions):
        (folder / each).unlink(missing_ok=True)
    return metadata


def _place(file: ModelFile) -> tuple[int, int]:
    return list(FORMATS).index(file.format), PRECISIONS.index(file.precision)


def record_latency(folder: Path, latency: Latency) -> Metadata:
    """Replaces what a bundle says about one target, or adds it.

    Raises:
        DamagedFileError: the bundle is not whole.
        NatdeployError: it cannot be written.
    """
    metadata = read_bundle(folder)
    others = tuple(each for each in metadata.latencies if each.target != latency.target)
    metadata = metadata.model_copy(update={"latencies": (*others, latency)})
    write_metadata(folder, metadata)
    return metadata


def read_bundle(folder: Path) -> Metadata:
    """The metadata of a bundle whose files are those it speaks of.

    Raises:
        DamagedFileError: a file is missing, or holds something else.
    """
    path = folder / METADATA
    try:
        metadata = Metadata.model_validate_json(path.read_bytes())
        for file in metadata.files:
            for name, expected in {file.name: file.sha256, **file.companions}.items():
                path = folder / name
                if sha256(path) != expected:
                    raise DamagedFileError(f"{path} is not the file that {METADATA} speaks of; export it again")
    except OSError as error:
        raise DamagedFileError(f"{path} cannot be read ({error.strerror}); export it again") from error
    except ValidationError as error:
        first = faults(error)[0]
        where = f" at {first.place}" if first.place else ""
        raise DamagedFileError(f"{path} is damaged ({first.reason}{where}); export it again") from error
    return metadata


def sha256(path: Path) -> str:
    """Of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def size_mb(paths: Iterable[Path]) -> float:
    """Megabytes, of 10^6 bytes."""
    return sum(path.stat().st_size for path in paths) / 1e6


def write_metadata(folder: Path, metadata: Metadata) -> None:
    """Writes the card, and then metadata.json: what the card tells holds for a folder that has both."""
    write_atomic(folder / CARD, model_card(metadata).encode())
    write_atomic(folder / METADATA, (metadata.model_dump_json(indent=2) + "\n").encode())
