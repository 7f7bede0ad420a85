"""The recurrent agent: its state, its gradient, its minibatches, and a task that needs memory."""

import copy
from functools import partial
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
from recall import Recall
from torch import nn

import ppo_atari_lstm as script

SPACES = SimpleNamespace(single_action_space=gym.spaces.Discrete(4))


def make_agent(dtype: torch.dtype = torch.float32) -> nn.Module:
    """Return an agent off its symmetric starting point, whose policy depends on what it sees and remembers."""
    torch.manual_seed(3)
    agent = script.Agent(SPACES).to(dtype)
    with torch.no_grad():
        agent.lstm.weight_ih *= 2
        for parameter in agent.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
        agent.actor.weight += 0.5 * torch.randn_like(agent.actor.weight)
    return agent


def random_frames(*shape: int, dtype: torch.dtype = torch.uint8) -> torch.Tensor:
    """Return frames (*shape, 1, 84, 84) of 7 x 7 random squares, which differ more than random pixels would."""
    squares = torch.randint(256, (*shape, 1, 7, 7))
    return squares.repeat_interleave(12, dim=-1).repeat_interleave(12, dim=-2).to(dtype)


def lstm_by_the_equations(lstm, features, state, starts) -> torch.Tensor:
    """Return hidden and cell state, side by side, after every step, (steps, num_envs, 256)."""
    hidden, cell = state.tensor_split(2, dim=1)
    states = []
    for x, begins in zip(features, starts, strict=True):
        hidden, cell = hidden * (1 - begins[:, None]), cell * (1 - begins[:, None])
        gates = x @ lstm.weight_ih.T + lstm.bias_ih + hidden @ lstm.weight_hh.T + lstm.bias_hh
        i, f, g, o = gates.tensor_split(4, dim=1)
        cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
        hidden = o.sigmoid() * cell.tanh()
        states.append(torch.cat([hidden, cell], dim=1))
    return torch.stack(states)


