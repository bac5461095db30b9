"""bench.vocabulary_parallel: a tiny run in two processes, what it counts, and the table on paper."""

from __future__ import annotations

import json

import pytest

from bench import eight_gpus, vocabulary_parallel


def test_a_tiny_run_counts_what_is_sent(tmp_path, capsys):
    sizes = {"--rows": "16", "--vocabulary": "64", "--size": "8", "--repeats": "1", "--threshold": "1e-3"}
    vocabulary_parallel.main([*(word for pair in sizes.items() for word in pair), "--output", str(tmp_path)])
    lines = (tmp_path / "vocabulary_parallel.jsonl").read_text().splitlines()
    rows = {row["way"]: row for row in map(json.loads, lines) if row["case"] == "measured"}
    for way, row in rows.items():
        assert row["median_ms"] > 0 and row.get("error", 0) < 1e-5, way
    head, hidden = 4 * 64 * 8, 4 * 16 * 8
    # Of two processes each sends half of a head, and all of what is to be summed, as gloo also does where the sum is to
    # be scattered.
    of_shard = eight_gpus.CALL_BYTES + 16 * eight_gpus.ROW_BYTES + hidden
    found = {
        "sharded, exact": (3, of_shard),
        "sharded, sparse": (4, of_shard + 16 * eight_gpus.SPARSE_ROW_BYTES),
        "gathered head, all rows": (1, head / 2),
        "gathered head, shared rows": (4, head / 2 + 4 + hidden / 2 + head),
    }
    for way, (collectives, expected) in found.items():
        assert (rows[way]["collectives"], rows[way]["sent_bytes"]) == (collectives, expected), way
    shown = capsys.readouterr().out
    assert "on logits" in shown and "On paper, 8 x NVIDIA H200" in shown
    assert [json.loads(line)["way"] for line in lines if "On paper" in line] == [w.name for w in eight_gpus.all_ways()]


@pytest.mark.parametrize("option", ["--rows", "--vocabulary"])
def test_shares_are_equal(option, tmp_path, capsys):
    with pytest.raises(SystemExit):
        vocabulary_parallel.main([option, "7", "--output", str(tmp_path)])
    assert f"{option} 7: expected a multiple of --processes 2" in capsys.readouterr().err


def test_on_paper_a_way_is_the_sum_of_its_parts():
    rows = {row["way"]: row for row in eight_gpus.predictions()}
    for row in rows.values():
        parts = row["products_ms"] + row["passes_ms"] + row["links_ms"]
        assert row["total_ms"] == pytest.approx(parts, abs=2e-3)
    # Three products of 2 N V D at 790 TFLOP/s, an eighth of it, and a head of 2.49 GB, of which seven eighths come in.
    assert rows["unsharded, exact"]["products_ms"] == pytest.approx(77.4, rel=1e-3)
    assert rows["sharded, exact"]["products_ms"] == pytest.approx(77.4 / 8, rel=1e-3)
    assert rows["gathered head, all rows"]["links_ms"] == pytest.approx(
        2 * 151936 * 8192 * 7 / 8 / 380e6 + 0.02, rel=1e-3
    )
    assert rows["sharded, sparse"]["total_ms"] < rows["sharded, exact"]["total_ms"]
    assert rows["sharded, exact"]["total_ms"] < rows["loss_parallel on logits"]["total_ms"]
