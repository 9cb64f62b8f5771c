"""Cityscapes: street scenes of 50 cities, 1024x2048, 19 classes; and any tree laid out like it.

M. Cordts et al., "The Cityscapes Dataset for Semantic Urban Scene Understanding", CVPR 2016. To download it one signs
its terms at https://www.cityscapes-dataset.com: `leftImg8bit_trainvaltest.zip` and `gtFine_trainvaltest.zip`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor
from torchvision.datasets import Cityscapes as Torchvision

from seglearn.data.files import FileDataset, check_disjoint, data_root, first_with, read_mask, warn_of_size
from seglearn.errors import InputError

SPLITS = {"train": 2975, "val": 500}
SITE = "https://www.cityscapes-dataset.com"

TRAINED = sorted((entry for entry in Torchvision.classes if 0 <= entry.train_id < 19), key=lambda entry: entry.train_id)
# Pixels of the files: ids 0..33, of which 19 are trained on. 255 stands for the id -1, the licence plate.
TRAIN_IDS = {entry.id: entry.train_id for entry in Torchvision.classes if entry.id >= 0} | {255: 255}


class Cityscapes(FileDataset):
    """One split of Cityscapes, its fine masks.

    Args:
        split: `train` (2975 images) or `val` (500). The test split has no labels.
        root: the folder that holds `leftImg8bit/` and `gtFine/`, or `cityscapes/` with them. Default: the environment
            variable `SEGLEARN_DATA`, then a cache folder of this user.
        preflight: see `FileDataset`.

    Every `leftImg8bit/SPLIT/CITY/NAME_leftImg8bit.png` (or `.jpg`) is paired with `gtFine/SPLIT/CITY/
    NAME_gtFine_labelTrainIds.png` where that is there, else with `NAME_gtFine_labelIds.png`, whose 34 ids are mapped to
    the 19 train ids. An item is `(image uint8 [3, H, W], label uint8 [H, W])`, labels 0..18 and 255 for void.

    At load no picture may be in both splits. A tree of another size than the original is accepted, since other
    datasets come in this layout; `seglearn data check` says so.

    Raises:
        InputError: unknown split; split not found; and what `FileDataset` refuses.
    """

    name = "cityscapes"
    classes = tuple(entry.name for entry in TRAINED)
    palette = tuple(entry.color for entry in TRAINED)

    def __init__(self, split: str = "train", root: str | os.PathLike[str] | None = None, preflight: bool = True):
        if split not in SPLITS:
            raise InputError(
                f"split {split!r} of Cityscapes is unknown: choose one of {', '.join(SPLITS)}; test has no labels."
            )
        self.folder = folder_of(root)
        pairs = list_split(self.folder, split)
        if not pairs:
            raise InputError(
                f"Cityscapes' {split} split was not found in {self.folder} (no leftImg8bit/{split}/CITY/"
                f"*_leftImg8bit.png): unpack leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip of {SITE} there."
            )
        other = "val" if split == "train" else "train"
        names = {each: [image.name for image, _ in list_split(self.folder, each)] for each in (split, other)}
        check_disjoint(names)
        warn_of_size("Cityscapes", split, len(pairs), SPLITS[split])
        super().__init__(split, pairs, preflight)
        self.ids = [image.stem.removesuffix("_leftImg8bit") for image, _ in pairs]

    def read_label(self, path: Path) -> Tensor:
        """The train ids of one mask: uint8 [H, W]."""
        values: Mapping[int, int] | None = TRAIN_IDS if path.name.endswith("_labelIds.png") else None
        return read_mask(path, self.num_classes, self.ignore_index, values=values)

    @staticmethod
    def splits(root: str | os.PathLike[str] | None = None) -> list[str]:
        """The splits that are there."""
        return [split for split in SPLITS if list_split(folder_of(root), split)]


def folder_of(root: str | os.PathLike[str] | None) -> Path:
    """The folder with `leftImg8bit/` that `root`, else `SEGLEARN_DATA`, else this user's cache stands for."""
    base = data_root(root)
    return first_with("leftImg8bit", [base / "cityscapes", base / "Cityscapes", base])


def list_split(folder: Path, split: str) -> list[tuple[Path, Path]]:
    """Picture and mask of every frame, city by city."""
    pairs = []
    for image in sorted((folder / "leftImg8bit" / split).glob("*/*_leftImg8bit.*")):
        stem = image.name.rsplit("_leftImg8bit", 1)[0]
        masks = folder / "gtFine" / split / image.parent.name
        trained = masks / f"{stem}_gtFine_labelTrainIds.png"
        pairs.append((image, trained if trained.exists() else masks / f"{stem}_gtFine_labelIds.png"))
    return pairs
