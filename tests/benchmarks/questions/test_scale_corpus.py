"""The part of ``python -m benchmarks scale`` that is about a corpus."""

import importlib.util


def test_each_way_is_measured_or_told_why_not(asked, red_bundle):
    entries, printed = asked("scale", "--parts", "corpus", "--model", red_bundle.folder, "--pictures", 3, "--runs", 1)
    rows = {row["way"]: row for row in entries["table"]["corpus"]}
    assert rows.keys() == {"one worker", "two workers", "two shards at once", "Ray, two workers", "again, all done"}
    has_ray = importlib.util.find_spec("ray") is not None
    assert ("seconds" in rows["Ray, two workers"]) == ("corpus_ray_over_shards" in entries["ratios"]) == has_ray
    assert all(row["seconds"] > 0 for row in rows.values() if "left_out" not in row)
    two, one = rows["one worker"]["seconds"], rows["two workers"]["seconds"]
    assert abs(entries["ratios"]["corpus_two_workers_over_one"] - two / one) < 0.05
    assert f"| one worker | {rows['one worker']['seconds']:.1f} |" in printed
