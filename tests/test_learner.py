"""What the learner does in real, short runs: minibatches, gradients, steps, schedules, early stop and statistics."""

import copy
import importlib
from collections import Counter
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import ALL_SCRIPTS, PLAIN, SCRIPTS, TINY, spaces_of
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

VECTORS = ("ppo", "ppo_continuous_action")
# One body for policy and value
SHARED = ("ppo_atari", "ppo_atari_envpool", "ppo_multidiscrete", "ppo_procgen")
STATISTICS = ("policy_loss", "value_loss", "entropy", "old_approx_kl", "approx_kl", "clipfrac")

# Three updates each, and long enough for an episode to end.
SIZES = {"num_envs": 2, "num_steps": 32, "total_timesteps": 192, "num_minibatches": 2}
RUNS = {name: TINY[name] | SIZES for name in SCRIPTS}
RUNS["ppo_continuous_action"]["env_id"] = "Hopper-v5"
RUNS["ppo_procgen"] |= {"anneal_lr": True}
# A game has up to 200 steps.
RUNS["ppo_multidiscrete"] |= {"num_steps": 104, "total_timesteps": 624}
# Two small minibatches an epoch, for what needs no more, and no game either.
SHORT = {"num_envs": 2, "num_steps": 8, "num_minibatches": 2, "update_epochs": 1}
SHORT |= {"device": "cpu", "noise": True}


class Noise(gym.Env):
    """Random images and no end, in place of a game, which takes a second to load."""

    def __init__(self, name: str):
        spaces = spaces_of(name)
        self.observation_space = spaces.single_observation_space
        self.action_space = spaces.single_action_space

    def observe(self) -> np.ndarray:
        return self.np_random.integers(256, size=self.observation_space.shape, dtype=np.uint8)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observe(), {}

    def step(self, action):
        return self.observe(), self.np_random.random(), False, False, {}


def inputs_of(mb) -> tuple[torch.Tensor, ...]:
    """Return what the agent of this script is given to evaluate a minibatch."""
    if hasattr(mb, "state"):
        return mb.obs, mb.state, mb.starts
    return mb.obs, *([mb.masks] if hasattr(mb, "masks") else [])


def row_keys(*fields: torch.Tensor) -> list[int]:
    """Return one number for each row that tells it from all others."""
    return [hash(b"".join(x.numpy().tobytes() for x in row)) for row in zip(*fields, strict=True)]


def norm_of(tensors: Iterable[torch.Tensor]) -> float:
    """Return the norm of all elements of all tensors together."""
    return sum(x.double().square().sum().item() for x in tensors) ** 0.5


