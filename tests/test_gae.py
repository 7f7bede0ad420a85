"""Generalized advantage estimation against its definition, closed forms, SB3, and numbers worked by hand."""

import importlib

import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import SCRIPTS
from stable_baselines3.common.buffers import RolloutBuffer
from torch import nn

GAMMA_LAMBDA = [
    (0.99, 0.95),
    (0.9, 0.0),
    (0.0, 0.95),
    (0.0, 0.0),
    (0.7, 1.0),
    (1.0, 0.6),
    (1.0, 1.0),
]


@pytest.fixture(params=SCRIPTS)
def gae(request):
    return importlib.import_module(request.param).compute_gae


def random_segment(
    num_steps: int = 12, num_envs: int = 5, dtype: torch.dtype = torch.float64
) -> dict:
    """Return what compute_gae gets of a rollout in which about every third step ends an episode."""
    generator = torch.Generator().manual_seed(num_steps * 100 + num_envs)
    normal = torch.randn((2, num_steps, num_envs), generator=generator, dtype=dtype)
    dones = (torch.rand((num_steps, num_envs), generator=generator) < 0.3).to(dtype)
    dones[-1, :2] = torch.tensor([0, 1])  # both kinds of segment end, whatever was drawn
    next_value = torch.randn(num_envs, generator=generator, dtype=dtype)
    return {"rewards": normal[0], "values": normal[1], "dones": dones, "next_value": next_value}


def gae_by_definition(rewards, values, dones, next_value, gamma, gae_lambda) -> np.ndarray:
    """Sum (gamma * lambda)^l * delta_(t+l) term by term, up to the end of the episode or of the segment."""
    num_steps, num_envs = rewards.shape
    values = np.concatenate([values, next_value[None]])
    advantages = np.zeros((num_steps, num_envs))
    for env in range(num_envs):
        for start in range(num_steps):
            for t in range(start, num_steps):
                following = 0.0 if dones[t, env] else values[t + 1, env]
                delta = rewards[t, env] + gamma * following - values[t, env]
                advantages[start, env] += (gamma * gae_lambda) ** (t - start) * delta
                if dones[t, env]:
                    break
    return advantages


@pytest.mark.parametrize(("gamma", "gae_lambda"), GAMMA_LAMBDA)
def test_advantages_are_the_sum_of_the_definition(gae, gamma, gae_lambda):
    for num_steps, num_envs in [(12, 5), (1, 3), (40, 2)]:
        segment = random_segment(num_steps, num_envs)
        advantages, returns = gae(**segment, gamma=gamma, gae_lambda=gae_lambda)
        arrays = {key: value.numpy() for key, value in segment.items()}
        expected = gae_by_definition(**arrays, gamma=gamma, gae_lambda=gae_lambda)
        np.testing.assert_allclose(advantages, expected, rtol=0, atol=1e-12)
        np.testing.assert_allclose(returns, expected + arrays["values"], rtol=0, atol=1e-12)


def test_a_flag_belongs_to_the_step_that_ended_the_episode(gae):
    segment = random_segment()
    segment["dones"][:] = 0
    segment["dones"][4] = 1  # step 4 ends an episode, so observation 5 begins the next one
    before, _ = gae(**segment, gamma=0.9, gae_lambda=0.8)
    torch.testing.assert_close(before[4], segment["rewards"][4] - segment["values"][4])
    # The next episode says nothing about the old one ...
    changed = {key: value.clone() for key, value in segment.items()}
    changed["rewards"][5:] += 1
    changed["values"][5:] += 2
    changed["next_value"] += 3
    after, _ = gae(**changed, gamma=0.9, gae_lambda=0.8)
    assert torch.equal(after[:5], before[:5])
    # ... but its first step sees all that follows in it.
    after, _ = gae(**segment | {"next_value": segment["next_value"] + 1}, gamma=0.9, gae_lambda=0.8)
    weight = 0.9 * (0.9 * 0.8) ** 6  # from step 5 to step 11, the last of the segment
    torch.testing.assert_close(after[5] - before[5], torch.full_like(before[5], weight))


