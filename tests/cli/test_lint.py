"""qwen3-export lint, as a user types it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest


@pytest.mark.gguf
def test_a_sound_file_and_a_foreign_model(run, tmp_path: Path) -> None:
    assert run("gguf", "-m", "demo", "-q", "q8_0", "--no-check").code == 0
    outcome = run("lint", "demo-q8_0.gguf", "-m", "demo", "--json", "lint.json")
    assert outcome.code == 0, outcome.out
    assert outcome.out.splitlines() == ["llama.cpp: ok", "Ollama: ok", "LM Studio: ok"]
    document = json.loads((tmp_path / "lint.json").read_text())
    assert (document["target"], document["findings"]) == ("gguf", [])
    assert set(document["digests"]) == {"tokenizer.json", "chat template"}


@pytest.mark.gguf
def test_a_split_file_needs_a_modelfile_that_names_its_parts(run, tmp_path: Path) -> None:
    """Ollama merges the parts that FROM lines name."""
    command = ("gguf", "-m", "demo", "-q", "f32", "--split-max-size", "20M", "--no-check", "-o", "m.gguf")
    fine = ["llama.cpp: ok", "Ollama: ok", "LM Studio: ok"]
    assert run(*command).code == 0
    outcome = run("lint", "m-00001-of-00002.gguf", "-m", "demo")
    assert (outcome.code, outcome.out.splitlines()[-3:]) == (0, fine)
    assert "note: Ollama: the model is split into 2 files: 'ollama create' needs a FROM line for each" in outcome.out
    assert run(*command, "--modelfile", "--force").code == 0
    text = (tmp_path / "Modelfile").read_text()
    assert text.startswith("FROM ./m-00001-of-00002.gguf\nFROM ./m-00002-of-00002.gguf\n\nPARAMETER")
    assert run("lint", "m-00001-of-00002.gguf", "-m", "demo").out.splitlines() == fine
    (tmp_path / "Modelfile").write_text(text.replace("FROM ./m-00002-of-00002.gguf\n", ""))
    outcome = run("lint", "m-00001-of-00002.gguf", "-m", "demo")
    assert outcome.code == 3
    assert "error: Ollama: the Modelfile has no FROM line for m-00002-of-00002.gguf" in outcome.out


@pytest.mark.onnx
def test_onnx_folders(run, tmp_path: Path) -> None:
    pytest.importorskip("onnx_ir")
    assert run("onnx", "-m", "demo", "--no-check", "-o", "genai").code == 0
    assert run("lint", "genai", "-m", "demo").out == "onnxruntime-genai: ok\n"
    config = json.loads((tmp_path / "genai" / "genai_config.json").read_text())
    config["model"]["decoder"]["filename"] = "other.onnx"
    config["model"]["decoder"]["inputs"]["past_key_names"] = "past.%d.key"
    (tmp_path / "genai" / "genai_config.json").write_text(json.dumps(config))
    told = run("lint", "genai", "-m", "demo")
    assert told.code == 3
    assert 'names the graph "other.onnx", the folder holds model.onnx' in told.out
    assert 'names "past.0.key", which is none of the graph\'s inputs' in told.out
    assert run("onnx", "-m", "demo", "--flavour", "transformers.js", "--no-check", "-o", "web").code == 0
    assert run("lint", "web", "-m", "demo").out == "transformers.js: ok\n"
    web = json.loads((tmp_path / "web" / "config.json").read_text())
    web["transformers.js_config"] = {}
    (tmp_path / "web" / "config.json").write_text(json.dumps(web))
    assert "config.json says use_external_data_format 0" in run("lint", "web", "-m", "demo").out


@pytest.mark.coreml
def test_core_ml_folders(run, tmp_path: Path) -> None:
    pytest.importorskip("coremltools")
    assert run("coreml", "-m", "demo", "--no-check", "-o", "app").code == 0
    assert run("lint", "app", "-m", "demo").out == "swift-transformers: ok\n"
    (tmp_path / "app" / "tokenizer.json").unlink()
    assert "error: swift-transformers: tokenizer.json is missing" in run("lint", "app", "-m", "demo").out


def test_what_is_no_artifact(run, tmp_path: Path) -> None:
    assert run("lint", "nothing.gguf", "-m", "demo").code == 1
    shutil.copyfile(__file__, tmp_path / "text.gguf")
    refused = run("lint", "text.gguf", "-m", "demo")
    assert refused.code == 1
    assert "text.gguf" in refused.err
