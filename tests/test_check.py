"""The checker for other people's PPO: names every known variant, and raises no false alarm.

The correct PPO is details/adapters/plain.py, in NumPy and row by row; mistakes are planted in its text.
"""

import importlib.util
import json
import subprocess
import sys
import types
import zipfile
from pathlib import Path

import msgspec
import numpy as np
import ppo_check
import pytest
from ppo_check import forms
from ppo_check.parts import PARTS, load

ROOT = Path(__file__).resolve().parents[1]
DETAILS = ROOT / "details"
PLAIN = (DETAILS / "adapters" / "plain.py").read_text(encoding="utf-8")
# Part, the catalogue's name, and what makes plain.py so. Where two names follow, both are found.
PLANTED = [
    ("gae", "Core 5: without", "gamma * gae_lambda * goes_on", "gamma * goes_on"),
    (
        "gae",
        "Core 5: the sum runs on past the end of an episode",
        "gae_lambda * goes_on * advantage",
        "gae_lambda * advantage",
    ),
    (
        "gae",
        "Core 5: the value of the next episode's first observation is bootstrapped through an end",
        "gamma * goes_on * following",
        "gamma * following",
    ),
    (
        "gae",
        "Core 5: the flag of an episode's end counts one step late",
        "goes_on = 1 - dones[t]",
        "goes_on = 1 - dones[t - 1] if t else np.ones_like(next_value)",
    ),
    (
        "gae",
        "Core 5: nothing stands for what follows the rollout",
        "following, advantage = next_value,",
        "following, advantage = 0 * next_value,",
    ),
    (
        "gae",
        "Core 5: the rollout is bootstrapped from its last observation instead of the next one",
        "following, advantage = next_value,",
        "following, advantage = values[-1],",
    ),
    (
        "gae",
        "Core 5: the value targets are those of the step after",
        "advantages + values",
        "advantages + np.append(values[1:], next_value[None], axis=0)",
    ),
    (
        "gae_truncated",
        "Core 5: the sum runs on past a time limit",
        "dones = np.maximum(terminated, truncated)",
        "dones = terminated",
    ),
    *[
        (
            "gae_truncated",
            name,
            "    dones = np.maximum(terminated, truncated)\n",
            f"    dones = np.maximum(terminated, truncated)\n    rewards = rewards + {bonus}\n",
        )
        for name, bonus in [
            (
                "Core 5: time limits are bootstrapped from the final observation",
                "gamma * truncated * (1 - terminated) * final_values",
            ),
            (
                "Core 5: the final observation of a time limit is taken from the next episode",
                "gamma * truncated * (1 - terminated)"
                " * np.append(values[1:], next_value[None], axis=0)",
            ),
            (
                "Core 5: true ends are bootstrapped like time limits",
                "gamma * dones * final_values",
            ),
            (
                "Core 5: an end that is also a time limit is bootstrapped",
                "gamma * truncated * final_values",
            ),
            (
                "Core 5: the value of a final observation is not discounted",
                "truncated * (1 - terminated) * final_values",
            ),
        ]
    ],
    ("normalize_advantages", "Core 7: without", "normalize(advantages[rows])", "advantages[rows]"),
    (
        "normalize_advantages",
        "Core 7: the advantages are normalised over the whole batch",
        "normalize(advantages[rows])",
        "normalize(advantages)[rows]",
    ),
    (
        "normalize_advantages",
        "Core 7: the advantages are divided by the sample standard deviation",
        "x.std()",
        "x.std(ddof=1)",
    ),
    (
        "normalize_advantages",
        "Core 7: the advantages keep their mean",
        "(x - x.mean()) /",
        "x /",
    ),
    (
        "normalize_advantages",
        "Core 7: nothing is added to the standard deviation",
        "(x.std() + 1e-8)",
        "x.std()",
    ),
    (
        "normalize_advantages",
        "Core 7: the standard deviation counts as 1e-6 at least",
        "(x.std() + 1e-8)",
        "max(x.std(), 1e-6)",
    ),
    (
        "loss",
        "Core 7: the advantages are divided by the sample standard deviation",
        "    ratio = np.exp(logprobs - old_logprobs)\n    near_one",
        "    advantages = advantages / (advantages.std(ddof=1) + 1e-8)\n"
        "    ratio = np.exp(logprobs - old_logprobs)\n    near_one",
    ),
    (
        "loss",
        "Core 8: without",
        "np.minimum(ratio * advantages, near_one * advantages)",
        "ratio * advantages",
    ),
    (
        "loss",
        "Core 8: the better of the clipped and the unclipped objective counts",
        "np.minimum(ratio * advantages",
        "np.maximum(ratio * advantages",
    ),
    (
        "loss",
        "Core 8: the clipped objective alone counts, so that a policy that has gone too far is not called back",
        "np.minimum(ratio * advantages, near_one * advantages)",
        "near_one * advantages",
    ),
    (
        "loss",
        "Core 8: the ratio is clipped from above only",
        "np.clip(ratio, 1 - clip_coef,",
        "np.clip(ratio, None,",
    ),
    (
        "loss",
        "Core 8: the log-ratio is upside down",
        "    ratio = np.exp(logprobs - old_logprobs)\n    near_one",
        "    ratio = np.exp(old_logprobs - logprobs)\n    near_one",
    ),
    (
        "loss",
        "Core 9: without",
        "np.maximum((values - returns) ** 2, (near_old - returns) ** 2)",
        "(values - returns) ** 2",
    ),
    (
        "loss",
        "Core 9: the smaller of the clipped and the unclipped value error counts",
        "np.maximum((values",
        "np.minimum((values",
    ),
    *[
        (
            "loss",
            name,
            "    near_old = old_values + np.clip(values - old_values, -clip_coef, clip_coef)\n    errors",
            f"    near_old = {near}\n    errors",
        )
        for name, near in [
            (
                "Core 9: the value is clipped around the new prediction",
                "values + np.clip(old_values - values, -clip_coef, clip_coef)",
            ),
            (
                # Not to be told from a loss without a clip: its error is never the larger one.
                "Core 9: without",
                "returns + np.clip(values - returns, -clip_coef, clip_coef)",
            ),
        ]
    ],
    (
        "loss",
        "Core 9: the clipped value error alone counts",
        "np.maximum((values - returns) ** 2, (near_old - returns) ** 2)",
        "(near_old - returns) ** 2",
    ),
    (
        "loss",
        "Core 10: the value loss is smooth L1",
        "    errors = np.maximum((values - returns) ** 2, (near_old - returns) ** 2)\n",
        "    errors = np.maximum(abs(values - returns), abs(near_old - returns))\n"
        "    errors = np.where(errors < 1, errors**2, 2 * errors - 1)\n",
    ),
    (
        "loss",
        "Core 10: the entropy has the wrong sign, so that certainty is rewarded",
        "policy_loss - ent_coef",
        "policy_loss + ent_coef",
    ),
    ("loss", "Core 10: the value loss has no weight", "+ vf_coef * value_loss", "+ value_loss"),
    (
        "loss",
        "Core 10: the value loss is the whole squared error instead of its half",
        "np.mean(errors) / 2",
        "np.mean(errors)",
    ),
    ("loss_gradients", "Core 8: without", "np.where(too_far, 0, -adv", "np.where(False, 0, -adv"),
    (
        "loss_gradients",
        "Core 8: the clipped objective alone counts, so that a policy that has gone too far is not called back",
        "np.where(advantages > 0, ratio > 1 + clip_coef, ratio < 1 - clip_coef)",
        "abs(ratio - 1) > clip_coef",
    ),
    (
        "loss_gradients",
        "Core 8: the better of the clipped and the unclipped objective counts",
        "np.where(advantages > 0,",
        "np.where(advantages < 0,",
    ),
    (
        "loss_gradients",
        "Core 8: the ratio is clipped from above only",
        "ratio > 1 + clip_coef, ratio < 1 - clip_coef",
        "ratio > 1 + clip_coef, False",
    ),
    (
        "loss_gradients",
        "Core 9: without",
        "np.where(clipped_is_worse & moved_far,",
        "np.where(False,",
    ),
    (
        "loss_gradients",
        "Core 9: the clipped value error alone counts",
        "clipped_is_worse & moved_far",
        "moved_far",
    ),
    (
        "loss_gradients",
        "Core 9: the smaller of the clipped and the unclipped value error counts",
        "clipped_is_worse & moved_far",
        "~clipped_is_worse & moved_far",
    ),
    ("loss_gradients", "Core 10: the value loss has no weight", "0, vf_coef * (", "0, ("),
    (
        "loss_gradients",
        "Core 10: the value loss is the whole squared error instead of its half",
        "0, vf_coef * (",
        "0, 2 * vf_coef * (",
    ),
    (
        "loss_gradients",
        "Core 10: the entropy has the wrong sign, so that certainty is rewarded",
        "-ent_coef / rows",
        "ent_coef / rows",
    ),
    *[
        ("approx_kl", name, "0.5 * np.mean((logprobs - old_logprobs) ** 2)", kl)
        for name, kl in [
            (
                "Core 12: the approximate KL has the wrong sign",
                "np.mean(logprobs - old_logprobs)",
            ),
            (
                "Core 12: the approximate KL is that of new to old policy",
                "np.mean(np.exp(logprobs - old_logprobs) * (logprobs - old_logprobs))",
            ),
            (
                "Core 12: the approximate KL is the mean of ratio - 1 - log ratio",
                "np.mean(np.exp(logprobs - old_logprobs) - 1 - (logprobs - old_logprobs))",
            ),
            (
                "Core 12: the approximate KL is the mean of old minus new log-probability",
                "np.mean(old_logprobs - logprobs)",
            ),
        ]
    ],
    (
        "explained_variance",
        "Core 12: the explained variance is that of the values themselves",
        "np.var(returns - values)",
        "np.var(values)",
    ),
    ("epochs_before_stop", "Aux 3: the threshold is never reached", "if row.mean() >", "if 0 >"),
    (
        "epochs_before_stop",
        "Aux 3: the KL is that of the epoch's last minibatch",
        "row.mean()",
        "row[-1]",
    ),
    (
        "epochs_before_stop",
        "Aux 3: the KL is the mean of all epochs so far",
        "row.mean()",
        "kls[:epoch].mean()",
    ),
    (
        "epochs_before_stop",
        "Aux 3: the threshold is target_kl itself",
        "1.5 * target_kl",
        "target_kl",
    ),
    (
        "optimizer_steps",
        "Core 3: without",
        "epsilon = 1e-5",
        "epsilon = 1e-8 * (1 - 0.999**t) ** 0.5",
    ),
    (
        "optimizer_steps",
        "Core 3: Adam's epsilon of 1e-5 is added after the bias correction",
        "epsilon = 1e-5",
        "epsilon = 1e-5 * (1 - 0.999**t) ** 0.5",
    ),
    (
        "optimizer_steps",
        "Core 3: Adam's epsilon is 1e-8, before the bias correction",
        "epsilon = 1e-5",
        "epsilon = 1e-8",
    ),
    ("optimizer_steps", "Core 11: without", "min(1.0, max_grad_norm / norm)", "1.0"),
    (
        "optimizer_steps",
        "Core 11: the gradient of each parameter is clipped by its own norm",
        "[min(1.0, max_grad_norm / norm)] * len(step)",
        "[min(1.0, max_grad_norm / np.linalg.norm(g)) for g in step]",
    ),
    (
        "learning_rate",
        "Core 4: without",
        "initial * (num_updates - update) / num_updates",
        "initial",
    ),
    (
        "learning_rate",
        "Core 4: the learning rate is already lowered before the first update",
        "(num_updates - update)",
        "(num_updates - update - 1)",
    ),
    (
        "clip_range",
        "Aux 1: the clip range falls with the learning rate, unasked",
        "    return initial\n",
        "    return initial * (1 - update / num_updates)\n",
    ),
    ("minibatches", "Core 6: without", "rng.permutation(batch_size)", "np.arange(batch_size)"),
    (
        "minibatches",
        "Core 6: all epochs have the same minibatches",
        "[rng.permutation(batch_size) for _ in range(epochs)]",
        "[rng.permutation(batch_size)] * epochs",
    ),
    (
        "minibatches",
        "Core 6: rows are drawn with replacement",
        "rng.permutation(batch_size)",
        "rng.integers(batch_size, size=batch_size)",
    ),
    (
        "sequence_minibatches",
        "LSTM 4: without",
        "return np.stack([rows[:, envs] for envs in groups])",
        "rows = np.random.default_rng(1).permutation(rows.flatten())\n"
        "    return rows.reshape(num_minibatches, num_steps, -1)",
    ),
    (
        "sequence_minibatches",
        "LSTM 4: the rows of a minibatch lie environment by environment, while the LSTM takes them step by step",
        "rows[:, envs] for",
        "rows[:, envs].T.reshape(num_steps, -1) for",
    ),
    (
        "initial_weights",
        "Core 2: without",
        "return orthogonal(size_in, size_out, gain), np.zeros(size_out)",
        "rng = np.random.default_rng()\n"
        "    return [rng.uniform(-1, 1, x) / size_in**0.5 for x in [(size_in, size_out), size_out]]",
    ),
    (
        "initial_weights",
        "Core 2: the gain of hidden layers is 1",
        "hidden = 2**0.5",
        "hidden = 1.0",
    ),
    (
        "initial_weights",
        "Core 2: the gain of the policy's last layer is 1",
        "network(obs_size, num_actions, 0.01)",
        "network(obs_size, num_actions, 1.0)",
    ),
    (
        "initial_weights",
        "Core 13: without",
        "network(obs_size, 1, 1.0)",
        "[*policy[:2], layer(64, 1, 1.0)]",
    ),
    (
        "initial_weights_continuous",
        "Continuous 4: without",
        "network(obs_size, 1, 1.0)",
        "[*policy[:2], layer(64, 1, 1.0)]",
    ),
    ("initial_weights_continuous", "Continuous 2: without", "np.zeros(action_size)", "None"),
    (
        "initial_weights_continuous",
        "Continuous 2: the initial standard deviation is 0.6",
        "np.zeros(action_size)",
        "np.full(action_size, -0.5)",
    ),
    (
        "initial_lstm",
        "LSTM 1: without",
        "    biases = [np.zeros(4 * 32)]\n",
        "    rng, size = np.random.default_rng(), 32**-0.5\n"
        "    input_weights, hidden_weights = (rng.uniform(-size, size, (128, n)) for n in (64, 32))\n"
        "    biases = [rng.uniform(-size, size, 4 * 32)]\n",
    ),
    (
        "initial_lstm",
        "LSTM 1: the gain of the recurrent weights is sqrt(2)",
        "orthogonal(32, 4 * 32, 1.0)",
        "orthogonal(32, 4 * 32, 2**0.5)",
    ),
    (
        "initial_lstm",
        "LSTM 1: the weights of the inputs are PyTorch's",
        "orthogonal(64, 4 * 32, 1.0)",
        "np.random.default_rng().uniform(-(32**-0.5), 32**-0.5, (128, 64))",
    ),
    (
        "initial_lstm",
        "LSTM 1: two biases learn, so that their sum moves twice as far",
        "[np.zeros(4 * 32)]",
        "[np.zeros(4 * 32)] * 2",
    ),
    (
        "initial_lstm",
        "LSTM 2: without",
        "np.zeros((2, 32))",
        "np.random.default_rng().normal(size=(2, 32))",
    ),
    (
        "initial_lstm",
        "LSTM 2: the first state is all ones",
        "np.zeros((2, 32))",
        "np.ones((2, 32))",
    ),
    (
        "normalize_observations",
        "Continuous 6: without",
        "np.clip((rows - mean) / np.sqrt(var + 1e-8), -10, 10)",
        "np.clip(rows, -10, 10)",
    ),
    (
        "normalize_observations",
        "Continuous 6: observations are clipped before they are counted",
        "        running.add(rows)\n        mean",
        "        running.add(rows.clip(-10, 10))\n        mean",
    ),
    (
        "normalize_observations",
        "Continuous 6: observations are normalised by what was seen before them",
        "        running.add(rows)\n        mean, var = running.moments()\n",
        "        mean, var = running.moments()\n        running.add(rows)\n",
    ),
    (
        "normalize_observations",
        "Continuous 6: the statistics are those of the first environment",
        "        running.add(rows)\n        mean",
        "        running.add(rows[:1])\n        mean",
    ),
    (
        "normalize_observations",
        "Continuous 6: the spread between batches is missing from the variance",
        "        self.squares = self.squares + (rows**2).sum(axis=0)\n",
        # So that the variance is the mean of the batches' own ones
        "        self.within = getattr(self, 'within', 1e-4) + ((rows - rows.mean(axis=0))**2).sum(axis=0)\n"
        "        self.squares = self.within + self.sum**2 / self.count\n",
    ),
    (
        "normalize_observations",
        "Continuous 6: the statistics are kept in float32",
        "        mean, var = running.moments()\n",
        "        mean, var = (np.float32(x).astype(float) for x in running.moments())\n",
    ),
    (
        "normalize_observations",
        "Continuous 6: the statistics begin with the weight of a whole row",
        "= 1e-4, 0.0, 1e-4",
        "= 1, 0.0, 1",
    ),
    (
        "normalize_observations",
        "Continuous 7: without",
        "np.clip((rows - mean) / np.sqrt(var + 1e-8), -10, 10)",
        "(rows - mean) / np.sqrt(var + 1e-8)",
    ),
    (
        "normalize_observations",
        "Continuous 7: observations are clipped at 5",
        "np.clip((rows - mean) / np.sqrt(var + 1e-8), -10, 10)",
        "np.clip((rows - mean) / np.sqrt(var + 1e-8), -5, 5)",
    ),
    (
        "normalize_rewards",
        "Continuous 8: without",
        "np.clip(row / np.sqrt(var + 1e-8), -10, 10)",
        "np.clip(row, -10, 10)",
    ),
    (
        "normalize_rewards",
        "Continuous 8: rewards are divided by their own standard deviation instead of the return's",
        "running.add(returns)",
        "running.add(row)",
    ),
    (
        "normalize_rewards",
        "Continuous 8: rewards are centred",
        "np.clip(row / np",
        "np.clip((row - running.moments()[0]) / np",
    ),
    (
        "normalize_rewards",
        "Continuous 8: the discounted return runs on past an end",
        "        returns[done == 1] = 0\n",
        "",
    ),
    (
        "normalize_rewards",
        "Continuous 8: the discounted return is reset before it is counted",
        "        running.add(returns)\n",
        "        returns[done == 1] = 0\n        running.add(returns)\n",
    ),
    (
        "normalize_rewards",
        "Continuous 8: the return is that of the first environment",
        "running.add(returns)",
        "running.add(returns[:1])",
    ),
    (
        "normalize_rewards",
        "Continuous 8: the return is not discounted",
        "returns = gamma * returns + row",
        "returns = returns + row",
    ),
    (
        "normalize_rewards",
        "Continuous 9: without",
        "np.clip(row / np.sqrt(var + 1e-8), -10, 10)",
        "row / np.sqrt(var + 1e-8)",
    ),
    (
        "categorical",
        "the entropy lacks its minus",
        "return -np.sum(probabilities * logs",
        "return np.sum(probabilities * logs",
    ),
    ("masked_categorical", "Aux 4: without", "np.where(mask, logits, -np.inf)", "logits"),
    (
        "masked_categorical",
        "Aux 4: the mask is upside down",
        "np.where(mask, logits, -np.inf)",
        "np.where(mask, -1e8, logits)",
    ),
    (
        "masked_categorical",
        "Aux 4: invalid actions are only unlikely",
        "np.where(mask, logits, -np.inf)",
        "np.where(mask, logits, -10)",
    ),
    (
        "multidiscrete",
        "MultiDiscrete 1: the entropy is that of the first component",
        "sum(entropies)",
        "entropies[0]",
    ),
    (
        "multidiscrete",
        "MultiDiscrete 1: the entropy is averaged over components",
        "sum(entropies)",
        "np.mean(entropies, axis=0)",
    ),
    (
        "gaussian",
        "Continuous 3: the log-probability is averaged over components",
        "np.log(densities).sum(axis=1)",
        "np.log(densities).mean(axis=1)",
    ),
    (
        "gaussian",
        "Continuous 3: the entropy is averaged over components",
        "entropies.sum(axis=1)",
        "entropies.mean(axis=1)",
    ),
    (
        "gaussian_samples",
        "Continuous 1: actions are drawn with the variance in place of the standard deviation",
        "np.exp(logstds) * noise",
        "np.exp(2 * logstds) * noise",
    ),
    (
        "gaussian_samples",
        "Continuous 1: the noise of actions is uniform",
        ".normal(size=(count, len(means)))",
        ".uniform(size=(count, len(means)))",
    ),
    (
        "gaussian_samples",
        "Continuous 3: all components share the same noise",
        ".normal(size=(count, len(means)))",
        ".normal(size=(count, 1))",
    ),
    (
        "actions",
        "Continuous 5: without",
        "np.minimum(np.maximum(sampled, low), high)",
        "sampled",
    ),
    (
        "actions",
        "Continuous 5: the learner gets the clipped action",
        "stored = sampled",
        "stored = taken",
    ),
    (
        "lstm_rollout",
        "LSTM 3: the rollout ignores the ends of episodes",
        "begins = starts[t] == 1",
        "begins = starts[t] == 2",
    ),
    (
        "lstm_rollout",
        "LSTM 3: the state is reset one step late",
        "begins = starts[t] == 1",
        "begins = starts[max(t - 1, 0)] == 1",
    ),
    (
        "lstm_training",
        "LSTM 3: training ignores the ends of episodes",
        "return lstm_rollout(inputs, starts,",
        "return lstm_rollout(inputs, 0 * starts,",
    ),
    ("lstm_training", "LSTM 5: without", "first = hidden, cell", "first = 0 * hidden, 0 * cell"),
    (
        "lstm_training",
        "LSTM 5: training begins with the state after the rollout",
        "first = hidden, cell",
        "first = after",
    ),
]
# What happens in a loop that the checker does not see, or in a network that it does not run
NOT_SEEN = {
    "Core 1: the step that resets an environment is a row of the batch": "the rollout",
    "Core 1: every rollout begins with a reset": "the rollout",
    "Core 1: all environments have the same seed": "the rollout",
    "Core 12: the statistics of the last minibatch stand for the whole update": "the log",
    "Core 9: the value is clipped around the return": "the same numbers as without a clip",
    "Atari 1: without": "the checker sets the number of no-ops",
    "Atari 1: at most 15 no-ops are taken": "the checker sets the number of no-ops",
    "Atari 3: 0 lives end the episode before the game does": "not in the recorded games",
    "Atari 3: a time limit does not reset the game": "not in the recorded games",
    "Atari 3: the lives are those of before the reset": "not in the recorded games",
    "Atari 3: the returns that are reported are those of single lives": "the log",
    "Atari 4: a time limit in the FIRE of a reset does not start anew": "not in the recorded games",
    "Atari 6: the returns that are reported are those of clipped rewards": "the log",
    "Atari 8: without": "the network",
    "Atari 8: the second convolution has half the filters": "the network",
    "Atari 8: no ReLU follows the dense layer": "the network",
    "Atari 9: without": "the network",
    "Continuous 6: final observations are not normalised": "the stream has none",
    "LSTM 3: without": "rollout and training each say so themselves",
    "Aux 2: without": "several processes",
    "Aux 2: each process stops early by its own KL": "several processes",
    "Aux 2: the processes stop early by the sum of their KLs": "several processes",
    "Aux 4: the mask is not used in training": "the learner",
    "Aux 4: training has the mask of the next row": "the learner",
    "Aux 4: masks are applied that were not asked for": "the learner",
}


