"""What the learner does in real, short runs: minibatches, gradients, steps, schedules, early stop and statistics."""

import importlib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import PLAIN, SCRIPTS, TINY
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

IMAGES = ("ppo_atari", "ppo_atari_envpool", "ppo_atari_lstm")
VECTORS = ("ppo", "ppo_continuous_action", "ppo_multidiscrete")
STATISTICS = ("policy_loss", "value_loss", "entropy", "old_approx_kl", "approx_kl", "clipfrac")

# Three updates each, and long enough for an episode to end.
RUNS = {
    name: TINY[name]
    | {
        "num_envs": 2,
        "num_steps": 32,
        "total_timesteps": 192,
        "num_minibatches": 2,
        "update_epochs": 3,
    }
    for name in SCRIPTS
}
RUNS["ppo_continuous_action"]["env_id"] = "Hopper-v5"
RUNS["ppo_multidiscrete"]["action_mask"] = False  # a robot soon walks into a wall
# One or two small minibatches, for what needs no more.
SHORT = {"num_envs": 2, "num_steps": 8, "num_minibatches": 2, "update_epochs": 1, "device": "cpu"}


def inputs_of(mb) -> tuple[torch.Tensor, ...]:
    """Return what the agent of this script is given to evaluate a minibatch."""
    if hasattr(mb, "lstm_state"):
        return mb.obs, mb.lstm_state, mb.dones, mb.actions
    return mb.obs, mb.actions, *mb[6:]


def row_keys(*fields: torch.Tensor) -> list[int]:
    """Return one number for each row that tells it from all others."""
    return [hash(b"".join(x.numpy().tobytes() for x in row)) for row in zip(*fields, strict=True)]


def norm_of(tensors: Iterable[torch.Tensor]) -> float:
    """Return the norm of all elements of all tensors together."""
    return sum(x.double().square().sum().item() for x in tensors) ** 0.5


