import numpy as np
import onnx
import pytest

from compile.errors import CompileError
from compile.verify import MOST_FRAMES, Verification, check, program_masks, take_samples, verify
from pipeline.frame import Frame


@pytest.fixture
def red(red_bundle):
    """A program whose mask is the frame's red channel."""
    return red_bundle.program_path.read_bytes()


def frames_of(*images):
    return [Frame(image, index, 0.0, "test", f"frame{index}") for index, image in enumerate(images)]


def red_channel(frames_nhwc):
    return frames_nhwc[..., 2]


def compare(program, reference, frames, task, source, frame_size_hw=None):
    masks, runtime = program_masks(program)
    samples = take_samples(frames, reference, source, frame_size_hw)
    return verify(masks, samples, task, source=source, runtime=runtime)


def bars(width=100, red_columns=50):
    image = np.zeros((10, width, 3), np.uint8)
    image[:, :red_columns, 2] = 255
    return image


def test_a_program_that_agrees(red):
    frames = frames_of(bars(), bars(red_columns=20), np.zeros((7, 9, 3), np.uint8))
    got = compare(red, red_channel, iter(frames), "binary", "three.mp4")
    assert (got.frames, got.source, got.iou_mean, got.iou_worst, got.mae) == (3, "three.mp4", 1.0, 1.0, 0.0)
    assert got.runtime.startswith("onnxruntime 1.")
    check(got, 1.0)


def test_numbers_of_a_program_that_differs(red):
    def other(frames_nhwc):
        masks = red_channel(frames_nhwc).copy()
        if frames_nhwc[0, 0, 0, 0] == 7:
            masks[:, :, :10] = 0
        return masks

    odd = bars()
    odd[0, 0, 0] = 7
    got = compare(red, other, frames_of(bars(), odd, bars()), "binary", "x")
    assert got.iou_worst == pytest.approx(40 / 50)
    assert got.worst_frame == "frame1"
    assert got.iou_mean == pytest.approx((1 + 0.8 + 1) / 3, abs=1e-6)
    assert got.mae == pytest.approx(0.1 / 3, abs=1e-6)
    message = (
        r"agrees with the trained network in FP32 to IoU 0\.9333 on 3 frames of x \(worst 0\.8000, frame1\) "
        r"and mean absolute error 0\.0333 \(onnxruntime .*, CPU\), expected IoU 0\.9900 and error 0\.0100: .*allow it with --min-iou"
    )
    with pytest.raises(CompileError, match=message):
        check(got, 0.99)
    check(got, 0.93)


def test_classes_are_compared_as_indices(class_bundle):
    program = class_bundle.program_path.read_bytes()
    image = np.zeros((4, 4, 3), np.uint8)
    image[:, 2:, 2] = 1
    got = compare(program, lambda frames: frames[..., 2] * 2, frames_of(image), "classes", "x")
    assert (got.iou_mean, got.mae) == (pytest.approx(1 / 3, abs=1e-6), 0.5)
    assert compare(program, red_channel, frames_of(image), "classes", "x").iou_mean == 1


def test_masks_below_one_half_are_not_taken_on_trust(red):
    # No pixel counts on either side, so the IoU is 1; a broken program that gives nothing must not pass for it.
    dim = np.full((8, 8, 3), 100, np.uint8)
    got = compare(red, lambda frames: np.zeros(frames.shape[:3], np.uint8), frames_of(dim), "binary", "x")
    assert got.iou_mean == 1
    with pytest.raises(
        CompileError, match=r"IoU 1\.0000 .* mean absolute error 0\.3922 \(.*\), expected IoU 0\.9900 and error 0\.0100"
    ):
        check(got, 0.99)
    with pytest.raises(CompileError, match=r"error 0\.0100"):
        check(got, 1.0)
    check(got, 0.6)


def verification(**values):
    defaults = {"frames": 1, "source": "x", "iou_mean": 1.0, "iou_worst": 1.0, "worst_frame": "a", "mae": 0.0}
    return Verification(**{**defaults, "constant": 0, "runtime": "r", "against": "it", **values})


@pytest.mark.parametrize("iou", [0.0, 0.98999, float("nan")])
def test_the_gate_is_the_mean_iou(iou):
    check(verification(iou_mean=0.99), 0.99)
    with pytest.raises(CompileError, match=r"expected IoU 0\.9900"):
        check(verification(iou_mean=iou), 0.99)


def test_the_gate_lets_everything_through_at_0():
    check(verification(iou_mean=0.0, mae=1.0), 0.0)


def test_a_mask_that_is_the_same_all_over_is_refused_whatever_the_numbers(red):
    def almost_nothing(frames_nhwc):
        masks = np.zeros(frames_nhwc.shape[:3], np.uint8)
        masks[:, 0, 0] = 40  # a shape, but so small and dark that neither IoU nor error misses it
        return masks

    black, small = np.zeros((40, 40, 3), np.uint8), np.zeros((40, 40, 3), np.uint8)
    got = compare(red, almost_nothing, frames_of(black, small), "binary", "x")
    assert (got.iou_mean, got.constant) == (1.0, 2)
    assert got.mae < 0.001
    message = r"^what was compiled gives the same value all over the mask on 2 of 2 frames of x .*, expected a shape as the trained"
    with pytest.raises(CompileError, match=message):
        check(got, 0.99)
    check(got, 0.0)
    assert compare(red, red_channel, frames_of(black), "binary", "x").constant == 0


