# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "ale-py==0.12.1", "envpool==1.2.5", "gymnasium[classic-control,mujoco]==1.4.0",
#     "moviepy==2.2.1", "mujoco==3.8.1", "numpy==2.4.6", "opencv-python-headless==5.0.0.93",
#     "tensorboard==2.21.0", "torch==2.13.0", "tqdm==4.70.1", "tyro==1.0.17",
# ]
# ///
"""Play whole games with a saved agent, and print their returns.

    python evaluate.py runs/CartPole-v1__ppo__1__1700000000

The script that trained the agent makes its environment and its network, so a copied and changed
script needs nothing else. It is looked for in the current folder and beside this file. Statistics
are frozen, returns are the game's own (EnvPool's miss what its resets score: docs/details.md,
Atari 1), and the seed is not one of training.
"""

import importlib.util
import inspect
import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

import gymnasium as gym
import numpy as np
import torch
import tyro
from torch import nn

from ppo import UsageError, load_checkpoint


@dataclass
class Args:
    run: tyro.conf.Positional[Path]  # run folder, or the checkpoint in it
    script: Path | None = None  # script that trained the agent, if it is not found by its name
    env_id: str | None = None  # repeat the id of an environment in a module, to import it
    num_levels: int | None = None  # Procgen: draw from this many levels (0: all), not the run's
    episodes: int = 10  # whole games to play
    deterministic: bool = False  # take the likeliest action instead of sampling one
    capture_video: bool = False  # film the games into the run folder
    seed: int = 1_000_000  # of the environment and of the sampled actions
    json: bool = False  # print one JSON object instead of text


def import_script(path: Path) -> ModuleType:
    """Import a training script as if it had been started: with the modules that lie beside it."""
    if not path.is_file() or "class Agent(" not in path.read_text():
        raise UsageError(f"{path} is not the script that trained the agent: use --script")
    sys.path.insert(0, str(path.parent.resolve()))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    script = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = script  # where dataclasses look for it
    spec.loader.exec_module(script)
    script.UsageError = UsageError  # every script has a class of its own, of the same name
    return script


def load_agent(
    script: ModuleType, checkpoint: dict, render_mode: str | None = None
) -> tuple[nn.Module, gym.vector.VectorEnv]:
    """Return the agent of a checkpoint, and one environment like those it was trained in."""
    args = replace(script.Args(**checkpoint["args"]), num_envs=1)
    envs = script.make_envs(args, render_mode)
    # What the Agent takes besides `envs` are arguments of the run, such as shared_network.
    names = list(inspect.signature(script.Agent).parameters)[1:]
    agent = script.Agent(envs, **{name: getattr(args, name) for name in names})
    agent.load_state_dict(checkpoint["agent"])
    if "normalizer" in checkpoint:
        envs.load_state_dict(checkpoint["normalizer"])
        envs.training = False
    return agent, envs


@torch.no_grad()
def play(
    agent: nn.Module, envs: gym.vector.VectorEnv, args: Args, folder: Path
) -> tuple[list[float], list[int]]:
    """Play whole games; return their unclipped returns and their lengths in steps of the agent."""
    wanted = inspect.signature(agent.forward).parameters
    returns, lengths, film = [], [], []
    obs, infos = envs.reset(seed=[args.seed])
    starts = torch.ones(1)
    state = agent.initial_state(1) if "state" in wanted else None
    while len(returns) < args.episodes:
        if args.capture_video:
            film.append(envs.render()[0])
        x = torch.as_tensor(obs).float()
        if "state" in wanted:  # a recurrent agent
            policy, _, state = agent(x, state, starts)
        elif "mask" in wanted:
            policy, _ = agent(x, torch.as_tensor(infos["action_mask"]))
        else:
            policy, _ = agent(x)
        action = policy.mode() if args.deterministic else policy.sample()
        obs, _, terminated, truncated, infos = envs.step(action.numpy())
        starts = torch.as_tensor(terminated | truncated).float()
        for info in (infos, infos.get("final_info", {})):
            if "episode" in info and info["_episode"][0]:
                returns.append(float(info["episode"]["r"][0]))
                lengths.append(int(info["episode"]["l"][0]))
                if args.capture_video:
                    save_film(film, folder / f"game-{len(returns)}.mp4", envs.metadata)
                    film = []
    return returns, lengths


def save_film(frames: list[np.ndarray], path: Path, metadata: dict) -> None:
    from moviepy import ImageSequenceClip

    path.parent.mkdir(parents=True, exist_ok=True)
    clip = ImageSequenceClip(frames, fps=metadata.get("render_fps", 15))
    clip.write_videofile(str(path), logger=None)


def main(args: Args) -> dict:
    """Evaluate, and return what `--json` prints."""
    if args.episodes < 1:
        raise UsageError(f"--episodes {args.episodes}: must be at least 1")
    run_dir = args.run.parent if args.run.name == "checkpoint.pt" else args.run
    checkpoint = load_checkpoint(run_dir)
    env_id = checkpoint["args"]["env_id"]
    path = args.script
    if path is None:
        name = Path(checkpoint["script"]).name + ".py"
        path = Path(name) if Path(name).is_file() else Path(__file__).with_name(name)
    script = import_script(path)
    if ":" in env_id and env_id not in (args.env_id, script.Args.env_id):
        # Importing a module runs its code: somebody else's checkpoint must not choose which one.
        raise UsageError(f"the agent's game is in a module: if you trust it, add --env-id {env_id}")
    if args.num_levels is not None:
        if "num_levels" not in checkpoint["args"]:
            raise UsageError(f"--num-levels: {env_id} has no levels")
        checkpoint["args"]["num_levels"] = args.num_levels
    torch.set_num_threads(1)  # one observation at a time leaves nothing to a second thread
    script.set_seed(args.seed)
    agent, envs = load_agent(script, checkpoint, "rgb_array" if args.capture_video else None)
    folder = run_dir / f"videos-evaluation-{args.seed}"
    returns, lengths = play(agent, envs, args, folder)
    envs.close()

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
    if "num_levels" in checkpoint["args"]:
        result["num_levels"] = checkpoint["args"]["num_levels"]
    if args.json:
        print(json.dumps(result))
        return result
    steps = f"{result['global_step']:,} training steps"
    print(f"{run_dir}: {len(returns)} whole games of {env_id} after {steps}")
    print("returns " + ", ".join(f"{value:.1f}" for value in returns))
    print(f"mean {result['mean']:.1f}, standard deviation {result['std']:.1f}")
    if args.capture_video:
        print(f"videos: {folder}")
    return result


if __name__ == "__main__":
    try:
        main(tyro.cli(Args, description=__doc__))
    except (UsageError, gym.error.Error) as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        sys.exit(2)
