"""What ten rounds of mean field cost beside pydensecrf's, and how far both are from the exact sums over all pairs.

A photograph of 360x480 pixels and a generated scene, 12 and 21 classes, whole calls from probabilities to marginals,
the two in turn. With one thread processor seconds count. Pydensecrf has one only, so with two it is seconds on the
clock, which mean something on an idle machine only: there the limit is not enforced.
"New image" builds everything, "next image" keeps the lattice over positions, "same image" keeps both.

Run: python benchmarks/crf.py     (Linux, with pydensecrf2)
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pydensecrf.densecrf
import skimage.data
import torch
from pydensecrf.utils import unary_from_softmax
from timing import paired, ratio
from torch import Tensor
from torch.nn.functional import interpolate

from seglearn.crf import DenseCRF, dense, dense_crf, exact_crf
from seglearn.data import StreetScenes

SIZE, ITERATIONS, ROUNDS, LIMIT = (360, 480), 10, 5, 1.0


def pictures() -> dict[str, Tensor]:
    """Two images of `SIZE`, uint8 [3, H, W]."""
    photograph = torch.from_numpy(skimage.data.astronaut()[60:420, :480].copy()).permute(2, 0, 1)
    return {"photograph": photograph, "generated scene": StreetScenes("val", size=SIZE, length=1)[0][0]}


def network_like(image: Tensor, classes: int) -> Tensor:
    """Probabilities [C, H, W] as smooth as those of a network of stride 8."""
    height, width = image.shape[-2:]
    rng = torch.Generator().manual_seed(0)
    scores = 3 * torch.randn(1, classes, height // 8, width // 8, generator=rng)
    return interpolate(scores, (height, width), mode="bilinear")[0].softmax(0)


def pydensecrf_way(probabilities: Tensor, image: Tensor, iterations: int = ITERATIONS) -> Tensor:
    """The same as `dense_crf` with its defaults, which are this library's."""
    classes, height, width = probabilities.shape
    crf = pydensecrf.densecrf.DenseCRF2D(width, height, classes)
    crf.setUnaryEnergy(np.ascontiguousarray(unary_from_softmax(probabilities.numpy())))
    crf.addPairwiseGaussian(sxy=3, compat=3)
    crf.addPairwiseBilateral(sxy=80, srgb=13, rgbim=np.ascontiguousarray(image.permute(1, 2, 0).numpy()), compat=10)
    return torch.from_numpy(np.array(crf.inference(iterations))).view(classes, height, width)


def fresh(probabilities: Tensor, image: Tensor) -> Tensor:
    """A first call: no lattice is kept from before."""
    dense.position_lattice.cache_clear()
    return dense_crf(probabilities, image, ITERATIONS)


def speed(threads: int) -> float:
    """Print times and return the worst ratio of a whole first call."""
    torch.set_num_threads(threads)
    clock = time.process_time if threads == 1 else time.perf_counter
    print(f"{threads} thread{'s' * (threads > 1)}, {'processor' if threads == 1 else 'clock'} time")
    worst = 0.0
    for name, image in pictures().items():
        crf = DenseCRF(image)
        points = " + ".join(str(lattice.size) for lattice in crf.lattices)
        for classes in (12, 21):
            probabilities = network_like(image, classes)
            ways: dict[str, Callable[[], Tensor]] = {
                "pydensecrf": partial(pydensecrf_way, probabilities, image),
                "new image": partial(fresh, probabilities, image),
                "next image": partial(dense_crf, probabilities, image, ITERATIONS),
                "same image": partial(crf, probabilities, ITERATIONS),
            }
            off = (ways["pydensecrf"]() - ways["new image"]()).abs().max().item()
            times = paired(ways, ROUNDS, clock)
            theirs = times.pop("pydensecrf")
            print(
                f"  {name}, {points} lattice points, {classes} classes: pydensecrf {1000 * min(theirs):.0f} ms;", end=""
            )
            for way, ours in times.items():
                print(f" {way} {1000 * min(ours):.0f} ms = {ratio(ours, theirs):.2f} times;", end="")
            print(f" marginals differ by {off:.1e} at most")
            worst = max(worst, ratio(times["new image"], theirs))
    return worst


def accuracy() -> None:
    """Marginals of both beside the exact ones, on 40x40 pixels."""
    print("error against exact sums over all pairs, 40x40 pixels, 12 classes: mean, largest, labels that agree")
    for name, image in pictures().items():
        image = image[:, 100:260:4, 120:280:4]
        probabilities = network_like(image, 12)
        for iterations in (1, ITERATIONS):
            for self_message in (True, False):
                exact = exact_crf(probabilities, image, iterations, self_message=self_message)
                kept = "kept" if self_message else "left out"
                print(f"  {name}, {iterations} iterations, self-message {kept}:", end="")
                for way, marginals in {
                    "seglearn": dense_crf(probabilities, image, iterations),
                    "pydensecrf": pydensecrf_way(probabilities, image, iterations),
                }.items():
                    error = (marginals - exact).abs()
                    agree = (marginals.argmax(0) == exact.argmax(0)).double().mean().item()
                    print(f" {way} {error.mean():.4f} {error.max():.3f} {agree:.4f};", end="")
                print()


def peak_memory(way: str) -> float:
    """MiB that one call adds to a process of its own."""
    code = (
        "import crf, torch; torch.set_num_threads(1);"
        "image = crf.pictures()['photograph']; p = crf.network_like(image, 21); small = image[:, :64, :64];"
        f"call = crf.{way}; call(crf.network_like(small, 21), small);"
        "status = lambda key: int(open('/proc/self/status').read().split(key + ':')[1].split()[0]);"
        "open('/proc/self/clear_refs', 'w').write('5'); before = status('VmRSS'); call(p, image);"  # 5: forget the peak
        "print((status('VmHWM') - before) / 1024)"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parent
    )
    return float(output.stdout)


def main() -> None:
    """Speed, memory, accuracy; fails above the limit."""
    worst = speed(1)
    speed(2)
    for way in ("fresh", "pydensecrf_way"):
        print(f"peak memory of a call with 21 classes, {way}: {peak_memory(way):.0f} MiB")
    accuracy()
    if worst > LIMIT:
        sys.exit(f"a first call takes {worst:.2f} times as long as pydensecrf's: the limit is {LIMIT}")


if __name__ == "__main__":
    main()
