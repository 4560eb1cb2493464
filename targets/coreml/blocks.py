"""The parts of a Qwen3 layer that need care in fp16: RMSNorm, RoPE and attention.

**RMSNorm.** In fp16, squares overflow beyond |x| = 256 and vanish below 0.0002. So each token is first divided by its
own largest magnitude c (at least sqrt(eps), so that a token of zeros does not divide by zero):

    y = x · (r / c) · w      r = rsqrt(mean((x / c)²) + (sqrt(eps) / c)²)

This is the same function. The mean lies between 1/D and 1. The second term vanishes in fp16 only for c > 4, and there
it is smaller than the rounding error of the first. r / c is at most 1 / sqrt(eps). The formula multiplies x itself, not
x / c: with one channel of 10,000, the other channels would lose their last bits in x / c. coremltools' own fp16
lowering of rms_norm makes eps count up to max(x)² times (its issue 2821).

**Attention.** The query heads that share a key head are stacked, [1, K, G·T, H], so keys are never repeated. The mask
is stacked in the same way, once for all layers. By default attention is built from matmuls and a softmax: on iOS 26 the
fused operator gave wrong results for a model of this kind, and these plain operators gave right ones (executorch's pull
request 15936). swift-transformers passes -65504 at masked positions, and adding a score may give -inf. So the mask is
raised to -30000, which masks as well as -inf and stays finite with any score.

Shapes: # T tokens  S positions seen  N heads  K kv heads  G heads_per_kv  H head_dim  R = H / 2 pairs
"""

from __future__ import annotations

from dataclasses import dataclass

from qwen3_export.config import Qwen3Config
from qwen3_export.targets.coreml.builder import ProgramBuilder, Var
from qwen3_export.targets.coreml.names import ROOT_EPS

__all__ = ["MASKED", "Turn", "attend", "rms_norm", "rotate"]

MASKED = -30000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """Cosine and sine of the tokens' positions, [T, R]."""

    cos: Var
    sin: Var


def rms_norm(build: ProgramBuilder, x: Var, weight: Var, config: Qwen3Config, *, name: str) -> Var:
    """RMSNorm over the last axis."""
    root_eps = build.number(ROOT_EPS, config.rms_norm_eps**0.5)
    magnitude = build.op("abs", x=x, name=f"{name}_magnitude")
    largest = build.op("reduce_max", x=magnitude, axes=[-1], keep_dims=True, name=f"{name}_largest")
    divisor = build.op("maximum", x=largest, y=root_eps, name=f"{name}_divisor")
    scaled = build.op("real_div", x=x, y=divisor, name=f"{name}_scaled")
    squares = build.op("mul", x=scaled, y=scaled, name=f"{name}_squares")
    mean = build.op("reduce_mean", x=squares, axes=[-1], keep_dims=True, name=f"{name}_mean")
    scaled_eps = build.op("real_div", x=root_eps, y=divisor, name=f"{name}_scaled_eps")
    eps = build.op("mul", x=scaled_eps, y=scaled_eps, name=f"{name}_eps")
    sum_ = build.op("add", x=mean, y=eps, name=f"{name}_sum")
    root = build.op("rsqrt", x=sum_, name=f"{name}_root")
    factor = build.op("real_div", x=root, y=divisor, name=f"{name}_factor")
    normed = build.op("mul", x=x, y=factor, name=f"{name}_normed")
    return build.op("mul", x=normed, y=weight, name=name)


def rotate(build: ProgramBuilder, x: Var, turn: Turn, *, name: str) -> Var:
    """Rotate every head, [1, heads, T, H], by the angles of its token."""
    first, second = build.mb.split(x=x, num_splits=2, axis=-1, name=f"{name}_halves")
    parts = {
        f"{name}_{half}_{table}": build.op("mul", x=x_R, y=y_R, name=f"{name}_{half}_{table}")
        for half, x_R in (("first", first), ("second", second))
        for table, y_R in (("cos", turn.cos), ("sin", turn.sin))
    }
    left = build.op("sub", x=parts[f"{name}_first_cos"], y=parts[f"{name}_second_sin"], name=f"{name}_left")
    right = build.op("add", x=parts[f"{name}_second_cos"], y=parts[f"{name}_first_sin"], name=f"{name}_right")
    return build.op("concat", values=[left, right], axis=-1, name=name)


def attend(build: ProgramBuilder, q: Var, k: Var, v: Var, mask: Var, *, is_fused: bool, name: str) -> Var:
    """Attention of stacked queries [1, K, G·T, H] over [1, K, S, H]. Unfused queries must be scaled already."""
    if is_fused:
        return build.op("scaled_dot_product_attention", query=q, key=k, value=v, attn_mask=mask, name=name)
    scores = build.op("matmul", x=q, y=k, transpose_y=True, name=f"{name}_scores")
    masked = build.op("add", x=scores, y=mask, name=f"{name}_masked")
    shares = build.op("softmax", x=masked, axis=-1, name=f"{name}_shares")
    return build.op("matmul", x=shares, y=v, name=name)
