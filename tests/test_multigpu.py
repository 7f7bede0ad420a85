"""ppo_atari_multigpu.py with real processes: the same step everywhere, along the mean gradient, and faults."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import ppo_atari_envpool
import ppo_atari_multigpu

SCRIPT = Path(ppo_atari_multigpu.__file__)
WORKER = Path(__file__).parent / "multigpu_worker.py"
SMALL = ["--num-envs", "4", "--num-steps", "16", "--num-minibatches", "2", "--update-epochs", "2"]


def torchrun(processes: int, *arguments, cwd: Path, **changes) -> subprocess.Popen:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc_per_node={processes}", *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **changes
    )


def finish(process: subprocess.Popen, seconds: int) -> tuple[str, str]:
    """Return what it printed once it has ended; do not leave processes behind that hang."""
    try:
        return process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.terminate()
        process.communicate()
        raise


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """What two processes saw of three trainings, and the log of the first of these."""
    folder = tmp_path_factory.mktemp("watched")
    process = torchrun(2, WORKER, "watch", cwd=folder)
    _, err = finish(process, 90)
    assert process.returncode == 0, err
    ranks = [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(2)]
    (run,) = folder.glob("runs/*__plain__*")
    return SimpleNamespace(ranks=ranks, run=run, err=err)


def test_one_process_does_what_ppo_atari_envpool_does_to_the_bit():
    changes = {"num_envs": 4, "num_steps": 16, "total_timesteps": 320, "target_kl": 1e-4}
    changes |= {"bootstrap_truncated": True, "anneal_clip_coef": True}
    agents = []
    for script in (ppo_atari_envpool, ppo_atari_multigpu, ppo_atari_multigpu):
        agents.append(script.main(script.Args(**changes)).state_dict())
    for other in agents[1:]:
        assert all(torch.equal(other[name], x) for name, x in agents[0].items())


def test_processes_end_with_the_same_weights_to_the_last_bit(watched):
    for training in ("plain", "kl reached", "kl not reached"):
        one, other = (rank[training] for rank in watched.ranks)
        assert all(torch.equal(one["final"][name], other["final"][name]) for name in one["final"])
        assert any(not torch.equal(one["weights"][name], x) for name, x in one["final"].items())


def test_processes_step_along_the_mean_of_their_gradients(watched):
    """One process repeats the training from the minibatches of both, with Adam as the official code has it."""
    one, other = (rank["plain"] for rank in watched.ranks)
    args = ppo_atari_multigpu.Args()
    envs = SimpleNamespace(single_action_space=gym.spaces.Discrete(4))
    agent = ppo_atari_multigpu.Agent(envs)
    agent.load_state_dict(one["weights"])
    parameters = list(agent.parameters())
    first = [torch.zeros_like(x) for x in parameters]
    second = [torch.zeros_like(x) for x in parameters]
    assert len(one["minibatches"]) == len(other["minibatches"]) == 3 * 2 * 2
    for step, halves in enumerate(zip(one["minibatches"], other["minibatches"], strict=True)):
        assert not torch.equal(halves[0].obs, halves[1].obs)
        gradients = []
        for mb in halves:
            loss, _ = ppo_atari_multigpu.ppo_loss(agent, mb, 0.1, args)
            gradients.append(torch.autograd.grad(loss, parameters))
        mean = [(x + y) / 2 for x, y in zip(*gradients, strict=True)]
        norm = torch.cat([x.flatten() for x in mean]).norm()
        lr = 2.5e-4 * (1 - (step // 4) / 3) * (1 - 0.999 ** (step + 1)) ** 0.5
        lr /= 1 - 0.9 ** (step + 1)
        with torch.no_grad():
            for x, g, m, v in zip(parameters, mean, first, second, strict=True):
                g = g * min(1.0, 0.5 / norm.item())
                m.mul_(0.9).add_(g, alpha=0.1)
                v.mul_(0.999).addcmul_(g, g, value=0.001)
                x -= lr * m / (v.sqrt() + 1e-5)
    for name, x in agent.state_dict().items():
        torch.testing.assert_close(x, one["final"][name], atol=1e-6, rtol=0)


def test_kl_stop_is_decided_by_the_mean_over_all(watched):
    """The second process says a KL of 1, the first of 0: at a target of 0.4 both stop, at 0.6 neither does."""
    for rank in watched.ranks:
        assert len(rank["kl reached"]["minibatches"]) == 2 * 2  # updates, minibatches of one epoch
        assert len(rank["kl not reached"]["minibatches"]) == 2 * 2 * 2


def test_where_the_first_process_ends_all_end(watched):
    """A disk that is full when the first process logs an episode."""
    assert [rank["exit code"] for rank in watched.ranks] == [1, 1]
    assert watched.err.count("error: the disk is full") == 1
    assert "[rank" not in watched.err


def test_no_environment_seed_occurs_twice(watched):
    seeds = [seed for rank in watched.ranks for seed in rank["plain"]["seeds"]]
    assert len(seeds) == len(set(seeds)) == 4


def test_processes_sample_different_actions(watched):
    one, other = (rank["plain"]["minibatches"][0] for rank in watched.ranks)
    assert not torch.equal(one.actions, other.actions)


def test_one_log_has_the_episodes_and_statistics_of_all(watched):
    log = EventAccumulator(str(watched.run)).Reload()
    episodes = log.Scalars("charts/episodic_return")
    # 48 steps of four environments; see the worker for when which process reports an episode
    expected = []
    for step in range(1, 3 * 16 + 1):
        expected += [
            (4 * step, 1000 * rank + step) for rank in range(2) if step % (5 + 2 * rank) == 0
        ]
    assert [(x.step, x.value) for x in episodes] == expected
    lengths = [x.value for x in log.Scalars("charts/episodic_length")]
    assert lengths == [10 * (value >= 1000) + 1 for _, value in expected]

    halves = [rank["plain"]["minibatches"] for rank in watched.ranks]
    returns = torch.cat([mb.returns for half in halves for mb in half[:2]])
    values = torch.cat([mb.values for half in halves for mb in half[:2]])
    explained = 1 - (returns - values).var() / returns.var()
    logged = log.Scalars("losses/explained_variance")[0].value
    assert logged == pytest.approx(explained.item(), abs=1e-4)


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A run of eight updates whose second process is killed in the sixth, after the checkpoint of the fourth."""
    folder = tmp_path_factory.mktemp("killed")
    process = torchrun(2, "--max-restarts=3", WORKER, "die", cwd=folder)
    _, err = finish(process, 120)
    assert process.returncode == 0, err
    (run,) = folder.glob("runs/*")
    return SimpleNamespace(folder=folder, run=run)


