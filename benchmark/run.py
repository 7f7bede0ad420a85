"""Train all runs of a plan, one run per core, on this machine or on a Ray cluster.

    python benchmark/run.py benchmark/plans/classic.toml

A plan is a TOML file. Each setting in it stands for one run per environment and seed:

    [[settings]]
    script = "ppo.py"
    env_ids = ["CartPole-v1", "Acrobot-v1"]
    seeds = [1, 2, 3]
    steps = 500_000             # --total-timesteps of the script
    flags = "--shared-network"  # more flags of the script
    name = "shared"             # of the setting (default: the script's name)
    stop_at = 100_000           # end here, with the schedules of all the steps
    threads = 2                 # cores of each run, and PyTorch's threads (default: 1)

A run trains in the folder runs/PLAN/ENVIRONMENT__NAME__SEED; what its script prints is in log.txt
there. When it is over, its episodes are in benchmark/results/PLAN, in a .csv.xz file of that name,
and the .json file beside it says how they were made, and the medians of the losses.

Ctrl-C lets every script save. Started again, the program leaves out what is finished and goes on
with what is not. A run that is killed is tried again from its checkpoint; one that ends with an
error does not stop the others. With --address, Ray uses a cluster whose machines share this folder
and this Python.
"""

import importlib.metadata
import json
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pandas as pd
import ray
import tyro
from episodes import read_losses, read_run, write_csv
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

RESULTS = Path("benchmark/results")
PACKAGES = {"torch", "gymnasium", "numpy", "envpool", "ale-py", "mujoco", "ray"}


@dataclass
class Args:
    plan: tyro.conf.Positional[Path]  # the TOML file
    address: str | None = None  # Ray cluster to use: HOST:PORT, or auto


class Setting(msgspec.Struct, forbid_unknown_fields=True):
    script: str
    env_ids: list[str]
    seeds: list[int]
    steps: int
    flags: str = ""
    name: str | None = None
    stop_at: int | None = None
    threads: int = 1


class Plan(msgspec.Struct, forbid_unknown_fields=True):
    settings: list[Setting]


@dataclass(frozen=True)
class Job:
    """One run: the arguments after `python`, and the folder that it lives in."""

    arguments: list[str]
    folder: Path
    stop_at: int | None = None
    threads: int = 1

    @property
    def command(self) -> str:
        return shlex.join(["python", *self.arguments])

    def result(self, ending: str) -> Path:
        return RESULTS / self.folder.parent.name / (self.folder.name + ending)


class Failed(Exception):
    """The script ended with an error, or trained too little to be of use."""


class Killed(Failed):
    """The script was killed: another try goes on from its checkpoint."""


def make_job(group: str, name: str, setting: Setting, env_id: str, seed: int) -> Job:
    arguments = [setting.script, "--env-id", env_id, "--seed", str(seed)]
    arguments += ["--total-timesteps", str(setting.steps), *shlex.split(setting.flags)]
    folder = Path("runs", group, re.sub("[/:]", "-", f"{env_id}__{name}__{seed}"))
    return Job(arguments, folder, setting.stop_at, setting.threads)


def read_plan(path: Path) -> list[Job]:
    try:
        plan = msgspec.toml.decode(path.read_text(encoding="utf-8"), type=Plan)
    except msgspec.DecodeError as error:
        sys.exit(f"error: {path}: {error}")
    jobs = [
        make_job(path.stem, setting.name or Path(setting.script).stem, setting, env_id, seed)
        for setting in plan.settings
        for env_id in setting.env_ids
        for seed in setting.seeds
    ]
    if len({job.folder for job in jobs}) < len(jobs):
        sys.exit(f"error: {path}: a run is there twice: give one of its settings a name")
    return jobs


# -------------------------------------------------------------------------------------------------
# One run, in a worker of Ray


def train(job: Job) -> pd.DataFrame:
    """Train a run, from its checkpoint if there is one, and return its episodes."""
    job.folder.mkdir(parents=True, exist_ok=True)
    note_start(job)
    printed = job.folder / "log.txt"
    with printed.open("a") as output:
        process = subprocess.Popen(
            [sys.executable, *job.arguments, "--run-dir", str(job.folder)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=os.environ | {"OMP_NUM_THREADS": str(job.threads)},
        )
    events = EventAccumulator(str(job.folder), size_guidance={"scalars": 1})  # keeps the last one

    def at_stop() -> bool:
        if job.stop_at is None or "charts/SPS" not in events.Reload().Tags()["scalars"]:
            return False
        return events.Scalars("charts/SPS")[-1].step >= job.stop_at

    try:
        while process.poll() is None and not at_stop():
            time.sleep(1)
    finally:  # at stop_at, or because Ray cancels the task: a script that gets SIGTERM saves
        process.terminate()
        process.wait()

    if process.returncode != 0 and not at_stop():
        if process.returncode < 0:
            raise Killed(f"killed by {signal.Signals(-process.returncode).name}")
        lines = re.findall(r".*\w.*", printed.read_text(errors="replace")) or [""]
        raise Failed(f"{lines[-1]} (see {printed})")
    episodes = read_run(job.folder)
    if job.stop_at is not None:
        episodes = episodes[episodes.step <= job.stop_at]
    if episodes.empty:
        raise Failed("no episode has finished: train for more steps")
    return episodes


def note_start(job: Job) -> None:
    """Write down what the run trains with, unless an earlier start already has the same."""
    starts = read_starts(job) if (job.folder / "checkpoint.pt").exists() else []
    start = {"command": job.command} | circumstances(job.arguments[0]) | {"threads": job.threads}
    if starts and starts[0]["command"] != job.command:
        raise Failed(f"begun as `{starts[0]['command']}`: rename the setting, or delete the folder")
    if start not in starts:
        starts.append(start)
        (job.folder / "starts.json").write_text(json.dumps(starts, indent=1) + "\n")


def read_starts(job: Job) -> list[dict]:
    path = job.folder / "starts.json"
    return json.loads(path.read_text()) if path.exists() else []


def circumstances(script: str) -> dict:
    """Return what numbers depend on besides the command: code, versions and machine."""
    path = Path(script).resolve()
    git = ["git", "-C", str(path.parent)]
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True)
    status = [*git, "status", "--porcelain", "--ignored", "--", path.name]
    changes = subprocess.run(status, capture_output=True, text=True).stdout
    return {
        "commit": commit.stdout.strip(),
        "dirty": bool(changes),  # the script differs from the commit, or git does not know it
        "versions": versions(),
        "machine": machine(),
    }


