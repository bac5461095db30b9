"""What a job has used, and whether another request still fits the budget."""

from __future__ import annotations

from dataclasses import dataclass

from mind.records import Response
from mind.teacher.config import BudgetConfig
from mind.teacher.requests import Request

TEMPLATE_TOKENS = 16
"""Of a chat template around each message, at most."""


@dataclass
class Usage:
    """Answered requests and their tokens."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    uncounted: int = 0
    """Answers whose tokens the server did not tell; their worst case is counted."""
    cost: float | None = None
    """In the currency of the price table; None without a price."""


class Spending:
    """Adds up usage, and holds back for each request under way the most that it can take.

    The worst case of a request is a prompt token per byte, as in byte-level BPE, and `max_tokens` of answer. So a
    budget is never exceeded, and near its end requests go out one by one.
    """

    def __init__(self, budget: BudgetConfig, price: tuple[float, float] | None) -> None:
        """`price` is that of a million prompt tokens and that of a million answer tokens."""
        self.usage = Usage(cost=None if price is None else 0.0)
        self.under_way = 0
        """Requests that hold back their worst case."""
        self._budget, self._price = budget, price
        self._held_tokens, self._held_cost = 0, 0.0

    def reserve(self, request: Request) -> bool:
        """Whether `request` fits what is left; if so, it is under way until `release`."""
        usage, budget = self.usage, self._budget
        prompt, answer = worst_case(request)
        used = usage.prompt_tokens + usage.completion_tokens + self._held_tokens
        if budget.requests is not None and usage.requests + self.under_way >= budget.requests:
            return False
        if budget.tokens is not None and used + prompt + answer > budget.tokens:
            return False
        if budget.cost is not None and (usage.cost or 0.0) + self._held_cost + self._cost(prompt, answer) > budget.cost:
            return False
        self._hold(request, 1)
        return True

    def release(self, request: Request) -> None:
        """`request` is no longer under way."""
        self._hold(request, -1)

    def add(self, request: Request, prompt_tokens: int | None, completion_tokens: int | None) -> None:
        """Counts the tokens of an answer, of one that could not be used too; None if the server did not count."""
        if prompt_tokens is None or completion_tokens is None:
            self.usage.uncounted += 1
            prompt_tokens, completion_tokens = worst_case(request)
        self.usage.prompt_tokens += prompt_tokens
        self.usage.completion_tokens += completion_tokens
        if self.usage.cost is not None:
            self.usage.cost += self._cost(prompt_tokens, completion_tokens)

    def add_stored(self, request: Request, response: Response) -> None:
        """Counts an answer of an earlier start."""
        self.add(request, response.prompt_tokens, response.completion_tokens)
        self.usage.requests += 1

    def _hold(self, request: Request, sign: int) -> None:
        prompt, answer = worst_case(request)
        self.under_way += sign
        self._held_tokens += sign * (prompt + answer)
        self._held_cost = self._held_cost + sign * self._cost(prompt, answer) if self.under_way else 0.0

    def _cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        return 0.0 if self._price is None else cost_of(prompt_tokens, completion_tokens, self._price)


def cost_of(prompt_tokens: int, completion_tokens: int, price: tuple[float, float]) -> float:
    """What the tokens cost at `price`, that of a million prompt tokens and that of a million answer tokens."""
    return (prompt_tokens * price[0] + completion_tokens * price[1]) / 1e6


def worst_case(request: Request) -> tuple[int, int]:
    """The most tokens that the prompt and the answer of `request` can have."""
    contents = (message["content"].encode("utf-8", "surrogatepass") for message in request.messages)
    return sum(len(content) + TEMPLATE_TOKENS for content in contents), request.max_tokens
