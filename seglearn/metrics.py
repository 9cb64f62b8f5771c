"""Scores of a segmentation, all from one confusion matrix over the whole split.

n_ij counts the pixels of true class i that were labelled j; pixels of the ignore index are not counted. The four scores
are those of Long, Shelhamer, Darrell, "Fully Convolutional Networks", CVPR 2015, section 5. Averaging the IoU of
single images, or of batches, gives another number: `miou_variant` computes it and the other readings of "mIoU" that are
in use. Chapter: `book/basics/data_and_scores`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from seglearn.errors import InputError


def confusion_matrix(prediction: Tensor, label: Tensor, num_classes: int, ignore_index: int | None = None) -> Tensor:
    """Count pixels by true and predicted class. Matrices of several images are added.

    Args:
        prediction: class indices, any integer type, any shape.
        label: the truth, of the same shape; values 0..num_classes-1 or `ignore_index`.

    Returns int64 [num_classes, num_classes], rows are the truth, columns the prediction.

    Raises:
        InputError: shapes differ, or a value is neither a class nor (in the label) the ignore index.
    """
    row, column = void_last(prediction, label, num_classes, ignore_index).flatten(), prediction.flatten()
    # A key a pixel, row * num_classes + column, in the smallest type that holds it: memory traffic is the whole cost.
    # Ignored pixels get a row of their own, which is cut off at the end; that is cheaper than a mask.
    size = (num_classes + 1) * num_classes
    key_type = torch.uint8 if size <= 256 else torch.int16 if size <= 32768 else torch.int64
    key = row.to(key_type) * num_classes + column.to(key_type)
    counts = torch.bincount(key, minlength=size)[: num_classes * num_classes]
    return counts.view(num_classes, num_classes)


def void_last(prediction: Tensor, label: Tensor, num_classes: int, ignore_index: int | None = None) -> Tensor:
    """The label with `num_classes` in the place of the ignore index, once both maps are found to be usable.

    Raises:
        InputError: shapes differ, or a value is neither a class nor (in the label) the ignore index.
    """
    if prediction.shape != label.shape:
        raise InputError(
            f"prediction is {list(prediction.shape)} but label is {list(label.shape)}: "
            "score them at one size, the label's."
        )
    row = label
    if ignore_index is not None and ignore_index != num_classes:
        row = torch.where(row == ignore_index, num_classes, row)
    if row.numel():
        (low, high), (low_label, high_label) = prediction.aminmax(), row.aminmax()
        if low < 0 or high >= num_classes:
            raise InputError(
                f"prediction holds {int(low)}..{int(high)}: expected classes 0..{num_classes - 1}, "
                "so give the number of classes that the network has."
            )
        if low_label < 0 or high_label > num_classes - (ignore_index is None):
            raise InputError(
                f"label holds {int(row.min())}..{int(label.max())}: expected classes 0..{num_classes - 1} "
                f"and the ignore index, which is {ignore_index}; pass the dataset's own."
            )
    return row


@dataclass(frozen=True)
class Scores:
    """Scores in 0..1. A class that neither truth nor prediction has gets IoU NaN and is averaged nowhere."""

    miou: float
    classes_averaged: int  # how many classes `miou` is a mean of: without this number it cannot be compared
    pixel_accuracy: float
    class_accuracy: float
    fw_iou: float
    iou: list[float]
    accuracy: list[float]  # of each class: the share of its true pixels that were found (recall)
    precision: list[float]  # of each class: the share of the pixels labelled so that are right
    share: list[float]  # of each class in the true pixels

    def table(self, classes: Sequence[str], columns: Mapping[str, Sequence[float]] = MappingProxyType({})) -> str:
        """A text table in percent: a row a class, then the means.

        Args:
            classes: their names.
            columns: further fractions to print, one a class, by their headings.
        """
        own = {"IoU": self.iou, "accuracy": self.accuracy, "precision": self.precision, "of pixels": self.share}
        fractions: dict[str, Sequence[float]] = {**own, **columns}
        lines = [f"{'':<14}" + "".join(f"{heading:>13}" for heading in fractions)]
        for name, *values in zip(classes, *fractions.values(), strict=True):
            lines += [f"{name:<14}" + "".join(f"{100 * value:13.2f}" for value in values)]
        return "\n".join(
            [
                *lines,
                f"{'mIoU':<14}{100 * self.miou:13.2f}   mean of {self.classes_averaged} classes",
                f"{'pixel accuracy':<14}{100 * self.pixel_accuracy:13.2f}",
                f"{'class accuracy':<14}{100 * self.class_accuracy:13.2f}",
                f"{'fw IoU':<14}{100 * self.fw_iou:13.2f}   weighted by class frequency",
            ]
        )


def scores(matrix: Tensor) -> Scores:
    """All scores of a confusion matrix int64 [C, C]; NaN where nothing was counted.

    mIoU is the mean over classes whose union is not empty, class accuracy over classes that occur in the truth.
    """
    matrix = matrix.double()
    correct, truth, predicted = matrix.diagonal(), matrix.sum(1), matrix.sum(0)
    iou = correct / (truth + predicted - correct)  # 0/0 = NaN: absent class
    total = truth.sum()
    return Scores(
        miou=iou.nanmean().item(),
        classes_averaged=int(iou.isfinite().sum()),
        pixel_accuracy=(correct.sum() / total).item(),
        class_accuracy=(correct / truth).nanmean().item(),
        fw_iou=((truth * iou).nansum() / total).item(),
        iou=iou.tolist(),
        accuracy=(correct / truth).tolist(),
        precision=(correct / predicted).tolist(),
        share=(truth / total).tolist(),
    )


def bootstrap_miou(matrices: Tensor, resamples: int = 1000, level: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """How far the mIoU would move with other images of the same kind: an interval by the percentile bootstrap.

    A split of as many images is drawn from the images, with replacement, again and again; the interval holds the middle
    `level` of the mIoUs of these splits (Efron, Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13). It
    says nothing of what another training run would give. And it takes the images for independent: frames of one video
    are alike, so for them it is too narrow.

    Args:
        matrices: int64 [N, C, C], the confusion matrix of each image.
        seed: of the draws; the same seed gives the same interval.

    Returns its lower and upper end, as fractions.

    Raises:
        InputError: fewer than two images, or the sum of their matrices instead of one each.
    """
    if matrices.ndim != 3 or len(matrices) < 2:
        raise InputError(
            f"matrices is {list(matrices.shape)}: expected [images, classes, classes] with at least 2 images, "
            "so give the confusion matrix of each image by itself."
        )
    # Three numbers a class decide the IoU; a resample is a weighted sum over images, so all of them are one product.
    parts = torch.stack([matrices.diagonal(dim1=1, dim2=2), matrices.sum(2), matrices.sum(1)], 1).double()  # [N, 3, C]
    drawn = torch.randint(len(matrices), (resamples, len(matrices)), generator=torch.Generator().manual_seed(seed))
    times = torch.zeros(drawn.shape, dtype=torch.float64).scatter_add_(1, drawn, torch.ones_like(drawn).double())
    correct, truth, predicted = (times @ parts.flatten(1)).view(resamples, 3, -1).unbind(1)  # [resamples, C]
    mious = (correct / (truth + predicted - correct)).nanmean(1)
    low, high = mious.nanquantile(torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)).tolist()
    return low, high


RULES = MappingProxyType(
    {
        "union": "mean over the classes in truth or prediction: this package's",
        "truth": "mean over the classes in the truth; one that is only ever predicted is left out",
        "zero": "mean over all classes; one in neither map counts 0, by a small number in the denominator",
        "plain": "mean over all classes, with no rule for 0/0: NaN when a class is in neither map",
        "one": "mean over all classes; one in neither map counts 1",
        "micro": "the pixels of all classes pooled: one IoU, ruled by the large classes",
        "pairs": "mean over all pairs of an image (or batch) and a class that is in its truth or prediction",
    }
)


def miou_variant(matrices: Tensor, rule: str = "union", batch: int | None = None) -> float:
    """What other programs call mIoU, by name: to see why two numbers differ, never to report.

    They differ in what a class counts that is in neither map, 0/0, and in what is averaged: the IoUs of the whole
    split, or those of its images or batches. The chapter says which program has which rule.

    Args:
        matrices: int64 [N, C, C], the confusion matrix of each image, or [C, C], their sum.
        rule: a name in `RULES`, which says what each is.
        batch: None is one matrix over the whole split; k is the mean of the scores of batches of k images, in order,
            the last one perhaps smaller. 1 is the mean over images. A batch without a score (NaN) is left out, except
            by the rule plain.

    Returns a fraction; `miou_variant(matrices)` is `scores(matrices.sum(0)).miou`.

    Raises:
        InputError: no such rule, or a batch size for a single matrix.
    """
    if rule not in RULES:
        raise InputError(f"rule is {rule!r}: expected one of {', '.join(RULES)}; `metrics.RULES` says what each is.")
    if batch is not None and (matrices.ndim != 3 or batch < 1):
        raise InputError(
            f"batch is {batch} and matrices {list(matrices.shape)}: expected at least 1 image and the shape "
            "[images, classes, classes], so give the confusion matrix of each image by itself."
        )
    matrices = matrices.double().view(-1, *matrices.shape[-2:])
    split = torch.stack([part.sum(0) for part in matrices.split(batch or len(matrices))])  # [batches, C, C]
    correct, truth = split.diagonal(dim1=1, dim2=2), split.sum(2)  # [batches, C]
    union = truth + split.sum(1) - correct
    iou = correct / union
    values = {
        "union": iou.nanmean(1),
        "truth": iou.where(truth > 0, torch.nan).nanmean(1),
        "zero": iou.nan_to_num(0.0).mean(1),
        "plain": iou.mean(1),
        "one": iou.nan_to_num(1.0).mean(1),
        "micro": correct.sum(1) / union.sum(1),
        "pairs": iou.flatten(),
    }[rule]
    return (values.mean() if rule == "plain" else values.nanmean()).item()
