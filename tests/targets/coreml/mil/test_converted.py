"""Whole packages that coremltools made of torch modules: what they compute is what torch computes."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from qwen3_export.targets.coreml.mil import Package, open_package

coremltools = pytest.importorskip("coremltools")

# A result that is rounded some ten times on its way: each time by at most 2 ** -11.
FP16 = {"rtol": 2e-2, "atol": 2e-2}
FP32 = {"rtol": 1e-4, "atol": 1e-4}


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.gate, self.down = nn.Linear(64, 128), nn.Linear(64, 128, bias=False), nn.Linear(128, 64)
        self.norm = nn.LayerNorm(64)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        return x + self.down(functional.silu(self.gate(normed)) * functional.gelu(self.up(normed)))


class ConvNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, stride=2, groups=2)
        self.norms = nn.ModuleList([nn.BatchNorm2d(8), nn.BatchNorm2d(16)])
        self.up, self.head = nn.ConvTranspose2d(16, 4, 2, stride=2), nn.Linear(4, 10)
        for norm in self.norms:
            nn.init.normal_(norm.running_mean)
            nn.init.uniform_(norm.running_var, 0.5, 2)
            nn.init.normal_(norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.max_pool2d(functional.relu(self.norms[0](self.first(x))), 3, stride=2, padding=1)
        x = functional.hardtanh(self.norms[1](self.second(x)))
        x = functional.avg_pool2d(functional.leaky_relu(self.up(x)), 2, padding=1, count_include_pad=False)
        return functional.log_softmax(self.head(functional.adaptive_avg_pool2d(x, 1).flatten(1)), -1)


class Attention(nn.Module):
    """Grouped heads, rotated positions and a causal mask, as language models have them."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 32)
        self.q, self.kv, self.out = nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 32)
        turn = torch.arange(7).unsqueeze(1) / 10 ** torch.arange(4)
        self.register_buffer("cos", turn.cos())
        self.register_buffer("sin", turn.sin())
        self.register_buffer("mask", torch.full((7, 7), -1e4).triu(1))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        q = self.rotated(self.q(x).unflatten(-1, (4, 8)).transpose(1, 2))
        k, v = self.kv(x).chunk(2, -1)
        k, v = (part.unflatten(-1, (2, 8)).transpose(1, 2).repeat_interleave(2, 1) for part in (k, v))
        scores = q @ self.rotated(k).transpose(-1, -2) / math.sqrt(8) + self.mask
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
        return self.out(mixed) + x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)

    def rotated(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, -1)
        return torch.cat([left * self.cos - right * self.sin, left * self.sin + right * self.cos], -1)


class Assorted(nn.Module):
    """Operations that language models do not need and torch.export lets through."""

    def forward(self, x: Tensor) -> Tensor:
        bins = torch.where(x > 0.5, x.exp(), x.sin()).clamp(-1, 2)
        top = bins.topk(3, dim=-1)
        picked = torch.gather(x, -1, top.indices) + top.values.cumsum(-1)
        rolled = torch.cat([x[:, 2:], x[:, :2].flip(1)], 1).unsqueeze(1)
        padded = functional.pad(rolled, (1, 2), mode="replicate").std(-1)
        summed = x.abs().sqrt().sum(1, keepdim=True) + x.amax(1, keepdim=True) - x.logsumexp(1, keepdim=True)
        stacked = torch.stack([picked, picked.round(), picked.floor()], -1).tile(1, 1, 2).permute(0, 2, 1)
        return stacked.mean(-1) + padded + summed + torch.einsum("bi,bi->b", x, x).unsqueeze(1)


