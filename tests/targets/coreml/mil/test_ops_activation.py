"""Activations, against torch's own."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes
from torch.nn import functional

EXPECTED = {
    "elu": lambda x: functional.elu(x, 0.7),
    "exact_gelu": functional.gelu,
    "tanh_gelu": lambda x: functional.gelu(x, approximate="tanh"),
    "sigmoid_gelu": lambda x: x / (1 + torch.exp(-1.702 * x)),
    "leaky_relu": lambda x: functional.leaky_relu(x, 0.2),
    "relu": functional.relu,
    "relu6": functional.relu6,
    "sigmoid": torch.sigmoid,
    "sigmoid_hard": lambda x: torch.clip(0.3 * x + 0.4, 0, 1),
    "silu": functional.silu,
    "softplus": functional.softplus,
    "softsign": functional.softsign,
    "scaled_tanh": lambda x: 1.5 * torch.tanh(0.5 * x),
    "clamped_relu": lambda x: torch.minimum(functional.leaky_relu(x, 0.2), torch.tensor(1.5)),
    "thresholded_relu": lambda x: x * (x >= 0.5),
    "linear_activation": lambda x: 1.5 * x + 0.5,
}


def body(mb: Any, x: Any) -> dict[str, Any]:
    alpha, half = np.float32(0.2), np.float32(0.5)
    return {
        "elu": mb.elu(x=x, alpha=np.float32(0.7)),
        "exact_gelu": mb.gelu(x=x),
        "tanh_gelu": mb.gelu(x=x, mode="TANH_APPROXIMATION"),
        "sigmoid_gelu": mb.gelu(x=x, mode="SIGMOID_APPROXIMATION"),
        "leaky_relu": mb.leaky_relu(x=x, alpha=alpha),
        "sigmoid_hard": mb.sigmoid_hard(x=x, alpha=np.float32(0.3), beta=np.float32(0.4)),
        "scaled_tanh": mb.scaled_tanh(x=x, alpha=np.float32(1.5), beta=half),
        "clamped_relu": mb.clamped_relu(x=x, alpha=alpha, beta=np.float32(1.5)),
        "thresholded_relu": mb.thresholded_relu(x=x, alpha=half),
        "linear_activation": mb.linear_activation(x=x, alpha=np.float32(1.5), beta=half),
        **{name: getattr(mb, name)(x=x) for name in ("relu", "relu6", "sigmoid", "silu", "softplus", "softsign")},
    }


@settings(max_examples=3, deadline=None)
@given(shape=array_shapes(max_dims=5, max_side=4), seed=st.integers(0, 99))
def test_activations_of_any_shape(programs: Any, shape: tuple[int, ...], seed: int) -> None:
    x = np.random.default_rng(seed).normal(scale=4, size=shape).astype(np.float32)
    found = programs.run(body, {"x": x})
    assert found.keys() == EXPECTED.keys()
    for name, function in EXPECTED.items():
        np.testing.assert_allclose(found[name], function(torch.from_numpy(x)), rtol=1e-5, atol=1e-5, err_msg=name)


@settings(max_examples=3, deadline=None)
@given(shape=array_shapes(min_dims=1, max_dims=4, max_side=5), data=st.data())
def test_softmax_over_any_axis(programs: Any, shape: tuple[int, ...], data: st.DataObject) -> None:
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    x = np.random.default_rng(1).normal(scale=9, size=shape).astype(np.float32)
    found = programs.run(lambda mb, x: {"at": mb.softmax(x=x, axis=axis), "last": mb.softmax(x=x)}, {"x": x})
    shifted = np.exp((x - x.max(axis, keepdims=True)).astype(np.float64))
    np.testing.assert_allclose(found["at"], shifted / shifted.sum(axis, keepdims=True), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(found["last"], torch.from_numpy(x).softmax(-1), rtol=1e-6, atol=1e-7)


def test_parametric_activations_have_a_parameter_a_channel(programs: Any) -> None:
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float32)
    alpha, beta = np.array([0.1, 0.5, 2.0], np.float32), np.array([1.0, 0.3, 2.0], np.float32)

    def body(mb: Any, x: Any) -> dict[str, Any]:
        return {"prelu": mb.prelu(x=x, alpha=alpha), "softplus": mb.softplus_parametric(x=x, alpha=alpha, beta=beta)}

    found = programs.run(body, {"x": x})
    np.testing.assert_allclose(
        found["prelu"], functional.prelu(torch.from_numpy(x), torch.from_numpy(alpha)), rtol=1e-6
    )
    spread = (slice(None), None, None)
    expected = alpha[spread] * np.log1p(np.exp(beta[spread] * x))
    np.testing.assert_allclose(found["softplus"], expected, rtol=1e-5)
