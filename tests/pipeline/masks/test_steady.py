"""Which masks are steadied, and with whose memory."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from pipeline.errors import OptionError
from pipeline.frames.frame import Frame, SourceInfo
from pipeline.masks.steady import Steady
from pipeline.render.look import Look
from pipeline.render.overlay import Renderer


def source(name="a", live=True):
    return SimpleNamespace(info=SourceInfo(name, "", live=live))


def shown(steady, masks, name="a"):
    """What comes of masks over a picture that stands still."""
    texture = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
    seen = []
    for index, value in enumerate(masks):
        frame = Frame(texture, index, index / 25, name, str(index))
        frame.mask = np.full((40, 60), value, np.uint8)
        steady(frame)
        seen.append(int(frame.mask[20, 30]))
    return seen


FLICKER = [200, 60] * 20


@pytest.mark.parametrize(
    ("smooth", "live", "steadied"),
    [
        ("auto", True, True),
        ("auto", False, False),
        ("on", False, True),
        ("strong", False, True),
        ("off", True, False),
    ],
)
def test_what_is_steadied(smooth, live, steadied):
    renderer = Renderer(Look(), "binary")
    seen = shown(Steady(smooth, False, "binary", renderer, [source(live=live)]), FLICKER)
    assert (seen == FLICKER) is not steadied
    if steadied:
        assert min(seen) >= 128  # it began as subject and is never clearly none


def test_a_stale_mask_stays_as_it_is():
    steady = Steady("on", True, "binary", Renderer(Look(), "binary"), [source()])
    shown(steady, FLICKER[:5])
    frame = Frame(np.full((40, 60, 3), 90, np.uint8), 5, 0.2, "a", "5", stale=True)
    frame.mask = mask = np.full((40, 60), 60, np.uint8)
    steady(frame)
    assert frame.mask is mask


def test_strong_is_slower_than_on():
    renderer = Renderer(Look(), "binary")
    steps = [200] * 5 + [110] * 20
    on, strong = (shown(Steady(smooth, False, "binary", renderer, [source()]), steps) for smooth in ("on", "strong"))
    assert on[10] < strong[10]


def test_each_source_has_a_memory_of_its_own():
    renderer = Renderer(Look(), "binary")
    steady = Steady("on", False, "binary", renderer, [source("a"), source("b")])
    assert shown(steady, [255] * 10, "a")[-1] == 255
    assert shown(steady, [0] * 10, "b") == [0] * 10


def test_the_threshold_is_the_one_that_is_shown():
    renderer = Renderer(Look(), "binary")
    steady = Steady("on", False, "binary", renderer, [source()])
    renderer.look = replace(renderer.look, threshold=0.9)
    assert max(shown(steady, [100] + [200] * 60)[1:]) < 0.9 * 255


def test_edges_of_classes_are_left_alone():
    renderer = Renderer(Look(), "classes")
    assert shown(Steady("off", True, "classes", renderer, [source()]), [3, 7, 3]) == [3, 7, 3]


def test_edges_are_drawn_where_asked_for():
    image = np.zeros((120, 160, 3), np.uint8)
    image[:, 80:] = 200
    mask = np.tile(np.clip((np.arange(160) - 70) * 12, 0, 255).astype(np.uint8), (120, 1))
    frame = Frame(image, 0, 0.0, "a", "0", mask=mask.copy())
    Steady("off", True, "binary", Renderer(Look(), "binary"), [source()])(frame)
    truth = (image[..., 0] > 0) * 255
    assert np.abs(frame.mask.astype(int) - truth).mean() < np.abs(mask.astype(int) - truth).mean()


def test_another_task_is_refused():
    with pytest.raises(OptionError, match="task: expected binary or classes"):
        Steady("on", False, "depth", Renderer(Look(), "binary"), [source()])


def test_smoothing_is_turned_on_and_off_while_it_runs():
    steady = Steady("off", False, "binary", Renderer(Look(), "binary"), [source()])
    assert not steady.changes
    assert shown(steady, FLICKER) == FLICKER
    steady.change("strong", edges=False)
    assert min(shown(steady, FLICKER)) >= 128
    remembered = steady._smoothings
    steady.change("strong", edges=True)  # edges alone: what was remembered stays
    assert steady._smoothings is remembered
    steady.change("off", edges=False)
    assert shown(steady, FLICKER) == FLICKER
