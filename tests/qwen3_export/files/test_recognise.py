"""What each writer writes is recognised as its kind, and as no other; what users write is not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from models import DEMO
from reports import a_failing_report, a_report, a_solved_report
from safetensors.numpy import save_file

from qwen3_export.calibration.statistics import Origin, Statistics
from qwen3_export.calibration.statistics_file import write_statistics
from qwen3_export.checkpoint.model import load
from qwen3_export.errors import OutputError
from qwen3_export.files import recognise
from qwen3_export.parity.html import save_html, save_overview
from qwen3_export.parity.junit import save_junit
from qwen3_export.parity.report import save_report
from qwen3_export.quantizers.floats import F16
from qwen3_export.quantizers.weights.rounded import round_graph
from qwen3_export.targets.gguf.emit import emit, plan_files
from qwen3_export.targets.gguf.imatrix import write_imatrix
from qwen3_export.targets.gguf.metadata import Provenance, build_metadata
from qwen3_export.targets.gguf.modelfile import build_modelfile

ORIGIN = Origin(**dict.fromkeys(Origin.__dataclass_fields__, 1))  # type: ignore[arg-type]
EMPTY = Statistics(origin=ORIGIN, inputs={}, states={})


GRAPH = round_graph(load("demo").graph, {weight.name: F16 for weight in load("demo").graph})
METADATA = build_metadata(load("demo"), Provenance(recipe="f16", file_type=1))


def write_modelfile(path: Path) -> None:
    path.write_text(build_modelfile(load("demo"), [Path("demo-q4_k_m.gguf")]), encoding="utf-8")


WRITERS: dict[str, list[Callable[[Path], None]]] = {
    "is_report": [
        lambda path: save_report(a_report(), path),
        lambda path: save_report(a_solved_report(), path),
        lambda path: save_report(a_failing_report(), path),
    ],
    "is_html_report": [
        lambda path: save_html(a_report(), path),
        lambda path: save_overview([a_report(), a_failing_report()], path),
    ],
    "is_junit": [lambda path: save_junit([a_report()], path)],
    "is_imatrix": [lambda path: write_imatrix(path, {}, datasets=["x" * 9000], chunks=1, chunk_size=1)],
    "is_gguf_model": [lambda path: emit(plan_files(GRAPH, METADATA, path))],
    "is_statistics": [lambda path: write_statistics(path, EMPTY)],
    "is_modelfile": [write_modelfile],
}
KINDS = [name for name in recognise.__all__ if name.startswith("is_") and name != "is_work_file"]

USERS = {
    "notes.txt": b"artifact target verdict\n",
    "thesis.md": b"# <testsuites>\n\n```json\n{}\n```\n",
    "page.html": b"<!doctype html><title>qwen3-export parity</title>",
    "other.xml": b'<?xml version="1.0"?><testsuites name="mine"/>',
    "data.json": b'{"artifact": "mine", "target": "theirs"}',
    "list.json": b'["artifact", "target", "verdict", "end_to_end", "decode"]',
    "deep.json": b'{"a":' + b"[" * 100_000,
    "cut.json": b'{"artifact": ',
    "latin.json": '{"ä": 1}'.encode("latin-1"),
    "Modelfile": b"# FROM ./x.gguf\nFROM llama3\n",
    "short": b"G",
}


@pytest.mark.parametrize(("kind", "number"), [(kind, i) for kind, found in WRITERS.items() for i in range(len(found))])
def test_what_we_write_is_ours(kind: str, number: int, tmp_path: Path) -> None:
    WRITERS[kind][number](tmp_path / "x")
    assert [name for name in KINDS if getattr(recognise, name)(tmp_path / "x")] == [kind]


@pytest.mark.parametrize("name", USERS)
def test_what_users_write_is_not(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(USERS[name])
    assert not [kind for kind in KINDS if getattr(recognise, kind)(tmp_path / name)]


def test_checkpoints_and_other_tensors_are_not(tmp_path: Path) -> None:
    save_file({"x": np.ones(3)}, tmp_path / "x", metadata={"format": "np"})
    for path in (tmp_path / "x", *DEMO.iterdir(), tmp_path, tmp_path / "absent"):
        assert not [kind for kind in KINDS if getattr(recognise, kind)(path)], path


def test_json_of_lint_and_of_transcripts(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    keys = {
        "is_lint": ["artifact", "target", "consumers", "findings", "digests"],
        "is_transcript": ["tokens", "chunks", "best", "logits"],
    }
    for kind, names in keys.items():
        path.write_text(json.dumps(dict.fromkeys(names)))
        assert [name for name in KINDS if getattr(recognise, name)(path)] == [kind]


@pytest.mark.parametrize(
    "save", [writer for kind, found in WRITERS.items() if kind != "is_modelfile" for writer in found]
)
def test_no_writer_takes_the_place_of_the_users_file(save: Callable[[Path], None], tmp_path: Path) -> None:
    (tmp_path / "thesis.md").write_text("years")
    with pytest.raises(OutputError):
        save(tmp_path / "thesis.md")
    assert (tmp_path / "thesis.md").read_text() == "years"
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.md"]


def test_reports_replace_earlier_ones(tmp_path: Path) -> None:
    for save, kind in ((save_report, "json"), (save_html, "html")):
        save(a_report(), tmp_path / kind)
        save(a_failing_report(), tmp_path / kind)
    save_junit([a_report()], tmp_path / "xml")
    save_junit([a_failing_report()], tmp_path / "xml")
    assert 'failures="0"' not in (tmp_path / "xml").read_text(encoding="utf-8").splitlines()[1]
