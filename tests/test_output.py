"""What a run shows and leaves behind: progress, the closing line, curves, videos, --help."""

import contextlib
import dataclasses
import importlib
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import time
from ctypes.util import find_library
from fcntl import ioctl
from pathlib import Path
from typing import ClassVar

import ale_py  # noqa: F401, registers the games
import cv2
import envpool
import gymnasium as gym
import numpy as np
import pytest
import torch
import tyro
from conftest import SCRIPTS, TINY
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

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


class CountingEnv(gym.Env):
    """Episodes of random length with a reward of 2 per step; it keeps its own record of how they ended.

    As many environments that users write, it takes no `render_mode`.
    """

    records: ClassVar[list["CountingEnv"]] = []

    def __init__(self, action_space: gym.Space):
        self.observation_space, self.action_space = (
            gym.spaces.Box(-1, 1, (2,), np.float32),
            action_space,
        )
        self.total_steps = self.steps = 0
        self.ends = []  # (steps of this environment so far, length of the episode)
        self.records.append(self)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps, self.length = 0, int(self.np_random.integers(3, 9))
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.steps += 1
        self.total_steps += 1
        end = self.steps == self.length
        if end:
            self.ends.append((self.total_steps, self.length))
        # Ends and time limits both finish an episode.
        return (
            np.zeros(2, np.float32),
            2.0,
            end and self.length % 2 == 0,
            end and self.length % 2 == 1,
            {},
        )


@contextlib.contextmanager
def counting_environments():
    """Register the environment above, for discrete and for continuous actions; yield the instances of a run."""
    spaces = {
        "ppo": gym.spaces.Discrete(2),
        "ppo_continuous_action": gym.spaces.Box(-1, 1, (1,), np.float32),
    }
    spaces["ppo_multidiscrete"] = gym.spaces.MultiDiscrete([2, 3])
    CountingEnv.records.clear()
    for script, space in spaces.items():
        gym.register(f"Counting-{script}-v0", CountingEnv, kwargs={"action_space": space})
    try:
        yield CountingEnv.records
    finally:
        for script in spaces:
            del gym.registry[f"Counting-{script}-v0"]


@contextlib.contextmanager
def short_games():
    """End Atari games after a few steps, so that a tiny run finishes some."""
    make, game = envpool.make, gym.spec("BreakoutNoFrameskip-v4")
    short_game = dataclasses.replace(game, kwargs=game.kwargs | {"max_num_frames_per_episode": 100})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            envpool, "make", lambda *args, **options: make(*args, **options, max_episode_steps=10)
        )
        patch.setitem(gym.registry, game.id, short_game)
        yield


@dataclasses.dataclass
class Run:
    """A run that is over, and what it left behind."""

    script: str
    args: object
    run_dir: Path
    out: str
    err: str
    started: float
    seconds: float
    envs: list[CountingEnv]

    def points(self, tag: str) -> list[tuple[int, float]]:
        return [(point.step, point.value) for point in self.curves().Scalars(tag)]

    def curves(self) -> EventAccumulator:
        return EventAccumulator(str(self.run_dir), size_guidance={"scalars": 0}).Reload()


def run(script: str, **changes) -> Run:
    """Train for a moment, in this process and in the working directory, where some episodes finish."""
    module = importlib.import_module(script)
    args = module.Args(**TINY[script] | changes)
    out, err, started = io.StringIO(), io.StringIO(), time.time()
    with counting_environments() as envs, short_games():
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            module.main(args)
        envs = list(envs)
    (run_dir,) = {path.parent for path in Path("runs").rglob("events.*")}
    return Run(
        script, args, run_dir, out.getvalue(), err.getvalue(), started, time.time() - started, envs
    )


@pytest.fixture(scope="module", params=SCRIPTS)
def finished(request, tmp_path_factory) -> Run:
    """One run of each script, which several tests look at."""
    folder = tmp_path_factory.mktemp(request.param)
    env_id = {} if "atari" in request.param else {"env_id": f"Counting-{request.param}-v0"}
    with contextlib.chdir(folder):
        result = run(request.param, **env_id, seed=3, exp_name="trial")
    result.run_dir = folder / result.run_dir
    return result


def frames(video: Path) -> int:
    reader, count = cv2.VideoCapture(str(video)), 0
    while reader.read()[0]:
        count += 1
    return count


# Progress and the closing line


def test_first_line_on_stderr_names_run_folder_device_and_versions(finished):
    versions = f"torch {torch.__version__}, gymnasium {gym.__version__}"
    assert finished.err.splitlines() == [f"runs/{finished.run_dir.name}: cpu, {versions}"]


