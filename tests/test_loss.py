"""The loss of every script, its statistics and its gradient, against NumPy in float64 written from the formulas."""

import importlib
import math
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import PLAIN
from numpy.lib.stride_tricks import sliding_window_view

IMAGES = ("ppo_atari", "ppo_atari_envpool")
CLIP = 0.3
COEFS = {"ent_coef": 0.03, "vf_coef": 0.7}
FLAGS = [(norm_adv, clip_vloss) for norm_adv in (True, False) for clip_vloss in (True, False)]

# Eight rows: each of these ratios with either sign of the advantage, two of the ratios outside the clip range.
RATIOS = np.array([0.5, 0.9, 1.1, 1.6, 0.5, 0.9, 1.1, 1.6])
ADVANTAGES = np.array([1.5, 0.7, 1.2, 2.0, -1.0, -1.9, -0.6, -1.4])
# And each of these moves of the value, two of them too far, with the return on either side.
VALUE_MOVES = np.array([0.8, 0.1, -0.1, -0.8, -0.1, 0.8, -0.8, 0.1])
RETURNS_FROM_OLD_VALUE = np.array([1.0, 1.2, -0.9, -1.1, 1.3, -1.4, 0.7, -0.8])


def small_agent(name: str) -> torch.nn.Module:
    """Return a float64 agent with three discrete or two continuous actions, off its symmetric starting point."""
    obs_space = (
        gym.spaces.Box(0, 255, (4, 84, 84), np.uint8)
        if name in IMAGES
        else gym.spaces.Box(-1, 1, (3,))
    )
    action_space = (
        gym.spaces.Box(-1, 1, (2,)) if name == "ppo_continuous_action" else gym.spaces.Discrete(3)
    )
    torch.manual_seed(0)
    envs = SimpleNamespace(single_observation_space=obs_space, single_action_space=action_space)
    agent = importlib.import_module(name).Agent(envs).double()
    with torch.no_grad():
        for parameter in agent.parameters():
            parameter += (0.01 if name in IMAGES else 0.1) * torch.randn_like(parameter)
    return agent


def weights(module: torch.nn.Module) -> list[tuple[np.ndarray, np.ndarray]]:
    layers = [layer for layer in module.modules() if hasattr(layer, "weight")]
    return [
        (layer.weight.detach().double().numpy(), layer.bias.detach().double().numpy())
        for layer in layers
    ]


def tanh_mlp(x: np.ndarray, layers: list) -> np.ndarray:
    for weight, bias in layers[:-1]:
        x = np.tanh(x @ weight.T + bias)
    weight, bias = layers[-1]
    return x @ weight.T + bias


def nature_cnn(images: np.ndarray, layers: list) -> np.ndarray:
    x = images / 255
    for (weight, bias), stride in zip(layers[:3], (4, 2, 1), strict=True):
        windows = sliding_window_view(x, weight.shape[2:], axis=(2, 3))[:, :, ::stride, ::stride]
        x = (
            np.tensordot(windows, weight, axes=([1, 4, 5], [1, 2, 3])) + bias
        )  # (rows, height, width, channels)
        x = np.maximum(np.moveaxis(x, -1, 1), 0)
    ((weight, bias),) = layers[3:]
    return np.maximum(x.reshape(len(x), -1) @ weight.T + bias, 0)


