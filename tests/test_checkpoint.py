"""Nothing is lost: checkpoints, resume, signals, full disks, broken agents."""

import errno
import importlib
import json
import os
import pickle
import shlex
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
    (folder,) = {
        path.parent for path in Path("runs").rglob("events.*")
    }  # an id such as Jumanji/Cleaner-v0 nests it
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

    def failing(**inputs):
        calls.append(1)
        if len(calls) == number:
            raise error
        return compute_gae(**inputs)

    monkeypatch.setattr(module, "compute_gae", failing)


@pytest.mark.parametrize("script", SCRIPTS)
def test_checkpoint_holds_all_that_training_needs(script):
    agent = train(script)
    checkpoint = torch.load(run_folder() / "checkpoint.pt", weights_only=True)
    keys = {
        "agent",
        "optimizer",
        "script",
        "version",
        "args",
        "iteration",
        "global_step",
        "rng",
        "cuda_rng",
    }
    if script == "ppo_continuous_action":
        keys.add("normalizer")
    assert checkpoint.keys() == keys
    assert checkpoint["script"] == script
    assert checkpoint["version"] == 2
    assert checkpoint["iteration"] == 3
    assert checkpoint["global_step"] == TINY[script]["total_timesteps"]
    assert checkpoint["args"]["total_timesteps"] == TINY[script]["total_timesteps"]
    assert all(
        torch.equal(value, checkpoint["agent"][name]) for name, value in agent.state_dict().items()
    )
    learned = [parameter for parameter in agent.parameters() if parameter.requires_grad]
    assert len(checkpoint["optimizer"]["state"]) == len(learned)
    assert torch.equal(checkpoint["rng"], torch.get_rng_state())
    if script == "ppo_continuous_action":
        # the first observation of the reset is counted besides those of the steps
        assert checkpoint["normalizer"]["obs"][2] == pytest.approx(192 + 1 + 1e-4)
        assert checkpoint["normalizer"]["return"][2] == pytest.approx(192 + 1e-4)


def test_a_checkpoint_is_written_every_save_every_updates_and_at_the_end(monkeypatch):
    import ppo

    saved = []
    save = ppo.Run.save

    def spy(self, batch):
        save(self, batch)
        saved.append(ppo.load_checkpoint(self.dir)["iteration"])

    monkeypatch.setattr(ppo.Run, "save", spy)
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
    other = command_line(
        script, monkeypatch, "--resume", run / "checkpoint.pt", "--total-timesteps", steps
    )
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
        self.restore_handlers()
        start.update(parts, rng=torch.get_rng_state(), steps=self.global_step, bar=self.bar.n)
        raise KeyboardInterrupt

    monkeypatch.setattr(module.Run, "__init__", stop_after_restoring)
    with pytest.raises(KeyboardInterrupt):
        command_line(
            "ppo_continuous_action", monkeypatch, "--resume", run_folder(), "--total-timesteps", 384
        )
    assert same_weights(start["agent"], agent)
    for key, state in saved["optimizer"]["state"].items():
        restored = start["optimizer"].state_dict()["state"][key]
        assert all(torch.equal(restored[name], value) for name, value in state.items())
    assert torch.equal(start["rng"], saved["rng"])
    assert start["normalizer"].state_dict() == saved["normalizer"]
    assert start["steps"] == start["bar"] == 192


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_epsilon_of_adam_goes_on_after_a_resume(script, monkeypatch):
    """It depends on the number of Adam's steps (Core 3), which must not begin anew."""
    taken = []
    step = torch.optim.Adam.step

    def spy(self, *args):
        result = step(self, *args)
        number = max(int(state["step"]) for state in self.state.values())
        taken.append((number, self.param_groups[0]["eps"]))
        return result

    monkeypatch.setattr(torch.optim.Adam, "step", spy)
    train(script, update_epochs=1, num_minibatches=2)
    command_line(
        script,
        monkeypatch,
        "--resume",
        run_folder(),
        "--total-timesteps",
        2 * TINY[script]["total_timesteps"],
    )
    assert [number for number, _ in taken] == list(range(1, 13))
    for number, eps in taken:
        assert eps == pytest.approx(1e-5 / (1 - 0.999**number) ** 0.5, rel=1e-9)


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_environments_of_a_resumed_run_get_other_seeds(script, monkeypatch):
    module = importlib.import_module(script)
    make_envs = module.make_envs
    seeds = []

    def spying_make_envs(*args):
        envs = make_envs(*args)
        reset = envs.reset

        def spy(*, seed):
            seeds.append(list(seed))
            return reset(seed=seed)

        envs.reset = spy
        return envs

    monkeypatch.setattr(module, "make_envs", spying_make_envs)
    train(script)
    steps = 2 * TINY[script]["total_timesteps"]
    command_line(script, monkeypatch, "--resume", run_folder(), "--total-timesteps", steps)
    first, resumed = seeds
    assert len({*first, *resumed}) == len(first) + len(resumed)


