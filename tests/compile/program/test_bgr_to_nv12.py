"""Views in NV12: the conversion beside FFmpeg's, and programs that give them."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from compile.networks.contract import Contract
from compile.program.bgr_to_nv12 import BgrToNv12
from compile.program.compose import with_views
from compile.program.nv12 import with_nv12
from compile.program.onnx_export import export_program
from compile.program.program import FrameProgram
from pipeline.frames.nv12 import to_bgr, to_nv12
from pipeline.render.compose import look_values
from pipeline.render.look import Look
from pipeline.render.overlay import Renderer
from tests.area_nv12 import area_nv12


@pytest.fixture(scope="module")
def plain(tiny_unet):
    return export_program(FrameProgram(tiny_unet(1), Contract("x", (32, 32)))).SerializeToString()


def converted(images_nhwc):
    result = BgrToNv12()(torch.from_numpy(np.asarray(images_nhwc)).float()).numpy()
    np.testing.assert_array_equal(result, result.round())
    return result.astype(np.uint8)


def run(program, frames, look):
    session = onnxruntime.InferenceSession(program, providers=["CPUExecutionProvider"])
    return session.run(["masks", "views"], {"frames": frames, "look": look_values(look)})


@pytest.mark.parametrize("size_hw", [(64, 96), (90, 50), (16, 16)])  # of two rows FFmpeg's filter is another
def test_nv12_is_what_ffmpeg_makes_of_it(pictures, size_hw):
    for images in (pictures(3, *size_hw), np.random.default_rng(1).integers(0, 256, (2, *size_hw, 3), np.uint8)):
        got, expected = converted(images), area_nv12(images)
        assert got.shape == expected.shape
        difference = np.abs(got.astype(int) - expected)
        assert difference.max() <= 1
        assert difference.mean() <= 0.02


def test_the_formula():
    # Of ITU-R BT.709: luma from 16 to 235, chroma from 16 to 240, and the primaries' own values.
    blue, green, red, white, black = (0, 0, 255), (0, 255, 0), (255, 0, 0), (255, 255, 255), (0, 0, 0)
    for rgb, yuv in {
        white: (235, 128, 128),
        black: (16, 128, 128),
        red: (63, 102, 240),
        green: (173, 42, 26),
        blue: (32, 240, 118),
    }.items():
        nv12 = converted(np.full((1, 2, 2, 3), rgb[::-1], np.uint8))[0]
        assert [*nv12[:2].flat, *nv12[2]] == [*[yuv[0]] * 4, *yuv[1:]]


def test_chroma_is_the_mean_of_four_pixels():
    image = np.zeros((1, 2, 4, 3), np.uint8)
    image[0, 0, 0] = image[0, 1, 1] = 0, 0, 255  # half of the left four are red, and nothing of the right four is
    nv12 = converted(image)[0]
    assert nv12[2].tolist() == [115, 184, 128, 128]


@pytest.mark.parametrize("size_hw", [(40, 62), (64, 64), (2, 2)])
@pytest.mark.parametrize("is_fixed", [False, True])
def test_views_are_what_the_host_draws_in_nv12(plain, pictures, size_hw, is_fixed):
    frame_size_hw, look = size_hw if is_fixed else None, Look(alpha=0.8)
    frames = np.stack([to_nv12(image) for image in pictures(2, *size_hw)])
    bgr, alone = (with_nv12(with_views(plain, frame_size_hw, kind), frame_size_hw) for kind in ("bgr", "nv12"))
    expected_masks, in_bgr = run(bgr, frames, look)
    masks, views = run(alone, frames, look)
    np.testing.assert_array_equal(masks, expected_masks)
    assert (views.shape, views.dtype) == (frames.shape, np.uint8)
    assert np.abs(views.astype(int) - converted(in_bgr)).max() <= 1
    renderer = Renderer(look, "binary")
    drawn = [renderer(to_bgr(frame), mask) for frame, mask in zip(frames, masks, strict=True)]
    assert np.abs(views.astype(int) - converted(drawn)).max() <= 4
    axes = onnx.load_from_string(alone).graph.output[-1].type.tensor_type.shape.dim
    names = [axis.dim_value or axis.dim_param for axis in axes]
    assert names == (["N", frames.shape[1], frames.shape[2]] if is_fixed else ["N", "H*3/2", "W"])


def test_a_program_of_one_frame_at_a_time(pictures):
    nodes = [
        helper.make_node("Constant", [], ["two"], value_ints=[2]),
        helper.make_node("Cast", ["frames"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("Gather", ["x", "two"], ["red"], axis=3),
        helper.make_node("Constant", [], ["last"], value_ints=[3]),
        helper.make_node("Squeeze", ["red", "last"], ["flat"]),
        helper.make_node("Cast", ["flat"], ["masks"], to=TensorProto.UINT8),
    ]
    frames = helper.make_tensor_value_info("frames", TensorProto.UINT8, [1, "H", "W", 3])
    masks = helper.make_tensor_value_info("masks", TensorProto.UINT8, [1, "H", "W"])
    graph = helper.make_graph(nodes, "red", [frames], [masks])
    program = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    alone = with_nv12(with_views(program.SerializeToString(), None, "nv12"), None)
    shapes = [value.type.tensor_type.shape.dim[0].dim_value for value in onnx.load_from_string(alone).graph.output]
    assert shapes == [1, 1]
    nv12 = to_nv12(pictures(1, 16, 24)[0])[None]
    got_masks, views = run(alone, nv12, Look())
    assert views.shape == nv12.shape
    assert np.abs(got_masks.astype(int) - to_bgr(nv12[0])[None, ..., 2]).max() <= 3
