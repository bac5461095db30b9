"""Tiny runs of TRL's trainers: random models, random words, a tokenizer made on the spot."""

from __future__ import annotations

import functools
import gc
import random
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, NamedTuple
from unittest import mock

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from trainers import VOCABULARY, make, weights
from transformers import PreTrainedTokenizerFast

from mind_kernels.integrations import trl
from mind_kernels.integrations.transformers import fuse

TIMES = {"step_time", "train_runtime", "train_samples_per_second", "train_steps_per_second", "eval_runtime"}
TIMES |= {"eval_samples_per_second", "eval_steps_per_second"}
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'assistant' %}t5 {% generation %}{{ m.content }} t2{% endgeneration %}"
    "{% else %}t4 {{ m.content }} {% endif %}{% endfor %}{% if add_generation_prompt %}t5 {% endif %}"
)


class Outcome(NamedTuple):
    losses: Tensor
    """Of all backward passes, float64: the log rounds."""
    log: list[dict[str, float]]
    """All that was logged, without times."""
    weights: Tensor
    before: Tensor
    """The weights before the first step."""


def words(count: int, generator: torch.Generator) -> str:
    return " ".join(f"t{int(i)}" for i in torch.randint(6, VOCABULARY, (count,), generator=generator))


def dataset(rows: int = 24, **lengths: int) -> Dataset:
    """Rows of random words, up to so many a column; all but the prompt begin with a space."""
    generator = torch.Generator().manual_seed(0)

    def some(name: str, most: int) -> str:
        count = int(torch.randint((most + 1) // 2, most + 1, (), generator=generator))
        return " " * (name != "prompt") + words(count, generator)

    return Dataset.from_list([{name: some(name, most) for name, most in lengths.items()} for _ in range(rows)])


def conversations(rows: int = 24) -> Dataset:
    """A question and its answer in each row."""
    pairs = dataset(rows, user=4, assistant=9)
    return Dataset.from_list(
        [{"messages": [{"role": role, "content": text.strip()} for role, text in pair.items()]} for pair in pairs]
    )


def tokenizer() -> PreTrainedTokenizerFast:
    """A word of the vocabulary is a token."""
    made = Tokenizer(models.WordLevel({f"t{i}": i for i in range(VOCABULARY)}, unk_token="t3"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = {"pad_token": "t0", "bos_token": "t1", "eos_token": "t2", "unk_token": "t3"}
    return PreTrainedTokenizerFast(tokenizer_object=made, chat_template=TEMPLATE, **ends)


def options(folder: Any, **changes: Any) -> dict[str, Any]:
    """Four steps of four sequences, in two pieces each."""
    defaults = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "max_steps": 4,
        "logging_steps": 1,
        "learning_rate": 0.1,
        "optim": "sgd",  # see trainers.arguments
        "report_to": "none",
        "use_cpu": True,
        "save_strategy": "no",
        "disable_tqdm": True,
        "bf16": False,
        "gradient_checkpointing": False,
    }
    return defaults | changes


def model(family: str = "llama", seed: int = 0, fused: bool = False, **changes: Any) -> Any:
    """A random model of a family; another one of it for another seed."""
    made = make(family, **changes)
    if seed:
        torch.manual_seed(seed)
        for parameter in made.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.3)
    return fuse(made) if fused else made


def lora(**changes: Any) -> Any:
    from peft import LoraConfig

    defaults = {"r": 4, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
    return LoraConfig(**defaults | changes)


@functools.cache
def _freeze() -> None:
    """Every run of a Trainer collects garbage: no longer among all that the imports left, which takes half a second."""
    gc.freeze()


def train(trainer_of: Any, folder: Any, context: AbstractContextManager[Any], **changes: Any) -> Outcome:
    """Trains inside the context what `trainer_of(folder, **changes)` makes there."""
    _freeze()
    with context:
        torch.manual_seed(0)
        random.seed(0)
        trainer = trainer_of(folder, **changes)
        step, losses, before = trainer.training_step, [], weights(trainer.model)

        def recorded(*args: Any, **kwargs: Any) -> Tensor:
            loss = step(*args, **kwargs)
            losses.append(float(loss))
            return loss

        trainer.training_step = recorded
        trainer.train()
    log = [{name: value for name, value in entry.items() if name not in TIMES} for entry in trainer.state.log_history]
    return Outcome(torch.tensor(losses, dtype=torch.float64), log, weights(trainer.model), before)


def train_fused(trainer_of: Any, folder: Any, **changes: Any) -> Outcome:
    """The same with the fused losses, one of which every step has to call."""
    with counted() as calls:

        def made(*args: Any, **kwargs: Any) -> Any:
            trainer = trainer_of(*args, **kwargs)
            calls.clear()  # those of the checks
            return trainer

        outcome = train(made, folder, trl.fused_losses(), **changes)
    assert len(calls) >= len(outcome.losses), f"{len(calls)} fused losses in {len(outcome.losses)} steps"
    return outcome


@contextmanager
def counted() -> Iterator[list[str]]:
    """The names of the losses that the functions given to TRL call inside."""
    calls: list[str] = []

    def counting(name: str) -> Any:
        function = getattr(trl, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            calls.append(name)
            return function(*args, **kwargs)

        return call

    with ExitStack() as stack:
        for name in ("linear_log_prob", "linear_divergence"):
            stack.enter_context(mock.patch.object(trl, name, counting(name)))
        yield calls
