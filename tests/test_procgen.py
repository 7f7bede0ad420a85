"""Procgen through EnvPool, and what ppo_procgen.py does with it: resets, levels, rewards, network."""

from pathlib import Path

import envpool
import numpy as np
import pytest
import torch
from conftest import TINY, spaces_of
from torch.nn import functional

import evaluate
import ppo_procgen as module

GAME = "StarpilotEasy-v0"
DATA = Path(__file__).parent / "data"


def test_games_are_envpools_with_every_reset_in_the_step_of_the_end():
    """Held against pools of one environment, whose own resets are taken by hand."""
    seeds = list(range(100, 106))
    envs = module.make_envs(module.Args(num_envs=6)).env
    obs, _ = envs.reset(seed=seeds)
    pools = [envpool.make(GAME, "gymnasium", num_envs=1, seed=[seed]) for seed in seeds]
    assert np.array_equal(obs, np.concatenate([pool.reset()[0] for pool in pools]))
    rng = np.random.default_rng(1)
    returns, lengths = np.zeros(6), np.zeros(6)
    ends = 0
    for _ in range(600):
        actions = rng.integers(15, size=6)
        obs, rewards, terminated, truncated, infos = envs.step(actions)
        parts = [pool.step(actions[i : i + 1].astype(np.int32)) for i, pool in enumerate(pools)]
        assert rewards.tolist() == [part[1][0] for part in parts]
        assert terminated.tolist() == [part[2][0] for part in parts]
        assert not truncated.any()
        last = np.concatenate([part[0] for part in parts])
        assert np.array_equal(infos["final_obs"], last)
        returns += rewards
        lengths += 1
        assert np.array_equal(infos["_episode"], terminated)
        assert np.array_equal(infos["episode"]["r"], returns)
        assert np.array_equal(infos["episode"]["l"], lengths)
        for i in np.flatnonzero(terminated):
            first, reward, end, _, _ = pools[i].step(np.array([3], dtype=np.int32))
            assert not reward[0]
            assert not end[0]
            last[i] = first[0]
        assert np.array_equal(obs, last)
        returns[terminated] = lengths[terminated] = 0
        ends += terminated.sum()
    assert ends > 10
    assert infos["episode"]["r"].max() > 0


def test_an_agent_is_evaluated_on_the_levels_of_its_training_or_on_others(monkeypatch):
    run = Path("run")
    module.main(module.Args(**TINY["ppo_procgen"], num_levels=3, device="cpu", run_dir=run))
    make = envpool.make
    played = []

    def spy(*args, **options):
        played.append(options["num_levels"])
        return make(*args, **options)

    monkeypatch.setattr(envpool, "make", spy)
    for num_levels in (None, 0, 500):
        result = evaluate.main(evaluate.Args(run, num_levels=num_levels, episodes=1))
        assert result["num_levels"] == played[-1]
    assert played == [3, 0, 500]


def test_a_picture_is_what_the_agent_sees():
    envs = module.make_envs(module.Args(num_envs=1), "rgb_array")
    obs, _ = envs.reset(seed=[1])
    for action in (3, 5, 7, 9):
        obs, *_ = envs.step(np.array([action]))
        (picture,) = envs.render()
        assert picture.shape == (64, 64, 3)
        assert picture.dtype == np.uint8
        assert np.array_equal(picture, obs[0].transpose(1, 2, 0))


@pytest.mark.parametrize(
    ("env_id", "words"),
    [
        ("Breakout-v5", "Breakout-v5 is not a Procgen game"),
        ("Starpilot-v0", "EnvPool has no game Starpilot-v0: its names are like StarpilotEasy-v0"),
    ],
)
def test_a_game_that_is_no_procgen_game_is_one_line(env_id, words):
    with pytest.raises(module.UsageError, match=words):
        module.main(module.Args(**TINY["ppo_procgen"] | {"env_id": env_id}, device="cpu"))


@pytest.mark.parametrize(("num_levels", "start_level"), [(3, 10), (1, 7)])
def test_only_the_levels_that_are_asked_for_are_played(num_levels, start_level, monkeypatch):
    args = module.Args(num_envs=8, num_levels=num_levels, start_level=start_level)
    envs = module.make_envs(args).env
    envs.reset(seed=list(range(8)))
    levels = []
    step = envs.pool.step
    monkeypatch.setattr(
        envs.pool, "step", lambda *inputs: levels.append(step(*inputs)) or levels[-1]
    )
    for _ in range(300):
        envs.step(np.zeros(8, dtype=np.int64))
    seen = np.concatenate([result[4]["level_seed"] for result in levels])
    assert set(seen.tolist()) == set(range(start_level, start_level + num_levels))


