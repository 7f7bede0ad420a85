"""Actions are drawn from the distribution that the network describes: frequencies, moments, quantiles, independence."""

import importlib
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import SCRIPTS

IMAGES = ("ppo_atari", "ppo_atari_envpool", "ppo_atari_lstm")
DISCRETE = [name for name in SCRIPTS if name != "ppo_continuous_action"]
DRAWS = 60_000  # of each distribution
LOGITS = torch.tensor([[0.0, 0.0, 0.0, 0.0], [1.5, -1.0, 0.5, -0.5], [-4.0, 2.0, 101.0, 100.0]])


def check_frequencies(choices: torch.Tensor, probabilities: torch.Tensor) -> None:
    """Compare how often each choice was made with its probability, to 5 standard deviations."""
    counts = torch.bincount(choices.flatten(), minlength=len(probabilities)).double()
    p = probabilities.double()
    expected = len(choices) * p
    assert len(counts) == len(p)
    assert ((counts - expected).abs() <= 5 * (expected * (1 - p)).sqrt() + 1e-3).all(), (
        counts,
        expected,
    )


def make_agent(name: str) -> torch.nn.Module:
    """Return an agent whose policy depends on what it sees; an image script's agent sees features without a network."""
    spaces = {
        "ppo_continuous_action": gym.spaces.Box(-1, 1, (3,)),
        "ppo_multidiscrete": gym.spaces.MultiDiscrete([3, 4]),
    }
    envs = SimpleNamespace(
        single_observation_space=gym.spaces.Box(-1, 1, (5,)),
        single_action_space=spaces.get(name, gym.spaces.Discrete(4)),
    )
    torch.manual_seed(1)
    agent = importlib.import_module(name).Agent(envs)
    if name in IMAGES:
        agent.network = torch.nn.Identity()
    with torch.no_grad():
        for parameter in policy_of(agent).parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return agent


def policy_of(agent: torch.nn.Module) -> torch.nn.Module:
    return agent.actor_mean if hasattr(agent, "actor_mean") else agent.actor


def ask(agent: torch.nn.Module, name: str, method: str, draws: int, **options):
    """Ask for `draws` actions in each of three states; return them and what the policy's network put out."""
    x = 100 * torch.randn(3, 512) if name in IMAGES else torch.randn(3, 5)
    x = x.repeat(draws, 1)
    outputs = []
    hook = policy_of(agent).register_forward_hook(
        lambda module, inputs, output: outputs.append(output)
    )
    more = (
        (torch.randn(3, 256).repeat(draws, 1), torch.zeros(3 * draws))
        if name == "ppo_atari_lstm"
        else ()
    )
    with torch.no_grad():
        result = getattr(agent, method)(x, *more, **options)
    hook.remove()
    return result, outputs[0]


def action_of(name: str, method: str, result) -> torch.Tensor:
    """Return the actions in what a method of the agent returned."""
    return result[0] if method == "get_action_and_value" or name == "ppo_atari_lstm" else result


# Discrete actions


@pytest.mark.parametrize("name", DISCRETE)
def test_sampled_actions_come_as_often_as_the_softmax_says(name):
    sample = importlib.import_module(name).sample
    torch.manual_seed(1)
    choices = sample(LOGITS.repeat(DRAWS, 1)).view(DRAWS, 3)
    assert choices.dtype == torch.int64
    for row, logits in enumerate(LOGITS):
        check_frequencies(choices[:, row], logits.double().softmax(dim=0))


@pytest.mark.parametrize("name", DISCRETE)
def test_the_rows_of_a_batch_are_drawn_independently(name):
    sample = importlib.import_module(name).sample
    torch.manual_seed(2)
    pairs = sample(LOGITS[1].expand(2 * DRAWS, 4)).view(DRAWS, 2)
    p = LOGITS[1].double().softmax(dim=0)
    check_frequencies(4 * pairs[:, 0] + pairs[:, 1], torch.outer(p, p).flatten())


@pytest.mark.parametrize("name", DISCRETE)
def test_a_greedy_choice_is_the_likeliest_action(name):
    sample = importlib.import_module(name).sample
    assert sample(LOGITS[1:].repeat(100, 1), greedy=True).tolist() == [0, 2] * 100


