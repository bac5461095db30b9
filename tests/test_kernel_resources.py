"""The table of registers, shared memory and occupancy in bench/results: no spills, and not stale."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from bench.kernel_resources import CAPABILITIES, COLUMNS, main, occupancy, read

# In a process of its own, since the tests' own kernels may be the interpreter's: the names of all variants, and two of
# them compiled again.
AGAIN = """
import importlib.metadata, json
from bench.kernel_resources import CAPABILITIES, of_variant, read
from mind_kernels.commands.ahead import modules, variants

every = variants(modules(), candidates=True)
stored = {(row["kernel"], row["sm"]): row for row in read() if row["compiler"].startswith("triton")}
assert set(stored) == {(v.name, c) for v in every for c in v.capabilities or CAPABILITIES}, "stale: names"
harmless = {v.name for v in every if v.harmless_spills}
assert all(row["spills"] == 0 or row["kernel"] in harmless for row in stored.values()), "spills"
version = {row["compiler"] for row in stored.values()}
if version == {f"triton {importlib.metadata.version('triton')}"}:
    for name in ("gather and product bf16", "row gradient bf16"):
        for variant in [v for v in every if v.name.startswith(name)][:1]:
            assert of_variant(variant, 90) == stored[variant.name, 90], f"stale: {variant.name}"
"""


def test_occupancy_by_the_limits_of_a_multiprocessor():
    assert occupancy(256, 32, 0, 90) == (8, 1.0, "threads")
    assert occupancy(1024, 64, 0, 90) == (1, 0.5, "registers")
    assert occupancy(128, 33, 0, 90) == (12, 0.75, "registers")  # 40 registers of each thread are taken
    assert occupancy(64, 40, 0, 90) == (24, 0.75, "registers")  # 12 warps of each of four schedulers
    assert occupancy(32, 16, 0, 80) == (32, 0.5, "blocks")
    assert occupancy(256, 32, 100 << 10, 90) == (2, 0.25, "shared memory")
    assert occupancy(256, 32, 200 << 10, 90).blocks == 1 and occupancy(256, 32, 200 << 10, 80).blocks == 0


def test_every_kernel_starts_and_none_spills_unseen(capsys):
    rows = read()
    assert {row["sm"] for row in rows} == set(CAPABILITIES) and set(COLUMNS) <= set(rows[0])
    assert len({(row["kernel"], row["sm"]) for row in rows}) == len(rows)
    for row in rows:
        expected = occupancy(row["threads"], row["registers"], row["shared_bytes"], row["sm"])
        assert (row["blocks"], row["limit"]) == (expected.blocks, expected.limit) and expected.blocks >= 1, row[
            "kernel"
        ]
        assert row["spills"] == 0 or row["compiler"].startswith("triton")
    main(["--draw", "--output", "bench/results"])
    assert rows[0]["kernel"] in capsys.readouterr().out


def test_the_table_is_not_stale():
    pytest.importorskip("triton")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    ended = subprocess.run([sys.executable, "-c", AGAIN], env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
