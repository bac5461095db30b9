"""The fused cross-entropy in the transformers Trainer.

    python examples/transformers_trainer.py [--model HuggingFaceTB/SmolLM2-135M] [--data texts.txt] [--steps 30]

Without --model it trains a tiny random model; without --data, on sums. It prints the first and the last loss.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from tiny_model import load
from transformers import DataCollatorForLanguageModeling, Trainer, TrainingArguments

from mind_kernels.integrations.transformers import fuse


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="", help="a folder or a name on the Hub")
    parser.add_argument("--data", type=Path, help="a file with a text per line")
    parser.add_argument("--steps", type=int, default=30)
    options = parser.parse_args()

    model, tokenizer = load(options.model)
    sums = [f"{a} plus {b} is {a + b}." for a in range(20) for b in range(20)]
    texts = options.data.read_text().splitlines() if options.data else sums
    rows = [tokenizer(text + tokenizer.eos_token, truncation=True, max_length=512) for text in texts]

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=options.steps,
            per_device_train_batch_size=8,
            learning_rate=3e-5 if options.model else 3e-3,
            logging_steps=1,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
        )
        trainer = Trainer(
            fuse(model),  # the one change: the model computes its loss without logits
            arguments,
            train_dataset=rows,
            data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
        )
        trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")


if __name__ == "__main__":
    main()
