"""The command `seglearn`: list what there is, train, evaluate, predict."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from seglearn.errors import InputError

INTERRUPTED = 130  # what a shell reports for a program that Ctrl-C ended


def main(words: list[str] | None = None) -> None:
    """Run one command; `words` are its arguments, by default the process's own.

    Exits with 2 and one sentence where an input cannot be used, with 130 where Ctrl-C ended a training run.
    """
    parser = build_parser()
    arguments, rest = parser.parse_known_args(words)
    if rest and arguments.command != "train":
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    arguments.overrides = rest
    try:
        sys.exit(arguments.run(arguments))
    except InputError as error:
        print(f"seglearn: error: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # `seglearn recipes | head`
        sys.exit(0)


def build_parser() -> argparse.ArgumentParser:
    """All commands and their help."""
    parser = argparse.ArgumentParser(
        prog="seglearn",
        description="Models, data, training and evaluation of the course on deep semantic segmentation.",
        epilog="Start with: seglearn recipes; seglearn train laptop/fcn8s; seglearn predict PICTURE --checkpoint RUN",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, run, summary: str, **options) -> argparse.ArgumentParser:  # type: ignore[no-untyped-def]
        command: argparse.ArgumentParser = commands.add_parser(
            name,
            help=summary,
            description=summary,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            **options,
        )
        command.set_defaults(run=run)
        return command

    add("models", models_command, "List the models, with their parameters in both sizes at 11 classes.")

    recipes = add("recipes", recipes_command, "List the recipes, or print one: a YAML file to copy and change.")
    recipes.add_argument("name", nargs="?", help="print this recipe with every field, defaults included")

    data = add(
        "data",
        data_command,
        "List the datasets and where they were found, fetch one, or check one: every file of every split, on one page.",
        epilog="check exits with 0 where it found no problem, 1 where it found one, 2 where the data cannot be loaded.",
    )
    data.add_argument("action", nargs="?", choices=["list", "fetch", "check"], default="list")
    data.add_argument("name", nargs="?", help="the dataset to fetch or check; check takes a folder of your own as well")
    data.add_argument("--root", help="folder of the data; default: SEGLEARN_DATA, else a cache folder of this user")
    data.add_argument("--out", type=Path, default=Path("data_check.png"), help="check's pictures; default: %(default)s")

    train = add(
        "train",
        train_command,
        "Train as a recipe says. Ctrl-C finishes the step, saves and exits; --resume goes on bit for bit.",
        epilog=recipe_help(),
        usage="seglearn train [-h] [--folder FOLDER] [--resume] RECIPE [--FIELD VALUE ...]",
    )
    train.add_argument("recipe", metavar="RECIPE", help="a name from `seglearn recipes`, or a YAML file")
    train.add_argument("--folder", help="folder of the run; default: runs/RECIPE")
    train.add_argument("--resume", action="store_true", help="go on with the run in that folder")

    evaluate = add("evaluate", evaluate_command, "Score a checkpoint on a split: IoU of each class and the means.")
    evaluate.add_argument("checkpoint", type=Path, help="a run's folder (its best weights) or a .safetensors file")
    evaluate.add_argument("--data", help="dataset; default: the one it was trained on")
    evaluate.add_argument("--split", default="val", help="default: val")
    evaluate.add_argument("--root", help="folder of the data")
    evaluate.add_argument("--precision", default="auto", help="auto, 32-true, bf16-mixed or 16-mixed; default: auto")
    evaluate.add_argument("--bootstrap", action="store_true", help="the 95 %% interval of the mIoU over images")
    evaluate.add_argument("--boundary", action="store_true", help="boundary F1, and the mIoU near borders")
    evaluate.add_argument("--calibration", action="store_true", help="how far confidence and accuracy are apart")
    evaluate.add_argument("--out", type=Path, help="write scores and confusion matrix to this JSON file")

    predict = add("predict", predict_command, "Label pictures: writes the labels and an overlay beside each other.")
    predict.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    predict.add_argument("--checkpoint", type=Path, required=True, help="a run's folder or a .safetensors file")
    predict.add_argument("--out", type=Path, default=Path("predictions"), help="folder; default: predictions")

    export = add("export", export_command, "Write a checkpoint's model as ONNX, for images of any size.")
    export.add_argument("checkpoint", type=Path, help="a run's folder or a .safetensors file")
    export.add_argument("--out", type=Path, help="the file; default: model.onnx beside the checkpoint")
    return parser


def recipe_help() -> str:
    """The fields of a recipe, for the help of `seglearn train`."""
    from dataclasses import fields

    from docstring_parser import parse_from_object

    from seglearn.training.recipe import Recipe

    texts = {param.arg_name: param.description for param in parse_from_object(Recipe).params}
    rows = [
        f"  --{field.name} ({field.type}, default {getattr(Recipe(), field.name)})\n      {texts[field.name]}"
        for field in fields(Recipe)
    ]
    return "Every field of the recipe can be overridden:\n" + "\n".join(rows)


def models_command(arguments: argparse.Namespace) -> int:
    """`seglearn models`."""
    import torch

    from seglearn import models

    print(f"{'name':<16}{'laptop':>12}{'paper':>15}   parameters at 11 classes")
    for name in models.names():
        with torch.device("meta"):
            sizes = [models.create(name, 11, size) for size in ("laptop", "paper")]
        counts = [sum(parameter.numel() for parameter in model.parameters()) for model in sizes]
        print(f"{name:<16}{counts[0]:>12,}{counts[1]:>15,}")
    return 0


def recipes_command(arguments: argparse.Namespace) -> int:
    """`seglearn recipes [NAME]`."""
    from seglearn.training.recipe import load_recipe, recipe_names

    if arguments.name:
        print(load_recipe(arguments.name).to_yaml(), end="")
        return 0
    for name in recipe_names():
        recipe = load_recipe(name)
        print(
            f"{name:<24}{recipe.model} ({recipe.size}) on {recipe.data}, {recipe.epochs} epochs of {recipe.batch_size}"
        )
    return 0


def data_command(arguments: argparse.Namespace) -> int:
    """`seglearn data list`, `seglearn data fetch NAME` and `seglearn data check NAME_OR_PATH`."""
    return {"list": list_data, "fetch": fetch_data, "check": check_data}[arguments.action](arguments)


def list_data(arguments: argparse.Namespace) -> int:
    """The datasets and where they were found."""
    from seglearn import data
    from seglearn.data import camvid, cityscapes, pets, voc

    folder = camvid.folder_of(arguments.root)
    for split, images in camvid.SPLITS.items():
        found = f"in {folder}" if camvid.is_present(folder, split) else f"not in {folder}: seglearn data fetch camvid"
        print(f"camvid {split:<9}{images:>6} images, 360x480, 11 classes, {found}")
    for split in ("train", "val", "test"):
        print(f"scenes {split:<9}{len(data.StreetScenes(split)):>6} images, 180x240, 11 classes, generated")
    others = [
        ("voc2012", voc.voc_folder(arguments.root), "ImageSets", voc.SPLITS, "21 classes"),
        ("cityscapes", cityscapes.folder_of(arguments.root), "leftImg8bit", cityscapes.SPLITS, "19 classes"),
        ("pets", pets.folder_of(arguments.root), "annotations", pets.SPLITS, "2 classes"),
    ]
    for name, folder, marker, splits, classes in others:
        advice = f"register at {cityscapes.SITE}" if name == "cityscapes" else f"seglearn data fetch {name}"
        found = f"in {folder}" if (folder / marker).exists() else f"not in {folder}: {advice}"
        print(f"{name}: {', '.join(f'{split} {images}' for split, images in splits.items())}; {classes}, {found}")
    print("folder: images and masks of your own, with `data: folder` and `root: PATH` in a recipe")
    return 0


def fetch_data(arguments: argparse.Namespace) -> int:
    """Download a dataset."""
    from seglearn import data
    from seglearn.data import camvid, pets, voc

    fetchers = {"voc2012": voc.fetch_voc, "sbd": voc.fetch_sbd, "pets": pets.fetch_pets}
    if arguments.name == "camvid":
        for split in camvid.SPLITS:
            dataset = data.CamVid(split, arguments.root)
            print(f"camvid {split:<6}{len(dataset):>5} images in {dataset.folder}")
    elif arguments.name in fetchers:
        print(f"{arguments.name} in {fetchers[arguments.name](arguments.root)}")
    else:
        raise InputError(
            f"there is nothing to fetch for {arguments.name or 'no name'}: those to fetch are camvid, "
            f"{', '.join(fetchers)}."
        )
    return 0


def check_data(arguments: argparse.Namespace) -> int:
    """Read all of a dataset and say what is in it and what is wrong with it."""
    from seglearn.data.check import check
    from seglearn.training.checkpoint import write_atomically

    if not arguments.name:
        raise InputError("check needs a dataset's name or the path of a folder: `seglearn data check PATH`.")
    if not arguments.out.parent.is_dir():
        raise InputError(f"the folder of --out {arguments.out} is not there: make it, or choose another.")
    report = check(arguments.name, arguments.root)
    print(report.page())
    figure = report.sheet()
    write_atomically(arguments.out, lambda path: figure.savefig(path, format="png", dpi=100, bbox_inches="tight"))
    print(f"\npictures: {arguments.out}")
    return 1 if report.problems else 0


def train_command(arguments: argparse.Namespace) -> int:
    """`seglearn train RECIPE`."""
    from seglearn.training import load_recipe, train

    recipe = load_recipe(arguments.recipe, arguments.overrides)
    folder = Path(arguments.folder or Path("runs") / Path(arguments.recipe).with_suffix(""))
    result = train(recipe, folder, arguments.resume)
    if result is None:
        return INTERRUPTED
    print(f"val mIoU {100 * result['miou']:.2f}, {result['seconds']['training']:.0f} seconds: see {folder}")
    return 0


def evaluate_command(arguments: argparse.Namespace) -> int:
    """`seglearn evaluate CHECKPOINT`; under torchrun the processes share the images."""
    from dataclasses import asdict
    from typing import Any

    from seglearn import data
    from seglearn.boundaries import WIDTHS, boundary_counts, boundary_scores, trimap_matrices
    from seglearn.calibration import calibration, calibration_counts
    from seglearn.inference import Measure
    from seglearn.metrics import bootstrap_miou, confusion_matrix, scores
    from seglearn.training.checkpoint import load_model, write_atomically
    from seglearn.training.device import measure_together, start_fabric

    fabric = start_fabric(arguments.precision)
    model, metadata = load_model(arguments.checkpoint)
    model.to(fabric.device)
    trained = metadata["recipe"]
    # the folder of the training data too, unless other data is asked for
    root = arguments.root or (None if arguments.data else trained.get("root"))
    dataset = data.create(arguments.data or trained["data"], arguments.split, root)
    if dataset.num_classes != len(metadata["classes"]):
        raise InputError(
            f"checkpoint {arguments.checkpoint} has {len(metadata['classes'])} classes but {dataset.name} has "
            f"{dataset.num_classes}: evaluate it on data with its own classes."
        )
    classes, void = dataset.num_classes, dataset.ignore_index
    measures: dict[str, Measure] = {"matrix": lambda _, guess, label: confusion_matrix(guess, label, classes, void)}
    if arguments.boundary:
        measures["boundary"] = lambda _, guess, label: boundary_counts(guess, label, classes, void)
        measures["trimap"] = lambda _, guess, label: trimap_matrices(guess, label, classes, void)
    if arguments.calibration:
        measures["calibration"] = lambda logits, _, label: calibration_counts(logits, label, void)
    counts = measure_together(fabric, model, dataset, measures, progress=True)
    if not fabric.is_global_zero:
        return 0

    matrix = counts["matrix"].sum(0)
    result = scores(matrix)
    found: dict[str, Any] = asdict(result)
    columns, lines = {}, []
    if arguments.bootstrap:
        low, high = found["miou_interval"] = bootstrap_miou(counts["matrix"])
        lines += [f"mIoU {100 * low:.2f} to {100 * high:.2f}: 95 % interval, by resampling the images"]
    if arguments.boundary:
        boundary = boundary_scores(counts["boundary"])
        bands = [scores(band).miou for band in counts["trimap"].sum(0)]
        found |= {"boundary": asdict(boundary), "band_miou": dict(zip(WIDTHS, bands, strict=True))}
        columns = {"boundary F1": boundary.per_class}
        lines += [f"boundary F1 {100 * boundary.f1:.2f}, mean of {boundary.images} images"]
        near = ", ".join(f"{100 * band:.2f} ({width})" for width, band in zip(WIDTHS, bands, strict=True))
        lines += [f"mIoU near borders, by the width of the band in pixels: {near}"]
    if arguments.calibration:
        sure = calibration(counts["calibration"].sum(0))
        found["calibration"] = asdict(sure)
        lines += [f"calibration error {100 * sure.ece:.2f}: mean confidence {100 * sure.confidence:.2f}"]
    print(f"{dataset.name} {dataset.split}, {len(dataset)} images")
    print(result.table(dataset.classes, columns), *lines, sep="\n")
    if arguments.out:
        text = json.dumps({**found, "matrix": matrix.tolist()}, indent=1) + "\n"
        write_atomically(arguments.out, lambda path: path.write_text(text))
    return 0


def predict_command(arguments: argparse.Namespace) -> int:
    """`seglearn predict IMAGE… --checkpoint RUN`."""
    from PIL import Image

    from seglearn.data.files import read_image
    from seglearn.inference import predict
    from seglearn.plots import overlay
    from seglearn.training.checkpoint import load_model, write_atomically

    model, metadata = load_model(arguments.checkpoint)
    try:
        arguments.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"the folder {arguments.out} cannot be made ({error}): choose another with --out.") from error
    for path in arguments.images:
        image = read_image(path)
        label = predict(model, image)
        indexed = Image.fromarray(label.numpy()).convert("P")
        indexed.putpalette([value for color in metadata["palette"] for value in color])
        laid_over = Image.fromarray(overlay(image, label, metadata["palette"]))
        for picture, kind in ((indexed, "labels"), (laid_over, "overlay")):
            file = arguments.out / f"{path.stem}_{kind}.png"
            write_atomically(file, lambda to, picture=picture: picture.save(to, "PNG"))  # type: ignore[misc]
        shares = label.flatten().bincount(minlength=len(metadata["classes"])) / label.numel()
        top = ", ".join(
            f"{metadata['classes'][i]} {shares[i]:.0%}" for i in shares.argsort(descending=True)[:4].tolist()
        )
        print(f"{path}: {top}: {arguments.out / path.stem}_overlay.png")
    return 0


def export_command(arguments: argparse.Namespace) -> int:
    """`seglearn export CHECKPOINT`."""
    from seglearn.export import export_onnx
    from seglearn.training.checkpoint import load_model

    model, metadata = load_model(arguments.checkpoint)
    folder = arguments.checkpoint if arguments.checkpoint.is_dir() else arguments.checkpoint.parent
    out = arguments.out or folder / "model.onnx"
    export_onnx(model, out)
    print(f"{metadata['model']} with {len(metadata['classes'])} classes, {out.stat().st_size / 1e6:.1f} MB: {out}")
    return 0
