"""What this machine computes fast, and how many processes share the work."""

from __future__ import annotations

import logging
import os
import platform
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from seglearn.data import SegmentationDataset
from seglearn.inference import Measure, evaluate, measure
from seglearn.views import PLAIN, View


def start_fabric(precision: str = "auto") -> Fabric:
    """Start as many processes as the launcher says: one when started plainly, more under `torchrun`.

    With `precision` auto, bfloat16 is used where the device computes it natively, float32 elsewhere.
    """
    processes = int(os.environ.get("WORLD_SIZE", 1))
    local = int(os.environ.get("LOCAL_WORLD_SIZE", processes))
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*`srun` command is available.*")
    fabric = Fabric(
        accelerator="auto",
        devices=local,
        num_nodes=max(1, processes // local),
        strategy="ddp" if processes > 1 else "auto",
        precision=choose_precision() if precision == "auto" else precision,  # type: ignore[arg-type]
    )
    fabric.launch()
    return fabric


def choose_precision() -> str:
    """`bf16-mixed` where bfloat16 is native: Ampere GPUs and later, CPUs with AVX512-BF16 or AMX. Else `32-true`.

    A CPU without those instructions emulates bfloat16 and is slower with it than without.
    """
    if torch.cuda.is_available():
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        native = any(getattr(torch.cpu, probe, lambda: False)() for probe in probes)
    return "bf16-mixed" if native else "32-true"


def choose_memory_format() -> torch.memory_format:
    """channels_last where convolutions are faster in it: on GPUs and on CPUs with AVX2; else contiguous."""
    fast = torch.cuda.is_available() or getattr(torch.cpu, "_is_avx2_supported", lambda: False)()
    return torch.channels_last if fast else torch.contiguous_format


def evaluate_together(
    fabric: Fabric, net: nn.Module, dataset: SegmentationDataset, progress: bool = False, view: View = PLAIN
) -> Tensor:
    """Confusion matrix int64 [C, C] of a whole split on the CPU, the images shared among all processes."""
    with fabric.autocast():
        progress = progress and fabric.is_global_zero
        matrix = evaluate(net, dataset, fabric.global_rank, fabric.world_size, progress, view)
    total = fabric.all_reduce(matrix.to(fabric.device), reduce_op="sum")
    assert isinstance(total, Tensor)
    return total.cpu()


def measure_together(
    fabric: Fabric,
    net: nn.Module,
    dataset: SegmentationDataset,
    measures: Mapping[str, Measure],
    progress: bool = False,
    view: View = PLAIN,
) -> dict[str, Tensor]:
    """`seglearn.inference.measure` of a whole split, the images shared among all processes.

    Returns on every process what one alone would return, in the order of the images: [images, ...] by the measure's
    name.
    """
    rank, processes = fabric.global_rank, fabric.world_size
    with fabric.autocast():
        own = measure(net, dataset, measures, rank, processes, progress and fabric.is_global_zero, view)
    if processes == 1:
        return own
    shares: list[dict[str, Tensor]] = [{}] * processes
    torch.distributed.all_gather_object(shares, own)  # objects: a process without an image knows no shapes
    counts = {name: first.new_empty(len(dataset), *first.shape[1:]) for name, first in shares[0].items()}
    for other, share in enumerate(shares):
        for name, part in share.items():
            counts[name][other::processes] = part
    return counts


def describe_machine(fabric: Fabric, memory_format: torch.memory_format) -> dict[str, Any]:
    """What a result was computed on: part of every result file."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "processor": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "processes": fabric.world_size,
        "precision": fabric.strategy.precision.precision,
        "memory_format": str(memory_format).removeprefix("torch."),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def cpu_name() -> str:
    """The processor's name as Linux knows it, else what Python knows."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
