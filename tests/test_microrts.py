"""microRTS against the original environments, recorded in tests/data/microrts (see tests/data/README.md)."""

import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest

import microrts

ROOT = Path(microrts.__file__).parent
RECORDINGS = sorted((ROOT / "tests" / "data" / "microrts").iterdir())
RANDOM_ENEMY = "MicrortsRandomEnemyShapedReward3-v1"


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.stem)
def test_a_task_gives_to_the_last_number_what_the_original_gave(path):
    with np.load(path) as file:
        said = dict(file)
    steps, num_envs, _ = said["A"].shape
    for i in range(num_envs):
        env = gym.make(path.stem)
        ends = [
            (row, last) for row, last in zip(said["EP"], said["FO"], strict=True) if row[1] == i
        ]
        episode_return = length = 0
        obs, info = env.reset(seed=i)
        for t in range(steps):
            assert np.array_equal(obs, said["O"][t, i])
            assert np.array_equal(info["action_mask"], said["M"][t, i])
            obs, reward, terminated, truncated, info = env.step(said["A"][t, i])
            assert reward == said["R"][t, i]
            assert (terminated or truncated) == said["D"][t, i]
            episode_return += reward
            length += 1
            if terminated or truncated:
                row, last = ends.pop(0)
                assert row.tolist() == [t, i, pytest.approx(episode_return), length, truncated]
                assert np.array_equal(obs, last)
                obs, info = env.reset()
                episode_return = length = 0
        assert not ends
        assert obs.dtype == np.int32
        assert env.observation_space.contains(obs)


def random_action(info: dict, rng: np.random.Generator) -> np.ndarray:
    """Draw an order, its cells from the units that can be given one or attacked."""
    choices = np.split(info["action_mask"], np.cumsum([100, 6, 4, 4, 4, 4, 7]))
    return np.array(
        [
            rng.choice(np.flatnonzero(valid)) if valid.any() else rng.integers(len(valid))
            for valid in choices
        ]
    )


def play(seed: int, episodes: int) -> tuple[list[float], list[bytes]]:
    """Return the returns of games against the random opponent, and all observations."""
    env = gym.make(RANDOM_ENEMY)
    rng = np.random.default_rng(0)
    obs, info = env.reset(seed=seed)
    returns = [0.0]
    seen = []
    while len(returns) <= episodes:
        obs, reward, terminated, truncated, info = env.step(random_action(info, rng))
        seen.append(obs.tobytes())
        returns[-1] += reward
        if terminated or truncated:
            returns.append(0.0)
            obs, info = env.reset()
    return returns[:-1], seen


def test_one_seed_fixes_the_random_opponent_and_another_seed_is_another_one():
    first, seen = play(1, episodes=2)
    assert (first, seen) == play(1, episodes=2)
    _, others = play(2, episodes=1)
    assert seen[: len(others)] != others


def test_the_last_reward_alone_is_clipped():
    """In the recordings, no other one is beyond 1."""
    env = gym.make(RANDOM_ENEMY).unwrapped
    env.reset(seed=1)
    rewards = np.array([-2.0, 3.0, 0.0, 4.0, 2.5, -3.0, 7.0])
    client = env.client
    env.client = SimpleNamespace(
        step=lambda *_: SimpleNamespace(
            reward=rewards, observation=client.reset(0).observation, done=[False] * 7
        )
    )
    _, reward, *_ = env.step(np.zeros(8, dtype=int))
    assert reward == pytest.approx(-2 * 5 + 3 + 4 * 0.2 + 2.5 - 3 * 7 + 1 * 0.2)


def test_a_lost_game_ends_in_a_termination():
    """No recorded game is won or lost."""
    env = gym.make(RANDOM_ENEMY)
    rng = np.random.default_rng(0)
    _, info = env.reset(seed=1)
    for _ in range(20_000):
        _, reward, terminated, truncated, info = env.step(random_action(info, rng))
        if terminated:
            assert reward == -30  # WinLoss, five points in each of the last six game cycles
            return
        if truncated:
            _, info = env.reset()
    raise AssertionError("no game was lost")


def test_the_picture_shows_the_units_where_they_are():
    env = gym.make("MicrortsMining-v1", render_mode="rgb_array")
    obs, _ = env.reset(seed=1)
    picture = env.render()
    assert picture.shape == (320, 320, 3)
    unit_types = obs[:, :, 13:21].argmax(axis=2)
    owners = obs[:, :, 10:13].argmax(axis=2)
    assert np.bincount(unit_types.ravel()).tolist() == [94, 2, 2, 0, 2]  # resources, bases, workers
    for row, column in np.ndindex(10, 10):
        cell = picture[32 * row : 32 * row + 32, 32 * column : 32 * column + 32].astype(int)
        red, _, blue = (cell[2:30, 2:30].reshape(-1, 3) @ [[1, 0, 0], [0, 1, 0], [0, 0, 1]]).T
        assert (blue - red > 200).any() == (owners[row, column] == 1)
        assert (red - blue > 200).any() == (owners[row, column] == 2)
        assert (cell[3:29, 3:29] != 255).any() == (unit_types[row, column] > 0)


def test_the_old_gym_is_never_imported_and_java_says_nothing():
    code = (
        "import sys, gymnasium as gym\n"
        "env = gym.make('microrts:MicrortsMining-v1')\n"
        "env.reset(seed=1)\n"
        "assert 'gym' not in sys.modules and 'gym_microrts' not in sys.modules"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_without_its_packages_one_line_says_what_to_install(monkeypatch, run_program, capsys):
    monkeypatch.setitem(sys.modules, "jpype", None)
    monkeypatch.delitem(sys.modules, "microrts")
    assert run_program(ROOT / "ppo_multidiscrete.py") == 2
    expected = "error: microRTS is missing: pip install -r requirements-microrts.txt\n"
    assert capsys.readouterr() == ("", expected)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stays_pythons(number):
    """Java's own handlers would end the process with an exit code, 128 more."""
    code = "import microrts, time; microrts.start_java(); print('up', flush=True); time.sleep(60)"
    command = [sys.executable, "-c", code]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, cwd=ROOT, text=True, **pipes)
    assert process.stdout.readline() == "up\n"
    process.send_signal(number)
    _, err = process.communicate(timeout=100)
    assert process.returncode == -number
    assert ("KeyboardInterrupt" in err) == (number == signal.SIGINT)


def test_environments_run_in_processes_of_their_own():
    make = [lambda: gym.make("microrts:MicrortsMining-v1")] * 2
    envs = gym.vector.AsyncVectorEnv(make, context="spawn")
    obs, infos = envs.reset(seed=[1, 2])
    assert obs.shape == (2, 10, 10, 27)
    obs, *_ = envs.step(envs.action_space.sample())
    assert infos["action_mask"].shape == (2, 229)
    envs.close()
