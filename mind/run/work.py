"""Counts the tokens that a run computes, by kind, and their cost, so that methods can be compared at equal budgets.

    trained         of the student's trunk, with a backward pass
    observed        of its trunk without one, to know losses
    generated       that it read and wrote while it sampled answers of its own
    encoded         of texts that became vectors, such as MetaNet's; whether they came from a cache or not
    teacher_scored  of a teacher model's trunk
    search          of the student's trunk without a backward pass, in steps of a search, which train on nothing

None of them counts padding. `step_work` adds what a naive step would have computed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mind.batches.packing import naive_tokens
from mind.batches.steps import question_tokens
from mind.records import PackOptions, TokenizedQuestion
from mind.report.reading import SAVINGS


def step_work(
    questions: Sequence[TokenizedQuestion], pack_options: PackOptions, computed: Mapping[str, int]
) -> dict[str, int]:
    """Tokens of the trunk that a step computed, and those that it would compute without some or all of the savings.

    padded: every sequence in a row of the longest one's length, all with a backward pass, which is a naive step;
    packed: without the padding; shared: with each prompt once, if this run shares prompts; and what was `computed`, by
    kind: trained and observed, and others if there are any. In a step of a search, which trains on nothing, the
    observed tokens count as "search".
    """
    if not computed.get("trained"):
        others = {kind: tokens for kind, tokens in computed.items() if tokens and kind not in ("trained", "observed")}
        return {"search": computed.get("observed", 0), **others}
    padded, packed = naive_tokens(questions)
    shared = sum(map(question_tokens, questions)) if pack_options.share_prompts else packed
    always = {"trained": 0, "observed": 0}
    return {
        **dict(zip(SAVINGS, (padded, packed, shared), strict=True)),
        **always,
        **{kind: tokens for kind, tokens in computed.items() if tokens or kind in always},
    }


def generated_tokens(prompts: Sequence[Sequence[int]], samples: Sequence[Sequence[int]]) -> int:
    """Tokens of the trunk that generating these samples took: the prompt and its continuation except the last token,
    which no pass reads."""
    return sum(len(prompt) + len(sample) - 1 for prompt, sample in zip(prompts, samples, strict=True))


def flops(work: Mapping[str, int], parameters: int, trained: int, others: Mapping[str, int]) -> int:
    """Floating-point operations of the tokens that were computed.

    A token costs 2 per parameter in a forward pass, 2 per parameter in the backward pass for the hidden states, and 2
    per trained parameter for the weights' gradient: 6 N if all N are trained, 4 N + 6 n for n adapter parameters on N
    frozen ones.

    Args:
        work: tokens by kind.
        parameters: number of parameters of the student, adapters included.
        trained: number of them that are trained.
        others: kind -> number of parameters of the model that computed it, if that was not the student.
    """
    per_token = {
        kind: 4 * parameters + 2 * trained if kind == "trained" else 2 * others.get(kind, parameters)
        for kind in work
        if kind not in SAVINGS
    }
    return sum(work[kind] * cost for kind, cost in per_token.items())
