"""Parity reports for tests of what is made of them: right and wrong ones, small and large."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

from qwen3_export.parity.curves import CurvePoint
from qwen3_export.parity.metrics import NOT_RUN, Comparison
from qwen3_export.parity.report import Decode, FirstDivergence, Gates, Report, Runtime, Sampling
from qwen3_export.parity.values import WeightError

ROLES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def numbers(mean_kld: float, *, bound: float | None = None, top1: float = 0.99) -> Comparison:
    return Comparison(
        mean_kld=mean_kld, p99_kld=5 * mean_kld, max_kld=20 * mean_kld, max_abs=0.3, same_top1=top1,
        perplexity_ratio=1.002,
    ).judged(bound)  # fmt: skip


def a_report(*, layers: int = 4, positions: int = 256) -> Report:
    """One in which everything is in bounds."""
    edges = [0, 1, 2, 3, *(1 << i for i in range(2, positions.bit_length()))]
    points = tuple(
        CurvePoint(first=a, last=b - 1, count=4, mean_kld=1e-3 * (a + 1) ** 0.5, max_kld=0.1)
        for a, b in pairwise(edges)
        if b > a
    )
    return Report(
        artifact="demo-q4_k_m.gguf", target="gguf", recipe="q4_k_m", method="rtn", model="demo", size_bytes=5_500_000,
        bits_per_weight=5.19, conversion=numbers(1.43e-12, bound=1e-9, top1=1.0), shipped=numbers(3e-4, bound=6e-4),
        quantization=numbers(4.8e-3), end_to_end=numbers(5.3e-3), floor=numbers(3e-4),
        decode=Decode(max_abs_vs_prefill=5e-6, bound=1e-3, shipped_max_abs_vs_prefill=0.16, shipped_bound=0.6,
                      status="pass"),
        positions=positions, runtime=Runtime(name="llama.cpp", version="0.3.36"), versions={"python": "3.11.7"},
        sampled=Sampling(mode="quick", prompts=("greeting", "code"), exact_form="4 of 4 layers", weights=46, rows=900,
                         rows_in_all=31_488),
        seconds=2.8, peak_memory_bytes=1 << 29, command="qwen3-export check demo-q4_k_m.gguf --model demo",
        curves=dict.fromkeys(("shipped", "quantization", "end_to_end"), points),
        weight_errors=(
            WeightError(role="embed_tokens", layer=None, format="Q6_K", relative=0.0168),
            *(WeightError(role=role, layer=layer, format="Q4_K", relative=0.06 + 0.001 * layer)
              for layer in range(layers) for role in ROLES),
        ),
    )  # fmt: skip


def a_solved_report(*, layers: int = 4) -> Report:
    """One whose artifact records what a solver measured, under GGUF's names."""
    errors = {f"blk.{i}.{base}.weight": 4e-4 for i in range(layers) for base in ("attn_q", "ffn_down")}
    calibration = {"dataset": "sample.jsonl", "sha256": "00", "tokens": 56_320, "tensor_errors": errors}
    return replace(
        a_report(layers=layers), artifact="demo-q4_k_m-gptq.gguf", method="gptq", calibration=calibration,
        quantization=numbers(1.6e-3), end_to_end=numbers(1.9e-3),
    )  # fmt: skip


def a_failing_report(*, layers: int = 4) -> Report:
    """One that is wrong in every way that a report can tell, with text that is hostile to markup."""
    report = a_report(layers=layers)
    return replace(
        report,
        artifact="a-very-long-name-of-an-artifact_without_any_place_to_break_it_<b>&.gguf",
        conversion=numbers(1.06e-6, bound=1e-9),
        end_to_end=replace(numbers(float("inf"), top1=0.1), status="fail"),
        metadata=("qwen3.attention.layer_norm_rms_epsilon is 1e-05, the checkpoint has 1e-06 <i>",),
        values=("model.layers.3.mlp.up_proj: relative error 1.380, where Q4_K explains up to 0.22",),
        gates=("mean KLD inf is above the bound 0.01",),
        bounds=Gates(max_mean_kld=0.01, min_top1=0.05),
        decode=Decode(max_abs_vs_prefill=2.0, bound=1e-3, shipped_max_abs_vs_prefill=2.0, shipped_bound=0.6,
                      status="fail"),
        first_divergence=FirstDivergence(layer=0, site="after_attention", relative=0.0015, cause="eps 1e-05"),
        weight_errors=(*report.weight_errors[:-1], replace(report.weight_errors[-1], relative=1.38)),
    )  # fmt: skip


def an_unrun_report() -> Report:
    """One of a machine without the runtime."""
    report = a_report()
    return replace(
        report, artifact="demo-onnx-int4", target="onnx", recipe="int4", conversion=NOT_RUN, shipped=NOT_RUN,
        end_to_end=NOT_RUN, decode=Decode(), runtime=Runtime(name="onnxruntime", version=None),
        curves={"quantization": report.curves["quantization"]}, bounds=Gates(max_mean_kld=0.02),
    )  # fmt: skip
