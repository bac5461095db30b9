"""The compiled module of csrc/host/packer.cpp."""

import numpy as np
from numpy.typing import NDArray

def best_fit_decreasing(lengths: NDArray[np.int64], capacity: int, bins: NDArray[np.int64], /) -> None: ...
