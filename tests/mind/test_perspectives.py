from mind.curation.adherence import CHECKS
from mind.perspectives import PAPER_PERSPECTIVES, PERSPECTIVES
from mind.word_problems import LEVELS

NAMES = (
    "formal-symbolic",
    "intuitive",
    "decomposition",
    "planning",
    "analogy",
    "socratic",
    "contrastive",
    "counterfactual",
)


def test_the_papers_names_in_its_order_come_first():
    assert PAPER_PERSPECTIVES == NAMES
    assert tuple(PERSPECTIVES)[: len(NAMES)] == NAMES
    assert all(perspective.name == name for name, perspective in PERSPECTIVES.items())


def test_the_papers_perspectives_have_a_check_and_a_writer_and_others_may():
    for table in (CHECKS, *(level.writers for level in LEVELS.values())):
        assert tuple(table)[: len(NAMES)] == NAMES
        assert table.keys() <= PERSPECTIVES.keys()


def test_prompts_are_complete_and_free_of_placeholders():
    for perspective in PERSPECTIVES.values():
        assert 100 <= len(perspective.prompt.split()) <= 180, perspective.name
        assert not set("{}<>[]\n") & set(perspective.prompt), perspective.name
        assert "####" not in perspective.prompt
        assert "final answer" in perspective.prompt
        assert perspective.description


def test_prompts_and_descriptions_differ():
    assert len({perspective.prompt for perspective in PERSPECTIVES.values()}) == len(PERSPECTIVES)
    assert len({perspective.description for perspective in PERSPECTIVES.values()}) == len(PERSPECTIVES)
