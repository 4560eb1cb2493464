"""The calibration run: all windows of tokens through the fp32 reference, one layer at a time.

What is held is one half layer of weights (or one expert), as many windows as ``max_tokens`` says, and the
statistics of one layer.  A layer that does not hold all windows at once is read again for each block of them:
reading is a few per cent of what multiplying takes, and the result does not depend on the blocks, because
windows are added up in order.

Each layer's end is a point to resume from: the residual stream behind it is written first, then its
statistics, then the residual stream in front of it is removed.

Shapes: T tokens of one window, D hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import MappingProxyType

import numpy as np
import torch
from numpy.typing import NDArray

from qwen3_export.calibration.digests import checkpoint_digest, token_digest
from qwen3_export.calibration.hidden_file import HiddenWriter, write_hidden
from qwen3_export.calibration.layer_statistics import LayerCollector, LayerStatistics
from qwen3_export.calibration.statistics import Origin, Statistics
from qwen3_export.calibration.statistics_file import read_layer_statistics, write_layer_statistics
from qwen3_export.calibration.work_folder import WorkFolder
from qwen3_export.graph import Graph, Kind, Role
from qwen3_export.reference.layer import rms_norm
from qwen3_export.reference.model import run_layer
from qwen3_export.reference.probe import Place, Site
from qwen3_export.reference.weights import embed, read_tensor

__all__ = ["collect_statistics"]


@torch.inference_mode()
def collect_statistics(
    graph: Graph,
    windows: Sequence[NDArray[np.int64]],
    *,
    dataset: str,
    work: WorkFolder,
    max_tokens: int,
    progress: Callable[[int], None] | None = None,
) -> Statistics:
    """Statistics of ``graph`` over ``windows`` of token ids, [T] each; ``dataset`` is what to call them.

    Goes on from what ``work`` holds and leaves it there.  ``progress`` is told of tokens times layers as they
    are done.  Raises OutputError when the disk is full, CheckpointError for activations that are not finite.
    """
    advance = progress or (lambda _: None)
    layers = graph.config.num_hidden_layers
    work.create()
    done = work.done_layers
    advance(done * sum(work.lengths))
    if done == 0:
        _embed_windows(graph, windows, work)
    for layer in range(done, layers):
        _run_layer(graph, layer, work=work, max_tokens=max_tokens, advance=advance)
    parts = [read_layer_statistics(work.layer_file(layer)) for layer in range(layers)]
    parts.append(_run_final_norm(graph, work))
    return Statistics(
        origin=Origin(
            model=graph.name,
            checkpoint=checkpoint_digest(graph),
            dataset=dataset,
            tokens=token_digest(windows),
            windows=len(windows),
            num_tokens=sum(work.lengths),
        ),
        inputs=MappingProxyType({role: found for part in parts for role, found in part.inputs.items()}),
        states=MappingProxyType({site: found for part in parts for site, found in part.states.items()}),
    )


def _embed_windows(graph: Graph, windows: Sequence[NDArray[np.int64]], work: WorkFolder) -> None:
    with write_hidden(work.hidden(0).path, sum(work.lengths), work.hidden_size) as writer:
        for window_T in windows:
            writer.append(embed(graph, torch.from_numpy(np.asarray(window_T, np.int64))))


def _run_layer(graph: Graph, layer: int, *, work: WorkFolder, max_tokens: int, advance: Callable[[int], None]) -> None:
    before, after = work.hidden(layer), work.hidden(layer + 1)
    collector = LayerCollector(graph.config)
    with write_hidden(after.path, sum(work.lengths), work.hidden_size) as writer:
        for hidden in before.blocks(max_tokens):
            if layer == 0:
                for x_TD in hidden:
                    collector.see_state(Site(Place.INPUT, 0), 0, x_TD)
            _pass_on(graph, layer, collector=collector, hidden=hidden, writer=writer)
            advance(sum(len(x_TD) for x_TD in hidden))
        result = collector.result()
    write_layer_statistics(work.layer_file(layer), result)
    before.path.unlink()


def _pass_on(
    graph: Graph, layer: int, *, collector: LayerCollector, hidden: list[torch.Tensor], writer: HiddenWriter
) -> None:
    for x_TD in run_layer(graph, layer, hidden=hidden, probe=collector.probe):
        writer.append(x_TD)


def _run_final_norm(graph: Graph, work: WorkFolder) -> LayerStatistics:
    """The input of the head, which a tied model's embedding is."""
    norm = read_tensor(graph[Role(Kind.NORM)])
    collector = LayerCollector(graph.config)
    for hidden in work.hidden(work.num_layers).blocks(max_tokens=1):
        for x_TD in hidden:
            collector.see_input(graph.head.role, 0, rms_norm(x_TD, norm, eps=graph.config.rms_norm_eps))
    return collector.result()
