"""Exports of tiny models, written once a session."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from qwen3_export.checkpoint.model import Model, load
from qwen3_export.targets.onnx.target import OnnxOptions

if TYPE_CHECKING:
    from qwen3_export.targets.onnx.export import OnnxExport


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
