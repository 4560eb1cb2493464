"""Storage forms, read by the libraries that define them; each test runs where its library is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from qwen3_export.quantizers.affine import AffineFormat, AffineParams, round_scales
from qwen3_export.quantizers.packing.compressed_tensors import pack_int_quantized, pack_packed
from qwen3_export.quantizers.packing.coreml import pack_blockwise_shift_scale, pack_lut_to_dense
from qwen3_export.quantizers.packing.executorch import pack_embedding_int4, pack_xnnpack_int4
from qwen3_export.quantizers.packing.mlx import pack_mlx
from qwen3_export.quantizers.packing.onnx import pack_matmul_nbits
from qwen3_export.quantizers.palette import PaletteFormat, PaletteParams

ROWS, COLUMNS = 64, 128


def some_codes(num_bits: int, *, symmetric: bool, group_size: int = 32, scale: Any = "f16") -> tuple[Any, AffineParams]:
    random = np.random.default_rng(num_bits)
    low, high = -(1 << (num_bits - 1)), 1 << (num_bits - 1)
    shape = (ROWS, COLUMNS // group_size)
    zeros = random.integers(low, high, shape).astype(np.int8) * np.int8(not symmetric)
    scales = round_scales(random.uniform(0.001, 0.1, shape).astype(np.float32), scale)
    codes = random.integers(low, high, (ROWS, COLUMNS)).astype(np.int8)
    return codes, AffineParams(scale_RG=scales, zero_point_RG=zeros)


def values_of(codes: NDArray[np.int8], params: AffineParams) -> NDArray[np.float32]:
    return AffineFormat(num_bits=8).dequantize(codes, params)


@pytest.mark.onnx
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("num_bits", [2, 4, 8])
def test_onnxruntime_multiplies_with_the_values(num_bits: int, symmetric: bool) -> None:
    """MatMulNBits of the unit matrix, at accuracy level 1 (fp32), gives the weight itself."""
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    codes, params = some_codes(num_bits, symmetric=symmetric)
    packed = pack_matmul_nbits(codes, params, num_bits=num_bits)
    helper, number = onnx.helper, onnx.numpy_helper.from_array
    constants = {"weight": packed.weight_OGY, "scales": packed.scale_OG}
    if packed.zero_points_OY is not None:
        constants["zero_points"] = packed.zero_points_OY
    settings = {"K": COLUMNS, "N": ROWS, "bits": num_bits, "block_size": 32, "accuracy_level": 1}
    node = helper.make_node("MatMulNBits", ["x", *constants], ["y"], domain="com.microsoft", **settings)
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [COLUMNS, COLUMNS])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [COLUMNS, ROWS])],
        initializer=[number(array, name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (read,) = session.run(None, {"x": np.eye(COLUMNS, dtype=np.float32)})
    np.testing.assert_allclose(read.T, values_of(codes, params), rtol=0, atol=1e-6)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("num_bits", [2, 3, 4, 8])
def test_compressed_tensors_unpacks_the_codes(num_bits: int, symmetric: bool) -> None:
    library = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers")
    codes, params = some_codes(num_bits, symmetric=symmetric)
    packed = pack_packed(codes, params, num_bits=num_bits)
    words = torch.from_numpy(packed.weight_packed_OW)
    assert torch.equal(library.pack_to_int32(torch.from_numpy(codes), num_bits), words)
    read = library.unpack_from_int32(words, num_bits, torch.Size(packed.weight_shape))
    np.testing.assert_array_equal(read.numpy(), codes)
    if packed.weight_zero_point_WG is not None:
        zeros = torch.from_numpy(packed.weight_zero_point_WG)
        shape = torch.Size(params.zero_point_RG.shape)
        read = library.unpack_from_int32(zeros, num_bits, shape, packed_dim=0)
        np.testing.assert_array_equal(read.numpy(), params.zero_point_RG)


def test_compressed_tensors_dequantizes_int_codes() -> None:
    library = pytest.importorskip("compressed_tensors.quantization.lifecycle.forward")
    codes, params = some_codes(8, symmetric=False)
    packed = pack_int_quantized(codes, params)
    assert packed.weight_zero_point_OG is not None
    read = library.dequantize(
        torch.from_numpy(packed.weight_OI),
        torch.from_numpy(packed.weight_scale_OG),
        torch.from_numpy(packed.weight_zero_point_OG),
        args=library.QuantizationArgs(num_bits=8, strategy="group", group_size=32, symmetric=False),
    )
    np.testing.assert_array_equal(read.float().numpy(), values_of(codes, params))


@pytest.mark.parametrize("num_bits", [2, 3, 4, 5, 6, 8])
def test_mlx_dequantizes_the_values(num_bits: int) -> None:
    mx = pytest.importorskip("mlx.core")
    codes, params = some_codes(num_bits, symmetric=False)
    packed = pack_mlx(codes, params, num_bits=num_bits)
    arrays = [mx.array(array) for array in (packed.weight_OW, packed.scales_OG, packed.biases_OG)]
    read = np.array(mx.dequantize(*arrays, group_size=32, bits=num_bits))
    np.testing.assert_allclose(read, values_of(codes, params), rtol=0, atol=2e-6)


def coreml_package(folder: Path, operation: str, inputs: dict[str, Any]) -> bytes:
    """The weight.bin of a saved package that multiplies with one operator's result."""
    pytest.importorskip("coremltools")
    import coremltools as ct
    from coremltools.converters.mil import Builder as mb  # noqa: N813 (its usual name)
    from coremltools.converters.mil.mil import types

    @mb.program(input_specs=[mb.TensorSpec(shape=(1, COLUMNS), dtype=types.fp16)], opset_version=ct.target.iOS18)  # type: ignore[untyped-decorator]
    def program(x: Any) -> Any:
        return mb.matmul(x=x, y=getattr(mb, operation)(**inputs), transpose_y=True)

    model = ct.convert(program, minimum_deployment_target=ct.target.iOS18, skip_model_load=True, pass_pipeline=None)
    model.save(str(folder / "one.mlpackage"))
    return (folder / "one.mlpackage/Data/com.apple.CoreML/weights/weight.bin").read_bytes()


@pytest.mark.coreml
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("num_bits", [4, 8])
def test_coremltools_writes_the_same_bytes(num_bits: int, symmetric: bool, tmp_path: Path) -> None:
    utils = pytest.importorskip("coremltools.optimize._utils")
    types = pytest.importorskip("coremltools.converters.mil.mil.types")
    codes, params = some_codes(num_bits, symmetric=symmetric)
    packed = pack_blockwise_shift_scale(codes, params, num_bits=num_bits)
    dtype = types.nptype_from_builtin(types.string_to_builtin(f"int{num_bits}"))
    inputs = {"data": codes.astype(dtype), "scale": params.scale_RG.astype(np.float16)}
    if packed.offset_Y is not None:
        inputs["offset"] = params.zero_point_RG.astype(dtype)
    stored = coreml_package(tmp_path, "constexpr_blockwise_shift_scale", inputs)
    assert packed.data_Y.tobytes() in stored
    if packed.offset_Y is not None:
        assert packed.offset_Y.tobytes() in stored
    read = utils.restore_elements_from_packed_bits(packed.data_Y, num_bits, codes.size, are_packed_values_signed=True)
    np.testing.assert_array_equal(read.reshape(codes.shape), codes)
    from coremltools.converters.mil.mil.ops.defs.iOS18.compression import constexpr_blockwise_shift_scale

    offset = None if symmetric else params.zero_point_RG
    meaning = constexpr_blockwise_shift_scale.decompress(codes, params.scale_RG, offset)
    np.testing.assert_array_equal(meaning, values_of(codes, params))


@pytest.mark.coreml
@pytest.mark.parametrize("num_bits", [2, 3, 4, 6, 8])
def test_coremltools_reads_palettes(num_bits: int, tmp_path: Path) -> None:
    pytest.importorskip("coremltools")
    types = pytest.importorskip("coremltools.converters.mil.mil.types")
    from coremltools.converters.mil.mil.ops.defs.iOS18.compression import constexpr_lut_to_dense

    random = np.random.default_rng(num_bits)
    codes = random.integers(0, 1 << num_bits, (ROWS, COLUMNS)).astype(np.uint8)
    table = np.sort(random.normal(size=(ROWS // 16, 1 << num_bits)).astype(np.float16), axis=1).astype(np.float32)
    params = PaletteParams(table_LE=table)
    packed = pack_lut_to_dense(codes, params, num_bits=num_bits)
    dtype = types.nptype_from_builtin(types.string_to_builtin(f"uint{num_bits}"))
    inputs = {"indices": codes.astype(dtype), "lut": packed.lut_L1E1.astype(np.float16)}
    assert packed.indices_Y.tobytes() in coreml_package(tmp_path, "constexpr_lut_to_dense", inputs)
    meaning = constexpr_lut_to_dense.decompress(codes, packed.lut_L1E1, None)
    np.testing.assert_array_equal(
        meaning, PaletteFormat(num_bits=num_bits, rows_per_table=16).dequantize(codes, params)
    )


@pytest.mark.executorch
def test_executorch_serializes_the_same_nibbles() -> None:
    visitor = pytest.importorskip("executorch.backends.xnnpack.operators.node_visitor")
    codes, params = some_codes(4, symmetric=True, scale="bf16")
    theirs = visitor.NodeVisitor.convert_to_qc4w(torch.from_numpy(codes))
    np.testing.assert_array_equal(theirs.numpy(), pack_xnnpack_int4(codes, params).weight_OY)


@pytest.mark.executorch
def test_executorch_embeds_the_values() -> None:
    pytest.importorskip("executorch.exir.passes._quant_patterns_and_replacements")
    codes, params = some_codes(4, symmetric=False)
    read = torch.ops.quantized_decomposed.embedding_4bit(
        torch.from_numpy(pack_embedding_int4(codes)),
        torch.from_numpy(params.scale_RG),
        torch.from_numpy(params.zero_point_RG).float(),
        -8,
        7,
        torch.arange(ROWS),
    )
    np.testing.assert_array_equal(read.numpy(), values_of(codes, params))


@pytest.mark.executorch
def test_torchao_dequantizes_the_values() -> None:
    torchao = pytest.importorskip("torchao.quantization")
    codes, params = some_codes(4, symmetric=False)
    tensor = torchao.IntxUnpackedToInt8Tensor(
        torch.from_numpy(codes),
        torch.from_numpy(params.scale_RG),
        torch.from_numpy(params.zero_point_RG),
        torch.int4,
        (1, 32),
        torch.float32,
        None,
    )
    np.testing.assert_array_equal(tensor.dequantize().numpy(), values_of(codes, params))
