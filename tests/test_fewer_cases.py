"""What `make test` leaves out of products of parameters, and what it keeps."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import torch

from tests.fewer_cases import chosen

ROOT = Path(__file__).resolve().parents[1]
BACKENDS, DTYPES, SIZES = ("torch", "cpp", "triton"), (torch.float32, torch.bfloat16), (1, 7, 8, 64)
PRODUCT = [
    {"backend": backend, "dtype": dtype, "size": size}
    for backend, dtype, size in itertools.product(BACKENDS, DTYPES, SIZES)
]


def test_every_value_stays_and_hardly_more():
    places = chosen("test", PRODUCT)
    for name, values in {"backend": BACKENDS, "dtype": DTYPES, "size": SIZES}.items():
        assert {PRODUCT[place][name] for place in places} == set(values)
    assert len(places) <= 5 < len(PRODUCT)


def test_the_choice_is_the_same_each_time_and_another_one_for_another_test():
    again = [dict(case) for case in PRODUCT]
    assert chosen("test", PRODUCT) == chosen("test", again) == sorted(chosen("test", PRODUCT))
    assert len({tuple(chosen(f"test_{k}", PRODUCT)) for k in range(10)}) > 1


def test_all_values_of_one_parameter_stay():
    assert chosen("test", [{"answer": answer} for answer in ("1", 1, 1.0, True, None)]) == [0, 1, 2, 3, 4]
    assert chosen("test", [{}]) == [0]


def test_pytest_leaves_out_after_markers(tmp_path):
    """What a marker leaves out is not chosen."""
    (tmp_path / "test_it.py").write_text(
        "import pytest\n"
        "@pytest.mark.parametrize('a', range(3))\n"
        "@pytest.mark.parametrize('b', [0, pytest.param(1, marks=pytest.mark.xfail)])\n"
        "def test_product(a, b): ...\n"
        "def test_plain(): ...\n"
    )
    words = ("-m", "pytest", "-q", "-p", "tests.conftest", "-p", "no:cacheprovider", "-m", "not xfail", "--fewer-cases")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        [sys.executable, *words], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    assert ended.stdout.splitlines()[-1].startswith("4 passed, 3 deselected")
