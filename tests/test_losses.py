"""Losses against loops, torch, segmentation-models-pytorch and others' published numbers; weights against CamVid's."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from seglearn import losses
from seglearn.data import CamVid
from seglearn.errors import InputError
from seglearn.losses import (
    border_weights,
    cross_entropy,
    dice,
    enet_weights,
    focal,
    inverse_sqrt_weights,
    lovasz_softmax,
    median_frequency_weights,
    ohem,
)

ALL = [cross_entropy, focal, ohem, dice, lovasz_softmax]
OVER_PIXELS = [cross_entropy, focal, ohem]

# Pixels of CamVid's 367 training label maps, 360 x 480, classes 0..10 and void, and in how many of them a class occurs.
CAMVID = torch.tensor(
    [10682767, 14750079, 623349, 20076880, 2845085, 6166762, 743859, 714595, 3719877, 405385, 184967, 2503995]
)
CAMVID_IMAGES = torch.tensor([366, 365, 366, 367, 349, 319, 351, 173, 360, 317, 201])


def example(
    ignore_index: int = 255, classes: int = 5, size: tuple[int, ...] = (2, 7, 9), dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Logits and labels, a third of them ignored, without one of the classes."""
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(size[0], classes, *size[1:], generator=rng, dtype=dtype).mul(2).requires_grad_()
    label = torch.randint(0, classes, size, generator=rng)
    label[label == 1] = 2
    label[torch.rand(size, generator=rng) < 0.3] = ignore_index
    return logits, label


def assert_same(ours: Tensor, theirs: Tensor, logits: Tensor, tolerance: float = 1e-6) -> None:
    """Equal in value and in the gradient that reaches the logits."""
    assert ours.shape == ()
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
    (gradient,), (expected,) = torch.autograd.grad(ours, logits), torch.autograd.grad(theirs, logits)
    assert expected.abs().max() > 1e-4
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-2 * tolerance)