def record(
    name: str,
    gradients: bool = False,
    kls: list[float] | None = None,
    noise: bool = False,
    **overrides,
) -> SimpleNamespace:
    """Run the script and return what its parts got and gave, in the order of the calls.

    The gradients are looked at only on request, since that takes time. Where `kls` is given, the first minibatches
    report these as their approximate KL, and all others 0. With `noise`, no game of Atari is played.
    """
    script = importlib.import_module(name)
    folder = Path(f"run-{len(list(Path().iterdir()))}").resolve()
    args = script.Args(**{"run_dir": folder} | overrides)
    real = SimpleNamespace(
        make_envs=script.make_envs,
        forward=script.Agent.forward,
        gae=script.compute_gae,
        loss=script.ppo_loss,
        step=script.Adam.step,
    )
    run = SimpleNamespace(args=args, folder=args.run_dir, first_obs=None)
    run.rollouts = []  # what the agent was asked outside of the loss, as (observations, policy, values)
    run.acts = []  # observations, actions, their log-probabilities and values of each step
    run.env_steps = []
    run.gae = []
    run.losses = []
    run.steps = []
    run.optimizers = []

    def make_envs(*make_args, **make_kwargs):
        if noise and "atari" in name:
            envs = gym.vector.SyncVectorEnv(
                [partial(Noise, name)] * args.num_envs,
                autoreset_mode=gym.vector.AutoresetMode.SAME_STEP,
            )
        else:
            envs = real.make_envs(*make_args, **make_kwargs)
        real_reset = envs.reset
        real_step = envs.step

        def reset(**kwargs):
            obs, infos = real_reset(**kwargs)
            run.first_obs = torch.as_tensor(obs).clone()
            return obs, infos

        def step(actions):
            seen, policy, values = run.rollouts[-1]
            chosen = torch.as_tensor(actions).clone()
            run.acts.append((seen, chosen, policy.log_prob(chosen), values))
            obs, reward, terminated, truncated, infos = real_step(actions)
            run.env_steps.append((np.array(obs), np.array(reward), terminated | truncated))
            return obs, reward, terminated, truncated, infos

        envs.reset = reset
        envs.step = step
        return envs

    def forward(agent, x, *more):
        outputs = real.forward(agent, x, *more)
        if not torch.is_grad_enabled():
            run.rollouts.append((x.clone(), outputs[0], outputs[1].clone()))
        return outputs

    def gae(rewards, values, dones, next_value, gamma, gae_lambda):
        advantages, returns = real.gae(rewards, values, dones, next_value, gamma, gae_lambda)
        call = SimpleNamespace(gamma=gamma, gae_lambda=gae_lambda, bootstrap=run.rollouts[-1])
        call.rewards, call.values, call.dones = rewards.clone(), values.clone(), dones.clone()
        call.next_value = next_value.clone()
        call.advantages, call.returns = advantages.clone(), returns.clone()
        run.gae.append(call)
        return advantages, returns

    def loss(agent, mb, clip_coef, loss_args):
        with torch.no_grad():
            policy = real.forward(agent, *inputs_of(mb))[0]
            ratio = (policy.log_prob(mb.actions) - mb.logprobs).exp()
        result, stats = real.loss(agent, mb, clip_coef, loss_args)
        if kls is not None:
            kl = kls[len(run.losses)] if len(run.losses) < len(kls) else 0.0
            stats["approx_kl"] = torch.tensor(kl)
        call = SimpleNamespace(update=len(run.gae) - 1, ratio=ratio, clip_coef=clip_coef)
        call.keys = row_keys(mb.obs, mb.actions, mb.values, mb.advantages, mb.returns)
        call.logprobs = mb.logprobs.clone()
        call.stats = {key: x.item() for key, x in stats.items()}
        run.losses.append(call)
        run.parameters = [p for p in agent.parameters() if p.requires_grad]
        if gradients:  # of this minibatch alone, before anything is clipped or accumulated
            run.gradient = torch.autograd.grad(result, run.parameters, retain_graph=True)
        return result, stats

    def step(optimizer, closure=None):
        step = SimpleNamespace(update=len(run.gae) - 1)
        step.lrs = [group["lr"] for group in optimizer.param_groups]
        if gradients:
            step.norm = norm_of(run.gradient)
            step.clipped_norm = norm_of(p.grad for p in run.parameters)
            factor = min(1, args.max_grad_norm / step.norm)
            pairs = zip(run.parameters, run.gradient, strict=True)
            step.error = max((p.grad - factor * grad).abs().max().item() for p, grad in pairs)
        real.step(optimizer, closure)
        step.eps = [group["eps"] for group in optimizer.param_groups]
        run.steps.append(step)
        run.optimizers.append(optimizer)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(script, "make_envs", make_envs)
        patch.setattr(script.Agent, "forward", forward)
        patch.setattr(script, "compute_gae", gae)
        patch.setattr(script, "ppo_loss", loss)
        patch.setattr(script.Adam, "step", step)
        run.agent = script.main(args)
    run.num_updates = args.total_timesteps // (args.num_envs * args.num_steps)
    return run