@pytest.mark.parametrize("clock", ["goes on", "was set back"])
def test_curves_go_on_without_doubled_points(clock, monkeypatch):
    """A crash in update 6, after the checkpoint of update 4, leaves points of update 5 that the resumed run repeats."""
    import ppo

    with monkeypatch.context() as patch:
        fail_at_update(ppo, patch, 6, RuntimeError("crash"))
        with pytest.raises(RuntimeError, match="crash"):
            train("ppo", total_timesteps=8 * 32, save_every=4)
    if clock == "was set back":
        (log,) = run_folder().glob("events.*")
        log.rename(log.with_name(log.name.replace("tfevents.1", "tfevents.2")))  # years from now
    command_line("ppo", monkeypatch, "--resume", run_folder())
    log = EventAccumulator(str(run_folder())).Reload()
    rates = log.Scalars("charts/learning_rate")
    assert [rate.step for rate in rates] == [32 * update for update in range(1, 9)]
    np.testing.assert_allclose(
        [rate.value for rate in rates], 2.5e-4 * (1 - np.arange(8) / 8), rtol=1e-6
    )


def test_flags_that_may_change_change_and_the_others_hold(monkeypatch, capsys):
    import ppo

    train("ppo", gamma=0.9, learning_rate=1e-3)
    for name, value in {
        "gamma": "0.99",
        "learning-rate": "2.5e-4",
        "num-envs": "4",
        "env-id": "Acrobot-v1",
    }.items():
        line = fails(
            capsys,
            2,
            command_line,
            "ppo",
            monkeypatch,
            "--resume",
            run_folder(),
            f"--{name}",
            value,
        )
        assert f"--{name} is" in line
    monkeypatch.setattr(
        sys, "argv", f"ppo.py --resume {run_folder()} --total-timesteps 320 --save-every 7".split()
    )
    args = ppo.parse_args()
    assert (args.gamma, args.learning_rate, args.num_envs) == (0.9, 1e-3, 2)
    assert (args.total_timesteps, args.save_every) == (320, 7)
    # Naming a value that holds anyway is fine.
    monkeypatch.setattr(
        sys, "argv", f"ppo.py --resume {run_folder()} --total-timesteps 320 --gamma 0.9".split()
    )
    assert ppo.parse_args().gamma == 0.9


def test_weights_alone_are_not_trained_on(monkeypatch, capsys):
    """What benchmark/keep_agent.py keeps cannot be resumed, and stays as it is."""
    train("ppo")
    run = run_folder()
    checkpoint = torch.load(run / "checkpoint.pt", weights_only=True)
    del checkpoint["optimizer"]
    torch.save(checkpoint, run / "checkpoint.pt")
    before = {path: path.read_bytes() for path in run.iterdir()}
    more = ("--resume", run, "--total-timesteps", "320")
    assert "weights only" in fails(capsys, 2, command_line, "ppo", monkeypatch, *more)
    assert {path: path.read_bytes() for path in run.iterdir()} == before


