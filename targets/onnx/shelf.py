"""Several number types of one model in a folder for transformers.js, as the hub's folders hold them.

    onnx/model_q4.onnx   onnx/model_q4.onnx_data   report_q4.json      what is written now
    onnx/model_fp16.onnx   onnx/model_fp16.onnx_data   …               what is kept
    config.json, tokenizer.json, …                                     for all

An export into such a folder adds its graph and data, and replaces those of its own number type alone.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwen3_export.errors import OutputError
from qwen3_export.files.atomic import check_output_folder
from qwen3_export.files.json_file import object_in
from qwen3_export.parity.documents import read_json
from qwen3_export.targets.onnx.names import COS_CACHE
from qwen3_export.targets.onnx.transformers_js import is_same_model, merge_config

if TYPE_CHECKING:
    from qwen3_export.targets.onnx.export import OnnxExport

__all__ = ["check_place", "keep_others", "may_replace", "others_kept"]


def others_kept(export: OnnxExport) -> list[str]:
    """Graphs of other number types that the folder holds, and keeps. None in a folder of another model."""
    if export.options.flavour != "transformers.js" or not _holds_this_model(export):
        return []
    found = (f"onnx/{path.name}" for path in sorted((export.out / "onnx").glob("*.onnx")))
    return [name for name in found if name != export.graph_file]


def may_replace(export: OnnxExport, *, overwrite: bool) -> bool:
    """Whether the folder may be put together anew: with ``overwrite``, or where nothing in it would be lost.

    Raises OutputError where the folder holds this number type already.
    """
    if overwrite or not others_kept(export):
        return overwrite
    if (export.out / export.graph_file).exists():
        raise OutputError(
            f"{export.out}: holds {export.graph_file} already; choose another name, or replace it with `overwrite=True`"
        )
    return True


def check_place(export: OnnxExport, *, overwrite: bool) -> None:
    """Refuse a place that is taken, before anything is computed."""
    from qwen3_export.targets.onnx.export import is_export_file

    may_go = may_replace(export, overwrite=overwrite)
    check_output_folder(export.out, overwrite=may_go, is_ours=is_export_file, inputs=export.model.files())


def keep_others(export: OnnxExport, folder: Path) -> None:
    """Put what is kept into the new folder, and name it in its ``config.json``. Files are linked where that works."""
    kept = others_kept(export)
    if not kept:
        return
    for name in _files_of(export.out, kept):
        (folder / name).parent.mkdir(exist_ok=True)
        try:
            os.link(export.out / name, folder / name)
        except OSError:  # a file system without links
            shutil.copyfile(export.out / name, folder / name)
    path = folder / "config.json"
    merged = merge_config(read_json(path) or {}, _kept_entries(read_json(export.out / "config.json") or {}, kept))
    merged["max_position_embeddings"] = min((export.context_length, *_context_lengths(export.out, kept)))
    path.write_text(json.dumps(merged, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _kept_entries(document: dict[str, Any], kept: list[str]) -> dict[str, Any]:
    """The old config without graphs that are no longer there."""
    own = dict(object_in(document, "transformers.js_config"))
    counts = object_in(own, "use_external_data_format")
    names = {name.removeprefix("onnx/") for name in kept}
    own["use_external_data_format"] = {name: count for name, count in counts.items() if name in names}
    return {**document, "transformers.js_config": own}


def _context_lengths(folder: Path, graphs: list[str]) -> Iterator[int]:
    """The positions that graphs hold: config.json states one number for all, which must suit each."""
    from qwen3_export.targets.onnx.read import open_onnx

    for graph in graphs:
        table = open_onnx(folder / graph).initializers.get(COS_CACHE)
        if table is not None:
            yield table.num_rows


def _files_of(folder: Path, graphs: list[str]) -> Iterator[str]:
    """Each graph, its data, and its report."""
    for graph in graphs:
        yield graph
        yield from (f"onnx/{path.name}" for path in folder.glob(f"{graph}_data*"))
        report = f"report{graph.removeprefix('onnx/model').removesuffix('.onnx')}.json"
        if (folder / report).exists():
            yield report


def _holds_this_model(export: OnnxExport) -> bool:
    """Whether a folder for transformers.js has the same config and tokenizer."""
    document = read_json(export.out / "config.json")
    own = read_json(export.model.folder / "config.json")
    if document is None or own is None or not isinstance(document.get("transformers.js_config"), dict):
        return False
    tokenizers = (read_json(folder / "tokenizer.json") for folder in (export.out, export.model.folder))
    return is_same_model(document, own) and next(tokenizers) == next(tokenizers)
