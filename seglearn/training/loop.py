"""The training loop: one function to read, from a laptop's CPU to many GPUs.

A run's folder holds `recipe.yaml`, `log.csv`, `tensorboard/`, `last.pt` (to resume), `best.safetensors` (weights with
the highest val mIoU), `result.json` and `predictions.png`. Chapters: `book/basics/training`, `book/models/fcn`.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter
from tqdm.auto import tqdm

import seglearn
from seglearn import data, losses, models
from seglearn.data import SegmentationDataset
from seglearn.data.transforms import normalize
from seglearn.errors import InputError
from seglearn.inference import predict
from seglearn.metrics import Scores, scores
from seglearn.plots import sheet
from seglearn.training.checkpoint import (
    init_weights,
    load_state,
    load_weights,
    read_state_dict,
    save_state,
    save_weights,
    write_atomically,
)
from seglearn.training.device import choose_memory_format, describe_machine, evaluate_together, start_fabric
from seglearn.training.modes import (
    check_normalisation,
    freeze,
    recompute_batch_norm,
    start_training,
    synchronise_norms,
)
from seglearn.training.recipe import Recipe
from seglearn.training.samples import Augmented, Batches, InMemory, generator


def train(recipe: Recipe, folder: str | os.PathLike[str], resume: bool = False) -> dict[str, Any] | None:
    """Train as the recipe says; everything that comes out is written into `folder`.

    With `resume`, a run that was interrupted goes on from its `last.pt` and ends with exactly the weights that an
    undisturbed run would have. Ctrl-C finishes the step, saves and returns None.

    Returns the result, as in `result.json`.

    Raises:
        InputError: an unusable recipe, dataset, folder or checkpoint; a loss that is not finite.
    """
    recipe.check()
    folder = Path(folder)
    fabric = start_fabric(recipe.precision)
    if fabric.is_global_zero:
        prepare_folder(folder, recipe, resume)
    fabric.barrier()

    train_set: Any = InMemory(data.create(recipe.data, recipe.split, recipe.root))
    val_set: Any = InMemory(data.create(recipe.data, "val", recipe.root))
    steps_per_epoch = len(train_set) // recipe.batch_size
    steps = recipe.epochs * steps_per_epoch
    check_batch(recipe, len(train_set), fabric.world_size)
    view = recipe.view()

    net, loaded = build_net(recipe, train_set.num_classes, fabric.world_size, resume)
    for line in loaded:
        fabric.print(line)
    memory_format = choose_memory_format()
    net = net.to(memory_format=memory_format)
    model, optimizer = fabric.setup(net, make_optimizer(net, recipe))
    model.mark_forward_method("loss")
    average = moving_average(net, recipe.ema) if recipe.ema else None
    scored = average.module if average else net  # the weights that are scored and saved
    weight = None
    if recipe.class_weights != "none":
        weight = losses.class_weights(train_set, recipe.class_weights).to(fabric.device)
    criterion = losses.create(recipe.loss, train_set.ignore_index, weight)

    state: dict[str, Any] = {"step": 0, "best": -1.0, "loss": 0.0, "log": []}
    state |= {"seconds": 0.0, "waited": 0.0, "evaluated": 0.0, "peak_memory": 0.0}
    if resume:
        state |= load_state(folder / "last.pt")
        net.load_state_dict(state.pop("model"))
        optimizer.load_state_dict(state.pop("optimizer"))
        if average:
            average.load_state_dict(state.pop("average"))

    samples = DataLoader(
        Augmented(train_set, recipe.augment(train_set.ignore_index), recipe.seed),
        batch_sampler=Batches(
            len(train_set), recipe.batch_size, steps, recipe.seed, state["step"], fabric.global_rank, fabric.world_size
        ),
        num_workers=recipe.workers,
        persistent_workers=recipe.workers > 0,
    )
    loader: Any = fabric.setup_dataloaders(samples, use_distributed_sampler=False)
    board = None
    if fabric.is_global_zero:
        write_atomically(folder / "recipe.yaml", lambda path: path.write_text(recipe.to_yaml()))
        board = SummaryWriter(str(folder / "tensorboard"), purge_step=state["step"] + 1)
    started = time.monotonic() - state["seconds"]

    def save() -> None:
        state["seconds"] = time.monotonic() - started
        state["peak_memory"] = max(state["peak_memory"], peak_memory(fabric))
        if fabric.is_global_zero:
            learnt = {"model": net.state_dict(), "optimizer": optimizer.state_dict()}
            if average:
                learnt["average"] = average.state_dict()
            save_state(folder / "last.pt", state | learnt)

    bar = tqdm(total=steps, initial=state["step"], desc=recipe.model, unit="step", disable=not fabric.is_global_zero)
    with interruptible() as interrupted:
        ready = time.monotonic()
        for images, labels in loader:
            state["waited"] += time.monotonic() - ready
            step = state["step"]
            rate = set_rate(optimizer, recipe, step, steps)
            # Dropout's random numbers belong to the step, so that a resumed run draws the same ones.
            torch.manual_seed(generator(recipe.seed, step, fabric.global_rank).initial_seed())
            images = normalize(images).contiguous(memory_format=memory_format)  # [N, 3, h, w]
            parts = list(zip(images.chunk(recipe.accumulate), labels.chunk(recipe.accumulate), strict=True))
            factors = loss_factors(fabric, recipe, [part for _, part in parts], train_set.ignore_index, weight)
            value = 0.0
            for index, ((image, label), factor) in enumerate(zip(parts, factors, strict=True), 1):
                with fabric.no_backward_sync(model, enabled=index < len(parts)):
                    with fabric.autocast():  # of a marked method Fabric sees to it only where it wraps the model
                        loss = factor * model.loss(image, label, criterion)
                    fabric.backward(loss)
                value += loss.item()
            optimizer.step()
            optimizer.zero_grad()
            if average:
                average.update_parameters(net)
            state["step"] = step = step + 1

            value = mean_of_processes(fabric, value)  # so that all of them stop where one has met a NaN
            if not abs(value) < float("inf"):
                raise InputError(f"the loss is {value} at step {step}: lower lr (now {recipe.lr}) or raise warmup.")
            state["loss"] += value
            bar.update()
            bar.set_postfix(loss=f"{value:.3f}", lr=f"{rate:.2e}")
            if board:
                board.add_scalar("loss", value, step)
                board.add_scalar("lr", rate, step)

            epoch, rest = divmod(step, steps_per_epoch)
            if rest == 0:
                row = {"epoch": epoch, "step": step, "loss": state["loss"] / steps_per_epoch, "lr": rate}
                state["loss"] = 0.0
                if epoch % recipe.evaluate_every == 0 or step == steps:
                    trained = time.monotonic()
                    if recipe.recompute_batch_norm:
                        with fabric.autocast():
                            recompute_batch_norm(scored, train_set, recipe.batch_size)
                    result = scores(evaluate_together(fabric, scored, val_set, view=view))
                    row |= {"val_miou": result.miou, "val_pixel_accuracy": result.pixel_accuracy}
                    if fabric.is_global_zero and result.miou > state["best"]:
                        state["best"] = result.miou
                        save_weights(folder / "best.safetensors", scored, describe(recipe, val_set, epoch, result))
                    state["evaluated"] += time.monotonic() - trained
                row["seconds"] = time.monotonic() - started
                state["log"].append(row)
                if board:
                    write_log(folder / "log.csv", state["log"])
                    for key in ("val_miou", "val_pixel_accuracy"):
                        if key in row:
                            board.add_scalar(key, row[key], step)
            stop = any_process(fabric, bool(interrupted))
            if stop or step % recipe.save_every == 0 or (rest == 0 and "val_miou" in state["log"][-1]):
                save()
            if stop:
                break
            ready = time.monotonic()
    bar.close()
    if board:
        board.close()
    if state["step"] < steps:
        fabric.print(f"interrupted after step {state['step']} of {steps}, saved: go on with --resume")
        return None
    return finish(recipe, folder, fabric, net, val_set, state, memory_format)


def build_net(recipe: Recipe, num_classes: int, processes: int, resume: bool = False) -> tuple[Any, list[str]]:
    """The recipe's model, ready to train, and what it was started from, in words; nothing is loaded to `resume`.

    Raises:
        InputError: weights to start from that are not there or do not fit; batches too small for the model's norms.
    """
    torch.manual_seed(recipe.seed)
    net: Any = models.create(recipe.model, num_classes, recipe.size, **recipe.options)
    loaded = []
    if recipe.backbone_weights and not resume:
        load_backbone(net, recipe)
        loaded.append(f"the backbone starts from {recipe.backbone_weights}")
    if recipe.init_from and not resume:
        skipped = init_weights(net, Path(recipe.init_from))
        loaded.append(f"started from {recipe.init_from}; kept their own start: {', '.join(skipped) or 'none'}")
    freeze(net, recipe.freeze, recipe.freeze_norms)
    start_training(net)
    check_normalisation(net, recipe.batch_size // processes // recipe.accumulate)
    if recipe.sync_norms and processes > 1:
        net = synchronise_norms(net)
    return net, loaded


def load_backbone(net: nn.Module, recipe: Recipe) -> None:
    """Start the net's backbone from the recipe's classifier.

    Raises:
        InputError: the model is trained from scratch; no such weights, or not of this backbone.
    """
    load: Any = getattr(net, "load_imagenet", None)
    if load is None:
        raise InputError(f"{recipe.model} is trained from scratch in its paper: leave backbone_weights out.")
    if recipe.backbone_weights == "imagenet":
        load()
    else:
        load(read_state_dict(Path(str(recipe.backbone_weights))))


def make_optimizer(net: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """SGD or AdamW over the model's own parameter groups; weight decay is the recipe's times the group's factor."""
    groups = [
        {**group, "weight_decay": recipe.weight_decay * group["weight_decay_factor"]}
        for group in net.parameter_groups()  # type: ignore[operator]
    ]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum)
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=(recipe.momentum, 0.999))


