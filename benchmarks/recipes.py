"""What each laptop recipe costs on this machine's processor: seconds a training step, milliseconds a picture, memory.

The leaderboard's runs may have been trained elsewhere; this is what a reader's own machine would take. A step is data,
forward, loss, backward and optimiser, with the recipe's batch of crops from CamVid's pictures, or from generated ones
of their size where it is not there; a picture is predicted as the recipe is scored. Each recipe is measured in a
process of its own, and the file is written after each: started again, it goes on with what is missing.

Other work only adds time. So all recipes are measured in turn, in three rounds, and of the rounds' medians the lowest
counts; `rounds` keeps them all, and where they lie far apart a line says so.

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
from seglearn.data import CamVid, StreetScenes
from seglearn.data.camvid import SPLITS
from seglearn.data.transforms import normalize
from seglearn.errors import InputError
from seglearn.leaderboard import default_recipes, milliseconds
from seglearn.training.checkpoint import write_atomically
from seglearn.training.device import choose_memory_format, describe_machine, start_fabric
from seglearn.training.loop import build_net, make_optimizer, peak_memory
from seglearn.training.recipe import load_recipe
from seglearn.training.samples import Augmented, Batches, InMemory

OUT = Path(__file__).resolve().parent.parent / "book" / "results" / "camvid-cost.json"
SIZE, PICTURES, STEPS, SKIPPED = (360, 480), 24, 8, 2  # the first steps set things up
ROUNDS, APART = 3, 1.2  # rounds of a quiet machine differ by less


def pictures() -> Any:
    """A few pictures to train on, in memory: CamVid's if they are on this machine, else generated ones."""
    try:
        photographs: Any = CamVid("train", download=False)
    except InputError:
        return InMemory(StreetScenes("train", SIZE, PICTURES))
    photographs.pairs = photographs.pairs[:PICTURES]
    return InMemory(photographs)


def measure(name: str) -> dict[str, Any]:
    """Cost of one recipe, on as many threads as PyTorch takes by itself."""
    recipe = load_recipe(name, ["--init_from", "null"])  # where a net starts from does not change what it costs
    fabric, layout = start_fabric(recipe.precision), choose_memory_format()
    dataset = pictures()
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
    images_of = SPLITS["train"] if recipe.data == "camvid" else len(data.create(recipe.data, recipe.split))
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
    names = sys.argv[1:] or default_recipes()
    for done in range(ROUNDS):
        for name in names:
            rounds = found["recipes"].get(name, {}).get("rounds", [])
            if len(rounds) > done:
                continue
            command = [sys.executable, __file__, "--one", name]
            printed = subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE).stdout
            cost = json.loads(printed.strip().splitlines()[-1])
            machine = cost.pop("machine")
            if found["machine"] not in ({}, machine):
                sys.exit(f"{OUT} is of another machine: move it away to measure this one.")
            rounds = [*rounds, {key: cost[key] for key in ("seconds_a_step", "milliseconds")}]
            lowest = {key: min(each[key] for each in rounds) for key in rounds[0]}
            found["machine"], found["recipes"][name] = machine, {**cost, **lowest, "rounds": rounds}
            write_atomically(OUT, lambda path: path.write_text(json.dumps(found, indent=1) + "\n"))
            minutes = lowest["seconds_a_step"] * cost["steps"] / 60
            print(
                f"{name:<24}{minutes:6.1f} minutes of training, {lowest['milliseconds']:6.1f} ms a picture", flush=True
            )
    for name in names:
        rounds = found["recipes"][name]["rounds"]
        for key in ("seconds_a_step", "milliseconds"):
            low, middle = sorted(each[key] for each in rounds)[:2]  # one disturbed round does no harm
            if middle > APART * low:
                print(f"{name}: {key} {low:.3g} and {middle:.3g} in two rounds: was the machine quiet?")


if __name__ == "__main__":
    main()
