"""Time the scripts against stable-baselines3's PPO with the same hyperparameters, and write one table.

    python benchmark/speed.py

Each rival is a process of its own. They take turns, a few updates each, while the others wait (A B C A B C), so that a
machine that gets slower meanwhile is slow for all; a ratio is the seconds of stable-baselines3 over those of the rival
in the same round. The first turns, with start-up and compiling, count for the whole process only. Writes
benchmark/results/speed.json and the table in docs/speed.md; stable-baselines3 is in requirements-dev.txt.
"""

import importlib
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn

import numpy as np
import torch
import tyro
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- written by benchmark/speed.py -->", "<!-- end of the table -->"
WARM_UP = 2  # turns that do not count as steady state

# job: environment, turns, updates in each turn, peers (the first has ratio 1), scripts (without and with --compile)
JOBS = {
    "CartPole": ("CartPole-v1", 16, 10, ["sb3", "sb3, one thread"], ["ppo.py"]),
    "Hopper": ("Hopper-v5", 9, 1, ["sb3", "sb3, one thread"], ["ppo_continuous_action.py"]),
    "Breakout": ("BreakoutNoFrameskip-v4", 8, 1, ["sb3"], ["ppo_atari.py", "ppo_atari_envpool.py"]),
}
SHARES = ("environment", "policy", "GAE", "update", "logging", "rest")


@dataclass
class Args:
    jobs: tuple[Literal["CartPole", "Hopper", "Breakout"], ...] = tuple(JOBS)  # what to time
    worker: str = ""  # used by the program itself: the rival that this process is


class Turns:
    """In a worker: hands over to the next rival after every few updates, and keeps the clock without the waiting."""

    def __init__(self, updates: int):
        self.updates, self.count, self.waited = updates, 0, 0.0

    def clock(self) -> float:
        return time.perf_counter() - self.waited

    def end_update(self) -> None:
        self.count += 1
        if self.count % self.updates == 0:
            begin = time.perf_counter()
            print("turn", flush=True)
            input()
            self.waited += time.perf_counter() - begin


def load(job: str, script: str):
    """Return the module of a script and its arguments for this job."""
    env_id, turns, updates, _, _ = JOBS[job]
    sys.path.insert(0, str(ROOT))
    module = importlib.import_module(script.removesuffix(".py"))
    args = module.Args(**({"env_id": env_id} if job == "Hopper" else {}))
    args.total_timesteps = turns * updates * args.num_envs * args.num_steps
    return module, args


def timed(seconds: dict[str, float], name: str, function):
    """Return `function` as it is, but with its time added to `seconds[name]`, less that of timed ones inside it."""

    def wrapper(*args, **kwargs):
        begin, before = time.perf_counter(), sum(seconds.values())
        try:
            return function(*args, **kwargs)
        finally:
            inner = sum(seconds.values()) - before
            seconds[name] += time.perf_counter() - begin - inner

    return wrapper


def time_ours(job: str, rival: str) -> dict:
    """Train with our script in this process; return the shares of the time in steady state, and the floor."""
    script, *flags = rival.split()
    module, args = load(job, script)
    args.compile = bool(flags)
    turns, seconds, marks = (
        Turns(JOBS[job][2]),
        defaultdict(float),
        [],
    )  # marks: the clock and a copy of `seconds`
    make_envs, agent = module.make_envs, module.Agent
    end_update = timed(seconds, "logging", module.Run.end_update)

    def make(*args):
        envs = make_envs(*args)
        envs.step = timed(seconds, "environment", envs.step)
        return envs

    def end(run, *args):
        end_update(run, *args)
        turns.end_update()
        marks.append((turns.clock(), dict(seconds)))

    module.make_envs, module.Run.end_update = make, end
    module.Run.log_episode = timed(seconds, "logging", module.Run.log_episode)
    module.compute_gae = timed(seconds, "GAE", module.compute_gae)
    module.optim.Adam.step = timed(seconds, "update", module.optim.Adam.step)
    if args.compile:
        torch_compile = torch.compile
        torch.compile = lambda function, **options: timed(
            seconds, "update", torch_compile(function, **options)
        )
    else:
        module.compute_gradient = timed(seconds, "update", module.compute_gradient)
    for name in ("get_action", "get_value", "get_action_and_value"):
        if hasattr(agent, name):
            plain = getattr(agent, name)
            rollout = timed(seconds, "policy", plain)

            def choose(*args, plain=plain, rollout=rollout):
                return (plain if torch.is_grad_enabled() else rollout)(*args)

            setattr(agent, name, choose)
    module.main(args)
    (begin, before), (finish, after) = marks[WARM_UP * turns.updates - 1], marks[-1]
    shares = {name: (after[name] - before.get(name, 0)) / (finish - begin) for name in after}
    shares["rest"] = 1 - sum(shares.values())
    steps = args.total_timesteps // JOBS[job][1]
    in_environment = (
        (after["environment"] - before["environment"]) / steps / (JOBS[job][1] - WARM_UP)
    )
    result = {"steps": steps, "shares": shares, "peak_mb": peak_mb()}
    return result | {"floor": 1 / (in_environment + in_network(module, args))}


