"""A whole PPO in plain NumPy, row by row: an adapter that shows what each function has to do.

python details/check.py details/adapters/plain.py
"""

import numpy as np

dtype = np.float64

# Advantages


def gae(rewards, values, dones, next_value, gamma, gae_lambda):
    advantages = np.zeros_like(rewards)
    following, advantage = next_value, np.zeros_like(next_value)
    for t in range(len(rewards) - 1, -1, -1):
        goes_on = 1 - dones[t]
        delta = rewards[t] + gamma * goes_on * following - values[t]
        advantage = delta + gamma * gae_lambda * goes_on * advantage
        advantages[t] = advantage
        following = values[t]
    targets = advantages + values
    return advantages, targets


def gae_truncated(
    rewards, values, terminated, truncated, final_values, next_value, gamma, gae_lambda
):
    dones = np.maximum(terminated, truncated)
    return gae(rewards, values, dones, next_value, gamma, gae_lambda)[0]


def normalize(x):
    return (x - x.mean()) / (x.std() + 1e-8)


def normalize_advantages(advantages, minibatches):
    return np.stack([normalize(advantages[rows]) for rows in minibatches])


# The loss and its derivatives


def loss(
    logprobs,
    old_logprobs,
    advantages,
    values,
    old_values,
    returns,
    entropies,
    clip_coef,
    ent_coef,
    vf_coef,
):
    ratio = np.exp(logprobs - old_logprobs)
    near_one = np.clip(ratio, 1 - clip_coef, 1 + clip_coef)
    policy_loss = -np.mean(np.minimum(ratio * advantages, near_one * advantages))
    near_old = old_values + np.clip(values - old_values, -clip_coef, clip_coef)
    errors = np.maximum((values - returns) ** 2, (near_old - returns) ** 2)
    value_loss = np.mean(errors) / 2
    return policy_loss - ent_coef * entropies.mean() + vf_coef * value_loss


def loss_gradients(
    logprobs,
    old_logprobs,
    advantages,
    values,
    old_values,
    returns,
    entropies,
    clip_coef,
    ent_coef,
    vf_coef,
):
    rows = len(logprobs)
    ratio = np.exp(logprobs - old_logprobs)
    too_far = np.where(advantages > 0, ratio > 1 + clip_coef, ratio < 1 - clip_coef)
    of_logprobs = np.where(too_far, 0, -advantages * ratio) / rows
    near_old = old_values + np.clip(values - old_values, -clip_coef, clip_coef)
    clipped_is_worse = (near_old - returns) ** 2 > (values - returns) ** 2
    moved_far = np.abs(values - old_values) > clip_coef
    of_values = np.where(clipped_is_worse & moved_far, 0, vf_coef * (values - returns)) / rows
    return of_logprobs, of_values, np.full_like(entropies, -ent_coef / rows)


# Debug variables


def approx_kl(logprobs, old_logprobs):
    return 0.5 * np.mean((logprobs - old_logprobs) ** 2)


def clip_fraction(logprobs, old_logprobs, clip_coef):
    return np.mean(np.abs(np.exp(logprobs - old_logprobs) - 1) > clip_coef)


def explained_variance(values, returns):
    return 1 - np.var(returns - values) / np.var(returns)


def epochs_before_stop(kls, target_kl):
    epoch = 0
    for row in kls:
        epoch += 1
        if row.mean() > 1.5 * target_kl:
            break
    return epoch


# The optimiser, the schedules and the minibatches


def optimizer_steps(parameters, gradients, learning_rate, max_grad_norm):
    parameters = [x.copy() for x in parameters]
    m = [np.zeros_like(x) for x in parameters]
    v = [np.zeros_like(x) for x in parameters]
    for t, step in enumerate(gradients, start=1):
        norm = np.sqrt(sum(np.sum(g**2) for g in step))
        scales = [min(1.0, max_grad_norm / norm)] * len(step)
        rate = learning_rate * np.sqrt(1 - 0.999**t) / (1 - 0.9**t)
        epsilon = 1e-5
        for i, (g, scale) in enumerate(zip(step, scales, strict=True)):
            m[i] = 0.9 * m[i] + 0.1 * (scale * g)
            v[i] = 0.999 * v[i] + 0.001 * (scale * g) ** 2
            parameters[i] -= (rate * m[i] / (np.sqrt(v[i]) + epsilon)).astype(g.dtype)
    return parameters


def learning_rate(update, num_updates, initial):
    return initial * (num_updates - update) / num_updates


def clip_range(update, num_updates, initial):
    return initial


def minibatches(batch_size, num_minibatches, epochs):
    rng = np.random.default_rng(1)
    rows = [rng.permutation(batch_size) for _ in range(epochs)]
    return np.reshape(rows, (epochs, num_minibatches, -1))


def sequence_minibatches(num_steps, num_envs, num_minibatches):
    rows = np.arange(num_steps * num_envs).reshape(num_steps, num_envs)
    groups = np.random.default_rng(1).permutation(num_envs).reshape(num_minibatches, -1)
    return np.stack([rows[:, envs] for envs in groups])


# Initial weights