def test_a_killed_process_restarts_all_from_the_last_checkpoint(killed):
    finals = []
    for rank in range(2):
        seen = torch.load(killed.folder / f"rank{rank}.pt", weights_only=False)
        assert len(seen["minibatches"]) == (8 - 4) * 2 * 2
        finals.append(seen["final"])
    # The second process has got weights and moments of Adam from the first.
    assert all(torch.equal(finals[0][name], finals[1][name]) for name in finals[0])
    checkpoint = torch.load(killed.run / "checkpoint.pt", weights_only=True)
    assert checkpoint["iteration"] == 8
    rates = EventAccumulator(str(killed.run)).Reload().Scalars("charts/learning_rate")
    assert [x.step for x in rates] == [64 * update for update in range(1, 9)]


def processes_of(group: int) -> list[int]:
    """Return the processes that descend from this one, from the table of all."""
    table = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True)
    parents = dict(map(int, line.split()) for line in table.stdout.splitlines())
    found = [group]
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return found[1:]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_checkpoint_goes_on_with_more_or_fewer_processes_and_a_stop_saves_once(signum, killed):
    """Two processes wrote it; four go on, or one does."""
    count = 4 if signum == signal.SIGTERM else 1
    resume = ["--resume", killed.run, "--total-timesteps", "1000000", "--save-every", "1000000"]
    before = torch.load(killed.run / "checkpoint.pt", weights_only=True)["iteration"]
    saves = killed.folder / "saves"
    saves.unlink(missing_ok=True)
    logs = set(killed.run.glob("events.*"))
    process = torchrun(count, WORKER, "save", *resume, cwd=killed.folder)
    try:
        deadline = time.monotonic() + 90
        while not any(log.stat().st_size > 2000 for log in set(killed.run.glob("events.*")) - logs):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        started = processes_of(process.pid)
    finally:
        process.send_signal(signum)
        _, err = finish(process, 60)
    assert len(started) >= count
    checkpoint = torch.load(killed.run / "checkpoint.pt", weights_only=True)
    assert checkpoint["iteration"] > before
    assert checkpoint["global_step"] == 64 * checkpoint["iteration"]
    assert saves.read_text() == f"{checkpoint['iteration']}\n"
    assert err.count("to go on: ") == 1
    assert "[rank" not in err, "a process ended with an error"
    alive = [pid for pid in started if os.path.exists(f"/proc/{pid}")]
    assert not alive


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--num-envs", "3"], "--num-envs 3 must be a multiple of the 2 processes"),
        (["--resume", "runs/none"], "no run runs/none with a checkpoint"),
    ],
)
def test_bad_input_is_said_once(arguments, error, tmp_path):
    process = torchrun(2, SCRIPT, *SMALL, *arguments, cwd=tmp_path)
    out, err = finish(process, 60)
    errors = [line for line in (out + err).splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert errors[0].startswith(f"error: {error}")
    assert "[rank" not in err
    assert process.returncode != 0
    assert not (tmp_path / "runs").exists()


def test_each_process_needs_whole_minibatches(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    args = ppo_atari_multigpu.Args(num_envs=8, num_steps=1, num_minibatches=8)
    with pytest.raises(SystemExit):
        ppo_atari_multigpu.main(args)
    error = capsys.readouterr().err
    assert error == "error: --num-minibatches 8 does not divide a process's 4 steps\n"


@pytest.mark.parametrize(
    ("environment", "error"),
    [
        ({"WORLD_SIZE": "2"}, "several processes are started with torchrun"),
        ({"LOCAL_WORLD_SIZE": "2"}, "more processes than GPUs: use --nproc_per_node=1"),
    ],
)
def test_processes_that_cannot_meet_say_so(environment, error, monkeypatch, capsys):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit):
        ppo_atari_multigpu.join_processes(ppo_atari_multigpu.Args(), torch.device("cuda"))
    assert capsys.readouterr().err.startswith(f"error: {error}")


def test_an_exception_of_a_silent_process_is_shown(tmp_path):
    """A library that is broken where the second process runs."""
    (tmp_path / "envpool.py").write_text("raise RuntimeError('no such processor')")
    environment = os.environ | {"LOCAL_RANK": "1", "PYTHONPATH": str(tmp_path)}
    process = subprocess.run(
        [sys.executable, SCRIPT], env=environment, capture_output=True, text=True
    )
    assert process.stderr.endswith("RuntimeError: no such processor\n")


def test_the_second_process_leaves_complaints_to_the_first():
    """Those of the argument parser, too; test_bad_input_is_said_once has those of the script."""
    said = {}
    for rank in ("0", "1"):
        environment = os.environ | {"LOCAL_RANK": rank}
        command = [sys.executable, SCRIPT, "--nonsense"]
        process = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert process.returncode == 2
        said[rank] = process.stdout + process.stderr
    assert said["0"]
    assert not said["1"]
