"""Converts an error that the caller accepts to the threshold of a sparse gradient, as bench/sparse_error.py
measured."""

from __future__ import annotations

import sys

from mind_kernels import checks

# The error of dH grows as this power of the threshold, and is at most _ERROR at _THRESHOLD: a quarter above the error
# that was measured on the hardest real rows.
_POWER, _THRESHOLD, _ERROR = 0.6, 2.0**-16, 1.3e-3
# The same for a threshold for the whole batch.
_BATCH_POWER, _BATCH_THRESHOLD, _BATCH_ERROR = 0.75, 2.0**-22, 4e-5


def threshold_for_error(error: float) -> float:
    """The `gradient_threshold` for a sparse gradient with a relative error of about `error`, or less.

    The error is that of the whole gradient of a cross-entropy over a batch, |found - exact| / |exact| in the Frobenius
    norm, for the hidden states; that of the weight's gradient is about a fourth of it. The relation was measured on a
    trained model's rows in float32; it is not a bound. With bfloat16 operands the error is 1e-2 anyway, so smaller
    values have no use there. If a batch would keep so many entries that no time is saved, its gradient is exact.

    Args:
        error: in (0, 1), such as 1e-3.

    Returns:
        A threshold in (0, 1): 2^-16.6 for 1e-3.

    Raises:
        ValueError, TypeError: `error` is not a number in (0, 1).

    Source:
        bench/sparse_error.py measures the relation and fails if it does not hold;
        mind_kernels/linear_cross_entropy/README.md has its table.
    """
    _check("error", error)
    return max(_THRESHOLD * (error / _ERROR) ** (1 / _POWER), sys.float_info.min)


def batch_threshold_for_error(error: float) -> float:
    """The `RowSpec.batch_threshold` for `gradient_error`, in (0, 1)."""
    _check("gradient_error", error)
    return max(min(_BATCH_THRESHOLD * (error / _BATCH_ERROR) ** (1 / _BATCH_POWER), 0.5), sys.float_info.min)


def _check(name: str, error: float) -> None:
    checks.number(name, error)
    if error is None or not 0.0 < error < 1.0:
        raise ValueError(f"{name} is {error}: expected a number in (0, 1)")
