"""How ablations run: each arm and seed is one `seglearn train`, and each ablation one JSON file.

As the leaderboard's, runs are processes of their own in folders named after what they learn, so that they may be killed
at any moment, and arms that several ablations share are trained once.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from seglearn import data, losses, models
from seglearn.ablations.claims import RULE, Ablation, Arm, judge
from seglearn.ablations.table import SETTING
from seglearn.boundaries import boundary_counts, boundary_scores, trimap_matrices
from seglearn.crf.search import GRID, Refined, crf_search
from seglearn.data import SegmentationDataset
from seglearn.data.transforms import normalize
from seglearn.errors import InputError
from seglearn.inference import evaluation_mode, predict
from seglearn.leaderboard import (
    NO_RESULT,
    SIZE,
    Run,
    flops,
    locked,
    mean_and_deviation,
    picture,
    train_missing,
)
from seglearn.metrics import confusion_matrix, scores
from seglearn.training.checkpoint import load_model, write_atomically
from seglearn.training.device import choose_memory_format, measure_together, start_fabric
from seglearn.training.loop import describe_split, make_optimizer
from seglearn.training.modes import freeze, start_training
from seglearn.training.recipe import Recipe, load_recipe
from seglearn.training.rehearsal import cost
from seglearn.training.samples import InMemory, generator
from seglearn.views import View

NEAR = 8  # a pixel is near a border when it is less than so many pixels away: 7, as the paper on large kernels counts
CRF_GRID = {**GRID, "sxy": (50.0,)}
CRF_EVERY = 5  # images of val for the search; the others are scored
SCORES = (
    "miou",
    "pixel_accuracy",
    "boundary_f1",
    "miou_near",
    "miou_inside",
    "parameters",
    "flops",
    "training_memory",
    "decoder_memory",
)
Entry = dict[str, Any]


def plan(ablation: Ablation, arm: Arm, seed: int, runs: Path) -> Run:
    """The training run of an arm with a seed; that of another arm where this one only tests it.

    Raises:
        InputError: its recipe cannot be used.
    """
    trained = ablation.arm(arm.of) if arm.of else arm
    parent = plan(ablation, ablation.arm(trained.start), seed, runs) if trained.start else None
    words = ["--seed", str(seed)]
    for name, value in {**SETTING, **trained.overrides}.items():
        words += [f"--{name}", value if isinstance(value, str) else json.dumps(value)]
    if parent:
        words += ["--init_from", str(parent.folder / "best.safetensors")]
    recipe = load_recipe(trained.recipe, words)
    default = asdict(Recipe())
    chosen = {name: value for name, value in asdict(recipe).items() if name not in NO_RESULT and value != default[name]}
    if parent:
        chosen["init_from"] = parent.digest
    digest = hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()
    folder = runs / f"{Path(trained.recipe).name}-{seed}-{digest[:8]}"
    return Run(trained.recipe, recipe, digest, folder, (trained.recipe, *words), parent)


def fill(
    ablations: Sequence[Ablation], seeds: Sequence[int], runs: Path, out: Path, say: Callable[[str], object] = print
) -> list[str]:
    """Train or resume what is missing and judge; each ablation's file is written after each of its runs.

    Args:
        ablations: what to run.
        seeds: all arms of all ablations run with the first one before any runs with the second.
        runs: where the runs' folders are.
        out: folder of the files NAME.json.
        say: takes a line whenever something happens.

    Returns a sentence for each arm and seed that failed.

    Raises:
        InputError: a recipe, the data, or a file in `out` cannot be used.
        KeyboardInterrupt: Ctrl-C or SIGTERM; the run has saved its state.
    """
    queue = [(ablation, arm, seed) for seed in seeds for ablation in ablations for arm in ablation.arms]
    plans = [plan(ablation, arm, seed, runs) for ablation, arm, seed in queue]
    # loaded before any training: what is not there is better said now
    places = {(run.recipe.data, run.recipe.root) for run in plans}
    splits: dict[Any, Any] = {place: InMemory(data.create(place[0], "val", place[1])) for place in places}
    out.mkdir(parents=True, exist_ok=True)
    runs.mkdir(parents=True, exist_ok=True)
    for ablation in ablations:
        read_entries(out / f"{ablation.name}.json")
    failures: list[str] = []
    for number, ((ablation, arm, seed), run) in enumerate(zip(queue, plans, strict=True), 1):
        file = out / f"{ablation.name}.json"
        if any(is_of(entry, arm, run) for entry in read_entries(file)):
            continue
        label = f"{ablation.name}, {arm.label}, seed {seed}"
        say(f"[{number}/{len(queue)}] {label}")
        problem = train_missing(run, say)
        if not problem:
            try:
                entry = make_entry(arm, run, splits[run.recipe.data, run.recipe.root])
            except InputError as error:  # a damaged checkpoint, say
                problem = str(error)
        if problem:
            failures.append(f"{label}: {problem}")
            say(f"  failed: {problem}")
            continue
        with locked(runs / f"{file.name}.lock", lambda: None):
            entries = [old for old in read_entries(file) if (old["arm"], old["seed"]) != (arm.label, seed)]
            write(file, summary(ablation, [*entries, entry], runs))
        say(f"  mIoU {100 * entry['miou']:.2f}")
    return failures


def is_of(entry: Mapping[str, Any], arm: Arm, run: Run) -> bool:
    """Whether an entry is what this arm, as it is now, came to with the run's seed."""
    key = {**run.key(), "arm": arm.label, "tested": dict(arm.tested), "crf": arm.crf}
    return key.items() <= entry.items() and arm.windows == entry.get("windows", False)


