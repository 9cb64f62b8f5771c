"""Does each checkpoint that ships score what the leaderboard's table says of the run that it comes from?

Kernels ship as int8, and a table may have been made on another kind of machine: this says what both come to. Needs
CamVid. A file is evaluated once; started again, only those that are new or have changed are.

Run: python benchmarks/shipped.py
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from seglearn import data, weights
from seglearn.leaderboard import evaluate_on
from seglearn.training.checkpoint import load_model, write_atomically
from seglearn.training.device import describe_machine, start_fabric
from seglearn.training.recipe import load_recipe
from seglearn.training.samples import InMemory

OUT = Path(__file__).resolve().parent.parent / "book" / "results" / "shipped.json"


def main() -> None:
    """Evaluate what is missing, write it, and print all."""
    dataset: Any = InMemory(data.create("camvid", "val"))
    found: dict[str, Any] = json.loads(OUT.read_text()) if OUT.exists() else {}
    names = weights.names("camvid")
    found = {name: found[name] for name in names if name in found}  # without those that no longer ship
    for name in names:
        file = weights.checkpoint("camvid", name)
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        if found.get(name, {}).get("sha256") != digest:
            model, metadata = load_model(file)
            recipe = load_recipe(f"laptop/{name}", ["--init_from", "null"])
            score = evaluate_on(model, dataset, recipe)["miou"]
            machine = describe_machine(start_fabric(recipe.precision), torch.channels_last)
            table = metadata["scores"]["miou"]
            found[name] = {
                "sha256": digest,
                "seed": metadata["seed"],
                "table": table,
                "here": score,
                "machine": machine,
            }
            write_atomically(OUT, lambda path: path.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n"))
        table, here = (100 * found[name][key] for key in ("table", "here"))
        print(f"{name:<16} table {table:6.2f}   here {here:6.2f}   {here - table:+.2f}", flush=True)


if __name__ == "__main__":
    main()
