# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "ale-py==0.12.1", "envpool==1.2.5", "filelock==4.2.12",
#     "gymnasium[classic-control,mujoco]==1.4.0", "moviepy==2.2.1", "mujoco==3.8.1",
#     "numpy==2.4.6", "opencv-python-headless==5.0.0.93", "tensorboard==2.21.0", "torch==2.13.0",
#     "tqdm==4.70.1", "tyro==1.0.17",
# ]
# ///
"""Play whole games with a saved agent and print their returns.

    python evaluate.py runs/CartPole-v1__ppo__1 --episodes 10

The script that trained the agent makes its environment and its network, so a copied and changed
script needs nothing else. It is found by its name, in the current folder or beside this file, or by
--script. Statistics are frozen, returns are the game's own, and the seed is not one of training.
"""

import importlib.util
import inspect
import json
import os
import re
import signal
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C: no traceback

import gymnasium as gym
import numpy as np
import torch
import tyro
from torch import Tensor, nn
from tqdm import tqdm

from ppo import fail, find_run


@dataclass
class Args:
    # run folder, or the beginning of its name; of several, the newest
    runs: tyro.conf.Positional[tuple[Path, ...]]
    script: Path | None = None  # script that trained the agent, if it is not found by its name
    env_id: str | None = None  # repeat the id of an environment that a package registers
    episodes: int = 10  # whole games to play
    max_steps: int = 100_000  # give up on a game that has not ended after so many steps
    deterministic: bool = False  # take the likeliest action instead of sampling one
    capture_video: bool = False  # record games 0, 1, 8, 27, ... into a new folder in the run folder
    seed: int = 1_000_000  # seed of the environment and of the sampled actions
    json: bool = False  # print one JSON object instead of text


def load_script(path: Path | None, run_dir: Path) -> ModuleType:
    """Import the script at `path`, or that named by the checkpoint; never one in the run folder."""
    if path is None:
        checkpoint = run_dir / "checkpoint.pt"
        if not checkpoint.is_file():
            fail(f"{checkpoint} is not a file: give the folder of a run, runs/...")
        try:
            content = torch.load(checkpoint, map_location="cpu", weights_only=True)
            name = content["script"] + ".py"
        except Exception:  # a damaged file can raise anything
            fail(f"{checkpoint} is damaged or no checkpoint: give the folder of a run, runs/...")
        here = [
            folder for folder in (Path.cwd(), Path(__file__).parent) if not run_dir.samefile(folder)
        ]
        paths = [folder / name for folder in here if os.path.isfile(folder / name)]
        if Path(name).name != name or not paths:
            fail(
                f"the agent's script, {name!r}, is neither here nor beside evaluate.py: use --script"
            )
        path = paths[0]
    elif not path.is_file():
        fail(f"--script {path}: there is no such file")
    # A name in a stranger's file must not run whatever lies here: only what reads like a script.
    text = path.read_text(encoding="utf-8", errors="replace")
    for needed in ("class Args", "class Agent", "def make_envs"):
        if not re.search(rf"^{needed}\b", text, re.MULTILINE):
            fail(f"{path} is not a training script: it has no {needed}")
    loaded = sys.modules.get(path.stem)
    if loaded is not None and str(path.resolve()) == getattr(loaded, "__file__", None):
        script = loaded
    else:
        spec = importlib.util.spec_from_file_location(path.stem, path.resolve())
        script = importlib.util.module_from_spec(spec)
        sys.modules[path.stem] = script  # where dataclasses look for it
        try:
            spec.loader.exec_module(script)
        except Exception as error:
            fail(f"{path} cannot be imported: {type(error).__name__}: {error}")
    return script


def load_agent(
    script: ModuleType, checkpoint: dict, folder: Path, capture_video: bool = False
) -> tuple[nn.Module, gym.vector.VectorEnv]:
    """Return the agent of a checkpoint and one environment of the kind that it was trained in."""
    args = script.Args(**checkpoint["args"])
    args = replace(args, num_envs=1, capture_video=capture_video)
    with script.one_line_errors(args.env_id):
        envs = script.make_envs(args, folder)
    # What the Agent takes besides `envs` are arguments of the run, such as shared_network.
    names = [name for name in inspect.signature(script.Agent).parameters if hasattr(args, name)]
    agent = script.Agent(envs, **{name: getattr(args, name) for name in names})
    if not script.fits(checkpoint.get("agent"), agent.state_dict()):
        fail(f"the weights do not fit the Agent of {script.__file__}, or are not finite")
    agent.load_state_dict(checkpoint["agent"])
    if hasattr(envs, "load_state_dict"):
        if not script.fits(checkpoint.get("normalizer"), envs.state_dict()):
            fail("the statistics of the observations do not fit the environment")
        envs.load_state_dict(checkpoint["normalizer"])
        envs.training = False
    return agent, envs