def make_entry(arm: Arm, run: Run, dataset: SegmentationDataset) -> Entry:
    """Test a finished run as the arm says."""
    result = json.loads((run.folder / "result.json").read_text())
    started = time.monotonic()
    model, metadata = load_model(run.folder)
    options = {**metadata["options"], **arm.tested}
    if arm.tested:
        changed = models.create(metadata["model"], len(metadata["classes"]), metadata["size"], **options)
        changed.load_state_dict(model.state_dict())
        model = changed.to(memory_format=torch.channels_last).eval()
    view = view_of_arm(arm, run.recipe)
    found = scores_with_crf(arm, run, model, dataset) if arm.crf else scores_of(run, model, dataset, view)
    _, memory = cost(run.recipe, SIZE, dataset.num_classes, dataset.ignore_index)
    kept = {"decoder_memory": model.decoder_memory(*SIZE)} if hasattr(model, "decoder_memory") else {}  # type: ignore[operator]
    return {
        **run.key(),
        "arm": arm.label,
        "tested": dict(arm.tested),
        "windows": arm.windows,
        "crf": arm.crf,
        **found,
        "parameters": result["parameters"],
        "flops": flops(model, run.recipe),
        "training_memory": memory,
        **kept,
        "epochs": run.recipe.epochs,
        "seconds": {"training": result["seconds"]["training"], "test": time.monotonic() - started},
        "machine": result["machine"],
        "seglearn": result["seglearn"],
        "data": describe_split(dataset),
    }


def view_of_arm(arm: Arm, recipe: Recipe) -> View:
    """What the network is shown at the test: its recipe's view, cut into windows where the arm says so."""
    return replace(recipe.view(), window=recipe.crop) if arm.windows else recipe.view()


def scores_of(run: Run, model: nn.Module, dataset: SegmentationDataset, view: View) -> dict[str, Any]:
    """Scores over a split: everywhere, near borders, and inside."""
    fabric = start_fabric(run.recipe.precision)
    classes, void = dataset.num_classes, dataset.ignore_index
    counts = measure_together(
        fabric,
        model.to(fabric.device),
        dataset,
        {
            "matrix": lambda _, guess, label: confusion_matrix(guess, label, classes, void),
            "boundary": lambda _, guess, label: boundary_counts(guess, label, classes, void),
            "near": lambda _, guess, label: trimap_matrices(guess, label, classes, void, (NEAR,)),
        },
        view=view,
    )
    matrix, near = counts["matrix"].sum(0), counts["near"].sum(0)[0]
    found = scores(matrix)
    return {
        "miou": found.miou,
        "pixel_accuracy": found.pixel_accuracy,
        "boundary_f1": boundary_scores(counts["boundary"]).f1,
        "miou_near": scores(near).miou,
        "miou_inside": scores(matrix - near).miou,
        "iou": dict(zip(dataset.classes, found.iou, strict=True)),
    }


