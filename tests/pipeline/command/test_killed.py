"""``kill -9`` at any moment of a run that records in segments and deletes old ones: what was there before is whole."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
WAIT_S = 60  # only a broken test waits so long
# EDGEMASK_KILLS=20 kills more often.
KILLS = int(os.environ.get("EDGEMASK_KILLS", "4"))
THEIRS = {"out-2024.mp4": b"a film of the user's own", "out-0000.mp4": b"another", "notes.txt": b"text"}

# A camera of 30 FPS, recorded in segments of half a second, of which four stay; it tells when each frame is written.
RECORDER = """
import sys, time
import numpy as np
from fractions import Fraction
from pipeline.frames.frame import Frame, SourceInfo
from pipeline.render.look import Look
from pipeline.render.overlay import Renderer
from pipeline.sinks.options import SinkOptions
from pipeline.sinks.recording import RecordingSink
options = SinkOptions(min_free_bytes=0, segment_s=0.5, keep_segments=4)
sink = RecordingSink(sys.argv[1], SourceInfo("cam", "", fps=Fraction(30), live=True), Renderer(Look(), "binary"), options)
noise = np.random.default_rng(0)
for index in range(100_000):
    time.sleep(0.002)
    image = noise.integers(0, 255, (64, 96, 3), np.uint8)
    sink.write(Frame(image, index, index / 30, "cam", "x", view=image))
    print(index, flush=True)
"""


def plays(path):
    command = ["ffprobe", "-v", "error", "-count_frames", "-show_entries", "stream=nb_read_frames", "-of", "json"]
    done = subprocess.run([*command, str(path)], capture_output=True, text=True, check=False)
    return done.returncode == 0 and int(json.loads(done.stdout)["streams"][0]["nb_read_frames"]) > 0


@pytest.mark.needs_program("ffprobe")
def test_kills_at_any_moment(tmp_path):
    for name, content in THEIRS.items():
        (tmp_path / name).write_bytes(content)
    moments = random.Random(7)
    for _ in range(KILLS):
        command = [sys.executable, "-c", RECORDER, str(tmp_path / "out.mp4")]
        job = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True)
        guard = threading.Timer(WAIT_S, job.kill)
        guard.start()
        last = moments.randrange(40, 160)  # some of the first segments are finished by then
        for line in job.stdout:
            if int(line) >= last:
                time.sleep(moments.uniform(0, 0.01))
                job.send_signal(signal.SIGKILL)
                break
        job.communicate()
        guard.cancel()
        assert job.returncode == -signal.SIGKILL
        recorded = sorted(path for path in tmp_path.glob("out-*.mp4") if path.name not in THEIRS)
        # The one that was being written may have no frame yet; every one before it plays.
        assert all(plays(path) for path in recorded[:-1]), recorded
        assert 1 <= len(recorded) <= 5, recorded
        assert {name: (tmp_path / name).read_bytes() for name in THEIRS} == THEIRS
