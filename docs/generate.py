"""Write what the docs take from the code: the command line's help, and one line for each source file.

    python docs/generate.py [--check]

``docs/cli.md`` is the commands' own ``--help``; ``docs/files.md`` is the first sentence of every module. ``--check``
writes nothing and fails if a page is out of date.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import typer
from typer.testing import CliRunner

from qwen3_export.cli.main import app

DOCS = Path(__file__).parent
FOLDERS = ("qwen3_export", "quantizers", "calibration", "targets")
WIDTH = "100"


def render_cli() -> str:
    """A section for the program and one for each command."""
    names = [command.name for command in typer.main.get_group(app).commands.values()]
    sections = ["# Command line", "Generated from `--help` by `docs/generate.py`."]
    for arguments in ([], *([name] for name in names)):
        result = CliRunner().invoke(
            app, [*arguments, "--help"], prog_name="qwen3-export", env={"COLUMNS": WIDTH, "NO_COLOR": "1"}
        )
        title = " ".join(["qwen3-export", *arguments])
        body = "\n".join(line.rstrip() for line in result.output.strip().splitlines())
        sections.append(f"## {title}\n\n```\n{body}\n```")
    return "\n\n".join(sections) + "\n"


def render_files() -> str:
    """The first sentence of every module."""
    lines = "\n".join(file_lines())
    return f"# Files\n\nGenerated from the modules' docstrings by `docs/generate.py`; see architecture.md.\n\n{lines}\n"


def file_lines() -> Iterator[str]:
    for folder in FOLDERS:
        for path in sorted((DOCS.parent / folder).rglob("*.py")):
            sentence = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0]
            yield f"- `{path.relative_to(DOCS.parent)}`: {sentence}"


PAGES = {"cli.md": render_cli, "files.md": render_files}


def main() -> None:
    stale = []
    for name, render in PAGES.items():
        path, page = DOCS / name, render()
        if not path.exists() or path.read_text(encoding="utf-8") != page:
            stale.append(name)
            if "--check" not in sys.argv[1:]:
                path.write_text(page, encoding="utf-8")
    if stale and "--check" in sys.argv[1:]:
        sys.exit(f"{', '.join(stale)} out of date; run: python docs/generate.py")


if __name__ == "__main__":
    main()
