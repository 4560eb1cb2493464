"""Normalizations, against torch's own."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@settings(max_examples=4, deadline=None)
@given(batch=st.integers(1, 3), spatial=st.lists(st.integers(2, 4), min_size=1, max_size=2), seed=st.integers(0, 99))
def test_normalizations_of_channels(programs: Any, batch: int, spatial: list[int], seed: int) -> None:
    x, gamma, beta, mean = normal(batch, 5, *spatial, seed=seed), *(normal(5, seed=seed + i) for i in (1, 2, 3))
    variance, eps = normal(5, seed=seed + 4) ** 2, np.float32(1e-2)

    def body(mb: Any, x: Any) -> dict[str, Any]:
        scaled = {"gamma": gamma, "beta": beta, "epsilon": eps}
        return {
            "batch": mb.batch_norm(x=x, mean=mean, variance=variance, **scaled),
            "instance": mb.instance_norm(x=x, **scaled),
            "plain": mb.instance_norm(x=x),
            "local": mb.local_response_norm(x=x, size=3, alpha=np.float32(0.1), beta=np.float32(0.6), k=np.float32(2)),
        }

    found = programs.run(body, {"x": x})
    source, *parts = (torch.from_numpy(part) for part in (x, mean, variance, gamma, beta))
    expected = {
        "batch": functional.batch_norm(source, *parts, eps=float(eps)),
        "instance": functional.instance_norm(source, weight=parts[2], bias=parts[3], eps=float(eps)),
        "plain": functional.instance_norm(source),
        "local": functional.local_response_norm(source, 3, 0.1, 0.6, 2.0),
    }
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-4, atol=1e-5, err_msg=name)


@settings(max_examples=4, deadline=None)
@given(shape=st.lists(st.integers(2, 4), min_size=3, max_size=4), last=st.integers(1, 2), seed=st.integers(0, 99))
def test_normalizations_of_the_last_axes(programs: Any, shape: list[int], last: int, seed: int) -> None:
    x, over = normal(*shape, seed=seed), shape[-last:]
    gamma, beta, axes = normal(*over, seed=1), normal(*over, seed=2), list(range(-last, 0))

    def body(mb: Any, x: Any) -> dict[str, Any]:
        return {
            "layer": mb.layer_norm(x=x, axes=axes, gamma=gamma, beta=beta, epsilon=np.float32(1e-3)),
            "plain": mb.layer_norm(x=x, axes=axes),
            "l2": mb.l2_norm(x=x, epsilon=np.float32(1e-3)),
        }

    found = programs.run(body, {"x": x})
    source, weight, bias = (torch.from_numpy(part) for part in (x, gamma, beta))
    np.testing.assert_allclose(
        found["layer"], functional.layer_norm(source, over, weight, bias, 1e-3), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(found["plain"], functional.layer_norm(source, over), rtol=1e-4, atol=1e-5)
    expected = x / np.sqrt((x**2).sum((-3, -2, -1), keepdims=True) + 1e-3)
    np.testing.assert_allclose(found["l2"], expected, rtol=1e-5)