def adapter(source: str, dtype: str, part: str | None = None) -> types.ModuleType:
    """Return plain.py, or a change of it, as an adapter in a precision; with a single part, if one is named."""
    module = types.ModuleType("adapter")
    exec(source.replace("dtype = np.float64", f"dtype = np.{dtype}"), module.__dict__)
    if part is None:
        return module
    return types.SimpleNamespace(dtype=np.dtype(dtype), **{part: getattr(module, part)})


def wrong(module) -> dict[str, ppo_check.Finding]:
    found, _ = ppo_check.check_adapter(module)
    assert found
    return {x.variant or x.what: x for x in found if x.verdict != "official"}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_correct_ppo_raises_no_alarm(dtype):
    found, missing = ppo_check.check_adapter(adapter(PLAIN, dtype))
    assert {x.verdict for x in found} == {"official"}
    assert missing == ["atari"]
    assert {x.part for x in found} == {part.name for part in PARTS} - {"atari"}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("part", "name", "old", "new"), PLANTED, ids=[f"{part}, {name}" for part, name, *_ in PLANTED]
)
@pytest.mark.filterwarnings("ignore:invalid value encountered in divide")
def test_a_planted_variant_is_named(part, name, old, new, dtype):
    assert PLAIN.count(old) == 1, PLAIN.count(old)
    found = wrong(adapter(PLAIN.replace(old, new), dtype, part))
    assert list(found) == [name]
    sound = tuple(name.split(": ", 1)) in forms.SOUND
    assert found[name].verdict == ("sound" if sound else "variant")
    assert found[name].why or found[name].detail == ""
    assert found[name].deviation is None or found[name].deviation > 0