class Cached(nn.Module):
    """Attention of one token over a cache that it keeps in buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16)
        self.register_buffer("keys", torch.zeros(1, 10, 16))
        self.register_buffer("values", torch.zeros(1, 10, 16))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        end = mask.shape[-1]
        begin = end - x.shape[1]
        self.keys[:, begin:end] = self.k(x)
        self.values[:, begin:end] = self.v(x)
        return functional.scaled_dot_product_attention(
            self.q(x), self.keys[:, :end], self.values[:, :end], attn_mask=mask
        )


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (Mlp, (2, 5, 64)),
    "convolutions": (ConvNet, (2, 3, 17, 16)),
    "attention": (Attention, (1, 7)),
    "assorted": (Assorted, (3, 6)),
}


def example(name: str, *, seed: int = 0) -> Tensor:
    shape, generator = CASES[name][1], torch.Generator().manual_seed(seed)
    if name == "attention":
        return torch.randint(0, 50, shape, generator=generator)
    return torch.randn(shape, generator=generator)


def built(name: str) -> nn.Module:
    torch.manual_seed(1)
    return CASES[name][0]().eval()


def converted(
    model: Any, *, precision: str = "FLOAT32", inputs: Any = None, target: str = "iOS18", **options: Any
) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return coremltools.convert(
            model,
            inputs=inputs,
            minimum_deployment_target=getattr(coremltools.target, target),
            compute_precision=getattr(coremltools.precision, precision),
            skip_model_load=True,
            **options,
        )


def saved(model: Any, folder: Path) -> Package:
    model.save(str(folder / "model.mlpackage"))
    return open_package(folder / "model.mlpackage")


def traced(name: str) -> tuple[Any, Any]:
    x = example(name)
    kind = np.int32 if name == "attention" else np.float32
    inputs = [coremltools.TensorType(name="x", shape=x.shape, dtype=kind)]
    return torch.jit.trace(built(name), x), inputs


def output(package: Package, x: Tensor, **options: Any) -> np.ndarray:
    (name,) = package.inputs
    array = x.numpy().astype(np.int32 if package.inputs[name].dtype == "int32" else np.float32)
    return output_of(package, {name: array}, **options)


def output_of(package: Package, inputs: dict[str, np.ndarray], **options: Any) -> np.ndarray:
    (found,) = package.run(inputs, **options).values()
    return found


@pytest.mark.parametrize("precision", ["FLOAT32", "FLOAT16"])
@pytest.mark.parametrize("name", ["mlp", "convolutions", "attention"])
def test_traced_modules(tmp_path: Path, name: str, precision: str) -> None:
    package = saved(uncompressed(name, precision), tmp_path)
    x = example(name, seed=2)
    with torch.no_grad():
        expected = built(name)(x).numpy()
    # Even a program in fp16 is exact where nothing is rounded but its constants.
    np.testing.assert_allclose(output(package, x), expected, **(FP32 if precision == "FLOAT32" else FP16))
    rounded = output(package, x, mode="fp16")
    np.testing.assert_allclose(rounded, expected, **(FP32 if precision == "FLOAT32" else FP16))
    assert (precision == "FLOAT32") == np.array_equal(rounded, output(package, x))


@pytest.mark.parametrize("precision", ["FLOAT32", "FLOAT16"])
@pytest.mark.parametrize("name", ["mlp", "convolutions", "attention", "assorted"])
def test_exported_modules(tmp_path: Path, name: str, precision: str) -> None:
    program = torch.export.export(built(name), (example(name),)).run_decompositions({})
    package = saved(converted(program, precision=precision), tmp_path)
    x = example(name, seed=2)
    with torch.no_grad():
        expected = built(name)(x).numpy()
    np.testing.assert_allclose(output(package, x), expected, **(FP32 if precision == "FLOAT32" else FP16))


@pytest.mark.parametrize(("target", "version"), [("iOS15", 6), ("iOS16", 7), ("iOS17", 8)])
def test_programs_of_older_systems(tmp_path: Path, target: str, version: int) -> None:
    model, inputs = traced("convolutions")
    package = saved(converted(model, inputs=inputs, target=target), tmp_path)
    assert package.spec_version == version
    x = example("convolutions", seed=2)
    with torch.no_grad():
        np.testing.assert_allclose(output(package, x), built("convolutions")(x).numpy(), **FP32)


def test_one_of_two_functions_that_share_weights(tmp_path: Path) -> None:
    """Two lengths of one model, put together by coremltools."""
    descriptor = coremltools.utils.MultiFunctionDescriptor()
    for tokens in (1, 5):
        model, x = built("mlp"), torch.zeros(1, tokens, 64)
        inputs = [coremltools.TensorType(name="x", shape=x.shape)]
        path = str(tmp_path / f"{tokens}.mlpackage")
        converted(torch.jit.trace(model, x), inputs=inputs).save(path)
        descriptor.add_function(path, "main", f"of_{tokens}")
    descriptor.default_function_name = "of_1"
    coremltools.utils.save_multifunction(descriptor, str(tmp_path / "both.mlpackage"))
    for tokens in (1, 5):
        package = open_package(tmp_path / "both.mlpackage", function_name=f"of_{tokens}")
        assert package.inputs["x"].shape == (1, tokens, 64)
        x = torch.randn(1, tokens, 64)
        with torch.no_grad():
            np.testing.assert_allclose(output(package, x), built("mlp")(x).numpy(), **FP32)


def test_an_optional_input_has_its_default(tmp_path: Path) -> None:
    class Scaled(nn.Module):
        def forward(self, x: Tensor, scale: Tensor) -> Tensor:
            return x * scale

    x, scale = torch.ones(1, 3), np.full((1, 3), 2.5, np.float32)
    inputs = [
        coremltools.TensorType(name="x", shape=(1, 3)),
        coremltools.TensorType(name="scale", shape=(1, 3), default_value=scale),
    ]
    package = saved(converted(torch.jit.trace(Scaled(), (x, x)), inputs=inputs), tmp_path)
    assert package.inputs["scale"].default == 2.5
    assert package.inputs["x"].default is None
    assert output_of(package, {"x": x.numpy()}).tolist() == [[2.5] * 3]
    assert output_of(package, {"x": x.numpy(), "scale": scale * 2}).tolist() == [[5.0] * 3]


@pytest.fixture(scope="module")
def cached(tmp_path_factory: pytest.TempPathFactory) -> Package:
    end = coremltools.RangeDim(1, 10, default=3)
    step = coremltools.RangeDim(1, 10, default=3)
    inputs = [
        coremltools.TensorType(name="x", shape=(1, step, 16), dtype=np.float16),
        coremltools.TensorType(name="mask", shape=(1, step, end), dtype=np.float16),
    ]
    kept = coremltools.TensorType(shape=(1, 10, 16), dtype=np.float16)
    states = [coremltools.StateType(wrapped_type=kept, name=name) for name in ("keys", "values")]
    torch.manual_seed(1)
    model = torch.jit.trace(Cached().eval(), (torch.zeros(1, 3, 16), torch.zeros(1, 3, 3)))
    return saved(converted(model, inputs=inputs, states=states, precision="FLOAT16"), tmp_path_factory.mktemp("cached"))


@pytest.mark.parametrize("cuts", [[10], [4, 6], [1] * 10])
def test_states_of_a_converted_module_are_its_buffers(cached: Package, cuts: list[int]) -> None:
    """Prefill, chunks, and token by token: all three are what torch gives for the whole."""
    torch.manual_seed(1)
    model, x = Cached().eval(), torch.randn(1, 10, 16, generator=torch.Generator().manual_seed(3)).half().float()
    causal = torch.full((10, 10), -1e4).triu(1).half().float()
    with torch.no_grad():
        expected = model(x, causal[None]).numpy()
    state, start, found = cached.new_state(), 0, []
    for count in cuts:
        end = start + count
        feeds = {"x": x[:, start:end].numpy(), "mask": causal[None, start:end, :end].numpy()}
        found += list(cached.run(feeds, state=state).values())
        start = end
    np.testing.assert_allclose(np.concatenate(found, 1), expected, **FP16)
    np.testing.assert_allclose(state.numpy("keys"), model.keys.numpy(), **FP16)


@cache
def uncompressed(name: str, precision: str) -> Any:
    model, inputs = traced(name)
    return converted(model, inputs=inputs, precision=precision)


def quantized(how: str, model: Any) -> Any:
    from coremltools.optimize import coreml as optimize

    if how.startswith("palette"):
        bits = int(how[-1])
        grouped = {"granularity": "per_grouped_channel", "group_size": 8} if bits < 8 else {}
        options = optimize.OpPalettizerConfig(mode="uniform", nbits=bits, weight_threshold=64, **grouped)
        return optimize.palettize_weights(model, optimize.OptimizationConfig(global_config=options))
    if how == "pruned":
        options = optimize.OpMagnitudePrunerConfig(target_sparsity=0.5, weight_threshold=64)
        return optimize.prune_weights(model, optimize.OptimizationConfig(global_config=options))
    blocks = {"granularity": "per_block", "block_size": 32} if "block" in how else {"granularity": "per_channel"}
    mode = "linear" if "shifted" in how else "linear_symmetric"
    options = optimize.OpLinearQuantizerConfig(
        mode=mode, dtype=how.split("_", maxsplit=1)[0], weight_threshold=64, **blocks
    )
    return optimize.linear_quantize_weights(model, optimize.OptimizationConfig(global_config=options))


QUANTIZED = ("int4_block", "int4_block_shifted", "uint4_block", "int8", "int8_shifted")
HOW = (*QUANTIZED, "palette4", "palette6", "palette8", "pruned")


@pytest.mark.parametrize(
    ("how", "precision"), [*((how, "FLOAT16") for how in HOW), ("int4_block", "FLOAT32"), ("palette4", "FLOAT32")]
)
def test_weights_that_coremltools_compressed(tmp_path: Path, how: str, precision: str) -> None:
    """Against coremltools' own decompression, put back into torch."""
    from coremltools.optimize import coreml as optimize

    compressed = quantized(how, uncompressed("mlp", precision))
    package = saved(compressed, tmp_path)
    assert any(kind.startswith("constexpr_") for kind in package.ops)
    plain = built("mlp")
    weights = optimize.get_weights_metadata(optimize.decompress_weights(compressed), weight_threshold=64)
    by_shape: dict[tuple[int, ...], list[np.ndarray]] = {}
    for weight in weights.values():
        by_shape.setdefault(weight.val.shape, []).append(weight.val)
    with torch.no_grad():
        for layer in (plain.up, plain.gate, plain.down):
            stored = by_shape[tuple(layer.weight.shape)]
            nearest = min(stored, key=lambda values: float(np.abs(values - layer.weight.numpy()).mean()))
            layer.weight.copy_(torch.from_numpy(nearest.astype(np.float32)))
        x = example("mlp", seed=2)
        expected, original = plain(x).numpy(), built("mlp")(x).numpy()
    found = output(package, x)
    tolerance = FP32 if precision == "FLOAT32" else FP16
    np.testing.assert_allclose(found, expected, **tolerance)
    assert np.abs(found - original).max() > 1e-4  # it is the compressed weights that were used


