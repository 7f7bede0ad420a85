"""The normalisation of ppo_continuous_action.py against moments computed from the definition, over the whole stream."""

import copy
import importlib
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import TINY

import ppo_continuous_action as module

# The weight of the mean 0 and the variance 1 that the statistics begin with
PRIOR = 1e-4


def two_pass_moments(rows):
    """Return mean and variance of each column of `rows` and the prior."""
    rows = np.asarray(rows, dtype=np.float64)
    weight = PRIOR + len(rows)
    mean = rows.sum(axis=0) / weight
    return mean, (PRIOR * (1 + mean**2) + ((rows - mean) ** 2).sum(axis=0)) / weight


def normalised(obs, rows):
    mean, var = two_pass_moments(rows)
    return np.clip((obs - mean) / np.sqrt(var + 1e-8), -10, 10)


class Played(gym.vector.VectorEnv):
    """Environments that give what they were told to give: (obs, reward, terminated, truncated, infos) of each step."""

    single_observation_space = gym.spaces.Box(-np.inf, np.inf, ())

    def __init__(self, num_envs, first_obs=None, steps=()):
        self.num_envs = num_envs
        self.first_obs = first_obs
        self.steps = iter(steps)

    def reset(self, *, seed=None, options=None):
        return self.first_obs, {}

    def step(self, actions):
        return next(self.steps)


def make_normalizer(num_envs, gamma=0.5):
    return module.VecNormalize(Played(num_envs), gamma)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_statistics_are_exact_in_float64(dtype):
    """Whatever the observations come in: float32 moments would be wrong in the seventh digit."""
    rng = np.random.default_rng(1)
    scales, offsets = np.array([1e-2, 1.0, 1e3]), np.array([100.0, 0.0, -5e4])
    normalizer, rows = make_normalizer(num_envs=7), np.zeros((0, 3), dtype)
    for _ in range(6):
        batch = (rng.normal(size=(7, 3)) * scales + offsets).astype(dtype)
        normalizer.observe(batch)
        rows = np.concatenate([rows, batch])
        mean, var = two_pass_moments(rows)
        running_mean, running_var, count = normalizer.moments["obs"]
        np.testing.assert_allclose(running_mean, mean, rtol=1e-11)
        np.testing.assert_allclose(running_var, var, rtol=1e-9)
        assert count == pytest.approx(len(rows) + 1e-4, rel=1e-14)
    assert running_mean.dtype == running_var.dtype == np.float64


def test_the_first_row_is_weighed_against_the_prior():
    normalizer = make_normalizer(num_envs=1)
    normalizer.observe(np.array([[3.0]]))
    mean, var, _ = normalizer.moments["obs"]
    assert mean[0] == pytest.approx(3 / 1.0001, rel=1e-12)
    assert var[0] == pytest.approx((1e-4 + 9 * 1e-4 / 1.0001) / 1.0001, rel=1e-12)


def test_observations_are_normalised_by_all_that_were_seen_including_themselves():
    rng = np.random.default_rng(1)
    normalizer, rows = make_normalizer(num_envs=3), np.zeros((0, 2))
    for _ in range(6):
        obs = rng.normal(size=(3, 2)) * [1, 50] + [7, -200]
        rows = np.concatenate([rows, obs])
        # One mean and variance for the three environments
        np.testing.assert_allclose(normalizer.observe(obs), normalised(obs, rows), rtol=1e-9)


def test_normalising_alone_counts_nothing():
    normalizer = make_normalizer(num_envs=2)
    rows = np.array([[1.0, 2.0], [3.0, 5.0]])
    normalizer.observe(rows)
    obs = np.array([[2.0, 9.0]])
    for _ in range(2):
        np.testing.assert_allclose(normalizer.normalize(obs), normalised(obs, rows), rtol=1e-9)


def test_normalised_observations_are_clipped_at_10():
    normalizer = make_normalizer(num_envs=1)
    for _ in range(150):
        normalizer.observe(np.array([[0.0, 0.0]]))
    assert normalizer.observe(np.array([[5.0, -5.0]])).tolist() == [[10, -10]]
    assert normalizer.normalize(np.array([[-1e6, 1e6]])).tolist() == [[-10, 10]]


