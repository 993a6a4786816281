"""Programs of NV12 on ONNX Runtime, on OpenVINO and on a GPU that is none; ``test_contract`` has them on every backend."""

from dataclasses import replace

import cv2
import numpy as np
import pytest

from pipeline.bundles.bundle import PROGRAM_NAME, Bundle
from pipeline.engines import open_engine
from pipeline.errors import BundleError, ShapeError
from pipeline.frames.nv12 import to_bgr, to_nv12
from pipeline.render.compose import look_values
from pipeline.render.look import Look
from pipeline.render.overlay import Renderer
from tests.area_nv12 import area_nv12


@pytest.fixture(params=["onnxruntime", "openvino", "tensorrt", "tensorrt-rtx", "tensorrt on a fake Jetson"])
def open_here(request, fake_machine, add_plan):
    """``open_here(bundle)``: an engine of ONNX Runtime or OpenVINO, or on the fake GPU; closed at the end."""
    engines = []

    def open_it(bundle):
        name = request.param.split()[0]
        if name == "openvino":
            request.getfixturevalue("openvino")
        if name.startswith("tensorrt"):
            fake_machine.gpu.integrated = "Jetson" in request.param
            fake_machine.install(name)
            bundle = add_plan(bundle, name)
        engines.append(open_engine(bundle, name))
        return engines[-1]

    yield open_it
    for engine in engines:
        engine.close()


@pytest.fixture
def engine(open_here, nv12_bundle):
    return open_here(nv12_bundle)


def frames(count, height, width, seed=0):
    """NV12 and the same as BGR."""
    coarse = np.random.default_rng(seed).integers(0, 256, (count, 4, 5, 3), np.uint8)
    nv12 = np.stack([to_nv12(cv2.resize(one, (width, height), interpolation=cv2.INTER_CUBIC)) for one in coarse])
    return nv12, np.stack([to_bgr(one) for one in nv12])


def near(got, expected, most=3):
    assert got.shape == expected.shape
    assert got.dtype == np.uint8
    return np.abs(got.astype(int) - expected).max() <= most


def test_masks_have_the_pictures_sizes_and_their_values(engine):
    for count, height, width in ((1, 90, 160), (3, 6, 8), (1, 2, 2), (2, 32, 18), (2, 32, 18)):
        nv12, bgr = frames(count, height, width)
        assert near(engine(nv12), bgr[..., 2])


def test_views_come_beside_masks_to_who_asks(engine):
    look = Look(alpha=0.8)
    for size in ((1, 20, 30), (2, 16, 12)):
        nv12, bgr = frames(*size)
        engine.submit(nv12, look_values(look))
        masks, views, _ = engine.collect_all()
        assert near(masks, bgr[..., 2])
        assert views.shape == nv12.shape
        engine.submit(nv12)
        again, none, _ = engine.collect_all()
        np.testing.assert_array_equal(again, masks)
        assert none is None
        # Drawn with the mask that came: what is left is what both conversions and the overlay round.
        drawn = [Renderer(look, "binary")(image, mask) for image, mask in zip(bgr, masks, strict=True)]
        assert near(views, area_nv12(drawn), 2)


def test_as_many_in_flight_as_before(engine):
    given = [frames(1, 8 + 2 * seed, 12, seed) for seed in range(engine.in_flight)]
    for nv12, _ in given:
        engine.submit(nv12)
    for _, bgr in given:
        assert near(engine.collect(), bgr[..., 2])


@pytest.mark.parametrize(
    "given",
    [
        np.zeros((1, 4, 6, 3), np.uint8),
        np.zeros((1, 4, 6), np.uint8),
        np.zeros((1, 6, 5), np.uint8),
        np.zeros((6, 4), np.uint8),
        np.zeros((1, 6, 4), np.int8),
        np.zeros((0, 6, 4), np.uint8),
        np.zeros((1, 0, 4), np.uint8),
    ],
    ids=lambda given: f"{given.shape} {given.dtype}",
)
def test_other_frames_are_refused_and_the_engine_goes_on(engine, given):
    message = r"^frames: expected \(N, H·3/2, W\) uint8, which is NV12 with even H and W, got \("
    with pytest.raises(ShapeError, match=message):
        engine(given)
    assert engine(frames(1, 4, 6)[0]).shape == (1, 4, 6)


def test_a_fixed_size_is_refused_with_both_sizes(open_here, nv12_bundle, tmp_path):
    manifest = replace(nv12_bundle.manifest, frame_size_hw=(4, 6))
    files = {PROGRAM_NAME: nv12_bundle.program_path.read_bytes()}
    engine = open_here(Bundle.write(tmp_path / "fixed", manifest, files))
    assert engine(frames(1, 4, 6)[0]).shape == (1, 4, 6)
    with pytest.raises(
        ShapeError, match=r"^frames: expected 4×6 \(height × width\), got 6×4: compile with --frame 6x4"
    ):
        engine(frames(1, 6, 4)[0])


def test_frames_that_a_plan_was_not_built_for(add_plan, nv12_bundle):
    with open_engine(add_plan(nv12_bundle, "tensorrt"), "tensorrt") as engine:
        message = r"^frames: expected from 1 of 2×2 to 8 of 512×512 as .*, got 1 of 514×6: .* --frame 514x6 --batch 1$"
        with pytest.raises(ShapeError, match=message):
            engine(frames(1, 514, 6)[0])


def test_half_as_many_bytes_go_up_and_come_down(add_plan, nv12_bundle):
    with open_engine(add_plan(nv12_bundle, "tensorrt"), "tensorrt") as engine:
        engine(frames(1, 8, 12)[0])
        (slot,) = engine._free
        sizes = {name: buffer.host.size for name, buffer in slot.buffers.items()}
    assert sizes == {"frames": 8 * 12 * 3 // 2, "masks": 8 * 12, "look": 24, "views": 8 * 12 * 3 // 2}


@pytest.mark.parametrize("profile", [[[1, 4, 6, 3]] * 3, [[1, 4, 6]] * 3, [[1, 6, 5]] * 3, [[1, 6]] * 3])
def test_a_profile_of_other_frames_is_the_manifests_fault(fake_machine, add_plan, nv12_bundle, profile):
    fake_machine.settings.profile = profile
    planned = add_plan(nv12_bundle, "tensorrt")
    with pytest.raises(BundleError, match=r"expected file, .* and profile for each engine"):
        open_engine(planned, "tensorrt")
