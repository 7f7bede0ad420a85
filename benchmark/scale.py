"""Time what an update of ppo_atari_multigpu.py costs with one process and with two, one core each.

    python benchmark/scale.py

Three settings take turns, several times: one process with 8 environments; two that share these (strong scaling); two
with 8 environments each (weak scaling). The time of an update has three parts: the rollout, the gradients with
everything else that learning does, and the all-reduce, with the wait for the other process. Prints a table in
Markdown, with medians, and writes benchmark/results/scale.json. Nothing else should run meanwhile. Linux only: it
binds processes to cores.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmark" / "results" / "scale.json"
SETTINGS = {  # processes, environments
    "one process, 8 environments": (1, 8),
    "two processes, 8 environments": (2, 8),
    "two processes, 16 environments": (2, 16),
}


@dataclass
class Args:
    rounds: int = 3  # turns of each setting
    updates: int = 8  # that are timed in a turn, after two that are not


def train() -> None:
    """Be one of torchrun's processes: time the updates, and write them down if this is the first."""
    os.sched_setaffinity(0, {int(os.environ["LOCAL_RANK"]) % os.cpu_count()})
    sys.path.insert(0, str(ROOT))
    import ppo_atari_multigpu as script

    average = script.average_over_processes
    compute_gae = script.compute_gae
    end_update = script.Run.end_update
    update = {"all-reduce": 0.0}
    updates = []
    clock = time.perf_counter

    def timed_average(*inputs):
        started = clock()
        average(*inputs)
        update["all-reduce"] += clock() - started

    def timed_gae(**inputs):
        update["rollout"] = clock() - update.get("started", clock())
        update["learning"] = clock()
        return compute_gae(**inputs)

    def timed_end(*inputs):
        learning = clock() - update.pop("learning")
        update["gradients"] = learning - update["all-reduce"]
        update.pop("started", None)
        updates.append(update.copy())
        end_update(*inputs)
        update.clear()
        update.update({"all-reduce": 0.0, "started": clock()})

    script.average_over_processes = timed_average
    script.compute_gae = timed_gae
    script.Run.end_update = timed_end
    agent = script.main(script.parse_args())
    if os.environ["RANK"] == "0":
        numbers = sum(parameter.numel() for parameter in agent.parameters())
        Path("times.json").write_text(json.dumps({"parameters": numbers, "updates": updates[2:]}))


def measure(processes: int, num_envs: int, updates: int) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += [f"--nproc_per_node={processes}", __file__, f"--num-envs={num_envs}"]
        command += [f"--total-timesteps={num_envs * 128 * (updates + 2)}"]
        env = os.environ | {"OMP_NUM_THREADS": "1"}
        subprocess.run(command, cwd=folder, env=env, check=True, capture_output=True)
        return json.loads((Path(folder) / "times.json").read_text())


def cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next(line.split(": ")[1] for line in lines if line.startswith("model name"))


def main(args: Args) -> None:
    rounds = {name: [] for name in SETTINGS}
    for _ in range(args.rounds):
        for name, (processes, num_envs) in SETTINGS.items():
            times = measure(processes, num_envs, args.updates)
            rounds[name] += times["updates"]
    result = {
        "command": "python benchmark/scale.py",
        "machine": f"{cpu()}, {os.cpu_count()} cores",
        "versions": f"Python {platform.python_version()}, torch {torch.__version__}",
        "parameters": times["parameters"],
        "seconds_of_updates": rounds,
    }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")

    print("| | rollout | gradients | all-reduce | update | steps/s |")
    print("|---|---|---|---|---|---|")
    for name, updates in rounds.items():
        medians = [
            statistics.median(update[part] for update in updates)
            for part in ("rollout", "gradients", "all-reduce")
        ]
        total = statistics.median(sum(update.values()) for update in updates)
        cells = [f"{seconds * 1000:.0f} ms" for seconds in (*medians, total)]
        sps = SETTINGS[name][1] * 128 / total
        print(f"| {name} | {' | '.join(cells)} | {sps:.0f} |")


if __name__ == "__main__":
    if "RANK" in os.environ:
        train()
    else:
        main(tyro.cli(Args, description=__doc__))
