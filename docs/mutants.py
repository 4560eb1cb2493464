"""Write docs/mutants.md: the files that tests break on purpose, for every target, and the check that caught each.

    python docs/mutants.py

runs the tests that break files, and writes the page from their notes. Takes some minutes, and needs every runtime.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parent.parent
TESTS = (
    "tests/targets/gguf/test_mutants.py",
    "tests/targets/onnx/test_mutants.py",
    "tests/targets/onnx/test_bounds.py",
    "tests/targets/executorch/test_executorch.py",
    "tests/targets/coreml/test_check.py",
    "tests/targets/coreml/test_bounds.py",
)
LONGEST = 170
TITLES = {"gguf": "GGUF", "onnx": "ONNX", "executorch": "ExecuTorch", "coreml": "Core ML"}
HEAD = """# What the check catches

The tests of each target break files on purpose, each in one way, and every one must be caught. `caught by` lists all
checks that failed. If hidden states can be seen (for ExecuTorch: from its logits), the first place where they differ is
named, and the known mistake that gives exactly what was found there. `python docs/mutants.py` writes this page.
"""


def main() -> None:
    rows = _run()
    lines = [HEAD]
    for target, title in TITLES.items():
        ours = [row for row in rows if row["target"] == target]
        lines += [
            f"## {title}: {len(ours)} of {len(ours)}",
            "",
            "| broken | caught by | where, and why |",
            "|---|---|---|",
        ]
        lines += [f"| {row['what']} | {', '.join(row['caught'])} | {_place(row)} |" for row in ours]
        lines.append("")
    (ROOT / "docs" / "mutants.md").write_text("\n".join(lines), encoding="utf-8")
    print(", ".join(f"{count} {target}" for target, count in Counter(row["target"] for row in rows).items()))


def _run() -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mutants.xml"
        command = [sys.executable, "-m", "pytest", "-q", f"--junitxml={path}", *TESTS]
        subprocess.run(command, cwd=ROOT, check=True)
        tree = ElementTree.parse(path)
    found = [json.loads(entry.attrib["value"]) for entry in tree.iter("property") if entry.attrib["name"] == "mutant"]
    missed = [row["what"] for row in found if not row["caught"]]
    if missed:
        raise SystemExit(f"not caught: {', '.join(missed)}")
    return found


def _place(row: dict[str, Any]) -> str:
    if row["place"] is None:
        told = re.sub(r"\S*/\S+: ", "", row["told"][0]) if row["told"] else ""  # without the test's own folders
        return (told if len(told) < LONGEST else f"{told[:LONGEST]} …").replace("|", "\\|")
    layer, site, cause = row["place"]
    where = site if layer is None else f"layer {layer} {site}"
    return where if cause is None else f"{where}: {cause}"


if __name__ == "__main__":
    main()
