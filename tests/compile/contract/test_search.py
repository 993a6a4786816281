"""Examples tell which preprocessing a network was given, and what they leave open is said."""

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from compile.contract.examples import read_examples
from compile.contract.found import HONORED
from compile.contract.infer import infer_contract
from compile.contract.search import search, told
from pipeline.errors import CompileError
from tests.compile.contract.family_networks import Plain, export

SIZE_HW = (32, 48)
MEAN, STD = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)


class Answering(nn.Module):
    """A network whose answer depends on each of its three channels, and on how far they are from 0."""

    def __init__(self, classes=1, end=None):
        super().__init__()
        torch.manual_seed(5)
        self.first, self.last = nn.Conv2d(3, 24, 3, padding=1), nn.Conv2d(24, classes, 3, padding=1)
        with torch.no_grad():
            self.first.weight.mul_(2)
            self.last.weight.mul_(6)
        self.end = end

    def forward(self, x):
        y = self.last(torch.tanh(self.first(x)))
        return y if self.end is None else self.end(y)


def centered(network, inputs):
    """The network with thresholds in the middle of what it gives for some inputs: masks with both subject and background."""
    with torch.no_grad():
        end, network.end = network.end, None
        scores = torch.cat([network(x) for x in inputs])
        network.last.bias.sub_(scores.median(0).values.median(1).values.median(1).values)
        network.end = end
    return network.eval()


def prepared(picture, order, scale, interpolation=cv2.INTER_LINEAR):
    """A picture as people prepare it, with OpenCV."""
    x = cv2.resize(picture.astype(np.float32), SIZE_HW[::-1], interpolation=interpolation)
    x = scale(x[:, :, ::-1] if order == "rgb" else x)
    return torch.from_numpy(np.ascontiguousarray(x.transpose(2, 0, 1)[None], np.float32))


def boxed(picture):
    """A picture in a letterbox of the network's shape, gray bars at both sides; and the columns that it has there."""
    height, width = picture.shape[:2]
    whole = height * SIZE_HW[1] // SIZE_HW[0]
    left = (whole - width) // 2
    box = np.full((height, whole, 3), 114, np.uint8)
    box[:, left : left + width] = picture
    return box, slice(left, left + width)


def unit(x):
    return x / 255


def imagenet(x):
    return (x / 255 - MEAN) / STD


def imagenet_bgr(x):
    return (x / 255 - MEAN[::-1]) / STD[::-1]


def symmetric(x):
    return x / 127.5 - 1


def enlarged(scores, size_hw):
    return cv2.resize(scores.numpy(), size_hw[::-1], interpolation=cv2.INTER_LINEAR)


@pytest.fixture
def plant(tmp_path, pictures):
    """``plant(network, order, scale)``: the network as ONNX, and a folder of examples made with it; gives both paths."""

    def make(network, order, scale, *, count=5, gray=False, interpolation=cv2.INTER_LINEAR):
        images = pictures(count, 96, 140, seed=3)
        if gray:
            images = np.repeat(images[..., :1], 3, 3)
        inputs = [prepared(image, order, scale, interpolation) for image in images]
        network = centered(network, inputs)
        folder = tmp_path / "examples"
        for name in ("images", "masks"):
            (folder / name).mkdir(parents=True)
        for index, (image, x) in enumerate(zip(images, inputs, strict=True)):
            with torch.no_grad():
                scores = network(x)[0]
            if len(scores) > 1:
                mask = cv2.resize(scores.argmax(0).byte().numpy(), (140, 96), interpolation=cv2.INTER_NEAREST)
            else:
                probability = scores[0] if network.end is not None else torch.sigmoid(scores[0])
                mask = (enlarged(probability, (96, 140)) >= 0.5).astype(np.uint8) * 255
            cv2.imwrite(str(folder / "images" / f"{index}.png"), image)
            cv2.imwrite(str(folder / "masks" / f"{index}.png"), mask)
        return export(network, tmp_path / "net.onnx", (1, 3, *SIZE_HW)), folder

    return make


def searched(path, folder, count=12):
    found, trial = infer_contract(path)
    return search(found, trial, read_examples(folder, count))


@pytest.mark.parametrize(
    ("order", "scale", "divide_by", "mean", "std"),
    [
        ("rgb", unit, 255.0, (0.0,) * 3, (1.0,) * 3),
        ("bgr", unit, 255.0, (0.0,) * 3, (1.0,) * 3),
        ("rgb", imagenet, 255.0, tuple(MEAN), tuple(STD)),
        ("bgr", imagenet_bgr, 255.0, tuple(MEAN[::-1]), tuple(STD[::-1])),
        ("bgr", imagenet, 255.0, tuple(MEAN), tuple(STD)),
        ("rgb", symmetric, 255.0, (0.5,) * 3, (0.5,) * 3),
    ],
)
def test_planted_preprocessing_is_found(plant, order, scale, divide_by, mean, std):
    result = searched(*plant(Answering(), order, scale))
    contract = result.found.contract
    assert (contract.channels, contract.divide_by) == (order, divide_by)
    assert contract.mean == pytest.approx(mean)
    assert contract.std == pytest.approx(std)
    assert contract.filter == "bilinear"
    assert result.taken.mean > 0.97
    assert result.found.facts["channels"].is_known
    assert "examples: mean IoU" in result.found.yaml()
    # Far fewer runs than candidates and examples: all are tried on two alone.
    assert result.count[1] < result.count[0] * 5


def test_the_filter_is_found(plant):
    result = searched(*plant(Answering(), "rgb", imagenet, interpolation=cv2.INTER_AREA))
    assert result.found.contract.filter == "area"
    assert result.found.facts["filter"].is_known


