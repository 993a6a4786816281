"""Zones that are changed while a run goes on, and the file that keeps them."""

import contextlib
import json
import os

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import OptionError
from pipeline.results.zone_book import MOST_ZONES, ZoneBook, read_zones, write_zones
from pipeline.results.zone_options import MOST_POINTS, Zone, parse_zones

SQUARE = [[0.1, 0.1], [0.9, 0.1], [0.9, 0.9], [0.1, 0.9]]
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=50),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=20,
)


def book_of(tmp_path, zones=()):
    applied = []
    return ZoneBook(zones, tmp_path / "zones.yaml", applied.append), applied


def test_a_zone_is_added_renamed_and_deleted(tmp_path):
    book, applied = book_of(tmp_path)
    book.put(None, "door", SQUARE, None)
    book.put(None, "bay", SQUARE[:3], 0.25)
    assert [zone.name for zone in applied[-1]] == ["door", "bay"]
    book.put("door", "gate-ü", [*SQUARE[:3], [0.2, 0.5]], 0.5)
    first, second = applied[-1]
    assert (first.name, first.points[3], first.above, second.above) == ("gate-ü", (0.2, 0.5), 0.5, 0.25)
    assert read_zones(tmp_path / "zones.yaml") == applied[-1] == book.zones
    book.delete("gate-ü")
    book.delete("bay")
    assert book.zones == read_zones(tmp_path / "zones.yaml") == ()
    assert os.listdir(tmp_path) == ["zones.yaml"]  # and nothing half-written


def test_the_file_is_what_a_run_takes_as_options(tmp_path):
    from pipeline.command.options import parse_options

    book, _ = book_of(tmp_path)
    book.put(None, "door", SQUARE, 0.125)
    by_config = parse_options(["test://", "--config", str(tmp_path / "zones.yaml")]).zones
    by_file = parse_options(["test://", "--zones-file", str(tmp_path / "zones.yaml")]).zones
    assert by_config.zones == by_file.zones == book.zones
    assert by_file.path == tmp_path / "zones.yaml"


@pytest.mark.parametrize(
    ("was", "name", "points", "above", "message"),
    [
        (None, "door", SQUARE, None, "expected a name of its own"),
        ("bay", "door", SQUARE, None, "expected a name of its own"),
        ("gone", "new", SQUARE, None, "got one that was renamed or deleted"),
        (["x"], "new", SQUARE, None, "got one that was renamed or deleted"),
        (None, "a b", SQUARE, None, "expected a name of 1 to 40 letters"),
        (None, "", SQUARE, None, "expected a name of 1 to 40 letters"),
        (None, "x" * 41, SQUARE, None, "expected a name of 1 to 40 letters"),
        (None, 7, SQUARE, None, "expected a name, got 7"),
        (None, "new", "x", None, "expected a list of at most"),
        (None, "new", SQUARE[:2], None, "expected 3 to 100 corners, got 2"),
        (None, "new", [[0, 0]] * (MOST_POINTS + 1), None, "expected a list of at most 100"),
        (None, "new", [*SQUARE[:3], [0.1]], None, r"expected corners as \[x, y\]"),
        (None, "new", [*SQUARE[:3], [True, False]], None, r"expected corners as \[x, y\]"),
        (None, "new", [*SQUARE[:3], [float("nan"), 0]], None, r"expected corners as \[x, y\]"),
        (None, "new", [*SQUARE[:3], [10**400, 0]], None, r"expected corners as \[x, y\]"),
        (None, "new", [*SQUARE[:3], [-0.01, 0]], None, "expected shares of the frame"),
        (None, "new", [SQUARE[0], SQUARE[2], SQUARE[1], SQUARE[3]], None, "does not cross or touch itself"),
        (None, "new", SQUARE, 0, "expected a limit above 0"),
        (None, "new", SQUARE, 0.00001, "expected a limit above 0"),
        (None, "new", SQUARE, 1.01, "expected a limit above 0"),
        (None, "new", SQUARE, "0.5", "expected a limit above 0"),
    ],
)
def test_what_is_no_zone_changes_nothing(tmp_path, was, name, points, above, message):
    there = parse_zones(["door=0,0 1,0 1,1", "bay=0,0 1,0 1,1"])
    book, applied = book_of(tmp_path, there)
    with pytest.raises(OptionError, match=message):
        book.put(was, name, points, above)
    assert (book.zones, applied, os.listdir(tmp_path)) == (there, [], [])


