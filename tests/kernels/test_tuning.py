"""The tables of `tune`: what "auto" takes by one, when it does not, and that graphs stay whole."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from cases import assert_compiles_whole
from torch._dynamo.testing import CompileCounter

from mind_kernels import backend as backends
from mind_kernels import linear_cross_entropy, linear_divergence, linear_pairwise_jsd, tuning
from mind_kernels.backend import BACKENDS, resolve
from mind_kernels.testing import make_inputs

CPU = torch.device("cpu")
HIDDEN = torch.zeros(4, 24)
ROWS = "linear_cross_entropy"
pytestmark = pytest.mark.usefixtures("tables")


def entry(backend="torch", use=ROWS, dtype="float32", vocabulary=100, hidden_size=24):
    return tuning.Entry(use, dtype, vocabulary, hidden_size, 8, backend, {"torch": 1.0, "cpp": 2.0})


def default() -> str:
    return backends.automatic("cpu", False, ROWS)


def other() -> str:
    """A backend that "auto" takes by a table alone: the definition, which serves every operation."""
    return "reference"


def test_auto_follows_the_table():
    tuning.write(CPU, [entry(other()), entry("torch", f"{ROWS}, sparse"), entry("torch", dtype="bfloat16")])
    assert resolve("auto", HIDDEN, ROWS, 100) == other()
    assert resolve("auto", HIDDEN, ROWS, 100, "sparse") == "torch"
    assert resolve("auto", HIDDEN.bfloat16(), ROWS, 100) == "torch"
    assert resolve("auto", HIDDEN.half(), ROWS, 100) == default()
    assert resolve("auto", HIDDEN.double(), ROWS, 100) == "torch"  # no table has float64
    assert resolve("auto", HIDDEN, "linear_pairwise_jsd", 100) == default()
    assert resolve("auto", HIDDEN.to("meta"), ROWS, 100) == "torch"
    assert resolve("cpp", HIDDEN, ROWS, 100) == "cpp"  # a name is a name


@pytest.mark.parametrize(
    ("vocabulary", "size", "followed"),
    [(64, 16, True), (127, 31, True), (63, 24, False), (128, 24, False), (100, 32, False)],
)
def test_an_entry_holds_for_the_same_powers_of_two(vocabulary, size, followed):
    tuning.write(CPU, [entry(other())])
    assert (resolve("auto", torch.zeros(4, size), ROWS, vocabulary) == other()) == followed


def test_the_variable_overrides_the_table(monkeypatch):
    tuning.write(CPU, [entry(other())])
    monkeypatch.setenv("MIND_KERNELS_BACKEND", "torch")
    assert resolve("auto", HIDDEN, ROWS, 100) == "torch"


def test_entries_are_added_and_replaced(tables):
    tuning.write(CPU, [entry("torch"), entry("torch", dtype="bfloat16")])
    path = tuning.write(CPU, [entry("cpp", vocabulary=120), entry("torch", vocabulary=128)])
    found = tuning.read(CPU).entries
    assert [(e.backend, e.dtype, e.vocabulary) for e in found] == [
        ("cpp", "float32", 120),
        ("torch", "bfloat16", 100),
        ("torch", "float32", 128),
    ]
    assert [*tables.iterdir()] == [path]  # nothing is left of the writing


def test_a_table_that_cannot_be_written_leaves_the_former(monkeypatch, tables):
    path = tuning.write(CPU, [entry()])
    before = path.read_text()
    monkeypatch.setattr(tuning.os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        tuning.write(CPU, [entry("cpp")])
    assert path.read_text() == before and [*tables.iterdir()] == [path]


def _device(table):
    table["device"] = "another"


def _version(table):
    table["versions"]["torch"] = "1.0"


def _format(table):
    table["format"] = 2


def _fields(table):
    del table["entries"][0]["backend"]


def _sizes(table):
    table["entries"][0]["vocabulary"] = 0


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_device, "it was made on 'another', and this is '"),
        (_version, "it was made with {.*'torch': '1.0'.*}, and this is {"),
        (_format, "it is no table of format 1"),
        (_fields, "an entry is {.*}: expected use, dtype, vocabulary, hidden_size, rows, backend, median_ms"),
        (_sizes, "an entry is {.*}: expected sizes of at least 1"),
        ("{", "Expecting property name"),
        ("[" * 100_000, "maximum recursion depth"),
        ("[]", "it is no table of format 1"),
        (b"\xff", "can't decode byte"),
    ],
    ids=["device", "version", "format", "fields", "sizes", "cut", "deep", "list", "bytes"],
)
def test_a_table_that_does_not_fit_is_told_once_and_not_followed(change, reason):
    path = tuning.write(CPU, [entry(other())])
    if callable(change):
        table = json.loads(path.read_text())
        change(table)
        change = json.dumps(table)
    path.write_bytes(change if isinstance(change, bytes) else change.encode())
    tuning._read.cache_clear()
    with pytest.warns(UserWarning, match=f'"auto" does not follow this table: .*{reason}') as told:
        assert resolve("auto", HIDDEN, ROWS, 100) == default()
        assert resolve("auto", HIDDEN, ROWS, 100, "sparse") == default()
    assert len(told) == 1
    tuning.write(CPU, [entry(other())])
    assert resolve("auto", HIDDEN, ROWS, 100) == other()  # a new table takes its place


@pytest.mark.parametrize(("name", "reason"), [("gone", "there is no such backend"), ("cuda", "'cuda': ")])
def test_a_backend_that_is_gone_is_told_and_not_taken(name, reason):
    tuning.write(CPU, [entry(name)])
    with pytest.warns(UserWarning, match=reason):
        assert resolve("auto", HIDDEN, ROWS, 100) == default()


def test_the_folder_has_to_be_one(monkeypatch, tmp_path):
    monkeypatch.setenv("MIND_KERNELS_TUNING", str(tmp_path / "nowhere"))
    with pytest.warns(UserWarning, match="MIND_KERNELS_TUNING is '.*nowhere': expected 'none' or a folder"):
        assert resolve("auto", HIDDEN, ROWS, 100) == default()
    tuning.write(CPU, [entry(other())])  # makes it
    assert resolve("auto", HIDDEN, ROWS, 100) == other()


def test_none_reads_and_writes_no_table(monkeypatch):
    tuning.write(CPU, [entry(other())])
    monkeypatch.setenv("MIND_KERNELS_TUNING", "none")
    assert resolve("auto", HIDDEN, ROWS, 100) == default()
    with pytest.raises(ValueError, match="MIND_KERNELS_TUNING is 'none', so that no table is written: unset it, or"):
        tuning.write(CPU, [entry()])


def test_without_the_variable_it_is_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.delenv("MIND_KERNELS_TUNING")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert tuning.read(CPU).path.parent == tmp_path / "mind-kernels" / "tuning"
    tuning._read.cache_clear()
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert tuning.read(CPU).path.parent == tmp_path / ".cache" / "mind-kernels" / "tuning"


def test_a_user_without_a_home_has_no_table(monkeypatch):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(tuning.Path, "home", no_home)
    for variable in ("MIND_KERNELS_TUNING", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    tuning._read.cache_clear()
    assert tuning.read(CPU) == tuning.read(CPU) and tuning.read(CPU).path is None
    assert resolve("auto", HIDDEN, ROWS, 100) == default()
    with pytest.raises(ValueError, match="no home directory is known: MIND_KERNELS_TUNING may name a folder"):
        tuning.make_folder()


def test_a_folder_that_cannot_be_looked_at_is_told(monkeypatch):
    def forbidden(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tuning.Path, "is_dir", forbidden)
    assert "Permission denied" in tuning.read(CPU).problem


def test_a_cpu_with_other_threads_is_another_device():
    tuning.write(CPU, [entry(other())])
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        assert resolve("auto", HIDDEN, ROWS, 100) == default()
    finally:
        torch.set_num_threads(threads)
    assert resolve("auto", HIDDEN, ROWS, 100) == other()


def _row_loss(**options):
    def loss(hidden, weight):
        return linear_cross_entropy(hidden, weight, torch.zeros(len(hidden), dtype=torch.long), **options)

    return loss


USES = {
    ROWS: _row_loss(),
    f"{ROWS}, sparse": _row_loss(gradient_threshold=2**-6),
    "linear_pairwise_jsd": lambda h, w: linear_pairwise_jsd(h.view(-1, 2, 24), w, torch.ones(len(h) // 2, 2, 2)),
    "linear_pairwise_jsd, mixture": lambda h, w: linear_pairwise_jsd(
        h.view(-1, 2, 24), w, mixture_weight=torch.ones(len(h) // 2, 2)
    ),
    "linear_divergence": lambda h, w: linear_divergence(h, w, h.detach() + 1, w.detach()),
    "linear_divergence, list": lambda h, w: linear_divergence(
        h, w, teacher_ids=torch.zeros(len(h), 1, dtype=torch.long), teacher_log_prob=torch.full((len(h), 1), -0.5)
    ),
}


@pytest.mark.parametrize("use", USES)
def test_each_operation_asks_for_its_own_use(use, monkeypatch):
    given = make_inputs(4, 24, 100)
    asked = []
    monkeypatch.setattr(backends, "tuned_entries", lambda device, dtype, *use: asked.append(tuning.use(*use)) or ())
    USES[use](given["hidden"], given["weight"])
    assert asked == [use]


def test_a_graph_stays_whole_and_has_the_choice_for_a_constant(monkeypatch):
    tuning.write(CPU, [entry("torch")])
    given = make_inputs(4, 24, 100)
    assert_compiles_whole(_row_loss(), given["hidden"], given["weight"])
    graphs = CompileCounter()
    compiled = torch.compile(_row_loss(), fullgraph=True, dynamic=True, backend=graphs)
    for rows, vocabulary in ((4, 100), (6, 101), (9, 90)):  # in one bucket: one graph
        given = make_inputs(rows, 24, vocabulary)
        assert torch.equal(
            compiled(given["hidden"], given["weight"]), _row_loss(backend="torch")(*[*given.values()][:2])
        )
    assert graphs.frame_count == 1


def test_no_warning_without_a_table():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert resolve("auto", HIDDEN, ROWS, 100) == default()
    assert set(BACKENDS) >= {default()}
