"""Chat templates: what they write around question and answer is read off them; faults are named at load."""

from __future__ import annotations

import datetime
import errno
import faulthandler
import os
import resource
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from tiny import CHAT_TEMPLATE, NAMES, build_tokenizer
from transformers.utils import chat_template_utils

from mind.config import StudentConfig
from mind.errors import MindError
from mind.records import Question, Rationale
from mind.student import template_limits, templates
from mind.student.model import load_student
from mind.student.template_limits import LimitError
from mind.student.templates import read_template
from mind.student.tokenization import Chat, tokenize

QUESTION = Question("q", "How many?", "3", None, (Rationale("first", "Two and one."),))
ASK = "<|im_start|>{{ m['role'] }}\n"
ENDLESS, BIG = (
    "template takes more than 1 seconds of CPU time; mend",
    "template needs more than 1,024 MiB of memory; mend",
)
GENERATE = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


def turns(content="{{ m['content'] }}", end="<|im_end|>\n", start=ASK, generate=GENERATE):
    return "{% for m in messages %}" + start + content + end + "{% endfor %}" + generate


def with_template(template):
    tokenizer = build_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def sequence(template, question=QUESTION):
    """The text of a training sequence."""
    tokenizer = with_template(template)
    (tokenized,) = tokenize([question], tokenizer, NAMES, 4000)
    assert list(tokenized.prompt) == Chat(tokenizer).prompt(question)
    return tokenizer.decode([*tokenized.prompt, *tokenized.rationales[0], *tokenized.suffix])


USUAL = "<|im_start|>user\nHow many?<|im_end|>\n<|im_start|>assistant\nTwo and one.\n#### 3<|im_end|>"


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (turns(), USUAL),
        (turns("{{ m['content'] | trim }}"), USUAL),
        (turns("{% for part in m['content'] %}{{ part['text'] }}{% endfor %}"), USUAL),
        (turns("{{ m['content'][0]['text'] }}"), USUAL),
        ({"default": turns(), "tool_use": "{{ nothing }}"}, USUAL),
        (turns(end="\n<|im_end|>\n"), USUAL.replace("<|im_end|>", "\n<|im_end|>")),
        (turns(end="<|im_end|><|im_start|>\n"), USUAL.replace("many?<|im_end|>", "many?<|im_end|><|im_start|>")),
        # finished turns have a block that the prompt of generation lacks
        (
            turns("{% if m['role'] == 'assistant' %}<think>\n\n</think>\n\n{% endif %}{{ m['content'] }}"),
            USUAL.replace("Two", "<think>\n\n</think>\n\nTwo"),
        ),
        # no prompt of generation
        (turns(generate=""), USUAL),
        # the prompt of generation has a block that finished turns lack
        (
            turns(generate="{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"),
            USUAL.replace("Two", "<think>\nTwo"),
        ),
        # ends by text, by several tokens, by nothing
        (turns(end=" [END]\n"), USUAL.replace("many?<|im_end|>", "many? [END]").replace("3<", "3 [END]<")),
        (turns(end="</s>"), USUAL.replace("many?<|im_end|>\n", "many?</s>").replace("3<", "3</s><")),
        (turns(end="\n\n"), USUAL.replace("many?<|im_end|>\n", "many?\n\n")),
        # as Llama 2 and Mistral write it
        (
            "{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'].strip() }} [/INST]"
            "{% else %} {{ m['content'].strip() }} {{ eos_token }}{% endif %}{% endfor %}",
            "[INST] How many? [/INST] Two and one.\n#### 3 <|im_end|>",
        ),
        # a system prompt of its own
        ("<|im_start|>system\nBe kind.<|im_end|>\n" + turns(), "<|im_start|>system\nBe kind.<|im_end|>\n" + USUAL),
    ],
)
def test_a_sequence_is_what_the_template_writes(template, expected):
    assert sequence(template) == expected


