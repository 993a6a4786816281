"""What viewers can have done, and who of them may."""

import asyncio
import json

import aiohttp
import pytest

from pipeline.errors import OptionError
from pipeline.masks.governor import Governor
from pipeline.masks.steady import Steady
from pipeline.masks.tuning import Tuning
from pipeline.page.orders import Orders
from pipeline.render.look import Look
from pipeline.render.overlay import Renderer
from pipeline.results.zone_book import read_zones

SQUARE = [[0.1, 0.1], [0.9, 0.1], [0.9, 0.9], [0.1, 0.9]]
ZONE = {"type": "zone", "was": None, "name": "door", "points": SQUARE, "above": None}
PATIENCE_S = 20


def exchange(rig, *messages):
    """Send messages to the page, one after another; gives what it answers to each: "refused …", or nothing once it has obeyed."""

    async def main():
        answers = []
        async with aiohttp.ClientSession() as session, session.ws_connect(rig.url + "live") as socket:
            for message in messages:
                await socket.send_json(message)
                # This is refused in any case, so that its answer comes after all others.
                await socket.send_json({"watch": "end"})
                told = []
                while not (told and told[-1].startswith("watch:")):
                    got = json.loads((await asyncio.wait_for(socket.receive(), PATIENCE_S)).data)
                    if got["type"] == "refused":
                        told.append(got["text"])
                answers.append("; ".join(told[:-1]))
        return answers

    return asyncio.run(main())


def tuning(task="binary", fps=None):
    governor = None if fps is None else Governor(fps, task)
    return Tuning(Steady("auto", False, task, Renderer(Look(), task), []), governor)


MESSAGES = [
    {"key": "m"},
    {"set": {"alpha": 0.9}},
    {"set": {"smooth": "strong"}},
    {"set": {"refine_edges": True}},
    {"set": {"fps": 5}},
    {"type": "record", "on": False},
    ZONE,
    {"type": "zone-delete", "name": "door"},
]


def test_a_viewer_without_the_right_changes_nothing(make_rig, everything, tmp_path, get):
    rig = make_rig(read_only=True, **everything)
    before = get(rig)("/state").text
    for answer in exchange(rig, *MESSAGES):
        assert answer == "the page is read-only: it was started with --serve-read-only"
    after = json.loads(get(rig)("/state").text)
    assert after["settings"] == json.loads(before)["settings"]
    assert (everything["recording"].on, everything["zones"].zones) == (True, ())
    assert not (tmp_path / "zones.yaml").exists()


def test_a_viewer_with_the_right_changes_all_of_it(make_rig, everything, tmp_path):
    rig = make_rig(**everything)
    assert exchange(rig, *MESSAGES[1:7]) == [""] * 6
    masks, finder = everything["masks"], everything["find"]
    assert masks.settings() == {"smooth": "strong", "refine_edges": True, "fps": 5.0}
    assert not everything["recording"].on
    assert (
        [zone.name for zone in finder.zones] == [zone.name for zone in read_zones(tmp_path / "zones.yaml")] == ["door"]
    )
    assert exchange(rig, {**ZONE, "was": "door", "name": "gate"}, {"type": "record", "on": True}) == ["", ""]
    assert finder.zones[0].name == "gate"
    assert everything["recording"].on
    assert exchange(rig, {"type": "zone-delete", "name": "gate"}) == [""]
    assert finder.zones == read_zones(tmp_path / "zones.yaml") == ()


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        ({"type": "record", "on": 1}, "record: expected on as true or false, got 1"),
        ({"type": "record"}, "record: expected on as true or false, got None"),
        ({**ZONE, "points": SQUARE[:2]}, "zone door: expected 3 to 100 corners, got 2"),
        ({"type": "zone"}, "zone: expected a name, got None"),
        ({"type": "zone-delete", "name": "door"}, "zone door: expected a zone that is there"),
        ({"set": {"fps": 0}}, "--fps: expected a rate from 0.001 to 1000, got 0"),
        ({"set": {"fps": True}}, "fps: expected a value such as 10.0, got True"),
        ({"set": {"fps": None}}, "fps: expected a value such as 10.0, got None"),
        ({"set": {"smooth": "very"}}, "smooth: expected auto, off, on, strong, got 'very'"),
        ({"set": {"refine_edges": 1}}, "refine_edges: expected a value such as False, got 1"),
    ],
)
def test_what_is_not_understood_is_said(make_rig, everything, message, problem):
    rig = make_rig(**everything)
    before = rig.sink._board.controls.settings()
    assert exchange(rig, message)[0].startswith(problem)
    assert rig.sink._board.controls.settings() == before


def test_where_there_is_nothing_to_change_the_page_says_so(make_rig, get):
    rig = make_rig()
    answers = exchange(rig, ZONE, {"type": "record", "on": False})
    assert answers[0].startswith("zone: expected a run with zones that can be changed")
    assert answers[1].startswith("record: expected a run with a recording of a live source")
    assert json.loads(get(rig)("/state").text)["recording"] is None
    assert Orders(None, None).zones() == ""


def test_zones_are_told_when_they_change_and_not_again(make_rig, everything):
    rig = make_rig(read_only=True, **everything)

    async def main():
        seen, states = [], 0
        async with aiohttp.ClientSession() as session, session.ws_connect(rig.url + "live") as socket:
            while len(seen) < 2 or states < 6:
                got = json.loads((await asyncio.wait_for(socket.receive(), PATIENCE_S)).data)
                states += got["type"] == "state"
                if got["type"] == "zones":
                    seen.append(got)
                    if len(seen) == 1:
                        everything["zones"].put(None, "door", SQUARE, 0.5)
        return seen

    first, second = asyncio.run(main())
    assert (first["zones"], first["file"]) == ([], "zones.yaml")
    assert second["zones"] == [{"name": "door", "points": SQUARE, "above": 0.5}]


def test_what_is_in_a_zone_is_told(make_rig, everything, wait_until, get):
    rig = make_rig(**everything)
    everything["zones"].put(None, "top", [[0, 0], [1, 0], [1, 0.5], [0, 0.5]], None)
    rig.keep_writing()
    wait_until(lambda: json.loads(get(rig)("/state").text)["sources"][0]["zones"])
    zones = json.loads(get(rig)("/state").text)["sources"][0]["zones"]
    assert zones == {"top": {"subject": {"area": 0.5, "present": False}}}


def test_what_cannot_be_changed_has_a_reason_in_words():
    fixed = tuning("classes").fixed()
    assert fixed["fps"] == "every frame is computed; start with --fps to keep a rate"
    assert "no soft edges" in fixed["refine_edges"]
    assert tuning(fps=10.0).fixed() == {}


def test_a_value_that_is_none_changes_nothing():
    masks = tuning(fps=10.0)
    with pytest.raises(OptionError):
        masks.change({"smooth": "very", "refine_edges": True, "fps": 5.0})
    with pytest.raises(OptionError):
        masks.change({"smooth": "on", "refine_edges": True, "fps": 5000.0})
    assert masks.settings() == {"smooth": "auto", "refine_edges": False, "fps": 10.0}
