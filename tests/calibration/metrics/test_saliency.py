import numpy as np
import pytest

from calibration.metrics.saliency import BETA_SQUARED, SaliencyMetrics, f_measure, s_measure
from pipeline.errors import OptionError, ShapeError


def random_masks(count=5, shape=(20, 30)):
    """Masks that lean towards random truths, and these."""
    random = np.random.default_rng(0)
    truths = [random.random(shape) > 0.6 for _ in range(count)]
    masks = [np.clip(truth * 130 + random.integers(0, 126, truth.shape), 0, 255).astype(np.uint8) for truth in truths]
    return masks, truths


def metrics_of(masks, truths):
    metrics = SaliencyMetrics()
    for mask, truth in zip(masks, truths, strict=True):
        metrics.add(mask, truth)
    return metrics.result()


def square(shape=(24, 31), rows=slice(5, 15), columns=slice(8, 20)):
    truth = np.zeros(shape, bool)
    truth[rows, columns] = True
    return truth


def test_metrics_equal_their_definition():
    masks, truths = random_masks()
    best = 0.0
    for threshold in range(256):
        hits = [np.count_nonzero((mask >= threshold) & truth) for mask, truth in zip(masks, truths, strict=True)]
        precision = np.mean(
            [hit / max(np.count_nonzero(mask >= threshold), 1) for hit, mask in zip(hits, masks, strict=True)]
        )
        recall = np.mean([hit / np.count_nonzero(truth) for hit, truth in zip(hits, truths, strict=True)])
        best = max(best, (1 + BETA_SQUARED) * precision * recall / max(BETA_SQUARED * precision + recall, 1e-9))
    errors = [np.abs(mask / 255 - truth).mean() for mask, truth in zip(masks, truths, strict=True)]
    overlaps = [
        np.count_nonzero((mask > 127) & truth) / np.count_nonzero((mask > 127) | truth)
        for mask, truth in zip(masks, truths, strict=True)
    ]
    result = metrics_of(masks, truths)
    assert result["pictures"] == 5
    assert result["max_f"] == pytest.approx(best, abs=1e-5)
    assert result["mae"] == pytest.approx(np.mean(errors), abs=1e-5)
    assert result["iou"] == pytest.approx(np.mean(overlaps), abs=1e-5)


@pytest.mark.needs("py_sod_metrics")
def test_metrics_equal_pysodmetrics():
    import py_sod_metrics

    handlers = {"p": py_sod_metrics.PrecisionHandler, "r": py_sod_metrics.RecallHandler}
    made = {name: handler(with_dynamic=True, with_adaptive=False) for name, handler in handlers.items()}
    made["f"] = py_sod_metrics.FmeasureHandler(beta=BETA_SQUARED, with_dynamic=True, with_adaptive=False)
    theirs = py_sod_metrics.FmeasureV2(metric_handlers=made)
    structures, errors = py_sod_metrics.Smeasure(), py_sod_metrics.MAE()
    masks, truths = random_masks()
    for mask, truth in zip(masks, truths, strict=True):
        for metric in (theirs, structures, errors):
            metric.step(pred=mask / 255, gt=truth, normalize=False)
    curves = theirs.get_results()
    precision, recall = curves["p"]["dynamic"], curves["r"]["dynamic"]
    max_f = ((1 + BETA_SQUARED) * precision * recall / (BETA_SQUARED * precision + recall)).max()
    result = metrics_of(masks, truths)
    assert result["max_f"] == pytest.approx(max_f, abs=1e-5)
    assert result["max_mean_f"] == pytest.approx(curves["f"]["dynamic"].max(), abs=1e-5)
    assert result["s_measure"] == pytest.approx(structures.get_results()["sm"], abs=1e-5)
    assert result["mae"] == pytest.approx(errors.get_results()["mae"], abs=1e-5)


def theirs(mask, truth, alpha=0.5):
    import py_sod_metrics

    metric = py_sod_metrics.Smeasure(alpha=alpha)
    metric.step(pred=mask / 255, gt=truth, normalize=False)
    return metric.get_results()["sm"]


SHAPES = [(20, 30), (30, 20), (17, 23), (64, 5), (2, 2), (3, 2), (120, 161)]


