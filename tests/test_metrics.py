"""The confusion matrix and its scores against independent implementations."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix as sklearn_matrix
from torchmetrics.classification import MulticlassJaccardIndex

from seglearn.errors import InputError
from seglearn.metrics import confusion_matrix, scores


@settings(max_examples=60, deadline=None)
@given(
    classes=st.sampled_from([2, 5, 11, 15, 16, 21, 150, 200]),
    ignore=st.sampled_from(["next", 255, -1, None]),
    seed=st.integers(0, 10**6),
)
def test_equals_sklearn(classes: int, ignore: int | str | None, seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes, (9, 13))
    prediction = rng.integers(0, classes, (9, 13))
    ignore_index = classes if ignore == "next" else ignore
    if isinstance(ignore_index, int):
        truth[rng.random(truth.shape) < 0.2] = ignore_index
    kept = truth != ignore_index if ignore_index is not None else np.ones_like(truth, bool)
    expected = sklearn_matrix(truth[kept], prediction[kept], labels=range(classes))
    got = confusion_matrix(torch.tensor(prediction), torch.tensor(truth), classes, ignore_index)
    assert got.dtype == torch.int64
    assert np.array_equal(got, expected)


@pytest.mark.parametrize("kind", [torch.uint8, torch.int32, torch.int64])
def test_any_integer_type(kind: torch.dtype) -> None:
    label = torch.tensor([[0, 10, 11], [3, 3, 255]]).to(kind)
    prediction = torch.tensor([[0, 3, 1], [3, 10, 0]]).to(kind)
    matrix = confusion_matrix(prediction[:, :2], label[:, :2], 11, 255)
    assert matrix.sum() == 4 and matrix[0, 0] == matrix[10, 3] == matrix[3, 3] == matrix[3, 10] == 1


def test_large_counts_do_not_overflow() -> None:
    label = torch.zeros(300, 300, dtype=torch.uint8)
    assert confusion_matrix(label, label, 11, 11)[0, 0] == 90_000


def test_miou_equals_torchmetrics_on_absent_classes() -> None:
    rng = torch.Generator().manual_seed(0)
    for _ in range(20):
        label = torch.randint(0, 6, (4, 20, 20), generator=rng)
        prediction = torch.randint(0, 6, (4, 20, 20), generator=rng)
        label[label == 5], prediction[prediction == 5] = 2, 3  # class 5 is absent from both
        label[torch.rand(label.shape, generator=rng) < 0.1] = 255
        got = scores(confusion_matrix(prediction, label, 6, 255))
        assert got.classes_averaged == 5
        assert math.isnan(got.iou[5])
        # torchmetrics' macro mean leaves classes of empty union out, as ours does
        expected = MulticlassJaccardIndex(6, ignore_index=255)(prediction, label).item()
        assert got.miou == pytest.approx(expected, abs=1e-6)


def test_scores_of_a_case_worked_by_hand() -> None:
    matrix = torch.tensor([[6, 2, 0], [1, 3, 0], [0, 0, 0]])
    got = scores(matrix)
    assert got.iou[:2] == pytest.approx([6 / 9, 3 / 6])
    assert got.miou == pytest.approx((6 / 9 + 3 / 6) / 2) and got.classes_averaged == 2
    assert got.pixel_accuracy == pytest.approx(9 / 12)
    assert got.class_accuracy == pytest.approx((6 / 8 + 3 / 4) / 2)
    assert got.fw_iou == pytest.approx((8 * 6 / 9 + 4 * 3 / 6) / 12)


def test_a_false_positive_class_counts_in_miou() -> None:
    """A class that is only ever predicted has IoU 0, and lowers the mean: the peers disagree on this one."""
    got = scores(torch.tensor([[5, 3], [0, 0]]))
    assert got.iou == pytest.approx([5 / 8, 0]) and got.miou == pytest.approx(5 / 16)
    assert got.class_accuracy == pytest.approx(5 / 8)  # it has no true pixel, so no accuracy


def test_matrices_add_up() -> None:
    rng = torch.Generator().manual_seed(1)
    label = torch.randint(0, 12, (6, 30, 40), generator=rng, dtype=torch.uint8)
    prediction = torch.randint(0, 11, (6, 30, 40), generator=rng, dtype=torch.uint8)
    single = sum(confusion_matrix(p, t, 11, 11) for p, t in zip(prediction, label, strict=True))
    assert torch.equal(single, confusion_matrix(prediction, label, 11, 11))


def test_nothing_counted_is_nan_not_an_error() -> None:
    void = torch.full((4, 4), 11, dtype=torch.uint8)
    got = scores(confusion_matrix(torch.zeros(4, 4, dtype=torch.uint8), void, 11, 11))
    assert math.isnan(got.miou) and got.classes_averaged == 0
    assert confusion_matrix(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), 3).sum() == 0


def test_wrong_input_is_named() -> None:
    zeros = torch.zeros(4, 4, dtype=torch.uint8)
    with pytest.raises(InputError, match=r"prediction is \[4, 4\] but label is \[4, 5\]"):
        confusion_matrix(zeros, torch.zeros(4, 5, dtype=torch.uint8), 11, 11)
    with pytest.raises(InputError, match=r"label holds 255\.\.255.*ignore index, which is 11"):
        confusion_matrix(zeros, zeros + 255, 11, 11)
    with pytest.raises(InputError, match=r"label holds 3\.\.3.*which is None"):
        confusion_matrix(zeros, zeros + 3, 3)
    with pytest.raises(InputError, match=r"prediction holds 11\.\.11"):
        confusion_matrix(zeros + 11, zeros, 11, 11)


def test_table_names_every_class_and_the_number_averaged() -> None:
    text = scores(torch.tensor([[6, 2], [1, 3]])).table(("cat", "dog"))
    assert "cat" in text and "66.67" in text and "mean of 2 classes" in text
