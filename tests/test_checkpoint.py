"""What is left of a run, however it ends: checkpoints, resuming, signals, broken agents, damaged files."""

import importlib
import io
import json
import os
import pickle
import random
import signal
import subprocess
import sys
import threading
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SCRIPTS, TINY
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

import ppo
import ppo_continuous_action

ROOT = Path(ppo.__file__).parent


def train(script: str = "ppo", **changes) -> nn.Module:
    """Train with tiny arguments and return the agent; the run folder is the only one under runs/."""
    module = importlib.import_module(script)
    return module.main(module.Args(**TINY[script] | changes))


def run_folder() -> Path:
    (folder,) = Path("runs").iterdir()
    return folder


def go_on(script: str, run: Path, **changes) -> nn.Module:
    """Go on with a run as the README shows it."""
    module = importlib.import_module(script)
    return module.main(replace(module.saved_args(run), **changes))


def command_line(monkeypatch, *arguments) -> ppo.Args:
    """Return what ppo.py makes of its command line."""
    monkeypatch.setattr(sys, "argv", ["ppo.py", *map(str, arguments)])
    return ppo.parse_args()


def at_update(module, monkeypatch, number: int, action) -> None:
    """Do `action` in update `number`, counted from 1."""
    compute_gae, calls = module.compute_gae, []

    def acting(*inputs):
        calls.append(1)
        if len(calls) == number:
            action()
        return compute_gae(*inputs)

    monkeypatch.setattr(module, "compute_gae", acting)


def crash() -> None:
    raise RuntimeError("crash")


