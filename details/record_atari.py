"""Records what the Atari games do when a detail is got wrong, for the checker: ppo_check/atari.npz.

    python details/record_atari.py

Each of the catalogue's changes is made to ppo_atari.py, and the recorded actions are played.
"""

import sys
import types
from types import SimpleNamespace

import ale_py
import numpy as np
from catalogue import ROOT, apply, load
from ppo_check import parts

TARGET = ROOT / "details" / "ppo_check" / "atari.npz"


def play(script, game: str, actions: np.ndarray) -> dict[str, np.ndarray]:
    """Return mean and reward, end and lives of every step, as in tests/data/atari.npz."""
    env = script.make_env(f"{game}NoFrameskip-v4")
    obs, _ = env.reset(seed=123)
    means, rewards, dones, lives = [obs.mean()], [], [], []
    for action in actions:
        obs, reward, terminated, truncated, _ = env.step(int(action))
        rewards.append(reward)
        dones.append(terminated or truncated)
        lives.append(env.unwrapped.ale.lives())
        if dones[-1]:
            obs, _ = env.reset()
        means.append(obs.mean())
    return {
        "means": np.array(means, np.float32),
        "rewards": np.array(rewards, np.int16),
        "dones": np.array(dones),
        "lives": np.array(lives, np.uint8),
    }


def main() -> None:
    recording = parts.load("atari")
    noops = int(recording["noops"])
    # The number of no-ops is the only thing drawn.
    ale_py.AtariEnv.np_random = SimpleNamespace(integers=lambda low, high: noops)
    source = (ROOT / "ppo_atari.py").read_text(encoding="utf-8")
    arrays, names = {}, []
    for name, change in load().changes().items():
        if not name.startswith("Atari") or "ppo_atari" not in change.scripts:
            continue
        script = types.ModuleType("changed")
        script.__file__ = str(ROOT / "ppo_atari.py")
        sys.modules["changed"] = script
        exec(apply(change, "ppo_atari", source), script.__dict__)
        played = {game: play(script, game, recording[f"{game}/actions"]) for game in parts.GAMES}
        seen = any(
            parts.off_by(got, {key: recording[f"{game}/{key}"] for key in got})
            for game, got in played.items()
        )
        print("recorded" if seen else "not seen", name)
        if seen:
            for game, got in played.items():
                for key, x in got.items():
                    arrays[f"{len(names)}/{game}/{key}"] = x
            names.append(name)
    np.savez_compressed(TARGET, names=np.array(names), **arrays)


if __name__ == "__main__":
    main()
