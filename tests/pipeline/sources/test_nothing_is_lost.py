"""No silent loss: whatever ffprobe says of a file is the same of the output, or a line of the log tells of it."""

import json
import re
import subprocess

import pytest

from pipeline.__main__ import main

pytestmark = [pytest.mark.needs_program("ffprobe"), pytest.mark.needs_program("ffmpeg")]

SIZE = "64x48"
PICTURES = ("-f", "lavfi", "-i", f"testsrc2=s={SIZE}:r=25:d=0.4")
SOUND = ("-f", "lavfi", "-i", "sine", "-t", "0.4", "-c:a", "aac")
CODEC = ("-c:v", "libx264", "-pix_fmt", "yuv420p")
WOVEN = ("-f", "lavfi", "-i", f"testsrc2=s={SIZE}:r=50:d=0.4", "-vf", "tinterlace=interleave_top,fieldorder=tff")
# What is written, by its file: everything of it is looked for, whatever the row is called.
FILES = {
    "plain.mp4": (*PICTURES, *CODEC),
    "sound.mp4": (*PICTURES, *SOUND, *CODEC),
    "two sounds.mkv": (*PICTURES, *SOUND, "-map", "0", "-map", "1", "-map", "1", *CODEC),
    "subtitles.mp4": (*PICTURES, "-i", "{text.srt}", *CODEC, "-c:s", "mov_text"),
    "subtitles.mkv": (*PICTURES, "-i", "{text.srt}", *CODEC, "-c:s", "srt"),
    "chapters.mp4": (*PICTURES, "-i", "{chapters.txt}", "-map_chapters", "1", *CODEC),
    "chapters.mkv": (*PICTURES, "-i", "{chapters.txt}", "-map_chapters", "1", *CODEC),
    "timecode.mov": (*PICTURES, *CODEC, "-timecode", "01:02:03:04"),
    "tags.mp4": (*PICTURES, *CODEC, "-metadata", "title=A film", "-metadata", "location=+1.0+2.0/"),
    "attachment.mkv": (*PICTURES, *CODEC, "-attach", "{text.srt}", "-metadata:s:t", "mimetype=text/plain"),
    "two pictures.mkv": (*PICTURES, "-map", "0", "-map", "0", *CODEC),
    "wide pixels.mkv": (*PICTURES, *CODEC, "-aspect", "16:9"),
    "ten bits.mkv": (*PICTURES, "-c:v", "ffv1", "-pix_fmt", "yuv422p10le"),
    "gray 16.mkv": (*PICTURES, "-c:v", "ffv1", "-pix_fmt", "gray16le"),
    "alpha.mov": (*PICTURES, "-c:v", "qtrle", "-pix_fmt", "argb"),
    "alpha.webm": (*PICTURES, "-c:v", "libvpx-vp9", "-pix_fmt", "yuva420p"),
    "interlaced.ts": (*WOVEN, "-c:v", "mpeg2video", "-flags", "+ilme+ildct"),
    "interlaced.mkv": (*WOVEN, "-c:v", "ffv1", "-field_order", "tt"),
    "stereo.mkv": (*PICTURES, *CODEC, "-metadata:s:v:0", "stereo_mode=left_right"),
    "pq.mkv": (*PICTURES, "-c:v", "ffv1", "-pix_fmt", "yuv420p10le", "-color_trc", "smpte2084"),
    "p3.mkv": (*PICTURES, "-c:v", "ffv1", "-color_primaries", "smpte432", "-color_trc", "bt709"),
    "full range.mp4": (*PICTURES, "-c:v", "libx264", "-pix_fmt", "yuvj420p"),
    "late.mkv": (*PICTURES, *CODEC, "-output_ts_offset", "7"),
    "variable.mkv": (*PICTURES, "-vf", "setpts='if(lt(N,5),N,N*3)/25/TB'", "-vsync", "vfr", *CODEC),
    "edit list.mp4": (*PICTURES, *CODEC, "-bf", "2", "-output_ts_offset", "-0.2"),
    "fragmented.mp4": (*PICTURES, *CODEC, "-movflags", "frag_keyframe+empty_moov"),
}
BESIDE = {
    "text.srt": "1\n00:00:00,000 --> 00:00:00,300\nhello\n",
    "chapters.txt": ";FFMETADATA1\n[CHAPTER]\nTIMEBASE=1/1000\nSTART=0\nEND=200\n[CHAPTER]\nTIMEBASE=1/1000\nSTART=200\nEND=400\n",
}
# What a property is called here: what the log says of it where the output has it not.
TOLD = {
    "audio": r"sound \(|tracks of sound",
    "subtitle": r"subtitles",
    "data": r"timecode|track of data|tracks of data",
    "attachment": r"attachment",
    "video": r"another picture track",
    "chapters": r"\d chapters",
    "timecode": r"the timecode",
    "tags": r"what it says of itself",
    "bits": r"\d+ bits a color: made 8",
    "alpha": r"transparent in part|transparency",
    "interlaced": r"interlaced: the two fields",
    "color_transfer": r"high dynamic range|wide colors",
    "color_primaries": r"high dynamic range|wide colors",
    "side data: Stereo 3D": r"two eyes",
    "side data: ATSC A53 Part 4 Closed Captions": r"closed captions",
    "side data: SMPTE 12-1 timecode": r"timecode",
    "side data: Spherical Mapping": r"360°",
}
# What a file says of how it was written, and what comes with an encoder.
WRITERS = ("major_brand", "minor_version", "compatible_brands", "encoder", "duration")
ENCODERS = (
    "side data: H.26[45] User Data Unregistered SEI message",
    "side data: CPB properties",
    "side data: GOP timecode",
    "side data: AVPanScan",
)


