"""Which of a container's tracks is the film, and what else is in it."""

from __future__ import annotations

import av
import av.container
from av.stream import Disposition

# Pictures beside the film: covers, and previews of a time line.
_BESIDE = Disposition.attached_pic | Disposition.timed_thumbnails

# What writers say of the file, not of the film.
_OF_THE_WRITER = frozenset(
    (
        "major_brand",
        "minor_version",
        "compatible_brands",
        "encoder",
        "duration",
        "metadatacreator",
        "hasaudio",
        "hasvideo",
    )
)
_TAGS_TOLD = 6


def film_of(container: av.container.InputContainer) -> av.VideoStream | None:
    """The picture track that players show: FFmpeg's choice of those that are no cover; None if there is none."""
    films = [stream for stream in container.streams.video if not stream.disposition & _BESIDE]
    best = container.streams.best("video")
    first = films[0] if films else None
    return next((stream for stream in films if best is not None and stream.index == best.index), first)


def sound_of(container: av.container.InputContainer) -> str:
    """Which sound and subtitles a file holds, for one line: "sound (aac), 2 tracks of subtitles"; empty if none."""
    streams, parts = container.streams, []
    if streams.audio:
        codecs = ", ".join(sorted({getattr(stream.codec_context, "name", "unknown") for stream in streams.audio}))
        parts.append(
            f"sound ({codecs})" if len(streams.audio) == 1 else f"{len(streams.audio)} tracks of sound ({codecs})"
        )
    if count := len(streams.subtitles):
        parts.append("subtitles" if count == 1 else f"{count} tracks of subtitles")
    return ", ".join(parts)


def left_out(container: av.container.InputContainer, film: av.VideoStream) -> str:
    """What else a file holds that no output gets, for one line: "2 chapters, the timecode"; empty if nothing."""
    streams, parts = container.streams, []
    others = [stream for stream in streams.video if stream.index != film.index]
    covers = sum(bool(stream.disposition & _BESIDE) for stream in others)
    if covers:
        parts.append("a cover" if covers == 1 else f"{covers} covers")
    if count := len(others) - covers:
        parts.append("another picture track" if count == 1 else f"{count} other picture tracks")
    if count := len(container.chapters()):
        parts.append("a chapter" if count == 1 else f"{count} chapters")
    if "timecode" in film.metadata or any("timecode" in stream.metadata for stream in streams.data):
        parts.append("the timecode")
    if count := sum("timecode" not in stream.metadata for stream in streams.data):
        parts.append("a track of data" if count == 1 else f"{count} tracks of data")
    if count := len(streams.attachments):
        parts.append("an attachment" if count == 1 else f"{count} attachments")
    if film.metadata.get("alpha_mode") == "1":  # in packets of its own, which FFmpeg's own decoder does not look at
        parts.append("transparency")
    if tags := sorted(name.lower() for name in container.metadata if name.lower() not in _OF_THE_WRITER):
        parts.append(f"what it says of itself ({', '.join(tags[:_TAGS_TOLD])}{', …' if tags[_TAGS_TOLD:] else ''})")
    return ", ".join(parts)
