"""What a run shows and leaves behind: progress, curves, videos, Weights & Biases, --help."""

import dataclasses
import importlib
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import time
from dataclasses import replace
from fcntl import ioctl
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import cv2
import gymnasium as gym
import numpy as np
import pytest
import torch
import tyro
from conftest import ALL_SCRIPTS, TINY
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import ppo

TAGS = {
    "charts/episodic_return",
    "charts/episodic_length",
    "charts/learning_rate",
    "charts/SPS",
    "losses/value_loss",
    "losses/policy_loss",
    "losses/entropy",
    "losses/old_approx_kl",
    "losses/approx_kl",
    "losses/clipfrac",
    "losses/grad_norm",
    "losses/explained_variance",
}
SPACES = {
    "ppo": gym.spaces.Discrete(2),
    "ppo_continuous_action": gym.spaces.Box(-1, 1, (1,), np.float32),
    "ppo_multidiscrete": gym.spaces.MultiDiscrete([2, 3]),
}


class CountingEnv(gym.Env):
    """Environment number i pays 10 i + 1 a step; its episodes last 3 to 8 steps, and half of them are truncated."""

    def __init__(self, action_space: gym.Space, numbers: count):
        shape = (5, 5, 2) if isinstance(action_space, gym.spaces.MultiDiscrete) else (2,)
        self.observation_space = gym.spaces.Box(-1, 1, shape, np.float32)
        self.action_space = action_space
        self.number = next(numbers)
        self.episode = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        self.episode += 1
        self.length = 3 + (self.number + self.episode) % 6
        return np.zeros(self.observation_space.shape, np.float32), {}

    def step(self, action):
        self.steps += 1
        end = self.steps == self.length
        late = self.length % 2 == 1
        reward = 10 * self.number + 1
        return (
            np.zeros(self.observation_space.shape, np.float32),
            reward,
            end and not late,
            end and late,
            {},
        )


def episodes(num_envs: int, num_steps: int) -> list[tuple[int, int, int]]:
    """Return step, length and return of every episode of these environments, in the order in which they are logged."""
    found = []
    for number in range(num_envs):
        end = 0
        for episode in count(1):
            length = 3 + (number + episode) % 6
            end += length
            if end > num_steps:
                break
            # All environments have made a step before the next one begins.
            step = num_envs * (end - 1) + number + 1
            found.append((step, length, length * (10 * number + 1)))
    return sorted(found)


@pytest.fixture(scope="module", params=SPACES)
def finished(request, tmp_path_factory):
    """One run of each script with environments of Gymnasium, which several tests look at."""
    script = request.param
    module = importlib.import_module(script)
    sizes = TINY[script] | {"num_envs": 3, "num_steps": 16, "total_timesteps": 150}
    args = module.Args(**sizes, env_id="Counting-v0", seed=3, exp_name="trial")
    kwargs = {"action_space": SPACES[script], "numbers": count()}
    spec = gym.envs.registration.EnvSpec(
        "Counting-v0", CountingEnv, kwargs=kwargs, disable_env_checker=True
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp(script))
        patch.setitem(gym.registry, "Counting-v0", spec)
        # A copied environment would have its own counter.
        patch.setattr(gym.envs.registration.copy, "deepcopy", lambda x: x)
        started = int(time.time())
        module.main(args)
        ended = int(time.time())
        (run_dir,) = Path("runs").iterdir()
        run_dir = run_dir.resolve()
    log = EventAccumulator(str(run_dir), size_guidance={"scalars": 0}).Reload()
    return SimpleNamespace(args=args, run_dir=run_dir, log=log, started=started, ended=ended)


def points(log: EventAccumulator, tag: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in log.Scalars(tag)]


# Curves and the run folder


def test_curves_have_the_tags_that_users_tools_know(finished):
    assert set(finished.log.Tags()["scalars"]) == TAGS


def test_every_update_is_logged_at_its_global_step(finished):
    for tag in TAGS - {"charts/episodic_return", "charts/episodic_length"}:
        assert [step for step, _ in points(finished.log, tag)] == [48, 96, 144]
    rates = [value for _, value in points(finished.log, "charts/learning_rate")]
    assert rates == pytest.approx([finished.args.learning_rate * left / 3 for left in (3, 2, 1)])
    assert all(speed > 0 for _, speed in points(finished.log, "charts/SPS"))


