"""The command `seglearn`: list what there is, train, evaluate, predict."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seglearn.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from seglearn.data import SegmentationDataset
    from seglearn.views import View

DEFAULT_CRF = Path("-")  # `evaluate --crf` without a file
# Competition 6 allows training data from outside VOC; section 5.3 of the VOC2012 development kit names the folders.
VOC_SUBMISSION = "results/VOC2012/Segmentation/comp6_test_cls"
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
        usage="seglearn train [-h] [--folder FOLDER] [--resume] [--dry-run] RECIPE [--FIELD VALUE ...]",
    )
    train.add_argument("recipe", metavar="RECIPE", help="a name from `seglearn recipes`, or a YAML file")
    train.add_argument("--folder", help="folder of the run; default: runs/RECIPE")
    train.add_argument("--resume", action="store_true", help="go on with the run in that folder")
    train.add_argument(
        "--dry-run", action="store_true", help="build everything, make two small steps, say what the whole would take"
    )

    evaluate = add("evaluate", evaluate_command, "Score a checkpoint on a split: IoU of each class and the means.")
    evaluate.add_argument("--bootstrap", action="store_true", help="the 95 %% interval of the mIoU over images")
    evaluate.add_argument("--boundary", action="store_true", help="boundary F1, and the mIoU near borders")
    evaluate.add_argument("--calibration", action="store_true", help="how far confidence and accuracy are apart")
    evaluate.add_argument(
        "--crf",
        nargs="?",
        const=DEFAULT_CRF,
        type=Path,
        metavar="FILE",
        help="also with a CRF behind the network: as `seglearn crf-search` found, or else pydensecrf's example",
    )
    evaluate.add_argument("--out", type=Path, help="write scores and confusion matrix to this JSON file")

    search = add("crf-search", crf_search_command, "Search the CRF that goes behind a checkpoint, and say if it helps.")
    search.add_argument(
        "--every", type=int, default=5, help="choose on every so many-th image, score on the others; default: 5"
    )
    search.add_argument("--out", type=Path, help="the JSON file; default: crf.json beside the checkpoint")

    for command in (evaluate, search):
        command.add_argument("checkpoint", type=Path, help="a run's folder (its best weights) or a .safetensors file")
        command.add_argument("--data", help="dataset; default: the one it was trained on")
        command.add_argument("--split", default="val", help="default: val")
        command.add_argument("--root", help="folder of the data")
        command.add_argument("--precision", default="auto", help="auto, 32-true, bf16-mixed or 16-mixed; default: auto")

    board = add(
        "leaderboard",
        leaderboard_command,
        "Train recipes with several seeds, score them, and print the table. Started again, it goes on where it was.",
        epilog="It exits with 1 where a run failed; the others are done all the same.",
    )
    board.add_argument("recipes", nargs="*", metavar="RECIPE", help="default: all laptop recipes on CamVid")
    board.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="default: 0 1 2; one after the other")
    board.add_argument("--split", default="val", help="what is scored; training selects on val; default: val")
    board.add_argument("--data", choices=["camvid", "scenes"], help="train on this instead of the recipe's data")
    board.add_argument("--runs", type=Path, default=Path("runs/leaderboard"), help="folder; default: %(default)s")
    board.add_argument("--out", type=Path, default=Path("book/results/camvid.json"), help="default: %(default)s")
    task = board.add_mutually_exclusive_group()
    task.add_argument("--table", action="store_true", help="only print what is there")
    task.add_argument(
        "--domain-gap",
        action="store_true",
        help="train on CamVid and on generated scenes, score each on both; default recipe: laptop/fcn8s",
    )
    task.add_argument("--ship", action="store_true", help="copy the median seeds' weights into the package, as int8")

    ablate = add(
        "ablate",
        ablate_command,
        "Repeat a paper's own ablation small: train its arms, judge its claims. Started again, it goes on.",
        epilog="It exits with 1 where a run failed; the others are done all the same. On two cores, start two of them "
        "with OMP_NUM_THREADS=1: they share the runs.",
    )
    ablate.add_argument("names", nargs="*", metavar="NAME", help="from --list; default: all")
    ablate.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="default: 0 1 2; one after the other")
    ablate.add_argument("--runs", type=Path, default=Path("runs/ablations"), help="folder; default: %(default)s")
    ablate.add_argument("--out", type=Path, default=Path("book/results/ablations"), help="default: %(default)s")
    ablate.add_argument("--list", action="store_true", help="only print arms, and what they take on this machine")

    predict = add("predict", predict_command, "Label pictures: writes the labels and an overlay beside each other.")
    predict.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    predict.add_argument("--checkpoint", type=Path, required=True, help="a run's folder or a .safetensors file")
    predict.add_argument("--out", type=Path, default=Path("predictions"), help="folder; default: predictions")
    predict.add_argument(
        "--voc-submission",
        action="store_true",
        help=f"write label maps only, as VOC's test server wants them: OUT/{VOC_SUBMISSION}/NAME.png",
    )
    for command in (evaluate, predict):
        command.add_argument(
            "--scales", nargs="+", type=float, help="average over pictures resized by these; default: as it was scored"
        )
        command.add_argument("--flip", action="store_true", help="average with the mirror image")
        command.add_argument("--window", nargs=2, type=int, metavar=("H", "W"), help="cut pictures into windows")

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
    if arguments.dry_run:
        from seglearn.training.rehearsal import rehearse

        print(rehearse(recipe).page())
        return 0
    folder = Path(arguments.folder or Path("runs") / Path(arguments.recipe).with_suffix(""))
    result = train(recipe, folder, arguments.resume)
    if result is None:
        return INTERRUPTED
    print(f"val mIoU {100 * result['miou']:.2f}, {result['seconds']['training']:.0f} seconds: see {folder}")
    return 0


def evaluate_command(arguments: argparse.Namespace) -> int:
    """`seglearn evaluate CHECKPOINT`; under torchrun the processes share the images."""
    from dataclasses import asdict

    from seglearn.boundaries import boundary_counts, trimap_matrices
    from seglearn.calibration import calibration_counts
    from seglearn.crf.search import DEFAULTS, Refined, read_settings, verdict
    from seglearn.inference import Measure
    from seglearn.metrics import confusion_matrix, scores
    from seglearn.training.checkpoint import load_model, write_atomically
    from seglearn.training.device import measure_together, start_fabric

    crf = DEFAULTS if arguments.crf in (None, DEFAULT_CRF) else read_settings(arguments.crf)
    fabric = start_fabric(arguments.precision)
    model, metadata = load_model(arguments.checkpoint)
    model.to(fabric.device)
    dataset = data_for(metadata, arguments)
    classes, void = dataset.num_classes, dataset.ignore_index
    measures: dict[str, Measure] = {"matrix": lambda _, guess, label: confusion_matrix(guess, label, classes, void)}
    if arguments.boundary:
        measures["boundary"] = lambda _, guess, label: boundary_counts(guess, label, classes, void)
        measures["trimap"] = lambda _, guess, label: trimap_matrices(guess, label, classes, void)
    if arguments.calibration:
        measures["calibration"] = lambda logits, _, label: calibration_counts(logits, label, void)
    view = chosen_view(metadata, arguments)
    counts = measure_together(fabric, model, dataset, measures, progress=True, view=view)
    if arguments.crf:
        refined = measure_together(fabric, Refined(model, view, **crf), dataset, measures, progress=True)
    if not fabric.is_global_zero:
        return 0

    matrix = counts["matrix"].sum(0)
    result = scores(matrix)
    further, columns, lines = further_scores(counts, arguments.bootstrap)
    found = {**asdict(result), **further}
    if arguments.crf:
        matrix_after = refined["matrix"].sum(0)
        after = scores(matrix_after)
        further, columns_after, lines_after = further_scores(refined, arguments.bootstrap)
        found["crf"] = {"settings": crf, **asdict(after), **further, "matrix": matrix_after.tolist()}
        columns["IoU with CRF"] = after.iou
        if arguments.boundary:
            columns["F1 with CRF"] = columns_after["boundary F1"]
        lines += [verdict(result, after, dataset.classes), f"with CRF: pixel accuracy {100 * after.pixel_accuracy:.2f}"]
        lines += [f"with CRF: {line}" for line in lines_after]
    print(f"{dataset.name} {dataset.split}, {len(dataset)} images")
    print(result.table(dataset.classes, columns), *lines, sep="\n")
    if arguments.out:
        text = json.dumps({**found, "matrix": matrix.tolist()}, indent=1) + "\n"
        write_atomically(arguments.out, lambda path: path.write_text(text))
    return 0


def further_scores(
    counts: Mapping[str, Tensor], bootstrap: bool
) -> tuple[dict[str, Any], dict[str, Sequence[float]], list[str]]:
    """What `evaluate` was asked for besides its table: for its file, for columns of the table, and lines to print."""
    from dataclasses import asdict

    from seglearn.boundaries import WIDTHS, boundary_scores
    from seglearn.calibration import calibration
    from seglearn.metrics import bootstrap_miou, scores

    found: dict[str, Any] = {}
    columns: dict[str, Sequence[float]] = {}
    lines = []
    if bootstrap:
        low, high = found["miou_interval"] = bootstrap_miou(counts["matrix"])
        lines += [f"mIoU {100 * low:.2f} to {100 * high:.2f}: 95 % interval, by resampling the images"]
    if "boundary" in counts:
        boundary = boundary_scores(counts["boundary"])
        bands = [scores(band).miou for band in counts["trimap"].sum(0)]
        found |= {"boundary": asdict(boundary), "band_miou": dict(zip(WIDTHS, bands, strict=True))}
        columns = {"boundary F1": boundary.per_class}
        lines += [f"boundary F1 {100 * boundary.f1:.2f}, mean of {boundary.images} images"]
        near = ", ".join(f"{100 * band:.2f} ({width})" for width, band in zip(WIDTHS, bands, strict=True))
        lines += [f"mIoU near borders, by the width of the band in pixels: {near}"]
    if "calibration" in counts:
        sure = calibration(counts["calibration"].sum(0))
        found["calibration"] = asdict(sure)
        lines += [f"calibration error {100 * sure.ece:.2f}: mean confidence {100 * sure.confidence:.2f}"]
    return found, columns, lines


def crf_search_command(arguments: argparse.Namespace) -> int:
    """`seglearn crf-search CHECKPOINT`."""
    import time

    import seglearn
    from seglearn.crf.search import crf_search
    from seglearn.training.checkpoint import load_model, write_atomically
    from seglearn.training.device import choose_memory_format, describe_machine, start_fabric
    from seglearn.training.loop import describe_split
    from seglearn.views import view_of

    fabric = start_fabric(arguments.precision)
    if fabric.world_size > 1:
        raise InputError("crf-search runs in one process: start it without torchrun.")
    model, metadata = load_model(arguments.checkpoint)
    model.to(fabric.device)
    dataset = data_for(metadata, arguments)
    folder = arguments.checkpoint if arguments.checkpoint.is_dir() else arguments.checkpoint.parent
    out = arguments.out or folder / "crf.json"
    if not out.parent.is_dir():
        raise InputError(f"the folder of --out {out} is not there: make it, or choose another.")
    started = time.monotonic()
    with fabric.autocast():
        found = crf_search(model, dataset, arguments.every, progress=True, view=view_of(metadata["recipe"]))
    result = {
        **found,
        "checkpoint": {key: metadata.get(key) for key in ("model", "size", "options", "recipe", "epoch", "miou")},
        "seglearn": seglearn.__version__,
        "data": describe_split(dataset),
        "machine": describe_machine(fabric, choose_memory_format()),
        "seconds": time.monotonic() - started,
    }
    write_atomically(out, lambda path: path.write_text(json.dumps(result, indent=1) + "\n"))

    search, rest = found["search"], found["rest"]
    print(f"{dataset.name} {dataset.split}, {len(search['tried'])} settings on {search['images']} images")
    print(", ".join(f"{name} {value:g}" for name, value in found["crf"]["appearance"].items()))
    print(f"on the other {rest['images']} images{'alone':>15}{'with CRF':>13}")
    rows = {name: [rest[way]["iou"][name] for way in ("alone", "crf")] for name in dataset.classes}
    for label, key in (("mIoU", "miou"), ("pixel accuracy", "pixel_accuracy"), ("boundary F1", "boundary_f1")):
        rows[label] = [rest[way][key] for way in ("alone", "crf")]
    rows |= {
        f"mIoU within {width} px": [rest[way]["band_miou"][str(width)] for way in ("alone", "crf")]
        for width in (1, 2, 4, 8, 16)
    }
    for label, (alone, refined) in rows.items():
        print(f"{label:<24}{100 * alone:13.2f}{100 * refined:13.2f}{100 * (refined - alone):+10.2f}")
    print(f"{found['verdict']}\nsettings and scores: {out}")
    return 0


def data_for(metadata: dict[str, Any], arguments: argparse.Namespace) -> SegmentationDataset:
    """The data that a checkpoint was trained on, unless `--data` asks for other."""
    from seglearn import data

    trained = metadata["recipe"]
    # the folder of the training data too, unless other data is asked for
    root = arguments.root or (None if arguments.data else trained.get("root"))
    dataset = data.create(arguments.data or trained["data"], arguments.split, root)
    if dataset.num_classes != len(metadata["classes"]):
        raise InputError(
            f"checkpoint {arguments.checkpoint} has {len(metadata['classes'])} classes but {dataset.name} has "
            f"{dataset.num_classes}: evaluate it on data with its own classes."
        )
    return dataset


def leaderboard_command(arguments: argparse.Namespace) -> int:
    """`seglearn leaderboard [RECIPE ...]`."""
    from seglearn import leaderboard

    runs, out, dataset = arguments.runs, arguments.out, arguments.data
    failures: list[str] = []
    if arguments.ship:
        print(*leaderboard.ship(arguments.recipes, runs, out, dataset or "camvid"), sep="\n")
        return 0
    if not arguments.table:
        sources = arguments.recipes or (["laptop/fcn8s"] if arguments.domain_gap else leaderboard.default_recipes())
        try:
            failures = leaderboard.fill(
                sources, arguments.seeds, runs, out, arguments.split, dataset, arguments.domain_gap
            )
        except KeyboardInterrupt:
            print("interrupted, saved: the same command goes on from here")
            return INTERRUPTED
    print(leaderboard.table(leaderboard.read_results(out), arguments.split, dataset or "camvid"))
    if failures:
        print("failed:", *failures, sep="\n  ", file=sys.stderr)
    return 1 if failures else 0


def ablate_command(arguments: argparse.Namespace) -> int:
    """`seglearn ablate [NAME ...]`."""
    from seglearn import ablations

    chosen = ablations.choose(arguments.names)
    if arguments.list:
        for line in ablations.overview(chosen, arguments.seeds, arguments.runs):
            print(line, flush=True)
        return 0
    try:
        failures = ablations.fill(chosen, arguments.seeds, arguments.runs, arguments.out)
    except KeyboardInterrupt:
        print("interrupted, saved: the same command goes on from here")
        return INTERRUPTED
    for ablation in chosen:
        path = arguments.out / f"{ablation.name}.json"
        if path.exists():
            print(ablations.page(json.loads(path.read_text())), end="\n\n")
    if failures:
        print("failed:", *failures, sep="\n  ", file=sys.stderr)
    return 1 if failures else 0


def predict_command(arguments: argparse.Namespace) -> int:
    """`seglearn predict IMAGE… --checkpoint RUN`."""
    from PIL import Image

    from seglearn.data.files import read_image
    from seglearn.inference import predict
    from seglearn.plots import overlay
    from seglearn.training.checkpoint import load_model, write_atomically

    model, metadata = load_model(arguments.checkpoint)
    classes, view = metadata["classes"], chosen_view(metadata, arguments)
    if arguments.voc_submission and len(classes) != 21:
        raise InputError(f"checkpoint {arguments.checkpoint} has {len(classes)} classes: VOC's test server wants 21.")
    folder = arguments.out / VOC_SUBMISSION if arguments.voc_submission else arguments.out
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"the folder {folder} cannot be made ({error}): choose another with --out.") from error
    for path in arguments.images:
        image = read_image(path)
        label = predict(model, image, view)
        indexed = Image.fromarray(label.numpy()).convert("P")
        indexed.putpalette([value for color in metadata["palette"] for value in color])
        pictures = {f"{path.stem}_labels": indexed}
        if arguments.voc_submission:
            pictures = {path.stem: indexed}
        else:
            pictures[f"{path.stem}_overlay"] = Image.fromarray(overlay(image, label, metadata["palette"]))
        for name, picture in pictures.items():
            file = folder / f"{name}.png"
            write_atomically(file, lambda to, picture=picture: picture.save(to, "PNG"))  # type: ignore[misc]
        shares = label.flatten().bincount(minlength=len(classes)) / label.numel()
        top = ", ".join(f"{classes[i]} {shares[i]:.0%}" for i in shares.argsort(descending=True)[:4].tolist())
        print(f"{path}: {top}: {file}")
    return 0


def chosen_view(metadata: Mapping[str, Any], arguments: argparse.Namespace) -> View:
    """How the command shows pictures to the network: as the checkpoint was scored, unless told otherwise."""
    from dataclasses import replace

    from seglearn.views import view_of

    view = view_of(metadata["recipe"])
    if arguments.scales:
        view = replace(view, scales=tuple(arguments.scales))
    if arguments.flip:
        view = replace(view, flip=True)
    return replace(view, window=tuple(arguments.window)) if arguments.window else view


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
