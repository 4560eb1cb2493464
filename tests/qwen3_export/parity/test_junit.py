"""JUnit XML as Jenkins', GitLab's and GitHub's readers take it: the elements that they know, and counts that agree."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from reports import a_failing_report, a_report, an_unrun_report

from qwen3_export.parity.junit import save_junit, to_junit
from qwen3_export.parity.report import Gates, Report

CASES = ["conversion", "shipped", "quantization", "end_to_end", "decode", "metadata", "values"]
# element: attributes that must be there, elements that may be inside (Jenkins' junit-10.xsd, as far as used)
STRUCTURE = {
    "testsuites": ({"name", "tests", "failures", "errors", "skipped", "time"}, {"testsuite"}),
    "testsuite": (
        {"name", "tests", "failures", "errors", "skipped", "time"},
        {"properties", "testcase", "system-out"},
    ),
    "properties": (set(), {"property"}),
    "property": ({"name", "value"}, set()),
    "testcase": ({"name", "classname", "time"}, {"failure", "skipped", "system-out"}),
    "failure": ({"message", "type"}, set()),
    "skipped": ({"message"}, set()),
    "system-out": (set(), set()),
}


def parse(*reports: Report) -> ElementTree.Element:
    root = ElementTree.fromstring(to_junit(reports))
    for element in root.iter():
        attributes, children = STRUCTURE[element.tag]
        assert set(element.keys()) == attributes, element.tag
        assert {child.tag for child in element} <= children, element.tag
    for suite in [root, *root]:
        cases = list(suite.iter("testcase"))
        assert int(suite.get("tests")) == len(cases)
        assert int(suite.get("failures")) == sum(case.find("failure") is not None for case in cases)
        assert int(suite.get("skipped")) == sum(case.find("skipped") is not None for case in cases)
        assert float(suite.get("time")) > 0
    return root


def outcomes(suite: ElementTree.Element) -> dict[str, str]:
    """By case: pass, fail or skip."""
    found = {}
    for case in suite.iter("testcase"):
        is_failed, is_skipped = case.find("failure") is not None, case.find("skipped") is not None
        found[case.get("name")] = "fail" if is_failed else "skip" if is_skipped else "pass"
    return found


def test_a_suite_an_artifact_and_a_case_a_check() -> None:
    root = parse(a_report(), an_unrun_report())
    assert [suite.get("name") for suite in root] == ["demo-q4_k_m.gguf (gguf)", "demo-onnx-int4 (onnx)"]
    assert outcomes(root[0]) == dict.fromkeys(CASES, "pass")
    properties = {item.get("name"): item.get("value") for item in root[0].iter("property")}
    assert properties["version.python"] == "3.11.7"
    assert properties["bits_per_weight"] == "5.19"
    assert properties["size_bytes"] == "5500000"
    assert properties["positions"] == "256"
    assert properties["verdict"] == "pass"
    assert properties["conversion.mean_kld"] == "1.43e-12"


def test_failures_carry_their_reasons() -> None:
    (suite,) = parse(a_failing_report())
    expected = dict.fromkeys(CASES, "fail") | {"shipped": "pass", "quantization": "pass"}
    assert outcomes(suite) == expected | {"max_mean_kld": "fail", "min_top1": "pass"}
    text = {case.get("name"): case.findtext("failure") for case in suite.iter("testcase")}
    assert "1.06e-06 exceeds 1e-09" in text["conversion"]
    assert "layer 0 after_attention" in text["conversion"]
    assert "eps 1e-05" in text["conversion"]
    assert "layer_norm_rms_epsilon" in text["metadata"]
    assert "up_proj" in text["values"]
    assert text["max_mean_kld"] == "mean KLD inf is above the bound 0.01"


def test_what_was_not_run_is_skipped_and_says_why() -> None:
    (suite,) = parse(an_unrun_report())
    expected = dict.fromkeys(CASES, "skip") | dict.fromkeys(("quantization", "metadata", "values"), "pass")
    assert outcomes(suite) == expected | {"max_mean_kld": "skip"}
    assert "onnxruntime is not installed" in suite.find("testcase/skipped").get("message")
    assert outcomes(parse(replace(a_report(), sampled=None))[0])["values"] == "skip"


@pytest.mark.parametrize("bounds", [Gates(), Gates(max_p99_kld=1.0), Gates(max_mean_kld=1, max_p99_kld=1, min_top1=0)])
def test_a_case_for_every_bound_that_is_set(bounds: Gates) -> None:
    (suite,) = parse(replace(a_report(), bounds=bounds))
    asked = [name for name in ("max_mean_kld", "max_p99_kld", "min_top1") if getattr(bounds, name) is not None]
    assert outcomes(suite) == dict.fromkeys([*CASES, *asked], "pass")


def test_what_xml_cannot_hold_is_written_out(tmp_path: Path) -> None:
    told = "token '\x00\x1b\ud800' <&\"> 日本 😀"
    save_junit([replace(a_report(), metadata=(told,), artifact="\x07.gguf")], tmp_path / "parity.xml")
    root = ElementTree.parse(tmp_path / "parity.xml").getroot()
    assert root[0].get("name") == "\\x07.gguf (gguf)"
    assert root.find(".//failure").text == "token '\\x00\\x1b\\ud800' <&\"> 日本 😀"
