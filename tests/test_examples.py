"""The workflow in examples/ does what it says, run step by step with the demo as its model."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

WORKFLOW = Path(__file__).parents[1] / "examples" / "github" / "parity.yml"


def test_the_workflow_s_steps_run(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    workflow = yaml.safe_load(WORKFLOW.read_text())
    steps = [step["run"] for step in workflow["jobs"]["parity"]["steps"] if "qwen3-export " in step.get("run", "")]
    assert [step.split()[1] for step in steps if step.startswith("qwen3-export")] == ["gguf", "lint", "check", "report"]
    assert set(workflow["env"]) == {"MODEL", "QUANT"}
    summary = tmp_path / "summary.md"
    scripts = Path(sys.executable).parent
    environment = os.environ | {
        "MODEL": "demo",
        "QUANT": "q8_0",
        "GITHUB_STEP_SUMMARY": str(summary),
        "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
    }
    for step in steps:
        if step.startswith("qwen3-export"):
            subprocess.run(["bash", "-e", "-c", step], check=True, cwd=tmp_path, env=environment, capture_output=True)
    assert {path.name for path in tmp_path.glob("parity.*")} == {"parity.json", "parity.xml", "parity.html"}
    assert "| gguf | q8_0 |" in summary.read_text()
