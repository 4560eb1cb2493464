"""Unary and binary operations, comparisons, logic and casts, against numpy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, mutually_broadcastable_shapes

UNARY = {
    "abs": np.abs,
    "atan": np.arctan,
    "ceil": np.ceil,
    "cos": np.cos,
    "cosh": np.cosh,
    "erf": np.vectorize(math.erf, otypes=[np.float64]),
    "exp": np.exp,
    "exp2": np.exp2,
    "floor": np.floor,
    "round": np.round,
    "sign": np.sign,
    "sin": np.sin,
    "sinh": np.sinh,
    "square": np.square,
    "tan": np.tan,
    "tanh": np.tanh,
}
UNIT = {"acos": np.arccos, "asin": np.arcsin, "atanh": np.arctanh}
POSITIVE = {
    "sqrt": np.sqrt,
    "log": lambda x: np.log(x + 0.5),
    "rsqrt": lambda x: 1 / np.sqrt(x + 0.5),
    "inverse": lambda x: 1 / (x + 0.5),
}
BINARY = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "real_div": np.divide,
    "floor_div": np.floor_divide,
    "mod": np.mod,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "equal": np.equal,
    "not_equal": np.not_equal,
    "less": np.less,
    "less_equal": np.less_equal,
    "greater": np.greater,
    "greater_equal": np.greater_equal,
}
INTEGER = set(BINARY) - {"real_div"}


@settings(max_examples=3, deadline=None)
@given(shape=array_shapes(max_dims=5, max_side=4), seed=st.integers(0, 2**31))
def test_unary_operations_of_any_shape(programs: Any, shape: tuple[int, ...], seed: int) -> None:
    x = np.random.default_rng(seed).uniform(-3, 3, shape).astype(np.float32)

    def body(mb: Any, x: Any) -> dict[str, Any]:
        inside, above = mb.mul(x=x, y=np.float32(0.3)), mb.abs(x=x)
        found = {name: getattr(mb, name)(x=x) for name in UNARY}
        found |= {name: getattr(mb, name)(x=inside) for name in UNIT}
        found |= {name: getattr(mb, name)(x=above, epsilon=np.float32(0.5)) for name in POSITIVE if name != "sqrt"}
        return {**found, "sqrt": mb.sqrt(x=above)}

    found = programs.run(body, {"x": x})
    wide = x.astype(np.float64)
    expected = {name: function(wide) for name, function in UNARY.items()}
    expected |= {name: function(0.3 * wide) for name, function in UNIT.items()}
    expected |= {name: function(np.abs(wide)) for name, function in POSITIVE.items()}
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=2e-5, atol=1e-6, err_msg=name)


@settings(max_examples=4, deadline=None)
@given(shapes=mutually_broadcastable_shapes(num_shapes=2, min_dims=1, max_dims=4, max_side=4), seed=st.integers(0, 99))
def test_binary_operations_broadcast(programs: Any, shapes: Any, seed: int) -> None:
    random = np.random.default_rng(seed)
    x, y = (random.normal(size=shape).astype(np.float32).round(1) for shape in shapes.input_shapes)
    y[y == 0] = 0.7

    def body(mb: Any, x: Any, y: Any) -> dict[str, Any]:
        found = {name: getattr(mb, name)(x=x, y=y) for name in BINARY}
        return {**found, "pow": mb.pow(x=mb.abs(x=x), y=y)}

    found = programs.run(body, {"x": x, "y": y})
    for name, function in BINARY.items():
        np.testing.assert_allclose(found[name], function(x, y), rtol=1e-5, atol=1e-5, err_msg=name)
    with np.errstate(divide="ignore"):
        np.testing.assert_allclose(found["pow"], np.abs(x) ** y, rtol=1e-4, err_msg="pow")


@settings(max_examples=3, deadline=None)
@given(shapes=mutually_broadcastable_shapes(num_shapes=2, min_dims=1, max_dims=3, max_side=5), seed=st.integers(0, 99))
def test_binary_operations_of_integers_have_numpys_signs(programs: Any, shapes: Any, seed: int) -> None:
    random = np.random.default_rng(seed)
    x, y = (random.integers(-9, 9, shape).astype(np.int32) for shape in shapes.input_shapes)
    y[y == 0] = -4

    def body(mb: Any, x: Any, y: Any) -> dict[str, Any]:
        found = {name: getattr(mb, name)(x=x, y=y) for name in sorted(INTEGER)}
        return {**found, "real_div": mb.real_div(x=x, y=y)}

    found = programs.run(body, {"x": x, "y": y})
    for name in INTEGER:
        np.testing.assert_array_equal(found[name], BINARY[name](x, y), err_msg=name)
        assert found[name].dtype == np.int32
    np.testing.assert_array_equal(found["real_div"], np.trunc(x / y))


def test_halves_are_rounded_to_the_even_neighbour(programs: Any) -> None:
    x = np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5], np.float32)
    found = programs.run(lambda mb, x: {"y": mb.round(x=x)}, {"x": x})["y"]
    assert found.tolist() == [-2, -2, 0, 0, 2, 2]


def test_casts_cut_off_towards_zero_and_keep_what_fits(programs: Any) -> None:
    x = np.array([-2.7, -0.4, 0.0, 0.4, 2.7, 200.2], np.float32)

    def body(mb: Any, x: Any) -> dict[str, Any]:
        names = ("int32", "int16", "uint16", "uint8", "bool")
        found = {f"to_{n}": mb.cast(x=mb.abs(x=x) if n[0] == "u" else x, dtype=n) for n in names}
        back = mb.cast(x=mb.cast(x=x, dtype="fp16"), dtype="fp32")
        return {**found, "to_int8": mb.cast(x=mb.clip(x=x, alpha=-9.0, beta=9.0), dtype="int8"), "back": back}

    package = programs.open(body, {"x": x})
    found = package.run({"x": x})
    assert found["to_int32"].tolist() == found["to_int16"].tolist() == [-2, 0, 0, 0, 2, 200]
    assert found["to_uint8"].tolist() == found["to_uint16"].tolist() == [2, 0, 0, 0, 2, 200]
    assert found["to_int8"].tolist() == [-2, 0, 0, 0, 2, 9]
    assert found["to_bool"].tolist() == [1, 1, 0, 1, 1, 1]
    np.testing.assert_array_equal(found["back"], x)  # exact arithmetic rounds nothing
    np.testing.assert_array_equal(package.run({"x": x}, mode="fp16")["back"], x.astype(np.float16))


@settings(max_examples=3, deadline=None)
@given(shapes=mutually_broadcastable_shapes(num_shapes=2, min_dims=1, max_dims=3, max_side=4), seed=st.integers(0, 99))
def test_logic_selection_and_limits(programs: Any, shapes: Any, seed: int) -> None:
    random = np.random.default_rng(seed)
    x, y = (random.normal(size=shape).astype(np.float32) for shape in shapes.input_shapes)

    def body(mb: Any, x: Any, y: Any) -> dict[str, Any]:
        a, b = mb.greater(x=x, y=np.float32(0)), mb.greater(x=y, y=np.float32(0))
        return {
            "and": mb.logical_and(x=a, y=b),
            "or": mb.logical_or(x=a, y=b),
            "xor": mb.logical_xor(x=a, y=b),
            "not": mb.logical_not(x=a),
            "select": mb.select(cond=mb.logical_and(x=a, y=b), a=x, b=y),
            "clip": mb.clip(x=x, alpha=np.float32(-0.5), beta=np.float32(0.25)),
            "threshold": mb.threshold(x=x, alpha=np.float32(0.1)),
            "identity": mb.identity(x=x),
        }

    found = programs.run(body, {"x": x, "y": y})
    expected = {
        "and": (x > 0) & (y > 0),
        "or": (x > 0) | (y > 0),
        "xor": (x > 0) ^ (y > 0),
        "not": x <= 0,
        "select": np.where((x > 0) & (y > 0), x, y),
        "clip": np.clip(x, -0.5, 0.25),
        "threshold": np.maximum(x, np.float32(0.1)),
        "identity": x,
    }
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)


def test_the_signs_of_zero_and_infinity_survive(programs: Any) -> None:
    x = np.array([0.0, np.inf, -np.inf, np.nan], np.float32)
    found = programs.run(lambda mb, x: {"relu": mb.relu(x=x), "abs": mb.abs(x=x)}, {"x": x})
    np.testing.assert_array_equal(found["abs"], np.abs(x))
    assert found["relu"][:3].tolist() == [0, np.inf, 0]
    assert math.isnan(found["relu"][3])


@pytest.mark.parametrize("kind", ["log", "rsqrt", "inverse"])
def test_a_left_out_epsilon_has_its_documented_value(programs: Any, kind: str) -> None:
    x = np.array([1e-3, 1.0, 7.0], np.float32)
    found = programs.run(lambda mb, x: {"y": getattr(mb, kind)(x=x)}, {"x": x})["y"]
    expected = {"log": np.log(x), "rsqrt": 1 / np.sqrt(x), "inverse": 1 / (x + np.float32(1e-4))}[kind]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
