"""The fully connected CRF: every pixel talks to every other (Krähenbühl & Koltun 2011, arXiv 1210.5644).

A network's scores are smooth where the image has edges. The CRF pays for each pair of pixels with different labels,
more the nearer they are (smoothness), and more the nearer they are in position and colour (appearance), so that labels
come to change where colours do. Mean field finds marginals that belong together: each pixel sums up what all others
believe, weighted by nearness, adds it to its own evidence, takes a softmax; all pixels at once, again and again. The
sums over all pairs are two Gaussian filters (`seglearn.crf.lattice`), which makes ten rounds a matter of a second.

Chapter: book/ideas/crf.

Differs from the paper:
    - a pixel's message to itself is part of the sums, as in its authors' code and pydensecrf, whose marginals these
      equal. `exact_crf` can leave it out, as the paper's formula does;
    - the kernels are normalised symmetrically by default, as in pydensecrf; the paper divides after filtering.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from seglearn.crf.inputs import APPEARANCE, SMOOTHNESS, Setting, check, check_image, settings
from seglearn.crf.lattice import Lattice, Normalization, weighted_sums
from seglearn.errors import InputError

CLIP = 1e-5  # pydensecrf's `unary_from_softmax`


def dense_crf(
    probabilities: Tensor,
    image: Tensor,
    iterations: int = 10,
    smoothness: Setting | None = SMOOTHNESS,
    appearance: Setting | None = APPEARANCE,
    normalization: Normalization = "symmetric",
    clip: float = CLIP,
    history: bool = False,
) -> Tensor:
    """Marginals of the fully connected CRF, with pydensecrf's names and meanings of all settings.

    Args:
        probabilities: [C, H, W], or [B, C, H, W] for several images: after softmax, in any floating type.
        image: uint8 [3, H, W], RGB as datasets give it; or [B, 3, H, W]. One image may serve a batch of probabilities.
        iterations: rounds of mean field.
        smoothness: `sxy`, the standard deviation in pixels, one or (x, y); and `compat`, see below. None leaves the
            kernel out; what a setting does not name keeps its default.
        appearance: the same, and `srgb`, the standard deviation in grey values from 0 to 255, one or (r, g, b).
        normalization: of both kernels, see `Lattice`. Weights mean something only together with it.
        clip: probabilities below count as this much, so that no class is ruled out.
        history: return the marginals before the first and after every iteration.

    `compat` is a number w for Potts: different labels cost w. A matrix [C, C] is the cost of each pair of labels, of
    which the symmetric part counts. A vector [C] is the cost of two pixels' *agreeing* on a label, for which -w is
    Potts again: pydensecrf's meaning, and a trap.

    Returns float32 (float64 if that came in) of the shape of `probabilities`, classes last in memory; with `history`
    [iterations + 1, ...].

    Raises:
        InputError: an argument that does not fit, with what to do about it.
    """
    for name, value in (("probabilities", probabilities), ("image", image)):
        if not isinstance(value, Tensor):
            raise InputError(f"{name} is a {type(value).__module__} array: give torch.from_numpy({name}).")
    images = image if image.ndim == 4 else image[None]
    batch = probabilities if probabilities.ndim == 4 else probabilities[None]
    if len(images) not in (1, len(batch)):
        raise InputError(f"There are {len(batch)} maps of probabilities and {len(images)} images: give one image each.")
    check(batch, images)
    crf: DenseCRF | None = None
    results = []
    for index, single in enumerate(batch):
        if crf is None or len(images) > 1:
            dtype = torch.promote_types(probabilities.dtype, torch.float32)
            crf = DenseCRF(images[index], smoothness, appearance, normalization, dtype)
        results.append(crf(single, iterations, clip, history))
    return torch.stack(results, dim=-4) if probabilities.ndim == 4 else results[0]


class DenseCRF:
    """A CRF made for one image, for use with several maps of probabilities: its lattices are built once.

    Arguments and errors are those of `dense_crf`. Lattices over positions alone are kept from image to image.

    Attributes:
        costs: `compat` of each kernel, which may be changed between calls without building anything anew.
    """

    def __init__(
        self,
        image: Tensor,
        smoothness: Setting | None = SMOOTHNESS,
        appearance: Setting | None = APPEARANCE,
        normalization: Normalization = "symmetric",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        check_image(image[None])
        self.image, self.dtype = image, dtype
        kernels = settings(smoothness, appearance)
        self.costs = [cost for _, _, cost in kernels]
        height, width = image.shape[1:]
        self.lattices = [
            position_lattice(height, width, sxy, normalization, dtype, image.device)
            if srgb is None
            else Lattice(pixel_features(image, sxy, srgb, dtype), normalization)
            for sxy, srgb, _ in kernels
        ]
        tables = [lattice.slice_table for lattice in self.lattices]
        starts = [sum(lattice.size + 1 for lattice in self.lattices[:index]) for index in range(len(kernels))]
        self._joint = (  # a pixel's corners in all lattices, as if they were one
            torch.cat([corners + start for (corners, _), start in zip(tables, starts, strict=True)], dim=1),
            torch.cat([weights for _, weights in tables], dim=1),
        )

    @torch.no_grad()
    def __call__(
        self, probabilities: Tensor, iterations: int = 10, clip: float = CLIP, history: bool = False
    ) -> Tensor:
        """Marginals `[C, H, W]`, or `[iterations + 1, C, H, W]` with `history`."""
        check(probabilities[None], self.image[None])
        unary = log_probabilities(probabilities.to(self.dtype), clip)
        return _as_map(mean_field(unary, self._messages(unary), iterations, history), probabilities)

    def _messages(self, unary: Tensor) -> Callable[[Tensor], Tensor]:
        """All kernels at once. Costs are applied to lattice points, of which there are fewer than pixels."""
        costs = [compatibility(cost, unary) for cost in self.costs]
        corners, weights = self._joint

        def messages(q: Tensor) -> Tensor:
            points = [
                agreement(lattice.blur(lattice.splat(q)), cost)  # [M + 1, C]
                for lattice, cost in zip(self.lattices, costs, strict=True)
            ]
            return weighted_sums(torch.cat(points), corners, weights)  # [N, C]

        return messages


def exact_crf(
    probabilities: Tensor,
    image: Tensor,
    iterations: int = 10,
    smoothness: Setting | None = SMOOTHNESS,
    appearance: Setting | None = APPEARANCE,
    normalization: Normalization = "symmetric",
    clip: float = CLIP,
    history: bool = False,
    self_message: bool = True,
) -> Tensor:
    """What `dense_crf` approximates, computed over all pairs in float64: for images of up to some 2000 pixels.

    Args:
        self_message: False leaves out what a pixel tells itself, as in the paper's formula.
    """
    check(probabilities[None], image[None])
    if image[0].numel() > 10_000:
        raise InputError(f"image has {image[0].numel()} pixels: all pairs of more than 10000 do not fit into memory.")
    kernels = settings(smoothness, appearance)
    terms = []
    for sxy, srgb, cost in kernels:
        features = pixel_features(image, sxy, srgb, torch.float64)
        kernel = torch.cdist(features, features).square().div(-2).exp()  # [H W, H W]
        if not self_message:
            kernel.fill_diagonal_(0)
        ones = kernel.sum(1, keepdim=True) + 1e-20
        if normalization == "symmetric":
            kernel = kernel / (ones.sqrt() * ones.sqrt().t())
        elif normalization != "none":
            kernel = kernel / (ones if normalization == "after" else ones.t())
        terms.append((kernel, cost))
    unary = log_probabilities(probabilities.double(), clip)  # [H W, C]
    costs = [compatibility(cost, unary) for _, cost in terms]

    def messages(q: Tensor) -> Tensor:
        return torch.stack([agreement(k @ q, cost) for (k, _), cost in zip(terms, costs, strict=True)]).sum(0)

    return _as_map(mean_field(unary, messages, iterations, history), probabilities)


def mean_field(unary: Tensor, messages: Callable[[Tensor], Tensor], iterations: int, history: bool) -> Tensor:
    """Softmax of evidence plus messages, `iterations` times: `[N, C] -> [N, C]`, or all steps `[iterations + 1, N, C]`.

    Args:
        unary: log of the probabilities, up to a constant.
        messages: what all pixels tell each one, `[N, C] -> [N, C]`, in memory that may be written to.
    """
    if iterations < 0:
        raise InputError(f"iterations is {iterations}: give 0 or more.")
    steps = [softmax_(unary.clone())]
    for _ in range(iterations):
        energy = messages(steps[-1]).add_(unary)
        steps = [*(steps if history else []), softmax_(energy)]
    return torch.stack(steps) if history else steps[-1]


def softmax_(energy: Tensor) -> Tensor:
    """Over the last dimension, in memory that may be the energy's.

    PyTorch's own is fast where a row fills a vector register, and for fewer classes several times as slow as this.
    """
    if energy.shape[-1] >= 16:
        return energy.softmax(-1)
    energy.sub_(energy.amax(-1, keepdim=True)).exp_()
    return energy.div_(energy.sum(-1, keepdim=True))


def agreement(filtered: Tensor, cost: float | Tensor) -> Tensor:
    """What filtered beliefs `[N, C]` add to the energy; `cost` comes from `compatibility`."""
    return filtered.mul_(cost) if isinstance(cost, float) else filtered @ cost


def compatibility(cost: object, like: Tensor) -> float | Tensor:
    """`compat` as a factor on what agrees: a number for Potts, else a symmetric matrix [C, C] of negative costs."""
    if isinstance(cost, int | float):
        return float(cost)  # w (1 - q) is w - w q, and the softmax does not see the first w
    matrix = torch.as_tensor(cost, dtype=like.dtype, device=like.device)
    classes = like.shape[1]
    if matrix.shape == (classes,):
        matrix = matrix.diag()
    if matrix.shape != (classes, classes):
        raise InputError(
            f"compat has shape {list(matrix.shape)}: give a number, [{classes}] or [{classes}, {classes}]."
        )
    return -(matrix + matrix.t()) / 2


def pixel_features(image: Tensor, sxy: tuple[float, ...], srgb: tuple[float, ...] | None, dtype: torch.dtype) -> Tensor:
    """`[3, H, W] -> [H W, 5]`: x, y, red, green, blue, divided by their standard deviations; x and y without `srgb`."""
    height, width = image.shape[-2:]
    y, x = (torch.arange(side, device=image.device, dtype=dtype) for side in (height, width))
    features = [(x / sxy[0]).expand(height, width), (y / sxy[1])[:, None].expand(height, width)]
    if srgb is not None:
        features += [channel.to(dtype) / deviation for channel, deviation in zip(image, srgb, strict=True)]
    return torch.stack(features, dim=-1).flatten(0, 1)


@lru_cache(maxsize=4)
def position_lattice(
    height: int,
    width: int,
    sxy: tuple[float, ...],
    normalization: Normalization,
    dtype: torch.dtype,
    device: torch.device,
) -> Lattice:
    """The lattice over positions, the same for all images of a size."""
    empty = torch.empty(0, height, width, device=device)
    return Lattice(pixel_features(empty, sxy, None, dtype), normalization)


def log_probabilities(probabilities: Tensor, clip: float) -> Tensor:
    """`[C, H, W] -> [H W, C]`, a pixel's classes together in memory, which the filters want."""
    return probabilities.clamp(min=clip).log().flatten(1).t().contiguous()


def _as_map(marginals: Tensor, probabilities: Tensor) -> Tensor:
    return marginals.transpose(-1, -2).unflatten(-1, probabilities.shape[-2:])  # [..., C, H, W]