@pytest.fixture(scope="module", params=SCRIPTS)
def run(request, tmp_path_factory):
    """Share one run of each script between the tests that look at it from different sides."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp(request.param))
        recording = record(request.param, gradients=True, device="cpu", **RUNS[request.param])
    recording.name = request.param
    return recording


def epochs_of(run: SimpleNamespace, update: int) -> list[list[SimpleNamespace]]:
    calls = [call for call in run.losses if call.update == update]
    size = run.args.num_minibatches
    return [calls[i : i + size] for i in range(0, len(calls), size)]


def rollout_rows(run: SimpleNamespace, update: int) -> tuple[list[int], list[float]]:
    """Return key and log-probability of each row of a rollout, as environments, agent and compute_gae gave them."""
    steps = run.acts[update * run.args.num_steps : (update + 1) * run.args.num_steps]
    assert len(steps) == run.args.num_steps
    obs, actions, logprobs, _ = (torch.stack(x).flatten(0, 1) for x in zip(*steps, strict=True))
    gae = run.gae[update]
    fields = (x.flatten() for x in (gae.values, gae.advantages, gae.returns))
    return row_keys(obs, actions, *fields), logprobs.tolist()


def logged(run: SimpleNamespace, tag: str) -> list[float]:
    """Return what stands in TensorBoard for each update."""
    events = EventAccumulator(str(run.folder)).Reload().Scalars(tag)
    batch_size = run.args.num_envs * run.args.num_steps
    assert [event.step for event in events] == [
        batch_size * (update + 1) for update in range(run.num_updates)
    ]
    return [event.value for event in events]


# The rollout


def test_rollout_pairs_each_flag_reward_and_action_with_its_step(run):
    obs, rewards, ended = map(np.stack, zip(*run.env_steps, strict=True))
    assert ended.any(), "the run is too short to show an end"
    assert np.array_equal(torch.cat([gae.dones for gae in run.gae]), ended)
    assert np.array_equal(torch.cat([gae.rewards for gae in run.gae]), rewards.astype(np.float32))
    values = torch.stack([values for *_, values in run.acts])
    torch.testing.assert_close(torch.cat([gae.values for gae in run.gae]), values)
    # The actions that the environments got were chosen for what they had shown just before.
    seen = torch.stack([obs for obs, *_ in run.acts]).numpy()
    assert np.array_equal(seen, np.concatenate([run.first_obs[None], obs[:-1]]).astype(seen.dtype))


def test_the_rollout_is_bootstrapped_from_the_observation_that_the_next_one_starts_with(run):
    for update in range(run.num_updates):
        obs, _, value = run.gae[update].bootstrap
        assert torch.equal(run.gae[update].next_value, value)
        assert run.gae[update].gamma == run.args.gamma
        assert run.gae[update].gae_lambda == run.args.gae_lambda
        if update + 1 < run.num_updates:
            assert torch.equal(obs, run.acts[(update + 1) * run.args.num_steps][0])


def test_the_old_log_probability_is_that_of_the_policy_that_took_the_action(run):
    rollouts = [dict(zip(*rollout_rows(run, i), strict=True)) for i in range(run.num_updates)]
    for call in run.losses:
        logprobs = rollouts[call.update]
        expected = [logprobs[key] for key in call.keys]
        assert call.logprobs.tolist() == pytest.approx(expected, rel=1e-5, abs=1e-6)


# The minibatches


def test_every_epoch_visits_every_row_once(run):
    for update in range(run.num_updates):
        rows, _ = rollout_rows(run, update)
        assert len(rows) == run.args.num_envs * run.args.num_steps
        epochs = epochs_of(run, update)
        assert len(epochs) == run.args.update_epochs
        for epoch in epochs:
            size = len(rows) // run.args.num_minibatches
            assert [len(call.keys) for call in epoch] == [size] * run.args.num_minibatches
            assert Counter(key for call in epoch for key in call.keys) == Counter(rows)


@pytest.mark.parametrize("num_minibatches", [1, 5, 6, 30])
def test_an_epoch_has_as_many_minibatches_of_one_size_as_asked_for(num_minibatches):
    sizes = {"num_envs": 3, "num_steps": 10, "total_timesteps": 60, "update_epochs": 2}
    run = record("ppo", **sizes, num_minibatches=num_minibatches, norm_adv=False)
    for update in range(2):
        rows, _ = rollout_rows(run, update)
        calls = [call for call in run.losses if call.update == update]
        assert [len(call.keys) for call in calls] == [30 // num_minibatches] * 2 * num_minibatches
        for epoch in epochs_of(run, update):
            assert Counter(key for call in epoch for key in call.keys) == Counter(rows)


def test_every_epoch_has_an_order_of_its_own(run):
    if run.name == "ppo_atari_lstm":
        pytest.skip("two environments have only two orders; test_lstm.py has more of them")
    orders = [tuple(key for call in epoch for key in call.keys) for epoch in epochs_of(run, 0)]
    assert len(set(orders)) == run.args.update_epochs
    assert tuple(rollout_rows(run, 0)[0]) not in orders
    # The rows also meet in new minibatches, not in the same ones in a new order.
    groups = {frozenset(call.keys) for epoch in epochs_of(run, 0) for call in epoch}
    assert len(groups) == run.args.update_epochs * run.args.num_minibatches


@pytest.mark.parametrize("name", PLAIN)
def test_minibatches_of_a_single_row_stay_finite(name):
    sizes = {"num_envs": 1, "num_steps": 4, "total_timesteps": 8, "num_minibatches": 4}
    run = record(name, **SHORT | sizes, norm_adv=False)
    assert [len(call.keys) for call in run.losses] == [1] * 8
    assert all(p.isfinite().all() for p in run.agent.parameters())
    for tag in STATISTICS:
        assert np.isfinite(logged(run, f"losses/{tag}")).all(), tag


def test_ratio_is_one_in_the_first_minibatch_of_an_update(run):
    for update in range(run.num_updates):
        first, second = epochs_of(run, update)[0][:2]
        # The log-probability of eight components is about -20, where float32 is 2e-6 apart.
        atol = 4e-6 if run.name == "ppo_multidiscrete" else 1e-6
        torch.testing.assert_close(first.ratio, torch.ones_like(first.ratio), rtol=0, atol=atol)
        assert first.stats["clipfrac"] == 0
        assert (second.ratio - 1).abs().max() > 1e-5  # the first step has moved the policy


# The steps


def test_each_step_uses_the_gradient_of_its_minibatch_clipped_by_its_global_norm(run):
    per_update = run.args.update_epochs * run.args.num_minibatches
    assert len(run.steps) == len(run.losses) == run.num_updates * per_update
    for step in run.steps:
        assert step.error < 1e-4 * run.args.max_grad_norm
        assert step.clipped_norm <= run.args.max_grad_norm * (1 + 1e-4)


@pytest.mark.parametrize("name", SCRIPTS)
def test_max_grad_norm_bounds_the_norm_and_leaves_small_gradients_alone(name):
    free = record(name, gradients=True, **SHORT, total_timesteps=16, max_grad_norm=1e6)
    norms = [step.norm for step in free.steps]
    assert [step.clipped_norm for step in free.steps] == pytest.approx(norms, rel=1e-4)
    limit = norms[0] / 3
    clipped = record(name, gradients=True, **SHORT, total_timesteps=16, max_grad_norm=limit)
    assert clipped.steps[0].norm == pytest.approx(norms[0], rel=1e-4)
    assert clipped.steps[0].clipped_norm == pytest.approx(limit, rel=1e-4)


def test_every_step_has_its_own_epsilon(run):
    """TensorFlow's 1e-5 is PyTorch's 1e-5 / sqrt(1 - 0.999**t) in step t, counted over all updates."""
    expected = [1e-5 / (1 - 0.999**t) ** 0.5 for t in range(1, len(run.steps) + 1)]
    assert [step.eps for step in run.steps] == [[pytest.approx(x, rel=1e-12)] for x in expected]


def test_one_optimizer_steps_all_parameters_without_weight_decay(run):
    assert len({id(optimizer) for optimizer in run.optimizers}) == 1
    (group,) = run.optimizers[0].param_groups
    assert {id(p) for p in group["params"] if p.requires_grad} == {id(p) for p in run.parameters}
    assert (group["betas"], group["weight_decay"], group["amsgrad"]) == ((0.9, 0.999), 0, False)


@pytest.mark.parametrize("name", ALL_SCRIPTS)
def test_adam_takes_tensorflows_steps_in_all_groups_and_after_a_checkpoint(name):
    """The second half of the steps is taken by another optimiser, which has loaded the state of the first."""
    adam = importlib.import_module(name).Adam
    torch.manual_seed(1)
    weights = [torch.randn(5, requires_grad=True), torch.randn(3, 2, requires_grad=True)]
    rates = [0.01, 0.002]
    groups = [{"params": [w], "lr": lr} for w, lr in zip(weights, rates, strict=True)]
    optimizer = adam(copy.copy(groups), fused=True)
    expected = [w.detach().double() for w in weights]
    m, v = [0, 0], [0, 0]
    for t in range(1, 9):
        if t == 5:
            state = copy.deepcopy(optimizer.state_dict())
            optimizer = adam([{"params": [w]} for w in weights], fused=True)
            optimizer.load_state_dict(state)
        for i, w in enumerate(weights):
            w.grad = 10.0**-t * torch.randn_like(w)  # soon as small as epsilon
            g = w.grad.double()
            m[i] = 0.9 * m[i] + 0.1 * g
            v[i] = 0.999 * v[i] + 0.001 * g**2
            step_size = rates[i] * (1 - 0.999**t) ** 0.5 / (1 - 0.9**t)
            expected[i] = expected[i] - step_size * m[i] / (v[i].sqrt() + 1e-5)
        optimizer.step()
        epsilon = 1e-5 / (1 - 0.999**t) ** 0.5
        assert [group["eps"] for group in optimizer.param_groups] == [pytest.approx(epsilon)] * 2
        for w, x in zip(weights, expected, strict=True):
            torch.testing.assert_close(w.detach().double(), x, rtol=0, atol=1e-6)


def test_adam_evaluates_a_closure_and_returns_its_loss():
    weight = torch.tensor([3.0], requires_grad=True)
    optimizer = importlib.import_module("ppo").Adam([weight], lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = (weight**2).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 9
    assert weight.item() == pytest.approx(2.9, abs=1e-4)


@pytest.mark.parametrize("name", ["ppo", "ppo_atari_lstm"])  # all others have the same epochs
def test_two_groups_of_parameters_train_as_one_does(name, monkeypatch):
    script = importlib.import_module(name)
    one = record(name, **SHORT, total_timesteps=32)

    class TwoGroups(script.Adam):
        def __init__(self, parameters, **options):
            first, *rest = parameters
            super().__init__([{"params": [first]}, {"params": rest}], **options)

    monkeypatch.setattr(script, "Adam", TwoGroups)
    two = record(name, **SHORT, total_timesteps=32)
    assert [step.lrs for step in two.steps] == [step.lrs * 2 for step in one.steps]
    assert [step.eps for step in two.steps] == [step.eps * 2 for step in one.steps]
    for a, b in zip(one.agent.parameters(), two.agent.parameters(), strict=True):
        assert torch.equal(a, b)


# The schedules


def test_learning_rate_falls_linearly_and_clip_coef_stays_by_default(run):
    for step, call in zip(run.steps, run.losses, strict=True):
        # The first of three updates runs at the full rate, the last at a third of it.
        assert step.lrs == [pytest.approx(run.args.learning_rate * (3 - step.update) / 3)]
        assert call.clip_coef == run.args.clip_coef


@pytest.mark.parametrize("name", SCRIPTS)
def test_clip_coef_falls_linearly_and_learning_rate_stays_on_request(name):
    flags = {"anneal_lr": False, "anneal_clip_coef": True, "clip_coef": 0.4}
    run = record(name, **SHORT, total_timesteps=64, **flags)
    assert [step.lrs for step in run.steps] == [[run.args.learning_rate]] * 8
    expected = [0.4, 0.4, 0.3, 0.3, 0.2, 0.2, 0.1, 0.1]
    assert [call.clip_coef for call in run.losses] == pytest.approx(expected)


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_run_that_goes_on_has_the_schedules_of_one_that_never_stopped(name, monkeypatch):
    """Stopped by a signal in the second of five updates; of 87 steps, the last 7 make no update."""
    args = SHORT | {"total_timesteps": 87, "anneal_clip_coef": True, "anneal_lr": True}
    args |= {"learning_rate": 0.001}
    script = importlib.import_module(name)
    whole = record(name, **args)
    end_update = script.Run.end_update

    def stopping(run, lr, losses):
        run.stop_signal = 15 if run.global_step == 32 else 0
        end_update(run, lr, losses)

    monkeypatch.setattr(script.Run, "end_update", stopping)
    with pytest.raises(SystemExit):
        record(name, **args, run_dir=Path("stopped"))
    rest = record(name, **args, run_dir=Path("stopped"))
    rates = [step.lrs[0] for step in whole.steps]
    assert rates == pytest.approx([1e-3, 1e-3, 8e-4, 8e-4, 6e-4, 6e-4, 4e-4, 4e-4, 2e-4, 2e-4])
    assert [step.lrs[0] for step in rest.steps] == rates[4:]
    assert [call.clip_coef for call in rest.losses] == [call.clip_coef for call in whole.losses][4:]
    assert [step.eps for step in rest.steps] == [step.eps for step in whole.steps][4:]


# Early stopping


@pytest.mark.parametrize(("target_kl", "epochs"), [(1e9, 3), (1e-12, 1), (0.0, 1)])
@pytest.mark.parametrize("name", ["ppo", "ppo_atari_lstm"])
def test_a_huge_target_kl_stops_no_epoch_and_a_tiny_one_all_but_the_first(name, target_kl, epochs):
    run = record(name, **SHORT | {"update_epochs": 3}, total_timesteps=32, target_kl=target_kl)
    assert [len(epochs_of(run, update)) for update in range(2)] == [epochs, epochs]


@pytest.mark.parametrize("name", SCRIPTS)
def test_target_kl_is_compared_with_the_mean_of_the_epoch_that_just_ran(name):
    # The means are 3 and 4. The last minibatch of the first epoch is above 3.5 already, the last one of the second is
    # not, and the mean of both epochs never is. The second update starts afresh.
    kls = [0.0, 6.0, 8.0, 0.0]
    sizes = SHORT | {"update_epochs": 3, "total_timesteps": 32}
    run = record(name, kls=kls, **sizes, target_kl=3.5)
    assert [len(epochs_of(run, update)) for update in range(2)] == [2, 3]
    check_statistics(run)


# The statistics


def means_of(run: SimpleNamespace, values: list[tuple[int, float]]) -> list[float]:
    """Return the mean of each update's values."""
    return [
        np.mean([value for update, value in values if update == number])
        for number in range(run.num_updates)
    ]


