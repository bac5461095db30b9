"""Nothing that was paid for is lost, forgotten or bought twice: full disks, budgets over starts, answers cut off."""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading

import pytest
from fault_proxy import FaultProxy, chat_answer
from sample_records import make_response

from mind.cli import main
from mind.data.sources import SourceConfig
from mind.errors import MindError
from mind.teacher.config import GenerateConfig, JudgeConfig, ModelConfig, TrafficConfig
from mind.teacher.generate import ask_teacher
from mind.teacher.job import reserve_bytes
from mind.teacher.journal import Journal, load_responses, load_wasted
from mind.teacher.judge import judge

THOUGHT = "Let us think. " * 50


@pytest.fixture
def start(tmp_path, capsys):
    """Starts `mind data generate` for so many questions; the exit status and the counts that it tells."""

    def start(proxy, *more, questions=3, perspectives=("socratic", "planning")):
        file = tmp_path / "q.jsonl"
        rows = [{"id": f"q{n}", "question": f"number {n}?", "answer": str(n)} for n in range(questions)]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        command = ["generate", "--output", str(tmp_path / "set"), "--questions.path", str(file), "--teacher.model", "m",
                   "--teacher.base-url", proxy.url, "--perspectives", *perspectives, "--teacher.max-tokens", "100",
                   "--traffic.first-wait-seconds", "0.01", "--traffic.concurrency", "2", *more]  # fmt: skip
        status = main(command)
        cells = [line.split("│") for line in capsys.readouterr().out.splitlines() if "│" in line]
        return status, {row[1].strip(): row[2].strip() for row in cells}

    start.folder = tmp_path / "set"
    return start


def ask(start, proxy, questions=3, concurrency=2):
    """The same by the functions behind the command, which hand on what the system says."""
    rows = [{"id": f"q{n}", "question": f"number {n}?", "answer": str(n)} for n in range(questions)]
    file = start.folder.with_name("q.jsonl")
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    teacher = ModelConfig("m", base_url=proxy.url, max_tokens=100)
    traffic = TrafficConfig(concurrency=concurrency, first_wait_seconds=0.01)
    source = SourceConfig(str(file))
    config = GenerateConfig(str(start.folder), source, teacher, ("socratic", "planning"), traffic=traffic)
    return ask_teacher(config)


def stored(start):
    return list(load_responses(start.folder / "responses.jsonl"))


def tokens(counts) -> int:
    """The sum of both kinds, which is said to be "at most" that if the server did not count all of them."""
    most = "" if counts["replies without a token count"] == "0" else ", at most"
    return sum(int(counts[f"{kind} tokens{most}"].replace(",", "")) for kind in ("prompt", "answer"))


@pytest.mark.parametrize(
    "reply",
    [
        chat_answer("", "length", (10, 100), reasoning_content=THOUGHT),
        chat_answer(f"<think>{THOUGHT}", "length", (10, 100)),
        chat_answer("  ", "max_tokens", (10, 100)),
    ],
)
def test_thoughts_that_took_all_tokens_are_bought_once(start, reply):
    with FaultProxy(lambda _: reply) as proxy:
        status, counts = start(proxy)
        assert status == 0 and proxy.attempts.total() == 6 and counts["cut off at max_tokens"] == "6"
        assert start(proxy)[0] == 0
        assert proxy.attempts.total() == 6
    assert {(answer.text, answer.finish_reason) for answer in stored(start)} == {("", "length")}


@pytest.mark.parametrize(
    ("reply", "attempts", "each"),
    [
        (lambda: chat_answer("", usage=(10, 5)), 2, 15),
        (lambda: chat_answer("5 + 7", "error", (10, 5)), 2, 15),
        (lambda: chat_answer("", "tool_calls", (10, 5)), 1, 15),
        (lambda: chat_answer("<think>5</think>", "stop", (10, 5)), 1, 15),
        (lambda: chat_answer("", "content_filter", (10, 5)), 1, 15),
        (lambda: b'{"error": {"code": 500}, "usage": {"prompt_tokens": 10, "completion_tokens": 5}}', 2, 15),
        (lambda: b'{"error": {"code": 500}}', 2, 0),
        (lambda: b"<html>", 2, 0),
    ],
)
def test_tokens_of_lost_attempts_are_counted_over_all_starts(start, reply, attempts, each):
    options = ("--traffic.attempts", "2", "--budget.tokens", "100000")
    with FaultProxy(lambda _: reply()) as proxy:
        for starts in (1, 2, 3):
            status, counts = start(proxy, *options, questions=1)
            assert status == 1 and tokens(counts) == starts * 2 * attempts * each
    lost = list(load_wasted(start.folder / "wasted.jsonl"))
    assert sum(attempt.prompt_tokens + attempt.completion_tokens for attempt in lost) == 6 * attempts * each
    assert all(attempt.counted and attempt.reason and attempt.created.endswith("Z") for attempt in lost)


