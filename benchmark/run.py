"""Train every run of a plan: several settings, environments and seeds, one run per core.

    python benchmark/run.py benchmark/plans/classic.toml

A plan is a TOML file. Every setting in it stands for one run per environment and seed:

    [[settings]]
    script = "ppo.py"
    env_ids = ["CartPole-v1", "Acrobot-v1"]
    seeds = [1, 2, 3]
    steps = 500_000             # --total-timesteps of the script
    flags = "--shared-network"  # more flags of the script (default: none)
    name = "shared"             # of the setting (default: the script's)
    stop_at = 100_000           # end here, with the schedules of all the steps (default: steps)
    threads = 2                 # of PyTorch, and the cores of each run (default: 1)

The scripts run as they are, each in its own process, with their usual run folders in runs/; what
they print goes to runs/.logs/. Ray hands out the cores of this machine, or with --address those of a
cluster whose machines share this folder and this Python.

Ctrl-C or SIGTERM lets every script save and stop. Started again, the program skips what is finished
and resumes what is not. A run whose process dies is tried again from its checkpoint. A script that
ends with an error does not stop the others.

A finished run is written to benchmark/results/PLAN/ENVIRONMENT__SETTING__SEED.csv, one line per
episode, and how it was made to meta.json beside it; what was different when it was resumed (commit,
versions, machine) stands there under "resumed". All paths begin in the current folder.
"""

import argparse
import ctypes
import importlib.metadata
import importlib.util
import io
import json
import os
import platform
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the imports below: no traceback

try:
    import ray
except ModuleNotFoundError:
    sys.exit("error: Ray is not installed: pip install -r requirements-benchmark.txt")
import torch
import tyro
from episodes import read_run, write_csv
from filelock import FileLock, Timeout
from tqdm import tqdm

RESULTS = Path("benchmark/results")
LOGS = Path("runs/.logs")  # hidden, so that runs/* are run folders and nothing else
PROGRESS = re.compile(r"([\d,]+) of [\d,]+ steps, (.*)")  # a script's line every ten seconds
NAME = re.compile(r"[A-Za-z0-9]+([_.+-][A-Za-z0-9]+)*")
LINES_EVERY = 60  # seconds between two reports where there is no terminal
PACKAGES = ("torch", "gymnasium", "numpy", "envpool", "ale-py", "mujoco", "ray")

# What every setting of a plan must have, and what it can have.
NEEDED = {"script": str, "env_ids": list, "seeds": list, "steps": int}
OPTIONAL = {"flags": str, "name": str, "stop_at": int, "threads": int}
# Flags that a plan has its own words for, or that are not for a plan.
RESERVED = ("--env-id", "--seed", "--total-timesteps", "--exp-name", "--resume")


class Died(Exception):
    """The process of a script was killed: Ray shall try again."""


@dataclass(frozen=True)
class Job:
    """One run of a plan or of a search."""

    script: Path
    env_id: str
    exp_name: str
    seed: int
    flags: tuple[str, ...]
    steps: int
    stop_at: int | None = None
    threads: int = 1

    @property
    def name(self) -> str:
        """The run folder's name without the time."""
        return legal(f"{self.env_id}__{self.exp_name}__{self.seed}")

    @property
    def label(self) -> str:
        return f"{self.env_id} {self.exp_name} seed {self.seed}"

    @property
    def goal(self) -> int:
        return self.stop_at or self.steps

    def arguments(self) -> list[str]:
        """What stands behind `python`."""
        return [
            str(self.script),
            *("--env-id", self.env_id),
            *("--exp-name", self.exp_name),
            *("--seed", str(self.seed)),
            *("--total-timesteps", str(self.steps)),
            *self.flags,
        ]


def say(message: str, stream=None) -> None:
    """Print one line above the bars; that the reader of a pipe is gone stops nothing."""
    with suppress(OSError, ValueError):
        tqdm.write(" ".join(message.split()), file=stream or sys.stdout)
        (stream or sys.stdout).flush()


def fail(message: str) -> NoReturn:
    """End with one line on stderr; exit code 2 means wrong usage."""
    say(f"error: {message}", sys.stderr)
    raise SystemExit(2)


