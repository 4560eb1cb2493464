"""Turn a program into the bytes of model.mlmodel and Manifest.json, the same bytes every time.

coremltools' own exporters write the protobuf. Only the offsets of constants come from our plan, because coremltools'
writer would need every array in memory. Its optimization passes are left out: the program is already declared in its
final form, and most passes would need the weights. The manifest's identifiers are made from names, because random ones
would make every export a different file.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from typing import Any

from qwen3_export.targets.coreml.builder import Var
from qwen3_export.targets.coreml.layout import WeightPlan

__all__ = ["SPECIFICATION_VERSION", "manifest_text", "model_bytes"]

# iOS 18 and macOS 15.
SPECIFICATION_VERSION = 9

# The path of the weight file as a program spells it.
WEIGHT_PATH = "@model_path/weights/weight.bin"

AUTHOR = "com.apple.CoreML"
ITEMS = (
    ("model.mlmodel", "CoreML Model Specification"),
    ("weights", "CoreML Model Weights"),
)


def model_bytes(program: Any, plan: WeightPlan, *, description: str, metadata: Mapping[str, str]) -> bytes:
    """The bytes of model.mlmodel: the program, descriptions of inputs, states and output, and metadata."""
    from coremltools.converters.mil.backend.mil.load import CoreMLProtoExporter

    exporter = CoreMLProtoExporter(
        program,
        _program_proto(program, plan),
        predicted_feature_name=None,
        predicted_probabilities_name=None,
        classifier_config=None,
        convert_to="mlprogram",
        convert_from="milinternal",
        specification_version=SPECIFICATION_VERSION,
    )
    model = exporter.export(SPECIFICATION_VERSION)
    model.description.metadata.shortDescription = description
    for key, value in metadata.items():
        model.description.metadata.userDefined[key] = value
    return bytes(model.SerializeToString(deterministic=True))


def manifest_text() -> str:
    """The text of Manifest.json, which lists the contents of a package."""
    entries = {
        _identifier(name): {"author": AUTHOR, "description": description, "name": name, "path": f"{AUTHOR}/{name}"}
        for name, description in ITEMS
    }
    document = {
        "fileFormatVersion": "1.0.0",
        "itemInfoEntries": entries,
        "rootModelIdentifier": _identifier(ITEMS[0][0]),
    }
    return json.dumps(document, indent=4, sort_keys=True) + "\n"


def _program_proto(program: Any, plan: WeightPlan) -> Any:
    from coremltools.converters.mil.backend.mil.helper import (
        create_file_value_tensor,
        create_immediate_value,
        types_to_proto_primitive,
    )
    from coremltools.converters.mil.backend.mil.load import MILProtoExporter

    offsets = {blob.name: blob.offset for blob in plan.blobs}

    def value_of(var: Var) -> Any:
        if var.name not in offsets:
            return create_immediate_value(var)
        primitive = types_to_proto_primitive(var.sym_type.get_primitive())
        return create_file_value_tensor(WEIGHT_PATH, offsets[var.name], var.shape, primitive)

    exporter = MILProtoExporter(program, "", SPECIFICATION_VERSION)
    exporter.get_milproto_value = value_of
    return exporter.export()


def _identifier(name: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"{AUTHOR}/{name}")).upper()
