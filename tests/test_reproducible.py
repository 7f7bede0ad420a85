"""One seed fixes a whole run, and importing a script changes nothing."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import SCRIPTS, TINY


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_seed_fixes_every_weight_and_another_seed_does_not(name, monkeypatch):
    module = importlib.import_module(name)
    initial = []

    class RecordedAgent(module.Agent):
        def __init__(self, *args):
            super().__init__(*args)
            initial.append({key: x.clone() for key, x in self.state_dict().items() if x.ndim > 1})

    monkeypatch.setattr(module, "Agent", RecordedAgent)
    args = TINY[name] | {"update_epochs": 1}
    once, again, other = (module.main(module.Args(seed=seed, **args)).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(once[key], again[key]) for key in once)
    fixed = {"lstm.bias_hh"}  # the second bias of the LSTM stays 0
    assert not any(torch.equal(once[key], other[key]) for key in once.keys() - fixed)
    # The seed is that of the first weights too, not only of the environments.
    assert not any(torch.equal(x, initial[2][key]) for key, x in initial[0].items())


def test_environments_in_processes_of_their_own_change_nothing():
    module = importlib.import_module("ppo_atari")
    args = TINY["ppo_atari"] | {"update_epochs": 1, "bootstrap_truncated": True}
    one, other = (module.main(module.Args(**args, async_envs=chosen)).state_dict() for chosen in (False, True))
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_importing_the_scripts_has_no_side_effect(tmp_path):
    folder = Path(importlib.import_module("ppo").__file__).parent
    code = f"""
import random, signal, sys
import numpy, torch
torch.set_num_threads(3)
def state():
    numbers = str(random.getstate()), str(numpy.random.get_state()), torch.get_rng_state().tolist()
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    return numbers, handlers, torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
before = state()
sys.path.insert(0, {str(folder)!r})
import {", ".join(SCRIPTS)}
assert state() == before
"""
    result = subprocess.run(
        [sys.executable, "-B", "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []
