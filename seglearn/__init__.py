"""seglearn: the package of the course on deep semantic segmentation.

It is distributed as `seglearn-course`; another project, about time series, owns the name `seglearn` on PyPI.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from seglearn.fields import effective_receptive_field as effective_receptive_field
    from seglearn.fields import receptive_field as receptive_field

__version__ = "0.1.0"
__course__ = True  # tells this package from that other one


def check_env(seconds: int) -> None:
    """Say what a chapter runs on: versions, device, and that it takes about `seconds` on two CPU cores."""
    import platform

    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    print(f"seglearn {__version__}, torch {torch.__version__}, Python {platform.python_version()}, on {device}")
    print(f"This chapter takes about {seconds} seconds on two CPU cores.")


def __getattr__(name: str) -> Any:
    if name in ("receptive_field", "effective_receptive_field"):  # on demand: PyTorch takes seconds to import
        from seglearn import fields

        return getattr(fields, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
