"""Two cameras share one engine, each recorded: python examples/two_cameras.py rtsp://cam/1 rtsp://cam/2 recordings/

With a number as last argument each ends after so many frames.
"""

import sys
from contextlib import ExitStack
from pathlib import Path

from edgemask import Model, open_sink, open_sources

first, second, folder = sys.argv[1:4]
frames = int(sys.argv[4]) if len(sys.argv) > 4 else None
with ExitStack() as stack:
    model = stack.enter_context(Model("u2netp"))
    videos = {}
    cameras = [stack.enter_context(camera) for camera in open_sources([first, second])]  # with names that differ
    for number, camera in enumerate(cameras):
        path = Path(folder) / f"camera{number}.mp4"
        videos[camera.info.name] = stack.enter_context(open_sink(str(path), camera.info))
    for frame in model.stream(cameras, max_frames=frames):
        frame.view = model.draw(frame)
        videos[frame.source].write(frame)
