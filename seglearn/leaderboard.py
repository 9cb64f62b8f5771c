"""The leaderboard: all recipes, several seeds, one JSON file, and a table drawn from it.

Each run is a process of its own, `seglearn train`, in a folder named after recipe, seed and a hash of the recipe's
fields. So either process may be killed at any moment: started again, the leaderboard goes on where it was, and a recipe
that has changed since gets a new run beside the old one. Page: `book/results/leaderboard`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from seglearn import data, weights
from seglearn.boundaries import boundary_counts, boundary_scores
from seglearn.data import SegmentationDataset, StreetScenes
from seglearn.errors import InputError
from seglearn.inference import evaluation_mode, predict
from seglearn.metrics import confusion_matrix, scores
from seglearn.training.checkpoint import load_model, read_weights, write_atomically
from seglearn.training.device import measure_together, start_fabric
from seglearn.training.loop import describe_split, interruptible
from seglearn.training.recipe import Recipe, load_recipe, recipe_names
from seglearn.training.samples import InMemory

SIZE = (360, 480)  # CamVid's: what FLOPs and milliseconds are of
DOMAINS = ("camvid", "scenes")
NO_RESULT = {"root", "seed", "workers", "save_every"}  # fields that do not change what a recipe learns
Results = dict[str, list[dict[str, Any]]]


@dataclass(frozen=True)
class Run:
    """One recipe with one seed.

    Attributes:
        name: the recipe's name; of a file of one's own, its path without the ending.
        digest: SHA-256 of the recipe's fields that decide what is learnt and differ from their defaults. The seed is
            not among them, so the runs that are averaged share it; a field that a later version adds changes nothing.
        words: what follows `seglearn train` to train it.
        parent: the run whose weights it starts from.
    """

    name: str
    recipe: Recipe
    digest: str
    folder: Path
    words: tuple[str, ...]
    parent: Run | None

    def key(self) -> dict[str, Any]:
        """What tells its entries from those of other runs."""
        return {"recipe": self.name, "seed": self.recipe.seed, "hash": self.digest}


def plan(source: str, seed: int, runs: Path, dataset: str | None = None) -> Run:
    """The run of a recipe (name or YAML file) with a seed, trained on another `dataset` if one is given.

    A recipe that starts from another's run (`init_from: runs/laptop/NAME/best.safetensors`, where `seglearn train`
    leaves it) starts from that recipe's run of the same seed in `runs`.

    Raises:
        InputError: no such recipe, or one that cannot be used.
    """
    words = ["--seed", str(seed), *(["--data", dataset] if dataset else [])]
    recipe = load_recipe(source, words)
    fields = {name: value for name, value in asdict(recipe).items() if name not in NO_RESULT}
    parent = None
    if found := re.fullmatch(r"runs/(.+)/best\.safetensors", recipe.init_from or ""):
        start = found[1] if found[1] in recipe_names() else f"{found[1]}.yaml"
        parent = plan(start, seed, runs, dataset)
        fields["init_from"] = parent.digest
        words += ["--init_from", str(parent.folder / "best.safetensors")]
    default = asdict(Recipe())
    chosen = {name: value for name, value in fields.items() if value != default[name]}
    digest = hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()
    name = source if source in recipe_names() else str(Path(source).with_suffix(""))
    folder = runs / f"{Path(name).name}-{seed}-{digest[:8]}"
    return Run(name, recipe, digest, folder, (source, *words), parent)


def default_recipes() -> list[str]:
    """The package's laptop recipes on CamVid."""
    return [name for name in recipe_names() if name.startswith("laptop/") and load_recipe(name).data == "camvid"]


