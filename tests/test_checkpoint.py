"""Nothing is lost: checkpoints, resume, signals, full disks, broken agents."""

import errno
import importlib
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SCRIPTS, TINY
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

ROOT = Path(__file__).parent.parent


def run_folder() -> Path:
    (folder,) = {path.parent for path in Path("runs").rglob("events.*")}  # an id such as Jumanji/Cleaner-v0 nests it
    return folder


def train(script: str, **changes) -> torch.nn.Module:
    """Train with tiny arguments and return the agent; the run folder is the only one under runs/."""
    module = importlib.import_module(script)
    return module.main(module.Args(**TINY[script] | changes))


def command_line(script: str, monkeypatch, *arguments) -> torch.nn.Module:
    """Do what `python script.py arguments` does, in this process."""
    module = importlib.import_module(script)
    monkeypatch.setattr(sys, "argv", [f"{script}.py", *map(str, arguments)])
    return module.main(module.parse_args())


def fails(capsys, code: int, action, *arguments, **changes) -> str:
    """Call `action`, which has to end with exit code `code` and one line of error; return that line."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        action(*arguments, **changes)
    written = capsys.readouterr().err
    errors = [line for line in written.splitlines() if line.startswith("error: ")]
    assert end.value.code == code
    assert len(errors) == 1, written
    return errors[0]


def same_weights(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    one, other = one.state_dict(), other.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def fail_at_update(module, monkeypatch, number: int, error: Exception) -> None:
    """Let `error` come out of the algorithm in update `number`, counted from 1."""
    compute_gae, calls = module.compute_gae, []

    def failing(*args):
        calls.append(1)
        if len(calls) == number:
            raise error
        return compute_gae(*args)

    monkeypatch.setattr(module, "compute_gae", failing)


@pytest.mark.parametrize("script", SCRIPTS)
def test_checkpoint_holds_all_that_training_needs(script):
    agent = train(script)
    checkpoint = torch.load(run_folder() / "checkpoint.pt", weights_only=True)
    assert checkpoint["script"] == script
    assert checkpoint["iteration"] == 3
    assert checkpoint["global_step"] == TINY[script]["total_timesteps"]
    assert checkpoint["args"]["total_timesteps"] == TINY[script]["total_timesteps"]
    assert all(torch.equal(value, checkpoint["agent"][name]) for name, value in agent.state_dict().items())
    learned = [parameter for parameter in agent.parameters() if parameter.requires_grad]
    assert len(checkpoint["optimizer"]["state"]) == len(learned)
    assert torch.equal(checkpoint["rng"][0], torch.get_rng_state())
    if script == "ppo_continuous_action":
        # the first observation of the reset is counted besides those of the steps
        assert checkpoint["normalizer"]["obs"][2] == pytest.approx(192 + 1 + 1e-4)
        assert checkpoint["normalizer"]["return"][2] == pytest.approx(192 + 1e-4)


def test_a_checkpoint_is_written_every_save_every_updates_and_at_the_end(monkeypatch):
    import ppo

    saved = []
    save_checkpoint = ppo.Run.save_checkpoint

    def spy(self, iteration):
        saved.append(iteration)
        save_checkpoint(self, iteration)

    monkeypatch.setattr(ppo.Run, "save_checkpoint", spy)
    train("ppo", total_timesteps=7 * 32, save_every=3)
    assert saved == [3, 6, 7]


@pytest.mark.parametrize("script", SCRIPTS)
def test_two_resumes_of_one_checkpoint_end_bit_identical(script, monkeypatch):
    first = train(script)
    run = run_folder()
    saved = (run / "checkpoint.pt").read_bytes()
    steps = 2 * TINY[script]["total_timesteps"]
    one = command_line(script, monkeypatch, "--resume", run, "--total-timesteps", steps)
    (run / "checkpoint.pt").write_bytes(saved)
    # Noise in this process must not matter, and the file itself does as well as its folder.
    torch.rand(7)
    other = command_line(script, monkeypatch, "--resume", run / "checkpoint.pt", "--total-timesteps", steps)
    assert same_weights(one, other)
    assert not same_weights(one, first)
    assert run == run_folder()


def test_a_resumed_run_starts_with_all_that_was_saved(monkeypatch):
    import ppo_continuous_action as module

    agent = train("ppo_continuous_action")
    saved = torch.load(run_folder() / "checkpoint.pt", weights_only=True)
    start = {}
    initialise = module.Run.__init__

    def stop_after_restoring(self, *args, **parts):
        initialise(self, *args, **parts)
        start.update(parts, rng=torch.get_rng_state(), steps=self.global_step, bar=self.bar.n)
        raise KeyboardInterrupt

    monkeypatch.setattr(module.Run, "__init__", stop_after_restoring)
    with pytest.raises(KeyboardInterrupt):
        command_line("ppo_continuous_action", monkeypatch, "--resume", run_folder(), "--total-timesteps", 384)
    assert same_weights(start["agent"], agent)
    for key, state in saved["optimizer"]["state"].items():
        restored = start["optimizer"].state_dict()["state"][key]
        assert all(torch.equal(restored[name], value) for name, value in state.items())
    assert torch.equal(start["rng"], saved["rng"][0])
    assert start["normalizer"].state_dict() == saved["normalizer"]
    assert start["steps"] == start["bar"] == 192


def test_the_environments_of_a_resumed_run_get_other_seeds(monkeypatch):
    import ppo

    seeds = []
    reset = ppo.gym.vector.SyncVectorEnv.reset

    def spy(self, *, seed=None, options=None):
        seeds.append(tuple(seed))
        return reset(self, seed=seed, options=options)

    monkeypatch.setattr(ppo.gym.vector.SyncVectorEnv, "reset", spy)
    train("ppo")
    command_line("ppo", monkeypatch, "--resume", run_folder(), "--total-timesteps", 192)
    assert len({seed for pair in seeds for seed in pair}) == 4


def test_curves_go_on_without_doubled_points(monkeypatch):
    """A crash in update 6, after the checkpoint of update 4, leaves points of update 5 that the resumed run repeats."""
    import ppo

    with monkeypatch.context() as patch:
        fail_at_update(ppo, patch, 6, RuntimeError("crash"))
        with pytest.raises(RuntimeError, match="crash"):
            train("ppo", total_timesteps=8 * 32, save_every=4)
    command_line("ppo", monkeypatch, "--resume", run_folder())
    log = EventAccumulator(str(run_folder())).Reload()
    rates = log.Scalars("charts/learning_rate")
    assert [rate.step for rate in rates] == [32 * update for update in range(1, 9)]
    np.testing.assert_allclose([rate.value for rate in rates], 2.5e-4 * (1 - np.arange(8) / 8), rtol=1e-6)


def test_flags_that_may_change_change_and_the_others_hold(monkeypatch, capsys):
    import ppo

    train("ppo", gamma=0.9, learning_rate=1e-3)
    for name, value in {"gamma": "0.99", "learning-rate": "2.5e-4", "num-envs": "4", "env-id": "Acrobot-v1"}.items():
        line = fails(capsys, 2, command_line, "ppo", monkeypatch, "--resume", run_folder(), f"--{name}", value)
        assert f"--{name} is" in line
    monkeypatch.setattr(sys, "argv", f"ppo.py --resume {run_folder()} --total-timesteps 320 --save-every 7".split())
    args = ppo.parse_args()
    assert (args.gamma, args.learning_rate, args.num_envs) == (0.9, 1e-3, 2)
    assert (args.total_timesteps, args.save_every) == (320, 7)
    # Naming a value that holds anyway is fine.
    monkeypatch.setattr(sys, "argv", f"ppo.py --resume {run_folder()} --total-timesteps 320 --gamma 0.9".split())
    assert ppo.parse_args().gamma == 0.9


class Trap:
    """Unpickled by a careless reader, it creates a file."""

    def __reduce__(self):
        return os.system, ("touch trapped",)


def test_wrong_checkpoints_end_with_one_line(monkeypatch, capsys):
    train("ppo")
    run = run_folder()
    good = (run / "checkpoint.pt").read_bytes()
    checkpoint = torch.load(run / "checkpoint.pt", weights_only=True)

    def resume(path, script="ppo"):
        return fails(capsys, 2, command_line, script, monkeypatch, "--resume", path)

    assert "missing" in resume("runs/no_such_run")
    assert "missing" in resume("runs")
    Path("text.pt").write_text("no checkpoint")
    assert "no checkpoint" in resume("text.pt")
    for size in (0, 1, 100, len(good) // 2, len(good) - 1):
        Path("cut.pt").write_bytes(good[:size])
        assert "damaged" in resume("cut.pt")
    torch.save({"weights": torch.zeros(3)}, "other.pt")
    assert "no checkpoint" in resume("other.pt")
    torch.save(checkpoint | {"version": 2}, "future.pt")
    assert "format 2" in resume("future.pt")
    torch.save(checkpoint | {"args": checkpoint["args"] | {"dropped_flag": 1}}, "past.pt")
    assert "not by this version of ppo.py" in resume("past.pt")
    line = resume(run, script="ppo_atari")
    assert "ppo.py" in line
    assert "ppo_atari.py" in line
    assert "--total-timesteps" in resume(run)  # it is over
    torch.save(checkpoint | {"agent": Trap()}, "trap.pt")
    assert "damaged" in resume("trap.pt")
    Path("pickle.pt").write_bytes(pickle.dumps(Trap()))
    assert "damaged" in resume("pickle.pt")
    assert not Path("trapped").exists()


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_checkpoint_and_one_line(function, monkeypatch, capsys):
    import ppo

    calls, original = [], getattr(os, function)

    def full(*args):
        calls.append(1)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(*args)

    monkeypatch.setattr(ppo.os, function, full)
    line = fails(capsys, 1, train, "ppo", save_every=1)
    assert "No space left on device" in line
    assert ppo.load_checkpoint(run_folder())["iteration"] == 1


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize(("broken", "quantity"), [("policy_loss", "policy_loss"), ("gradient", "grad_norm")])
def test_a_broken_agent_ends_the_run_and_is_never_saved(script, broken, quantity, monkeypatch, capsys):
    module = importlib.import_module(script)
    ppo_loss, updates = module.ppo_loss, []
    compute_gae = module.compute_gae
    monkeypatch.setattr(module, "compute_gae", lambda *args: (updates.append(1), compute_gae(*args))[1])

    def break_second_update(*args):
        loss, stats = ppo_loss(*args)
        if len(updates) == 2 and broken == "policy_loss":
            return loss * float("nan"), stats | {"policy_loss": stats["policy_loss"] * float("nan")}
        return (loss * float("inf") if len(updates) == 2 else loss), stats

    monkeypatch.setattr(module, "ppo_loss", break_second_update)
    # One minibatch per update: the quantity that broke is named, not what it broke later.
    line = fails(capsys, 1, train, script, save_every=1, num_minibatches=1, update_epochs=1)
    assert f"losses/{quantity} became" in line
    assert "update 2" in line
    checkpoint = module.load_checkpoint(run_folder())
    assert checkpoint["iteration"] == 1
    assert all(torch.isfinite(value).all() for value in checkpoint["agent"].values())


def start_process(*arguments, script: str = "ppo") -> subprocess.Popen:
    """Start a long training run in a process group of its own and wait for its first checkpoint."""
    sizes = ["--num-envs", "2", "--num-steps", "16", "--save-every", "5"]
    command = [sys.executable, ROOT / f"{script}.py", *sizes, *arguments]
    pipes = {"stderr": subprocess.PIPE, "stdout": subprocess.PIPE}
    process = subprocess.Popen(command, **pipes, text=True, start_new_session=True)
    while not list(Path("runs").glob("*/checkpoint.pt")):
        assert process.poll() is None
        time.sleep(0.05)
    return process


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_finishes_the_update_saves_and_says_how_to_go_on(number, code):
    process = start_process("--total-timesteps", "100000000")
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert errors.splitlines()[-1] == f"to go on: python ppo.py --resume {run_folder()}"
    assert "Traceback" not in errors
    checkpoint = torch.load(run_folder() / "checkpoint.pt", weights_only=True)
    logged = EventAccumulator(str(run_folder())).Reload().Scalars("charts/SPS")[-1].step
    assert checkpoint["global_step"] == logged


def test_ctrl_c_reaches_the_environments_of_async_envs_too_and_still_saves():
    process = start_process("--async-envs", "--update-epochs", "1", script="ppo_atari")
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does it
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.splitlines()[-1] == f"to go on: python ppo_atari.py --resume {run_folder()}"
    assert "Traceback" not in errors
    torch.load(run_folder() / "checkpoint.pt", weights_only=True)


def test_an_environment_that_raises_shows_its_error_and_how_to_go_on():
    code = (
        "import gymnasium.envs.classic_control, ppo\n"
        "steps, step = [], gymnasium.envs.classic_control.CartPoleEnv.step\n"
        "def fail(self, action):\n"
        "    steps.append(1)\n"
        "    if len(steps) == 100: raise ValueError('the pole broke')\n"
        "    return step(self, action)\n"
        "gymnasium.envs.classic_control.CartPoleEnv.step = fail\n"
        "ppo.main(ppo.Args(num_envs=2, num_steps=16, save_every=1))\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    end = subprocess.run([sys.executable, "-c", code], env=environment, text=True, capture_output=True)
    assert end.returncode == 1
    assert "ValueError: the pole broke" in end.stderr
    assert end.stderr.strip().splitlines()[-1] == f"to go on: python ppo.py --resume {run_folder()}"


def test_twenty_kills_never_damage_the_checkpoint():
    # In a process of its own: what other tests left in this one (videos, EnvPool) does not survive a fork.
    command = [sys.executable, ROOT / "tests" / "kill_training.py", "--kills", "20"]
    end = subprocess.run(command, capture_output=True, text=True, check=True)
    result = json.loads(end.stdout.splitlines()[-1].removeprefix("every checkpoint loaded: "))
    assert result["kills"] == 20
    assert result["while_saving"] > 0
    assert result["most_updates_lost"] <= 3
    assert result["updates"] > 20
