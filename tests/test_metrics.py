"""The confusion matrix and its scores against independent implementations."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import bootstrap
from segmentation_models_pytorch.metrics import get_stats, iou_score
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    jaccard_score,
    precision_score,
    recall_score,
)
from sklearn.metrics import confusion_matrix as sklearn_matrix
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex
from torchmetrics.segmentation import MeanIoU

from seglearn.errors import InputError
from seglearn.metrics import RULES, bootstrap_miou, confusion_matrix, miou_variant, scores


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
    result = scores(torch.tensor([[6, 2], [1, 3]]))
    lines = result.table(("cat", "dog"), {"boundary F1": [0.25, math.nan]}).splitlines()
    assert lines[0].split() == ["IoU", "accuracy", "precision", "of", "pixels", "boundary", "F1"]
    assert lines[1].split() == ["cat", "66.67", "75.00", "85.71", "66.67", "25.00"]  # 6/9, 6/8, 6/7, 8/12
    assert lines[2].split() == ["dog", "50.00", "75.00", "60.00", "33.33", "nan"]  # 3/6, 3/4, 3/5, 4/12
    assert lines[3].startswith("mIoU") and lines[3].endswith("58.33   mean of 2 classes")
    with pytest.raises(ValueError):  # a name too few
        result.table(("cat",))


def random_case(seed: int) -> tuple[int, np.ndarray, np.ndarray, np.ndarray]:
    """A number of classes, a truth with void (255) that lacks some of them, a prediction that lacks others, no void."""
    rng = np.random.default_rng(seed)
    classes = int(rng.integers(2, 22))
    occur, guessed = (rng.permutation(classes)[: rng.integers(1, classes + 1)] for _ in range(2))
    truth, prediction = rng.choice(occur, (3, 20, 20)), rng.choice(guessed, (3, 20, 20))
    prediction = np.where(rng.random(truth.shape) < rng.random(), truth, prediction)
    truth[rng.random(truth.shape) < 0.1] = 255
    return classes, truth, prediction, truth != 255


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")  # that is the point
def test_100_random_cases_equal_sklearn_and_torchmetrics() -> None:
    absent = 0
    for seed in range(100):
        classes, truth, prediction, kept = random_case(seed)
        t, p = truth[kept], prediction[kept]
        got = scores(confusion_matrix(torch.tensor(prediction), torch.tensor(truth), classes, 255))
        assert got.pixel_accuracy == pytest.approx(accuracy_score(t, p), abs=1e-12)
        assert got.class_accuracy == pytest.approx(balanced_accuracy_score(t, p), abs=1e-12)
        assert got.fw_iou == pytest.approx(jaccard_score(t, p, average="weighted", zero_division=0), abs=1e-12)
        some = np.union1d(t, p)  # of the other classes sklearn says what it is told to
        assert got.miou == pytest.approx(jaccard_score(t, p, labels=some, average="macro"), abs=1e-12)
        assert got.classes_averaged == len(some)
        labels = {"labels": range(classes), "average": None, "zero_division": np.nan}
        assert got.accuracy == pytest.approx(recall_score(t, p, **labels), abs=1e-12, nan_ok=True)
        assert got.precision == pytest.approx(precision_score(t, p, **labels), abs=1e-12, nan_ok=True)
        assert got.share == pytest.approx(np.bincount(t, minlength=classes) / len(t), abs=1e-12)
        absent += len(some) < classes

        pair = torch.tensor(prediction), torch.tensor(truth)
        for average, value in (("macro", got.miou), ("weighted", got.fw_iou)):
            theirs = MulticlassJaccardIndex(classes, average, ignore_index=255)(*pair).item()
            assert value == pytest.approx(theirs, abs=1e-6)
        theirs = MulticlassAccuracy(classes, average="micro", ignore_index=255)(*pair).item()
        assert got.pixel_accuracy == pytest.approx(theirs, abs=1e-6)
    assert absent > 50


# Four classes, 100 pixels: one void, three of class 0 taken for class 2, which the truth does not have, and no class 3.
TRUTH = torch.zeros(10, 10, dtype=torch.int64)
TRUTH[5:] = 1
GUESS = TRUTH.clone()
GUESS[0, :3] = 2
TRUTH[9, 9] = 255


@pytest.mark.parametrize(
    ("rule", "value"),
    [
        ("union", (47 / 50 + 49 / 49 + 0 / 3) / 3),  # 0.6467
        ("truth", (47 / 50 + 49 / 49) / 2),  # 0.9700
        ("zero", (47 / 50 + 49 / 49 + 0 / 3 + 0) / 4),  # 0.4850
        ("plain", math.nan),
        ("one", (47 / 50 + 49 / 49 + 0 / 3 + 1) / 4),  # 0.7350
        ("micro", (47 + 49) / (50 + 49 + 3)),  # 0.9412
        ("pairs", (47 / 50 + 49 / 49 + 0 / 3) / 3),
    ],
)
def test_one_matrix_many_mious(rule: str, value: float) -> None:
    matrix = confusion_matrix(GUESS, TRUTH, 4, 255)
    assert miou_variant(matrix, rule) == pytest.approx(value, nan_ok=True)
    assert miou_variant(matrix[None], rule, batch=1) == pytest.approx(value, nan_ok=True)
    assert miou_variant(matrix) == scores(matrix).miou and rule in RULES and len(RULES) == 7


@pytest.mark.parametrize("seed", range(10))
def test_variants_equal_the_libraries_that_compute_them(seed: int) -> None:
    classes, truth, prediction, kept = random_case(seed)
    t, p, pair = truth[kept], prediction[kept], (torch.tensor(prediction), torch.tensor(truth))
    each = torch.stack([confusion_matrix(guess, label, classes, 255) for guess, label in zip(*pair, strict=True)])
    counts = get_stats(*pair, mode="multiclass", ignore_index=255, num_classes=classes)
    everything = {"labels": range(classes), "average": "macro"}
    expected = {
        ("union", None): MulticlassJaccardIndex(classes, ignore_index=255)(*pair).item(),
        ("truth", None): jaccard_score(t, p, labels=np.unique(t), average="macro"),
        ("zero", None): jaccard_score(t, p, zero_division=0, **everything),
        ("one", None): jaccard_score(t, p, zero_division=1, **everything),
        ("micro", None): jaccard_score(t, p, average="micro"),
        ("zero", 1): iou_score(*counts, reduction="macro-imagewise", zero_division=0.0).item(),
        ("one", 1): iou_score(*counts, reduction="macro-imagewise", zero_division=1.0).item(),
        ("micro", 1): iou_score(*counts, reduction="micro-imagewise").item(),
    }
    each_batch = MulticlassJaccardIndex(classes, ignore_index=255)
    for size in (1, 2, 3):
        values = [each_batch(*both).item() for both in zip(*(x.split(size) for x in pair), strict=True)]
        expected["union", size] = float(np.mean(values))
    for (rule, batch), value in expected.items():
        assert miou_variant(each, rule, batch) == pytest.approx(value, abs=1e-6), (rule, batch)
    assert miou_variant(each, batch=3) == miou_variant(each) == miou_variant(each.sum(0))


def test_torchmetrics_mean_iou_is_a_mean_over_pairs_of_image_and_class() -> None:
    rng = np.random.default_rng(0)
    truth = torch.tensor(rng.integers(0, 3, (6, 20, 20)))
    truth[:2][truth[:2] == 2] = 0  # not in every image
    prediction = torch.where(torch.tensor(rng.random(truth.shape) < 0.5), truth, 3)
    theirs = MeanIoU(num_classes=5, input_format="index")
    theirs.update(prediction, truth)
    each = torch.stack([confusion_matrix(guess, label, 5) for guess, label in zip(prediction, truth, strict=True)])
    values = {rule: miou_variant(each, rule, batch=1) for rule in RULES}
    assert theirs.compute().item() == pytest.approx(values["pairs"], abs=1e-6)
    assert abs(values["pairs"] - values["union"]) > 0.001


def test_an_image_with_nothing_labelled_is_left_out_of_a_mean_over_images() -> None:
    each = torch.tensor([[[3, 1], [0, 4]], [[0, 0], [0, 0]]])
    alone = scores(each[0]).miou
    assert miou_variant(each, batch=1) == miou_variant(each) == pytest.approx(alone)


def random_matrices(images: int, seed: int = 0) -> torch.Tensor:
    """Matrices of images that differ: class 3 is in every fifth only, and some images are easy."""
    rng = torch.Generator().manual_seed(seed)
    each = torch.randint(0, 50, (images, 4, 4), generator=rng)
    each[torch.arange(images) % 5 > 0, 3] = 0
    return each + torch.diag_embed(torch.randint(0, 600, (images, 4), generator=rng))


def test_bootstrap_is_the_middle_of_the_mious_of_resampled_splits() -> None:
    each = random_matrices(30)
    rng = torch.Generator().manual_seed(7)
    picked = torch.randint(30, (200, 30), generator=rng)
    mious = [scores(each[chosen].sum(0)).miou for chosen in picked]  # the definition, one resample at a time
    expected = np.quantile(mious, [0.05, 0.95])
    assert bootstrap_miou(each, resamples=200, level=0.9, seed=7) == pytest.approx(tuple(expected), abs=1e-12)


def test_bootstrap_agrees_with_scipy() -> None:
    each = random_matrices(40)

    def miou(index: np.ndarray) -> float:
        return scores(each[torch.from_numpy(index)].sum(0)).miou

    theirs = bootstrap(
        (np.arange(40),), miou, n_resamples=1000, vectorized=False, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    low, high = bootstrap_miou(each)
    assert low < scores(each.sum(0)).miou < high
    assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=0.15 * (high - low))  # other draws


def test_bootstrap_of_two_images_by_hand() -> None:
    """Resamples are: twice the first (mIoU 1), one of each (mIoU 0.5), twice the second (0)."""
    each = torch.tensor([[[4, 0], [0, 4]], [[0, 2], [2, 0]]])
    assert bootstrap_miou(each) == (0.0, 1.0)
    mixed = scores(each.sum(0)).miou
    assert bootstrap_miou(each, level=0.4) == pytest.approx((mixed, mixed))  # half of the resamples
    assert bootstrap_miou(each[:1].repeat(9, 1, 1)) == (1.0, 1.0)


def test_bootstrap_depends_on_the_seed_alone_and_narrows_with_more_images() -> None:
    each = random_matrices(400)
    assert bootstrap_miou(each, seed=3) == bootstrap_miou(each, seed=3) != bootstrap_miou(each, seed=4)
    few, many = (np.diff(bootstrap_miou(each[:images])).item() for images in (25, 400))
    assert 2.5 < few / many < 6  # about as the square root of the number of images, 4


def test_wrong_matrices_are_named() -> None:
    matrix = torch.eye(3, dtype=torch.int64)
    with pytest.raises(InputError, match=r"matrices is \[3, 3\]: expected \[images, classes, classes\]"):
        bootstrap_miou(matrix)
    with pytest.raises(InputError, match=r"matrices is \[1, 3, 3\].*at least 2 images"):
        bootstrap_miou(matrix[None])
    with pytest.raises(InputError, match=r"rule is 'mean': expected one of union, truth, zero"):
        miou_variant(matrix, "mean")
    with pytest.raises(InputError, match=r"batch is 2 and matrices \[3, 3\].*of each image by itself"):
        miou_variant(matrix, batch=2)
