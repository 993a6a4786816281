import subprocess

import pytest

from pipeline.page.metrics import Metrics
from pipeline.page.options import Watched
from pipeline.stages.stage_timer import StageTimer
from pipeline.stages.telemetry import CORRUPT, NEWER, State, Telemetry


@pytest.fixture
def metrics():
    yard, gate = Telemetry("yard"), Telemetry('gate "2"\n', State.RECONNECTING)
    for age_ms in (20.0, 30.0, 40.0):
        yard.came_in()
        yard.went_out(age_ms, stale=age_ms < 35, not_finite=age_ms > 20)
    yard.came_in()
    yard.drop(NEWER)
    yard.drop(CORRUPT, 0)
    timer = StageTimer()
    timer.add("engine", 10.0)
    timer.add("engine", 30.0)
    about = {"version": "0.1.0", "model": "u2netp", "backend": "ONNX Runtime"}
    run = Watched({}, about=about, timer=timer)
    return Metrics(lambda: [yard.snapshot(), gate.snapshot()], lambda: 2, run).text().decode()


def test_what_is_counted(metrics):
    lines = metrics.splitlines()
    for line in (
        'edgemask_frames_total{source="yard"} 3.0',
        'edgemask_frames_received_total{source="yard"} 4.0',
        'edgemask_frames_not_finite_total{source="yard"} 2.0',
        'edgemask_frames_not_finite_total{source="gate \\"2\\"\\n"} 0.0',
        'edgemask_frames_stale_total{source="yard"} 2.0',
        'edgemask_frames_dropped_total{reason="newer",source="yard"} 1.0',
        'edgemask_frames_dropped_total{reason="stopped",source="yard"} 0.0',
        'edgemask_frame_age_seconds{quantile="0.5",source="yard"} 0.03',
        'edgemask_source_state{source="yard",state="running"} 1.0',
        'edgemask_source_state{source="yard",state="stalled"} 0.0',
        'edgemask_source_state{source="gate \\"2\\"\\n",state="reconnecting"} 1.0',
        'edgemask_stage_seconds_count{stage="engine"} 2.0',
        'edgemask_stage_seconds_sum{stage="engine"} 0.04',
        "edgemask_viewers 2.0",
        'edgemask_build_info{backend="ONNX Runtime",model="u2netp",version="0.1.0"} 1.0',
    ):
        assert line in lines


def test_a_source_without_frames_has_no_age_and_is_idle_from_the_first_second(metrics):
    of_gate = [line for line in metrics.splitlines() if "gate" in line]
    assert not [line for line in of_gate if line.startswith("edgemask_frame_age")]
    assert len([line for line in of_gate if line.startswith("edgemask_frame_idle_seconds{")]) == 1


def test_outputs_that_have_stopped_are_counted():
    metrics = Metrics(list, lambda: 0, Watched({}, outputs=lambda: ["rec.mp4: recording stopped"])).text().decode()
    assert "\nedgemask_outputs_stopped 1.0\n" in metrics


@pytest.mark.needs_program("promtool")
def test_promtool_finds_nothing_to_complain_of(metrics):
    done = subprocess.run(["promtool", "check", "metrics"], input=metrics, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


AUDITS = {
    "total": 12,
    "skipped_by": {"busy": 3, "load": 0},
    "below": True,
    "count": 10,
    "mean": 0.97,
    "low": 0.95,
    "worst": 0.9,
    "gate": 0.99,
    "mae": 0.01,
    "empties": 1,
}


def test_audits():
    lines = Metrics(list, lambda: 0, Watched({}, audit=lambda: AUDITS)).text().decode().splitlines()
    for line in (
        "edgemask_audits_total 12.0",
        'edgemask_audits_skipped_total{reason="busy"} 3.0',
        'edgemask_audits_skipped_total{reason="load"} 0.0',
        "edgemask_audit_below_gate 1.0",
        "edgemask_audit_iou_mean 0.97",
        "edgemask_audit_iou_low 0.95",
        "edgemask_audit_iou_worst 0.9",
        "edgemask_audit_iou_gate 0.99",
        "edgemask_audit_mae 0.01",
        "edgemask_audit_empties 1.0",
    ):
        assert line in lines


def test_before_the_first_audit_nothing_is_said_of_the_agreement():
    none_yet = AUDITS | {"count": 0, "below": False, "mean": None, "low": None, "worst": None, "mae": None}
    text = Metrics(list, lambda: 0, Watched({}, audit=lambda: none_yet)).text().decode()
    assert "edgemask_audit_below_gate 0.0" in text
    assert "edgemask_audit_iou" not in text
    assert "edgemask_audit" not in Metrics(list, lambda: 0, Watched({})).text().decode()