def legal(name: str) -> str:
    """Make a name legal for a file, as the scripts do it."""
    return re.sub(r"[^\w.+-]+", "-", name)


# -------------------------------------------------------------------------------------------------
# The plan


def load_script(path: Path):
    """Import a script, which trains nothing: for its flags, checks and environments."""
    if not path.is_file():
        fail(f"there is no script {path}: give its path from the current folder")
    name = f"loaded_{path.stem}"  # not the stem alone: some other module may have that name
    try:
        spec = importlib.util.spec_from_file_location(name, path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # where dataclasses look for it
        spec.loader.exec_module(module)
        _ = module.Args, module.check_args
    except Exception as error:  # a file that is no script of this kind can raise anything
        fail(f"{path} is no training script: {type(error).__name__}: {error}")
    return module


def check_flags(script: Path, module, flags: list[str], steps: int, place: str) -> None:
    """End with one line unless the script takes these flags."""
    for word in flags:
        if word.partition("=")[0].replace("_", "-") in RESERVED:
            fail(f"{place}: {word} cannot be among the flags, it is set for every run")
    arguments = [*flags, "--total-timesteps", str(steps)]
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):  # one line is enough
            args = tyro.cli(module.Args, args=arguments)
    except SystemExit:
        help_command = f"python {script} --help"
        fail(f"{place}: {script} does not take `{shlex.join(flags)}`: see {help_command}")
    module.check_args(args)  # ends with a line of its own


def check_begun(job: Job, module) -> None:
    """End with one line if the run was begun with other arguments than those of the plan."""
    folder = find_folder(job)
    if folder is None:
        return
    try:
        begun = load_checkpoint(folder)["args"]
    except Exception:  # damaged or foreign: the script will say so
        return
    args = asdict(tyro.cli(module.Args, args=job.arguments()[1:]))
    free = {*module.MAY_CHANGE, "resume"} - {"total_timesteps"}
    changed = [name for name in args if name not in free and args[name] != begun.get(name)]
    if changed:
        flags = ", ".join("--" + name.replace("_", "-") for name in changed)
        fail(
            f"{folder} was begun with another {flags} than the plan has: "
            "give the setting another name, or delete the folder"
        )


def read_plan(path: Path) -> list[Job]:
    """Return the runs of a plan, or end with one line that says what is wrong with it."""
    try:
        plan = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        fail(f"cannot read the plan {path}: {error.strerror}")
    except ValueError as error:  # of TOML, or of UTF-8
        fail(f"{path} is not TOML: {error}")
    if not NAME.fullmatch(path.stem):
        fail(f"{path}: name the file with letters, digits and single - or _")
    if plan.keys() != {"settings"} or not isinstance(plan["settings"], list):
        fail(f"{path} must consist of [[settings]] and nothing else, see --help")

    jobs = []
    modules = {}
    for number, setting in enumerate(plan["settings"], start=1):
        place = f"{path}, setting {number}"
        check_setting(setting, place)
        script = Path(setting["script"])
        name = setting.get("name", script.stem)
        if not NAME.fullmatch(name):
            fail(f"{place}: write its name with letters, digits and single - or _, not {name!r}")
        try:
            flags = shlex.split(setting.get("flags", ""))
        except ValueError as error:
            fail(f"{place}: flags = {setting['flags']!r}: {error}")
        if script not in modules:
            modules[script] = load_script(script)
        check_flags(script, modules[script], flags, setting["steps"], place)
        for env_id in setting["env_ids"]:
            for seed in setting["seeds"]:
                job = Job(
                    script=script,
                    env_id=env_id,
                    exp_name=f"{path.stem}.{name}",
                    seed=seed,
                    flags=tuple(flags),
                    steps=setting["steps"],
                    stop_at=setting.get("stop_at"),
                    threads=setting.get("threads", 1),
                )
                if job.name in [other.name for other in jobs]:
                    fail(f"{place}: {job.label} is in the plan twice: give a setting a name")
                jobs.append(job)
    if not jobs:
        fail(f"{path} has no runs: give env_ids and seeds")
    return jobs