def test_rewards_are_scaled_as_by_the_official_normaliser_with_its_own_discount():
    """The recording's discount is 0.99, and the script's own 0.999."""
    with np.load(DATA / "normalize.npz") as file:
        said = dict(file)
    assert module.Args().gamma == 0.999
    envs = module.make_envs(module.Args(num_envs=said["rewards"].shape[1]))
    for rewards, dones, expected in zip(
        said["rewards"], said["dones"], said["out_rew"], strict=True
    ):
        got = envs.scale(rewards, dones.astype(bool))
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-7)


def test_the_learner_gets_scaled_rewards_and_the_log_the_games_own(monkeypatch):
    paid = []
    step = module.EnvPoolProcgen.step

    def a_thousand_points(envs, actions):
        obs, _, terminated, truncated, infos = step(envs, actions)
        paid.append(infos["episode"]["r"])
        return obs, np.full(len(actions), 1000.0), terminated, truncated, infos

    monkeypatch.setattr(module.EnvPoolProcgen, "step", a_thousand_points)
    envs = module.make_envs(module.Args(num_envs=2))
    envs.reset(seed=[1, 2])
    rewards = np.stack([envs.step(np.zeros(2, dtype=np.int64))[1] for _ in range(50)])
    assert (rewards > 0).all()
    assert (rewards <= 10).all()
    assert max(map(np.max, paid)) < 100


# The network, as build_impala_cnn of the official code has it


def same_convolution(x: torch.Tensor, layer: torch.nn.Conv2d) -> torch.Tensor:
    return functional.conv2d(functional.pad(x, (1, 1, 1, 1)), layer.weight, layer.bias)


def same_pool(x: torch.Tensor) -> torch.Tensor:
    """Return TensorFlow's max_pooling2d(3, strides=2, padding="same"): of an even size, windows begin at 0, 2, ..."""
    size = x.shape[-1]
    rows = [
        torch.stack(
            [x[..., i : i + 3, j : j + 3].amax(dim=(-2, -1)) for j in range(0, size, 2)], dim=-1
        )
        for i in range(0, size, 2)
    ]
    return torch.stack(rows, dim=-2)


def test_the_network_is_that_of_impala():
    torch.manual_seed(1)
    agent = module.Agent(spaces_of("ppo_procgen")).double()
    with torch.no_grad():
        for parameter in agent.parameters():
            parameter += 0.05 * torch.randn_like(parameter)  # biases, too
    convolutions = [layer for layer in agent.modules() if isinstance(layer, torch.nn.Conv2d)]
    assert [(layer.in_channels, layer.out_channels) for layer in convolutions] == [
        *[(3, 16), *[(16, 16)] * 4],
        *[(16, 32), *[(32, 32)] * 4],
        *[(32, 32), *[(32, 32)] * 4],
    ]
    images = torch.randint(256, (5, 3, 64, 64), dtype=torch.uint8)
    x = images.double() / 255
    layers = iter(convolutions)
    for _ in range(3):
        x = same_pool(same_convolution(x, next(layers)))
        for _ in range(2):
            inner = same_convolution(x.relu(), next(layers))
            x = x + same_convolution(inner.relu(), next(layers))
    dense = agent.network[-2]
    hidden = (x.flatten(1).relu() @ dense.weight.T + dense.bias).relu()
    assert dense.weight.shape == (256, 2048)
    policy, value = agent.float()(images)
    expected = (agent.double().actor(hidden), agent.critic(hidden)[:, 0])
    torch.testing.assert_close(policy.logits.double(), expected[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(value.double(), expected[1], rtol=1e-4, atol=1e-4)


def test_its_layers_start_as_tensorflows_and_its_heads_orthogonal():
    torch.manual_seed(1)
    agent = module.Agent(spaces_of("ppo_procgen"))
    body = [layer for layer in agent.network.modules() if hasattr(layer, "weight")]
    assert len(body) == 16
    for layer in body:
        fan_in, fan_out = layer.weight[0].numel(), layer.weight[:, 0].numel()
        bound = (6 / (fan_in + fan_out)) ** 0.5
        assert layer.weight.abs().max() <= bound
        assert layer.weight.std().item() == pytest.approx(
            bound / 3**0.5, rel=0.1
        )  # of a uniform one
        assert not layer.bias.any()
    for head, gain in ((agent.actor, 0.01), (agent.critic, 1.0)):
        gram = head.weight @ head.weight.T / gain**2
        torch.testing.assert_close(gram, torch.eye(len(gram)), rtol=0, atol=1e-5)
        assert not head.bias.any()
