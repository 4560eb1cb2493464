"""Find where a runtime's hidden states differ from the reference, and the known mistake that explains it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from qwen3_export.graph import Graph
from qwen3_export.parity.compare import first_divergence, reference_states
from qwen3_export.parity.report import FirstDivergence
from qwen3_export.parity.suspects import SUSPECTS, Inputs
from qwen3_export.reference.model import Place, Site

__all__ = ["likely_cause", "localise"]

# A mistake explains a state where what is left is a hundredth of the difference, and small beside the state.
EXPLAINED, CLOSE = 0.01, 1e-2

# Places whose stream is the one after attention.
AFTER_ATTENTION = (Place.MLP, Place.OUTPUT)

RunSites = Callable[[Sequence[int]], Mapping[Site, np.ndarray]]


def localise(graph: Graph, tokens: Sequence[int], run: RunSites, *, first_layer: int = 0) -> FirstDivergence | None:
    """The first site at which hidden states part, with its likely cause; None where all seen sites agree.

    ``graph`` holds the values that the artifact stores; ``run`` gives the runtime's states in its exact form;
    ``first_layer`` is the number, in the whole model, of the graph's first.
    """
    expected, seen = reference_states(graph, tokens), run(tokens)
    found = first_divergence(expected, seen)
    if found is None:
        return None
    site, relative = found
    return FirstDivergence(
        layer=None if site.layer is None else site.layer + first_layer,
        site=site.place.value,
        relative=relative,
        cause=likely_cause(graph, tokens, site, seen[site], states=expected),
    )


@torch.inference_mode()
def likely_cause(
    graph: Graph, tokens: Sequence[int], site: Site, found: np.ndarray, *, states: Mapping[Site, Tensor]
) -> str | None:
    """The mistake that gives the found state at a site, or None where none of the known ones does.

    ``states`` are the reference's (``reference_states``).
    """
    expected = states.get(site)
    state = torch.from_numpy(np.array(found, np.float32)).flatten()
    if expected is None or state.numel() != expected.numel():
        return None
    difference = _relative(expected, state)
    inputs = Inputs(
        graph=graph,
        layer=site.layer,
        tokens_T=torch.tensor(tokens),
        stream_TD=states[_stream_site(graph, site)],
        states={other.place: value for other, value in states.items() if other.layer == site.layer},
        outputs={
            other.layer: value
            for other, value in states.items()
            if other.place is Place.OUTPUT and other.layer is not None
        },
    )
    best, cause = min(
        ((_relative(value, state), told) for told, value in SUSPECTS[site.place](inputs)),
        default=(float("inf"), ""),
    )
    if best < CLOSE and best < EXPLAINED * difference:
        return cause
    return _scaled(expected, state, difference)


def _scaled(expected: Tensor, state: Tensor, difference: float) -> str | None:
    """Whether the state is what it should be, times a number."""
    flat = expected.flatten()
    factor = float(flat.double() @ state.double() / flat.double().square().sum().clamp_min(1e-30))
    left = _relative(flat * factor, state)
    return f"it is {factor:.4g} times what it should be" if left < CLOSE and left < EXPLAINED * difference else None


def _stream_site(graph: Graph, site: Site) -> Site:
    """Where the residual stream that a site's sub-block reads was seen last."""
    if site.layer is None:
        return Site(Place.OUTPUT, graph.config.num_hidden_layers - 1)
    if site.place in AFTER_ATTENTION:
        return Site(Place.AFTER_ATTENTION, site.layer)
    return Site(Place.OUTPUT, site.layer - 1) if site.layer else Site(Place.INPUT, 0)


def _relative(expected: Tensor, state: Tensor) -> float:
    reference = expected.flatten().double()
    if reference.shape != state.shape or not torch.isfinite(state).all():
        return float("inf")
    return float((state.double() - reference).norm() / reference.norm().clamp_min(1e-30))
