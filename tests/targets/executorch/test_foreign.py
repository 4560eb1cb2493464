"""Programs that other tools wrote: what they say of themselves is shown, and what they compute is reported."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("executorch")

from qwen3_export import api
from qwen3_export.checkpoint.model import Model, load
from qwen3_export.errors import ExportError
from qwen3_export.targets.executorch.inspect import inspect
from qwen3_export.targets.executorch.lint import lint_executorch


class Plain(nn.Module):
    """No language model at all."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)  # type: ignore[no-any-return]


class Small(nn.Module):
    """Tokens and a position, as ExecuTorch's own export takes them, and any number of logits."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(8192, 8), nn.Linear(8, outputs)

    def forward(self, tokens: Tensor, input_pos: Tensor) -> Tensor:
        return self.head(self.embed(tokens)[:, -1] + input_pos.float())  # type: ignore[no-any-return]


PROGRAMS: dict[str, tuple[Callable[[], nn.Module], tuple[Tensor, ...], str, dict[str, Any]]] = {
    "plain": (Plain, (torch.zeros(1, 4),), "forward", {}),
    "no_forward": (Plain, (torch.zeros(1, 4),), "encode", {}),
    "other_vocabulary": (
        lambda: Small(100),
        (torch.zeros(1, 1, dtype=torch.long), torch.zeros(1, dtype=torch.long)),
        "forward",
        {"get_max_seq_len": 64, "get_max_context_len": 128, "get_eos_ids": [7, 8]},
    ),
    "says_little": (
        lambda: Small(8192),
        (torch.zeros(1, 1, dtype=torch.long), torch.zeros(1, dtype=torch.long)),
        "forward",
        {"get_max_seq_len": 64},
    ),
}


@pytest.fixture(scope="module")
def model(model_folder: Callable[[str], Path]) -> Model:
    return load(model_folder("tied"))


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """One of PROGRAMS, written by ExecuTorch's own functions."""
    root = tmp_path_factory.mktemp("foreign")

    @cache
    def make(name: str) -> Path:
        from executorch.exir import to_edge

        torch.manual_seed(0)
        module, inputs, method, constants = PROGRAMS[name]
        exported = torch.export.export(module().eval(), inputs)
        path = root / f"{name}.pte"
        with path.open("wb") as file:
            to_edge({method: exported}, constant_methods=constants).to_executorch().write_to_file(file)
        return path

    return make


def test_inspect_shows_what_a_program_says(program: Callable[[str], Path]) -> None:
    plain = inspect(program("plain")).facts
    assert plain["forward"] == "takes fp32 [1, 4]; gives fp32 [1, 3]"
    assert "another tool" in str(plain["written by"])
    assert inspect(program("no_forward")).facts["encode"] == "takes fp32 [1, 4]; gives fp32 [1, 3]"
    other = inspect(program("other_vocabulary")).facts
    assert other["forward"] == "takes int64 [1, 1], int64 [1]; gives fp32 [1, 100]"
    assert (other["get_max_seq_len"], other["get_eos_ids"]) == (64, [7, 8])


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("plain", "ExecuTorch cannot run the program"),
        ("no_forward", "has no method forward; its methods are encode"),
        ("other_vocabulary", "forward gives logits for 100 tokens, the checkpoint has 8192"),
    ],
)
def test_a_check_of_what_cannot_be_run_ends_in_a_report(
    program: Callable[[str], Path], model: Model, name: str, told: str
) -> None:
    report = api.check(program(name), model)
    assert report.verdict == "fail"
    assert any(told in reason for reason in report.reasons), report.reasons


def test_a_program_that_says_little_is_compared_by_what_it_computes(
    program: Callable[[str], Path], model: Model
) -> None:
    """Nothing is held against it that it does not say."""
    report = api.check(program("says_little"), model)
    assert report.verdict == "not_run", report.reasons
    assert report.end_to_end.mean_kld is not None
    findings = list(lint_executorch(program("says_little"), model.graph, model.tokenizer))
    assert not [found for found in findings if found.is_error and "method" in found.text]
    assert any("is not known" in found.text for found in findings)


@pytest.mark.parametrize(("name", "told"), [("plain", "get_max_seq_len"), ("no_forward", "has no method forward")])
def test_lint_says_what_runners_miss(program: Callable[[str], Path], model: Model, name: str, told: str) -> None:
    findings = [found for found in lint_executorch(program(name), model.graph, model.tokenizer) if found.is_error]
    assert any(told in found.text for found in findings)


@pytest.mark.parametrize("name", ["plain", "no_forward"])
def test_run_refuses_in_one_sentence(program: Callable[[str], Path], model: Model, name: str) -> None:
    with pytest.raises(ExportError, match=r"has no method forward|does not say how long its context is"):
        api.generate(program(name), "Hi", model=model, max_new_tokens=2)
