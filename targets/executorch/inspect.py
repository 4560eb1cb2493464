"""What ``inspect`` shows of an ExecuTorch folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from qwen3_export.errors import CheckpointError
from qwen3_export.targets.executorch.check import program_path
from qwen3_export.targets.executorch.run import Program
from qwen3_export.targets.executorch.stored import INDEX, read_index
from qwen3_export.targets.inspection import counted, origin, recorded_errors, template_beside
from qwen3_export.targets.target import Inspection
from qwen3_export.units import human_size

__all__ = ["inspect"]


def inspect(path: Path) -> Inspection:
    """Size, layouts and origin of a folder (or the program in it).

    Read from the index that lies beside the program. Without one (another tool's program), what the program says of
    itself through ExecuTorch.
    """
    folder, program = path if path.is_dir() else path.parent, program_path(path)
    size = f"{program}, {human_size(program.stat().st_size)}"
    template = template_beside(folder)
    if not (folder / INDEX).exists():
        return Inspection(facts={"program": size, **_stated(program)}, tensors=lambda: iter(()), template=template)
    index = read_index(folder)
    weights = index.get("weights") or {}
    facts: dict[str, object] = {
        "program": size,
        "layouts": counted(entry["layout"] for entry in weights.values()),
        "group size": index.get("group_size"),
    }
    return Inspection(facts=facts | origin(index), tensors=lambda: _lines(index), template=template)


def _lines(index: Mapping[str, Any]) -> Iterator[str]:
    errors = recorded_errors(index)
    for name, entry in (index.get("weights") or {}).items():
        error = f"  output error {errors[name]}" if name in errors else ""
        yield f"{entry['layout']:16} at {entry['codes']:12,}  {name}{error}"


def _stated(path: Path) -> dict[str, object]:
    """Methods with the shapes that they take and give, and the values of those that take nothing."""
    program = Program(path)
    found: dict[str, object] = {"written by": f"another tool ({INDEX} is not beside it)"}
    for name in program.methods:
        inputs, outputs = program.shapes(name)
        if inputs:
            found[name] = f"takes {', '.join(inputs)}; gives {', '.join(outputs) or 'nothing'}"
            continue
        try:
            found[name] = program.constant(name)
        except CheckpointError as error:
            found[name] = str(error)
    return found