def policy_and_value(agent, obs, state, starts) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the log-probabilities of all actions, the values and the states, all (steps, num_envs, ...)."""
    features = agent.network(obs.flatten(0, 1) / 255).unflatten(0, obs.shape[:2])
    states = lstm_by_the_equations(agent.lstm, features, state, starts)
    hidden = states[..., :128]
    logits = hidden @ agent.actor.weight.T + agent.actor.bias
    values = hidden @ agent.critic.weight[0] + agent.critic.bias
    return logits - logits.exp().sum(dim=-1, keepdim=True).log(), values, states


def segment(dtype: torch.dtype = torch.float32) -> SimpleNamespace:
    """Return ten steps of four environments, whose episodes begin at different steps."""
    torch.manual_seed(4)
    starts = torch.zeros(10, 4, dtype=dtype)
    # At the first and the last step, and an episode of a single step
    starts[[0, 3, 4, 9], 0] = 1
    # One of them together with environment 0; environment 3 has no end at all
    starts[[5, 3], [1, 2]] = 1
    state = 0.5 * torch.randn(4, 256, dtype=dtype)
    frames = torch.float64 if dtype == torch.float64 else torch.uint8
    return SimpleNamespace(obs=random_frames(10, 4, dtype=frames), starts=starts, state=state)


def outputs_of(agent, obs, state, starts) -> torch.Tensor:
    """Return log-probabilities, entropy and value of each row, from one call, (steps, num_envs, 6)."""
    with torch.no_grad():
        policy, values, _ = agent(obs.flatten(0, 1), state, starts.flatten())
    heads = torch.cat([policy.logprobs, policy.entropy()[:, None], values[:, None]], dim=1)
    return heads.unflatten(0, starts.shape)


# The state


def test_many_steps_in_one_call_follow_the_equations_step_by_step():
    agent, rows = make_agent(torch.float64), segment(torch.float64)
    with torch.no_grad():
        logprobs, values, states = policy_and_value(agent, rows.obs, rows.state, rows.starts)
        _, _, state = agent(rows.obs.flatten(0, 1), rows.state, rows.starts.flatten())
    entropy = -(logprobs.exp() * logprobs).sum(dim=-1)
    expected = torch.cat([logprobs, entropy[..., None], values[..., None]], dim=-1)
    actual = outputs_of(agent, rows.obs, rows.state, rows.starts)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(state, states[-1], rtol=0, atol=1e-12)


def test_step_by_step_with_the_state_handed_on_gives_the_same():
    agent, rows = make_agent(torch.float64), segment(torch.float64)
    expected = outputs_of(agent, rows.obs, rows.state, rows.starts)
    state = rows.state
    for t in range(10):
        actual = outputs_of(agent, rows.obs[t, None], state, rows.starts[t, None])
        torch.testing.assert_close(actual[0], expected[t], rtol=0, atol=1e-12)
        with torch.no_grad():
            _, _, state = agent(rows.obs[t], state, rows.starts[t])


def test_nothing_of_an_episode_reaches_the_next_one():
    agent, rows = make_agent(), segment()
    before = outputs_of(agent, rows.obs, rows.state, rows.starts)
    for env, begin in [(0, 0), (0, 3), (0, 4), (0, 9), (1, 5), (2, 3)]:
        obs, state = rows.obs.clone(), rows.state.clone()
        obs[:begin, env] = random_frames(begin)
        state[env] = torch.randn(256)
        after = outputs_of(agent, obs, state, rows.starts)
        assert torch.equal(after[begin:, env], before[begin:, env])
        if rows.starts[:begin, env].sum() == 0 < begin:
            # What was changed is seen at once, and up to the end.
            assert ((after[:begin, env] - before[:begin, env]).abs().amax(dim=1) > 1e-3).all()


def test_nothing_of_an_environment_reaches_another_one():
    agent, rows = make_agent(), segment()
    before = outputs_of(agent, rows.obs, rows.state, rows.starts)
    for env in range(4):
        obs, state = rows.obs.clone(), rows.state.clone()
        obs[:, env], state[env] = random_frames(10), torch.randn(256)
        after = outputs_of(agent, obs, state, rows.starts)
        others = [other for other in range(4) if other != env]
        torch.testing.assert_close(after[:, others], before[:, others], rtol=0, atol=1e-5)
        assert (after[:, env] - before[:, env]).abs().max() > 1e-2


def test_an_end_in_one_environment_leaves_the_memory_of_the_others_alone():
    agent, rows = make_agent(), segment()
    before = outputs_of(agent, rows.obs, rows.state, rows.starts)
    starts = rows.starts.clone()
    starts[6, 0] = 1
    after = outputs_of(agent, rows.obs, rows.state, starts)
    torch.testing.assert_close(after[:, 1:], before[:, 1:], rtol=0, atol=1e-5)
    torch.testing.assert_close(after[:6, 0], before[:6, 0], rtol=0, atol=1e-5)
    assert (after[6:9, 0] - before[6:9, 0]).abs().amax(dim=1).min() > 1e-3


def test_within_an_episode_every_later_output_depends_on_each_earlier_observation_and_on_the_state():
    agent, rows = make_agent(torch.float64), segment(torch.float64)
    obs, state, starts = rows.obs[:, 3:], rows.state[3:], rows.starts[:, 3:]
    assert not starts.any()
    before = outputs_of(agent, obs, state, starts)
    for t in range(10):
        changed = obs.clone()
        changed[t] = random_frames(1, dtype=torch.float64)
        moved = (outputs_of(agent, changed, state, starts) - before).abs().amax(dim=(1, 2))
        assert (moved[:t] < 1e-12).all()
        assert (moved[t:] > 1e-9).all()
    other = torch.randn_like(state)
    moved = (outputs_of(agent, obs, other, starts) - before).abs().amax(dim=(1, 2))
    assert (moved > 1e-9).all()


def test_the_first_state_is_zero():
    state = script.Agent(SPACES).initial_state(3)
    assert state.shape == (3, 256)
    assert not state.any()


# The weights


def test_lstm_weights_start_orthogonal_with_gain_one_and_its_biases_at_zero():
    lstm = script.Agent(SPACES).lstm
    weights = {"weight_ih": lstm.weight_ih, "weight_hh": lstm.weight_hh}
    shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    assert shapes == {"weight_ih": (512, 512), "weight_hh": (512, 128)}
    for weight in weights.values():
        gram = weight.detach().double().T @ weight.detach().double()
        identity = torch.eye(len(gram), dtype=torch.float64)
        torch.testing.assert_close(gram, identity, rtol=0, atol=1e-5)
    biases = {name: parameter for name, parameter in lstm.named_parameters() if name not in weights}
    assert set(biases) == {"bias_ih", "bias_hh"}
    assert not any(bias.any() for bias in biases.values())


# The gradient


def loss_step_by_step(agent, mb, clip_coef: float, args) -> torch.Tensor:
    """Return the loss of a minibatch from the equations of the LSTM and those of PPO."""
    num_envs = len(mb.state)
    obs, starts = mb.obs.unflatten(0, (-1, num_envs)), mb.starts.unflatten(0, (-1, num_envs))
    logprobs, values, _ = policy_and_value(agent, obs, mb.state, starts)
    logprobs, values = logprobs.flatten(0, 1), values.flatten()
    entropy = -(logprobs.exp() * logprobs).sum(dim=1)
    ratio = (logprobs[range(len(values)), mb.actions] - mb.logprobs).exp()
    advantages = mb.advantages - mb.advantages.mean()
    advantages = advantages / (advantages.square().mean().sqrt() + 1e-8)
    # A good action gains nothing above 1 + clip, a bad one nothing below 1 - clip.
    high, low = ratio.clamp(max=1 + clip_coef), ratio.clamp(min=1 - clip_coef)
    kept = torch.where(advantages > 0, high, low)
    near = mb.values + (values - mb.values).clamp(-clip_coef, clip_coef)
    squares = torch.maximum((values - mb.returns) ** 2, (near - mb.returns) ** 2)
    value_loss = squares.mean() / 2
    return -(kept * advantages).mean() - args.ent_coef * entropy.mean() + args.vf_coef * value_loss


def test_gradient_of_a_minibatch_is_that_of_the_equations_step_by_step():
    agent, rows = make_agent(torch.float64), segment(torch.float64)
    args = script.Args(ent_coef=0.03, vf_coef=0.7)
    with torch.no_grad():
        logprobs, values, _ = policy_and_value(agent, rows.obs, rows.state, rows.starts)
    actions = torch.randint(4, (40,))
    noise = torch.randn(4, 40, dtype=torch.float64)
    taken = logprobs.flatten(0, 1)[range(40), actions]
    mb = script.Batch(
        obs=rows.obs.flatten(0, 1),
        actions=actions,
        logprobs=taken + 0.3 * noise[0],  # some ratios are outside the range
        values=values.flatten() + 0.3 * noise[1],
        advantages=noise[2],
        returns=values.flatten() + noise[3],
        starts=rows.starts.flatten(),
        state=rows.state,
    )

    def gradient(loss: torch.Tensor) -> dict[str, torch.Tensor]:
        trained = {name: x for name, x in agent.named_parameters() if x.requires_grad}
        gradients = torch.autograd.grad(loss, list(trained.values()))
        return dict(zip(trained, gradients, strict=True))

    loss, stats = script.ppo_loss(agent, mb, 0.2, args)
    expected_loss = loss_step_by_step(agent, mb, 0.2, args)
    assert 0.1 < stats["clipfrac"] < 0.9
    assert loss.item() == pytest.approx(expected_loss.item(), rel=1e-12)
    expected = gradient(expected_loss)
    assert {"lstm.weight_ih", "lstm.weight_hh", "lstm.bias_ih", "network.0.weight"} < set(expected)
    for name, actual in gradient(loss).items():
        assert (actual - expected[name]).abs().max() < 1e-10 * expected[name].abs().max(), name
    # The comparison sees a forgotten end, and a state that is not the one before the rollout.
    for wrong in (mb._replace(starts=0 * mb.starts), mb._replace(state=0 * mb.state)):
        other = gradient(script.ppo_loss(agent, wrong, 0.2, args)[0])
        for name in ("lstm.weight_hh", "network.0.weight"):
            assert (other[name] - expected[name]).abs().max() > 1e-3 * expected[name].abs().max()


def test_a_minibatch_has_all_rows_of_its_environments_time_first():
    rows = {name: torch.arange(5)[:, None] * 100 + torch.arange(4) for name in script.Batch._fields}
    rows["obs"] = rows["obs"][:, :, None].expand(5, 4, 3)
    rows["state"] = torch.arange(4.0)[:, None].expand(4, 6)
    mb = script.Batch(**rows).select(torch.tensor([2, 0]))
    order = [2, 0, 102, 100, 202, 200, 302, 300, 402, 400]
    for name in script.Batch._fields[1:-1]:
        assert getattr(mb, name).tolist() == order, name
    assert mb.obs.tolist() == [[row] * 3 for row in order]
    assert mb.state.tolist() == [[2.0] * 6, [0.0] * 6]


# What main does


class Squares(gym.Env):
    """Random frames and rewards; every episode has `length` steps, and ends as `end` says."""

    observation_space = gym.spaces.Box(0, 255, (84, 84), np.uint8)
    action_space = gym.spaces.Discrete(4)

    def __init__(self, length: int, end: str = "terminated"):
        self.length = length
        self.end = end

    def frame(self):
        squares = self.np_random.integers(256, size=(7, 7), dtype=np.uint8)
        return squares.repeat(12, axis=0).repeat(12, axis=1)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = self.length
        return self.frame(), {}

    def step(self, action):
        self.left -= 1
        over = self.left == 0
        terminated = over and "terminated" in self.end
        truncated = over and "truncated" in self.end
        return self.frame(), self.np_random.normal(), terminated, truncated, {}


def vector(makers: list) -> gym.vector.VectorEnv:
    """Return these environments side by side, wrapped as the script wraps its own."""
    makers = [lambda make=make: gym.wrappers.FrameStackObservation(make(), 1) for make in makers]
    return gym.vector.SyncVectorEnv(makers, autoreset_mode=gym.vector.AutoresetMode.SAME_STEP)


def record(envs: gym.vector.VectorEnv, **overrides) -> SimpleNamespace:
    """Run main in these environments and return what its parts got and gave, in the order of the calls.

    The policy head is a hundred times its usual size, so that the policy depends on the state from the start.
    """
    args = script.Args(num_envs=envs.num_envs, device="cpu", **overrides)
    run = SimpleNamespace(args=args, env_steps=[], acts=[], gae=[], losses=[])
    real_reset, real_step = envs.reset, envs.step
    real_agent, real_gae, real_loss = script.Agent, script.compute_gae, script.ppo_loss

    def reset(**kwargs):
        obs, infos = real_reset(**kwargs)
        run.first_obs = torch.tensor(obs)
        return obs, infos

    def step(actions):
        run.acts.append(run.last_call)
        obs, reward, terminated, truncated, infos = real_step(actions)
        taken = SimpleNamespace(obs=torch.tensor(obs), actions=torch.tensor(actions))
        taken.ended, taken.cut = terminated | truncated, truncated & ~terminated
        taken.reward = torch.tensor(reward, dtype=torch.float32)
        taken.final_obs = copy.deepcopy(infos.get("final_obs"))
        run.env_steps.append(taken)
        return obs, reward, terminated, truncated, infos

    class Agent(real_agent):
        def __init__(self, *args):
            super().__init__(*args)
            run.agent = self
            run.initial = copy.deepcopy(self.state_dict())
            with torch.no_grad():
                self.actor.weight *= 100

        def forward(self, x, state, starts):
            policy, values, new_state = super().forward(x, state, starts)
            names = ("state_before", "logprobs", "value", "state")
            fields = [t.detach().clone() for t in (state, policy.logprobs, values, new_state)]
            run.last_call = SimpleNamespace(**dict(zip(names, fields, strict=True)))
            return policy, values, new_state

    def gae(rewards, values, dones, next_value, gamma, gae_lambda):
        advantages, returns = real_gae(rewards, values, dones, next_value, gamma, gae_lambda)
        fields = {"rewards": rewards, "values": values, "dones": dones, "next_value": next_value}
        fields |= {"advantages": advantages, "returns": returns}
        call = SimpleNamespace(**{name: x.clone() for name, x in fields.items()})
        call.agent = copy.deepcopy(run.agent)  # as it was during this rollout
        run.gae.append(call)
        return advantages, returns

    def loss(agent, mb, clip_coef, loss_args):
        mb_copy = script.Batch(*(field.clone() for field in mb))
        call = SimpleNamespace(update=len(run.gae) - 1, mb=mb_copy)
        with torch.no_grad():  # what the ratios would be with something wrong
            _, _, last_state = agent(mb.obs, mb.state, mb.starts)
            wrong = {
                "no state": (0 * mb.state, mb.starts),
                "another environment's state": (mb.state.roll(1, dims=0), mb.starts),
                "no ends": (mb.state, 0 * mb.starts),
                "the state after the rollout": (last_state, mb.starts),
            }
            policies = {name: agent(mb.obs, *inputs)[0] for name, inputs in wrong.items()}
        logprobs = {name: policy.log_prob(mb.actions) for name, policy in policies.items()}
        call.wrong = {name: (logprob - mb.logprobs).exp() for name, logprob in logprobs.items()}
        result = real_loss(agent, mb, clip_coef, loss_args)
        call.logprobs = run.last_call.logprobs.gather(1, mb.actions[:, None])[:, 0]
        call.values = run.last_call.value
        run.losses.append(call)
        return result

    envs.reset, envs.step = reset, step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(script, "make_envs", lambda *_, **__: envs)
        patch.setattr(script, "Agent", Agent)
        patch.setattr(script, "compute_gae", gae)
        patch.setattr(script, "ppo_loss", loss)
        assert script.main(args) is run.agent
    run.num_updates = args.total_timesteps // (args.num_envs * args.num_steps)
    assert len(run.gae) == run.num_updates
    # Of all steps, and one more
    run.obs = torch.stack([run.first_obs, *(step.obs for step in run.env_steps)])
    ends = np.stack([step.ended for step in run.env_steps])
    run.begins = torch.tensor(np.concatenate([np.ones_like(ends[:1]), ends]), dtype=torch.float32)
    return run


# Episodes end at every step, at some in the middle, with the segment, or never; those of one environment by time limit.
LENGTHS = [1, 7, 20, 1000, 9, 33]
SIZES = {"num_steps": 20, "num_minibatches": 3, "update_epochs": 3, "total_timesteps": 3 * 20 * 6}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Share one run of three updates between the tests that look at it from different sides."""
    ends = ["truncated" if length == 9 else "terminated" for length in LENGTHS]
    makers = [partial(Squares, *episode) for episode in zip(LENGTHS, ends, strict=True)]
    folder = tmp_path_factory.mktemp("lstm")
    return record(vector(makers), **SIZES, max_grad_norm=50, run_dir=folder)


