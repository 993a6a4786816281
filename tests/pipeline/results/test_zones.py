"""Zones: what is refused, how much is inside, and when that is an event."""

import numpy as np
import pytest

from pipeline.errors import OptionError
from pipeline.frames.frame import Frame, SourceInfo
from pipeline.render.look import Look
from pipeline.render.overlay import Renderer
from pipeline.results.finder import Finder
from pipeline.results.zone_options import WHOLE_FRAME, ZoneOptions, parse_zones
from pipeline.results.zones import Switch


@pytest.mark.parametrize(
    ("zones", "limits", "message"),
    [
        (["door"], [], r'--zone door: expected "NAME=x,y x,y x,y"'),
        (["a b=0,0 1,0 1,1"], [], "with a name of letters, digits"),
        (["door=0,0 1,0"], [], "--zone door: expected 3 to 100 corners, got 2"),
        (["door=0,0 1,0 1,1.2"], [], r"--zone door: expected shares of the frame, 0 to 1, got 1,1\.2"),
        (["door=0,0 1,0 1,-1"], [], "--zone door: expected corners as x,y with blanks between them, got '1,-1'"),
        (["door=0,0 1,0 1,nan"], [], "--zone door: expected corners as x,y"),
        (["door=0,0 1,0 1"], [], "--zone door: expected corners as x,y with blanks between them, got '1'"),
        (["door=0,0 1,1 1,0 0,1"], [], "--zone door: expected a line that does not cross or touch itself"),
        (["door=0,0 1,0 0.5,0 0.5,1"], [], "--zone door: expected a line that does not cross or touch itself"),
        (["door=0,0 0.5,0 1,0"], [], "--zone door: expected"),
        (["door=0,0 1,0 1,1", "door=0,0 1,0 1,1"], [], "--zone door: expected names that differ"),
        (
            ["door=0,0 1,0 1,1"],
            ["gate=0.5"],
            "--zone-above gate: expected the name of a --zone, got another: there are door",
        ),
        (["door=0,0 1,0 1,1"], ["door=0"], "--zone-above door=0: expected NAME=SHARE with a share above 0 and up to 1"),
        (["door=0,0 1,0 1,1"], ["door=20%"], "--zone-above door=20%: expected NAME=SHARE"),
    ],
)
def test_zones_that_are_refused(zones, limits, message):
    with pytest.raises(OptionError, match=message):
        parse_zones(zones, limits)


def test_zones_that_are_taken():
    door, bay = parse_zones(["door=0.1,0.2 0.5,.2 0.5,0.9", "bay-2=0,0 1,0 1,1 0.5,0.5 0,1"], ["door=0.25"])
    assert (door.name, door.points, door.above) == ("door", ((0.1, 0.2), (0.5, 0.2), (0.5, 0.9)), 0.25)
    assert (bay.name, len(bay.points), bay.above) == ("bay-2", 5, None)


def test_the_command_refuses_in_one_line(refused):
    assert refused("test://", "--output", "null", "--zone", "door=0,0 1,1 1,0 0,1").startswith("error: --zone door: ")
    assert "--zone-enter: expected a number above 0" in refused("test://", "--output", "null", "--zone-enter", "0")


class Watched:
    """A finder, and frames for it at 10 FPS."""

    def __init__(self, zones, limits=(), task="binary", classes=("subject",), fps=10, **options):
        self.finder = Finder(
            Renderer(Look(), task),
            classes,
            [SourceInfo("cam", "", fps=fps)],
            ZoneOptions(parse_zones(zones, limits) if zones else (WHOLE_FRAME,), **options),
        )
        self.index = 0

    def __call__(self, mask, **facts):
        image = np.zeros((*mask.shape, 3), np.uint8)
        frame = Frame(image, self.index, self.index / 10, "cam", "x", mask=mask, **facts)
        self.index += 1
        return self.finder(frame)


def left(columns, value=255):
    """(10, 100) uint8, so many columns of it inside."""
    mask = np.zeros((10, 100), np.uint8)
    mask[:, :columns] = value
    return mask


@pytest.mark.parametrize("size_hw", [(10, 100), (7, 13), (1, 1), (480, 640)])
def test_the_whole_frame_is_all_pixels(size_hw):
    found = Watched([])(np.full(size_hw, 255, np.uint8))
    assert found.zones["frame"]["subject"].area == 1


def test_areas_are_shares_of_the_zone():
    watched = Watched(["half=0,0 0.5,0 0.5,1 0,1", "corner=0,0 0.5,0 0,1"])
    zones = watched(left(25)).zones
    assert zones["half"]["subject"].area == 0.5
    assert zones["corner"]["subject"].area == pytest.approx(0.75, abs=0.04)  # of a triangle: 1 - 0.5²
    assert watched(left(100)).zones["half"]["subject"].area == 1