def versions() -> dict:
    found = {"python": platform.python_version()}
    for package in importlib.metadata.distributions():
        if package.name in PACKAGES:
            found[package.name] = package.version
    return found


def machine() -> dict:
    info = Path("/proc/cpuinfo")  # Linux
    model = re.search(r"model name\s*: (.*)", info.read_text() if info.exists() else "")
    found = {"cpu": model[1] if model else platform.processor(), "cores": os.cpu_count()}
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        found["gpus"] = subprocess.run(query, capture_output=True, text=True).stdout.splitlines()
    return found


def write_results(job: Job, episodes: pd.DataFrame) -> str:
    """Write the episodes of a run and how they were made; return a line about it."""
    write_csv(job.result(".csv.xz"), episodes)
    start, *resumed = read_starts(job)
    steps = int(episodes.step.iloc[-1])
    seconds = episodes.seconds.iloc[-1]
    entry = start | {
        "steps": steps,
        "minutes": round(seconds / 60, 2),
        "steps_per_second": round(steps / seconds),
        "last_100": round(episodes["return"][-100:].mean(), 2),
        "losses": read_losses(job.folder),
    }
    if job.stop_at is not None:
        entry["stop_at"] = job.stop_at
    if resumed:
        entry["resumed"] = resumed  # with other code, versions or another machine
    job.result(".json").write_text(json.dumps(entry, indent=1) + "\n")
    return f"{steps:,} steps, {entry['minutes']:.1f} minutes, return {entry['last_100']}"


def enter_worker(root: str) -> None:
    """Work in the program's folder, and hear Ray's SIGINT even if started by a shell script."""
    os.chdir(root)
    signal.signal(signal.SIGINT, signal.default_int_handler)


# -------------------------------------------------------------------------------------------------
# All runs


def start_ray(address: str | None) -> None:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(
        address or "local", include_dashboard=False, log_to_driver=False, logging_level="error"
    )
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # it stops in order too


def as_they_end(tasks: dict) -> Iterator[tuple]:
    """Yield what each task is for, its result, and its error; after Ctrl-C, stop all in order."""
    try:
        while tasks:
            (task,), _ = ray.wait(list(tasks))
            purpose = tasks.pop(task)
            try:
                yield purpose, ray.get(task), None
            except ray.exceptions.RayError as error:
                yield purpose, None, getattr(error, "cause", error)
    except KeyboardInterrupt:
        print("stopping: every run finishes its update and saves", file=sys.stderr, flush=True)
        for task in tasks:
            ray.cancel(task)
        ray.wait(list(tasks), num_returns=len(tasks))
        sys.exit(130)


@ray.remote(max_retries=5, retry_exceptions=[Killed])
def work(job: Job, root: str) -> str:
    enter_worker(root)
    return write_results(job, train(job))


def is_finished(job: Job) -> bool:
    path = job.result(".json")
    if not path.exists():
        return False
    entry = json.loads(path.read_text())
    if entry["command"] != job.command:
        sys.exit(f"error: {path} is of `{entry['command']}`: give the setting another name")
    return entry.get("stop_at") == job.stop_at


def main(args: Args) -> None:
    """Train what is not finished."""
    jobs = read_plan(args.plan)
    left = [job for job in jobs if not is_finished(job)]
    done = len(jobs) - len(left)
    if left:
        start_ray(args.address)
        cores = max(node["Resources"].get("CPU", 0) for node in ray.nodes())
        if max(job.threads for job in left) > cores:
            sys.exit(f"error: a run has more threads than any machine has cores, {cores:.0f}")
    root = os.getcwd()
    tasks = {work.options(num_cpus=job.threads).remote(job, root): job for job in left}
    for job, line, error in as_they_end(tasks):
        if error:
            print(f"error: {job.folder}: {error}", file=sys.stderr, flush=True)
        else:
            done += 1
            print(f"{done} of {len(jobs)}: {job.folder.name}: {line}", flush=True)
    print(f"{done} of {len(jobs)} runs are finished: {RESULTS / args.plan.stem}")
    sys.exit(0 if done == len(jobs) else 1)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
