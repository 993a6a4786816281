"""What tests of benchmarks share: a short clip, the command with all that it writes, and a machine's ``/sys`` made of files."""

import json

import av
import cv2
import numpy as np
import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.shared.plots import WIDTH_PX
from compile.networks.unet import UNet


@pytest.fixture
def clip(tmp_path):
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for index in range(12):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 20 * index, np.uint8), format="bgr24")
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.fixture
def asked(tmp_path, capsys):
    """``asked("soak", "--frames", 400)``: the JSON and what was printed."""

    def call(question, *arguments):
        result, plot = tmp_path / "result.json", tmp_path / "plots" / "plot.png"
        given = [question, *map(str, arguments), "--json", str(result), "--plot", str(plot)]
        assert main(given) == 0, capsys.readouterr().err
        height, width = cv2.imread(str(plot)).shape[:2]
        assert width == WIDTH_PX
        assert 200 < height < 3000
        entries = json.loads(result.read_text())
        assert entries["question"] == question
        assert entries["environment"]["cores"] > 0
        return entries, capsys.readouterr().out

    return call


@pytest.fixture
def machine(tmp_path):
    """``machine({"sys/class/…": text})``: a root folder with these files."""

    def make(files):
        root = tmp_path / "root"
        for name, text in files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{text}\n")
        return root

    return make


@pytest.fixture(scope="session")
def spread_unet():
    """``spread_unet(seed, bilinear, size_hw, spread)``: few weights, whose scores spread over the picture.

    A mask of one grey says nothing, and noise is no mask.
    """

    def make(seed, bilinear, size_hw, spread):
        torch.manual_seed(seed)
        unet = UNet(3, 1, bilinear, base_width=4)
        blobs = torch.nn.functional.interpolate(torch.randn(8, 3, 4, 4), size_hw, mode="bilinear")
        with torch.no_grad():
            for module in unet.modules():
                if isinstance(module, torch.nn.BatchNorm2d):
                    module.momentum = None
            unet.train()(blobs)
            scores = unet.eval().logits(blobs)
            unet.outc.conv.bias.sub_(scores.mean()).mul_(spread / scores.std())
            unet.outc.conv.weight.mul_(spread / scores.std())
        return unet

    return make
