"""No command replaces a file that no export wrote, with or without --force."""

from __future__ import annotations

from pathlib import Path

import pytest

SHORT = ("--sequence-length", "32", "--samples", "8")


@pytest.mark.parametrize("name", ["notes.txt", "thesis.md"])
@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "x.gguf", "-m", "demo", "--json"),
        ("check", "x.gguf", "-m", "demo", "--html"),
        ("check", "x.gguf", "-m", "demo", "--junit"),
        ("lint", "x.gguf", "-m", "demo", "--json"),
        ("gguf", "-m", "demo", "--out"),
        ("gguf", "-m", "demo", "--force", "--out"),
        ("calibrate", "-m", "demo", "--out"),
        ("calibrate", "-m", "demo", "--force", "--out"),
        ("onnx", "-m", "demo", "--force", "--out"),
    ],
    ids=" ".join,
)
@pytest.mark.onnx
def test_the_users_file_survives(name: str, arguments: tuple[str, ...], run, tmp_path: Path) -> None:
    if "onnx" in arguments:
        pytest.importorskip("onnx_ir")
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    (tmp_path / name).write_text("mine")
    outcome = run(*arguments, name)
    assert outcome.code == 1
    assert outcome.err.splitlines()[-1].startswith(f"qwen3-export: {name}: ")
    assert (tmp_path / name).read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["x.gguf", name])


@pytest.mark.parametrize("beside", ["Modelfile", "m.report.json"])
def test_what_is_written_beside_a_gguf_file(beside: str, run, tmp_path: Path) -> None:
    (tmp_path / beside).write_text("mine")
    outcome = run("gguf", "-m", "demo", "--out", "m.gguf", "--modelfile", "--force")
    assert outcome.code == 1
    assert f"{beside}: was not written by an export" in outcome.err
    assert (tmp_path / beside).read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == [beside]


def test_an_importance_matrix_is_not_replaced_by_the_model_made_with_it(run, tmp_path: Path) -> None:
    assert run("calibrate", "-m", "demo", *SHORT, "--out", "i.gguf").code == 0
    before = (tmp_path / "i.gguf").read_bytes()
    outcome = run("gguf", "-m", "demo", "--imatrix", "i.gguf", "--out", "i.gguf", "--force", "--no-check")
    assert outcome.code == 1
    assert "i.gguf: is being read" in outcome.err
    assert (tmp_path / "i.gguf").read_bytes() == before


def test_a_model_and_an_importance_matrix_do_not_replace_each_other(run, tmp_path: Path) -> None:
    assert run("calibrate", "-m", "demo", *SHORT, "--out", "i.gguf").code == 0
    assert run("gguf", "-m", "demo", "--quant", "f16", "--out", "m.gguf", "--no-check").code == 0
    before = {name: (tmp_path / name).read_bytes() for name in ("i.gguf", "m.gguf")}
    for arguments in (("calibrate", "--out", "m.gguf"), ("gguf", "--no-check", "--out", "i.gguf")):
        outcome = run(*arguments, "-m", "demo", "--force")
        assert outcome.code == 1
        assert "was not written by an export like this one" in outcome.err
    assert {name: (tmp_path / name).read_bytes() for name in before} == before


def test_other_work_beside_an_export_survives(run, text: Path, tmp_path: Path) -> None:
    work = tmp_path / "m.gguf.work"
    work.mkdir()
    (work / "mine").write_text("mine")
    arguments = ("--method", "gptq", "--calibration", text, "--sequence-length", "64", "--no-check")
    assert run("gguf", "-m", "demo", "--quant", "q8_0", *arguments, "--out", "m.gguf").code == 0
    assert [path.name for path in work.iterdir()] == ["mine"]
