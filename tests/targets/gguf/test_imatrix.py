"""Importance matrices: both forms read, the GGUF form written, and another model's refused."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwen3_export.checkpoint.model import load
from qwen3_export.config import Qwen3Config
from qwen3_export.errors import CheckpointError
from qwen3_export.graph import Role, expected_weights, module_name
from qwen3_export.targets.gguf.emit import emit
from qwen3_export.targets.gguf.export import prepare
from qwen3_export.targets.gguf.imatrix import (
    Imatrix,
    ImatrixEntry,
    check_fits,
    read_imatrix,
    rounded_plainly,
    write_imatrix,
)
from qwen3_export.targets.gguf.names import GgufTensor, gguf_tensors, stack_weights
from qwen3_export.targets.gguf.overrides import is_always_f32
from qwen3_export.targets.gguf.recipes import find_recipe
from qwen3_export.targets.gguf.target import GgufOptions

DENSE = Qwen3Config(
    model_type="qwen3", vocab_size=40, hidden_size=256, intermediate_size=512, num_hidden_layers=2,
    num_attention_heads=6, num_key_value_heads=2, head_dim=32, max_position_embeddings=64,
    rms_norm_eps=1e-6, rope_theta=1e6, tie_word_embeddings=False,
)  # fmt: skip
MOE = replace(
    DENSE, model_type="qwen3_moe", num_experts=3, num_experts_per_tok=2, moe_intermediate_size=768,
    norm_topk_prob=True,
)  # fmt: skip
Entries = dict[str, ImatrixEntry]


@dataclass(frozen=True)
class Stand:
    """A weight with a shape and no values."""

    role: Role
    shape: tuple[int, ...]
    format: str = "BF16"

    @property
    def name(self) -> str:
        return module_name(self.role)

    def read(self, rows: slice = slice(None)) -> np.ndarray:
        raise AssertionError(f"{self.name}[{rows}] was read")


def tensors_of(config: Qwen3Config) -> list[GgufTensor]:
    return stack_weights(Stand(role, shape) for role, shape in expected_weights(config).items())


def entries_of(config: Qwen3Config) -> Entries:
    """Random sums for every matrix inside the layers; the last expert of each layer saw nothing."""
    random = np.random.default_rng(0)
    entries: Entries = {}
    for tensor in tensors_of(config):
        if tensor.layer is None or is_always_f32(tensor):
            continue
        experts = len(tensor.members)
        sums = random.random((experts, tensor.columns), dtype=np.float32) * 100
        counts = random.integers(1, 500, experts)
        if tensor.is_stacked:
            sums[-1], counts[-1] = 0, 0
        entries[tensor.name] = ImatrixEntry(sums, counts)
    return entries


def write(path: Path, entries: Mapping[str, ImatrixEntry]) -> Path:
    write_imatrix(path, entries, datasets=["wiki.txt", "code.txt"], chunks=7, chunk_size=512)
    return path


def write_dat(path: Path, entries: Mapping[str, ImatrixEntry], *, trailer: bool = True) -> Path:
    """The binary form as llama-imatrix writes it, chunks of 512."""
    parts = [struct.pack("<i", len(entries))]
    for name, entry in entries.items():
        calls = -(-int(entry.count_E.max()) // 512)
        means = np.concatenate([entry.mean(expert) for expert in range(len(entry.count_E))])
        values = (means * np.float32(calls)).astype("<f4")
        parts += [struct.pack("<i", len(name)), name.encode(), struct.pack("<ii", calls, len(values))]
        parts.append(values.tobytes())
    if trailer:
        parts.append(struct.pack("<ii", 7, 8) + b"wiki.txt")
    path.write_bytes(b"".join(parts))
    return path


@pytest.mark.parametrize("config", [DENSE, MOE], ids=["dense", "moe"])
def test_what_is_written_is_read_back(config: Qwen3Config, tmp_path: Path) -> None:
    entries = entries_of(config)
    found = read_imatrix(write(tmp_path / "a.gguf", entries))
    assert (found.datasets, found.chunks, found.chunk_size) == (("wiki.txt", "code.txt"), 7, 512)
    assert found.entries.keys() == entries.keys()
    for name, entry in entries.items():
        np.testing.assert_array_equal(found.entries[name].sum_EI, entry.sum_EI)
        np.testing.assert_array_equal(found.entries[name].count_E, entry.count_E)
    check_fits(found, tensors_of(config))


def test_bytes_do_not_depend_on_the_order_of_entries(tmp_path: Path) -> None:
    entries = entries_of(MOE)
    one = write(tmp_path / "a.gguf", entries)
    two = write(tmp_path / "b.gguf", dict(reversed(entries.items())))
    assert one.read_bytes() == two.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.gguf", "b.gguf"]


def test_importance_is_the_mean_square_by_expert(tmp_path: Path) -> None:
    entries = entries_of(MOE)
    imatrix = read_imatrix(write(tmp_path / "a.gguf", entries))
    attn, down = "blk.1.attn_q.weight", "blk.1.ffn_down_exps.weight"
    wanted = entries[attn].sum_EI[0] / np.float32(entries[attn].count_E[0])
    np.testing.assert_array_equal(imatrix.importance(attn), wanted)
    wanted = entries[down].sum_EI[1] / np.float32(entries[down].count_E[1])
    np.testing.assert_array_equal(imatrix.importance(down, 1), wanted)
    np.testing.assert_array_equal(imatrix.importance(down, 2), np.ones(768))
    assert imatrix.importance("output.weight") is None
    for wrong in [(attn, 0), (down, None)]:
        with pytest.raises(AssertionError):
            imatrix.importance(*wrong)


def test_layout_is_that_of_llama_imatrix(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    reader = gguf.GGUFReader(write(tmp_path / "a.gguf", entries_of(MOE)))
    keys = {key: reader.get_field(key) for key in reader.fields if not key.startswith("GGUF.")}
    assert list(keys) == ["general.type", "imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size"]
    assert [keys[key].types[-1].name for key in keys] == ["STRING", "STRING", "UINT32", "UINT32"]
    shapes = {tensor.name: tensor.shape.tolist() for tensor in reader.tensors}  # innermost first
    assert shapes["blk.0.attn_q.weight.in_sum2"] == [256]
    assert shapes["blk.0.attn_q.weight.counts"] == [1]
    assert shapes["blk.0.ffn_down_exps.weight.in_sum2"] == [768, 3]
    assert shapes["blk.0.ffn_down_exps.weight.counts"] == [1, 3]
    assert {tensor.tensor_type.name for tensor in reader.tensors} == {"F32"}


@pytest.mark.parametrize("trailer", [True, False], ids=["with chunks", "oldest"])
@pytest.mark.parametrize("config", [DENSE, MOE], ids=["dense", "moe"])
def test_binary_form_means_the_same(config: Qwen3Config, trailer: bool, tmp_path: Path) -> None:
    entries = entries_of(config)
    found = read_imatrix(write_dat(tmp_path / "imatrix.dat", entries, trailer=trailer))
    assert (found.datasets, found.chunks) == ((("wiki.txt",), 7) if trailer else ((), 0))
    check_fits(found, tensors_of(config))
    for tensor in tensors_of(config):
        for expert in range(len(tensor.members)):
            arguments = (tensor.name, expert if tensor.is_stacked else None)
            if tensor.name in entries:
                wanted = entries[tensor.name].mean(expert)
                importance = found.importance(*arguments)
                assert importance is not None
                assert np.allclose(importance, wanted, rtol=2e-7, atol=0)


def test_gguf_form_converted_from_the_binary_one_has_experts_apart(tmp_path: Path) -> None:
    """llama-imatrix, converting, keeps one count for all experts: a single long row."""
    flat = {name: ImatrixEntry(entry.sum_EI.reshape(1, -1), np.array([64])) for name, entry in entries_of(MOE).items()}
    found = read_imatrix(write(tmp_path / "a.gguf", flat))
    assert found.entries["blk.0.ffn_down_exps.weight"].sum_EI.shape == (3, 768)
    check_fits(found, tensors_of(MOE))


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        (replace(DENSE, intermediate_size=480), r"blk\.0\.ffn_down\.weight has 512 columns there and 480 columns"),
        (replace(DENSE, num_hidden_layers=1), r"another model; this one has no blk\.1\.attn_k\.weight"),
        (replace(DENSE, num_hidden_layers=3), r"incomplete; it says nothing of blk\.2\.attn_q\.weight"),
        (MOE, r"another model; this one has no blk\.0\.ffn_down\.weight"),
    ],
)
def test_another_models_is_refused(other: Qwen3Config, sentence: str, tmp_path: Path) -> None:
    imatrix = read_imatrix(write(tmp_path / "a.gguf", entries_of(DENSE)))
    with pytest.raises(CheckpointError, match=sentence):
        check_fits(imatrix, tensors_of(other))


def test_another_number_of_experts_is_refused(tmp_path: Path) -> None:
    imatrix = read_imatrix(write(tmp_path / "a.gguf", entries_of(MOE)))
    sentence = "has 3 experts of 768 columns there and 4 experts of 768 columns in the model"
    with pytest.raises(CheckpointError, match=sentence):
        check_fits(imatrix, tensors_of(replace(MOE, num_experts=4)))


def test_output_and_embedding_are_optional_and_checked(tmp_path: Path) -> None:
    output = {"output.weight": ImatrixEntry(np.ones((1, 256), np.float32), np.array([3]))}
    imatrix = read_imatrix(write(tmp_path / "a.gguf", entries_of(DENSE) | output))
    check_fits(imatrix, tensors_of(DENSE))
    check_fits(imatrix, tensors_of(replace(DENSE, tie_word_embeddings=True)))
    wrong = {"output.weight": ImatrixEntry(np.ones((1, 255), np.float32), np.array([3]))}
    imatrix = read_imatrix(write(tmp_path / "b.gguf", entries_of(DENSE) | wrong))
    with pytest.raises(CheckpointError, match=r"output\.weight has 255 columns there"):
        check_fits(imatrix, tensors_of(DENSE))


def test_damaged_and_foreign_files_are_refused(tmp_path: Path) -> None:
    gguf_form = write(tmp_path / "a.gguf", entries_of(DENSE)).read_bytes()
    dat_form = write_dat(tmp_path / "a.dat", entries_of(DENSE)).read_bytes()
    cases = {
        "a truncated GGUF": (gguf_form[: len(gguf_form) // 2], "cut short"),
        "a truncated header": (gguf_form[:40], "cut short"),
        "a truncated dat": (dat_form[: len(dat_form) // 2], "no importance matrix"),
        "text": (b"The quick brown fox jumps over the lazy dog", "no importance matrix"),
        "nothing": (b"", "no importance matrix"),
        "counts gone": (gguf_form.replace(b"0.attn_q.weight.counts", b"0.attn_q.weight.cuonts"), "do not belong"),
        "no imatrix": (
            gguf_form.replace(b".in_sum2", b".out_sum").replace(b".counts", b".cuonts"),
            "but no importance",
        ),
    }
    for data, sentence in cases.values():
        path = tmp_path / "case"
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match=sentence):
            read_imatrix(path)
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_imatrix(tmp_path / "absent")


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0])
def test_impossible_sums_are_refused(value: float, tmp_path: Path) -> None:
    entries = entries_of(DENSE)
    entries["blk.0.attn_q.weight"].sum_EI[0, 3] = value
    with pytest.raises(CheckpointError, match=r"blk\.0\.attn_q\.weight has sums of squares that are negative"):
        read_imatrix(write(tmp_path / "a.gguf", entries))


# llama.cpp. Its loader for these files is part of the llama-quantize program, which wheels leave out; what can be
# shown is that ggml's parser takes the file, and that llama_model_quantize takes and uses the values.


def test_ggml_parses_what_is_written(tmp_path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    ggml = next((Path(llama_cpp.__file__).parent / "lib").glob("libggml-base.*"))
    library = ctypes.CDLL(str(ggml))
    library.gguf_init_from_file.restype = ctypes.c_void_p
    library.gguf_init_from_file.argtypes = [ctypes.c_char_p, InitParameters]
    library.gguf_get_n_tensors.restype = ctypes.c_int64
    library.gguf_get_tensor_name.restype = ctypes.c_char_p
    for function in (library.gguf_get_n_tensors, library.gguf_free):
        function.argtypes = [ctypes.c_void_p]
    library.gguf_get_tensor_name.argtypes = [ctypes.c_void_p, ctypes.c_int64]
    entries = entries_of(MOE)
    path = write(tmp_path / "a.gguf", entries)
    handle = library.gguf_init_from_file(bytes(path), InitParameters(no_alloc=True, context=None))
    assert handle
    names = [library.gguf_get_tensor_name(handle, i).decode() for i in range(library.gguf_get_n_tensors(handle))]
    library.gguf_free(handle)
    assert names == [f"{name}.{part}" for name in sorted(entries) for part in ("in_sum2", "counts")]


class InitParameters(ctypes.Structure):
    """gguf_init_params of ggml's gguf.h."""

    _fields_ = (("no_alloc", ctypes.c_bool), ("context", ctypes.c_void_p))


