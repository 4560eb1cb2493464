"""An F32 twin of a GGUF file, with which llama.cpp computes exactly enough for a tight bound.

llama.cpp multiplies quantized weights with int8 activations. This costs 1e-4, which would hide an error of 1e-6 in a
norm. The twin holds the same metadata, and the tensors' values in F32 as gguf-py decodes them, so only that rounding is
left out. gguf-py also writes it: neither our container nor our decoding takes part.

A twin of a large model does not fit in memory. Then it has only a few layers (``block_count`` lowered) and a part of
the vocabulary: the rows of embedding and head that the texts use, and some more. llama.cpp requires a token table that
matches, so such a twin has none (tokenizer ``no_vocab``), and token ids count within the part.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from qwen3_export.graph import ALL_ROWS, DerivedWeight, Graph, Kind, Weight
from qwen3_export.targets.gguf.names import stack_weights
from qwen3_export.targets.gguf.read import GgufFile

__all__ = ["PickedRows", "Window", "plan_windows", "window_graph", "write_twin"]

VALUES_PER_BLOCK = 1 << 22
# A part of the vocabulary has this many more rows, in runs, beside those that the texts use.
SAMPLED_RUNS, SAMPLED_RUN_ROWS = 8, 256

TABLES = frozenset({Kind.EMBED_TOKENS, Kind.LM_HEAD})


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Layers [first, first + count) and the vocabulary rows of one twin; ``vocabulary`` is None for all rows."""

    first: int
    count: int
    vocabulary: tuple[int, ...] | None = None

    def token_ids(self, tokens: Sequence[int]) -> list[int]:
        """Token ids as the twin numbers them."""
        if self.vocabulary is None:
            return list(tokens)
        return [int(i) for i in np.searchsorted(np.asarray(self.vocabulary), np.asarray(tokens))]


@dataclass(frozen=True, slots=True, kw_only=True)
class PickedRows(DerivedWeight):
    """Some rows of a matrix, by rising index."""

    picked: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.picked), *self.source.shape[1:])

    def read(self, rows: slice = ALL_ROWS) -> np.ndarray:
        wanted = np.asarray(self.picked[rows], dtype=np.int64)
        if not len(wanted):
            return self.source.read(slice(0, 0))
        runs = np.split(wanted, np.flatnonzero(np.diff(wanted) != 1) + 1)
        return np.concatenate([self.source.read(slice(int(run[0]), int(run[-1]) + 1)) for run in runs])


def plan_windows(graph: Graph, prompts: Sequence[Sequence[int]], *, max_bytes: int, is_full: bool) -> list[Window]:
    """Plan the twins, each of at most ``max_bytes`` if a single layer allows it.

    One twin has the whole model if that fits. Otherwise a twin has a part of the vocabulary and the first layers; with
    ``is_full``, several twins visit all layers in turn.
    """
    layers = graph.config.num_hidden_layers
    if 4 * graph.num_parameters <= max_bytes:
        return [Window(first=0, count=layers)]
    vocabulary = _pick_vocabulary(graph.config.vocab_size, prompts)
    tables = 2 * 4 * len(vocabulary) * graph.config.hidden_size
    layer_bytes = 4 * max(_layer_sizes(graph))
    count = min(layers, max(1, (max_bytes - tables) // layer_bytes))
    firsts = range(0, layers, count) if is_full else (0,)
    return [Window(first=first, count=min(count, layers - first), vocabulary=vocabulary) for first in firsts]


def window_graph(graph: Graph, window: Window) -> Graph:
    """The part of a graph that a window selects."""
    part = graph.truncated(window.first, window.count)
    if window.vocabulary is None:
        return part
    picked = window.vocabulary
    weights = {
        name: PickedRows(source=weight, picked=picked) if weight.role.kind in TABLES else weight
        for name, weight in part.weights.items()
    }
    config = replace(part.config, vocab_size=len(picked))
    return replace(part, config=config, weights=MappingProxyType(weights))


def write_twin(file: GgufFile, stored: Graph, path: Path, *, window: Window) -> None:
    """Write the twin of a file; ``stored`` has its values (decoded by gguf-py, to be independent)."""
    from gguf import GGMLQuantizationType, GGUFWriter

    writer = GGUFWriter(path, file.metadata["general.architecture"])
    for key, (value, types) in _twin_metadata(file, window).items():
        writer.add_key_value(key, value, types[0], types[-1] if len(types) > 1 else None)
    tensors = stack_weights(window_graph(stored, window))
    for tensor in tensors:
        num_bytes = 4 * int(np.prod(tensor.shape))
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), num_bytes, GGMLQuantizationType.F32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    # gguf-py only writes whole tensors, so rows are appended to its file here.
    assert writer.fout is not None
    output = writer.fout[0]
    for tensor in tensors:
        writer.write_padding(output, output.tell())
        for weight in tensor.members:
            for values in _value_blocks(weight):
                values.tofile(output)
    writer.write_padding(output, output.tell())
    writer.close()


def _twin_metadata(file: GgufFile, window: Window) -> dict[str, tuple[Any, tuple[Any, ...]]]:
    from gguf import GGUFValueType

    u32, text = (GGUFValueType.UINT32,), (GGUFValueType.STRING,)
    arch = file.metadata["general.architecture"]
    kept = {
        key: (value, file.types[key])
        for key, value in file.metadata.items()
        if not key.startswith("split.") and key != "general.architecture" and value not in ("", [])
    }
    kept |= {"general.file_type": (0, u32), f"{arch}.block_count": (window.count, u32)}
    if window.vocabulary is not None:
        kept = {key: entry for key, entry in kept.items() if not key.startswith("tokenizer.")}
        kept["tokenizer.ggml.model"] = ("no_vocab", text)
        kept[f"{arch}.vocab_size"] = (len(window.vocabulary), u32)
    return kept


def _value_blocks(weight: Weight) -> Iterator[np.ndarray]:
    row_size = int(np.prod(weight.shape[1:]))
    step = max(1, VALUES_PER_BLOCK // row_size)
    for start in range(0, weight.shape[0], step):
        yield np.ascontiguousarray(weight.read(slice(start, start + step)), dtype=np.float32)


def _pick_vocabulary(vocab_size: int, prompts: Sequence[Sequence[int]]) -> tuple[int, ...]:
    starts = np.linspace(0, vocab_size - SAMPLED_RUN_ROWS, SAMPLED_RUNS, dtype=np.int64)
    sampled = {int(start) + i for start in starts for i in range(SAMPLED_RUN_ROWS)}
    used = {int(token) for prompt in prompts for token in prompt}
    return tuple(sorted(i for i in used | sampled if 0 <= i < vocab_size))


def _layer_sizes(graph: Graph) -> list[int]:
    sizes = [0] * graph.config.num_hidden_layers
    for weight in graph:
        if weight.role.layer is not None:
            sizes[weight.role.layer] += int(np.prod(weight.shape))
    return sizes