def test_several_mistakes_are_all_named():
    source = PLAIN.replace("x.std()", "x.std(ddof=1)").replace(
        "normalize(advantages[rows])", "normalize(advantages)[rows]"
    )
    source = source.replace("epsilon = 1e-5", "epsilon = 1e-8").replace(
        "min(1.0, max_grad_norm / norm)", "1.0"
    )
    assert list(wrong(adapter(source, "float64"))) == [
        "Core 7: the advantages are normalised over the whole batch",
        "Core 7: the advantages are divided by the sample standard deviation",
        "Core 3: Adam's epsilon is 1e-8, before the bias correction",
        "Core 11: without",
    ]


@pytest.mark.parametrize(
    ("part", "edits", "names"),
    [
        (  # discounted sums of rewards, with nothing after the segment
            "gae",
            {
                "gamma * gae_lambda * goes_on": "gamma * goes_on",
                "following, advantage = next_value,": "following, advantage = 0 * next_value,",
            },
            ["Core 5: without", "Core 5: nothing stands for what follows the rollout"],
        ),
        (
            "normalize_advantages",
            {
                "x.std() + 1e-8": "x.std(ddof=1) + 1e-10",
                "normalize(advantages[rows])": "normalize(advantages)[rows]",
            },
            [
                "Core 7: the advantages are normalised over the whole batch",
                "Core 7: the advantages are divided by the sample standard deviation",
                "Core 7: 1e-10 is added to the standard deviation",
            ],
        ),
        (
            "loss",
            {
                "return policy_loss - ent_coef * entropies.mean() + vf_coef *": "return policy_loss + 2 *"
            },
            [
                "Core 10: the value loss has no weight",
                "Core 10: the value loss is the whole squared error instead of its half",
                "Core 10: there is no entropy bonus",
            ],
        ),
    ],
)
def test_several_mistakes_of_one_detail_are_all_named(part, edits, names):
    source = PLAIN
    for old, new in edits.items():
        assert source.count(old) == 1, old
        source = source.replace(old, new)
    assert list(wrong(adapter(source, "float64", part))) == names


