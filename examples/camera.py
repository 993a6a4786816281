"""A camera in a window until q is pressed: python examples/camera.py [/dev/video0]

With a number of frames as second argument it shows nothing, and prints how much of each frame the subject covers.
"""

import sys

import cv2

from edgemask import Model, open_source

camera = sys.argv[1] if len(sys.argv) > 1 else "/dev/video0"
frames = int(sys.argv[2]) if len(sys.argv) > 2 else None
with Model("u2netp") as model, open_source(camera) as source:
    for frame in model.stream(source, max_frames=frames):  # of a camera always the newest frame
        if frames is not None:
            print(f"{frame.pts_s:.2f} s: {100 * (frame.mask >= 128).mean():.1f} % subject")
            continue
        cv2.imshow("edgemask", model.draw(frame))
        if cv2.waitKey(1) == ord("q"):
            break
