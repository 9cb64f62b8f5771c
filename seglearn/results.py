"""Recorded results, shown in chapters: what `seglearn leaderboard` and `seglearn ablate` wrote into `book/results`.

Tables are HTML that needs no kernel and fits a phone, as those of `seglearn.papers`. What is not recorded here (a run
that nobody has made yet, or the package installed without the book) is said in a sentence, so that a page goes on.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from html import escape
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from IPython.display import HTML
from matplotlib.figure import Figure

from seglearn.ablations import choose
from seglearn.errors import InputError
from seglearn.leaderboard import current, gaps, read_results
from seglearn.leaderboard import standings as means
from seglearn.papers import BOOK, page, table
from seglearn.training.recipe import recipe_names

FOLDER = BOOK / "results"
SCORES = {  # of an entry: heading, and factor of the number that is shown
    "miou": ("mIoU (%)", 100.0),
    "boundary_f1": ("border F1 (%)", 100.0),
    "miou_near": ("mIoU near borders (%)", 100.0),
    "miou_inside": ("mIoU inside (%)", 100.0),
    "pixel_accuracy": ("pixel accuracy (%)", 100.0),
    "parameters": ("parameters (million)", 1e-6),
    "flops": ("GFLOP", 1e-9),
    "training_memory": ("training memory (MiB an image)", 2.0**-20),
    "decoder_memory": ("decoder memory (KiB)", 2.0**-10),
}


def _read(path: Path, keys: Sequence[str], remedy: str) -> dict[str, Any]:
    """A JSON file that must have these keys.

    Raises:
        InputError: it is damaged; the sentence ends with the remedy.
    """
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path} cannot be read ({error}): {remedy}.") from error
    missing = [key for key in keys if key not in found] if isinstance(found, dict) else keys
    if missing:
        raise InputError(f"{path} lacks {', '.join(missing)}: {remedy}.")
    return dict(found)


def load_ablation(name: str, folder: Path = FOLDER) -> dict[str, Any] | None:
    """The file of an ablation, None where it is not recorded.

    Raises:
        InputError: no ablation of this name, or a damaged file.
    """
    choose([name])
    path = folder / "ablations" / f"{name}.json"
    if not path.exists():
        return None
    keys = ("question", "paper", "arms", "claims", "entries")
    found = _read(path, keys, f"make it anew with `seglearn ablate {name}`")
    return found if found["entries"] else None


def ablation(name: str, folder: Path = FOLDER) -> HTML:
    """An ablation as two tables: its arms with mean ± standard deviation over the seeds, and what became of each claim.

    Raises:
        InputError: no ablation of this name, or a damaged file.
    """
    found = load_ablation(name, folder)
    if found is None:
        return page(f"<p>Not recorded here: <code>seglearn ablate {escape(name)}</code> runs this ablation.</p>")
    wanted = ["miou", *dict.fromkeys(claim["score"] for claim in found["claims"] if claim["score"] != "miou")]
    rows = [
        (
            escape(row["arm"]),
            str(len(row["seeds"])),
            *(_mean(row[score], SCORES[score][1]) if score in row else "" for score in wanted),
        )
        for row in found["arms"]
    ]
    arms = table(("arm", "seeds", *(SCORES[score][0] for score in wanted)), rows, numbers=range(1, 2 + len(wanted)))
    claims = [
        (escape(claim["sentence"]), _difference(claim), f"<b>{escape(claim['verdict'])}</b>")
        for claim in found["claims"]
    ]
    verdicts = table(("claim", "difference, mean ± its standard error", "here"), claims)
    return page(
        f"<p><b>{escape(found['question'])}</b><br>The paper: {escape(found['paper']['finding'])} "
        f"({escape(found['paper']['source'])}).</p>{arms}{verdicts}"
    )


def _mean(value: dict[str, Any], factor: float) -> str:
    """Mean and deviation as text, with as many digits as the number needs."""
    mean, deviation = factor * value["mean"], value["deviation"]
    digits = 2 if abs(mean) < 1000 else 0
    return f"{mean:.{digits}f}" + (f" ± {factor * deviation:.{digits}f}" if deviation else "")


def _difference(claim: dict[str, Any]) -> str:
    """The difference that a claim was judged by, in the unit of its score."""
    if claim["mean"] is None:
        return "fewer than two seeds"
    _, factor = SCORES[claim["score"]]
    margin = f", to beat {factor * claim['margin']:+.1f}" if claim["margin"] else ""
    return f"{factor * claim['mean']:+.2f} ± {factor * claim['standard_error']:.2f}{margin}"


def ablation_figure(name: str, score: str = "miou", folder: Path = FOLDER) -> Figure | None:
    """A dot a seed and a bar at the mean for every arm of an ablation; None where it is not recorded.

    Raises:
        InputError: no ablation or no score of this name, or a damaged file.
    """
    if score not in SCORES:
        raise InputError(f"score {score!r} is unknown: choose one of {', '.join(SCORES)}.")
    found = load_ablation(name, folder)
    if found is None:
        return None
    heading, factor = SCORES[score]
    arms = [row for row in found["arms"] if score in row]
    if not arms:
        raise InputError(f"no arm of {name} has the score {score!r}: choose another, such as 'miou'.")
    figure, axis = plt.subplots(figsize=(7, 0.9 + 0.42 * len(arms)))
    for place, row in enumerate(arms):
        own = [factor * entry[score] for entry in found["entries"] if entry["arm"] == row["arm"]]
        mean = factor * row[score]["mean"]
        axis.plot([mean, mean], [place - 0.3, place + 0.3], color="black", linewidth=2)
        axis.plot(own, [place] * len(own), "o", color="#4878a8", markersize=6, alpha=0.8)
    axis.set_yticks(range(len(arms)), [row["arm"] for row in arms], fontsize=9)
    axis.set_ylim(len(arms) - 0.5, -0.5)  # the first arm on top
    axis.set_xlabel(f"{heading}: a dot a seed, a line at the mean")
    axis.grid(axis="x", alpha=0.3)
    figure.tight_layout()
    plt.close(figure)
    return figure


def _short(recipe: str) -> str:
    return recipe.removeprefix("laptop/")


def _check(recipes: Iterable[str], recorded: Iterable[str]) -> list[str]:
    """The recipes' short names, in their order.

    Raises:
        InputError: a name that neither the package nor the file has; it names the nearest.
    """
    short = [_short(recipe) for recipe in recipes]
    known = {_short(name) for name in (*recipe_names(), *recorded)}
    for name in short:
        if name not in known:
            near = get_close_matches(name, sorted(known), 1, cutoff=0)[0]
            raise InputError(f"recipe {name!r} is unknown: did you mean {near!r}?")
    return short


def runs(recipes: Sequence[str], folder: Path = FOLDER) -> dict[str, dict[str, Any]]:
    """The leaderboard's entry of each recipe's median seed by mIoU, of those that are recorded.

    Args:
        recipes: names, with or without `laptop/`.

    Raises:
        InputError: an unknown recipe, or a damaged file.
    """
    board = {_short(name): entries for name, entries in current(read_results(folder / "camvid.json")).items()}
    found = {}
    for name in _check(recipes, board):
        if name in board:
            ranked = sorted(board[name], key=lambda entry: entry["miou"])
            found[name] = ranked[(len(ranked) - 1) // 2]
    return found


def costs(folder: Path = FOLDER) -> dict[str, dict[str, Any]]:
    """What recipes cost on a laptop's cores, by their short names: seconds a step, steps, ms an image, peak memory.

    Raises:
        InputError: a damaged file.
    """
    path = folder / "camvid-cost.json"
    if not path.exists():
        return {}
    found = _read(path, ("recipes",), "make it anew with `python benchmarks/recipes.py`")
    return {_short(name): cost for name, cost in found["recipes"].items()}


def crf_effect(folder: Path = FOLDER) -> dict[str, tuple[float, float]]:
    """mIoU before and after a dense CRF by short name of the recipe, from searches behind the leaderboard's own runs.

    A search belongs to a run whose score on val its checkpoint has, or whose hash it names; one behind a run that the
    leaderboard has replaced is left out.

    Raises:
        InputError: a damaged file.
    """
    board = current(read_results(folder / "camvid.json"))
    own = {_short(name): entries for name, entries in board.items()}
    found = {}
    for path in sorted(folder.glob("crf-*.json")):
        name = path.stem.removeprefix("crf-")
        search = _read(path, ("rest",), "make it anew with `seglearn crf-search`")
        score = search.get("checkpoint", {}).get("miou")
        if any(
            search.get("hash") == entry["hash"] or (score is not None and score == entry.get("val_miou"))
            for entry in own.get(name, [])
        ):
            found[name] = (search["rest"]["alone"]["miou"], search["rest"]["crf"]["miou"])
    return found


def standings(recipes: Sequence[str] | None = None, folder: Path = FOLDER) -> HTML:
    """Rows of the leaderboard on CamVid val, the highest mean mIoU first; all of them for None.

    Raises:
        InputError: an unknown recipe, or a damaged file.
    """
    rows = means(read_results(folder / "camvid.json"))
    wanted = None if recipes is None else set(_check(recipes, [row["recipe"] for row in rows]))
    rows = [row for row in rows if wanted is None or _short(row["recipe"]) in wanted]
    if not rows:
        return page("<p>No recorded run of these: <code>seglearn leaderboard</code> makes them.</p>")
    cost, crf = costs(folder), crf_effect(folder)
    header = ["recipe", "seeds", "mIoU (%)", "border F1 (%)", "pixels (%)", "parameters", "GFLOP"]
    header += ["minutes", "ms an image"] if cost else []
    header += ["with CRF"] if crf else []
    cells = []
    for row in rows:
        name = _short(row["recipe"])
        line = [escape(name), str(len(row["seeds"])), _mean({"mean": row["miou"], "deviation": row["miou_std"]}, 100)]
        line += [f"{100 * row['boundary_f1']:.1f}", f"{100 * row['pixel_accuracy']:.1f}"]
        line += [f"{row['parameters'] / 1e6:.2f} M", f"{row['flops'] / 1e9:.1f}"]
        if cost:
            own = cost.get(name)
            minutes = own["seconds_a_step"] * own["steps"] / 60 if own else 0
            line += [f"{minutes:.0f}", f"{own['milliseconds']:.0f}"] if own else ["", ""]
        if crf:
            line.append("{:.1f} → {:.1f}".format(*(100 * value for value in crf[name])) if name in crf else "")
        cells.append(line)
    return page(table(header, cells, numbers=range(1, len(header))))


def domain_gap(folder: Path = FOLDER) -> HTML:
    """What becomes of a net on the other kind of streets: trained on photographs, tested on drawings, and back."""
    rows = gaps(read_results(folder / "camvid.json"))
    if not rows:
        return page("<p>Not recorded here: <code>seglearn leaderboard --domain-gap</code> measures it.</p>")
    cells = [
        (
            escape(_short(row["recipe"])),
            escape(row["trained_on"]),
            escape(row["evaluated_on"]),
            str(len(row["seeds"])),
            _mean({"mean": row["miou"], "deviation": row["miou_std"]}, 100),
        )
        for row in rows
    ]
    return page(table(("recipe", "trained on", "evaluated on", "seeds", "mIoU (%)"), cells, numbers=(3, 4)))