def test_no_more_frames_are_taken_than_can_be_kept(red, monkeypatch):
    def endless():
        while True:
            yield from frames_of(bars())

    assert len(take_samples(endless(), red_channel, "x")) == MOST_FRAMES
    monkeypatch.setattr("compile.verify.MOST_BYTES", 2 * bars().nbytes)
    assert len(take_samples(endless(), red_channel, "x")) == 2


def test_one_frame_that_is_far_off_is_in_the_numbers(red):
    frames = frames_of(*[bars()] * 9, bars(red_columns=100))
    got = compare(red, lambda frames: np.minimum(red_channel(frames), bars()[None, ..., 2]), frames, "binary", "x")
    assert (got.iou_worst, got.worst_frame, got.iou_mean) == (0.5, "frame9", 0.95)


def test_frames_are_resized_to_a_fixed_size(red):
    model = onnx.load_from_string(red)
    for value in (*model.graph.input, *model.graph.output):
        height, width = value.type.tensor_type.shape.dim[1:3]
        height.dim_value, width.dim_value = 6, 50
    seen = []

    def reference(frames_nhwc):
        seen.append(frames_nhwc.shape)
        return red_channel(frames_nhwc)

    frames = frames_of(bars(), np.zeros((6, 50, 3), np.uint8))
    got = compare(model.SerializeToString(), reference, frames, "binary", "x", (6, 50))
    assert seen == [(1, 6, 50, 3)] * 2
    assert got.iou_mean == 1


def test_images_need_not_be_contiguous(red):
    image = np.ascontiguousarray(bars()[:, ::-1])[:, ::-1]
    assert compare(red, red_channel, frames_of(image), "binary", "x").iou_mean == 1


def test_no_frames(red):
    with pytest.raises(CompileError, match=r"--verify empty\.mp4: expected frames, got none"):
        compare(red, red_channel, [], "binary", "empty.mp4")


def test_a_program_that_does_not_load():
    with pytest.raises(CompileError, match="ONNX Runtime cannot load the compiled program: ") as caught:
        compare(b"garbage", red_channel, frames_of(bars()), "binary", "x")
    assert "\n" not in str(caught.value)


def test_a_program_that_does_not_run(red, capfd):
    model = onnx.load_from_string(red)
    model.graph.initializer[0].int64_data[0] = 5  # no such channel
    with pytest.raises(CompileError, match=r"ONNX Runtime cannot (load|run) the compiled program: ") as caught:
        compare(model.SerializeToString(), red_channel, frames_of(bars()), "binary", "x")
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_it_goes_into_the_manifest_as_it_is(red):
    got = compare(red, red_channel, frames_of(bars()), "binary", "x").as_dict()
    assert list(got) == [
        "frames",
        "source",
        "iou_mean",
        "iou_worst",
        "worst_frame",
        "mae",
        "constant",
        "runtime",
        "against",
    ]
    assert {type(value) for value in got.values()} == {int, str, float}


def test_ground_truth_is_compared_with_what_the_reference_reaches():
    frames = frames_of(bars(), bars(red_columns=20))
    truths = lambda name, size_hw: frames[int(name[-1])].image[:, :, 2].copy()  # noqa: E731
    samples = take_samples(frames, red_channel, "x", truths=truths)
    good = verify(red_channel, samples, "binary", source="x", runtime="r")
    assert (good.truth, good.truth_reference, good.truth_metric) == (1.0, 1.0, "max F-measure")
    check(good, 0.99)
    shrunk = verify(
        lambda frames_nhwc: np.roll(frames_nhwc[..., 2], 2, axis=2), samples, "binary", source="x", runtime="r"
    )
    assert shrunk.truth < 0.98
    with pytest.raises(
        CompileError,
        match=r"max F-measure of 0\.9\d+ against ground truth, expected 1\.0000 as in FP32, or 0\.003 less",
    ):
        check(shrunk, 0.5)
    assert "max F-measure against ground truth" in str(good)


def test_ground_truth_of_classes_is_by_mean_iou_and_resized_with_the_frames():
    labels = np.zeros((10, 20), np.uint8)
    labels[:, 10:] = 3
    frames = frames_of(np.dstack([labels] * 3))
    samples = take_samples(frames, red_channel, "x", (20, 40), truths=lambda *_: labels)
    assert samples[0].truth_hw.shape == (20, 40)
    got = verify(red_channel, samples, "classes", source="x", runtime="r")
    assert got.truth_metric == "mean IoU"
    assert got.truth == got.truth_reference


def test_without_ground_truth_nothing_is_said_of_it():
    samples = take_samples(frames_of(bars()), red_channel, "x")
    got = verify(red_channel, samples, "binary", source="x", runtime="r")
    assert "truth" not in got.as_dict()
    assert "truth" not in str(got)
