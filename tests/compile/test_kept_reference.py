"""The program in FP32 that stays beside one of another precision."""

import dataclasses

import cv2
import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from compile.__main__ import main
from compile.program.layered_program import LayeredProgram
from pipeline.builds import build_half
from pipeline.bundles.bundle import PROGRAM_NAME, REFERENCE_NAME, WORST_NAME, Bundle
from pipeline.engines import open_engine
from pipeline.errors import BundleError
from pipeline.frames.nv12 import to_nv12


@pytest.fixture
def network(tmp_path, tiny_unet, pictures, monkeypatch):
    """Options for a network of random weights, and the network."""
    monkeypatch.setenv("EDGEMASK_CACHE", str(tmp_path / "cache"))
    for name, seed in (("judged", 0), ("calib", 1)):
        (tmp_path / name).mkdir()
        for index, picture in enumerate(pictures(4, 96, 128, seed=seed)):
            cv2.imwrite(str(tmp_path / name / f"{index}.png"), picture)
    torch.save(tiny_unet(1).state_dict(), tmp_path / "net.pth")
    return ["-w", str(tmp_path / "net.pth"), "--imgsz", "64", "--verify", str(tmp_path / "judged"), "--min-iou", "0.7"]


@pytest.fixture
def build(network, tmp_path, capsys):
    def build(*options, status=0):
        folder = tmp_path / "bundle"
        assert main([*network, "-o", str(folder), *map(str, options)]) == status
        said = capsys.readouterr()
        return (Bundle.read(folder) if status == 0 else None), said.out + said.err

    return build


def masks_in_fp32(bundle, frames):
    """Of the reference alone, as a bundle of its own."""
    folder = bundle.folder.parent / "alone"
    manifest = dataclasses.replace(bundle.manifest, composes=False)
    alone = Bundle.write(folder, manifest, {PROGRAM_NAME: bundle.reference_path.read_bytes()})
    with open_engine(alone, "onnxruntime") as engine:
        return engine(frames)


PRECISIONS = [
    ["--precision", "fp16"],
    ["--precision", "int8", "--strict", "--calib", "calib"],
    ["--precision", "int8", "--strict", "--calib", "calib", "--target", "onnxruntime"],
]


@pytest.mark.parametrize("options", PRECISIONS, ids=["fp16", "int8", "int8-cpu"])
def test_its_masks_are_those_of_the_trained_network(build, options, tmp_path, pictures):
    full, _ = build()
    frames = pictures(3, 96, 128, seed=7)
    with open_engine(full, "onnxruntime") as engine:
        trained = engine(frames)
    assert full.reference_path == full.program_path
    assert REFERENCE_NAME not in full.manifest.files
    bundle, said = build(*[str(tmp_path / one) if one == "calib" else one for one in options])
    assert bundle.reference_path == bundle.folder / REFERENCE_NAME
    assert bundle.manifest.precision != "fp32"
    assert f"{REFERENCE_NAME} beside it, in FP32" in said
    np.testing.assert_array_equal(masks_in_fp32(bundle, frames), trained)
    with open_engine(bundle, "onnxruntime") as engine:
        assert (engine(frames) != trained).any()


def test_it_takes_frames_as_the_program_does_and_draws_no_views(build, pictures):
    frame_nv12 = to_nv12(pictures(1, 96, 128, seed=7)[0])
    full, _ = build("--frame", "96x128", "--pixels", "nv12")
    with open_engine(full, "onnxruntime") as engine:
        trained = engine(frame_nv12[None])
    options = ["--precision", "fp16", "--pixels", "nv12", "--frame", "96x128", "--compose", "device"]
    bundle, _ = build(*options)
    program, reference = (onnx.load(path).graph for path in (bundle.program_path, bundle.reference_path))
    assert [value.name for value in program.output] == ["masks", "not_finite", "views"]
    assert [value.name for value in reference.output] == ["masks", "not_finite"]
    assert [value.name for value in reference.input] == ["frames"]
    shapes = [
        [side.dim_value for side in graph.input[0].type.tensor_type.shape.dim][1:] for graph in (program, reference)
    ]
    assert shapes == [[144, 128]] * 2
    np.testing.assert_array_equal(masks_in_fp32(bundle, frame_nv12[None]), trained)


def test_it_can_be_left_out(build):
    bundle, said = build("--precision", "fp16", "--no-reference")
    assert bundle.reference_path is None
    assert sorted(bundle.manifest.files) == [PROGRAM_NAME, WORST_NAME]
    assert REFERENCE_NAME not in said


def test_one_that_was_changed_is_refused(build):
    bundle, _ = build("--precision", "fp16")
    content = bytearray(bundle.reference_path.read_bytes())
    content[len(content) // 2] ^= 1
    bundle.reference_path.write_bytes(content)
    with pytest.raises(BundleError, match=r"reference.onnx: expected sha256"):
        Bundle.read(bundle.folder)


def test_one_that_the_exporter_spoils_is_refused(build, monkeypatch, tmp_path):
    export = LayeredProgram.export

    def spoiled(self, precision, frame_size_hw, keep):
        model = export(self, precision, frame_size_hw, keep)
        if precision == "fp32":
            weight = max(model.graph.initializer, key=lambda tensor: np.prod(tensor.dims))
            weight.CopyFrom(numpy_helper.from_array(-2 * numpy_helper.to_array(weight), weight.name))
        return model

    monkeypatch.setattr(LayeredProgram, "export", spoiled)
    _, said = build("--precision", "fp16", status=2)
    assert "the program in FP32: what was compiled does not agree with the trained network in FP32" in said
    assert "take --no-reference" in said
    assert not (tmp_path / "bundle").exists()


def test_what_the_gate_asked_for_is_kept(build):
    assert build("--min-iou", "0.75")[0].manifest.verification["gate"] == {"mean": 0.75, "worst": 0.75}
    limits = build("--min-iou", "0.75", "--min-worst-iou", "0.5")[0].manifest.verification["gate"]
    assert limits == {"mean": 0.75, "worst": 0.5}


def test_inspect_says_what_there_is(build, run):
    for options, told in (
        ([], "the program itself, in FP32"),
        (["--precision", "fp16"], "reference.onnx, the same program in FP32"),
        (["--precision", "fp16", "--no-reference"], "none: no program in FP32"),
    ):
        bundle, _ = build(*options)
        status, out, _ = run(bundle.folder)
        assert status == 0
        assert told in out
        assert "the gate asked for 0.7" in out


@pytest.mark.needs("tensorrt_rtx_bindings")
def test_a_plan_that_is_added_later_leaves_it(build, tmp_path):
    bundle, _ = build("--precision", "fp16")
    arguments = ["--bundle", bundle.folder, "--target", "tensorrt-rtx", "--sm", "86", "--verify", tmp_path / "judged"]
    assert main([str(argument) for argument in arguments]) == 0
    again = Bundle.read(bundle.folder)
    assert len(again.manifest.engines) == 1
    assert again.manifest.files[REFERENCE_NAME] == bundle.manifest.files[REFERENCE_NAME]


def test_a_copy_that_a_plan_is_built_in_has_it_too(build, tmp_path):
    bundle, _ = build("--precision", "fp16")
    assert build_half.plans_place(bundle) == bundle.folder
    copied = build_half._copy(bundle, tmp_path / "copy")
    assert copied.manifest.files == bundle.manifest.files
