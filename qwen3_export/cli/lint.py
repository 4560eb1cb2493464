"""``qwen3-export lint``: will the programs that load it take this artifact?  In seconds, without running it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qwen3_export.cli.options import ModelOption, OfflineOption, RevisionOption
from qwen3_export.cli.wording import as_options
from qwen3_export.files.shown import on_one_line

EPILOG = """Examples:

  qwen3-export lint demo-q4_k_m.gguf --model demo

  qwen3-export lint app/onnx --model Qwen3-0.6B --json lint.json
"""


def lint(
    artifact: Annotated[Path, typer.Argument(help="A file or folder of any target, ours or another tool's.")],
    model: ModelOption,
    json: Annotated[Path | None, typer.Option("--json", help="Write the findings.", show_default=False)] = None,
    revision: RevisionOption = None,
    offline: OfflineOption = False,
) -> None:
    """Compare names, shapes, numbers and documents with the checkpoint, for each consumer; exit with 3 on errors."""
    from qwen3_export.checkpoint.model import load
    from qwen3_export.files.atomic import check_output, write_text
    from qwen3_export.files.recognise import is_lint
    from qwen3_export.targets.lint import lint_artifact
    from qwen3_export.targets.registry import target_of

    if json is not None:
        check_output(json, overwrite=True, is_ours=is_lint, inputs=[artifact])
    found = lint_artifact(target_of(artifact), artifact, load(model, revision=revision, offline=offline))
    for finding in found.findings:
        kind = "error" if finding.is_error else "note"
        print(on_one_line(f"{kind}: {', '.join(finding.consumers)}: {as_options(finding.text)}"))
    for consumer in found.consumers:
        errors = len(found.errors_of(consumer))
        print(f"{consumer}: {'ok' if not errors else f'{errors} error' + 's' * (errors > 1)}")
    if json is not None:
        from dataclasses import asdict
        from json import dumps

        text = dumps({"artifact": artifact.name, **asdict(found)}, indent=2, ensure_ascii=False) + "\n"
        write_text(json, text, overwrite=True, is_ours=is_lint)
    if not found.is_clean:
        raise typer.Exit(3)


lint.__doc__ = f"{lint.__doc__}\n\n{EPILOG}"
