"""Classes that are made quickly behave as those of ``dataclasses``."""

import copy
import dataclasses
import pickle
import subprocess
import sys
from dataclasses import FrozenInstanceError, asdict, field, fields, replace

import pytest

from pipeline import quick_dataclass
from tests.conftest import ROOT

MAKERS = {"dataclasses": dataclasses.dataclass, "quick": quick_dataclass.dataclass}


def classes(make):
    @make(frozen=True, slots=True)
    class Point:
        """Of a plane."""

        x: int
        y: int = 2
        names: list = field(default_factory=list, hash=False)
        hidden: str = field(default="h", repr=False, compare=False)

    @make(frozen=True, kw_only=True)
    class Row:
        """Of a table."""

        name: str
        order: int = 100

        def cells(self):
            """Its own."""
            return [self.name]

    @make(frozen=True, kw_only=True)
    class Longer(Row):
        """With more."""

        more: tuple = ()

        def cells(self):
            """With the rest."""
            return [*super().cells(), *self.more]

    @make(slots=True)
    class Changing:
        """Not frozen."""

        x: int = 1

    @make(frozen=True, eq=False)
    class Itself:
        """Equal to itself alone."""

        x: int = 1

    return Point, Longer, Changing, Itself


@pytest.fixture(params=MAKERS)
def made(request):
    return classes(MAKERS[request.param])


def test_equality_hash_and_text(made):
    point, longer, changing, itself = made
    assert point(1) == point(1, 2, [], "other") != point(1, 3)
    assert point(1) != (1, 2, [])
    assert hash(point(1)) == hash(point(1, names=[4]))
    assert repr(point(1)).endswith("Point(x=1, y=2, names=[])")
    assert longer(name="a") == longer(name="a") != longer(name="a", more=(1,))
    assert len({longer(name="a"), longer(name="a")}) == 1
    assert changing() == changing(1) != changing(2)
    assert itself() != itself()
    assert len({itself(), itself()}) == 2
    with pytest.raises(TypeError, match="unhashable"):
        hash(changing())


def test_what_is_frozen_stays(made):
    point, longer, changing, itself = made
    for one, name in ((point(1), "x"), (point(1), "names"), (longer(name="a"), "order"), (itself(), "x")):
        before = repr(one)
        for change in (lambda: setattr(one, name, 5), lambda: delattr(one, name)):  # noqa: B023 - called here
            with pytest.raises(FrozenInstanceError, match=name):
                change()
        assert repr(one) == before
    for one in (point(1), longer(name="a")):
        with pytest.raises((AttributeError, TypeError)):  # of slots, ``dataclasses`` stumbles
            one.unheard_of = 1
    free = changing()
    free.x = 7
    assert free == changing(7)


def test_arguments_defaults_and_fields(made):
    point, longer, _, _ = made
    assert point(1).names is not point(1).names
    assert replace(point(1), x=4) == point(4)
    assert asdict(point(1)) == {"x": 1, "y": 2, "names": [], "hidden": "h"}
    assert [one.name for one in fields(longer)] == ["name", "order", "more"]
    assert longer(name="a", more=(1,)).cells() == ["a", 1]
    assert not hasattr(point(1), "__dict__")
    with pytest.raises(TypeError):
        point()
    with pytest.raises(TypeError):
        longer("a")


def test_one_that_holds_itself_can_be_shown(made):
    point = made[0]
    one = point(1)
    one.names.append(one)
    assert repr(one).count("...") == 1


@quick_dataclass.dataclass(frozen=True, slots=True)
class Travelling:
    """Found by its name, as pickle asks."""

    x: int
    y: tuple = ()


def test_it_can_be_copied_and_sent():
    one = Travelling(1, (2,))
    for other in (copy.copy(one), copy.deepcopy(one), pickle.loads(pickle.dumps(one))):
        assert other == one
        with pytest.raises(FrozenInstanceError):
            other.x = 2


def test_a_method_of_its_own_stays():
    @quick_dataclass.dataclass(frozen=True)
    class Shouting:
        x: int

        def __repr__(self):
            return "MINE"

        def __eq__(self, other):
            return False

    assert repr(Shouting(1)) == "MINE"
    assert Shouting(1) != Shouting(1)


MADE = """
import dataclasses, sys
sys.path.insert(0, {root!r})
made, make = [], dataclasses.dataclass
def note(cls=None, **options):
    if cls is None:
        return lambda cls: note(cls, **options)
    if options.get("repr", True) and cls.__module__.startswith("pipeline."):
        made.append(cls.__module__)
    return make(cls, **options)
dataclasses.dataclass = note
from pipeline.__main__ import main
print(main(sys.argv[1:]), *made)
"""


def test_what_a_video_s_first_mask_waits_for_is_made_so(first_frame_of_clip, tmp_path):
    command = [sys.executable, "-c", MADE.format(root=str(ROOT)), *first_frame_of_clip]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0"
