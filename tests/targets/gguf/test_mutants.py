"""GGUF files broken on purpose, each in one way: the check must catch every one of them.

The model is tiny and random, its norm weights included, so that nothing is right by luck.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import checks
import numpy as np
import pytest
import torch
from models import write_model

from qwen3_export.checkpoint.model import Model, load
from qwen3_export.graph import ALL_ROWS, Kind, Role, Weight, module_name
from qwen3_export.parity import check as check_module
from qwen3_export.parity.prompts import Prompt
from qwen3_export.parity.report import Report
from qwen3_export.quantizers.ggml import GGML_FORMATS
from qwen3_export.quantizers.weights.quantized import QuantizedWeight
from qwen3_export.targets.gguf.container import MetaType, MetaValue
from qwen3_export.targets.gguf.emit import emit, plan_files
from qwen3_export.targets.gguf.export import prepare
from qwen3_export.targets.gguf.metadata import Provenance, build_metadata
from qwen3_export.targets.gguf.read import open_gguf
from qwen3_export.targets.gguf.recipes import find_recipe

pytest.importorskip("llama_cpp")

RECIPE = find_recipe("q4_k_m")
QUICK_TOKENS = 24

Caught = Callable[[str, Report], None]

Mutate = Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]


@dataclass(frozen=True, slots=True)
class Values:
    """A weight with other values."""

    weight: Weight
    values: np.ndarray

    @property
    def name(self) -> str:
        return self.weight.name

    @property
    def role(self) -> Role:
        return self.weight.role

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    @property
    def format(self) -> str:
        return "F32"

    def read(self, rows: slice = ALL_ROWS) -> np.ndarray:
        return self.values[rows]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    # As wide inside the MLP as outside, so that a transposed weight has the right shape.
    return load(write_model(tmp_path_factory.mktemp("mutants") / "model", "tied", intermediate_size=256))


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """What is computed here is so small that threads only wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _short_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = check_module.tokenize_prompts

    def shortened(*arguments: object, **options: object) -> tuple[Prompt, ...]:
        return tuple(replace(prompt, tokens=prompt.tokens[:QUICK_TOKENS]) for prompt in whole(*arguments, **options))

    monkeypatch.setattr(check_module, "tokenize_prompts", shortened)


def checked(
    model: Model,
    path: Path,
    *,
    values: Mapping[str, np.ndarray] | None = None,
    metadata: Mapping[str, MetaValue | None] | None = None,
) -> Report:
    """Write the model with some weights and some metadata replaced (None: left out), and check the file."""
    export = prepare(model, RECIPE, out=path)
    weights = dict(export.graph.weights)
    for name, changed in (values or {}).items():
        quantized = weights[name]
        assert isinstance(quantized, QuantizedWeight)
        weights[name] = replace(quantized, source=Values(quantized.source, changed.astype(np.float32)))
    provenance = Provenance(recipe=RECIPE.name, file_type=RECIPE.file_type)
    pairs = build_metadata(model, provenance) | dict(metadata or {})
    kept = {key: value for key, value in pairs.items() if value is not None}
    emit(plan_files(export.graph.with_weights(weights), kept, path))
    return checks.checked("gguf", path, model.graph, model.tokenizer, threads=1)


def values_of(model: Model, kind: Kind, layer: int) -> tuple[str, np.ndarray]:
    role = Role(kind, layer)
    return module_name(role), model.graph[role].read()


def test_unbroken_file_passes(model: Model, tmp_path: Path) -> None:
    report = checked(model, tmp_path / "right.gguf")
    assert report.verdict == "pass", report.reasons
    assert not report.reasons


@pytest.mark.parametrize(
    ("key", "value", "site"),
    [
        # The norms of q and k undo most of what a wrong eps does to them; values are the first to show it.
        ("attention.layer_norm_rms_epsilon", MetaValue(MetaType.FLOAT32, 1e-5), "after_attention"),
        ("rope.freq_base", MetaValue(MetaType.FLOAT32, 1e4), "q_rope"),
        ("rope.freq_base", None, "q_rope"),  # llama.cpp takes 10,000 then
    ],
)
def test_wrong_hyperparameter_is_seen_in_metadata_and_in_numbers(
    model: Model, tmp_path: Path, caught: Caught, key: str, value: MetaValue | None, site: str
) -> None:
    report = checked(model, tmp_path / "wrong.gguf", metadata={f"qwen3.{key}": value})
    caught(f"no {key}" if value is None else f"{key} of {value.value:g}", report)
    assert report.verdict == "fail"
    assert [key in difference for difference in report.metadata] == [True]
    assert report.conversion.status == "fail"
    assert report.first_divergence is not None
    assert (report.first_divergence.layer, report.first_divergence.site) == (0, site)
    # What the wrong base does is far above llama.cpp's own noise; the wrong eps drowns in it.
    assert report.shipped.status == ("fail" if "rope" in key else report.shipped.status)


@pytest.mark.parametrize("key", ["key_length", "value_length"])
def test_wrong_head_size_is_seen_without_running(model: Model, tmp_path: Path, caught: Caught, key: str) -> None:
    """llama.cpp ends the process by an assertion on some of these, so none of them is run."""
    wrong = {f"qwen3.attention.{key}": MetaValue(MetaType.UINT32, 32)}
    report = checked(model, tmp_path / "wrong.gguf", metadata=wrong)
    caught(f"attention.{key} of 32", report)
    assert report.verdict == "fail"
    assert any(key in difference for difference in report.metadata)
    assert (report.conversion.status, report.shipped.status) == ("not_run", "not_run")
    assert report.quantization.status == "pass"