def test_the_value_after_the_segment_counts_only_where_the_episode_goes_on(gae):
    segment = random_segment()
    advantages, _ = gae(**segment, gamma=0.9, gae_lambda=0.8)
    changed, _ = gae(
        **segment | {"next_value": segment["next_value"] + 1}, gamma=0.9, gae_lambda=0.8
    )
    torch.testing.assert_close((changed - advantages)[-1], 0.9 * (1 - segment["dones"][-1]))


@pytest.mark.parametrize("gae_lambda", [0.0, 0.5, 1.0])
def test_the_true_values_of_a_constant_reward_have_no_advantage(gae, gae_lambda):
    reward, gamma = 3.0, 0.75  # r / (1 - gamma) = 12, all exact in binary
    steady = torch.full((20, 2), reward / (1 - gamma))
    zeros = torch.zeros(20, 2)
    advantages, returns = gae(zeros + reward, steady, zeros, steady[0], gamma, gae_lambda)
    assert torch.equal(advantages, zeros)
    assert torch.equal(returns, steady)


def test_lambda_one_without_values_gives_the_discounted_sum(gae):
    reward, gamma, zeros = 2.0, 0.9, torch.zeros(15, 3, dtype=torch.float64)
    advantages, returns = gae(zeros + reward, zeros, zeros, zeros[0], gamma, 1.0)
    steps_left = np.arange(15, 0, -1)
    geometric = reward * (1 - gamma**steps_left) / (1 - gamma)
    np.testing.assert_allclose(advantages, np.tile(geometric[:, None], 3), rtol=1e-12)
    assert torch.equal(returns, advantages)


def test_the_geometric_sum_ends_with_the_step_that_ended_the_episode(gae):
    """With reward 1 and no values, A_t = 1 + gl + ... + gl^n for the n steps that are left, where gl = gamma lambda."""
    ones = torch.ones(10, 1, dtype=torch.float64)
    dones = torch.zeros_like(ones)
    dones[6] = 1
    advantages, _ = gae(ones, 0 * ones, dones, 0 * ones[0], 0.9, 0.5)
    left = np.array([6, 5, 4, 3, 2, 1, 0, 2, 1, 0])
    np.testing.assert_allclose(advantages[:, 0], (1 - 0.45 ** (left + 1)) / (1 - 0.45), rtol=1e-12)


def test_compute_gae_leaves_its_inputs_alone(gae):
    segment = random_segment()
    copies = {key: value.clone() for key, value in segment.items()}
    gae(**segment, gamma=0.9, gae_lambda=0.8)
    for key, value in segment.items():
        assert torch.equal(value, copies[key]), key


