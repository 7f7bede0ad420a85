"""Time the scripts against stable-baselines3's PPO with the same hyperparameters, and write one table.

    python benchmark/speed.py

Every measurement is a process of its own, and the rivals take turns (A B C A B C), so that a machine that gets slower
meanwhile is slow for all. Steady state leaves out start-up, the first updates and compiling. Writes docs/speed.json and
the table in docs/speed.md; stable-baselines3 is in requirements-dev.txt.
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
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- written by benchmark/speed.py -->", "<!-- end of the table -->"

# job: script, environment for stable-baselines3, steps to time, updates that do not count, rivals
JOBS = {
    "CartPole": ("ppo", "CartPole-v1", 40_960, 20, ("sb3", "default", "compile")),
    "Hopper": ("ppo_continuous_action", "Hopper-v5", 10_240, 1, ("sb3", "default", "compile")),
    "Breakout": ("ppo_atari", "BreakoutNoFrameskip-v4", 5_120, 1, ("sb3", "default", "compile")),
    "Breakout, EnvPool": ("ppo_atari_envpool", "BreakoutNoFrameskip-v4", 6_144, 2, ("default", "compile")),
}
SHARES = ("environment", "policy", "GAE", "update", "rest")


@dataclass
class Args:
    jobs: tuple[str, ...] = tuple(JOBS)  # what to time
    rounds: int = 2  # turns of each rival
    worker: str = ""  # used by the program itself: the rival that this process times


def arguments(job: str) -> dict:
    """Return the arguments of our script for this job, beyond its defaults."""
    script, env_id, steps, _, _ = JOBS[job]
    return {"total_timesteps": steps} | ({"env_id": env_id} if script == "ppo_continuous_action" else {})


def timed(seconds: dict[str, float], name: str, function):
    """Return `function` as it is, but with its time added to `seconds[name]`."""

    def wrapper(*args, **kwargs):
        begin = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            seconds[name] += time.perf_counter() - begin

    return wrapper


def time_ours(job: str, compiled: bool) -> dict:
    """Train with our script in this process; return steady steps per second and the shares of the time."""
    script, _, _, warm_up, _ = JOBS[job]
    sys.path.insert(0, str(ROOT))
    module = importlib.import_module(script)
    seconds, marks = defaultdict(float), []  # marks: (seconds, steps, seconds in each part) at the end of each update
    make_envs, end_update, agent = module.make_envs, module.Run.end_update, module.Agent

    def make(*args):
        envs = make_envs(*args)
        envs.step = timed(seconds, "environment", envs.step)
        return envs

    def end(run, *args):
        end_update(run, *args)
        marks.append((time.perf_counter() - run.compiled, run.global_step, dict(seconds)))

    module.make_envs, module.Run.end_update = make, end
    module.compute_gae = timed(seconds, "GAE", module.compute_gae)
    module.optim.Adam.step = timed(seconds, "update", module.optim.Adam.step)
    if compiled:
        torch_compile = torch.compile
        torch.compile = lambda function, **options: timed(seconds, "update", torch_compile(function, **options))
    else:
        module.compute_gradient = timed(seconds, "update", module.compute_gradient)
    for name in ("get_action", "get_value", "get_action_and_value"):
        if hasattr(agent, name):
            plain = getattr(agent, name)
            rollout = timed(seconds, "policy", plain)
            choose = lambda *args, plain=plain, rollout=rollout: (plain if torch.is_grad_enabled() else rollout)(*args)  # noqa: E731
            setattr(agent, name, choose)
    module.main(module.Args(**arguments(job), compile=compiled))
    (begin, first, before), (finish, last, after) = marks[warm_up - 1], marks[-1]
    shares = {name: (after[name] - before.get(name, 0)) / (finish - begin) for name in after}
    shares["rest"] = 1 - sum(shares.values())
    return {"sps": (last - first) / (finish - begin), "shares": shares, "floor": floor(module, job)}


def floor(module, job: str) -> float:
    """Return the steps per second if only the environment and the network's multiplications took time."""
    args = module.Args(**arguments(job))
    seeds = list(range(args.num_envs))
    envs = module.make_envs(args, seeds if "envpool" in module.__name__ else Path())
    envs.reset()
    actions = np.array([envs.single_action_space.sample() for _ in range(args.num_envs)])
    steps = 100 if "atari" in module.__name__ else 1000
    begin = time.perf_counter()
    for _ in range(steps):
        envs.step(actions)
    per_step = (time.perf_counter() - begin) / steps / args.num_envs
    envs.close()
    agent, space = module.Agent(envs), envs.single_observation_space
    x = torch.zeros((args.num_envs, *space.shape), dtype=torch.uint8 if space.dtype == np.uint8 else torch.float32)
    with FlopCounterMode(display=False) as forward:
        agent.get_action_and_value(x)
    # Once in the rollout; in every epoch again, forward and, at twice the cost, backward.
    flops = forward.get_total_flops() / args.num_envs * (1 + 3 * args.update_epochs)
    a = torch.randn(1024, 1024)
    for _ in range(3):
        a @ a
    begin = time.perf_counter()
    for _ in range(10):
        a @ a
    rate = 10 * 2 * 1024**3 / (time.perf_counter() - begin)
    return 1 / (per_step + flops / rate)


