import json

import numpy as np
import onnx
import pytest

from calibration.metrics.truth import VOID
from compile.proof.verify import (
    MOST_FRAMES,
    Expected,
    Sample,
    Sampling,
    Verification,
    doubt_of_truth,
    mean_interval,
    problem_with,
    program_masks,
    take_samples,
    verify,
)
from pipeline.errors import CompileError
from pipeline.frames.frame import Frame


@pytest.fixture
def red(red_bundle):
    """A program whose mask is the frame's red channel."""
    return red_bundle.program_path.read_bytes()


def frames_of(*images):
    return [Frame(image, index, 0.0, "test", f"frame{index}") for index, image in enumerate(images)]


def red_channel(frames_nhwc):
    return frames_nhwc[..., 2]


def expecting(masks):
    return lambda frames_nhwc: Expected(masks(frames_nhwc))


def compare(program, reference, frames, task, source, frame_size_hw=None):
    masks, runtime = program_masks(program)
    samples = take_samples(frames, expecting(reference), source, Sampling(task, frame_size_hw))
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
    assert problem_with(got, 1.0) is None


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
    assert [(frame.name, frame.iou) for frame in got.per_frame] == [("frame1", 0.8), ("frame0", 1), ("frame2", 1)]
    problem = problem_with(got, 0.99)
    for fact in ("0.9333", "0.9900", "3 x", "the trained network in FP32", "--min-iou"):
        assert fact in problem
    assert "interval" in problem
    # The lower end of the interval may be as low as the worst frame when there are three.
    assert problem_with(got, 0.8, 0.8) is None
    assert "frame1" in problem_with(got, 0.8, 0.81)


def test_the_lower_end_of_the_interval_is_judged_not_the_mean():
    ious = [1.0] * 30 + [0.6] * 2
    low, high = mean_interval(ious)
    mean = sum(ious) / 32
    assert low < mean < high <= 1
    # As a normal approximation has it, nearly: 1.96 standard errors.
    spread = 1.96 * np.std(ious) / np.sqrt(32)
    assert low == pytest.approx(mean - spread, abs=0.01)
    got = verification(iou_mean=mean, iou_low=low, iou_worst=1.0)
    assert problem_with(got, mean - 0.001) is not None
    assert problem_with(got, low - 0.001) is None


def test_the_interval_of_one_value_is_that_value():
    assert mean_interval([0.7]) == (0.7, 0.7)


def test_a_frame_that_the_network_is_undecided_on_counts_in_the_mean_alone(red):
    doubtful = bars()
    doubtful[:, 10:40, 2] = 130  # of 50 columns, 30 between 0.3 and 0.7

    def other(frames_nhwc):
        masks = red_channel(frames_nhwc).copy()
        masks[masks == 130] = 120
        return masks

    got = compare(red, other, frames_of(bars(), doubtful), "binary", "x")
    assert (got.iou_worst, got.worst_frame, got.left_out) == (1.0, "frame0", 1)
    assert got.iou_mean == pytest.approx((1 + 20 / 50) / 2)
    assert got.per_frame[0].name == "frame1"
    assert "undecided" in got.per_frame[0].left_out
    assert "1 of 2" in str(got)


def test_a_subject_of_a_few_pixels_counts_in_the_mean_alone(red):
    speck = np.zeros((40, 40, 3), np.uint8)
    speck[0, :10, 2] = 255  # 0.6 % of it

    def other(frames_nhwc):
        masks = red_channel(frames_nhwc).copy()
        masks[:, 0, 5:] = 0
        return masks

    got = compare(red, other, frames_of(speck), "binary", "x")
    assert (got.iou_worst, got.left_out) == (None, 1)
    assert problem_with(got, 0.4) is None
    assert problem_with(got, 0.99) is not None  # the mean sees it all the same


def test_of_classes_the_reference_says_where_it_is_undecided(class_bundle):
    program = class_bundle.program_path.read_bytes()
    image = np.zeros((10, 10, 3), np.uint8)
    image[:, 5:, 2] = 1
    undecided = np.zeros((1, 5, 5), bool)
    undecided[:, :, :1] = True
    masks, runtime = program_masks(program)
    reference = lambda frames: Expected(frames[..., 2], undecided)  # noqa: E731
    (sample,) = take_samples(frames_of(image), reference, "x", Sampling("classes"))
    assert (sample.covered, sample.undecided) == (0.5, pytest.approx(0.4))
    assert sample.left_out is not None
    assert verify(masks, [sample], "classes", source="x", runtime=runtime).iou_worst is None


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
    assert "0.39216" in problem_with(got, 0.99)
    assert "0.0100" in problem_with(got, 1.0)
    assert problem_with(got, 0.6) is None


def verification(**values):
    defaults = {"frames": 1, "source": "x", "iou_mean": 1.0, "iou_low": 1.0, "iou_high": 1.0, "iou_worst": 1.0}
    defaults |= {"worst_frame": "a", "left_out": 0, "mae": 0.0, "constant": 0, "runtime": "r", "against": "it"}
    return Verification(**{**defaults, **values})


@pytest.mark.parametrize("iou", [0.0, 0.98999, float("nan")])
def test_the_gate_is_the_lower_end(iou):
    assert problem_with(verification(iou_low=0.99), 0.99) is None
    assert problem_with(verification(iou_low=iou), 0.99) is not None


@pytest.mark.parametrize(("limit", "refused"), [(None, True), (0.9, True), (0.8, False)])
def test_the_gate_is_the_worst_frame_too(limit, refused):
    assert (problem_with(verification(iou_worst=0.85), 0.99, limit) is not None) == refused