def test_an_end_that_nobody_knows_is_bought_once_and_judged(start):
    """By its last line, since nobody knows whether the server broke it off."""
    texts = iter(["It is.\n#### 0", "It is", "It is.\n#### 1", "It is.\n#### 1"])
    with FaultProxy(lambda _: chat_answer(next(texts), "tool_calls", (10, 5))) as proxy:
        status, counts = start(proxy, "--traffic.concurrency", "1", questions=2)
        assert (status, counts["answered now"], counts["ended by: tool_calls"], tokens(counts)) == (0, "4", "4", 60)
        status, counts = start(proxy, "--traffic.concurrency", "1", questions=2)
        assert (status, counts["answered now"], counts["ended by: tool_calls"], tokens(counts)) == (0, "0", "4", 60)
    assert proxy.attempts.total() == 4
    judge(JudgeConfig(str(start.folder)))
    verdicts = [json.loads(line) for line in (start.folder / "judged.jsonl").read_text().splitlines()]
    assert [one["verdict"] for one in verdicts] == ["right", "unparsed", "right", "right"]
    assert verdicts[1]["reason"] == "cut off: finish_reason is tool_calls"


@pytest.mark.parametrize(
    ("reply", "said", "thought"),
    [
        (chat_answer("It is", "content_filter", (10, 5), reasoning_content="hm"), "It is", "hm"),
        (chat_answer("It is", "error", None), "It is", None),
        (chat_answer("<think>hm</think>", "stop", (10, 5)), "", "hm"),
        (chat_answer("", "stop", (10, 5), refusal="No."), "", None),
    ],
)
def test_what_cannot_be_used_is_kept_with_its_reason(start, reply, said, thought):
    with FaultProxy(lambda _: reply) as proxy:
        assert start(proxy, "--traffic.attempts", "2", questions=1, perspectives=("socratic",))[0] == 1
    lost = list(load_wasted(start.folder / "wasted.jsonl"))
    assert len(lost) == proxy.attempts.total()
    assert {(one.text, one.reasoning) for one in lost} == {(said, thought)} and all(one.reason for one in lost)


def test_lost_attempts_without_a_count_are_counted_at_their_worst_case_over_all_starts(start):
    with FaultProxy(lambda _: chat_answer("", usage=None)) as proxy:
        _, first = start(proxy, "--traffic.attempts", "1", questions=1)
        _, second = start(proxy, "--traffic.attempts", "1", questions=1)
    assert first["replies without a token count"] == "2" and second["replies without a token count"] == "4"
    assert tokens(first) > 200 and tokens(second) == 2 * tokens(first)


def test_an_answer_after_lost_attempts_leaves_them_counted(start):
    with FaultProxy(
        lambda _: chat_answer("#### 1", usage=(10, 5)), lambda _, n: "empty choice" if n < 3 else None
    ) as proxy:
        status, counts = start(proxy, questions=1)
        assert status == 0 and tokens(counts) == 2 * 3 * 15
        assert tokens(start(proxy, questions=1)[1]) == 2 * 3 * 15


def test_a_budget_holds_over_starts_with_lost_attempts(start):
    with FaultProxy(lambda _: chat_answer("", usage=(1000, 100))) as proxy:
        spent = []
        for _ in range(6):
            _, counts = start(proxy, "--budget.tokens", "9000", "--traffic.concurrency", "1")
            spent.append(tokens(counts))
    assert spent[0] > 3000 and max(spent) <= 9000
    assert spent[-1] == spent[-2]  # nothing more is bought


