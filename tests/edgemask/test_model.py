"""``edgemask.Model``: masks of pictures and streams, views, and what it refuses."""

import cv2
import numpy as np
import pytest

import edgemask
from edgemask import BundleError, Model, OptionError, ShapeError, open_sink, open_source, open_sources

SOURCE = "test://?size=64x48&frames=7"


@pytest.fixture
def model(red_bundle):
    with Model(red_bundle.folder) as model:
        yield model


def test_a_picture_and_several(model):
    images = np.random.default_rng(0).integers(0, 256, (3, 20, 30, 3), np.uint8)
    mask = model(images[0])
    assert (mask.shape, mask.dtype) == ((20, 30), np.uint8)
    assert (mask == images[0, ..., 2]).all()  # the program of the fixture: the mask is the picture's red
    assert (model(images) == images[..., 2]).all()
    assert (model(images[:, ::2, ::-1]) == images[:, ::2, ::-1, 2]).all()  # as slices lie in memory


@pytest.mark.parametrize(
    "image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), "photo.jpg", np.zeros((4, 4, 3))]
)
def test_what_is_no_picture_is_refused(model, image):
    with pytest.raises(ShapeError, match="uint8"):
        model(image)


def test_a_stream_gives_each_frame_its_mask(model):
    with open_source(SOURCE) as source:
        frames = list(model.stream(source))
    assert [frame.index for frame in frames] == list(range(7))
    for frame in frames:
        assert (frame.mask == frame.image[..., 2]).all()


def test_a_stream_may_be_left_early_and_the_model_goes_on(model):
    with open_source(SOURCE) as source:
        for frame in model.stream(source):
            if frame.index == 1:
                with pytest.raises(RuntimeError, match="stream"):
                    model(frame.image)
                break
    image = np.full((8, 8, 3), 9, np.uint8)
    assert (model(image) == 9).all()
    with open_source(SOURCE) as source:
        assert len(list(model.stream(source, max_frames=3))) == 3


def test_several_sources_in_turn(model):
    sources = open_sources([SOURCE, SOURCE])
    frames = list(model.stream(sources))
    for source in sources:
        assert [frame.index for frame in frames if frame.source == source.info.name] == list(range(7))
    same = [open_source(SOURCE), open_source(SOURCE)]
    with pytest.raises(OptionError, match="open_sources"):
        next(model.stream(same))


def test_views(model):
    image = np.zeros((8, 8, 3), np.uint8)
    image[..., 2] = 255
    mask = model(image)
    assert (model.draw(image, mask, mode="mask") == 255).all()
    assert model.draw(image, mask, mode="side").shape == (8, 16, 3)
    strong, weak = (model.draw(image, mask, alpha=alpha) for alpha in (1.0, 0.25))
    assert (strong != weak).any()  # each look is that of its own call
    assert (model.draw(image, mask, alpha=1.0) == strong).all()
    assert (model.draw(image, mask) == model.draw(image, mask, mode="overlay")).all()
    with open_source(SOURCE) as source:
        frame = next(model.stream(source))
    assert model.draw(frame, alpha=0.0).shape == frame.image.shape
    with pytest.raises(OptionError, match="overlay"):
        model.draw(frame, mode="overly")
    with pytest.raises(OptionError, match="alpha"):
        model.draw(frame, colour=1)
    with pytest.raises(ShapeError, match="no mask"):
        model.draw(image)


def test_a_video_is_whole_after_the_block_and_gone_after_a_mistake(model, tmp_path):
    with open_source(SOURCE) as source, open_sink(str(tmp_path / "out.mp4"), source.info) as out:
        for frame in model.stream(source):
            frame.view = model.draw(frame)
            out.write(frame)
    video = cv2.VideoCapture(str(tmp_path / "out.mp4"))
    assert int(video.get(cv2.CAP_PROP_FRAME_COUNT)) == 7

    def write_and_fail():
        with open_source(SOURCE) as source, open_sink(str(tmp_path / "b.mp4"), source.info) as out:
            for frame in model.stream(source):
                frame.view = model.draw(frame)
                out.write(frame)
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_and_fail()
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]


def test_a_model_that_is_not_there(tmp_path):
    with pytest.raises(BundleError, match="nothing-here"):
        Model(tmp_path / "nothing-here")


def test_regions_of_a_mask(model):
    image = np.zeros((40, 60, 3), np.uint8)
    image[5:15, 10:30, 2] = 200
    image[20:39, 40:50, 2] = 100  # below the threshold
    (region,) = model.regions(model(image))
    assert (region.name, region.xywh, region.pixels) == ("subject", (10, 5, 20, 10), 200)
    assert region.mean_probability == pytest.approx(200 / 255, abs=1e-3)
    assert len(model.regions(model(image), threshold=0.3)) == 2
    assert len(model.regions(model(image), threshold=0.3, max_regions=1)) == 1
    assert model.regions(model(image), min_share=0.1) == []


def test_regions_of_a_mask_with_classes():
    mask = np.zeros((40, 60), np.uint8)
    mask[5:15, 10:30], mask[20:30, 10:30], mask[35, 5] = 1, 2, 2
    found = edgemask.regions(mask, task="classes", classes=("nothing", "road"), min_share=0)
    assert [(region.number, region.name, region.pixels, region.label) for region in found] == [
        (1, "road", 200, 0),
        (2, "class 2", 200, 1),
        (2, "class 2", 1, 1),
    ]
    assert all(region.mean_probability is None for region in found)


@pytest.mark.parametrize(
    ("mask", "options", "message"),
    [
        (np.zeros((4, 4)), {}, r"mask: expected \(H, W\) uint8, got \(4, 4\) float64"),
        (np.zeros((4, 4, 3), np.uint8), {}, r"mask: expected \(H, W\) uint8, got \(4, 4, 3\) uint8"),
        (np.zeros((4, 4), np.uint8), {"task": "both"}, "task: expected binary or classes, got 'both'"),
        (np.zeros((4, 4), np.uint8), {"threshold": 2}, "threshold: expected 0 to 1, got 2"),
        (np.zeros((4, 4), np.uint8), {"min_share": -1}, "min_share: expected 0 to 1, got -1"),
    ],
)
def test_what_has_no_regions_is_refused(mask, options, message):
    with pytest.raises((OptionError, ShapeError), match=message):
        edgemask.regions(mask, **options)
