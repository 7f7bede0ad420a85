"""The scripts of this repository: python details/check.py details/adapters/ppo37.py

The scripts keep their parts inside main where that reads better; `train` runs one for a moment and
looks at what it does.
"""

import contextlib
import math
import sys
import tempfile
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import torch
from torch import nn

sys.path.append(str(Path(__file__).resolve().parents[2]))

import ppo
import ppo_atari
import ppo_atari_lstm
import ppo_continuous_action
import ppo_multidiscrete

dtype = np.float32


class Spaces(SimpleNamespace):
    """As much of an environment as the agents look at."""

    def __init__(self, obs_size, action_space):
        super().__init__(single_action_space=action_space)
        self.single_observation_space = gym.spaces.Box(-math.inf, math.inf, obs_size)


# Advantages


def gae(rewards, values, dones, next_value, gamma, gae_lambda):
    tensors = map(torch.tensor, (rewards, values, dones, next_value))
    return [x.numpy() for x in ppo.compute_gae(*tensors, gamma, gae_lambda)]


def gae_truncated(
    rewards, values, terminated, truncated, final_values, next_value, gamma, gae_lambda
):
    # By default a time limit is an end; --bootstrap-truncated is a line of main.
    dones = np.maximum(terminated, truncated)
    return gae(rewards, values, dones, next_value, gamma, gae_lambda)[0]


# The loss


def run_loss(norm_adv=False, **x):
    """Return the loss, its statistics, and the tensors that it can be differentiated by."""
    inputs = {name: torch.tensor(x[name]) for name in ("logprobs", "values", "entropies")}
    for tensor in inputs.values():
        tensor.requires_grad_()

    def agent(obs):
        policy = SimpleNamespace(
            log_prob=lambda actions: inputs["logprobs"], entropy=lambda: inputs["entropies"]
        )
        return policy, inputs["values"]

    zeros = torch.zeros(len(x["logprobs"]))
    mb = ppo.Batch(
        obs=zeros,
        actions=zeros,
        logprobs=torch.tensor(x["old_logprobs"]),
        values=torch.tensor(x["old_values"]),
        advantages=torch.tensor(x["advantages"]),
        returns=torch.tensor(x["returns"]),
    )
    args = ppo.Args(norm_adv=norm_adv, ent_coef=x["ent_coef"], vf_coef=x["vf_coef"])
    loss, stats = ppo.ppo_loss(agent, mb, x["clip_coef"], args)
    return loss, stats, list(inputs.values())


def loss(**x):
    return run_loss(**x)[0].item()


def loss_gradients(**x):
    loss, _, inputs = run_loss(**x)
    loss.backward()
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
        "vf_coef": 0.0,
    }


def normalize_advantages(advantages, minibatches):
    # With ratios of 1, the gradient is that of -mean(ratio * advantage).
    normalized = []
    for rows in minibatches:
        zeros = np.zeros(len(rows), dtype)
        loss, _, inputs = run_loss(norm_adv=True, **policy_only(zeros, zeros, advantages[rows]))
        loss.backward()
        normalized.append(-len(rows) * inputs[0].grad.numpy())
    return np.stack(normalized)


def approx_kl(logprobs, old_logprobs):
    _, stats, _ = run_loss(**policy_only(logprobs, old_logprobs))
    return stats["approx_kl"].item()


def clip_fraction(logprobs, old_logprobs, clip_coef):
    _, stats, _ = run_loss(**policy_only(logprobs, old_logprobs, clip_coef=clip_coef))
    return stats["clipfrac"].item()


# The optimiser, the schedules and the minibatches


def optimizer_steps(parameters, gradients, learning_rate, max_grad_norm):
    tensors = [nn.Parameter(torch.tensor(x)) for x in parameters]
    optimizer = ppo.Adam(tensors, lr=learning_rate)
    for step in gradients:
        for tensor, gradient in zip(tensors, step, strict=True):
            tensor.grad = torch.tensor(gradient)
        nn.utils.clip_grad_norm_(tensors, max_grad_norm)
        optimizer.step()
    return [tensor.detach().numpy() for tensor in tensors]