def check_setting(setting, place: str) -> None:
    """End with one line unless a setting has the right keys, with values of the right types."""
    if not isinstance(setting, dict):
        fail(f"{place}: begin each setting with [[settings]], see --help")
    types = NEEDED | OPTIONAL
    for key, value in setting.items():
        if key not in types:
            fail(f"{place}: there is no key {key!r}, only {', '.join(types)}")
        if type(value) is not types[key]:
            kind = {str: "text", int: "a whole number", list: "a list"}[types[key]]
            fail(f"{place}: {key} must be {kind}, not {value!r}")
    for key in NEEDED:
        if key not in setting:
            fail(f"{place}: {key} is missing")
    if not all(type(seed) is int and 0 <= seed < 2**31 for seed in setting["seeds"]):
        fail(f"{place}: seeds must be whole numbers from 0 up, not {setting['seeds']}")
    if not all(isinstance(env_id, str) for env_id in setting["env_ids"]):
        fail(f"{place}: env_ids must be names of environments, not {setting['env_ids']}")
    if not 0 < setting.get("stop_at", 1) <= setting["steps"]:
        fail(f"{place}: stop_at must lie between 1 and steps, not at {setting['stop_at']}")
    if setting.get("threads", 1) < 1:
        fail(f"{place}: threads must be at least 1, not {setting['threads']}")


# -------------------------------------------------------------------------------------------------
# One run, in a worker of Ray


def train(job: Job, report: Callable[[int, str], None]) -> str:
    """Train a run to its end, from its last checkpoint if there is one; return its error, or ""."""
    if finished(job):
        return ""
    note_circumstances(job)
    command = [sys.executable, *job.arguments()]
    folder = find_folder(job)
    if folder:
        command += ["--resume", str(folder)]
    log = LOGS / f"{job.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as output, log.open(encoding="utf-8") as reader:
        reader.seek(0, os.SEEK_END)
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=os.environ | {"OMP_NUM_THREADS": str(job.threads)},
            process_group=0,  # out of reach of the terminal's Ctrl-C: one signal is enough
            preexec_fn=die_with_parent,
        )
        stopped = False
        lines = []
        try:
            while process.poll() is None:
                time.sleep(0.5)
                lines += reader.readlines()
                progress = PROGRESS.match(lines[-1]) if lines else None
                if progress:
                    step = int(progress[1].replace(",", ""))
                    report(step, progress[2])
                    if job.stop_at and step >= job.stop_at and not stopped:
                        stopped = True
                        process.terminate()
        finally:
            # When the task is cancelled: the script finishes its update and saves.
            if process.poll() is None:
                process.terminate()
                process.wait()
        lines += reader.readlines()
    if process.returncode == 0 or (stopped and finished(job)):
        return ""
    if process.returncode < 0:
        name = signal.Signals(-process.returncode).name
        raise Died(f"the training was killed by {name}: see {log}")
    if process.returncode > 128:
        return "stopped by a signal from elsewhere, after saving: start again to go on"
    errors = [line for line in lines if "rror:" in line]
    return errors[-1].strip().removeprefix("error: ") if errors else f"ended early: see {log}"


def die_with_parent() -> None:
    """Let the kernel kill this process when the worker that started it dies (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1: PR_SET_PDEATHSIG


def find_folder(job: Job) -> Path | None:
    """Return the newest run folder with a checkpoint, if there is one."""
    checkpoints = list(Path("runs").glob(f"{job.name}__*/checkpoint.pt"))
    if not checkpoints:
        return None
    return max(checkpoints, key=lambda path: path.stat().st_mtime).parent


def load_checkpoint(folder: Path) -> dict:
    return torch.load(folder / "checkpoint.pt", map_location="cpu", weights_only=True)


def finished(job: Job) -> bool:
    """Whether the run has a checkpoint with all the steps that it shall train."""
    folder = find_folder(job)
    if not folder:
        return False
    try:
        checkpoint = load_checkpoint(folder)
        batch_size = checkpoint["args"]["num_envs"] * checkpoint["args"]["num_steps"]
        goal = job.stop_at or job.steps // batch_size * batch_size
        return checkpoint["global_step"] >= goal
    except Exception:  # damaged or foreign: the script will say so
        return False


def note_circumstances(job: Job) -> None:
    """Write down what a run is about to be trained with, beside what it was begun with."""
    noted = noted_circumstances(job) if find_folder(job) else []
    facts = circumstances(job.script, job.threads)
    if facts not in noted:
        write_json(LOGS / f"{job.name}.json", [*noted, facts])


def noted_circumstances(job: Job) -> list[dict]:
    """Return what a run was begun with, and what was different later."""
    path = LOGS / f"{job.name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []


def write_json(path: Path, data) -> None:
    """Write a file anew: it is there as a whole at any time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)


