"""A recipe: everything that decides what a training run computes, in one typed file."""

from __future__ import annotations

import difflib
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import yaml

from seglearn import data, losses, models
from seglearn.data.transforms import Augment
from seglearn.errors import InputError
from seglearn.views import View


@dataclass
class Recipe:
    """What to train, on what, and how.

    Args:
        model: name of a model, see `seglearn models`.
        size: the paper's own size, or the one that a laptop can train.
        options: variants of the model's paper, such as `{depth: 50}`.
        data: name of a dataset, see `seglearn data list`.
        root: folder of the dataset's files; by default `SEGLEARN_DATA`, else a download.
        split: what is trained on, such as voc2012's trainaug; val is what is scored.
        epochs: passes over the training split. An epoch's last batch is dropped when it is not full.
        batch_size: images in a step, over all processes together.
        crop: height and width that the network sees in training, in pixels.
        scale: range of the random resize before the crop.
        flip: probability of a horizontal flip.
        jitter: strength of the random brightness, contrast and saturation.
        rotate: the crop is turned by a random angle of at most so many degrees; 0 is off, as for the next two.
        elastic: standard deviation of an elastic deformation's random displacements, in pixels of the crop.
        blur: largest standard deviation of a random Gaussian blur, in pixels of the crop.
        max_class_share: crops of which one class fills this share are drawn again, at most nine times; 1 is off.
        loss: cross_entropy, focal (gamma 2), ohem (pixels whose true class has a probability of at most 0.7, at least
            1/16 of all), dice, lovasz, or a sum such as cross_entropy+dice.
        class_weights: how rare classes are weighted in cross_entropy, focal and ohem. enet: 1 / ln(1.02 + share of the
            pixels). inverse_sqrt: 1 / sqrt(share of the pixels). median_frequency: the median of the classes'
            frequencies divided by the class's own, each a share of the pixels of those images that hold the class.
        optimizer: sgd (with momentum) or adamw.
        lr: learning rate at the start; a model multiplies it for some parameters.
        momentum: of sgd; for adamw its first beta.
        weight_decay: as the optimiser defines it; not applied to biases and normalisation.
        warmup: share of the steps in which the rate rises linearly from 0.
        power: after step t of T the rate is lr * (1 - t / T) ** power, at every step.
        precision: auto is bfloat16 where the device computes it natively, else float32.
        evaluate_every: score the val split after every so many epochs, and after the last.
        save_every: write `last.pt` after every so many steps, besides every evaluation.
        workers: processes that prepare data; 0 prepares it in the training process.
        seed: of weights, order and augmentation.
        backbone_weights: classifier that the paper's size starts from: imagenet for torchvision's weights, downloaded
            once and checked, or a file of such weights (.pth or .safetensors).
        init_from: checkpoint (`.safetensors`) to start from; parameters that do not fit are listed and skipped.
        drops: shares of the steps after which the rate falls to a tenth, such as `[0.5, 0.75]`, besides `power`.
        freeze: modules of the model that keep the weights and norms they start from, such as `[front_end]`.
        freeze_norms: all batch normalisation keeps its statistics, scale and shift, as small batches need it.
        sync_norms: batch normalisation sees the images of all processes together; GPUs only, nothing for one process.
        recompute_batch_norm: before every evaluation, average the norms' statistics anew over the training images.
        accumulate: a step's batch is computed in so many parts, one after the other, for the same update with less
            memory. Norms see one part at a time.
        reduction: mean divides a loss over pixels by the labelled pixels of the whole batch, or by their class weights
            if it has some; sum does not, as in Caffe, and needs a rate as many times smaller.
        ema: average the weights over the steps, each step's counting by this factor less than the next one's, and score
            and save the average. 0 is off; 0.999 looks back over some 1000 steps.
        test_scales: factors by which pictures are resized for prediction; probabilities are averaged over several.
        test_flip: average with the prediction for the mirror image, too.
        test_window: height and width of windows that pictures are cut into for prediction, null for whole pictures.
    """

    model: str = "fcn8s"
    size: Literal["laptop", "paper"] = "laptop"
    options: dict[str, Any] = field(default_factory=dict)
    data: str = "camvid"
    root: str | None = None
    split: str = "train"
    epochs: int = 60
    batch_size: int = 8
    crop: tuple[int, int] = (192, 256)
    scale: tuple[float, float] = (0.5, 2.0)
    flip: float = 0.5
    jitter: float = 0.2
    rotate: float = 0.0
    elastic: float = 0.0
    blur: float = 0.0
    max_class_share: float = 1.0
    loss: str = "cross_entropy"
    class_weights: Literal["none", "enet", "inverse_sqrt", "median_frequency"] = "none"
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup: float = 0.0
    power: float = 0.9
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"] = "auto"
    evaluate_every: int = 5
    save_every: int = 100
    workers: int = 0
    seed: int = 0
    backbone_weights: str | None = None
    init_from: str | None = None
    drops: tuple[float, ...] = ()
    freeze: tuple[str, ...] = ()
    freeze_norms: bool = False
    sync_norms: bool = False
    recompute_batch_norm: bool = False
    accumulate: int = 1
    reduction: Literal["mean", "sum"] = "mean"
    ema: float = 0.0
    test_scales: tuple[float, ...] = (1.0,)
    test_flip: bool = False
    test_window: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        """JSON and YAML know no tuples."""
        height, width = self.crop
        low, high = self.scale
        self.crop, self.scale = (height, width), (low, high)
        self.freeze, self.test_scales, self.drops = tuple(self.freeze), tuple(self.test_scales), tuple(self.drops)
        if self.test_window is not None:
            height, width = self.test_window
            self.test_window = (height, width)

    def check(self) -> None:
        """Refuse what cannot work before anything is loaded.

        Raises:
            InputError: unknown model or dataset (naming the nearest), or a number out of its range.
        """
        for kind, name, known in (
            ("model", self.model, models.names()),
            ("dataset", self.data, data.names()),
        ):
            if name not in known:
                near = difflib.get_close_matches(name, known, 1, cutoff=0)[0]
                raise InputError(f"{kind} {name!r} is unknown: did you mean {near!r}? Known are {', '.join(known)}.")
        for name in ("epochs", "batch_size", "evaluate_every", "save_every", "accumulate"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}: it must be at least 1.")
        self.augment(ignore_index=255)
        self.view()
        losses.check(self.loss, weighted=self.class_weights != "none")
        if self.backbone_weights and self.size != "paper":
            raise InputError("backbone_weights are those of the paper's size: set size to paper, or leave them out.")
        if self.lr <= 0:
            raise InputError(f"lr is {self.lr}: it must be above 0.")
        if not 0 <= self.warmup < 1:
            raise InputError(f"warmup is {self.warmup}: it is a share of all steps, at least 0 and below 1.")
        if any(not 0 < share < 1 for share in self.drops):
            raise InputError(f"drops is {list(self.drops)}: each is a share of all steps, above 0 and below 1.")
        if not 0 <= self.ema < 1:
            raise InputError(f"ema is {self.ema}: it must be at least 0 (off) and below 1.")

    def augment(self, ignore_index: int) -> Augment:
        """The augmentation that the recipe asks for; `ignore_index` is the dataset's.

        Raises:
            InputError: a number out of its range.
        """
        return Augment(
            self.crop,
            ignore_index,
            self.scale,
            self.flip,
            self.jitter,
            self.rotate,
            self.elastic,
            self.blur,
            self.max_class_share,
        )

    def view(self) -> View:
        """What the network is shown of a picture for prediction.

        Raises:
            InputError: a number out of its range.
        """
        return View(self.test_scales, self.test_flip, self.test_window)

    def to_yaml(self) -> str:
        """The recipe as a file that `load_recipe` reads back."""
        return yaml.safe_dump(
            {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}, sort_keys=False
        )


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package, such as `laptop/fcn8s`."""
    root = files("seglearn") / "recipes"
    folders = sorted((folder for folder in root.iterdir() if folder.is_dir()), key=lambda folder: folder.name)
    return [
        f"{folder.name}/{file.name.removesuffix('.yaml')}"
        for folder in folders
        for file in sorted(folder.iterdir(), key=lambda file: file.name)
        if file.name.endswith(".yaml")
    ]


def recipe_path(name: str) -> Path:
    """The file behind a recipe's name, or behind a path to a YAML file.

    Raises:
        InputError: neither is there; names the nearest recipe.
    """
    if name in recipe_names():
        return Path(str(files("seglearn") / "recipes" / f"{name}.yaml"))
    if Path(name).is_file():
        return Path(name)
    near = difflib.get_close_matches(name, recipe_names(), 1, cutoff=0)[0]
    raise InputError(
        f"recipe {name!r} is neither one of the package's nor a file: did you mean {near!r}? "
        "`seglearn recipes` lists them."
    )


def load_recipe(name: str, overrides: list[str] | None = None) -> Recipe:
    """Read a recipe by name or path; `overrides` are command-line words such as `["--epochs", "3"]`.

    Raises:
        InputError: no such recipe, an unknown field, or a value of the wrong type.
    """
    from jsonargparse import ArgumentParser

    path = recipe_path(name)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Recipe)
    parser.add_argument("--config", action="config")
    try:
        values = parser.parse_args([f"--config={path}", *(overrides or [])])
    except Exception as error:  # jsonargparse's ArgumentError and what its YAML reader raises
        raise InputError(f"recipe {name}: {' '.join(str(error).split())}") from error
    values.pop("config", None)
    recipe = Recipe(**values.as_dict())
    recipe.check()
    return recipe