def properties(path):
    """All that ffprobe says of a file, but codecs and writers: name to value."""
    asked = ("-show_streams", "-show_format", "-show_chapters", "-show_frames")
    done = subprocess.run(
        ["ffprobe", "-v", "error", "-of", "json", *asked, str(path)], check=True, capture_output=True, timeout=60
    )
    said = json.loads(done.stdout)
    kinds = [stream["codec_type"] for stream in said["streams"]]
    found = {kind: kinds.count(kind) for kind in set(kinds)}
    film = next(stream for stream in said["streams"] if stream["codec_type"] == "video")
    frames = [frame for frame in said["frames"] if frame.get("stream_index") == film["index"]]
    times = [float(frame["pts_time"]) for frame in frames]
    found |= {"chapters": len(said["chapters"]), "frames": len(frames)}
    found["times"] = [round(time - times[0], 2) for time in times]
    found["tags"] = sorted(set(map(str.lower, said["format"].get("tags", {}))) - set(WRITERS))
    found["timecode"] = film.get("tags", {}).get("timecode", "")
    found |= {name: film.get(name) for name in ("width", "height")}
    found["sample_aspect_ratio"] = film.get("sample_aspect_ratio", "1:1")
    form = film["pix_fmt"]
    found["bits"] = int((re.search(r"(?:p|gray)(9|1\d)(?:le|be)$", form) or [8, 8])[1])
    found["alpha"] = "a" in form.replace("gray", "") or film.get("tags", {}).get("alpha_mode") == "1"
    found["interlaced"] = any(frame["interlaced_frame"] for frame in frames)
    for name in ("color_transfer", "color_primaries"):
        if film.get(name) not in (None, "unknown", "bt709"):  # what a file without a word means
            found[name] = film[name]
    for one in (*film.get("side_data_list", ()), *frames[0].get("side_data_list", ())):
        name = f"side data: {one['side_data_type']}"
        if not any(re.fullmatch(pattern, name) for pattern in ENCODERS):
            found[name] = True
    return found


@pytest.mark.parametrize("name", FILES)
def test_every_property_is_in_the_output_or_told(name, red_bundle, tmp_path, said):
    for other, text in BESIDE.items():
        (tmp_path / other).write_text(text)
    path, made = tmp_path / name, tmp_path / "made.mp4"
    inputs = [str(tmp_path / word[1:-1]) if word.startswith("{") else word for word in FILES[name]]
    subprocess.run(["ffmpeg", "-v", "error", "-y", *inputs, str(path)], check=True, capture_output=True, timeout=60)
    assert main(["--source", str(path), "--model", str(red_bundle.folder), "--output", str(made)]) == 0
    before, after = properties(path), properties(made)
    lost = {name for name, value in before.items() if value and value != after.get(name)}
    silent = {name for name in lost if not any(re.search(TOLD[name], line) for line in said)}
    assert not silent, said
