"""From a trained model to labels and scores, one image at a time and at its own size."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from seglearn.data import SegmentationDataset
from seglearn.metrics import confusion_matrix
from seglearn.views import PLAIN, View, labels_of, logits_of

# A function of logits [C, H, W], prediction [H, W] and label [H, W] (both uint8), such as the confusion matrix of the
# last two.
Measure = Callable[[Tensor, Tensor, Tensor], Tensor]


@torch.inference_mode()
def predict_logits(model: nn.Module, image: Tensor, view: View = PLAIN) -> Tensor:
    """Logits [C, H, W] of one picture uint8 [3, H, W], on the model's device; see `View` for averages.

    The model keeps the mode (train or eval) it is in: call `model.eval()` first.
    """
    return logits_of(model, image, view)


@torch.inference_mode()
def predict(model: nn.Module, image: Tensor, view: View = PLAIN) -> Tensor:
    """Label one picture uint8 [3, H, W] with the class of the highest logit: uint8 [H, W], on the CPU.

    The model keeps the mode (train or eval) it is in: call `model.eval()` first.
    """
    return labels_of(model, image, view)


def decide(logits: Tensor) -> Tensor:
    """The class of the highest logit: uint8 [H, W] on the CPU, of logits [C, H, W]."""
    # max gives the same labels as argmax, several times faster on a CPU; only the small map leaves the device
    return logits.max(0).indices.to(torch.uint8).cpu()


def evaluate(
    model: nn.Module,
    dataset: SegmentationDataset,
    rank: int = 0,
    processes: int = 1,
    progress: bool = False,
    view: View = PLAIN,
) -> Tensor:
    """Confusion matrix int64 [C, C] of a model in eval mode over a dataset, or over one process's share of it.

    Process `rank` of `processes` takes every `processes`-th image, so that no image is counted twice; the sum of the
    matrices of all processes is exactly the matrix of one.
    """
    matrix = torch.zeros(dataset.num_classes, dataset.num_classes, dtype=torch.int64)
    for logits, label in predictions(model, dataset, rank, processes, progress, view):
        matrix += confusion_matrix(decide(logits), label, dataset.num_classes, dataset.ignore_index)
    return matrix


def measure(
    model: nn.Module,
    dataset: SegmentationDataset,
    measures: Mapping[str, Measure],
    rank: int = 0,
    processes: int = 1,
    progress: bool = False,
    view: View = PLAIN,
) -> dict[str, Tensor]:
    """What `evaluate` does, for any measures, and each image by itself.

    Args:
        measures: functions by name; what one returns has the same shape for every image.

    Returns by the measure's name [images, ...], of the images `rank`, `rank + processes`, ...; nothing where
    there is no such image.
    """
    counts: dict[str, list[Tensor]] = {}
    for logits, label in predictions(model, dataset, rank, processes, progress, view):
        prediction = decide(logits)
        for name, count in measures.items():
            counts.setdefault(name, []).append(count(logits, prediction, label).cpu())
    return {name: torch.stack(images) for name, images in counts.items()}


def predictions(
    model: nn.Module, dataset: SegmentationDataset, rank: int, processes: int, progress: bool, view: View
) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits [C, H, W] and label [H, W] of every `processes`-th image; the model is in eval mode meanwhile."""
    from tqdm.auto import tqdm

    with evaluation_mode(model):
        for index in tqdm(range(rank, len(dataset), processes), "evaluating", disable=not progress, leave=False):
            image, label = dataset[index]
            yield predict_logits(model, image, view), label


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Within it all of the model is in evaluation mode; behind it each module has its own mode again.

    `model.train()` would wake the frozen parts of a model, too.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