def circumstances(script: Path, threads: int = 1) -> dict:
    """Return what the numbers of a script's runs depend on, beside the command."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    info = Path("/proc/cpuinfo")
    models = re.findall(r"model name\s*: (.*)", info.read_text()) if info.exists() else []
    machine = {"cpu": models[0] if models else platform.processor(), "cores": os.cpu_count()}
    if torch.cuda.is_available():
        machine["gpu"] = torch.cuda.get_device_name()
    script = script.resolve()
    commit = git(script.parent, "rev-parse", "HEAD")
    # Results that were written meanwhile do not make the code another; a script that git does not
    # know does.
    status = ("status", "--porcelain", "-uno", ":/", ":!/benchmark/results")
    changes = (git(script.parent, *status), git(script.parent, "ls-files", "-o", script.name))
    return {
        "commit": commit,
        "dirty": None if commit is None else any(changes),
        "versions": versions,
        "machine": machine,
        "threads": threads,
    }


def git(folder: Path, *arguments: str) -> str | None:
    """Return what git says, or None outside a repository."""
    with suppress(OSError, subprocess.CalledProcessError):
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.check_output(command, text=True, stderr=subprocess.DEVNULL).strip()
    return None


# -------------------------------------------------------------------------------------------------
# All runs


class Board:
    """An actor of Ray: here the workers write how far they are, and the program reads it."""

    def __init__(self):
        self.states = {}

    def write(self, name: str, step: int, status: str) -> None:
        self.states[name] = (step, status)

    def read(self) -> dict[str, tuple[int, str]]:
        return self.states


def work(job: Job, folder: str, board) -> str:
    """The task: train a run; return its error, or "".

    It never waits for an answer from the board: Ray lends the core of a task that waits to the next.
    """
    # Ray cancels a task by SIGINT, which its workers ignore where it was started in the background of
    # a shell script.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(folder)
    return train(job, lambda step, status: board.write.remote(job.name, step, status))


class Progress:
    """One line per run and one for the whole: bars in a terminal, elsewhere lines at intervals."""

    def __init__(self, plan: str, jobs: list[Job], left: list[Job]):
        self.plan = plan
        self.jobs = jobs
        self.left = left
        self.failures = 0
        self.first_steps = {}  # of each run, by its first report
        self.last_steps = {}  # by its last one
        self.started = None  # the time of the first report: before it, runs may wait for a core
        self.last_lines = time.monotonic()
        self.terminal = sys.stderr.isatty()
        self.bars = {}

    def show(self, states: dict[str, tuple[int, str]]) -> None:
        """Show the state of each run that is under way."""
        now = time.monotonic()
        if not self.terminal and now - self.last_lines < LINES_EVERY:
            return
        self.last_lines = now
        if states and self.started is None:
            self.started = now
        total = sum(job.goal for job in self.jobs)
        done = total - sum(job.goal for job in self.left)
        for job in self.left:
            if job.name in states:
                step, status = states[job.name]
                self.first_steps.setdefault(job.name, step)
                self.last_steps[job.name] = step
                done += min(step, job.goal)
                self.line(job.label, step, job.goal, status)
        finished = len(self.jobs) - len(self.left) - self.failures
        text = f"{finished} of {len(self.jobs)} runs finished"
        if self.failures:
            text += f", {self.failures} failed"
        # What a run had before it was resumed took no time now.
        trained = sum(self.last_steps.values()) - sum(self.first_steps.values())
        if trained > 0:
            seconds = (total - done) * (now - self.started) / trained
            text += f", {tqdm.format_interval(seconds)} left"
        self.line(self.plan, done, total, text)

    def line(self, label: str, step: int, goal: int, text: str) -> None:
        if not self.terminal:
            say(f"{label}: {step:,} of {goal:,} steps, {text}", sys.stderr)
            return
        if label not in self.bars:
            form = "{percentage:3.0f}%|{bar:20}| {desc}"
            self.bars[label] = tqdm(total=goal, bar_format=form, leave=False, dynamic_ncols=True)
        bar = self.bars[label]
        bar.n = min(step, goal)
        bar.set_description_str(f"{label}: {text}")

    def end(self, job: Job, error: str) -> None:
        self.left.remove(job)
        if error:
            self.failures += 1
            say(f"error: {job.label}: {error}", sys.stderr)
        if job.label in self.bars:
            self.bars.pop(job.label).close()

    def close(self) -> None:
        for bar in self.bars.values():
            bar.close()


def start_ray(address: str | None) -> None:
    """Start Ray on this machine, or join a cluster, without its own lines, pages and statistics."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    options = {"log_to_driver": False, "logging_level": "ERROR"}
    if address is None:
        options |= {"include_dashboard": False, "object_store_memory": 100 * 2**20}
    try:
        if address not in (None, "auto"):
            host, _, port = address.rpartition(":")
            # Ray would wait for minutes for a machine that does not answer.
            socket.create_connection((host, int(port)), timeout=10).close()
        ray.init(address or "local", **options)
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        how = "start it with `ray start --head`; if it wants a token, set RAY_AUTH_MODE=token"
        fail(f"cannot reach Ray at {address}: {reason}; {how}")


