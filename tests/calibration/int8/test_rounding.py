"""Rounding of weights that keeps the outputs."""

import pytest
import torch

from calibration.int8.rounding import SMALLEST_SCALE, output_error, round_weights, weight_scales


@pytest.fixture
def inputs():
    """Rows of inputs that go along with each other, as neighbouring pixels do."""
    torch.manual_seed(0)
    return torch.randn(4000, 1) + 0.1 * torch.randn(4000, 36)


def test_outputs_stay_where_the_nearest_weights_lose_them(inputs):
    weight = torch.randn(8, 36)
    moments = [inputs.T @ inputs / len(inputs)]
    scales = weight_scales(weight)
    nearest, kept = (round_weights(weight, scales, given) for given in (None, moments))
    wrong, error = (
        float((inputs @ (levels * scales[:, None] - weight).T).square().mean()) for levels in (nearest, kept)
    )
    assert error < 0.2 * wrong
    assert output_error(weight, kept * scales[:, None], moments) == pytest.approx(error, rel=1e-3)


def test_inputs_that_have_nothing_in_common_round_to_the_nearest():
    weight = torch.randn(5, 7)
    scales = weight_scales(weight)
    assert torch.equal(round_weights(weight, scales, [torch.eye(7)]), round_weights(weight, scales))


def test_levels_are_symmetric_and_scales_are_those_of_fp16():
    weight = torch.randn(6, 9) * torch.tensor([1e-9, 1e-3, 1, 50, 1e4, 0]).view(-1, 1)
    scales = weight_scales(weight)
    assert torch.equal(scales, scales.half().float())
    assert scales.min() >= SMALLEST_SCALE
    levels = round_weights(weight, scales)
    assert levels.dtype == torch.int8
    assert levels.abs().max() <= 127
    assert torch.isfinite(levels * scales[:, None]).all()


def test_scales_do_the_least_squared_error():
    weight = torch.cat((torch.rand(1, 400) - 0.5, torch.full((1, 1), 8.0)), 1)
    plain = 8.0 / 127

    def error(scale):
        return float((round_weights(weight, scale) * scale[:, None] - weight).square().sum())

    found = weight_scales(weight)
    assert error(found) <= 1.001 * error(torch.tensor([plain]))
    assert found[0] <= plain * 1.001


def test_inputs_that_are_always_zero_do_no_harm():
    weight = torch.randn(3, 6)
    scales = weight_scales(weight)
    assert torch.isfinite(round_weights(weight, scales, [torch.zeros(6, 6)]).float()).all()
    partly = torch.zeros(6, 6)
    partly[:3, :3] = torch.eye(3)
    assert torch.equal(round_weights(weight, scales, [partly]), round_weights(weight, scales))


def test_blocks_are_rounded_apart(inputs):
    weight = torch.randn(4, 36)
    moments = inputs.T @ inputs / len(inputs)
    scales = weight_scales(weight)
    whole = round_weights(weight, scales, [moments[:20, :20], moments[20:, 20:]])
    parts = [round_weights(weight[:, part], scales, [moments[part, part]]) for part in (slice(20), slice(20, None))]
    assert torch.equal(whole, torch.cat(parts, 1))
