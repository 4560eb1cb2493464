"""Write docs/cli.md from the commands' own --help; ``--check`` fails if the file is out of date.

python docs/make_cli.py [--check]
"""

from __future__ import annotations

import sys
from pathlib import Path

import typer
from typer.testing import CliRunner

from qwen3_export.cli.main import app

PAGE = Path(__file__).with_name("cli.md")
WIDTH = "100"


def render() -> str:
    """The page: a section for the program and one for each command."""
    names = [command.name for command in typer.main.get_group(app).commands.values()]
    sections = ["# Command line", "Generated from `--help` by `docs/make_cli.py`."]
    for arguments in ([], *([name] for name in names)):
        result = CliRunner().invoke(
            app, [*arguments, "--help"], prog_name="qwen3-export", env={"COLUMNS": WIDTH, "NO_COLOR": "1"}
        )
        title = " ".join(["qwen3-export", *arguments])
        body = "\n".join(line.rstrip() for line in result.output.strip().splitlines())
        sections.append(f"## {title}\n\n```\n{body}\n```")
    return "\n\n".join(sections) + "\n"


def main() -> None:
    page = render()
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(page, encoding="utf-8")
    elif not PAGE.exists() or PAGE.read_text(encoding="utf-8") != page:
        sys.exit("docs/cli.md is out of date; run: python docs/make_cli.py")


if __name__ == "__main__":
    main()