def void_crop(ignore_index: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return torch.randn(1, 3, 4, 4, requires_grad=True), torch.full((1, 4, 4), ignore_index, dtype=dtype)


# What all of them keep


@pytest.mark.parametrize("loss", ALL)
@pytest.mark.parametrize(("ignore_index", "dtype"), [(255, torch.uint8), (11, torch.uint8), (-1, torch.int64)])
def test_all_void_is_zero_with_zero_gradient(
    loss: Callable[..., Tensor], ignore_index: int, dtype: torch.dtype
) -> None:
    logits, label = void_crop(ignore_index, dtype)
    value = loss(logits, label, ignore_index)
    value.backward()
    assert value.item() == 0 and logits.grad is not None and (logits.grad == 0).all()


@pytest.mark.parametrize("loss", OVER_PIXELS)
def test_all_void_is_zero_with_class_weights_too(loss: Callable[..., Tensor]) -> None:
    logits, label = void_crop(11, torch.uint8)
    value = loss(logits, label, 11, torch.ones(3))
    value.backward()
    assert value.item() == 0 and logits.grad is not None and (logits.grad == 0).all()


@pytest.mark.parametrize("loss", ALL)
def test_ignored_pixels_neither_count_nor_learn_and_no_argument_changes(loss: Callable[..., Tensor]) -> None:
    values = []
    for ignore_index, dtype in [(255, torch.uint8), (5, torch.uint8), (5, torch.int64), (-1, torch.int64)]:
        logits, label = example(ignore_index)
        label = label.to(dtype)
        before = logits.detach().clone(), label.clone()
        value = loss(logits, label, ignore_index)
        (gradient,) = torch.autograd.grad(value, logits)
        assert torch.equal(logits, before[0]) and torch.equal(label, before[1]) and label.dtype == dtype
        ignored = (label == ignore_index)[:, None].expand_as(gradient)
        assert (gradient[ignored] == 0).all() and (gradient[~ignored] != 0).any()
        with torch.no_grad():
            assert loss(torch.where(ignored, 9.0, logits), label, ignore_index) == value
        values.append(value.item())
    assert len(set(values)) == 1


def test_a_uint8_label_of_255_is_not_minus_one() -> None:
    """To torch it is: `tensor([255], dtype=uint8) == -1` holds."""
    for loss in ALL:
        with pytest.raises(
            InputError, match="label holds 255: expected classes 0..2 and the ignore index, which is -1"
        ):
            loss(*void_crop(255, torch.uint8), -1)


@pytest.mark.parametrize("loss", ALL)
def test_half_precision_is_computed_in_float32(loss: Callable[..., Tensor]) -> None:
    logits, label = example()
    for dtype in (torch.bfloat16, torch.float16):
        half = logits.detach().to(dtype)
        value = loss(half, label, 255)
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, loss(half.float(), label, 255), rtol=0, atol=0)
        with torch.autocast("cpu", torch.bfloat16):  # as the training loop calls it
            torch.testing.assert_close(loss(half, label, 255), value, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("loss", ALL)
def test_gradient_is_that_of_finite_differences(loss: Callable[..., Tensor]) -> None:
    logits, label = example(size=(2, 3, 4), dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: loss(x, label, 255), logits, eps=1e-6, atol=1e-7)


@pytest.mark.parametrize("loss", ALL)
def test_what_does_not_fit_is_refused(loss: Callable[..., Tensor]) -> None:
    logits, label = example()
    with pytest.raises(InputError, match=r"label is \[2, 7, 8\] but logits are \[2, 5, 7, 9\]: expected \[N, H, W\]"):
        loss(logits, label[..., :8], 255)
    with pytest.raises(InputError, match="label is torch.float32: expected integers"):
        loss(logits, label.float(), 255)
    with pytest.raises(InputError, match="label holds 255: expected classes 0..4 and the ignore index, which is 11"):
        loss(logits, label, 11)
    label[0, 0, 0] = -1
    with pytest.raises(InputError, match="label holds -1: expected classes 0..4"):
        loss(logits, label, 255)


@pytest.mark.parametrize("loss", OVER_PIXELS)
def test_class_weights_of_wrong_length_are_refused(loss: Callable[..., Tensor]) -> None:
    with pytest.raises(InputError, match=r"weight is \[4\]: expected one a class, \[5\]"):
        loss(*example(), 255, torch.ones(4))


# Each of them


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("ignore_index", [255, 5, -1])
def test_cross_entropy_is_torchs(ignore_index: int, weighted: bool) -> None:
    logits, label = example(ignore_index)
    weight = torch.tensor([0.3, 1.0, 2.0, 0.1, 5.0]) if weighted else None
    theirs = F.cross_entropy(logits, label, weight, ignore_index=ignore_index)
    assert_same(cross_entropy(logits, label, ignore_index, weight), theirs, logits)


def test_pixel_weights_generalise_class_weights() -> None:
    logits, label = example()
    weight = torch.tensor([0.3, 1.0, 2.0, 0.1, 5.0])
    mapped = weight[label.clamp(max=4)]
    assert_same(
        cross_entropy(logits, label, 255, pixel_weight=mapped), cross_entropy(logits, label, 255, weight), logits
    )
    both = cross_entropy(logits, label, 255, weight, pixel_weight=mapped)
    assert_same(both, cross_entropy(logits, label, 255, weight**2), logits)


@pytest.mark.parametrize("weighted", [False, True])
def test_focal_at_gamma_0_is_cross_entropy(weighted: bool) -> None:
    logits, label = example()
    weight = torch.tensor([0.3, 1.0, 2.0, 0.1, 5.0]) if weighted else None
    assert_same(focal(logits, label, 255, weight, gamma=0), cross_entropy(logits, label, 255, weight), logits)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0, 5.0])
