"""A bad argument or environment ends in one line that says what to do, and leaves nothing on the disk."""

import importlib
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
import tyro
from conftest import SCRIPTS, TINY
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Text, Tuple


class SpacesEnv(gym.Env):
    """An environment that has spaces and nothing else: a script has to turn it down before the first step."""

    def __init__(
        self, observation_space: gym.Space, action_space: gym.Space, render_mode: str | None = None
    ):
        self.observation_space, self.action_space = observation_space, action_space


VECTOR = Box(-1, 1, (3,), np.float32)
IMAGE = Box(0, 255, (84, 84, 3), np.uint8)
SPACES = {
    "ImageObs-v0": (IMAGE, Discrete(2)),
    "ImageObsContinuous-v0": (IMAGE, VECTOR),
    "ImageObsSeveral-v0": (IMAGE, MultiDiscrete([2, 3])),
    "ImageInDict-v0": (Dict({"camera": IMAGE, "position": VECTOR}), Discrete(2)),
    "TextInDict-v0": (Dict({"mission": Text(10), "position": VECTOR}), Discrete(2)),
    "TextInTuple-v0": (Tuple([VECTOR, Text(10)]), VECTOR),
    "MultiDiscreteActions-v0": (VECTOR, MultiDiscrete([2, 3])),
    "MultiBinaryActions-v0": (VECTOR, MultiBinary(3)),
    "IntegerActions-v0": (VECTOR, Box(0, 5, (2,), np.int64)),
    "DictActions-v0": (VECTOR, Dict({"steer": VECTOR, "fire": Discrete(2)})),
    "CannotRender-v0": (VECTOR, Discrete(2)),
    "CannotRenderContinuous-v0": (VECTOR, VECTOR),
}


@pytest.fixture(autouse=True)
def environments_of_this_file():
    for env_id, (observation_space, action_space) in SPACES.items():
        spaces = {"observation_space": observation_space, "action_space": action_space}
        gym.register(env_id, SpacesEnv, kwargs=spaces, disable_env_checker=True)
    yield
    for env_id in SPACES:
        del gym.registry[env_id]


