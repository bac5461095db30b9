"""The providers of the pairwise JSD: PyTorch, peers that know two distributions, called once per pair, and
mind_kernels.

The mixture form is another loss, linear in K: it stands beside the pairs because it serves the same purpose.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from itertools import combinations

import torch
from torch import Tensor

from bench.comparison.provider import Provider, moved, operators_work, our_backends, torch_compiled
from bench.linear_pairwise_jsd.divergence import mixture_loss, pairs
from bench.linear_pairwise_jsd.inputs import Inputs
from bench.roofline import Logits, Step
from mind_kernels import linear_pairwise_jsd


def upcast(logits: Tensor) -> Tensor:
    """To float32 at least: a softmax of bfloat16 logits would stay in bfloat16."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def safe_log(p: Tensor) -> Tensor:
    """Finite where p has underflowed, so that p log p is 0 there."""
    return p.clamp_min(torch.finfo(p.dtype).tiny).log()


def two_rows(p: Tensor, q: Tensor, log_p: Tensor, log_q: Tensor) -> Tensor:
    """JSD of rows (P, V) and (P, V): (P,)."""
    log_m = safe_log((p + q) / 2)
    return (p * (log_p - log_m) + q * (log_q - log_m)).sum(-1) / 2


def loop(inputs: Inputs) -> Tensor:
    log_p = upcast(inputs.hidden @ inputs.weight.T).log_softmax(-1)
    loss, p = log_p.new_zeros(()), log_p.exp()
    for i, j in combinations(range(p.shape[1]), 2):
        jsd = two_rows(p[:, i], p[:, j], log_p[:, i], log_p[:, j])
        loss = loss + (inputs.pair_weight[:, i, j] * jsd).sum()
    return loss


def unbound_loop(inputs: Inputs) -> Tensor:
    """The same without indexing, whose backward pass fills a (P, K, V) tensor each time."""
    log_p = upcast(inputs.hidden @ inputs.weight.T).log_softmax(-1)
    loss, p, log_p = log_p.new_zeros(()), log_p.exp().unbind(1), log_p.unbind(1)
    for i, j in combinations(range(len(p)), 2):
        loss = loss + (inputs.pair_weight[:, i, j] * two_rows(p[i], p[j], log_p[i], log_p[j])).sum()
    return loss


def all_pairs(logits: Tensor, pair_weight: Tensor) -> Tensor:
    """All mixtures of pairs at once: JSD = H(m) - (H(p) + H(q)) / 2."""
    i, j = pairs(logits.shape[1], logits.device)
    log_p = upcast(logits).log_softmax(-1)
    p = log_p.exp()
    m = (p.index_select(1, i) + p.index_select(1, j)) / 2
    entropy, entropy_m = -(p * log_p).sum(-1), -(m * safe_log(m)).sum(-1)
    jsd = entropy_m - (entropy[:, i] + entropy[:, j]) / 2
    return (pair_weight[:, i, j] * jsd).sum()


def plain(hidden: Tensor, weight: Tensor, pair_weight: Tensor) -> Tensor:
    return all_pairs(hidden @ weight.T, pair_weight)


def vectorized(inputs: Inputs) -> Tensor:
    return plain(*inputs[:3])


def compiled(inputs: Inputs) -> Tensor:
    return torch_compiled(plain)(*inputs[:3])


def trl(inputs: Inputs) -> Tensor:
    """What its distillation trainers call, once a pair: the gradient is that of the student, here the first row."""
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    bias, beta = None, 0.5
    teacher_weight = inputs.weight.detach()
    loss = inputs.pair_weight.new_zeros(())
    for i, j in combinations(range(inputs.hidden.shape[1]), 2):
        divergence, _ = ChunkedDivergenceFunction.apply(
            inputs.hidden[:, i], inputs.weight, bias, inputs.hidden[:, j].detach(), teacher_weight, bias, beta
        )
        loss = loss + (inputs.pair_weight[:, i, j] * divergence).sum()
    return loss


