# A small recurrent network: its program's masks over a moving video are those of a plain loop in ONNX Runtime.

import re
import warnings

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import edgemask
from compile.__main__ import main
from compile.networks.contract import Contract, read_contract
from pipeline.bundles.bundle import Bundle
from pipeline.engines import open_engine
from pipeline.errors import CompileError, ShapeError
from pipeline.flow.run import run
from pipeline.flow.views import Views
from pipeline.frames.frame import Frame, SourceInfo
from pipeline.sources.base import Source

SIZE = 32


class Recurrent(nn.Module):
    """A convolution, a ConvGRU that remembers for a few frames, and a head; a ratio scales what is remembered."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.encode = nn.Conv2d(3, 6, 3, 2, 1)
        self.gates, self.candidate = nn.Conv2d(12, 12, 3, padding=1), nn.Conv2d(12, 6, 3, padding=1)
        self.head = nn.Conv2d(6, 1, 1)
        with torch.no_grad():
            self.head.weight.mul_(12)
            self.gates.bias.add_(1.0)

    def forward(self, x, h, ratio):
        y = self.encode(x).tanh()
        h = h.expand_as(y)
        reset, update = self.gates(torch.cat([y, h], 1)).sigmoid().split(6, 1)
        new = self.candidate(torch.cat([y, reset * h], 1)).tanh()
        h = (1 - update) * new + update * h * ratio
        return F.interpolate(self.head(h), (SIZE, SIZE), mode="bilinear"), h


def exported(path, *, open_shapes):
    network, inputs = Recurrent().eval(), (torch.zeros(1, 3, SIZE, SIZE), torch.zeros(1, 6, SIZE // 2, SIZE // 2))
    axes = {"h": {1: "c", 2: "a", 3: "b"}} if open_shapes else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            (*inputs, torch.tensor([0.9])),
            str(path),
            dynamo=False,
            opset_version=17,
            input_names=["x", "h", "ratio"],
            output_names=["y", "h2"],
            dynamic_axes=axes,
        )
    return path


@pytest.fixture(scope="module", params=[True, False], ids=["open", "fixed"])
def built(request, tmp_path_factory, pictures):
    folder = tmp_path_factory.mktemp("recurrent")
    exported(folder / "net.onnx", open_shapes=request.param)
    (folder / "mine.yaml").write_text(
        f"imgsz: {SIZE}\nfilter: bilinear\nactivation: sigmoid\nstate: {{h: h2}}\nconstants: {{ratio: 0.9}}\n"
    )
    (folder / "judged").mkdir()
    for index, picture in enumerate(pictures(8, 60, 80, seed=2)):
        cv2.imwrite(str(folder / "judged" / f"{index}.png"), picture)
    arguments = ["-w", "net.onnx", "-o", "bundle", "--contract", "mine.yaml", "--verify", "judged"]
    options = [str(folder / one) if not one.startswith("-") else one for one in arguments]
    assert main([*options, "--quiet"]) == 0
    return folder


def moving(pictures, seed, count=12):
    """A picture through a window that moves."""
    (picture,) = pictures(1, 120, 160, seed=seed)
    return [np.ascontiguousarray(picture[t : t + 60, 3 * t : 3 * t + 80]) for t in range(count)]


def looped(path, images):
    """Masks as a plain loop has them."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    h, masks = np.zeros((1, 6, SIZE // 2, SIZE // 2), np.float32), []
    for image in images:
        x = torch.from_numpy(image[None, ..., ::-1].copy()).permute(0, 3, 1, 2).float()
        x = F.interpolate(x, (SIZE, SIZE), mode="bilinear").numpy() / 255
        y, h = session.run(None, {"x": x, "h": h, "ratio": np.float32([0.9])})
        probability = F.interpolate(torch.from_numpy(y).sigmoid(), image.shape[:2], mode="bilinear")
        masks.append((probability[0, 0] * 255).round().numpy())
    return masks