def scores_with_crf(arm: Arm, run: Run, model: nn.Module, dataset: SegmentationDataset) -> dict[str, Any]:
    """Scores without or with a CRF, on the images that its settings were not searched on.

    The search stands in the run's folder, as `crf.json`, for the arm that asks next.
    """
    file = run.folder / "crf.json"
    if not file.exists():
        fabric = start_fabric(run.recipe.precision)
        with fabric.autocast():
            searched = crf_search(
                model.to(fabric.device), dataset, CRF_EVERY, CRF_GRID, rounds=0, view=run.recipe.view()
            )
        write_atomically(file, lambda path: path.write_text(json.dumps(searched, indent=1) + "\n"))
    found = json.loads(file.read_text())
    rest = found["rest"][arm.crf]
    return {
        "miou": rest["miou"],
        "pixel_accuracy": rest["pixel_accuracy"],
        "boundary_f1": rest["boundary_f1"],
        "miou_near": rest["band_miou"][str(NEAR)],
        "iou": rest["iou"],
        "settings": found["crf"],
    }


def read_entries(path: str | os.PathLike[str]) -> list[Entry]:
    """The entries of an ablation's file, one for each arm and seed; none where there is no file.

    Raises:
        InputError: the file is there and holds no ablation.
    """
    path = Path(path)
    if not path.exists():
        return []
    try:
        entries: list[Entry] = json.loads(path.read_text())["entries"]
        return [entry for entry in entries if entry["arm"] and entry["seed"] >= 0]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} is no ablation ({type(error).__name__}: {error}): repair or remove it, or choose another --out."
        ) from error


def summary(ablation: Ablation, entries: Sequence[Entry], runs: Path = Path("runs/ablations")) -> dict[str, Any]:
    """What an ablation's file holds: question, rule, setting, arms with mean and spread, verdicts, and the entries.

    Entries of arms that have changed or are gone are left out.
    """
    kept: dict[str, list[Entry]] = {}
    for arm in ablation.arms:
        own = [entry for entry in entries if entry["arm"] == arm.label]
        current = [entry for entry in own if is_of(entry, arm, plan(ablation, arm, entry["seed"], runs))]
        kept[arm.label] = sorted(current, key=lambda entry: int(entry["seed"]))
    arms = []
    for arm in ablation.arms:
        own = kept[arm.label]
        row: dict[str, Any] = {"arm": arm.label, "recipe": arm.recipe, "overrides": dict(arm.overrides)}
        row |= {"start": arm.start, "of": arm.of, "tested": dict(arm.tested)}
        row |= {"windows": arm.windows, "crf": arm.crf}
        row["seeds"] = [entry["seed"] for entry in own]
        for score in SCORES:
            if own and score in own[0]:
                mean, deviation = mean_and_deviation([entry[score] for entry in own])
                row[score] = {"mean": mean, "deviation": deviation}
        arms.append(row)
    claims = []
    for claim in ablation.claims:
        more, less = ({entry["seed"]: entry[claim.score] for entry in kept[side]} for side in (claim.more, claim.less))
        differences = {seed: more[seed] - less[seed] for seed in more if seed in less}
        verdict = judge(list(differences.values()), claim.margin)
        claims.append({**asdict(claim), **asdict(verdict), "differences": differences})
    return {
        "name": ablation.name,
        "question": ablation.question,
        "paper": {"finding": ablation.finding, "source": ablation.source},
        "setting": SETTING,
        "rule": RULE,
        "arms": arms,
        "claims": claims,
        "entries": [entry for own in kept.values() for entry in own],
    }


def write(path: Path, result: Mapping[str, Any]) -> None:
    """Write an ablation's file at once, a line for each arm, claim and entry: versions of it can be compared."""

    def text(value: Any) -> str:
        if not isinstance(value, list):
            return json.dumps(value)
        return "[\n" + ",\n".join(f"  {json.dumps(each)}" for each in value) + "\n ]"

    lines = ",\n".join(f' "{name}": {text(value)}' for name, value in result.items())
    write_atomically(path, lambda file: file.write_text("{\n" + lines + "\n}\n"))


def page(result: Mapping[str, Any]) -> str:
    """An ablation's file as text: scores in percent, the mean over seeds and its standard deviation."""
    lines = [f"{result['name']}: {result['question']}", f"the paper: {result['paper']['finding']}"]
    for row in result["arms"]:
        cells = [f"  {row['arm']:<28}{len(row['seeds'])} seeds"]
        for score in ("miou", "boundary_f1"):
            if score in row:
                spread = row[score]["deviation"]
                cells.append(f"{score} {100 * row[score]['mean']:.2f}" + (f" ± {100 * spread:.2f}" if spread else ""))
        lines.append("  ".join(cells))
    lines += [f"  {claim['verdict']}: {claim['sentence']}" for claim in result["claims"]]
    return "\n".join(lines)


