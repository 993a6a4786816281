"""Folders of labels, read back by programs that nobody here wrote."""

import json
import logging

import cv2
import numpy as np
import pytest
import yaml
from PIL import Image

from pipeline.errors import SinkError
from pipeline.frames.frame import Frame
from pipeline.render.look import Look
from pipeline.render.overlay import Renderer
from pipeline.sinks import labels as labels_module
from pipeline.sinks import open_sink
from pipeline.sinks.options import SinkOptions

CLASSES = ("background", "road", "car: red")


def class_mask():
    mask = np.zeros((60, 80), np.uint8)
    mask[5:30, 10:50] = 1
    mask[10:20, 20:30] = 0  # a hole
    mask[40:55, 60:80] = 2
    mask[40:50, 5:15] = 2
    return mask


def frames():
    masks = [class_mask(), np.zeros((60, 80), np.uint8), class_mask()[::-1]]
    for index, mask in enumerate(masks):
        image = np.repeat((mask * 100)[..., None], 3, axis=2)
        yield Frame(image, index, index / 25, "test", f"room/{index:06d}", mask=mask)


@pytest.fixture
def write(tmp_path, make_info):
    """``write("coco")``: a folder with the labels of three frames, the second of which is empty."""

    def call(labels, these=None, task="classes", classes=CLASSES, threshold=0.5, **facts):
        folder = tmp_path / labels
        renderer = Renderer(Look(threshold=threshold), task)
        info = make_info(**facts)
        options = SinkOptions(classes=classes, labels=labels, min_free_bytes=0)
        with open_sink(f"{folder}/", info, renderer, options) as sink:
            for frame in frames() if these is None else these:
                sink.write(frame)
        assert not [path for path in folder.rglob("*") if ".edgemask" in path.name]
        return folder

    return call


@pytest.mark.needs("pycocotools")
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_coco_reads_its_own(write, capsys):
    from pycocotools.coco import COCO

    folder = write("coco")
    coco = COCO(str(folder / "annotations.json"))
    assert {entry["id"]: entry["name"] for entry in coco.cats.values()} == {1: "road", 2: "car: red"}
    assert [entry["file_name"] for entry in coco.imgs.values()] == [f"room/{index:06d}.jpg" for index in range(3)]
    for entry, frame in zip(coco.imgs.values(), frames(), strict=True):
        with Image.open(folder / "images" / entry["file_name"]) as picture:
            assert picture.size == (entry["width"], entry["height"]) == (80, 60)
        drawn = np.zeros((60, 80), np.uint8)
        for annotation in coco.imgToAnns[entry["id"]]:
            own = coco.annToMask(annotation)
            assert own.sum() == annotation["area"]
            drawn[own > 0] = annotation["category_id"]
            left, top, width, height = annotation["bbox"]
            assert cv2.boundingRect(own) == (left, top, width, height)
        assert np.array_equal(drawn, frame.mask)
    assert sorted(coco.getImgIds(catIds=[2])) == [1, 3]


def test_coco_is_whole_during_a_long_run(tmp_path, make_info, monkeypatch):
    monkeypatch.setattr(labels_module, "_WRITE_EVERY_S", 0.0)
    path = tmp_path / "out" / "annotations.json"
    sink = open_sink(
        f"{tmp_path}/out/", make_info(), Renderer(Look(), "classes"), SinkOptions(classes=CLASSES, labels="coco")
    )
    sizes = []
    for index, frame in enumerate(frames()):
        sink._writer._due_s = 0.0
        sink.write(frame)
        content = json.loads(path.read_text())
        assert len(content["images"]) == index + 1
        sizes.append(len(content["annotations"]))
    assert sizes == [3, 3, 6]
    sink.close()
    sink.close()
    assert len(json.loads(path.read_text())["annotations"]) == 6


