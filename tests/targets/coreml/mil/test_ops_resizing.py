"""Resized images, against torch's ``interpolate`` where torch has the same sampling, else against numpy's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional


@settings(max_examples=5, deadline=None)
@given(height=st.integers(2, 6), width=st.integers(2, 6), up=st.integers(1, 3), across=st.integers(1, 3))
def test_upsampling_by_whole_factors(programs: Any, height: int, width: int, up: int, across: int) -> None:
    x = np.random.default_rng(0).normal(size=(2, 3, height, width)).astype(np.float32)
    factors = {"scale_factor_height": up, "scale_factor_width": across}

    def body(mb: Any, x: Any) -> dict[str, Any]:
        return {
            "nearest": mb.upsample_nearest_neighbor(x=x, **factors),
            "corners": mb.upsample_bilinear(x=x, align_corners=True, **factors),
            "centres": mb.upsample_bilinear(x=x, align_corners=False, **factors),
        }

    found = programs.run(body, {"x": x})
    source, size = torch.from_numpy(x), (height * up, width * across)
    np.testing.assert_array_equal(found["nearest"], functional.interpolate(source, size))
    for name, corners in (("corners", True), ("centres", False)):
        expected = functional.interpolate(source, size, mode="bilinear", align_corners=corners)
        np.testing.assert_allclose(found[name], expected, rtol=1e-4, atol=1e-5, err_msg=name)


@settings(max_examples=5, deadline=None)
@given(size=st.integers(2, 7), to=st.integers(2, 9))
def test_resizing_to_any_size(programs: Any, size: int, to: int) -> None:
    x = np.random.default_rng(0).normal(size=(1, 2, size, 1)).astype(np.float32)
    target = {"target_size_height": to, "target_size_width": 1}

    def body(mb: Any, x: Any) -> dict[str, Any]:
        modes = ("STRICT_ALIGN_CORNERS", "ALIGN_CORNERS", "DEFAULT", "OFFSET_CORNERS", "UNALIGN_CORNERS")
        found = {mode: mb.resize_bilinear(x=x, sampling_mode=mode, **target) for mode in modes}
        new = {"shape": np.array([to, 0], np.int32), "resized_dims": np.uint32(2)}
        return {
            **found,
            "nearest": mb.resize_nearest_neighbor(x=x, **target),
            "resize": mb.resize(x=x, sampling_mode="UNALIGN_CORNERS", **new),
            "resize_nearest": mb.resize(x=x, interpolation_mode="NEAREST_NEIGHBOR", **new),
        }

    found = programs.run(body, {"x": x})
    steps, last = np.arange(to), size - 1
    points = {
        "STRICT_ALIGN_CORNERS": steps * last / (to - 1),
        "ALIGN_CORNERS": steps * last / (to - 1),
        "DEFAULT": steps * (size - size / to) / (to - 1),
        "OFFSET_CORNERS": 0.5 * max(1, last) / to + steps * max(1, last) / to,
        "UNALIGN_CORNERS": steps * size / to + 0.5 * size / to - 0.5,
    }
    for mode, at in points.items():
        columns = [[np.interp(at, np.arange(size), x[0, c, :, 0])] for c in range(2)]
        np.testing.assert_allclose(found[mode][0], np.swapaxes(columns, 1, 2), rtol=1e-4, atol=1e-5, err_msg=mode)
    np.testing.assert_array_equal(found["resize"], found["UNALIGN_CORNERS"])
    nearest = functional.interpolate(torch.from_numpy(x), (to, 1))
    np.testing.assert_array_equal(found["nearest"], nearest)
    np.testing.assert_array_equal(found["resize_nearest"], nearest)


def test_one_output_pixel_is_the_middle_or_the_first(programs: Any) -> None:
    x = np.arange(5, dtype=np.float32).reshape(1, 1, 5, 1)

    def body(mb: Any, x: Any) -> dict[str, Any]:
        return {m: mb.resize_bilinear(x=x, sampling_mode=m) for m in ("ALIGN_CORNERS", "STRICT_ALIGN_CORNERS")}

    found = programs.run(body, {"x": x})
    assert found["ALIGN_CORNERS"].item() == pytest.approx(2)
    assert found["STRICT_ALIGN_CORNERS"].item() == 0
