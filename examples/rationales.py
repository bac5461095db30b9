"""A plain loop over K rationales per question: cross-entropy of all, and agreement of their answers (pairwise JSD).

    python examples/rationales.py [--model HuggingFaceTB/SmolLM2-135M] [--steps 30]

Without --model it trains a tiny random model. It prints both losses at the first and the last step.
"""

from __future__ import annotations

import argparse

import torch
from tiny_model import load

from mind_kernels import Head, linear_cross_entropy, linear_pairwise_jsd
from mind_kernels.integrations.transformers import read_condition

WAYS = ("Add {b} to {a}.", "Count {b} on from {a}.", "{a} and {b} together.", "Take {a}, then {b} more.")


def batch_of(tokenizer, a: int, b: int) -> dict[str, torch.Tensor]:
    """K rationales of a question. The answer has its own tokens, the same P in each, so that they can be compared."""
    question = tokenizer(f"What is {a} plus {b}? ")["input_ids"]
    answer = tokenizer(f" #### {a + b}")["input_ids"] + [tokenizer.eos_token_id]
    rationales = [tokenizer(way.format(a=a, b=b))["input_ids"] for way in WAYS]
    starts = torch.tensor([len(question) + len(rationale) for rationale in rationales])
    width = int(starts.max()) + len(answer)
    ids = torch.full((len(WAYS), width), tokenizer.pad_token_id)
    labels = torch.full((len(WAYS), width), -100)
    for k, rationale in enumerate(rationales):
        row = torch.tensor(question + rationale + answer)
        ids[k, : len(row)] = row
        labels[k, len(question) : len(row)] = row[len(question) :]
    before = starts[:, None] - 1 + torch.arange(len(answer))  # (K, P): the positions before the answer's tokens
    mask = (torch.arange(width) < (starts + len(answer))[:, None]).long()
    return {"input_ids": ids, "attention_mask": mask, "labels": labels, "answer_positions": before}


def losses_of(model, head: Head, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean cross-entropy per token, and the mean JSD over the answer's tokens and the pairs of rationales."""
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    hidden = model.base_model(**inputs).last_hidden_state  # (K, T, D)
    nll = linear_cross_entropy(hidden[:, :-1].flatten(0, 1), head, batch["labels"][:, 1:].flatten())
    k, p = batch["answer_positions"].shape
    answers = hidden[torch.arange(k)[:, None], batch["answer_positions"]].transpose(0, 1)  # (P, K, D)
    weight = torch.full((p, k, k), 2 / (p * k * (k - 1)))  # of each pair i < j
    return nll, linear_pairwise_jsd(answers, head, weight)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="", help="a folder or a name on the Hub")
    parser.add_argument("--steps", type=int, default=30)
    options = parser.parse_args()

    model, tokenizer = load(options.model)
    projection = model.get_output_embeddings()
    head = Head(projection.weight, projection.bias, *read_condition(model))  # with softcap and scale of its logits
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-5 if options.model else 3e-3)
    for step in range(options.steps):
        nll, jsd = losses_of(model, head, batch_of(tokenizer, step % 7 + 1, step % 5 + 1))
        (nll + 0.1 * jsd).backward()
        optimizer.step()
        optimizer.zero_grad()
        if step in (0, options.steps - 1):
            print(f"step {step + 1}: cross-entropy {nll:.3f}, pairwise JSD {jsd:.4f}")


if __name__ == "__main__":
    main()