def fill(
    sources: Sequence[str],
    seeds: Sequence[int],
    runs: Path,
    out: Path,
    split: str = "val",
    dataset: str | None = None,
    domain_gap: bool = False,
    say: Callable[[str], object] = print,
) -> list[str]:
    """Train or resume what is missing, evaluate it, and add it to the file `out`, one entry at a time.

    Args:
        sources: recipes, by name or YAML file.
        seeds: all recipes run with the first one before any runs with the second.
        runs: where the runs' folders are.
        split: what the entries are scored on; training selects on val in any case.
        dataset: what to train on instead of the recipes' own data.
        domain_gap: train each recipe on CamVid and on generated scenes, and evaluate each of both on both.
        say: takes a line whenever something happens.

    Returns a sentence for each recipe and seed that failed.

    Raises:
        InputError: a recipe, the split or `out` cannot be used.
        KeyboardInterrupt: Ctrl-C or SIGTERM; the run has saved its state.
    """
    trained_on = DOMAINS if domain_gap else (dataset,)
    queue = [plan(source, seed, runs, on) for seed in seeds for source in sources for on in trained_on]
    # loaded before any training: what is not there is better said now
    places = {(run.recipe.data, run.recipe.root) for run in queue}
    splits: dict[Any, Any] = {place: InMemory(data.create(place[0], split, place[1])) for place in places}
    if domain_gap and data.CamVid.classes != StreetScenes.classes:
        raise InputError("CamVid and the scenes have other classes: their predictions cannot be compared.")
    out.parent.mkdir(parents=True, exist_ok=True)
    read_results(out)
    failures: list[str] = []
    for number, run in enumerate(queue, 1):
        label = f"{run.name}{f' on {run.recipe.data}' if len(trained_on) > 1 else ''}, seed {run.recipe.seed}"
        missing = [target for target in (DOMAINS if domain_gap else (None,)) if not has(out, run, split, target)]
        if not missing:
            continue
        say(f"[{number}/{len(queue)}] {label}")
        problem = train_missing(run, say)
        entries = []
        if not problem:
            own = splits[run.recipe.data, run.recipe.root]
            try:
                entries = [gap_entry(run, own, target) if target else make_entry(run, own) for target in missing]
            except InputError as error:  # a damaged checkpoint, say
                problem = str(error)
        if problem:
            failures.append(f"{label}: {problem}")
            say(f"  failed: {problem}")
        for target, entry in zip(missing, entries, strict=False):  # none of a failed run
            add(out, "domain_gap" if target else "entries", entry, runs / f"{out.name}.lock")
            say(f"  {target or run.recipe.data} {split}: mIoU {100 * entry['miou']:.2f}")
    return failures


def train_missing(run: Run, say: Callable[[str], object] = print) -> str | None:
    """Train a run, after the one that it starts from, unless it is done; returns what went wrong, if anything did.

    What the process prints goes to a file beside the run's folder. It is locked while the process lives: one that
    outlived a killed leaderboard is waited for, not started a second time.
    """
    if run.parent and (problem := train_missing(run.parent, say)):
        return f"it starts from {run.parent.name}, which failed: {problem}"
    run.folder.parent.mkdir(parents=True, exist_ok=True)
    log = run.folder.with_name(f"{run.folder.name}.log")
    with locked(log, lambda: say(f"  waiting for the process that still trains {run.folder}")) as stream:
        if (run.folder / "result.json").exists():
            return None
        command = [sys.executable, "-m", "seglearn", "train", *run.words, "--folder", str(run.folder)]
        if (run.folder / "last.pt").exists():
            command.append("--resume")
        say(f"  {'resuming' if '--resume' in command else 'training'}: see {log}")
        start = stream.seek(0, os.SEEK_END)
        code = wait_for(command, stream)
        if code == 0:
            return None
        stream.seek(start)
        lines = re.split(r"[\r\n]+", stream.read().decode(errors="replace").strip())
        message = lines[-1].removeprefix("seglearn: error: ")
    return f"killed by signal {-code}; the log ends with: {message}" if code < 0 else message


