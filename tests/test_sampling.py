"""The policies: draws by frequencies, moments and quantiles; log-probabilities and entropies against PyTorch's."""

import importlib
from types import SimpleNamespace

import gymnasium as gym
import pytest
import torch
from conftest import SCRIPTS

IMAGES = ("ppo_atari", "ppo_atari_envpool", "ppo_atari_lstm", "ppo_procgen")
DISCRETE = [name for name in SCRIPTS if name != "ppo_continuous_action"]
DRAWS = 60_000  # of each distribution
LOGITS = torch.tensor([[0.0, 0.0, 0.0, 0.0], [1.5, -1.0, 0.5, -0.5], [-4.0, 2.0, 101.0, 100.0]])
# Three components, with every kind of mask: nothing, something, and all but one choice forbidden
NVEC = [3, 4, 2]
MASK = torch.tensor(
    [[1, 1, 1, 1, 1, 1, 1, 1, 1], [1, 0, 1, 1, 1, 0, 1, 0, 1], [0, 1, 0, 0, 0, 1, 0, 1, 1]]
).bool()


def check_frequencies(choices: torch.Tensor, probabilities: torch.Tensor) -> None:
    """Compare how often each choice was made with its probability, to 5 standard deviations."""
    counts = torch.bincount(choices.flatten(), minlength=len(probabilities)).double()
    p = probabilities.double()
    expected = len(choices) * p
    assert len(counts) == len(p)
    tolerance = 5 * (expected * (1 - p)).sqrt() + 1e-3
    assert ((counts - expected).abs() <= tolerance).all(), (counts, expected)


def check_standard_normal(noise: torch.Tensor) -> None:
    """Compare moments and quantiles of each column of `noise`, and the independence of columns and of rows."""
    noise = noise.double()
    n = len(noise)
    # The moments of a standard normal, and the standard deviations of their estimates.
    for power, moment, deviation in [(1, 0, 1), (2, 1, 2**0.5), (3, 0, 15**0.5), (4, 3, 96**0.5)]:
        assert ((noise**power).mean(dim=0) - moment).abs().max() < 5 * deviation / n**0.5
    for share in (0.025, 0.25, 0.5, 0.75, 0.975):
        got = (noise < torch.special.ndtri(torch.tensor(share).double())).double().mean(dim=0)
        assert (got - share).abs().max() < 5 * (share * (1 - share) / n) ** 0.5
    for product in (noise * noise.roll(1, dims=1), noise[:-1] * noise[1:]):
        assert product.mean(dim=0).abs().max() < 5 / n**0.5


def categorical(name: str):
    return importlib.import_module(name).Categorical


def normal(mean: torch.Tensor, std: torch.Tensor):
    return importlib.import_module("ppo_continuous_action").Normal(mean, std)


def torch_components(logits: torch.Tensor, mask: torch.Tensor) -> list:
    """Return torch's distribution of each component; a forbidden choice has the logit -inf."""
    parts = logits.masked_fill(~mask, -torch.inf).split(NVEC, dim=-1)
    return [torch.distributions.Categorical(logits=part) for part in parts]


# One discrete action


@pytest.mark.parametrize("name", DISCRETE)
def test_sampled_actions_come_as_often_as_the_softmax_says(name):
    torch.manual_seed(1)
    choices = categorical(name)(LOGITS.repeat(DRAWS, 1)).sample().view(DRAWS, 3)
    assert choices.dtype == torch.int64
    for row, logits in enumerate(LOGITS):
        check_frequencies(choices[:, row], logits.double().softmax(dim=0))


@pytest.mark.parametrize("name", DISCRETE)
def test_the_rows_of_a_batch_are_drawn_independently(name):
    torch.manual_seed(2)
    pairs = categorical(name)(LOGITS[1].expand(2 * DRAWS, 4)).sample().view(DRAWS, 2)
    p = LOGITS[1].double().softmax(dim=0)
    check_frequencies(4 * pairs[:, 0] + pairs[:, 1], torch.outer(p, p).flatten())


@pytest.mark.parametrize("name", DISCRETE)
def test_the_mode_is_the_likeliest_action(name):
    assert categorical(name)(LOGITS[1:].repeat(100, 1)).mode().tolist() == [0, 2] * 100