def test_classes_are_told_apart_and_background_is_none():
    watched = Watched(["half=0,0 0.5,0 0.5,1 0,1"], task="classes", classes=("nothing", "a", "b"))
    zones = watched(left(10, 1) + left(30, 1)).zones
    assert {name: entry.area for name, entry in zones["half"].items()} == {"a": 0.4, "b": 0.2}


def events_of(watched, columns):
    """(index, kind, lasted_s) of the events while the mask has so many columns in turn."""
    return [(event.index, event.kind, event.lasted_s) for count in columns for event in watched(left(count)).events]


def test_coming_and_going():
    watched = Watched([], enter=0.1, dwell_s=0.3)
    came = events_of(watched, [0] * 5 + [20] * 10 + [0] * 10)
    # There from frame 5 on for 0.3 s; gone from frame 15 on for 0.3 s, after a second.
    assert came == [(8, "enter", None), (18, "leave", pytest.approx(1.0))]


def test_what_trembles_is_no_event():
    watched = Watched([], enter=0.1, dwell_s=0.3)
    assert events_of(watched, [0, 20] * 20) == []  # never for long enough
    assert events_of(watched, [9, 6, 12] * 20) == []  # between half of the limit and the limit


def test_above_and_below():
    watched = Watched(["all=0,0 1,0 1,1 0,1"], ["all=0.5"], enter=0.1, dwell_s=0.1)
    came = events_of(watched, [20] * 5 + [50] * 5 + [46] * 5 + [44] * 5 + [0] * 5)
    assert came == [
        (1, "enter", None),
        (6, "above", None),
        (16, "below", pytest.approx(1.0)),
        (21, "leave", pytest.approx(2.0)),
    ]


def test_ids_are_in_order_and_of_one_run():
    watched, other = Watched([], dwell_s=0.1), Watched([], dwell_s=0.1)
    columns = ([0] * 3 + [50] * 3) * 10
    ids = [event.id for count in columns for event in watched(left(count)).events]
    others = [event.id for count in columns for event in other(left(count)).events]
    assert ids == sorted(set(ids))
    assert len(ids) >= 18
    assert not set(ids) & set(others)


def test_pictures_have_areas_and_no_events():
    watched = Watched([], fps=None, dwell_s=0.1)
    found = [watched(left(count)) for count in [0, 0, 50, 50, 50]]
    assert [one.zones["frame"]["subject"].area for one in found] == [0, 0, 0.5, 0.5, 0.5]
    assert not any(one.events for one in found)
    assert found[2].classes[0].regions[0].id is None


def test_a_mask_that_is_wrong_is_no_event():
    watched = Watched([], dwell_s=0.1)
    assert [event.kind for count in [50] * 3 for event in watched(left(count)).events] == ["enter"]
    found = [watched(left(0), not_finite=7) for _ in range(10)]
    assert not any(one.events for one in found)
    assert found[-1].zones["frame"]["subject"].present


def test_a_switch_whose_time_goes_back():
    switch = Switch(0.5, 0.4, 1.0)
    assert [switch.update(1, now_s) for now_s in (10, 10.9, 2, 2.9, 3)] == [None, None, None, None, 0.0]
    assert switch.is_on


def test_a_frame_is_found_in_once():
    watched = Watched([])
    frame = Frame(np.zeros((10, 100, 3), np.uint8), 0, 0.0, "cam", "x", mask=left(50))
    assert watched.finder(frame) is watched.finder(frame)


def test_zones_that_are_drawn_count_from_the_next_frame_on():
    watched = Watched(["half=0,0 0.5,0 0.5,1 0,1", "all=0,0 1,0 1,1 0,1"], ["all=0.1"], enter=0.1, dwell_s=0.1)
    assert [event[1] for event in events_of(watched, [50] * 5)] == ["enter", "enter", "above"]
    # What was in a zone that is gone has left it; one that was moved goes on, and one with a new limit begins it anew.
    watched.finder.watch(parse_zones(["all=0.9,0 1,0 1,1 0.9,1", "new=0,0 0.1,0 0.1,1"], ["all=0.2"]))
    told = [(event.zone, event.kind) for count in [50] * 3 for event in watched(left(count)).events]
    assert sorted(told) == [("all", "below"), ("all", "leave"), ("half", "leave"), ("new", "enter")]
    watched.finder.watch(())
    found = watched(left(50))
    assert (found.zones, [(event.zone, event.kind) for event in found.events]) == ({}, [("new", "leave")])
    assert not watched(left(50)).events