def wait_for(command: list[str], stream: Any) -> int:
    """Run a training process to its end; the first Ctrl-C or SIGTERM is passed on, so that it saves.

    Raises:
        KeyboardInterrupt: it was interrupted.
    """
    environment = {**os.environ, "TQDM_MININTERVAL": "10"}  # the bar goes to a file: ten lines a second are too many
    with interruptible() as received:
        # a session of its own: the terminal's Ctrl-C reaches this process alone
        process = subprocess.Popen(
            command, stdout=stream, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        passed_on = False
        while process.poll() is None:
            if received and not passed_on:
                process.send_signal(signal.SIGINT)
                passed_on = True
            time.sleep(0.2)
        if received:
            raise KeyboardInterrupt
    return process.returncode


@contextmanager
def locked(path: Path, waiting: Callable[[], object]) -> Iterator[Any]:
    """Open a file for appending and hold it alone; processes that inherit it hold it too, until all have ended.

    Calls `waiting` if another process has it. On Windows, which has no such lock, nobody waits.
    """
    with path.open("a+b") as stream:
        try:
            import fcntl
        except ImportError:
            pass
        else:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                waiting()
                fcntl.flock(stream, fcntl.LOCK_EX)
        yield stream


def make_entry(run: Run, dataset: SegmentationDataset) -> dict[str, Any]:
    """Evaluate a finished run on a split of its data: what the leaderboard says of it."""
    result = json.loads((run.folder / "result.json").read_text())
    model, _ = load_model(run.folder)
    started = time.monotonic()
    found = evaluate_on(model, dataset, run.recipe)
    seconds = time.monotonic() - started
    return {
        **run.key(),
        "split": dataset.split,
        "model": run.recipe.model,
        "data": describe_split(dataset),
        **found,
        "epoch": result["epoch"],
        "val_miou": result["miou"],
        "parameters": result["parameters"],
        "flops": flops(model, run.recipe),
        "milliseconds": milliseconds(model, run.recipe),
        "peak_memory": result["peak_memory"],
        "seconds": {**result["seconds"], "evaluation": seconds},
        "machine": result["machine"],
        "fields": result["recipe"],
        "seglearn": result["seglearn"],
        "curve": result["curve"],
    }


def gap_entry(run: Run, own: SegmentationDataset, target: str) -> dict[str, Any]:
    """Evaluate a finished run on `own`, a split of its data, or on that of `target` at the same size.

    Data sets with pictures of other sizes show things at other sizes, which would be a second difference.
    """
    height, width = own[0][1].shape
    if target == run.recipe.data:
        dataset: Any = own
    elif target == "scenes":
        dataset = StreetScenes(own.split, (height, width))
    else:
        dataset = Resized(data.create(target, own.split, run.recipe.root), (height, width))
    model, _ = load_model(run.folder)
    found = evaluate_on(model, dataset, run.recipe)
    where = {"split": own.split, "trained_on": run.recipe.data, "evaluated_on": target, "size": [height, width]}
    return {**run.key(), **where, "images": len(dataset), **found}


class Resized:
    """A dataset at another size: pictures by antialiased bilinear interpolation, labels by the nearest pixel."""

    def __init__(self, dataset: SegmentationDataset, size: tuple[int, int]):
        self.dataset, self.size = dataset, list(size)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, label = self.dataset[index]
        label = F.resize(label[None], self.size, InterpolationMode.NEAREST_EXACT)[0]
        return F.resize(image, self.size, antialias=True), label

    def __getattr__(self, name: str):  # type: ignore[no-untyped-def]
        """Everything else (classes, ignore index …) is the dataset's."""
        return getattr(self.dataset, name)


def evaluate_on(model: nn.Module, dataset: SegmentationDataset, recipe: Recipe) -> dict[str, Any]:
    """Scores of a model over a split, predicting as its recipe says."""
    fabric = start_fabric(recipe.precision)
    classes, void = dataset.num_classes, dataset.ignore_index
    counts = measure_together(
        fabric,
        model.to(fabric.device),
        dataset,
        {
            "matrix": lambda _, guess, label: confusion_matrix(guess, label, classes, void),
            "boundary": lambda _, guess, label: boundary_counts(guess, label, classes, void),
        },
        view=recipe.view(),
    )
    found = scores(counts["matrix"].sum(0))
    return {
        "miou": found.miou,
        "classes_averaged": found.classes_averaged,
        "pixel_accuracy": found.pixel_accuracy,
        "class_accuracy": found.class_accuracy,
        "boundary_f1": boundary_scores(counts["boundary"]).f1,
        "iou": dict(zip(dataset.classes, found.iou, strict=True)),
    }


def picture() -> Tensor:
    """One picture of noise, uint8 [3, 360, 480]: what a prediction costs does not depend on what it shows."""
    return torch.randint(256, (3, *SIZE), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def flops(model: nn.Module, recipe: Recipe) -> int:
    """Multiplications and additions of convolutions and matrix products for one image of 360x480 as it is scored."""
    with FlopCounterMode(display=False) as counter, evaluation_mode(model):
        predict(model, picture(), recipe.view())
    return counter.get_total_flops()


def milliseconds(model: nn.Module, recipe: Recipe, rounds: int = 7) -> float:
    """Median time of predicting one image of 360x480 as it is scored, with the threads that PyTorch takes by itself."""
    fabric = start_fabric(recipe.precision)
    seconds = []
    with evaluation_mode(model), fabric.autocast():
        for _ in range(rounds + 1):
            started = time.perf_counter()
            predict(model, picture(), recipe.view())  # ends on the CPU: nothing is still under way
            seconds.append(time.perf_counter() - started)
    return 1000 * statistics.median(seconds[1:])  # the first one sets things up


def read_results(path: str | os.PathLike[str]) -> Results:
    """The leaderboard's file: `entries`, a dictionary for each recipe, seed and split, and `domain_gap`.

    Raises:
        InputError: the file is there and is no leaderboard.
    """
    path = Path(path)
    if not path.exists():
        return {"entries": [], "domain_gap": []}
    try:
        results: Results = json.loads(path.read_text())
        return {"entries": results["entries"], "domain_gap": results["domain_gap"]}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} is no leaderboard ({type(error).__name__}: {error}): repair it, or choose another file with --out."
        ) from error