def test_every_episode_is_logged_at_a_step_of_its_own(finished):
    expected = episodes(num_envs=3, num_steps=48)
    assert len({(step - 1) // 3 for step, _, _ in expected}) < len(expected), "none end together"
    assert points(finished.log, "charts/episodic_length") == [
        (step, length) for step, length, _ in expected
    ]
    assert points(finished.log, "charts/episodic_return") == [
        (step, value) for step, _, value in expected
    ]


def test_run_folder_is_named_after_the_run_and_holds_its_arguments(finished):
    name, _, second = finished.run_dir.name.rpartition("__")
    assert name == "Counting-v0__trial__3"
    assert finished.started <= int(second) <= finished.ended
    (tag,) = finished.log.Tags()["tensors"]  # the only text
    (text,) = finished.log.Tensors(tag)
    logged = text.tensor_proto.string_val[0].decode().splitlines()
    for field, value in dataclasses.asdict(finished.args).items():
        assert f"    {field}: {value}" in logged


# Progress


def run_and_capture(capfd, **changes) -> tuple[list[str], list[str]]:
    ppo.main(ppo.Args(**TINY["ppo"] | changes))
    out, err = capfd.readouterr()
    return out.splitlines(), err.splitlines()


def test_first_line_names_folder_and_device_and_last_line_the_result(capfd):
    out, err = run_and_capture(capfd)
    (run_dir,) = Path("runs").iterdir()
    assert err == [f"{run_dir}: training on cpu"]
    log = EventAccumulator(str(run_dir)).Reload()
    mean = np.mean([value for _, value in points(log, "charts/episodic_return")])
    curves = f"The curves: tensorboard --logdir {run_dir}"
    assert out == [f"96 steps, mean return {mean:.1f}. {curves}"]
    out, err = run_and_capture(capfd, num_steps=4, total_timesteps=8, run_dir=Path("short"))
    assert out == ["8 steps, mean return not known yet. The curves: tensorboard --logdir short"]


def test_without_a_terminal_a_whole_line_tells_how_far_it_is(capfd):
    """Every 30 seconds, which the test does not wait for."""
    args = ppo.Args(num_envs=2, num_steps=16, run_dir=Path("run"))
    losses = {"grad_norm": torch.ones(())}
    with ppo.Run(args, agent=torch.nn.Linear(1, 1)) as run:
        for _ in range(16):
            run.end_step({})
        run.returns.extend([5.0, 10.0])
        run.end_update(1e-3, losses)
        assert len(capfd.readouterr().err.splitlines()) == 1  # that of the start
        run.last_line -= 30
        run.last_update -= 1e6
        run.end_update(1e-3, losses)
        run.end_update(1e-3, losses)
        assert capfd.readouterr().err == "32 steps, 0 a second, mean return 7.5\n"


def test_on_a_terminal_a_bar_redraws_one_line_of_80_columns():
    controller, terminal = pty.openpty()
    ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    command = [sys.executable, ppo.__file__, "--total-timesteps", "2048"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=terminal, text=True)
    os.close(terminal)
    drawn = b""
    try:
        while chunk := os.read(controller, 4096):
            drawn += chunk
    except OSError:  # which is how Linux reports the end of a terminal
        os.close(controller)
    last = process.communicate()[0].splitlines()[-1]
    assert process.returncode == 0
    first, bar, rest = drawn.decode().replace("\r\n", "\n").split("\n")
    assert first.endswith(": training on cpu")
    assert rest == ""
    states = bar.strip("\r").split("\r")
    assert all(len(state.rstrip()) <= 80 for state in states)
    assert states[0].lstrip().startswith("0%|")
    assert "100%|" in states[-1]
    assert re.search(r"mean return \d+\.\d", states[-1])[0] in last


# Videos


@pytest.mark.parametrize(
    ("script", "env_id", "shape"),
    [
        ("ppo", "CartPole-v1", (400, 600, 3)),
        ("ppo_atari", "BreakoutNoFrameskip-v4", (210, 160, 3)),
        ("ppo_continuous_action", "Pendulum-v1", (500, 500, 3)),
    ],
)
def test_capture_video_films_the_first_environment_anew_in_each_start(
    script, env_id, shape, monkeypatch
):
    module = importlib.import_module(script)
    args = module.Args(**TINY[script], env_id=env_id, capture_video=True, run_dir=Path("run"))
    args.total_timesteps = args.num_envs * args.num_steps  # one update
    seconds = count(1000)
    monkeypatch.setattr(module.time, "time", lambda: next(seconds))
    module.main(args)
    films = {film: film.read_bytes() for film in Path("run").rglob("*.mp4")}
    assert films
    for film in films:
        ok, frame = cv2.VideoCapture(str(film)).read()
        assert ok
        assert frame.shape == shape
    module.main(dataclasses.replace(args, total_timesteps=2 * args.total_timesteps))
    assert len(list(Path("run").rglob("*.mp4"))) > len(films)
    assert all(film.read_bytes() == content for film, content in films.items())


# Weights & Biases

TRACKED = """
import gymnasium as gym, numpy as np, ppo, sys

class Fixed(gym.Env):
    observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        self.steps = 0
        return np.zeros(self.observation_space.shape, np.float32), {}

    def step(self, action):
        self.steps += 1
        return np.zeros(self.observation_space.shape, np.float32), 1.0, self.steps == 50, False, {}

gym.register("Fixed-v0", Fixed)
for seed in (1, 2):
    ppo.main(ppo.Args("Fixed-v0", num_envs=4, total_timesteps=1024, seed=seed, track=True))
    assert sys.modules["wandb"].run is None
"""


def records(path: Path):
    """Yield what an offline log of W&B holds: LevelDB's format, after 7 bytes of header."""
    from wandb.proto import wandb_internal_pb2

    data, position, part = path.read_bytes(), 7, b""
    while position + 7 <= len(data):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        _, size, kind = struct.unpack("<IHB", data[position : position + 7])
        chunk = data[position + 7 : position + 7 + size]
        position += 7 + size
        part = chunk if kind in (1, 2) else part + chunk  # whole, or the first of several
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(part)
            yield record


def test_track_logs_every_episode_and_each_run_in_one_process_to_a_run_of_its_own():
    home = str(Path.cwd())  # where it would keep settings and caches
    environment = os.environ | {"WANDB_MODE": "offline", "HOME": home, "WANDB_DIR": home}
    environment["PYTHONPATH"] = str(Path(ppo.__file__).parent)
    command = [sys.executable, "-c", TRACKED]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    logs = sorted(Path("wandb").glob("offline-run-*/*.wandb"))
    assert len(logs) == 2
    seeds = []
    folders = set()
    for log in logs:
        rows, config, name = [], {}, None
        for record in records(log):
            if record.HasField("run"):
                name = record.run.run_id
                config |= {
                    item.key: json.loads(item.value_json) for item in record.run.config.update
                }
            items = record.history.item
            rows.append({item.key or "/".join(item.nested_key): item.value_json for item in items})
        seeds.append(config["seed"])
        (path,) = (path for path in Path("runs").glob("*/wandb_id") if path.read_text() == name)
        folders.add(path.parent)
        # 256 steps of four environments, whose episodes all end together
        returns = [row["charts/episodic_return"] for row in rows if "charts/episodic_return" in row]
        assert [float(value) for value in returns] == [50.0] * 5 * 4
        assert set().union(*rows) >= TAGS
    assert sorted(seeds) == [1, 2]
    assert len(folders) == 2


def test_a_resumed_run_goes_on_in_wandb_and_a_new_one_does_not(monkeypatch):
    begun = []

    def init(**options):
        begun.append((options["id"], options["name"], options["resume"]))
        return SimpleNamespace(id=options["id"] or f"new-{len(begun)}")

    wandb = SimpleNamespace(init=init, finish=lambda exit_code: None)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    args = ppo.Args(**TINY["ppo"], track=True, run_dir=Path("runs", "pole"))
    ppo.main(args)
    ppo.main(replace(args, total_timesteps=192))
    ppo.main(replace(args, run_dir=Path("elsewhere", "runs", "pole")))
    assert begun == [(run_id, "pole", "allow") for run_id in (None, "new-1", None)]


# Help


@pytest.mark.parametrize("script", ALL_SCRIPTS)
def test_help_explains_every_argument_and_shows_its_default(script, monkeypatch, capsys):
    args = importlib.import_module(script).Args
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as end:
        tyro.cli(args, args=["--help"])
    assert end.value.code == 0
    text = " ".join(re.sub(r"[│╭╮╰╯─]|\x1b\[[\d;]*m", " ", capsys.readouterr().out).split())
    # Each entry ends with its default and the next flag follows: `--gamma FLOAT discount factor (default: 0.99)`.
    entries = {}
    for entry in re.split(r"(?:(?<=\))|(?<=exit)) (?=--[a-z])", text)[1:]:
        flag, _, rest = entry.removeprefix("--").partition(" ")
        entries[flag.strip(",").replace("-", "_")] = rest
    small = ("ppo", "ppo_continuous_action")  # the others' device is an expression, without comment
    undocumented = set() if script in small else {"device"}
    for field in dataclasses.fields(args):
        assert field.name in entries, text
        what, _, default = entries[field.name].rpartition("(default: ")
        sentence = re.sub(r"^(--no-\S+|[A-Z]+|\{\S+\}(\|[A-Z]+)?) ", "", what)
        if field.name not in undocumented:
            assert len(sentence.split()) >= 2, f"--{field.name} has no explanation"
        assert default.startswith(f"{field.default})")
