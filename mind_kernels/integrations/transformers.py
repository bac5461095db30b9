"""The fused cross-entropy inside any causal language model of transformers: for its Trainer, and for every loop that
calls the model with labels.

    from mind_kernels.integrations.transformers import fuse
    fuse(model)

The model and its LM head change their class. With labels, the model's forward pass hands the targets to the head, whose
forward pass computes the loss from its inputs and its weight; the model then takes that loss in place of the one of its
logits. So whatever surrounds the forward passes stays right: autocast, DDP, FSDP2, gradient checkpointing, auxiliary
losses, adapters. A model without labels is as it was.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from mind_kernels import linear_cross_entropy
from mind_kernels.integrations.condition import Condition, KnownOutputs
from mind_kernels.integrations.fused_model import IGNORED, Options, become_fused, restore
from mind_kernels.integrations.head import active_module, head_tensors
from mind_kernels.integrations.probe import accepts, probe_ids, probing, rounding, without_cache

M = TypeVar("M", bound=nn.Module)

_PROBED_TOKENS = 9


def fuse(
    model: M,
    *,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    gradient_threshold: float | None = None,
    backend: str = "auto",
    eval_logits: bool = True,
    condition: Condition | None = None,
) -> M:
    """Makes a causal language model compute its loss by `linear_cross_entropy`, without the logits.

    Called before or after get_peft_model, fully_shard and DistributedDataParallel; before the first compiled step. In
    training the output's `logits` are empty, (B, 0, V).

    Args:
        model: a causal language model of transformers, bare or wrapped; changed in place. Its forward pass keeps its
            signature and takes one argument more, `skip_logits: bool`: whether the logits of this call are left out
            (None: as `eval_logits` says). One thread at a time may call it.
        label_smoothing: see `linear_cross_entropy`. Not the Trainer's label_smoothing_factor, which takes the labels
            away from the model and needs all logits.
        z_loss, gradient_threshold, backend: see `linear_cross_entropy`.
        eval_logits: a model in evaluation mode returns its logits, as metrics and predictions want them; False: the
            loss alone.
        condition: softcap and temperature of the logits. None: they are read off the model by forward passes of a few
            tokens, and the fused loss is compared with the model's own.

    Returns:
        The model. `last_row_stats` of the model of transformers (model.module.last_row_stats under DDP) holds the
        RowStats (B, T) of the last call with labels: accuracy and entropy without logits. Position t predicts token
        t + 1; the last one of a sequence, and those whose label is -100, hold zeros.

    Raises:
        ValueError: no LM head, or one that is no plain linear layer; logits that are no softcap and temperature of the
            head's outputs; a loss that is not the cross-entropy of the next token (encoder-decoder and masked models);
            parameters without data (meta device) and no condition; a forward pass that was set on the instance.
        BackendUnavailableError: the backend that was named cannot run here.
    """
    language_model = _language_model(model)
    if getattr(language_model, "_fused_options", None) is not None:
        raise ValueError(f"{type(language_model).__name__} is fused already")
    head = _head(language_model)
    _check_forward(language_model, active_module(head))
    loss = {
        "label_smoothing": label_smoothing,
        "z_loss": z_loss,
        "gradient_threshold": gradient_threshold,
        "backend": backend,
    }
    _check_loss(head_tensors(head)[0], loss)
    if condition is None:
        condition = read_condition(language_model)
        _compare(language_model, Options(condition, {"backend": backend}, eval_logits=False))
    become_fused(language_model, Options(condition, loss, eval_logits))
    return model


def unfuse(model: M) -> M:
    """Undoes `fuse`; returns the model. Raises ValueError if it is not fused, or was changed further since."""
    language_model = _language_model(model)
    if "_fused_from" not in vars(type(language_model)):
        raise ValueError(f"{type(language_model).__name__}: expected the model as `fuse` left it")
    if "forward" in vars(language_model):  # accelerate's, which calls the fused one
        raise ValueError(f"{type(language_model).__name__} has a forward pass of its own: `del model.forward` first")
    restore(language_model)
    return model


def read_condition(model: nn.Module) -> Condition:
    """Softcap and temperature by which a causal language model's logits follow from the outputs of its LM head.

    One forward pass of a few tokens, without a gradient, whose head returns known numbers.

    Raises:
        ValueError: a model that does something else to these outputs; a model without an LM head or without data.
    """
    language_model = _language_model(model)
    name = type(language_model).__name__
    with KnownOutputs(active_module(_head(language_model))) as known:
        logits = _outputs(language_model).logits
    if known.inputs is None:
        raise ValueError(f"{name}: its logits do not come from the LM head that it names")
    try:
        return Condition.of(logits)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _check_forward(model: nn.Module, head: nn.Module) -> None:
    """Raises ValueError for forward passes that the fused ones could not take the place of."""
    for module in (model, head):
        if "forward" in vars(module):
            raise ValueError(
                f"{type(module).__name__} has a forward pass of its own (accelerate sets one for device_map and mixed "
                "precision, TRL for its trainers), which would pass the fused one by: fuse the model before that"
            )
    if not accepts(model, "labels"):
        raise ValueError(f"{type(model).__name__}: its forward pass takes no labels: expected a causal language model")


def _check_loss(weight: Tensor, options: dict[str, Any]) -> None:
    """Raises what `linear_cross_entropy` would, given these options: BackendUnavailableError, for example."""
    if not hasattr(weight, "full_tensor"):  # FSDP has not gathered it
        no_row, no_target = weight.new_zeros(0, weight.shape[1]), torch.zeros(0, dtype=torch.int64)
        linear_cross_entropy(no_row, weight.detach(), no_target, reduction="sum", **options)


def _compare(model: Any, options: Options) -> None:
    """Raises ValueError unless the fused loss is the model's own: of a few tokens, and of a first token alone, which no
    position predicts."""
    first = torch.full((_PROBED_TOKENS,), IGNORED)
    first[0] = 0
    for labels in (probe_ids(model, _PROBED_TOKENS), first):
        output = _outputs(model, labels)
        own = output.get("loss")
        if own is None:
            raise ValueError(f"{type(model).__name__}: with labels it gives no loss")
        become_fused(model, options)
        try:
            fused = _outputs(model, labels).loss
        except ValueError as error:
            raise ValueError(
                f"{type(model).__name__}: it does not take its loss from its loss_function, or its head's inputs are "
                f"not those of the next tokens' logits ({error.__cause__})"
            ) from error
        finally:
            restore(model)
        rtol = rounding(output.logits.dtype)
        if not torch.allclose(fused.double(), own.double(), rtol=rtol, atol=1e-6, equal_nan=True):
            raise ValueError(
                f"{type(model).__name__}: its own loss of {_PROBED_TOKENS} tokens is {float(own):.6g}, that of its "
                f"head's inputs {float(fused):.6g}: expected a model whose loss is the cross-entropy of the next token"
            )


def _outputs(model: Any, labels: Tensor | None = None) -> Any:
    """What the model gives for a few tokens, in evaluation mode and without a gradient."""
    name = type(model).__name__
    if any(parameter.is_meta for parameter in model.parameters()):
        raise ValueError(
            f"{name} has no data yet (meta device): pass condition=read_condition(small), small being a model with the "
            "same logit settings"
        )
    device = model.get_input_embeddings().weight.device
    given = {"input_ids": probe_ids(model, _PROBED_TOKENS).to(device)[None], **without_cache(model)}
    if labels is not None:
        given["labels"] = labels.to(device)[None]
    if accepts(model, "return_dict"):
        given["return_dict"] = True
    try:
        with probing(model), torch.no_grad():
            return model(**given)
    except Exception as error:  # of the model's own code
        raise ValueError(f"{name}: a forward pass of {_PROBED_TOKENS} tokens failed: {error}") from error


def _language_model(model: Any) -> Any:
    """The model of transformers under the wrappers of torch.compile, data parallelism and PEFT."""
    while True:
        if hasattr(model, "_orig_mod"):
            model = model._orig_mod
        elif hasattr(model, "get_base_model"):
            model = model.get_base_model()
        elif isinstance(model, nn.Module) and hasattr(model, "module") and not hasattr(model, "config"):
            model = model.module
        else:
            return model


def _head(model: Any) -> nn.Module:
    """The LM head of a decoder; raises ValueError for a model without."""
    name = type(model).__name__
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if not isinstance(head, nn.Module):
        raise ValueError(f"{name} has no LM head: expected a causal language model of transformers")
    if getattr(model.config, "is_encoder_decoder", False):
        raise ValueError(f"{name} is an encoder-decoder: expected a causal language model")
    return head