class Clock:
    """Stands in for the module `time`; it stands still."""

    time = staticmethod(time.time)

    def __init__(self):
        self.seconds = 0.0

    def perf_counter(self) -> float:
        return self.seconds


def test_without_a_terminal_a_line_tells_every_ten_seconds(monkeypatch):
    ppo = importlib.import_module("ppo")
    clock = Clock()
    end_update = ppo.Run.end_update

    def after_4_seconds(self, *args):
        clock.seconds += 4
        end_update(self, *args)

    monkeypatch.setattr(ppo, "time", clock)
    monkeypatch.setattr(ppo.Run, "end_update", after_4_seconds)
    ended = run("ppo", total_timesteps=10 * 32)
    _, *lines = ended.err.splitlines()
    expected = []
    # After 12, 24 and 36 seconds, since 8 and 20 and 32 are too early.
    for steps, left in ((96, "00:28"), (192, "00:16"), (288, "00:04")):
        returns = [value for step, value in ended.points("charts/episodic_return") if step <= steps]
        expected.append(
            f"{steps} of 320 steps, {left} left, 8 steps/s, mean return {np.mean(returns[-100:]):.1f}"
        )
    assert lines == expected
    # A resumed run estimates its time by its own steps, not by those of the run before.
    resumed = run("ppo", total_timesteps=20 * 32, resume=ended.run_dir)
    assert resumed.err.splitlines()[1].startswith(
        "416 of 640 steps, 00:28 left, 8 steps/s, mean return "
    )


def test_last_line_on_stdout_has_the_mean_return_and_the_run_folder(finished):
    returns = [value for _, value in finished.points("charts/episodic_return")]
    (line,) = finished.out.splitlines()
    assert f"mean return {np.mean(returns[-100:]):.1f}" in line
    assert line.endswith(f"tensorboard --logdir runs/{finished.run_dir.name}")


def test_run_without_a_finished_episode_says_so():
    short = run("ppo", num_envs=1, num_steps=4, total_timesteps=4)
    assert "no episode finished yet" in short.out.splitlines()[-1]
    assert str(short.run_dir) in short.out.splitlines()[-1]


def test_progress_on_a_terminal_redraws_one_line_of_80_columns():
    script = importlib.import_module("ppo").__file__
    controller, terminal = pty.openpty()
    ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    command = [sys.executable, script, "--total-timesteps", "2048"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=terminal, text=True)
    os.close(terminal)
    drawn = b""
    with contextlib.suppress(OSError):  # which is how Linux reports the end of a terminal
        while chunk := os.read(controller, 4096):
            drawn += chunk
    os.close(controller)
    last = process.communicate()[0].splitlines()[-1]
    assert process.returncode == 0
    text = drawn.decode().replace("\r\n", "\n")  # the terminal turns each newline into this pair
    first, bar, rest = text.split("\n")
    assert Path(first.partition(":")[0]).is_dir()
    assert rest == ""
    states = bar.strip("\r").split("\r")
    assert len(states) >= 2, states
    assert states[0].lstrip().startswith("0%|")
    final = re.fullmatch(
        r"100%\|█+\| 00:00 left, [\d,]+ steps/s, (mean return \d+\.\d)", states[-1].rstrip()
    )
    assert final, states[-1]
    assert final[1] in last
    assert all(len(state.rstrip()) <= 80 for state in states)


# Curves and the run folder


def test_curves_have_the_tags_that_users_tools_know(finished):
    assert set(finished.curves().Tags()["scalars"]) == TAGS


def test_every_update_is_logged_at_its_global_step(finished):
    args = finished.args
    batch_size = args.num_envs * args.num_steps
    for tag in TAGS - {"charts/episodic_return", "charts/episodic_length"}:
        steps = [step for step, _ in finished.points(tag)]
        assert steps == list(range(batch_size, args.total_timesteps + 1, batch_size))
    rates = [value for _, value in finished.points("charts/learning_rate")]
    assert rates == pytest.approx([args.learning_rate * left / 3 for left in (3, 2, 1)])
    # The three updates cannot have taken longer than the whole run.
    speeds = np.array([value for _, value in finished.points("charts/SPS")])
    assert 0 < (batch_size / speeds).sum() <= finished.seconds


@pytest.mark.parametrize("script", ["ppo", "ppo_continuous_action", "ppo_multidiscrete"])
def test_episodes_are_logged_with_their_return_length_and_global_step(script):
    ended = run(
        script, env_id=f"Counting-{script}-v0", num_envs=3, num_steps=16, total_timesteps=96
    )
    assert len(ended.envs) == 3
    ends = sorted(
        (steps, i, length) for i, env in enumerate(ended.envs) for steps, length in env.ends
    )
    assert len({length for _, _, length in ends}) > 1
    # Every environment has made the same number of steps, so global_step is three times that number.
    assert ended.points("charts/episodic_length") == [
        (3 * steps, length) for steps, _, length in ends
    ]
    assert ended.points("charts/episodic_return") == [
        (3 * steps, 2 * length) for steps, _, length in ends
    ]


