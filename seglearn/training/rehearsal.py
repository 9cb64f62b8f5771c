"""`seglearn train RECIPE --dry-run`: all that a run does once, small, and what the whole would take.

Whoever rents a GPU for days wants to know first that the recipe, the data and the weights fit together.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from seglearn import data, losses, models
from seglearn.data.transforms import normalize
from seglearn.training.device import choose_memory_format, start_fabric
from seglearn.training.loop import build_net, check_batch, make_optimizer, set_rate
from seglearn.training.modes import freeze, start_training
from seglearn.training.recipe import Recipe
from seglearn.training.samples import Augmented

STEPS, IMAGES, SHRINK, SMALLEST = 2, 2, 4, 32


@dataclass(frozen=True)
class Rehearsal:
    """What a dry run found.

    Attributes:
        parameters, trainable: of the model.
        images: in the training split.
        steps: of the whole run.
        losses: of the steps that were made.
        flops: of a training step at full size, multiplications and additions.
        memory: bytes that the backward pass needs of one image at the recipe's crop, in float32, without weights.
        weights: bytes of weights, gradients and the optimiser's state.
        seconds: of the whole run on this device, at the speed of these steps.
        lines: what was found and loaded, in words.
    """

    parameters: int
    trainable: int
    images: int
    steps: int
    losses: list[float]
    flops: int
    memory: int
    weights: int
    seconds: float
    lines: list[str]

    def page(self) -> str:
        """What to print."""
        made = ", ".join(f"{loss:.3f}" for loss in self.losses)
        return "\n".join(
            [
                *self.lines,
                f"{self.parameters:,} parameters, {self.trainable:,} of them learn",
                f"{self.steps:,} steps over {self.images:,} images; {self.flops / 1e9:,.0f} GFLOP a step",
                f"memory: {self.weights / 2**30:.2f} GiB for weights, gradients and optimiser, and for each image "
                f"{self.memory / 2**30:.2f} GiB in float32, about half of that in 16 bits",
                f"losses of the {len(self.losses)} steps made: {made}",
                f"this device would take at most about {duration(self.seconds)}, at the speed of these small steps, "
                "which use it less well than full ones; evaluation comes on top",
            ]
        )


def rehearse(recipe: Recipe) -> Rehearsal:
    """Resolve a recipe, build model, data and optimiser, and make two steps with few, small crops on this device.

    Raises:
        InputError: whatever `train` would refuse before its first step.
    """
    recipe.check()
    fabric = start_fabric(recipe.precision)
    train_set = data.create(recipe.data, recipe.split, recipe.root)
    val_set = data.create(recipe.data, "val", recipe.root)
    check_batch(recipe, len(train_set), fabric.world_size)
    steps = recipe.epochs * (len(train_set) // recipe.batch_size)
    found = f"{train_set.name}: {len(train_set):,} images of {train_set.split}, {len(val_set):,} of val"

    net, loaded = build_net(recipe, train_set.num_classes, fabric.world_size)
    memory_format = choose_memory_format()
    net = net.to(fabric.device).to(memory_format=memory_format)
    optimizer = make_optimizer(net, recipe)
    criterion = losses.create(recipe.loss, train_set.ignore_index)

    height, width = (max(SMALLEST, side // SHRINK) for side in recipe.crop)
    small = replace(recipe, crop=(height, width))
    samples = Augmented(train_set, small.augment(train_set.ignore_index), recipe.seed)
    made, seconds, batch = [], [], min(IMAGES, recipe.batch_size)
    for step in range(STEPS):
        items = [samples[step, index % len(train_set)] for index in range(step * batch, (step + 1) * batch)]
        images, labels = (torch.stack(part).to(fabric.device) for part in zip(*items, strict=True))
        images = normalize(images).contiguous(memory_format=memory_format)
        set_rate(optimizer, recipe, step, max(steps, STEPS))
        started = time.monotonic()
        with fabric.autocast():
            loss = net.loss(images, labels, criterion)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        made.append(loss.item())  # waits for the device
        seconds.append(time.monotonic() - started)
    learning = [parameter for parameter in net.parameters() if parameter.requires_grad]
    state = sum(
        value.nbytes for values in optimizer.state.values() for value in values.values() if torch.is_tensor(value)
    )
    per_image, memory = cost(recipe, recipe.crop, train_set.num_classes, train_set.ignore_index)
    per_small_image, _ = cost(recipe, small.crop, train_set.num_classes, train_set.ignore_index)
    flops = per_image * recipe.batch_size
    return Rehearsal(
        parameters=sum(parameter.numel() for parameter in net.parameters()),
        trainable=sum(parameter.numel() for parameter in learning),
        images=len(train_set),
        steps=steps,
        losses=made,
        flops=flops,
        memory=memory,
        weights=sum(p.nbytes for p in net.parameters()) + sum(p.nbytes for p in learning) + state,
        seconds=steps * seconds[-1] * flops / (per_small_image * batch),  # the first step sets things up
        lines=[found, *loaded],
    )


def cost(recipe: Recipe, crop: tuple[int, ...], classes: int, ignore_index: int) -> tuple[int, int]:
    """FLOPs of a training step and bytes kept for its backward pass, both per image, without computing if possible."""
    try:
        with torch.device("meta"):  # shapes alone are worked out
            return _cost(recipe, crop, classes, ignore_index)
    except NotImplementedError:  # the patch classifier's shapes depend on what the labels are; it is small
        return _cost(recipe, crop, classes, ignore_index)


def _cost(recipe: Recipe, crop: tuple[int, ...], classes: int, ignore_index: int) -> tuple[int, int]:
    kept: dict[int, torch.UntypedStorage] = {}  # by id, which is one's own as long as the storage is held here

    def note(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
        return tensor

    def criterion(logits: Tensor, label: Tensor) -> Tensor:
        return nn.functional.cross_entropy(logits.float(), label.long(), ignore_index=ignore_index)

    net = models.create(recipe.model, classes, recipe.size, **recipe.options)
    freeze(net, recipe.freeze, recipe.freeze_norms)
    start_training(net)
    images, labels = torch.zeros(IMAGES, 3, *crop), torch.zeros(IMAGES, *crop, dtype=torch.long)  # norms refuse one
    with FlopCounterMode(display=False) as counter:
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            loss = net.loss(images, labels, criterion)
        loss.backward()
    return counter.get_total_flops() // IMAGES, sum(storage.nbytes() for storage in kept.values()) // IMAGES


def duration(seconds: float) -> str:
    """In the unit that a person would use."""
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} seconds"
