"""Chat with an exported ExecuTorch folder: load it, apply the chat template, generate. Does not need qwen3-export.

    pip install executorch tokenizers jinja2
    python examples/executorch_chat.py Qwen3-0.6B-executorch-8da4w "What is the sea?" [--new 128] [--no-think]

An app does the same with the runners for iOS, Android or C++. model.pte itself tells which tokens end a turn, how
many positions it has and how many tokens one call takes. The caller applies the template.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import executorch.extension.llm.custom_ops.custom_ops
import executorch.kernels.quantized  # noqa: F401 (both register operators)
import jinja2
import torch
from executorch.runtime import Runtime
from tokenizers import Tokenizer


def main() -> None:
    arguments = _arguments()
    program = Runtime.get().load_program(str(arguments.folder / "model.pte"))
    tokenizer = Tokenizer.from_file(str(arguments.folder / "tokenizer.json"))
    template = (arguments.folder / "chat_template.jinja").read_text(encoding="utf-8")
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    prompt = environment.from_string(template).render(
        messages=[{"role": "user", "content": arguments.question}],
        add_generation_prompt=True,
        enable_thinking=not arguments.no_think,
    )
    given = tokenizer.encode(prompt, add_special_tokens=False).ids
    made: list[int] = []
    shown = ""
    for token in generate(program, given, limit=arguments.new):
        made.append(token)
        text = tokenizer.decode(made)
        if not text.endswith("\N{REPLACEMENT CHARACTER}"):  # an incomplete character waits for the rest
            print(text[len(shown) :], end="", flush=True)
            shown = text
    print()


def generate(program: Any, given: Sequence[int], *, limit: int) -> Iterator[int]:
    """Generate greedily until the turn ends, the cache is full, or ``limit``: the prompt in pieces, then single tokens.

    The last token is read from the cache's last position, and has no place there itself.
    """
    ends = {int(value) for value in _flat(program.load_method("get_eos_ids").execute([]))}
    room = int(_flat(program.load_method("get_max_context_len").execute([]))[0])
    if len(given) > room:
        sys.exit(f"{len(given)} tokens of prompt, where the program has room for {room}")
    forward = program.load_method("forward")
    piece = forward.metadata.input_tensor_meta(0).sizes()[1]  # tokens that one call takes
    position, tokens = 0, list(given)
    for _ in range(limit):
        while tokens:
            logits = forward.execute([torch.tensor([tokens[:piece]]), torch.tensor([position])])[0]
            position, tokens = position + len(tokens[:piece]), tokens[piece:]
        tokens = [int(logits[0].argmax())]
        if tokens[0] in ends:
            return
        yield tokens[0]
        if position >= room:
            print(f"\n(the program's {room} positions are full)", file=sys.stderr)
            return


def _flat(values: Sequence[Any]) -> list[Any]:
    return [number for value in values for number in (value if isinstance(value, (list, tuple)) else [value])]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("question")
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--no-think", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