def orthogonal(size_in, size_out, gain):
    x = np.random.default_rng().normal(size=(max(size_in, size_out), min(size_in, size_out)))
    q = np.linalg.qr(x)[0]
    return gain * (q if size_in >= size_out else q.T)


def layer(size_in, size_out, gain):
    return orthogonal(size_in, size_out, gain), np.zeros(size_out)


def network(obs_size, outputs, gain):
    hidden = 2**0.5
    return [layer(obs_size, 64, hidden), layer(64, 64, hidden), layer(64, outputs, gain)]


def initial_weights(obs_size, num_actions):
    policy = network(obs_size, num_actions, 0.01)
    value = network(obs_size, 1, 1.0)
    return policy, value


def initial_weights_continuous(obs_size, action_size):
    policy, value = initial_weights(obs_size, action_size)
    logstd = np.zeros(action_size)
    return policy, value, logstd


def initial_lstm():
    input_weights = orthogonal(64, 4 * 32, 1.0)
    hidden_weights = orthogonal(32, 4 * 32, 1.0)
    biases = [np.zeros(4 * 32)]
    state = np.zeros((2, 32))
    return input_weights, hidden_weights, biases, state


# Normalisation


class Running:
    """Mean and variance of all rows that were counted, and of a prior that weighs 1e-4 of a row."""

    def __init__(self):
        self.count, self.sum, self.squares = 1e-4, 0.0, 1e-4

    def add(self, rows):
        rows = rows.astype(np.float64)
        self.count += len(rows)
        self.sum = self.sum + rows.sum(axis=0)
        self.squares = self.squares + (rows**2).sum(axis=0)

    def moments(self):
        mean = self.sum / self.count
        return mean, self.squares / self.count - mean**2


def normalize_observations(observations):
    running = Running()
    results = []
    for rows in observations:
        running.add(rows)
        mean, var = running.moments()
        results.append(np.clip((rows - mean) / np.sqrt(var + 1e-8), -10, 10))
    return np.stack(results)


def normalize_rewards(rewards, dones, gamma):
    running = Running()
    returns = np.zeros(rewards.shape[1])
    results = []
    for row, done in zip(rewards, dones, strict=True):
        returns = gamma * returns + row
        running.add(returns)
        _, var = running.moments()
        results.append(np.clip(row / np.sqrt(var + 1e-8), -10, 10))
        returns[done == 1] = 0
    return np.stack(results)


# Distributions and actions


def softmax(logits):
    x = np.exp(logits - logits.max(axis=1, keepdims=True))
    return x / x.sum(axis=1, keepdims=True)


def entropy(probabilities):
    logs = np.log(np.where(probabilities > 0, probabilities, 1))
    return -np.sum(probabilities * logs, axis=1)


def categorical(logits, actions):
    probabilities = softmax(logits)
    taken = probabilities[np.arange(len(actions)), actions]
    return np.log(taken), entropy(probabilities)


def masked_categorical(logits, mask, actions):
    allowed = np.where(mask, logits, -np.inf)
    probabilities = softmax(allowed)
    taken = probabilities[np.arange(len(actions)), actions]
    return probabilities, np.log(np.maximum(taken, 1e-30)), entropy(probabilities)


def multidiscrete(logits, actions):
    pairs = [categorical(x, actions[:, i]) for i, x in enumerate(logits)]
    logprobs, entropies = zip(*pairs, strict=True)
    return sum(logprobs), sum(entropies)


def gaussian(means, logstds, actions):
    stds = np.exp(logstds)
    densities = np.exp(-((actions - means) ** 2) / (2 * stds**2)) / np.sqrt(2 * np.pi * stds**2)
    entropies = np.tile(0.5 * np.log(2 * np.pi * np.e * stds**2), (len(means), 1))
    return np.log(densities).sum(axis=1), entropies.sum(axis=1)


def gaussian_samples(means, logstds, count):
    noise = np.random.default_rng(1).normal(size=(count, len(means)))
    return means + np.exp(logstds) * noise


def actions(sampled, low, high):
    taken = np.minimum(np.maximum(sampled, low), high)
    stored = sampled
    return taken, stored


# The recurrent network


def sigmoid(x):
    return 0.5 + 0.5 * np.tanh(x / 2)


def lstm_rollout(inputs, starts, hidden, cell, input_weights, hidden_weights, bias):
    outputs = []
    for t in range(len(inputs)):
        begins = starts[t] == 1
        hidden, cell = hidden.copy(), cell.copy()
        hidden[begins] = cell[begins] = 0
        gates = inputs[t] @ input_weights.T + hidden @ hidden_weights.T + bias
        size = hidden.shape[1]
        i, f = sigmoid(gates[:, :size]), sigmoid(gates[:, size : 2 * size])
        g, o = np.tanh(gates[:, 2 * size : 3 * size]), sigmoid(gates[:, 3 * size :])
        cell = f * cell + i * g
        hidden = o * np.tanh(cell)
        outputs.append(hidden)
    return np.stack(outputs)


def lstm_training(inputs, starts, hidden, cell, after, input_weights, hidden_weights, bias):
    first = hidden, cell
    return lstm_rollout(inputs, starts, *first, input_weights, hidden_weights, bias)