def test_a_judges_lost_attempts_and_replies_are_counted_over_all_starts(start, capsys):
    texts = iter(["Who knows?", "No idea.", "Hm."] * 10)
    with FaultProxy(lambda _: chat_answer(next(texts))) as proxy:
        assert start(proxy, perspectives=("socratic",))[0] == 0
    replies = iter([chat_answer("", usage=(10, 5)), *[chat_answer("ANSWER: 1\nVERDICT: right", usage=(10, 5))] * 20])
    with FaultProxy(lambda _: next(replies)) as proxy:
        command = ["judge", str(start.folder), "--model", "j", "--base-url", proxy.url, "--traffic.first-wait-seconds",
                   "0.01", "--traffic.concurrency", "1"]  # fmt: skip
        for _ in range(2):
            assert main(command) == 0
            out = " ".join(capsys.readouterr().out.split())
            assert "prompt tokens │ 40 │" in out and "answer tokens │ 20 │" in out
        assert proxy.attempts.total() == 4
        # The rules come to read two of the answers: their replies were paid for all the same.
        lines = (start.folder / "responses.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        rows[0]["text"] = rows[1]["text"] = "#### 1"
        (start.folder / "responses.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        assert main(command) == 0
        assert "prompt tokens │ 40 │" in " ".join(capsys.readouterr().out.split())


# Full disks


def full_disk(monkeypatch, room):
    """Lets journals write so many bytes; freed reserves count as room."""
    state = {"room": room}

    class File:
        def __init__(self, file):
            self._file = file

        def write(self, data):
            if len(data) > state["room"]:
                part = bytes(data[: state["room"]])
                state["room"] = 0
                if part:
                    return self._file.write(part)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            state["room"] -= len(data)
            return self._file.write(data)

        def __getattr__(self, name):
            return getattr(self._file, name)

    began = Journal.__init__

    def begin(self, path, *, reserve=0):
        began(self, path, reserve=reserve)
        self._file = File(self._file)
        kept = self._reserve

        class Reserve:
            def unlink(self, missing_ok=False):
                state["room"] += kept.stat().st_size if kept.exists() else 0
                kept.unlink(missing_ok=missing_ok)

        self._reserve = Reserve()

    monkeypatch.setattr(Journal, "__init__", begin)


def test_answers_under_way_are_kept_when_the_disk_is_full(start, monkeypatch):
    """The first start meets the full disk: what was asked is stored all the same, and nothing more is asked."""
    with monkeypatch.context() as patch, FaultProxy(lambda _: chat_answer("It is.\n#### 1")) as proxy:
        full_disk(patch, room=700)
        with pytest.raises(OSError, match="No space left"):
            ask(start, proxy, questions=40, concurrency=4)
        asked = proxy.attempts.total()
        assert asked < 80
        assert len(stored(start)) == asked == proxy.answered.total()
    assert [path.name for path in start.folder.iterdir() if path.name.startswith(".")] == []
    with FaultProxy(lambda _: chat_answer("It is.\n#### 1")) as proxy:
        assert start(proxy, questions=40)[0] == 0
        assert proxy.attempts.total() == 80 - asked


def test_lost_attempts_under_way_are_counted_when_the_disk_is_full(start, monkeypatch):
    with monkeypatch.context() as patch, FaultProxy(lambda _: chat_answer("It is", "content_filter")) as proxy:
        full_disk(patch, room=700)
        with pytest.raises(OSError, match="No space left"):
            ask(start, proxy, questions=40, concurrency=4)
        assert 3 < proxy.attempts.total() < 80
        assert len(list(load_wasted(start.folder / "wasted.jsonl"))) == proxy.attempts.total()


def test_a_disk_without_room_for_what_is_under_way_is_told_before_anything_is_asked(tmp_path, monkeypatch):
    from mind.teacher import journal

    def no_room(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(journal.os, "fsync", no_room)
    monkeypatch.setattr(journal, "_sync_folder", lambda _: None)
    with pytest.raises(
        MindError, match=r"no room for the 100 kB of answers that are under way at a time: No space left"
    ):
        Journal(tmp_path / "responses.jsonl", reserve=100_000)
    assert [path.name for path in tmp_path.iterdir()] == ["responses.jsonl"]


def test_a_reserve_larger_than_the_disk_is_not_begun(tmp_path):
    with pytest.raises(MindError, match="no room for the .* of answers that are under way at a time: No space left"):
        Journal(tmp_path / "responses.jsonl", reserve=2**70)
    assert [path.name for path in tmp_path.iterdir()] == ["responses.jsonl"]


def test_the_reserve_grows_with_what_is_under_way():
    model = ModelConfig("m", max_tokens=1000)
    assert reserve_bytes(model, TrafficConfig(concurrency=2)) * 5 == reserve_bytes(model, TrafficConfig(concurrency=10))
    assert reserve_bytes(model, TrafficConfig()) > 32 * 1000 * 10


def test_a_failed_write_leaves_whole_lines_and_the_next_goes_on(tmp_path, monkeypatch):
    path = tmp_path / "responses.jsonl"
    with Journal(path) as journal:
        journal.append([make_response("a")])
    with monkeypatch.context() as patch:
        full_disk(patch, room=50)
        with Journal(path) as journal, pytest.raises(OSError, match="No space left"):
            journal.append([make_response("b")])
    with Journal(path) as journal:
        journal.append([make_response("c")])
    assert [response.key.question for response in load_responses(path)] == ["a", "c"]


def test_what_cannot_be_cut_off_at_once_is_not_there_twice(tmp_path):
    """A disk that fails at two operations in a row: half of the lines is written, and stays."""
    path, left = tmp_path / "responses.jsonl", 2

    class Failing:
        def __init__(self, file):
            self._file = file

        def write(self, data):
            if left == 2:
                self._file.write(data[: len(data) * 2 // 3])
            return self._failing() or self._file.write(data)

        def truncate(self, size):
            return self._failing() or self._file.truncate(size)

        def _failing(self):
            nonlocal left
            if left:
                left -= 1
                raise OSError(errno.EIO, os.strerror(errno.EIO))

        def __getattr__(self, name):
            return getattr(self._file, name)

    with Journal(path) as journal:
        journal.append([make_response("a")])
        journal._file = Failing(journal._file)
        with pytest.raises(OSError, match="Input/output error"):
            journal.append([make_response("b"), make_response("c")])
        journal.append([make_response("d")])
    assert [response.key.question for response in load_responses(path)] == ["a", "b", "c", "d"]


@pytest.mark.parametrize("lost", ["moved", "removed", "replaced"])
def test_a_folder_that_goes_away_ends_the_job(start, lost):
    """After the fourth of 40 requests, two at a time. What was answered before is where the folder is now."""
    elsewhere = start.folder.with_name("elsewhere")

    def answer(_):
        with turn:
            if proxy.answered.total() == 4 and not elsewhere.exists():
                start.folder.rename(elsewhere)
                if lost == "replaced":
                    shutil.copytree(elsewhere, start.folder)
                elif lost == "removed":
                    shutil.rmtree(elsewhere)
                    elsewhere.mkdir()
        return chat_answer("It is.\n#### 1")

    turn = threading.Lock()
    with FaultProxy(answer) as proxy:
        with pytest.raises(MindError, match=r"set/responses\.jsonl: moved or removed while the job ran"):
            ask(start, proxy, questions=20)
        assert proxy.attempts.total() <= 8
        if lost == "removed":
            return
        known = len(list(load_responses(elsewhere / "responses.jsonl")))
        assert known == proxy.attempts.total()
        shutil.rmtree(start.folder, ignore_errors=True)
        elsewhere.rename(start.folder)
        assert ask(start, proxy, questions=20).answered == 40 - known
    assert len(stored(start)) == proxy.attempts.total() == 40


def test_an_answer_is_on_the_disk_before_it_counts(tmp_path, monkeypatch):
    """And so is the name of a new journal."""
    calls = []
    fsync = os.fsync

    def noted(descriptor):
        calls.append((os.readlink(f"/proc/self/fd/{descriptor}"), os.fstat(descriptor).st_size))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    path = tmp_path / "responses.jsonl"
    with Journal(path) as journal:
        assert [name for name, _ in calls] == [str(tmp_path)]
        journal.append([make_response("a"), make_response("b")])
        assert calls[1:] == [(str(path), path.stat().st_size)]  # after both lines, before `append` returns
        journal.append([make_response("c")])
        assert calls[2:] == [(str(path), path.stat().st_size)]


@pytest.mark.parametrize("name", ["generate.json", "prompts.json", "questions.jsonl", "failures.jsonl", "judged.jsonl"])
def test_a_write_error_leaves_every_file_as_it_was(start, monkeypatch, name):
    """A second start that cannot write does not spoil what the first wrote."""
    from mind import files

    with FaultProxy(lambda _: chat_answer("It is.\n#### 1")) as proxy:
        ask(start, proxy)
        judge(JudgeConfig(str(start.folder)))
        before = {path.name: path.read_bytes() for path in start.folder.iterdir()}
        replacing = files.replacing_file

        def failing(path):
            if os.path.basename(path) == name:
                raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
            return replacing(path)

        monkeypatch.setattr(files, "replacing_file", failing)
        with pytest.raises(OSError, match="File too large"):
            ask(start, proxy)
            judge(JudgeConfig(str(start.folder)))
    assert {path.name: path.read_bytes() for path in start.folder.iterdir()} == before
