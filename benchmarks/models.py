"""What our models cost, beside models of the same structure in torchvision and segmentation_models_pytorch.

For each pair: parameters, floating-point operations, peak memory of a training step, seconds of a forward pass and of
a training step, and how many times as long as theirs ours takes. Structures are the same, so that parameters and
operations have to agree; the script says where they do not. One thread, 192x256 pixels.

Run: python benchmarks/models.py [name ...]     (Linux, with segmentation-models-pytorch)
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from timing import paired, ratio
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from seglearn import models
from seglearn.models.deeplab_v3 import DeepLabV3

CLASSES, SIZE, BATCH, ROUNDS, LIMIT = 21, (192, 256), 2, 10, 1.05


def criterion(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy."""
    return F.cross_entropy(logits.float(), labels)


def our_loss(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Where the model takes it."""
    loss: Tensor = model.loss(images, labels, criterion)  # type: ignore[operator]
    return loss


def torchvision_loss(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """On the logits, plus half of that on the auxiliary ones, as in torchvision's reference script."""
    result = model(images)
    loss = criterion(result["out"], labels)
    return loss + 0.5 * criterion(result["aux"], labels) if "aux" in result else loss


def smp_loss(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """On the logits."""
    return criterion(model(images), labels)


def smp_deeplab() -> nn.Module:
    """DeepLab v3 of segmentation_models_pytorch."""
    import segmentation_models_pytorch

    model: nn.Module = segmentation_models_pytorch.DeepLabV3("resnet50", encoder_weights=None, classes=CLASSES)
    return model


@dataclass(frozen=True)
class Contender:
    """A model, and how to take its loss."""

    make: Callable[[], nn.Module]
    loss: Callable[[nn.Module, Tensor, Tensor], Tensor]


def our_deeplab() -> nn.Module:
    """Our DeepLab v3 in torchvision's layout."""
    return DeepLabV3(CLASSES, 50, "torchvision", multi_grid=None, output_stride=8)


def ours(name: str, **options: Any) -> Contender:
    """One of our models."""
    return Contender(partial(models.create, name, CLASSES, "paper", **options), our_loss)


def torchvisions(name: str, aux: bool) -> Contender:
    """One of torchvision's models."""
    build = getattr(torchvision.models.segmentation, name)
    return Contender(
        partial(build, weights=None, weights_backbone=None, num_classes=CLASSES, aux_loss=aux), torchvision_loss
    )


PAIRS: dict[str, tuple[Contender, Contender]] = {
    "fcn_resnet, torchvision": (ours("fcn_resnet", depth=50), torchvisions("fcn_resnet50", aux=True)),
    "deeplab_v3, torchvision": (Contender(our_deeplab, our_loss), torchvisions("deeplabv3_resnet50", aux=False)),
    "deeplab_v3, smp": (Contender(our_deeplab, our_loss), Contender(smp_deeplab, smp_loss)),
}
MODES = {"float32": torch.float32, "bfloat16, channels_last": torch.bfloat16}


def batch() -> tuple[Tensor, Tensor]:
    """Random images and labels."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(BATCH, 3, *SIZE, generator=generator)
    return images, torch.randint(0, CLASSES, (BATCH, *SIZE), generator=generator)


def gigaflops(contender: Contender) -> float:
    """Billions of multiplications and additions of a forward pass of one image."""
    with torch.device("meta"):
        model, images = contender.make().eval(), torch.empty(1, 3, *SIZE)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(images)
    return counter.get_total_flops() / 1e9


def peak_memory(pair: str, index: int) -> float:
    """MiB by which the resident memory of a fresh process grows over a training step."""
    command = [sys.executable, __file__, "--memory", pair, str(index)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def growth(contender: Contender) -> float:
    """The same, in this process."""
    model = contender.make()
    images, labels = batch()
    before = most_memory()
    contender.loss(model, images, labels).backward()
    return most_memory() - before


def most_memory() -> float:
    """MiB of the largest resident set of this process so far; `getrusage` would start from the parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def compare(pair: str) -> bool:
    """Print one pair's rows; whether ours is fast enough in each."""
    both = PAIRS[pair]
    print(f"\n{pair}{'ours':>{44 - len(pair)}}{'theirs':>10}{'ratio':>8}")

    def row(what: str, our: float, their: float, times: float | None = None) -> float:
        times = our / their if times is None else times
        print(f"  {what:<34}{our:>8.4g}{their:>10.4g}{times:>8.3f}")
        return times

    with torch.device("meta"):
        row("parameters (M)", *(sum(p.numel() for p in c.make().parameters()) / 1e6 for c in both))
    row("forward pass, one image (GFLOP)", *(gigaflops(contender) for contender in both))
    row("training step, peak memory (MiB)", *(peak_memory(pair, index) for index in (0, 1)))

    images, labels = batch()
    fast = True
    for mode, dtype in MODES.items():
        layout = torch.channels_last if dtype == torch.bfloat16 else torch.contiguous_format
        pixels = images.contiguous(memory_format=layout)
        nets = [contender.make().to(memory_format=layout) for contender in both]

        def forward(model: nn.Module, pixels: Tensor = pixels, dtype: torch.dtype = dtype) -> None:
            with torch.inference_mode(), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                model.eval()(pixels)

        def step(model: nn.Module, contender: Contender, pixels: Tensor = pixels, dtype: torch.dtype = dtype) -> None:
            model.train().zero_grad()
            with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                loss = contender.loss(model, pixels, labels)
            loss.backward()

        ways = {
            "forward": [partial(forward, net) for net in nets],
            "training step": [partial(step, net, contender) for net, contender in zip(nets, both, strict=True)],
        }
        for what, (our, their) in ways.items():
            our(), their()  # the first call sets things up
            seconds = paired({"ours": our, "theirs": their}, ROUNDS)
            times = ratio(seconds["ours"], seconds["theirs"])
            fast &= row(f"{what}, {mode} (s)", min(seconds["ours"]), min(seconds["theirs"]), times) <= LIMIT
    return fast


def main() -> None:
    """Compare all pairs, or those whose name contains one of the arguments."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if sys.argv[1:2] == ["--memory"]:
        print(growth(PAIRS[sys.argv[2]][int(sys.argv[3])]))
        return
    chosen = [pair for pair in PAIRS if not sys.argv[1:] or any(name in pair for name in sys.argv[1:])]
    print(f"{BATCH} images of {SIZE[0]}x{SIZE[1]}, one thread; times: median ratio of {ROUNDS} paired rounds")
    slow = [pair for pair in chosen if not compare(pair)]
    if slow:
        sys.exit(f"More than {LIMIT} times as long as theirs: {'; '.join(slow)}")


if __name__ == "__main__":
    main()