def epochs_of(run: SimpleNamespace, update: int) -> list[list[SimpleNamespace]]:
    calls = [call for call in run.losses if call.update == update]
    size = run.args.num_minibatches
    return [calls[i : i + size] for i in range(0, len(calls), size)]


def columns_of(run: SimpleNamespace, call: SimpleNamespace) -> list[int]:
    """Return which environments a minibatch consists of, in its order, from the frames these environments gave."""
    steps = run.args.num_steps
    rollout = run.obs[call.update * steps : (call.update + 1) * steps].unbind(dim=1)
    frames = call.mb.obs.unflatten(0, (steps, -1)).unbind(dim=1)
    found = [[env for env, x in enumerate(rollout) if torch.equal(column, x)] for column in frames]
    assert all(len(envs) == 1 for envs in found), "not the whole sequence of an environment"
    return [env for (env,) in found]


def test_the_rollout_follows_the_equations_from_a_state_of_zero(run):
    state, steps = torch.zeros(6, 256), run.args.num_steps
    assert torch.equal(run.acts[0].state_before, state)
    assert len(run.acts) == len(run.env_steps) == run.num_updates * steps
    for update, gae in enumerate(run.gae):
        # With the observation that the next segment begins with
        rows = slice(update * steps, (update + 1) * steps + 1)
        with torch.no_grad():
            logprobs, values, states = policy_and_value(
                gae.agent, run.obs[rows], state, run.begins[rows]
            )
        acts, taken = run.acts[rows][:steps], run.env_steps[rows][:steps]
        assert torch.equal(gae.rewards, torch.stack([step.reward for step in taken]))
        assert torch.equal(gae.dones, run.begins[rows][1:])
        acted = torch.stack([act.logprobs for act in acts])
        torch.testing.assert_close(acted, logprobs[:-1], rtol=0, atol=1e-5)
        torch.testing.assert_close(gae.values, values[:-1], rtol=0, atol=1e-5)
        torch.testing.assert_close(gae.next_value, values[-1], rtol=0, atol=1e-5)
        state = states[-2]
        torch.testing.assert_close(acts[-1].state, state, rtol=0, atol=1e-5)
        if update + 1 < run.num_updates:
            assert torch.equal(run.acts[(update + 1) * steps].state_before, acts[-1].state)


