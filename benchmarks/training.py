"""What the training loop costs beside a bare step written by hand: forward, loss, backward, optimiser.

Both train laptop FCN-8s on the same batches, in turn: before each step of the loop, the bare step takes the batch that
the loop takes next, ready in memory. So each pair has seen the same load of the machine. The loop's share of waiting is
what its own `result.json` says: the time until the next batch is there.

Run: python benchmarks/training.py [MODEL]
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate

from seglearn import data, losses, models
from seglearn.data import StreetScenes
from seglearn.data.transforms import normalize
from seglearn.training import loop
from seglearn.training.device import choose_memory_format, choose_precision
from seglearn.training.loop import make_optimizer
from seglearn.training.recipe import Recipe, load_recipe
from seglearn.training.samples import Augmented, Batches, InMemory

SIZE, PICTURES, EPOCHS, SKIPPED = (360, 480), 40, 8, 5  # SIZE is CamVid's; the first steps set things up
AT_MOST, WAITING = 1.05, 0.05


def batches(recipe: Recipe, dataset: Any, steps: int) -> list[tuple[Tensor, Tensor]]:
    """All batches of a run, ready for the network."""
    augmented = Augmented(dataset, recipe.augment(dataset.ignore_index), recipe.seed)
    order = Batches(len(dataset), recipe.batch_size, steps, recipe.seed)
    collated = (default_collate([augmented[position] for position in positions]) for positions in order)
    return [(normalize(x).contiguous(memory_format=choose_memory_format()), labels) for x, labels in collated]


def bare_step(recipe: Recipe, dataset: Any) -> Callable[[Tensor, Tensor], None]:
    """A function that makes one training step on a batch."""
    torch.manual_seed(recipe.seed)
    net: Any = models.create(recipe.model, dataset.num_classes, recipe.size)
    net = net.to(memory_format=choose_memory_format()).train()
    optimizer = make_optimizer(net, recipe)
    criterion = losses.create(
        recipe.loss,
        dataset.ignore_index,
        losses.class_weights(dataset, recipe.class_weights),  # type: ignore[arg-type]
    )
    native = choose_precision() == "bf16-mixed"

    def step(images: Tensor, labels: Tensor) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=native):
            loss = net.loss(images, labels, criterion)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def main() -> None:
    """Train with the loop, and make a bare step before each of its own."""
    torch.set_num_threads(1)
    model = sys.argv[1] if len(sys.argv) > 1 else "fcn8s"
    recipe = replace(load_recipe(f"laptop/{model}"), epochs=EPOCHS, evaluate_every=EPOCHS)
    scenes: dict[str, Any] = {
        "train": InMemory(StreetScenes("train", SIZE, PICTURES)),
        "val": InMemory(StreetScenes("val", SIZE, 2)),
    }
    data.DATASETS[recipe.data] = lambda split, root: scenes[split]
    steps = EPOCHS * (PICTURES // recipe.batch_size)
    ready, step = batches(recipe, scenes["train"], steps), bare_step(recipe, scenes["train"])
    starts, ends, bare, paused = [], [], [], [0.0]
    set_rate = loop.set_rate  # what the loop calls first in every step, and nowhere else

    def interpose(*arguments: Any) -> float:
        starts.append(time.process_time())
        began = time.monotonic()
        step(*ready[arguments[2]])
        bare.append(time.process_time() - starts[-1])
        ends.append(time.process_time())
        paused[0] += time.monotonic() - began
        return set_rate(*arguments)

    loop.set_rate = interpose  # type: ignore[assignment]
    with tempfile.TemporaryDirectory() as folder:
        result = loop.train(recipe, Path(folder))
    assert result is not None
    whole = [after - before for before, after in zip(ends, starts[1:], strict=False)]  # to the next step's beginning
    pairs = list(zip(whole, bare, strict=False))[SKIPPED:]
    ratio = statistics.median(one / other for one, other in pairs)
    seconds = result["seconds"]
    stepping = seconds["training"] - seconds["of_it_evaluating"] - paused[0]
    waiting = seconds["of_it_waiting_for_data"] / stepping
    print(f"laptop/{model}, batches of {recipe.batch_size} crops of {recipe.crop[0]}x{recipe.crop[1]}, one thread")
    print(f"bare step                    {1000 * statistics.median(bare[SKIPPED:]):7.1f} ms of processor time")
    print(f"the loop, data included      {ratio:7.3f} times that, median of {len(pairs)} pairs; at most {AT_MOST}")
    print(f"waiting for data             {100 * waiting:7.1f} % of a step; at most {100 * WAITING:.0f} %")
    if ratio > AT_MOST or waiting > WAITING:
        sys.exit("The loop costs more than that.")


if __name__ == "__main__":
    main()
