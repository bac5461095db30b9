"""Weight and bias of the LM head of a transformers model, including PEFT's adapters.

The losses need the head's weight, not its module, so an adapter on the head has to be added to the weight,
differentiably.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn

from mind_kernels.dtensors import is_dtensor


def head_tensors(head: nn.Module) -> tuple[Tensor, Tensor | None]:
    """The weight (V, D) and the bias (V,) or None that a linear layer computes with, differentiable.

    Args:
        head: the result of model.get_output_embeddings(): an nn.Linear, or PEFT's replacement of one: a LoRA layer, a
            trained copy of the head (modules_to_save), or a head of which some rows are trained
            (trainable_token_indices).

    Raises:
        ValueError: any other module, such as a quantized layer; a weight that ZeRO-3 has divided; adapters that cannot
            be expressed as a weight. The message names the module.
    """
    if not is_adapted(head):
        return _linear(head)
    from peft.tuners import lora
    from peft.utils.other import ModulesToSaveWrapper, TrainableTokensWrapper

    module: Any = head
    if isinstance(module, ModulesToSaveWrapper):
        return head_tensors(active_module(module))
    if isinstance(module, TrainableTokensWrapper):
        return _with_trained_rows(module.token_adapter)
    kinds = [type(variant).__name__ for variant in getattr(module, "lora_variant", {}).values()]
    if not isinstance(module, lora.Linear) or kinds:
        raise ValueError(
            f"the LM head has an adapter ({', '.join(kinds) or type(module).__module__}) that cannot be part of its "
            "weight: plain LoRA can; or leave the head out of the adapters' target_modules"
        )
    return _with_lora(module)


def active_module(head: Any) -> Any:
    """The module whose forward pass runs when `head` is called; with PEFT's modules_to_save, the active copy."""
    if "peft" in sys.modules:
        from peft.utils.other import ModulesToSaveWrapper

        if isinstance(head, ModulesToSaveWrapper):
            copied = not head.disable_adapters and head.active_adapters
            return active_module(head.modules_to_save[head.active_adapters[0]] if copied else head.original_module)
    return head


def is_adapted(module: nn.Module) -> bool:
    """Whether PEFT has wrapped or replaced the module."""
    if "peft" not in sys.modules:
        return False
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    return isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper))


def _linear(module: Any) -> tuple[Tensor, Tensor | None]:
    kind = getattr(type(module), "_fused_from", type(module))  # the class before `fuse`
    if not isinstance(module, nn.Linear) or kind.forward is not nn.Linear.forward:
        raise ValueError(
            f"the LM head is a {kind.__module__}.{kind.__qualname__}: expected an nn.Linear, with its forward pass"
        )
    weight = module.weight
    if hasattr(weight, "ds_id"):
        raise ValueError(
            "the LM head is divided by DeepSpeed's ZeRO-3, which has it whole during a single call, and not when the "
            "gradient is computed: expected stage 2 or less"
        )
    fake = torch.compiler.is_exporting()
    plain = fake or type(weight) in (Tensor, nn.Parameter) or is_dtensor(weight)
    if not (plain and weight.is_floating_point() and weight.dim() == 2):
        raise ValueError(
            f"the LM head is a {type(module).__name__} with a weight of {weight.dtype} {tuple(weight.shape)} "
            f"({type(weight).__name__}): expected a floating weight that is not quantized"
        )
    # If embeddings and head are tied, PEFT's copy has the hidden size as out_features.
    if not is_dtensor(weight) and weight.shape[0] < module.out_features and not fake:
        raise ValueError(
            f"the LM head holds {weight.shape[0]} of {module.out_features} vocabulary entries here: expected "
            "all, or a DTensor of all, as transformers' tp_plan and PyTorch's parallelize_module make one"
        )
    return weight, module.bias


def _is_base_alone(module: Any) -> bool:
    """Whether a layer of PEFT computes with its base layer alone. Like that layer's own forward pass, takes merged
    adapters out of the base layer if they are disabled."""
    if module.disable_adapters and module.merged:
        module.unmerge()
    return module.disable_adapters or module.merged or not module.active_adapters


def _with_trained_rows(module: Any) -> tuple[Tensor, Tensor | None]:
    if _is_base_alone(module):
        return _linear(module.get_base_layer())
    _linear(module.get_base_layer())  # raises what that raises
    return module.get_merged_weights(module.active_adapters), None  # PEFT's forward pass leaves the bias out


def _with_lora(module: Any) -> tuple[Tensor, Tensor | None]:
    base_alone = _is_base_alone(module)
    weight, bias = _linear(module.get_base_layer())
    if base_alone:
        return weight, bias
    for name in module.active_adapters:
        if name not in module.lora_A:
            continue
        if is_dtensor(weight):
            raise ValueError(
                "the LM head has an adapter and is split over processes: leave the head out of the adapters' "
                "target_modules"
            )
        if not isinstance(module.lora_dropout[name], nn.Identity):
            raise ValueError(
                "the LM head has an adapter with dropout, which cannot be part of its weight: set lora_dropout to 0, "
                "or leave the head out of the adapters' target_modules"
            )
        with torch.autocast(weight.device.type, enabled=False):  # autocast would round the product before the sum
            weight = weight + module.get_delta_weight(name).to(weight.dtype)
        if module.lora_bias[name]:
            more = module.lora_B[name].bias * module.scaling[name]
            bias = more.to(weight.dtype) if bias is None else bias + more.to(bias.dtype)
    return weight, bias
