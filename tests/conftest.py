"""What all tests share: the scripts, a working directory for each test, and one thread for PyTorch."""

import os
import runpy
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import envpool
import numpy as np
import pygame
import pytest
import torch
from gymnasium.spaces import Box, Discrete, MultiDiscrete

# As microrts.py says; a machine that tests need not have a sound card.
os.environ["SDL_AUDIODRIVER"] = "dummy"
pygame.init()
torch.set_num_threads(1)
# Programs that tests start take one thread too.
os.environ["OMP_NUM_THREADS"] = "1"
# They can be interrupted, even if a shell script has started pytest in the background, which ignores Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)

SCRIPTS = [
    "ppo",
    "ppo_atari",
    "ppo_atari_envpool",
    "ppo_continuous_action",
    "ppo_atari_lstm",
    "ppo_multidiscrete",
    "ppo_procgen",
]
# One process of ppo_atari_multigpu.py does what ppo_atari_envpool.py does, to the bit
# (test_multigpu.py), so that most tests need not run on it.
ALL_SCRIPTS = [*SCRIPTS, "ppo_atari_multigpu"]
# Those whose agents see rows one by one and nothing else: `policy, values = agent(x)`
PLAIN = SCRIPTS[:4]

# The fewest arguments that give a real run of each script: three updates of a tiny batch.
TINY = {
    name: {
        "num_envs": 2,
        "num_steps": 16,
        "num_minibatches": 2,
        "update_epochs": 2,
        "total_timesteps": 96,
    }
    for name in ALL_SCRIPTS
}
TINY["ppo_continuous_action"] |= {"num_envs": 1, "num_steps": 64, "total_timesteps": 192}


def spaces_of(name: str) -> SimpleNamespace:
    """Return spaces that the agent of a script takes, as its environments would have them."""
    observations = Box(-1, 1, (5,), np.float32)
    actions = Discrete(6)
    if "atari" in name:
        observations = Box(0, 255, (1 if "lstm" in name else 4, 84, 84), np.uint8)
    if name == "ppo_procgen":
        observations = Box(0, 255, (3, 64, 64), np.uint8)
    if name == "ppo_continuous_action":
        actions = Box(-1, 1, (3,), np.float32)
    if name == "ppo_multidiscrete":
        observations = Box(-1, 1, (10, 10, 3), np.float32)
        actions = MultiDiscrete([2, 4])
    return SimpleNamespace(single_observation_space=observations, single_action_space=actions)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the site: its tests take long, and at the end nothing would be left to do beside them."""
    items.sort(key=lambda item: item.path.stem != "test_site")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs Qt 5, a package of the system, where it is missing."""
    parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
    if "ppo_procgen" in parameters or item.path.stem == "test_procgen":
        try:
            envpool.make_spec("StarpilotEasy-v0")
        except ImportError as error:
            pytest.skip(str(error))


@pytest.fixture(autouse=True)
def working_directory(tmp_path, monkeypatch):
    """Run every test in an empty folder, so that `runs/` never lands in the repository."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def same_modules(monkeypatch):
    """Undo that evaluate.py, which imports a script anew, leaves it in place of the one that tests have imported."""
    for name in ALL_SCRIPTS:
        if name in sys.modules:
            monkeypatch.setitem(sys.modules, name, sys.modules[name])


@pytest.fixture
def run_program(monkeypatch):
    """Do as `python SCRIPT ARGUMENT ...` and return the exit code, without the seconds that another Python needs."""

    def run(script: Path | str, *arguments) -> int:
        monkeypatch.setattr(sys, "argv", [str(script), *map(str, arguments)])
        try:
            runpy.run_path(str(script), run_name="__main__")
        except SystemExit as end:
            return end.code
        return 0

    return run
