"""The tables of `tune`: what "auto" takes by one, when it does not, that graphs stay whole, and the command."""

from __future__ import annotations

import json
import sys
import warnings

import pytest
import torch
from cases import assert_compiles_whole
from torch._dynamo.testing import CompileCounter

from mind_kernels import backend as backends
from mind_kernels import linear_cross_entropy, linear_divergence, linear_pairwise_jsd, sparse_gradient, tuning
from mind_kernels.__main__ import main
from mind_kernels.backend import BACKENDS, resolve
from mind_kernels.commands import check, tune
from mind_kernels.testing import make_inputs

CPU = torch.device("cpu")
HIDDEN = torch.zeros(4, 24)
ROWS = "linear_cross_entropy"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty folder of tables; what was read before is forgotten."""
    monkeypatch.setenv("MIND_KERNELS_TUNING", str(tmp_path))
    monkeypatch.delenv("MIND_KERNELS_BACKEND", raising=False)
    for remembered in (tuning._read, backends._usable, backends._say_unused):
        remembered.cache_clear()
    yield tmp_path
    tuning._read.cache_clear()


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


def test_entries_are_added_and_replaced(folder):
    tuning.write(CPU, [entry("torch"), entry("torch", dtype="bfloat16")])
    path = tuning.write(CPU, [entry("cpp", vocabulary=120), entry("torch", vocabulary=128)])
    found = tuning.read(CPU).entries
    assert [(e.backend, e.dtype, e.vocabulary) for e in found] == [
        ("cpp", "float32", 120),
        ("torch", "bfloat16", 100),
        ("torch", "float32", 128),
    ]
    assert [*folder.iterdir()] == [path]  # nothing is left of the writing


def test_a_table_that_cannot_be_written_leaves_the_former(monkeypatch, folder):
    path = tuning.write(CPU, [entry()])
    before = path.read_text()
    monkeypatch.setattr(tuning.os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        tuning.write(CPU, [entry("cpp")])
    assert path.read_text() == before and [*folder.iterdir()] == [path]


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


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("none", "MIND_KERNELS_TUNING is 'none', so that no table is written"),
        ("/proc/nowhere", "/proc/nowhere: No such file or directory; MIND_KERNELS_TUNING may name another folder"),
        (__file__, f"{__file__}: File exists; MIND_KERNELS_TUNING may name another folder"),
    ],
)
def test_a_place_that_no_table_can_have_is_told_before_anything_is_timed(setting, told, monkeypatch, capsys):
    monkeypatch.setenv("MIND_KERNELS_TUNING", setting)
    monkeypatch.setattr(tune, "timed", None)
    with pytest.raises(SystemExit) as end:
        main(SIZES)
    assert end.value.code == 2 and told in capsys.readouterr().err


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


# The command


@pytest.fixture
def wins(monkeypatch):
    """Every call takes no time, but a second for each use of the default."""

    def timed(calls, rounds, device):
        for call in calls.values():
            call()
        return {name: [float(name == "cpp")] * rounds for name in calls}

    monkeypatch.setattr(tune, "timed", timed)
    monkeypatch.setattr(tune, "wrong", lambda *_: "")


SIZES = ["tune", "--hidden-size", "24", "--vocabulary", "100", "--device", "cpu"]


def test_what_wins_is_written_and_taken(capsys, wins, folder):
    assert main([*SIZES, "--rows", "16", "--dtype", "float32", "bfloat16"]) == 0
    out = capsys.readouterr().out
    assert f"{ROWS:<36}torch, in place of cpp: torch 0 ms, cpp 1000 ms" in out
    assert f"{'linear_top_k':<36}torch alone" in out
    assert f"written to {folder}" in out
    for dtype in (torch.float32, torch.bfloat16):
        assert resolve("auto", HIDDEN.to(dtype), ROWS, 100) == "torch" != default()
    assert main([]) == 0
    assert f"torch for {ROWS}, sparse (float32, V 100, D 24)" in capsys.readouterr().out


def test_a_backend_that_differs_is_left_out(capsys, wins, monkeypatch):
    monkeypatch.setattr(tune, "wrong", lambda case, name, *_: "nll at N 1: error 1" if name == "cpp" else "")
    assert main([*SIZES, "--rows", "16"]) == 1
    out = capsys.readouterr().out
    assert f"{ROWS:<36}without cpp, which differs from the definition: nll at N 1: error 1" in out
    assert "9 backends differ from the definition: python -m mind_kernels check --device cpu" in out
    assert resolve("auto", HIDDEN, ROWS, 100) == "torch" != default()  # a wrong default is not taken any more


def test_the_comparison_is_that_of_check(monkeypatch):
    seen = []
    monkeypatch.setattr(
        tune, "fault", lambda case, name, dtype, device: seen.append(case) or ("", "off" * (len(seen) == 3))
    )
    case = check.CASES["cross-entropy"]
    assert tune.wrong(case, "torch", torch.float32, CPU) == "off"
    assert [c.operation for c in seen] == [ROWS] * 3


def test_times_are_of_calls_in_turn():
    called = []
    found = tune.timed({name: lambda name=name: called.append(name) for name in "abc"}, 3, CPU)
    assert "".join(called) == "abc" + "abc" + "cba" + "abc"
    assert {name: len(times) for name, times in found.items()} == dict.fromkeys("abc", 3)


def test_any_number_of_rounds():
    """Above 1023, 2**rounds is no float; the share of wins by chance falls with the root of the rounds."""
    assert tune.needed(10**4) == pytest.approx(5000 + 1.96 * 50, abs=2)


@pytest.mark.parametrize(("rounds", "expected"), [(6, 6), (8, 8), (9, 8), (12, 10), (20, 15)])
def test_a_win_by_chance_is_one_in_forty(rounds, expected):
    """By the distribution of coin tosses, counted."""
    assert tune.needed(rounds) == expected
    heads = torch.tensor([bin(tosses).count("1") for tosses in range(2**rounds)])
    assert (heads >= expected).double().mean() <= 1 / 40 < (heads >= expected - 1).double().mean()


@pytest.mark.parametrize(
    ("seconds", "backend"),
    [
        ({"a": [2.0] * 9, "b": [1.0] * 9}, "b"),
        ({"a": [2.0] * 9, "b": [1.0] * 8 + [9.0]}, "b"),  # one slow round is no loss
        ({"a": [2.0] * 9, "b": [1.0] * 7 + [9.0] * 2}, "a"),  # within the noise, though the median is half
        ({"a": [2.0] * 9, "b": [2.0] * 9}, "a"),
        ({"a": [3.0] * 9, "b": [2.0] * 9, "c": [1.0] * 9}, "c"),
    ],
)
def test_the_default_stays_within_the_noise(seconds, backend):
    assert tune.chosen(seconds, "a") == backend


@pytest.mark.parametrize(("asked", "expected"), [(None, (256, 2048)), (512, (512, 512)), (13, (8, 8))])
def test_the_sparse_gradient_gets_rows_that_are_not_sampled(asked, expected):
    counts = tune.rows_of(asked, 49152, torch.float32, CPU)
    assert (counts[""], counts["sparse"]) == expected
    of_gpu = tune.rows_of(asked, 49152, torch.bfloat16, torch.device("cuda"))
    assert of_gpu["sparse"] == of_gpu[""]


def test_fewer_rows_are_the_first_ones():
    every = tune.inputs_of(48, 24, 100, torch.float32, CPU)
    assert {len(value) for name, value in tune.first_rows(every, 16).items() if name in tune.PER_ROW} == {16}
    for name, value in tune.first_rows(every, 48).items():
        assert torch.equal(value, every[name]), name


def test_rows_are_as_certain_as_the_sparse_gradient_needs(monkeypatch):
    monkeypatch.setitem(sparse_gradient._DENSITY_LIMIT, "cpu", sparse_gradient._DENSITY_LIMIT["cuda"])
    c = tune.inputs_of(64, 64, 16384, torch.float32, CPU)
    _, stats = linear_cross_entropy(
        c["hidden"], c["weight"], c["target"], gradient_threshold=float(c["threshold"]), return_stats=True
    )
    assert 8 < stats.kept_entries.float().mean() < 16384 / 256


def test_a_model_gives_the_sizes(tmp_path, capsys, wins):
    (tmp_path / "model").mkdir()
    config = {"model_type": "gpt2", "n_embd": 24, "vocab_size": 100}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    assert main(["tune", str(tmp_path / "model"), "--device", "cpu", "--rows", "8"]) == 0
    assert "hidden size 24, vocabulary 100" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "--hidden-size is missing: give a model, or --hidden-size and --vocabulary"),
        (["--hidden-size", "8"], "--vocabulary is missing"),
        (["--hidden-size", "0", "--vocabulary", "9"], "--hidden-size 0: expected at least 1"),
        (["some/model", "--vocabulary", "9"], "model: expected none beside --hidden-size and --vocabulary"),
        ([*SIZES[1:], "--rounds", "5"], "--rounds 5: expected at least 6"),
        ([*SIZES[1:], "--rows", "7"], "--rows 7: expected at least 8"),
        ([*SIZES[1:-1], "meta"], "--device meta: expected a CPU or a CUDA device"),
        ([*SIZES[1:-1], "nonsense"], "--device nonsense"),
        (["/nowhere/at/all"], "model '/nowhere/at/all': "),
        ([*SIZES[1:], "--rows", str(2**50)], f"{2**50} rows, hidden size 24, vocabulary 100: "),
    ],
)
def test_bad_options_are_told(arguments, told, capsys):
    with pytest.raises(SystemExit) as end:
        main(["tune", *arguments])
    assert end.value.code == 2 and told in capsys.readouterr().err


def test_sizes_by_number_need_torch_alone(folder, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "transformers", None)  # an import of it fails
    monkeypatch.setattr(tune, "wrong", lambda *_: "")
    assert main([*SIZES, "--rows", "8", "--rounds", "6"]) == 0
    table = json.loads(next(folder.iterdir()).read_text())
    assert {e["use"] for e in table["entries"]} == {use for use in tune.first_cases() if use != "linear_top_k"}
    assert all(ms > 0 for e in table["entries"] for ms in e["median_ms"].values())
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["tune", "some/model"])
    remedy = "pip install transformers, or give --hidden-size and --vocabulary"
    assert f"model: transformers is not installed: {remedy}" in capsys.readouterr().err


def test_no_warning_without_a_table():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert resolve("auto", HIDDEN, ROWS, 100) == default()
    assert set(BACKENDS) >= {default()}