def test_yolo_lines(write):
    folder = write("yolo")
    data = yaml.safe_load((folder / "data.yaml").read_text())
    assert data == {
        "path": str(folder),
        "train": "images",
        "val": "images",
        "names": {0: "road", 1: "car: red"},
    }
    for frame in frames():
        drawn = np.zeros((60, 80), np.uint8)
        for line in (folder / "labels" / f"{frame.name}.txt").read_text().splitlines():
            number, *shares = line.split()
            corners = np.array(shares, float).reshape(-1, 2)
            assert (corners > 0).all()
            assert (corners < 1).all()
            cv2.fillPoly(drawn, [(corners * (80, 60)).astype(np.int32)], int(number) + 1)
        assert np.array_equal(drawn, frame.mask)
        assert (folder / "images" / f"{frame.name}.jpg").exists()


@pytest.mark.needs("ultralytics")
@pytest.mark.filterwarnings("ignore")
def test_ultralytics_reads_them(write, tmp_path, monkeypatch):
    monkeypatch.setenv("YOLO_CONFIG_DIR", str(tmp_path))
    from ultralytics.data.utils import polygon2mask, verify_image_label

    folder = write("yolo")
    for frame in frames():
        picture, label = folder / "images" / f"{frame.name}.jpg", folder / "labels" / f"{frame.name}.txt"
        _, found, shape, segments, _, missing, _, _, corrupt, message = verify_image_label(
            (str(picture), str(label), "", False, 2, 0, 0, False)
        )
        assert (shape, missing, corrupt, message) == ((60, 80), 0, 0, "")
        drawn = np.zeros((60, 80), np.uint8)
        for number, segment in zip(found[:, 0], segments, strict=True):
            own = polygon2mask((60, 80), [(segment * (80, 60)).reshape(-1)])
            drawn[own > 0] = int(number) + 1
        assert np.array_equal(drawn, frame.mask)


def test_png_maps(write):
    folder = write("png")
    assert (folder / "classes.txt").read_text() == "background\nroad\ncar: red\n"
    for frame in frames():
        with Image.open(folder / "masks" / f"{frame.name}.png") as picture:
            assert picture.mode == "L"
            assert np.array_equal(np.asarray(picture), frame.mask)


def test_png_maps_of_probabilities(write):
    mask = np.arange(200, dtype=np.uint8).reshape(10, 20)
    frame = Frame(np.zeros((10, 20, 3), np.uint8), 0, 0.0, "test", "a", mask=mask)
    folder = write("png", [frame], task="binary", classes=("subject",), threshold=0.25)
    assert (folder / "classes.txt").read_text() == "background\nsubject\n"
    with Image.open(folder / "masks" / "a.png") as picture:
        assert np.array_equal(np.asarray(picture), mask >= 64)


def test_masks_that_are_wrong_are_left_out(write, caplog):
    these = list(frames())
    these[0].not_finite, these[2].stale = 5, True
    with caplog.at_level(logging.INFO, "edgemask"):
        folder = write("yolo", these)
    assert [path.name for path in (folder / "labels" / "room").iterdir()] == ["000001.txt"]
    assert "2 frames were left out: their masks are old or not finite" in caplog.text


def test_labels_are_not_mixed(write):
    write("coco")
    with pytest.raises(SinkError, match=r"expected a folder without labels, got one with annotations\.json"):
        write("coco")


def test_a_full_disk_keeps_what_is_there(tmp_path, make_info):
    options = SinkOptions(classes=CLASSES, labels="coco", min_free_bytes=1 << 60)
    sink = open_sink(f"{tmp_path}/out/", make_info(live=True), Renderer(Look(), "classes"), options)
    with pytest.raises(SinkError, match="free on the disk"):
        sink.write(next(frames()))
    sink.close()
    assert json.loads((tmp_path / "out" / "annotations.json").read_text())["images"] == []


def test_labels_need_a_folder(refused):
    assert refused("test://", "--output", "out.mp4", "--labels", "coco") == (
        "error: --labels coco: expected a folder that they go to, got none: give --output labels/"
    )


def test_the_command_writes_labels(main, tmp_path):
    done = main("test://?frames=3&size=64x48", "--output", f"{tmp_path}/out/", "--labels", "yolo")
    assert (done.status, done.err) == (0, [])
    assert len(list((tmp_path / "out" / "labels").iterdir())) == 3