def test_focal_is_the_softmax_form_of_smp(gamma: float) -> None:
    """Smp has it as a function; its class `FocalLoss` is another loss, of one yes-or-no output a class."""
    from segmentation_models_pytorch.losses._functional import softmax_focal_loss_with_logits

    logits, label = example()
    labelled = label != 255
    theirs = softmax_focal_loss_with_logits(logits.movedim(1, -1)[labelled], label[labelled], gamma)
    assert_same(focal(logits, label, 255, gamma=gamma), theirs, logits)


def test_focal_by_hand() -> None:
    """Lin et al., section 3.2: with gamma 2, p = 0.9 counts 100 times less than in cross-entropy, p = 0.5 4 times."""
    for p, factor in ((0.9, 100), (0.5, 4)):
        logits = torch.tensor([[math.log(p), math.log(1 - p)]])[..., None, None]
        label = torch.zeros(1, 1, 1, dtype=torch.uint8)
        assert focal(logits, label, 255).item() == pytest.approx(-math.log(p) / factor, rel=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_focal_of_a_certain_pixel_has_a_finite_gradient(gamma: float) -> None:
    logits = torch.tensor([[[[200.0, -200.0]], [[0.0, 0.0]]]], requires_grad=True)
    focal(logits, torch.zeros(1, 1, 2, dtype=torch.uint8), 255, gamma=gamma).backward()
    assert logits.grad is not None and logits.grad.isfinite().all()
    assert logits.grad[0, 0, 0, 0] == 0 and logits.grad[0, 0, 0, 1] < 0


def test_dice_by_hand() -> None:
    """Four pixels, two classes, p of class 0 being 0.9, 0.6, 0.3 | ignored; truth 0, 0, 1."""
    p = torch.tensor([0.9, 0.6, 0.3, 0.5])
    logits = torch.stack([p, 1 - p]).log()[None, :, None]
    label = torch.tensor([[[0, 0, 1, 255]]], dtype=torch.uint8)
    first = 2 * (0.9 + 0.6) / (0.9 + 0.6 + 0.3 + 2)
    second = 2 * 0.7 / (0.1 + 0.4 + 0.7 + 1)
    assert dice(logits, label, 255).item() == pytest.approx(1 - (first + second) / 2, rel=1e-6)
    assert dice(logits[..., :2], label[..., :2], 255).item() == pytest.approx(1 - 2 * 1.5 / 3.5, rel=1e-6)  # one class


def test_dice_is_smps_up_to_absent_classes() -> None:
    """Smp averages over all classes, with loss 0 for the absent ones: here 4 of 5 are present."""
    logits, label = example()
    theirs = smp.losses.DiceLoss("multiclass", ignore_index=255)(logits, label) * 5 / 4
    assert_same(dice(logits, label, 255), theirs, logits)


@pytest.mark.parametrize("loss", [dice, lovasz_softmax])
def test_overlap_losses_lie_between_0_and_1(loss: Callable[..., Tensor]) -> None:
    _, label = example()
    truth = F.one_hot(torch.where(label == 255, 0, label), 5).movedim(-1, 1) * 200.0
    assert loss(truth, label, 255).item() == pytest.approx(0, abs=1e-6)
    assert loss(truth.roll(1, 1), label, 255).item() == pytest.approx(1, abs=1e-6)


def test_lovasz_is_its_authors_code() -> None:
    """Berman's own code, as it is in smp: mean over present classes, all pixels of the batch together."""
    logits, label = example(size=(2, 30, 40))
    theirs = smp.losses.LovaszLoss("multiclass", ignore_index=255)(logits, label)
    assert_same(lovasz_softmax(logits, label, 255), theirs, logits, tolerance=2e-6)


def test_lovasz_by_a_loop_over_sets() -> None:
    """The definition: sum of errors, in falling order, times what 1 - IoU gains as the set of wrong pixels grows."""
    logits, label = example(size=(1, 4, 5), dtype=torch.float64)
    p = logits.softmax(1)[0].detach().flatten(1)
    truth = label.flatten()
    pixels = [i for i in range(20) if truth[i] != 255]
    terms = []
    for c in sorted({int(truth[i]) for i in pixels}):
        of_class = {i for i in pixels if truth[i] == c}
        error = {i: 1 - p[c, i].item() if i in of_class else p[c, i].item() for i in pixels}
        wrong: set[int] = set()
        before, total = 0.0, 0.0
        for i in sorted(pixels, key=lambda i: -error[i]):
            wrong.add(i)
            after = 1 - len(of_class - wrong) / len(of_class | wrong)
            total += error[i] * (after - before)
            before = after
        terms.append(total)
    assert lovasz_softmax(logits, label, 255).item() == pytest.approx(sum(terms) / len(terms), rel=1e-12)


def test_lovasz_of_hard_predictions_is_one_minus_mean_iou() -> None:
    from seglearn.metrics import confusion_matrix

    logits, label = example(classes=4)
    predicted = logits.argmax(1)
    matrix = confusion_matrix(predicted, label, 4, 255).double()
    union = matrix.sum(0) + matrix.sum(1) - matrix.diagonal()
    expected = 1 - (matrix.diagonal() / union)[matrix.sum(1) > 0].mean()
    hard = F.one_hot(predicted, 4).movedim(-1, 1) * 200.0
    assert lovasz_softmax(hard, label, 255).item() == pytest.approx(expected.item(), abs=1e-6)


def test_lovasz_keeps_its_digits_on_many_pixels() -> None:
    """On a million pixels Berman's differences of IoU, in float32, are off by 2 % in the gradient."""
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 2, 1, 1 << 20, generator=rng, requires_grad=True)
    label = (torch.rand(1, 1, 1 << 20, generator=rng) < 0.01).long()

    def gradient(loss: Callable[..., Tensor], dtype: torch.dtype) -> Tensor:
        return torch.autograd.grad(loss(logits.to(dtype), label, 255), logits)[0]

    exact = gradient(lovasz_softmax, torch.float64)
    assert (gradient(lovasz_softmax, torch.float32) - exact).norm() < 1e-4 * exact.norm()


