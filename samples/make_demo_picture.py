"""docs/demo.webp, the moving picture of the README, from what ``make demo`` writes: every second frame, at half the size."""

from __future__ import annotations

from pathlib import Path

import av
from PIL import Image

ROOT = Path(__file__).parents[1]
SIZE_WH = (640, 360)
# The clip has 25 frames a second.
EVERY = 2


def main() -> None:
    """Read demo.mp4, write docs/demo.webp."""
    with av.open(str(ROOT / "demo.mp4")) as video:
        frames = [frame.to_image() for frame in video.decode(video=0)][::EVERY]
    first, *others = (frame.resize(SIZE_WH, Image.Resampling.LANCZOS) for frame in frames)
    first.save(
        ROOT / "docs" / "demo.webp",
        save_all=True,
        append_images=others,
        duration=EVERY * 40,
        loop=0,
        quality=60,
        method=4,
    )


if __name__ == "__main__":
    main()