def has(out: Path, run: Run, split: str, target: str | None) -> bool:
    """Whether the file has the entry of a run, as its recipe is now."""
    key = {**run.key(), "split": split} | ({"evaluated_on": target} if target else {})
    return any(key.items() <= entry.items() for entry in read_results(out)["domain_gap" if target else "entries"])


def add(out: Path, kind: str, entry: dict[str, Any], lock: Path) -> None:
    """Append an entry to the file as it is now; whoever reads it finds the old or the new one, never half of it."""
    with locked(lock, lambda: None):
        results = read_results(out)
        results[kind].append(entry)
        # a line for each entry: versions of the file can be compared
        parts = (
            f' "{name}": [\n' + ",\n".join(f"  {json.dumps(each)}" for each in entries) + "\n ]"
            for name, entries in results.items()
        )
        text = "{\n" + ",\n".join(parts) + "\n}\n"
        write_atomically(out, lambda path: path.write_text(text))


def current(results: Results, split: str = "val", dataset: str = "camvid") -> dict[str, list[dict[str, Any]]]:
    """Entries by recipe, a seed each. Of a recipe that has changed, those of the version that was added last."""
    entries = [entry for entry in results["entries"] if entry["split"] == split and entry["data"]["name"] == dataset]
    newest = {entry["recipe"]: entry["hash"] for entry in entries}
    return {
        recipe: [entry for entry in entries if (entry["recipe"], entry["hash"]) == (recipe, digest)]
        for recipe, digest in newest.items()
    }


def standings(results: Results, split: str = "val", dataset: str = "camvid") -> list[dict[str, Any]]:
    """One dictionary a recipe, the highest mean mIoU first.

    Each has `recipe`, `model` and `seeds`; means over the seeds under the names that entries have, such as `miou`,
    `boundary_f1`, `milliseconds`, with `seconds` those of the training; and `miou_std`, the standard deviation of a
    sample (with n - 1), None for a single seed.
    """
    rows = []
    for recipe, entries in current(results, split, dataset).items():
        miou, deviation = mean_and_deviation([entry["miou"] for entry in entries])
        measured = ("pixel_accuracy", "class_accuracy", "boundary_f1", "peak_memory", "milliseconds")
        rows.append(
            {
                "recipe": recipe,
                "model": entries[0]["model"],
                "seeds": [entry["seed"] for entry in entries],
                "miou": miou,
                "miou_std": deviation,
                **{name: statistics.mean(entry[name] for entry in entries) for name in measured},
                "parameters": entries[0]["parameters"],
                "flops": entries[0]["flops"],
                "seconds": statistics.mean(entry["seconds"]["training"] for entry in entries),
            }
        )
    return sorted(rows, key=lambda row: -row["miou"])


