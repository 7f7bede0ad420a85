"""The normalisation of ppo_continuous_action.py against moments computed from the definition, over the whole stream."""

import importlib
import inspect
from fractions import Fraction

import gymnasium as gym
import numpy as np
import pytest
import torch

PRIOR = Fraction(1, 10_000)  # the weight of the mean 0 and the variance 1 that the statistics begin with


@pytest.fixture
def module():
    return importlib.import_module("ppo_continuous_action")


def exact_moments(rows):
    """Mean and variance of each column of `rows` and the prior, in exact arithmetic."""
    columns = [[Fraction(float(x)) for x in column] for column in np.reshape(rows, (len(rows), -1)).T]
    weight = PRIOR + len(rows)
    means = [sum(column) / weight for column in columns]
    spreads = [
        PRIOR * (1 + mean**2) + sum((x - mean) ** 2 for x in column)
        for column, mean in zip(columns, means, strict=True)
    ]
    return np.array([float(mean) for mean in means]), np.array([float(spread / weight) for spread in spreads])


def two_pass_moments(rows):
    """The same in float64, for streams that are long."""
    rows, prior = np.asarray(rows, dtype=np.float64), float(PRIOR)
    mean = rows.sum(axis=0) / (len(rows) + prior)
    return mean, (prior * (1 + mean**2) + ((rows - mean) ** 2).sum(axis=0)) / (len(rows) + prior)


def normalised(obs, rows):
    mean, var = two_pass_moments(rows)
    return np.clip((obs - mean) / np.sqrt(var + 1e-8), -10, 10)


def make_normalizer(module, num_envs, obs_size=2, gamma=0.5):
    space = gym.spaces.Box(-np.inf, np.inf, (obs_size,), np.float64)

    class Envs:
        single_observation_space = space

    Envs.num_envs = num_envs
    return module.VecNormalize(Envs(), gamma)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_statistics_are_exact_in_float64(module, dtype):
    """Whatever the observations come in: float32 moments would be wrong in the seventh digit."""
    rng = np.random.default_rng(1)
    scales, offsets = np.array([1e-2, 1.0, 1e3]), np.array([100.0, 0.0, -5e4])
    normalizer, rows = make_normalizer(module, num_envs=7, obs_size=3), np.zeros((0, 3), dtype)
    for _ in range(6):
        batch = (rng.normal(size=(7, 3)) * scales + offsets).astype(dtype)
        normalizer.observe(batch)
        rows = np.concatenate([rows, batch])
        mean, var = exact_moments(rows)
        running_mean, running_var, count = normalizer.moments["obs"]
        np.testing.assert_allclose(running_mean, mean, rtol=1e-11)
        np.testing.assert_allclose(running_var, var, rtol=1e-9)
        assert count == pytest.approx(len(rows) + 1e-4, rel=1e-14)
    assert running_mean.dtype == running_var.dtype == np.float64


def test_the_first_row_is_weighed_against_the_prior(module):
    normalizer = make_normalizer(module, num_envs=1, obs_size=1)
    normalizer.observe(np.array([[3.0]]))
    mean, var, _ = normalizer.moments["obs"]
    assert mean[0] == pytest.approx(3 / 1.0001, rel=1e-12)
    assert var[0] == pytest.approx((1e-4 + 9 * 1e-4 / 1.0001) / 1.0001, rel=1e-12)


def test_observations_are_normalised_by_all_that_were_seen_including_themselves(module):
    rng = np.random.default_rng(1)
    normalizer, rows = make_normalizer(module, num_envs=3), np.zeros((0, 2))
    for _ in range(6):
        obs = rng.normal(size=(3, 2)) * [1, 50] + [7, -200]
        rows = np.concatenate([rows, obs])
        mean, var = exact_moments(rows)  # one mean and variance for the three environments
        np.testing.assert_allclose(normalizer.observe(obs), (obs - mean) / np.sqrt(var + 1e-8), rtol=1e-9)


def test_normalising_alone_counts_nothing(module):
    normalizer = make_normalizer(module, num_envs=2)
    normalizer.observe(np.array([[1.0, 2.0], [3.0, 5.0]]))
    mean, var = exact_moments([[1.0, 2.0], [3.0, 5.0]])
    for _ in range(2):
        result = normalizer.normalize(np.array([[2.0, 9.0]]))
        np.testing.assert_allclose(result, [(np.array([2.0, 9.0]) - mean) / np.sqrt(var + 1e-8)], rtol=1e-9)


def test_normalised_observations_are_clipped_at_10(module):
    normalizer = make_normalizer(module, num_envs=1)
    for _ in range(150):
        normalizer.observe(np.array([[0.0, 0.0]]))
    assert normalizer.observe(np.array([[5.0, -5.0]])).tolist() == [[10, -10]]
    assert normalizer.normalize(np.array([[-1e6, 1e6]])).tolist() == [[-10, 10]]


