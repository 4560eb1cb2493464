"""The metadata of a GGUF file: hyperparameters, tokenizer, chat template, sampling defaults, origin.

Keys and types are those that llama.cpp's loader reads for ``qwen3`` and ``qwen3moe`` (llama-model.cpp,
llama-vocab.cpp). Two of them are always written, because the loader's defaults are wrong for Qwen3 and give no error:
``rope.freq_base`` (default 10,000) and ``attention.key_length`` (default embedding / heads).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen3_export import __version__
from qwen3_export.checkpoint.model import Model
from qwen3_export.checkpoint.template import DEFAULT
from qwen3_export.checkpoint.tokenizer import Tokenizer
from qwen3_export.config import Qwen3Config
from qwen3_export.quantizers.transforms import Fold
from qwen3_export.targets.gguf.container import MetaType, MetaValue
from qwen3_export.targets.gguf.ends import adds_bos, adds_eos, bos_token_id, end_tokens
from qwen3_export.targets.gguf.scales import scales_metadata

__all__ = [
    "ALLOCATION",
    "TENSOR_ERRORS",
    "VALUE_DIGESTS",
    "CalibrationOrigin",
    "Provenance",
    "architecture",
    "build_metadata",
    "split_metadata",
]

QUANTIZATION_VERSION = 2
ALLOCATION = "qwen3_export.allocation"
TUNING = "qwen3_export.tuning"
TENSOR_ERRORS = "qwen3_export.calibration.tensor_errors"
VALUE_DIGESTS = "qwen3_export.calibration.value_digests"

# llama_token_type of llama.cpp
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5

# Added tokens that look like markup to llama.cpp (conversion/base.py, does_token_look_special).
MARKUP = (("<|", "|>"), ("<｜", "｜>"), ("<unused", ">"))
PADDING = ("<pad>", "<mask>", "<2mass>", "[@BOS@]")


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationOrigin:
    """The text on which a solver was calibrated, and the error that it reached.

    ``tensor_errors`` has one number for each tensor of the file, in its order: the output error from storing the
    tensor, relative to its output, tr(ΔW H ΔWᵀ) / tr(W H Wᵀ), with H or (awq) its diagonal; -1 for tensors that no
    solver changed.  ``value_digests`` are those of the values it chose, in the same order; "" where it chose none.
    """

    dataset: str
    sha256: str
    num_tokens: int
    tensor_errors: tuple[float, ...]
    value_digests: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """How formats and stored values were chosen, recorded in the file."""

    recipe: str
    file_type: int
    method: str = "rtn"
    calibration: CalibrationOrigin | None = None
    scales: Mapping[Fold, NDArray[np.float32]] = field(default_factory=lambda: MappingProxyType({}))
    imatrix_file: str | None = None
    imatrix_datasets: tuple[str, ...] = ()
    imatrix_entries: int = 0
    imatrix_chunks: int = 0
    allocation: Mapping[str, Any] | None = None
    tuning: Mapping[str, Any] | None = None


def architecture(config: Qwen3Config) -> str:
    """llama.cpp's name for the model's graph."""
    return "qwen3moe" if config.is_moe else "qwen3"


def build_metadata(model: Model, provenance: Provenance) -> dict[str, MetaValue]:
    """All metadata of a file that is not split."""
    config = model.graph.config
    return {
        **_general(model, provenance),
        **_sampling(model.tokenizer),
        **_hyperparameters(config),
        **_rope(config),
        **_tokenizer(model.tokenizer, config.vocab_size),
        **_provenance(provenance),
    }


def split_metadata(index: int, count: int, num_tensors: int) -> dict[str, MetaValue]:
    """The place of one part within a split file (llama.cpp's gguf-split)."""
    return {
        "split.no": MetaValue(MetaType.UINT16, index),
        "split.count": MetaValue(MetaType.UINT16, count),
        "split.tensors.count": MetaValue(MetaType.INT32, num_tensors),
    }


def _u32(value: int) -> MetaValue:
    return MetaValue(MetaType.UINT32, value)


def _f32(value: float) -> MetaValue:
    return MetaValue(MetaType.FLOAT32, value)


def _text(value: str) -> MetaValue:
    return MetaValue(MetaType.STRING, value)


def _texts(values: list[str]) -> MetaValue:
    return MetaValue(MetaType.STRING, values, is_array=True)


def _general(model: Model, provenance: Provenance) -> dict[str, MetaValue]:
    name = model.name
    result = {
        "general.architecture": _text(architecture(model.graph.config)),
        "general.type": _text("model"),
        "general.name": _text(name.replace("-", " ").replace("_", " ")),
    }
    family = re.match(r"Qwen\d+(\.\d+)?(-Coder)?", name)
    if family:
        result["general.basename"] = _text(family.group())
    result["general.size_label"] = _text(_size_label(model))
    result |= _card_fields(model.card)
    result["general.file_type"] = _u32(provenance.file_type)
    result["general.quantization_version"] = _u32(QUANTIZATION_VERSION)
    return result


def _size_label(model: Model) -> str:
    """The size label of the GGUF naming convention: ``1.7B``, ``128x1.9B``."""
    from gguf import size_label

    expert = sum(_count(weight.shape) for weight in model.graph if weight.role.expert is not None)
    total = model.graph.num_parameters
    return str(size_label(total, total - expert, expert, model.graph.config.num_experts))


def _count(shape: tuple[int, ...]) -> int:
    return shape[0] * (shape[1] if len(shape) > 1 else 1)


def _card_fields(card: Mapping[str, Any]) -> dict[str, MetaValue]:
    """Licence, base models, tags and languages, if the checkpoint's card states them."""
    result: dict[str, MetaValue] = {}
    for name, key in (("license", "general.license"), ("license_link", "general.license.link")):
        if isinstance(card.get(name), str):
            result[key] = _text(card[name])
    bases = _string_list(card.get("base_model"))
    if bases:
        result["general.base_model.count"] = _u32(len(bases))
    for i, base in enumerate(bases):
        organisation, _, short = base.rpartition("/")
        result[f"general.base_model.{i}.name"] = _text(short.replace("-", " "))
        if organisation:
            result[f"general.base_model.{i}.organization"] = _text(organisation)
            result[f"general.base_model.{i}.repo_url"] = _text(f"https://huggingface.co/{base}")
    tags = list(dict.fromkeys([*_string_list(card.get("tags")), *_string_list(card.get("pipeline_tag"))]))
    if tags:
        result["general.tags"] = _texts(tags)
    languages = _string_list(card.get("language"))
    if languages:
        result["general.languages"] = _texts(languages)
    return result


def _string_list(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []


def _sampling(tokenizer: Tokenizer) -> dict[str, MetaValue]:
    """The makers' sampling defaults; empty if the model's default is greedy."""
    generation = tokenizer.generation
    if generation.do_sample is False:
        return {}
    result = {}
    if generation.temperature is not None:
        result["general.sampling.temp"] = _f32(generation.temperature)
    if generation.top_k is not None:
        result["general.sampling.top_k"] = MetaValue(MetaType.INT32, generation.top_k)
    if generation.top_p is not None:
        result["general.sampling.top_p"] = _f32(generation.top_p)
    if generation.min_p is not None:
        result["general.sampling.min_p"] = _f32(generation.min_p)
    return result


def _hyperparameters(config: Qwen3Config) -> dict[str, MetaValue]:
    arch = architecture(config)
    result = {
        f"{arch}.block_count": _u32(config.num_hidden_layers),
        f"{arch}.context_length": _u32(config.context_length),
        f"{arch}.embedding_length": _u32(config.hidden_size),
        f"{arch}.feed_forward_length": _u32(config.intermediate_size),
        f"{arch}.attention.head_count": _u32(config.num_attention_heads),
        f"{arch}.attention.head_count_kv": _u32(config.num_key_value_heads),
        f"{arch}.attention.key_length": _u32(config.head_dim),
        f"{arch}.attention.value_length": _u32(config.head_dim),
        f"{arch}.attention.layer_norm_rms_epsilon": _f32(config.rms_norm_eps),
    }
    if config.is_moe:
        result[f"{arch}.expert_count"] = _u32(config.num_experts)
        result[f"{arch}.expert_used_count"] = _u32(config.num_experts_per_tok)
        result[f"{arch}.expert_feed_forward_length"] = _u32(config.moe_intermediate_size)
    return result


def _rope(config: Qwen3Config) -> dict[str, MetaValue]:
    arch, yarn = architecture(config), config.rope_scaling
    result = {f"{arch}.rope.freq_base": _f32(config.rope_theta)}
    if yarn is None:
        return result
    result[f"{arch}.rope.scaling.type"] = _text("yarn")
    result[f"{arch}.rope.scaling.factor"] = _f32(yarn.factor)
    result[f"{arch}.rope.scaling.original_context_length"] = _u32(yarn.original_max_position_embeddings)
    if yarn.stated_attention_factor is not None:
        # llama.cpp multiplies its own factor, the paper's, by this one.
        result[f"{arch}.rope.scaling.attn_factor"] = _f32(yarn.attention_factor / yarn.paper_attention_factor)
    return result


def _tokenizer(tokenizer: Tokenizer, vocab_size: int) -> dict[str, MetaValue]:
    tokens, types = _token_table(tokenizer, vocab_size)
    generation, bos = tokenizer.generation, bos_token_id(tokenizer)
    result = {
        "tokenizer.ggml.model": _text("gpt2"),
        "tokenizer.ggml.pre": _text("qwen2"),
        "tokenizer.ggml.tokens": _texts(tokens),
        "tokenizer.ggml.token_type": MetaValue(MetaType.INT32, types, is_array=True),
        "tokenizer.ggml.merges": _texts([f"{left} {right}" for left, right in tokenizer.merges]),
    }
    result |= {f"tokenizer.ggml.{name}_token_id": _u32(token) for name, token in end_tokens(tokenizer).items()}
    if generation.pad_token_id is not None:
        result["tokenizer.ggml.padding_token_id"] = _u32(generation.pad_token_id)
    if bos is not None:
        result["tokenizer.ggml.bos_token_id"] = _u32(bos)
    result["tokenizer.ggml.add_bos_token"] = MetaValue(MetaType.BOOL, adds_bos(tokenizer))
    if adds_eos(tokenizer):
        result["tokenizer.ggml.add_eos_token"] = MetaValue(MetaType.BOOL, True)
    return result | _templates(tokenizer)


def _templates(tokenizer: Tokenizer) -> dict[str, MetaValue]:
    """The default template, and the others by name, which llama.cpp asks for (``tool_use``)."""
    templates = {} if tokenizer.template is None else dict(tokenizer.template.templates)
    default = templates.pop(DEFAULT, None)
    result = {} if default is None else {"tokenizer.chat_template": _text(default)}
    named = {re.sub("[^A-Za-z0-9]", "_", name): text for name, text in templates.items()}
    if named:
        result["tokenizer.chat_templates"] = _texts(sorted(named))
    return result | {f"tokenizer.chat_template.{name}": _text(named[name]) for name in sorted(named)}


def _token_table(tokenizer: Tokenizer, vocab_size: int) -> tuple[list[str], list[int]]:
    """Token texts and types for every row of the embedding. Rows without a token are padding."""
    tokens = [f"[PAD{i}]" for i in range(vocab_size)]
    types = [UNUSED] * vocab_size
    for token, i in tokenizer.vocabulary.items():
        tokens[i], types[i] = token, NORMAL
    for added in tokenizer.added_tokens:
        tokens[added.id] = added.content
        types[added.id] = CONTROL if added.special or looks_special(added.content) else USER_DEFINED
    return tokens, types


def looks_special(content: str) -> bool:
    """Whether llama.cpp takes an added token for markup by its looks, whatever its flag says.

    Its converter does so (``<|fim_prefix|>`` and the like, which no tokenizer of Qwen calls special), and so does its
    loader, which warns of files that say otherwise.
    """
    return any(content.startswith(first) and content.endswith(last) for first, last in MARKUP) or content in PADDING


def _provenance(provenance: Provenance) -> dict[str, MetaValue]:
    result = {
        "qwen3_export.version": _text(__version__),
        "qwen3_export.recipe": _text(provenance.recipe),
        "qwen3_export.method": _text(provenance.method),
    }
    if provenance.calibration is not None:
        origin = provenance.calibration
        result["qwen3_export.calibration.dataset"] = _text(origin.dataset)
        result["qwen3_export.calibration.sha256"] = _text(origin.sha256)
        result["qwen3_export.calibration.tokens"] = _u32(origin.num_tokens)
        errors = [float(error) for error in origin.tensor_errors]
        result[TENSOR_ERRORS] = MetaValue(MetaType.FLOAT32, errors, is_array=True)
        if any(origin.value_digests):
            result[VALUE_DIGESTS] = _texts(list(origin.value_digests))
    if provenance.allocation is not None:
        result[ALLOCATION] = _text(json.dumps(dict(provenance.allocation)))
    if provenance.tuning is not None:
        result[TUNING] = _text(json.dumps(dict(provenance.tuning)))
    result |= scales_metadata(provenance.scales)
    if provenance.imatrix_file is not None:
        result["quantize.imatrix.file"] = _text(provenance.imatrix_file)
        if provenance.imatrix_datasets:
            result["quantize.imatrix.dataset"] = _text(", ".join(provenance.imatrix_datasets))
        result["quantize.imatrix.entries_count"] = _u32(provenance.imatrix_entries)
        result["quantize.imatrix.chunks_count"] = _u32(provenance.imatrix_chunks)
    return result
