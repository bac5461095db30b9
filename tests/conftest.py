"""Shared by all tests: fresh memory is poisoned, so that a kernel that reads what it did not write yields NaN."""

from __future__ import annotations

import ipaddress
import os
import signal
import sys

# No test may reach a model hub; set before transformers is imported.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Nor follow a table that `python -m mind_kernels tune` wrote on this machine.
os.environ["MIND_KERNELS_TUNING"] = "none"

import hypothesis
import pytest
import torch

from tests.fewer_cases import chosen

# Triton's interpreter runs the kernels where there is no GPU; set before any kernel is imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


# How busy the machine is says nothing about the code.
hypothesis.settings.register_profile(
    "at any load", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("at any load")


def only_this_machine(event: str, arguments: tuple) -> None:
    """An audit hook: raises if a test connects to another machine, or asks for the address of one."""
    if event == "socket.connect" and isinstance(arguments[1], tuple):
        host = arguments[1][0]
    elif event == "socket.getaddrinfo":
        host = arguments[0]
    else:
        return
    host = host.decode() if isinstance(host, bytes) else host
    if host in (None, "", "localhost") or "/" in host:
        return
    try:
        if ipaddress.ip_address(host.partition("%")[0]).is_loopback:
            return
    except ValueError:
        pass
    raise AssertionError(f"a test reaches for another machine: {event} {host}")


sys.addaudithook(only_this_machine)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--fewer-cases", action="store_true", help="of each test, as few cases as hold every value of every parameter"
    )


@pytest.hookimpl(trylast=True)  # after markers have left out what they leave out
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Among several processes, files with a slow test come first: one at the end would leave the others idle."""
    if config.getoption("fewer_cases"):
        _leave_out(config, items)
    if hasattr(config, "workerinput"):  # pytest-xdist's
        slow = {item.path for item in items if item.get_closest_marker("slow")}
        items.sort(key=lambda item: item.path not in slow)


def _leave_out(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keeps the cases that `fewer_cases` chooses."""
    by_test: dict[str, list[pytest.Item]] = {}
    for item in items:
        by_test.setdefault(item.nodeid.partition("[")[0], []).append(item)
    stay = set()
    for name, cases in by_test.items():
        places = chosen(name, [case.callspec.params if hasattr(case, "callspec") else {} for case in cases])
        stay |= {cases[place].nodeid for place in places}
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid not in stay])
    items[:] = [item for item in items if item.nodeid in stay]


@pytest.fixture(autouse=True)
def poisoned_memory():
    """torch.empty yields NaN (integers: the largest value) under deterministic algorithms."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def same_signals():
    """A test that leaves SIGTERM ignored leaves it so to every process that later tests start."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    assert signal.getsignal(signal.SIGTERM) == before