@pytest.mark.parametrize("config", [DENSE, MOE], ids=["dense", "moe"])
def test_llama_cpp_quantizes_under_what_is_read(config: Qwen3Config, tmp_path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    if not hasattr(llama_cpp, "llama_model_imatrix_data"):
        pytest.skip("this llama-cpp-python takes importance matrices as a C++ map only")
    source = write_model(tmp_path / "model.gguf", config)
    imatrix = read_imatrix(write(tmp_path / "a.gguf", entries_of(config)))
    flat = {name: means(imatrix, name) for name in imatrix.entries}
    plain = quantized(llama_cpp, source, tmp_path / "plain.gguf", {})
    weighted = quantized(llama_cpp, source, tmp_path / "weighted.gguf", flat)
    assert plain is not None
    assert weighted is not None
    same = [name for name in flat if np.array_equal(plain[name], weighted[name])]
    assert not same, "llama.cpp uses an importance matrix for every tensor that it covers"
    short = flat | {"blk.0.ffn_norm.weight": np.ones(3), "blk.0.attn_q.weight": np.ones(255, np.float32)}
    assert quantized(llama_cpp, source, tmp_path / "short.gguf", short) is None


def means(imatrix: Imatrix, name: str) -> np.ndarray:
    entry = imatrix.entries[name]
    return np.concatenate([entry.mean(expert) for expert in range(len(entry.count_E))])


def write_model(path: Path, config: Qwen3Config) -> Path:
    import gguf

    writer = gguf.GGUFWriter(path, config.model_type.replace("_", ""))
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if config.is_moe:
        writer.add_expert_count(config.num_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
    random = np.random.default_rng(1)
    for tensor in tensors_of(config):
        shape = tensor.shape if is_always_f32(tensor) else (*tensor.shape[:-2], 2, tensor.columns)
        writer.add_tensor(tensor.name, random.standard_normal(shape, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def quantized(
    llama_cpp: Any, source: Path, target: Path, importance: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray] | None:
    """The bytes of every tensor as llama.cpp quantizes it to Q4_0, or None where it refuses."""
    import gguf

    silence = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(silence, ctypes.c_void_p(0))
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype, settings.nthread, settings.pure = 2, 1, True
    if importance:
        settings.imatrix = (llama_cpp.llama_model_imatrix_data * (len(importance) + 1))()
        for entry, (name, values) in zip(settings.imatrix, importance.items(), strict=False):
            data = (ctypes.c_float * len(values))(*values)
            entry.name, entry.size, entry.data = name.encode(), len(values), data
    failed = llama_cpp.llama_model_quantize(bytes(source), bytes(target), ctypes.byref(settings))
    llama_cpp.llama_log_set(llama_cpp.llama_log_callback(0), ctypes.c_void_p(0))
    if failed:
        return None
    return {tensor.name: tensor.data.copy() for tensor in gguf.GGUFReader(target).tensors}


def test_what_it_says_nothing_of_is_named_and_not_refused(tmp_path: Path) -> None:
    """llama.cpp's quantizer goes on too: an expert that no text reaches, or a tensor of one block."""
    entries = entries_of(MOE)
    del entries["blk.1.ffn_down_exps.weight"]
    imatrix = read_imatrix(write(tmp_path / "a.gguf", entries))
    tensors = tensors_of(MOE)
    check_fits(imatrix, tensors)
    (sentence,) = rounded_plainly(imatrix, tensors)
    assert "blk.1.ffn_down_exps.weight" in sentence
    assert "blk.0.ffn_down_exps.weight (expert 2)" in sentence
    assert "attn" not in sentence
    assert imatrix.importance("blk.1.ffn_down_exps.weight", 0) is None


def test_a_complete_one_needs_no_word(tmp_path: Path) -> None:
    imatrix = read_imatrix(write(tmp_path / "a.gguf", entries_of(DENSE)))
    assert rounded_plainly(imatrix, tensors_of(DENSE)) == ()


def test_binary_form_has_sums_of_zero_for_an_expert_that_saw_nothing(tmp_path: Path) -> None:
    """It has one count for all experts, so only the sums tell."""
    sums = np.ones((3, 768), np.float32)
    sums[1] = 0
    entry = ImatrixEntry(sums, np.array([64, 64, 64]))
    assert [entry.has_seen(expert) for expert in range(3)] == [True, False, True]
    np.testing.assert_array_equal(entry.mean(1), np.ones(768))


def test_an_export_goes_on_and_says_so(tmp_path: Path, model_folder: Callable[[str], Path]) -> None:
    model = load(model_folder("moe"))
    tensors = gguf_tensors(model.graph)
    entries = {
        tensor.name: ImatrixEntry(
            np.ones((len(tensor.members), tensor.columns), np.float32), np.full(len(tensor.members), 5)
        )
        for tensor in tensors
        if tensor.layer is not None and not is_always_f32(tensor) and tensor.name != "blk.0.ffn_down_exps.weight"
    }
    entries["blk.1.ffn_up_exps.weight"].count_E[3] = 0
    options = GgufOptions(imatrix=write(tmp_path / "a.gguf", entries))
    plan = prepare(model, find_recipe("q4_k_m"), out=tmp_path / "m.gguf", options=options)
    (remark,) = plan.remarks
    assert "blk.0.ffn_down_exps.weight" in remark
    assert "blk.1.ffn_up_exps.weight (expert 3)" in remark
    emit(plan.files)
    assert (tmp_path / "m.gguf").stat().st_size == plan.num_bytes
