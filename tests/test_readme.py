"""The README's results are those of the raw data."""

import csv
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmark"))
import readme


def test_the_table_of_results_is_up_to_date():
    text = readme.README.read_text(encoding="utf-8")
    assert text == readme.page(), "run: python benchmark/readme.py"


@pytest.mark.parametrize(
    ("command", "short"),
    [
        (
            "python ppo.py --env-id CartPole-v1 --exp-name a.b --seed 3 --total-timesteps 500000",
            "`python ppo.py`",
        ),
        (
            "python ppo.py --env-id Acrobot-v1 --exp-name a.b --seed 3 --total-timesteps 9000 --shared-network",
            "`python ppo.py --env-id Acrobot-v1 --total-timesteps 9000 --shared-network`",
        ),
        (
            "python ppo_atari.py --env-id BreakoutNoFrameskip-v4 --exp-name a --seed 1 --total-timesteps 10000000"
            "  # stopped at 1000000",
            "`python ppo_atari.py`, stopped at 1,000,000 steps",
        ),
        (
            "python ppo.py --exp-name a --seed 1 --total-timesteps 500000 --no-norm-adv --gamma 0.9",
            "`python ppo.py --no-norm-adv --gamma 0.9`",
        ),
        (
            "python ppo_multidiscrete.py --exp-name a --seed 1 --total-timesteps 1000000 --no-action-mask",
            "`python ppo_multidiscrete.py --no-action-mask`",
        ),
    ],
)
def test_a_command_is_shortened_to_what_is_not_a_default(command, short):
    assert readme.command_of({"command": command, "finished": True}) == short


def test_a_milestone_is_the_mean_of_the_last_100_games_until_then():
    """Recomputed from the file with the csv module alone."""
    path = readme.RESULTS / "atari" / "Breakout-v5__ppo_atari_envpool__1.csv"
    with path.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if int(row["step"]) <= 1_000_000]
    mean = sum(float(row["return"]) for row in rows[-100:]) / 100
    assert mean > 0
    assert readme.return_at(readme.plot.read(path), 1_000_000) == pytest.approx(mean)
    assert f"| seed 1 | {mean:.1f} | " in readme.milestones()