def test_a_time_limit_is_worth_the_value_of_the_final_observation_with_the_state_after_the_last_step():
    """Not with a state of zero, nor with that before the last step, and not that of the next episode's beginning."""
    ends = ["terminated", "truncated", "terminated truncated", "truncated", "truncated"]
    makers = [partial(Squares, *episode) for episode in zip((4, 5, 6, 1, 9), ends, strict=True)]
    sizes = {"num_steps": 12, "num_minibatches": 1, "update_epochs": 1, "total_timesteps": 120}
    run = record(vector(makers), **sizes, bootstrap_truncated=True, gamma=0.9)
    wrong = []
    for update, gae in enumerate(run.gae):

        def value_of(frame, state, start=0.0, agent=gae.agent):
            with torch.no_grad():
                inputs = frame[None, None], state[None], torch.tensor([[start]])
                return 0.9 * policy_and_value(agent, *inputs)[1].item()

        for t in range(12):
            taken, act = run.env_steps[12 * update + t], run.acts[12 * update + t]
            added = gae.rewards[t] - taken.reward
            assert not added[~torch.tensor(taken.cut)].any()
            for env in np.flatnonzero(taken.cut):
                final = torch.as_tensor(taken.final_obs[env])
                value = value_of(final, act.state[env])
                assert added[env].item() == pytest.approx(value, abs=1e-5)
                others = [
                    value_of(final, 0 * act.state[env]),
                    value_of(final, act.state_before[env]),
                    value_of(final, act.state[env - 1]),
                    value_of(taken.obs[env], act.state[env]),
                    value_of(taken.obs[env], act.state[env], start=1.0),
                ]
                wrong.append([abs(other - value) > 1e-3 for other in others])
    assert len(wrong) == 4 + 24 + 2  # of environments 1, 3 and 4
    assert np.mean(wrong, axis=0).min() > 0.8


