"""Several discrete actions at once: the joint distribution, invalid actions, and EnvPool's Cleaner."""

from collections import Counter
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import envpool
import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, MultiDiscrete
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

import ppo_multidiscrete as module

CLEANER = "Jumanji/Cleaner-v0"
NVECS = [[2, 3, 4], [3, 1, 2], [5], [4, 4, 4]]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(1)


# The distribution, against all joint actions one by one


def firsts(nvec: list[int]) -> np.ndarray:
    """Return where the actions of each component begin in a row of logits or of a mask."""
    return np.cumsum(nvec) - nvec


def random_masks(nvec: list[int], rows: int, rng: np.random.Generator) -> np.ndarray:
    """Return (rows, sum of nvec) bool: about half of the actions, at least one of each component."""
    parts = [rng.random((rows, n)) < 0.4 for n in nvec]
    for part in parts:
        part[np.arange(rows), rng.integers(part.shape[1], size=rows)] = True
    return np.concatenate(parts, axis=1)


def component_probabilities(
    logits: np.ndarray, mask: np.ndarray, nvec: list[int]
) -> list[np.ndarray]:
    """Return the softmax over the valid actions of each component, for the logits of one row."""
    ends = np.cumsum(nvec)[:-1]
    parts = zip(np.split(logits.astype(np.float64), ends), np.split(mask, ends), strict=True)
    weights = [
        np.exp(part - part[valid].max(), where=valid, out=np.zeros(len(part)))
        for part, valid in parts
    ]
    return [weight / weight.sum() for weight in weights]


def joint_probabilities(logits: np.ndarray, mask: np.ndarray, nvec: list[int]) -> np.ndarray:
    """Return the probability of each joint action, in the order of itertools.product."""
    parts = component_probabilities(logits, mask, nvec)
    return np.array(
        [
            np.prod([p[a] for p, a in zip(parts, action, strict=True)])
            for action in joint_actions(nvec)
        ]
    )


def joint_actions(nvec: list[int]) -> list[tuple[int, ...]]:
    return list(product(*(range(n) for n in nvec)))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("nvec", NVECS)
