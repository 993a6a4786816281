# Checkpoints as training programs write them: torch saves each one here, and the weights that come out are looked at.

import copy
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from compile.build import build
from compile.networks.checkpoint import load_network
from pipeline.errors import CheckpointError, NotOurNetworkError

LIGHTNING = {
    "epoch": 3,
    "global_step": 40,
    "pytorch-lightning_version": "2.5.0",
    "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 1}}}},
    "callbacks": {
        "ModelCheckpoint{'monitor': 'iou'}": {"best_model_score": torch.tensor(0.5), "best_model_path": "/x.ckpt"}
    },
    "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(4, 3, 3, 3)}}, "param_groups": [{"lr": 0.1}]}],
    "lr_schedulers": [],
    "hparams_name": "kwargs",
    "hyper_parameters": {"lr": 0.1, "folder": Path("/data"), "classes": ["a"]},
}


@pytest.fixture
def pair(tiny_unet):
    """A network, and one that stands for its average."""
    network = tiny_unet(1)
    averaged = copy.deepcopy(network)
    with torch.no_grad():
        for weight in averaged.parameters():
            weight.mul_(1.5)
    return network, averaged


def under(prefix, network):
    return OrderedDict((prefix + name, tensor) for name, tensor in network.state_dict().items())


def taken(path, network, key=None):
    """Whether a file's weights come out as those of a network."""
    loaded = load_network(path, key=key).model.state_dict()
    return all(torch.equal(tensor, network.state_dict()[name]) for name, tensor in loaded.items())


@pytest.mark.parametrize("prefix", ["model.", "net.", "network.", "model.module.", "segmenter._orig_mod.", "a.b.c."])
@pytest.mark.parametrize("suffix", [".ckpt", ".pth", ".pth.tar"])
def test_a_checkpoint_of_lightning(prefix, suffix, pair, tmp_path):
    path = tmp_path / f"last{suffix}"
    torch.save({**LIGHTNING, "state_dict": {**under(prefix, pair[0]), "loss.weight": torch.ones(2)}}, path)
    assert taken(path, pair[0])


def test_wrappers_inside_of_names_are_taken_out(pair, tmp_path):
    state = {name.replace("inc.", "inc._orig_mod."): tensor for name, tensor in pair[0].state_dict().items()}
    torch.save({"model": {f"_fsdp_wrapped_module.{name}": tensor for name, tensor in state.items()}}, tmp_path / "n.pt")
    assert taken(tmp_path / "n.pt", pair[0])


@pytest.mark.parametrize(
    ("trained", "averaged"),
    [
        ("model", "model_ema"),
        ("state_dict", "ema_state_dict"),
        ("state_dict", "state_dict_ema"),
        ("params", "params_ema"),
        ("model", "ema"),
        ("net", "swa_model"),
        ("state_dict.model", "state_dict.ema_model.module"),
        ("model", "ema.shadow"),
        ("current_model_state.model", "state_dict.model"),  # as Lightning's WeightAveraging
        (".", "ema"),
    ],
)
def test_averaged_weights_are_taken_and_the_others_can_be(trained, averaged, pair, tmp_path, caplog):
    content = {**LIGHTNING}
    for key, network in ((trained, pair[0]), (averaged, pair[1])):
        outer, *inner = key.split(".") if key != "." else ("", "")
        prefix = "".join(f"{part}." for part in inner if part)
        if outer == "ema" and prefix:
            content[outer] = {"decay": 0.999, inner[0]: network.state_dict()}
        elif outer:
            content[outer] = {**content.get(outer, {}), **under(prefix, network)}
        else:
            content |= network.state_dict()
    path = tmp_path / "both.pth"
    torch.save(content, path)
    caplog.set_level("INFO", "edgemask")
    assert taken(path, pair[1])
    assert caplog.messages == [
        f"both.pth: the averaged weights are taken, under {averaged}; for those that were trained: --weights-key {trained}"
    ]
    assert taken(path, pair[0], key=trained)
    assert taken(path, pair[1], key=averaged)
    assert len(caplog.messages) == 1


def test_an_averaged_model_alone(pair, tmp_path, caplog):
    caplog.set_level("INFO", "edgemask")
    torch.save(torch.optim.swa_utils.AveragedModel(pair[0]).state_dict(), tmp_path / "swa.pth")
    assert taken(tmp_path / "swa.pth", pair[0])
    assert caplog.messages == []


