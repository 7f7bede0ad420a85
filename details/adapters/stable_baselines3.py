"""Stable-Baselines3's PPO with its default settings.

`OPTIONS=official` in the environment sets what can be set to the official form.

python details/check.py details/adapters/stable_baselines3.py
"""

import os
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common import utils
from stable_baselines3.common.atari_wrappers import AtariWrapper
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.distributions import (
    CategoricalDistribution,
    DiagGaussianDistribution,
    MultiCategoricalDistribution,
)
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecFrameStack, VecNormalize
from torch import nn

dtype = np.float32
OFFICIAL = os.environ.get("OPTIONS") == "official"


class Scripted(VecEnv):
    """Plays rows of observations, rewards, dones and infos, and keeps the actions that it gets."""

    def __init__(self, obs, rewards, dones, infos=None, action_space=None):
        space = gym.spaces.Box(-np.inf, np.inf, obs.shape[2:])
        super().__init__(obs.shape[1], space, action_space or gym.spaces.Discrete(2))
        self.stream = obs, rewards, dones, infos
        self.t = 0
        self.taken = []

    def reset(self):
        return self.stream[0][0].copy()

    def step_async(self, actions):
        self.taken.append(actions)

    def step_wait(self):
        obs, rewards, dones, infos = self.stream
        t = self.t
        self.t += 1
        row = infos[t] if infos else [{} for _ in range(self.num_envs)]
        return obs[t + 1].copy(), rewards[t].copy(), dones[t] == 1, row

    def close(self):
        pass

    def get_attr(self, name, indices=None):
        return [None] * self.num_envs

    def set_attr(self, name, value, indices=None):
        pass

    def env_method(self, name, *args, indices=None, **kwargs):
        return []

    def env_is_wrapped(self, wrapper, indices=None):
        return [False] * self.num_envs


def spaces(obs_size, action_space):
    shape = (1, 1, obs_size)
    return Scripted(
        np.zeros((2, *shape[1:]), dtype), np.zeros((1, 1)), np.zeros((1, 1)), None, action_space
    )


# Advantages: collect_rollouts, on a policy whose value of an observation is the observation


def roll_out(env, steps, gamma=0.99, gae_lambda=0.95, act=None):
    size = {"n_steps": steps, "batch_size": steps * env.num_envs, "normalize_advantage": False}
    model = PPO("MlpPolicy", env, gamma=gamma, gae_lambda=gae_lambda, **size)

    def forward(obs):
        actions = act() if act else torch.zeros(len(obs), dtype=torch.int64)
        return actions, obs[:, :1], torch.zeros(len(obs))

    model.policy.forward = forward
    model.policy.predict_values = lambda obs: obs[:, :1]
    model._last_obs = env.reset()
    model._last_episode_starts = np.ones(env.num_envs, dtype=bool)
    model.ep_info_buffer, model.ep_success_buffer = [], []
    callback = SilentCallback()
    callback.init_callback(model)
    model.collect_rollouts(env, callback, model.rollout_buffer, steps)
    return model.rollout_buffer


class SilentCallback(BaseCallback):
    def _on_step(self):
        return True


def gae(rewards, values, dones, next_value, gamma, gae_lambda):
    obs = np.concatenate([values, next_value[None]])[:, :, None]
    buffer = roll_out(Scripted(obs, rewards, dones), len(rewards), gamma, gae_lambda)
    return buffer.advantages, buffer.returns


def gae_truncated(
    rewards, values, terminated, truncated, final_values, next_value, gamma, gae_lambda
):
    obs = np.concatenate([values, next_value[None]])[:, :, None]
    dones = np.maximum(terminated, truncated)
    infos = []
    for t in range(len(rewards)):
        row = []
        for env in range(rewards.shape[1]):
            info = {}
            if dones[t, env]:
                # As DummyVecEnv has it
                info["terminal_observation"] = final_values[t, env][None]
                info["TimeLimit.truncated"] = bool(truncated[t, env] and not terminated[t, env])
            row.append(info)
        infos.append(row)
    env = Scripted(obs, rewards, dones, infos)
    return roll_out(env, len(rewards), gamma, gae_lambda).advantages


def actions(sampled, low, high):
    obs = np.zeros((2, len(sampled), 1), dtype)
    zeros = np.zeros((1, len(sampled)), dtype)
    env = Scripted(obs, zeros, zeros, None, gym.spaces.Box(low, high))
    buffer = roll_out(env, 1, act=lambda: torch.tensor(sampled))
    return env.taken[0], buffer.actions[0]


