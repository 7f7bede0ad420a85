"""skrl's PPO with its default settings.

`OPTIONS=official` in the environment sets what can be set to the official form.

python details/check.py details/adapters/skrl.py
"""

import os
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import torch
from skrl.agents.torch.ppo import PPO, PPO_CFG
from skrl.agents.torch.ppo.ppo import compute_gae
from skrl.memories.torch import RandomMemory
from skrl.models.torch import CategoricalMixin, GaussianMixin, Model, MultiCategoricalMixin
from skrl.resources.preprocessors.torch import RunningStandardScaler
from skrl.utils.model_instantiators.torch import (
    categorical_model,
    deterministic_model,
    gaussian_model,
)
from torch import nn

dtype = np.float32
OFFICIAL = os.environ.get("OPTIONS") == "official"


# The agent, with models that give what they are told to give


class Given(nn.Module):
    device = torch.device("cpu")

    def __init__(self, **tensors):
        super().__init__()
        for name, x in tensors.items():
            self.register_parameter(name, nn.Parameter(torch.tensor(x)[:, None]))

    def act(self, inputs, role):
        if role == "value":
            return 1 * self.values, {}
        return None, {"log_prob": 1 * self.logprobs}

    def get_entropy(self, role):
        return self.entropies

    def enable_training_mode(self, enabled=True):
        pass

    def distribution(self, role):
        return SimpleNamespace(stddev=torch.ones(1))


class Minibatch:
    """A memory of one minibatch."""

    def __init__(self, logprobs, values, returns, advantages):
        zeros = torch.zeros(len(logprobs), 1)
        self.batch = (
            zeros,
            None,
            zeros,
            *map(self.column, (logprobs, values, returns, advantages)),
        )

    @staticmethod
    def column(x):
        return torch.tensor(x)[:, None]

    def get_tensor_by_name(self, name):
        zeros = torch.zeros(1, len(self), 1)  # a step of so many environments
        return zeros.bool() if name in ("terminated", "truncated") else zeros

    def set_tensor_by_name(self, name, tensor):
        pass

    def sample(self, names, batch_size, mini_batches):
        return [self.batch]

    def __len__(self):
        return len(self.batch[0])


def make_agent(policy, value, memory=None, **settings):
    return PPO(
        models={"policy": policy, "value": value},
        memory=memory,
        observation_space=gym.spaces.Box(-1, 1, (1,)),
        action_space=gym.spaces.Discrete(2),
        device="cpu",
        cfg=PPO_CFG(**settings),
    )


def update(logprobs, old_logprobs, advantages, values, old_values, returns, entropies, **x):
    """Return the gradients of one update, and what it logs."""
    policy, value = Given(logprobs=logprobs, entropies=entropies), Given(values=values)
    agent = make_agent(
        policy,
        value,
        Minibatch(old_logprobs, old_values, returns, advantages),
        learning_epochs=1,
        mini_batches=1,
        ratio_clip=x["clip_coef"],
        value_clip=x["clip_coef"],
        entropy_loss_scale=x["ent_coef"],
        value_loss_scale=x["vf_coef"],
        grad_norm_clip=0,
    )
    agent._tensors_names = []
    agent._current_next_observations = agent._current_next_states = None
    agent.update(timestep=0, timesteps=1)
    gradients = [policy.logprobs.grad, value.values.grad, policy.entropies.grad]
    return [x.numpy()[:, 0] for x in gradients], agent.tracking_data


def loss(**x):
    logged = update(**x)[1]
    return sum(values[-1] for name, values in logged.items() if name.startswith("Loss /"))


def loss_gradients(**x):
    return update(**x)[0]


# Advantages


def column(x):
    return torch.tensor(x)[..., None]


def gae(rewards, values, dones, next_value, gamma, gae_lambda):
    returns, _ = compute_gae(
        rewards=column(rewards),
        terminated=column(dones) == 1,
        truncated=torch.zeros(*dones.shape, 1, dtype=torch.bool),
        values=column(values),
        last_values=column(next_value),
        discount_factor=gamma,
        lambda_coefficient=gae_lambda,
    )
    # The advantages that it returns are normalised.
    return returns[..., 0].numpy() - values, returns[..., 0].numpy()