def test_the_program_is_what_coremltools_own_loader_reads(tmp_path: Path) -> None:
    """Operations, their order, and every constant, against coremltools' ``frontend/milproto``."""
    from coremltools.converters.mil.frontend.milproto.load import load
    from coremltools.models import MLModel

    package = saved(quantized("int8", uncompressed("attention", "FLOAT16")), tmp_path)
    spec = MLModel(str(package.path), skip_model_load=True).get_spec()
    loaded = load(spec, spec.specificationVersion, str(package.path / "Data/com.apple.CoreML/weights"))
    theirs = [o for o in loaded.functions["main"].operations if o.op_type != "const"]
    ours = [o for o in package._operations if o.kind != "const"]
    assert [o.op_type for o in theirs] == [o.kind for o in ours]
    operations = loaded.functions["main"].operations
    constants = [operation for operation in operations if operation.op_type == "const"]
    ours_by_name = {o.outputs[0].name for o in package._operations if o.kind == "const"}
    assert 20 < len(ours_by_name) < len(constants)  # theirs has what constexprs are made of as well
    for operation in constants:
        if operation.name in ours_by_name:
            np.testing.assert_array_equal(package.constant(operation.name), operation.val.val)
    for operation in (o for o in operations if o.op_type.startswith("constexpr_")):
        found = package.constant(operation.outputs[0].name, mode="fp16")
        np.testing.assert_array_equal(found, operation.materialized_val_inference())