class Images(Source):
    """A source of images in memory, with a time stamp each."""

    def __init__(self, name, images, times=None):
        self.info = SourceInfo(name, name, images[0].shape[:2], 25.0, None, len(images))
        super().__init__()
        self._images, self._times = images, times or [index / 25 for index in range(len(images))]

    def __iter__(self):
        for index, (image, pts_s) in enumerate(zip(self._images, self._times, strict=True)):
            yield Frame(image, index, pts_s, self.info.name, str(index))

    def close(self):
        pass


def same(got, expected):
    assert len(got) == len(expected)
    for one, other in zip(got, expected, strict=True):
        assert np.abs(one.astype(int) - other).max() <= 1


def test_the_bundle_says_what_it_keeps(built):
    bundle = Bundle.read(built / "bundle")
    assert bundle.manifest.contract["state"] == {"h": "h2"}
    assert bundle.manifest.precision == "fp32"
    assert bundle.manifest.verification["iou_mean"] > 0.9999
    graph = onnx.load(bundle.program_path).graph
    assert [value.name for value in graph.input] == ["frames", "state/h"]
    assert [value.name for value in graph.output] == ["masks", "not_finite", "next/h"]
    shape = [axis.dim_value for axis in graph.input[1].type.tensor_type.shape.dim]
    assert shape == [1, 6, SIZE // 2, SIZE // 2]
    assert Contract.from_dict(bundle.manifest.contract).constants == {"ratio": 0.9}


def test_a_moving_video_is_a_plain_loop(built, pictures):
    images = moving(pictures, 5)
    expected = looped(built / "net.onnx", images)
    alone = [looped(built / "net.onnx", [image])[0] for image in images]
    assert max(np.abs(one - other).max() for one, other in zip(alone, expected, strict=True)) > 8  # it does remember
    model = edgemask.Model(built / "bundle", "onnxruntime")
    same([frame.mask for frame in model.stream(Images("a", images))], expected)
    same([frame.mask for frame in model.stream(Images("a", images))], expected)  # the end of a stream is an end
    same([model(image) for image in images], alone)  # a picture is none of a video
    same(list(model(np.stack(images))), alone)


def test_two_sources_have_a_memory_each(built, pictures):
    videos = {"one": moving(pictures, 5), "two": moving(pictures, 6, 9)}
    masks = {name: [] for name in videos}
    model = edgemask.Model(built / "bundle", "onnxruntime")
    for frame in model.stream([Images(name, images) for name, images in videos.items()]):
        masks[frame.source].append(frame.mask)
    for name, images in videos.items():
        same(masks[name], looped(built / "net.onnx", images))
    masks = {name: [] for name in videos}
    with open_engine(model.bundle, "onnxruntime", overlap=True) as engine:  # two at once would be out of order
        assert engine.in_flight == 1
        render = Views(lambda image, mask: image, annotate=lambda frame, _: masks[frame.source].append(frame.mask))
        run([Images(name, images) for name, images in videos.items()], engine, render, [])
    for name, images in videos.items():
        same(masks[name], looped(built / "net.onnx", images))


def test_another_scene_begins_anew(built, pictures):
    first, second = moving(pictures, 5, 6), [255 - image // 8 for image in moving(pictures, 7, 6)]
    expected = looped(built / "net.onnx", first) + looped(built / "net.onnx", second)
    model = edgemask.Model(built / "bundle", "onnxruntime")
    same([frame.mask for frame in model.stream(Images("a", [*first, *second]))], expected)


@pytest.mark.parametrize("later", [-0.2, 5.0], ids=["begins again", "was lost"])
def test_time_that_leaps_begins_anew(built, pictures, later):
    images = moving(pictures, 5, 8)
    times = [index / 25 for index in range(4)]
    times += [later + times[-1] + index / 25 for index in range(4)]
    expected = looped(built / "net.onnx", images[:4]) + looped(built / "net.onnx", images[4:])
    model = edgemask.Model(built / "bundle", "onnxruntime")
    same([frame.mask for frame in model.stream(Images("a", images, times))], expected)


def test_the_gate_sees_what_is_remembered(built, tmp_path, monkeypatch):
    """A program that forgets is right on single frames, and does not pass."""
    import compile.steps as steps

    real = steps.program_masks

    def forgetting(content, *more):
        masks, runtime = real(content, *more)
        return lambda frames: np.concatenate([masks(frame[None]) for frame in frames]), runtime

    monkeypatch.setattr(steps, "program_masks", forgetting)
    arguments = ["-w", "net.onnx", "--contract", "mine.yaml", "--verify", "judged"]
    options = [str(built / one) if not one.startswith("-") else one for one in arguments]
    assert main([*options, "-o", str(tmp_path / "bundle"), "--quiet"]) == 2


@pytest.mark.parametrize(
    ("extra", "options", "message"),
    [
        ("", ["--precision", "fp16"], "expected fp32 for a network that keeps state between frames, got fp16"),
        ("", ["--target", "torch-tensorrt"], "--target: expected onnx, tensorrt or tensorrt-rtx for .* keeps state"),
        ("", ["--target", "torch-tensorrt", "--batch", "2"], "--batch: expected 1"),
        ("state: {q: h2}", [], "got none called q: its inputs are x, h, ratio, its outputs h2, y"),
        ("state: {h: q}", [], "got none called q"),
        ("state: {h: h}", [], "state: expected input: output for each, and every name once"),
        ("state: [h]", [], "state: expected input: output for each"),
        ("constants: {ratio: much}", [], "constants: expected input: number for each"),
        ("constants: {}", [], "got x, ratio: its inputs"),
        ("output: q", [], "output: expected one of y, got 'q'"),
    ],
)
def test_what_is_refused(built, tmp_path, capsys, extra, options, message):
    lines = dict(line.split(": ", 1) for line in (built / "mine.yaml").read_text().splitlines())
    lines |= dict([extra.split(": ", 1)]) if extra else {}
    (tmp_path / "mine.yaml").write_text("".join(f"{key}: {value}\n" for key, value in lines.items()))
    arguments = ["-w", built / "net.onnx", "-o", tmp_path / "bundle", "--contract", tmp_path / "mine.yaml"]
    assert main([str(one) for one in [*arguments, "--verify", built / "judged", *options]]) == 2
    said = capsys.readouterr().err
    assert len([line for line in said.splitlines() if line.startswith("error: ")]) == 1
    assert re.search(message, said)


def test_a_file_of_another_kind_keeps_nothing(built, tmp_path):
    from compile.program.open_network import open_network

    torch.export.save(
        torch.export.export(nn.Conv2d(3, 1, 1).eval(), (torch.zeros(1, 3, SIZE, SIZE),)), tmp_path / "n.pt2"
    )
    with pytest.raises(CompileError, match=r"state, constants: expected neither for .*n\.pt2"):
        open_network(tmp_path / "n.pt2", "x", read_contract(built / "mine.yaml"))


def test_frames_of_a_video_come_one_by_one(built, pictures):
    with open_engine(Bundle.read(built / "bundle"), "onnxruntime") as engine:
        images, state = moving(pictures, 5, 5), engine.new_state()
        got = []
        for image in images:
            engine.submit(image[None], state=state)
            got.append(engine.collect()[0])
        same(got, looped(built / "net.onnx", images))
        with pytest.raises(ShapeError, match="one at a time"):
            engine(np.stack(images))


@pytest.mark.needs("tensorrt_rtx_bindings")
def test_a_plan_takes_its_state(built):
    assert main(["--bundle", str(built / "bundle"), "--target", "tensorrt-rtx", "--sm", "86", "--frame", "60x80"]) == 0
    (entry,) = Bundle.read(built / "bundle").manifest.engines
    assert entry.profile[2][0] == 1
    assert main(["--bundle", str(built / "bundle"), "--target", "tensorrt-rtx", "--sm", "86", "--batch", "2"]) == 2
