"""Boundary F1 and trimap IoU against cases worked by hand and against scikit-image and scipy."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import distance_transform_edt, zoom
from scipy.spatial.distance import cdist
from skimage.segmentation import find_boundaries

from seglearn.boundaries import boundary_counts, boundary_scores, trimap_matrices, unite
from seglearn.errors import InputError
from seglearn.metrics import confusion_matrix

DIAGONAL = 50  # of the pictures of 30 x 40 below: a tolerance of 0.02 is one pixel


def halves(edge: int, left: int = 0, right: int = 1) -> torch.Tensor:
    """30 x 40 pixels, one class left of column `edge`, another from there on."""
    label = torch.full((30, 40), right, dtype=torch.uint8)
    label[:, :edge] = left
    return label


def blobs(classes: int, seed: int, size: tuple[int, int] = (48, 64)) -> torch.Tensor:
    """Label map with regions of every shape: the coarse noise of a seed, enlarged."""
    rng = np.random.default_rng(seed)
    coarse = rng.random((classes, 7, 9))
    fields = zoom(coarse, (1, size[0] / 7, size[1] / 9), order=1)
    return torch.from_numpy(fields.argmax(0).astype(np.uint8))


def reference(prediction: torch.Tensor, label: torch.Tensor, classes: int, tolerance: float) -> torch.Tensor:
    """The definition, written down with scikit-image and scipy: one class after the other."""
    counts = []
    for index in range(classes):
        borders = [find_boundaries((each == index).numpy(), 1, "inner") for each in (prediction, label)]
        row = []
        for own, other in (borders, borders[::-1]):
            near = distance_transform_edt(~other) <= tolerance * math.hypot(*label.shape) + 1e-9
            row += [own.sum(), (own & near).sum() if other.any() else 0]
        counts.append(row)
    return torch.tensor(np.array(counts))


@pytest.mark.parametrize("tolerance", [0.0, 0.0075, 0.02, 0.06])
@pytest.mark.parametrize("classes", [2, 8, 9, 11, 21, 40, 64, 65, 150])
def test_counts_equal_scikit_image_and_scipy(classes: int, tolerance: float) -> None:
    label, prediction = blobs(classes, 1), blobs(classes, 2)
    prediction[:20] = label[:20]
    got = boundary_counts(prediction, label, classes, tolerance=tolerance)
    assert torch.equal(got, reference(prediction, label, classes, tolerance)) and got[:, 1].any()


def test_a_camvid_frame_has_a_tolerance_of_four_and_a_half_pixels() -> None:
    label = torch.zeros(360, 480, dtype=torch.uint8)
    label[:, 240:] = 1
    for shift, expected in ((4, 1.0), (5, 0.0)):
        shifted = torch.roll(label, shift, 1)
        shifted[:, :shift] = 0
        counts = boundary_counts(shifted, label, 11, 11)
        assert boundary_scores(counts[None]).f1 == expected
        assert counts[:2, 0].tolist() == counts[:2, 2].tolist() == [360, 360]


@pytest.mark.parametrize(("shift", "expected"), [(0, 1.0), (1, 1.0), (2, 0.0)])
def test_a_match_may_be_as_far_away_as_the_tolerance(shift: int, expected: float) -> None:
    counts = boundary_counts(halves(20 + shift), halves(20), 2, tolerance=1 / DIAGONAL)
    assert counts[:, 0].tolist() == [30, 30]  # the edge of the picture is no border
    assert boundary_scores(counts[None]).f1 == expected


def test_a_disc_is_round() -> None:
    sets = np.zeros((11, 11), np.uint8)
    sets[5, 5] = 4
    y, x = np.mgrid[-5:6, -5:6]
    for radius in (0, 1, 1.5, 2, math.sqrt(8), 4.5, 5, 9):
        assert np.array_equal(unite(sets, radius), 4 * (y * y + x * x <= radius**2 + 1e-9))
    assert np.array_equal(unite(sets[5:6], 3)[0], 4 * (abs(x[0]) <= 3))  # a picture lower than the disc


def test_f1_of_a_case_worked_by_hand() -> None:
    """Of four border pixels of a class three are right; of its six true ones two are found."""
    counts = torch.tensor([[[4, 3, 6, 2], [5, 5, 5, 5], [0, 0, 3, 0], [7, 0, 0, 0], [0, 0, 0, 0]]])
    got = boundary_scores(counts)
    first = 2 * (3 / 4) * (2 / 6) / (3 / 4 + 2 / 6)
    assert got.per_class[:3] == pytest.approx([first, 1, 0])  # the third is never predicted
    assert np.isnan(got.per_class[3:]).all()  # a class that the truth does not have is averaged nowhere
    assert got.f1 == pytest.approx((first + 1 + 0) / 3) and got.images == 1


def test_mean_is_over_images_of_means_over_classes() -> None:
    right, wrong, absent = [4, 4, 4, 4], [4, 0, 4, 0], [0, 0, 0, 0]
    counts = torch.tensor([[right, absent, absent], [right, wrong, wrong], [absent, absent, absent]])
    got = boundary_scores(counts)
    assert got.f1 == pytest.approx((1 + 1 / 3) / 2) and got.images == 2  # not 2/4, the mean over all classes
    assert got.per_class == pytest.approx([1, 0, 0])
    assert math.isnan(boundary_scores(counts[2:]).f1) and boundary_scores(counts[2:]).images == 0


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), ignore_index=st.sampled_from([5, 255]))
def test_what_is_predicted_on_void_never_matters(seed: int, ignore_index: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    label, prediction = blobs(5, seed), blobs(5, seed + 1)
    void = blobs(3, seed + 2) == 0
    label[void] = ignore_index
    counts = boundary_counts(prediction, label, 5, ignore_index)
    prediction[void] = torch.randint(0, 5, prediction.shape, generator=rng, dtype=torch.uint8)[void]
    assert torch.equal(boundary_counts(prediction, label, 5, ignore_index), counts)
    bands = trimap_matrices(prediction, label, 5, ignore_index)
    assert bands[-1].sum() <= (~void).sum()
    prediction[void] = 0
    assert torch.equal(trimap_matrices(prediction, label, 5, ignore_index), bands)
    right = boundary_counts(torch.where(void, prediction, label), label, 5, ignore_index)
    assert torch.equal(right[:, 0], right[:, 3]) and torch.equal(right[:, 1], right[:, 2])  # all matched, both ways


def test_a_border_marked_as_a_strip_of_void_runs_through_its_middle() -> None:
    truth = halves(20)
    truth[:, 17:23] = 255  # as PASCAL VOC marks its borders
    for edge in range(17, 24):  # the border is anywhere in the strip
        counts = boundary_counts(halves(edge), truth, 2, 255, tolerance=0.0)
        assert counts.tolist() == [[30, 30, 30, 30]] * 2
    counts = boundary_counts(halves(24), truth, 2, 255, tolerance=0.0)  # one pixel beyond it
    assert counts.tolist() == [[30, 0, 30, 0]] * 2
    truth[truth == 1] = 0  # the same class on both sides
    assert boundary_counts(halves(40), truth, 2, 255).sum() == 0


def test_no_border_and_nothing_labelled() -> None:
    one, void = halves(40), torch.full((30, 40), 255, dtype=torch.uint8)
    assert boundary_counts(one, one, 2, 255).sum() == trimap_matrices(one, one, 2, 255).sum() == 0
    assert boundary_counts(one, void, 2, 255).sum() == trimap_matrices(one, void, 2, 255).sum() == 0
    missed = boundary_counts(one, halves(20), 2, 255)
    assert boundary_scores(missed[None]).f1 == 0  # a border that was not predicted at all


def test_bands_of_a_straight_border() -> None:
    bands = trimap_matrices(halves(21), halves(20), 2, 255, widths=(1, 2, 5))
    for band, width in zip(bands, (1, 2, 5), strict=True):  # so many columns on either side; one of them is wrong
        assert band.tolist() == [[30 * width, 0], [30, 30 * (width - 1)]]


def test_bands_equal_a_search_over_all_pairs_of_pixels() -> None:
    label, prediction = blobs(4, 3, (24, 32)), blobs(4, 4, (24, 32))
    label[blobs(6, 5, (24, 32)) == 0] = 255
    widths = (1, 1.5, 3, 7, 100)
    labels = label.numpy()
    padded = np.pad(labels, 1, mode="edge")
    neighbours = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
    border = np.any([labels != each for each in neighbours], axis=0)  # the edge of void is a border too
    pixels = np.argwhere(np.ones_like(border))
    distance = cdist(pixels, np.argwhere(border)).min(1).reshape(labels.shape)
    got = trimap_matrices(prediction, label, 4, 255, widths)
    for band, width in zip(got, widths, strict=True):
        inside = torch.from_numpy((distance < width) & (labels != 255))
        assert torch.equal(band, confusion_matrix(prediction[inside], label[inside], 4))
    assert torch.equal(got[-1], confusion_matrix(prediction, label, 4, 255))


@pytest.mark.parametrize("count", [boundary_counts, trimap_matrices])
def test_wrong_input_is_named_and_right_input_is_not_changed(count) -> None:  # type: ignore[no-untyped-def]
    label, prediction = halves(20), halves(22).long()
    label[:5] = 255
    before = label.clone(), prediction.clone()
    count(prediction, label, 2, 255)
    assert torch.equal(before[0], label) and torch.equal(before[1], prediction)
    with pytest.raises(InputError, match=r"label holds 0\.\.255.*ignore index, which is 11"):
        count(prediction, label, 2, 11)
    with pytest.raises(InputError, match=r"prediction is \[30, 39\] but label is \[30, 40\]"):
        count(prediction[:, 1:], label, 2, 255)
    with pytest.raises(InputError, match=r"prediction holds 0\.\.7"):
        count(7 * prediction, label, 2, 255)
