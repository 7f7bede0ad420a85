"""torchrl's PPO loss, advantages and modules as they come.

`OPTIONS=official` in the environment sets what can be set to the official form.

    python details/check.py details/adapters/torchrl.py

torchrl leaves the optimiser, its schedule and the network's initial weights to the user.
"""

import os

import numpy as np
import torch
from tensordict import TensorDict
from tensordict.nn import (
    ProbabilisticTensorDictModule,
    ProbabilisticTensorDictSequential,
    TensorDictModule,
)
from torch import nn
from torch.distributions import Categorical, Distribution
from torchrl.data import LazyTensorStorage, SamplerWithoutReplacement, TensorDictReplayBuffer
from torchrl.envs.transforms import VecNormV2
from torchrl.modules import (
    MLP,
    IndependentNormal,
    LSTMModule,
    MaskedCategorical,
    set_recurrent_mode,
)
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value.functional import generalized_advantage_estimate

dtype = np.float32
OFFICIAL = os.environ.get("OPTIONS") == "official"


# Advantages


def column(x):
    return torch.tensor(x)[..., None].swapaxes(0, 1)  # (envs, steps, 1)


def row_major(x):
    return x[..., 0].T.numpy()


def gae(rewards, values, dones, next_value, gamma, gae_lambda):
    following = np.concatenate([values[1:], next_value[None]])
    flags = column(dones) == 1
    results = generalized_advantage_estimate(
        gamma, gae_lambda, column(values), column(following), column(rewards), flags, flags
    )
    return [row_major(x) for x in results]


def gae_truncated(
    rewards, values, terminated, truncated, final_values, next_value, gamma, gae_lambda
):
    # torchrl's environments give the observation with which an episode ended as the next one.
    following = np.concatenate([values[1:], next_value[None]])
    dones = np.maximum(terminated, truncated)
    following = np.where(dones == 1, final_values, following)
    advantages, _ = generalized_advantage_estimate(
        gamma,
        gae_lambda,
        column(values),
        column(following),
        column(rewards),
        column(dones) == 1,
        column(terminated) == 1,
    )
    return row_major(advantages)


# The loss, of an actor and a critic that give what they are told to give


class Given(nn.Module):
    def __init__(self, *tensors):
        super().__init__()
        self.tensors = nn.ParameterList([nn.Parameter(torch.tensor(x)) for x in tensors])

    def forward(self, obs):
        return tuple(self.tensors)


class Column(Given):
    def forward(self, obs):
        return self.tensors[0][:, None]


class GivenPolicy(Distribution):
    arg_constraints = {}  # noqa: RUF012

    def __init__(self, logprobs, entropies):
        super().__init__(logprobs.shape, validate_args=False)
        self.given = logprobs, entropies

    def log_prob(self, actions):
        return self.given[0]

    def entropy(self):
        return self.given[1]


def run_loss(normalize=False, **x):
    rows = len(x["logprobs"])
    policy, value = Given(x["logprobs"], x["entropies"]), Column(x["values"])
    actor = ProbabilisticTensorDictSequential(
        TensorDictModule(policy, ["observation"], ["logprobs", "entropies"]),
        ProbabilisticTensorDictModule(
            ["logprobs", "entropies"], ["action"], distribution_class=GivenPolicy
        ),
    )
    critic = TensorDictModule(value, ["observation"], ["state_value"])
    options = {"loss_critic_type": "l2", "clip_value": True} if OFFICIAL else {}
    loss_module = ClipPPOLoss(
        actor,
        critic,
        clip_epsilon=x["clip_coef"],
        entropy_coeff=x["ent_coef"],
        critic_coeff=x["vf_coef"],
        normalize_advantage=normalize,
        functional=False,
        **options,
    )
    batch = TensorDict(
        {
            "observation": torch.zeros(rows, 1),
            "action": torch.zeros(rows),
            "action_log_prob": torch.tensor(x["old_logprobs"]),
            "advantage": torch.tensor(x["advantages"])[:, None],
            "value_target": torch.tensor(x["returns"])[:, None],
            "state_value": torch.tensor(x["old_values"])[:, None],
        },
        [rows],
    )
    losses = loss_module(batch)
    total = losses["loss_objective"] + losses["loss_entropy"] + losses["loss_critic"]
    return total, losses, [policy.tensors[0], value.tensors[0], policy.tensors[1]]


def loss(**x):
    return run_loss(**x)[0].item()


def loss_gradients(**x):
    total, _, inputs = run_loss(**x)
    total.backward()
    return [tensor.grad.numpy() for tensor in inputs]


def policy_only(logprobs, old_logprobs, advantages=None, clip_coef=0.2):
    zeros = np.zeros_like(logprobs)
    names = ("values", "old_values", "returns", "entropies")
    return {
        "logprobs": logprobs,
        "old_logprobs": old_logprobs,
        "advantages": zeros if advantages is None else advantages,
        **dict.fromkeys(names, zeros),
        "clip_coef": clip_coef,
        "ent_coef": 0.0,
        "vf_coef": 1.0,
    }