def test_what_is_wrong_in_no_known_way_is_said_to_differ():
    source = PLAIN.replace("goes_on = 1 - dones[t]", "goes_on = 0.5")
    (found,) = wrong(adapter(source, "float64", "gae")).values()
    assert found.verdict == "differs"
    assert found.deviation > 0.1


# ---------------------------------------------------------------------------------------------------------------------
# Against the catalogue


def catalogue_names() -> set[str]:
    names = set()
    for label, detail in ppo_check.load_catalogue().items():
        if detail.removal is not None:
            names.add(f"{label}: without")
        names.update(f"{label}: {variant.name}" for variant in detail.variants)
    return names


def atari_names() -> list[str]:
    with np.load(DETAILS / "ppo_check" / "atari.npz") as file:
        return file["names"].tolist()


def test_every_variant_of_the_catalogue_is_planted_or_cannot_be_seen():
    planted = {name for _, name, *_ in PLANTED} | set(atari_names())
    assert not planted & set(NOT_SEEN)
    assert catalogue_names() <= planted | set(NOT_SEEN)
    assert set(NOT_SEEN) | set(atari_names()) <= catalogue_names()


def test_names_are_the_catalogues_or_are_explained_here():
    names = catalogue_names()
    for part in PARTS:
        for check in part.checks:
            for faults, _ in check.forms:
                for fault in faults:
                    known = f"{fault[0]}: {fault[1]}" in names or fault in forms.OTHERS
                    assert known or fault in forms.SOUND or not fault[0], fault
    for label, name in forms.SAME.items():
        assert f"{label[0]}: {name}" in names


