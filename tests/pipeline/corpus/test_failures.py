"""Failures of a corpus, which several shards write at the same time."""

import json

from pipeline.corpus.crew import Result
from pipeline.corpus.failures import Failures
from pipeline.corpus.shard import WHOLE


def test_a_failure_that_another_shard_takes_away_meanwhile_is_no_failure_of_the_disk(tmp_path):
    failures = Failures(str(tmp_path), WHOLE)
    failures.add(Result(1, "failed", "worker", path="/in/a.png", error="why", tries=2))
    (tmp_path / ".edgemask" / "failed" / f"{2:016x}.json").symlink_to("gone")  # listed, and not there when it is read
    assert json.loads(failures.list_all().read_text()) == {"source": "/in/a.png", "error": "why", "tries": 2}
