"""``qwen3-export inspect``: what is in a checkpoint or in an artifact, without running it."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qwen3_export.cli.console import human_count, human_size
from qwen3_export.cli.options import OfflineOption, RevisionOption

if TYPE_CHECKING:
    from qwen3_export.checkpoint.model import Model

EPILOG = """Examples:

  qwen3-export inspect demo

  qwen3-export inspect demo-q4_k_m.gguf --tensors

  qwen3-export inspect demo-onnx-int4
"""


def inspect(
    subject: Annotated[str, typer.Argument(help="A model, as for --model, or an artifact.", metavar="MODEL|ARTIFACT")],
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor.")] = False,
    template: Annotated[bool, typer.Option("--template", help="Print the chat template.")] = False,
    revision: RevisionOption = None,
    offline: OfflineOption = False,
) -> None:
    """Show config, sizes, types, metadata, end tokens and how the file was made."""
    from qwen3_export.targets.artifacts import is_coreml, is_executorch, is_onnx

    if subject.endswith(".gguf"):
        _inspect_gguf(Path(subject), tensors=tensors, template=template)
        return
    if is_onnx(Path(subject)):
        _inspect_onnx(Path(subject), tensors=tensors, template=template)
        return
    if is_executorch(Path(subject)):
        _inspect_executorch(Path(subject), tensors=tensors, template=template)
        return
    if is_coreml(Path(subject)):
        _inspect_coreml(Path(subject), tensors=tensors, template=template)
        return
    from qwen3_export.checkpoint.model import load

    _inspect_model(load(subject, revision=revision, offline=offline), tensors=tensors, template=template)


def _inspect_model(model: Model, *, tensors: bool, template: bool) -> None:
    graph, tokenizer = model.graph, model.tokenizer
    _rows(
        {
            "model": model.name,
            "folder": model.folder,
            "parameters": f"{human_count(graph.num_parameters)} ({graph.num_parameters:,})",
            "weights": _counted(weight.format for weight in graph),
            **{field.name: getattr(graph.config, field.name) for field in dataclasses.fields(graph.config)},
            "tokens known": f"{tokenizer.num_tokens} of {graph.config.vocab_size}",
            "end tokens": ", ".join(f"{i} {tokenizer.decode([i])}" for i in tokenizer.generation.eos_token_ids),
            "chat template": "none"
            if tokenizer.chat_template is None
            else f"{len(tokenizer.chat_template)} characters",
            "sampling": _sampling(tokenizer.generation),
        }
    )
    for note in graph.notes:
        print(f"note: {note}")
    if tensors:
        for weight in graph:
            print(f"{weight.format:6} {list(weight.shape)!s:20} {weight.name}")
    if template and tokenizer.chat_template is not None:
        print(tokenizer.chat_template)


def _inspect_gguf(path: Path, *, tensors: bool, template: bool) -> None:
    from qwen3_export.targets.gguf.read import open_gguf, recorded_calibration

    artifact = open_gguf(path)
    size = sum(tensor.num_bytes for tensor in artifact.tensors.values())
    count = sum(math.prod(tensor.shape) for tensor in artifact.tensors.values())
    _rows(
        {
            "file": path,
            "parameters": f"{human_count(count)} ({count:,})",
            "tensor data": f"{human_size(size)}, {artifact.bits_per_weight:.2f} bits a weight",
            "types": _counted(tensor.format for tensor in artifact.tensors.values()),
        }
    )
    _rows({key: _shortened(value) for key, value in artifact.metadata.items() if key != "tokenizer.chat_template"})
    chat_template = artifact.metadata.get("tokenizer.chat_template")
    print(f"chat template: {'none' if chat_template is None else f'{len(chat_template)} characters'}")
    if tensors:
        errors = (recorded_calibration(artifact) or {}).get("tensor_errors", {})
        for tensor in artifact.tensors.values():
            error = f"  output error {errors[tensor.name]:.2e}" if tensor.name in errors else ""
            print(f"{tensor.format:6} {list(tensor.shape)!s:22} {tensor.name}{error}")
    if template and chat_template is not None:
        print(chat_template)


def _inspect_onnx(path: Path, *, tensors: bool, template: bool) -> None:
    from qwen3_export.calibration.provenance import PREFIX
    from qwen3_export.targets.onnx.read import open_onnx

    artifact = open_onnx(path)
    places = artifact.initializers.values()
    operators = Counter(node.op_type for node in artifact.proto.graph.node)
    rows: dict[str, object] = {
        "graph": artifact.graph_path,
        "weights": f"{artifact.data_path.name}, {human_size(artifact.data_path.stat().st_size)}",
        "operators": ", ".join(f"{count} {name}" for name, count in operators.most_common()),
        "inputs": ", ".join(value.name for value in artifact.proto.graph.input if "past" not in value.name),
    }
    _rows(rows | {key.removeprefix(PREFIX): _shortened(value) for key, value in artifact.metadata.items()})
    if tensors:
        for place in places:
            print(f"{place.dtype.strip('<|'):3} {list(place.shape)!s:22} {place.name}")
        _errors(artifact.metadata)
    if template:
        _template(artifact.folder)


def _inspect_executorch(path: Path, *, tensors: bool, template: bool) -> None:
    from qwen3_export.calibration.provenance import PREFIX, read_calibration_record
    from qwen3_export.targets.executorch.stored import read_index

    folder = path if path.is_dir() else path.parent
    document = read_index(folder)
    size = (folder / "model.pte").stat().st_size
    rows: dict[str, object] = {"program": f"{folder / 'model.pte'}, {human_size(size)}"}
    rows |= {"layouts": _counted(entry["layout"] for entry in document["weights"].values())}
    origin = {key.removeprefix(PREFIX): _shortened(value) for key, value in document.items() if PREFIX in key}
    _rows(rows | {"group size": document["group_size"]} | origin)
    if tensors:
        errors = (read_calibration_record(document) or {}).get("tensor_errors", {})
        for name, entry in document["weights"].items():
            error = f"  output error {errors[name]:.2e}" if name in errors else ""
            print(f"{entry['layout']:16} at {entry['codes']:12,}  {name}{error}")
    if template:
        _template(folder)


def _inspect_coreml(path: Path, *, tensors: bool, template: bool) -> None:
    from qwen3_export.calibration.provenance import PREFIX
    from qwen3_export.targets.coreml.mil import open_package
    from qwen3_export.targets.coreml.read import open_coreml

    artifact = open_coreml(path)
    package = open_package(artifact.package)
    features = {"inputs": package.inputs, "states": package.states, "outputs": package.outputs}
    rows: dict[str, object] = {
        "package": f"{artifact.package}, {human_size(artifact.size_bytes)}",
        "specification": package.spec_version,
        "operations": ", ".join(f"{count} {kind}" for kind, count in package.ops.most_common(8)),
    }
    rows |= {part: ", ".join(map(str, found.values())) for part, found in features.items()}
    _rows(rows | {key.removeprefix(PREFIX): _shortened(value) for key, value in artifact.metadata.items()})
    if tensors:
        for name, parts in artifact.constants.items():
            for part, blob in parts.items():
                print(f"{blob.element:6} {list(blob.shape)!s:22} {name} {part}")
        _errors(artifact.metadata)
    if template:
        _template(artifact.folder)


def _errors(metadata: Mapping[str, str]) -> None:
    """What a solver recorded of each weight."""
    from qwen3_export.calibration.provenance import read_calibration_record

    for name, error in (read_calibration_record(metadata) or {}).get("tensor_errors", {}).items():
        print(f"output error {error:.2e}  {name}")


def _template(folder: Path) -> None:
    path = folder / "chat_template.jinja"
    if path.exists():
        print(path.read_text(encoding="utf-8"))


def _sampling(generation: Any) -> str:
    stated = {name: getattr(generation, name) for name in ("temperature", "top_k", "top_p", "min_p")}
    return ", ".join(f"{name} {value}" for name, value in stated.items() if value is not None) or "none stated"


def _counted(items: Any) -> str:
    return ", ".join(f"{count} {name}" for name, count in Counter(items).most_common())


def _shortened(value: object, width: int = 100) -> str:
    if isinstance(value, list):
        return f"{len(value)} items: {', '.join(_shortened(str(item), 32) for item in value[:4])}, …"
    text = str(value)
    return text if len(text) <= width else text[: width - 1] + "…"


def _rows(rows: dict[str, object]) -> None:
    width = max(map(len, rows))
    for key, value in rows.items():
        print(f"{key:{width}}  {value}")


inspect.__doc__ = f"{inspect.__doc__}\n\n{EPILOG}"
