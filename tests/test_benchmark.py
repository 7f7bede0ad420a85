"""Plans, searches and timings: nothing is trained twice or lost, and numbers are the logs'."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
import pandas as pd
import pytest
import run
import speed
import tune
from episodes import read_csv, read_run, write_csv
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

ROOT = Path(__file__).resolve().parents[1]
BENCHMARK = ROOT / "benchmark"

# What a training script promises, without the training: an episode of 100 steps per update. It logs
# without PyTorch, which takes seconds to import.
SCRIPT = """
import argparse, json, os, signal, sys, time
from pathlib import Path
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter
from beside import return_of

parser = argparse.ArgumentParser()
for flag, kind in (("env-id", str), ("seed", int), ("total-timesteps", int), ("run-dir", Path)):
    parser.add_argument(f"--{flag}", type=kind)
parser.add_argument("--learning-rate", type=float, default=1.0)
parser.add_argument("--pause", type=float, default=0.0)
args = parser.parse_args()

stops = []
signal.signal(signal.SIGTERM, lambda signum, frame: stops.append(signum))
if args.env_id == "Bad-v0":
    sys.exit("error: no such environment")
checkpoint = args.run_dir / "checkpoint.pt"
step = json.loads(checkpoint.read_text()) if checkpoint.exists() else 0
writer = EventFileWriter(str(args.run_dir))
writer.add_event(Event(step=step + 1, session_log=SessionLog(status=SessionLog.START)))
with (args.run_dir / "starts.txt").open("a") as file:
    print(step, os.getpid(), file=file)
while step < args.total_timesteps:
    step += 100
    time.sleep(1 if Path("slow").exists() else args.pause)
    scalars = {"episodic_return": return_of(args, step), "episodic_length": 100, "SPS": 50}
    for name, x in scalars.items():
        value = Summary.Value(tag=f"charts/{name}", simple_value=x)
        writer.add_event(Event(step=step, wall_time=time.time(), summary=Summary(value=[value])))
    writer.flush()
    checkpoint.with_suffix(".tmp").write_text(json.dumps(step))
    checkpoint.with_suffix(".tmp").rename(checkpoint)
    if stops:
        print("stopped; to go on, run it again")
        sys.exit(128 + stops[0])