@pytest.mark.parametrize("method", ["get_action", "get_action_and_value"])
@pytest.mark.parametrize("name", DISCRETE)
def test_an_agent_draws_from_its_policy(name, method):
    agent = make_agent(name)
    result, logits = ask(agent, name, method, DRAWS // 3)
    actions = action_of(name, method, result)
    for state in range(3):
        chosen = actions[state::3]
        assert logits[state].max() - logits[state].min() > 0.3  # the policy is not uniform
        if name == "ppo_multidiscrete":  # its two components are drawn independently
            first, second = logits[state].double().split([3, 4])
            joint = torch.outer(first.softmax(dim=0), second.softmax(dim=0))
            check_frequencies(4 * chosen[:, 0] + chosen[:, 1], joint.flatten())
        else:
            check_frequencies(chosen, logits[state].double().softmax(dim=0))


@pytest.mark.parametrize("name", DISCRETE)
def test_a_greedy_agent_takes_the_likeliest_action(name):
    agent = make_agent(name)
    result, logits = ask(agent, name, "get_action", 100, greedy=True)
    actions = action_of(name, "get_action", result)
    if name == "ppo_multidiscrete":
        expected = torch.stack([part.argmax(dim=1) for part in logits.split([3, 4], dim=1)], dim=1)
    else:
        expected = logits.argmax(dim=1)
    assert torch.equal(actions, expected)


def test_masked_actions_are_never_drawn_and_the_others_as_often_as_among_themselves():
    agent = make_agent("ppo_multidiscrete")
    mask = torch.tensor([True, False, True, True, True, False, True])
    draws = DRAWS // 3
    result, logits = ask(
        agent, "ppo_multidiscrete", "get_action", draws, action_mask=mask.expand(3 * draws, 7)
    )
    for state in range(3):
        masked = logits[state].double().masked_fill(~mask, -torch.inf)
        first, second = masked.split([3, 4])
        joint = torch.outer(first.softmax(dim=0), second.softmax(dim=0))
        check_frequencies(4 * result[state::3, 0] + result[state::3, 1], joint.flatten())


# Continuous actions


@pytest.mark.parametrize("method", ["get_action", "get_action_and_value"])
def test_continuous_actions_are_normal_with_the_policys_mean_and_deviation(method):
    name = "ppo_continuous_action"
    agent = make_agent(name)
    logstd = torch.tensor([-1.5, 0.0, 0.7])
    with torch.no_grad():
        agent.actor_logstd.copy_(logstd)
    result, means = ask(agent, name, method, DRAWS)
    actions = action_of(name, method, result)
    noise = (
        (actions - means) / torch.tensor([np.exp(-1.5), 1.0, np.exp(0.7)])
    ).double()  # (rows, 3)
    n = len(noise)
    # The moments of a standard normal, and the standard deviations of their estimates.
    for power, moment, deviation in [(1, 0, 1), (2, 1, 2**0.5), (3, 0, 15**0.5), (4, 3, 96**0.5)]:
        assert ((noise**power).mean(dim=0) - moment).abs().max() < 5 * deviation / n**0.5
    for quantile, share in [
        (-1.959964, 0.025),
        (-0.674490, 0.25),
        (0.0, 0.5),
        (0.674490, 0.75),
        (1.959964, 0.975),
    ]:
        got = (noise < quantile).double().mean(dim=0)
        assert (got - share).abs().max() < 5 * (share * (1 - share) / n) ** 0.5
    # Components and rows are independent.
    products = [
        noise[:, 0] * noise[:, 1],
        noise[:, 0] * noise[:, 2],
        noise[:, 1] * noise[:, 2],
        noise[:-1] * noise[1:],
    ]
    for product in products:
        assert product.mean(dim=0).abs().max() < 5 / n**0.5


def test_a_greedy_continuous_action_is_the_mean():
    result, means = ask(
        make_agent("ppo_continuous_action"), "ppo_continuous_action", "get_action", 10, greedy=True
    )
    assert torch.equal(result, means)
    assert len(means.unique(dim=0)) == 3
