"""Parity reports as JUnit XML, which CI services such as GitHub, GitLab and Jenkins show beside a project's tests.

Each artifact is a test suite. It has a test case for each of the four numbers, for decoding, for the metadata, for the
values, and for each bound that the user set. A case that was not run is skipped, with the reason. The format has no
standard, so only elements that both Jenkins and GitLab read are used (testsuites > testsuite > properties, testcase >
failure, skipped).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from qwen3_export.files.atomic import write_text
from qwen3_export.files.recognise import JUNIT_NAME, is_junit
from qwen3_export.parity.metrics import Comparison
from qwen3_export.parity.report import NUMBERS, Report, number_text
from qwen3_export.parity.summary import describe_decode, describe_sampling

__all__ = ["Case", "cases", "save_junit", "to_junit"]

# Characters that XML 1.0 cannot hold, not even escaped
UNSPEAKABLE = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One test case.

    ``found`` says what was measured, ``failures`` has a sentence for each failure, and ``skipped`` says why the case
    was not run (None if it was).
    """

    name: str
    found: str
    failures: tuple[str, ...] = ()
    skipped: str | None = None


def save_junit(reports: Sequence[Report], path: Path, *, overwrite: bool = True) -> None:
    """Write reports as JUnit XML; they replace an earlier such file of ours, and no other (OutputError)."""
    write_text(path, to_junit(reports), overwrite=overwrite, is_ours=is_junit)


def to_junit(reports: Sequence[Report]) -> str:
    """The XML document, with a test suite for each report."""
    root = ElementTree.Element("testsuites", name=JUNIT_NAME)
    suites = [_suite(report) for report in reports]
    for name in ("tests", "failures", "errors", "skipped"):
        root.set(name, str(sum(int(suite.get(name, "0")) for suite in suites)))
    root.set("time", f"{sum(report.seconds for report in reports):.3f}")
    root.extend(suites)
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def cases(report: Report) -> Iterator[Case]:
    """The test cases of a report: the four numbers, decoding, metadata, values, then the user's bounds."""
    for name, meaning in NUMBERS.items():
        yield _number_case(report, name, meaning)
    yield _decode_case(report)
    yield Case(name="metadata", found=f"{len(report.metadata)} differences", failures=report.metadata)
    yield _values_case(report)
    for gate in report.bounds.each(report.end_to_end):
        yield Case(
            name=gate.name,
            found=f"{gate.quantity} {number_text(gate.value)}, bound {number_text(gate.bound)}",
            failures=() if gate.failure is None else (gate.failure,),
            skipped=_why_not_run(report) if gate.value is None else None,
        )


def _number_case(report: Report, name: str, meaning: str) -> Case:
    numbers: Comparison = getattr(report, name)
    found = f"{meaning}: mean KLD {number_text(numbers.mean_kld)}, bound {number_text(numbers.bound)}"
    if numbers.status == "not_run":
        return Case(name=name, found=found, skipped=_why_not_run(report))
    if numbers.status == "pass":
        return Case(name=name, found=found)
    gated = report.gates if name == "end_to_end" else ()
    failures = gated or (f"mean KLD {number_text(numbers.mean_kld)} exceeds {number_text(numbers.bound)}",)
    if name == "conversion" and report.first_divergence is not None:
        failures += tuple(reason for reason in report.reasons if reason.startswith("hidden states part"))
    return Case(name=name, found=found, failures=failures)


def _decode_case(report: Report) -> Case:
    found = describe_decode(report.decode)
    if report.decode.status == "not_run":
        return Case(name="decode", found=found, skipped=_why_not_run(report))
    return Case(name="decode", found=found, failures=(found,) if report.decode.status == "fail" else ())


def _values_case(report: Report) -> Case:
    if report.sampled is None:
        return Case(name="values", found="not read", skipped="the artifact's weights could not be read")
    found = f"{report.sampled.rows:,} of {report.sampled.rows_in_all:,} rows of {report.sampled.weights} weights"
    return Case(name="values", found=found, failures=report.values)


def _why_not_run(report: Report) -> str:
    if report.runtime.version is None:
        return f"{report.runtime.name} is not installed, so nothing was run"
    return "not run: the artifact could not be run, or there was nothing to run it on"


def _suite(report: Report) -> ElementTree.Element:
    found = list(cases(report))
    suite = ElementTree.Element("testsuite", name=_speakable(f"{report.artifact} ({report.target})"))
    suite.set("tests", str(len(found)))
    suite.set("failures", str(sum(bool(case.failures) for case in found)))
    suite.set("errors", "0")
    suite.set("skipped", str(sum(case.skipped is not None for case in found)))
    suite.set("time", f"{report.seconds:.3f}")
    properties = ElementTree.SubElement(suite, "properties")
    for name, value in _properties(report):
        ElementTree.SubElement(properties, "property", name=name, value=_speakable(value))
    for case in found:
        suite.append(_element(report, case))
    ElementTree.SubElement(suite, "system-out").text = _speakable(describe_sampling(report))
    return suite


def _element(report: Report, case: Case) -> ElementTree.Element:
    """A test case as XML. Its time is 0: all cases share one run, and the suite has its time."""
    classname = _speakable(f"qwen3-export.{report.target}.{report.artifact}")
    element = ElementTree.Element("testcase", classname=classname, name=case.name, time="0")
    if case.failures:
        failure = ElementTree.SubElement(element, "failure", message=_speakable(case.failures[0]), type="parity")
        failure.text = _speakable("\n".join(case.failures))
    elif case.skipped is not None:
        ElementTree.SubElement(element, "skipped", message=_speakable(case.skipped))
    ElementTree.SubElement(element, "system-out").text = _speakable(case.found)
    return element


def _properties(report: Report) -> Iterator[tuple[str, str]]:
    for name in ("target", "recipe", "method", "model", "verdict", "size_bytes", "positions", "peak_memory_bytes"):
        yield name, str(getattr(report, name))
    yield "bits_per_weight", f"{report.bits_per_weight:.4g}"
    yield "runtime", f"{report.runtime.name} {report.runtime.version or 'not installed'}"
    for name in NUMBERS:
        yield f"{name}.mean_kld", number_text(getattr(report, name).mean_kld)
    for name, version in report.versions.items():
        yield f"version.{name}", version


def _speakable(text: str) -> str:
    """The text with characters that XML cannot hold (control characters, lone surrogates) as Python escapes."""
    return UNSPEAKABLE.sub(lambda found: ascii(found.group())[1:-1], text)
