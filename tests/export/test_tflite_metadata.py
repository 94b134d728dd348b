"""TFLite's own metadata: read by the places that its schema gives to fields, and, where it is installed, by TFLite Support."""

from __future__ import annotations

import importlib
import importlib.util
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import flatbuffers
import numpy as np
import pytest
import torch
from flatbuffers import number_types
from flatbuffers.table import Table

from natdeploy.export import FORMATS, Description, InputKind, input_facts, tflite_metadata, write
from natdeploy.export.tflite import read_texts
from natdeploy.runtimes import tflite
from natdeploy.runtimes.tflite_writer import unpack
from natdeploy.supernet import Subnet

Write = Callable[..., Path]


@pytest.fixture
def written(
    needs: Callable[[str], None], make_subnet: Callable[..., Subnet], describe: Callable[[Subnet], Description], tmp_path: Path
) -> Write:
    """What writes a .tflite file for an input."""

    def make(kind: InputKind, licence: str | None = None) -> Path:
        needs("tflite")
        subnet, path = make_subnet(1), tmp_path / "model.tflite"
        description = describe(subnet).model_copy(update={"licence": licence})
        wanted = input_facts("input", kind, subnet.input_shape[2:], (60, 90))
        write(subnet, path, FORMATS["tflite"], "fp32", input=wanted, description=description, calibration=[])
        return path

    return make


class Reader:
    """A table of a flatbuffer, whose fields are asked for by their place in the schema."""

    def __init__(self, table: Table) -> None:
        self._table = table

    @classmethod
    def of(cls, data: bytes) -> Reader:
        return cls(Table(data, flatbuffers.encode.Get(number_types.UOffsetTFlags.packer_type, data, 0)))

    def _at(self, slot: int) -> int:
        place = self._table.Offset(4 + 2 * slot)
        return int(self._table.Pos + place) if place else 0

    def text(self, slot: int) -> str | None:
        return self._table.String(self._at(slot)).decode() if self._at(slot) else None

    def byte(self, slot: int) -> int:
        return int(self._table.Get(number_types.Int8Flags, self._at(slot))) if self._at(slot) else 0

    def numbers(self, slot: int) -> list[float]:
        array = self._table.GetVectorAsNumpy(number_types.Float32Flags, self._at(slot) - self._table.Pos)
        return [float(each) for each in array]

    def table(self, slot: int) -> Reader:
        return Reader(Table(self._table.Bytes, self._table.Indirect(self._at(slot))))

    def tables(self, slot: int) -> list[Reader]:
        offset = self._at(slot) - self._table.Pos
        start = self._table.Vector(offset)
        return [Reader(Table(self._table.Bytes, self._table.Indirect(start + 4 * i))) for i in range(self._table.VectorLen(offset))]


def metadata_of(path: Path) -> bytes:
    model = unpack(path.read_bytes())
    (entry,) = [each for each in model.metadata if each.name == b"TFLITE_METADATA"]
    return bytes(model.buffers[entry.buffer].data)


@pytest.mark.parametrize(
    ("kind", "mean", "std", "content"),
    [
        # 255 times the description's; as FeatureProperties where the colours come first, which an image of TFLite's never has.
        ("nchw", (127.5, 102.0, 76.5), (63.75, 127.5, 51.0), 1),
        ("nhwc", (127.5, 102.0, 76.5), (63.75, 127.5, 51.0), 2),
        ("image", (0, 0, 0), (1, 1, 1), 2),
        ("photo", (0, 0, 0), (1, 1, 1), 2),
    ],
)
def test_the_schema_finds_everything_in_its_place(
    written: Write, kind: InputKind, mean: tuple[float, ...], std: tuple[float, ...], content: int
) -> None:
    path = written(kind)
    data = metadata_of(path)
    assert data[4:8] == b"M001"
    model, texts = Reader.of(data), read_texts(path)
    assert (model.text(0), model.text(2), model.text(5), model.text(7)) == (texts["id"], "0.1.0", None, "1.0.0")
    assert texts["arch"] in (model.text(1) or "")
    (graph,) = model.tables(3)
    ((image,), (logits,)) = graph.tables(2), graph.tables(3)
    assert (image.text(0), logits.text(0)) == ("input", "output")
    assert image.table(3).byte(0) == content
    if content == 2:
        assert image.table(3).table(1).byte(0) == 1, "RGB"
    (unit,) = image.tables(4)
    assert unit.byte(0) == 1, "NormalizationOptions"
    assert unit.table(1).numbers(0) == pytest.approx(mean)
    assert unit.table(1).numbers(1) == pytest.approx(std)
    (labels,) = logits.tables(6)
    assert (labels.text(0), labels.byte(2)) == ("labels.txt", 2), "TENSOR_AXIS_LABELS"


def test_the_model_is_a_zip_file_of_its_labels_and_still_a_model(written: Write, describe: Callable[[Subnet], Description]) -> None:
    path = written("nhwc", licence="Apache-2.0")
    assert Reader.of(metadata_of(path)).text(5) == "Apache-2.0"
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["labels.txt"]
        assert archive.read("labels.txt").decode().splitlines() == json.loads(read_texts(path)["labels"])
    (_, shape, _), = tflite.read_inputs(path)  # fmt: skip
    session = tflite.load(path, None, 1)
    (logits,) = tflite.run(session, [np.zeros(shape, np.float32)])  # type: ignore[arg-type]
    assert torch.isfinite(torch.from_numpy(logits)).all()


@pytest.mark.parametrize("task", get_args(Description.model_fields["task"].annotation))
def test_every_task_says_what_it_answers(
    make_subnet: Callable[..., Subnet], describe: Callable[..., Description], task: str
) -> None:
    description = describe(make_subnet(1)).model_copy(update={"task": task})
    wanted = input_facts("input", "nhwc", description.preprocessing.size)
    texts = description.properties() | {"precision": "fp32"}
    (graph,) = Reader.of(tflite_metadata.describe(wanted, "output", description.preprocessing, texts)).tables(3)
    (answers,) = graph.tables(3)
    assert answers.text(1), "in words"
    (labels,) = answers.tables(6)
    assert labels.byte(2) == (0 if task == "detection" else 2), "an anchor's numbers begin with its box, which has no labels"


def test_tflite_support_reads_it(written: Write) -> None:
    if importlib.util.find_spec("tensorflow_lite_support") is None:
        pytest.skip("tensorflow_lite_support is missing; pip install tflite-support, which wants protobuf 3")
    library: Any = importlib.import_module("tensorflow_lite_support.metadata.python.metadata")
    displayer = library.MetadataDisplayer.with_model_file(str(written("image")))
    assert displayer.get_packed_associated_file_list() == ["labels.txt"]
    told = json.loads(displayer.get_metadata_json())["subgraph_metadata"][0]
    assert told["input_tensor_metadata"][0]["process_units"][0]["options"] == {"mean": [0, 0, 0], "std": [1, 1, 1]}
    assert told["output_tensor_metadata"][0]["associated_files"][0]["type"] == "TENSOR_AXIS_LABELS"