def test_log_probability_and_entropy_are_those_of_the_joint_distribution(nvec, masked):
    rng = np.random.default_rng(1)
    logits = torch.randn(6, sum(nvec))
    masks = random_masks(nvec, 6, rng) if masked else np.ones((6, sum(nvec)), dtype=bool)
    actions = torch.tensor(joint_actions(nvec))
    for row in range(6):
        expected = joint_probabilities(logits[row].numpy(), masks[row], nvec)
        assert expected.sum() == pytest.approx(1)
        shape = (len(actions), sum(nvec))
        policy = module.MultiCategorical(
            logits[row].expand(shape), torch.as_tensor(masks[row]).expand(shape), nvec
        )
        logprob, entropy = policy.log_prob(actions), policy.entropy()
        assert logprob.shape == entropy.shape == (len(actions),)
        np.testing.assert_allclose(logprob.double().exp(), expected, rtol=1e-4, atol=0)
        assert logprob.double().exp().sum().item() == pytest.approx(1, abs=1e-5)
        joint_entropy = -sum(p * np.log(p) for p in expected if p > 0)
        np.testing.assert_allclose(entropy, joint_entropy, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("nvec", NVECS)
def test_samples_follow_the_joint_distribution_and_are_always_valid(nvec):
    mask = random_masks(nvec, 1, np.random.default_rng(2))[0]
    assert not mask.all()
    logits = torch.randn(sum(nvec))
    logits[~torch.as_tensor(mask)] += 5  # without the mask, nearly all would be invalid
    count = 10_000
    policy = module.MultiCategorical(
        logits.expand(count, -1), torch.as_tensor(mask).expand(count, -1), nvec
    )
    action = policy.sample()
    assert action.shape == (count, len(nvec))
    assert action.dtype == torch.int64
    expected = joint_probabilities(logits.numpy(), mask, nvec)
    seen = Counter(map(tuple, action.tolist()))
    for joint, p in zip(joint_actions(nvec), expected, strict=True):
        # 0 exactly for an invalid one
        assert abs(seen[joint] / count - p) <= 5 * np.sqrt(p * (1 - p) / count)


@pytest.mark.parametrize("nvec", NVECS)
def test_the_mode_is_the_likeliest_of_the_valid_actions(nvec):
    mask = torch.as_tensor(random_masks(nvec, 50, np.random.default_rng(5)))
    logits = torch.randn(50, sum(nvec)) + 5 * ~mask  # without the mask, nearly all would be invalid
    parts = logits.masked_fill(~mask, -torch.inf).split(nvec, dim=1)
    likeliest = torch.stack([part.argmax(dim=1) for part in parts], dim=1)
    assert torch.equal(module.MultiCategorical(logits, mask, nvec).mode(), likeliest)


@pytest.mark.parametrize("logit", [-3e38, -1e9, 0.0, 50.0, 1e9, 3e38])
def test_an_invalid_action_has_probability_zero_whatever_its_logit(logit):
    nvec = [2, 3, 4]
    masks = torch.as_tensor(random_masks(nvec, 50, np.random.default_rng(3)))
    logits = torch.randn(50, 9)
    joint = torch.tensor(joint_actions(nvec))
    changed = torch.where(masks, logits, logit)
    for row in range(50):
        mask = masks[row].expand(24, -1)
        policy = module.MultiCategorical(changed[row].expand(24, -1), mask, nvec)
        as_before = module.MultiCategorical(logits[row].expand(24, -1), mask, nvec)
        logprob = policy.log_prob(joint)
        assert policy.entropy().isfinite().all()
        valid = masks[row][joint + torch.as_tensor(firsts(nvec))].all(dim=1)
        assert (logprob[~valid].exp() == 0).all()
        assert (logprob[valid].exp() > 0).all()
        assert torch.equal(logprob[valid], as_before.log_prob(joint)[valid])
        assert torch.equal(policy.entropy(), as_before.entropy())


def loss_gradient(nvec, logits, actions, masks, advantages, ent_coef) -> torch.Tensor:
    """Return the gradient of the script's own loss with respect to the logits, at a ratio of 1."""
    spaces = SimpleNamespace(
        single_observation_space=Box(-1, 1, (sum(nvec),)), single_action_space=MultiDiscrete(nvec)
    )
    agent = module.Agent(spaces)
    agent.actor = nn.Identity()
    logits = logits.clone().requires_grad_()
    with torch.no_grad():
        logprobs = module.MultiCategorical(logits, masks, nvec).log_prob(actions)
    zeros = torch.zeros(len(logits))
    mb = module.Batch(logits, actions, logprobs, zeros, advantages, zeros, masks)
    args = module.Args(norm_adv=False, vf_coef=0, ent_coef=ent_coef)
    loss, stats = module.ppo_loss(agent, mb, 0.2, args)
    loss.backward()
    assert all(x.isfinite() for x in stats.values())
    return logits.grad


@pytest.mark.parametrize(
    ("advantage", "ent_coef"), [(1, 0), (0, 1), (1, 0.5)], ids=["policy", "entropy", "both"]
)
@pytest.mark.parametrize("scale", [1, 30], ids=["even", "peaked"])
def test_gradients_are_those_of_the_valid_actions_alone(advantage, ent_coef, scale):
    """For the valid ones against d log p(a) / dz = [a] - p and dH / dz = -p (log p + H); 0 exactly for the others."""
    nvec, rows = [2, 3, 4], 200
    rng = np.random.default_rng(4)
    masks = random_masks(nvec, rows, rng)
    logits = scale * torch.as_tensor(rng.normal(size=(rows, 9)), dtype=torch.float32)
    advantages = advantage * torch.as_tensor(rng.normal(size=rows), dtype=torch.float32)
    actions = module.MultiCategorical(logits, torch.as_tensor(masks), nvec).sample()
    gradient = loss_gradient(
        nvec, logits, actions, torch.as_tensor(masks), advantages, ent_coef
    ).numpy()
    assert np.isfinite(gradient).all()
    assert (gradient[~masks] == 0).all()
    assert np.abs(gradient[masks]).max() > 1e-4
    expected = np.zeros((rows, 9))
    for row in range(rows):
        parts = component_probabilities(logits[row].numpy(), masks[row], nvec)
        for p, action, first in zip(parts, actions[row], firsts(nvec), strict=True):
            log_p = np.log(p, where=p > 0, out=np.zeros(len(p)))
            taken = np.arange(len(p)) == action.item()
            slope = advantages[row].item() * (taken - p) - ent_coef * p * (log_p - p @ log_p)
            expected[row, first : first + len(p)] = -slope / rows
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-7)


def test_one_valid_action_alone_is_certain_and_teaches_nothing():
    nvec, chosen = [2, 3, 4], torch.tensor([[1, 0, 2], [0, 2, 3]])
    masks = torch.cat(
        [nn.functional.one_hot(chosen[:, c], n) for c, n in enumerate(nvec)], dim=1
    ).bool()
    for logits in (torch.randn(2, 9), torch.where(masks, -1e6, 1e6)):
        policy = module.MultiCategorical(logits, masks, nvec)
        assert torch.equal(policy.sample(), chosen)
        assert torch.equal(policy.log_prob(chosen), torch.zeros(2))
        assert torch.equal(policy.entropy(), torch.zeros(2))
        gradient = loss_gradient(nvec, logits, chosen, masks, torch.tensor([3.0, -2.0]), ent_coef=1)
        assert torch.equal(gradient, torch.zeros(2, 9))