def check_statistics(run: SimpleNamespace) -> None:
    """Compare what stands in TensorBoard with the means over all minibatches of each update."""
    for tag in STATISTICS:
        means = means_of(run, [(call.update, call.stats[tag]) for call in run.losses])
        assert logged(run, f"losses/{tag}") == pytest.approx(means, rel=1e-4, abs=1e-7), tag
    rates = means_of(run, [(step.update, step.lrs[0]) for step in run.steps])
    assert logged(run, "charts/learning_rate") == pytest.approx(rates)


def test_logged_losses_are_the_means_over_all_minibatches_of_the_update(run):
    check_statistics(run)


def test_logged_gradient_norm_is_that_before_clipping(run):
    means = means_of(run, [(step.update, step.norm) for step in run.steps])
    assert logged(run, "losses/grad_norm") == pytest.approx(means, rel=1e-4)


def test_explained_variance_is_that_of_the_values_of_the_rollout(run):
    expected = []
    for gae in run.gae:
        values = gae.values.numpy()
        returns = gae.returns.numpy()
        expected.append(1 - np.var(returns - values) / np.var(returns))
    got = logged(run, "losses/explained_variance")
    assert got == pytest.approx(expected, rel=1e-4, abs=1e-4)


# The networks


def new_agent(name: str, *options) -> torch.nn.Module:
    return importlib.import_module(name).Agent(spaces_of(name), *options)


