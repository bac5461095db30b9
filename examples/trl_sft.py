"""The fused log-probabilities in TRL's SFTTrainer. Other trainers of TRL work alike: DPO, KTO, GRPO, RLOO.

    python examples/trl_sft.py [--model HuggingFaceTB/SmolLM2-135M] [--data pairs.jsonl] [--steps 20]

Without --model it trains a tiny random model; without --data, on sums. It prints the first and the last loss.
Needs `pip install trl`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from datasets import Dataset
from tiny_model import load
from trl import SFTConfig, SFTTrainer

from mind_kernels.integrations import trl as fused


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="", help="a folder or a name on the Hub")
    parser.add_argument("--data", type=Path, help='a file with {"prompt": "...", "completion": "..."} per line')
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()

    model, tokenizer = load(options.model)
    sums = [{"prompt": f"{a} plus {b} is", "completion": f" {a + b}."} for a in range(20) for b in range(20)]
    pairs = [json.loads(line) for line in options.data.read_text().splitlines()] if options.data else sums

    fused.install()  # the one change: TRL looks its functions up by name at each step, and finds ours
    with tempfile.TemporaryDirectory() as folder:
        arguments = SFTConfig(
            output_dir=folder,
            max_steps=options.steps,
            per_device_train_batch_size=8,
            learning_rate=3e-5 if options.model else 3e-3,
            logging_steps=1,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            bf16=False,
            gradient_checkpointing=False,
        )
        trainer = SFTTrainer(model, arguments, train_dataset=Dataset.from_list(pairs), processing_class=tokenizer)
        trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")


if __name__ == "__main__":
    main()
