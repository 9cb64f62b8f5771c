"""A trained model as an ONNX file, for onnxruntime, a browser, a phone."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import torch
from torch import nn

from seglearn.crf.rnn import CRFRNN
from seglearn.errors import InputError
from seglearn.inference import evaluation_mode
from seglearn.training.checkpoint import write_atomically


def export_onnx(model: nn.Module, path: str | os.PathLike[str], size: tuple[int, int] = (64, 96)) -> None:
    """Write `model` as ONNX: input `images` float32 [1, 3, H, W], normalised; output `logits` [1, C, H, W].

    H and W stay free. The file holds the weights too.

    Args:
        model: any model of the course; it is exported in evaluation mode and keeps the mode it is in.
        path: the file to write.
        size: height and width of the image that the exporter traces.

    Raises:
        InputError: onnx and onnxscript are not installed; or the model ends in a CRF.
    """
    if any(isinstance(module, CRFRNN) for module in model.modules()):
        raise InputError(
            "This model ends in a CRF, whose lattice is built anew from every image: ONNX has no operations for that. "
            "Export a model without one, such as fcn8s, and run seglearn.dense_crf on its probabilities."
        )
    if not all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript")):
        raise InputError("Exporting needs onnx and onnxscript: pip install onnx onnxscript.")
    images = torch.zeros(1, 3, *size, device=next(model.parameters()).device)
    sides = {2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
    with evaluation_mode(model):
        program = torch.onnx.export(
            model,
            (images,),
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes={"images": sides},
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    write_atomically(Path(path), lambda file: program.save(str(file)))