@pytest.mark.parametrize(
    ("template", "fault"),
    [
        (None, "its tokenizer has no chat template, as those of base models: .* --student.chat-template plain"),
        ("", "no chat template"),
        (turns(""), "writes the question not at all, or changed"),
        (turns("{{ m['text'] }}"), "writes the question not at all, or changed"),
        (turns("{{ m['content'] | upper }}"), "writes the question not at all, or changed"),
        (turns("{{ m['content'][:5] }}"), "writes the question not at all, or changed"),
        (turns("{{ m['content'] }} {{ m['content'] }}"), "writes the question 2 times"),
        (
            turns("{% if m['role'] == 'user' %}{{ m['content'] }}{% endif %}"),
            "writes the answer not at all",
        ),
        (turns() + "{{ messages[-1]['content'] }}", "writes the question 2 times"),
        (
            "{% for m in messages | reverse %}" + ASK + "{{ m['content'] }}<|im_end|>{% endfor %}",
            "writes the answer before the question",
        ),
        ("{% for m in messages %}{{ m['content'] }}{% endfor %}", "writes nothing between the question and the answer"),
        ("{% for m in messages %}{{ m['content'] }}", "cannot be rendered: TemplateSyntaxError: Unexpected end"),
        (
            "{{ raise_exception('System message missing!') }}",
            "TemplateError: System message missing!",
        ),
        (
            "{% if messages[0]['role'] != 'system' %}{{ raise_exception('a system turn\n first') }}{% endif %}",
            "a system turn first",
        ),
        (turns("{{ m['content'] + 1 }}"), "cannot be rendered: TypeError"),
        (turns("{{ m.content.nothing.more }}"), "cannot be rendered: UndefinedError"),
        (turns("{{ ''.__class__.__mro__ }}"), "cannot be rendered: SecurityError"),
        ({"rag": turns(), "tool_use": turns()}, "no default specified"),
    ],
)
def test_a_faulty_template_is_named_in_one_line(template, fault, model_folder):
    with pytest.raises(MindError, match=fault) as caught:
        Chat(with_template(template))
    assert "\n" not in str(caught.value)
    if template and isinstance(template, str):
        (model_folder / "chat_template.jinja").write_text(template)
        with pytest.raises(MindError, match=fault):
            load_student(StudentConfig(model=str(model_folder)))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("{{ m['content'] }}", "\n  Two"),
        ("{{ m['content'] | trim }}", "Two"),
        ("{{ m['content'].lstrip('\n') }}", "  Two"),
        ("{% for part in m['content'] %}{{ part['text'].strip() }}{% endfor %}", "Two"),
        ("{% if m['role'] == 'assistant' %} {{ m['content'].strip() }}{% else %}{{ m['content'] }}{% endif %}", " Two"),
    ],
)
def test_a_rationale_begins_with_the_whitespace_that_the_template_leaves(content, expected):
    question = Question("q", "How many?", "3", None, (Rationale("first", "\n  Two and one."),))
    assert sequence(turns(content), question) == USUAL.replace("Two", expected)


def test_a_template_without_an_end_needs_the_tokenizers():
    tokenizer = with_template(turns(end="\n"))
    tokenizer.eos_token = None
    with pytest.raises(MindError, match="nothing after an answer and the tokenizer has no end-of-sequence token"):
        Chat(tokenizer)


def test_a_question_that_the_template_changes_is_named():
    template = turns("{{ m['content'].split('</think>')[-1] }}")
    assert sequence(template) == USUAL
    with pytest.raises(MindError, match="question thinks: its text is changed by the chat template"):
        Chat(with_template(template)).prompt(Question("thinks", "What is <think>a</think>?", "1"))


def test_a_question_that_the_template_refuses_is_named():
    template = turns("{% if '{{' in m['content'] %}{{ raise_exception('no braces') }}{% endif %}{{ m['content'] }}")
    assert sequence(template) == USUAL
    with pytest.raises(MindError, match="question b: its text: the chat template cannot be rendered: .* no braces"):
        Chat(with_template(template)).prompt(Question("b", "What is {{?", "1"))