def policy_and_value(
    agent, obs: np.ndarray, actions: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return log-probability and entropy of the actions, and the values, each (rows,)."""
    if hasattr(agent, "network"):
        hidden = nature_cnn(obs, weights(agent.network))
        head, values = (tanh_mlp(hidden, weights(layer)) for layer in (agent.actor, agent.critic))
    else:
        actor = agent.actor_mean if hasattr(agent, "actor_mean") else agent.actor
        head, values = (tanh_mlp(obs, weights(network)) for network in (actor, agent.critic))
    if hasattr(agent, "actor_logstd"):
        logstd = agent.actor_logstd.detach().double().numpy()
        density = np.exp(-(((actions - head) / np.exp(logstd)) ** 2) / 2) / np.sqrt(
            2 * np.pi * np.exp(2 * logstd)
        )
        logprobs = np.log(density.prod(axis=1))
        entropy = np.full(len(obs), np.log(2 * np.pi * np.e * np.exp(2 * logstd)).sum() / 2)
    else:
        probs = np.exp(head) / np.exp(head).sum(axis=1, keepdims=True)
        logprobs = np.log(probs[np.arange(len(obs)), actions])
        entropy = -(probs * np.log(probs)).sum(axis=1)
    return logprobs, entropy, values[:, 0]


def rows_on_all_sides(agent, name: str) -> dict[str, np.ndarray]:
    """Return the eight rows above for this agent: the old log-probabilities and values follow from the new ones."""
    generator = np.random.default_rng(1)
    obs = (
        generator.integers(0, 256, (8, 4, 84, 84))
        if name in IMAGES
        else generator.normal(size=(8, 3))
    )
    obs = obs.astype(np.float64)
    actions = (
        generator.normal(size=(8, 2))
        if name == "ppo_continuous_action"
        else generator.integers(0, 3, 8)
    )
    logprobs, _, values = policy_and_value(agent, obs, actions)
    rows = {
        "obs": obs,
        "actions": actions,
        "logprobs": logprobs - np.log(RATIOS),
        "values": values - VALUE_MOVES,
    }
    return rows | {
        "advantages": ADVANTAGES,
        "returns": values - VALUE_MOVES + RETURNS_FROM_OLD_VALUE,
    }


def loss_by_the_formulas(
    outputs: tuple, rows: dict, norm_adv: bool, clip_vloss: bool
) -> dict[str, float]:
    """Return loss and statistics; `outputs` is what policy_and_value gives for these rows."""
    logprobs, entropy, values = outputs
    ratio = np.exp(logprobs - rows["logprobs"])
    advantages = rows["advantages"]
    if norm_adv:
        deviation = math.sqrt(
            sum((a - advantages.mean()) ** 2 for a in advantages) / len(advantages)
        )
        advantages = (advantages - advantages.mean()) / (deviation + 1e-8)
    # A good action gains nothing above 1 + clip, a bad one nothing below 1 - clip.
    objective = np.where(
        advantages > 0,
        np.minimum(ratio, 1 + CLIP) * advantages,
        np.maximum(ratio, 1 - CLIP) * advantages,
    )
    squares = (values - rows["returns"]) ** 2
    if clip_vloss:
        near = np.minimum(np.maximum(values, rows["values"] - CLIP), rows["values"] + CLIP)
        squares = np.maximum(squares, (near - rows["returns"]) ** 2)
    stats = {
        "policy_loss": -objective.mean(),
        "value_loss": squares.mean() / 2,
        "entropy": entropy.mean(),
    }
    stats |= {
        "old_approx_kl": np.mean(rows["logprobs"] - logprobs),
        "approx_kl": np.mean(ratio - 1 - np.log(ratio)),
    }
    stats["clipfrac"] = np.mean((ratio < 1 - CLIP) | (ratio > 1 + CLIP))
    loss = (
        stats["policy_loss"]
        - COEFS["ent_coef"] * stats["entropy"]
        + COEFS["vf_coef"] * stats["value_loss"]
    )
    return stats | {"loss": loss}


def loss_of_the_script(
    agent, name: str, rows: dict, **flags
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    script = importlib.import_module(name)
    # The clip range is the argument, which may be annealed, and not the one of the arguments.
    args = script.Args(**COEFS | {"clip_coef": 9.0} | flags)
    return script.ppo_loss(
        agent, script.Batch(**{key: torch.as_tensor(x) for key, x in rows.items()}), CLIP, args
    )


@pytest.mark.parametrize(("norm_adv", "clip_vloss"), FLAGS)
@pytest.mark.parametrize("name", PLAIN)
def test_loss_and_statistics_follow_the_formulas(name, norm_adv, clip_vloss):
    agent = small_agent(name)
    rows = rows_on_all_sides(agent, name)
    outputs = policy_and_value(agent, rows["obs"], rows["actions"])
    # With two rows the sample standard deviation would be 1.41 times the population's.
    for chosen in (slice(None), slice(2), slice(3, 5), slice(4, 7)):
        some = {key: x[chosen] for key, x in rows.items()}
        loss, stats = loss_of_the_script(
            agent, name, some, norm_adv=norm_adv, clip_vloss=clip_vloss
        )
        expected = loss_by_the_formulas([x[chosen] for x in outputs], some, norm_adv, clip_vloss)
        assert {key: x.item() for key, x in stats.items()} | {"loss": loss.item()} == pytest.approx(
            expected, rel=1e-6
        )


@pytest.mark.parametrize(("norm_adv", "clip_vloss"), [(True, True), (False, False)])
@pytest.mark.parametrize("name", PLAIN)
def test_gradient_is_the_slope_of_the_formulas(name, norm_adv, clip_vloss):
    agent = small_agent(name)
    rows = rows_on_all_sides(agent, name)
    loss, _ = loss_of_the_script(agent, name, rows, norm_adv=norm_adv, clip_vloss=clip_vloss)
    loss.backward()
    generator = torch.Generator().manual_seed(2)
    parameters = dict(agent.named_parameters())
    if name in IMAGES:  # a few will do: the first and the last layer, and the heads
        parameters = {
            key: parameters[key]
            for key in ("network.0.weight", "network.7.bias", "actor.weight", "critic.bias")
        }
    for key, parameter in parameters.items():
        direction = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        direction /= direction.norm()
        ends = []
        for step in (1e-6, -1e-6):
            with torch.no_grad():
                parameter += step * direction
            outputs = policy_and_value(agent, rows["obs"], rows["actions"])
            ends.append(loss_by_the_formulas(outputs, rows, norm_adv, clip_vloss)["loss"])
            with torch.no_grad():
                parameter -= step * direction
        slope = (ends[0] - ends[1]) / 2e-6
        assert (parameter.grad * direction).sum().item() == pytest.approx(
            slope, rel=1e-4, abs=1e-7
        ), key


@pytest.mark.parametrize("name", PLAIN)
def test_single_precision_as_in_training_follows_the_formulas(name):
    agent = small_agent(name).float()
    rows = rows_on_all_sides(agent, name)
    outputs = policy_and_value(agent, rows["obs"], rows["actions"])
    expected = loss_by_the_formulas(outputs, rows, norm_adv=True, clip_vloss=True)
    dtypes = {"obs": np.uint8 if name in IMAGES else np.float32}
    if name != "ppo_continuous_action":
        dtypes["actions"] = np.int64
    single = {key: x.astype(dtypes.get(key, np.float32)) for key, x in rows.items()}
    loss, stats = loss_of_the_script(agent, name, single)
    assert loss.dtype == torch.float32
    assert {key: x.item() for key, x in stats.items()} | {"loss": loss.item()} == pytest.approx(
        expected, rel=1e-4
    )


@pytest.mark.parametrize("row", range(8))
@pytest.mark.parametrize("name", ["ppo", "ppo_continuous_action"])
def test_the_policy_is_not_pushed_further_once_it_left_the_clip_range(name, row):
    agent = small_agent(name)
    one = {key: x[row : row + 1] for key, x in rows_on_all_sides(agent, name).items()}
    loss, _ = loss_of_the_script(agent, name, one, norm_adv=False, ent_coef=0, vf_coef=0)
    loss.backward()
    pushed = any(p.grad is not None and p.grad.any() for p in agent.parameters())
    too_far = RATIOS[row] > 1 + CLIP if ADVANTAGES[row] > 0 else RATIOS[row] < 1 - CLIP
    assert pushed != too_far


@pytest.mark.parametrize("name", PLAIN)
def test_an_unchanged_policy_has_ratio_one(name):
    agent = small_agent(name)
    rows = rows_on_all_sides(agent, name)
    rows["logprobs"] = policy_and_value(agent, rows["obs"], rows["actions"])[0]
    _, stats = loss_of_the_script(agent, name, rows, norm_adv=False)
    assert stats["policy_loss"].item() == pytest.approx(-ADVANTAGES.mean(), rel=1e-9)
    for key in ("old_approx_kl", "approx_kl", "clipfrac"):
        assert stats[key].item() == pytest.approx(0, abs=1e-12), key


@pytest.mark.parametrize("name", PLAIN)
def test_advantages_without_spread_normalise_to_zero(name):
    agent = small_agent(name)
    rows = rows_on_all_sides(agent, name)
    for count in (1, 2):  # a minibatch of one row, and one of equal advantages
        equal = {key: x[:count] for key, x in rows.items()} | {"advantages": np.full(count, 3.0)}
        _, stats = loss_of_the_script(agent, name, equal)
        assert stats["policy_loss"].item() == 0


@pytest.mark.parametrize("name", PLAIN)
def test_statistics_keep_no_graph_alive(name):
    agent = small_agent(name)
    loss, stats = loss_of_the_script(agent, name, rows_on_all_sides(agent, name))
    assert loss.requires_grad
    assert not any(value.requires_grad for value in stats.values())
    assert all(value.shape == () for value in (loss, *stats.values()))


@pytest.mark.parametrize("name", PLAIN)
def test_the_agent_is_called_as_a_module(name):
    """Not by one of its methods: what PyTorch wraps around a module, DistributedDataParallel for one, sees no other."""
    agent = small_agent(name)
    calls = []
    agent.register_forward_hook(lambda *call: calls.append(call))
    loss_of_the_script(agent, name, rows_on_all_sides(agent, name))
    assert len(calls) == 1