def time_sb3(job: str) -> dict:
    """Train with stable-baselines3 in this process, with the hyperparameters of our script."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_atari_env, make_vec_env
    from stable_baselines3.common.vec_env import VecFrameStack, VecNormalize

    script, env_id, steps, warm_up, _ = JOBS[job]
    sys.path.insert(0, str(ROOT))
    args = importlib.import_module(script).Args(**arguments(job))
    if "atari" in script:
        policy, envs = "CnnPolicy", VecFrameStack(make_atari_env(env_id, args.num_envs, seed=1), 4)
    else:
        policy, envs = "MlpPolicy", make_vec_env(env_id, args.num_envs, seed=1)
        envs = VecNormalize(envs, gamma=args.gamma) if script == "ppo_continuous_action" else envs
    marks = []

    class Clock(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_start(self) -> None:
            marks.append((time.perf_counter(), self.num_timesteps))

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
    model.learn(steps // size * size, callback=Clock())
    marks.append((time.perf_counter(), model.num_timesteps))
    (begin, first), (finish, last) = marks[warm_up], marks[-1]
    return {"sps": (last - first) / (finish - begin), "shares": {}}


def measure(job: str, rival: str) -> dict:
    """Run one measurement in a process of its own, in an empty folder."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(Path(__file__).resolve()), "--jobs", job, "--worker", rival]
        begin = time.perf_counter()
        process = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if process.returncode:
        sys.exit(f"error: {job}, {rival}: {process.stderr.strip().splitlines()[-1]}")
    result = json.loads(process.stdout.splitlines()[-1])
    return {"job": job, "rival": rival, "process_seconds": time.perf_counter() - begin} | result


def table(results: list[dict]) -> str:
    """Return the medians as a table in Markdown; a ratio is the median of those within each round."""
    lines = [
        "| job | rival | steps/s, steady | ratio | whole process, s | " + " | ".join(SHARES) + " | peak MB | floor |",
        "|---|---|---|---|---|" + "---|" * (len(SHARES) + 2),
    ]
    median = lambda rows, key: statistics.median(row[key] for row in rows)  # noqa: E731
    for job in dict.fromkeys(row["job"] for row in results):
        # Both Breakout jobs are held against stable-baselines3's only Atari.
        base = [r for r in results if r["rival"] == "sb3" and r["job"] == job.removesuffix(", EnvPool")]
        for rival in dict.fromkeys(row["rival"] for row in results if row["job"] == job):
            rows = [row for row in results if (row["job"], row["rival"]) == (job, rival)]
            ratios = [row["sps"] / other["sps"] for row in rows for other in base if row["round"] == other["round"]]
            ratio = f"{statistics.median(ratios):.2f}" if base else ""
            cells = [job, rival, f"{median(rows, 'sps'):,.0f}", ratio, f"{median(rows, 'process_seconds'):.0f}"]
            for name in SHARES:
                share = statistics.median(row["shares"].get(name, 0) for row in rows)
                cells.append(f"{100 * share:.0f} %" if rows[0]["shares"] else "")
            cells.append(f"{median(rows, 'peak_mb'):,.0f}")
            cells.append(f"{median(rows, 'floor'):,.0f}" if "floor" in rows[0] else "")
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def machine() -> str:
    """Return processor, cores, and versions in one line."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    processor = next((line.split(": ")[1] for line in lines if "model name" in line), platform.processor())
    packages = [importlib.import_module(name) for name in ("torch", "gymnasium", "numpy")]
    versions = ", ".join(f"{package.__name__} {package.__version__}" for package in packages)
    sb3 = f"stable-baselines3 {importlib.import_module('stable_baselines3').__version__}"
    return f"{processor}, {os.cpu_count()} cores; Python {platform.python_version()}, {versions}, {sb3}"


def main(args: Args) -> None:
    if args.worker:
        (job,) = args.jobs
        result = time_sb3(job) if args.worker == "sb3" else time_ours(job, args.worker == "compile")
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
        print(json.dumps(result | {"peak_mb": peak}))
        return
    results = []
    for number in range(args.rounds):
        for job in args.jobs:
            for rival in JOBS[job][4]:
                results.append({"round": number} | measure(job, rival))
                print(f"{job}, {rival}: {results[-1]['sps']:,.0f} steps/s", file=sys.stderr)
    text = table(results)
    print(text)
    report = {"machine": machine(), "arguments": asdict(args), "results": results}
    (ROOT / "docs" / "speed.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    page = ROOT / "docs" / "speed.md"
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n{report['machine']}\n\n{text}{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
