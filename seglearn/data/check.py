"""All that can be known about a dataset before training on it, on one page: `seglearn data check PATH`.

Loading a dataset looks at its lists, at whether the files are there, and at some masks. This reads every file of every
split, so it finds what loading leaves out: a damaged file, a wrong label in any mask, one picture in two splits under
two names.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor
from tqdm.auto import tqdm

from seglearn import data, plots
from seglearn.data import SegmentationDataset, camvid, cityscapes, pets
from seglearn.data.files import FileDataset, count_labels
from seglearn.errors import InputError

# A tree of files is known by a folder that only it has; any other path is a `Folder`.
MARKERS = {"leftImg8bit": "cityscapes", "trainannot": "camvid", "oxford-iiit-pet": "pets", "VOCdevkit": "voc2012"}
# Only noted, and warned of when they are loaded: the other datasets of fixed size refuse another one.
EXPECTED = {"camvid": camvid.SPLITS, "cityscapes": cityscapes.SPLITS}
SHOWN = 8  # sentences of one kind on the page


@dataclass
class Item:
    """What was seen of one picture and its mask; `error` is a sentence where it could not be read."""

    id: str
    error: str = ""
    size: tuple[int, int] = (0, 0)  # height, width
    pixels: Tensor | None = None  # int64 [256], how many have each label
    digest: bytes = b""  # of the decoded picture: the same file under two names, or saved in two formats, is found


@dataclass
class Split:
    """One split and its items."""

    dataset: SegmentationDataset
    items: list[Item]

    @property
    def pixels(self) -> Tensor:
        """How many pixels have each label: int64 [256]."""
        return sum((item.pixels for item in self.items if item.pixels is not None), torch.zeros(256, dtype=torch.int64))

    @property
    def images(self) -> Tensor:
        """How many pictures hold each label: int64 [256]."""
        return sum((item.pixels > 0 for item in self.items if item.pixels is not None), torch.zeros(256).long())

    @property
    def void_share(self) -> float:
        """Share of void in all pixels, 0..1; NaN where no item could be read."""
        return (self.pixels[self.dataset.ignore_index] / self.pixels.sum()).item()

    @property
    def frequency(self) -> list[float]:
        """Share of each class in the labelled pixels, 0..1; NaN where there are none."""
        counts = self.pixels[: self.dataset.num_classes]
        return (counts / counts.sum()).tolist()


@dataclass
class Report:
    """What `check` found: `problems` are to be repaired, `notes` to be known."""

    splits: dict[str, Split]
    problems: list[str]
    notes: list[str]

    def page(self) -> str:
        """The page of text."""
        dataset = next(iter(self.splits.values())).dataset
        lines = [f"{dataset.name}: {dataset.num_classes} classes, {dataset.ignore_index} is void"]
        if isinstance(dataset, data.Folder):
            lines.append(f"splits: {dataset.splitting}")
        lines += ["", f"{'split':<10}{'images':>8}{'void':>10}   height x width (images)"]
        for name, split in self.splits.items():
            sizes = Counter(item.size for item in split.items if not item.error)
            common = ", ".join(f"{height}x{width} ({count})" for (height, width), count in sizes.most_common(3))
            more = f", {len(sizes) - 3} more" if len(sizes) > 3 else ""
            lines.append(f"{name:<10}{len(split.items):>8}{100 * split.void_share:>9.2f}%   {common}{more}")
        lines += ["", f"{'% of labelled pixels, images':<30}" + "".join(f"{name:>17}" for name in self.splits)]
        columns = [(split.frequency, split.images.tolist()) for split in self.splits.values()]
        for index, name in enumerate(dataset.classes):
            cells = "".join(f"{100 * share[index]:>9.2f}%{images[index]:>7}" for share, images in columns)
            lines.append(f"{index:>3}  {name[:24]:<25}{cells}")
        name, share = next(iter(self.splits)), columns[0][0]
        rarest = sorted(range(dataset.num_classes), key=lambda index: share[index])[:3]
        rare = ", ".join(f"{dataset.classes[index]} {100 * share[index]:.2f}%" for index in rarest)
        lines += ["", f"rarest in {name}: {rare}"]
        for title, sentences in (("problems", self.problems), ("notes", self.notes)):
            lines += ["", f"{title}: {len(sentences) or 'none'}", *(f"  {sentence}" for sentence in sentences[:SHOWN])]
            if len(sentences) > SHOWN:
                lines.append(f"  and {len(sentences) - SHOWN} more")
        return "\n".join(lines)

    def sheet(self, pictures: int = 4) -> Figure:
        """Up to `pictures` of every split, each beside itself with its labels laid over, and the classes' colours."""
        panels: dict[str, object] = {}
        for name, split in self.splits.items():
            readable = [index for index, item in enumerate(split.items) if not item.error]
            picked = np.linspace(0, len(readable) - 1, min(pictures, len(readable))).round().astype(int)
            for index in (readable[i] for i in picked):
                image, label = split.dataset[index]
                title = f"{name} {split.items[index].id}"
                panels[title] = image
                panels[f"{title}, labels"] = plots.overlay(image, label, split.dataset.palette)
        dataset = next(iter(self.splits.values())).dataset
        patches = [
            Patch(facecolor=tuple(np.divide(colour, 255).tolist()), edgecolor="0.4", label=name)
            for name, colour in zip(dataset.classes, dataset.palette, strict=True)
        ]
        figure = plots.show(panels, columns=4, width=12) if panels else Figure()
        figure.legend(handles=patches, ncols=8, loc="upper center", bbox_to_anchor=(0.5, 0), frameon=False, fontsize=9)
        return figure


