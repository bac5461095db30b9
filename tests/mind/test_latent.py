"""`mind latent` from run folders to its page, on tiny students."""

from __future__ import annotations

import json
import time

from latent_runs import complete, grid, train_expert

from mind.cli import main
from mind.data.questions import save_questions

QUICK = ["--draws", "2", "--permutations", "1", "--mixture-seeds", "1", "--max-new-tokens", "6", "--components", "4"]


def test_it(tmp_path, arguments, capsys):
    t=time.time()
    run = train_expert(tmp_path, arguments, "--student.lora", "--student.lora-rank", "2")
    print("train", time.time()-t); t=time.time()
    runs = grid(run)
    save_questions(complete(10), tmp_path / "held.jsonl")
    out=tmp_path/"out"
    print("copies", time.time()-t); t=time.time()
    assert main(["latent", *runs, "--questions", str(tmp_path/"held.jsonl"), "--output", str(out), *QUICK, "--coverage", str(run), "--samples", "3"]) == 0
    print("latent", time.time()-t); t=time.time()
    assert main(["latent", *runs, "--questions", str(tmp_path/"held.jsonl"), "--output", str(out), *QUICK, "--coverage", str(run), "--samples", "3"]) == 0
    print("again", time.time()-t); t=time.time()
    import shutil
    shutil.copytree(out, "/tmp/lat_out", dirs_exist_ok=True)
