"""The part of ``python -m benchmarks scale`` that is about a corpus."""

import importlib.util
import os
import sys
from pathlib import Path

from benchmarks.questions.scale_corpus import _environment_with_ray

RAY = Path(os.environ.get("EDGEMASK_TEST_RAY") or Path(sys.prefix) / "ray")


def test_each_way_is_measured_or_told_why_not(asked, red_bundle):
    entries, printed = asked("scale", "--parts", "corpus", "--model", red_bundle.folder, "--pictures", 3, "--runs", 1)
    rows = {row["way"]: row for row in entries["table"]["corpus"]}
    assert rows.keys() == {"one worker", "two workers", "two shards at once", "Ray, two workers", "again, all done"}
    has_ray = importlib.util.find_spec("ray") is not None or (RAY / "ray").is_dir()
    assert ("seconds" in rows["Ray, two workers"]) == ("corpus_ray_over_shards" in entries["ratios"]) == has_ray
    assert all(row["seconds"] > 0 for row in rows.values() if "left_out" not in row)
    two, one = rows["one worker"]["seconds"], rows["two workers"]["seconds"]
    assert abs(entries["ratios"]["corpus_two_workers_over_one"] - two / one) < 0.05
    assert f"| one worker | {rows['one worker']['seconds']:.1f} |" in printed


def test_ray_is_found_where_the_tests_have_it(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/first")
    monkeypatch.setenv("RAY_ADDRESS", "somebody's")
    assert _environment_with_ray(str(tmp_path)) is None
    (tmp_path / "ray").mkdir()
    found = _environment_with_ray(str(tmp_path))
    assert found["PYTHONPATH"] == f"/first{os.pathsep}{tmp_path}"
    assert found["RAY_ADDRESS"] == "local"
    if importlib.util.find_spec("ray") is None:
        monkeypatch.setenv("EDGEMASK_TEST_RAY", str(tmp_path))
        assert _environment_with_ray(None) == {**found, "EDGEMASK_TEST_RAY": str(tmp_path)}
