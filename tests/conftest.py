"""What several test files share: a small CamVid in SegNet's layout, and few threads."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from seglearn.data.camvid import IGNORE_INDEX, PALETTE

torch.set_num_threads(1)  # tests are small, and threads that wait for each other cost more than they gain


def write_camvid(root: Path, train: int = 12, val: int = 5, size: tuple[int, int] = (48, 64), seed: int = 0) -> Path:
    """Pictures whose colours are their labels' plus noise, so that a network can learn them; a strip of void."""
    rng = np.random.default_rng(seed)
    folder = root / "CamVid"
    for split, images in (("train", train), ("val", val)):
        lines = []
        for part in (split, f"{split}annot"):
            (folder / part).mkdir(parents=True)
        for index in range(images):
            name = f"{split}_{index:03}.png"
            cells = rng.integers(0, len(PALETTE), (3, 4))
            label = np.kron(cells, np.ones((size[0] // 3, size[1] // 4), int)).astype(np.uint8)
            label = np.pad(label, ((0, size[0] - label.shape[0]), (0, size[1] - label.shape[1])), mode="edge")
            image = np.array(PALETTE)[label] + rng.normal(0, 20, (*label.shape, 3))
            label[:2] = IGNORE_INDEX
            Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / split / name)
            Image.fromarray(label).save(folder / f"{split}annot" / name)
            lines.append(f"/SegNet/CamVid/{split}/{name} /SegNet/CamVid/{split}annot/{name}")
        (folder / f"{split}.txt").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture
def camvid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a small CamVid, named by SEGLEARN_DATA."""
    root = write_camvid(tmp_path / "data")
    monkeypatch.setenv("SEGLEARN_DATA", str(root))
    return root / "CamVid"
