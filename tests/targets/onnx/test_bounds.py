"""The bound of ``shipped`` in fp16 folders: a mistake just above it fails, one just below fails another number.

The check models how some results are rounded to fp16. As shipped more are, so many times the modelled noise is allowed.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bounds import around_the_bound
from torch import Tensor

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

import onnx

import qwen3_export as qx
from qwen3_export.parity.report import Report
from qwen3_export.rope import inverse_frequencies
from qwen3_export.targets.onnx.names import COS_CACHE, SIN_CACHE
from qwen3_export.targets.onnx.read import open_onnx

Caught = Callable[[str, Report], None]


@pytest.fixture
def copied(exported: Callable[..., Any], tmp_path: Path) -> Callable[[], Path]:
    """A new copy of a sound fp16 folder."""
    folders = (tmp_path / str(i) for i in range(10))
    return lambda: Path(shutil.copytree(exported("tied", "fp16").folder, next(folders)))


def with_scores_too_large(folder: Path, by: float) -> Path:
    """Attention multiplies its scores by a scale that is a little too large."""
    proto = onnx.load(str(folder / "model.onnx"), load_external_data=False)
    for node in proto.graph.node:
        for attribute in node.attribute:
            if node.op_type == "GroupQueryAttention" and attribute.name == "scale":
                attribute.f *= 1 + by
    (folder / "model.onnx").write_bytes(proto.SerializeToString())
    return folder


def with_angles(folder: Path, angles_TR: Tensor) -> Path:
    """RoPE's tables hold the cosines and sines of these angles."""
    file = open_onnx(folder)
    for name, function in ((COS_CACHE, torch.cos), (SIN_CACHE, torch.sin)):
        place = file.initializers[name]
        with file.data_paths[0].open("r+b") as data:
            data.seek(place.offset)
            data.write(function(angles_TR).numpy().astype(place.dtype).tobytes())
    return folder


def test_a_mistake_around_the_bound(exported: Callable[..., Any], copied: Callable[[], Path]) -> None:
    model = exported("tied", "fp16").model
    below, above = around_the_bound(lambda size: qx.check(with_scores_too_large(copied(), size), model), probe=0.01)
    assert below.shipped.status == "pass"
    assert below.conversion.status == "fail"
    assert above.shipped.status == "fail"
    assert above.shipped.mean_kld < 2 * above.shipped.bound, "this one was to be just above"
    assert above.shipped.mean_kld < 3 * below.shipped.mean_kld


@pytest.mark.parametrize(
    ("dtype", "shipped"), [(torch.float32, "pass"), (torch.float16, "pass"), (torch.bfloat16, "fail")]
)
def test_coarse_angles(
    exported: Callable[..., Any], copied: Callable[[], Path], caught: Caught, dtype: torch.dtype, shipped: str
) -> None:
    """The exact form makes its own tables in fp32, so that ``conversion`` does not see those that are shipped.

    Those of fp16 angles cost 5 times the modelled noise, and are found in the metadata alone.
    """
    model = exported("tied", "fp16").model
    config = model.graph.config
    angles_TR = torch.arange(config.max_position_embeddings)[:, None] * inverse_frequencies(config)
    report = qx.check(with_angles(copied(), angles_TR.to(dtype).float()), model)
    assert report.conversion.status == "pass"
    assert report.shipped.status == shipped
    assert [f"{name} holds other angles" in "".join(report.metadata) for name in (COS_CACHE, SIN_CACHE)] == (
        [dtype is not torch.float32] * 2
    )
    if report.metadata:
        caught(f"RoPE's angles computed in {str(dtype).removeprefix('torch.')}", report)
