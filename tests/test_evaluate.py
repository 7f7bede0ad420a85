"""A saved agent plays as it was trained: same networks, same normalisation, whole games, true rewards."""

import itertools
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SCRIPTS, TINY

import evaluate
import ppo
import ppo_atari
import ppo_atari_envpool
import ppo_atari_lstm
import ppo_continuous_action
import ppo_multidiscrete

ALL = (ppo, ppo_atari, ppo_atari_envpool, ppo_continuous_action, ppo_atari_lstm, ppo_multidiscrete)
MODULES = {module.__name__: module for module in ALL}


def train(script: str, **changes) -> Path:
    """Train with tiny arguments and return the run folder."""
    MODULES[script].main(MODULES[script].Args(**TINY[script] | changes))
    (checkpoint,) = Path("runs").rglob("checkpoint.pt")
    return checkpoint.parent


@pytest.mark.parametrize("script", SCRIPTS)
def test_an_evaluated_agent_is_the_trained_one(script):
    run = train(script)
    player, checkpoint = evaluate.load_player(run)
    trained = checkpoint["agent"]
    assert all(torch.equal(trained[name], value) for name, value in player.agent.state_dict().items())
    result = evaluate.main(evaluate.Args(run, episodes=2))
    assert len(result["returns"]) == len(result["lengths"]) == 2
    assert result["mean"] == pytest.approx(np.mean(result["returns"]))
    assert result["std"] == pytest.approx(np.std(result["returns"]))
    # One seed fixes the games.
    assert evaluate.main(evaluate.Args(run, episodes=2))["returns"] == result["returns"]


def test_atari_games_are_played_to_their_end_with_true_rewards(monkeypatch):
    """Lost lives end episodes, but the return is that of the five lives, and a point is worth more than its sign."""
    run = train("ppo_atari")
    player, _ = evaluate.load_player(run)
    rewards, lives = [], []
    step = player.env.unwrapped.step

    def spy(action):
        result = step(action)
        rewards.append(result[1])
        lives.append(player.env.unwrapped.ale.lives())
        return result

    monkeypatch.setattr(player.env.unwrapped, "step", spy)
    returns, _ = player.play(2, deterministic=False, seed=3)
    games = np.cumsum([0] + [a < b for a, b in itertools.pairwise(lives)])  # a new game has its lives again
    assert games[-1] >= 1
    assert sum(returns) == sum(rewards)
    assert lives.count(0) >= 1


def test_deterministic_actions_are_the_likeliest():
    run = train("ppo")
    player, _ = evaluate.load_player(run)
    obs = np.array([0.1, 0.0, 0.05, 0.0], dtype=np.float32)
    logits = player.agent.actor(torch.from_numpy(obs)[None])
    assert all(player.act(obs, {}, False, deterministic=True) == logits.argmax().item() for _ in range(20))
    assert {player.act(obs, {}, False, deterministic=False) for _ in range(50)} == {0, 1}


def test_continuous_actions_are_clipped_and_statistics_frozen():
    run = train("ppo_continuous_action")
    player, _ = evaluate.load_player(run)
    before = player.normalizer.state_dict()
    with torch.no_grad():
        player.agent.actor_logstd.fill_(5.0)  # samples far outside of the bounds
    actions = [player.act(np.zeros(17), {}, False, deterministic=False) for _ in range(20)]
    assert np.abs(actions).max() == 1.0
    player.play(1, deterministic=False, seed=0)
    assert player.normalizer.state_dict() == before


def test_json_video_and_bad_input(capsys):
    run = train("ppo")
    capsys.readouterr()
    evaluate.main(evaluate.Args(run, episodes=1, json=True, capture_video=True))
    result = json.loads(capsys.readouterr().out)
    assert result["env_id"] == "CartPole-v1"
    assert result["global_step"] == 96
    (video,) = run.glob("evaluation_*/videos/*.mp4")  # of one game, and none of training's
    assert video.stat().st_size > 1000
    Path("other.pt").write_bytes(b"not a checkpoint")
    torch.save({"script": "os", "version": 1}, "stranger.pt")
    for path, words in {"no_run": "missing", "other.pt": "no checkpoint", "stranger.pt": "os.py"}.items():
        with pytest.raises(SystemExit) as end:
            evaluate.main(evaluate.Args(Path(path)))
        assert end.value.code == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        assert words in error
    with pytest.raises(SystemExit):
        evaluate.main(evaluate.Args(run, episodes=0))
    assert "--episodes" in capsys.readouterr().err
    assert "os" in sys.modules  # and a stranger's module name is never imported by evaluate.py