def test_training_recomputes_the_log_probabilities_and_values_of_the_rollout(run):
    for update, gae in enumerate(run.gae):
        different = {tuple(column.tolist()) for column in gae.dones[:-1].T}
        assert len(different) >= 4, "the episodes must end at different steps"
        first, second = epochs_of(run, update)[0][:2]
        torch.testing.assert_close(first.logprobs, first.mb.logprobs, rtol=0, atol=1e-5)
        torch.testing.assert_close(first.values, first.mb.values, rtol=0, atol=1e-5)
        # The first step has moved the policy.
        assert (second.logprobs - second.mb.logprobs).abs().max() > 1e-3


def test_the_recomputed_ratio_would_show_a_wrong_state(run):
    seen = dict.fromkeys(run.losses[0].wrong, 0)
    for update in range(1, run.num_updates):
        initial = run.acts[update * run.args.num_steps].state_before
        assert (initial.abs().amax(dim=1) > 0.05).all()
        for name, ratio in epochs_of(run, update)[0][0].wrong.items():
            seen[name] = max(seen[name], (ratio - 1).abs().max().item())
    assert min(seen.values()) > 0.01, seen


def test_every_minibatch_is_the_whole_sequences_of_some_environments(run):
    steps = run.args.num_steps
    for call in run.losses:
        rows = slice(call.update * steps, (call.update + 1) * steps)
        envs, gae = columns_of(run, call), run.gae[call.update]
        assert len(envs) == 2
        expected = {name: getattr(gae, name) for name in ("values", "advantages", "returns")}
        expected["starts"] = run.begins[rows]
        expected["actions"] = torch.stack([step.actions for step in run.env_steps[rows]])
        logprobs = torch.stack([act.logprobs for act in run.acts[rows]])
        expected["logprobs"] = logprobs.gather(2, expected["actions"][..., None])[..., 0]
        for name, rollout in expected.items():
            columns = getattr(call.mb, name).unflatten(0, (steps, 2))
            assert torch.equal(columns, rollout[:, envs]), name
        assert torch.equal(call.mb.state, run.acts[rows][0].state_before[envs])