@pytest.mark.parametrize(("threshold", "minimum"), [(0.7, 1 / 16), (0.2, 1 / 16), (0.01, 0.5), (1.0, 0.0)])
def test_ohem_by_a_loop(threshold: float, minimum: float) -> None:
    logits, label = example(dtype=torch.float64)
    weight = torch.tensor([0.3, 1.0, 2.0, 0.1, 5.0], dtype=torch.float64)
    p = logits.detach().softmax(1)
    pixels = [(n, i, j) for n in range(2) for i in range(7) for j in range(9) if label[n, i, j] != 255]
    probability = {(n, i, j): p[n, label[n, i, j], i, j] for n, i, j in pixels}
    hard = [pixel for pixel in pixels if probability[pixel] <= threshold]
    if len(hard) < minimum * len(pixels):
        hard = sorted(pixels, key=lambda pixel: probability[pixel].item())[: math.ceil(minimum * len(pixels))]
    assert 0 < len(hard) <= len(pixels)
    for given in (None, weight):
        factor = [1.0 if given is None else given[label[pixel]].item() for pixel in hard]
        each = [-logits.log_softmax(1)[n, label[n, i, j], i, j] for n, i, j in hard]
        total = sum(one * f for one, f in zip(each, factor, strict=True))
        assert_same(ohem(logits, label, 255, given, threshold, minimum), total / sum(factor), logits, 1e-9)


def test_ohem_that_keeps_all_is_cross_entropy() -> None:
    logits, label = example()
    assert_same(ohem(logits, label, 255, threshold=1.0), cross_entropy(logits, label, 255), logits)
    assert_same(ohem(logits, label, 255, threshold=0.01, minimum=1.0), cross_entropy(logits, label, 255), logits)


# By name


