"""The agents that come with the repository play as well as it says."""

import json
from pathlib import Path

import pytest
import torch

import evaluate

AGENTS = Path(evaluate.__file__).parent / "agents"
GAMES = {"CartPole-v1": 4, "Hopper-v5": 3, "Breakout-v5": 2}


@pytest.mark.parametrize("name", GAMES)
def test_an_agent_gives_the_returns_that_are_promised(name):
    """The mean of a few games on other seeds is not below the worst game that its page was made from."""
    promised = json.loads((AGENTS / name / "evaluation.json").read_text(encoding="utf-8"))
    result = evaluate.main(evaluate.Args(AGENTS / name, episodes=GAMES[name], seed=7))
    assert (result["env_id"], result["global_step"]) == (name, promised["global_step"])
    assert result["mean"] >= min(promised["returns"])


def test_agents_are_small():
    """Their weights and nothing that only training needs, less than 10 MB together."""
    paths = list(AGENTS.glob("*/checkpoint.pt"))
    assert {path.parent.name for path in paths} == set(GAMES)
    assert sum(path.stat().st_size for path in paths) < 10_000_000
    for path in paths:
        assert "optimizer" not in torch.load(path, weights_only=True)


def test_the_page_of_the_agents_is_up_to_date():
    page = (AGENTS / "README.md").read_text(encoding="utf-8")
    for name in GAMES:
        promised = json.loads((AGENTS / name / "evaluation.json").read_text(encoding="utf-8"))
        row = next(line for line in page.splitlines() if line.startswith(f"| `{name}`"))
        assert f"{promised['global_step']:,}" in row
        assert f"{promised['mean']:.1f} ± {promised['std']:.1f}" in row