def test_every_epoch_partitions_the_environments_in_an_order_of_its_own(run):
    epochs = [epoch for update in range(run.num_updates) for epoch in epochs_of(run, update)]
    assert len(epochs) == run.num_updates * run.args.update_epochs
    orders = [tuple(env for call in epoch for env in columns_of(run, call)) for epoch in epochs]
    assert all(sorted(order) == list(range(6)) for order in orders)
    assert len(set(orders)) > len(orders) / 2
    assert tuple(range(6)) not in orders[:3]
    # The environments also meet in new minibatches, not in the same ones in a new order.
    pairs = {frozenset(map(frozenset, zip(x[::2], x[1::2], strict=True))) for x in orders}
    assert len(pairs) > 3


def test_only_one_of_the_two_biases_is_trained(run):
    after = run.agent.state_dict()
    for name in ("lstm.bias_ih", "lstm.bias_hh"):
        assert not run.initial[name].any()
    assert not run.agent.lstm.bias_hh.requires_grad
    assert not after["lstm.bias_hh"].any()
    for name in after.keys() - {"lstm.bias_hh"}:
        assert (after[name] != run.initial[name]).any(), name


def test_the_first_step_of_adam_moves_the_sum_of_both_biases_by_one_learning_rate():
    """Learning both would double it. What is missing to a whole learning rate is the epsilon of TensorFlow's Adam."""
    sizes = {"num_steps": 20, "num_minibatches": 1, "update_epochs": 1, "total_timesteps": 60}
    makers = [partial(Squares, length) for length in (3, 7, 20)]
    run = record(vector(makers), **sizes, learning_rate=1e-3)
    assert len(run.losses) == 1
    lstm = run.agent.lstm
    moved = (lstm.bias_ih + lstm.bias_hh).detach()
    gradient = lstm.bias_ih.grad
    epsilon = 1e-5 / (1 - 0.999) ** 0.5
    assert gradient.abs().max() > 10 * epsilon
    expected = -1e-3 * gradient / (gradient.abs() + epsilon)
    torch.testing.assert_close(moved, expected, rtol=1e-3, atol=1e-8)


