"""A round: examples of one name with one seed; the first that fails is made small, and raised with its command."""

from __future__ import annotations

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.fuzz.choices import Choices
from tests.fuzz.tiers import Tier


def run(tier_name: str, tier: Tier, name: str, round_seed: int, examples: int | None = None) -> None:
    """Raises what the first failing example raises, of `examples` or as many as a round of the tier has."""

    @seed(round_seed)
    @settings(
        max_examples=examples or tier.examples,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(data=st.data())
    def one(data: st.DataObject) -> None:
        choices = Choices.drawn(data)
        try:
            tier.example(name, choices, tier.counts)
        except Exception as error:
            case = f"--case {name}:{choices.code}" if choices.made else f"--only {name} --seed {round_seed}"
            error.add_note(f"again: python -m tests.fuzz {tier_name} {case}")
            raise

    one()
