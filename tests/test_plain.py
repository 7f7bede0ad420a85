"""The training of every script against the plain form of the algorithm: row by row, in float64, from textbook parts.

The script trains for real; what its environments gave, its actions and its permutations are then replayed.
"""

import copy
import importlib
import math
from collections import defaultdict
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import SCRIPTS
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution, Normal

# Three updates of few rows. No coefficient is what another one is, and everything is clipped now and then.
NUM_UPDATES = 3
ARGS = {"num_envs": 2, "num_steps": 8, "num_minibatches": 2, "update_epochs": 2}
ARGS |= {"total_timesteps": 48, "anneal_lr": True, "gamma": 0.9, "gae_lambda": 0.8}
ARGS |= {"clip_coef": 0.02, "ent_coef": 0.05, "vf_coef": 0.3, "max_grad_norm": 1.0}


def weights_of(agent: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in agent.parameters() if parameter.requires_grad]


def record(name: str) -> SimpleNamespace:
    """Run the script, and keep what its environments gave, what its agent did, and what its learner made of it."""
    script = importlib.import_module(name)
    images = "atari" in name or name == "ppo_procgen"
    args = script.Args(**ARGS, learning_rate=1e-3 if images else 3e-3, device="cpu")
    run = SimpleNamespace(name=name, args=args, obs=[], actions=[], rewards=[], ended=[], masks=[])
    run.permutations = []
    run.stats = []
    run.gradients = []
    run.logged = defaultdict(list)

    def tap(owner, function: str, keep) -> None:
        """Let `keep` see what each call of the function returns."""
        real = getattr(owner, function)

        def call(*args, **kwargs):
            result = real(*args, **kwargs)
            keep(result)
            return result

        patch.setattr(owner, function, call)

    def keep_agent(agent):
        run.trained = agent
        run.agent = copy.deepcopy(agent).double()

    def keep_steps(envs):
        real_step = envs.step
        lists = run.obs, run.rewards, run.actions, run.ended

        def step(actions):
            obs, reward, terminated, truncated, infos = real_step(actions)
            keep_mask(infos)
            # More ends than there really are; the first environment's are also at rollout ends
            t = len(run.ended) + 1
            terminated = terminated | [False, t % 5 == 3]
            truncated = truncated | [t % 4 == 0, False]
            news = obs, reward, actions, terminated | truncated
            for kept, new in zip(lists, news, strict=True):
                kept.append(copy.deepcopy(new))
            return obs, reward, terminated, truncated, infos

        patch.setattr(envs, "step", step)
        tap(envs, "reset", lambda result: run.obs.append(copy.deepcopy(result[0])))
        tap(envs, "reset", lambda result: keep_mask(result[1]))

    def keep_mask(infos):
        if "action_mask" in infos:
            run.masks.append(torch.tensor(infos["action_mask"]))

    def keep_gradient(*_):
        run.gradients.append([weight.grad.clone() for weight in weights_of(run.trained)])

    def keep_stats(result):
        run.stats.append({key: x.item() for key, x in result[1].items()})

    def keep_scalar(_, tag, value, step):
        run.logged[tag].append(value)

    with pytest.MonkeyPatch.context() as patch:
        # ReLU and maximum have kinks: where only rounding decides, the one gradient is here and another one there.
        patch.setattr(nn, "ReLU", nn.ELU)
        patch.setattr(nn, "MaxPool2d", nn.AvgPool2d)
        tap(script, "Agent", keep_agent)
        tap(script, "make_envs", keep_steps)
        tap(script, "ppo_loss", keep_stats)
        tap(torch, "randperm", lambda permutation: run.permutations.append(permutation.tolist()))
        patch.setattr(script.SummaryWriter, "add_scalar", keep_scalar)
        tap(script.Adam, "step", keep_gradient)
        script.main(args)
    return run