def learning_rate(recipe: Recipe, step: int, steps: int) -> float:
    """The rate at `step` of `steps`: a linear warm-up, the poly schedule and the drops, a pure function of the step."""
    warmup = min(1.0, (step + 1) / max(1.0, recipe.warmup * steps))
    drop = 0.1 ** sum(step >= share * steps for share in recipe.drops)
    return recipe.lr * warmup * (1 - step / steps) ** recipe.power * drop


def set_rate(optimizer: Any, recipe: Recipe, step: int, steps: int) -> float:
    """Give every parameter group its rate for this step; returns the common one."""
    rate = learning_rate(recipe, step, steps)
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_factor"]
    return rate


def loss_factors(
    fabric: Fabric, recipe: Recipe, labels: list[Tensor], ignore_index: int, weight: Tensor | None
) -> list[Tensor]:
    """What to multiply the mean loss of each part of this process's batch by.

    A mean over the whole batch, all processes and parts together, is the sum of the parts' means, each times its share
    of the labelled pixels (or of their class weights). Losses that are means over classes are averaged by it, too.
    """
    own = torch.stack([losses.total_weight(part, ignore_index, weight) for part in labels])
    if fabric.world_size > 1:
        own = own * fabric.world_size  # the processes' gradients are averaged
    if recipe.reduction == "mean":
        total = own.sum()
        if fabric.world_size > 1:
            everywhere = fabric.all_reduce(total, reduce_op="mean")
            assert isinstance(everywhere, Tensor)
            total = everywhere
        own = own / total.clamp(min=torch.finfo(own.dtype).tiny)
    return list(own)


