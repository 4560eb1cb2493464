"""Compare two artifacts of a model by domain and language, on short texts that were written for this and nothing else.

    python benchmarks/domains.py --model demo --files A.gguf B.gguf [--windows WINDOWS.json --sources wiki=FILE …]

For each group: the mean KL divergence of each artifact's values from the checkpoint, in fp32 arithmetic, and the paired
difference in percent with its 95 % interval, clustered by document (intervals.py). Texts are those of
benchmarks/texts, each a document of its own: prose in ten languages, code, dialogues with and without thinking, tool
calls. Dialogues are rendered by the checkpoint's own chat template; one that knows no tools (the demo's) shows only
what is said. WINDOWS are held-out windows as in quality.py; each of their sources is one more group, and ``--sources``
has the files that tell where documents begin (window_documents.py).

An artifact may be of any target. Groups of four or five documents are there to find a language that is hurt, not to
rank artifacts: their intervals are wide, and hold the truth in 7 of 8 cases rather than in 19 of 20.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation import klds_by_text, read_windows
from intervals import Difference, paired_difference
from window_documents import documents_of, source_file

from qwen3_export import api
from qwen3_export.checkpoint.model import Model, load

TEXTS = Path(__file__).parent / "texts"
# A language of a domain is shown by itself if it has this many documents.
LEAST_DOCUMENTS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """One window: its tokens, its document, and what it is about; held-out windows have no language."""

    domain: str
    language: str
    document: str
    ids: Sequence[int]


def main() -> None:
    arguments = _arguments()
    model = load(arguments.model)
    texts = [*read_texts(model)]
    if arguments.windows is not None:
        texts += _held_out(arguments.windows, model, dict(arguments.sources))
    losses = [
        klds_by_text(model.graph, api.read(file, model), [text.ids for text in texts]) for file in arguments.files
    ]
    print(f"| group | documents | tokens | {' | '.join(file.name for file in arguments.files)} | difference |")
    print("|---|---|---|---|---|---|")
    for name, chosen in groups(texts).items():
        found = _compared(texts, losses, chosen)
        tokens = sum(len(texts[i].ids) for i in chosen)
        print(f"| {name} | {found.documents} | {tokens:,} | {found.before:.2e} | {found.after:.2e} | {found} |")


def read_texts(model: Model, folder: Path = TEXTS) -> Iterator[Text]:
    """The texts of a folder, each a document."""
    for path in sorted(folder.glob("*.jsonl")):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            entry = json.loads(line)
            ids = model.tokenizer.encode(_rendered(entry, model))
            document = f"{path.stem} {number}"
            yield Text(domain=entry["domain"], language=entry["language"], document=document, ids=ids)


def groups(texts: Sequence[Text]) -> dict[str, list[int]]:
    """The numbers of each group's texts: every domain, and under it the languages with enough documents."""
    found: dict[str, list[int]] = {}
    for domain in dict.fromkeys(text.domain for text in texts):
        found[domain] = [i for i, text in enumerate(texts) if text.domain == domain]
        languages = dict.fromkeys(texts[i].language for i in found[domain])
        for language in languages if len(languages) > 1 else ():
            chosen = [i for i in found[domain] if texts[i].language == language]
            if len(chosen) >= LEAST_DOCUMENTS:
                found[f"{domain}: {language}"] = chosen
    return found


def _compared(texts: Sequence[Text], losses: Sequence[Sequence[float]], chosen: Sequence[int]) -> Difference:
    """Languages of a group are strata of the same weight."""
    strata: dict[str, list[int]] = {}
    for i in chosen:
        strata.setdefault(texts[i].language, []).append(i)
    if any(len(found) < 2 for found in strata.values()):  # nothing could be drawn again within a language
        strata = {"": list(chosen)}
    before, after = ({name: [side[i] for i in found] for name, found in strata.items()} for side in losses)
    documents = {name: [texts[i].document for i in found] for name, found in strata.items()}
    return paired_difference(before, after, documents)


def _held_out(path: Path, model: Model, files: Mapping[str, Path]) -> Iterator[Text]:
    windows = read_windows(path, model, per_source=None)
    for source, labels in documents_of(windows, model, files).items():
        for ids, label in zip(windows[source], labels, strict=True):
            yield Text(domain=f"held-out {source}", language="", document=f"{source} {label}", ids=ids)


def _rendered(entry: Mapping[str, Any], model: Model) -> str:
    if "text" in entry:
        return str(entry["text"])
    return model.tokenizer.render(
        entry["messages"],
        enable_thinking=entry.get("enable_thinking"),
        add_generation_prompt=False,
        tools=entry.get("tools"),
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--files", nargs=2, type=Path, required=True, metavar=("BEFORE", "AFTER"))
    parser.add_argument("--windows", type=Path)
    parser.add_argument("--sources", nargs="+", type=source_file, default=[], metavar="NAME=FILE")
    return parser.parse_args()


if __name__ == "__main__":
    main()
