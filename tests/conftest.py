"""Fixtures that every test may use: tiny checkpoints (written once a session, on demand) and the demo."""

from __future__ import annotations

import json
import os

# Before torch is loaded: its threads shall sleep while they wait, or tests on a busy machine take forever.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from hypothesis import settings
from models import DEMO, VARIANTS, write_model

from qwen3_export import api
from qwen3_export.calibration.tokens import Calibration
from qwen3_export.checkpoint.folder import open_checkpoint
from qwen3_export.checkpoint.model import Model
from qwen3_export.graph import Graph
from qwen3_export.parity.report import NUMBERS, Report

# The same cases in every run: CI shall not fail by chance, and what fails once fails again.
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")

# Options and hooks of our own, each in its file: tests/marks.py, tests/skips.py
pytest_plugins = ("marks", "skips")


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a variant of ``models.VARIANTS``, by name; not to be written to."""
    root = tmp_path_factory.mktemp("models")
    return cache(lambda name: write_model(root / name, name))


@pytest.fixture(scope="session")
def model_graph(model_folder: Callable[[str], Path]) -> Callable[[str], Graph]:
    """The graph of a variant, by name."""
    return cache(lambda name: open_checkpoint(model_folder(name)))


@pytest.fixture(scope="session", params=sorted(VARIANTS))
def any_model(request: pytest.FixtureRequest, model_folder: Callable[[str], Path]) -> Path:
    """The folder of each variant in turn."""
    return model_folder(request.param)


@pytest.fixture(scope="session")
def demo_folder() -> Path:
    """The small trained model that ships with the package."""
    return DEMO


@pytest.fixture(scope="session")
def demo_graph() -> Graph:
    return open_checkpoint(DEMO)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some two thousand tokens that repeat nothing exactly."""
    path = tmp_path_factory.mktemp("text") / "text ü.txt"
    path.write_text(
        " ".join(f"{i} times {j} is {i * j}, said the teacher of class {i + j}." for i in range(12) for j in range(12))
    )
    return path


@pytest.fixture(scope="module")
def words(model: Model, text: Path) -> Calibration:
    """The text in windows, as tokens of the model that the module has a fixture for."""
    return api.calibration_text(text, model, sequence_length=64, num_samples=16)


@pytest.fixture
def caught(record_property: Callable[[str, object], None]) -> Callable[[str, Report], None]:
    """Write down which checks caught what was broken (docs/mutants.py makes a table of it)."""

    def note(what: str, report: Report) -> None:
        failed = [name for name in ("metadata", "values") if getattr(report, name)]
        failed += [name for name in (*NUMBERS, "decode") if getattr(report, name).status == "fail"]
        where = report.first_divergence
        place = None if where is None else [where.layer, where.site, where.cause]
        row = {"target": report.target, "what": what, "caught": failed, "place": place, "told": report.reasons[:1]}
        record_property("mutant", json.dumps(row))

    return note