def test_an_output_that_is_never_valid_is_not_trained():
    spaces = SimpleNamespace(
        single_observation_space=Box(-1, 1, (5,)), single_action_space=MultiDiscrete([2, 3])
    )
    agent = module.Agent(spaces)
    masks = torch.tensor([True, True, True, False, True]).expand(32, -1)
    obs, zeros = torch.randn(32, 5), torch.zeros(32)
    with torch.no_grad():
        policy, _ = agent(obs, masks)
        actions = policy.sample()
        logprobs = policy.log_prob(actions)
    mb = module.Batch(obs, actions, logprobs, zeros, torch.randn(32), zeros, masks)
    module.ppo_loss(agent, mb, 0.2, module.Args())[0].backward()
    trained = agent.actor[-1].weight.grad.abs().sum(dim=1) > 0
    assert (
        trained.tolist()
        == agent.actor[-1].bias.grad.bool().tolist()
        == [True, True, True, False, True]
    )


# Masks in a run


class Told(gym.Env):
    """Observes its own mask, and ends after seven steps."""

    observation_space = Box(0, 1, (9,), np.float32)
    action_space = MultiDiscrete([2, 3, 4])

    def tell(self):
        mask = random_masks([2, 3, 4], 1, self.np_random)[0]
        return mask.astype(np.float32), {"action_mask": mask}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self.tell()

    def step(self, action):
        self.steps += 1
        obs, info = self.tell()
        return obs, 1.0, self.steps == 7, False, info


@pytest.mark.parametrize("action_mask", [True, False])
def test_the_mask_of_each_row_is_that_of_its_own_observation_in_rollout_and_training(
    action_mask, monkeypatch
):
    monkeypatch.setitem(gym.registry, "Told-v0", gym.envs.registration.EnvSpec("Told-v0", Told))
    minibatches = []
    loss = module.ppo_loss

    def watched(agent, mb, clip_coef, args):
        minibatches.append(mb)
        return loss(agent, mb, clip_coef, args)

    monkeypatch.setattr(module, "ppo_loss", watched)
    sizes = {"num_envs": 3, "num_steps": 16, "total_timesteps": 144}
    module.main(module.Args(env_id="Told-v0", action_mask=action_mask, **sizes))
    assert len(minibatches) == 3 * 4 * 4
    all_valid = True
    for mb in minibatches:
        shown = mb.obs > 0.5
        assert torch.equal(mb.masks, shown if action_mask else torch.ones_like(shown))
        valid = shown.gather(1, mb.actions + torch.as_tensor(firsts([2, 3, 4])))
        all_valid &= bool(valid.all())
    assert all_valid == action_mask


def test_a_mask_in_another_form_is_an_error(monkeypatch):
    """Gymnasium's own form, an array for each component, would otherwise count as all valid."""
    envs = module.ActionMask(module.Cleaner(2, None), action_mask=True)
    parts = (np.zeros(4), np.zeros(4), np.zeros(4))
    ragged = np.empty(2, dtype=object)
    ragged[:] = [parts, parts]
    with pytest.raises(ValueError, match="reshape"):
        envs.valid_actions({"action_mask": ragged})


class Safe(gym.Env):
    """Three safes one after the other, of four kinds; a safe pays most for the one code that is right throughout."""

    codes = np.array([[0, 2, 3], [1, 0, 0], [1, 1, 2], [0, 0, 1]])
    observation_space = Box(0, 1, (4,), np.float32)
    action_space = MultiDiscrete([2, 3, 4])

    def tell(self):
        self.kind = self.np_random.integers(4)
        self.mask = self.np_random.random(9) < 0.7
        self.mask[self.codes[self.kind] + firsts([2, 3, 4])] = True
        return np.eye(4, dtype=np.float32)[self.kind], {"action_mask": self.mask}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.tried = 0
        return self.tell()

    def step(self, action):
        assert self.mask[action + firsts([2, 3, 4])].all()
        right = (action == self.codes[self.kind]).mean()
        self.tried += 1
        obs, infos = self.tell()
        return obs, right**2, self.tried == 3, False, infos


def test_it_finds_the_best_joint_action_of_every_context(monkeypatch):
    """A random policy gets about 0.9 of 3 points per episode."""
    monkeypatch.setitem(gym.registry, "Safe-v0", gym.envs.registration.EnvSpec("Safe-v0", Safe))
    sizes = {"num_envs": 16, "num_steps": 32, "total_timesteps": 10_240}
    agent = module.main(module.Args(env_id="Safe-v0", learning_rate=5e-3, **sizes))
    (folder,) = Path("runs").iterdir()
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    returns = [event.value for event in events.Scalars("charts/episodic_return")]
    assert np.mean(returns[:50]) < 1.3
    assert np.mean(returns[-100:]) > 2.7
    dials = agent.actor(torch.eye(4)).split([2, 3, 4], dim=1)
    assert (
        torch.stack([dial.argmax(dim=1) for dial in dials], dim=1).tolist() == Safe.codes.tolist()
    )


