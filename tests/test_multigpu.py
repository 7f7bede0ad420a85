"""ppo_atari_multigpu.py with real processes: the same step everywhere, along the mean gradient; stops and resumes.

tests/long/kill_processes.py kills one of them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import ppo_atari_envpool
import ppo_atari_multigpu

WORKER = Path(__file__).parent / "multigpu_worker.py"
SMALL = ["--num-envs", "6", "--num-steps", "16", "--num-minibatches", "2", "--update-epochs", "2"]
ROWS = 6 * 16  # of an update


def torchrun(processes: int, *arguments, folder: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--local-ranks-filter", "0", f"--nproc_per_node={processes}"]
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        # torchrun's own store has the addresses of the processes that were killed.
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    }
    command += [*map(str, arguments), *SMALL]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """What each of two processes saw in three updates; the worker says how far apart policies are."""
    folder = tmp_path_factory.mktemp("watched")
    arguments = ["watch", "--total-timesteps", 3 * ROWS, "--target-kl", 0.4]
    process = torchrun(2, WORKER, *arguments, folder=folder)
    assert process.returncode == 0, process.stderr
    assert process.stderr.count("training on") == len(list(folder.glob("runs/*"))) == 1
    (run,) = folder.glob("runs/*")
    return SimpleNamespace(run=run, ranks=what_they_saw(folder, 2))


def what_they_saw(folder: Path, processes: int) -> list[dict]:
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(processes)]


def test_one_process_does_what_ppo_atari_envpool_does_to_the_bit():
    changes = {"num_envs": 4, "num_steps": 16, "total_timesteps": 192, "target_kl": 1e-4}
    changes |= {"bootstrap_truncated": True, "anneal_clip_coef": True, "device": "cpu"}
    changes["clip_coef"] = 1e-3  # so narrow that ratios leave it
    agents = []
    for script in (ppo_atari_envpool, ppo_atari_multigpu):
        agents.append(script.main(script.Args(**changes)).state_dict())
    assert all(torch.equal(agents[1][name], x) for name, x in agents[0].items())


def test_processes_end_with_the_same_weights_to_the_last_bit(watched):
    one, other = watched.ranks
    assert all(torch.equal(other["final"][name], x) for name, x in one["final"].items())
    assert any(not torch.equal(one["first"][name], x) for name, x in one["final"].items())


def test_processes_step_along_the_mean_of_their_gradients(watched, monkeypatch):
    """One process repeats the training from the minibatches of both, with Adam as the official code has it."""
    monkeypatch.setattr(torch.nn, "ReLU", torch.nn.ELU)  # as in the worker
    one, other = watched.ranks
    args = ppo_atari_multigpu.Args()
    envs = SimpleNamespace(single_action_space=gym.spaces.Discrete(4))
    agent = ppo_atari_multigpu.Agent(envs)
    agent.load_state_dict(one["first"])
    parameters = list(agent.parameters())
    first = [torch.zeros_like(x) for x in parameters]
    second = [torch.zeros_like(x) for x in parameters]
    for step, halves in enumerate(zip(one["minibatches"], other["minibatches"], strict=True)):
        assert not torch.equal(halves[0].obs, halves[1].obs)
        gradients = []
        for mb in halves:
            assert len(mb.obs) == ROWS / 2 / 2
            loss, _ = ppo_atari_multigpu.ppo_loss(agent, mb, 0.1, args)
            gradients.append(torch.autograd.grad(loss, parameters))
        mean = [(x + y) / 2 for x, y in zip(*gradients, strict=True)]
        norm = torch.cat([x.flatten() for x in mean]).norm()
        lr = 2.5e-4 * (1 - one["updates"][step] / 3) * (1 - 0.999 ** (step + 1)) ** 0.5
        lr /= 1 - 0.9 ** (step + 1)
        with torch.no_grad():
            for x, g, m, v in zip(parameters, mean, first, second, strict=True):
                g = g * min(1.0, 0.5 / norm.item())
                m.mul_(0.9).add_(g, alpha=0.1)
                v.mul_(0.999).addcmul_(g, g, value=0.001)
                x -= lr * m / (v.sqrt() + 1e-5)
    for name, x in agent.state_dict().items():
        error = (x - one["final"][name]).norm()
        assert error < 1e-3 * (x - one["first"][name]).norm(), name


def test_kl_stop_is_decided_by_the_mean_over_all(watched):
    """In the first update only the second process would stop, and none does; in the second update both do."""
    for rank in watched.ranks:
        assert rank["updates"] == [0] * 4 + [1] * 2 + [2] * 4


def test_no_environment_seed_occurs_twice(watched):
    seeds = [seed for rank in watched.ranks for seed in rank["seeds"]]
    assert len(seeds) == len(set(seeds)) == 6


def test_processes_sample_different_actions(watched):
    """The policy is nearly uniform: the same random numbers would give nearly the same actions."""
    one, other = (rank["actions"] for rank in watched.ranks)
    assert one.shape == other.shape == (3 * 16, 3)
    assert np.mean(one == other) < 0.5


def test_three_processes_go_on_where_two_were_and_a_stop_of_torchrun_saves_once(watched, tmp_path):
    """The first process sends torchrun SIGTERM in the middle of its second update."""
    run = shutil.copytree(watched.run, tmp_path / "run")
    arguments = ["--run-dir", "run", "--total-timesteps", 1_000_000, "--save-every", 1_000_000]
    process = torchrun(3, WORKER, "stop", *arguments, folder=tmp_path)  # and all of them have ended
    assert process.returncode != 0
    assert process.stderr.count("to resume, add --run-dir run") == 1
    assert "[rank" not in process.stderr, "a process ended with an error"
    checkpoint = ppo_atari_multigpu.load_checkpoint(run)
    assert (tmp_path / "saves").read_text().split() == [str(checkpoint["global_step"])]
    assert checkpoint["global_step"] >= (3 + 2) * ROWS
    assert checkpoint["global_step"] % ROWS == 0
    rates = EventAccumulator(str(run)).Reload().Scalars("charts/learning_rate")
    updates = checkpoint["global_step"] // ROWS
    assert [x.step for x in rates] == [ROWS * update for update in range(1, updates + 1)]
    # The optimiser has gone on from the ten steps of the two processes.
    steps = checkpoint["optimizer"]["param_groups"][0]["steps"]
    assert steps == 10 + (updates - 3) * 2 * 2

    # All have stopped after the same update, have got the weights from the first, and draw anew.
    ranks = what_they_saw(tmp_path, 3)
    assert len({len(rank["actions"]) for rank in ranks}) == 1
    for name, x in watched.ranks[0]["final"].items():
        assert all(torch.equal(rank["first"][name], x) for rank in ranks)
        assert all(torch.equal(rank["final"][name], ranks[0]["final"][name]) for rank in ranks)
    seeds = [seed for rank in (*watched.ranks, *ranks) for seed in rank["seeds"]]
    assert len(seeds) == len(set(seeds)) == 6 + 6
    before, after = (rank["actions"][:16, :2] for rank in (watched.ranks[0], ranks[0]))
    assert np.mean(before == after) < 0.5


def test_restarts_without_a_run_folder_are_refused(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    with pytest.raises(ppo_atari_multigpu.UsageError, match="needs --run-dir"):
        ppo_atari_multigpu.main(ppo_atari_multigpu.Args(device="cpu"))


def test_numbers_of_processes_that_do_not_fit_are_refused(monkeypatch):
    args = ppo_atari_multigpu.Args(num_envs=4, num_steps=16, total_timesteps=64, device="cpu")
    with monkeypatch.context() as patch:
        patch.setattr(torch.distributed, "get_world_size", lambda: 3)
        with pytest.raises(ppo_atari_multigpu.UsageError, match="a multiple of the 3 processes"):
            ppo_atari_multigpu.main(args)
    ppo_atari_multigpu.main(args)  # an error leaves nothing behind that the next run stumbles over
