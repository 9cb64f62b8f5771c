"""Recorded results, shown in chapters: what `seglearn leaderboard` and `seglearn ablate` wrote into `book/results`.

Tables are HTML that needs no kernel and fits a phone, as those of `seglearn.papers`. What is not recorded here (a run
that nobody has made yet, or the package installed without the book) is said in a sentence, so that a page goes on.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
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

FOLDER = BOOK / "results"
SCORES = {  # of an entry: heading, and factor of the number that is shown
    "miou": ("mIoU (%)", 100.0),
    "boundary_f1": ("border F1 (%)", 100.0),
    "miou_near": ("mIoU near borders (%)", 100.0),
    "miou_inside": ("mIoU inside (%)", 100.0),
    "pixel_accuracy": ("pixel accuracy (%)", 100.0),
    "parameters": ("parameters (million)", 1e-6),
    "training_memory": ("training memory (MiB an image)", 2.0**-20),
    "decoder_memory": ("decoder memory (KiB)", 2.0**-10),
}


def load_ablation(name: str, folder: Path = FOLDER) -> dict[str, Any] | None:
    """The file of an ablation, None where it is not recorded.

    Raises:
        InputError: no ablation of this name, or a damaged file.
    """
    choose([name])
    path = folder / "ablations" / f"{name}.json"
    if not path.exists():
        return None
    try:
        found: dict[str, Any] = json.loads(path.read_text())
        return found if found["entries"] else None
    except (ValueError, KeyError) as error:
        raise InputError(f"{path} is no ablation ({error}): make it anew with `seglearn ablate {name}`.") from error


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
        InputError: no ablation of this name, or a damaged file.
    """
    found = load_ablation(name, folder)
    if found is None:
        return None
    heading, factor = SCORES[score]
    arms = [row for row in found["arms"] if score in row]
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


def runs(recipes: Sequence[str], folder: Path = FOLDER) -> dict[str, dict[str, Any]]:
    """The leaderboard's entry of each recipe's median seed by mIoU, of those that are recorded.

    Args:
        recipes: names, with or without `laptop/`.

    Raises:
        InputError: a damaged file.
    """
    board = {_short(name): entries for name, entries in current(read_results(folder / "camvid.json")).items()}
    found = {}
    for name in map(_short, recipes):
        if name in board:
            ranked = sorted(board[name], key=lambda entry: entry["miou"])
            found[name] = ranked[(len(ranked) - 1) // 2]
    return found


def costs(folder: Path = FOLDER) -> dict[str, dict[str, Any]]:
    """What recipes cost on a laptop's cores, by their short names: seconds a step, steps, ms an image, peak memory."""
    path = folder / "camvid-cost.json"
    if not path.exists():
        return {}
    return {_short(name): cost for name, cost in json.loads(path.read_text())["recipes"].items()}


def crf_effect(folder: Path = FOLDER) -> dict[str, tuple[float, float]]:
    """mIoU before and after a dense CRF by short name of the recipe, from searches behind the leaderboard's own runs.

    A search's file says whose it is; one behind a run that the leaderboard has replaced is left out.
    """
    board = current(read_results(folder / "camvid.json"))
    hashes = {_short(name): {entry["hash"] for entry in entries} for name, entries in board.items()}
    found = {}
    for path in sorted(folder.glob("crf-*.json")):
        search, name = json.loads(path.read_text()), path.stem.removeprefix("crf-")
        if search.get("hash") in hashes.get(name, set()):
            found[name] = (search["rest"]["alone"]["miou"], search["rest"]["crf"]["miou"])
    return found


def standings(recipes: Sequence[str] | None = None, folder: Path = FOLDER) -> HTML:
    """Rows of the leaderboard on CamVid val, the highest mean mIoU first; all of them for None.

    Raises:
        InputError: a damaged file.
    """
    rows = means(read_results(folder / "camvid.json"))
    wanted = None if recipes is None else set(map(_short, recipes))
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
