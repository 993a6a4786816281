"""The bundles that are part of the package: made anew from the published weights, the same comes out."""

import json

import numpy as np
import pytest

from compile import published
from compile.__main__ import main
from pipeline.builds.model_name import PUBLISHED, open_model
from pipeline.bundles.bundle import MANIFEST_NAME, Bundle
from pipeline.engines import open_engine
from pipeline.sources import open_source

# What shapes the program's bytes.
EXPORTERS = ("torch", "onnx", "onnxscript")


@pytest.fixture(scope="module", params=published.BUNDLES)
def pair(request, tmp_path_factory):
    """The bundle of the package, and one that was made just now."""
    packaged = Bundle.read(PUBLISHED / request.param)
    folder = tmp_path_factory.mktemp("published") / request.param
    precision, target = published.BUNDLES[request.param]
    how = ["--precision", precision, "--target", target, "--verify-count", "8", "-q"]
    assert main(["--model", "u2netp", *how, "-o", str(folder)]) == 0
    return packaged, Bundle.read(folder)


@pytest.mark.network
def test_the_same_comes_out(pair):
    packaged, made = pair
    if all(packaged.manifest.tools[name] == made.manifest.tools[name] for name in EXPORTERS):
        assert packaged.program_path.read_bytes() == made.program_path.read_bytes()
    for field in ("model", "task", "classes", "network_size_hw", "precision", "layers", "contract", "weights"):
        assert getattr(packaged.manifest, field) == getattr(made.manifest, field), field
    with open_source("samples/pictures/cat.jpg") as source:
        (frame,) = source
    with open_engine(packaged, "onnxruntime") as one, open_engine(made, "onnxruntime") as other:
        difference = one(frame.image[None]).astype(int) - other(frame.image[None])
    assert np.abs(difference).max() <= 1


@pytest.mark.parametrize("name", published.BUNDLES)
def test_it_was_proven_on_the_photographs_of_the_package(name):
    manifest = Bundle.read(PUBLISHED / name).manifest
    proven = manifest.verification
    assert proven["source"] == "photographs of the package"
    assert proven["frames"] == 32
    assert proven["iou_low"] >= 0.998
    assert proven["iou_worst"] >= 0.98
    assert manifest.model == "u2netp"
    text = (PUBLISHED / name / MANIFEST_NAME).read_text(encoding="utf-8")
    assert "/home/" not in text
    assert "/tmp/" not in text
    assert json.loads(text)["weights"]["file"] == "u2netp.onnx"


def test_their_licence_is_beside_them():
    assert "Apache License" in (PUBLISHED / "LICENSE").read_text(encoding="utf-8")
    readme = (PUBLISHED / "README.md").read_text(encoding="utf-8")
    for name in published.BUNDLES:
        assert f"`{name}`" in readme


def test_a_name_takes_it_without_compiling(monkeypatch, tmp_path, said):
    monkeypatch.setenv("EDGEMASK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("pipeline.builds.model_name.compile_in_process", lambda *_, **__: pytest.fail("compiled"))
    assert open_model("u2netp").folder == PUBLISHED / "u2netp"
    assert not said
    cache = tmp_path / "cache"
    assert {path.name for path in cache.glob("*")} <= {"checked.json"}  # nothing was made
