"""``kill -9`` at any moment while recordings are written: each that has a name is whole, and the next run tidies up."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from pipeline.flight.folder import FlightFolder
from pipeline.flight.recording import Recording

ROOT = Path(__file__).parents[3]
WAIT_S = 60  # only a broken test waits so long
# EDGEMASK_KILLS=100 kills more often.
KILLS = int(os.environ.get("EDGEMASK_KILLS", "8"))
MOST = 2_000_000

WRITER = """
import sys
from pathlib import Path
import numpy as np
from pipeline.flight.folder import FlightFolder
from pipeline.flight.recording import write_recording
from pipeline.frames.frame import Frame
from tests.fakes.computed_frames import FACTS
folder = FlightFolder(Path(sys.argv[1]), int(sys.argv[2]))
noise = np.random.default_rng(0)
frames = [Frame(noise.integers(0, 255, (64, 96, 3), np.uint8), n, n / 30, "cam", "x", mask=noise.integers(0, 255, (64, 96), np.uint8))
          for n in range(20)]
print("ready", flush=True)
while True:
    with folder.new("test") as (place, file, room):
        write_recording(file, FACTS, [(frame, {"bundle": ""}) for frame in frames], room)
    print(place.name, flush=True)
"""


def test_kills_while_it_is_written(tmp_path):
    (tmp_path / "notes.txt").write_text("the user's own")
    moments = random.Random(3)
    parts = 0
    for _ in range(KILLS):
        command = [sys.executable, "-c", WRITER, str(tmp_path), str(MOST)]
        job = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True)
        guard = threading.Timer(WAIT_S, job.kill)
        guard.start()
        for _ in range(moments.randrange(2, 6)):
            assert job.stdout.readline()
        time.sleep(moments.uniform(0, 0.05))
        os.kill(job.pid, signal.SIGKILL)
        assert job.wait() == -signal.SIGKILL
        guard.cancel()
        job.stdout.close()
        there = sorted(tmp_path.glob("*.zip"))
        assert there
        for path in there:
            with Recording(path) as recording:
                assert len(list(recording)) == 20
        left = list(tmp_path.glob(".edgemask-*"))
        parts += len(left)
        assert sum(path.stat().st_size for path in (*there, *left)) <= MOST
        assert len(FlightFolder(tmp_path, MOST).recordings()) == len(there)
        assert not list(tmp_path.glob(".edgemask-*"))
    assert parts, "no kill came while a recording was written"
    assert (tmp_path / "notes.txt").read_text() == "the user's own"