@pytest.mark.needs("py_sod_metrics")
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
@pytest.mark.parametrize("alpha", [0.5, 0.2])
def test_s_measure_of_noise_equals_pysodmetrics(shape, share, alpha):
    random = np.random.default_rng(shape[0])
    compared = 0
    for _ in range(10):
        truth = random.random(shape) < share
        truth[-1] = truth[:, -1] = False  # a centre there gives theirs an empty part, and no number
        mask = random.integers(0, 256, shape, np.uint8)
        assert s_measure(mask, truth, alpha) == pytest.approx(theirs(mask, truth, alpha), abs=1e-6)
        compared += truth.any()
    assert compared or share == 0.02


MASKS = {
    "empty": lambda truth: np.zeros(truth.shape, np.uint8),
    "full": lambda truth: np.full(truth.shape, 255, np.uint8),
    "perfect": lambda truth: truth * np.uint8(255),
    "inverse": lambda truth: ~truth * np.uint8(255),
    "one pixel": lambda truth: (np.arange(truth.size).reshape(truth.shape) == 1) * np.uint8(255),
    "faint pixel": lambda truth: (np.arange(truth.size).reshape(truth.shape) == 1).astype(np.uint8),
    "ramp": lambda truth: np.linspace(0, 255, truth.size).reshape(truth.shape).astype(np.uint8),
}
TRUTHS = {
    "nothing": np.zeros((24, 31), bool),
    "everything": np.ones((24, 31), bool),
    "everything, one pixel": np.ones((1, 1), bool),
    "a square": square(),
    "one pixel": square((9, 7), slice(4, 5), slice(2, 3)),
    "all but one pixel": ~square((9, 7), slice(4, 5), slice(2, 3)),
    "the first pixel": square((9, 7), slice(0, 1), slice(0, 1)),
    "a row": square((9, 7), slice(3, 4), slice(None)),
    "the left half": square((8, 8), slice(None), slice(0, 4)),
    "a centre between pixels": square((12, 12), slice(2, 4), slice(5, 9)),
}


@pytest.mark.needs("py_sod_metrics")
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("truth", TRUTHS)
def test_s_measure_of_special_masks_equals_pysodmetrics(mask, truth):
    truth = TRUTHS[truth]
    mask = MASKS[mask](truth)
    assert s_measure(mask, truth) == pytest.approx(theirs(mask, truth), abs=1e-6)


@pytest.mark.needs("py_sod_metrics")
def test_s_measure_of_next_to_nothing_equals_pysodmetrics():
    truth = np.zeros((700, 900), bool)
    truth[0, 0] = truth[698, 898] = (
        True  # variances near the precision of floating point: even the truth is not quite itself
    )
    assert s_measure(truth * np.uint8(255), truth) == pytest.approx(theirs(truth * np.uint8(255), truth), abs=1e-6)
    assert s_measure(truth * np.uint8(255), truth) < 0.97


def test_s_measure_by_hand():
    truth = square((4, 4), slice(0, 2), slice(0, 2))
    empty = np.zeros((4, 4), np.uint8)
    # Objects: 0 on the subject, 1 on the 12 of 16 pixels off it. Regions: cut after row 0 and column 0; even in both is the first only.
    assert s_measure(empty, truth) == pytest.approx(0.5 * 12 / 16 + 0.5 * 1 / 16)
    assert s_measure(empty, truth, alpha=1) == pytest.approx(12 / 16)
    assert s_measure(empty, truth, alpha=0) == pytest.approx(1 / 16)


def test_s_measure_ranges_from_the_inverse_to_the_truth():
    truth = square()
    assert s_measure(truth * np.uint8(255), truth) == pytest.approx(1)
    assert s_measure(~truth * np.uint8(255), truth) == 0  # the regions' scores are below 0
    blurred = np.where(truth, 180, 40).astype(np.uint8)
    assert 0.5 < s_measure(blurred, truth) < 1


@pytest.mark.parametrize(("truth", "expected"), [(False, 0.8), (True, 0.2)])
def test_s_measure_without_subject_or_background_is_the_mean_agreement(truth, expected):
    assert s_measure(np.full((3, 5), 51, np.uint8), np.full((3, 5), truth)) == pytest.approx(expected)


