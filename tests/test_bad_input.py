"""Wrong arguments end in one line that says what to change, and leave nothing on the disk."""

import importlib
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import tyro
from conftest import TINY
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete


def start(script: str, *arguments: str) -> None:
    """Start a tiny run as the command line would, with `arguments` on top."""
    module = importlib.import_module(script)
    sizes = [f"--{name.replace('_', '-')}={value}" for name, value in TINY[script].items()]
    module.main(tyro.cli(module.Args, args=[*sizes, *arguments]))


WRONG = [
    # Each number lies just outside of the range in which the argument means something.
    *((f"--{name}={value}", f"--{name} {value}: must be at least 1")
      for name in ("num-envs", "num-steps", "num-minibatches", "update-epochs", "save-every")
      for value in (0, -1)),
    *((f"--{name}={value}", f"--{name} {value}: must not be negative")
      for name in ("learning-rate", "clip-coef", "ent-coef", "vf-coef", "max-grad-norm")
      for value in (-0.1, "nan")),
    *((f"--{name}={value}", f"--{name} {value}: must lie between 0 and 1")
      for name in ("gamma", "gae-lambda") for value in (-0.1, 1.1, "nan")),
    ("--total-timesteps=31", "--total-timesteps 31: less than one update, 32 steps"),
    ("--num-minibatches=3", "--num-minibatches 3: does not divide an update's 32 rows"),
    ("--num-minibatches=32", "--norm-adv: in a minibatch of one row, every advantage would be 0"),
    ("--device=nonsense", "--device nonsense: "),
    ("--device=cuda", "--device cuda: "),
]  # fmt: skip


@pytest.mark.parametrize(("argument", "words"), WRONG)
def test_wrong_argument_is_one_line_before_anything_is_made(argument, words, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # a machine without a GPU
    ppo = importlib.import_module("ppo")
    with pytest.raises(ppo.UsageError) as refused:
        start("ppo", argument)
    assert str(refused.value).startswith(words)
    assert "\n" not in str(refused.value)
    assert not list(Path.cwd().iterdir())


def test_arguments_at_the_edge_of_what_means_something_are_taken():
    edge = ["--learning-rate=0", "--gamma=1", "--gae-lambda=0", "--ent-coef=0", "--clip-coef=0"]
    start("ppo", *edge, "--num-minibatches=32", "--no-norm-adv", "--target-kl=0")
    start("ppo", "--num-minibatches=16", "--max-grad-norm=0", "--vf-coef=0", "--exp-name=other")


@pytest.mark.parametrize(
    ("script", "arguments", "words"),
    [
        # Minibatches of the recurrent agent are whole environments.
        ("ppo_atari_lstm", ["--num-envs=3"], "--num-minibatches must divide --num-envs"),
        ("ppo_continuous_action", ["--gamma=2"], "--gamma 2.0: must lie between"),
        # Environments for another script, which the line names, or for none
        ("ppo", ["--env-id=Pendulum-v1"], "Pendulum-v1 has the actions Box"),
        ("ppo", ["--env-id=Pendulum-v1", "--capture-video"], "Pendulum-v1 has the actions Box"),
        ("ppo_continuous_action", ["--env-id=CartPole-v1"], "CartPole-v1 has the actions Discrete"),
        ("ppo_multidiscrete", ["--env-id=CartPole-v1"], "CartPole-v1 has the actions Discrete"),
        ("ppo_atari", ["--env-id=CartPole-v1"], "CartPole-v1 is not an Atari game"),
        ("ppo_atari_lstm", ["--env-id=CartPole-v1"], "CartPole-v1 is not an Atari game"),
        ("ppo_atari_envpool", ["--env-id=CartPole-v1"], "CartPole-v1 is not an Atari game"),
        ("ppo_atari_envpool", ["--env-id=Breakot-v5"], "EnvPool has no game Breakot-v5"),
    ],
)
def test_what_a_script_does_not_take_is_one_line(script, arguments, words):
    module = importlib.import_module(script)
    with pytest.raises(module.UsageError) as refused:
        start(script, *arguments)
    assert str(refused.value).startswith(words)
    assert "\n" not in str(refused.value)
    assert not list(Path.cwd().iterdir())


class SpacesEnv(gym.Env):
    """An environment that has spaces and nothing else: a script turns it down before the first step."""

    def __init__(self, observations: gym.Space, actions: gym.Space, render_mode=None):
        self.observation_space = observations
        self.action_space = actions


VECTOR = Box(-1, 1, (3,), np.float32)
IMAGE = Box(0, 255, (84, 84, 3), np.uint8)


@pytest.mark.parametrize(
    ("script", "observations", "actions", "words"),
    [
        ("ppo", IMAGE, Discrete(2), "ppo_atari.py"),
        ("ppo_continuous_action", IMAGE, VECTOR, "ppo_atari.py"),
        ("ppo_multidiscrete", VECTOR, MultiDiscrete([2, 3]), "that of ppo.py"),
        ("ppo", VECTOR, Discrete(3, start=1), "TransformAction"),
        ("ppo", VECTOR, MultiDiscrete([2, 3]), "ppo_multidiscrete.py"),
        ("ppo", VECTOR, MultiBinary(3), "TransformAction"),
        ("ppo_continuous_action", VECTOR, Box(-1, 1, (2, 2)), "TransformAction"),
        ("ppo_continuous_action", VECTOR, MultiDiscrete([2, 3]), "ppo_multidiscrete.py"),
        ("ppo_multidiscrete", VECTOR, MultiDiscrete([2, 3], start=[0, 1]), "TransformAction"),
        ("ppo_multidiscrete", VECTOR, MultiDiscrete([[2, 3], [2, 3]]), "TransformAction"),
        ("ppo_multidiscrete", VECTOR, VECTOR, "ppo_continuous_action.py"),
    ],
)
def test_spaces_of_another_kind_are_one_line_that_says_what_to_use(
    script, observations, actions, words, monkeypatch
):
    kwargs = {"observations": observations, "actions": actions}
    spec = gym.envs.registration.EnvSpec(
        "Spaces-v0", SpacesEnv, kwargs=kwargs, disable_env_checker=True
    )
    monkeypatch.setitem(gym.registry, "Spaces-v0", spec)
    module = importlib.import_module(script)
    with pytest.raises(module.UsageError) as refused:
        start(script, "--env-id=Spaces-v0")
    assert words in str(refused.value)
    assert not list(Path.cwd().iterdir())


@pytest.mark.parametrize(
    ("script", "arguments", "words"),
    [
        ("ppo", "--env-id CartPol-v1", "Did you mean: `CartPole`"),  # Gymnasium's own error
        ("ppo_atari_envpool", "--env-id qqq", "error: EnvPool has no game qqq"),
    ],
)
def test_command_line_prints_one_line_and_exits_with_2(
    script, arguments, words, run_program, capsys
):
    path = importlib.import_module(script).__file__
    assert run_program(path, *arguments.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert words in err
    assert err.count("\n") == 1
    assert not list(Path.cwd().iterdir())