def train_all(plan: str, jobs: list[Job], left: list[Job], address: str | None) -> tuple[int, int]:
    """Train the runs that are left; return how many failed, and the signal that came, or 0."""
    start_ray(address)
    cores = max(int(node["Resources"].get("CPU", 0)) for node in ray.nodes())
    for job in left:
        if job.threads > cores:  # it would wait for ever
            fail(f"{job.label} wants {job.threads} threads, and no machine has over {cores} cores")
    signals = []  # received so far

    def on_signal(signum: int, frame) -> None:
        signals.append(signum)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)  # a second one kills

    # If one of these processes dies, Ray starts the task again, which resumes the run.
    task = ray.remote(max_retries=5, retry_exceptions=[Died])(work)
    board = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Board).remote()
    folder = os.getcwd()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_signal)
    waiting = {task.options(num_cpus=job.threads).remote(job, folder, board): job for job in left}
    progress = Progress(plan, jobs, left)
    cancelled = False
    while waiting:
        if signals and not cancelled:
            cancelled = True
            say("stopping: every run finishes its update and saves", sys.stderr)
            for reference in waiting:
                ray.cancel(reference)
        done, _ = ray.wait(list(waiting), timeout=1)
        for reference in done:
            job = waiting.pop(reference)
            try:
                error = ray.get(reference) or write_results(plan, job)
            except ray.exceptions.TaskCancelledError:
                continue
            except ray.exceptions.RayError as death:
                cause = getattr(death, "cause", None)
                error = str(cause if isinstance(cause, Died) else death).strip().splitlines()[-1]
            progress.end(job, error)
        progress.show(ray.get(board.read.remote()))
    progress.close()
    ray.shutdown()
    return progress.failures, signals[0] if signals else 0


# -------------------------------------------------------------------------------------------------
# Results


def key_of(plan: str, job: Job) -> str:
    """Return the name of a run among the results of its plan."""
    setting = job.exp_name.removeprefix(f"{plan}.")
    return f"{legal(job.env_id)}__{setting}__{job.seed}"


def command_of(job: Job) -> str:
    command = shlex.join(["python", *job.arguments()])
    return f"{command}  # stopped at {job.stop_at}" if job.stop_at else command


def read_meta(plan: str) -> dict:
    path = RESULTS / plan / "meta.json"
    if not path.exists():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        fail(f"{path} is damaged, restore it from git or delete it: {error}")


