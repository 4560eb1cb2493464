"""Run the reference and an artifact over the same texts, and compare; the same for every target.

A target hands in functions from tokens to logits; here they meet the reference, layer by layer over all texts,
and the head over as many positions at a time as a fixed amount of memory holds.
"""

# T tokens  D hidden  P positions  V vocabulary

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from qwen3_export.errors import CheckpointError
from qwen3_export.graph import Graph, Kind, Role, Weight
from qwen3_export.parity.curves import CurvePoint
from qwen3_export.parity.metrics import NOT_RUN, Comparison, Divergence
from qwen3_export.reference.model import KVCache, Place, Site, forward, head_logits
from qwen3_export.reference.weights import read_tensor

__all__ = [
    "CHUNKS",
    "Arithmetic",
    "HalfPrefillCache",
    "ShippedNumbers",
    "cache_difference",
    "compare_exact",
    "compare_shipped",
    "decided_parts",
    "decode_difference",
    "first_divergence",
    "reference_states",
]

# Summed in another order, a router's probabilities move by some 1e-7.
UNDECIDED_MARGIN = 2e-6

# Logits of one model held at once: 128 MiB, about 220 positions of Qwen3's vocabulary.
LOGITS_HELD = 1 << 25

# Lengths of chunks: single tokens, few, and those around a group of 32.
CHUNKS = (1, 7, 31, 32, 33)

# tokens -> logits of every position [T, V] fp32; the array may be overwritten by the next call
RunLogits = Callable[[Sequence[int]], np.ndarray]
# Within one layer, the sites in the order in which a token passes them.
ORDER = {place: i for i, place in enumerate(Place)}


class RunChunks(Protocol):
    """Tokens and the length of chunks to logits, chunk by chunk."""

    def __call__(self, tokens: Sequence[int], *, chunk: int) -> Iterator[np.ndarray]: ...


