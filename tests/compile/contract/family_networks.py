"""Small networks in the style of well-known families: with their names of layers, their ends and their forms of input."""

import warnings

import onnx
import torch
import torch.nn.functional as F
from torch import nn

SIDE = 32


def conv(n_in, n_out, stride=1):
    return nn.Conv2d(n_in, n_out, 3, stride, 1)


def scores(n_in, n_out):
    """A last layer whose logits are on both sides of 0, and far from it."""
    layer = conv(n_in, n_out)
    with torch.no_grad():
        layer.weight.mul_(20)
        layer.bias.zero_()
        layer.weight.sub_(layer.weight.mean((1, 2, 3), keepdim=True))
    return layer


class Plain(nn.Module):
    """Nothing about it is known."""

    def __init__(self, classes=1, channels=3, end=None, scale=1):
        super().__init__()
        self.first, self.second, self.last = conv(channels, 8), conv(8, 8, 2), scores(8, classes)
        self.end, self.scale = end, scale

    def forward(self, x):
        x = self.last(torch.relu(self.second(torch.relu(self.first(x)))))
        x = F.interpolate(x, scale_factor=2 * self.scale, mode="nearest") if self.scale != 0.5 else x
        return x if self.end is None else self.end(x)


class Smp(nn.Module):
    """As segmentation_models_pytorch."""

    def __init__(self, classes=1):
        super().__init__()
        self.encoder = nn.Sequential(conv(3, 8, 2), nn.BatchNorm2d(8), nn.ReLU())
        self.decoder = nn.Sequential(conv(8, 8), nn.ReLU())
        self.segmentation_head = nn.Sequential(scores(8, classes), nn.Upsample(scale_factor=2, mode="bilinear"))

    def forward(self, x):
        return self.segmentation_head(self.decoder(self.encoder(x)))


class TorchVision(nn.Module):
    """As torchvision's FCN: the classes of Pascal VOC, and one more output for training."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(conv(3, 8, 2), nn.ReLU())
        self.classifier = nn.Sequential(conv(8, 8), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(), nn.Conv2d(8, 21, 1))
        self.aux_classifier = nn.Sequential(conv(8, 21))

    def forward(self, x):
        features = self.backbone(x)
        return tuple(
            F.interpolate(one, scale_factor=2, mode="bilinear")
            for one in (self.classifier(features), self.aux_classifier(features))
        )


class SegFormer(nn.Module):
    """As transformers' SegFormer: scores at a quarter of the size."""

    def __init__(self, classes=4):
        super().__init__()
        self.segformer = nn.ModuleDict({"encoder": nn.Sequential(conv(3, 8, 2), nn.GELU(), conv(8, 8, 2))})
        self.decode_head = nn.ModuleDict({"classifier": nn.Conv2d(8, classes, 1)})

    def forward(self, x):
        return self.decode_head["classifier"](self.segformer["encoder"](x))


class ModNet(nn.Module):
    """As MODNet: three branches, a matte from a sigmoid."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(conv(3, 8, 2), nn.ReLU())
        self.lr_branch, self.hr_branch = conv(8, 8), conv(3, 8)
        self.f_branch = scores(16, 1)

    def forward(self, x):
        low = F.interpolate(self.lr_branch(self.backbone(x)), scale_factor=2, mode="bilinear")
        return torch.sigmoid(self.f_branch(torch.cat([low, self.hr_branch(x)], 1)))


class IsNet(nn.Module):
    """As IS-Net: a convolution before U²-Net's first stage, and several outputs."""

    def __init__(self):
        super().__init__()
        self.conv_in = conv(3, 8, 2)
        self.stage1 = nn.ModuleDict({"rebnconvin": nn.ModuleDict({"conv_s1": conv(8, 8)})})
        self.side1, self.side2 = conv(8, 1), conv(8, 1)

    def forward(self, x):
        x = torch.relu(self.stage1["rebnconvin"]["conv_s1"](self.conv_in(x)))
        return tuple(torch.sigmoid(F.interpolate(side(x), scale_factor=2)) for side in (self.side1, self.side2))


class ChannelsLast(nn.Module):
    """As what comes from TensorFlow Lite: channels last on both ends."""

    def __init__(self, inside, out_last=True):
        super().__init__()
        self.inside, self.out_last = inside, out_last

    def forward(self, x):
        y = self.inside(x.permute(0, 3, 1, 2))
        return y.permute(0, 2, 3, 1) if self.out_last else y


class Scaled(nn.Module):
    """Scales the picture itself, and may turn the order of its colors round."""

    def __init__(self, inside, mean, std, flip=False):
        super().__init__()
        self.inside, self.flip = inside, flip
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, x):
        x = x.flip(1) if self.flip else x
        return self.inside((x.float() - self.mean) / self.std)


class WithArgmax(nn.Module):
    """As PaddleSeg exports by default: class indices."""

    def __init__(self, inside):
        super().__init__()
        self.inside = inside

    def forward(self, x):
        return self.inside(x).argmax(1)


def export(network, path, shape=(1, 3, SIDE, SIDE), outputs=("output",), **changes):
    """Write a network as ONNX.

    Args:
        network: it.
        path: of the file.
        shape: of its input; sides that are 0 stay open, and are traced with ``SIDE``, or with ``traced_at``.
        outputs: their names.
        changes: dtype and traced_at of the input; fields of the file that are set: producer, graph, metadata.
    """
    side_of_open = changes.pop("traced_at", SIDE)
    sides = [side or (side_of_open if axis else 1) for axis, side in enumerate(shape)]
    example = torch.zeros(sides, dtype=changes.pop("dtype", torch.float32))
    open_axes = {axis: f"side_{axis}" for axis, side in enumerate(shape) if axis == 0 or side == 0}
    axes = {"picture": open_axes, **{name: {0: "side_0"} for name in outputs}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network.eval(),
            (example,),
            str(path),
            input_names=["picture"],
            output_names=list(outputs),
            dynamic_axes=axes,
            opset_version=17,
            dynamo=False,
        )
    if changes:
        model = onnx.load(path)
        model.producer_name = changes.get("producer", model.producer_name)
        model.graph.name = changes.get("graph", model.graph.name)
        for key, value in changes.get("metadata", {}).items():
            model.metadata_props.add(key=key, value=value)
        onnx.save(model, path)
    return path