def write_results(plan: str, job: Job) -> str:
    """Write the episodes of a run to its CSV, and its entry of meta.json; return an error, or ""."""
    folder = find_folder(job)
    if folder is None:
        return "there is no checkpoint yet"
    key = key_of(plan, job)
    try:
        LOGS.mkdir(parents=True, exist_ok=True)
        with FileLock(LOGS / f"{plan}.meta.lock"):  # an --export may write at the same time
            is_finished = finished(job)
            episodes = read_run(folder)
            steps = load_checkpoint(folder)["global_step"]
            if job.stop_at:
                episodes = episodes.until(job.stop_at)
                steps = min(steps, job.stop_at)
            begun, *resumed = noted_circumstances(job) or [circumstances(job.script, job.threads)]
            entry = {"finished": is_finished, "command": command_of(job), **begun, "steps": steps}
            if resumed:
                entry["resumed"] = resumed
            if len(episodes.steps):
                seconds = float(episodes.seconds[-1])
                entry["steps"] = max(steps, int(episodes.steps[-1]))
                entry["minutes"] = round(seconds / 60, 2)
                entry["steps_per_second"] = round(float(episodes.steps[-1]) / max(seconds, 1e-3))
                entry["last_100"] = round(float(episodes.returns[-100:].mean()), 2)
            write_csv(RESULTS / plan / f"{key}.csv", episodes)
            meta = read_meta(plan) | {key: entry}
            write_json(RESULTS / plan / "meta.json", dict(sorted(meta.items())))
    except OSError as error:
        return f"cannot write its results: {error}"
    state = "" if is_finished else ", not finished"
    result = f"return {entry['last_100']}" if "last_100" in entry else "no episode finished yet"
    minutes = f"{entry['minutes']:.1f} minutes, " if "minutes" in entry else ""
    say(f"{job.label}: {entry['steps']:,} steps, {minutes}{result}{state}")
    return ""


def is_written(plan: str, job: Job, meta: dict) -> bool:
    """Whether the results have the finished run; end if it was made in another way."""
    entry = meta.get(key_of(plan, job), {})
    path = RESULTS / plan / f"{key_of(plan, job)}.csv"
    if not entry.get("finished") or not path.exists():
        return False
    if entry["command"] != command_of(job):
        was = f"in {RESULTS / plan} it is `{entry['command']}`"
        fail(
            f"{job.label} has changed, {was}: give the setting another name, "
            f"or delete {path} and runs/{job.name}__*"
        )
    return True


def main(argv: list[str]) -> int:
    """Read the plan, train what is left of it, and return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.error = fail
    parser.add_argument("plan", type=Path, help="TOML file with the settings to train")
    parser.add_argument("--address", help="Ray cluster to use: HOST:PORT, or auto")
    parser.add_argument("--dry-run", action="store_true", help="print the commands, run nothing")
    parser.add_argument(
        "--export",
        action="store_true",
        help="write results of what there is, also of unfinished runs that are under way",
    )
    args = parser.parse_args(argv)
    jobs = read_plan(args.plan)
    plan = args.plan.stem
    meta = read_meta(plan)
    left = [job for job in jobs if not is_written(plan, job, meta)]
    modules = {script: load_script(script) for script in {job.script for job in left}}
    for job in left:
        check_begun(job, modules[job.script])
    if args.dry_run:
        for job in left:
            say(command_of(job))
        return 0
    if args.export:
        for job in left:
            problem = write_results(plan, job)
            if problem:
                say(f"{job.label}: {problem}", sys.stderr)
        return 0
    if not left:
        say(f"{plan}: all {len(jobs)} runs are finished, see {RESULTS / plan}")
        return 0

    LOGS.mkdir(parents=True, exist_ok=True)
    lock = FileLock(LOGS / f"{plan}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        fail(f"the plan {plan} is being trained by another process already")
    failures, signum = train_all(plan, jobs, left, args.address)
    if signum:
        command = shlex.join(["python", sys.argv[0], *argv])
        say(f"stopped; to go on: {command}", sys.stderr)
        return 128 + signum
    say(f"{plan}: {len(jobs) - failures} of {len(jobs)} runs are finished, see {RESULTS / plan}")
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