def test_who_allows_a_low_mean_allows_a_low_worst_frame():
    assert problem_with(verification(iou_mean=0.8, iou_low=0.8, iou_worst=0.7), 0.7) is None


def test_the_gate_lets_everything_through_at_0():
    assert problem_with(verification(iou_mean=0.0, iou_low=0.0, iou_worst=0.0, mae=1.0), 0.0) is None


def test_a_mask_that_is_the_same_all_over_is_refused_whatever_the_numbers(red):
    def almost_nothing(frames_nhwc):
        masks = np.zeros(frames_nhwc.shape[:3], np.uint8)
        masks[:, 0, 0] = 40  # a shape, but so small and dark that neither IoU nor error misses it
        return masks

    black, small = np.zeros((40, 40, 3), np.uint8), np.zeros((40, 40, 3), np.uint8)
    got = compare(red, almost_nothing, frames_of(black, small), "binary", "x")
    assert (got.iou_mean, got.constant) == (1.0, 2)
    assert got.mae < 0.001
    assert "2 of 2" in problem_with(got, 0.99)
    assert problem_with(got, 0.0) is None
    assert compare(red, red_channel, frames_of(black), "binary", "x").constant == 0


def test_no_more_frames_are_taken_than_can_be_kept(red, monkeypatch):
    def endless():
        while True:
            yield from frames_of(bars())

    assert len(take_samples(endless(), expecting(red_channel), "x")) == MOST_FRAMES
    monkeypatch.setattr("compile.proof.verify.MOST_BYTES", 2 * bars().nbytes)
    assert len(take_samples(endless(), expecting(red_channel), "x")) == 2


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
    assert {"iou_mean", "iou_low", "iou_high", "iou_worst", "worst_frame", "left_out", "per_frame"} <= got.keys()
    assert got["per_frame"][0]["name"] == "frame0"
    assert json.loads(json.dumps(got))["frames"] == 1


def test_ground_truth_is_compared_with_what_the_reference_reaches():
    frames = frames_of(bars(), bars(red_columns=20))
    truths = lambda name, size_hw: frames[int(name[-1])].image[:, :, 2].copy()  # noqa: E731
    samples = take_samples(frames, expecting(red_channel), "x", Sampling(truths=truths))
    good = verify(red_channel, samples, "binary", source="x", runtime="r")
    assert (good.truth, good.truth_reference, good.truth_metric) == (1.0, 1.0, "max F-measure")
    assert problem_with(good, 0.99) is None
    shrunk = verify(
        lambda frames_nhwc: np.roll(frames_nhwc[..., 2], 2, axis=2), samples, "binary", source="x", runtime="r"
    )
    assert shrunk.truth < 0.98
    assert "max F-measure" in problem_with(shrunk, 0.5)
    assert "max F-measure against ground truth" in str(good)


def test_ground_truth_of_classes_is_by_mean_iou_and_resized_with_the_frames():
    labels = np.zeros((10, 20), np.uint8)
    labels[:, 10:] = 3
    frames = frames_of(np.dstack([labels] * 3))
    samples = take_samples(frames, expecting(red_channel), "x", Sampling("classes", (20, 40), truths=lambda *_: labels))
    assert samples[0].truth_hw.shape == (20, 40)
    got = verify(red_channel, samples, "classes", source="x", runtime="r")
    assert got.truth_metric == "mean IoU"
    assert got.truth == got.truth_reference


def test_without_ground_truth_nothing_is_said_of_it():
    samples = take_samples(frames_of(bars()), expecting(red_channel), "x")
    got = verify(red_channel, samples, "binary", source="x", runtime="r")
    assert "truth" not in got.as_dict()
    assert "truth" not in str(got)


def test_void_pixels_count_for_nothing():
    labels = np.zeros((10, 20), np.uint8)
    labels[:, 10:] = 1
    void = labels.copy()
    void[:, 8:12] = 255
    frames = frames_of(np.dstack([labels] * 3))
    wrong_there = lambda frames_nhwc: np.where(void == 255, 2, frames_nhwc[..., 2]).astype(np.uint8)  # noqa: E731
    (sample,) = take_samples(frames, expecting(red_channel), "x", Sampling("classes", truths=lambda *_: void))
    assert verify(wrong_there, [sample], "classes", source="x", runtime="r").truth == 1
    (sample,) = take_samples(
        frames, expecting(red_channel), "x", Sampling("classes", truths=lambda *_: np.full_like(void, 255))
    )
    assert verify(red_channel, [sample], "classes", source="x", runtime="r").truth is None


def test_void_pixels_of_a_binary_truth_count_for_nothing():
    truth = np.zeros((10, 100), np.uint8)
    truth[:, :40], truth[:, 40:60] = 255, VOID["binary"]
    (sample,) = take_samples(frames_of(bars()), expecting(red_channel), "x", Sampling(truths=lambda *_: truth))
    assert verify(red_channel, [sample], "binary", source="x", runtime="r").truth == 1


def test_ground_truth_of_other_frames_is_told():
    masks = np.zeros((4, 1, 32, 32), np.uint8)
    for number, mask in enumerate(masks):
        mask[0, 8 * number : 8 * number + 8] = 255
    frames = np.zeros((1, 32, 32, 3), np.uint8)

    def doubt(truths):
        return doubt_of_truth([Sample("a", frames, *pair) for pair in zip(masks, truths, strict=True)], "binary")

    assert doubt(masks[:, 0]) is None
    assert doubt([None] * 4) is None
    assert "are they the masks of these frames" in doubt(np.roll(masks[:, 0], 1, axis=0))
