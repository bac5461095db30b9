"""One random call of each public operation: any shape, dtype, memory layout, option and value that it accepts."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mind_kernels.linear_divergence.kinds import KINDS
from tests.fuzz.choices import Choices
from tests.fuzz.layouts import laid_out, values
from tests.fuzz.public import PublicCall, Tensors

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
LEADING = ((5,), (1,), (0,), (2,), (17,), (40,), (2, 3), (1, 1), (3, 0), (2, 2, 2))
SIZES = (4, 1, 2, 3, 8, 17, 33, 40)
VOCABULARIES = (7, 1, 2, 3, 16, 31, 64, 65, 101, 257, 300)
# Of Triton's interpreter, which takes milliseconds for each program.
SMALL = {"leading": ((5,), (1,), (0,), (13,), (2, 3)), "sizes": (4, 1, 3, 17), "vocabularies": (7, 1, 2, 33, 101)}


class Making:
    """What the cases share: the choices, the shapes and the dtype of one call."""

    def __init__(self, choices: Choices, small: bool) -> None:
        self.choices, self.small = choices, small
        self.generator = choices.generator()
        self.dtype = choices.among((torch.float32, torch.float16) if small else DTYPES)
        self.leading = choices.among(SMALL["leading"] if small else LEADING)
        self.size = choices.among(SMALL["sizes"] if small else SIZES)
        self.vocabulary = choices.among(SMALL["vocabularies"] if small else VOCABULARIES)

    @property
    def rows(self) -> int:
        return math.prod(self.leading)

    def normal(self, *shape: int, scale: float = 1.0, dtype: torch.dtype | None = None) -> Tensor:
        return values(self.choices, self.generator, *shape, dtype=dtype or self.dtype, scale=scale)

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator, dtype=torch.float64)

    def integers(self, high: int, *shape: int) -> Tensor:
        found = torch.randint(0, high, shape, generator=self.generator)
        return found.to(self.choices.among((torch.int64, torch.int32)))

    def hidden(self, leading: tuple[int, ...], size: int, dtype: torch.dtype | None = None) -> Tensor:
        return self.spoilt(self.matrix(leading, size, dtype))

    def matrix(self, leading: tuple[int, ...], size: int, dtype: torch.dtype | None = None) -> Tensor:
        """(..., size), of numbers only: an infinite number in a head makes nan of everything."""
        scale = self.choices.among((1.0, 1.0, 0.0, 1e-3, 8.0, 100.0, 1e4)) / size**0.5
        return self.normal(*leading, size, scale=scale, dtype=dtype)

    def spoilt(self, tensor: Tensor) -> Tensor:
        """Now and then with one number that is none, or very large."""
        if tensor.numel() and self.choices.rarely(16):
            place = int(torch.randint(0, tensor.numel(), (), generator=self.generator))
            large = 1e4 if tensor.dtype == torch.float16 else 1e15
            tensor.view(-1)[place] = self.choices.among((math.nan, math.inf, -math.inf, large, -large))
        return tensor

    def bias(self, vocabulary: int, dtype: torch.dtype | None = None) -> Tensor | None:
        kind = self.choices.among(("none", "normal", "excluding", "large", "all but one"))
        if kind == "none":
            return None
        bias = self.normal(vocabulary, scale=1e3 if kind == "large" else 1.0, dtype=dtype)
        if kind == "excluding":
            bias[self.uniform(vocabulary) < 0.3] = -math.inf
        if kind == "all but one":
            bias[1:] = -math.inf
        return bias

    def weights(self, *shape: int, negative: bool = True, infinite: bool = True) -> Tensor:
        """Constants that weight rows or pairs, of any floating dtype."""
        dtype = self.choices.among(
            (torch.float32, torch.float64, torch.float16, torch.bfloat16)[: 3 if self.small else 4]
        )
        kind = self.choices.among(("uniform", "normal", "zeros", "some zeros", "tiny", "huge", "one huge"))
        found = self.uniform(*shape) + 0.1
        if kind == "normal" and negative:
            found = torch.randn(shape, generator=self.generator, dtype=torch.float64)
        if kind == "zeros":
            found = torch.zeros_like(found)
        if kind == "some zeros":
            found[self.uniform(*shape) < 0.5] = 0
        wide = dtype != torch.float16  # whose largest number is 65504
        if kind in ("tiny", "huge"):
            found *= {"tiny": 1e-25 if wide else 1e-6, "huge": 1e20 if wide else 1e4}[kind]
        if kind == "one huge" and found.numel() and negative:  # in a mixture the definition itself would cancel
            found.view(-1)[0] *= 1e12 if wide else 1e4
        found = found.to(dtype)
        return self.spoilt(found) if infinite else found

    def head_options(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if softcap := self.choices.among((None, 5.0, 30.0, 0.5, 1e4)):
            found["softcap"] = softcap
        if (temperature := self.choices.among((1.0, 0.7, 20.0, 0.05))) != 1.0:
            found["temperature"] = temperature
        return found

    def call(
        self, function: str, operation: str, hidden: Tensor, constants: Tensors, options: dict[str, Any]
    ) -> PublicCall:
        """With a head and everything that all operations share; every tensor in a layout of its own."""
        choices = self.choices
        leaves = {"hidden": hidden, "weight": self.matrix((self.vocabulary,), self.size)}
        if (bias := self.bias(self.vocabulary)) is not None:
            leaves["bias"] = bias
        given = [name for name in leaves if not choices.rarely(6)] if choices.rarely(2) else list(leaves)
        options = self.head_options() | options
        if isinstance(constants.get("temperature"), Tensor):
            options.pop("temperature", None)
        return PublicCall(
            function,
            operation,
            {name: laid_out(choices, value) for name, value in leaves.items()},
            tuple(given),
            {name: laid_out(choices, value) for name, value in constants.items()},
            options,
            seed=choices.number(99),
            upstream=choices.among((1.7, 1.0, 1e-3, 1e3, 0.0)),
            left_out=choices.among((0, 0, 1, 2, 3)),
            as_head="temperature" not in constants and choices.rarely(),
            always_sparse=choices.among((True, False)),
        )

    def target(self, *more: int) -> tuple[Tensor, dict[str, Any]]:
        """(..., *more), some of it ignored, and the option that says which number means that."""
        ignored = self.choices.among((-100, 0, self.vocabulary - 1, -1, 2**31 - 1))
        target = self.integers(self.vocabulary, *self.leading, *more)
        share = self.choices.among((0.2, 0.0, 1.0))
        target[self.uniform(*target.shape) < share] = ignored
        return target, {} if ignored == -100 else {"ignore_index": ignored}

    def segments(self) -> tuple[Tensors, dict[str, Any]]:
        if not self.choices.rarely():
            return {}, {}
        count = self.choices.among((3, 1, 70))
        return {"segment": self.integers(count, *self.leading)}, {"num_segments": count}

    def statistics(self, *, extra: bool) -> dict[str, Any]:
        found: dict[str, Any] = {"return_stats": True} if not self.choices.rarely() else {}
        if found and extra and self.choices.rarely():
            found["extra_stats"] = self.choices.among((("mean_logit", "log_sum_sq", "predicted"), ("predicted",)))
        return found

    def threshold(self) -> dict[str, Any]:
        value = self.choices.among((None, None, 2.0**-4, 2.0**-10, 0.5))
        return {} if value is None else {"gradient_threshold": value}


def cross_entropy(made: Making) -> PublicCall:
    choices = made.choices
    target, options = made.target()
    segment, more = made.segments()
    constants = {"target": target, **segment}
    options |= more | made.statistics(extra=True) | {"reduction": choices.among(("mean", "sum", "none"))}
    if choices.rarely(2):
        constants["row_weight"] = made.weights(*made.leading)
    if smoothing := choices.among((0.0, 0.0, 0.1, 1.0)):
        options["label_smoothing"] = smoothing
    if z_loss := choices.among((0.0, 0.0, 1e-3, -0.1)):
        options["z_loss"] = z_loss
    options |= made.threshold()
    call = made.call(
        "linear_cross_entropy", "linear_cross_entropy", made.hidden(made.leading, made.size), constants, options
    )
    fits = options["reduction"] != "none" and "gradient_threshold" not in options
    if fits and not (smoothing and "softcap" in call.options) and choices.rarely():
        call.options["gradient_error"] = choices.among((1e-2, 1e-4, 0.3))
    return call


def log_prob(made: Making) -> PublicCall:
    choices = made.choices
    more = (choices.among((1, 3, 8)),) if choices.rarely(2) else ()
    target, options = made.target(*more)
    constants, options = {"target": target}, options | made.statistics(extra=True)
    if choices.rarely():
        constants["temperature"] = (made.uniform(*made.leading) * choices.among((1.0, 10.0)) + 0.3).float()
    elif more in ((), (1,)):
        options |= made.threshold()
    return made.call(
        "linear_log_prob", "linear_cross_entropy", made.hidden(made.leading, made.size), constants, options
    )


def pairwise(made: Making) -> PublicCall:
    choices = made.choices
    groups, count = choices.among((2, 1, 0, 5)), choices.among((2, 3, 5, 8))
    masked = choices.rarely(2)
    hidden = made.hidden((groups, count), made.size)
    spread = choices.among((None, 1e-2, 0.0))
    if spread is not None:  # rows of a group that nearly coincide
        hidden = (hidden[:, :1].double() * (1 + spread * made.uniform(groups, count, made.size))).to(made.dtype)
    constants: Tensors = {}
    if mixture := choices.rarely(3):
        constants["mixture_weight"] = made.weights(groups, count, negative=False, infinite=False)
    else:
        constants["pair_weight"] = made.weights(groups, count, count, infinite=False)
    if masked:
        constants["mask"] = made.uniform(groups, count) < choices.among((0.7, 0.3, 0.0))
    kind = "jsd" if mixture else choices.among(("jsd", "jeffreys"))
    operation = "linear_pairwise_jsd" + (", jeffreys" if kind == "jeffreys" else "")
    return made.call("linear_pairwise_jsd", operation, hidden, constants, made.statistics(extra=False) | {"kind": kind})


def divergence(made: Making) -> PublicCall:
    choices = made.choices
    kind = choices.among(list(KINDS))
    options = {"kind": kind, "reduction": choices.among(("mean", "sum", "none"))} | made.statistics(extra=False)
    if parameter := KINDS[kind].parameter:
        options[parameter] = choices.among((0.4, 0.01, 0.99) + ((0.0, 1.0) if parameter == "interpolation" else ()))
    if choices.rarely(2):
        constants, more = _teacher_list(made)
    else:
        constants, more = _teacher_head(made)
    if choices.rarely(2):
        constants["row_weight"] = made.weights(*made.leading)
    hidden = made.hidden(made.leading, made.size)
    return made.call("linear_divergence", "linear_divergence", hidden, constants, options | more)


def _teacher_head(made: Making) -> tuple[Tensors, dict[str, Any]]:
    choices = made.choices
    dtype = choices.among((made.dtype, *((torch.float32, torch.float16) if made.small else DTYPES)))
    if made.small and made.dtype == torch.float64:
        dtype = torch.float32
    size = choices.among((5, 1, 24))
    constants = {
        "teacher_hidden": made.hidden(made.leading, size, dtype),
        "teacher_weight": made.matrix((made.vocabulary,), size, dtype),
    }
    if (bias := made.bias(made.vocabulary, dtype)) is not None:
        constants["teacher_bias"] = bias
    return constants, {f"teacher_{name}": value for name, value in made.head_options().items()}


def _teacher_list(made: Making) -> tuple[Tensors, dict[str, Any]]:
    choices = made.choices
    count = min(choices.among((4, 1, 2, made.vocabulary)), made.vocabulary)
    ids = made.uniform(*made.leading, made.vocabulary).topk(count).indices
    ids = ids.to(choices.among((torch.int64, torch.int32)))
    tail = choices.among(("bucket", "renormalize"))
    dtype = choices.among((torch.float32, torch.float64))
    scale = choices.among((1.0, 10.0, 0.0))
    events = count + (count < made.vocabulary)
    logits = torch.randn(*made.leading, events, generator=made.generator, dtype=torch.float64) * scale
    log_prob = logits.log_softmax(-1)[..., :count].to(dtype)
    if tail == "renormalize":
        log_prob = log_prob + choices.among((0.0, 7.0, -50.0))
    constants = {"teacher_ids": ids, "teacher_log_prob": log_prob}
    padding = made.uniform(*ids.shape) < choices.among((0.0, 0.3, 1.0))
    if choices.rarely(2):
        constants["teacher_mask"] = ~padding
    else:
        constants["teacher_log_prob"] = log_prob.masked_fill(padding, -math.inf)
    return constants, {"tail": tail}


def mind_loss(made: Making) -> PublicCall:
    choices = made.choices
    target, options = made.target()
    segment, more = made.segments()
    count = choices.among((2, 3, 5))
    groups = made.rows // count if choices.among((True, False)) else min(1, made.rows // count)
    order = torch.randperm(made.rows, generator=made.generator)[: groups * count].view(groups, count)
    absent = choices.among((0.0, 0.3, 1.0))
    answers = torch.where(made.uniform(groups, count) < absent, -1, order)
    answers = answers.to(choices.among((torch.int64, torch.int32)))
    constants = {"target": target, "row_weight": made.weights(*made.leading), "answer_rows": answers, **segment}
    if choices.rarely(3):
        constants["mixture_weight"] = made.weights(groups, count, negative=False, infinite=False)
    else:
        constants["pair_weight"] = made.weights(groups, count, count, infinite=False)
    options |= more | made.statistics(extra=False) | made.threshold()
    hidden = made.hidden(made.leading, made.size)
    return made.call("linear_mind_loss", "linear_mind_loss", hidden, constants, options)


def top_k(made: Making) -> PublicCall:
    k = min(made.vocabulary, made.choices.among((3, 1, made.vocabulary)))
    hidden = made.hidden(made.leading, made.size)
    return made.call("linear_top_k", "linear_top_k", hidden, {}, {"k": k})


CASES: dict[str, Callable[[Making], PublicCall]] = {
    "linear_cross_entropy": cross_entropy,
    "linear_log_prob": log_prob,
    "linear_pairwise_jsd": pairwise,
    "linear_divergence": divergence,
    "linear_mind_loss": mind_loss,
    "linear_top_k": top_k,
}


def public_call(name: str, choices: Choices, *, small: bool = False) -> PublicCall:
    """A random call of this function; `small`: one for Triton's interpreter."""
    return CASES[name](Making(choices, small))
