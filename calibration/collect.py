"""Collect calibration statistics: run all windows of tokens through the fp32 reference, one layer at a time.

Memory holds half a layer of weights (or one expert), as many windows as ``max_tokens`` allows, and the statistics of
one layer. If not all windows fit, the layer is read again for each block of windows. Reading takes a few per cent of
the time of multiplying, and the result does not depend on the blocks, because windows are summed in order.

A run can be resumed at the end of each layer: first the residual stream after the layer is written, then its
statistics, then the residual stream before it is removed.

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
    """Statistics of ``graph`` over ``windows`` of token ids, [T] each; ``dataset`` is their name.

    Continues with the results in ``work``, and leaves them there. ``progress`` is called with tokens times layers that
    were just done. Raises OutputError for a full disk, CheckpointError for activations that are not finite.
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
    """Statistics of the head's input; in a tied model the head is the embedding."""
    norm = read_tensor(graph[Role(Kind.NORM)])
    collector = LayerCollector(graph.config)
    for hidden in work.hidden(work.num_layers).blocks(max_tokens=1):
        for x_TD in hidden:
            collector.see_input(graph.head.role, 0, rms_norm(x_TD, norm, eps=graph.config.rms_norm_eps))
    return collector.result()
