"""Scores of a segmentation, all from one confusion matrix over the whole split.

n_ij counts the pixels of true class i that were labelled j; pixels of the ignore index are not counted. The four scores
are those of Long, Shelhamer, Darrell, "Fully Convolutional Networks", CVPR 2015, section 5. Averaging the IoU of
single images, or of batches, gives another number. Chapter: `book/basics/data_and_scores`.
"""

from __future__ import annotations

from dataclasses import dataclass

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
    if prediction.shape != label.shape:
        raise InputError(
            f"prediction is {list(prediction.shape)} but label is {list(label.shape)}: "
            "score them at one size, the label's."
        )
    # A key a pixel, row * num_classes + column, in the smallest type that holds it: memory traffic is the whole cost.
    # Ignored pixels get a row of their own, which is cut off at the end; that is cheaper than a mask.
    size = (num_classes + 1) * num_classes
    key_type = torch.uint8 if size <= 256 else torch.int16 if size <= 32768 else torch.int64
    row = label.flatten()
    if ignore_index is not None and ignore_index != num_classes:
        row = torch.where(row == ignore_index, num_classes, row)
    column = prediction.flatten()
    if column.numel():
        (low, high), (low_label, high_label) = column.aminmax(), row.aminmax()
        if low < 0 or high >= num_classes:
            raise InputError(f"prediction holds {int(low)}..{int(high)}: expected classes 0..{num_classes - 1}.")
        if low_label < 0 or high_label > num_classes - (ignore_index is None):
            raise InputError(
                f"label holds {int(row.min())}..{int(label.max())}: expected classes 0..{num_classes - 1} "
                f"and the ignore index, which is {ignore_index}; pass the dataset's own."
            )
    key = row.to(key_type) * num_classes + column.to(key_type)
    counts = torch.bincount(key, minlength=size)[: num_classes * num_classes]
    return counts.view(num_classes, num_classes)


@dataclass(frozen=True)
class Scores:
    """Scores in 0..1. A class that neither truth nor prediction has gets IoU NaN and is averaged nowhere."""

    miou: float
    classes_averaged: int  # how many classes `miou` is a mean of: without this number it cannot be compared
    pixel_accuracy: float
    class_accuracy: float
    fw_iou: float
    iou: list[float]

    def table(self, classes: tuple[str, ...]) -> str:
        """A text table: IoU of each class in percent, then the means."""
        rows = [f"{name:<14} {100 * value:6.2f}" for name, value in zip(classes, self.iou, strict=True)]
        return "\n".join(
            [
                *rows,
                f"{'mIoU':<14} {100 * self.miou:6.2f}   mean of {self.classes_averaged} classes",
                f"{'pixel accuracy':<14} {100 * self.pixel_accuracy:6.2f}",
                f"{'class accuracy':<14} {100 * self.class_accuracy:6.2f}",
                f"{'fw IoU':<14} {100 * self.fw_iou:6.2f}   weighted by class frequency",
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
    )
