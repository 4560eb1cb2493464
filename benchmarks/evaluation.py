"""Code that the quantization benchmarks share: held-out windows, comparing two graphs, a process's resources.

Shapes: P positions, V vocabulary, D hidden
"""

from __future__ import annotations

import json
import math
import resource
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch

from qwen3_export.checkpoint.model import Model
from qwen3_export.graph import Graph
from qwen3_export.reference.model import forward, head_logits
from qwen3_export.reference.weights import RoundActivations

POSITIONS_PER_BLOCK = 1024
TEXT_WINDOW = 256

Windows = Mapping[str, Sequence[Sequence[int]]]


def read_windows(path: Path, model: Model, *, per_source: int | None) -> Windows:
    """Read token windows by source: all, or ``per_source`` of each, evenly spaced."""
    if path.suffix != ".json":
        tokens = model.tokenizer.encode(path.read_text(encoding="utf-8"))
        starts = range(0, len(tokens) - TEXT_WINDOW + 1, TEXT_WINDOW)
        found = {path.stem: [tokens[start : start + TEXT_WINDOW] for start in starts]}
    else:
        found = {}
        for entry in json.loads(path.read_text(encoding="utf-8")):
            found.setdefault(entry["src"], []).append(entry["ids"])
    return {source: texts[:: math.ceil(len(texts) / (per_source or len(texts)))] for source, texts in found.items()}


def compare(
    original: Graph,
    stored: Graph,
    texts: Sequence[Sequence[int]],
    *,
    round_activations: RoundActivations | None = None,
) -> dict[str, float]:
    """Compare two graphs over some texts in fp32, rounding the stored graph's activations if a runtime would."""
    kld_P, same, losses = _compared(original, stored, texts, round_activations)
    return {
        "mean_kld": float(kld_P.mean()),
        "p99_kld": float(torch.quantile(kld_P, 0.99)),
        "same_top1": same / len(kld_P),
        "perplexity_ratio": math.exp(float(losses.mean())),
    }


def klds_by_text(original: Graph, stored: Graph, texts: Sequence[Sequence[int]]) -> list[float]:
    """The mean KL divergence of each text."""
    kld_P, _, _ = _compared(original, stored, texts, None)
    return [float(part.mean()) for part in torch.split(kld_P, [len(text) for text in texts])]


@torch.inference_mode()
def _compared(
    original: Graph, stored: Graph, texts: Sequence[Sequence[int]], round_activations: RoundActivations | None
) -> tuple[torch.Tensor, int, torch.Tensor]:
    """KL divergence of each position, how often the likeliest tokens are the same, and differences of losses."""
    tokens = [torch.tensor(text) for text in texts]
    following_P = torch.cat([torch.cat((text[1:], torch.tensor([-1]))) for text in tokens])
    reference_PD, candidate_PD = (
        torch.cat(forward(original, tokens)),
        torch.cat(forward(stored, tokens, round_activations=round_activations)),
    )
    klds, same, losses = [], 0, []
    for block in _blocks(len(reference_PD)):
        log_p = torch.log_softmax(head_logits(original, reference_PD[block]), dim=-1)
        log_q = torch.log_softmax(head_logits(stored, candidate_PD[block]), dim=-1)
        klds.append((log_p.exp() * (log_p - log_q)).sum(dim=-1))
        same += int((log_p.argmax(dim=-1) == log_q.argmax(dim=-1)).sum())
        known = torch.nonzero(following_P[block] >= 0)[:, 0]
        chosen = following_P[block][known]
        losses.append(log_p[known, chosen] - log_q[known, chosen])
    return torch.cat(klds).double(), same, torch.cat(losses).double()


def _blocks(positions: int) -> Iterator[slice]:
    return (slice(first, first + POSITIONS_PER_BLOCK) for first in range(0, positions, POSITIONS_PER_BLOCK))


def used_resources() -> dict[str, float]:
    """CPU seconds and peak memory of this process, for the line of JSON with which a measured process ends."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {"peak_memory_bytes": _peak_memory(used.ru_maxrss), "cpu_seconds": used.ru_utime + used.ru_stime}


def _peak_memory(maxrss: int) -> int:
    """Peak memory of this process. On Linux, getrusage includes the process that started it."""
    status = Path("/proc/self/status")
    if not status.exists():
        return maxrss
    return next(1024 * int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM"))
