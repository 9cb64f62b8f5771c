"""From a trained model to labels and scores, one image at a time and at its own size."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from seglearn.data import SegmentationDataset
from seglearn.data.transforms import normalize
from seglearn.metrics import confusion_matrix


@torch.inference_mode()
def predict(model: nn.Module, image: Tensor) -> Tensor:
    """Label one picture uint8 [3, H, W] with the class of the highest logit: uint8 [H, W], on the CPU.

    The model keeps the mode (train or eval) it is in: call `model.eval()` first.
    """
    device = next(model.parameters()).device
    batch = normalize(image.to(device))[None].contiguous(memory_format=torch.channels_last)
    logits = model(batch)  # [1, C, H, W]
    # max gives the same labels as argmax, several times faster on a CPU; only the small map leaves the device
    return logits.max(1).indices[0].to(torch.uint8).cpu()


def evaluate(
    model: nn.Module, dataset: SegmentationDataset, rank: int = 0, processes: int = 1, progress: bool = False
) -> Tensor:
    """Confusion matrix int64 [C, C] of a model in eval mode over a dataset, or over one process's share of it.

    Process `rank` of `processes` takes every `processes`-th image, so that no image is counted twice; the sum of the
    matrices of all processes is exactly the matrix of one.
    """
    from tqdm.auto import tqdm

    training = model.training
    model.eval()
    matrix = torch.zeros(dataset.num_classes, dataset.num_classes, dtype=torch.int64)
    for index in tqdm(range(rank, len(dataset), processes), "evaluating", disable=not progress, leave=False):
        image, label = dataset[index]
        matrix += confusion_matrix(predict(model, image), label, dataset.num_classes, dataset.ignore_index)
    model.train(training)
    return matrix