def same(one, other) -> bool:
    """Whether two states hold the same, to the bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


# What a checkpoint holds


def some_parts() -> dict:
    """An agent, and one of each kind of thing that a changed script may hand to Run."""
    agent = nn.Linear(3, 2)
    groups = [{"params": [agent.weight], "lr": 0.1}, {"params": [agent.bias], "lr": 0.01}]
    rmsprop = torch.optim.RMSprop(agent.parameters(), momentum=0.9, centered=True)
    return {
        "agent": agent,
        "optimizer": ppo.Adam(groups, fused=True),
        "amsgrad": torch.optim.Adam(agent.parameters(), amsgrad=True),
        "rmsprop": rmsprop,
        "scheduler": torch.optim.lr_scheduler.CosineAnnealingLR(rmsprop, 10),
        "normalizer": ppo_continuous_action.make_envs(
            ppo_continuous_action.Args(env_id="Pendulum-v1")
        ),
    }


def learn(parts: dict, seed: int) -> None:
    x = torch.randn((8, 3), generator=torch.Generator().manual_seed(seed))
    parts["agent"].zero_grad()
    parts["agent"](x).square().mean().backward()
    for name in ("optimizer", "amsgrad", "rmsprop", "scheduler"):
        parts[name].step()
    parts["normalizer"].observe(x.numpy())


def test_parts_of_every_kind_come_back_and_learn_on_as_if_nothing_had_happened():
    args = ppo.Args(run_dir=Path("run"))
    parts, restored = some_parts(), some_parts()
    for seed in range(3):
        learn(parts, seed)
    with ppo.Run(args, **parts) as run:
        ppo.save_checkpoint(run.dir, args, run.global_step, parts)
    ppo.Run(args, **restored)
    for seed in (3, 4):
        learn(parts, seed)
        learn(restored, seed)
    for name in parts:
        assert same(restored[name].state_dict(), parts[name].state_dict()), name
    assert restored["optimizer"].param_groups[1]["steps"] == 5


@pytest.mark.parametrize("script", SCRIPTS)
def test_two_resumes_of_one_checkpoint_end_bit_identical_and_draw_nothing_twice(
    script, monkeypatch
):
    module = importlib.import_module(script)
    make_envs, seeds = module.make_envs, []

    def spying_make_envs(*args, **more):
        envs = make_envs(*args, **more)
        reset = envs.reset

        def spy(*, seed):
            seeds.append((*seed, torch.initial_seed()))
            return reset(seed=seed)

        envs.reset = spy
        return envs

    monkeypatch.setattr(module, "make_envs", spying_make_envs)
    size = TINY[script]["total_timesteps"] // 3  # an update
    first = train(script, total_timesteps=size).state_dict()
    run = run_folder()
    saved = (run / "checkpoint.pt").read_bytes()
    checkpoint = module.load_checkpoint(run)
    assert checkpoint["global_step"] == size
    assert same(checkpoint["agent"], first)

    one = go_on(script, run, total_timesteps=2 * size).state_dict()
    resumed = module.load_checkpoint(run)
    (run / "checkpoint.pt").write_bytes(saved)
    torch.rand(7)  # noise in this process must not matter
    other = go_on(script, run, total_timesteps=2 * size).state_dict()
    assert same(one, other)
    assert not same(one, first)
    assert resumed["global_step"] == 2 * size
    for part in resumed.keys() - {"script"}:
        assert not same(resumed[part], checkpoint[part]), f"{part} did not change"
    # Core 3: Adam's epsilon depends on the number of its steps, which does not begin anew.
    steps = [x["optimizer"]["param_groups"][0]["steps"] for x in (checkpoint, resumed)]
    assert steps[1] == 2 * steps[0]

    assert seeds[1] == seeds[2]
    assert len({*seeds[0], *seeds[1]}) == 2 * len(seeds[0])
    assert run == run_folder()


def test_a_checkpoint_is_written_every_save_every_updates_and_at_the_end(monkeypatch):
    saved = []
    save = ppo.save_checkpoint

    def spy(run_dir, *what):
        save(run_dir, *what)
        saved.append(ppo.load_checkpoint(run_dir)["global_step"])

    monkeypatch.setattr(ppo, "save_checkpoint", spy)
    train(total_timesteps=7 * 32 + 5, save_every=3)
    assert saved == [3 * 32, 6 * 32, 7 * 32]


# Going on


def logged_rates(run: Path) -> tuple[list[int], list[float]]:
    points = EventAccumulator(str(run)).Reload().Scalars("charts/learning_rate")
    return [point.step for point in points], [point.value for point in points]


def date_back_the_log(run: Path) -> None:
    """Logs are read in the order of their seconds, and a test begins two in one."""
    (log,) = run.glob("events.*")
    log.rename(log.with_name(log.name.replace("tfevents.1", "tfevents.0")))


def test_the_curves_of_an_interrupted_run_are_those_of_one_that_was_not(monkeypatch, capsys):
    """A crash in update 6, after the checkpoint of update 4, leaves points that the resumed run repeats."""
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with monkeypatch.context() as patch:
        at_update(ppo, patch, 6, crash)
        with pytest.raises(RuntimeError, match="crash"):
            train(total_timesteps=8 * 32, save_every=4)
    run = run_folder()
    assert capsys.readouterr().err.endswith(f"to resume, add --run-dir {run} to the command\n")
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    date_back_the_log(run)
    ppo.main(command_line(monkeypatch, "--run-dir", run))
    assert "changed" not in capsys.readouterr().err
    steps, rates = logged_rates(run)
    assert steps == [32 * update for update in range(1, 9)]
    np.testing.assert_allclose(rates, 2.5e-4 * (1 - np.arange(8) / 8), rtol=1e-6)


def test_a_run_goes_on_with_other_arguments_and_its_schedule_from_where_it_is(monkeypatch, capsys):
    train(total_timesteps=128, gamma=0.9, exp_name="mine")
    run = run_folder()
    date_back_the_log(run)
    changes = ["--total-timesteps", 500, "--learning-rate", 2e-3, "--num-envs", 3]
    ppo.main(command_line(monkeypatch, "--run-dir", run, *changes))
    steps, rates = logged_rates(run)
    # Seven updates of 48 steps fit between 128 and 500; the rate would reach 0 after them, at 464.
    assert steps[4:] == list(range(176, 465, 48))
    np.testing.assert_allclose(rates[4:], 2e-3 * (1 - np.arange(128, 464, 48) / 464), rtol=1e-6)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("changed")]
    assert sorted(lines) == [
        "changed: learning_rate, from 0.00025",
        "changed: num_envs, from 2",
        "changed: total_timesteps, from 128",
    ]
    saved = ppo.saved_args(run)
    assert (saved.gamma, saved.exp_name, saved.num_envs, saved.run_dir) == (0.9, "mine", 3, run)
    assert ppo.load_checkpoint(run)["global_step"] == 464


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"total_timesteps": 32},
        {"total_timesteps": 96 + 31},
        {"shared_network": True, "total_timesteps": 960},
        {"env_id": "Acrobot-v1", "total_timesteps": 960},
        {"num_envs": 0},
        {"no_such_argument": 1},
    ],
    ids=str,
)
def test_a_run_that_is_over_or_cannot_go_on_leaves_its_checkpoint_as_it_was(changes, capsys):
    agent = train()
    run = run_folder()
    before = (run / "checkpoint.pt").read_bytes()
    over = changes.keys() <= {"total_timesteps"}
    if over:
        assert same(go_on("ppo", run, **changes).state_dict(), agent.state_dict())
        assert capsys.readouterr().out.splitlines()[-1].startswith("96 steps, ")
    else:
        with pytest.raises((RuntimeError, TypeError, ValueError, ppo.UsageError)):
            go_on("ppo", run, **changes)
    assert list(run.glob("checkpoint*")) == [run / "checkpoint.pt"]
    assert (run / "checkpoint.pt").read_bytes() == before


def test_from_python_the_arguments_given_are_those_that_count():
    train(gamma=0.9, total_timesteps=128, exp_name="mine")
    run = run_folder()
    ppo.main(ppo.Args(run_dir=run, total_timesteps=5000))  # everything else by default
    checkpoint = ppo.load_checkpoint(run)
    assert checkpoint["global_step"] == 128 + 9 * 512
    expected = asdict(ppo.Args(total_timesteps=5000))
    del expected["run_dir"]
    assert checkpoint["args"] == expected
    assert run == run_folder()


def test_runs_of_one_second_get_folders_of_their_own_with_legal_names(monkeypatch):
    monkeypatch.setattr(ppo.time, "time", lambda: 1_700_000_000.5)
    args = ppo.Args(env_id="my.pkg:a/b-v0", exp_name="../C:\\x\n\x1b*é", seed=3)
    folders = [ppo.new_run_dir(args) for _ in range(3)]
    name = "runs/my.pkg-a-b-v0__..-C-x-é__3__1700000000"
    assert [str(folder) for folder in folders] == [name, f"{name}-2", f"{name}-3"]
    assert all(folder.is_dir() for folder in folders)


def test_a_run_in_a_thread_gives_the_agent_of_one_in_the_main_thread():
    agents = [train(exp_name="main")]
    thread = threading.Thread(target=lambda: agents.append(train(exp_name="thread")))
    thread.start()
    thread.join()
    assert same(*(agent.state_dict() for agent in agents))


# Signals, and agents that break


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_saves_after_the_update_and_the_second_acts_at_once(
    number, monkeypatch, capsys
):
    def mine(*_):
        pass

    handlers = []

    def interrupt():
        signal.raise_signal(number)
        handlers.append(signal.getsignal(number))

    at_update(ppo, monkeypatch, 2, interrupt)
    before = {other: signal.signal(other, mine) for other in (signal.SIGINT, signal.SIGTERM)}
    try:
        with pytest.raises(SystemExit) as end:
            train(save_every=100)
        handlers += [signal.getsignal(other) for other in before]
    finally:
        for other, handler in before.items():
            signal.signal(other, handler)
    assert end.value.code == 128 + number
    assert handlers == [mine, mine, mine]
    assert ppo.load_checkpoint(run_folder())["global_step"] == 64
    assert f"to resume, add --run-dir {run_folder()}" in capsys.readouterr().err


@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
def test_a_broken_agent_ends_the_run_and_is_never_saved(factor, monkeypatch):
    ppo_loss, broken = ppo.ppo_loss, []

    def breaking_loss(*args):
        loss, stats = ppo_loss(*args)
        return (loss * factor if broken == [1] else loss), stats

    monkeypatch.setattr(ppo, "ppo_loss", breaking_loss)
    at_update(ppo, monkeypatch, 2, lambda: broken.append(1))
    with pytest.raises(FloatingPointError, match="grad_norm"):
        train(save_every=1)
    checkpoint = ppo.load_checkpoint(run_folder())
    assert checkpoint["global_step"] == TINY["ppo"]["total_timesteps"] // 3
    assert all(value.isfinite().all() for value in checkpoint["agent"].values())


def test_kills_at_random_moments_never_damage_the_checkpoint():
    # In a process of its own: what other tests left in this one does not survive a fork.
    command = [sys.executable, ROOT / "tests" / "long" / "kill_training.py", "--kills", "8"]
    end = subprocess.run(command, capture_output=True, text=True, check=True)
    result = json.loads(end.stdout.splitlines()[-1].removeprefix("every checkpoint loaded: "))
    assert result["kills"] == 8
    assert result["while_saving"] > 0
    assert result["most_updates_lost"] <= 3
    assert result["updates"] > 8


# Files that are no good checkpoint


class Trap:
    """Unpickled by a careless reader, it creates a file."""

    def __reduce__(self):
        return os.system, ("touch trapped",)


class Statistics:
    def state_dict(self) -> dict:
        return {"mean": np.float64(3)}


def test_what_could_not_be_loaded_again_is_noticed_when_it_is_written():
    agent = train()
    run = run_folder()
    before = (run / "checkpoint.pt").read_bytes()
    parts = {"agent": agent, "normalizer": Statistics()}
    with pytest.raises(pickle.UnpicklingError):
        ppo.save_checkpoint(run, ppo.saved_args(run), 64, parts)
    assert (run / "checkpoint.pt").read_bytes() == before


@pytest.mark.parametrize("name", ["exp_avg", "exp_avg_sq"])
def test_moments_of_other_shapes_are_refused(name):
    """Fused Adam would read and write beyond their end."""
    agent = train()
    run = run_folder()
    checkpoint = ppo.load_checkpoint(run)
    checkpoint["optimizer"]["state"][0][name] = torch.zeros(3)
    torch.save(checkpoint, run / "checkpoint.pt")
    with pytest.raises(ValueError, match="optimizer does not fit"):
        ppo.Run(ppo.saved_args(run), agent=agent, optimizer=ppo.Adam(agent.parameters()))


def test_a_flipped_bit_is_noticed_or_does_not_matter():
    train()
    path = run_folder() / "checkpoint.pt"
    good, expected = path.read_bytes(), ppo.load_checkpoint(run_folder())
    rng = random.Random(1)
    noticed = 0
    for _ in range(200):
        flipped = bytearray(good)
        flipped[rng.randrange(len(good))] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
        try:
            assert same(ppo.load_checkpoint(run_folder()), expected)
        except AssertionError:
            raise
        except Exception:
            noticed += 1
    assert noticed > 100


def foreign_files() -> dict[str, bytes]:
    def saved(thing) -> bytes:
        file = io.BytesIO()
        torch.save(thing, file)
        return file.getvalue()

    return {
        "empty": b"",
        "text": b"no checkpoint",
        "something else": saved({"weights": torch.zeros(3)}),
        "a list": saved([1, 2]),
        "code": pickle.dumps(Trap()),
        "code in an archive": saved({"agent": Trap()}),
    }


@pytest.mark.parametrize("name", [*foreign_files(), "half of one", "another script's"])
def test_a_foreign_file_is_an_error_stays_as_it_is_and_runs_no_code(name, monkeypatch):
    train("ppo_atari" if name == "another script's" else "ppo")
    path = run_folder() / "checkpoint.pt"
    content = path.read_bytes()
    if name == "half of one":
        content = content[: len(content) // 2]
    content = foreign_files().get(name, content)
    path.write_bytes(content)
    with pytest.raises(Exception):  # noqa: B017, PT011, each has its own, whose last line says what is wrong
        ppo.main(command_line(monkeypatch, "--run-dir", run_folder(), "--total-timesteps", 960))
    assert path.read_bytes() == content
    assert not list(Path().rglob("trapped"))


def test_a_module_in_a_checkpoint_is_imported_only_if_the_command_line_repeats_it(monkeypatch):
    train()
    run = run_folder()
    checkpoint = ppo.load_checkpoint(run)
    checkpoint["args"]["env_id"] = "payload:CartPole-v1"
    torch.save(checkpoint, run / "checkpoint.pt")
    Path("payload.py").write_text("open('trapped', 'w')\n")
    monkeypatch.syspath_prepend(Path.cwd())
    for other in ([], ["--env-id", "CartPole-v1"]):
        with pytest.raises(ppo.UsageError, match="--env-id payload:CartPole-v1"):
            ppo.main(command_line(monkeypatch, "--run-dir", run, *other))
    assert not Path("trapped").exists()
    given = ["--env-id", "payload:CartPole-v1", "--total-timesteps", 128]
    ppo.main(command_line(monkeypatch, "--run-dir", run, *given))
    assert Path("trapped").exists()
    assert ppo.load_checkpoint(run)["global_step"] == 128