def test_the_beginning_of_a_name_is_the_newest_run_with_it(monkeypatch, capsys):
    import ppo

    train("ppo", exp_name="trial", seed=1)
    train("ppo", exp_name="trial", seed=2)
    train("ppo", exp_name="other")
    Path("runs/CartPole-v1__trial__3__0").mkdir()  # has no checkpoint yet
    one, two = (next(Path("runs").glob(f"*__trial__{seed}__*")) for seed in (1, 2))
    # The time of the checkpoint decides, and not the name.
    for newest, oldest in ((one, two), (two, one)):
        os.utime(oldest / "checkpoint.pt", (1000, 1000))
        os.utime(newest / "checkpoint.pt", (2000, 2000))
        arguments = ["--resume", "runs/CartPole-v1__tri", "--total-timesteps", "192"]
        monkeypatch.setattr(sys, "argv", ["ppo.py", *arguments])
        args = ppo.parse_args()
        assert args.resume == newest
        assert args.seed == (1 if newest == one else 2)
    assert "runs/CartPole-v2" in fails(
        capsys, 2, command_line, "ppo", monkeypatch, "--resume", "runs/CartPole-v2"
    )


def test_a_copied_script_may_have_arguments_of_its_own():
    source = (ROOT / "ppo.py").read_text(encoding="utf-8")
    field = "    gamma: float = 0.99"
    assert source.count(field) == source.count("\nimport atexit\n") == 1
    source = source.replace(
        field, f"    warmup_iters: int = 0  # updates with a small learning rate\n{field}"
    )
    source = source.replace(
        "\nimport atexit\n", "\nfrom __future__ import annotations\n\nimport atexit\n"
    )
    Path("my_ppo.py").write_text(source, encoding="utf-8")
    sizes = ["--num-envs", "2", "--num-steps", "16", "--total-timesteps", "64"]
    subprocess.run([sys.executable, "my_ppo.py", *sizes], check=True, capture_output=True)
    more = ["--resume", "runs/CartPole-v1__my_ppo", "--total-timesteps", "128"]
    subprocess.run([sys.executable, "my_ppo.py", *more], check=True, capture_output=True)
    checkpoint = torch.load(run_folder() / "checkpoint.pt", weights_only=True)
    assert checkpoint["global_step"] == 128
    assert checkpoint["args"]["warmup_iters"] == 0


class Trap:
    """Unpickled by a careless reader, it creates a file."""

    def __reduce__(self):
        return os.system, ("touch trapped",)


