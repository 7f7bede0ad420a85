"""Train on two machines, as far as the network can tell: two network namespaces of this one, joined by a cable.

    sudo .venv/bin/python tests/long/two_machines.py

Each namespace has an address of its own and sees the other one, and nothing else. In each, torchrun starts one process
of ppo_atari_multigpu.py with the commands of docs/scale.md. Checked are that both exit with 0, that only the first
machine has a run folder, that it counts the steps of both, and that a process killed on the second machine restarts
the processes of both, which go on from the checkpoint. Linux only, as root, with the program `ip`.
"""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

ROOT = Path(__file__).resolve().parents[2]
MACHINES = {"ppo37-a": "10.37.0.1", "ppo37-b": "10.37.0.2"}


@dataclass
class Args:
    updates: int = 20  # of the run
    kill: bool = True  # kill the second machine's process half-way


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


def connect() -> None:
    """Make the namespaces and the cable between them."""
    for name in MACHINES:
        ip("netns", "add", name)
    one, other = MACHINES
    ip("link", "add", one, "netns", one, "type", "veth", "peer", "name", other, "netns", other)
    for name, address in MACHINES.items():
        ip("-n", name, "address", "add", f"{address}/24", "dev", name)
        ip("-n", name, "link", "set", name, "up")
        ip("-n", name, "link", "set", "lo", "up")


def disconnect() -> None:
    for name in MACHINES:  # the cable goes with them
        subprocess.run(["ip", "netns", "delete", name], stderr=subprocess.DEVNULL)


def start(name: str, folder: Path, arguments: list[str]) -> subprocess.Popen:
    """Start torchrun on one of the machines, in a folder of its own."""
    first = next(iter(MACHINES.values()))
    command = [
        "torchrun",
        "--nnodes=2",
        "--nproc_per_node=1",
        "--max-restarts=3",
        "--rdzv-id=ppo37",
    ]
    command += ["--rdzv-backend=c10d", f"--rdzv-endpoint={first}:29500"]
    # torchrun learns from a machine's name which one is meant; these two share theirs.
    command += [f"--local-addr={MACHINES[name]}", f"--rdzv-conf=is_host={MACHINES[name] == first}"]
    command += ["ppo_atari_multigpu.py", *arguments]
    print(f"{name}$", shlex.join(command), flush=True)
    command[0:1] = [sys.executable, "-m", "torch.distributed.run"]
    (folder / name).mkdir()
    shutil.copy(ROOT / "ppo_atari_multigpu.py", folder / name)
    log = (folder / f"{name}.log").open("w")
    return subprocess.Popen(
        ["ip", "netns", "exec", name, *command],
        cwd=folder / name,
        stdout=log,
        stderr=log,
        # The interface for the gradients, for the same reason
        env=os.environ | {"GLOO_SOCKET_IFNAME": name, "OMP_NUM_THREADS": "1"},
    )


def kill_the_second(folder: Path, machines: list[subprocess.Popen]) -> None:
    """Wait for a checkpoint, then kill the process that trains on the second machine."""
    deadline = time.monotonic() + 300
    while not list(folder.glob("ppo37-a/runs/*/checkpoint.pt")):
        if time.monotonic() > deadline or any(machine.poll() is not None for machine in machines):
            logs = "".join(log.read_text() for log in folder.glob("*.log"))
            raise SystemExit(f"there is no checkpoint:\n{logs}")
        time.sleep(0.1)
    pids = subprocess.run(
        ["ip", "netns", "pids", "ppo37-b"], capture_output=True, text=True, check=True
    )
    for pid in map(int, pids.stdout.split()):
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if b"torch.distributed.run" not in command:
            print(f"ppo37-b$ kill -9 {pid}", flush=True)
            os.kill(pid, signal.SIGKILL)
            return
    raise SystemExit("no process trains on the second machine")


def main(args: Args, folder: Path) -> None:
    steps = args.updates * 4 * 32
    arguments = ["--num-envs=4", "--num-steps=32", f"--total-timesteps={steps}", "--save-every=2"]
    machines = [start(name, folder, arguments) for name in MACHINES]
    try:
        if args.kill:
            kill_the_second(folder, machines)
        codes = [machine.wait(timeout=600) for machine in machines]
    finally:
        for machine in machines:
            machine.terminate()
            machine.wait()
    for name in MACHINES:
        print(f"\n{name}:\n{(folder / f'{name}.log').read_text()}", flush=True)
    if codes != [0, 0]:
        raise SystemExit(f"torchrun's exit codes: {codes}")
    if list(folder.glob("ppo37-b/runs/*")):
        raise SystemExit("the second machine has a run folder of its own")
    (run,) = folder.glob("ppo37-a/runs/*")
    checkpoint = torch.load(run / "checkpoint.pt", weights_only=True)
    if (checkpoint["iteration"], checkpoint["global_step"]) != (args.updates, steps):
        raise SystemExit(
            f"the run has {checkpoint['iteration']} updates, {checkpoint['global_step']} steps"
        )
    print(
        f"both machines trained {args.updates} updates, {steps} steps; one run folder, {run.name}"
    )


if __name__ == "__main__":
    arguments = tyro.cli(Args, description=__doc__)
    with tempfile.TemporaryDirectory() as folder:
        disconnect()
        connect()
        try:
            main(arguments, Path(folder))
        finally:
            disconnect()
