"""Keep the agent of a run in agents/, for evaluate.py to play, and the returns that it gives.

    python benchmark/keep_agent.py runs/CartPole-v1__ppo__1

It copies the checkpoint to agents/ENVIRONMENT without what only training needs, Adam's state for the most part,
and writes what `evaluate.py --json` says of 100 games to evaluation.json beside it.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import evaluate  # noqa: E402
import ppo  # noqa: E402

NEEDED = ("agent", "normalizer", "script", "version", "args", "iteration", "global_step")


@dataclass
class Args:
    run: tyro.conf.Positional[Path]  # run folder, or the beginning of its name
    games: int = 100  # games to play


def main(args: Args) -> None:
    run_dir = ppo.find_run(args.run)
    script = evaluate.load_script(None, run_dir)
    checkpoint = script.load_checkpoint(run_dir)
    checkpoint = {name: checkpoint[name] for name in NEEDED if name in checkpoint}
    folder = ROOT / "agents" / checkpoint["args"]["env_id"]
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(checkpoint, folder / "checkpoint.pt")

    result = evaluate.main(evaluate.Args((folder,), episodes=args.games))
    result["run"] = run_dir.name
    (folder / "evaluation.json").write_text(json.dumps(result) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
