"""Run GPTQ on a whole model, in the order of its forward pass ("true sequential").

There is one exception to the order: the embedding of a tied model comes first. It is one tensor for both ends of the
model. As the output head it multiplies the final hidden states, which are computed with the fp32 model beforehand. It
is solved for these, and the layers, whose input it is too, make up for its errors.

Memory holds the two residual streams (and at times the inputs of o_proj or down_proj), half a layer of weights twice
(or one expert), and the sums over one weight's inputs.

Shapes: T tokens of one window, D hidden
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qwen3_export.calibration.digests import token_digest
from qwen3_export.calibration.gptq.experts import run_sparse_mlp
from qwen3_export.calibration.gptq.folder import open_gptq_folder
from qwen3_export.calibration.gptq.layer import Streams, run_attention, run_dense_mlp
from qwen3_export.calibration.gptq.outputs import measure_outputs
from qwen3_export.calibration.gptq.report import CalibrationReport
from qwen3_export.calibration.gptq.run import GptqRun, SequentialSettings
from qwen3_export.calibration.moments import MomentSums
from qwen3_export.errors import QuantizationError
from qwen3_export.graph import Graph, Kind, Role, Weight
from qwen3_export.parallel import default_threads
from qwen3_export.quantizers.formats import NumberFormat
from qwen3_export.quantizers.weights.rounded import RoundedWeight, check_fits
from qwen3_export.reference.model import forward
from qwen3_export.reference.weights import embed, read_tensor

__all__ = ["SequentialSettings", "gptq_graph"]

STEPS_PER_LAYER, MEASURING_STEPS_PER_LAYER = 4, 2

# The head's Hessian needs a forward pass of its own; small models need fewer tokens for it.
HEAD_TOKENS_PER_COLUMN = 64


def gptq_graph(
    graph: Graph,
    formats: Mapping[str, NumberFormat],
    windows: Sequence[NDArray[np.int64]],
    *,
    work_dir: Path,
    settings: SequentialSettings | None = None,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Graph, CalibrationReport]:
    """Quantize every weight to the format that ``formats`` gives for its name.

    ``windows`` are token ids, [T] each. Results are kept in ``work_dir`` as they come, and the weights of the returned
    graph read them from there; the same call continues where an earlier one ended. ``progress`` is told how many steps
    of how many are done. Raises QuantizationError for formats that do not fit, OutputError for a full disk.
    """
    settings, started = settings or SequentialSettings(), time.perf_counter()
    _check_formats(graph, formats)
    folder = open_gptq_folder(work_dir, graph, windows=windows, formats=formats, settings=settings.as_dict())
    folder.create()
    layers = graph.config.num_hidden_layers
    passes = MEASURING_STEPS_PER_LAYER if settings.output_tokens else 0
    advance = _counter(progress, (STEPS_PER_LAYER + passes) * layers + 1)
    tokens = [torch.from_numpy(np.asarray(window_T, np.int64)) for window_T in windows]
    outputs = None
    if settings.output_tokens:
        some = _spread(tokens, settings.output_tokens)
        outputs = measure_outputs(graph, some, folder=folder.path, advance=advance)
    run = GptqRun(
        graph=graph,
        formats=formats,
        settings=settings,
        folder=folder,
        lengths=[len(window_T) for window_T in windows],
        threads=threads or default_threads(),
        advance=advance,
        outputs=outputs,
        weights=_rounded(graph, formats),
    )
    _solve_all(run, tokens)
    report = CalibrationReport(
        settings=settings.as_dict(),
        tokens_digest=token_digest(windows),
        num_tokens=sum(run.lengths),
        weights=tuple(run.reports[name] for name in graph.weights if name in run.reports),
        routing=tuple(run.routing),
        seconds=time.perf_counter() - started,
    )
    return graph.with_weights(MappingProxyType({name: run.weights[name] for name in graph.weights})), report


@torch.inference_mode()
def _solve_all(run: GptqRun, windows: Sequence[Tensor]) -> None:
    """Solve the embedding if it is the head too, then the layers in order, then the head."""
    config = run.graph.config
    if config.tie_word_embeddings:
        _solve_tied_embedding(run, windows)
        run.advance()
    streams = _embed(run, windows)
    for layer in range(config.num_hidden_layers):
        run_attention(run, layer, streams)
        run_mlp = run_sparse_mlp if config.is_sparse_layer(layer) else run_dense_mlp
        run_mlp(run, layer, streams)
    if not config.tie_word_embeddings:
        _solve_head(run, streams)
        run.advance()


def _solve_tied_embedding(run: GptqRun, windows: Sequence[Tensor]) -> None:
    role = run.graph.head.role
    if not run.needs(role):
        return
    hidden_size = run.graph.config.hidden_size
    step = max(1, sum(run.lengths) // (HEAD_TOKENS_PER_COLUMN * hidden_size))
    sums = MomentSums(hidden_size, has_cross=False)
    for hidden_TD in forward(run.graph, windows[::step]):
        sums.add(hidden_TD)
    run.solve([role], [sums])


def _solve_head(run: GptqRun, streams: Streams) -> None:
    role = run.graph.head.role
    if not run.needs(role):
        return
    norm_D = read_tensor(run.graph[Role(Kind.NORM)])
    sums = MomentSums(len(norm_D))
    for i in range(len(run.lengths)):
        sums.add(*streams.normed(i, norm_D, eps=run.graph.config.rms_norm_eps))
    run.solve([role], [sums])


def _embed(run: GptqRun, windows: Sequence[Tensor]) -> Streams:
    quantized = run.graph.with_weights({**run.graph.weights, **run.weights})
    width = run.graph.config.hidden_size
    streams = Streams(stream=run.states(width), exact=run.states(width))
    for i, tokens_T in enumerate(windows):
        streams.stream[i], streams.exact[i] = embed(quantized, tokens_T), embed(run.graph, tokens_T)
    return streams


def _rounded(graph: Graph, formats: Mapping[str, NumberFormat]) -> dict[str, Weight]:
    """The weights that are only rounded: floats, and an embedding that is not the head."""
    rounded: dict[str, Weight] = {}
    for weight in graph:
        number_format = formats[weight.name]
        is_embedding = weight.role.kind is Kind.EMBED_TOKENS and graph.head.name != weight.name
        if number_format.is_float or is_embedding:
            rounded[weight.name] = RoundedWeight(source=weight, number_format=number_format)
    return rounded


def _check_formats(graph: Graph, formats: Mapping[str, NumberFormat]) -> None:
    """Raise QuantizationError unless every weight has a format that fits it."""
    for weight in graph:
        if weight.name not in formats:
            raise QuantizationError(f"{weight.name}: has no number format; give one for each weight")
        check_fits(weight, formats[weight.name])


def _spread(windows: Sequence[Tensor], tokens: int) -> list[Tensor]:
    """About so many tokens in whole windows, evenly spaced."""
    step = max(1, round(sum(map(len, windows)) / tokens))
    return list(windows[::step])


def _counter(progress: Callable[[int, int], None] | None, total: int) -> Callable[[], None]:
    done = 0

    def advance() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    return advance