@dataclass(frozen=True)
class Estimate:
    """What a run takes, in seconds of one core.

    Attributes:
        train: of its training alone, without the run that it starts from.
        test: of each arm's test.
    """

    train: float
    test: float


def estimate(arm: Arm, recipe: Recipe, images: int, classes: int = 11, void: int = 11) -> Estimate:
    """Measure two steps and a test picture of an arm on this machine, as seconds of processor time.

    With several threads, processor time counts what they spend on waiting for each other, too.

    Args:
        arm: what to measure.
        recipe: its run's, from `plan`.
        images: in the training split; a quarter as many are assumed in val.
        classes: of the data.
        void: its ignore index.
    """
    fabric = start_fabric(recipe.precision)
    layout = choose_memory_format()
    net: Any = models.create(recipe.model, classes, recipe.size, **recipe.options)
    freeze(net, recipe.freeze, recipe.freeze_norms)
    start_training(net)
    net = net.to(fabric.device).to(memory_format=layout)
    optimizer, criterion = make_optimizer(net, recipe), losses.create(recipe.loss, void)
    augment, seconds = recipe.augment(void), 0.0
    for step in range(2):  # the first one sets things up
        started = time.process_time()
        pairs = [
            augment(picture(), torch.zeros(SIZE, dtype=torch.uint8), generator(0, step, index))
            for index in range(recipe.batch_size)
        ]
        batch, labels = (torch.stack(part).to(fabric.device) for part in zip(*pairs, strict=True))
        with fabric.autocast():
            loss = net.loss(normalize(batch).contiguous(memory_format=layout), labels, criterion)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds = time.process_time() - started
    label = torch.arange(SIZE[0] * SIZE[1]).view(SIZE) // 9000 % classes  # some borders
    for _ in range(2):
        started = time.process_time()
        with evaluation_mode(net), fabric.autocast():
            guess = predict(net, picture(), view_of_arm(arm, recipe))
        one = time.process_time() - started
    started = time.process_time()
    boundary_counts(guess, label, classes, void)
    trimap_matrices(guess, label, classes, void, (NEAR,))
    counted = time.process_time() - started
    val = images / 4
    test = val * (one + counted)
    if arm.crf and not arm.of:
        started = time.process_time()
        predict(Refined(net, recipe.view(), iterations=10), picture())
        settings = 1
        for values in CRF_GRID.values():
            settings *= len(tuple(values))
        test += (val / CRF_EVERY * settings + 2 * val * (1 - 1 / CRF_EVERY)) * (time.process_time() - started)
    steps = recipe.epochs * (images // recipe.batch_size)
    # the best weights are scored at the end of training, too
    return Estimate(steps * seconds + 2 * val * one, test)


def overview(ablations: Sequence[Ablation], seeds: Sequence[int], runs: Path, images: int = 367) -> Iterator[str]:
    """The plan, line by line: each ablation's arms and what they take here; arms that are shared count once."""
    known: dict[str, Estimate] = {}
    total = 0.0
    for ablation in ablations:
        yield f"{ablation.name}: {ablation.question}"
        for arm in ablation.arms:
            run = plan(ablation, arm, seeds[0], runs)
            new = run.digest not in known
            if new or arm.tested or arm.windows or arm.crf:
                known[run.digest] = estimate(arm, run.recipe, images)
            seconds = known[run.digest].test + (known[run.digest].train if new else 0.0)
            total += seconds
            notes = [f"after {arm.start}"] if arm.start else []
            notes += [] if new else ["trained above"]
            yield f"  {arm.label:<30}{arm.recipe:<26}{seconds:6.0f} s  {', '.join(notes)}".rstrip()
    cores = os.cpu_count() or 1
    hours = total * len(seeds) / 3600
    yield (
        f"{len(known)} trainings for each of {len(seeds)} seeds: {hours:.1f} hours of one core, {hours / cores:.1f} "
        f"with this machine's {cores} cores all busy. Measured just now, a step of each."
    )
