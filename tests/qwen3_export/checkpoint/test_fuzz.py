"""Damaged checkpoints: each opens, or is refused in one sentence, in little memory and time."""

from __future__ import annotations

import json
import random
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fuzzing import damaged_bytes, damaged_json, limited
from models import write_model

from qwen3_export.checkpoint.folder import open_checkpoint
from qwen3_export.checkpoint.model import load
from qwen3_export.errors import ExportError
from qwen3_export.generation.speech import folder_speech
from qwen3_export.graph import Graph

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Checkpoints to be damaged: one layer, few columns."""
    root = tmp_path_factory.mktemp("fuzz")
    small = {"num_hidden_layers": 1, "hidden_size": 8, "intermediate_size": 16, "head_dim": 4, "num_attention_heads": 4}

    def make(name: str) -> Path:
        sizes = small | ({"moe_intermediate_size": 8, "num_experts": 4} if name.startswith("moe") else {})
        return root / name if (root / name).exists() else write_model(root / name, name, **sizes)

    return make


def header_of(path: Path) -> tuple[dict[str, object], bytes]:
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def damaged(path: Path, chance: random.Random) -> bytes:
    """The file damaged where it says what it holds: as JSON, as the header of safetensors, or as bytes."""
    if chance.random() < 0.15:
        data = path.read_bytes()
        return damaged_bytes(data[: 1 << 14], chance) + data[1 << 14 :]
    if path.suffix == ".json":
        return damaged_json(json.loads(path.read_bytes()), chance)
    header, rest = header_of(path)
    encoded = damaged_json(header, chance)
    return struct.pack("<Q", len(encoded)) + encoded + rest


def cases(folder: Path, name: str, count: int) -> Iterator[str]:
    """Damage a file again and again; what the code under test says of it is to be found meanwhile."""
    path, chance = folder / name, random.Random(name)
    sound = path.read_bytes()
    for number in range(count):
        path.write_bytes(damaged(path, chance))
        try:
            yield f"{name} {number}"
        finally:
            path.write_bytes(sound)


def look_at(graph: Graph) -> None:
    for weight in graph:
        weight.read(slice(0, 2))


@pytest.mark.parametrize(
    ("variant", "name", "count"),
    [
        ("tied", SINGLE, 200),
        ("moe_fused", SINGLE, 80),
        ("sharded", INDEX, 80),
        ("tied", "config.json", 200),
        ("yarn", "config.json", 80),
        ("moe", "config.json", 100),
    ],
)
def test_weights_and_configs(variant: str, name: str, count: int, folders: Callable[[str], Path]) -> None:
    folder, refused = folders(variant), []
    with limited():
        for case in cases(folder, name, count):
            try:
                look_at(open_checkpoint(folder))
            except ExportError as error:
                refused.append(str(error))
            except BaseException as error:
                pytest.fail(f"{case}: {type(error).__name__}: {error}")
    assert len(refused) > count / 4
    assert all("\n" not in sentence and len(sentence) < 1000 for sentence in refused)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "generation_config.json"])
def test_tokenizers(name: str, folders: Callable[[str], Path]) -> None:
    folder, refused = folders("added_tokens"), 0
    with limited():
        for case in cases(folder, name, 20):
            for read in (load, folder_speech):
                try:
                    read(folder)
                except ExportError:
                    refused += 1
                except BaseException as error:
                    pytest.fail(f"{case}: {type(error).__name__}: {error}")
    assert refused > 3


def test_cards_and_templates_decide_nothing_by_being_damaged(folders: Callable[[str], Path], tmp_path: Path) -> None:
    folder = tmp_path / "m"
    shutil.copytree(folders("tied"), folder)
    for card in ("---\n" + "[" * 5000 + "\n---\n", "---\na: &a [*a]\n---\n", "---\n? [a]\n: b\n---\n", "\udcff"):
        (folder / "README.md").write_bytes(card.encode("utf-8", "surrogateescape"))
        assert load(folder).name == "m"
    (folder / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(ExportError, match="cannot be read as UTF-8 text"):
        load(folder)
    for template in ("{{ 1 / 0 }}", "{{ messages[7].x.y }}", "{{ range(10**9) }}", "{% for %}", "{{ x() }}"):
        (folder / "chat_template.jinja").write_text(template)
        with pytest.raises(ExportError, match="does not accept these messages"):
            load(folder).tokenizer.render([])