# The loss: train, on a policy that gives what it is told to give


class Given(nn.Module):
    def __init__(self, logprobs, values, entropies):
        super().__init__()
        self.logprobs = nn.Parameter(torch.tensor(logprobs))
        self.values = nn.Parameter(torch.tensor(values))
        self.entropies = nn.Parameter(torch.tensor(entropies))
        self.optimizer = torch.optim.SGD(self.parameters(), lr=0.0)

    def set_training_mode(self, mode):
        pass

    def evaluate_actions(self, obs, actions):
        return self.values, self.logprobs, self.entropies


def train(rows, normalize=False, **x):
    """Return the gradients of one call of train, and what it logs."""
    zeros = np.zeros_like(rows["logprobs"])
    policy = Given(rows["logprobs"], rows.get("values", zeros), rows.get("entropies", zeros))
    batch = {
        name: torch.tensor(rows.get(name, zeros))
        for name in ("advantages", "returns", "old_values")
    }
    batch["old_log_prob"] = torch.tensor(rows["old_logprobs"])
    batch = SimpleNamespace(actions=torch.tensor(zeros), observations=None, **batch)
    clip = x.get("clip_coef", 0.2)
    model = PPO(
        "MlpPolicy",
        spaces(1, gym.spaces.Discrete(2)),
        n_epochs=1,
        clip_range=clip,
        clip_range_vf=clip if OFFICIAL else None,
        ent_coef=x.get("ent_coef", 0.0),
        vf_coef=x.get("vf_coef", 0.0),
        normalize_advantage=normalize,
        max_grad_norm=float("inf"),
        target_kl=x.get("target_kl"),
    )
    model.policy = policy
    model.rollout_buffer = SimpleNamespace(get=lambda size: [batch], values=zeros, returns=zeros)
    model.set_logger(Logger(None, []))
    model.train()
    gradients = [policy.logprobs.grad, policy.values.grad, policy.entropies.grad]
    return [x.numpy() for x in gradients], model.logger.name_to_value


NUMBERS = ("clip_coef", "ent_coef", "vf_coef")


def loss(**x):
    numbers = {name: x.pop(name) for name in NUMBERS}
    return train(x, **numbers)[1]["train/loss"]


def loss_gradients(**x):
    numbers = {name: x.pop(name) for name in NUMBERS}
    return train(x, **numbers)[0]


def normalize_advantages(advantages, minibatches):
    # With ratios of 1, the gradient is that of -mean(ratio * advantage).
    normalized = []
    for rows in minibatches:
        zeros = np.zeros(len(rows), dtype)
        inputs = {"logprobs": zeros, "old_logprobs": zeros, "advantages": advantages[rows]}
        normalized.append(-len(rows) * train(inputs, normalize=True)[0][0])
    return np.stack(normalized)


def approx_kl(logprobs, old_logprobs):
    return train({"logprobs": logprobs, "old_logprobs": old_logprobs})[1]["train/approx_kl"]


def clip_fraction(logprobs, old_logprobs, clip_coef):
    inputs = {"logprobs": logprobs, "old_logprobs": old_logprobs}
    return train(inputs, clip_coef=clip_coef)[1]["train/clip_fraction"]


def explained_variance(values, returns):
    return utils.explained_variance(values, returns)


# The optimiser, the schedules and the minibatches


def optimizer_steps(parameters, gradients, learning_rate, max_grad_norm):
    model = PPO("MlpPolicy", spaces(1, gym.spaces.Discrete(2)), learning_rate=learning_rate)
    tensors = [nn.Parameter(torch.tensor(x)) for x in parameters]
    optimizer = model.policy.optimizer_class(
        tensors, lr=learning_rate, **model.policy.optimizer_kwargs
    )
    for step in gradients:
        for tensor, gradient in zip(tensors, step, strict=True):
            tensor.grad = torch.tensor(gradient)
        nn.utils.clip_grad_norm_(tensors, max_grad_norm)  # as in train
        optimizer.step()
    return [tensor.detach().numpy() for tensor in tensors]


def learning_rate(update, num_updates, initial):
    schedule = utils.LinearSchedule(initial, 0.0, 1.0) if OFFICIAL else initial
    model = PPO(
        "MlpPolicy",
        spaces(1, gym.spaces.Discrete(2)),
        learning_rate=schedule,
        n_steps=8,
        batch_size=8,
    )
    # learn updates this after each rollout, before it trains.
    model._update_current_progress_remaining(8 * (update + 1), 8 * num_updates)
    model.set_logger(Logger(None, []))
    model._update_learning_rate(model.policy.optimizer)
    return model.policy.optimizer.param_groups[0]["lr"]


