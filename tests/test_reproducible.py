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
    once, again, other = (
        module.main(module.Args(seed=seed, **args)).state_dict() for seed in (3, 3, 4)
    )
    assert all(torch.equal(once[key], again[key]) for key in once)
    fixed = {"lstm.bias_hh"}  # the second bias of the LSTM stays 0
    assert not any(torch.equal(once[key], other[key]) for key in once.keys() - fixed)
    # The seed is that of the first weights too, not only of the environments.
    assert not any(torch.equal(x, initial[2][key]) for key, x in initial[0].items())


def test_main_called_from_python_twice_gives_the_weights_of_the_command_line():
    ppo = importlib.import_module("ppo")
    args = ppo.Args(num_envs=2, num_steps=16, total_timesteps=96, seed=7)
    first = ppo.main(args).state_dict()
    torch.rand(7)  # what happens in between does not matter
    second = ppo.main(args).state_dict()
    flags = [
        "--num-envs",
        "2",
        "--num-steps",
        "16",
        "--total-timesteps",
        "96",
        "--seed",
        "7",
        "--exp-name",
        "other",
    ]
    subprocess.run([sys.executable, ppo.__file__, *flags], check=True, capture_output=True)
    (checkpoint,) = Path("runs").glob("CartPole-v1__other__7__*/checkpoint.pt")
    weights = torch.load(checkpoint, weights_only=True)["agent"]
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert all(torch.equal(first[key], weights[key]) for key in first)


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
        [sys.executable, "-B", "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []
