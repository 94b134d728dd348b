"""Subnets as files that run elsewhere, each checked against torch before anyone gets it."""

from natdeploy.export.bundle import METADATA, add_file, read_bundle, record_latency, remove_file, sha256, size_mb
from natdeploy.export.card import model_card
from natdeploy.export.check import PARITY_LIMIT, Array, Batch, Parity, compare, plain_input, run_images, together
from natdeploy.export.facts import Description, Latency, Metadata, ModelFile, Preprocessing, Quantisation, TensorFacts
from natdeploy.export.formats import FORMATS, PRECISIONS, Format, check_photos, check_precision, get_format, quantisation, write
from natdeploy.export.inputs import INPUT_KINDS, InputKind, PhotoSize, as_input, input_facts, parse_photo_size
from natdeploy.export.photos import fitted, prepared

__all__ = [
    "FORMATS",
    "INPUT_KINDS",
    "METADATA",
    "PARITY_LIMIT",
    "PRECISIONS",
    "Array",
    "Batch",
    "Description",
    "Format",
    "InputKind",
    "Latency",
    "Metadata",
    "ModelFile",
    "Parity",
    "PhotoSize",
    "Preprocessing",
    "Quantisation",
    "TensorFacts",
    "add_file",
    "as_input",
    "check_photos",
    "check_precision",
    "compare",
    "fitted",
    "get_format",
    "input_facts",
    "model_card",
    "parse_photo_size",
    "plain_input",
    "prepared",
    "quantisation",
    "read_bundle",
    "record_latency",
    "remove_file",
    "run_images",
    "sha256",
    "size_mb",
    "together",
    "write",
]
