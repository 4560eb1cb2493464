"""Which tests may be skipped on a machine that has every extra, and a pytest option that fails on any other skip.

A test is skipped where what it needs is not installed. That is right on a developer's machine, and wrong in CI, where
it would hide that a runtime is missing or broken. With ``--no-unexpected-skips`` the session fails, and names each skip
whose reason is not in ``EXPECTED``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import pytest

__all__ = ["EXPECTED", "SkipGuard", "is_expected"]

# The reason of a skip (a regular expression for all of it) -> why CI's machine may skip for it
EXPECTED: Mapping[str, str] = {
    r"node is not installed": "nothing that pip installs",
    r"transformers\.js is not installed .+": "nothing that pip installs; CI installs it, and says so where that fails",
    r"needs QWEN3_EXPORT_OLD_ONNXRUNTIMES: .+": "other releases than the installed ones; CI runs them in a step",
    r"needs node, and QWEN3_EXPORT_TRANSFORMERS_JS: .+": "nothing that pip installs",
    r"a mixture of experts is tried once .+": "cases that nobody wants, of a product of parameters",
    r"chromium is not installed": "nothing that pip installs",
    r"could not import 'mlx\.core': No module named 'mlx'": "a peer to compare with, in none of the extras",
    r"could not import 'compressed_tensors\..+': No module named 'compressed_tensors'": "a peer, in none of the extras",
    r"this llama-cpp-python takes importance matrices as a C\+\+ map only": "some versions of llama-cpp-python do",
    r"nothing is unwritable for root": "containers run as root",
    r"reads its peak from /proc": "only Linux has it",
}


def is_expected(reason: str) -> bool:
    """Whether a skip for this reason is fine where every extra is installed."""
    return any(re.fullmatch(pattern, reason) for pattern in EXPECTED)


class SkipGuard:
    """Gathers skips that nobody expects, and fails the session for them."""

    def __init__(self) -> None:
        self.unexpected: dict[str, str] = {}  # test, file or folder -> reason

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if not hasattr(report, "wasxfail"):
            self._look(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._look(report)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.unexpected and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if not self.unexpected:
            return
        terminalreporter.section("unexpected skips", red=True)
        for where, reason in self.unexpected.items():
            terminalreporter.line(f"SKIPPED {where}: {reason}", red=True)
        terminalreporter.line("install what they need, or say in tests/skips.py why they may be skipped")

    def _look(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if not report.skipped:
            return
        told = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reason = told.removeprefix("Skipped: ")
        if not is_expected(reason):
            self.unexpected[report.nodeid] = reason


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--no-unexpected-skips",
        action="store_true",
        help="fail if a test is skipped for a reason that tests/skips.py does not list",
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--no-unexpected-skips") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(SkipGuard())
