"""A video with blurred background: python examples/video.py video.mp4 out.mp4"""

import sys

from edgemask import Model, open_sink, open_source

video, output = sys.argv[1:]
with Model("u2netp") as model, open_source(video) as source, open_sink(output, source.info) as out:
    for frame in model.stream(source):  # decoding and inference overlap
        frame.view = model.draw(frame, mode="blur")
        out.write(frame)
