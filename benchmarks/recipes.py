"""What each laptop recipe costs on this machine's processor: seconds a training step, milliseconds a picture, memory.

The leaderboard's runs may have been trained elsewhere; this is what a reader's own machine would take. A step is data,
forward, loss, backward and optimiser, with the recipe's batch of crops from pictures of CamVid's size; a picture is
predicted as the recipe is scored. Each recipe is measured in a process of its own, and the file is written after each:
started again, it goes on with what is missing.

Run: python benchmarks/recipes.py [RECIPE ...]
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from seglearn import data, losses
from seglearn.data import StreetScenes
from seglearn.data.transforms import normalize
from seglearn.leaderboard import default_recipes, milliseconds
from seglearn.training.checkpoint import write_atomically
from seglearn.training.device import choose_memory_format, describe_machine, start_fabric
from seglearn.training.loop import build_net, make_optimizer, peak_memory
from seglearn.training.recipe import load_recipe
from seglearn.training.samples import Augmented, Batches, InMemory

OUT = Path(__file__).resolve().parent.parent / "book" / "results" / "camvid-cost.json"
SIZE, PICTURES, STEPS, SKIPPED = (360, 480), 24, 8, 2  # the first steps set things up


def measure(name: str) -> dict[str, Any]:
    """Cost of one recipe, on as many threads as PyTorch takes by itself."""
    recipe = load_recipe(name, ["--init_from", "null"])  # where a net starts from does not change what it costs
    fabric, layout = start_fabric(recipe.precision), choose_memory_format()
    dataset: Any = InMemory(StreetScenes("train", SIZE, PICTURES))
    net, _ = build_net(recipe, dataset.num_classes, 1)
    net = net.to(fabric.device).to(memory_format=layout)
    optimizer, weight = make_optimizer(net, recipe), None
    if recipe.class_weights != "none":
        weight = losses.class_weights(dataset, recipe.class_weights).to(fabric.device)
    criterion = losses.create(recipe.loss, dataset.ignore_index, weight)
    samples = Augmented(dataset, recipe.augment(dataset.ignore_index), recipe.seed)
    seconds = []
    for positions in Batches(PICTURES, recipe.batch_size, STEPS, recipe.seed):
        started = time.perf_counter()
        images, labels = (
            torch.stack(part).to(fabric.device) for part in zip(*map(samples.__getitem__, positions), strict=True)
        )
        with fabric.autocast():
            loss = net.loss(normalize(images).contiguous(memory_format=layout), labels, criterion)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
        seconds.append(time.perf_counter() - started)
    images_of = {"camvid": 367}.get(recipe.data) or len(data.create(recipe.data, recipe.split))
    return {
        "seconds_a_step": statistics.median(seconds[SKIPPED:]),
        "steps": recipe.epochs * (images_of // recipe.batch_size),
        "peak_memory": peak_memory(fabric),
        "milliseconds": milliseconds(net, recipe),
        "machine": describe_machine(fabric, layout),
    }


def main() -> None:
    """Measure what is missing in the file, or one recipe for the process that asks."""
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(measure(sys.argv[2])))
        return
    found = json.loads(OUT.read_text()) if OUT.exists() else {"machine": {}, "recipes": {}}
    for name in sys.argv[1:] or [name for name in default_recipes() if name not in found["recipes"]]:
        done = subprocess.run([sys.executable, __file__, "--one", name], check=True, text=True, stdout=subprocess.PIPE)
        cost = json.loads(done.stdout.strip().splitlines()[-1])
        found["machine"] = cost.pop("machine")
        found["recipes"][name] = cost
        write_atomically(OUT, lambda path: path.write_text(json.dumps(found, indent=1) + "\n"))
        minutes = cost["seconds_a_step"] * cost["steps"] / 60
        print(f"{name:<24}{minutes:6.1f} minutes of training, {cost['milliseconds']:6.1f} ms a picture", flush=True)


if __name__ == "__main__":
    main()
