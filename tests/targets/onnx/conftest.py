"""Exports of tiny models, written once a session."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from checks import checked

from qwen3_export.checkpoint.model import Model, load
from qwen3_export.parity.report import Report
from qwen3_export.targets.lint import Finding
from qwen3_export.targets.onnx.target import OnnxOptions

if TYPE_CHECKING:
    from qwen3_export.targets.onnx.export import OnnxExport

Edit = Callable[[Any], None]


@dataclass(frozen=True)
class Written:
    """An export, and the folder it went to."""

    export: OnnxExport
    model: Model

    @property
    def folder(self) -> Path:
        return self.export.out


@pytest.fixture(scope="session")
def exported(model_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Written]:
    """A written export of a variant (or of ``demo``) by recipe and options; not to be written to."""
    pytest.importorskip("onnx_ir")
    from qwen3_export.targets.onnx.export import prepare, write
    from qwen3_export.targets.onnx.recipes import find_recipe

    root = tmp_path_factory.mktemp("onnx")

    @cache
    def make(variant: str, recipe: str, **options: object) -> Written:
        model = load("demo" if variant == "demo" else model_folder(variant))
        name = "-".join([variant, recipe, *(f"{key}-{value}" for key, value in sorted(options.items()))])
        export = prepare(model, find_recipe(recipe), out=root / name, options=OnnxOptions(**options))
        write(export)
        return Written(export, model)

    return make


@pytest.fixture
def edited(exported: Callable[..., Written], tmp_path: Path) -> Callable[..., tuple[Path, Written]]:
    """A copy of an export whose graph was edited."""
    onnx = pytest.importorskip("onnx")

    def make(edit: Edit, *, variant: str = "tied", recipe: str = "int4", **options: object) -> tuple[Path, Written]:
        written = exported(variant, recipe, **options)
        folder = tmp_path / "edited"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(written.folder, folder)
        path = folder / written.export.graph_file
        proto = onnx.load(str(path), load_external_data=False)
        edit(proto)
        path.write_bytes(proto.SerializeToString())
        return folder, written

    return make


@pytest.fixture
def check_edited(edited: Callable[..., tuple[Path, Written]]) -> Callable[..., Report]:
    """The report of an edited copy."""

    def check(edit: Edit, **options: object) -> Report:
        folder, written = edited(edit, **options)
        return checked("onnx", folder, written.model.graph, written.model.tokenizer)

    return check


@pytest.fixture
def lint_edited(edited: Callable[..., tuple[Path, Written]]) -> Callable[..., list[Finding]]:
    """What lint says of an edited copy."""

    from qwen3_export.targets.onnx import doors

    def lint(edit: Edit, **options: object) -> list[Finding]:
        folder, written = edited(edit, **options)
        return list(doors.lint(folder, written.model)[1])

    return lint