# ---------------------------------------------------------------------------------------------------------------------
# Atari: the recordings are played back


def playback(source, name: str = "") -> types.SimpleNamespace:
    recording = load("atari")

    def atari(env_id, actions, noops):
        game = env_id.removesuffix("NoFrameskip-v4")
        means = source[f"{name}{game}/means"]
        stacks = np.broadcast_to(means[:, None, None, None], (601, 84, 84, 4)).copy()
        if not name:
            stacks[recording[f"{game}/keep"]] = recording[f"{game}/stacks"]
        return stacks, *(source[f"{name}{game}/{key}"] for key in ("rewards", "dones", "lives"))

    return types.SimpleNamespace(atari=atari)


def test_the_official_games_raise_no_alarm():
    found, _ = ppo_check.check_adapter(playback(load("atari")))
    assert {x.verdict for x in found} == {"official"}


def test_wrong_games_are_named():
    with np.load(DETAILS / "ppo_check" / "atari.npz") as file:
        variants = dict(file)
    for i, name in enumerate(variants["names"]):
        assert list(wrong(playback(variants, f"{i}/"))) == [name]
    recording = load("atari")
    recording["Pong/rewards"][40] += 1
    (found,) = wrong(playback(recording)).values()
    assert found.verdict == "differs"
    assert found.what == "in one of Atari 2 to 7 or several: Pong: rewards from step 40 on"


# ---------------------------------------------------------------------------------------------------------------------
# Our own scripts


@pytest.fixture(scope="module")
def scripts():
    path = DETAILS / "adapters" / "ppo37.py"
    spec = importlib.util.spec_from_file_location("ppo37_adapter", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    del module.atari  # played in test_official.py
    return module


def test_the_scripts_are_as_the_official_code(scripts):
    found, missing = ppo_check.check_adapter(scripts)
    assert {x.variant for x in found if x.verdict != "official"} == {
        "Core 12: the approximate KL is the mean of ratio - 1 - log ratio"
    }
    assert missing == ["explained_variance", "epochs_before_stop", "atari"]


# ---------------------------------------------------------------------------------------------------------------------
# The command


def run(*arguments, cwd=ROOT, command=(sys.executable, DETAILS / "check.py")):
    return subprocess.run([*command, *arguments], cwd=cwd, capture_output=True, text=True)


def write(tmp_path, text: str) -> str:
    path = tmp_path / "yours.py"
    path.write_text(text)
    return str(path)


def test_a_list_of_everything_fits_80_columns_and_names_all_parts():
    result = run("--list")
    assert result.returncode == 0
    assert max(map(len, result.stdout.splitlines())) <= 80
    for part in PARTS:
        assert f"\n{part.name}(" in f"\n{result.stdout}"


def test_the_template_runs_and_has_every_part(tmp_path):
    text = run("--template").stdout
    for part in PARTS:
        assert f"def {part.name}(" in text
    result = run(write(tmp_path, text))
    assert result.returncode == 1
    assert "nothing was checked" in result.stdout
    assert not result.stderr


WRONG_GAE = """
def gae(rewards, values, dones, next_value, gamma, gae_lambda):
    print("whatever the adapter prints")
    return 0 * rewards, values


def normalize_advantages(advantages, minibatches):
    return advantages[minibatches]
"""


def test_report_as_text_and_json_and_the_exit_code(tmp_path):
    path = write(tmp_path, WRONG_GAE)
    result = run(path)
    assert result.returncode == 1
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert "equals a known variant: without it: The advantages have the scale" in " ".join(
        result.stdout.split()
    )
    assert "details/core/#core-7" in result.stdout
    assert "whatever" not in result.stdout
    result = run(path, "--json")
    findings = json.loads(result.stdout)["findings"]
    assert [(x["detail"], x["verdict"]) for x in findings] == [
        ("Core 5", "differs"),
        ("Core 7", "variant"),
    ]
    assert findings[1]["official_code"] == [
        f"{ppo_check.OFFICIAL}ppo2/model.py#L139",
    ]
    found, _ = ppo_check.check_adapter(adapter(PLAIN, "float64", "gae"))
    assert ppo_check.report(found, []).splitlines()[:2] == [
        "gae",
        "  Core 5          as the official code",
    ]
    result = run(write(tmp_path, PLAIN.split("def gae_truncated")[0]))
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "def gae(rewards, **_):\n    return rewards[:, 0], rewards",
            "advantages has the shape (8,), expected (8, 3)",
        ),
        (
            "def gae(rewards, **_):\n    return rewards",
            "returned ndarray, expected 2 arrays: advantages (8, 3), returns (8, 3)",
        ),
        (
            "def gae(rewards, **_):\n    return 'a', 'b'",
            "advantages is no array of numbers, expected the shape (8, 3)",
        ),
        (
            "def gae(rewards, **_):\n    return rewards @ rewards",
            "ValueError: matmul",
        ),
        ("def loss(**_):\n    return [1, 2]", "loss has the shape (2,), expected ()"),
        (
            "def gae(rewards):\n    return 1",
            "the arguments are (rewards), expected (rewards, values, dones, next_value, gamma,",
        ),
        (
            "def callee():\n    raise NotImplementedError\ndef gae(**_):\n    callee()",
            "NotImplementedError",
        ),
        ("def gae(**_):\n    raise SystemExit('no')", "SystemExit: no"),
        (
            "def optimizer_steps(parameters, **_):\n    return parameters[:1]",
            "returned 1, expected 3 arrays: parameters[0] (6, 4)",
        ),
        (
            "def initial_weights(**_):\n    return [], []",
            "policy: expected a list of pairs, weight (in, out) or (out, in) and bias",
        ),
        (
            "def initial_lstm():\n    return [[1], [2, 3]], [[1]], [], 0",
            "ValueError: setting an array element with a sequence",
        ),
        (
            "def initial_lstm():\n    return [[1]], [[1]], [], 0",
            "hidden_weights has the shape (1, 1), expected (4 size, size)",
        ),
    ],
)
def test_an_error_in_the_adapter_is_one_line(text, message):
    module = types.ModuleType("adapter")
    exec(text, module.__dict__)
    (found,), _ = ppo_check.check_adapter(module)
    assert found.verdict == "error"
    assert found.what.startswith(message)
    assert "\n" not in found.what


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import nowhere", "yours.py: ModuleNotFoundError: No module named 'nowhere'"),
        ("dtype = 'float16'", "dtype is float16, expected np.float32 or np.float64"),
        ("dtype = 1.5", "dtype is 1.5, expected np.float32 or np.float64"),
        ("import argparse\nif (", "yours.py: SyntaxError: '(' was never closed (yours.py, line 2)"),
        ("import sys\nsys.exit('no')", "yours.py: SystemExit: no (yours.py, line 2)"),
    ],
)
def test_an_adapter_that_cannot_be_used_is_one_line(text, message, tmp_path):
    result = run(write(tmp_path, text))
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"ppo-check: {message}")