"""
PLAN = """
[[settings]]
script = "my/fake.py"
env_ids = ["A-v0"]
seeds = [1]
steps = 1_000
"""

EPISODES = pd.DataFrame({"step": [10], "return": [1.0], "length": [10], "seconds": [0.1]})


@pytest.fixture(autouse=True)
def script():
    Path("my").mkdir()
    Path("my/fake.py").write_text(SCRIPT)
    Path("my/beside.py").write_text(
        "def return_of(args, step):\n    return args.learning_rate * step + args.seed\n"
    )


def make_job(flags: str = "", script: str = "my/fake.py", steps: int = 1_000, **others) -> run.Job:
    setting = run.Setting(script, [], [], steps, flags, **others)
    return run.make_job("plan", "a", setting, "A-v0", 1)


def write_script(body: str) -> run.Job:
    Path("my/other.py").write_text(f"import os, sys\n{body}\n")
    return make_job(script="my/other.py")


def start_run(job: run.Job) -> None:
    job.folder.mkdir(parents=True)
    (job.folder / "checkpoint.pt").touch()
    run.note_start(job)


def starts(folder: Path) -> list[tuple[int, int]]:
    """Return the step and the process of each start of a run."""
    lines = (folder / "starts.txt").read_text().splitlines()
    return [tuple(map(int, line.split())) for line in lines]


def step_of(folder: Path) -> int:
    path = folder / "checkpoint.pt"
    return json.loads(path.read_text()) if path.exists() else 0


def start(program: str, *arguments: str) -> subprocess.Popen:
    command = [sys.executable, str(BENCHMARK / program), *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, text=True, **pipes)


def ps(column: str, process: int) -> str:
    command = ["ps", "-o", f"{column}=", "-p", str(process)]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


# Plans


def test_a_plan_goes_on_after_ctrl_c_and_kill_9_and_leaves_its_results():
    good = PLAN.replace("[1]", "[1, 2]").replace("1_000", "3_000")
    good += 'name = "a"\nflags = "--pause 0.02"\n'
    Path("slow").touch()
    Path("p.toml").write_text(good)
    folders = {seed: Path(f"runs/p/A-v0__a__{seed}") for seed in (1, 2)}
    program = start("run.py", "p.toml")
    wait_for(lambda: all(step_of(folder) > 0 for folder in folders.values()))
    program.send_signal(signal.SIGINT)
    program.communicate()
    assert program.returncode == 130
    stopped = {seed: step_of(folder) for seed, folder in folders.items()}
    for seed, folder in folders.items():
        assert 0 < stopped[seed] < 3_000
        assert (folder / "log.txt").read_text().endswith("stopped; to go on, run it again\n")

    # A script is killed, a worker too, and another run cannot be trained at all.
    Path("p.toml").write_text(good + PLAN.replace("A-v0", "Bad-v0"))
    program = start("run.py", "p.toml")
    for seed, folder in folders.items():
        wait_for(lambda seed=seed, folder=folder: step_of(folder) > stopped[seed])
        script = starts(folder)[-1][1]
        os.kill(script if seed == 1 else int(ps("ppid", script)), signal.SIGKILL)
        # With its worker ends the script, too: soon there will be another one in its folder.
        wait_for(lambda script=script: ps("stat", script)[:1] in ("", "Z"))
        assert step_of(folder) < 3_000
    Path("slow").unlink()
    out, err = program.communicate()
    assert program.returncode == 1
    assert out.splitlines()[-1] == "2 of 3 runs are finished: benchmark/results/p"
    assert "error: runs/p/Bad-v0__fake__1: error: no such environment" in err
    for seed, folder in folders.items():
        begun, resumed, again = [step for step, _ in starts(folder)]
        assert (begun, resumed) == (0, stopped[seed])
        assert again > resumed
        episodes = read_csv(Path(f"benchmark/results/p/A-v0__a__{seed}.csv.xz"))
        steps = np.arange(100, 3_001, 100)
        np.testing.assert_array_equal(episodes.step, steps)
        np.testing.assert_array_equal(episodes["return"], steps + seed)
        entry = json.loads(Path(f"benchmark/results/p/A-v0__a__{seed}.json").read_text())
        arguments = f"--env-id A-v0 --seed {seed} --total-timesteps 3000 --pause 0.02"
        assert entry["command"] == f"python my/fake.py {arguments}"
        assert entry["steps"] == 3_000
        assert entry["minutes"] == 1.0  # at 50 steps a second
        assert entry["steps_per_second"] == 50
        assert entry["last_100"] == 1_550 + seed
        assert entry["threads"] == 1
        assert entry["versions"].keys() >= {"python", "torch", "numpy", "ray"}
        assert entry["machine"].keys() >= {"cpu", "cores"}
        assert entry.keys() >= {"commit", "dirty"}
        assert "resumed" not in entry

    # What is finished is not trained again.
    Path("p.toml").write_text(good)
    before = {path: path.stat().st_mtime_ns for path in Path().rglob("*")}
    with pytest.raises(SystemExit) as end:
        run.main(run.Args(Path("p.toml")))
    assert end.value.code == 0
    assert before == {path: path.stat().st_mtime_ns for path in Path().rglob("*")}


@pytest.mark.parametrize(
    "plan",
    [
        PLAN + "sedes = 3",
        PLAN.replace("seeds", "# seeds"),
        PLAN.replace("[1]", '["1"]'),
        PLAN + "[other]",
        PLAN + PLAN,  # two runs in one folder
        "steps = = 3",
    ],
)
def test_a_bad_plan_ends_in_one_line(plan):
    Path("bad.toml").write_text(plan)
    with pytest.raises(SystemExit, match=r"^error: bad.toml: [^\n]*$"):
        run.read_plan(Path("bad.toml"))


def test_every_plan_of_this_repository_can_be_read():
    plans = sorted(BENCHMARK.glob("plans/*.toml"))
    assert len(plans) >= 4
    for plan in plans:
        for job in run.read_plan(plan):
            assert (ROOT / job.arguments[0]).is_file()


def test_a_run_that_is_stopped_early_ends_there():
    job = make_job("--pause 0.05", steps=10**6, stop_at=550)
    episodes = run.train(job)
    assert step_of(job.folder) < 10**6
    np.testing.assert_array_equal(episodes.step, np.arange(100, 501, 100))
    run.write_results(job, episodes)
    assert run.is_finished(job)
    assert not run.is_finished(replace(job, stop_at=2_000))


def test_how_a_script_ended_is_told_apart():
    with pytest.raises(run.Failed, match="error: too bad"):
        run.train(write_script("print('0 of 100'); sys.exit('error: too bad')"))
    job = write_script("sys.exit('threads: ' + os.environ['OMP_NUM_THREADS'])")
    with pytest.raises(run.Failed, match="threads: 2"):
        run.train(replace(job, threads=2))
    with pytest.raises(run.Killed, match="SIGKILL"):
        run.train(write_script("os.kill(os.getpid(), 9)"))
    with pytest.raises(run.Failed, match="no episode has finished"):
        run.train(write_script("pass"))


def test_a_setting_that_was_changed_is_not_taken_for_the_old_one():
    job = make_job()
    start_run(job)
    run.write_results(job, EPISODES)
    assert run.is_finished(job)
    changed = make_job("--learning-rate 2")
    with pytest.raises(run.Failed, match="begun as `python"):
        run.train(changed)
    with pytest.raises(SystemExit, match="give the setting another name"):
        run.is_finished(changed)
    # Where nothing was saved, as after a typing error, nothing is in the way.
    (job.folder / "checkpoint.pt").unlink()
    run.note_start(changed)
    assert [start["command"] for start in run.read_starts(job)] == [changed.command]


def test_results_say_what_was_different_on_a_resume(monkeypatch):
    job = make_job()
    start_run(job)
    for commit in ("b", "b", "c"):
        monkeypatch.setattr(run, "circumstances", lambda script, new=commit: {"commit": new})
        run.note_start(job)
    run.write_results(job, EPISODES)
    entry = json.loads(job.result(".json").read_text())
    assert [start["commit"] for start in entry["resumed"]] == ["b", "c"]


def test_a_script_that_git_does_not_know_is_no_clean_commit():
    for command in ("init -q", "config user.name a", "config user.email a@b.c", "add my/fake.py"):
        subprocess.run(["git", *command.split()], check=True)
    subprocess.run(["git", "commit", "-qm", "known"], check=True)
    assert len(run.circumstances("my/fake.py")["commit"]) == 40
    assert run.circumstances("my/fake.py")["dirty"] is False
    assert run.circumstances("my/beside.py")["dirty"] is True
    Path(".gitignore").write_text("beside.py")
    assert run.circumstances("my/beside.py")["dirty"] is True
    Path("my/fake.py").write_text("pass")
    assert run.circumstances("my/fake.py")["dirty"] is True


def test_a_real_script_is_trained_and_its_episodes_are_those_of_its_log():
    setting = run.Setting(str(ROOT / "ppo.py"), [], [], 2_048)
    job = run.make_job("plan", "a", setting, "CartPole-v1", 1)
    episodes = run.train(job)
    log = EventAccumulator(str(job.folder), size_guidance={"scalars": 0}).Reload()
    returns = log.Scalars("charts/episodic_return")
    assert len(episodes) == len(returns) > 20
    np.testing.assert_array_equal(episodes.step, [event.step for event in returns])
    np.testing.assert_array_equal(episodes["return"], episodes.length)  # 1 for each step
    assert (episodes.seconds.diff()[1:] >= 0).all()


# Episodes


def test_episodes_of_a_resumed_run_have_the_time_of_its_updates():
    for purge, returns, sps in ((None, {50: 1, 150: 2, 250: 3}, 10), (201, {220: 4, 300: 5}, 20)):
        writer = SummaryWriter("log", purge_step=purge)
        for step, value in returns.items():
            writer.add_scalar("charts/episodic_return", value, step)
            writer.add_scalar("charts/episodic_length", value + 10, step)
        for step in (100, 200, 300) if purge is None else (300,):
            writer.add_scalar("charts/SPS", sps, step)
        writer.close()
        time.sleep(1.1)  # a log file has the second in its name
    episodes = read_run(Path("log"))
    assert episodes.step.tolist() == [50, 150, 220, 300]
    assert episodes["return"].tolist() == [1, 2, 4, 5]
    assert episodes.length.tolist() == [11, 12, 14, 15]
    assert episodes.seconds.tolist() == [5, 15, 21, 25]  # 10 steps a second, then 20
    write_csv(Path("results/a.csv.xz"), episodes)
    pd.testing.assert_frame_equal(read_csv(Path("results/a.csv.xz")), episodes, check_dtype=False)


# Searches


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ("2:10", optuna.distributions.IntDistribution(2, 10)),
        ("log:1:64", optuna.distributions.IntDistribution(1, 64, log=True)),
        ("0.0:1", optuna.distributions.FloatDistribution(0, 1)),
        ("log:1e-4:1e-2", optuna.distributions.FloatDistribution(1e-4, 1e-2, log=True)),
        ("a,b", optuna.distributions.CategoricalDistribution(["a", "b"])),
        ("64", optuna.distributions.CategoricalDistribution(["64"])),
    ],
)
def test_what_a_search_chooses_from(values, expected):
    assert tune.distribution_of(values) == expected


def test_values_become_flags():
    params = {"anneal-lr": "false", "clip-vloss": "true", "num-steps": 64, "gamma": 0.123456}
    assert tune.flags_of(params) == "--no-anneal-lr --clip-vloss --num-steps 64 --gamma 0.1235"


def test_a_score_is_the_mean_of_normalised_returns_and_bad_trials_end_early(monkeypatch):
    trained = []

    def train(job: run.Job) -> pd.DataFrame:
        trained.append(job)
        env_id, gain = job.arguments[2], float(job.arguments[-1])
        if gain < 0:
            raise run.Failed("NaN")
        returns = np.append(np.full(50, -1e6), np.full(100, gain * (10 if env_id == "A" else 1)))
        return pd.DataFrame({"return": returns})

    monkeypatch.setattr(run, "train", train)
    args = tune.Args("x.py", ["A:10:110", "B:-10:10"], [], seeds=2, name="t")
    study = optuna.create_study(direction="maximize")

    def try_gain(gain: float) -> tuple[float, int]:
        trained.clear()
        trial = study.ask({"gain": optuna.distributions.FloatDistribution(gain, gain)})
        try:
            score = tune.score(trial, args)
            study.tell(trial, score)
        except optuna.TrialPruned:
            score = study.tell(trial, state=optuna.trial.TrialState.PRUNED).value
        return score, len(trained)

    assert try_gain(2.0) == (pytest.approx((10 / 100 + 12 / 20) / 2), 4)
    assert try_gain(-1.0) == (0.0, 1)
    for _ in range(5):
        try_gain(3.0)
    # Below LOW counts 0; worse than the others, it ends after the first seed.
    assert try_gain(0.5) == (pytest.approx((0 + 10.5 / 20) / 2), 2)
    assert [job.folder.name for job in trained] == ["A__trial7__1", "B__trial7__1"]


def test_a_search_goes_on_where_it_was_stopped():
    arguments = ["my/fake.py", "--env", "A-v0:0:1000", "--search", "learning-rate=0.1:1"]
    arguments += ["--search", "pause=0.1", "--seeds", "1", "--trials", "3", "--name", "t"]
    arguments += ["--total-timesteps", "1000"]
    # What a trial leaves behind whose worker ends: it is still running, and so is one of its runs.
    Path("benchmark/results/tune_t").mkdir(parents=True)
    rate = tune.distribution_of("0.1:1")
    tune.open_study("t").ask({"learning-rate": rate, "pause": tune.distribution_of("0.1")})
    folder = Path("runs/tune_t/A-v0__trial0__1")
    folder.mkdir(parents=True)
    (folder / "checkpoint.pt").write_text("300")

    program = start("tune.py", *arguments)
    out, err = program.communicate()
    assert program.returncode == 0, err
    assert [step for step, _ in starts(folder)] == [300]
    assert len(list(Path("runs/tune_t").iterdir())) == 3
    trials = pd.read_csv("benchmark/results/tune_t/trials.csv")
    complete = trials[trials.state == "COMPLETE"]
    assert len(complete) == 3
    # Returns are 400, ..., 1000 times the rate in the trial that went on, 100, ... in others, + 1.
    rates = complete["params_learning-rate"]
    np.testing.assert_allclose(complete.value, [0.7, 0.55, 0.55] * rates + 0.001, atol=1e-3)
    best = rates[complete.value.idxmax()]
    assert f"--learning-rate {best:.4g} --pause 0.1" in out.splitlines()[-1]
    assert Path("benchmark/results/tune_t/trials.png").stat().st_size > 5_000

    with pytest.raises(SystemExit, match="is another search"):
        tune.main(tune.Args("my/fake.py", ["B-v0:0:1"], [], name="t"))


# Speed


def test_speed_is_that_of_the_second_half():
    writer = SummaryWriter("run/log")
    wall_time = 0.0
    for step in range(100, 1_100, 100):
        wall_time += 100 if step <= 400 else 2
        writer.add_scalar("charts/SPS", 0, step, walltime=wall_time)
    writer.close()
    assert speed.steps_per_second(Path("run")) == pytest.approx(50)


def test_commands_are_timed_in_turns_and_compared_to_the_first(monkeypatch, capsys):
    times = iter([100.0, 150.0, 50.0, 100.0, 200.0, 200.0])
    asked = []
    monkeypatch.setattr(speed, "time_command", lambda what: asked.append(what) or next(times))
    speed.main(speed.Args(("a", "b"), rounds=3))
    assert asked == ["a", "b"] * 3
    lines = capsys.readouterr().out.splitlines()
    assert lines[2:] == [
        "| `a` | 100 | 1.00 (1.00 to 1.00) |",
        "| `b` | 150 | 1.50 (1.00 to 2.00) |",
    ]
    assert json.loads(Path("speed.json").read_text())["steps_per_second"]["b"] == [150, 100, 200]


def test_a_command_is_timed_in_a_folder_of_its_own():
    command = f"{sys.executable} my/fake.py --env-id A-v0 --seed 1 --total-timesteps 500"
    assert 0 < speed.time_command(f"{command} --run-dir runs/x --pause 0.1") < 1_000
    assert not Path("runs").exists()
