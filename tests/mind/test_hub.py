"""Whether a name means a folder or a model on the Hub, and what the Hub, or its silence, makes of it."""

from __future__ import annotations

import json
import re
import time
import warnings
from http.server import BaseHTTPRequestHandler
from threading import Thread

import huggingface_hub
import pytest
from fault_proxy import LoopbackServer

from mind import hub
from mind.data.sources import SourceConfig, load_source
from mind.errors import MindError
from mind.vllm_engine import engine_package


class Hub(BaseHTTPRequestHandler):
    """Has one model, and one on request; counts what it is asked."""

    asked: list[str] = []

    def do_GET(self):
        self.asked.append(self.path)
        if self.path.startswith("/api/models/org/there"):
            self.answer(200, {"id": "org/there", "modelId": "org/there", "tags": [], "private": False, "siblings": []})
        elif "gated" in self.path:
            self.answer(403, {"error": "no"}, "GatedRepo")
        elif "broken" in self.path:
            self.answer(500, {"error": "oh"})
        else:
            self.answer(404, {"error": "none"}, "RepoNotFound")

    do_HEAD = do_GET

    def answer(self, status, body, code=None):
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        if code:
            self.send_header("X-Error-Code", code)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(text)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    """A Hub on this machine; its list of requests."""
    found = LoopbackServer(("127.0.0.1", 0), Hub)
    Thread(target=found.serve_forever, daemon=True).start()
    Hub.asked = []
    use_endpoint(monkeypatch, f"http://127.0.0.1:{found.server_port}")
    monkeypatch.setattr(hub, "TIMEOUT_S", 60)  # a busy machine is slow, and a Hub that is slow "does not answer"
    yield Hub.asked
    found.shutdown()
    found.server_close()


@pytest.fixture
def no_network(monkeypatch):
    use_endpoint(monkeypatch, "http://127.0.0.1:9")


def use_endpoint(monkeypatch, url):
    hub._refusal.cache_clear()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", url)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


def refusal(name, option="student.model"):
    with pytest.raises(MindError) as error:
        hub.find_model(option, name)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_folder_is_a_folder(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").touch()
    assert hub.find_model("student.model", str(tmp_path / "model")) == str(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    assert hub.find_model("student.model", "model") == "model"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert hub.find_model("student.model", "~/model") == str(tmp_path / "model")
    (tmp_path / "empty").mkdir()
    assert (
        refusal("empty")
        == "student.model empty: the folder has no config.json: expected one that save_pretrained wrote"
    )
    (tmp_path / "file").touch()
    assert refusal("file") == "student.model file: is a file: expected a folder, or a name on the Hub"


def test_the_folder_of_a_run_is_no_student(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    student = tmp_path / "run" / "student"
    student.mkdir(parents=True)
    own = tmp_path / "run" / "config.json"
    for file in (own, student / "config.json"):
        file.write_text('{"model_type": "llama"}')
    assert hub.find_model("student.model", "run") == "run"  # a model, with another one in it
    own.write_text('{"output": "run", "method": "sft", "student": {"model": "model"}}')
    assert refusal("run") == "student.model run is the folder of a run: name its student, run/student"
    adapter = tmp_path / "run" / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(student)}))
    merged = "student, run/student, which has it merged"
    assert refusal("run/adapter/") == f"student.model run/adapter is the adapter of a run: name its {merged}"
    with monkeypatch.context() as within:
        within.chdir(adapter)
        assert refusal(".").endswith(f". is the adapter of a run: name its student, {student}, which has it merged")
    assert hub.find_model("student.model", "run/student") == "run/student"