def gae_truncated(
    rewards, values, terminated, truncated, final_values, next_value, gamma, gae_lambda
):
    stored = []
    bootstrap = OFFICIAL
    for t in range(len(rewards)):
        value = Given(values=final_values[t])
        agent = make_agent(
            Given(logprobs=rewards[t]), value, time_limit_bootstrap=bootstrap, discount_factor=gamma
        )
        agent.training = True
        agent.write_interval = 0
        agent._current_log_prob = agent._current_values = None
        agent.memory = SimpleNamespace(add_samples=lambda rewards, **_: stored.append(rewards))
        agent.record_transition(
            observations=None,
            states=None,
            actions=None,
            rewards=column(rewards[t]),
            next_observations=None,
            next_states=None,
            terminated=column(terminated[t]) == 1,
            truncated=column(truncated[t]) == 1,
            infos={},
            timestep=0,
            timesteps=1,
        )
    returns, _ = compute_gae(
        rewards=torch.stack(stored),
        terminated=column(terminated) == 1,
        truncated=column(truncated) == 1,
        values=column(values),
        last_values=column(next_value),
        discount_factor=gamma,
        lambda_coefficient=gae_lambda,
        time_limit_bootstrap=bootstrap,
    )
    return returns[..., 0].numpy() - values


def normalize_advantages(advantages, minibatches):
    # With gamma 0 and values of 0, the advantage is the reward.
    zeros = torch.zeros(len(advantages), 1)
    _, normalized = compute_gae(
        rewards=torch.tensor(advantages)[:, None],
        terminated=zeros.bool(),
        truncated=zeros.bool(),
        values=zeros,
        last_values=zeros[0],
        discount_factor=0.0,
    )
    return normalized[:, 0].numpy()[minibatches]


# The optimiser, the schedules and the minibatches


def optimizer_steps(parameters, gradients, learning_rate, max_grad_norm):
    policy = nn.Module()
    policy.parameters_ = nn.ParameterList([nn.Parameter(torch.tensor(x)) for x in parameters])
    policy.device = torch.device("cpu")
    agent = make_agent(policy, policy, learning_rate=learning_rate)
    for step in gradients:
        for tensor, gradient in zip(policy.parameters_, step, strict=True):
            tensor.grad = torch.tensor(gradient)
        nn.utils.clip_grad_norm_(policy.parameters(), max_grad_norm)  # as in update
        agent.optimizer.step()
    return [tensor.detach().numpy() for tensor in policy.parameters_]


def learning_rate(update, num_updates, initial):
    model = Given(values=np.zeros(1))
    agent = make_agent(model, model, learning_rate=initial)
    if agent.scheduler is not None:
        raise RuntimeError("there is a scheduler after all")
    return agent.optimizer.param_groups[0]["lr"]


def clip_range(update, num_updates, initial):
    return PPO_CFG(ratio_clip=initial).ratio_clip