def gaps(results: Results, split: str = "val") -> list[dict[str, Any]]:
    """One dictionary for each recipe, data that it was trained on and data that it was evaluated on: as `standings`."""
    entries = [entry for entry in results["domain_gap"] if entry["split"] == split]
    place = ("recipe", "trained_on", "evaluated_on")
    newest = {tuple(entry[name] for name in place): entry["hash"] for entry in entries}
    rows = []
    for key, digest in newest.items():
        own = [e for e in entries if (tuple(e[name] for name in place), e["hash"]) == (key, digest)]
        miou, deviation = mean_and_deviation([entry["miou"] for entry in own])
        seeds = [entry["seed"] for entry in own]
        rows.append(dict(zip(place, key, strict=True)) | {"seeds": seeds, "miou": miou, "miou_std": deviation})
    return rows


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and standard deviation of a sample; None of a single value."""
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None


def table(results: Results, split: str = "val", dataset: str = "camvid") -> str:
    """`standings` and `gaps` as text: scores in percent, the mean over seeds and its standard deviation."""

    def percent(row: dict[str, Any]) -> str:
        spread = "" if row["miou_std"] is None else f" ± {100 * row['miou_std']:.2f}"
        return f"{100 * row['miou']:6.2f}{spread:<8}"

    headings = ("seeds", "pixels", "classes", "border F1", "params", "GFLOP", "seconds", "MiB", "ms")
    lines = [f"{f'{dataset} {split}':<24}{'mIoU':>6}{'':8}" + "".join(f"{heading:>10}" for heading in headings)]
    for row in standings(results, split, dataset):
        scored = "".join(f"{100 * row[name]:10.2f}" for name in ("pixel_accuracy", "class_accuracy", "boundary_f1"))
        cost = f"{row['parameters']:10,}{row['flops'] / 1e9:10.2f}{row['seconds']:10.0f}{row['peak_memory']:10.0f}"
        lines.append(
            f"{row['recipe']:<24}{percent(row)}{len(row['seeds']):10}{scored}{cost}{row['milliseconds']:10.1f}"
        )
    if found := gaps(results, split):
        lines += ["", f"{'the domain gap':<24}{'mIoU':>6}{'':8}{'seeds':>10}   trained on, evaluated on"]
        lines += [
            f"{row['recipe']:<24}{percent(row)}{len(row['seeds']):10}   {row['trained_on']}, {row['evaluated_on']}"
            for row in found
        ]
    return "\n".join(lines)


def ship(
    names: Sequence[str], runs: Path, out: Path, dataset: str = "camvid", folder: Path = weights.FOLDER
) -> list[str]:
    """Copy the best weights of each recipe's median seed (by val mIoU) as int8 into the package.

    Args:
        names: recipes as the leaderboard names them; none: all of it.
        runs: where the runs' folders are.
        out: the leaderboard's file.
        folder: of the shipped weights.

    Returns a line for each file that was written.

    Raises:
        InputError: a recipe without an entry or whose run is not there; the folder would grow beyond its limit.
    """
    board = current(read_results(out), "val", dataset)
    if not board:
        raise InputError(f"{out} has no entries on {dataset} val: train some first, with `seglearn leaderboard`.")
    lines = []
    for name in names or board:
        if name not in board:
            raise InputError(f"{name} has no entry on {dataset} val in {out}: there are {', '.join(board)}.")
        ranked = sorted(board[name], key=lambda entry: entry["miou"])
        entry = ranked[(len(ranked) - 1) // 2]
        source = runs / f"{Path(name).name}-{entry['seed']}-{entry['hash'][:8]}" / "best.safetensors"
        tensors, metadata = read_weights(source)
        tensors = weights.pack(tensors)
        median = f"the median of {len(ranked)} seeds by val mIoU" if len(ranked) > 1 else "the only seed that was run"
        scored = ("miou", "classes_averaged", "pixel_accuracy", "class_accuracy", "boundary_f1", "iou", "data", "split")
        metadata |= {
            "seed": entry["seed"],
            "scores": {key: entry[key] for key in scored},
            "origin": f"`seglearn leaderboard {name}`, seed {entry['seed']} ({median}), the weights of epoch "
            f"{entry['epoch']}, which has the highest mIoU of those evaluated; kernels rounded to int8",
            "hash": entry["hash"],
            "machine": entry["machine"],
            "licence": weights.LICENCE[dataset],
        }
        text = {key: json.dumps(value) for key, value in metadata.items()}
        path = folder / dataset / f"{Path(name).name}.safetensors"
        others = sum(file.stat().st_size for file in folder.glob("*/*.safetensors") if file != path)
        size = sum(tensor.nbytes for tensor in tensors.values()) + sum(map(len, text.values()))
        if others + size > weights.LIMIT:
            raise InputError(
                f"{name} has {size / 1e6:.1f} MB and {folder} holds {others / 1e6:.1f} MB already: more than "
                f"{weights.LIMIT / 1e6:.0f} MB together; name the recipes to ship, or remove a file."
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda file, tensors=tensors, text=text: save_file(tensors, file, text))  # type: ignore[misc]
        lines.append(f"{path}: {path.stat().st_size / 1e6:.2f} MB, seed {entry['seed']}, {median}")
    return lines