@pytest.mark.parametrize("name", DISCRETE)
def test_log_probabilities_and_entropies_are_those_of_torch(name):
    policy = categorical(name)(LOGITS)
    reference = torch.distributions.Categorical(logits=LOGITS.double())
    for action in torch.arange(4):
        got = policy.log_prob(action.repeat(3))
        torch.testing.assert_close(got, reference.log_prob(action).float())
    torch.testing.assert_close(policy.entropy(), reference.entropy().float())


# Continuous actions

MEAN = torch.tensor([[0.5, -2.0, 30.0], [-0.1, 0.0, 4.0]])
STD = torch.tensor([[0.2, 1.0, 2.0], [3.0, 0.01, 0.5]])


def test_draws_are_normal_and_independent():
    torch.manual_seed(5)
    for mean, std in zip(MEAN, STD, strict=True):
        actions = normal(mean.expand(DRAWS, 3), std.expand(DRAWS, 3)).sample()
        check_standard_normal((actions - mean) / std)


def test_density_and_entropy_of_components_multiply_and_add_up():
    policy = normal(MEAN, STD)
    reference = torch.distributions.Normal(MEAN.double(), STD.double())
    for action in (MEAN, MEAN + STD, MEAN - torch.tensor([2.0, 0.3, 5.0]) * STD):
        expected = reference.log_prob(action.double()).sum(dim=1).float()
        torch.testing.assert_close(policy.log_prob(action), expected, rtol=1e-4, atol=0)
    torch.testing.assert_close(policy.entropy(), reference.entropy().sum(dim=1).float())
    assert torch.equal(policy.mode(), MEAN)


# The agents


def policy_head(agent: torch.nn.Module) -> torch.nn.Module:
    return agent.actor_mean if hasattr(agent, "actor_mean") else agent.actor


@pytest.mark.parametrize("name", SCRIPTS)
def test_an_agent_draws_from_what_its_network_puts_out(name):
    """In three states, in which its policy is not uniform. Image scripts see features, without convolutions."""
    spaces = {
        "ppo_continuous_action": gym.spaces.Box(-1, 1, (3,)),
        "ppo_multidiscrete": gym.spaces.MultiDiscrete(NVEC),
    }
    shape = (5, 5, 3) if name == "ppo_multidiscrete" else (5,)
    envs = SimpleNamespace(
        single_observation_space=gym.spaces.Box(-1, 1, shape),
        single_action_space=spaces.get(name, gym.spaces.Discrete(4)),
    )
    torch.manual_seed(6)
    agent = importlib.import_module(name).Agent(envs)
    x = torch.randn(3, *shape)
    more = {"ppo_multidiscrete": [MASK], "ppo_atari_lstm": [torch.randn(3, 256), torch.zeros(3)]}
    if name in IMAGES:
        x = 25_500 * torch.randn(
            3, 256 if name == "ppo_procgen" else 512, 1, 1
        )  # images, which the agent divides by 255
        agent.network = torch.nn.Flatten()
    outputs = []
    policy_head(agent).register_forward_hook(lambda *call: outputs.append(call[-1]))
    draws = DRAWS // 3
    with torch.no_grad():
        for parameter in policy_head(agent).parameters():
            parameter += 0.2 * torch.randn_like(parameter)
        if name == "ppo_continuous_action":
            agent.actor_logstd.copy_(torch.tensor([-1.5, 0.0, 0.7]))
        inputs = [
            field.repeat(draws, *[1] * (field.ndim - 1)) for field in (x, *more.get(name, ()))
        ]
        policy = agent(*inputs)[0]
        actions = policy.sample()
    head = outputs[0]
    if name == "ppo_continuous_action":
        assert len(head.unique(dim=0)) == 3
        check_standard_normal((actions - head) / torch.tensor([-1.5, 0.0, 0.7]).exp())
        return
    assert (head.max(dim=1).values - head.min(dim=1).values > 0.3).all()
    for state in range(3):
        logits = head[state].double()
        if name == "ppo_multidiscrete":
            parts = torch_components(logits, MASK[state])
            joint = torch.einsum("i,j,k->ijk", *(part.probs for part in parts)).flatten()
            check_frequencies(actions[state::3] @ torch.tensor([8, 2, 1]), joint)
        else:
            check_frequencies(actions[state::3], logits.softmax(dim=0))
