"""A process is seen from outside while it runs, when it is stopped, and once it is gone."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from actors.agent import Home, NodeAgent, Sighting

DEADLINE_S = 20.0
RANK = """
import sys, time
from actors.beacon import Beacon, write_stacks_on_signal
beacon, stacks = Beacon(), write_stacks_on_signal()
beacon.show("setup of a very long name")
beacon.show("forward vision 1")
def hang():
    print(beacon.fd, stacks, flush=True)
    while True:
        pass
hang()
"""


@pytest.fixture
def home() -> Iterator[Home]:
    with subprocess.Popen([sys.executable, "-c", RANK], stdout=subprocess.PIPE, text=True) as rank:
        assert rank.stdout is not None
        beacon, stacks = rank.stdout.readline().split()
        yield Home("node", "192.0.2.1", rank.pid, int(beacon), int(stacks))
        rank.kill()


@pytest.fixture
def agent(home: Home) -> object:
    agent = NodeAgent.__ray_metadata__.modified_class()
    agent.watch([home])
    return agent


def look(agent: object, home: Home, with_stack: bool = True) -> Sighting:
    found: Sighting = agent.look([home.pid], with_stack)[home.pid]
    return found


def test_a_process_that_hangs_gives_its_stack(agent: object, home: Home) -> None:
    seen = look(agent, home)
    assert (seen.state, seen.op) == ("R", "forward vision 1")
    assert "in hang" in seen.stack
    assert "in hang" in look(agent, home).stack, "and again"


def test_a_stopped_process_is_seen_and_ended(agent: object, home: Home) -> None:
    os.kill(home.pid, signal.SIGSTOP)
    until_s = time.monotonic() + DEADLINE_S
    while look(agent, home, with_stack=False).state != "T":
        assert time.monotonic() < until_s
    assert agent.end([home.pid], DEADLINE_S) == []
    seen = look(agent, home)
    assert (seen.state, seen.op) == ("", "forward vision 1"), "its last op outlives it"


def test_a_process_that_nobody_watches_is_left_alone(agent: object, home: Home) -> None:
    assert agent.end([os.getpid()], DEADLINE_S) == []
    assert agent.look([os.getpid()], True) == {}
    agent.watch([Home("node", "192.0.2.1", 2**22 + 1, 0, 0)])
    assert agent.look([2**22 + 1], True) == {}, "gone before it was watched"