def moving_average(net: nn.Module, decay: float) -> AveragedModel:
    """A copy of the net whose weights and norms are to be its moving average."""
    average = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
    return average.requires_grad_(False)


def check_batch(recipe: Recipe, images: int, processes: int) -> None:
    """Refuse a batch that the split cannot fill, or that processes and parts cannot share evenly."""
    if recipe.batch_size > images:
        raise InputError(f"batch_size is {recipe.batch_size} but the training split has {images} images: lower it.")
    if recipe.batch_size % processes:
        raise InputError(
            f"batch_size is {recipe.batch_size}, which {processes} processes cannot share evenly: "
            f"take a multiple of {processes}."
        )
    if recipe.batch_size % (processes * recipe.accumulate):
        raise InputError(
            f"batch_size is {recipe.batch_size}, {recipe.batch_size // processes} for each process, which cannot be "
            f"computed in {recipe.accumulate} equal parts: change accumulate."
        )


def prepare_folder(folder: Path, recipe: Recipe, resume: bool) -> None:
    """Make the run's folder, without ever writing over another run.

    Raises:
        InputError: it cannot be written; it holds a run already; or, to resume, it holds none or another recipe.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(
            f"the run's folder {folder} cannot be written ({error}): choose another with --folder."
        ) from error
    if not resume:
        if (folder / "last.pt").exists():
            raise InputError(f"{folder} already holds a run: go on with --resume, or choose another --folder.")
        return
    if not (folder / "last.pt").exists():
        raise InputError(f"{folder} holds no last.pt, so there is nothing to resume: start without --resume.")
    # As recipes, not as text: a field that is newer than the run has its default in both.
    before = asdict(Recipe(**yaml.safe_load((folder / "recipe.yaml").read_text())))
    changed = [f"{name}: {value}" for name, value in asdict(recipe).items() if value != before[name]]
    if changed:
        raise InputError(
            f"{folder} was started with another recipe (now {'; '.join(changed)}): resume with the same, "
            "or start a new run in another --folder."
        )


def describe_split(dataset: SegmentationDataset) -> dict[str, Any]:
    """Which split a result is of. Two results with one hash, over names and labels, were scored on the same data."""
    digest = hashlib.sha256()
    for index, name in enumerate(dataset.ids):
        digest.update(name.encode() + dataset[index][1].numpy().tobytes())
    return {"name": dataset.name, "split": dataset.split, "images": len(dataset), "sha256": digest.hexdigest()}


def describe(recipe: Recipe, dataset: SegmentationDataset, epoch: int, result: Scores) -> dict[str, Any]:
    """What a checkpoint says of itself: how to build its model, and what it scored."""
    return {
        "model": recipe.model,
        "size": recipe.size,
        "options": recipe.options,
        "classes": dataset.classes,
        "palette": dataset.palette,
        "ignore_index": dataset.ignore_index,
        "recipe": json.loads(json.dumps(recipe.__dict__)),
        "epoch": epoch,
        "miou": result.miou,
        "seglearn": seglearn.__version__,
    }


def finish(
    recipe: Recipe,
    folder: Path,
    fabric: Fabric,
    net: nn.Module,
    dataset: SegmentationDataset,
    state: dict[str, Any],
    memory_format: torch.memory_format,
) -> dict[str, Any]:
    """Score the best checkpoint once more and write `result.json` and `predictions.png`."""
    fabric.barrier()  # rank 0 has written it
    metadata = load_weights(net, folder / "best.safetensors")
    net.eval()
    started = time.monotonic()
    stepping = state["seconds"] - state["waited"] - state["evaluated"]
    best = scores(evaluate_together(fabric, net, dataset, view=recipe.view()))
    result = {
        "recipe": json.loads(json.dumps(recipe.__dict__)),
        "seed": recipe.seed,
        "seglearn": seglearn.__version__,
        "data": describe_split(dataset),
        "machine": describe_machine(fabric, memory_format),
        "parameters": sum(parameter.numel() for parameter in net.parameters()),
        "seconds": {
            "training": state["seconds"],
            "of_it_waiting_for_data": state["waited"],
            "of_it_evaluating": state["evaluated"],
            "a_step": stepping / state["step"],
            "evaluation": time.monotonic() - started,
        },
        "peak_memory": state["peak_memory"],
        "selection": f"the best on this split of the evaluations after every {recipe.evaluate_every} epochs",
        "epoch": metadata["epoch"],
        "last_miou": state["log"][-1]["val_miou"],
        "miou": best.miou,
        "classes_averaged": best.classes_averaged,
        "pixel_accuracy": best.pixel_accuracy,
        "class_accuracy": best.class_accuracy,
        "fw_iou": best.fw_iou,
        "iou": dict(zip(dataset.classes, best.iou, strict=True)),
        "curve": state["log"],
    }
    if fabric.is_global_zero:
        write_atomically(folder / "result.json", lambda path: path.write_text(json.dumps(result, indent=1) + "\n"))
        picked = [dataset[index] for index in range(0, len(dataset), max(1, len(dataset) // 6))][:6]
        with fabric.autocast():
            rows = [(image, label, predict(net, image, recipe.view())) for image, label in picked]
        picture = sheet(rows, dataset.palette)
        write_atomically(folder / "predictions.png", lambda path: picture.save(path, "PNG"))
        fabric.print(best.table(dataset.classes))
    return result


def peak_memory(fabric: Fabric) -> float:
    """The most memory that this process has held, in MiB: of the GPU where it trains on one, else of the machine.

    0 where the system does not say (Windows).
    """
    if fabric.device.type == "cuda":
        return torch.cuda.max_memory_allocated(fabric.device) / 2**20
    status = Path("/proc/self/status")
    if status.exists():  # on Linux getrusage would also count what the parent process held
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 2**10  # KiB
    try:
        import resource
    except ImportError:
        return 0.0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # bytes on macOS


def write_log(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write one CSV row an epoch; the columns of an evaluation are empty where none was made."""
    columns = ["epoch", "step", "loss", "lr", "val_miou", "val_pixel_accuracy", "seconds"]

    def write(file: Path) -> None:
        with file.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, columns, restval="")
            writer.writeheader()
            writer.writerows(rows)

    write_atomically(path, write)


@contextmanager
def interruptible() -> Iterator[list[int]]:
    """Within it, the first Ctrl-C (or SIGTERM) only fills the list, so that the loop can save; a second one kills."""
    received: list[int] = []
    previous: dict[signal.Signals, Any] = {}

    def note(number: int, _: Any) -> None:
        received.append(number)
        for each, handler in previous.items():
            signal.signal(each, handler)

    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, note)
    except ValueError:  # not in the main thread: nobody can press Ctrl-C here
        pass
    try:
        yield received
    finally:
        for each, handler in previous.items():
            signal.signal(each, handler)


def mean_of_processes(fabric: Fabric, value: float) -> float:
    """The mean of a number over all processes."""
    if fabric.world_size == 1:
        return value
    mean = fabric.all_reduce(torch.tensor(value, device=fabric.device), reduce_op="mean")
    assert isinstance(mean, Tensor)
    return mean.item()


def any_process(fabric: Fabric, flag: bool) -> bool:
    """True on all processes when it is true on one: they must leave the loop after the same step."""
    if fabric.world_size == 1:
        return flag
    return bool(fabric.all_reduce(torch.tensor(int(flag), device=fabric.device), reduce_op="sum"))
