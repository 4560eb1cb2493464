"""What the saved program computes: the reference's logits, however the tokens come; and numbers that fp16 holds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tokens import random_tokens
from torch import Tensor

pytest.importorskip("coremltools")

from qwen3_export.reference.model import logits
from qwen3_export.targets.coreml.blocks import rms_norm
from qwen3_export.targets.coreml.builder import ProgramBuilder
from qwen3_export.targets.coreml.emit import write_weights
from qwen3_export.targets.coreml.layout import plan_weights
from qwen3_export.targets.coreml.mil.package import open_package
from qwen3_export.targets.coreml.names import MODEL_FILE, WEIGHT_FILE
from qwen3_export.targets.coreml.read import open_coreml, read_graph
from qwen3_export.targets.coreml.serialize import manifest_text, model_bytes

# In a logit. Only the order of sums differs in exact mode: 5e-6 at most was measured, of logits up to 4.5. Where every
# result is rounded to fp16, it was 0.014.
EXACT, ROUNDED = 5e-5, 0.05

# Every recipe, and every shape that the program must get right.
WRITTEN: list[tuple[str, str, dict[str, Any]]] = [
    ("tied", "fp32", {}),
    ("untied", "fp32", {"split_lm_head": 3000}),
    ("rows_of_72", "fp32", {"context_length": 100}),
    ("yarn", "fp32", {"fused_attention": True}),
    ("untied", "fp16", {}),
    ("yarn", "int8", {"target": "macOS15"}),
    ("rows_of_320", "int4", {}),
    ("tied", "int4", {"group_size": 64, "split_lm_head": 4096}),
    ("rows_of_72", "int4", {"channelwise": True}),
    ("rows_of_72", "palette8", {}),
    ("added_tokens", "palette6", {"split_lm_head": 4000}),
    ("rows_of_320", "palette4", {"fused_attention": True}),
    ("tied", "fp32", {"mask": "fullAttentionMask"}),
    ("yarn", "int4", {"mask": "fullAttentionMask", "fused_attention": True}),
]


@pytest.mark.parametrize(("variant", "recipe", "options"), WRITTEN)
def test_the_program_is_the_reference(
    packaged: Callable[..., Any],
    logits_of: Callable[..., Tensor],
    variant: str,
    recipe: str,
    options: dict[str, Any],
) -> None:
    """At once, in chunks and token by token, over the values read back; and finite where all is rounded to fp16."""
    written = packaged(variant, recipe, **options)
    package, tokens = written.open(), random_tokens(40)
    expected = logits(read_graph(open_coreml(written.folder), written.model.graph), tokens)
    for sizes in (None, [17, 1, 1, 21]):
        found = logits_of(package, tokens, sizes)
        assert (found - expected).abs().max() < EXACT
    rounded = logits_of(package, tokens[:24], [20, 1, 1, 2], mode="fp16").float()
    assert torch.isfinite(rounded).all()
    assert (rounded - expected[:24]).abs().max() < ROUNDED


def test_the_demo_in_fp32_and_as_devices_round(packaged: Callable[..., Any], logits_of: Callable[..., Tensor]) -> None:
    tokens = random_tokens(64)
    for recipe in ("fp32", "int4"):
        written = packaged("demo", recipe)
        package = written.open()
        expected = logits(read_graph(open_coreml(written.folder), written.model.graph), tokens)
        assert (logits_of(package, tokens) - expected).abs().max() < 1e-3
        kld = _mean_kld(expected, logits_of(package, tokens, mode="fp16").float())
        assert kld < 5e-5


def test_the_last_position_and_no_other(packaged: Callable[..., Any], logits_of: Callable[..., Tensor]) -> None:
    """The context is full to its last position: RoPE's last row and the state's last slice are the right ones."""
    written = packaged("rows_of_72", "fp32", context_length=100)
    tokens = random_tokens(100)
    expected = logits(read_graph(open_coreml(written.folder), written.model.graph), tokens)
    found = logits_of(written.open(), tokens, [98, 1, 1])
    assert (found - expected).abs().max() < EXACT


def test_norms_keep_their_precision_in_fp16(tmp_path: Path) -> None:
    """From magnitudes that square to nothing to those that square to infinity, and beside an outlier of 10,000."""
    width, eps = 128, 1e-6
    random = np.random.default_rng(0)
    scales = np.array([1e-4, 1e-3, 0.05, 1.0, 30.0, 1e3, 1.2e4])
    x_RD = (random.standard_normal((len(scales), width)) * scales[:, None]).astype(np.float16)
    outlier = x_RD[3].copy()
    outlier[5] = 1e4
    x_RD = np.concatenate([x_RD, outlier[None], np.zeros((1, width), np.float16)])
    weight = random.uniform(0.5, 1.5, width).astype(np.float16)
    _write_norm(tmp_path, weight, rows=len(x_RD), eps=eps)
    found = open_package(tmp_path).run({"x": x_RD[None]}, mode="fp16")["y"][0].astype(np.float64)
    exact = x_RD.astype(np.float64)
    exact = exact / np.sqrt(np.square(exact).mean(-1, keepdims=True) + eps) * weight
    assert np.isfinite(found).all()
    # Five roundings of 2 ** -11, and what lies below the normal numbers of fp16.
    np.testing.assert_allclose(found, exact, rtol=5 * 2.0**-11, atol=2.0**-24)


def _write_norm(folder: Path, weight: np.ndarray, *, rows: int, eps: float) -> None:
    import coremltools as ct
    from coremltools.converters.mil.mil import Builder, Function, Program, types

    plan = plan_weights([], {"w": weight})
    config: Any = SimpleNamespace(rms_norm_eps=eps)
    with Function(
        {"x": Builder.placeholder((1, rows, len(weight)), types.fp16)}, opset_version=ct.target.iOS18
    ) as function:
        build = ProgramBuilder(plan, float_type="F16")
        function.set_outputs([rms_norm(build, function.inputs["x"], build.constant("w"), config, name="y")])
    program = Program()
    program.add_function("main", function)
    (folder / WEIGHT_FILE).parent.mkdir(parents=True)
    with (folder / WEIGHT_FILE).open("wb") as file:
        write_weights(file.fileno(), None, plan, threads=1)  # type: ignore[arg-type]
    (folder / MODEL_FILE).write_bytes(model_bytes(program, plan, description="a norm", metadata={}))
    (folder / "Manifest.json").write_text(manifest_text())


def _mean_kld(expected: Tensor, found: Tensor) -> float:
    """KL(expected || found) in nats a position."""
    p, q = expected.double().log_softmax(-1), found.double().log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).mean())
