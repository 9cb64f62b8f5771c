"""What several chapters do in the same way: a few streets, a short training, a score, shipped nets side by side.

Short enough to be read in a chapter (`source` shows it). `seglearn.training` is the loop for everything else.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from textwrap import dedent
from typing import Any

import torch
from IPython.display import Markdown
from torch import Tensor

from seglearn import models, weights
from seglearn.data import StreetScenes
from seglearn.data.transforms import normalize
from seglearn.inference import evaluation_mode, predict
from seglearn.losses import cross_entropy, inverse_sqrt_weights
from seglearn.metrics import Scores, confusion_matrix, scores
from seglearn.training.modes import start_training

CLASSES, VOID = StreetScenes.num_classes, StreetScenes.ignore_index


def streets(split: str, length: int, size: tuple[int, int] = (90, 120)) -> tuple[Tensor, Tensor]:
    """The first generated streets of a split: images uint8 [N, 3, H, W] and labels uint8 [N, H, W]."""
    dataset = StreetScenes(split, size=size, length=length)
    images, labels = zip(*(dataset[index] for index in range(length)), strict=True)
    return torch.stack(images), torch.stack(labels)


def fit(model: Any, images: Tensor, labels: Tensor, steps: int, rate: float = 2e-3, batch_size: int = 6) -> Any:
    """Train a model for some steps of AdamW, the rate falling to zero, rare classes weighted; returns it in eval mode.

    Always the same batches in the same order: two nets that are compared see the same pictures.
    """
    torch.manual_seed(0)
    counts = torch.bincount(labels.flatten(), minlength=CLASSES)[:CLASSES]
    weight = inverse_sqrt_weights(counts)

    def criterion(logits: Tensor, label: Tensor) -> Tensor:
        return cross_entropy(logits, label, VOID, weight)

    groups = [
        {**group, "lr": rate * group["lr_factor"], "weight_decay": 0.01 * group["weight_decay_factor"]}
        for group in model.parameter_groups()
    ]
    optimiser = torch.optim.AdamW(groups)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: (1 - step / steps) ** 0.9)
    start_training(model.to(memory_format=torch.channels_last))  # frozen parts keep their norms
    for step in range(steps):
        chosen, mirror = torch.randint(len(images), (batch_size,)), [-1] if step % 2 else []
        batch = normalize(images[chosen].flip(mirror)).contiguous(memory_format=torch.channels_last)
        loss = model.loss(batch, labels[chosen].flip(mirror), criterion)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return model.eval()


def create(name: str, **options: Any) -> Any:
    """A fresh laptop model of the streets' classes, its weights drawn from seed 0."""
    torch.manual_seed(0)
    return models.create(name, CLASSES, size="laptop", **options)


def score(model: Any, images: Tensor, labels: Tensor) -> Scores:
    """Scores of a model's predictions over all of the images."""
    with evaluation_mode(model):
        found = torch.stack([predict(model, image) for image in images])
    return scores(confusion_matrix(found, labels, CLASSES, VOID))


def table(measured: Mapping[str, Scores]) -> str:
    """mIoU and pixel accuracy of several nets, a line each."""
    width = max(map(len, measured))
    lines = [f"{'':<{width}}   mIoU  pixel accuracy   (%)"]
    lines += [f"{name:<{width}}{100 * s.miou:7.1f}{100 * s.pixel_accuracy:16.1f}" for name, s in measured.items()]
    return "\n".join(lines)


def shipped(names: Sequence[str]) -> dict[str, Any]:
    """Models trained on generated streets that come with the package, in eval mode; those that do not ship are said."""
    missing = [name for name in names if name not in weights.names("scenes")]
    if missing:
        print(f"no weights of {', '.join(missing)} come with this version: left out")
    return {
        name: models.create(name, CLASSES, size="laptop", weights="scenes").eval()
        for name in names
        if name not in missing
    }


def panels(nets: Mapping[str, Any], image: Tensor, label: Tensor) -> dict[str, Any]:
    """For `plots.show`: a street, its truth, and what each net says."""
    return {"street": image, "truth": label} | {name: predict(net, image) for name, net in nets.items()}


def source(thing: Any) -> Markdown:
    """The source code of a function or class, as a chapter shows it."""
    return Markdown(f"```python\n{dedent(inspect.getsource(thing))}\n```")