@pytest.mark.parametrize(
    ("asks", "expected"),
    [
        ("{{ strftime_now('%d %B %Y') }}", "01 January 2026"),
        ('{{ strftime_now(format="%-d %b, %A") }}', "1 Jan, Thursday"),
        ("{% set f = '%Y' + '-%m' %}{{ strftime_now(f ~ '-%d') }}", "2026-01-01"),
        ("{% set today = strftime_now %}{{ today('%F %H:%M') }}", "2026-01-01 00:00"),
        ("{% macro day() %}{{ strftime_now('%y') }}{% endmacro %}{{ day() }}", "26"),
        ("{% if strftime_now is defined %}{{ strftime_now('%Y') + '!' }}{% endif %}", "2026!"),
    ],
)
def test_the_date_is_the_same_on_all_days(asks, expected, monkeypatch):
    template = " \nToday: " + asks + ".\n" + turns()

    class Tomorrow(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.datetime.now(tz) + datetime.timedelta(days=1)

    today = sequence(template)
    monkeypatch.setattr(chat_template_utils, "datetime", Tomorrow)
    assert sequence(template) == today
    assert today == f" \nToday: {expected}.\n" + USUAL


@pytest.mark.parametrize(
    ("template", "notes"),
    [
        (CHAT_TEMPLATE, []),
        (turns(generate=""), ["begins an answer by '<|im_start|>assistant\\n': the student learns to write that"]),
        (
            turns(end=" [END]"),
            ["ends an answer by text, ' [END]', and no token: the student learns to end with <|im_end|>"],
        ),
        (turns(end=""), ["writes nothing after an answer and no token: the student learns to end with <|im_end|>"]),
        ("{{ strftime_now('%Y') }}" + turns(), ["writes the date: it is 01 January 2026 in all prompts"]),
        (
            turns(generate=GENERATE.replace("t\n{", "t\n<think>{")),
            ["begins a finished answer otherwise than the prompt"],
        ),
    ],
)
def test_what_is_unusual_is_said_at_load(template, notes, model_folder):
    (model_folder / "chat_template.jinja").write_text(template)
    said = read_template(with_template(template)).notes
    assert len(said) == len(notes) and all(note in line for note, line in zip(notes, said, strict=True))
    if notes:
        with pytest.warns(RuntimeWarning, match=r"student.model .*: its chat template"):
            load_student(StudentConfig(model=str(model_folder)))


@pytest.mark.parametrize(
    ("end", "known", "expected"),
    [
        ("<|im_end|>", 1, 1),
        ("<|im_end|>", 0, [1, 0]),
        ("<|im_end|>", [0, 1], [0, 1]),
        ("<|im_end|>", None, [1]),
        ("<|im_start|>", 1, [0, 1]),
        ("\n<|im_start|>", [1, 5], [0, 1, 5]),
        ("[END]", 0, [1, 0]),
        ("[END]<|im_end|>", 0, [1, 0]),
    ],
)
def test_generation_stops_where_the_template_ends_a_turn(end, known, expected, model_folder, tmp_path):
    from transformers import GenerationConfig

    (model_folder / "chat_template.jinja").write_text(turns(end=end))
    config = GenerationConfig.from_pretrained(model_folder)
    config.eos_token_id = known
    config.save_pretrained(model_folder)
    model, tokenizer = load_student(StudentConfig(model=str(model_folder)))
    assert model.generation_config.eos_token_id == expected
    assert Chat(tokenizer).end_id in (expected if isinstance(expected, list) else [expected])
    model.save_pretrained(tmp_path / "saved")
    assert GenerationConfig.from_pretrained(tmp_path / "saved").eos_token_id == expected
    assert Chat(tokenizer).stop_text == ("[END]" if "[END]" in end else None)


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("{% for i in range(99999999) %}x{% endfor %}", "Range too big"),
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", ENDLESS),
        ("{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
        # a single operation, which no Python code can interrupt
        ("{% set n = 9 ** (9 ** 9) %}", ENDLESS),
        ("{% set x = namespace(t='x' * 1000000) %}{% for i in range(40) %}{% set x.t = x.t ~ x.t %}{% endfor %}", BIG),
    ],
)
def test_a_template_that_does_not_end_is_refused(program, message, monkeypatch):
    if message != BIG:  # fresh memory may take a busy machine longer
        monkeypatch.setattr(template_limits, "CPU_SECONDS", 1)
    started = time.monotonic()
    with pytest.raises(MindError, match=message):
        read_template(with_template(program + turns()))
    assert time.monotonic() - started < 120


