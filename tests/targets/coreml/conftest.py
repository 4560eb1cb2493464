"""Core ML packages of tiny models, written once a session, and running them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor

from qwen3_export.checkpoint.model import Model, load
from qwen3_export.targets.coreml.target import CoremlOptions

if TYPE_CHECKING:
    from qwen3_export.targets.coreml.export import CoremlExport
    from qwen3_export.targets.coreml.mil.package import Outputs, Package, State

BLOCKED = -np.finfo(np.float16).max


def mask_of(package: Package, past: int, count: int) -> dict[str, np.ndarray]:
    """What swift-transformers fills the package's mask with, by its name (its Sources/Models/LanguageModel.swift)."""
    seen = past + count
    if "fullAttentionMask" in package.inputs:  # no release has this name; pull request 331 fills it so
        is_later = np.arange(seen)[None] > np.arange(past, seen)[:, None]
        return {"fullAttentionMask": np.where(is_later, BLOCKED, 0).astype(np.float16)[None, None]}
    return {"attentionMask": np.zeros((1, 1, 1, seen + 1), np.float16)}


@dataclass(frozen=True)
class Written:
    """An export, and the folder it went to."""

    export: CoremlExport
    model: Model

    @property
    def folder(self) -> Path:
        return self.export.out

    def open(self) -> Package:
        from qwen3_export.targets.coreml.mil.package import open_package

        return open_package(self.export.package)


@pytest.fixture(scope="session")
def packaged(model_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Written]:
    """A written export of a variant (or of ``demo``) by recipe and options; not to be written to."""
    pytest.importorskip("coremltools")
    from qwen3_export.targets.coreml.export import prepare, write
    from qwen3_export.targets.coreml.recipes import find_recipe

    root = tmp_path_factory.mktemp("coreml")

    @cache
    def make(variant: str, recipe: str, **options: object) -> Written:
        model = load("demo" if variant == "demo" else model_folder(variant))
        name = "-".join([variant, recipe, *(f"{key}-{value}" for key, value in sorted(options.items()))])
        export = prepare(model, find_recipe(recipe), out=root / name, options=CoremlOptions(**options))
        write(export)
        return Written(export, model)

    return make


@pytest.fixture(scope="session")
def feed() -> Callable[..., Outputs]:
    """Run some tokens at the end of what a state has seen, as swift-transformers does."""

    def run(package: Package, tokens: Tensor, state: State, *, past: int = 0, **options: Any) -> Outputs:
        inputs = {"inputIds": tokens.numpy().astype(np.int32)[None], **mask_of(package, past, len(tokens))}
        return package.run(inputs, state=state, **options)

    return run


@pytest.fixture(scope="session")
def logits_of(feed: Callable[..., Outputs]) -> Callable[..., Tensor]:
    """The logits [T, V] of a sequence that is fed in chunks of these sizes."""

    def run(package: Package, tokens: Tensor, sizes: Sequence[int] | None = None, **options: Any) -> Tensor:
        state, past, found = package.new_state(), 0, []
        for size in sizes or [len(tokens)]:
            outputs = feed(package, tokens[past : past + size], state, past=past, **options)
            found.append(torch.from_numpy(outputs["logits"][0]))
            past += size
        return torch.cat(found)

    return run
