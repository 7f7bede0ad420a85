"""One seed fixes a whole run, and importing a script changes nothing."""

import importlib
import random
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import ALL_SCRIPTS, SCRIPTS, TINY


class GlobalDraws(gym.Env):
    """Draws its observations from np.random and its rewards from random, as environments out there do."""

    def __init__(self, action_space: gym.Space, render_mode=None):
        shape = (5, 5, 3) if isinstance(action_space, gym.spaces.MultiDiscrete) else (3,)
        self.observation_space = gym.spaces.Box(-10, 10, shape, np.float32)
        self.action_space = action_space

    def observe(self) -> np.ndarray:
        return np.random.randn(*self.observation_space.shape).astype(np.float32).clip(-10, 10)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self.observe(), {}

    def step(self, action):
        self.steps += 1
        return self.observe(), random.random(), self.steps >= 20, False, {}


ACTION_SPACES = {
    "ppo": gym.spaces.Discrete(2),
    "ppo_continuous_action": gym.spaces.Box(-1, 1, (1,)),
    "ppo_multidiscrete": gym.spaces.MultiDiscrete([2, 3]),
}


@pytest.fixture
def global_draws():
    for name, space in ACTION_SPACES.items():
        gym.register(f"GlobalDraws-{name}-v0", GlobalDraws, kwargs={"action_space": space})
    yield
    for name in ACTION_SPACES:
        del gym.registry[f"GlobalDraws-{name}-v0"]


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_seed_fixes_every_weight_and_another_seed_does_not(name, monkeypatch):
    module = importlib.import_module(name)
    initial = []

    class RecordedAgent(module.Agent):
        def __init__(self, *args):
            super().__init__(*args)
            initial.append({key: x.clone() for key, x in self.state_dict().items() if x.ndim > 1})

    monkeypatch.setattr(module, "Agent", RecordedAgent)
    args = TINY[name] | {"update_epochs": 1, "device": "cpu"}
    once, again, other = (
        module.main(module.Args(seed=seed, **args)).state_dict() for seed in (3, 3, 4)
    )
    assert all(torch.equal(once[key], again[key]) for key in once)
    fixed = {"lstm.bias_hh"}  # the second bias of the LSTM stays 0
    assert not any(torch.equal(once[key], other[key]) for key in once.keys() - fixed)
    # The seed is that of the first weights too, not only of the environments.
    assert not any(torch.equal(x, initial[2][key]) for key, x in initial[0].items())


@pytest.mark.parametrize("name", ACTION_SPACES)
def test_a_seed_fixes_what_an_environment_draws_from_the_global_generators(name, global_draws):
    module = importlib.import_module(name)
    env_id = f"GlobalDraws-{name}-v0"
    weights = []
    for seed in (3, 3, 4):
        agent = module.main(module.Args(env_id=env_id, seed=seed, **TINY[name]))
        weights.append(torch.nn.utils.parameters_to_vector(agent.parameters()))
        random.random()  # what happens in between does not matter
        np.random.rand(7)
        torch.rand(7)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_main_called_from_python_gives_the_weights_of_the_command_line(run_program):
    ppo = importlib.import_module("ppo")
    args = ppo.Args(num_envs=2, num_steps=16, total_timesteps=96, seed=7)
    agent = ppo.main(args).state_dict()
    flags = ["--num-envs=2", "--num-steps=16", "--total-timesteps=96", "--seed=7"]
    assert run_program(ppo.__file__, *flags, "--run-dir=other") == 0
    weights = ppo.load_checkpoint(Path("other"))["agent"]
    assert all(torch.equal(agent[key], weights[key]) for key in agent)


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
import {", ".join(ALL_SCRIPTS)}
assert state() == before
"""
    command = [sys.executable, "-B", "-c", code]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []
