"""Several discrete actions at once: the joint distribution, and invalid actions."""

from collections import Counter
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, MultiDiscrete
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

import ppo_multidiscrete as module

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


def agent_for(nvec: list[int], planes: int = 2) -> module.Agent:
    return module.Agent(
        SimpleNamespace(
            single_observation_space=Box(-1, 1, (5, 5, planes)),
            single_action_space=MultiDiscrete(nvec),
        )
    )


def loss_gradient(nvec, logits, actions, masks, advantages, ent_coef) -> torch.Tensor:
    """Return the gradient of the script's own loss with respect to the logits, at a ratio of 1."""
    agent = agent_for(nvec)
    agent.network = nn.Flatten()
    agent.actor = nn.Identity()
    agent.critic = nn.Linear(sum(nvec), 1)
    logits = logits.clone().requires_grad_()
    with torch.no_grad():
        logprobs = module.MultiCategorical(logits, masks, nvec).log_prob(actions)
    zeros = torch.zeros(len(logits))
    boards = logits[:, None, None, :]
    mb = module.Batch(boards, masks, actions, logprobs, zeros, advantages, zeros)
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
    agent = agent_for([2, 3])
    masks = torch.tensor([True, True, True, False, True]).expand(32, -1)
    obs, zeros = torch.randn(32, 5, 5, 2), torch.zeros(32)
    with torch.no_grad():
        policy, _ = agent(obs, masks)
        actions = policy.sample()
        logprobs = policy.log_prob(actions)
    mb = module.Batch(obs, masks, actions, logprobs, zeros, torch.randn(32), zeros)
    module.ppo_loss(agent, mb, 0.2, module.Args())[0].backward()
    trained = agent.actor.weight.grad.abs().sum(dim=1) > 0
    assert (
        trained.tolist() == agent.actor.bias.grad.bool().tolist() == [True, True, True, False, True]
    )


def test_a_component_without_a_valid_action_is_uniform_and_teaches_nothing():
    """In microRTS, where no enemy can be attacked. The blog post's script draws and learns the same."""
    nvec, rows = [2, 3, 4], 8_000
    masks = torch.tensor([True, False, *[False] * 3, *[True] * 4]).expand(rows, -1)
    logits = 9 * torch.randn(9).expand(rows, -1)
    policy = module.MultiCategorical(logits, masks, nvec)
    counts = np.bincount(policy.sample()[:, 1])
    assert np.abs(counts / rows - 1 / 3).max() < 5 * np.sqrt(2 / 9 / rows)
    rest = module.MultiCategorical(logits[:, 5:], masks[:, 5:], [4])
    actions = torch.zeros(rows, 3, dtype=torch.int64)
    expected = rest.log_prob(actions[:, 2:]) - np.log(3)
    torch.testing.assert_close(policy.log_prob(actions), expected)
    torch.testing.assert_close(policy.entropy(), rest.entropy() + np.log(3))
    gradient = loss_gradient(nvec, logits, actions, masks, torch.randn(rows), ent_coef=1)
    assert (gradient[:, :5] == 0).all()
    assert gradient[:, 5:].abs().max() > 0


# Masks in a run


def board(plane_values: np.ndarray) -> np.ndarray:
    """Return a board of 5 x 5 cells, all of which show the same."""
    return np.broadcast_to(plane_values, (5, 5, len(plane_values))).astype(np.float32)


class Told(gym.Env):
    """Observes its own mask, and ends after seven steps."""

    observation_space = Box(0, 1, (5, 5, 9), np.float32)
    action_space = MultiDiscrete([2, 3, 4])

    def tell(self):
        mask = random_masks([2, 3, 4], 1, self.np_random)[0]
        return board(mask), {"action_mask": mask}

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
        shown = mb.obs[:, 0, 0] > 0.5
        assert torch.equal(mb.masks, shown if action_mask else torch.ones_like(shown))
        valid = shown.gather(1, mb.actions + torch.as_tensor(firsts([2, 3, 4])))
        all_valid &= bool(valid.all())
    assert all_valid == action_mask


class Reticent(Told):
    """Gives no mask with the first observation of an episode, and has episodes of various lengths."""

    def reset(self, **kwargs):
        obs, _ = super().reset(**kwargs)
        self.steps = self.np_random.integers(6)
        return obs, {}


def test_where_an_environment_gives_no_mask_everything_is_valid(monkeypatch):
    spec = gym.envs.registration.EnvSpec("Reticent-v0", Reticent)
    monkeypatch.setitem(gym.registry, "Reticent-v0", spec)
    envs = module.make_envs(module.Args(env_id="Reticent-v0", num_envs=2))
    _, infos = envs.reset(seed=[1, 2])
    assert infos["action_mask"].all()
    alone = 0
    for _ in range(50):
        obs, _, over, _, infos = envs.step(envs.action_space.sample())
        assert np.array_equal(infos["action_mask"], (obs[:, 0, 0] > 0.5) | over[:, None])
        alone += over.sum() == 1
    assert alone > 5


def test_a_mask_in_another_form_is_an_error(monkeypatch):
    """Gymnasium's own form, an array for each component, would otherwise count as all valid."""
    monkeypatch.setitem(gym.registry, "Told-v0", gym.envs.registration.EnvSpec("Told-v0", Told))
    envs = module.make_envs(module.Args(env_id="Told-v0", num_envs=2))
    parts = (np.zeros(2), np.zeros(3), np.zeros(4))
    ragged = np.empty(2, dtype=object)
    ragged[:] = [parts, parts]
    with pytest.raises(ValueError, match="reshape"):
        envs.valid_actions({"action_mask": ragged})


class Safe(gym.Env):
    """Three safes one after the other, of four kinds; a safe pays most for the one code that is right throughout."""

    codes = np.array([[0, 2, 3], [1, 0, 0], [1, 1, 2], [0, 0, 1]])
    observation_space = Box(0, 1, (5, 5, 4), np.float32)
    action_space = MultiDiscrete([2, 3, 4])

    def tell(self):
        self.kind = self.np_random.integers(4)
        self.mask = self.np_random.random(9) < 0.7
        self.mask[self.codes[self.kind] + firsts([2, 3, 4])] = True
        return board(np.eye(4)[self.kind]), {"action_mask": self.mask}

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
    boards = torch.as_tensor(np.stack([board(kind) for kind in np.eye(4)]))
    policy, _ = agent(boards, torch.ones(4, 9, dtype=torch.bool))
    assert policy.mode().tolist() == Safe.codes.tolist()
