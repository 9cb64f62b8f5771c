"""Datasets: each item is `(image uint8 [3, H, W], label uint8 [H, W])`.

A dataset declares its `name`, `split`, `classes`, `palette`, `num_classes`, `ids`, and one `ignore_index` that
transform, loss and metric all take from it.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from seglearn.data.camvid import CamVid
from seglearn.data.cityscapes import Cityscapes
from seglearn.data.folder import Folder
from seglearn.data.pets import OxfordPets
from seglearn.data.scenes import StreetScenes
from seglearn.data.voc import VOC2012
from seglearn.errors import InputError

Root = str | os.PathLike[str] | None

# What a recipe calls a dataset, and how its split is built. voc2012aug is voc2012 with the larger training set.
DATASETS: dict[str, Callable[[str, Root], SegmentationDataset]] = {
    "camvid": CamVid,
    "cityscapes": Cityscapes,
    "folder": lambda split, root: Folder(root, split),
    "pets": OxfordPets,
    "scenes": lambda split, root: StreetScenes(split),
    "voc2012": VOC2012,
    "voc2012aug": lambda split, root: VOC2012("trainaug" if split == "train" else split, root),
}


class SegmentationDataset(Protocol):
    """What every dataset offers."""

    @property
    def name(self) -> str: ...

    @property
    def split(self) -> str: ...

    @property
    def classes(self) -> tuple[str, ...]: ...

    @property
    def palette(self) -> tuple[tuple[int, int, int], ...]: ...

    @property
    def num_classes(self) -> int: ...

    @property
    def ignore_index(self) -> int: ...

    @property
    def ids(self) -> list[str]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Tensor, Tensor]: ...


def names() -> list[str]:
    """Names that `create` knows."""
    return sorted(DATASETS)


def create(name: str, split: str = "train", root: str | os.PathLike[str] | None = None) -> SegmentationDataset:
    """Build one split of a dataset by its name; `root` is where its files lie (see the dataset's class).

    Raises:
        InputError: unknown name, or what the dataset itself refuses.
    """
    if name not in DATASETS:
        near = difflib.get_close_matches(name, DATASETS, 1, cutoff=0)[0]
        raise InputError(f"dataset {name!r} is unknown: did you mean {near!r}? Known are {', '.join(names())}.")
    return DATASETS[name](split, root)


__all__ = [
    "CamVid",
    "Cityscapes",
    "Folder",
    "OxfordPets",
    "SegmentationDataset",
    "StreetScenes",
    "VOC2012",
    "create",
    "names",
]
