"""Frames in tiles through an engine with several in flight, and frames of wide channels on a GPU that is none."""

from types import SimpleNamespace

import numpy as np
import pytest
from onnx import TensorProto, helper

from pipeline.engines import open_engine
from pipeline.engines.base import Computed, Engine
from pipeline.engines.onnxruntime import OnnxRuntimeEngine
from pipeline.engines.tiled import TiledEngine
from pipeline.errors import ShapeError
from pipeline.frames.tiles import Tiles
from tests.conftest import write_bundle


class Red(Engine):
    """The red channel of tiles, several of them together and in flight; fails at one submission."""

    counts = True
    in_flight, batch = 2, 3

    def __init__(self, fail_at=None):
        manifest = SimpleNamespace(frame_size_hw=(8, 12), pixels="bgr", task="binary")
        super().__init__(SimpleNamespace(manifest=manifest))
        self.fail_at, self.shapes, self.waiting, self.closed, self.most = fail_at, [], [], False, 0

    def _submit(self, frames):
        if len(self.shapes) == self.fail_at:
            self.fail_at = None
            raise ShapeError("cannot submit")
        self.shapes.append(frames.shape)
        self.waiting.append(frames[..., 2].copy())
        self.most = max(self.most, len(self.waiting))

    def _collect(self):
        masks = self.waiting.pop(0)
        return Computed(masks, None, (masks == 255).sum((1, 2), dtype=np.int32))

    def _close(self):
        self.closed = True


def frames(count, height, width):
    return np.random.default_rng(0).integers(0, 255, (count, height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("size_hw", [(8, 12), (30, 50), (9, 13), (5, 7), (8, 100)])
def test_the_red_channel_is_the_red_channel(size_hw):
    inner = Red()
    with TiledEngine(inner, Tiles((8, 12), 4)) as engine:
        given = frames(2, *size_hw)
        np.testing.assert_allclose(engine(given), given[..., 2], atol=1)
        tiles = len(Tiles((8, 12), 4).places(size_hw))
        assert sum(shape[0] for shape in inner.shapes) == 2 * tiles
        assert all(shape[1:] == (8, 12, 3) and shape[0] <= 3 for shape in inner.shapes)
        assert inner.most <= 2
    assert inner.closed


def test_scores_that_are_not_finite_are_counted_in_all_tiles():
    given = frames(2, 8, 30)
    given[1, 3, 2, 2] = 255
    with TiledEngine(Red(), Tiles((8, 12), 4)) as engine:
        engine.submit(given)
        assert engine.collect_all().not_finite.tolist() == [0, 1]


def test_nothing_is_in_flight_after_an_error():
    inner = Red(fail_at=2)
    with TiledEngine(inner, Tiles((8, 12), 4)) as engine:
        given = frames(1, 40, 60)
        with pytest.raises(ShapeError, match="cannot submit"):
            engine(given)
        assert not inner.waiting
        np.testing.assert_allclose(engine(given), given[..., 2], atol=1)


def test_a_bundle_with_tiles_opens_for_whole_frames(tmp_path):
    bundle = write_bundle(tmp_path / "bundle", contract={"tile": [[8, 12], 4]}, frame_size_hw=(8, 12))
    with open_engine(bundle, "onnxruntime") as engine, OnnxRuntimeEngine(bundle) as alone:
        assert (engine.description, engine.frame_size_hw) == (alone.description, None)
        given = frames(1, 31, 50)
        np.testing.assert_allclose(engine(given), given[..., 2], atol=1)
        engine.try_out()
        with pytest.raises(ShapeError, match="expected 8×12"):
            alone(given)


def fourth_program():
    """Of four channels of 16 bits the last one, divided by 256."""
    nodes = [
        helper.make_node("Cast", ["frames"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("Gather", ["numbers", "fourth"], ["one"], axis=3),
        helper.make_node("Div", ["one", "many"], ["less"]),
        helper.make_node("Cast", ["less"], ["masks"], to=TensorProto.UINT8),
    ]
    graph = helper.make_graph(
        nodes,
        "fourth",
        [helper.make_tensor_value_info("frames", TensorProto.INT32, ["N", "H", "W", 4])],
        [helper.make_tensor_value_info("masks", TensorProto.UINT8, ["N", "H", "W"])],
        initializer=[
            helper.make_tensor("fourth", TensorProto.INT64, [], [3]),
            helper.make_tensor("many", TensorProto.FLOAT, [], [256]),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10).SerializeToString()


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino", "tensorrt", "tensorrt-rtx"])
def test_wide_channels(request, tmp_path, fake_machine, add_plan, runtime):
    if runtime == "openvino":
        request.getfixturevalue("openvino")
    bundle = write_bundle(tmp_path / "fourth", fourth_program(), pixels="4x16")
    if runtime.startswith("tensorrt"):
        fake_machine.install(runtime)
        fake_machine.settings.profile = ((1, 1, 1, 4), (1, 16, 16, 4), (8, 64, 64, 4))
        bundle = add_plan(bundle, runtime)
    with open_engine(bundle, runtime) as engine:
        for shape in ((1, 9, 7), (2, 30, 31), (1, 3, 4)):
            given = np.random.default_rng(1).integers(0, 1 << 16, (*shape, 4), dtype=np.int32)
            for _ in range(3):  # the first time, recorded, and from the record
                np.testing.assert_array_equal(engine(given), given[..., 3] // 256)
        engine.try_out()
        with pytest.raises(ShapeError, match=r"expected \(N, H, W, 4\) int32, got \(1, 9, 7, 4\) uint8"):
            engine(np.zeros((1, 9, 7, 4), np.uint8))
        with pytest.raises(ShapeError, match=r"expected \(N, H, W, 4\) int32, got \(1, 9, 7, 3\) int32"):
            engine(np.zeros((1, 9, 7, 3), np.int32))