@settings(deadline=None)
@given(st.lists(st.tuples(ANYTHING, ANYTHING, ANYTHING, ANYTHING), max_size=3))
def test_whatever_a_viewer_sends_the_zones_stay_zones(tmp_path_factory, sent):
    folder = tmp_path_factory.mktemp("zones")
    book, applied = book_of(folder, parse_zones(["door=0,0 1,0 1,1"]))
    for was, name, points, above in sent:
        with contextlib.suppress(OptionError):
            book.put(was, name, points, above)
    json.dumps(book.entries(), allow_nan=False)
    assert not applied or read_zones(folder / "zones.yaml") == book.zones


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=3, max_size=12),
    st.from_regex(r"\A[\w-]{1,40}\Z"),
    st.none() | st.floats(0.0001, 1),
)
def test_every_polygon_that_is_taken_comes_back_from_the_file(tmp_path_factory, points, name, above):
    folder = tmp_path_factory.mktemp("zones")
    book, _ = book_of(folder)
    try:
        book.put(None, name, [list(point) for point in points], above)
    except OptionError:
        assert not os.listdir(folder)
    else:
        assert read_zones(folder / "zones.yaml") == book.zones


def test_there_is_a_most(tmp_path):
    book, applied = book_of(tmp_path)
    ring = [[0.0001 * x, 0.1] for x in range(1, 51)] + [[0.0001 * x, 0.9] for x in range(50, 0, -1)]
    for number in range(MOST_ZONES):
        book.put(None, f"{number:02d}" + "ü" * 38, ring, None)
    assert len(read_zones(tmp_path / "zones.yaml")) == MOST_ZONES
    with pytest.raises(OptionError, match="expected at most 32 zones"):
        book.put(None, "one-more", SQUARE, None)
    assert len(applied) == MOST_ZONES


def test_a_file_that_cannot_be_written_changes_nothing(tmp_path):
    folder = tmp_path / "gone"
    folder.mkdir()
    book, applied = book_of(folder)
    folder.rmdir()
    with pytest.raises(OptionError, match=r"zones.yaml cannot be written \(No such file or directory\)"):
        book.put(None, "door", SQUARE, None)
    assert (book.zones, applied) == ((), [])


def test_a_kill_while_it_is_written_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "zones.yaml"
    write_zones(path, [Zone("door", ((0, 0), (1, 0), (1, 1)))])
    before = path.read_bytes()

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_zones(path, [])
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("zone: door=0,0 1,0 1,1\nfps: 3\n", "expected zone and zone-above alone"),
        ("- door=0,0 1,0 1,1\n", "expected zone and zone-above alone"),
        ("zone: {door: 1}\n", "expected lists of texts"),
        ("zone: [[1, 2]]\n", "expected lists of texts"),
        ("zone: door=0,0 1,1\n", "--zone door: expected 3 to 100 corners"),
        ("zone: [door=0,0\n", "expected YAML"),
    ],
)
def test_another_file_is_refused(tmp_path, content, message):
    (tmp_path / "zones.yaml").write_text(content)
    with pytest.raises(OptionError, match=rf"^--zones-file .*{message}"):
        read_zones(tmp_path / "zones.yaml")


def test_a_file_that_is_not_there_yet_has_none_and_needs_its_folder(tmp_path):
    assert read_zones(tmp_path / "zones.yaml") == ()
    (tmp_path / "empty.yaml").touch()
    assert read_zones(tmp_path / "empty.yaml") == ()
    with pytest.raises(OptionError, match="expected a folder that is there"):
        read_zones(tmp_path / "none" / "zones.yaml")


def test_zones_stand_in_one_place(refused, tmp_path):
    told = refused("test://", "--output", "null", "--zone", "a=0,0 1,0 1,1", "--zones-file", str(tmp_path / "z.yaml"))
    assert "expected zones in one place" in told


def test_what_people_write_by_hand_is_read(tmp_path):
    path = tmp_path / "zones.yaml"
    path.write_text(yaml.safe_dump({"zone": "door=0,0 1,0 1,1", "zone-above": "door=0.5"}))
    assert read_zones(path) == (Zone("door", ((0, 0), (1, 0), (1, 1)), 0.5),)


def test_two_processes_that_keep_zones_in_one_file_both_do(tmp_path, in_two_processes):
    path = tmp_path / "zones.yaml"

    def keep(name):
        for _ in range(100):
            write_zones(path, [Zone(name, ((0, 0), (1, 0), (1, 1)))])
            assert read_zones(path)[0].name in ("one", "two")

    in_two_processes(keep)
    assert os.listdir(tmp_path) == ["zones.yaml"]