def minibatches(batch_size, num_minibatches, epochs):
    memory = RandomMemory(memory_size=batch_size // 4, num_envs=4, device="cpu")
    memory.create_tensor(name="rows", size=1, dtype=torch.float32)
    for rows in torch.arange(batch_size, dtype=torch.float32).view(-1, 4, 1):
        memory.add_samples(rows=rows)
    epochs_rows = []
    for _ in range(epochs):
        batches = memory.sample(["rows"], batch_size=len(memory), mini_batches=num_minibatches)
        epochs_rows.append([rows[:, 0].numpy() for (rows,) in batches])
    return np.array(epochs_rows)


# Initial weights: the models of its instantiators


def layers(model):
    linear = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    return [(x.weight.detach().numpy(), x.bias.detach().numpy()) for x in linear]


def instantiate(make, output, obs_size, action_space, **settings):
    network = [{"name": "net", "input": "OBSERVATIONS", "layers": [64, 64], "activations": "tanh"}]
    space = gym.spaces.Box(-1, 1, (obs_size,))
    spaces = {"observation_space": space, "action_space": action_space, "device": "cpu"}
    model = make(network=network, output=output, **spaces, **settings)
    model.init_state_dict(role="policy")
    return model


def initial_weights(obs_size, num_actions):
    space = gym.spaces.Discrete(num_actions)
    policy = instantiate(categorical_model, "ACTIONS", obs_size, space)
    value = instantiate(deterministic_model, "ONE", obs_size, space)
    return layers(policy), layers(value)


def initial_weights_continuous(obs_size, action_size):
    space = gym.spaces.Box(-1, 1, (action_size,))
    policy = instantiate(gaussian_model, "ACTIONS", obs_size, space)
    value = instantiate(deterministic_model, "ONE", obs_size, space)
    return layers(policy), layers(value), policy.log_std_parameter.detach().numpy()


# Normalisation: its scaler, fed step by step (PPO itself feeds it in the first epoch of an update)


def normalize_observations(observations):
    scaler = RunningStandardScaler(size=observations.shape[2], device="cpu")
    return np.stack([scaler(torch.tensor(rows), train=True).numpy() for rows in observations])


# Distributions and actions


class Policy(Model):
    """A model whose outputs are given."""

    def __init__(self, outputs, action_space, **more):
        space = gym.spaces.Box(-1, 1, (1,))
        Model.__init__(self, observation_space=space, action_space=action_space, device="cpu")
        self.outputs = outputs

    def compute(self, inputs, role):
        return self.outputs

    def evaluate(self, actions):
        _, outputs = self.act({"taken_actions": torch.tensor(actions)}, role="policy")
        entropies = self.get_entropy(role="policy")
        return outputs["log_prob"].numpy()[:, 0], entropies.numpy().reshape(len(actions), -1)


class Gaussian(GaussianMixin, Policy):
    def __init__(self, means, logstds, action_space, **more):
        Policy.__init__(
            self, (torch.tensor(means), {"log_std": torch.tensor(logstds)}), action_space
        )
        GaussianMixin.__init__(self, **more)


class Categorical(CategoricalMixin, Policy):
    def __init__(self, logits):
        Policy.__init__(self, (torch.tensor(logits), {}), gym.spaces.Discrete(logits.shape[1]))
        CategoricalMixin.__init__(self)


class MultiCategorical(MultiCategoricalMixin, Policy):
    def __init__(self, logits):
        joined = torch.tensor(np.concatenate(logits, axis=1))
        space = gym.spaces.MultiDiscrete([x.shape[1] for x in logits])
        Policy.__init__(self, (joined, {}), space)
        MultiCategoricalMixin.__init__(self)


def categorical(logits, actions):
    logprobs, entropies = Categorical(logits).evaluate(actions[:, None])
    return logprobs, entropies[:, 0]


def multidiscrete(logits, actions):
    logprobs, entropies = MultiCategorical(logits).evaluate(actions)
    return logprobs, entropies[:, 0]


def gaussian(means, logstds, actions):
    space = gym.spaces.Box(-np.inf, np.inf, means.shape[1:])
    logprobs, entropies = Gaussian(means, logstds, space).evaluate(actions)
    return logprobs, entropies[:, 0]


def gaussian_samples(means, logstds, count):
    space = gym.spaces.Box(-np.inf, np.inf, means.shape)
    policy = Gaussian(np.tile(means, (count, 1)), logstds, space)
    return policy.act({}, role="policy")[0].numpy()


def actions(sampled, low, high):
    # A deviation of almost 0, so that what is drawn is known
    logstds = np.full(len(low), -20, dtype)
    policy = Gaussian(sampled, logstds, gym.spaces.Box(low, high), clip_actions=OFFICIAL)
    drawn = policy.act({}, role="policy")[0].numpy()
    return drawn, drawn  # its trainer hands the same to the environment and to the memory