def test_wrong_checkpoints_end_with_one_line(monkeypatch, capsys):
    train("ppo")
    run = run_folder()
    good = (run / "checkpoint.pt").read_bytes()
    checkpoint = torch.load(run / "checkpoint.pt", weights_only=True)
    bad = Path("bad")
    bad.mkdir()

    def resume(path, script="ppo"):
        return fails(capsys, 2, command_line, script, monkeypatch, "--resume", path)

    assert "no run runs/no_such_run" in resume("runs/no_such_run")
    assert "no run runs with a checkpoint" in resume("runs")
    for content in (
        b"no checkpoint",
        *(good[:size] for size in (0, 1, 100, len(good) // 2, len(good) - 1)),
    ):
        (bad / "checkpoint.pt").write_bytes(content)
        assert "bad/checkpoint.pt is missing, damaged or no checkpoint" in resume(bad)
        assert "bad/checkpoint.pt is missing, damaged or no checkpoint" in resume(
            bad / "checkpoint.pt"
        )
    torch.save({"weights": torch.zeros(3)}, bad / "checkpoint.pt")
    assert "no checkpoint" in resume(bad)
    torch.save(checkpoint | {"version": 3}, bad / "checkpoint.pt")
    assert "format 3" in resume(bad)
    torch.save(
        checkpoint | {"args": checkpoint["args"] | {"dropped_flag": 1}}, bad / "checkpoint.pt"
    )
    assert "--dropped-flag" in resume(bad)
    assert "--total-timesteps" in resume(run)  # it is over
    torch.save(checkpoint | {"agent": Trap()}, bad / "checkpoint.pt")
    assert "damaged" in resume(bad)
    (bad / "checkpoint.pt").write_bytes(pickle.dumps(Trap()))
    assert "damaged" in resume(bad)
    assert not Path("trapped").exists()


def test_another_file_is_not_taken_for_the_checkpoint_beside_it(monkeypatch, capsys):
    train("ppo")
    copy = run_folder() / "checkpoint_of_yesterday.pt"
    copy.write_bytes(b"older weights")
    assert str(copy) in fails(
        capsys, 2, command_line, "ppo", monkeypatch, "--resume", copy, "--total-timesteps", 2 * 96
    )


@pytest.mark.parametrize(("trained", "resumed"), [("ppo", "ppo_atari"), ("ppo_atari", "ppo")])
def test_a_run_of_another_script_is_refused_with_both_names(trained, resumed, monkeypatch, capsys):
    train(trained)
    line = fails(capsys, 2, command_line, resumed, monkeypatch, "--resume", run_folder())
    assert f" {trained}.py" in line
    assert f" {resumed}.py" in line


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


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a file on a full disk")
def test_a_disk_that_fills_while_pytorch_writes_leaves_the_old_checkpoint_and_one_line(
    monkeypatch, capsys
):
    import ppo

    save = ppo.Run.save

    def fill_disk(self, batch):
        if self.iteration == 2:
            (self.dir / "checkpoint.tmp").symlink_to("/dev/full")
        save(self, batch)

    monkeypatch.setattr(ppo.Run, "save", fill_disk)
    line = fails(capsys, 1, train, "ppo", save_every=1)
    assert "cannot write to" in line
    assert "its last checkpoint is whole" in line
    assert ppo.load_checkpoint(run_folder())["iteration"] == 1


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize(
    ("broken", "quantity"), [("policy_loss", "policy_loss"), ("gradient", "grad_norm")]
)
def test_a_broken_agent_ends_the_run_and_is_never_saved(
    script, broken, quantity, monkeypatch, capsys
):
    module = importlib.import_module(script)
    ppo_loss, updates = module.ppo_loss, []
    compute_gae = module.compute_gae

    def count_updates(**inputs):
        updates.append(1)
        return compute_gae(**inputs)

    monkeypatch.setattr(module, "compute_gae", count_updates)

    def break_second_update(*args):
        loss, stats = ppo_loss(*args)
        if len(updates) == 2 and broken == "policy_loss":
            return loss * float("nan"), stats | {"policy_loss": stats["policy_loss"] * float("nan")}
        return (loss * float("inf") if len(updates) == 2 else loss), stats

    monkeypatch.setattr(module, "ppo_loss", break_second_update)
    # One minibatch per update: the quantity that broke is named, not what it broke later.
    line = fails(capsys, 1, train, script, save_every=1, num_minibatches=1, update_epochs=1)
    assert f"{quantity} became" in line
    assert "update 2" in line
    checkpoint = module.load_checkpoint(run_folder())
    assert checkpoint["iteration"] == 1
    assert all(torch.isfinite(value).all() for value in checkpoint["agent"].values())


def start_process(script: Path, *arguments: str) -> subprocess.Popen:
    """Start a long training run in a process group of its own and wait for its first checkpoint."""
    sizes = [
        "--num-envs",
        "2",
        "--num-steps",
        "16",
        "--save-every",
        "5",
        "--total-timesteps",
        "100000000",
    ]
    return wait_for_checkpoint([sys.executable, script, *sizes, *arguments])


def wait_for_checkpoint(command: list) -> subprocess.Popen:
    pipes = {"stderr": subprocess.PIPE, "stdout": subprocess.PIPE}
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, **pipes, env=environment, text=True, start_new_session=True)
    while not list(Path("runs").glob("*/checkpoint.pt")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    return process


def assert_saved_where_it_stopped() -> None:
    checkpoint = torch.load(run_folder() / "checkpoint.pt", weights_only=True)
    logged = EventAccumulator(str(run_folder())).Reload().Scalars("charts/SPS")[-1].step
    assert checkpoint["global_step"] == logged


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_finishes_the_update_saves_and_says_how_to_go_on(number, code):
    process = start_process(ROOT / "ppo.py")
    os.killpg(process.pid, number)  # to all its processes, as a terminal does it
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    command = shlex.join([sys.executable, str(ROOT / "ppo.py"), "--resume", str(run_folder())])
    assert errors.splitlines()[-1] == f"to go on: {command}"
    assert "Traceback" not in errors
    assert_saved_where_it_stopped()


def test_the_second_ctrl_c_is_as_usual(monkeypatch):
    import ppo

    def mine(*_):
        pass

    before = signal.signal(signal.SIGINT, mine)
    save = ppo.Run.save
    handlers = []

    def interrupted(self, batch):
        handlers.append(signal.getsignal(signal.SIGINT))
        signal.raise_signal(signal.SIGINT)
        handlers.append(signal.getsignal(signal.SIGINT))
        save(self, batch)

    monkeypatch.setattr(ppo.Run, "save", interrupted)
    with pytest.raises(SystemExit):
        train("ppo", save_every=1)
    signal.signal(signal.SIGINT, before)
    assert handlers[0] is not mine
    assert handlers[1] is mine


def test_the_command_to_go_on_works_as_it_is_printed():
    script = Path("my scripts", "ppo.py")  # a name that the shell would split
    script.parent.mkdir()
    script.write_bytes((ROOT / "ppo.py").read_bytes())
    process = start_process(script, "--exp-name", "it's mine")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    command = errors.splitlines()[-1].removeprefix("to go on: ")
    saved = torch.load(run_folder() / "checkpoint.pt", weights_only=True)
    steps = saved["global_step"] + 32
    end = subprocess.run(
        f"{command} --total-timesteps {steps}", shell=True, capture_output=True, text=True
    )
    assert end.returncode == 0, end.stderr
    assert torch.load(run_folder() / "checkpoint.pt", weights_only=True)["global_step"] == steps
    assert "to go on" not in end.stderr  # it is over


def test_ctrl_c_in_a_program_that_calls_main_saves_and_gives_the_handlers_back():
    code = (
        "import signal, ppo\n"
        "def mine(*_): print('mine')\n"
        "signal.signal(signal.SIGINT, mine)\n"
        "try:\n"
        "    ppo.main(ppo.Args(num_envs=2, num_steps=16, save_every=5, total_timesteps=10**8))\n"
        "except SystemExit as end:\n"
        "    print(end.code, signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)\n"
        "signal.raise_signal(signal.SIGINT)\n"
        "ppo.main(ppo.Args(num_envs=2, num_steps=16, total_timesteps=32, seed=2, exp_name='short'))\n"
        "signal.raise_signal(signal.SIGINT)\n"
    )
    process = wait_for_checkpoint([sys.executable, "-c", code])
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    first, second, third, fourth = out.splitlines()
    assert first == "130 True"
    assert second == fourth == "mine"
    assert third.startswith("32 steps")
    for folder in Path("runs").glob("*__short__*"):
        folder.rename("short")
    assert_saved_where_it_stopped()


BROKEN = """
import gymnasium
from gymnasium.envs.classic_control import CartPoleEnv


class Broken(CartPoleEnv):
    count = 0

    def step(self, action):
        Broken.count += 1
        if Broken.count == 100:
            raise ValueError("the pole broke")
        return super().step(action)


gymnasium.register("Broken-v0", Broken)
"""


@pytest.mark.parametrize("called", ["as a script", "from a program"])
def test_an_environment_that_raises_shows_its_error_and_how_to_go_on(called):
    Path("broken.py").write_text(BROKEN)
    if called == "as a script":
        sizes = ["--num-envs", "2", "--num-steps", "16", "--save-every", "1"]
        command = [sys.executable, ROOT / "ppo.py", "--env-id", "broken:Broken-v0", *sizes]
    else:
        sizes = "num_envs=2, num_steps=16, save_every=1"
        command = [
            sys.executable,
            "-c",
            f"import ppo; ppo.main(ppo.Args(env_id='broken:Broken-v0', {sizes}))",
        ]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}."}
    end = subprocess.run(command, env=environment, text=True, capture_output=True)
    assert end.returncode == 1
    assert "ValueError: the pole broke" in end.stderr
    # A program has arguments of its own; it is the script that can go on.
    hint = shlex.join([sys.executable, str(ROOT / "ppo.py"), "--resume", str(run_folder())])
    hint += " --env-id broken:Broken-v0"  # without it, a resume imports no package
    assert end.stderr.splitlines()[-1] == f"to go on: {hint}"


def test_twenty_kills_never_damage_the_checkpoint():
    # In a process of its own: what other tests left in this one (videos, EnvPool) does not survive a fork.
    command = [sys.executable, ROOT / "tests" / "long" / "kill_training.py", "--kills", "20"]
    end = subprocess.run(command, capture_output=True, text=True, check=True)
    result = json.loads(end.stdout.splitlines()[-1].removeprefix("every checkpoint loaded: "))
    assert result["kills"] == 20
    assert result["while_saving"] > 0
    assert result["most_updates_lost"] <= 3
    assert result["updates"] > 20