@pytest.fixture(autouse=True)
def machine_without_accelerator_and_box2d(monkeypatch):
    """The answers must not depend on what the machine that runs the tests happens to have."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setitem(sys.modules, "Box2D", None)


def flags(arguments: dict[str, int]) -> list[str]:
    return [
        text
        for name, value in arguments.items()
        for text in (f"--{name.replace('_', '-')}", str(value))
    ]


def start(script: str, arguments: list[str]) -> None:
    """Start a tiny run as the command line would, with `arguments` on top."""
    module = importlib.import_module(script)
    module.main(tyro.cli(module.Args, args=flags(TINY[script]) + arguments))


def assert_turned_down(
    script: str, arguments: list[str], words: list[str], capsys: pytest.CaptureFixture
) -> None:
    importlib.import_module(script)  # what an import prints is not the script's answer
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        start(script, arguments)
    out, err = capsys.readouterr()
    assert end.value.code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1, f"not one line: {err}"
    assert err.endswith("\n")
    for word in words:
        assert word in err
    assert not [path for path in Path.cwd().rglob("*") if path.is_file()], (
        "a run that never began left a file behind"
    )


ENVIRONMENTS = [
    # Gymnasium and EnvPool answer a name that is almost right with the right one, or with the versions there are.
    ("ppo", "CartPol-v1", ["Did you mean: `CartPole`", "ppo_atari.py", "package:Name-v0"]),
    ("ppo", "CartPole-v7", ["CartPole", "v1"]),
    ("ppo_continuous_action", "HalfCheta-v5", ["Did you mean: `HalfCheetah`", "ppo_atari.py"]),
    ("ppo_continuous_action", "HalfCheetah-v7", ["HalfCheetah", "v5"]),
    ("ppo_atari", "BreakoutNoFrameskip-v5", ["BreakoutNoFrameskip", "v4"]),
    ("ppo_atari", "Breakot-v4", ["Did you mean: `Breakout`"]),
    ("ppo_atari", "Pong-v5", ["Pong", "v4"]),
    ("ppo_atari_envpool", "BreakoutNoFrameskip-v4", ["Breakout-v5"]),
    ("ppo_atari_envpool", "ALE/Breakout-v5", ["Breakout-v5"]),
    ("ppo_atari_envpool", "Breakot-v5", ["Breakout-v5"]),
    ("ppo_atari_lstm", "Breakout-v5", ["Breakout", "v4"]),
    ("ppo_multidiscrete", "Jumanji/Cleaner-v1", ["Jumanji/Cleaner-v1"]),
    # A name that resembles none, and none at all.
    *((script, "qqqqqq", ["qqqqqq"]) for script in SCRIPTS),
    *((script, "", []) for script in SCRIPTS),
    ("ppo", "no_such_package:CartPole-v1", ["no_such_package"]),
    # The environment suits another script.
    ("ppo", "Pendulum-v1", ["continuous", "ppo_continuous_action.py"]),
    ("ppo", "MultiDiscreteActions-v0", ["MultiDiscrete([2 3])", "ppo_multidiscrete.py"]),
    ("ppo", "MultiBinaryActions-v0", ["MultiBinary(3)", "ppo_multidiscrete.py"]),
    ("ppo_continuous_action", "CartPole-v1", ["discrete", "ppo.py"]),
    (
        "ppo_continuous_action",
        "MultiDiscreteActions-v0",
        ["MultiDiscrete([2 3])", "ppo_multidiscrete.py"],
    ),
    ("ppo_continuous_action", "MultiBinaryActions-v0", ["MultiBinary(3)", "ppo_multidiscrete.py"]),
    ("ppo_multidiscrete", "CartPole-v1", ["one discrete action", "ppo.py"]),
    ("ppo_multidiscrete", "Pendulum-v1", ["continuous", "ppo_continuous_action.py"]),
    ("ppo_atari", "CartPole-v1", ["CartPole-v1", "Atari"]),
    ("ppo_atari_lstm", "HalfCheetah-v5", ["HalfCheetah-v5", "Atari"]),
    ("ppo_atari_envpool", "CartPole-v1", ["CartPole-v1", "Atari"]),
    ("ppo_atari_envpool", "HalfCheetah-v4", ["HalfCheetah-v4", "Atari"]),
    # Spaces that no script takes as they are.
    ("ppo", "ImageObs-v0", ["images", "ppo_atari.py"]),
    ("ppo", "ImageInDict-v0", ["images", "ppo_atari.py"]),
    ("ppo", "TextInDict-v0", ["Text", "FilterObservation"]),
    ("ppo", "DictActions-v0", ["Dict", "to Discrete in make_env"]),
    ("ppo_continuous_action", "ImageObsContinuous-v0", ["images", "ppo_atari.py"]),
    ("ppo_continuous_action", "TextInTuple-v0", ["Text", "FilterObservation"]),
    ("ppo_continuous_action", "IntegerActions-v0", ["int64", "Box of floats in make_env"]),
    ("ppo_continuous_action", "DictActions-v0", ["Dict", "Box of floats in make_env"]),
    ("ppo_multidiscrete", "ImageObsSeveral-v0", ["images", "ppo_atari.py"]),
    ("ppo_multidiscrete", "DictActions-v0", ["Dict", "to MultiDiscrete in make_env"]),
    # Something is missing, or out of date.
    ("ppo", "LunarLander-v3", ["Box2D", "pip install"]),
    ("ppo_continuous_action", "BipedalWalker-v3", ["Box2D", "pip install"]),
    ("ppo", "Taxi-v3", ["Taxi-v4"]),
    ("ppo_continuous_action", "Ant-v2", ["Ant-v2", "gymnasium-robotics"]),
]


@pytest.mark.parametrize(("script", "env_id", "words"), ENVIRONMENTS)
def test_environment_that_does_not_suit_is_one_line(script, env_id, words, capsys):
    assert_turned_down(script, ["--env-id", env_id], words, capsys)


@pytest.mark.parametrize("env_id", ["BreakoutNoFrameskip-v4", "ALE/Breakout-v5"])
@pytest.mark.parametrize("known", [True, False], ids=["with_ale_py", "without_ale_py"])
def test_atari_game_given_to_ppo_names_ppo_atari(env_id, known, monkeypatch, capsys):
    # Whether Gymnasium knows the games depends on an `import ale_py`, which ppo.py has not.
    importlib.import_module("ale_py")
    games = [
        name for name, spec in gym.registry.items() if str(spec.entry_point).startswith("ale_py")
    ]
    for name in () if known else games:
        monkeypatch.delitem(gym.registry, name)
    assert_turned_down("ppo", ["--env-id", env_id], ["ppo_atari.py"], capsys)


SIZES = [
    "total-timesteps",
    "num-envs",
    "num-steps",
    "num-minibatches",
    "update-epochs",
    "save-every",
]
# Each number lies just outside the range in which the argument means something.
NUMBERS = [
    *((name, value) for name in SIZES for value in ("0", "-1")),
    *((name, value) for name in ("gamma", "gae-lambda") for value in ("-0.1", "1.1", "nan")),
    *(
        (name, value)
        for name in ("learning-rate", "clip-coef", "max-grad-norm")
        for value in ("-0.1", "nan")
    ),
    ("learning-rate", "inf"),
    *((name, value) for name in ("ent-coef", "vf-coef") for value in ("-0.1", "nan")),
    ("target-kl", "nan"),
    ("target-kl", "-0.1"),
    ("seed", "-1"),
    ("seed", str(2**31)),
]


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize(("name", "value"), NUMBERS)
def test_number_out_of_range_is_one_line_with_the_flag(script, name, value, capsys):
    assert_turned_down(script, [f"--{name}", value], [f"--{name} "], capsys)


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--num-envs 3 --num-steps 5 --num-minibatches 4", ["--num-minibatches 4", "--num-envs"]),
        ("--num-envs 2 --num-steps 100 --total-timesteps 199", ["--total-timesteps 199", "200"]),
        ("--device cuda", ["--device cuda", "cpu"]),
        ("--device mps", ["--device mps", "cpu"]),
    ],
)
def test_arguments_that_do_not_fit_are_one_line(script, arguments, words, capsys):
    assert_turned_down(script, arguments.split(), words, capsys)


def test_minibatch_of_the_lstm_is_whole_environments(capsys):
    arguments = ["--num-envs", "2", "--num-steps", "16", "--num-minibatches", "4"]
    assert_turned_down(
        "ppo_atari_lstm", arguments, ["--num-minibatches 4", "--num-envs, 2"], capsys
    )


@pytest.mark.parametrize("script", SCRIPTS)
def test_track_without_wandb_says_what_to_install(script, monkeypatch, capsys):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *_: None if name == "wandb" else find_spec(name)
    )
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert_turned_down(script, ["--track"], ["--track", "pip install wandb"], capsys)


@pytest.mark.parametrize("script", SCRIPTS)
def test_video_without_moviepy_says_what_to_install(script, monkeypatch, capsys):
    for name in [name for name in sys.modules if name.partition(".")[0] == "moviepy"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "moviepy", None)
    assert_turned_down(script, ["--capture-video"], ["pip install"], capsys)


@pytest.mark.parametrize(
    ("script", "env_id", "words"),
    [
        ("ppo", "Pendulum-v1", ["ppo_continuous_action.py"]),
        ("ppo_continuous_action", "CartPole-v1", ["ppo.py"]),
        # An environment without pictures cannot be filmed.
        ("ppo", "CannotRender-v0", ["rgb_array"]),
        ("ppo_continuous_action", "CannotRenderContinuous-v0", ["rgb_array"]),
    ],
)
def test_video_of_an_environment_that_does_not_suit_is_one_line(script, env_id, words, capsys):
    assert_turned_down(script, ["--capture-video", "--env-id", env_id], words, capsys)


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize(
    "arguments", ["--num-envs x", "--gamma high", "--device tpu", "--no-such-flag 1", "stray"]
)
def test_argument_that_cannot_be_read_is_wrong_usage(script, arguments, capsys):
    # These answers are tyro's, which takes several lines; they too name what was wrong.
    with pytest.raises(SystemExit) as end:
        start(script, arguments.split())
    assert end.value.code == 2
    assert arguments.split()[0] in capsys.readouterr().err
    assert not list(Path.cwd().iterdir())


@pytest.mark.parametrize("arguments", ["--env-id CartPol-v1", "--num-envs 0"])
def test_command_line_prints_the_line_and_no_traceback(arguments):
    script = importlib.import_module("ppo").__file__
    ended = subprocess.run(
        [sys.executable, script, *arguments.split()], capture_output=True, text=True
    )
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr.startswith("error: ")
    assert ended.stderr.count("\n") == 1
    assert not list(Path.cwd().iterdir())
