"""Expected calibration error against torchmetrics and cases worked by hand."""

import math

import pytest
import torch
from torchmetrics.classification import MulticlassCalibrationError

from seglearn.calibration import UNIT, calibration, calibration_counts
from seglearn.errors import InputError


def sample(seed: int = 0, classes: int = 5, scale: float = 2.0) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(classes, 40, 50, generator=rng)
    label = torch.randint(0, classes, (40, 50), generator=rng, dtype=torch.uint8)
    easy = torch.rand(label.shape, generator=rng) < 0.5
    return logits, torch.where(easy, logits.max(0).indices.to(torch.uint8), label)


@pytest.mark.parametrize("bins", [1, 10, 15])
@pytest.mark.parametrize("scale", [0.3, 2.0, 5.0])
@pytest.mark.parametrize("ignore_index", [None, 255, 5])
def test_equals_torchmetrics(bins: int, scale: float, ignore_index: int | None) -> None:
    logits, label = sample(scale=scale)
    if ignore_index is not None:
        label[:7] = ignore_index
    got = calibration(calibration_counts(logits, label, ignore_index, bins))
    theirs = MulticlassCalibrationError(5, bins, norm="l1", ignore_index=ignore_index)
    assert got.ece == pytest.approx(theirs(logits[None], label[None].long()).item(), abs=2e-6)


def test_a_case_worked_by_hand() -> None:
    """Four pixels at 0.85, of which two are right; two at 0.55, both right; one that is void."""
    p = torch.tensor([0.85, 0.85, 0.85, 0.85, 0.55, 0.55, 0.99]).double()
    logits = torch.stack([p.log(), (1 - p).log()])[:, None]  # [2, 1, 7]: the prediction is class 0
    counts = calibration_counts(logits, torch.tensor([[0, 0, 1, 1, 0, 0, 255]], dtype=torch.uint8), 255, bins=10)
    assert counts[:, 0].tolist() == [0, 0, 0, 0, 0, 2, 0, 0, 4, 0]
    got = calibration(counts)
    assert got.ece == pytest.approx(4 / 6 * abs(0.5 - 0.85) + 2 / 6 * abs(1 - 0.55), abs=1e-6)
    assert got.confidence == pytest.approx((4 * 0.85 + 2 * 0.55) / 6, abs=1e-6) and got.accuracy == pytest.approx(4 / 6)
    assert got.bin_accuracy[8] == 0.5 and got.share[5] == pytest.approx(2 / 6) and math.isnan(got.bin_accuracy[0])


def test_a_sure_network_that_is_right_is_calibrated_and_one_that_is_wrong_is_not() -> None:
    logits = torch.zeros(3, 2, 2)
    logits[1] = 100.0
    for true, ece in ((1, 0.0), (2, 1.0)):
        counts = calibration_counts(logits, torch.full((2, 2), true, dtype=torch.uint8), 255)
        assert counts[-1].tolist() == [4, 4 * (true == 1), 4 * UNIT]
        assert calibration(counts).ece == ece


def test_images_add_up_exactly_in_any_order() -> None:
    """Confidences summed as floats would differ in the last digits, and two processes would disagree with one."""
    counts = [calibration_counts(*sample(seed), 255) for seed in range(12)]
    assert counts[0].dtype == torch.int64 and torch.equal(sum(counts), sum(counts[1::2]) + sum(counts[::2]))
    logits, label = (torch.cat(each, -1) for each in zip(*(sample(seed) for seed in range(12)), strict=True))
    whole = calibration_counts(logits, label, 255)
    assert torch.equal(whole[:, :2], sum(counts)[:, :2])
    assert calibration(sum(counts)).ece == pytest.approx(calibration(whole).ece, abs=1e-7)


def test_bfloat16_void_and_wrong_input() -> None:
    logits, label = sample()
    kept = logits.clone()
    half = calibration_counts(logits.bfloat16(), label, 255)
    assert torch.equal(half, calibration_counts(logits.bfloat16().float(), label, 255)) and torch.equal(kept, logits)
    nothing = calibration_counts(logits, torch.full_like(label, 255), 255)
    assert nothing.sum() == 0 and math.isnan(calibration(nothing).ece)
    with pytest.raises(InputError, match=r"label holds 255\.\.255.*which is 11"):
        calibration_counts(logits, torch.full_like(label, 255), 11)
    with pytest.raises(InputError, match=r"prediction is \[40, 50\] but label is \[40, 49\]"):
        calibration_counts(logits, label[:, 1:], 255)