# Memory


MEMORY = {
    "num_envs": 32,
    "num_steps": 16,
    "total_timesteps": 12_288,
    "learning_rate": 3e-3,
    "clip_coef": 0.2,
}


def train_on_recall() -> nn.Module:
    """Train with the script's own main; only the convolutions give way to something faster of the same width."""

    class Agent(script.Agent):
        def __init__(self, envs):
            super().__init__(envs)
            body = script.layer_init(nn.Linear(4, 512))
            self.network = nn.Sequential(nn.AvgPool2d(1, stride=42), nn.Flatten(), body, nn.ReLU())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(script, "make_envs", lambda args, **_: vector([Recall] * args.num_envs))
        patch.setattr(script, "Agent", Agent)
        return script.main(script.Args(**MEMORY, gae_lambda=1.0, device="cpu"))


def success_rate(agent: nn.Module, forgets: bool = False) -> float:
    """Return how often the agent is right in 200 fresh episodes, one of each environment."""
    envs = vector([Recall] * 200)
    obs, _ = envs.reset(seed=1_000_000)
    state = agent.initial_state(200)
    starts = torch.full((200,), float(forgets))
    playing, right = np.ones(200, bool), 0
    while playing.any():
        with torch.no_grad():
            policy, _, state = agent(torch.as_tensor(obs), state, starts)
            action = policy.sample().numpy()
        obs, reward, terminated, _, _ = envs.step(action)
        right += np.sum(playing & terminated & (reward > 0))
        playing &= ~terminated  # what an environment plays after its first episode does not count
    return right / 200


def test_a_task_that_needs_memory_is_solved_and_only_by_the_state():
    agent = train_on_recall()
    assert success_rate(agent) >= 0.95
    assert success_rate(agent, forgets=True) <= 0.65