def test_a_constant_observation_stays_finite():
    normalizer = make_normalizer(num_envs=1)
    for _ in range(5):
        assert np.isfinite(normalizer.observe(np.array([[1e5, 0.0]]))).all()


def test_rewards_are_scaled_by_the_deviation_of_the_discounted_return():
    """Three environments with gamma = 0.5; the returns in `returns` are worked by hand."""
    normalizer = make_normalizer(num_envs=3)
    rewards = np.array([[1.0, 2.0, -4.0], [1.0, 0.0, 2.0], [4.0, -1.0, 1.0], [2.0, 3.0, 0.0]])
    dones = np.array(
        [[False, False, False], [True, False, False], [False, False, True], [False, True, False]]
    )
    # 1.5 = 1 + 0.5 * 1 still counts the episode that ends there; 4 begins anew, and so does the last 0.
    returns = np.array([[1.0, 2.0, -4.0], [1.5, 1.0, 0.0], [4.0, -0.5, 1.0], [4.0, 2.75, 0.0]])
    for t in range(4):
        _, var = two_pass_moments(returns[: t + 1].reshape(-1))
        scaled = normalizer.scale(rewards[t], dones[t])
        np.testing.assert_allclose(scaled, rewards[t] / np.sqrt(var + 1e-8), rtol=1e-9)
    # The next step shows that only the second environment has started anew since.
    _, var = two_pass_moments(np.append(returns.reshape(-1), [2.0, 0.0, 0.0]))
    np.testing.assert_allclose(normalizer.scale(np.array([0.0, 0.0, 0.0]), dones[0]), 0)
    assert normalizer.moments["return"][1] == pytest.approx(var, rel=1e-9)


def test_scaled_rewards_keep_their_sign_and_are_clipped_at_10():
    # A first return of 1000 against the prior makes a deviation of about 10, so the scaled reward would be 100.
    for sign in (1, -1):
        normalizer = make_normalizer(num_envs=1)
        scaled = normalizer.scale(np.array([sign * 1000.0]), np.array([False]))
        assert scaled.tolist() == [sign * 10]
    normalizer = make_normalizer(num_envs=2)
    for _ in range(20):  # rewards that are centred would go below 0 here
        assert (normalizer.scale(np.array([3.0, 1.0]), np.array([False, False])) > 0).all()


def four_steps(rng) -> list[tuple]:
    """Return steps of two environments; an episode ends in the second of them, and one in the third."""
    steps = []
    for t in range(4):
        terminated = np.array([t == 1, False])
        truncated = np.array([False, t == 2])
        infos = {}
        if t in (1, 2):
            infos["_final_obs"] = terminated | truncated
            infos["final_obs"] = np.array([None, None])
            infos["final_obs"][t - 1] = rng.normal(size=2) * [1, 50] + [7, -200]
        obs = rng.normal(size=(2, 2)) * [1, 50] + [7, -200]
        steps.append((obs, rng.normal(size=2) * 5, terminated, truncated, infos))
    return steps


def test_the_wrapper_normalises_what_reset_and_step_give():
    """The first observation counts, a final one does not: it is normalised by what was seen before its step."""
    rng = np.random.default_rng(1)
    first = rng.normal(size=(2, 2)) * [1, 50] + [7, -200]
    steps = four_steps(rng)
    envs = module.VecNormalize(Played(2, first, copy.deepcopy(steps)), gamma=0.5)
    obs, _ = envs.reset(seed=[1, 2])
    np.testing.assert_allclose(obs, normalised(first, first), rtol=1e-9)
    seen = first
    returns, all_returns = np.zeros(2), []
    for raw_obs, raw_rewards, raw_terminated, raw_truncated, raw_infos in steps:
        obs, rewards, terminated, truncated, infos = envs.step(None)
        if raw_infos:
            (i,) = np.flatnonzero(raw_infos["_final_obs"])
            np.testing.assert_allclose(
                infos["final_obs"][i], normalised(raw_infos["final_obs"][i], seen), rtol=1e-9
            )
            assert infos["final_obs"][1 - i] is None
        seen = np.concatenate([seen, raw_obs])
        np.testing.assert_allclose(obs, normalised(raw_obs, seen), rtol=1e-9)
        returns = 0.5 * returns + raw_rewards
        all_returns.extend(returns)
        _, var = two_pass_moments(all_returns)
        np.testing.assert_allclose(
            rewards, np.clip(raw_rewards / np.sqrt(var + 1e-8), -10, 10), rtol=1e-9
        )
        returns[raw_terminated | raw_truncated] = 0
        assert np.array_equal((terminated, truncated), (raw_terminated, raw_truncated))


