"""Which samples a step sees, as a pure function of seed and step: that is what makes a run resumable bit for bit."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from seglearn.data import SegmentationDataset
from seglearn.data.transforms import Augment

Position = tuple[int, int]  # epoch, index of the image


class Batches(Sampler[list[Position]]):
    """The batches of a whole run, from any step on: each a list of (epoch, index).

    Every epoch visits the images in a new random order and drops its last, smaller batch. Several processes take
    interleaved parts of every batch, so that together they see what one would.
    """

    def __init__(
        self,
        images: int,
        batch_size: int,
        steps: int,
        seed: int,
        first: int = 0,
        rank: int = 0,
        processes: int = 1,
    ):
        self.images, self.batch_size, self.steps, self.seed = images, batch_size, steps, seed
        self.first, self.rank, self.processes = first, rank, processes

    def __len__(self) -> int:
        return self.steps - self.first

    def __iter__(self) -> Iterator[list[Position]]:
        per_epoch = self.images // self.batch_size
        order: list[int] = []
        for step in range(self.first, self.steps):
            epoch, batch = divmod(step, per_epoch)
            if batch == 0 or not order:
                order = torch.randperm(self.images, generator=generator(self.seed, epoch)).tolist()
            picked = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            yield [(epoch, index) for index in picked[self.rank :: self.processes]]


class Augmented(Dataset[tuple[Tensor, Tensor]]):
    """A dataset whose items are augmented by a random stream that belongs to (seed, epoch, index) alone."""

    def __init__(self, dataset: SegmentationDataset, augment: Augment, seed: int):
        self.dataset, self.augment, self.seed = dataset, augment, seed

    def __getitem__(self, position: Position) -> tuple[Tensor, Tensor]:
        epoch, index = position
        image, label = self.dataset[index]
        return self.augment(image, label, generator(self.seed, epoch, index))


class InMemory:
    """A dataset decoded once and kept as uint8; larger ones than `limit` bytes are read anew each time."""

    def __init__(self, dataset: SegmentationDataset, limit: int = 2 << 30):
        self.dataset = dataset
        image, label = dataset[0]
        small = len(dataset) * (image.nbytes + label.nbytes) <= limit
        self.items = [dataset[index] for index in range(len(dataset))] if small else None

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.dataset[index] if self.items is None else self.items[index]

    def __getattr__(self, name: str):  # type: ignore[no-untyped-def]
        """Everything else (classes, ignore index …) is the dataset's."""
        return getattr(self.dataset, name)


def generator(*key: int) -> torch.Generator:
    """A random stream of its own for every key, such as (seed, epoch, index)."""
    state = np.random.SeedSequence(key).generate_state(1, np.uint64)  # neighbouring keys get unrelated states
    return torch.Generator().manual_seed(int(state[0] >> 1))