def peak_mb() -> float:
    """Return the most memory that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (
        2**20 if sys.platform == "darwin" else 2**10
    )


def in_network(module, args) -> float:
    """Return the seconds per step that the network's multiplications take at the rate of a large matrix product."""
    envs = module.make_envs(args, Path())
    actions = np.array([envs.single_action_space.sample() for _ in range(args.num_envs)])
    agent, space = module.Agent(envs), envs.single_observation_space
    x = torch.zeros(
        (args.num_envs, *space.shape),
        dtype=torch.uint8 if space.dtype == np.uint8 else torch.float32,
    )
    with FlopCounterMode(display=False) as forward:
        agent.get_action_and_value(x, torch.as_tensor(actions))
    # Once in the rollout; in every epoch again, forward and, at twice the cost, backward.
    flops = forward.get_total_flops() / args.num_envs * (1 + 3 * args.update_epochs)
    a = torch.randn(1024, 1024)
    for _ in range(3):
        a @ a
    begin = time.perf_counter()
    for _ in range(10):
        a @ a
    rate = 10 * 2 * 1024**3 / (time.perf_counter() - begin)
    return flops / rate


def time_sb3(job: str, rival: str) -> dict:
    """Train with stable-baselines3 in this process, with the hyperparameters of our script."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_atari_env, make_vec_env
    from stable_baselines3.common.vec_env import VecFrameStack, VecNormalize

    env_id, _, updates, _, (script, *_) = JOBS[job]
    args, turns = load(job, script)[1], Turns(updates)
    if rival.endswith("one thread"):
        torch.set_num_threads(1)
    if "atari" in script:
        policy, envs = "CnnPolicy", VecFrameStack(make_atari_env(env_id, args.num_envs, seed=1), 4)
    else:
        policy, envs = "MlpPolicy", make_vec_env(env_id, args.num_envs, seed=1)
        envs = VecNormalize(envs, gamma=args.gamma) if job == "Hopper" else envs

    class TakeTurns(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_start(self) -> None:  # all but the first one follow an update
            if self.num_timesteps:
                turns.end_update()

    size = args.num_envs * args.num_steps
    model = PPO(
        policy,
        envs,
        learning_rate=lambda remaining: args.learning_rate * remaining,
        n_steps=args.num_steps,
        batch_size=size // args.num_minibatches,
        n_epochs=args.update_epochs,
        gamma=args.gamma,
        gae_lambda=args.gae_lambda,
        clip_range=args.clip_coef,
        clip_range_vf=args.clip_coef,
        ent_coef=args.ent_coef,
        vf_coef=args.vf_coef,
        max_grad_norm=args.max_grad_norm,
        device="cpu",
    )
    model.learn(args.total_timesteps, callback=TakeTurns())
    turns.end_update()
    return {"steps": updates * size, "peak_mb": peak_mb()}


def measure(job: str) -> list[dict]:
    """Let the rivals of a job train in turns; return for each the seconds of its turns and what it says of itself."""
    _, turns, _, peers, scripts = JOBS[job]
    rivals = peers + [script + flag for script in scripts for flag in ("", " --compile")]
    processes, seconds, results = {}, {rival: [] for rival in rivals}, []
    with tempfile.TemporaryDirectory() as folder:

        def end(rival: str) -> NoReturn:
            log = Path(folder, f"{rival}.log").read_text(encoding="utf-8")
            lines = [line for line in log.splitlines() if "rror" in line] or ["it says nothing"]
            sys.exit(f"error: {job}, {rival} ended early: {lines[-1]}")

        for number in range(turns):
            for rival in rivals:
                begin = time.perf_counter()
                if number == 0:
                    command = [
                        sys.executable,
                        str(Path(__file__).resolve()),
                        "--jobs",
                        job,
                        "--worker",
                        rival,
                    ]
                    with open(Path(folder, f"{rival}.log"), "w", encoding="utf-8") as log:
                        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": log}
                        processes[rival] = subprocess.Popen(command, cwd=folder, text=True, **pipes)
                else:
                    print(file=processes[rival].stdin, flush=True)
                if "turn\n" not in iter(
                    processes[rival].stdout.readline, ""
                ):  # reads until it comes, or to the end
                    end(rival)
                seconds[rival].append(time.perf_counter() - begin)
            latest = ", ".join(f"{rival} {seconds[rival][-1]:.1f}" for rival in rivals)
            print(f"{job}, turn {number + 1} of {turns}, seconds: {latest}", file=sys.stderr)
        for rival, process in processes.items():
            output, _ = process.communicate("\n")
            if process.returncode:
                end(rival)
            own = json.loads(output.splitlines()[-1])
            results.append({"job": job, "rival": rival, "seconds": seconds[rival]} | own)
    return results


def table(results: list[dict]) -> str:
    """Return the results as a table in Markdown: medians over the turns, and the middle half of the ratios."""
    lines = [
        f"| job | rival | steps/s | ratio (middle half) | whole, s | {' | '.join(SHARES)} | peak MB | floor |",
        "|---|---|---|---|---|" + "---|" * (len(SHARES) + 2),
    ]
    for row in results:
        base = next(other for other in results if other["job"] == row["job"])
        ratios = [
            b / a for a, b in zip(row["seconds"][WARM_UP:], base["seconds"][WARM_UP:], strict=True)
        ]
        low, ratio, high = statistics.quantiles(ratios, n=4)
        speed = row["steps"] / statistics.median(row["seconds"][WARM_UP:])
        spread = "1" if row is base else f"{ratio:.2f} ({low:.2f} to {high:.2f})"
        cells = [row["job"], row["rival"], f"{speed:,.0f}", spread, f"{sum(row['seconds']):.0f}"]
        cells += [
            f"{100 * row['shares'].get(name, 0):.0f} %" if "shares" in row else ""
            for name in SHARES
        ]
        cells += [f"{row['peak_mb']:,.0f}", f"{row['floor']:,.0f}" if "floor" in row else ""]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def machine() -> str:
    """Return processor, cores, and versions in one line."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    processor = next(
        (line.split(": ")[1] for line in lines if "model name" in line), platform.processor()
    )
    packages = [importlib.import_module(name) for name in ("torch", "gymnasium", "numpy")]
    versions = ", ".join(f"{package.__name__} {package.__version__}" for package in packages)
    sb3 = f"stable-baselines3 {importlib.import_module('stable_baselines3').__version__}"
    return f"{processor}, {os.cpu_count()} cores; Python {platform.python_version()}, {versions}, {sb3}"


def main(args: Args) -> None:
    if args.worker:
        (job,) = args.jobs
        print(
            json.dumps((time_sb3 if args.worker.startswith("sb3") else time_ours)(job, args.worker))
        )
        return
    results = [result for job in args.jobs for result in measure(job)]
    text = table(results)
    print(text)
    if args.jobs != tuple(JOBS):  # the files have all jobs
        return
    report = {"machine": machine(), "warm_up": WARM_UP, "results": results}
    (ROOT / "benchmark" / "results" / "speed.json").write_text(
        json.dumps(report, indent=1) + "\n", encoding="utf-8"
    )
    page = ROOT / "docs" / "speed.md"
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n{report['machine']}\n\n{text}{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