def check(name: str, root: str | os.PathLike[str] | None = None) -> Report:
    """Read every file of every split of a dataset that is there.

    Args:
        name: a dataset's name, or the path of a folder: `Folder`'s layouts, VOC's, CamVid's or Cityscapes'.
        root: where the files of a named dataset lie.

    Raises:
        InputError: neither a name nor a folder; no split is there; or what stops a dataset from being loaded at all,
            such as a missing mask or one picture in two lists.
    """
    if name not in data.names():
        root, name = name, recognise(name)
    splits = {}
    for split in find_splits(name, root):
        dataset = open_split(name, split, root)
        with ThreadPoolExecutor() as pool:  # decoding leaves the interpreter's lock
            results = pool.map(lambda index, dataset=dataset: look(dataset, index), range(len(dataset)))
            splits[split] = Split(dataset, list(tqdm(results, split, len(dataset), leave=False, unit="image")))
    if not splits:
        raise InputError(f"no split of {name} was found in {root or data.files.data_root()}: see `seglearn data list`.")
    problems = [sentence for split in splits.values() for sentence in problems_of(split)]
    return Report(splits, problems + leaks(splits), list(notes_of(name, splits)))


def recognise(path: str) -> str:
    """The name of the dataset in a folder, by what lies in it.

    Raises:
        InputError: the folder is not there.
    """
    if not Path(path).is_dir():
        raise InputError(
            f"{path!r} is neither a folder nor a dataset: give a path, or one of {', '.join(data.names())}."
        )
    return next((name for marker, name in MARKERS.items() if (Path(path) / marker).exists()), "folder")


def find_splits(name: str, root: str | os.PathLike[str] | None) -> list[str]:
    """The splits of a dataset that are there."""
    if name == "scenes":
        return ["train", "val", "test"]
    if name == "camvid":
        return [split for split in camvid.SPLITS if camvid.is_present(camvid.folder_of(root), split)]
    if name == "cityscapes":
        return data.Cityscapes.splits(root)
    if name == "pets":
        return list(pets.SPLITS)
    if name == "folder":
        return data.Folder.splits(root)
    return data.VOC2012.splits(root)


def open_split(name: str, split: str, root: str | os.PathLike[str] | None) -> SegmentationDataset:
    """Load a split without looking into its masks: that is done for all of them here."""
    if name == "scenes":
        return data.StreetScenes(split)
    if name == "camvid":
        return data.CamVid(split, root, download=False, preflight=False)
    if name == "folder":
        return data.Folder(root, split, preflight=False)
    if name == "cityscapes":
        return data.Cityscapes(split, root, preflight=False)
    if name == "pets":
        return data.OxfordPets(split, root, preflight=False)
    return data.VOC2012(split, root, preflight=False)


def look(dataset: SegmentationDataset, index: int) -> Item:
    """Read one item and keep what the page needs of it."""
    try:
        image, label = dataset[index]
    except InputError as error:
        return Item(dataset.ids[index], str(error))
    digest = hashlib.blake2b(image.numpy().tobytes(), digest_size=16).digest()
    return Item(dataset.ids[index], "", (image.shape[1], image.shape[2]), count_labels(label), digest)


def problems_of(split: Split) -> Iterator[str]:
    """Items that cannot be read, and what a dataset refuses in all its labels together."""
    yield from (item.error for item in split.items if item.error)
    if isinstance(split.dataset, FileDataset):
        try:
            split.dataset.check_counts(split.pixels)
        except InputError as error:
            yield str(error)


def leaks(splits: dict[str, Split]) -> list[str]:
    """Pictures whose content is in two splits."""
    places = defaultdict(list)
    for name, split in splits.items():
        for item in split.items:
            if not item.error:
                places[item.digest, item.size].append((name, item.id))
    return [
        f"the same picture is in {' and '.join(f'{split} ({id})' for split, id in found)}: a score on one would be "
        "of a picture seen in the other, so keep it in one."
        for found in places.values()
        if len({split for split, _ in found}) > 1
    ]


def notes_of(name: str, splits: dict[str, Split]) -> Iterator[str]:
    """What is no error but should be known."""
    first = next(iter(splits))
    for split_name, split in splits.items():
        expected = EXPECTED.get(name, {}).get(split_name, len(split.items))
        if len(split.items) != expected:
            yield f"{split_name} has {len(split.items)} images, the original {expected}."
        if split.void_share > 0.5:
            yield f"{split_name} is void for {split.void_share:.0%}: is a class missing from the list?"
        empty = [item.id for item in split.items if item.pixels is not None and is_void(item.pixels, split.dataset)]
        if empty:
            yield f"{split_name} has {len(empty)} pictures without a labelled pixel, such as {empty[0]}."
        again = Counter((item.digest, item.size) for item in split.items if not item.error)
        copies = again.total() - len(again)
        if copies:
            yield f"{split_name} holds pictures twice, {copies} in all."
        absent = [n for n, count in zip(split.dataset.classes, split.images.tolist(), strict=False) if count == 0]
        if absent:
            yield f"{split_name} never shows {', '.join(absent)}" + (
                ": no network can learn it." if split_name == first else ", so its mIoU is a mean of fewer classes."
            )


def is_void(pixels: Tensor, dataset: SegmentationDataset) -> bool:
    """True when no pixel is of a class."""
    return int(pixels[: dataset.num_classes].sum()) == 0