def test_a_missing_adapter_is_one_line(tmp_path):
    result = run(str(tmp_path / "none.py"))
    assert result.stderr == f"ppo-check: there is no file {tmp_path / 'none.py'}\n"
    (tmp_path / "adapter.txt").write_text(PLAIN)
    result = run(str(tmp_path / "adapter.txt"))
    assert result.stderr.startswith("ppo-check: adapter.txt is not the name of a Python file")


def test_a_misspelt_function_is_found():
    module = types.ModuleType("adapter")
    assert "optimizer_steps" in ppo_check.check_adapter(module)[1]
    module.optimizer_step = None
    assert "optimizer_steps (there is optimizer_step)" in ppo_check.check_adapter(module)[1]
    module = types.ModuleType("adapter")
    exec(ppo_check.template(), module.__dict__)
    module.gaussian_sample = None
    assert ppo_check.check_adapter(module)[1] == [
        f"{part.name} (there is gaussian_sample)" if part.name == "gaussian_samples" else part.name
        for part in PARTS
    ]


# ---------------------------------------------------------------------------------------------------------------------
# The package


def test_a_wheel_in_a_fresh_environment_gives_the_command(tmp_path):
    isolated = [] if importlib.util.find_spec("hatchling") is None else ["--no-build-isolation"]
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--no-deps", *isolated, "-w", str(tmp_path), str(DETAILS)]
    subprocess.run(build, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert len(zipfile.ZipFile(wheel).namelist()) < 20
    assert wheel.stat().st_size < 600_000

    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    python = environment / "bin" / "python"
    install = [*pip, "--python", str(python), "install", "--no-deps", str(wheel)]
    subprocess.run(install, check=True)
    # NumPy and msgspec as they are here, without a download
    (packages,) = environment.glob("lib/*/site-packages")
    for module in (np, msgspec):
        folder = Path(module.__file__).parent
        (packages / folder.name).symlink_to(folder)
    libraries = Path(np.__file__).parents[1] / "numpy.libs"
    if libraries.exists():
        (packages / "numpy.libs").symlink_to(libraries)

    command = (environment / "bin" / "ppo-check",)
    result = run(write(tmp_path, PLAIN), cwd=tmp_path, command=command)
    assert result.returncode == 0, result.stderr
    assert "41 as the official code." in result.stdout
    result = run(write(tmp_path, WRONG_GAE), cwd=tmp_path, command=command)
    assert result.returncode == 1
    assert "Core 7" in result.stdout
