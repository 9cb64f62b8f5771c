"""What a model computes, operation by operation, without computing it.

`trace` runs a copy of the model on PyTorch's meta device, where tensors have a shape and no content, and notes each
operation. `seglearn.fields` follows pixels through the list, `seglearn.diagrams` draws it.

It uses `TorchDispatchMode`, as `torch.utils.flop_counter` does. `torch.export`, the alternative, first compiles the
model: slower by far, and what it accepts differs between versions of PyTorch.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from seglearn.errors import InputError


@dataclass(frozen=True, eq=False)
class Value:
    """A tensor of the run.

    Attributes:
        shape: its shape.
        constant: its content, where it follows from neither image nor parameters (positions in an index, say).
    """

    shape: tuple[int, ...]
    constant: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Operation:
    """One call of one of PyTorch's basic operations.

    Attributes:
        name: its name in ATen, such as "convolution"; one that works in place is called like the other one.
        arguments: all its arguments by name, tensors as `Value`.
        outputs: what it returned.
        module: path of the innermost module that called it, "" for the model itself.
        pointwise: each element of the result depends on the same element of each argument.
    """

    name: str
    arguments: Mapping[str, Any]
    outputs: tuple[Value, ...]
    module: str
    pointwise: bool

    def inputs(self) -> list[Value]:
        """The tensors among its arguments, in order."""
        found: list[Value] = []
        for argument in self.arguments.values():
            parts = argument if isinstance(argument, list | tuple) else [argument]
            found += [part for part in parts if isinstance(part, Value)]
        return found


@dataclass(eq=False)
class Trace:
    """One run of a model.

    Attributes:
        image: the model's input.
        output: what it returned.
        operations: all operations, in the order of the run.
        outputs: the last output of every submodule that returned a tensor, by the submodule's path.
    """

    image: Value
    output: Value
    operations: list[Operation]
    outputs: dict[str, Value] = field(default_factory=dict)


def trace(model: nn.Module, size: tuple[int, int]) -> Trace:
    """Follow one image of height and width `size` through a model in evaluation mode. The model stays as it is.

    Raises:
        InputError: the model returns no tensor.
    """
    tensors = [*model.parameters(), *model.buffers()]
    memo: dict[int, Any] = {id(t): _on_meta(t) for t in tensors}  # spares the copy its weights
    model = copy.deepcopy(model, memo).eval()
    paths: list[str] = [""]
    returned: dict[str, Any] = {}

    def enter(path: str) -> Callable[..., None]:
        return lambda *_: paths.append(path)

    def leave(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, arguments: Any, output: Any) -> None:
            paths.pop()
            if isinstance(output, Tensor):
                returned[path] = recorder.value(output)

        return hook

    for path, module in model.named_modules():
        module.register_forward_pre_hook(enter(path))
        module.register_forward_hook(leave(path))
    recorder = _Recorder(paths)
    dtype = next((t.dtype for t in tensors if t.is_floating_point()), torch.float32)
    images = torch.empty(1, 3, *size, device="meta", dtype=dtype)
    image = recorder.value(images)
    with torch.no_grad(), recorder:
        output = model(images)
    if not isinstance(output, Tensor):
        raise InputError(f"The model returns {type(output).__name__}, not a tensor: pass one that returns its logits.")
    return Trace(image, recorder.value(output), recorder.operations, returned)


def _on_meta(tensor: Tensor) -> Tensor:
    empty = torch.empty_like(tensor, device="meta")
    return nn.Parameter(empty, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty


class _Recorder(TorchDispatchMode):
    """Notes operations as they run. Small tensors that follow from no image are computed for real beside them."""

    def __init__(self, paths: Sequence[str]) -> None:
        super().__init__()
        self.paths = paths
        self.operations: list[Operation] = []
        self.values: dict[int, tuple[Value, Tensor]] = {}  # holds the tensor too: its id stays its own

    def value(self, tensor: Tensor, constant: Tensor | None = None, fresh: bool = False) -> Value:
        """The value that stands for a tensor; `fresh` after an operation, which may have changed it in place."""
        if fresh or id(tensor) not in self.values:
            if constant is None and tensor.device.type != "meta":
                constant = tensor
            self.values[id(tensor)] = Value(tuple(tensor.shape), constant), tensor
        return self.values[id(tensor)][0]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        schema = func._schema.arguments
        arguments = {a.name: a.default_value for a in schema if a.has_default_value()}
        arguments |= dict(zip((a.name for a in schema), args, strict=False)) | kwargs
        known = {key: self._each(argument, self.value) for key, argument in arguments.items()}
        name = func.overloadpacket.__name__
        if "batch_norm" in name:  # PyTorch decomposes it on the meta device, which takes most of the time of a ResNet
            result = torch.empty_like(args[0]), *(torch.empty_like(arg) for arg in args[3:5])
        else:
            result = func(*args, **kwargs)
        outputs = [t for t in (result if isinstance(result, tuple | list) else [result]) if isinstance(t, Tensor)]
        small = sum(t.numel() for t in outputs) <= 100_000
        constant = self._constant(func, args, kwargs) if small else None
        values = tuple(self.value(t, constant if len(outputs) == 1 else None, fresh=True) for t in outputs)
        name = name if name.startswith("__") else name.removesuffix("_")
        pointwise = torch.Tag.pointwise in func.tags
        self.operations.append(Operation(name, known, values, self.paths[-1], pointwise))
        return result

    def _constant(self, func: Any, args: Any, kwargs: Any) -> Tensor | None:
        """The result on the CPU, if all tensors among the arguments are known there."""

        def real(tensor: Tensor) -> Tensor:
            constant = self.value(tensor).constant
            if constant is None:
                raise LookupError
            return constant

        try:
            args = [self._each(argument, real) for argument in args]
            kwargs = {key: self._each(argument, real) for key, argument in kwargs.items()}
        except LookupError:
            return None
        if "device" in kwargs:
            kwargs["device"] = torch.device("cpu")
        result = func(*args, **kwargs)
        return result if isinstance(result, Tensor) else None

    @staticmethod
    def _each(argument: Any, of: Callable[[Tensor], Any]) -> Any:
        if isinstance(argument, Tensor):
            return of(argument)
        if isinstance(argument, list | tuple):
            return [of(part) if isinstance(part, Tensor) else part for part in argument]
        return argument
