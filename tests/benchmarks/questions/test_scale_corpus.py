"""The part of ``python -m benchmarks scale`` that is about a corpus."""

import importlib.util

from benchmarks.questions.scale_corpus import measure_corpus


def test_each_way_is_measured_or_told_why_not(red_bundle):
    times = measure_corpus(str(red_bundle.folder), pictures=3, runs=1)
    ways = {"one worker", "two workers", "two shards at once", "Ray, two workers", "again, all done"}
    assert times.seconds.keys() | times.left_out.keys() == ways
    assert all(seconds > 0 for seconds in times.seconds.values())
    has_ray = importlib.util.find_spec("ray") is not None
    assert ("Ray, two workers" in times.seconds) == ("corpus_ray_over_shards" in times.ratios) == has_ray
    assert times.ratios["corpus_two_workers_over_one"] > 0
    assert times.as_dict()["left_out"] == times.left_out
    assert len(times.table().splitlines()) == 2 + len(ways)