@torch.no_grad()
def play(agent: nn.Module, envs: gym.vector.VectorEnv, args: Args) -> tuple[list[float], list[int]]:
    """Play whole games; return their unclipped returns and their lengths in steps of the agent."""
    torch.manual_seed(args.seed)
    # A recurrent agent takes a state, a masked one a mask.
    wanted = inspect.signature(agent.get_action).parameters
    lstm_state = agent.initial_state(1) if "lstm_state" in wanted else None
    done = np.zeros(1, dtype=bool)
    obs, infos = envs.reset(seed=[args.seed])
    returns, lengths, steps = [], [], 0
    terminal = sys.stderr is not None and sys.stderr.isatty()
    progress = tqdm(
        total=args.episodes, unit=" games", dynamic_ncols=True, leave=False, disable=not terminal
    )
    while len(returns) < args.episodes:
        x = torch.as_tensor(obs)
        # Images stay uint8, as in training.
        inputs: dict[str, Tensor] = {"x": x if x.ndim > 2 else x.float()}
        if "lstm_state" in wanted:
            inputs["lstm_state"] = lstm_state
            inputs["done"] = torch.as_tensor(done).float()
        if "action_mask" in wanted:
            inputs["action_mask"] = torch.as_tensor(infos["action_mask"])
        action = agent.get_action(**inputs, greedy=args.deterministic)
        if "lstm_state" in wanted:
            action, lstm_state = action
        obs, _, terminated, truncated, infos = envs.step(action.numpy())
        done = terminated | truncated
        steps += 1
        for info in (infos.get("final_info", {}), infos):
            if "episode" in info and info["_episode"][0] and len(returns) < args.episodes:
                returns.append(float(info["episode"]["r"][0]))
                lengths.append(int(info["episode"]["l"][0]))
                steps = 0
                progress.update()
        if steps >= args.max_steps:
            progress.close()
            print(
                f"game {len(returns) + 1} has not ended after {steps:,} steps: given up",
                file=sys.stderr,
            )
            break
    progress.close()
    return returns, lengths


def main(args: Args) -> dict:
    """Evaluate and return what `--json` prints."""
    for name in ("episodes", "max_steps"):
        if getattr(args, name) < 1:
            fail(f"--{name.replace('_', '-')} must be at least 1, not {getattr(args, name)}")
    if not 0 <= args.seed < 2**31:
        fail(f"--seed must lie between 0 and {2**31 - 1}, not at {args.seed}")
    if not args.runs:
        fail("give the folder of a run, runs/...")
    torch.set_num_threads(1)  # one observation at a time leaves nothing to a second thread
    run_dir = max(
        (find_run(path) for path in args.runs),
        key=lambda path: (path / "checkpoint.pt").stat().st_mtime,
    )
    script = load_script(args.script, run_dir)
    checkpoint = script.load_checkpoint(run_dir)
    env_id = checkpoint["args"]["env_id"]
    if (
        ":" in env_id and args.env_id != env_id
    ):  # a stranger's file must not choose what is imported
        fail(f"the run imports a package: if you trust it, add --env-id {env_id}")
    folder = run_dir / f"evaluation_{int(time.time())}"  # for videos
    agent, envs = load_agent(script, checkpoint, folder, args.capture_video)
    returns, lengths = play(agent, envs, args)
    envs.close()
    if not returns:
        fail("no game ended: raise --max-steps, or give the environment a time limit", code=1)

    result = {
        "run": str(run_dir),
        "env_id": env_id,
        "global_step": checkpoint["global_step"],
        "deterministic": args.deterministic,
        "seed": args.seed,
        "mean": float(np.mean(returns)),
        "std": float(np.std(returns)),
        "returns": returns,
        "lengths": lengths,
    }
    # The environment has begun one more game already: that is no video.
    for path in folder.rglob(f"*-episode-{len(returns)}.mp4"):
        path.unlink()
    if args.json:
        print(json.dumps(result))
        return result
    steps = f"{result['global_step']:,} training steps"
    print(f"{run_dir}: {len(returns)} whole games of {env_id} after {steps}")
    print("returns " + ", ".join(f"{value:.1f}" for value in returns))
    print(f"mean {result['mean']:.1f}, standard deviation {result['std']:.1f}")
    if args.capture_video:
        print(f"videos: {folder / 'videos'}")
    return result


if __name__ == "__main__":
    try:
        main(tyro.cli(Args, description=__doc__))
    except OSError as error:
        fail(f"cannot write the result: {error.strerror or error}", code=1)