def test_the_hub_is_not_asked_for_the_model_of_a_folder_of_adapters(server, tmp_path, monkeypatch):
    """The user has not named it; the model of a folder's adapters is a folder, or beside them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "adapters").mkdir()
    file = tmp_path / "adapters" / "adapter_config.json"
    for base in ("org/there", "none/here", None):
        file.write_text(json.dumps({"base_model_name_or_path": base}))
        assert refusal("adapters") == (
            f"student.model adapters: holds adapters of the model {base!r}, which is no folder here; the Hub is asked "
            "only for names that you give: merge the adapters into their model, or name its folder in "
            "adapters/adapter_config.json"
        )
    (tmp_path / "none" / "here").mkdir(parents=True)
    file.write_text('{"base_model_name_or_path": "none/here"}')
    assert hub.find_model("student.model", "adapters") == "adapters"
    file.write_text('{"base_model_name_or_path": "org/there"}')
    (tmp_path / "adapters" / "config.json").touch()
    assert hub.find_model("student.model", "adapters") == "adapters"
    assert not server


@pytest.mark.parametrize(
    "name",
    ["./none", "../none", "/none/of/these", "~/none", "runs/mine/studnet", "a b", "none/", "x\\y", "a--b", "", "a/b/c"],
)
def test_what_cannot_be_a_name_on_the_hub_is_a_folder_that_is_not_there(name, server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "no such folder" in refusal(name) or "has no config.json" in refusal(name)
    assert not server


def test_a_misspelt_folder_is_guessed(no_network, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "mine" / "student").mkdir(parents=True)
    for name in ("runs/mine/studnet", "runs/mnie/student", "./run/mine/student", str(tmp_path / "runs/mine/studen")):
        assert refusal(name).endswith("runs/mine/student"), name
    assert refusal("runs/mnie").endswith("; perhaps you meant runs/mine")  # which the Hub might have had
    assert "perhaps" not in refusal("nothing/like/it")


def test_the_hub_is_asked_once(server):
    assert hub.find_model("student.model", "org/there") == hub.find_model("metanet.encoder", "org/there") == "org/there"
    assert len(server) == 1
    assert "neither a folder here nor a model on the Hub" in refusal("org/nothere")
    assert "gives this model on request" in refusal("org/gated")
    assert "the Hub does not answer" in refusal("org/broken")
    assert len(server) == 4


def test_a_data_set_that_the_hub_has_not_is_told_at_once(server):
    pytest.importorskip("datasets")
    for name, message in {
        "org/none": "the questions org/none: neither a folder here nor a data set on the Hub",
        "org/gated": "the questions org/gated: the Hub gives this data set on request",
        "./none": "the questions ./none: no such folder",
        "data/q/jsonl": "the questions data/q/jsonl: no such folder",
    }.items():
        with pytest.raises(MindError, match=re.escape(message)):
            load_source(SourceConfig(name))
    assert [path for path in server if "datasets" in path] == server and len(server) == 2


def test_without_a_network_one_line_says_so_at_once(no_network):
    started = time.monotonic()
    assert refusal("org/there").startswith(
        "student.model org/there: no such folder here, and the Hub does not answer ("
    )
    assert time.monotonic() - started < 5


def test_without_a_network_the_copy_in_the_cache_is_taken(no_network, tmp_path, monkeypatch):
    copy = tmp_path / "snapshots" / "1" / "config.json"
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: str(copy))
    with pytest.warns(RuntimeWarning, match="org/there: the Hub does not answer .* its copy in the cache is used"):
        assert hub.find_model("student.model", "org/there") == str(copy.parent)
    hub._refusal.cache_clear()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # which was wanted
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert hub.find_model("student.model", "org/there") == str(copy.parent)


def test_without_a_network_a_data_set_is_told_at_once_or_comes_from_the_cache(no_network, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    started = time.monotonic()
    message = "the questions org/none: no such folder here, and the Hub does not answer"
    with pytest.raises(MindError, match=message):
        load_source(SourceConfig("org/none"))
    assert time.monotonic() - started < 10  # 24 s with the retries of `datasets`
    assert not datasets.config.HF_HUB_OFFLINE

    def from_the_cache(*_, **__):
        assert datasets.config.HF_HUB_OFFLINE
        return datasets.Dataset.from_dict({"question": ["1 + 1?"], "answer": ["2"]})

    monkeypatch.setattr(datasets, "load_dataset", from_the_cache)
    with pytest.warns(RuntimeWarning, match="org/none: the Hub does not answer .* its copy in the cache is used"):
        assert [question.answer for question in load_source(SourceConfig("org/none"))] == ["2"]


def test_libraries_send_nothing_of_their_own_accord(monkeypatch, tmp_path):
    """Conversion of weights by a service, and reports of use; what a user has set stays."""
    names = ("DISABLE_SAFETENSORS_CONVERSION", "RAY_USAGE_STATS_ENABLED", "VLLM_NO_USAGE_STATS")
    for name in names:
        monkeypatch.setenv(name, "kept")
    monkeypatch.delenv(names[0])
    (tmp_path / "config.json").write_text("{}")
    hub.find_model("student.model", str(tmp_path))
    assert [hub.os.environ[name] for name in names] == ["1", "kept", "kept"]
    for name in names[1:]:
        monkeypatch.delenv(name)
    with pytest.raises(MindError, match="engine nothing needs no_such_engine"):
        engine_package("no_such_engine", "nothing")
    assert [hub.os.environ[name] for name in names] == ["1", "0", "1"]