def clip_range(update, num_updates, initial):
    model = PPO("MlpPolicy", spaces(1, gym.spaces.Discrete(2)), clip_range=initial)
    return model.clip_range(1 - (update + 1) / num_updates)


def minibatches(batch_size, num_minibatches, epochs):
    space = gym.spaces.Box(-1, 1, (1,))
    buffer = RolloutBuffer(batch_size // 4, space, space, n_envs=4, device="cpu")
    buffer.observations[:] = np.arange(batch_size).reshape(4, -1).T[:, :, None]
    buffer.full = True
    rows = []
    for _ in range(epochs):
        rows.append(
            [mb.observations[:, 0].numpy() for mb in buffer.get(batch_size // num_minibatches)]
        )
    return np.array(rows)


# Initial weights


def layers(*modules):
    linear = [
        layer for module in modules for layer in module.modules() if isinstance(layer, nn.Linear)
    ]
    return [(x.weight.detach().numpy(), x.bias.detach().numpy()) for x in linear]


def initial_weights(obs_size, num_actions):
    policy = PPO("MlpPolicy", spaces(obs_size, gym.spaces.Discrete(num_actions))).policy
    body = policy.mlp_extractor
    return layers(body.policy_net, policy.action_net), layers(body.value_net, policy.value_net)


def initial_weights_continuous(obs_size, action_size):
    policy = PPO("MlpPolicy", spaces(obs_size, gym.spaces.Box(-1, 1, (action_size,)))).policy
    body = policy.mlp_extractor
    networks = layers(body.policy_net, policy.action_net), layers(body.value_net, policy.value_net)
    return *networks, policy.log_std.detach().numpy()


# Normalisation


def normalize_observations(observations):
    zeros = np.zeros(observations.shape[:2], dtype)
    envs = VecNormalize(Scripted(observations, zeros, zeros), norm_reward=False)
    results = [envs.reset()]
    for _ in observations[1:]:
        results.append(envs.step(np.zeros(envs.num_envs))[0])
    return np.stack(results)


def normalize_rewards(rewards, dones, gamma):
    obs = np.zeros((len(rewards) + 1, rewards.shape[1], 1), dtype)
    envs = VecNormalize(Scripted(obs, rewards, dones), norm_obs=False, gamma=gamma)
    envs.reset()
    return np.stack([envs.step(np.zeros(envs.num_envs))[1] for _ in rewards])


# Distributions


def evaluate(policy, actions):
    actions = torch.tensor(actions)
    return policy.log_prob(actions).numpy(), policy.entropy().numpy()


def categorical(logits, actions):
    policy = CategoricalDistribution(logits.shape[1]).proba_distribution(torch.tensor(logits))
    return evaluate(policy, actions)


def multidiscrete(logits, actions):
    policy = MultiCategoricalDistribution([x.shape[1] for x in logits])
    joined = torch.tensor(np.concatenate(logits, axis=1))
    return evaluate(policy.proba_distribution(joined), actions)


def gaussian(means, logstds, actions):
    policy = DiagGaussianDistribution(means.shape[1])
    return evaluate(policy.proba_distribution(torch.tensor(means), torch.tensor(logstds)), actions)


def gaussian_samples(means, logstds, count):
    policy = DiagGaussianDistribution(len(means))
    tiled = torch.tensor(np.tile(means, (count, 1)))
    return policy.proba_distribution(tiled, torch.tensor(logstds)).sample().numpy()


# Atari: AtariWrapper and VecFrameStack, as in its zoo of settings


def atari(env_id, actions, noops):
    import ale_py

    gym.register_envs(ale_py)
    env = AtariWrapper(gym.make(env_id))
    wrapper = env
    while not hasattr(wrapper, "override_num_noops"):
        wrapper = wrapper.env
    wrapper.override_num_noops = noops
    envs = VecFrameStack(DummyVecEnv([lambda: env]), 4)
    envs.seed(123)
    stacks, rewards, dones, lives = [envs.reset()[0]], [], [], []
    for action in actions:
        obs, reward, done, infos = envs.step(np.array([action]))
        stacks.append(obs[0])
        rewards.append(reward[0])
        dones.append(done[0])
        lives.append(infos[0]["lives"])
    return np.stack(stacks), rewards, dones, lives
