"""Counts what a job has used, and decides whether another request still fits the budget."""

from __future__ import annotations

from dataclasses import dataclass

from mind.provenance import now
from mind.records import Response
from mind.teacher.completion import Problem
from mind.teacher.config import BudgetConfig
from mind.teacher.requests import Request, Wasted

BUDGET_USED_UP = "the budget is used up: start again with a larger one to go on"
TEMPLATE_TOKENS = 16
"""Tokens that a chat template puts around each message, at most."""


@dataclass
class Usage:
    """Answered requests and their tokens."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    uncounted: int = 0
    """Replies whose tokens the server did not report; their worst case is counted."""
    cost: float | None = None
    """In the currency of the price table; None without a price."""


class Spending:
    """Adds up usage, and reserves the worst case of each request under way.

    The worst case of a request is one prompt token per byte, as in byte-level BPE, and `max_tokens` of answer. So a
    budget is never exceeded; near its end requests are sent one by one.
    """

    def __init__(self, budget: BudgetConfig, price: tuple[float, float] | None) -> None:
        """`price` is the price per million prompt tokens and per million answer tokens."""
        self.usage = Usage(cost=None if price is None else 0.0)
        self.under_way = 0
        """Number of requests whose worst case is reserved."""
        self._budget, self._price = budget, price
        self._held_tokens, self._held_cost = 0, 0.0

    def reserve(self, request: Request) -> bool:
        """Whether `request` fits what is left; if so, its worst case is reserved until `release`."""
        self._hold(request, 1)
        if self.fits:
            return True
        self._hold(request, -1)
        return False

    @property
    def fits(self) -> bool:
        """Whether the worst case of all requests under way is within the budget."""
        usage, budget = self.usage, self._budget
        tokens = usage.prompt_tokens + usage.completion_tokens + self._held_tokens
        return (
            (budget.requests is None or usage.requests + self.under_way <= budget.requests)
            and (budget.tokens is None or tokens <= budget.tokens)
            and (budget.cost is None or (usage.cost or 0.0) + self._held_cost <= budget.cost)
        )

    def release(self, request: Request) -> None:
        """Ends the reservation of `request`."""
        self._hold(request, -1)

    def add(self, request: Request, prompt_tokens: int | None, completion_tokens: int | None) -> tuple[int, int, bool]:
        """Counts the tokens of a reply, even of one without an answer: the worst case if the server did not count.

        Returns the counted tokens, and whether the server reported them.
        """
        if prompt_tokens is None or completion_tokens is None:
            tokens = (*worst_case(request), False)
        else:
            tokens = (prompt_tokens, completion_tokens, True)
        self._add(*tokens)
        return tokens

    def waste(self, request: Request, problem: Problem) -> Wasted | None:
        """Counts the tokens of an attempt that gave no answer; the caller must store the result for the next start.

        None if the attempt cost nothing.
        """
        if problem.tokens is None:
            return None
        tokens = self.add(request, *problem.tokens)
        said = {"text": problem.text, "reasoning": problem.reasoning}
        return Wasted(request.key, problem.reason, *tokens, created=now(), **said)

    def add_wasted(self, wasted: Wasted) -> None:
        """Counts an attempt of an earlier start that gave no answer."""
        self._add(wasted.prompt_tokens, wasted.completion_tokens, wasted.counted)

    def add_stored(self, request: Request, response: Response) -> None:
        """Counts an answer of an earlier start."""
        self.add(request, response.prompt_tokens, response.completion_tokens)
        self.usage.requests += 1

    def add_unasked(self, response: Response) -> None:
        """Counts an answer of an earlier start whose request is no longer known; tokens that the server did not report
        are estimated from the answer alone."""
        prompt, answer = response.prompt_tokens, response.completion_tokens
        longest = len(response.text.encode("utf-8", "surrogatepass"))
        self._add(prompt or 0, longest if answer is None else answer, None not in (prompt, answer))
        self.usage.requests += 1

    def _add(self, prompt_tokens: int, completion_tokens: int, counted: bool) -> None:
        self.usage.uncounted += not counted
        self.usage.prompt_tokens += prompt_tokens
        self.usage.completion_tokens += completion_tokens
        if self.usage.cost is not None:
            self.usage.cost += self._cost(prompt_tokens, completion_tokens)

    def _hold(self, request: Request, sign: int) -> None:
        prompt, answer = worst_case(request)
        self.under_way += sign
        self._held_tokens += sign * (prompt + answer)
        self._held_cost = self._held_cost + sign * self._cost(prompt, answer) if self.under_way else 0.0

    def _cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        return 0.0 if self._price is None else cost_of(prompt_tokens, completion_tokens, self._price)


def cost_of(prompt_tokens: int, completion_tokens: int, price: tuple[float, float]) -> float:
    """The cost of the tokens at `price`, which is per million prompt tokens and per million answer tokens."""
    return (prompt_tokens * price[0] + completion_tokens * price[1]) / 1e6


def worst_case(request: Request) -> tuple[int, int]:
    """The largest possible number of tokens of prompt and answer of `request`."""
    contents = (message["content"].encode("utf-8", "surrogatepass") for message in request.messages)
    return sum(len(content) + TEMPLATE_TOKENS for content in contents), request.max_tokens