class HalfPrefillCache(KVCache):
    """Keys and values in fp16, as runtimes keep them; for one prefill, so nothing is kept."""

    def extend(self, layer: int, k_TKH: Tensor, v_TKH: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG002 (kept)
        return k_TKH.half().float(), v_TKH.half().float()


@dataclass(frozen=True, slots=True, kw_only=True)
class Arithmetic:
    """A model of the runtime's arithmetic, to measure what it costs: rounded activations, a coarser KV cache."""

    round_activations: Callable[[Tensor, Weight], Tensor] | None = None
    make_cache: Callable[[], KVCache] = KVCache


@dataclass(frozen=True, slots=True, kw_only=True)
class ShippedNumbers:
    """Comparisons that need no exact form of the runtime, not judged yet; NOT_RUN where nothing ran.

    ``floor`` is the reference over the stored values against itself under the runtime's modelled arithmetic, and
    ``modelled`` what ran against that, for a runtime that has no more exact form;
    ``curves`` are the numbers by name, over the positions of the texts.
    """

    quantization: Comparison
    floor: Comparison = NOT_RUN
    shipped: Comparison = NOT_RUN
    end_to_end: Comparison = NOT_RUN
    modelled: Comparison = NOT_RUN
    curves: Mapping[str, tuple[CurvePoint, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Segment:
    """Positions [start, stop) of one text, and which rows of its group they are."""

    text: int
    start: int
    stop: int


@dataclass(slots=True)
class _Side:
    """One model run by the reference: its graph, final hidden states, arithmetic of the head."""

    graph: Graph
    hidden: Sequence[Tensor]
    arithmetic: Arithmetic = field(default_factory=Arithmetic)

    def logits(self, group: Sequence[_Segment]) -> Tensor:
        hidden_PD = torch.cat([self.hidden[part.text][part.start : part.stop] for part in group])
        return head_logits(self.graph, hidden_PD, round_activations=self.arithmetic.round_activations)


def compare_exact(
    graph: Graph, texts: Sequence[Sequence[int]], run: RunLogits, *, arithmetic: Arithmetic | None = None
) -> Comparison:
    """A runtime in its most exact form against the reference over the same values, not judged yet.

    ``arithmetic``: of a runtime that has no other form, modelled by the reference.
    """
    reference = _run_reference(graph, texts, arithmetic)
    gathered = Divergence()
    for text, part, candidate_PV, (reference_PV,) in _walk([reference], texts, run):
        assert candidate_PV is not None
        gathered.add(reference_PV, candidate_PV, _next_tokens(text, part))
    return gathered.summary()


def compare_shipped(
    original: Graph,
    stored: Graph,
    texts: Sequence[Sequence[int]],
    *,
    run: RunLogits | None,
    arithmetic: Arithmetic | None = None,
    compares_model: bool = False,
) -> ShippedNumbers:
    """The artifact as shipped against the reference over its values and against the original; not judged yet.

    ``run`` None computes what needs no runtime; ``arithmetic`` models the runtime's, for the noise floor and, where
    ``compares_model``, for ``modelled``.
    """
    sides = [_run_reference(original, texts), _run_reference(stored, texts)]
    if arithmetic is not None:
        sides.append(_run_reference(stored, texts, arithmetic))
    quantization, floor, shipped, end_to_end, modelled = (Divergence() for _ in range(5))
    for text, part, candidate_PV, logits in _walk(sides, texts, run):
        following = _next_tokens(text, part)
        quantization.add(logits[0], logits[1], following, first=part.start)
        if arithmetic is not None:
            floor.add(logits[1], logits[2], following, first=part.start)
        if candidate_PV is not None:
            shipped.add(logits[1], candidate_PV, following, first=part.start)
            end_to_end.add(logits[0], candidate_PV, following, first=part.start)
            if compares_model:
                modelled.add(logits[-1], candidate_PV, following)
    gathered = {"shipped": shipped, "quantization": quantization, "end_to_end": end_to_end}
    return ShippedNumbers(
        quantization=quantization.summary(),
        floor=floor.summary(),
        shipped=shipped.summary(),
        end_to_end=end_to_end.summary(),
        modelled=modelled.summary(),
        curves={name: divergence.curve() for name, divergence in gathered.items() if divergence.positions},
    )


def decided_parts(graph: Graph, texts: Sequence[Sequence[int]]) -> list[list[int]]:
    """The texts, each cut before the first token at which some router is undecided; empty ones are dropped.

    Where a mixture's last chosen expert leads the next by no more than rounding, two exact computations choose
    differently and part for good; that is nobody's error.  What comes before such a token does not see it.
    """
    lengths = [len(text) for text in texts]
    active = graph.config.num_experts_per_tok
    if active == graph.config.num_experts:  # dense models, or nothing to choose
        return [list(text) for text in texts]

    def look(role: Role, sequence: int, h_TD: Tensor, _shares_T: Tensor | None) -> None:
        if role.kind is not Kind.ROUTER:
            return
        best_TE = torch.softmax(h_TD @ read_tensor(graph[role]).T, dim=-1).topk(active + 1).values
        undecided = torch.nonzero(best_TE[:, -2] - best_TE[:, -1] < UNDECIDED_MARGIN)
        if len(undecided):
            lengths[sequence] = min(lengths[sequence], int(undecided[0, 0]))

    forward(graph, [torch.tensor(text) for text in texts], observe_inputs=look)
    return [list(text[:length]) for text, length in zip(texts, lengths, strict=True) if length]


def decode_difference(run: RunChunks, tokens: Sequence[int]) -> float:
    """The largest difference of a logit between one prefill and chunks through the KV cache.

    Token by token, by sevens, by the lengths around a group of 32, and all but one.
    """
    prefill_TV = next(run(tokens, chunk=len(tokens))).copy()
    largest = 0.0
    for chunk in sorted({size for size in (*CHUNKS, len(tokens) - 1) if 0 < size < len(tokens)}):
        start = 0
        for logits_PV in run(tokens, chunk=chunk):
            difference = np.abs(logits_PV - prefill_TV[start : start + len(logits_PV)]).max()
            largest = max(largest, float(difference)) if np.isfinite(difference) else float("inf")
            start += len(logits_PV)
    return largest


@torch.inference_mode()
def cache_difference(graph: Graph, tokens: Sequence[int], caches: Mapping[int, tuple[np.ndarray, np.ndarray]]) -> float:
    """The largest relative RMS difference of a layer's keys or values, [S, K, H] each, from the reference's cache."""
    expected = KVCache()
    forward(graph, [torch.tensor(tokens)], caches=[expected])
    largest = 0.0
    for layer, found in caches.items():
        for reference_SKH, state in zip((expected.keys[layer], expected.values[layer]), found, strict=True):
            if state.shape != tuple(reference_SKH.shape) or not np.isfinite(state).all():
                return float("inf")
            reference = reference_SKH.double()
            difference = torch.from_numpy(np.array(state, np.float64)) - reference
            largest = max(largest, float(difference.norm() / reference.norm().clamp_min(1e-30)))
    return largest


def reference_states(graph: Graph, tokens: Sequence[int]) -> dict[Site, Tensor]:
    """The reference's hidden states at every site, for one text."""
    states: dict[Site, Tensor] = {}

    def keep(site: Site, _sequence: int, state: Tensor) -> None:
        states[site] = state.clone()

    forward(graph, [torch.tensor(tokens)], observe=keep)
    return states


def first_divergence(
    expected: Mapping[Site, Tensor], found: Mapping[Site, np.ndarray], *, tolerance: float = 1e-4
) -> tuple[Site, float] | None:
    """The first site whose relative RMS difference exceeds ``tolerance``, and that difference.

    fp32 sums in another order differ by about 1e-6; what a wrong weight or hyperparameter does is far larger.
    """
    for site in sorted(expected.keys() & found.keys(), key=_site_order):
        reference = expected[site].flatten().double()
        candidate = torch.from_numpy(found[site]).flatten().double()
        if candidate.shape != reference.shape:
            return site, float("inf")
        relative = float((candidate - reference).norm() / reference.norm().clamp_min(1e-30))
        if not relative <= tolerance:
            return site, relative
    return None


def _site_order(site: Site) -> tuple[float, int]:
    return (float("inf") if site.layer is None else site.layer, ORDER[site.place])


def _run_reference(graph: Graph, texts: Sequence[Sequence[int]], arithmetic: Arithmetic | None = None) -> _Side:
    used = arithmetic or Arithmetic()
    caches = None if arithmetic is None else [used.make_cache() for _ in texts]
    sequences = [torch.tensor(text) for text in texts]
    hidden = forward(graph, sequences, caches=caches, round_activations=used.round_activations)
    return _Side(graph, hidden, used)


def _walk(
    sides: Sequence[_Side], texts: Sequence[Sequence[int]], run: RunLogits | None
) -> Iterator[tuple[Sequence[int], _Segment, Tensor | None, list[Tensor]]]:
    """For each segment of each text: the runtime's logits, and those of each side.

    The runtime runs each text once; the reference's head is read once for several segments.
    """
    running, whole_TV = -1, None
    for group in _groups([len(text) for text in texts], sides[0].graph.config.vocab_size):
        logits = [side.logits(group) for side in sides]
        row = 0
        for part in group:
            if run is not None and part.text != running:
                running = part.text
                whole_TV = _shaped(run(texts[part.text]), len(texts[part.text]), sides[0].graph.config.vocab_size)
            rows = slice(row, row + part.stop - part.start)
            row = rows.stop
            candidate = None if whole_TV is None else torch.from_numpy(whole_TV[part.start : part.stop])
            yield texts[part.text], part, candidate, [side_PV[rows] for side_PV in logits]


def _shaped(logits_TV: np.ndarray, tokens: int, vocabulary: int) -> np.ndarray:
    """The logits that a runtime gave. Raises CheckpointError if they are not these tokens'."""
    if logits_TV.shape != (tokens, vocabulary):
        raise CheckpointError(
            f"the artifact gives an output of shape {list(logits_TV.shape)} for {tokens} tokens, where logits of shape "
            f"{[tokens, vocabulary]} are needed; is it a language model with the checkpoint's vocabulary?"
        )
    return logits_TV


def _groups(lengths: Sequence[int], vocabulary: int) -> Iterator[list[_Segment]]:
    """Segments in order, together at most as many positions as may be held."""
    room = limit = max(1, LOGITS_HELD // vocabulary)
    group: list[_Segment] = []
    for text, length in enumerate(lengths):
        start = 0
        while start < length:
            stop = min(length, start + room)
            group.append(_Segment(text, start, stop))
            room -= stop - start
            start = stop
            if room == 0:
                yield group
                group, room = [], limit
    if group:
        yield group


def _next_tokens(text: Sequence[int], part: _Segment) -> list[int]:
    """The token after each position; -1 where the text ends."""
    following = list(text[part.start + 1 : part.stop + 1])
    return following + [-1] * (part.stop - part.start - len(following))