# Cleaner


def assert_all_is_told(obs: np.ndarray, raw: dict) -> None:
    """Read the observation vector, and compare it with what EnvPool says."""
    tiles, cells = obs[:, :300].reshape(-1, 10, 10, 3), obs[:, 300:600].reshape(-1, 3, 100)
    for one_hot in (tiles, cells):
        assert np.isin(one_hot, (0, 1)).all()
        assert (one_hot.sum(axis=-1) == 1).all()
    assert np.array_equal(tiles.argmax(axis=-1), raw["grid"])
    assert np.array_equal(
        np.stack(divmod(cells.argmax(axis=-1), 10), axis=-1), raw["agents_locations"]
    )
    np.testing.assert_allclose(100 * obs[:, 600], raw["step_count"], rtol=0, atol=1e-4)
    space = module.Cleaner.single_observation_space
    assert all(space.contains(row) for row in obs.astype(space.dtype))


def assert_the_mask_is_told(infos: dict, raw: dict) -> None:
    """Compare the mask with EnvPool's; all is allowed where nothing is valid."""
    valid = infos["action_mask"].reshape(-1, 3, 4)
    assert valid.dtype == bool
    nothing_valid = ~raw["action_mask"].any(axis=2)
    assert valid[nothing_valid].all()
    assert np.array_equal(valid[~nothing_valid], raw["action_mask"][~nothing_valid])


def stack(raw: list[dict]) -> dict:
    """Return the observations of several pools of one environment as those of one pool of several."""
    return {name: np.concatenate([one[name] for one in raw]) for name in raw[0]}


def test_cleaner_plays_as_envpool_does_with_every_reset_in_the_step_of_the_end():
    """All of the observation is there, an invalid action ends the episode, and no environment disturbs another."""
    seeds = list(range(100, 116))
    envs = module.make_envs(module.Args(num_envs=16))
    obs, infos = envs.reset(seed=seeds)
    pools = [envpool.make(CLEANER, "gymnasium", num_envs=1, seed=seed) for seed in seeds]
    rng = np.random.default_rng(1)
    raw = stack([pool.reset()[0] for pool in pools])
    outcomes = Counter()
    returns, lengths = np.zeros(16), np.zeros(16)
    for _ in range(300):
        assert_all_is_told(obs, raw)
        assert_the_mask_is_told(infos, raw)
        walled_in = ~raw["action_mask"].any(axis=(1, 2))
        assert np.array_equal(lengths, raw["step_count"])
        allowed = raw["action_mask"] | (
            rng.random((16, 1, 1)) < 0.02
        )  # now and then one walks into a wall
        actions = (allowed * (1 + rng.random(allowed.shape))).argmax(axis=2)
        invalid = ~np.take_along_axis(raw["action_mask"], actions[:, :, None], axis=2).all(
            axis=(1, 2)
        )
        obs, reward, terminated, truncated, infos = envs.step(actions)
        results = [pool.step(actions[i : i + 1].astype(np.int32)) for i, pool in enumerate(pools)]
        last = stack([result[0] for result in results])
        assert np.array_equal(reward, np.concatenate([result[1] for result in results]))
        late = last["step_count"] == 100
        clean = (last["grid"] != 0).all(axis=(1, 2))
        assert np.array_equal(terminated, np.concatenate([result[2] for result in results]))
        assert np.array_equal(terminated, invalid | late | clean)
        assert not truncated.any()
        returns += reward
        lengths += 1
        assert ("episode" in infos) == terminated.any()
        if terminated.any():
            assert_all_is_told(infos["final_obs"], last)
            assert np.array_equal(infos["_episode"], terminated)
            assert np.array_equal(infos["episode"]["r"][terminated], returns[terminated])
            assert np.array_equal(infos["episode"]["l"][terminated], lengths[terminated])
        returns[terminated] = 0
        lengths[terminated] = 0
        observations = [result[0] for result in results]
        for i in np.flatnonzero(terminated):
            observations[i], *_ = pools[i].step(
                rng.integers(4, size=(1, 3), dtype=np.int32)
            )  # it resets, whatever
        raw = stack(observations)
        outcomes += Counter(
            invalid=(invalid & ~walled_in).sum(), late=late.sum(), walled_in=walled_in.sum()
        )
    assert outcomes["invalid"] > 20
    assert outcomes["late"] > 5
    assert outcomes["walled_in"] > 0