@cache
def train(script, **args):
    """Train for a few updates, and return learning rates, clip ranges and rows of all minibatches."""
    seen = SimpleNamespace(rates=[], clips=[], rows=[])
    real_select, real_loss, real_step = script.Batch.select, script.ppo_loss, script.Adam.step

    def select(self, rows):
        seen.rows.append(rows.numpy())
        return real_select(self, rows)

    def ppo_loss(agent, mb, clip_coef, args):
        seen.clips.append(clip_coef)
        return real_loss(agent, mb, clip_coef, args)

    def step(self, closure=None):
        seen.rates.append(self.param_groups[0]["lr"])
        return real_step(self, closure)

    try:
        script.Batch.select, script.ppo_loss, script.Adam.step = select, ppo_loss, step
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            script.main(script.Args(**args, device="cpu"))
    finally:
        script.Batch.select, script.ppo_loss, script.Adam.step = real_select, real_loss, real_step
    return seen


def schedule(num_updates, **args):
    return train(
        ppo,
        num_envs=1,
        num_steps=8,
        num_minibatches=1,
        update_epochs=1,
        total_timesteps=8 * num_updates,
        **args,
    )


def learning_rate(update, num_updates, initial):
    return schedule(num_updates, learning_rate=initial).rates[update]


def clip_range(update, num_updates, initial):
    return schedule(num_updates, clip_coef=initial).clips[update]


def minibatches(batch_size, num_minibatches, epochs):
    seen = train(
        ppo,
        num_envs=4,
        num_steps=batch_size // 4,
        total_timesteps=batch_size,
        num_minibatches=num_minibatches,
        update_epochs=epochs,
    )
    return np.reshape(seen.rows, (epochs, num_minibatches, -1))


def sequence_minibatches(num_steps, num_envs, num_minibatches):
    grid = torch.arange(num_steps * num_envs).view(num_steps, num_envs)
    state = torch.zeros(num_envs, 1)
    batch = ppo_atari_lstm.Batch(*[grid] * 7, state)
    minibatches = []
    for ids in torch.randperm(num_envs).chunk(num_minibatches):
        rows = batch.select(ids).obs
        minibatches.append(rows.view(num_steps, -1).numpy())
    return np.stack(minibatches)


# Initial weights


def layers(network):
    linear = [layer for layer in network if isinstance(layer, nn.Linear)]
    return [(x.weight.detach().numpy(), x.bias.detach().numpy()) for x in linear]


def initial_weights(obs_size, num_actions):
    agent = ppo.Agent(Spaces((obs_size,), gym.spaces.Discrete(num_actions)))
    return layers(agent.actor), layers(agent.critic)


def initial_weights_continuous(obs_size, action_size):
    envs = Spaces((obs_size,), gym.spaces.Box(-1, 1, (action_size,)))
    agent = ppo_continuous_action.Agent(envs)
    logstd = agent.actor_logstd.detach().numpy()
    return layers(agent.actor_mean), layers(agent.critic), logstd


def initial_lstm():
    agent = ppo_atari_lstm.Agent(Spaces((1, 84, 84), gym.spaces.Discrete(4)))
    named = dict(agent.lstm.named_parameters())
    biases = [x.detach().numpy() for name, x in named.items() if "bias" in name and x.requires_grad]
    weights = [named[name].detach().numpy() for name in ("weight_ih", "weight_hh")]
    return *weights, biases, agent.initial_state(2).numpy()


# Normalisation


def normalizer(num_envs, obs_size, gamma=0.99):
    envs = gym.vector.VectorEnv()
    envs.num_envs = num_envs
    envs.single_observation_space = gym.spaces.Box(-math.inf, math.inf, obs_size)
    return ppo_continuous_action.VecNormalize(envs, gamma)


def normalize_observations(observations):
    envs = normalizer(observations.shape[1], observations.shape[2:])
    return np.stack([envs.observe(rows) for rows in observations])


def normalize_rewards(rewards, dones, gamma):
    envs = normalizer(rewards.shape[1], (1,), gamma)
    pairs = zip(rewards, dones, strict=True)
    return np.stack([envs.scale(row, done == 1) for row, done in pairs])


# Distributions and actions