@pytest.mark.parametrize(("gamma", "gae_lambda"), GAMMA_LAMBDA)
def test_stable_baselines3_agrees(gae, gamma, gae_lambda):
    segment = random_segment(64, 4, torch.float32)
    arrays = {key: value.numpy() for key, value in segment.items()}
    space = gym.spaces.Box(-1, 1, (1,))
    buffer = RolloutBuffer(
        64, space, space, device="cpu", gae_lambda=gae_lambda, gamma=gamma, n_envs=4
    )
    buffer.rewards[:] = arrays["rewards"]
    buffer.values[:] = arrays["values"]
    buffer.episode_starts[1:] = arrays["dones"][:-1]
    buffer.compute_returns_and_advantage(segment["next_value"], arrays["dones"][-1])
    advantages, returns = gae(**segment, gamma=gamma, gae_lambda=gae_lambda)
    np.testing.assert_allclose(advantages, buffer.advantages, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(returns, buffer.returns, rtol=1e-5, atol=1e-5)


# A case worked by hand, from the environment to the minibatch. An observation shows its own value, and the agent reads
# it off. Environment 0 goes on for ever with value 20 and reward 10; environment 1 has an episode of two steps, with
# final observation 12, and then a long one:
#
#     step           0    1   end    2    3    (goes on)
#     V(obs)         4    2   (12)   6    8    10
#     reward         1    5          3    4
#
# With gamma = lambda = 1/2, so gamma * lambda = 1/4, and the end a true one:
#
#     A_3 = 4 + 10/2 - 8         =  1
#     A_2 = 3 + 8/2 - 6 + A_3/4  =  1 + 0.25 =  1.25
#     A_1 = 5 + 0 - 2            =  3                     nothing follows the end
#     A_0 = 1 + 2/2 - 4 + A_1/4  = -2 + 0.75 = -1.25
#
# Where the final observation is bootstrapped, what would have followed is worth 12/2, and the chain is still cut:
#
#     A_1 = 5 + 12/2 - 2         =  9
#     A_0 = 1 + 2/2 - 4 + A_1/4  = -2 + 2.25 =  0.25
#
# Environment 0 has A = 10 + 20/2 - 20 = 0 throughout.
STEADY = {20: 0.0}
FIRST_EPISODE = {4: -1.25, 2: 3.0}
FIRST_EPISODE_BOOTSTRAPPED = {4: 0.25, 2: 9.0}
SECOND_EPISODE = {6: 1.25, 8: 1.0}


class HandWorkedEnvs(gym.vector.VectorEnv):
    """The two environments above; `end` is how the first episode ends."""

    num_envs = 2
    # The value that the next observation shows, the reward, and whether the step ends the episode
    rows = ((2, 1, False), (6, 5, True), (8, 3, False), (10, 4, False), (10, 5, False))

    def __init__(self, name: str, end: set[str]):
        images = gym.spaces.Box(0, 255, (4, 84, 84), np.uint8)
        observation_spaces = {
            "ppo_atari": images,
            "ppo_procgen": images,
            "ppo_multidiscrete": gym.spaces.Box(-99, 99, (3, 3, 3), np.float64),
        }
        action_spaces = {
            "ppo_continuous_action": gym.spaces.Box(-1, 1, (2,)),
            "ppo_multidiscrete": gym.spaces.MultiDiscrete([2, 3]),
        }
        vectors = gym.spaces.Box(-99, 99, (3,), np.float64)
        self.single_observation_space = observation_spaces.get(name, vectors)
        self.single_action_space = action_spaces.get(name, gym.spaces.Discrete(3))
        self.masks = {"action_mask": np.ones((2, 5), dtype=bool)}
        self.end = end

    def observe(self, value: int) -> np.ndarray:
        space = self.single_observation_space
        return np.stack([np.full(space.shape, x, space.dtype) for x in (20, value)])

    def reset(self, *, seed=None, options=None):
        self.step_count = 0
        return self.observe(4), self.masks

    def step(self, actions):
        value, reward, ended = self.rows[self.step_count]
        self.step_count += 1
        terminated = np.array([False, ended and "terminated" in self.end])
        truncated = np.array([False, ended and "truncated" in self.end])
        infos = dict(self.masks)
        if ended:
            infos["final_obs"] = np.array([None, None])
            infos["final_obs"][1] = self.observe(12)[1]
        return self.observe(value), np.array([10.0, reward]), terminated, truncated, infos

    def state_dict(self) -> dict:
        """Nothing is normalised here, so ppo_continuous_action.py has no statistics to save."""
        return {}


class HandWorkedPool:
    """The same as EnvPool has it: the end shows the final observation, and the reset takes a step of its own."""

    def __init__(self, end: set[str]):
        self.end = end
        second = [(2, 1, False), (12, 5, True), (6, 0, False), (8, 3, False), (10, 4, False)]
        self.rows = [[(20, 10, False)] * 9, second]
        self.step_counts = np.array([0, 0])

    def observe(self, values: list[int]) -> np.ndarray:
        return np.stack([np.full((4, 84, 84), x, np.uint8) for x in values])

    def reset(self):
        return self.observe([20, 4]), {}

    def step(self, actions, ids=(0, 1)):
        assert len(actions) == len(ids)
        values, rewards, ended = map(
            np.array, zip(*(self.rows[i][self.step_counts[i]] for i in ids), strict=True)
        )
        self.step_counts[list(ids)] += 1
        terminated = ended & ("terminated" in self.end)
        truncated = ended & ("truncated" in self.end)
        infos = {"terminated": terminated.astype(np.int32), "reward": rewards.astype(float)}
        infos["elapsed_step"] = self.step_counts[list(ids)]
        return self.observe(values), rewards, terminated, truncated, infos


class ReadingPolicy:
    """Its actions are all 0; their log-probability, the agent's only weight, stays 0 until it learns."""

    def __init__(self, rows: int, logprob: torch.Tensor, action_space: gym.Space):
        self.logprob = logprob.expand(rows)
        dtype = torch.float32 if action_space.shape else torch.int64
        self.action = torch.zeros((rows, *action_space.shape), dtype=dtype)

    def sample(self):
        return self.action

    def log_prob(self, action):
        return self.logprob

    def entropy(self):
        return 0 * self.logprob


class ReadingAgent(nn.Module):
    """Its value of an observation is what the observation shows."""

    def __init__(self, envs, *args):
        super().__init__()
        self.logprob = nn.Parameter(torch.zeros(1))
        self.action_space = envs.single_action_space

    def forward(self, x, mask=None):
        values = x.flatten(1)[:, -1].float()  # of an image, the last pixel of its newest frame
        return ReadingPolicy(len(x), self.logprob, self.action_space), values


def learned_advantages(
    name: str,
    monkeypatch,
    end: set[str],
    num_steps: int,
    bootstrap_truncated: bool,
    num_updates: int = 1,
) -> list[dict]:
    """Run the script on the case worked by hand; return each update's advantage for each value shown."""
    script = importlib.import_module(name)
    monkeypatch.setattr(script, "Agent", ReadingAgent)
    if name == "ppo_atari_envpool":
        monkeypatch.setattr(script.envpool, "make", lambda *args, **kwargs: HandWorkedPool(end))
    else:
        monkeypatch.setattr(script, "make_envs", lambda *args, **kwargs: HandWorkedEnvs(name, end))
    batches = []
    real_loss = script.ppo_loss

    def recording_loss(agent, mb, *args):
        batches.append(mb)
        return real_loss(agent, mb, *args)

    monkeypatch.setattr(script, "ppo_loss", recording_loss)
    args = script.Args(
        gamma=0.5,
        gae_lambda=0.5,
        bootstrap_truncated=bootstrap_truncated,
        device="cpu",
        num_envs=2,
        num_steps=num_steps,
        total_timesteps=2 * num_steps * num_updates,
        num_minibatches=1,
        update_epochs=1,
    )
    script.main(args)
    assert all(torch.equal(batch.returns, batch.advantages + batch.values) for batch in batches)
    return [
        dict(zip(batch.values.tolist(), batch.advantages.tolist(), strict=True))
        for batch in batches
    ]


ONE_STEP = [name for name in SCRIPTS if name != "ppo_atari_lstm"]  # agents without a state
# EnvPool never reports both ends: at both, it says truncated.
ENDS = [
    (name, end)
    for name in ONE_STEP
    for end in ("terminated", "truncated", "terminated truncated")
    if (name, end) != ("ppo_atari_envpool", "terminated truncated")
]


@pytest.mark.parametrize("bootstrap_truncated", [False, True])
@pytest.mark.parametrize(("name", "end"), ENDS)
def test_worked_by_hand(name, end, bootstrap_truncated, monkeypatch):
    bootstrapped = bootstrap_truncated and end == "truncated"
    first = FIRST_EPISODE_BOOTSTRAPPED if bootstrapped else FIRST_EPISODE
    advantages = learned_advantages(name, monkeypatch, set(end.split()), 4, bootstrap_truncated)
    assert advantages == [STEADY | first | SECOND_EPISODE]


@pytest.mark.parametrize("bootstrap_truncated", [False, True])
@pytest.mark.parametrize("end", ["terminated", "truncated"])
@pytest.mark.parametrize("name", ONE_STEP)
def test_worked_by_hand_with_the_end_at_the_end_of_the_segment(
    name, end, bootstrap_truncated, monkeypatch
):
    bootstrapped = bootstrap_truncated and end == "truncated"
    first = FIRST_EPISODE_BOOTSTRAPPED if bootstrapped else FIRST_EPISODE
    advantages = learned_advantages(name, monkeypatch, {end}, 2, bootstrap_truncated, num_updates=2)
    assert advantages == [STEADY | first, STEADY | SECOND_EPISODE]