def test_s_measure_of_even_parts_knows_no_rounding():
    for value in (10, 77, 100, 201):  # 51 values of 77 / 255 have a mean that is not quite 77 / 255
        mask = np.full((2, 51), value, np.uint8)
        truth = square((2, 51), slice(0, 1), slice(0, 51))
        whole = 2 * (value / 255) / ((value / 255) ** 2 + 1)
        rest = 2 * (1 - value / 255) / ((1 - value / 255) ** 2 + 1)
        assert s_measure(mask, truth) == pytest.approx(0.5 * (whole + rest) / 2 + 0.5)


@pytest.mark.parametrize("truth", [square((6, 7), slice(5, 6), slice(1, 4)), square((6, 7), slice(1, 3), slice(6, 7))])
def test_s_measure_of_a_subject_at_the_far_edge_is_a_number(truth):
    assert s_measure(truth * np.uint8(255), truth) == pytest.approx(1)
    assert 0 <= s_measure(np.zeros(truth.shape, np.uint8), truth) < 1


def test_f_measure_weighs_precision():
    precision, recall = np.array([0.9, 0.5, 0.0]), np.array([0.5, 0.9, 0.0])
    assert f_measure(precision, recall).tolist() == pytest.approx([1.3 * 0.45 / 0.77, 1.3 * 0.45 / 1.05, 0])


def test_a_perfect_and_an_empty_mask():
    truth = np.zeros((10, 10), bool)
    truth[2:5, 3:9] = True
    perfect, empty = SaliencyMetrics(), SaliencyMetrics()
    perfect.add(truth.astype(np.uint8) * 255, truth)
    empty.add(np.zeros((10, 10), np.uint8), truth)
    ones = dict.fromkeys(("max_f", "max_mean_f", "s_measure", "iou", "boundary_iou"), 1.0)
    assert perfect.result() == {"pictures": 1, "mae": 0.0, **ones}
    assert (empty.result()["iou"], empty.result()["boundary_iou"]) == (0, 0)
    assert empty.result()["mae"] == pytest.approx(0.18)


def test_means_are_over_the_pictures():
    truth = square()
    result = metrics_of([truth * np.uint8(255), ~truth * np.uint8(255)], [truth, truth])
    assert (result["s_measure"], result["mae"], result["iou"], result["boundary_iou"]) == (0.5, 0.5, 0.5, 0.5)


def test_nothing_is_changed():
    (mask,), (truth,) = random_masks(1)
    before = mask.copy(), truth.copy()
    SaliencyMetrics().add(mask, truth)
    assert np.array_equal(mask, before[0])
    assert np.array_equal(truth, before[1])


@pytest.mark.parametrize("measure", [s_measure, lambda mask, truth: SaliencyMetrics().add(mask, truth)])
@pytest.mark.parametrize(
    ("mask", "truth", "got"),
    [
        (np.zeros((4, 4), np.uint8), np.zeros((4, 5), bool), r"\(4, 4\) uint8 and \(4, 5\) bool"),
        (np.zeros((4, 4), np.uint8), np.zeros((4, 4), np.uint8), r"\(4, 4\) uint8 and \(4, 4\) uint8"),
        (np.zeros((4, 4), np.float32), np.zeros((4, 4), bool), r"\(4, 4\) float32 and \(4, 4\) bool"),
        (np.zeros((1, 4, 4), np.uint8), np.zeros((1, 4, 4), bool), r"\(1, 4, 4\) uint8 and"),
        (np.zeros((0, 4), np.uint8), np.zeros((0, 4), bool), r"\(0, 4\) uint8 and"),
    ],
)
def test_what_is_no_mask_with_its_truth_is_refused(measure, mask, truth, got):
    with pytest.raises(ShapeError, match=rf"expected a \(H, W\) uint8 mask and its \(H, W\) bool truth, got {got}"):
        measure(mask, truth)


def test_no_pictures_is_an_error():
    with pytest.raises(OptionError, match="expected at least one picture with its mask, got none"):
        SaliencyMetrics().result()
