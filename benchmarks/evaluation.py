"""What scoring an image costs beyond the network's forward pass, against torchmetrics.

Everything that `seglearn.inference.evaluate` does to an image of 360x480 in 11 classes is timed with a network that
returns ready-made logits: normalise, pick the class, count, add up.

Run: python benchmarks/evaluation.py
"""

from __future__ import annotations

from functools import partial

import torch
from timing import paired, ratio
from torch import Tensor, nn
from torchmetrics.classification import MulticlassConfusionMatrix

from seglearn.data import StreetScenes
from seglearn.data.transforms import normalize
from seglearn.inference import evaluate
from seglearn.training.samples import InMemory

IMAGES, ROUNDS = 16, 7


class Ready(nn.Module):
    """A network that has already made up its mind."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits, requires_grad=False)

    def forward(self, images: Tensor) -> Tensor:
        return self.logits


def torchmetrics_way(model: nn.Module, dataset: InMemory) -> Tensor:
    """The same with argmax and torchmetrics' confusion matrix, its input checks off."""
    metric = MulticlassConfusionMatrix(dataset.num_classes, dataset.ignore_index, validate_args=False)
    with torch.inference_mode():
        for index in range(len(dataset)):
            image, label = dataset[index]
            metric.update(model(normalize(image)[None]).argmax(1)[0], label)
    counts: Tensor = metric.compute()
    return counts


def main() -> None:
    """Time both in turn, so that a busy machine slows both."""
    torch.set_num_threads(1)
    dataset = InMemory(StreetScenes("val", size=(360, 480), length=IMAGES))
    logits = torch.randn(1, 11, 360, 480, generator=torch.Generator().manual_seed(0))
    model = Ready(logits)
    ways = {"seglearn": evaluate, "torchmetrics": torchmetrics_way}
    assert torch.equal(evaluate(model, dataset), torchmetrics_way(model, dataset)), "the two count differently"
    seconds = paired({name: partial(way, model, dataset) for name, way in ways.items()}, ROUNDS)
    for name, times in seconds.items():
        print(f"{name:<13}{1000 * min(times) / IMAGES:6.1f} ms an image of 360x480 beyond the forward pass, one thread")
    ours, theirs = seconds.values()
    print(f"torchmetrics takes {ratio(theirs, ours):.2f} times as long (median of {ROUNDS} paired rounds)")


if __name__ == "__main__":
    main()
