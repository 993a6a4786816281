"""The comment of a video, which says of a result what it was made of."""

from __future__ import annotations

from pathlib import Path

import av
import av.error


def video_comment(path: Path) -> str:
    """The comment that a video's container carries; empty where it has none or is no video."""
    try:
        with av.open(
            f"file:{path}", options={"protocol_whitelist": "file", "probesize": "32", "analyzeduration": "0"}
        ) as container:
            return next((text for key, text in container.metadata.items() if key.lower() == "comment"), "")
    except (av.error.FFmpegError, OSError, ValueError):
        return ""