def categorical(logits, actions):
    policy = ppo.Categorical(torch.tensor(logits))
    return policy.log_prob(torch.tensor(actions)).numpy(), policy.entropy().numpy()


def masked_categorical(logits, mask, actions):
    num_actions = logits.shape[1]
    policy = ppo_multidiscrete.MultiCategorical(
        torch.tensor(logits), torch.tensor(mask), [num_actions]
    )
    return (
        policy.components[0].logprobs.exp().numpy(),
        policy.log_prob(torch.tensor(actions)[:, None]).numpy(),
        policy.entropy().numpy(),
    )


def multidiscrete(logits, actions):
    joined = torch.tensor(np.concatenate(logits, axis=1))
    mask = torch.ones_like(joined, dtype=torch.bool)
    nvec = [x.shape[1] for x in logits]
    policy = ppo_multidiscrete.MultiCategorical(joined, mask, nvec)
    return policy.log_prob(torch.tensor(actions)).numpy(), policy.entropy().numpy()


def normal(means, logstds):
    means = torch.tensor(means)
    return ppo_continuous_action.Normal(means, torch.tensor(logstds).exp().expand_as(means))


def gaussian(means, logstds, actions):
    policy = normal(means, logstds)
    return policy.log_prob(torch.tensor(actions)).numpy(), policy.entropy().numpy()


def gaussian_samples(means, logstds, count):
    return normal(np.tile(means, (count, 1)), logstds).sample().numpy()


class Recorder(gym.Env):
    """An environment that keeps the actions which reach it."""

    def __init__(self, low, high):
        self.action_space = gym.spaces.Box(low, high)
        self.observation_space = gym.spaces.Box(-1, 1, (1,))
        self.taken = []

    def step(self, action):
        self.taken.append(action)
        return np.zeros(1), 0.0, False, False, {}


def actions(sampled, low, high):
    # make_env wraps the environment in ClipAction; main stores what it passes to the environment.
    env = Recorder(low, high)
    wrapped = gym.wrappers.ClipAction(env)
    for action in sampled:
        wrapped.step(action)
    return np.stack(env.taken), sampled


# The recurrent network: the unrolling of its forward, with a body that passes its input on


def lstm_rollout(inputs, starts, hidden, cell, input_weights, hidden_weights, bias):
    agent = ppo_atari_lstm.Agent.__new__(ppo_atari_lstm.Agent)
    nn.Module.__init__(agent)
    agent.network = nn.Flatten()
    agent.lstm = nn.LSTMCell(inputs.shape[2], hidden.shape[1])
    agent.actor = nn.Identity()
    agent.critic = nn.Linear(hidden.shape[1], 1)
    with torch.no_grad():
        agent.lstm.weight_ih.copy_(torch.tensor(input_weights))
        agent.lstm.weight_hh.copy_(torch.tensor(hidden_weights))
        agent.lstm.bias_ih.copy_(torch.tensor(bias))
        agent.lstm.bias_hh.zero_()
        images = 255 * torch.tensor(inputs).flatten(0, 1)[:, :, None, None]
        state = torch.tensor(np.concatenate([hidden, cell], axis=1))
        policy, _, _ = agent(images, state, torch.tensor(starts).flatten())
    return policy.logits.view(*starts.shape, -1).numpy()


def lstm_training(inputs, starts, hidden, cell, after, input_weights, hidden_weights, bias):
    # The same call, with the state from before the rollout
    return lstm_rollout(inputs, starts, hidden, cell, input_weights, hidden_weights, bias)


# Atari


def atari(env_id, actions, noops):
    import ale_py

    ale_py.AtariEnv.np_random = SimpleNamespace(integers=lambda low, high: noops)
    env = ppo_atari.make_env(env_id)
    obs, _ = env.reset(seed=123)
    stacks, rewards, dones, lives = [obs], [], [], []
    for action in actions:
        obs, reward, terminated, truncated, _ = env.step(int(action))
        rewards.append(reward)
        dones.append(terminated or truncated)
        lives.append(env.unwrapped.ale.lives())
        if dones[-1]:
            obs, _ = env.reset()
        stacks.append(obs)
    return np.stack(stacks), rewards, dones, lives