def test_a_constant_observation_stays_finite(module):
    normalizer = make_normalizer(module, num_envs=1)
    for _ in range(5):
        assert np.isfinite(normalizer.observe(np.array([[1e5, 0.0]]))).all()


def test_rewards_are_scaled_by_the_deviation_of_the_discounted_return(module):
    """Three environments with gamma = 0.5; the returns in `returns` are worked by hand."""
    normalizer = make_normalizer(module, num_envs=3)
    rewards = np.array([[1.0, 2.0, -4.0], [1.0, 0.0, 2.0], [4.0, -1.0, 1.0], [2.0, 3.0, 0.0]])
    dones = np.array([[False, False, False], [True, False, False], [False, False, True], [False, True, False]])
    # 1.5 = 1 + 0.5 * 1 still counts the episode that ends there; 4 begins anew, and so does the last 0.
    returns = np.array([[1.0, 2.0, -4.0], [1.5, 1.0, 0.0], [4.0, -0.5, 1.0], [4.0, 2.75, 0.0]])
    for t in range(4):
        _, var = exact_moments(returns[: t + 1].reshape(-1))
        scaled = normalizer.scale(rewards[t], dones[t])
        np.testing.assert_allclose(scaled, rewards[t] / np.sqrt(var + 1e-8), rtol=1e-9)
    # The next step shows that only the second environment has started anew since.
    _, var = exact_moments(np.append(returns.reshape(-1), [2.0, 0.0, 0.0]))
    np.testing.assert_allclose(normalizer.scale(np.array([0.0, 0.0, 0.0]), dones[0]), 0)
    assert normalizer.moments["return"][1] == pytest.approx(var[0], rel=1e-9)


def test_scaled_rewards_keep_their_sign_and_are_clipped_at_10(module):
    # A first return of 1000 against the prior makes a deviation of about 10, so the scaled reward would be 100.
    assert make_normalizer(module, num_envs=1).scale(np.array([1000.0]), np.array([False])).tolist() == [10]
    assert make_normalizer(module, num_envs=1).scale(np.array([-1000.0]), np.array([False])).tolist() == [-10]
    normalizer = make_normalizer(module, num_envs=2)
    for _ in range(20):  # rewards that are centred would go below 0 here
        assert (normalizer.scale(np.array([3.0, 1.0]), np.array([False, False])) > 0).all()


def test_a_run_stores_what_the_definition_gives(module, monkeypatch):
    """Hopper falls (terminated) or meets a limit of 14 steps (truncated); raw and stored rows are recorded."""
    raw_obs, raw_steps, rows, gae, stored, values = [], [], [], [], [], []
    make_envs, compute_gae, ppo_loss = module.make_envs, module.compute_gae, module.ppo_loss

    def recorded_make_envs(*args):
        envs = make_envs(*args)
        step, reset = envs.step, envs.reset

        def recorded_step(action):
            result = step(action)
            raw_obs.append(result[0].copy())
            raw_steps.append((*(x.copy() for x in result[1:4]), result[4].get("final_obs")))
            return result

        def recorded_reset(**kwargs):
            result = reset(**kwargs)
            raw_obs.append(result[0].copy())
            return result

        envs.step, envs.reset = recorded_step, recorded_reset
        return envs

    class RecordedAgent(module.Agent):
        def get_action(self, x):
            rows.append(x.clone())
            return super().get_action(x)

        def get_value(self, x):
            value = super().get_value(x)
            if not torch.is_grad_enabled() and x.ndim == 2:  # of one step, and not of the whole rollout
                values.append((x.clone(), value.clone()))
            return value

    def recorded_gae(*args, **kwargs):
        call = inspect.signature(compute_gae).bind(*args, **kwargs).arguments
        gae.append(call["rewards"].clone())
        return compute_gae(*args, **kwargs)

    def recorded_loss(agent, mb, *args):
        stored.append((len(gae) - 1, mb.obs.clone()))
        return ppo_loss(agent, mb, *args)

    monkeypatch.setattr(module, "make_env", lambda *args: gym.make("Hopper-v5", max_episode_steps=14))
    monkeypatch.setattr(module, "make_envs", recorded_make_envs)
    monkeypatch.setattr(module, "Agent", RecordedAgent)
    monkeypatch.setattr(module, "compute_gae", recorded_gae)
    monkeypatch.setattr(module, "ppo_loss", recorded_loss)
    sizes = {"num_envs": 3, "num_steps": 40, "total_timesteps": 240, "num_minibatches": 4, "update_epochs": 1}
    module.main(module.Args(gamma=0.9, bootstrap_truncated=True, **sizes))

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
            final = normalised(final_obs[i], seen).astype(np.float32)
            value = [v[x.sub(torch.from_numpy(final)).abs().amax(dim=1) < 1e-5] for x, v in values]
            value = torch.cat(value)
            assert len(value) == 1
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
