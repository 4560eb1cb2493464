"""Convolution and pooling, against torch's own with its own padding."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

CONV = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
TURNED = {1: functional.conv_transpose1d, 2: functional.conv_transpose2d}
AVERAGE = {1: functional.avg_pool1d, 2: functional.avg_pool2d}
LARGEST = {1: functional.max_pool1d, 2: functional.max_pool2d}


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def doubled(pads: list[int]) -> list[int]:
    return [pad for pad in pads for _ in range(2)]


@settings(max_examples=6, deadline=None)
@given(axes=st.integers(1, 3), groups=st.sampled_from([1, 2]), data=st.data())
def test_convolution(programs: Any, axes: int, groups: int, data: st.DataObject) -> None:
    strides, dilations, pads = (
        data.draw(st.lists(st.integers(low, 2), min_size=axes, max_size=axes)) for low in (1, 1, 0)
    )
    kernel = data.draw(st.lists(st.integers(1, 3), min_size=axes, max_size=axes))
    x, weight, bias = normal(2, 4, *[7] * axes), normal(6, 4 // groups, *kernel, seed=1), normal(6, seed=2)
    options = {"strides": strides, "dilations": dilations, "groups": groups}

    def body(mb: Any, x: Any) -> dict[str, Any]:
        return {
            "custom": mb.conv(x=x, weight=weight, bias=bias, pad_type="custom", pad=doubled(pads), **options),
            "valid": mb.conv(x=x, weight=weight, pad_type="valid", **options),
        }

    found = programs.run(body, {"x": x})
    parts = [torch.from_numpy(part) for part in (x, weight, bias)]
    expected = CONV[axes](*parts, strides, pads, dilations, groups)
    np.testing.assert_allclose(found["custom"], expected, rtol=1e-4, atol=1e-5)
    expected = CONV[axes](*parts[:2], None, strides, 0, dilations, groups)
    np.testing.assert_allclose(found["valid"], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kernel", [2, 3, 4])
@pytest.mark.parametrize("stride", [1, 2])
def test_same_padding_gives_as_many_outputs_as_strides_fit(programs: Any, kernel: int, stride: int) -> None:
    x, weight = normal(1, 1, 9), normal(1, 1, kernel, seed=1)
    options = {"weight": weight, "strides": [stride]}

    def body(mb: Any, x: Any) -> dict[str, Any]:
        return {name: mb.conv(x=x, pad_type=name, **options) for name in ("same", "same_lower")}

    found = programs.run(body, {"x": x})
    total = max(0, (math.ceil(9 / stride) - 1) * stride + kernel - 9)
    for name, before in (("same", total // 2), ("same_lower", total - total // 2)):
        padded = np.pad(x, [(0, 0), (0, 0), (before, total - before)])
        expected = functional.conv1d(torch.from_numpy(padded), torch.from_numpy(weight), stride=stride)
        assert expected.shape[-1] == math.ceil(9 / stride)
        np.testing.assert_allclose(found[name], expected, rtol=1e-4, atol=1e-5)


@settings(max_examples=5, deadline=None)
@given(axes=st.integers(1, 2), groups=st.sampled_from([1, 2]), data=st.data())
def test_transposed_convolution(programs: Any, axes: int, groups: int, data: st.DataObject) -> None:
    strides, dilations, pads = (
        data.draw(st.lists(st.integers(low, 2), min_size=axes, max_size=axes)) for low in (1, 1, 0)
    )
    x, weight, bias = normal(2, 4, *[5] * axes), normal(4, 6 // groups, *[3] * axes, seed=1), normal(6, seed=2)
    options = {"strides": strides, "dilations": dilations, "groups": groups}

    def body(mb: Any, x: Any) -> dict[str, Any]:
        padded = {"pad_type": "custom", "pad": doubled(pads)}
        return {"y": mb.conv_transpose(x=x, weight=weight, bias=bias, **padded, **options)}

    found = programs.run(body, {"x": x})["y"]
    parts = [torch.from_numpy(part) for part in (x, weight, bias)]
    expected = TURNED[axes](*parts, strides, pads, 0, groups, dilations)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@settings(max_examples=6, deadline=None)
@given(axes=st.integers(1, 2), ceil=st.booleans(), data=st.data())
def test_pooling(programs: Any, axes: int, ceil: bool, data: st.DataObject) -> None:
    kernel = data.draw(st.lists(st.integers(2, 3), min_size=axes, max_size=axes))
    # Strides beyond the kernel let coremltools count a window that lies outside, which torch never does.
    strides = [data.draw(st.integers(1, size)) for size in kernel]
    pads = data.draw(st.lists(st.integers(0, 1), min_size=axes, max_size=axes))
    x = normal(2, 3, *data.draw(st.lists(st.integers(5, 8), min_size=axes, max_size=axes)))
    options = {"kernel_sizes": kernel, "strides": strides, "ceil_mode": ceil}
    options |= {"pad_type": "custom", "pad": doubled(pads)}

    def body(mb: Any, x: Any) -> dict[str, Any]:
        return {
            "max": mb.max_pool(x=x, **options),
            "avg": mb.avg_pool(x=x, **options),
            "without_padding": mb.avg_pool(x=x, exclude_padding_from_average=True, **options),
            "l2": mb.l2_pool(x=x, **options),
        }

    found = programs.run(body, {"x": x})
    source, same = torch.from_numpy(x), (kernel, strides, pads, ceil)
    np.testing.assert_array_equal(found["max"], LARGEST[axes](source, kernel, strides, pads, 1, ceil))
    np.testing.assert_allclose(found["avg"], AVERAGE[axes](source, *same), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["without_padding"], AVERAGE[axes](source, *same, False), rtol=1e-5, atol=1e-6)
    if not ceil:
        summed = AVERAGE[axes](source.square(), *same) * math.prod(kernel)
        np.testing.assert_allclose(found["l2"], summed.sqrt(), rtol=1e-5, atol=1e-6)
