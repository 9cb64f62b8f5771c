"""Datasets: each item is `(image uint8 [3, H, W], label uint8 [H, W])`.

A dataset declares its `name`, `split`, `classes`, `palette`, `num_classes`, `ids`, and one `ignore_index` that
transform, loss and metric all take from it.
"""

from __future__ import annotations

import difflib
import os
from typing import Protocol

from torch import Tensor

from seglearn.data.camvid import CamVid
from seglearn.data.scenes import StreetScenes
from seglearn.errors import InputError

DATASETS = {"camvid": CamVid, "scenes": StreetScenes}


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
    return StreetScenes(split) if name == "scenes" else CamVid(split, root)


__all__ = ["CamVid", "SegmentationDataset", "StreetScenes", "create", "names"]
