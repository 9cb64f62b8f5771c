"""What several papers share: borders, grids, the optimiser's groups. No paper's idea lives here."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm, nn.GroupNorm)


def mirror(images: Tensor, top: int, bottom: int, left: int, right: int) -> Tensor:
    """Continue images beyond their borders by reflection, the border pixel itself not repeated.

    Torch's own reflection ends at one image's width; this one goes back and forth as often as it takes.

    `[N, C, H, W] -> [N, C, top + H + bottom, left + W + right]`.
    """
    rows = _reflected(images.shape[-2], top, bottom, images.device)
    columns = _reflected(images.shape[-1], left, right, images.device)
    return images.index_select(-2, rows).index_select(-1, columns)


def _reflected(length: int, before: int, after: int, device: torch.device) -> Tensor:
    """0 1 2 1 0 1 2 ... over `length` cells, starting `before` cells early and ending `after` cells late."""
    position = torch.arange(-before, length + after, device=device)
    turn = max(length - 1, 1)  # cells from one end to the other
    period = torch.full_like(position, 2 * turn)  # a tensor: ONNX knows no remainder by a number yet to come
    return (turn - (position.remainder(period) - turn).abs()).clamp(max=length - 1)


def pad_to_grid(images: Tensor, stride: int = 8) -> Tensor:
    """Zeros below and to the right, up to the next height and width of the form `stride * n + 1`.

    Nets of odd kernels centre cell i of a map of this stride on pixel `stride * i`. With such a size the first
    and the last cell lie on the first and the last pixel, and bilinear upsampling with `align_corners=True` puts
    every cell where it was seen. It is why crops are 321, 473 or 513 wide. A zero is the mean colour.
    """
    height, width = images.shape[-2:]
    return F.pad(images, (0, (1 - width) % stride, 0, (1 - height) % stride))


def upsample(x: Tensor, factor: int, size: Sequence[int]) -> Tensor:
    """Bilinear, with cell i of `x` on cell `factor * i` of the result: `[N, C, h, w] -> [N, C, *size]`.

    That is where the odd kernels of a ResNet centre it. Behind the last cell its value goes on, by less than a
    cell. `size` is that of the map that the ResNet has made `x` from, whose sides are at most `factor` times longer.
    """
    x = torch.cat([x, x[..., -1:, :]], dim=-2)  # [N, C, h + 1, w]
    x = torch.cat([x, x[..., -1:]], dim=-1)  # [N, C, h + 1, w + 1]
    height, width = (factor * (side - 1) + 1 for side in x.shape[-2:])
    x = F.interpolate(x, (height, width), mode="bilinear", align_corners=True)
    return x[..., : size[0], : size[1]]  # [N, C, *size]


def parameter_groups(factors: Mapping[nn.Module, float], bias_factor: float = 1.0) -> list[dict[str, Any]]:
    """The optimiser's groups: every trainable parameter of the given modules, once.

    Weights decay. Biases do not, and learn `bias_factor` times as fast (2 in the Caffe nets). Norms do neither.

    Args:
        factors: the factor on the learning rate of each module, such as `{self.backbone: 1.0, self.head: 10.0}`.
        bias_factor: a further factor for biases.

    Returns groups with the keys "params", "lr_factor" and "weight_decay_factor", empty ones left out.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for root, factor in factors.items():
        for module in root.modules():
            for name, parameter in module.named_parameters(recurse=False):
                if isinstance(module, NORMS):
                    key = (factor, 0.0)
                elif name == "bias":
                    key = (factor * bias_factor, 0.0)
                else:
                    key = (factor, 1.0)
                if parameter.requires_grad:
                    groups.setdefault(key, []).append(parameter)
    return [
        {"params": parameters, "lr_factor": lr, "weight_decay_factor": decay}
        for (lr, decay), parameters in groups.items()
    ]
