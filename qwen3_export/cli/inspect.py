"""``qwen3-export inspect``: what is in a checkpoint or in an artifact, without running it."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qwen3_export.cli.console import human_count, human_size
from qwen3_export.cli.options import OfflineOption, RevisionOption
from qwen3_export.errors import ExportError
from qwen3_export.files.shown import escaped, on_one_line, shown

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
        _line(f"note: {note}")
    if tensors:
        for weight in graph:
            _line(f"{weight.format:6} {list(weight.shape)!s:20} {weight.name}")
    if template and tokenizer.chat_template is not None:
        _show_template(tokenizer.chat_template)


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
    stated = artifact.metadata.get("tokenizer.chat_template")
    chat_template = stated if isinstance(stated, str) else None
    print(f"chat template: {'none' if chat_template is None else f'{len(chat_template)} characters'}")
    if tensors:
        errors = (recorded_calibration(artifact) or {}).get("tensor_errors", {})
        for tensor in artifact.tensors.values():
            error = f"  output error {errors[tensor.name]:.2e}" if tensor.name in errors else ""
            _line(f"{tensor.format:6} {list(tensor.shape)!s:22} {tensor.name}{error}")
    if template and chat_template is not None:
        _show_template(chat_template)


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
            _line(f"{place.dtype.strip('<|'):3} {list(place.shape)!s:22} {place.name}")
        _errors(artifact.metadata)
    if template:
        _template(artifact.folder)


def _inspect_executorch(path: Path, *, tensors: bool, template: bool) -> None:
    from qwen3_export.calibration.provenance import PREFIX
    from qwen3_export.targets.executorch.stored import read_index

    folder = path if path.is_dir() else path.parent
    document = read_index(folder)
    program = folder / "model.pte"
    if not program.exists():
        raise ExportError(f"{folder}: holds no model.pte; name the folder that an export has written")
    rows: dict[str, object] = {"program": f"{program}, {human_size(program.stat().st_size)}"}
    weights = document.get("weights") or {}
    rows |= {"layouts": _counted(entry["layout"] for entry in weights.values())}
    origin = {key.removeprefix(PREFIX): _shortened(value) for key, value in document.items() if PREFIX in key}
    _rows(rows | {"group size": document.get("group_size")} | origin)
    if tensors:
        errors = _recorded_errors(document)
        for name, entry in weights.items():
            error = f"  output error {_error(errors[name])}" if name in errors else ""
            _line(f"{entry['layout']:16} at {entry['codes']:12,}  {name}{error}")
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
                _line(f"{blob.element:6} {list(blob.shape)!s:22} {name} {part}")
        _errors(artifact.metadata)
    if template:
        _template(artifact.folder)


def _errors(metadata: Mapping[str, str]) -> None:
    """What a solver recorded of each weight."""
    for name, error in _recorded_errors(metadata).items():
        _line(f"output error {_error(error)}  {name}")


def _template(folder: Path) -> None:
    from qwen3_export.checkpoint.tokenizer import read_chat_template

    template = read_chat_template(folder, {})
    if template is not None:
        _show_template(template)


def _show_template(template: str) -> None:
    """The template exactly as it is into a pipe or a file; on a terminal without characters that act on it."""
    print(escaped(template) if sys.stdout.isatty() else template)


def _recorded_errors(metadata: Mapping[str, str]) -> Mapping[str, object]:
    from qwen3_export.calibration.provenance import read_calibration_record

    errors = (read_calibration_record(metadata) or {}).get("tensor_errors")
    return errors if isinstance(errors, dict) else {}


def _error(value: object) -> str:
    return f"{value:.2e}" if isinstance(value, float) else shown(value)


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
    width = max(map(len, rows), default=0)
    for key, value in rows.items():
        _line(f"{key:{width}}  {value}")


def _line(text: str) -> None:
    """One line of the result: whatever a file says, it stays one, and acts on no terminal."""
    print(on_one_line(text))


inspect.__doc__ = f"{inspect.__doc__}\n\n{EPILOG}"