def test_what_the_output_is_is_found(plant):
    result = searched(*plant(Answering(end=torch.sigmoid), "rgb", unit))
    assert (result.found.contract.activation, result.found.contract.stretch) == ("none", False)
    assert result.taken.mean > 0.97


def test_classes(plant):
    path, folder = plant(Answering(4), "bgr", symmetric)
    result = searched(path, folder)
    assert (result.found.contract.channels, result.found.contract.mean) == ("bgr", (0.5,) * 3)
    assert result.taken.mean > 0.95


def test_gray_pictures_leave_the_order_open(plant):
    result = searched(*plant(Answering(), "rgb", unit, gray=True))
    contract = result.found.contract
    # Whichever is taken, masks of gray pictures are the same, and colored ones would differ: it is told.
    assert contract.channels == "rgb"
    assert "bgr" in result.found.facts["channels"].origin
    assert "rgb" in result.found.facts["channels"].origin
    lines = list(told(result))
    assert any("<- taken" in line for line in lines)
    assert any("<- tied" in line and "bgr" in line for line in lines)


def test_values_that_agree_by_chance_are_told(plant):
    """Of one picture nearly every candidate does as well where the network hardly looks at its input."""
    network = Answering()
    with torch.no_grad():
        network.first.weight[:, 1:] = 0  # one channel alone: with the mean of both orders the same
    path, folder = plant(network, "rgb", lambda x: x / 255, gray=True, count=1)
    result = searched(path, folder)
    assert len(result.tied) > 1
    assert "not to be told from" in result.found.yaml()


def test_masks_of_another_network(plant, tmp_path):
    path, folder = plant(Answering(), "rgb", unit)
    random = np.random.default_rng(0)
    for mask in (folder / "masks").iterdir():
        cv2.imwrite(str(mask), (random.random((96, 140)) < 0.5).astype(np.uint8) * 255)
    result = searched(path, folder)
    assert "no candidate reproduces the masks" in result.doubts[0]
    assert "no candidate reproduces the masks" in result.found.line()
    assert not result.found.facts["channels"].is_known


@pytest.mark.skipif("fit" not in HONORED, reason="the frame program has no letterbox")
def test_a_letterbox_is_found(tmp_path, pictures):
    images = pictures(4, 96, 66, seed=3)
    boxes = [boxed(image) for image in images]
    inputs = [prepared(box, "rgb", unit) for box, _ in boxes]
    network = centered(Answering(), inputs)
    for index, (image, (box, columns), x) in enumerate(zip(images, boxes, inputs, strict=True)):
        with torch.no_grad():
            probability = enlarged(torch.sigmoid(network(x)[0, 0]), box.shape[:2])
        cv2.imwrite(str(tmp_path / f"{index}.bmp"), image)
        cv2.imwrite(str(tmp_path / f"{index}.png"), (probability[:, columns] >= 0.5).astype(np.uint8) * 255)
    result = searched(export(network, tmp_path / "net.onnx", (1, 3, *SIZE_HW)), tmp_path)
    assert (result.found.contract.fit, result.found.contract.pad) == ("letterbox", 114)
    assert result.taken.mean > 0.97
    assert result.found.facts["fit"].is_known
    assert "fit: letterbox" in result.found.yaml()


@pytest.mark.skipif("subject" not in HONORED, reason="the frame program has no subject")
def test_the_subject_is_found(plant):
    path, folder = plant(Answering(3), "rgb", imagenet)
    for mask in (folder / "masks").iterdir():
        values = cv2.imread(str(mask), cv2.IMREAD_GRAYSCALE)
        cv2.imwrite(str(mask), np.where(values == 2, 255, 0).astype(np.uint8))
    result = searched(path, folder)
    assert result.found.contract.subject == 2
    assert result.found.facts["subject"].is_known


# --- the folder


def write(folder, *names, size=(20, 30), value=0):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.full((*size, 3), value, np.uint8))


def test_pairs_beside_each_other_and_in_folders(tmp_path):
    write(tmp_path / "a", "1.jpg", "1.png", "2.jpg", "2_mask.png", "3.jpg")
    assert [example.name for example in read_examples(tmp_path / "a", 9)] == ["1.jpg", "2.jpg"]
    write(tmp_path / "b", *(f"images/{n}.png" for n in range(9)), *(f"Masks/{n}.png" for n in range(9)))
    assert [example.name for example in read_examples(tmp_path / "b", 3)] == ["0.png", "3.png", "6.png"]


def test_what_is_no_example_is_refused(tmp_path):
    with pytest.raises(CompileError, match="expected a folder"):
        read_examples(tmp_path / "none", 3)
    write(tmp_path / "c", "1.jpg")
    with pytest.raises(CompileError, match="got no pair"):
        read_examples(tmp_path / "c", 3)
    write(tmp_path / "d", "1.jpg")
    write(tmp_path / "d", "1.png", size=(20, 31))
    with pytest.raises(CompileError, match=r"1\.png: expected a mask of 20×30 as its picture 1\.jpg, got 20×31"):
        read_examples(tmp_path / "d", 3)
    write(tmp_path / "e", "1.jpg", "1.png", value=(1, 2, 3))
    with pytest.raises(CompileError, match="expected a gray mask, got colors"):
        read_examples(tmp_path / "e", 3)
    write(tmp_path / "f", "1.jpg", "1.png")
    found, trial = infer_contract(export(Plain(), tmp_path / "net.onnx"))
    with pytest.raises(CompileError, match="expected masks with a subject"):
        search(found, trial, read_examples(tmp_path / "f", 3))
