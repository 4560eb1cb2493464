"""The tensors of a GGUF file, each with the weights of the graph that it holds.

A graph has each expert apart; a GGUF file stacks the experts of a layer into one tensor, [E, out, in]. ``gguf_tensors``
gives the file's tensors in file order, each with the graph's weights that form it. Shapes are the graph's, outermost
first; GGUF itself lists dimensions innermost first.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from qwen3_export.config import Qwen3Config
from qwen3_export.errors import UnsupportedModelError
from qwen3_export.files.shown import shown
from qwen3_export.graph import Graph, Kind, Weight
from qwen3_export.llama_names import AFTER_BLOCKS, BEFORE_BLOCKS, BLOCK, tensor_name
from qwen3_export.yarn import YarnScaling

__all__ = [
    "GgufTensor",
    "check_representable",
    "gguf_tensors",
    "stack_weights",
]

_POSITION = {kind: i for i, kind in enumerate([*BEFORE_BLOCKS, *BLOCK, *AFTER_BLOCKS])}


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufTensor:
    """One tensor of the file; ``shape`` is [out, in], [size] for a vector, [E, out, in] for stacked experts.

    ``members`` are the graph's weights that form it, in expert order; only one if it is not stacked.
    """

    name: str
    kind: Kind
    layer: int | None
    shape: tuple[int, ...]
    members: tuple[Weight, ...]

    @property
    def base(self) -> str:
        """The name without block and suffix: ``attn_v``, ``ffn_down_exps``, ``token_embd``."""
        return self.name.removesuffix(".weight").rpartition(".")[2]

    @property
    def is_stacked(self) -> bool:
        return len(self.shape) == 3

    @property
    def columns(self) -> int:
        """Length of a row, which must be a multiple of a quantization block."""
        return self.shape[-1]


def gguf_tensors(graph: Graph) -> list[GgufTensor]:
    """The file's tensors in file order: embedding, blocks, final norm, output.

    The order depends only on names, not on the order of the graph's weights. Raises UnsupportedModelError if llama.cpp
    has no graph for the model.
    """
    check_representable(graph.config)
    return stack_weights(graph)


def stack_weights(weights: Iterable[Weight]) -> list[GgufTensor]:
    """Group weights by tensor: experts in order, tensors in file order."""
    members: dict[str, list[Weight]] = {}
    for weight in weights:
        members.setdefault(tensor_name(weight.role), []).append(weight)
    return sorted((_stack(name, found) for name, found in members.items()), key=_file_position)


def check_representable(config: Qwen3Config) -> None:
    """Refuse models that llama.cpp would compute differently or not load.

    For ``qwen3`` it reads no limits of YaRN's blend, and always rounds them to whole pairs. Its ``qwen3moe`` graph
    builds a mixture of experts in every layer (it reads ``ffn_gate_inp`` and never ``ffn_gate``), and it always
    renormalises the top-k routing weights; no key turns that off.
    """
    yarn = config.rope_scaling
    if yarn is not None:
        _check_yarn(yarn)
    if not config.is_moe:
        return
    dense = [layer for layer in range(config.num_hidden_layers) if not config.is_sparse_layer(layer)]
    if dense:
        raise UnsupportedModelError(
            f"config.json: layer {dense[0]} has a dense MLP, and llama.cpp's qwen3moe has experts in every "
            "layer, so a file would compute something else"
        )
    if not config.norm_topk_prob:
        raise UnsupportedModelError(
            "config.json: norm_topk_prob is false, and llama.cpp's qwen3moe always renormalises the top-k "
            "routing weights, so a file would compute something else"
        )


def _check_yarn(yarn: YarnScaling) -> None:
    for field, only in (("beta_fast", 32.0), ("beta_slow", 1.0), ("truncate", True)):
        if getattr(yarn, field) != only:
            raise UnsupportedModelError(
                f"config.json: rope_scaling {field} is {shown(getattr(yarn, field))}, and llama.cpp computes Qwen3 "
                f"with {shown(only)} always, so a file would compute something else; use another target"
            )


def _stack(name: str, found: list[Weight]) -> GgufTensor:
    role, shape = found[0].role, found[0].shape
    if role.expert is not None:
        found = sorted(found, key=lambda weight: weight.role.expert or 0)
        experts = [weight.role.expert for weight in found]
        assert experts == list(range(len(found))), f"{name}: experts are missing"
        assert all(weight.shape == shape for weight in found), f"{name}: experts differ in shape"
        shape = (len(found), *shape)
    return GgufTensor(name=name, kind=role.kind, layer=role.layer, shape=shape, members=tuple(found))


def _file_position(tensor: GgufTensor) -> tuple[int, int, int]:
    section = 0 if tensor.kind in BEFORE_BLOCKS else 2 if tensor.kind in AFTER_BLOCKS else 1
    return section, tensor.layer or 0, _POSITION[tensor.kind]