def test_atari_games_are_logged_with_their_length_and_global_step(finished):
    lengths = finished.points("charts/episodic_length")
    assert [step for step, _ in lengths] == [
        step for step, _ in finished.points("charts/episodic_return")
    ]
    if finished.script == "ppo_atari_envpool":
        # Both games end at their 10th step. FIRE and action 2 are two of these, so the agent takes 8 of them.
        assert lengths == [(2 * end, 10) for end in range(8, 49, 8) for _ in range(2)]
    if finished.script == "ppo_atari":
        # 100 frames are 25 steps, and the no-ops of the start take some of them.
        assert len(lengths) >= 2
        assert all(16 <= length <= 25 for _, length in lengths)


def test_run_folder_is_named_after_the_run_and_holds_its_arguments(finished):
    name, _, second = finished.run_dir.name.rpartition("__")
    assert name == f"{finished.args.env_id}__trial__3"
    assert int(finished.started) <= int(second) <= finished.started + finished.seconds
    curves = finished.curves()
    (tag,) = curves.Tags()["tensors"]  # the only text
    (text,) = curves.Tensors(tag)
    logged = text.tensor_proto.string_val[0].decode()
    for field, value in dataclasses.asdict(finished.args).items():
        assert re.search(rf"\b{field}\b\W+{re.escape(str(value))}", logged), field


# Videos


@pytest.mark.parametrize(
    ("script", "env_id"),
    [
        ("ppo", "CartPole-v1"),
        ("ppo_atari", "BreakoutNoFrameskip-v4"),
        ("ppo_atari_envpool", "Breakout-v5"),
        ("ppo_continuous_action", "Pendulum-v1"),
        pytest.param(
            "ppo_continuous_action",
            "Hopper-v5",
            marks=pytest.mark.skipif(
                not find_library("EGL"), reason="MuJoCo draws with EGL where there is no display"
            ),
        ),
    ],
)
def test_capture_video_films_an_environment(script, env_id):
    filmed = run(script, env_id=env_id, capture_video=True)
    videos = sorted((filmed.run_dir / "videos").glob("*.mp4"))
    assert videos
    assert all(frames(video) > 0 for video in videos)


@pytest.mark.parametrize("script", ["ppo", "ppo_atari_envpool"])
def test_a_resumed_run_keeps_the_videos_that_it_has(script):
    filmed = run(script, capture_video=True)
    first = {video: video.read_bytes() for video in filmed.run_dir.rglob("*.mp4")}
    assert first
    run(script, capture_video=True, total_timesteps=192, resume=filmed.run_dir)
    assert all(video.read_bytes() == content for video, content in first.items())
    second = set(filmed.run_dir.rglob("*.mp4")) - set(first)
    # The numbers begin anew, so that they would have the same names.
    assert {video.name for video in second} & {video.name for video in first}
    assert all(frames(video) > 0 for video in second)


def test_only_capture_video_makes_videos(finished):
    assert not list(finished.run_dir.rglob("*.mp4"))


# Weights & Biases


def test_track_logs_the_curves_to_weights_and_biases():
    ppo = importlib.import_module("ppo")
    command = [
        sys.executable,
        ppo.__file__,
        "--num-steps",
        "32",
        "--total-timesteps",
        "512",
        "--track",
    ]
    home = str(Path.cwd())  # where it would keep settings and caches
    environment = os.environ | {"WANDB_MODE": "offline", "HOME": home, "WANDB_DIR": home}
    subprocess.run(command, env=environment, check=True, capture_output=True)
    (log,) = Path("wandb").glob("offline-run-*/*.wandb")
    content = log.read_bytes()
    for name in TAGS | {field.name for field in dataclasses.fields(ppo.Args)}:
        assert name.encode() in content, name
    (run_dir,) = Path("runs").iterdir()
    assert run_dir.name.encode() in content


# Help


@pytest.mark.parametrize("script", SCRIPTS)
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
    for field in dataclasses.fields(args):
        assert field.name in entries, text
        what, _, default = entries[field.name].rpartition("(default: ")
        sentence = re.sub(r"^(--no-\S+|[A-Z]+|\{\S+\}(\|[A-Z]+)?) ", "", what)
        assert len(sentence.split()) >= 2, (
            f"--{field.name} has no explanation: {entries[field.name]}"
        )
        assert default.startswith(f"{field.default})")
