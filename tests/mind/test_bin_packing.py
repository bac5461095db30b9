"""Best-fit packing: both implementations against a direct one, what they promise, and what they refuse."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mind.batches import bin_packing
from mind.batches.bin_packing import PACKER, best_fit, bins_of, packer_unavailable_reason
from mind.errors import MindError

WITHOUT_EXTENSIONS = os.environ.get("MIND_KERNELS_BUILD") == "none"
IMPLEMENTATIONS = ["python"] if WITHOUT_EXTENSIONS else ["compiled", "python"]

each_implementation = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)


@st.composite
def packings(draw, max_items: int = 60, max_capacity: int = 40):
    """(lengths, capacity) with many ties."""
    capacity = draw(st.integers(1, max_capacity))
    return draw(st.lists(st.integers(1, capacity), max_size=max_items)), capacity


def direct_best_fit(lengths: list[int], capacity: int) -> list[int]:
    """The definition, with a search through every bin."""
    residuals: list[int] = []
    bins = [0] * len(lengths)
    for item in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        fits = [(residual, b) for b, residual in enumerate(residuals) if residual >= lengths[item]]
        if not fits:
            fits = [(capacity, len(residuals))]
            residuals.append(capacity)
        bins[item] = min(fits)[1]
        residuals[bins[item]] -= lengths[item]
    return bins


def fewest_bins(lengths: list[int], capacity: int) -> int:
    """OPT, by the best (bins, fill of the last bin) of every subset."""
    best = [(1, 0)] + [(len(lengths) + 1, 0)] * (2 ** len(lengths) - 1)
    for subset in range(2 ** len(lengths)):
        bins, fill = best[subset]
        for item, length in enumerate(lengths):
            if not subset >> item & 1:
                after = (bins, fill + length) if fill + length <= capacity else (bins + 1, length)
                best[subset | 1 << item] = min(best[subset | 1 << item], after)
    return best[-1][0]


def test_the_compiled_packer_is_there():
    if WITHOUT_EXTENSIONS:
        pytest.skip("MIND_KERNELS_BUILD=none: the Python twin alone is tested")
    assert PACKER == "compiled", packer_unavailable_reason()
    assert packer_unavailable_reason() is None


@each_implementation
@given(packings())
@settings(deadline=None, max_examples=300)
def test_equals_the_definition(implementation, packing):
    lengths, capacity = packing
    bins = best_fit(lengths, capacity, implementation=implementation)
    assert bins.dtype == np.int64
    assert bins.tolist() == direct_best_fit(lengths, capacity)


@pytest.mark.skipif(WITHOUT_EXTENSIONS, reason="MIND_KERNELS_BUILD=none: the Python twin alone is tested")
@pytest.mark.parametrize("capacity", [1, 64, 2048, 10**12])
def test_compiled_equals_python_on_long_lists(capacity):
    lengths = np.random.default_rng(capacity).integers(1, capacity + 1, 20_000)
    compiled = best_fit(lengths, capacity, implementation="compiled")
    np.testing.assert_array_equal(compiled, best_fit(lengths, capacity, implementation="python"))


@each_implementation
@given(packings())
@settings(deadline=None)
def test_bins_are_within_capacity_and_numbered_from_zero(implementation, packing):
    lengths, capacity = packing
    bins = best_fit(lengths, capacity, implementation=implementation)
    fills = np.bincount(bins, weights=lengths) if lengths else np.zeros(0)
    assert (fills <= capacity).all()
    assert (fills > 0).all()


@each_implementation
@given(packings(max_items=8, max_capacity=20))
@settings(deadline=None)
def test_near_the_optimum(implementation, packing):
    lengths, capacity = packing
    if lengths:
        bins = int(best_fit(lengths, capacity, implementation=implementation).max()) + 1
        assert bins <= 11 / 9 * fewest_bins(lengths, capacity) + 6 / 9


@each_implementation
def test_short_items_fill_their_bins(implementation):
    lengths = np.random.default_rng(0).integers(1, 1025, 50_000)
    bins = int(best_fit(lengths, 2048, implementation=implementation).max()) + 1
    assert bins <= 1.001 * np.ceil(lengths.sum() / 2048)


@each_implementation
def test_ties(implementation):
    # Items 0 to 3 open a bin each and leave 4 in all of them; the 4s go to the bins in order of opening.
    assert best_fit([6, 6, 6, 6, 4, 4, 4], 10, implementation=implementation).tolist() == [0, 1, 2, 3, 0, 1, 2]


@each_implementation
def test_deterministic_and_leaves_its_input_alone(implementation):
    lengths = np.random.default_rng(1).integers(1, 100, 1000)
    lengths.setflags(write=False)
    first = best_fit(lengths, 128, implementation=implementation)
    np.testing.assert_array_equal(first, best_fit(lengths, 128, implementation=implementation))
    np.testing.assert_array_equal(first, best_fit(lengths.tolist(), 128, implementation=implementation))
    np.testing.assert_array_equal(first, best_fit(lengths.astype(np.int32), 128, implementation=implementation))
    np.testing.assert_array_equal(first, best_fit(np.repeat(lengths, 2)[::2], 128, implementation=implementation))


@each_implementation
def test_no_items(implementation):
    bins = best_fit([], 8, implementation=implementation)
    assert bins.shape == (0,)
    assert bins.dtype == np.int64


@each_implementation
@pytest.mark.parametrize(
    ("lengths", "capacity", "message"),
    [
        ([1], 0, r"capacity is 0: expected at least 1"),
        ([3, 0], 8, r"lengths\[1\] is 0: expected 1 to 8"),
        ([3, 4, -2], 8, r"lengths\[2\] is -2: expected 1 to 8"),
        ([3, 9, 9], 8, r"lengths\[1\] is 9: expected 1 to 8"),
        ([1.5], 8, r"lengths has dtype float64: expected integers"),
        ([[1, 2]], 8, r"lengths has 2 dimensions: expected 1"),
        ([[1, 2], [3]], 8, r"lengths is not a flat list of integers"),
    ],
)
def test_errors(implementation, lengths, capacity, message):
    with pytest.raises(MindError, match=message):
        best_fit(lengths, capacity, implementation=implementation)


def test_unknown_implementation():
    with pytest.raises(MindError, match='implementation is \'fast\': expected "auto", "compiled" or "python"'):
        best_fit([1], 8, implementation="fast")


@pytest.mark.skipif(WITHOUT_EXTENSIONS, reason="MIND_KERNELS_BUILD=none: the Python twin alone is tested")
@pytest.mark.parametrize(
    ("lengths", "capacity", "message"),
    [
        ([1], 0, r"capacity is 0"),
        ([3, 9], 8, r"lengths\[1\] is 9"),
        ([0], 8, r"lengths\[0\] is 0"),
        ([1, 2, 3], 8, r"bins has 2 items: expected 3"),
    ],
)
def test_the_extension_checks_its_own_arguments(lengths, capacity, message):
    bins = np.full(2 if len(lengths) == 3 else len(lengths), -1)
    with pytest.raises(ValueError, match=message):
        bin_packing._packer.best_fit_decreasing(np.array(lengths, dtype=np.int64), capacity, bins)
    assert (bins == -1).all()


@pytest.mark.skipif(WITHOUT_EXTENSIONS, reason="MIND_KERNELS_BUILD=none: the Python twin alone is tested")
def test_the_extension_takes_contiguous_lists_of_int64_alone():
    pack, items = bin_packing._packer.best_fit_decreasing, np.ones(4, np.int64)
    read_only = items.copy()
    read_only.flags.writeable = False
    for wrong in (items.astype(float), items.astype(np.int32), items.reshape(2, 2), [1, 1, 1, 1]):
        for arguments in ((wrong, 8, items.copy()), (items, 8, wrong)):
            with pytest.raises(TypeError):
                pack(*arguments)
    for arguments in ((items, 8, read_only), (np.ones(8, np.int64)[::2], 8, items.copy())):
        with pytest.raises((BufferError, ValueError)):
            pack(*arguments)


def test_without_the_extension_auto_warns_once_and_compiled_says_why():
    program = (
        "import sys, warnings\n"
        "sys.modules['mind._packer'] = None\n"
        "from mind.batches.bin_packing import PACKER, best_fit, packer_unavailable_reason\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    warnings.simplefilter('always')\n"
        "    bins = [best_fit([3, 5, 5], 8).tolist() for _ in range(2)]\n"
        "print(PACKER, bins, [str(w.message) for w in caught], packer_unavailable_reason(), sep='\\n')\n"
        "best_fit([1], 8, implementation='compiled')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    packer, bins, warned, reason = done.stdout.splitlines()
    assert packer == "python"
    assert bins == "[[0, 0, 1], [0, 0, 1]]"
    assert warned.count("the compiled packer is not available") == 1
    assert reason in warned
    assert "_packer" in reason
    assert done.stderr.splitlines()[-1].startswith("mind.errors.MindError: the compiled packer is not available")
    assert reason in done.stderr


@pytest.fixture
def without_the_extension(monkeypatch):
    for name, value in {"_packer": None, "PACKER": "python", "_warned": False, "_unavailable_reason": "gone"}.items():
        monkeypatch.setattr(bin_packing, name, value)


def test_auto_warns_at_the_first_call_alone(without_the_extension):
    with pytest.warns(RuntimeWarning, match="not available: gone") as caught:
        assert [best_fit([3, 5, 5], 8).tolist() for _ in range(2)] == [[0, 0, 1]] * 2
    assert len(caught) == 1
    with pytest.raises(MindError, match=r"the compiled packer is not available \(gone\): reinstall"):
        best_fit([1], 8, implementation="compiled")


@pytest.mark.parametrize("asked", ["auto", "compiled", "python"])
def test_which_implementation_is_called(asked, monkeypatch):
    called = []

    class Compiled:
        @staticmethod
        def best_fit_decreasing(items, capacity, bins):
            called.append("compiled")
            bins[:] = 0

    def in_python(items, capacity):
        called.append("python")
        return np.zeros(len(items), np.int64)

    monkeypatch.setattr(bin_packing, "_packer", Compiled)
    monkeypatch.setattr(bin_packing, "PACKER", "compiled")
    monkeypatch.setattr(bin_packing, "_best_fit_python", in_python)
    assert best_fit([1, 2], 8, implementation=asked).tolist() == [0, 0]
    assert called == ["python" if asked == "python" else "compiled"]


def test_an_item_that_is_too_long_has_a_bin_of_its_own():
    assert bins_of([3, 20, 5, 4, 8], 8) == [[1], [4], [0, 2], [3]]
    assert bins_of([2, 1], 0) == [[0], [1]] and bins_of([], 8) == []


@pytest.mark.skipif(WITHOUT_EXTENSIONS, reason="MIND_KERNELS_BUILD=none: the Python twin alone is tested")
def test_with_the_extension_nothing_is_warned():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        best_fit([1, 2], 8)
