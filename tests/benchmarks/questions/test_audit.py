import pytest

import pipeline.audit.shadow_gate as shadow_gate
from benchmarks.__main__ import main


def test_pairs_of_passes(asked, clip, red_bundle, monkeypatch):
    monkeypatch.setattr(shadow_gate, "_LEAST_IDLE_CORES", -1.0)
    given = ("--clip", clip, "--model", red_bundle.folder, "--rate", "1/3", "--frames", 12, "--pairs", 3)
    entries, printed = asked("audit", *given)
    assert entries["question"] == "audit"
    assert [row["audit"] for row in entries["table"]] == ["off", "1/3"]
    assert all(row["hz"] > 0 and row["cpu_ms"] > 0 for row in entries["table"])
    assert len(entries["pairs"]) == 3
    # Each pass with audits has four frames that are due.
    assert entries["audits"] + entries["skipped"] == 12
    assert entries["audits"] >= 1
    assert f"audits: {entries['audits']} made, {entries['skipped']} skipped" in printed
    assert entries["ratios"].keys() == {"rate_with_over_without", "cpu_without_over_with"}


@pytest.mark.parametrize("rate", ["off", "auto"])
def test_there_must_be_a_rate(rate, capsys):
    assert main(["audit", "--rate", rate]) == 2
    assert f"--rate: expected a rate such as 1/10 or 1/min, got {rate}" in capsys.readouterr().err


def test_one_core_is_too_few(monkeypatch, capsys):
    monkeypatch.setattr("benchmarks.questions.audit.os.sched_getaffinity", lambda _: {0})
    assert main(["audit"]) == 2
    assert "expected two cores or more" in capsys.readouterr().err