def test_a_reset_begins_the_returns_anew_and_keeps_the_statistics():
    rng = np.random.default_rng(1)
    first = rng.normal(size=(2, 2))
    envs = module.VecNormalize(Played(2, first, four_steps(rng)), gamma=0.5)
    envs.reset(seed=[1, 2])
    envs.step(None)
    before = dict(envs.moments)
    envs.reset(seed=[3, 4])
    assert envs.moments["obs"][2] == before["obs"][2] + 2
    assert envs.moments["return"] == before["return"]
    assert not envs.discounted_returns.any()


def test_without_training_the_statistics_stay_as_they_are_and_are_still_used():
    rng = np.random.default_rng(1)
    first = rng.normal(size=(2, 2)) * [1, 50] + [7, -200]
    seen = rng.normal(size=(100, 2)) * [2, 30] + [5, -150]
    steps = four_steps(rng)
    envs = module.VecNormalize(Played(2, first, copy.deepcopy(steps)), gamma=0.5)
    for i in range(0, 100, 2):
        envs.observe(seen[i : i + 2])
    envs.scale(np.array([30.0, -40.0]), np.array([True, True]))
    _, var = two_pass_moments([30.0, -40.0])
    envs.training = False
    before = copy.deepcopy(envs.moments)
    obs, _ = envs.reset(seed=[1, 2])
    np.testing.assert_allclose(obs, normalised(first, seen), rtol=1e-9)
    for raw_obs, raw_rewards, _, _, raw_infos in steps:
        obs, rewards, _, _, infos = envs.step(None)
        np.testing.assert_allclose(obs, normalised(raw_obs, seen), rtol=1e-9)
        np.testing.assert_allclose(rewards, raw_rewards / np.sqrt(var + 1e-8), rtol=1e-9)
        for i in np.flatnonzero(raw_infos.get("_final_obs", False)):
            np.testing.assert_allclose(
                infos["final_obs"][i], normalised(raw_infos["final_obs"][i], seen), rtol=1e-9
            )
    for name, moments in envs.moments.items():
        assert all(np.array_equal(x, y) for x, y in zip(moments, before[name], strict=True)), name


def test_statistics_go_through_a_checkpoint_without_loss(tmp_path):
    """As plain lists of numbers, which torch.load reads with weights_only=True."""
    normalizer = make_normalizer(num_envs=3)
    rng = np.random.default_rng(1)
    for _ in range(5):
        normalizer.observe(rng.normal(size=(3, 2)) * [1e-3, 1e6])
        normalizer.scale(rng.normal(size=3), np.array([False, True, False]))
    torch.save(normalizer.state_dict(), tmp_path / "state.pt")
    other = make_normalizer(num_envs=1)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    obs = rng.normal(size=(3, 2))
    rewards = np.array([1.0, -2.0, 3.0])
    for envs in (normalizer, other):
        envs.discounted_returns = np.zeros(3)
    assert np.array_equal(other.observe(obs), normalizer.observe(obs))
    assert np.array_equal(other.scale(rewards, rewards > 9), normalizer.scale(rewards, rewards > 9))