def forward(
    agent: nn.Module, row: SimpleNamespace, state: list[Tensor]
) -> tuple[list[Distribution], Tensor, list]:
    """Return the distribution of each action component, the value, and the LSTM's state after this row."""
    hidden = torch.as_tensor(row.obs).double()[None]
    if hasattr(agent, "network"):
        images = hidden.permute(0, 3, 1, 2) if row.mask is not None else hidden / 255
        hidden = agent.network(images)
    if hasattr(agent, "lstm"):
        state = agent.lstm(hidden, [torch.zeros_like(x) if row.begins else x for x in state])
        hidden = state[0]
    if hasattr(agent, "actor_mean"):
        means = agent.actor_mean(hidden)[0]
        stds = agent.actor_logstd.exp()
        policy = [Normal(mean, std) for mean, std in zip(means, stds, strict=True)]
    else:
        logits = agent.actor(hidden)[0]
        if row.mask is not None:
            logits = logits.masked_fill(~row.mask, -math.inf)
        policy = [
            Categorical(logits=part) for part in logits.split(getattr(agent, "nvec", len(logits)))
        ]
    return policy, agent.critic(hidden)[0, 0], state


def logprob_of(policy: list[Distribution], action: np.ndarray) -> Tensor:
    components = torch.as_tensor(action).reshape(-1)
    return sum(part.log_prob(a) for part, a in zip(policy, components, strict=True))


def roll_out(
    run: SimpleNamespace, i: int, first: int, state: list[Tensor]
) -> tuple[list[SimpleNamespace], list]:
    """Return the rows of environment i from step `first` on, and the LSTM's state after them."""
    rows = []
    for t in range(first, first + run.args.num_steps + 1):  # the last one is there for its value
        mask = run.masks[t][i] if run.masks else None
        begins = t > 0 and run.ended[t - 1][i]
        row = SimpleNamespace(obs=run.obs[t][i], mask=mask, begins=begins, state=state)
        rows.append(row)
        with torch.no_grad():
            policy, value, state = forward(run.agent, row, state)
        row.value = value.item()
        if t < first + run.args.num_steps:
            row.action = run.actions[t][i]
            row.reward = float(run.rewards[t][i])
            row.logprob = logprob_of(policy, row.action).item()
    advantage = 0.0
    # Generalized advantage estimation
    for row, following in zip(rows[-2::-1], rows[:0:-1], strict=True):
        goes_on = 0.0 if following.begins else 1.0
        delta = row.reward + run.args.gamma * goes_on * following.value - row.value
        advantage = delta + run.args.gamma * run.args.gae_lambda * goes_on * advantage
        row.advantage = advantage
        row.target = advantage + row.value
    return rows[:-1], rows[-1].state


def loss_of(
    agent: nn.Module, segments: list[list[SimpleNamespace]], args
) -> tuple[Tensor, dict[str, float]]:
    """Return the loss of a minibatch and its statistics. The rows of a segment follow each other in time."""
    advantages = [row.advantage for segment in segments for row in segment]
    mean = sum(advantages) / len(advantages)
    std = math.sqrt(sum((advantage - mean) ** 2 for advantage in advantages) / len(advantages))
    sums = defaultdict(float)
    for segment in segments:
        state = segment[0].state
        for row in segment:
            policy, value, state = forward(agent, row, state)
            logratio = logprob_of(policy, row.action) - row.logprob
            ratio = logratio.exp()
            advantage = (row.advantage - mean) / (std + 1e-8)
            clipped_ratio = ratio.clip(1 - args.clip_coef, 1 + args.clip_coef)
            clipped_value = row.value + (value - row.value).clip(-args.clip_coef, args.clip_coef)
            sums["policy_loss"] -= torch.min(ratio * advantage, clipped_ratio * advantage)
            sums["value_loss"] += (
                torch.max((value - row.target) ** 2, (clipped_value - row.target) ** 2) / 2
            )
            sums["entropy"] += sum(part.entropy() for part in policy)
            sums["old_approx_kl"] -= logratio
            sums["approx_kl"] += ratio - 1 - logratio
            sums["clipfrac"] += (ratio - 1).abs() > args.clip_coef
    stats = {key: total / len(advantages) for key, total in sums.items()}
    loss = (
        stats["policy_loss"] - args.ent_coef * stats["entropy"] + args.vf_coef * stats["value_loss"]
    )
    return loss, {key: x.item() for key, x in stats.items()}


def train(run: SimpleNamespace) -> Iterator[tuple[dict[str, float], list[Tensor]]]:
    """Train run.agent, and yield the statistics and the clipped gradient of each minibatch."""
    args = run.args
    weights = weights_of(run.agent)
    permutations = iter(run.permutations)
    steps = 0
    m, v = ([torch.zeros_like(weight) for weight in weights] for _ in range(2))
    states = [[torch.zeros(1, 128, dtype=torch.float64)] * 2] * args.num_envs
    for update in range(NUM_UPDATES):
        lr = args.learning_rate * (1 - update / NUM_UPDATES)
        rollouts = [
            roll_out(run, i, update * args.num_steps, states[i]) for i in range(args.num_envs)
        ]
        columns, states = zip(*rollouts, strict=True)
        rows = [columns[i][t] for t in range(args.num_steps) for i in range(args.num_envs)]
        errors = [row.target - row.value for row in rows]
        explained = 1 - np.var(errors) / np.var([row.target for row in rows])
        segments = columns if run.name == "ppo_atari_lstm" else [[row] for row in rows]
        size = math.ceil(len(segments) / args.num_minibatches)
        for _ in range(args.update_epochs):
            permutation = next(permutations)
            for start in range(0, len(segments), size):
                minibatch = [segments[k] for k in permutation[start : start + size]]
                loss, stats = loss_of(run.agent, minibatch, args)
                run.agent.zero_grad()
                loss.backward()
                norm = math.sqrt(sum(weight.grad.square().sum().item() for weight in weights))
                factor = min(1, args.max_grad_norm / (norm + 1e-6))
                gradient = [weight.grad * factor for weight in weights]
                steps += 1
                step_size = lr * math.sqrt(1 - 0.999**steps) / (1 - 0.9**steps)
                for k, g in enumerate(gradient):  # Adam as TensorFlow has it
                    m[k] = 0.9 * m[k] + 0.1 * g
                    v[k] = 0.999 * v[k] + 0.001 * g**2
                    weights[k].data -= step_size * m[k] / (v[k].sqrt() + 1e-5)
                yield stats | {"grad_norm": norm, "explained_variance": explained}, gradient


def check_scalar(key: str, got: float, expected: float) -> None:
    one_row = 0.2  # may lie on the edge of the clip range
    assert got == pytest.approx(expected, rel=3e-3, abs=one_row if key == "clipfrac" else 2e-5), key


def check_tensors(got: list[Tensor], expected: list[Tensor]) -> None:
    norms = []
    errors = []
    for a, b in zip(got, expected, strict=True):
        norms.append(b.norm().item())
        errors.append((a - b).norm().item())
    whole = math.hypot(*norms)
    assert math.hypot(*errors) < 1e-3 * whole
    for error, norm in zip(errors, norms, strict=True):  # small ones, too
        assert error < 1e-2 * norm + 1e-5 * whole


@pytest.mark.parametrize("name", SCRIPTS)
def test_training_equals_the_plain_form(name):
    run = record(name)
    before = [weight.detach().clone() for weight in weights_of(run.agent)]
    all_stats = []
    pairs = zip(run.stats, run.gradients, train(run), strict=True)
    for got, got_gradient, (stats, gradient) in pairs:
        for key in got:
            check_scalar(key, got[key], stats[key])
        check_tensors(got_gradient, gradient)
        all_stats.append(stats)

    def moves(agent):
        return [weight.detach() - x for weight, x in zip(weights_of(agent), before, strict=True)]

    check_tensors(moves(run.trained), moves(run.agent))
    assert len(all_stats) == NUM_UPDATES * run.args.update_epochs * run.args.num_minibatches
    assert any(stats["clipfrac"] > 0 for stats in all_stats)
    for key in all_stats[0]:  # what is logged is the mean of each update
        means = np.reshape([stats[key] for stats in all_stats], (NUM_UPDATES, -1)).mean(axis=1)
        for got, mean in zip(run.logged[f"losses/{key}"], means, strict=True):
            check_scalar(key, got, mean)
