"""Subnets as files that run elsewhere, each checked against torch before anyone gets it."""

from natdeploy.export.bundle import (
    Description,
    Latency,
    Metadata,
    ModelFile,
    Preprocessing,
    read_bundle,
    record_latency,
    write_bundle,
)
from natdeploy.export.check import Parity, parity, runtime_accuracy
from natdeploy.export.onnx import OnnxFile, export_onnx

__all__ = [
    "Description",
    "Latency",
    "Metadata",
    "ModelFile",
    "OnnxFile",
    "Parity",
    "Preprocessing",
    "export_onnx",
    "parity",
    "read_bundle",
    "record_latency",
    "runtime_accuracy",
    "write_bundle",
]