@pytest.mark.parametrize("name", ["ppo_continuous_action", "ppo_procgen"])
def test_a_resumed_run_goes_on_with_its_statistics(name):
    """It counts as many rows as the first run did, on top of them."""
    script = importlib.import_module(name)
    args = script.Args(**TINY[name], run_dir=Path("run"))
    script.main(args)
    first = script.load_checkpoint(args.run_dir)["normalizer"]
    script.main(replace(args, total_timesteps=2 * args.total_timesteps))
    both = script.load_checkpoint(args.run_dir)["normalizer"]
    for moments, (_, _, count) in first.items():
        assert both[moments][2] - PRIOR == pytest.approx(2 * (count - PRIOR))


def test_a_run_stores_what_the_definition_gives(monkeypatch):
    """Hopper falls (terminated) or meets a limit of 14 steps (truncated); raw and stored rows are recorded."""
    raw_obs, raw_steps, calls, rows, gae, stored = [], [], [], [], [], []
    make_envs, compute_gae, ppo_loss = module.make_envs, module.compute_gae, module.ppo_loss

    def recorded_make_envs(*args, **kwargs):
        normalizer = make_envs(*args, **kwargs)
        envs = normalizer.env
        step, reset = envs.step, envs.reset

        def recorded_step(action):
            rows.append(calls[-1][0])  # the observations that these actions were chosen for
            result = step(action)
            raw_obs.append(result[0].copy())
            raw_steps.append(copy.deepcopy((*result[1:4], result[4].get("final_obs"))))
            return result

        def recorded_reset(**kwargs):
            result = reset(**kwargs)
            raw_obs.append(result[0].copy())
            return result

        envs.step, envs.reset = recorded_step, recorded_reset
        return normalizer

    class RecordedAgent(module.Agent):
        def forward(self, x):
            policy, values = super().forward(x)
            if len(x) <= 3:  # of one step, and not of the whole rollout
                calls.append((x.clone(), values.detach().clone()))
            return policy, values

    def recorded_gae(rewards, *inputs):
        gae.append(rewards.clone())
        return compute_gae(rewards, *inputs)

    def recorded_loss(agent, mb, *args):
        stored.append((len(gae) - 1, mb.obs.clone()))
        return ppo_loss(agent, mb, *args)

    monkeypatch.setattr(
        module, "make_env", lambda *args: gym.make("Hopper-v5", max_episode_steps=14)
    )
    monkeypatch.setattr(module, "make_envs", recorded_make_envs)
    monkeypatch.setattr(module, "Agent", RecordedAgent)
    monkeypatch.setattr(module, "compute_gae", recorded_gae)
    monkeypatch.setattr(module, "ppo_loss", recorded_loss)
    args = module.Args(
        gamma=0.9,
        bootstrap_truncated=True,
        num_envs=3,
        num_steps=40,
        total_timesteps=240,
        num_minibatches=4,
        update_epochs=1,
    )
    module.main(args)

    rewards = torch.cat(gae).numpy()
    returns, all_returns, ends, cuts = np.zeros(3), [], 0, 0
    for t, (reward, terminated, truncated, final_obs) in enumerate(raw_steps):
        seen = np.concatenate(raw_obs[: t + 1])  # no final observation is among them
        np.testing.assert_allclose(rows[t].numpy(), normalised(raw_obs[t], seen), atol=1e-5)
        returns = 0.9 * returns + reward
        all_returns.extend(returns)
        _, var = two_pass_moments(all_returns)
        expected = np.clip(reward / np.sqrt(var + 1e-8), -10, 10)
        for i in np.flatnonzero(truncated & ~terminated):
            # V was asked for the final observation, normalised by what had been seen up to then.
            final = torch.as_tensor(normalised(final_obs[i], seen), dtype=torch.float32)
            (value,) = torch.cat([v[(x - final).abs().amax(dim=1) < 1e-5] for x, v in calls])
            expected[i] += 0.9 * value.item()
            cuts += 1
        np.testing.assert_allclose(rewards[t], expected, atol=1e-5)
        returns[terminated | truncated] = 0
        ends += terminated.sum()
    assert ends > 0
    assert cuts > 0
    for update in range(2):
        learned = torch.cat([obs for number, obs in stored if number == update])
        seen_then = torch.cat(rows[40 * update : 40 * (update + 1)])
        assert torch.equal(learned[learned[:, 0].argsort()], seen_then[seen_then[:, 0].argsort()])