def liger(inputs: Inputs) -> Tensor:
    """Once a pair; its loss is the mean over rows. Compiled, its default, on a GPU."""
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    jsd = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, compiled=inputs.hidden.is_cuda)
    teacher_weight = inputs.weight.detach()
    groups, count, _ = inputs.hidden.shape
    label = torch.zeros(groups, dtype=torch.int64, device=inputs.hidden.device)  # it only says which rows count
    scale = inputs.pair_weight.sum(0)
    loss = scale.new_zeros(())
    for i, j in combinations(range(count), 2):
        mean = jsd(inputs.hidden[:, i], inputs.weight, inputs.hidden[:, j].detach(), teacher_weight, label)
        loss = loss + scale[i, j] * mean
    return loss


def one_weight_a_pair(inputs: Inputs) -> Inputs:
    """The same weight at every position."""
    mean = inputs.pair_weight.mean(0, keepdim=True)
    return inputs._replace(pair_weight=mean.expand_as(inputs.pair_weight).contiguous())


def eager_mixture(inputs: Inputs) -> Tensor:
    return mixture_loss(upcast(inputs.hidden @ inputs.weight.T), inputs.mixture_weight)


def mixture(inputs: Inputs, backend: str) -> Tensor:
    return linear_pairwise_jsd(*inputs[:2], mixture_weight=inputs.mixture_weight, backend=backend)


def group_work(inputs: Inputs, facts: Mapping[str, float], backend: str, form: str = "pairs") -> list[Step] | None:
    """Three products, of logits in float32, and the passes of the group kernels."""
    bytes_per_logit = moved(f"linear_pairwise_jsd, {form} of 8", backend)
    logits = Logits.of(inputs.hidden, inputs.weight)
    if bytes_per_logit is None:
        return None
    return [logits.products(itemsize=4), logits.products(2), logits.passes(bytes_per_logit)]


def ours(backend: str) -> dict[str, Provider]:
    """Both forms on one backend, by name; "auto" needs no mention."""
    name = "mind_kernels" if backend == "auto" else f"mind_kernels {backend}"
    pairs = Provider(
        lambda inputs: linear_pairwise_jsd(*inputs[:3], backend=backend),
        backend=backend,
        work=partial(group_work, backend=backend),
    )
    of_mixture = Provider(
        partial(mixture, backend=backend),
        backend=backend,
        judged_by=("mixture",),
        note=MIXTURE,
        work=partial(group_work, backend=backend, form="mixture"),
    )
    return {name: pairs, f"{name} mixture": of_mixture}


ONE_SIDED = "gradient to one side of each pair: only its loss is judged"
MIXTURE = "another loss: K divergences from the mixture"
EAGER = "eager, loop over pairs"
PROVIDERS = {
    EAGER: Provider(loop, logits=32, work=operators_work(loop)),
    "eager, loop over unbound rows": Provider(unbound_loop, logits=32, work=operators_work(unbound_loop)),
    "eager, vectorised": Provider(vectorized, logits=22, work=operators_work(vectorized)),
    "torch.compile": Provider(compiled, logits=22),
    "TRL, 28 calls": Provider(
        trl, "trl.kernels.chunked_divergence:ChunkedDivergenceFunction", loss_only=True, note=ONE_SIDED
    ),
    "Liger, 28 calls": Provider(
        liger,
        "liger_kernel.chunked_loss:LigerFusedLinearJSDLoss",
        loss_only=True,
        judged_by=("one weight a pair",),
        note=f"one weight a pair; {ONE_SIDED}",
    ),
    "eager, mixture": Provider(
        eager_mixture, logits=8, judged_by=("mixture",), note=MIXTURE, work=operators_work(eager_mixture)
    ),
}
for backend in our_backends("linear_pairwise_jsd"):
    PROVIDERS |= ours(backend)
CPU = (
    EAGER,
    "eager, loop over unbound rows",
    "eager, vectorised",
    "TRL, 28 calls",
    "mind_kernels",
    "mind_kernels torch",
    "mind_kernels mixture",
)