def test_after_a_limit_the_other_form_of_content_is_not_tried(monkeypatch):
    tried = []

    def reach(render):
        tried.append(render)
        raise LimitError("does not end")

    monkeypatch.setattr(templates, "check_ends", reach)
    with pytest.raises(MindError, match="its chat template does not end$"):
        read_template(with_template(turns()))
    assert len(tried) == 1


def crash():
    faulthandler.disable()  # else it writes a traceback of the crash, which is meant
    os.kill(os.getpid(), signal.SIGSEGV)


@pytest.mark.parametrize(
    ("render", "message"),
    [
        (lambda: time.sleep(30), "^does not end within 1 seconds; mend"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "^was killed while it was tried, as by a system that is out of"),
        (crash, r"^crashes the process that renders it \(Segmentation fault\); mend"),
    ],
)
def test_each_end_by_a_signal_is_named(render, message, monkeypatch):
    monkeypatch.setattr(template_limits, "WALL_SECONDS", 1)
    with pytest.raises(LimitError, match=message):
        template_limits.check_ends(render)


def refuse(*_):
    raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")


@pytest.mark.parametrize(
    ("module", "function", "message"),
    [
        (os, "fork", "^cannot be tried in a process of its own: .*temporarily unavailable"),
        (resource, "setrlimit", "^cannot be tried: the system refuses to limit"),
        (signal, "alarm", "^cannot be tried: the system refuses to limit"),
    ],
)
def test_a_template_that_cannot_be_limited_is_refused(module, function, message, monkeypatch):
    monkeypatch.setattr(module, function, refuse)
    with pytest.raises(LimitError, match=message):
        template_limits.check_ends(lambda: None)


def test_a_fork_that_does_not_begin_is_tried_again(monkeypatch, tmp_path):
    """A thread that had a lock at the fork is not there to give it back."""
    set_limits, hangs = template_limits._set_limits, 2

    def hang():
        forks = len(list(tmp_path.iterdir()))
        (tmp_path / str(os.getpid())).touch()
        if forks < hangs:
            time.sleep(60)
        set_limits()

    monkeypatch.setattr(template_limits, "_set_limits", hang)
    monkeypatch.setattr(template_limits, "START_SECONDS", 1)
    template_limits.check_ends(lambda: None)
    hangs = 6
    with pytest.raises(LimitError, match="^cannot be tried: a forked process did not begin within 1 s, 3 times"):
        template_limits.check_ends(lambda: None)
    pids = [int(path.name) for path in tmp_path.iterdir()]
    assert len(pids) == 6 and not [pid for pid in pids if os.path.exists(f"/proc/{pid}")]


def test_without_proc_the_limits_of_time_hold(monkeypatch, tmp_path):
    monkeypatch.setattr(template_limits, "_STATM", tmp_path / "statm")
    monkeypatch.setattr(template_limits, "CPU_SECONDS", 1)
    template_limits.check_ends(lambda: None)
    with pytest.raises(LimitError, match="CPU time"):
        template_limits.check_ends(lambda: 9 ** (9**9))
    (tmp_path / "statm").write_text("unknown")
    with pytest.raises(LimitError, match="refuses to limit"):
        template_limits.check_ends(lambda: None)


def test_the_end_is_known_even_if_sigchld_is_ignored():
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        template_limits.check_ends(lambda: None)
        with pytest.raises(LimitError, match="was killed"):
            template_limits.check_ends(lambda: os.kill(os.getpid(), signal.SIGKILL))
        assert signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN
        with ThreadPoolExecutor(1) as pool, pytest.raises(LimitError, match="as SIGCHLD is ignored"):
            pool.submit(template_limits.check_ends, lambda: None).result(60)
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_the_limits_are_of_the_forked_process_alone():
    before = [resource.getrlimit(kind) for kind in (resource.RLIMIT_CPU, resource.RLIMIT_AS)]
    seen = []
    template_limits.check_ends(lambda: seen.append(1))
    template_limits.check_ends(lambda: 1 / 0)
    assert not seen
    assert [resource.getrlimit(kind) for kind in (resource.RLIMIT_CPU, resource.RLIMIT_AS)] == before
