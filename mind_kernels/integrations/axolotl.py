"""The fused cross-entropy in axolotl, enabled by one line of its YAML file.

plugins: [mind_kernels.integrations.axolotl.MindKernelsPlugin]
"""

from __future__ import annotations

from typing import Any

from axolotl.integrations.base import BasePlugin  # pyright: ignore[reportMissingImports]
from pydantic import BaseModel, model_validator

from mind_kernels.integrations.signature import expect
from mind_kernels.integrations.transformers import fuse

# Options of axolotl that replace the loss too, or train with another loss than the cross-entropy of the next token.
_OTHER_LOSSES = (
    "chunked_cross_entropy",
    "cut_cross_entropy",
    "kd_trainer",
    "liger_cross_entropy",
    "liger_fused_linear_cross_entropy",
    "process_reward_model",
    "reward_model",
    "rl",
    "use_eaft",
)


class MindKernelsArgs(BaseModel):
    """The options that the plugin adds to axolotl's."""

    mind_kernels: bool = True
    """Whether the model is fused."""
    mind_kernels_gradient_threshold: float | None = None
    """See `linear_cross_entropy`."""

    @model_validator(mode="before")
    @classmethod
    def no_other_loss(cls, options: Any) -> Any:
        others = [name for name in _OTHER_LOSSES if options.get(name)]
        if options.get("mind_kernels", True) and others:
            raise ValueError(
                f"mind_kernels computes the loss of supervised finetuning, and so it excludes {', '.join(others)}: set "
                "mind_kernels to false, or leave the other out"
            )
        return options


class MindKernelsPlugin(BasePlugin):
    """Fuses the model once it is complete, adapters included."""

    def register(self, cfg: Any) -> None:
        """Raises ImportError if axolotl calls its plugins in another way; raised here, since its manager ignores errors
        of the import."""
        expect("axolotl", BasePlugin, "get_input_args", "self")
        expect("axolotl", BasePlugin, "post_model_load", "self", "cfg", "model")

    def get_input_args(self) -> str:
        return f"{__name__}.{MindKernelsArgs.__name__}"

    def post_model_load(self, cfg: Any, model: Any) -> None:
        if cfg.mind_kernels:
            fuse(model, gradient_threshold=cfg.mind_kernels_gradient_threshold)