def test_an_average_without_running_statistics_is_not_taken(pair, tmp_path, caplog):
    caplog.set_level("INFO", "edgemask")
    torch.save({"model": pair[0].state_dict(), "ema": dict(pair[1].named_parameters())}, tmp_path / "n.pth")
    assert taken(tmp_path / "n.pth", pair[0])
    (line,) = caplog.messages
    assert "the trained weights under model are taken" in line
    assert "ema (36 fewer)" in line


def test_the_same_weights_twice_are_one_network(pair, tmp_path, caplog):
    caplog.set_level("INFO", "edgemask")
    torch.save({"state_dict": {**under("model.", pair[0]), **under("net.", pair[0])}}, tmp_path / "n.ckpt")
    assert taken(tmp_path / "n.ckpt", pair[0])


@pytest.mark.parametrize("nested", [True, False])
def test_of_several_networks_one_is_to_be_chosen(nested, pair, tmp_path):
    path = tmp_path / "gan.pth"
    parts = dict(zip(("generator", "discriminator"), pair, strict=True))
    flat = {name: tensor for key, one in parts.items() for name, tensor in under(f"{key}.", one).items()}
    torch.save({key: one.state_dict() for key, one in parts.items()} if nested else {"state_dict": flat}, path)
    outer = "" if nested else "state_dict."
    with pytest.raises(
        CheckpointError, match=rf"got 2, under {outer}generator, {outer}discriminator: choose one with --weights-key"
    ):
        load_network(path)
    assert taken(path, pair[0], key=f"{outer}generator")
    assert taken(path, pair[1], key=f"{outer}discriminator")
    with pytest.raises(CheckpointError, match=rf"expected one of {outer}generator, .*, got 'critic'"):
        load_network(path, key="critic")


def test_the_one_network_that_can_be_opened_is_taken_and_the_other_told(pair, tmp_path, caplog):
    caplog.set_level("INFO", "edgemask")
    other = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Conv2d(4, 1, 3))
    torch.save({"generator": pair[0].state_dict(), "discriminator": other.state_dict()}, tmp_path / "gan.pth")
    assert taken(tmp_path / "gan.pth", pair[0])
    assert caplog.messages == [
        "gan.pth: the weights under generator are taken, which fit; beside them are others, under discriminator"
    ]


def test_a_part_of_two_networks_is_chosen_by_the_beginning_of_its_path(pair, tmp_path):
    torch.save({"a": {"model": pair[0].state_dict()}, "b": {"model": pair[1].state_dict()}}, tmp_path / "n.pth")
    assert taken(tmp_path / "n.pth", pair[1], key="b")


def test_training_states_of_other_classes_are_refused_with_what_works(pair, tmp_path):
    class Config(dict):
        pass

    globals()["Config"] = Config
    Config.__qualname__ = "Config"
    path = tmp_path / "last.ckpt"
    torch.save({"state_dict": pair[0].state_dict(), "hyper_parameters": Config(lr=1)}, path)
    with pytest.raises(CheckpointError, match=r"calls \S+\.Config, .*; then --weights .*last-weights\.pth") as raised:
        load_network(path)
    # What it says is done, and then it works.
    line = str(raised.value).partition("in Python: ")[2].partition("; then --weights")[0]
    exec(line, {})
    assert taken(path.with_name("last-weights.pth"), pair[0])


def test_a_built_bundle_says_which_weights_it_has(pair, tmp_path, caplog):
    caplog.set_level("INFO", "edgemask")
    torch.save({"model": pair[0].state_dict(), "model_ema": pair[1].state_dict()}, tmp_path / "both.pth")
    options = {"imgsz": (32, 32), "min_iou": 0, "verify_count": 1}
    first = build(tmp_path / "both.pth", tmp_path / "averaged", **options)
    assert "--weights-key model" in "\n".join(caplog.messages)
    second = build(tmp_path / "both.pth", tmp_path / "trained", weights_key="model", **options)
    assert first.manifest.files != second.manifest.files


def test_another_network_is_told_with_what_works(tmp_path):
    path = tmp_path / "resnet.ckpt"
    torch.save({**LIGHTNING, "state_dict": torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3)).state_dict()}, path)
    with pytest.raises(
        NotOurNetworkError, match=r"torch\.onnx\.export\(model, .*resnet\.onnx.*--network .*resnet\.ckpt"
    ):
        load_network(path)