def value_of(agent: torch.nn.Module, name: str) -> torch.Tensor:
    """Return the sum of the values of four random observations."""
    space = spaces_of(name).single_observation_space
    obs = torch.as_tensor(np.stack([space.sample() for _ in range(4)]))
    more = [torch.ones(4, 6, dtype=torch.bool)] if name == "ppo_multidiscrete" else []
    return agent(obs, *more)[1].sum()


def policy_of(agent: torch.nn.Module) -> torch.nn.Module:
    return agent.actor_mean if hasattr(agent, "actor_mean") else agent.actor


def layers_of(module: torch.nn.Module) -> list[torch.nn.Module]:
    return [layer for layer in module.modules() if hasattr(layer, "weight")]


@pytest.mark.parametrize(
    ("name", "options"),
    # test_procgen.py looks at that of IMPALA.
    [
        *((name, ()) for name in SCRIPTS if name != "ppo_procgen"),
        *((name, (True,)) for name in VECTORS),
    ],
)
def test_layers_start_orthogonal_with_their_gains_and_without_bias(name, options):
    agent = new_agent(name, *options)
    heads = {layers_of(policy_of(agent))[-1]: 0.01, layers_of(agent.critic)[-1]: 1.0}
    layers = layers_of(agent)
    assert len(layers) == (4 if options else 5 if name == "ppo_multidiscrete" else 6)
    for layer in layers:
        weight = layer.weight.detach().double()
        weight = weight.flatten(1)  # a convolution maps (channels * height * width) inputs
        gram = weight @ weight.T if weight.shape[0] <= weight.shape[1] else weight.T @ weight
        gain = heads.get(layer, 2**0.5)
        identity = torch.eye(len(gram), dtype=torch.float64)
        torch.testing.assert_close(gram / gain**2, identity, rtol=0, atol=1e-5)
        assert not layer.bias.any()
    layer_ids = {id(p) for layer in layers for p in layer.parameters()}
    rest = {id(p) for p in agent.parameters()} - layer_ids
    if name == "ppo_continuous_action":
        assert rest == {id(agent.actor_logstd)}
        assert torch.equal(agent.actor_logstd, torch.zeros(3))
    elif name == "ppo_atari_lstm":  # test_lstm.py looks at these
        assert rest == {id(p) for p in agent.lstm.parameters()}
    else:
        assert not rest