def record(
    name: str, gradients: bool = False, kls: list[float] | None = None, **overrides
) -> SimpleNamespace:
    """Run the script and return what its parts got and gave, in the order of the calls.

    The gradients are looked at only on request, since that takes time. Where `kls` is given, the first minibatches
    report these as their approximate KL, and all others 0.
    """
    script = importlib.import_module(name)
    args = script.Args(**overrides)
    real = SimpleNamespace(
        gae=script.compute_gae, loss=script.ppo_loss, make_envs=script.make_envs,
        sample=script.Agent.get_action, act=script.Agent.get_action_and_value, value=script.Agent.get_value,
    )  # fmt: skip
    run = SimpleNamespace(
        args=args, first_obs=None, env_steps=[], samples=[], acts=[], value_calls=[], gae=[]
    )
    run.losses = []
    run.steps = []
    run.optimizers = []

    def make_envs(*make_args):
        envs = real.make_envs(*make_args)
        real_reset = envs.reset
        real_step = envs.step

        def reset(**kwargs):
            obs, infos = real_reset(**kwargs)
            run.first_obs = torch.as_tensor(obs).clone()
            return obs, infos

        def step(actions):
            obs, reward, terminated, truncated, infos = real_step(actions)
            step = (
                torch.as_tensor(obs).clone(),
                reward.copy(),
                terminated | truncated,
                actions.copy(),
            )
            run.env_steps.append(step)
            return obs, reward, terminated, truncated, infos

        envs.reset = reset
        envs.step = step
        return envs

    def sample(agent, x, **more):
        action = real.sample(agent, x, **more)
        run.samples.append((x.clone(), action.clone()))
        return action

    def act(agent, x, *more):
        outputs = real.act(agent, x, *more)
        if not torch.is_grad_enabled():  # the rollout, and not the loss
            # One step, or all steps of a rollout, one after the other.
            steps = [
                field.clone().split(args.num_envs)
                for field in (x, outputs[0], outputs[1], outputs[3])
            ]
            run.acts += zip(*steps, strict=True)
        return outputs

    def value(agent, x, *more):
        run.value_calls.append((x.clone(), real.value(agent, x, *more)))
        return run.value_calls[-1][1]

    def gae(rewards, values, dones, next_value, next_done, gamma, gae_lambda):
        inputs = [x.clone() for x in (rewards, values, dones, next_value, next_done)]
        advantages, returns = real.gae(
            rewards, values, dones, next_value, next_done, gamma, gae_lambda
        )
        names = ("rewards", "values", "dones", "next_value", "next_done", "advantages", "returns")
        call = SimpleNamespace(
            **dict(zip(names, [*inputs, advantages.clone(), returns.clone()], strict=True))
        )
        call.gamma = gamma
        call.gae_lambda = gae_lambda
        call.bootstrap = run.value_calls[-1]
        run.gae.append(call)
        return advantages, returns

    def loss(agent, mb, clip_coef, loss_args):
        with torch.no_grad():
            ratio = (real.act(agent, *inputs_of(mb))[1] - mb.logprobs).exp()
        result, stats = real.loss(agent, mb, clip_coef, loss_args)
        if kls is not None:
            stats["approx_kl"] = torch.tensor(
                kls[len(run.losses)] if len(run.losses) < len(kls) else 0.0
            )
        call = SimpleNamespace(
            update=len(run.gae) - 1, keys=row_keys(*mb[:6]), ratio=ratio, clip_coef=clip_coef
        )
        call.stats = {key: x.item() for key, x in stats.items()}
        run.losses.append(call)
        run.parameters = [p for p in agent.parameters() if p.requires_grad]
        if gradients:  # of this minibatch alone, before anything is clipped or accumulated
            run.gradient = torch.autograd.grad(result, run.parameters, retain_graph=True)
        return result, stats

    def before_step(optimizer, *_):
        (group,) = optimizer.param_groups
        step = SimpleNamespace(lr=float(group["lr"]), eps=group["eps"], update=len(run.gae) - 1)
        run.steps.append(step)
        run.optimizers.append(optimizer)
        if not gradients:
            return
        step.norm = norm_of(run.gradient)
        step.clipped_norm = norm_of(p.grad for p in run.parameters)
        factor = min(1, args.max_grad_norm / step.norm)
        pairs = zip(run.parameters, run.gradient, strict=True)
        step.error = max((p.grad - factor * gradient).abs().max().item() for p, gradient in pairs)
        if len(run.steps) == 1:
            run.first_before = [p.detach().clone() for p in run.parameters]
            run.first_gradient = [p.grad.clone() for p in run.parameters]

    def after_step(*_):
        if len(run.steps) == 1:
            run.first_after = [p.detach().clone() for p in run.parameters]

    hooks = [
        register_optimizer_step_pre_hook(before_step),
        register_optimizer_step_post_hook(after_step),
    ]
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(script, "make_envs", make_envs)
            patch.setattr(script, "compute_gae", gae)
            patch.setattr(script, "ppo_loss", loss)
            patch.setattr(script.Agent, "get_action", sample)
            patch.setattr(script.Agent, "get_action_and_value", act)
            patch.setattr(script.Agent, "get_value", value)
            run.agent = script.main(args)
    finally:
        for hook in hooks:
            hook.remove()
    (run.folder,) = (path.resolve() for path in Path("runs").rglob(f"*__{args.exp_name}__*"))
    run.num_updates = args.total_timesteps // (args.num_envs * args.num_steps)
    return run


