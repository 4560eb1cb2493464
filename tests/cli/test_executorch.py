"""qwen3-export executorch, as a user types it; what lowering gives is tested on single layers elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("executorch")


def test_dry_run_forecasts_and_writes_nothing(run, tmp_path: Path) -> None:
    outcome = run("executorch", "-m", "demo", "--embedding", "4", "--group-size", "128", "--dry-run")
    assert outcome.code == 0, outcome.err
    assert "lowering takes about" in outcome.err
    assert "the tied embedding is stored twice" in outcome.err
    assert "int4_g128_bf16" in outcome.out
    assert "lm_head" in outcome.out
    assert list(tmp_path.iterdir()) == []


def test_refusals(run, tmp_path: Path) -> None:
    for arguments, told in [
        (("--quant", "q4_k_m"), "not an ExecuTorch recipe"),
        (("--group-size", "100"), "--group-size 100: use one of 32, 64, 128, 256"),
        (("--max-seq-len", "4096"), "must be from 2 to the --context-length 2048"),
    ]:
        refused = run("executorch", "-m", "demo", *arguments)
        assert (refused.code, told in refused.err) == (1, True), refused.err
    (tmp_path / "taken").write_text("x")
    assert "a file" in run("executorch", "-m", "demo", "--out", tmp_path / "taken").err


def test_recipes_are_listed(run) -> None:
    assert "8da4w" in run("quants", "executorch").out


def test_sizes_that_no_choice_of_formats_has(run, tmp_path: Path) -> None:
    for arguments, told in (
        (("--size", "10K"), "--size 10K: the smallest formats take"),
        (("--bits-per-weight", "20"), "--bits-per-weight 20.0: the largest formats take"),
        (("--size", "1M", "--allocate"), "--allocate and --size exclude each other"),
    ):
        refused = run("executorch", "-m", "demo", *arguments, "-o", "c")
        assert refused.code == 1
        assert told in refused.err
        assert not (tmp_path / "c").exists()
