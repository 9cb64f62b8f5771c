"""How fast StreetScenes draws: images per second of processor time, on one core.

python benchmarks/scenes.py [images]
"""

from __future__ import annotations

import sys
import time

import torch

from seglearn.data.scenes import StreetScenes


def images_per_second(size: tuple[int, int], images: int) -> float:
    """Rate of `images` scenes at this size: the best of five rounds, the textures that are made once not counted."""
    dataset = StreetScenes("train", size, images)
    dataset[0]
    seconds = []
    for _ in range(5):
        start = time.process_time()
        for index in range(images):
            dataset[index]
        seconds.append(time.process_time() - start)
    return images / min(seconds)


if __name__ == "__main__":
    torch.set_num_threads(1)
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 50
    for height, width in ((90, 120), (180, 240), (360, 480)):
        print(f"{height} x {width}: {images_per_second((height, width), count):.0f} images per second")