@pytest.fixture(scope="module", params=SCRIPTS)
def run(request, tmp_path_factory):
    """Share one run of each script between the tests that look at it from different sides."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp(request.param))
        recording = record(request.param, gradients=True, device="cpu", **RUNS[request.param])
    recording.name = request.param
    return recording


def epochs_of(run: SimpleNamespace, update: int) -> list[list[SimpleNamespace]]:
    calls = [call for call in run.losses if call.update == update]
    size = run.args.num_minibatches
    return [calls[i : i + size] for i in range(0, len(calls), size)]


def rollout_keys(run: SimpleNamespace, update: int) -> list[int]:
    """Return the keys of all rows of one rollout, as environments, agent and compute_gae gave them."""
    steps = run.acts[update * run.args.num_steps : (update + 1) * run.args.num_steps]
    assert len(steps) == run.args.num_steps
    obs, actions, logprobs, values = (
        torch.stack(x).flatten(0, 1) for x in zip(*steps, strict=True)
    )
    gae = run.gae[update]
    return row_keys(obs, actions, logprobs, values, gae.advantages.flatten(), gae.returns.flatten())


# The rollout


def test_rollout_pairs_each_flag_reward_and_action_with_its_step(run):
    obs, rewards, ended, actions = map(np.stack, zip(*run.env_steps, strict=True))
    assert ended.any(), "the run is too short to show an end"
    begins = np.concatenate(
        [np.zeros_like(ended[:1]), ended]
    )  # begins[t]: observation t came with an end
    dones = torch.cat([gae.dones for gae in run.gae]).numpy()
    assert np.array_equal(dones, begins[:-1])
    assert np.array_equal(
        torch.stack([gae.next_done for gae in run.gae]),
        ended[run.args.num_steps - 1 :: run.args.num_steps],
    )
    assert torch.equal(
        torch.cat([gae.values for gae in run.gae]), torch.stack([values for *_, values in run.acts])
    )
    assert np.array_equal(torch.cat([gae.rewards for gae in run.gae]), rewards.astype(np.float32))
    seen = torch.stack([obs for obs, *_ in run.acts]).numpy()
    assert np.array_equal(seen, np.concatenate([run.first_obs[None], obs[:-1]]).astype(seen.dtype))
    assert np.array_equal(torch.stack([action for _, action, *_ in run.acts]), actions)


def test_the_action_was_chosen_for_the_observation_that_is_stored_with_it(run):
    if run.name in IMAGES:
        pytest.skip("action, log-probability and value come from one call")
    assert len(run.samples) == len(run.acts) == run.num_updates * run.args.num_steps
    for (seen, chosen), (obs, action, *_) in zip(run.samples, run.acts, strict=True):
        assert torch.equal(seen, obs)
        assert torch.equal(chosen, action)


def test_the_segment_is_bootstrapped_from_the_observation_that_the_next_one_starts_with(run):
    for update in range(run.num_updates):
        obs, value = run.gae[update].bootstrap
        assert torch.equal(run.gae[update].next_value, value)
        assert (run.gae[update].gamma, run.gae[update].gae_lambda) == (
            run.args.gamma,
            run.args.gae_lambda,
        )
        if update + 1 < run.num_updates:
            assert torch.equal(obs, run.acts[(update + 1) * run.args.num_steps][0])


# The minibatches


def test_every_epoch_visits_every_row_once(run):
    for update in range(run.num_updates):
        rows = rollout_keys(run, update)
        assert len(rows) == run.args.num_envs * run.args.num_steps
        epochs = epochs_of(run, update)
        assert len(epochs) == run.args.update_epochs
        for epoch in epochs:
            assert [len(call.keys) for call in epoch] == [
                len(rows) // run.args.num_minibatches
            ] * len(epoch)
            assert len(epoch) == run.args.num_minibatches
            assert Counter(key for call in epoch for key in call.keys) == Counter(rows)


@pytest.mark.parametrize("num_minibatches", [1, 5, 6, 30])
def test_an_epoch_has_as_many_minibatches_of_one_size_as_asked_for(num_minibatches):
    run = record(
        "ppo",
        num_envs=3,
        num_steps=10,
        total_timesteps=60,
        num_minibatches=num_minibatches,
        update_epochs=2,
    )
    for update in range(2):
        rows = Counter(rollout_keys(run, update))
        calls = [call for call in run.losses if call.update == update]
        assert [len(call.keys) for call in calls] == [30 // num_minibatches] * 2 * num_minibatches
        for epoch in epochs_of(run, update):
            assert Counter(key for call in epoch for key in call.keys) == rows


def test_every_epoch_has_an_order_of_its_own(run):
    if run.name == "ppo_atari_lstm":
        pytest.skip("two environments have only two orders; test_lstm.py has more of them")
    orders = [tuple(key for call in epoch for key in call.keys) for epoch in epochs_of(run, 0)]
    assert len(set(orders)) == run.args.update_epochs
    assert tuple(rollout_keys(run, 0)) not in orders
    # The rows also meet in new minibatches, not in the same ones in a new order.
    groups = {frozenset(call.keys) for epoch in epochs_of(run, 0) for call in epoch}
    assert len(groups) == run.args.update_epochs * run.args.num_minibatches


@pytest.mark.parametrize("name", PLAIN)
def test_minibatches_of_a_single_row_stay_finite(name):
    sizes = {
        "num_envs": 1,
        "num_steps": 4,
        "num_minibatches": 4,
        "update_epochs": 1,
        "total_timesteps": 8,
    }
    run = record(name, **sizes, device="cpu")
    assert [len(call.keys) for call in run.losses] == [1] * 8
    assert all(p.isfinite().all() for p in run.agent.parameters())
    events = EventAccumulator(str(run.folder))
    events.Reload()
    for tag in STATISTICS:
        assert np.isfinite([event.value for event in events.Scalars(f"losses/{tag}")]).all(), tag


def test_ratio_is_one_in_the_first_minibatch_of_an_update(run):
    for update in range(run.num_updates):
        first, second = epochs_of(run, update)[0][:2]
        torch.testing.assert_close(first.ratio, torch.ones_like(first.ratio), rtol=0, atol=1e-6)
        assert first.stats["clipfrac"] == 0
        assert (second.ratio - 1).abs().max() > 1e-5  # the first step has moved the policy


# The steps


def test_each_step_uses_the_gradient_of_its_minibatch_clipped_by_its_global_norm(run):
    assert (
        len(run.steps)
        == len(run.losses)
        == run.num_updates * run.args.update_epochs * run.args.num_minibatches
    )
    for step in run.steps:
        assert step.error < 1e-4 * run.args.max_grad_norm
        assert step.clipped_norm <= run.args.max_grad_norm * (1 + 1e-4)


@pytest.mark.parametrize("name", SCRIPTS)
def test_max_grad_norm_bounds_the_norm_and_leaves_small_gradients_alone(name):
    free = record(name, gradients=True, **SHORT, total_timesteps=16, max_grad_norm=1e6)
    norms = [step.norm for step in free.steps]
    assert [step.clipped_norm for step in free.steps] == pytest.approx(norms, rel=1e-4)
    limit = norms[0] / 3
    clipped = record(
        name, gradients=True, **SHORT, total_timesteps=16, max_grad_norm=limit, exp_name="clipped"
    )
    assert clipped.steps[0].norm == pytest.approx(norms[0], rel=1e-4)
    assert clipped.steps[0].clipped_norm == pytest.approx(limit, rel=1e-4)


def test_the_first_step_is_that_of_tensorflows_adam(run):
    lr = run.args.learning_rate
    differs_from_pytorch = False
    differs_from_the_default_epsilon = False
    for before, after, gradient in zip(
        run.first_before, run.first_after, run.first_gradient, strict=True
    ):
        gradient = gradient.double()
        m = 0.1 * gradient
        v = 0.001 * gradient**2
        step_size = lr * (1 - 0.999) ** 0.5 / (1 - 0.9)
        moved = after.double() - before.double()
        # A weight is rounded to 24 bits.
        assert (
            moved + step_size * m / (v.sqrt() + 1e-5)
        ).abs().max() < 1e-3 * lr + 1e-7 * before.abs().max()
        # Nor would it pass with PyTorch's 1e-5 after the correction of the bias, or with the default epsilon.
        differs_from_pytorch |= bool(
            (moved + lr * gradient / (gradient.abs() + 1e-5)).abs().max() > 0.1 * lr
        )
        differs_from_the_default_epsilon |= bool(
            (moved + step_size * m / (v.sqrt() + 1e-8)).abs().max() > 0.1 * lr
        )
    assert differs_from_pytorch
    assert differs_from_the_default_epsilon


def test_every_step_has_its_own_epsilon(run):
    """TensorFlow's 1e-5 is PyTorch's 1e-5 / sqrt(1 - 0.999**t) in step t, counted over all updates."""
    expected = [1e-5 / (1 - 0.999**t) ** 0.5 for t in range(1, len(run.steps) + 1)]
    assert [step.eps for step in run.steps] == pytest.approx(expected, rel=1e-12)


def test_one_optimizer_steps_all_parameters_without_weight_decay(run):
    assert len({id(optimizer) for optimizer in run.optimizers}) == 1
    (group,) = run.optimizers[0].param_groups
    assert {id(p) for p in group["params"] if p.requires_grad} == {id(p) for p in run.parameters}
    assert (group["betas"], group["weight_decay"], group["amsgrad"]) == ((0.9, 0.999), 0, False)


# The schedules


def test_learning_rate_falls_linearly_and_clip_coef_stays_by_default(run):
    for step, call in zip(run.steps, run.losses, strict=True):
        # The first of three updates runs at the full rate, the last at a third of it.
        assert step.lr == pytest.approx(run.args.learning_rate * (3 - step.update) / 3)
        assert call.clip_coef == run.args.clip_coef


@pytest.mark.parametrize("name", SCRIPTS)
def test_clip_coef_falls_linearly_and_learning_rate_stays_on_request(name):
    run = record(
        name, **SHORT, total_timesteps=64, anneal_lr=False, anneal_clip_coef=True, clip_coef=0.4
    )
    assert [step.lr for step in run.steps] == pytest.approx([run.args.learning_rate] * 8)
    assert [call.clip_coef for call in run.losses] == pytest.approx(
        [0.4, 0.4, 0.3, 0.3, 0.2, 0.2, 0.1, 0.1]
    )


# Early stopping


@pytest.mark.parametrize(("target_kl", "epochs"), [(1e9, 3), (1e-12, 1)])
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_huge_target_kl_stops_no_epoch_and_a_tiny_one_all_but_the_first(name, target_kl, epochs):
    run = record(name, **SHORT | {"update_epochs": 3}, total_timesteps=32, target_kl=target_kl)
    assert [len(epochs_of(run, update)) for update in range(2)] == [epochs, epochs]


@pytest.mark.parametrize("name", SCRIPTS)
def test_target_kl_is_compared_with_the_mean_of_the_epoch_that_just_ran(name):
    # The means are 3 and 4. The last minibatch of the first epoch is above 3.5 already, the last one of the second is
    # not, and the mean of both epochs never is. The second update starts afresh.
    run = record(
        name,
        kls=[0.0, 6.0, 8.0, 0.0],
        **SHORT | {"update_epochs": 3},
        total_timesteps=32,
        target_kl=3.5,
    )
    assert [len(epochs_of(run, update)) for update in range(2)] == [2, 3]
    check_statistics(run)


# The statistics


def check_statistics(run: SimpleNamespace) -> None:
    """Compare what stands in TensorBoard with the means over all minibatches of each update."""
    events = EventAccumulator(str(run.folder))
    events.Reload()
    batch_size = run.args.num_envs * run.args.num_steps
    for tag in STATISTICS:
        logged = events.Scalars(f"losses/{tag}")
        assert [event.step for event in logged] == [
            batch_size * (update + 1) for update in range(run.num_updates)
        ]
        for update, event in enumerate(logged):
            mean = np.mean([call.stats[tag] for call in run.losses if call.update == update])
            assert event.value == pytest.approx(mean, rel=1e-4, abs=1e-7), tag
    rates = [
        next(step.lr for step in run.steps if step.update == update)
        for update in range(run.num_updates)
    ]
    assert [event.value for event in events.Scalars("charts/learning_rate")] == pytest.approx(rates)


def test_logged_losses_are_the_means_over_all_minibatches_of_the_update(run):
    check_statistics(run)


def test_logged_gradient_norm_is_that_before_clipping(run):
    events = EventAccumulator(str(run.folder))
    events.Reload()
    means = [
        np.mean([step.norm for step in run.steps if step.update == update])
        for update in range(run.num_updates)
    ]
    assert [event.value for event in events.Scalars("losses/grad_norm")] == pytest.approx(
        means, rel=1e-4
    )


def test_explained_variance_is_that_of_the_values_of_the_rollout(run):
    events = EventAccumulator(str(run.folder))
    events.Reload()
    for update, event in enumerate(events.Scalars("losses/explained_variance")):
        values = run.gae[update].values.numpy()
        returns = run.gae[update].returns.numpy()
        assert event.value == pytest.approx(
            1 - np.var(returns - values) / np.var(returns), rel=1e-4, abs=1e-4
        )


# The networks


def spaces(name: str) -> SimpleNamespace:
    obs_space = (
        gym.spaces.Box(0, 255, (4, 84, 84), np.uint8)
        if name in IMAGES
        else gym.spaces.Box(-1, 1, (5,))
    )
    action_spaces = {"ppo_continuous_action": gym.spaces.Box(-1, 1, (3,))}
    action_spaces["ppo_multidiscrete"] = gym.spaces.MultiDiscrete([2, 4])
    action_space = action_spaces.get(name, gym.spaces.Discrete(6))
    return SimpleNamespace(single_observation_space=obs_space, single_action_space=action_space)


def policy_of(agent: torch.nn.Module) -> torch.nn.Module:
    return agent.actor_mean if hasattr(agent, "actor_mean") else agent.actor


def layers_of(module: torch.nn.Module) -> list[torch.nn.Module]:
    return [layer for layer in module.modules() if hasattr(layer, "weight")]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, ()) for name in SCRIPTS),
        *((name, (True,)) for name in ("ppo", "ppo_continuous_action")),
    ],
)
def test_layers_start_orthogonal_with_their_gains_and_without_bias(name, options):
    agent = importlib.import_module(name).Agent(spaces(name), *options)
    heads = {layers_of(policy_of(agent))[-1]: 0.01, layers_of(agent.critic)[-1]: 1.0}
    layers = layers_of(agent)
    assert len(layers) == (6 if name in IMAGES else 4 if options else 6)
    for layer in layers:
        weight = (
            layer.weight.detach().double().flatten(1)
        )  # a convolution maps (channels * height * width) inputs
        gram = weight @ weight.T if weight.shape[0] <= weight.shape[1] else weight.T @ weight
        gain = heads.get(layer, 2**0.5)
        torch.testing.assert_close(
            gram / gain**2, torch.eye(len(gram), dtype=torch.float64), rtol=0, atol=1e-5
        )
        assert not layer.bias.any()
    rest = {id(p) for p in agent.parameters()} - {
        id(p) for layer in layers for p in layer.parameters()
    }
    if name == "ppo_continuous_action":
        assert rest == {id(agent.actor_logstd)}
        assert torch.equal(agent.actor_logstd.flatten(), torch.zeros(3))
    elif name == "ppo_atari_lstm":
        assert rest == {id(p) for p in agent.lstm.parameters()}
    else:
        assert not rest


@pytest.mark.parametrize("name", VECTORS)
def test_policy_and_value_share_no_weights_by_default(name):
    agent = importlib.import_module(name).Agent(spaces(name))
    policy = list(policy_of(agent).parameters())
    value = list(agent.critic.parameters())
    assert not {id(p) for p in policy} & {id(p) for p in value}
    agent.get_value(torch.randn(4, 5)).sum().backward()
    assert all(p.grad is None for p in policy)
    assert all(p.grad.any() for p in value)


@pytest.mark.parametrize("name", PLAIN)
def test_a_shared_body_learns_from_the_value(name):
    script = importlib.import_module(name)
    agent = script.Agent(spaces(name)) if name in IMAGES else script.Agent(spaces(name), True)
    body = agent.network if name in IMAGES else policy_of(agent)[:-1]
    obs = (
        torch.randint(256, (4, 4, 84, 84), dtype=torch.uint8)
        if name in IMAGES
        else torch.randn(4, 5)
    )
    agent.get_value(obs).sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in body.parameters())
    assert all(p.grad is None for p in layers_of(policy_of(agent))[-1].parameters())


@pytest.mark.parametrize(("name", "env_id", "inputs", "outputs"), [
    ("ppo", "CartPole-v1", 4, 2),
    ("ppo_continuous_action", "Hopper-v5", 11, 3),
])  # fmt: skip
def test_shared_network_trains_one_body_instead_of_two(name, env_id, inputs, outputs):
    script = importlib.import_module(name)
    body = (inputs + 1) * 64 + 65 * 64
    heads = 65 * outputs + 65 + (outputs if name == "ppo_continuous_action" else 0)
    for shared in (False, True):
        args = script.Args(
            env_id=env_id,
            shared_network=shared,
            total_timesteps=16,
            exp_name=f"shared-{shared}",
            **SHORT,
        )
        agent = script.main(args)
        assert sum(p.numel() for p in agent.parameters()) == (1 if shared else 2) * body + heads
