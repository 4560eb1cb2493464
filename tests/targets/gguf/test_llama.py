"""llama.cpp behind its one file: every position's logits, chunks, tokens, and clear refusals."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tokens import random_tokens

from qwen3_export.checkpoint.model import Model, load
from qwen3_export.errors import CheckpointError, MissingExtraError
from qwen3_export.reference.model import Place, Site, forward, logits
from qwen3_export.targets.gguf import llama
from qwen3_export.targets.gguf.divergence import observe_sites, site_of
from qwen3_export.targets.gguf.emit import emit
from qwen3_export.targets.gguf.export import prepare
from qwen3_export.targets.gguf.recipes import find_recipe

pytest.importorskip("llama_cpp")

# Sums of fp32 in another order; logits reach 20.
LOGIT_TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def demo(demo_folder: Path) -> Model:
    return load(demo_folder)


@pytest.fixture(scope="module")
def f32_file(demo: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("llama") / "f32.gguf"
    emit(prepare(demo, find_recipe("f32"), out=path).files)
    return path


def test_prefill_chunks_and_tokens_equal_the_reference(demo: Model, f32_file: Path) -> None:
    tokens = random_tokens(20)
    expected = logits(demo.graph, tokens).numpy()
    with llama.open_model(f32_file, threads=1) as model, model.session(positions=64, is_exact=True) as session:
        assert model.vocab_size == demo.graph.config.vocab_size
        np.testing.assert_allclose(session.logits(tokens.tolist()), expected, atol=LOGIT_TOLERANCE)
        for chunk in (1, 7, 20):
            found = np.concatenate([part.copy() for part in session.run(tokens.tolist(), chunk=chunk)])
            np.testing.assert_allclose(found, expected, atol=LOGIT_TOLERANCE)


def test_tokenizes_chat_markup_as_the_checkpoint_does(demo: Model, f32_file: Path) -> None:
    text = "<|im_start|>user\nZwölf naïve Füchse, 12 + 5 = 17? 你好 🙂<|im_end|>\n<think>\n\n</think>\n\n"
    with llama.open_model(f32_file, vocabulary_only=True) as model:
        assert model.tokenize(text) == demo.tokenizer.encode(text)
        assert model.tokenize("") == []
        assert model.eos_token_id == demo.tokenizer.generation.eos_token_ids[0]


def test_hidden_states_are_seen_where_the_reference_shows_them(demo: Model, f32_file: Path) -> None:
    tokens = random_tokens(9)
    expected: dict[Site, np.ndarray] = {}
    forward(demo.graph, [tokens], observe=lambda site, _, x: expected.update({site: x.clone().numpy()}))
    with llama.open_model(f32_file, threads=1) as model:
        found = observe_sites(model, tokens.tolist())
    # llama.cpp has no name for what attention adds.
    assert {site for site in expected if site.place is not Place.ATTENTION} == found.keys()
    for site, values in found.items():
        reference = expected[site].ravel()
        assert np.linalg.norm(values - reference) <= 1e-5 * np.linalg.norm(reference), site


def test_an_error_in_an_observer_is_raised(f32_file: Path) -> None:
    def fail(_name: str, _values: np.ndarray) -> None:
        raise RuntimeError("seen")

    with (
        llama.open_model(f32_file, threads=1) as model,
        model.session(positions=8, is_exact=True, observer=fail) as session,
        pytest.raises(RuntimeError, match="seen"),
    ):
        session.logits([1, 2, 3])


def test_a_file_that_is_no_gguf_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "text.gguf"
    path.write_text("not a model", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"text.gguf: llama.cpp cannot load it \(.*magic"), llama.open_model(path):
        pass


def test_a_missing_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    llama._library.cache_clear()
    try:
        with pytest.raises(MissingExtraError, match=r"qwen3-export\[llama\]"), llama.open_model(tmp_path / "x.gguf"):
            pass
    finally:
        llama._library.cache_clear()


def test_site_names() -> None:
    assert site_of("l_out-12") == Site(Place.OUTPUT, 12)
    assert site_of("result_norm") == Site(Place.FINAL)
    assert site_of("Kcur-0 (view)") is None
    assert site_of("node_32") is None


def test_logits_are_overwritten_by_the_next_call(f32_file: Path) -> None:
    """Documented: whoever keeps them copies them."""
    with llama.open_model(f32_file, threads=1) as model, model.session(positions=8, is_exact=True) as session:
        first = session.logits([1, 2, 3]).copy()
        assert torch.equal(torch.from_numpy(session.logits([1, 2, 3]).copy()), torch.from_numpy(first))
