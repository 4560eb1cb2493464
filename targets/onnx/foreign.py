"""Translate other exporters' initializer names to this toolkit's, so that their files can be checked too.

onnxruntime-genai's model builder (``onnxruntime_genai/models/builder.py``) names initializers after its own modules:
``model.layers.0.attn.qkv_proj.MatMul.weight_Q4``, ``model.layers.0.attn.q_norm.layernorm.weight``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from qwen3_export.reference.probe import Place, Site

__all__ = ["builder_sites", "own_names"]

# Applied in order; a name that matches no rule stays as it is.
RULES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^model\.layers\.\d+\.final_norm_layernorm\.weight$", "model.norm.weight"),
        (r"^(model\.layers\.\d+)\.attn\.", r"\1.self_attn."),
        (r"\.([qk]_norm)\.layernorm\.weight$", r".\1.weight"),
        (r"\.MatMul\.weight_Q\d+(G\d+)?$", ".weight_codes"),
        (r"\.MatMul\.weight_scales?$", ".weight_scales"),
        (r"\.MatMul\.weight_(zp|zero_points?)$", ".weight_zero_points"),
    )
)
HEAD, EMBEDDING = "lm_head.", "model.embed_tokens."


def own_names(names: Iterable[str]) -> dict[str, str]:
    """This toolkit's name for each initializer. A head that is also the embedding gets the embedding's name."""
    found = {name: _own_name(name) for name in names}
    if not any(name.startswith(EMBEDDING) for name in found.values()):
        found = {name: re.sub(f"^{re.escape(HEAD)}", EMBEDDING, own) for name, own in found.items()}
    return found


def builder_sites(layers: int) -> dict[str, Site]:
    """The values in the builder's graphs that the reference can show too, by name."""
    found = {f"/model/layers.{layers}/final_norm_layernorm/output_0": Site(Place.FINAL)}
    for layer in range(layers):
        prefix, last = f"/model/layers.{layer}", layer == layers - 1
        following = f"/model/layers.{layer + 1}/{'final_norm_layernorm' if last else 'input_layernorm'}"
        found |= {
            f"{prefix}/attn/o_proj/MatMul/output_0": Site(Place.ATTENTION, layer),
            f"{prefix}/post_attention_layernorm/output_3": Site(Place.AFTER_ATTENTION, layer),
            f"{prefix}/mlp/down_proj/MatMul/output_0": Site(Place.MLP, layer),
            f"{following}/output_3": Site(Place.OUTPUT, layer),
        }
    return found


def _own_name(name: str) -> str:
    for pattern, replacement in RULES:
        name = pattern.sub(replacement, name)
    return name