def test_missing_head_size_means_llama_cpps_default(model: Model, tmp_path: Path, caught: Caught) -> None:
    report = checked(model, tmp_path / "wrong.gguf", metadata={"qwen3.attention.key_length": None})
    caught("no attention.key_length", report)
    assert report.verdict == "fail"
    assert "qwen3.attention.key_length is 32, the checkpoint has 64" in report.metadata


def test_wrong_end_token(model: Model, tmp_path: Path, caught: Caught) -> None:
    wrong = {"tokenizer.ggml.eos_token_id": MetaValue(MetaType.UINT32, 8156)}
    report = checked(model, tmp_path / "wrong.gguf", metadata=wrong)
    caught("another end token", report)
    assert report.verdict == "fail"
    assert report.metadata == ("tokenizer.ggml.eos_token_id is 8156, the checkpoint has 8158",)


def test_wrong_pre_tokenizer_is_seen_in_tokens_too(model: Model, tmp_path: Path, caught: Caught) -> None:
    wrong = {"tokenizer.ggml.pre": MetaValue(MetaType.STRING, "gpt-2")}
    report = checked(model, tmp_path / "wrong.gguf", metadata=wrong)
    caught("another pre-tokenizer", report)
    assert report.verdict == "fail"
    assert any("tokenizes otherwise" in difference for difference in report.metadata)


def test_changed_chat_template(model: Model, tmp_path: Path, caught: Caught) -> None:
    wrong = {"tokenizer.chat_template": MetaValue(MetaType.STRING, "{{ messages[0].content }}")}
    report = checked(model, tmp_path / "wrong.gguf", metadata=wrong)
    caught("another chat template", report)
    assert report.verdict == "fail"
    assert any("chat_template" in difference for difference in report.metadata)


def swapped_norms(model: Model) -> dict[str, np.ndarray]:
    (q_name, q_norm), (k_name, k_norm) = (values_of(model, kind, 1) for kind in (Kind.Q_NORM, Kind.K_NORM))
    return {q_name: k_norm, k_name: q_norm}


def without_k_norm(model: Model) -> dict[str, np.ndarray]:
    name, k_norm = values_of(model, Kind.K_NORM, 0)
    return {name: np.ones_like(k_norm)}


def interleaved_rope(model: Model) -> dict[str, np.ndarray]:
    """The order of rows that a llama conversion gives q and k; Qwen3's halves stay apart."""
    name, q_OI = values_of(model, Kind.Q_PROJ, 0)
    heads = model.graph.config.num_attention_heads
    return {name: q_OI.reshape(heads, 2, -1, q_OI.shape[1]).swapaxes(1, 2).reshape(q_OI.shape)}


def transposed(model: Model) -> dict[str, np.ndarray]:
    name, down_OI = values_of(model, Kind.DOWN_PROJ, 1)
    return {name: down_OI.T.copy()}


def of_another_layer(model: Model) -> dict[str, np.ndarray]:
    name, _ = values_of(model, Kind.V_PROJ, 1)
    return {name: values_of(model, Kind.V_PROJ, 0)[1]}


def gate_for_up(model: Model) -> dict[str, np.ndarray]:
    (gate_name, gate), (up_name, up) = (values_of(model, kind, 0) for kind in (Kind.GATE_PROJ, Kind.UP_PROJ))
    return {gate_name: up, up_name: gate}


WRONG_VALUES = [swapped_norms, without_k_norm, interleaved_rope, transposed, of_another_layer, gate_for_up]


@pytest.mark.parametrize("mutate", WRONG_VALUES, ids=lambda mutate: mutate.__name__)
def test_wrong_values_are_named(
    model: Model, tmp_path: Path, caught: Caught, mutate: Callable[[Model], dict[str, np.ndarray]]
) -> None:
    changed = mutate(model)
    report = checked(model, tmp_path / "wrong.gguf", values=changed)
    caught(f"values: {mutate.__name__.replace('_', ' ')}", report)
    assert report.verdict == "fail"
    assert {difference.partition(":")[0] for difference in report.values} == changed.keys()
    # The file is converted faithfully; it is another model.
    assert report.conversion.status == "pass"


@pytest.mark.parametrize("damage", ["zeros", "noise"])
def test_one_damaged_block(model: Model, tmp_path: Path, caught: Caught, damage: str) -> None:
    path = tmp_path / "damaged.gguf"
    checked(model, path)
    tensor = open_gguf(path).tensors["blk.0.ffn_gate.weight"]
    block = GGML_FORMATS[tensor.format].block_bytes
    noise = np.random.default_rng(0).integers(0, 256, block, dtype=np.uint8).tobytes()
    with path.open("r+b") as file:
        file.seek(tensor.offset + 100 * block)
        file.write(bytes(block) if damage == "zeros" else noise)
    report = checks.checked("gguf", path, model.graph, model.tokenizer, threads=1)
    caught(f"one block of {damage}", report)
    assert report.verdict == "fail"
    assert [difference.partition(":")[0] for difference in report.values] == ["model.layers.0.mlp.gate_proj"]
