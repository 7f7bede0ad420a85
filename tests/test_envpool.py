"""Atari games through EnvPool: each row of a rollout is a step of the game, although EnvPool spends steps on resets.

EnvPool itself is the reference: every environment is played again by a bare pool of its own, same seed, same actions.
"""

from functools import partial

import envpool
import numpy as np
import pytest
import torch

import ppo_atari_envpool as script

OPTIONS = {
    "noop_max": 30,
    "frame_skip": 4,
    "repeat_action_probability": 0.0,
    "episodic_life": True,
    "use_fire_reset": True,
    "gray_scale": True,
    "img_height": 84,
    "img_width": 84,
    "reward_clip": True,
    "stack_num": 4,
}
make_pool = partial(envpool.make, env_type="gymnasium", **OPTIONS)
SEEDS = [1, 2**31 - 1, 7]


def limit_episodes(monkeypatch, steps: int | None) -> None:
    if steps is not None:
        make = partial(envpool.make, max_episode_steps=steps)
        monkeypatch.setattr(script.envpool, "make", make)


def start(env_id: str, seeds: list[int], render_mode: str | None = None):
    """Return environments, reset, and their first observation."""
    envs = script.make_envs(script.Args(env_id=env_id, num_envs=len(seeds)), render_mode)
    return envs, envs.reset(seed=seeds)[0]


def num_frames(stack: np.ndarray) -> int:
    """Return how many of the frames in a stack differ from each other."""
    return len({frame.tobytes() for frame in stack})


def test_envpool_gets_the_official_options_and_a_seed_for_each_environment(monkeypatch):
    calls = []
    make = envpool.make

    def recording_make(env_id, **options):
        calls.append((env_id, options))
        return make(env_id, **options)

    monkeypatch.setattr(script.envpool, "make", recording_make)
    envs, obs = start("Breakout-v5", SEEDS)
    asked = {"env_type": "gymnasium", "num_envs": 3, "seed": SEEDS, "render_mode": None}
    assert calls == [("Breakout-v5", OPTIONS | asked)]
    assert obs.shape == (3, *envs.single_observation_space.shape) == (3, 4, 84, 84)
    assert obs.dtype == envs.single_observation_space.dtype == np.uint8
    assert envs.single_action_space.n == 4
    assert num_frames(obs[:, -1]) > 1  # other seeds, other games


# Game, time limit, steps, and the fewest lives lost, games over and games cut that they must show
REPLAYS = [
    ("Breakout-v5", None, 250, 10, 2, 0),  # five lives, FIRE
    ("MsPacman-v5", None, 600, 3, 1, 0),  # three lives, no FIRE, rewards of 10 and more
    ("Pong-v5", 90, 200, 0, 0, 6),  # no lives, rewards of -1
    ("Breakout-v5", 37, 120, 3, 0, 6),  # the limit is one of the game, not of the life
]


@pytest.mark.parametrize(("game", "limit", "steps", "lives", "games", "cuts"), REPLAYS)
def test_every_row_is_a_step_of_the_game(game, limit, steps, lives, games, cuts, monkeypatch):
    """Observations, rewards, ends and reports are those of the bare pools, without the rows of their resets."""
    limit_episodes(monkeypatch, limit)
    envs, obs = start(game, SEEDS)
    limits = {} if limit is None else {"max_episode_steps": limit}
    pools = [make_pool(game, num_envs=1, seed=[seed], **limits) for seed in SEEDS]
    assert np.array_equal(obs, np.concatenate([pool.reset()[0] for pool in pools]))
    rng = np.random.default_rng(1)
    game_rewards = [[], [], []]  # of the game so far, a reward a step
    counts = np.zeros(3, dtype=int)
    clipped = 0
    for _ in range(steps):
        actions = rng.integers(envs.single_action_space.n, size=3)
        obs, rewards, terminated, truncated, infos = envs.step(actions)
        for i, pool in enumerate(pools):
            seen, reward, ended, cut, info = pool.step(actions[[i]])
            game_rewards[i].append(float(info["reward"][0]))
            assert np.array_equal(infos["final_obs"][i], seen[0])
            assert rewards[i] == reward[0] == np.sign(info["reward"][0])
            assert (terminated[i], truncated[i]) == (ended[0], cut[0])
            assert truncated[i] == (info["elapsed_step"][0] == limit)
            clipped += abs(info["reward"][0]) > 1

            # Reports come at the end of whole games, and their returns are not clipped.
            game_over = bool(info["terminated"][0]) or cut[0]
            assert infos["_episode"][i] == game_over
            if game_over:
                report = (infos["episode"]["r"][i], infos["episode"]["l"][i])
                assert report == (sum(game_rewards[i]), len(game_rewards[i]))
                game_rewards[i].clear()

            # The bare pool's next step is no step of the game; here it has already been taken.
            if ended[0] or cut[0]:
                seen, *_, info = pool.step(np.zeros(1, dtype=int))
                assert info["elapsed_step"] == len(game_rewards[i])  # a lost life ends no game
                assert num_frames(seen[0]) == 1 or not game_over  # a new game, a new stack
                counts += [ended[0] and not game_over, ended[0] and game_over, cut[0]]
            assert np.array_equal(obs[i], seen[0])
    assert (counts >= [lives, games, cuts]).all(), counts
    assert (clipped > 0) == (game == "MsPacman-v5")


