"""The fully connected CRF without a compiler: its filter, mean field, and mean field as a layer.

`dense_crf` refines a network's probabilities; `DenseCRF` does so repeatedly on one image; `exact_crf` is what both
approximate; `CRFRNN` learns its weights.
"""

from seglearn.crf.dense import DenseCRF, dense_crf, exact_crf
from seglearn.crf.lattice import Lattice
from seglearn.crf.rnn import CRFRNN

__all__ = ["CRFRNN", "DenseCRF", "Lattice", "dense_crf", "exact_crf"]
