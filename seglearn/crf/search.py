"""Which CRF goes behind a given network: weight and widths of the appearance kernel, searched as DeepLab does.

Chen et al. (2015, arXiv 1412.7062, section 5; 2016, arXiv 1606.00915, section 4) hold the smoothness kernel fixed and
search the rest from coarse to fine on 100 validation images. Here, too, some images are for choosing and the others for
the score, and the answer may be that the network is better off alone: the CRF pays for borders, and what is thin is
mostly border.

Chapter: book/ideas/crf.

Differs from the papers:
    - steps are factors, not differences: a weight of 4 instead of 3 changes more than one of 10 instead of 9;
    - the images for choosing are every k-th, and the score is on the others. Where they are frames of one film, as in
      CamVid, each of the others has a neighbour among the chosen: the two are apart, but not independent.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from seglearn.boundaries import boundary_counts, boundary_scores, trimap_matrices
from seglearn.crf.dense import DenseCRF, dense_crf
from seglearn.crf.inputs import APPEARANCE, SMOOTHNESS
from seglearn.data import SegmentationDataset
from seglearn.data.transforms import MEAN, STD
from seglearn.errors import InputError
from seglearn.inference import decide, evaluation_mode, predict_logits
from seglearn.metrics import Scores, confusion_matrix, scores
from seglearn.views import PLAIN, View, logits_of

# The coarse grid: what both papers search (w from 3 to 10, pixels from 30 to 100, colours from 3 to 10), by doubling.
GRID: Mapping[str, tuple[float, ...]] = MappingProxyType(
    {"compat": (2.5, 5.0, 10.0), "sxy": (25.0, 50.0, 100.0), "srgb": (2.5, 5.0, 10.0)}
)
ITERATIONS = 10  # of mean field, in both papers; their smoothness kernel, w 3 and 3 pixels, is `SMOOTHNESS`
DEFAULTS: dict[str, Any] = {"iterations": 10, "smoothness": dict(SMOOTHNESS), "appearance": dict(APPEARANCE)}
BANDS = tuple(range(1, 21))  # widths in pixels for the mIoU near borders

Example = tuple[Tensor, Tensor, Tensor]  # probabilities [C, H, W], image uint8 [3, H, W], label [H, W]
Appearance = dict[str, float]  # compat, sxy, srgb


class Refined(nn.Module):
    """A network with a CRF behind it, for all that takes a model: `[N, 3, H, W]` normalised -> `[N, C, H, W]`.

    What it returns are logarithms of the CRF's marginals, so their softmax is the marginals.

    Args:
        net: gives the logits.
        view: what the net is shown; the CRF sees the picture as it is.
        settings: arguments of `dense_crf`.
    """

    def __init__(self, net: nn.Module, view: View = PLAIN, **settings: Any) -> None:
        super().__init__()
        self.net, self.view, self.settings = net, view, settings

    def forward(self, images: Tensor) -> Tensor:
        mean, std = (torch.tensor(values, device=images.device).view(3, 1, 1) * 255 for values in (MEAN, STD))
        pixels = (images.float() * std + mean).round().clamp(0, 255).to(torch.uint8)  # what `normalize` was given
        logits = torch.stack([logits_of(self.net, image, self.view) for image in pixels])
        probabilities = logits.float().softmax(1)
        with torch.autocast(images.device.type, enabled=False):
            return dense_crf(probabilities, pixels, **self.settings).log()


def crf_search(
    net: nn.Module,
    dataset: SegmentationDataset,
    every: int = 5,
    grid: Mapping[str, Iterable[float]] = GRID,
    rounds: int = 2,
    progress: bool = False,
    view: View = PLAIN,
) -> dict[str, Any]:
    """Choose the appearance kernel on every `every`-th image, then score with and without the CRF on the others.

    Args:
        net: any model; it is in evaluation mode meanwhile.
        dataset: one split, which the network was not trained on.
        grid: values of `compat`, `sxy` and `srgb`, all combinations of which are tried first.
        rounds: how often the neighbourhood of the best is tried then: each of the three by itself, one step up and one
            down, by a factor of the square root of 2 first, and of the square root of that next.
        view: what the net is shown of each image.

    Returns what a result file holds, in JSON's types: under `search` how and what was tried, and the mIoU of each
    setting and without a CRF on the images for choosing; under `crf` the arguments of `dense_crf` that came out; under
    `rest` the scores on the other images, `alone`, with the `crf` that was found, and with the `defaults` of
    pydensecrf's example, and the `iou_change` of each class; under `verdict` in words what the CRF changes there.

    Raises:
        InputError: `every` leaves no image for one of the two purposes.
    """
    if not 2 <= every <= len(dataset):
        raise InputError(f"every is {every} for {len(dataset)} images: give 2 or more, and no more than there are.")
    chosen = range(0, len(dataset), every)
    others = [index for index in range(len(dataset)) if index % every]
    classes, void = dataset.num_classes, dataset.ignore_index
    # kept in half precision: 4 MB for an image of CamVid
    examples = [(p.half(), image, label) for p, image, label in _examples(net, dataset, chosen, progress, view)]
    tried = search(examples, dataset, grid, rounds, progress)
    best = max(tried, key=lambda trial: trial["miou"])
    settings = {**DEFAULTS, "iterations": ITERATIONS, "appearance": {name: best[name] for name in APPEARANCE}}
    held_out = sum(confusion_matrix(decide(p), label, classes, void) for p, _, label in examples)
    rest = _compare(_examples(net, dataset, others, progress, view), dataset, {"crf": settings, "defaults": DEFAULTS})
    totals = {way: scores(counts["matrix"].sum(0)) for way, counts in rest.items()}
    changes = [after - before for before, after in zip(totals["alone"].iou, totals["crf"].iou, strict=True)]
    return {
        "verdict": verdict(totals["alone"], totals["crf"], dataset.classes),
        "crf": settings,
        "rest": {
            "images": len(others),
            **{way: _summary(counts, dataset) for way, counts in rest.items()},
            "iou_change": dict(zip(dataset.classes, changes, strict=True)),
        },
        "search": {
            "images": len(chosen),
            "every": every,
            "grid": {name: list(values) for name, values in grid.items()},
            "rounds": rounds,
            "miou_alone": scores(torch.as_tensor(held_out)).miou,
            "miou": best["miou"],
            "tried": tried,
        },
    }


def search(
    examples: list[Example],
    dataset: SegmentationDataset,
    grid: Mapping[str, Iterable[float]],
    rounds: int,
    progress: bool = False,
) -> list[dict[str, float]]:
    """All settings that were tried, in their order, each with its mIoU: first the grid, then around the best so far."""
    tried: list[dict[str, float]] = []
    factor = 2.0
    candidates = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    for _ in range(rounds + 1):
        known = [{name: trial[name] for name in APPEARANCE} for trial in tried]
        new = [each for each in candidates if each not in known]
        matrices = _matrices(examples, new, dataset, progress)
        tried += [{**each, "miou": scores(matrix).miou} for each, matrix in zip(new, matrices, strict=True)]
        best = max(tried, key=lambda trial: trial["miou"])
        factor **= 0.5
        candidates = [
            {**{name: best[name] for name in APPEARANCE}, moved: float(f"{best[moved] * step:.3g}")}
            for moved in APPEARANCE
            for step in (1 / factor, factor)
        ]
    return tried


def verdict(alone: Scores, refined: Scores, classes: Iterable[str]) -> str:
    """What the CRF changes, in points of IoU: whether it makes things worse, and for which classes."""
    change = 100 * (refined.miou - alone.miou)
    effect = "raises" if change > 0 else "lowers" if change < 0 else "leaves"
    changes = {
        name: 100 * (after - before)
        for name, before, after in zip(classes, alone.iou, refined.iou, strict=True)
        if before == before and after == after  # NaN: a class that is in no map
    }
    worse = [
        f"{name} ({points:+.2f})" for name, points in sorted(changes.items(), key=lambda item: item[1]) if points < 0
    ]
    return f"The CRF {effect} the mIoU from {100 * alone.miou:.2f} to {100 * refined.miou:.2f}. " + (
        f"It makes {len(worse)} of {len(changes)} classes worse: {', '.join(worse)}." if worse else "No class loses."
    )


def read_settings(path: Path) -> dict[str, Any]:
    """The arguments of `dense_crf` in a file that `seglearn crf-search` wrote.

    Raises:
        InputError: no such file, or another kind of file.
    """
    try:
        settings: dict[str, Any] = json.loads(path.read_text())["crf"]
        appearance = settings["appearance"].keys()
    except OSError as error:
        raise InputError(
            f"CRF file {path} cannot be read ({error.strerror}): `seglearn crf-search` writes one."
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"CRF file {path} holds no settings: give one that `seglearn crf-search` wrote.") from error
    if appearance != APPEARANCE.keys():
        raise InputError(f"CRF file {path} holds no settings: give one that `seglearn crf-search` wrote.")
    return settings


def _examples(
    net: nn.Module, dataset: SegmentationDataset, indices: Iterable[int], progress: bool, view: View
) -> Iterable[Example]:
    """What the network says of some images; it runs once for each."""
    from tqdm.auto import tqdm

    with evaluation_mode(net):
        for index in tqdm(indices, "images", disable=not progress, leave=False):
            image, label = dataset[index]
            logits = predict_logits(net, image, view)
            yield logits.float().softmax(0), image.to(logits.device), label


def _matrices(
    examples: list[Example], settings: list[Appearance], dataset: SegmentationDataset, progress: bool
) -> Tensor:
    """Confusion matrices over all examples, int64 [settings, C, C]. One lattice serves all weights."""
    from tqdm.auto import tqdm

    totals = torch.zeros(len(settings), dataset.num_classes, dataset.num_classes, dtype=torch.int64)
    for probabilities, image, label in tqdm(examples, "settings", disable=not progress, leave=False):
        lattices: dict[tuple[float, float], list[int]] = {}
        for index, setting in enumerate(settings):
            lattices.setdefault((setting["sxy"], setting["srgb"]), []).append(index)
        for (sxy, srgb), members in lattices.items():
            crf = DenseCRF(image, SMOOTHNESS, {"sxy": sxy, "srgb": srgb})
            for index in members:
                crf.costs[1] = settings[index]["compat"]
                guess = decide(crf(probabilities, ITERATIONS))
                totals[index] += confusion_matrix(guess, label, dataset.num_classes, dataset.ignore_index)
    return totals


def _compare(
    examples: Iterable[Example], dataset: SegmentationDataset, settings: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Tensor]]:
    """Counts of each image, by name of the settings (and `alone`) and by name of what is counted: [images, ...]."""
    classes, void = dataset.num_classes, dataset.ignore_index
    counts: dict[str, dict[str, list[Tensor]]] = {}
    for probabilities, image, label in examples:
        ways = {"alone": probabilities}
        ways |= {name: dense_crf(probabilities, image, **each) for name, each in settings.items()}
        for way, marginals in ways.items():
            guess = decide(marginals)
            found = {
                "matrix": confusion_matrix(guess, label, classes, void),
                "boundary": boundary_counts(guess, label, classes, void),
                "bands": trimap_matrices(guess, label, classes, void, BANDS),
            }
            for name, each in found.items():
                counts.setdefault(way, {}).setdefault(name, []).append(each)
    return {way: {name: torch.stack(each) for name, each in found.items()} for way, found in counts.items()}


def _summary(counts: Mapping[str, Tensor], dataset: SegmentationDataset) -> dict[str, Any]:
    found, boundary = scores(counts["matrix"].sum(0)), boundary_scores(counts["boundary"])
    return {
        "miou": found.miou,
        "classes_averaged": found.classes_averaged,
        "pixel_accuracy": found.pixel_accuracy,
        "iou": dict(zip(dataset.classes, found.iou, strict=True)),
        "boundary_f1": boundary.f1,
        "boundary_f1_of_classes": dict(zip(dataset.classes, boundary.per_class, strict=True)),
        "band_miou": {str(width): scores(band).miou for width, band in zip(BANDS, counts["bands"].sum(0), strict=True)},
    }