def test_the_first_step_of_an_episode_carries_the_reward_of_that_step_only(monkeypatch):
    """In Skiing every frame costs a point or two: four frames 6 or 7, the no-ops of a reset up to 50."""
    limit_episodes(monkeypatch, 1)
    envs, _ = start("Skiing-v5", [1, 2])
    for _ in range(20):
        _, rewards, _, truncated, infos = envs.step(np.zeros(2, dtype=int))
        assert truncated.all()
        assert (rewards == -1).all()
        assert set(infos["episode"]["r"]) <= {-6.0, -7.0}
        assert (infos["episode"]["l"] == 1).all()


# Two environments of Breakout; every game is cut after six steps, and every other cut ends a segment of four.
@pytest.mark.parametrize("bootstrap", [False, True])
def test_a_time_limit_is_bootstrapped_from_the_last_observation(bootstrap, monkeypatch):
    limit_episodes(monkeypatch, 6)
    agents = []
    steps = []
    make_agent = script.Agent
    make_envs = script.make_envs
    gae = script.compute_gae

    def recording_agent(envs):
        agents.append(make_agent(envs))
        return agents[0]

    def recording_envs(args):
        envs = make_envs(args)
        step = envs.step

        def recording_step(actions):
            steps.append(step(actions))
            return steps[-1]

        envs.step = recording_step
        return envs

    def checked_gae(rewards, values, dones, *more):
        assert len(rewards) == 4
        for t, (obs, reward, terminated, truncated, infos) in enumerate(steps[-4:]):
            cut = (len(steps) - 4 + t) % 6 == 5
            assert (truncated == cut).all()
            assert not terminated.any()
            assert (dones[t] == cut).all()
            expected = torch.as_tensor(reward)
            if bootstrap and cut:
                _, value = agents[0](torch.as_tensor(infos["final_obs"]))
                _, other = agents[0](torch.as_tensor(obs))
                assert ((value - other).abs() > 1e-4).all()
                expected = expected + 0.9 * value
            torch.testing.assert_close(rewards[t], expected, atol=1e-5, rtol=0)
        return gae(rewards, values, dones, *more)

    monkeypatch.setattr(script, "Agent", recording_agent)
    monkeypatch.setattr(script, "make_envs", recording_envs)
    monkeypatch.setattr(script, "compute_gae", checked_gae)
    sizes = {"num_envs": 2, "num_steps": 4, "total_timesteps": 24, "update_epochs": 1}
    script.main(script.Args(**sizes, gamma=0.9, bootstrap_truncated=bootstrap, device="cpu"))
    assert len(steps) == 12


def test_render_gives_a_frame_for_each_environment():
    envs, _ = start("Breakout-v5", [1, 2], render_mode="rgb_array")
    for _ in range(30):
        envs.step(np.array([2, 3]))  # the paddles part
    frames = envs.render()
    assert [(frame.shape, frame.dtype) for frame in frames] == [((210, 160, 3), np.uint8)] * 2
    assert not np.array_equal(*frames)
