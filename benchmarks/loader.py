"""How many laptop training steps the loader feeds at once, and what each augmentation costs.

The loader is what a training run uses: pictures in memory, augmented, collated, normalised, in the memory format of the
device. The step is FCN-8s of `laptop/fcn8s`: forward, loss, backward, optimiser. One thread each, in turn.

Run: python benchmarks/loader.py
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from timing import paired, ratio
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from seglearn import models
from seglearn.data import StreetScenes
from seglearn.data.transforms import normalize
from seglearn.training.device import choose_memory_format, choose_precision
from seglearn.training.loop import make_optimizer
from seglearn.training.recipe import Recipe, load_recipe
from seglearn.training.samples import Augmented, Batches, InMemory

SIZE, PICTURES, ROUNDS, STEPS = (360, 480), 16, 7, 4  # SIZE is CamVid's; the loader has to feed STEPS at once
REPEATS = 5  # batches a round
OPTIONS: dict[str, dict[str, float]] = {
    "jitter 0.2": {"jitter": 0.2},
    "rotate 10": {"rotate": 10},
    "elastic 10": {"elastic": 10},
    "rotate 10, elastic 10": {"rotate": 10, "elastic": 10},
    "blur 1.1": {"blur": 1.1},
    "max_class_share 0.75": {"max_class_share": 0.75},
    "max_class_share 0.3": {"max_class_share": 0.3},
    "all of them": {"jitter": 0.2, "rotate": 10, "elastic": 10, "blur": 1.1, "max_class_share": 0.75},
}


def batches(recipe: Recipe, dataset: Any) -> Callable[[], tuple[Tensor, Tensor]]:
    """A function that gives the next batch, as the training loop sees it."""
    order = Batches(len(dataset), recipe.batch_size, 10**6, recipe.seed)
    loader = iter(DataLoader(Augmented(dataset, recipe.augment(dataset.ignore_index), 0), batch_sampler=order))

    def following() -> tuple[Tensor, Tensor]:
        images, labels = next(loader)
        return normalize(images).contiguous(memory_format=choose_memory_format()), labels

    return following


def training_step(recipe: Recipe, dataset: Any) -> Callable[[], None]:
    """A function that makes one training step, always on the same batch."""
    images, labels = batches(recipe, dataset)()
    model: Any = models.create(recipe.model, dataset.num_classes, recipe.size)
    model = model.to(memory_format=choose_memory_format()).train()
    optimizer = make_optimizer(model, recipe)
    native = choose_precision() == "bf16-mixed"

    def criterion(logits: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(logits.float(), labels.long(), ignore_index=dataset.ignore_index)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=native):
            loss = model.loss(images, labels, criterion)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def main() -> None:
    """Time loader and step in turn, then the loader with each augmentation and without any."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    recipe = load_recipe("laptop/fcn8s")
    dataset: Any = InMemory(StreetScenes("train", SIZE, PICTURES))
    height, width = recipe.crop
    print(f"Batches of {recipe.batch_size} crops of {height}x{width} from {SIZE[0]}x{SIZE[1]}, one thread;", end=" ")
    print(f"ratios are medians of {ROUNDS} paired rounds.")

    everything = replace(recipe, **OPTIONS["all of them"])  # type: ignore[arg-type]
    ways: dict[str, Callable[[], object]] = {
        "step": training_step(recipe, dataset),
        "loader": batches(recipe, dataset),
        "all": batches(everything, dataset),
    }
    for way in ways.values():
        way()  # the first call sets things up
    seconds = paired(ways, ROUNDS)
    speed = {name: recipe.batch_size / statistics.median(times) for name, times in seconds.items()}
    fed = {name: ratio(seconds["step"], seconds[name]) for name in ("loader", "all")}
    print(f"a training step of laptop/fcn8s takes {speed['step']:4.0f} images/s")
    for name, what in {"loader": "augmented as that recipe says", "all": "with every augmentation"}.items():
        print(f"the loader gives {speed[name]:4.0f} images/s {what}: enough for {fed[name]:.1f} steps at once")

    plain = replace(recipe, jitter=0.0)
    ways = {"scale, crop, flip": batches(plain, dataset)}
    ways |= {name: batches(replace(plain, **options), dataset) for name, options in OPTIONS.items()}  # type: ignore[arg-type]
    seconds = paired({name: partial(repeat, way) for name, way in ways.items()}, ROUNDS)
    base = seconds["scale, crop, flip"]
    print("\nmilliseconds an image, whole loader         without    with   ratio")
    images = REPEATS * recipe.batch_size
    for name, times in seconds.items():
        without, with_it = (1000 * statistics.median(each) / images for each in (base, times))
        print(f"{name:42}{without:9.2f}{with_it:8.2f}{ratio(times, base):8.2f}")
    if min(fed.values()) < STEPS:
        sys.exit(f"The loader feeds less than {STEPS} training steps at once.")


def repeat(way: Callable[[], object]) -> None:
    """Several batches, so that one round is long enough to time."""
    for _ in range(REPEATS):
        way()


if __name__ == "__main__":
    main()
