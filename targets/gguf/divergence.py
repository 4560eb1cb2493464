"""Collect llama.cpp's hidden states through its evaluation callback, under the reference's names."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from qwen3_export.reference.model import Place, Site
from qwen3_export.targets.gguf.llama import LlamaModel

__all__ = ["observe_sites", "site_of"]

# llama.cpp's names (the graph of qwen3 and qwen3moe, llama-graph.cpp). Qcur and Kcur each name two tensors, before the
# norm and after RoPE; the later one counts. llama.cpp has no name for the output of attention.
IN_LAYERS = {
    "Qcur": Place.Q_ROPE,
    "Kcur": Place.K_ROPE,
    "ffn_inp": Place.AFTER_ATTENTION,
    "ffn_out": Place.MLP,
    "ffn_moe_out": Place.MLP,
    "l_out": Place.OUTPUT,
}
OUTSIDE = {
    "embd": Site(Place.INPUT, 0),
    "inp_embd": Site(Place.INPUT, 0),
    "result_norm": Site(Place.FINAL),
}
NAME = re.compile(r"(?P<base>\w+)-(?P<layer>\d+)")


def observe_sites(model: LlamaModel, tokens: Sequence[int]) -> dict[Site, np.ndarray]:
    """Run one prefill in the exact form, and keep the values that the reference can show too, flat."""
    found: dict[Site, np.ndarray] = {}

    def keep(name: str, values: np.ndarray) -> None:
        site = site_of(name)
        if site is not None:
            found[site] = values

    with model.session(positions=len(tokens), is_exact=True, observer=keep) as session:
        session.logits(tokens)
    return found


def site_of(name: str) -> Site | None:
    """The reference's site for a tensor name of llama.cpp, or None."""
    match = NAME.fullmatch(name)
    if match is None:
        return OUTSIDE.get(name)
    place = IN_LAYERS.get(match["base"])
    return None if place is None else Site(place, int(match["layer"]))