@pytest.mark.parametrize("name", VECTORS)
def test_policy_and_value_share_no_weights_by_default(name):
    agent = new_agent(name)
    policy = list(policy_of(agent).parameters())
    value = list(agent.critic.parameters())
    assert not {id(p) for p in policy} & {id(p) for p in value}
    value_of(agent, name).backward()
    assert all(p.grad is None for p in policy)
    assert all(p.grad.any() for p in value)


@pytest.mark.parametrize("name", [*SHARED, *VECTORS])
def test_a_shared_body_learns_from_the_value(name):
    agent = new_agent(name) if name in SHARED else new_agent(name, True)
    body = agent.network if name in SHARED else policy_of(agent)[:-1]
    value_of(agent, name).backward()
    assert all(p.grad is not None and p.grad.any() for p in body.parameters())
    assert all(p.grad is None for p in layers_of(policy_of(agent))[-1].parameters())


@pytest.mark.parametrize("name", VECTORS)
def test_shared_network_trains_one_body_instead_of_two(name):
    parameters = []
    for shared in (False, True):
        run = record(name, **SHORT, total_timesteps=16, shared_network=shared)
        parameters.append(sum(p.numel() for p in run.agent.parameters()))
        body = sum(p.numel() for p in policy_of(run.agent)[:-1].parameters())
    assert parameters[0] - parameters[1] == body
