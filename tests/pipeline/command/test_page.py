"""The command with a page: what viewers change takes effect in the run, and what they may not is left as it is."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import aiohttp
import pytest

from tests.fakes.motion_jpeg import MotionJpeg, gray_jpeg, serving

ROOT = Path(__file__).parents[3]
WAIT_S = 60  # only a broken test waits so long
LEFT = [[0, 0], [0.5, 0], [0.5, 1], [0, 1]]


class Camera(MotionJpeg):
    """Sends a gray picture again and again."""

    def do_GET(self):
        self.send_pictures(gray_jpeg(64, 96))


@pytest.fixture
def run_with_page(tmp_path, red_bundle):
    """``run_with_page(scenario, "--output", …)``: runs ``await scenario(socket, state)`` beside the command; gives what it said.

    ``await state(condition)`` is the next state of which that holds.
    """

    def run(scenario, *arguments):
        command = [
            sys.executable,
            "-m",
            "pipeline",
            *arguments,
            "--model",
            str(red_bundle.folder),
            "--serve",
            "127.0.0.1:0",
        ]
        with (
            (tmp_path / "err").open("w+") as said,
            subprocess.Popen(
                command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=said
            ) as process,
        ):

            async def main():
                async with (
                    aiohttp.ClientSession() as session,
                    session.ws_connect(await _address(tmp_path / "err", process) + "live") as socket,
                ):

                    async def state(condition):
                        while True:
                            message = await socket.receive()
                            if message.type is aiohttp.WSMsgType.TEXT:
                                told = json.loads(message.data)
                                if told["type"] == "state" and condition(told):
                                    return told

                    await scenario(socket, state)

            try:
                asyncio.run(asyncio.wait_for(main(), WAIT_S))
                process.send_signal(signal.SIGINT)
                assert process.wait(WAIT_S) == 130
            finally:
                process.kill()
        return (tmp_path / "err").read_text()

    return run


async def _address(path, process):
    while not (found := re.search(r"page: (http://\S+)", path.read_text())):
        assert process.poll() is None, path.read_text()
        await asyncio.sleep(0.05)
    return found[1]


def frames_of(path):
    """How many frames ffprobe decodes; it must have nothing to say against the file."""
    command = ["ffprobe", "-v", "error", "-count_frames", "-show_entries", "stream=nb_read_frames", "-of", "json"]
    done = subprocess.run([*command, str(path)], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return int(json.loads(done.stdout)["streams"][0]["nb_read_frames"])


@pytest.mark.needs_program("ffprobe")
def test_named_cameras_recordings_and_zones(run_with_page, tmp_path):
    async def scenario(socket, state):
        written = lambda told: [source["frames_out"] for source in told["sources"]]  # noqa: E731
        told = await state(lambda told: min(written(told)) > 5)
        await socket.send_json({"type": "record", "on": False})
        told = await state(lambda told: told["recording"] == {"on": False})
        off = written(told)
        await state(lambda told: min(now - before for now, before in zip(written(told), off, strict=True)) > 5)
        for name in ("front door.mp4", "yard.mp4"):
            assert frames_of(tmp_path / "rec" / name.replace(" ", "_")) > 0
        await socket.send_json({"type": "zone", "was": None, "name": "left", "points": LEFT, "above": None})
        await state(lambda told: all("left" in (source["zones"] or {}) for source in told["sources"]))
        await socket.send_json({"type": "record", "on": True})
        on = written(await state(lambda told: told["recording"] == {"on": True}))
        await state(lambda told: min(now - before for now, before in zip(written(told), on, strict=True)) > 5)

    with serving(Camera) as place:
        said = run_with_page(
            scenario,
            *("--source", f"front door=http://user:se%3Dcret@{place}/a?b=c", "--source", f"yard=http://{place}/"),
            *("--output", "rec/{source}.mp4", "--output", "{source}.jsonl", "--zones-file", "zones.yaml"),
        )
    files = sorted(path.name for path in (tmp_path / "rec").iterdir())
    assert files == ["front_door-0002.mp4", "front_door.mp4", "yard-0002.mp4", "yard.mp4"]
    assert all(frames_of(tmp_path / "rec" / name) > 0 for name in files)
    lines = [json.loads(line) for line in (tmp_path / "yard.jsonl").read_text().splitlines()]
    assert {line["source"] for line in lines} == {"yard"}
    assert "zones" not in lines[0]
    assert "left" in lines[-1]["zones"]
    assert "- left=0,0 0.5,0 0.5,1 0,1" in (tmp_path / "zones.yaml").read_text()
    assert "source: front door, " in said
    assert "cret" not in said


def test_masks_are_set_while_it_runs(run_with_page):
    async def scenario(socket, state):
        told = await state(lambda told: told["sources"][0]["frames_out"] > 2)
        assert (told["settings"]["smooth"], told["settings"]["fps"], told["fixed"]) == ("auto", 20.0, {})
        await socket.send_json({"set": {"smooth": "off", "refine_edges": True, "fps": 2.0}})
        told = await state(lambda told: told["settings"]["fps"] == 2.0)
        assert (told["settings"]["smooth"], told["settings"]["refine_edges"]) == ("off", True)
        # Of the 20 frames a second that come, two are shown.
        await state(lambda told: 0 < told["sources"][0]["rate_out_hz"] < 4)

    with serving(Camera) as place:
        run_with_page(scenario, "--source", f"http://{place}/", "--fps", "20")
