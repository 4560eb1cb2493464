"""A user's overrides of a recipe: other formats for some tensors.

Tensors are named by GGUF's base names: ``attn_v`` is that tensor in every layer, ``blk.3.attn_v`` in one layer; the
latter wins. llama.cpp takes regular expressions here and searches for them anywhere in a name, so its ``output=q8_0``
also matches ``attn_output``. Exact names avoid such surprises.

An override is applied exactly or refused with a reason. It is never replaced by a format that fits.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from qwen3_export.errors import QuantizationError
from qwen3_export.graph import Kind
from qwen3_export.targets.gguf.formats import FORMATS
from qwen3_export.targets.gguf.names import GgufTensor

__all__ = ["Overrides", "check_overrides", "has_tied_head", "is_always_f32", "override_for", "parse_overrides"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Overrides:
    """Formats by tensor name, and for the embedding and the output.

    ``output_type`` is for the output projection, which in a tied model is the embedding.
    """

    tensor_types: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    output_type: str | None = None
    embedding_type: str | None = None


def parse_overrides(
    assignments: Iterable[str], *, output_type: str | None = None, embedding_type: str | None = None
) -> Overrides:
    """Parse assignments such as ``attn_v=q6_k``.

    Raises QuantizationError for text that is not an assignment, for an unknown format, and for two formats of one name.
    """
    types: dict[str, str] = {}
    for text in assignments:
        name, equals, format_name = text.partition("=")
        if not (name and equals and format_name):
            raise QuantizationError(f"`tensor_type` {text}: write it as attn_v=q6_k or blk.3.attn_v=q6_k")
        name = name.strip().lower().removesuffix(".weight")
        found = _format_name(format_name.strip(), option=f"`tensor_type` {text}")
        if types.setdefault(name, found) != found:
            raise QuantizationError(f"`tensor_type`: {name} is given {types[name]} and {found}; give one")
    return Overrides(
        tensor_types=MappingProxyType(types),
        output_type=output_type and _format_name(output_type, option="`output_type`"),
        embedding_type=embedding_type and _format_name(embedding_type, option="`embedding_type`"),
    )


def has_tied_head(tensors: Sequence[GgufTensor]) -> bool:
    """Whether the embedding is the output projection too."""
    return all(tensor.kind is not Kind.LM_HEAD for tensor in tensors)


def is_always_f32(tensor: GgufTensor) -> bool:
    """True for vectors, norms and the router: they are small, and no runtime expects them in another format."""
    return len(tensor.shape) == 1 or tensor.kind is Kind.ROUTER


def override_for(tensor: GgufTensor, overrides: Overrides, *, is_tied: bool) -> str | None:
    """The format that the user asked for, or None.

    Raises QuantizationError if the tensor cannot have it, or if two requests contradict each other.
    """
    requests = _requests(tensor, overrides, is_tied=is_tied)
    if not requests:
        return None
    (option, wanted), *others = requests.items()
    for other, format_name in others:
        if format_name != wanted:
            raise QuantizationError(
                f"{tensor.name}: {option} asks for {wanted} and {other} for {format_name}; give one of them"
            )
    if is_always_f32(tensor) and wanted != "F32":
        raise QuantizationError(f"{tensor.name}: it is always stored as F32; leave {option} out")
    block = FORMATS[wanted].block_size
    if tensor.columns % block:
        raise QuantizationError(
            f"{tensor.name}: rows of {tensor.columns} are not a multiple of {wanted}'s blocks of {block}, so "
            f"{option} cannot be met; use {_fitting(tensor.columns)}"
        )
    return wanted


def check_overrides(overrides: Overrides, tensors: Sequence[GgufTensor]) -> None:
    """Refuse an override that names no tensor of the model, because it would have no effect."""
    known = {tensor.base for tensor in tensors} | {_stem(tensor) for tensor in tensors}
    for name in overrides.tensor_types:
        if name not in known:
            names = sorted({tensor.base for tensor in tensors if not is_always_f32(tensor)})
            raise QuantizationError(
                f"`tensor_type`: the model has no tensor {name}; use one of {', '.join(names)}, or a tensor of one "
                "layer, such as blk.3.attn_v"
            )


def _requests(tensor: GgufTensor, overrides: Overrides, *, is_tied: bool) -> dict[str, str]:
    """All formats requested for this tensor, by the option that requested them."""
    is_embedding = tensor.kind is Kind.EMBED_TOKENS
    is_output = tensor.kind is Kind.LM_HEAD or (is_tied and is_embedding)
    requests: dict[str, str] = {}
    for name in (_stem(tensor), tensor.base):
        if name in overrides.tensor_types:
            requests[f"`tensor_type` {name}"] = overrides.tensor_types[name]
            break
    if is_embedding and overrides.embedding_type:
        requests["`embedding_type`"] = overrides.embedding_type
    if is_output and overrides.output_type:
        requests["`output_type`"] = overrides.output_type
    return requests


def _stem(tensor: GgufTensor) -> str:
    return tensor.name.removesuffix(".weight")


def _format_name(text: str, *, option: str) -> str:
    name = text.upper()
    if name not in FORMATS:
        raise QuantizationError(f"{option}: no format {text!r}; use one of {', '.join(FORMATS)}")
    return name


def _fitting(columns: int) -> str:
    return ", ".join(name for name, number_format in FORMATS.items() if columns % number_format.block_size == 0)
