"""YaRN, which extends the context (arXiv 2309.00071), as ``config.json`` states it and transformers reads it.

Its fields stand in ``rope_scaling`` or, in newer configs, in ``rope_parameters`` together with ``rope_theta``. Where
engines differ, transformers decides: it takes ``rope_scaling`` if both are there, it reads ``attention_factor``,
``mscale`` and ``mscale_all_dim``, and it ignores all keys that it does not know. ``attn_factor`` is one of these, which
llama.cpp and vLLM multiply by; ``rope_notes`` says what is ignored.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from qwen3_export.config_fields import boolean, integer, number
from qwen3_export.errors import UnsupportedModelError
from qwen3_export.files.shown import shown

__all__ = ["YarnScaling", "read_rope_parameters", "read_yarn", "rope_notes"]

# Every key that transformers reads for YaRN.
KNOWN = frozenset(
    {"rope_type", "type", "rope_theta", "partial_rotary_factor", "factor", "original_max_position_embeddings",
     "beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim", "truncate"}
)  # fmt: skip
WITHOUT_SCALING = ("rope_type", "type", "rope_theta", "partial_rotary_factor")
MOST_POSITIONS = (1 << 31) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class YarnScaling:
    """The fields of YaRN; ``attention_factor`` multiplies cos and sin, so that scores grow by its square."""

    factor: float
    original_max_position_embeddings: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    stated_attention_factor: float | None = None
    truncate: bool = True

    def __post_init__(self) -> None:
        for field in ("factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "attention_factor"):
            if not 0 < getattr(self, field) < math.inf:
                raise UnsupportedModelError(
                    f"config.json: rope_scaling {field} is {getattr(self, field)}; it must be positive"
                )
        if self.factor * self.original_max_position_embeddings > MOST_POSITIONS:
            raise UnsupportedModelError(
                f"config.json: rope_scaling factor {self.factor:g} on {self.original_max_position_embeddings:,} "
                f"positions gives more than {MOST_POSITIONS:,}; correct the factor"
            )

    @property
    def paper_attention_factor(self) -> float:
        """What the paper suggests (section 3.4), and llama.cpp computes: 0.1 ln(factor) + 1."""
        return _attention_scale(self.factor)

    @property
    def attention_factor(self) -> float:
        stated = self.stated_attention_factor
        return self.paper_attention_factor if stated is None else stated

    @property
    def num_positions(self) -> int:
        """The positions that the extended context has: the original ones times the factor."""
        return int(self.original_max_position_embeddings * self.factor)


def read_rope_parameters(document: Mapping[str, Any]) -> Mapping[str, Any]:
    """One mapping with ``rope_theta`` and, if there are any, the keys of a scaling, from either spelling."""
    new, old = (_object(document, name) for name in ("rope_parameters", "rope_scaling"))
    chosen = old or new
    theta = chosen.get("rope_theta", document.get("rope_theta"))
    if old and new and theta is None:
        raise UnsupportedModelError(
            "config.json: has rope_parameters and rope_scaling, and rope_theta in the first alone, where transformers "
            "would not find it; move the keys of rope_scaling into rope_parameters"
        )
    if chosen.get("partial_rotary_factor", document.get("partial_rotary_factor") or 1.0) != 1.0:
        raise UnsupportedModelError("config.json: partial_rotary_factor is not 1; Qwen3 rotates whole heads")
    return {**chosen, "rope_theta": theta}


def read_yarn(rope: Mapping[str, Any], document: Mapping[str, Any]) -> YarnScaling | None:
    """The YaRN of ``read_rope_parameters``, or None. Raises UnsupportedModelError for other kinds of scaling."""
    rope_type = _rope_type(rope)
    if rope_type == "default":
        return None
    if rope_type != "yarn":
        raise UnsupportedModelError(
            f"config.json: rope_scaling type {shown(rope_type)} is not supported; yarn, or none, is"
        )
    original = _original_positions(rope, document)
    factor = _factor(rope, document, original)
    return YarnScaling(
        factor=factor,
        original_max_position_embeddings=original,
        # transformers takes its defaults for a zero, too
        beta_fast=number(rope, "beta_fast", default=32.0) or 32.0,
        beta_slow=number(rope, "beta_slow", default=1.0) or 1.0,
        stated_attention_factor=_stated_attention_factor(rope, factor),
        truncate=rope.get("truncate") is None or boolean(rope, "truncate"),
    )


def rope_notes(document: Mapping[str, Any]) -> Iterator[str]:
    """What a config says of rotary positions and nothing follows from, as sentences."""
    rope = read_rope_parameters(document)
    if _object(document, "rope_parameters") and _object(document, "rope_scaling"):
        yield "config.json has rope_scaling and rope_parameters: rope_scaling is taken, as in transformers"
    ignored = [key for key in rope if key not in WITHOUT_SCALING and rope[key] is not None]
    if _rope_type(rope) == "default":
        if "factor" in ignored:
            yield "config.json has a rope_scaling without rope_type yarn, which has no effect, as in transformers"
        return
    yarn = read_yarn(rope, document)
    ignored = [key for key in ignored if key not in KNOWN]
    if "attn_factor" in ignored and yarn is not None:
        ignored.remove("attn_factor")
        stated = number(rope, "attn_factor")
        yield (
            f"rope_scaling has attn_factor {stated:g}, which transformers does not read, and so it is left out; "
            "vLLM and llama.cpp's converter multiply by it: for what they compute, add "
            f'"attention_factor": {stated * yarn.paper_attention_factor:.9g} to rope_scaling in config.json'
        )
    if ignored:
        yield f"rope_scaling has {', '.join(map(shown, ignored))}, which transformers does not read: left out"


def _object(document: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = document.get(name) or {}
    if not isinstance(value, Mapping):
        raise UnsupportedModelError(f'config.json: {name} is not an object; write null or {{"rope_type": …}}')
    return value


def _rope_type(rope: Mapping[str, Any]) -> object:
    return rope.get("rope_type", rope.get("type", "default"))


def _original_positions(rope: Mapping[str, Any], document: Mapping[str, Any]) -> int:
    """The config's own statement comes before that of the scaling, as in transformers."""
    name = "original_max_position_embeddings"
    for place in (document, rope):
        if place.get(name) is not None:
            return integer(place, name)
    return integer(document, "max_position_embeddings")


def _factor(rope: Mapping[str, Any], document: Mapping[str, Any], original: int) -> float:
    """The stated factor; the quotient of the two lengths where it is null."""
    if "factor" in rope and rope["factor"] is None and original > 0:
        return integer(document, "max_position_embeddings") / original
    return number(rope, "factor")


def _stated_attention_factor(rope: Mapping[str, Any], factor: float) -> float | None:
    """The attention factor that the scaling states, itself or by ``mscale``; None where it follows from the factor."""
    if rope.get("attention_factor") is not None:
        stated = number(rope, "attention_factor")
        # A rounded statement of the factor that follows anyway: runtimes compute that one.
        return None if math.isclose(stated, _attention_scale(factor), rel_tol=1e-6) else stated
    mscale, of_all = (number(rope, name, default=0.0) for name in ("mscale", "mscale_all_dim"))
    if not mscale or not of_all:
        return None
    return _attention_scale(factor, mscale) / _attention_scale(factor, of_all)


def _attention_scale(factor: float, mscale: float = 1.0) -> float:
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1.0 else 1.0