def normalize_advantages(advantages, minibatches):
    # With ratios of 1, the gradient is that of -mean(ratio * advantage).
    normalized = []
    for rows in minibatches:
        zeros = np.zeros(len(rows), dtype)
        x = policy_only(zeros, zeros, advantages[rows])
        total, _, inputs = run_loss(normalize=OFFICIAL, **x)
        total.backward()
        normalized.append(-len(rows) * inputs[0].grad.numpy())
    return np.stack(normalized)


def approx_kl(logprobs, old_logprobs):
    return run_loss(**policy_only(logprobs, old_logprobs))[1]["kl_approx"].item()


def clip_fraction(logprobs, old_logprobs, clip_coef):
    x = policy_only(logprobs, old_logprobs, clip_coef=clip_coef)
    return run_loss(**x)[1]["clip_fraction"].item()


def explained_variance(values, returns):
    zeros = np.zeros_like(values)
    x = policy_only(zeros, zeros) | {"values": values, "old_values": values, "returns": returns}
    return run_loss(**x)[1]["explained_variance"].item()


# Minibatches and initial weights


def minibatches(batch_size, num_minibatches, epochs):
    buffer = TensorDictReplayBuffer(
        storage=LazyTensorStorage(batch_size),
        sampler=SamplerWithoutReplacement(),
        batch_size=batch_size // num_minibatches,
    )
    buffer.extend(TensorDict({"rows": torch.arange(batch_size)}, [batch_size]))
    return np.array([[mb["rows"].numpy() for mb in buffer] for _ in range(epochs)])


def layers(network):
    linear = [layer for layer in network.modules() if isinstance(layer, nn.Linear)]
    return [(x.weight.detach().numpy(), x.bias.detach().numpy()) for x in linear]


def initial_weights(obs_size, num_actions):
    settings = {"num_cells": [64, 64], "activation_class": nn.Tanh}
    return layers(MLP(obs_size, num_actions, **settings)), layers(MLP(obs_size, 1, **settings))


# Normalisation


def normalize_observations(observations):
    scaler = VecNormV2(
        in_keys=["observation"], reduce_batch_dims=True, decay=1 if OFFICIAL else 0.9999
    )
    results = []
    for rows in observations:
        data = TensorDict({"observation": torch.tensor(rows)}, [len(rows)])
        results.append(scaler._step(None, data)["observation"].numpy())
    return np.stack(results)


# Distributions


def evaluate(policy, actions):
    return policy.log_prob(torch.tensor(actions)).numpy(), policy.entropy().numpy()


def categorical(logits, actions):
    return evaluate(Categorical(logits=torch.tensor(logits)), actions)


def masked_categorical(logits, mask, actions):
    policy = MaskedCategorical(logits=torch.tensor(logits), mask=torch.tensor(mask))
    return policy.probs.numpy(), *evaluate(policy, actions)


def gaussian(means, logstds, actions):
    scale = torch.tensor(logstds).exp().expand(means.shape)
    return evaluate(IndependentNormal(torch.tensor(means), scale), actions)


def gaussian_samples(means, logstds, count):
    scale = torch.tensor(logstds).exp()
    return IndependentNormal(torch.tensor(means), scale).sample((count,)).numpy()


# The recurrent network


def lstm_training(inputs, starts, hidden, cell, after, input_weights, hidden_weights, bias):
    steps, envs, size = inputs.shape
    module = LSTMModule(
        input_size=size,
        hidden_size=hidden.shape[1],
        in_keys=["inputs", "hidden", "cell"],
        out_keys=["outputs", ("next", "hidden"), ("next", "cell")],
    )
    state = {}
    for name, x in [("hidden", hidden), ("cell", cell)]:
        # (envs, steps, layers, hidden); where an episode begins, the rollout had a state of zero.
        state[name] = torch.zeros(envs, steps, 1, x.shape[1])
        state[name][:, 0, 0] = torch.tensor(x * (1 - starts[0][:, None]))
    data = TensorDict(
        {
            "inputs": torch.tensor(inputs).swapaxes(0, 1),
            "is_init": torch.tensor(starts == 1).T[..., None],
            **state,
        },
        [envs, steps],
    )
    with torch.no_grad(), set_recurrent_mode(True):
        module.lstm.weight_ih_l0.copy_(torch.tensor(input_weights))
        module.lstm.weight_hh_l0.copy_(torch.tensor(hidden_weights))
        module.lstm.bias_ih_l0.copy_(torch.tensor(bias))
        module.lstm.bias_hh_l0.zero_()
        return module(data)["outputs"].swapaxes(0, 1).numpy()
