"""Prompts of different lengths in one call, padded on either side.

GroupQueryAttention counts the tokens of each row from its first position: it is right for rows padded on the right, and
wrong for rows padded on the left, as transformers.js and optimum pad them. So this part of the graph moves the padding
of each row behind its tokens, and the final hidden states back to where their tokens were:

    attention_mask ─ order ┬─ input_ids, position_ids in order ─ … ─ final hidden states ─┬─ as they were ─ head
                           └─ its inverse ────────────────────────────────────────────────┘

The KV cache keeps a row's tokens together, so later steps need nothing else. Without padding, the order is 0, 1, 2, …
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from qwen3_export.targets.onnx.builder import GraphBuilder

__all__ = ["TokenOrder", "order_of_tokens"]

# More than any sequence is long, so that a token comes before padding wherever both are.
BEFORE_PADDING = 1 << 40
TO_THE_END = (1 << 63) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenOrder:
    """The tokens of each row in front of its padding; both values are [batch, sequence]."""

    build: GraphBuilder
    order: ir.Value
    inverse: ir.Value

    def apply(self, values: ir.Value, *, name: str) -> ir.Value:
        """Values [batch, sequence] with padding moved behind."""
        return self.build.op("GatherElements", values, self.order, name=name, axis=1)

    def undo(self, hidden: ir.Value, *, name: str, dtype: ir.DataType) -> ir.Value:
        """Hidden states [batch, sequence, …] where their tokens were."""
        places = self.build.op("Unsqueeze", self.inverse, self.build.integers(-1), name="order.places")
        return self.build.op("GatherND", hidden, places, name=name, dtype=dtype, batch_dims=1)


def order_of_tokens(build: GraphBuilder, input_ids: ir.Value, attention_mask: ir.Value) -> TokenOrder:
    """Sort positions by whether they hold a token, otherwise as they are. The mask's last columns are this call's."""
    length = build.op("Shape", input_ids, name="order.length", start=1, end=2)
    first = build.op("Neg", length, name="order.first")
    mask = build.op("Slice", attention_mask, first, build.integers(TO_THE_END), build.integers(1), name="order.mask")
    end = build.op("Squeeze", length, name="order.end")
    places = build.op("Range", build.scalar(0), end, build.scalar(1), name="order.as_is")
    ranks = build.op("Mul", mask, build.integers(BEFORE_PADDING), name="order.tokens")
    ranks = build.op("Sub", ranks, places, name="order.ranks")
    _, order = build.ops("TopK", ranks, length, names=["order.sorted", "order"], axis=-1)
    _, inverse = build.ops("TopK", order, length, names=["order.again", "order.inverse"], axis=-1, largest=0)
    return TokenOrder(build=build, order=order, inverse=inverse)