def test_sums_of_losses_weight_only_what_is_over_pixels() -> None:
    logits, label = example()
    weight = torch.tensor([0.3, 1.0, 2.0, 0.1, 5.0])
    criterion = losses.create("cross_entropy+dice", 255, weight)
    assert_same(criterion(logits, label), cross_entropy(logits, label, 255, weight) + dice(logits, label, 255), logits)
    for name, loss in {**losses.OVER_PIXELS, **losses.OVER_CLASSES}.items():
        assert torch.equal(losses.create(name, 255)(logits, label), loss(logits, label, 255))


@pytest.mark.parametrize(
    ("name", "weight", "sentence"),
    [
        ("dise", None, "loss 'dise' is unknown: did you mean 'dice'"),
        ("cross_entropy + dice", None, "loss 'cross_entropy ' is unknown: did you mean 'cross_entropy'"),
        ("dice", torch.ones(3), "dice takes no class weights.*none, or loss to cross_entropy.dice"),
    ],
)
def test_losses_that_cannot_be_built(name: str, weight: Tensor | None, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        losses.create(name, 255, weight)


# Weights


def test_enet_weights_of_camvid() -> None:
    """The published-count weights when void counts as pixels, as measured by others; without it they are lower."""
    with_void = enet_weights(CAMVID)[:11]
    expected = torch.tensor([5.79, 4.44, 34.0, 3.45, 15.9, 9.02, 32.0, 32.5, 13.2, 38.4, 44.1])
    torch.testing.assert_close(with_void, expected, rtol=2e-3, atol=0)
    labelled = enet_weights(CAMVID[:11])
    share = torch.tensor([17.54, 24.22, 1.02, 32.96, 4.67, 10.12, 1.22, 1.17, 6.11, 0.67, 0.30]) / 100
    torch.testing.assert_close(labelled, 1 / (1.02 + share).log(), rtol=2e-3, atol=0)
    assert (labelled < with_void).all() and (labelled / with_void).min() > 0.96
    assert enet_weights(torch.tensor([0, 7]))[0].item() == pytest.approx(1 / math.log(1.02))


def test_inverse_sqrt_weights_lie_half_way_between_no_weights_and_equal_shares() -> None:
    counts = torch.tensor([900, 100, 0])
    weights = inverse_sqrt_weights(counts)
    assert weights[1] / weights[0] == pytest.approx(3)  # sqrt of 9 times as many pixels
    assert weights[2] == 0 and weights.dtype == torch.float32


def test_median_frequency_weights_of_camvid_in_both_readings() -> None:
    presence = median_frequency_weights(CAMVID[:11], CAMVID_IMAGES * 360 * 480)
    expected = [0.2793, 0.2017, 4.7865, 0.1490, 1.0000, 0.4217, 3.8467, 1.9736, 0.7889, 6.3747, 8.8587]
    assert presence.tolist() == pytest.approx(expected, abs=6e-5)
    whole = median_frequency_weights(CAMVID[:11])
    expected = [0.2663, 0.1929, 4.5642, 0.1417, 1.0000, 0.4614, 3.8248, 3.9814, 0.7648, 7.0182, 15.3816]
    assert whole.tolist() == pytest.approx(expected, abs=6e-5)


def test_no_reading_gives_segnets_published_weights() -> None:
    published = torch.tensor(losses.SEGNET_CAMVID_WEIGHTS)
    whole = median_frequency_weights(CAMVID[:11])
    presence = median_frequency_weights(CAMVID[:11], CAMVID_IMAGES * 360 * 480)
    agree = (published - whole).abs() < 3e-4
    assert [CamVid.classes[i] for i in agree.nonzero().flatten()] == ["Pole", "Road"]
    assert published[6] / whole[6] > 2.5 and published[10] / whole[10] < 0.5  # sign and bicyclist
    assert ((published - presence).abs() > 0.005).all()


def test_an_absent_class_weighs_nothing_in_median_frequency() -> None:
    counts, held = torch.tensor([10, 0, 30, 20]), torch.tensor([40, 0, 60, 60])
    assert median_frequency_weights(counts).tolist() == pytest.approx([2, 0, 2 / 3, 1])
    assert median_frequency_weights(counts, held).tolist() == pytest.approx([4 / 3, 0, 2 / 3, 1])
    # the median of an even number of classes is the mean of the middle two
    assert median_frequency_weights(torch.tensor([1, 3])).tolist() == pytest.approx([2, 2 / 3])


class Two:
    """Two label maps of two classes and void; class 1 is in the second one alone."""

    num_classes, ignore_index = 2, 255

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> tuple[None, Tensor]:
        maps = ([[0, 0], [0, 255]], [[0, 1, 1], [255, 255, 1]])
        return None, torch.tensor(maps[index], dtype=torch.uint8)


def test_counting_a_dataset() -> None:
    dataset: Any = Two()
    counts, held = losses.count_pixels(dataset)
    assert counts.tolist() == [4, 3] and held.tolist() == [4 + 6, 6]
    frequencies = np.array([4 / 10, 3 / 6])
    expected = np.median(frequencies) / frequencies
    assert losses.class_weights(dataset, "median_frequency").tolist() == pytest.approx(expected.tolist())
    expected = 1 / np.log(1.02 + np.array([4 / 7, 3 / 7]))
    assert losses.class_weights(dataset, "enet").tolist() == pytest.approx(expected.tolist())


def test_border_weights_by_a_loop() -> None:
    rng = np.random.default_rng(0)
    cells = np.zeros((18, 21), dtype=np.int64)
    for cell in (3, 300, 7):  # any numbers, also beyond a byte
        top, left = rng.integers(0, 12, 2)
        cells[top : top + 4, left : left + 5] = cell
    assert len(np.unique(cells)) == 4
    weights = border_weights(torch.from_numpy(cells), w0=8, sigma=3)
    assert weights.dtype == torch.float32 and weights.shape == (18, 21)
    for (i, j), cell in np.ndenumerate(cells):
        nearest = sorted(
            min(math.dist((i, j), other) for other in np.argwhere(cells == number)) for number in (3, 300, 7)
        )
        expected = 0.0 if cell else 8 * math.exp(-((nearest[0] + nearest[1]) ** 2) / (2 * 3**2))
        assert weights[i, j].item() == pytest.approx(expected, rel=1e-6)


def test_border_weights_in_gaps_of_known_width() -> None:
    """Between two walls g pixels apart, d1 + d2 = g + 1 everywhere: w = 10 exp(-(g + 1)² / 50)."""
    for gap in (1, 4, 9):
        cells = torch.zeros(6, 10 + gap, dtype=torch.uint8)
        cells[:, :5], cells[:, -5:] = 1, 2
        weights = border_weights(cells)
        inside = torch.full((6, gap), 10 * math.exp(-((gap + 1) ** 2) / 50))
        torch.testing.assert_close(weights[:, 5:-5], inside)
        assert (weights[cells > 0] == 0).all()


def test_border_weights_need_two_cells() -> None:
    for cells in (torch.zeros(5, 6, dtype=torch.uint8), torch.eye(5, dtype=torch.int64)):
        assert torch.equal(border_weights(cells), torch.zeros(cells.shape))


def test_border_weights_are_those_of_stacked_distance_maps() -> None:
    """The usual implementation: one distance map a cell, sorted."""
    cells = np.kron(np.arange(12).reshape(3, 4), np.pad(np.ones((9, 9), int), 2))
    maps = np.sort([distance_transform_edt(cells != number) for number in range(1, 12)], 0)
    expected = 10 * np.exp(-((maps[0] + maps[1]) ** 2) / 50) * (cells == 0)
    before = cells.copy()
    np.testing.assert_allclose(border_weights(torch.from_numpy(cells)), expected, rtol=1e-6)
    assert (cells == before).all()
