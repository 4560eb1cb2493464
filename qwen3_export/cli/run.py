"""``qwen3-export run``: a reply from any artifact through its real runtime, or from a checkpoint in fp32."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qwen3_export.cli.console import say
from qwen3_export.cli.interrupted import Interrupted
from qwen3_export.cli.options import OfflineOption, RevisionOption, ThreadsOption
from qwen3_export.errors import ExportError

if TYPE_CHECKING:
    from qwen3_export.generation.dialogue import Opening
    from qwen3_export.generation.generate import Generation
    from qwen3_export.generation.opened import Opened
    from qwen3_export.generation.replying import Prepared

EPILOG = """Examples:

  qwen3-export run demo-q4_k_m.gguf "What is the capital of France?"

  qwen3-export run demo-onnx-int4 "What is 17 + 5?" --no-think --greedy

  qwen3-export run demo "Spell the word cat backwards." --thinking-budget 64 --seed 7

  git diff | qwen3-export run Qwen3-1.7B-q4_k_m.gguf - --system "Summarize this change."
"""

STDIN = "-"


def run(
    subject: Annotated[
        str,
        typer.Argument(
            metavar="ARTIFACT|MODEL",
            help="A GGUF file, an exported folder (or the graph, program or package in it), or a model as for --model.",
            show_default=False,
        ),
    ],
    prompt: Annotated[
        str | None, typer.Argument(help="What to ask; - reads it from standard input.", show_default=False)
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", "-m", help="The checkpoint, for an artifact without tokenizer or template.", show_default=False
        ),
    ] = None,
    think: Annotated[
        bool | None,
        typer.Option("--think/--no-think", help="Think first; where the template can, it does.", show_default=False),
    ] = None,
    thinking_budget: Annotated[
        int | None,
        typer.Option("--thinking-budget", help="Close the thought after so many tokens.", min=0, show_default=False),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", "-n", help="Tokens at most.", min=1)] = 2048,
    temperature: Annotated[
        float | None, typer.Option("--temperature", help="0.6 thinking, else 0.7; 0 is greedy.", show_default=False)
    ] = None,
    top_k: Annotated[int | None, typer.Option("--top-k", help="20; 0 is no limit.", show_default=False)] = None,
    top_p: Annotated[float | None, typer.Option("--top-p", help="0.95 thinking, else 0.8.", show_default=False)] = None,
    min_p: Annotated[float | None, typer.Option("--min-p", help="0, which is no limit.", show_default=False)] = None,
    greedy: Annotated[bool, typer.Option("--greedy", help="Always the most probable token.")] = False,
    seed: Annotated[
        int | None, typer.Option("--seed", help="The same seed, the same reply.", min=0, show_default=False)
    ] = None,
    system: Annotated[str | None, typer.Option("--system", help="A system message.", show_default=False)] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Continue the prompt as plain text, without template.")] = False,
    threads: ThreadsOption = None,
    revision: RevisionOption = None,
    offline: OfflineOption = False,
) -> None:
    """Generate text from an artifact through its own runtime, or from a checkpoint in fp32.

    The text goes to standard output, all else to standard error. Sampling defaults are the makers' for each mode.
    """
    from qwen3_export.generation.replying import prepare
    from qwen3_export.parallel import use_threads

    _refuse_contradictions(raw=raw, system=system, think=think, budget=thinking_budget)
    asked = _read_prompt(prompt)
    chosen = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    chosen = _as_greedy(chosen) if greedy else chosen
    use_threads(threads)
    try:
        with _opened(subject, model, threads=threads, revision=revision, offline=offline) as opened:
            prepared = prepare(
                opened,
                asked,
                system=system,
                is_raw=raw,
                think=think,
                thinking_budget=thinking_budget,
                max_new_tokens=max_new_tokens,
                seed=seed,
                **chosen,
            )
            say(f"{subject}: {opened.runtime.name}; {_mode(prepared.opening)}, {_drawing(prepared)}")
            _reply(opened, prepared)
    except Interrupted as interrupted:  # told where the reply ends
        raise typer.Exit(interrupted.exit_code) from None


def _refuse_contradictions(*, raw: bool, system: str | None, think: bool | None, budget: int | None) -> None:
    for name, is_given in (("--system", system is not None), ("--think", think is not None)):
        if raw and is_given:
            raise ExportError(f"{name} is for dialogues, and --raw continues plain text; give one of them")
    if budget is not None and think is False:
        raise ExportError("--thinking-budget limits a thought, and --no-think has none; give one of them")


def _as_greedy(chosen: dict[str, float | int | None]) -> dict[str, float | int | None]:
    given = [f"--{name.replace('_', '-')}" for name, value in chosen.items() if value is not None]
    if given:
        raise ExportError(f"--greedy takes the most probable token, whatever {given[0]} says; give one of them")
    return {"temperature": 0.0}


def _read_prompt(prompt: str | None) -> str:
    """The argument, or standard input where it is ``-`` or missing; a terminal is not waited for without a word."""
    if prompt is None and sys.stdin.isatty():
        raise ExportError('there is no prompt; add one, such as "What is 17 + 5?", or - to type it')
    try:
        text = sys.stdin.read().removesuffix("\n") if prompt is None or prompt == STDIN else prompt
        text.encode()
    except UnicodeError as error:
        raise ExportError(f"the prompt is no text in UTF-8 ({error})") from error
    if not text.strip():
        raise ExportError("the prompt is empty; there is nothing to reply to")
    return text


@contextmanager
def _opened(
    subject: str, model: str | None, *, threads: int | None, revision: str | None, offline: bool
) -> Iterator[Opened]:
    from qwen3_export.checkpoint.model import load
    from qwen3_export.generation.reference import open_checkpoint
    from qwen3_export.targets.registry import is_artifact, open_artifact

    if is_artifact(subject):
        lent = None if model is None else load(model, revision=revision, offline=offline)
        with open_artifact(Path(subject), lent, threads=threads) as opened:
            yield opened
        return
    if model is not None:
        raise ExportError(f"{subject}: a checkpoint, which has its own tokenizer and template; leave --model away")
    with open_checkpoint(load(subject, revision=revision, offline=offline)) as opened:
        yield opened


def _reply(opened: Opened, prepared: Prepared) -> None:
    """Write the reply as it comes; at its end, or where it is interrupted, say how it went."""
    from qwen3_export.cli.replies import ReplyWriter
    from qwen3_export.generation.replying import generation

    num_prompt = len(prepared.tokens)
    with generation(opened, prepared) as steps:
        writer = ReplyWriter(sys.stdout, opened.speech.piece, is_inside=prepared.opening.is_inside)
        try:
            for step in steps:
                writer.add(step)
        except Interrupted:
            writer.end()
            say(f"interrupted; {_speed(steps, num_prompt)}")
            raise
        writer.end()
        say(f"{_ending(steps)}{_speed(steps, num_prompt)}")


def _mode(opening: Opening) -> str:
    return {None: "plain text", True: "thinking", False: "not thinking"}[opening.thinks]


def _drawing(prepared: Prepared) -> str:
    sampling = prepared.sampling
    return str(sampling) if sampling.is_greedy else f"{sampling}, seed {prepared.seed}"


def _ending(generation: Generation) -> str:
    """Why it ended, where that is not the end of the reply."""
    from qwen3_export.generation.generate import Ending

    thought = "the thought was closed by its budget; " if generation.was_cut_short else ""
    if generation.ending is Ending.LENGTH:
        return f"{thought}stopped after --max-new-tokens {generation.num_drawn}; "
    return f"{thought}stopped at the end of the context; " if generation.ending is Ending.CONTEXT else thought


def _speed(generation: Generation, num_prompt: int) -> str:
    """Tokens and tokens a second; the first drawn token costs nothing beyond the prompt."""
    parts = [f"prompt: {num_prompt} tokens"]
    if generation.prompt_seconds:
        parts[0] += f", {num_prompt / generation.prompt_seconds:.0f} a second"
    drawn = generation.num_drawn
    parts.append(f"reply: {drawn} tokens" + (f", {(drawn - 1) / generation.seconds:.1f} a second" if drawn > 1 else ""))
    return "; ".join(parts)


run.__doc__ = f"{run.__doc__}\n\n{EPILOG}"
