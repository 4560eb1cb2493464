"""Matrix products and attention, against numpy and torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes
from torch.nn import functional

MASKS = ("", "bool", "add")


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@settings(max_examples=4, deadline=None)
@given(batch=array_shapes(min_dims=1, max_dims=3, max_side=3), data=st.data())
def test_linear_and_matmul_with_transpositions(programs: Any, batch: tuple[int, ...], data: st.DataObject) -> None:
    rows, inner, columns = (data.draw(st.integers(1, 5)) for _ in range(3))
    turn_x, turn_y = data.draw(st.booleans()), data.draw(st.booleans())
    x = normal(*batch, *((inner, rows) if turn_x else (rows, inner)))
    y = normal(*((columns, inner) if turn_y else (inner, columns)), seed=1)
    straight, weight, bias = normal(*batch, inner, seed=2), normal(columns, inner, seed=3), normal(columns, seed=4)

    def body(mb: Any, x: Any, y: Any, straight: Any) -> dict[str, Any]:
        return {
            "matmul": mb.matmul(x=x, y=y, transpose_x=turn_x, transpose_y=turn_y),
            "linear": mb.linear(x=straight, weight=weight, bias=bias),
            "unbiased": mb.linear(x=straight, weight=weight),
        }

    found = programs.run(body, {"x": x, "y": y, "straight": straight})
    left, right = (np.swapaxes(x, -1, -2) if turn_x else x), (y.T if turn_y else y)
    np.testing.assert_allclose(found["matmul"], left @ right, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["linear"], straight @ weight.T + bias, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["unbiased"], straight @ weight.T, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("equation", "shapes"),
    [
        ("nchw,nwhu->nchu", [(2, 3, 4, 5), (2, 5, 4, 6)]),
        ("nchw,nwhu->nchu", [(1, 3, 1, 5), (2, 5, 4, 6)]),
        ("chw,whr->chr", [(3, 4, 5), (5, 4, 6)]),
        ("abc,cbd->abd", [(3, 1, 5), (5, 4, 6)]),
    ],
)
def test_einsum_with_broadcast_batches(programs: Any, equation: str, shapes: list[tuple[int, ...]]) -> None:
    inputs = {"x": normal(*shapes[0]), "y": normal(*shapes[1], seed=1)}
    found = programs.run(lambda mb, x, y: {"z": mb.einsum(values=(x, y), equation=equation)}, inputs)["z"]
    h = -2
    size = max(shapes[0][h], shapes[1][h])
    x, y = (np.repeat(v, size // v.shape[h], h) for v in inputs.values())
    if x.ndim == 4:
        batch = max(len(x), len(y))
        x, y = np.repeat(x, batch // len(x), 0), np.repeat(y, batch // len(y), 0)
    np.testing.assert_allclose(found, np.einsum(equation, x, y), rtol=1e-4, atol=1e-5)


@settings(max_examples=4, deadline=None)
@given(heads=st.integers(1, 3), queries=st.integers(1, 4), keys=st.integers(1, 5), kind=st.sampled_from(MASKS))
def test_attention_with_and_without_masks(programs: Any, heads: int, queries: int, keys: int, kind: str) -> None:
    inputs = {
        "query": normal(1, heads, queries, 8),
        "key": normal(1, heads, keys, 8, seed=1),
        "value": normal(1, heads, keys, 6, seed=2),
        "mask": np.where(np.tri(queries, keys) > 0, 0, -1e4).astype(np.float32)[None],
    }

    def body(mb: Any, query: Any, key: Any, value: Any, mask: Any) -> dict[str, Any]:
        keep = {"": {}, "add": {"attn_mask": mask}, "bool": {"attn_mask": mb.equal(x=mask, y=np.float32(0))}}[kind]
        return {"y": mb.scaled_dot_product_attention(query=query, key=key, value=value, **keep)}

    found = programs.run(body, inputs)["y"]
    tensors = [torch.from_numpy(inputs[name]) for name in ("query", "key", "value")]
    masks = {"": None, "add": torch.from_numpy(inputs["mask"]), "bool": torch.from_numpy(inputs["mask"]) == 0}
    expected = functional.scaled_dot_product_attention(*tensors, attn_mask=masks[kind])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
