"""Which outputs the options name, and which of them are opened for which source."""

import os
import sys

import numpy as np
import pytest

from pipeline.command.appearance import Appearance
from pipeline.command.options import parse_options
from pipeline.command.outputs import OutputOpener, has_window, open_page, output_specs
from pipeline.errors import BackendUnavailableError, OptionError, SinkError
from pipeline.flow.views import Views
from pipeline.frames.frame import Frame
from pipeline.page.options import Watched
from pipeline.render.annotations import Annotations
from pipeline.sources import open_sources


@pytest.fixture
def opened(red_bundle, renderer, tmp_path, monkeypatch, said):
    """``opened("--output", …)``: the sinks for two sources of two names, with what was said."""
    monkeypatch.chdir(tmp_path)
    everything = []

    def call(*arguments, sources=("test://?frames=2&size=16x8", "test://?frames=2&size=16x8")):
        words = [word for spec in sources for word in ("--source", spec)]
        options = parse_options([*words, *map(str, arguments)])
        opened_sources, sinks = open_sources(options.sources), []
        everything.append(sinks)
        annotations = Annotations(red_bundle.manifest, "none", renderer, hud=False, legend=False)
        appearance = Appearance(renderer, annotations, Views(renderer))
        classes = red_bundle.manifest.classes
        opener = OutputOpener(options, opened_sources, appearance, classes=classes, window=False)
        for source in opened_sources:
            opener(sinks, source, many=len(opened_sources) > 1)
        if options.page is not None:
            run = Watched({source.info.name: source.telemetry for source in opened_sources})
            sinks.append(open_page(options.page, run, appearance))
        return opened_sources, sinks, said

    yield call
    for sinks in everything:
        for sink in sinks:
            sink.discard()


def write_to(sinks, source, index):
    frame = Frame(np.full((8, 16, 3), 40 * index, np.uint8), index, index / 30, source.info.name, f"{index:06d}")
    frame.mask, frame.view = frame.image[..., 2].copy(), frame.image.copy()
    for sink in sinks:
        sink.write(frame)


@pytest.mark.parametrize(
    ("output", "names"),
    [
        ("out.mp4", ["out-test-2.mp4", "out-test.mp4"]),
        ("{source}_masks.mp4", ["test-2_masks.mp4", "test_masks.mp4"]),
    ],
)
def test_each_source_has_files_of_its_own(opened, tmp_path, output, names):
    sources, sinks, _ = opened("--output", output)
    for index in range(3):
        write_to(sinks, sources[0], index)
    write_to(sinks, sources[1], 0)
    for sink in sinks:
        sink.close()
    assert sorted(os.listdir(tmp_path)) == names
    assert sorted(sink.written for sink in sinks) == names


def test_one_source_keeps_the_name_as_it_is(opened):
    sources, sinks, _ = opened("--output", "out.mp4", sources=("test://?frames=2&size=16x8",))
    write_to(sinks, sources[0], 0)
    sinks[0].close()
    assert sinks[0].written == "out.mp4"


def test_save_is_named_after_the_source():
    options = parse_options(["--source", "a", "--output", "x.mp4", "--save", "--render", "mask"])
    (source,) = open_sources(["test://?frames=1"])
    assert output_specs(options, source.info) == ["x.mp4", "test_mask.mp4"]


def test_those_that_are_open_can_be_closed_when_the_next_cannot_be(opened, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SinkError, match="cannot be written"):
        opened("--output", "out.mp4", "--output", "file/out.mp4")


@pytest.fixture
def window(monkeypatch, said):
    """``window("--show", problem=…)``: whether there is one, and what was told."""

    def call(*arguments, problem="no screen"):
        monkeypatch.setattr("pipeline.sinks.display.display_problem", lambda: problem)
        said.clear()
        options = parse_options(["--source", "0", *arguments])
        return has_window(options.outputs, page=options.page is not None), said

    return call


OTHERS = [("--output", "null"), ("--save",), ("--serve",)]


def test_what_would_come_out_nowhere_is_refused(window):
    for arguments in ([], ["--show"], ["--headless"], ["--show", "--headless"]):
        with pytest.raises(OptionError, match=r"--output out\.mp4.*--serve.*--output null"):
            window(*arguments)


def test_a_window_is_the_output_where_no_other_is_named(window):
    assert window(problem=None) == (True, [])
    with pytest.raises(OptionError, match="--headless"):
        window("--headless", problem=None)


@pytest.mark.parametrize("other", OTHERS)
def test_beside_other_outputs_a_window_is_there_when_it_is_asked_for(window, other):
    assert window(*other, problem=None) == (False, [])
    assert window(*other, "--headless") == (False, [])
    assert window(*other, "--show", problem=None) == (True, [])


@pytest.mark.parametrize("other", OTHERS)
def test_one_that_cannot_be_is_told_where_others_go_on(window, other):
    for reason, arguments in (("no screen", ["--show"]), ("--headless", ["--show", "--headless"])):
        shown, told = window(*other, *arguments)
        assert not shown
        assert len(told) == 1
        assert reason in told[0]


@pytest.mark.needs("aiohttp")
def test_the_page_is_one_for_all_sources(opened):
    sources, sinks, said = opened("--serve", "127.0.0.1:0")
    assert len(sinks) == 1
    assert said[0].startswith("page: http://127.0.0.1:")
    for source in sources:
        write_to(sinks, source, 0)


def test_without_its_packages_the_page_says_what_installs_them(opened, monkeypatch):
    monkeypatch.setitem(sys.modules, "pipeline.page.sink", None)
    with pytest.raises(BackendUnavailableError, match=r"--serve: .*: pip install 'edgemask\[page\]'$"):
        opened("--serve")
