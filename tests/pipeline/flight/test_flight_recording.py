"""A recording's file: frames and masks bit for bit, readable by others, nothing trusted."""

import io
import json
import subprocess
import zipfile

import cv2
import numpy as np
import pytest

from pipeline.errors import SourceError
from pipeline.flight.recording import Recording, write_recording
from tests.fakes.computed_frames import FACTS, computed, noise

FRAMES = [
    computed(0),
    computed(3, noise(1, (36, 32)), kind="nv12", source="yard"),
    computed(4, noise(2, (8, 10, 4), np.uint16), kind="4x16"),
    computed(5, noise(3, (8, 10, 5)), kind="5x8", not_finite=7),
]


def written(frames, room=lambda _: True, facts=FACTS):
    file = io.BytesIO()
    result = write_recording(file, facts, [(frame, {"bundle": "b"}) for frame in frames], room)
    return result, file.getvalue()


@pytest.fixture
def path(tmp_path):
    place = tmp_path / "it.zip"
    place.write_bytes(written(FRAMES)[1])
    return place


def test_every_kind_of_frame_comes_back_bit_for_bit(path):
    with Recording(path) as recording:
        assert recording.facts["engine"] == FACTS["engine"]
        assert len(recording) == len(FRAMES)
        for got, expected in zip(recording, FRAMES, strict=True):
            assert got.pixels.dtype == expected.pixels.dtype
            np.testing.assert_array_equal(got.pixels, expected.pixels)
            np.testing.assert_array_equal(got.mask, expected.mask)
            for name in ("index", "pts_s", "source", "format", "captured_ns", "not_finite"):
                assert getattr(got, name) == getattr(expected, name)


@pytest.mark.needs_program("unzip")
def test_others_read_it(path, tmp_path):
    subprocess.run(["unzip", "-q", str(path), "-d", str(tmp_path)], check=True)
    frame = json.loads((tmp_path / "flight.json").read_text())["frames"][0]
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / frame["picture"])), FRAMES[0].pixels)
    assert (tmp_path / "mimetype").read_bytes() == b"application/x-edgemask-flight+zip"
    assert np.load(tmp_path / "frames" / "000002.npy").dtype == np.uint16


def test_no_more_is_written_than_there_was_room_for(tmp_path):
    asked = []

    def room(size_bytes):
        asked.append(size_bytes)
        return len(asked) < 4

    frames = [computed(index) for index in range(9)]
    result, content = written(frames, room)
    assert result.frames == 2
    (tmp_path / "it.zip").write_bytes(content)
    with Recording(tmp_path / "it.zip") as recording:
        assert [frame.index for frame in recording] == [7, 8]
    assert len(asked) == 4


def test_what_is_asked_for_is_enough():
    """Everything that is written was asked for before, the end of the file too."""
    position, most = [0], [0]

    class File(io.BytesIO):
        def write(self, data):
            assert self.tell() + len(data) <= most[0] or self.tell() + len(data) <= len(self.getvalue())
            return super().write(data)

    file = File()

    def room(size_bytes):
        most[0] = max(most[0], file.tell() + size_bytes)
        position[0] += 1
        return True

    write_recording(file, FACTS, [(frame, {"bundle": "b"}) for frame in FRAMES], room)
    assert position[0] == len(FRAMES) + 1
    assert len(file.getvalue()) <= most[0]


@pytest.mark.parametrize("cut", [0, 10, 500, -1])
def test_half_a_file_is_refused(path, cut):
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(SourceError, match="expected a flight recording"):
        Recording(path)


def test_other_zip_files_and_schemas_are_refused(tmp_path):
    place = tmp_path / "it.zip"
    with zipfile.ZipFile(place, "w") as archive:
        archive.writestr("flight.json", "{}")
    with pytest.raises(SourceError, match="expected a flight recording"):
        Recording(place)
    place.write_bytes(written([], facts={**FACTS, "schema": 99})[1])
    with pytest.raises(SourceError, match="schema 99"):
        Recording(place)
    with pytest.raises(SourceError, match="no such file"):
        Recording(tmp_path / "none.zip")


def test_a_changed_byte_in_a_frame_is_found(path):
    with Recording(path) as recording:
        info = recording._archive.getinfo("frames/000000.png")
    content = bytearray(path.read_bytes())
    content[info.header_offset + 200] ^= 1
    path.write_bytes(content)
    with Recording(path) as recording, pytest.raises(SourceError, match="damaged"):
        list(recording)


@pytest.mark.parametrize(
    "change",
    [
        {"events": None},
        {"events": [{"kind": "audit"}]},
        {"events": [{"kind": 3, "text": "", "source": "", "time": ""}]},
        {"note": None},
        {"engine": {}},
        {"engine": []},
        {"engine": {"description": "x", "in_flight": "2"}},
        {"bundles": []},
        {"bundles": {"a": {}}},
        {"bundles": {"a": {"manifest": {"files": {"program.onnx": 1}}}}},
    ],
)
def test_facts_of_other_types_are_refused(tmp_path, change):
    place = tmp_path / "it.zip"
    place.write_bytes(written(FRAMES, facts={**FACTS, **change})[1])
    with pytest.raises(SourceError, match="expected a flight recording"):
        Recording(place)


@pytest.mark.parametrize(
    "change",
    [{"format": "yuv"}, {"format": 3}, {"index": "1"}, {"pts_s": None}],
)
def test_frames_of_other_types_are_refused(tmp_path, change):
    place = tmp_path / "it.zip"
    file = io.BytesIO()
    write_recording(file, FACTS, [(FRAMES[0], {"bundle": "b", **change})], lambda _: True)
    place.write_bytes(file.getvalue())

    def read():
        with Recording(place) as recording:
            list(recording)

    with pytest.raises(SourceError, match="expected a flight recording"):
        read()
