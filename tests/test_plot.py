"""benchmark/plot.py: curves and tables with known answers, what belongs together, published results, bad input."""

import subprocess
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from scipy import stats

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmark"))
import plot
from episodes import Episodes, write_csv

ROOT = Path(__file__).resolve().parents[1]


def episodes(returns: np.ndarray, length: int = 10, steps_per_second: float = 10.0) -> Episodes:
    """Return a run of one environment in which all episodes have the same length."""
    returns = np.asarray(returns, dtype=float)
    steps = length * np.arange(1.0, len(returns) + 1)
    return Episodes(steps, returns, np.full(len(returns), length), steps / steps_per_second)


def run(content: Episodes, path: str = "results/CartPole-v1__a__1.csv", started=(1,)) -> plot.Run:
    path = Path(path)
    environment, setting, seed = path.name.removesuffix(".csv").split("__")[:3]
    return plot.Run(environment, setting, int(seed), started, path.parent, path, content)


def own_bootstrap(scores: np.ndarray, statistic, repetitions: int = 20_000) -> np.ndarray:
    rng = np.random.default_rng(1)
    draws = scores[rng.integers(len(scores), size=(repetitions, len(scores)))]
    return np.percentile(statistic(draws), [2.5, 97.5])


# Curves


def test_curve_of_constant_returns_is_constant_and_its_interval_has_no_width():
    points = plot.curve([run(episodes(np.full(2000, 7.0))) for _ in range(3)])
    assert len(points) == 100
    for column in ("mean", "low", "high"):
        np.testing.assert_allclose(points[column], 7.0)
    assert (points["seeds"] == 3).all()
    np.testing.assert_allclose(points["step"], np.arange(100, 20_000, 200))
    np.testing.assert_allclose(points["minutes"], points["step"] / 10 / 60)


def test_curve_of_linear_returns_is_their_line():
    # Episodes end after 10, 20, ... steps. Those that end in a window (0, 200] do so at 105 on average: an episode
    # that ends on a window's edge counts before it.
    content = episodes(3.0 * 10 * np.arange(1, 2001))
    points = plot.curve([run(content)])
    np.testing.assert_allclose(points["mean"], 3 * (points["step"] + 5))
    assert points["low"].isna().all()
    assert points["high"].isna().all()


def test_windows_hold_ten_episodes_where_a_run_is_short():
    points = plot.curve([run(episodes(np.arange(400.0)))])
    np.testing.assert_allclose(points["mean"], np.arange(40) * 10 + 4.5)
    assert len(plot.curve([run(episodes([1.0]))])) == 1


def test_window_without_an_episode_lies_between_its_neighbours():
    content = episodes(np.arange(300.0))
    keep = (content.steps <= 1000) | (content.steps > 2000)
    content = Episodes(
        content.steps[keep], content.returns[keep], content.lengths[keep], content.seconds[keep]
    )
    np.testing.assert_allclose(
        plot.window_means(content, np.array([0, 1000, 2000, 3000])), [49.5, 149.5, 249.5]
    )


def test_window_has_the_mean_of_its_episodes_however_many():
    content = episodes(np.arange(100.0))
    np.testing.assert_allclose(plot.window_means(content, np.array([0, 100, 1000])), [4.5, 54.5])


def test_curve_has_the_interval_of_the_seeds_at_every_point():
    rng = np.random.default_rng(0)
    runs = [run(episodes(rng.normal(100, 20) + np.zeros(1000))) for _ in range(12)]
    finals = np.array([run.episodes.returns[-1] for run in runs])
    points = plot.curve(runs)
    low, high = own_bootstrap(finals, lambda draws: draws.mean(axis=1))
    np.testing.assert_allclose(points["mean"], finals.mean())
    np.testing.assert_allclose(points["low"], low, atol=0.1 * (high - low))
    np.testing.assert_allclose(points["high"], high, atol=0.1 * (high - low))


def test_unfinished_seed_counts_as_far_as_it_came():
    fast = run(episodes(np.full(2000, 1.0)))
    slow = run(episodes(np.full(1000, 3.0), steps_per_second=1.0))
    points = plot.curve([fast, slow])
    early = points["step"] < 10_000
    assert early.sum() == 50
    np.testing.assert_allclose(points["mean"], np.where(early, 2.0, 1.0))
    assert (points["seeds"] == np.where(early, 2, 1)).all()
    assert (points["low"].isna() == ~early).all()
    assert (points["minutes"].diff().dropna() > 0).all()
    assert plot.label("a", [fast, slow], points) == "a\n(2 seeds, 1 at the end)"
    table = plot.final_returns({"CartPole-v1": {"a": [fast, slow]}})
    assert "| 10k to 20k | 2 |" in plot.markdown(table)


# The table


def test_table_has_the_mean_and_the_interquartile_mean_of_the_last_hundred_episodes():
    rng = np.random.default_rng(0)
    finals = np.array(
        [*rng.normal(50, 5, size=9), 500.0]
    )  # one seed that the interquartile mean leaves out
    runs = [
        run(episodes(np.append(np.full(300, -1e6), np.full(100, final)), steps_per_second=5))
        for final in finals
    ]
    row = plot.summary(runs)
    assert row["mean"] == pytest.approx(finals.mean())
    assert row["iqm"] == pytest.approx(stats.trim_mean(finals, 0.25))
    assert abs(row["iqm"] - 50) < 5 < abs(row["mean"] - 50)
    low, high = own_bootstrap(finals, lambda draws: draws.mean(axis=1))
    assert (row["low"], row["high"]) == pytest.approx((low, high), abs=0.1 * (high - low))
    low, high = own_bootstrap(finals, lambda draws: stats.trim_mean(draws, 0.25, axis=1))
    assert (row["iqm_low"], row["iqm_high"]) == pytest.approx((low, high), abs=0.1 * (high - low))
    assert (row["seeds"], row["fewest_steps"], row["most_steps"]) == (10, 4000, 4000)
    assert row["minutes"] == pytest.approx(4000 / 5 / 60)
    assert row["steps_per_second"] == pytest.approx(5)


def test_interval_covers_the_truth_about_as_often_as_it_says(monkeypatch):
    monkeypatch.setattr(plot, "REPETITIONS", 500)
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(60):
        _, (low, high) = plot.bootstrap(
            rng.normal(100, 15, size=(20, 1)),
            lambda scores: np.array([plot.metrics.aggregate_mean(scores)]),
        )
        covered += low[0] <= 100 <= high[0]
    assert 51 <= covered <= 59


def test_one_seed_has_no_interval():
    table = plot.final_returns({"CartPole-v1": {"a": [run(episodes(np.full(200, 490.26)))]}})
    cells = plot.markdown(table).splitlines()[2].split(" | ")
    assert cells[2:6] == ["2k", "1", "490.3", "490.3"]
    assert cells[-2:] == ["497.5 ± 4.0 (500k)", "490.0 ± 6.1 (500k) |"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (500, "500"),
        (1500, "1.5k"),
        (499_712, "500k"),
        (999_712, "1M"),
        (1e7, "10M"),
        (-2000, "-2k"),
    ],
)
def test_short_numbers(value, text):
    assert plot.short(value) == text


# What belongs together


def folder(name: str) -> Path:
    """Make a run folder whose log is of no interest."""
    path = Path("runs") / name
    path.mkdir(parents=True)
    (path / "events.out.tfevents.1").touch()
    return path


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("CartPole-v1__ppo__1__1795565255", ("CartPole-v1", "ppo", 1, (1795565255, 1))),
        ("CartPole-v1__ppo__12__1795565255-2", ("CartPole-v1", "ppo", 12, (1795565255, 2))),
        ("ALE-Breakout-v5__my__own__3__9__4__7", ("ALE-Breakout-v5", "my__own__3__9", 4, (7, 1))),
    ],
)
def test_name_of_a_run_folder_is_split_from_both_ends(name, expected, monkeypatch):
    monkeypatch.setattr(plot, "read_run", lambda path: episodes([1.0]))
    found = plot.read(folder(name))
    assert (found.environment, found.setting, found.seed, found.started) == expected


def test_name_of_a_result_file_is_split_from_both_ends():
    path = Path("results/Hopper-v5__no__mask__3.csv")
    write_csv(path, episodes([1.0]))
    found = plot.read(path)
    assert (found.environment, found.setting, found.seed) == ("Hopper-v5", "no__mask", 3)


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0], [1, 2, 0]])
def test_newest_run_of_the_same_seed_counts(order, capsys):
    runs = [
        run(episodes([1.0]), "runs/CartPole-v1__a__1__900", (900, 1)),
        run(episodes([2.0]), "runs/CartPole-v1__a__1__1000", (1000, 1)),
        run(episodes([3.0]), "runs/CartPole-v1__a__1__1000-2", (1000, 2)),
    ]
    groups = plot.group(
        [runs[i] for i in order] + [run(episodes([4.0]), "runs/CartPole-v1__a__2__1")]
    )
    (kept,) = groups["CartPole-v1"].values()
    assert [run.episodes.returns[0] for run in kept] == [3.0, 4.0]
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_same_setting_in_two_folders_is_two_settings():
    runs = [
        run(episodes([1.0]), "runs/CartPole-v1__ppo__1__9"),
        run(episodes([1.0]), "results/classic/CartPole-v1__ppo__1.csv"),
        run(episodes([1.0]), "runs/Acrobot-v1__ppo__1__9"),
    ]
    groups = plot.group(runs)
    assert list(groups) == ["CartPole-v1", "Acrobot-v1"]  # in the order given
    assert list(groups["CartPole-v1"]) == ["ppo (runs)", "ppo (classic)"]
    assert list(groups["Acrobot-v1"]) == ["ppo"]
    runs = [
        run(episodes([1.0]), f"{place}/classic/CartPole-v1__ppo__1.csv")
        for place in ("ours", "theirs")
    ]
    settings = ["ppo (ours/classic)", "ppo (theirs/classic)"]
    assert list(plot.group(runs)["CartPole-v1"]) == settings


def test_settings_differ_in_colour_or_marker():
    looks = {
        (plot.COLOURS[i % len(plot.COLOURS)], plot.MARKERS[i % len(plot.MARKERS)])
        for i in range(42)
    }
    assert len(looks) == 42


# Published results

# environment, code, script: mean and deviation
NUMBERS = {
    ("CartPole-v1", "CleanRL", "ppo.py"): (490.04, 6.12),
    ("CartPole-v1", "official code", "ppo2"): (497.54, 4.02),
    ("CartPole-v1", "CleanRL", "the blog post's"): (
        284.0,
        None,
    ),  # shared network: from the figures
    ("CartPole-v1", "official code", "ppo2 shared"): (202.9, None),
    ("Acrobot-v1", "CleanRL", "the blog post's"): (-381.5, None),
    ("Acrobot-v1", "official code", "ppo2 shared"): (-362.3, None),
    ("Acrobot-v1", "CleanRL", "ppo.py"): (-86.36, 1.32),
    ("Acrobot-v1", "official code", "ppo2"): (-81.82, 5.58),
    ("MountainCar-v0", "CleanRL", "ppo.py"): (-200, 0),
    ("MountainCar-v0", "official code", "ppo2"): (-200, 0),
    ("BreakoutNoFrameskip-v4", "CleanRL", "ppo_atari.py"): (414.66, 28.09),
    ("PongNoFrameskip-v4", "CleanRL", "ppo_atari.py"): (20.36, 0.20),
    ("BeamRiderNoFrameskip-v4", "CleanRL", "ppo_atari.py"): (1915.93, 484.58),
    ("BreakoutNoFrameskip-v4", "official code", "ppo2"): (406.57, 31.55),
    ("PongNoFrameskip-v4", "official code", "ppo2"): (20.51, 0.50),
    ("BeamRiderNoFrameskip-v4", "official code", "ppo2"): (2642.97, 670.37),
    ("Breakout-v5", "CleanRL", "ppo_atari_envpool.py"): (211.24, 151.84),
    ("Pong-v5", "CleanRL", "ppo_atari_envpool.py"): (20.45, 0.09),
    ("BeamRider-v5", "CleanRL", "ppo_atari_envpool.py"): (2501.85, 210.52),
    ("Breakout-v5", "CleanRL", "ppo_atari_envpool_xla_jax.py"): (420.92, 16.75),
    ("Pong-v5", "CleanRL", "ppo_atari_envpool_xla_jax.py"): (20.82, 0.21),
    ("BeamRider-v5", "CleanRL", "ppo_atari_envpool_xla_jax.py"): (2678.73, 426.42),
    ("BreakoutNoFrameskip-v4", "CleanRL", "ppo_atari_lstm.py"): (113.42, 5.85),
    ("PongNoFrameskip-v4", "CleanRL", "ppo_atari_lstm.py"): (19.81, 0.62),
    ("BeamRiderNoFrameskip-v4", "CleanRL", "ppo_atari_lstm.py"): (1299.25, 509.90),
    ("BreakoutNoFrameskip-v4", "official code", "ppo2 lstm"): (138.98, 50.76),
    ("PongNoFrameskip-v4", "official code", "ppo2 lstm"): (19.79, 0.67),
    ("BeamRiderNoFrameskip-v4", "official code", "ppo2 lstm"): (1591.68, 372.95),
    ("BreakoutNoFrameskip-v4", "CleanRL", "ppo_atari_multigpu.py"): (414.94, 20.60),
    ("PongNoFrameskip-v4", "CleanRL", "ppo_atari_multigpu.py"): (20.34, 0.43),
    ("BeamRiderNoFrameskip-v4", "CleanRL", "ppo_atari_multigpu.py"): (2414.65, 643.74),
    ("HalfCheetah-v4", "CleanRL", "ppo_continuous_action.py"): (1442.64, 46.03),
    ("Walker2d-v4", "CleanRL", "ppo_continuous_action.py"): (2287.95, 571.78),
    ("Hopper-v4", "CleanRL", "ppo_continuous_action.py"): (2382.86, 271.74),
    ("HalfCheetah-v2", "official code", "ppo2"): (2149, 1166),
    ("Walker2d-v2", "official code", "ppo2"): (3142, 982),
    ("Hopper-v2", "official code", "ppo2"): (2449, 596),
    ("InvertedPendulum-v4", "CleanRL", "ppo_continuous_action.py"): (963.09, 22.20),
    ("Humanoid-v4", "CleanRL", "ppo_continuous_action.py"): (716.11, 49.08),
    ("Pusher-v4", "CleanRL", "ppo_continuous_action.py"): (-40.38, 7.15),
}


def test_published_numbers_are_those_that_were_published():
    found = {}
    for entry in plot.PUBLISHED["returns"]:
        script = entry["script"]
        if entry["code"] == "official code":
            script = {"default": "ppo2", "LSTM": "ppo2 lstm", "shared": "ppo2 shared"}[
                entry["network"]
            ]
        else:
            assert (entry["network"] == "LSTM") == ("lstm" in script)
        key = (entry["environment"], entry["code"], script)
        assert key not in found
        found[key] = entry
    own_page = found.pop(("InvertedPendulum-v2", "official code", "ppo2"))  # of openai/baselines
    assert (own_page["mean"], own_page["std"], own_page["seeds"]) == (809.43, None, 6)
    assert found.keys() == NUMBERS.keys()
    for key, (mean, std) in NUMBERS.items():
        rounding = 0.5 if float(mean).is_integer() else 0.005
        assert found[key]["mean"] == pytest.approx(mean, abs=rounding)
        assert found[key]["std"] == pytest.approx(std, abs=rounding)
        game = plot.game(key[0])
        atari = game in ("Breakout", "Pong", "BeamRider")
        classic = game in ("CartPole", "Acrobot", "MountainCar")
        assert found[key]["steps"] == (10_000_000 if atari else 500_000 if classic else 1_000_000)
        assert found[key]["seeds"] == 3


@pytest.mark.parametrize(
    ("environment", "returns"),
    [("Breakout-v5", [18, 42, 92, 142, 172]), ("Pong-v5", [-11.4, 10.0, 17.1, 18.9, 19.5])],
)
def test_published_curves_pass_through_the_published_milestones(environment, returns):
    _, cleanrl = plot.published("curves", environment, "default")
    at = dict(zip(cleanrl["steps"], cleanrl["returns"], strict=True))
    milestones = [at[million * 1_000_000] for million in range(1, 6)]
    np.testing.assert_allclose(
        milestones, returns, atol=0.5 if environment == "Breakout-v5" else 0.05
    )


@pytest.mark.parametrize("kind", ["returns", "curves"])
def test_every_published_result_has_its_source_and_one_of_each_code_is_drawn(kind):
    for entry in plot.PUBLISHED[kind]:
        assert "github" in entry["source"]
        drawn = plot.published(kind, entry["environment"], entry["network"])
        codes = [entry["code"] for entry in drawn]
        assert codes == [code for code in plot.CODES if code in codes]
    for entry in plot.PUBLISHED["curves"]:
        assert len(entry["steps"]) == len(entry["returns"]) <= 60
        assert (np.diff(entry["steps"]) > 0).all()
        # It ends near the published final number, as far as a figure that is read and a version that differs allow.
        (final,) = [
            final
            for final in plot.published("returns", entry["environment"], entry["network"])
            if final["code"] == entry["code"]
        ]
        slack = 0.1 * abs(final["mean"]) + 0.1
        if final["environment"] == entry["environment"]:
            assert abs(entry["returns"][-1] - final["mean"]) < slack


@pytest.mark.parametrize(
    ("environment", "versions"),
    [
        ("CartPole-v1", ["CartPole-v1", "CartPole-v1"]),
        ("HalfCheetah-v5", ["HalfCheetah-v2", "HalfCheetah-v4"]),
        ("Humanoid-v5", ["Humanoid-v4"]),
        ("Breakout-v5", ["BreakoutNoFrameskip-v4"] * 2),
        ("ALE-Breakout-v5", ["BreakoutNoFrameskip-v4"] * 2),
        ("ALE/Breakout-v5", ["BreakoutNoFrameskip-v4"] * 2),
        ("BreakoutNoFrameskip-v4", ["BreakoutNoFrameskip-v4"] * 2),
        ("MountainCarContinuous-v0", []),
        ("InvertedDoublePendulum-v5", []),
        ("HumanoidStandup-v5", []),
        ("Jumanji-Cleaner-v0", []),
        ("mypackage-CartPole-v1", []),
        ("my environment", []),
    ],
)
def test_published_twin_of_an_environment(environment, versions):
    found = plot.published("returns", environment, "default")
    assert [entry["environment"] for entry in found] == versions


# Figures and files


def drawn(groups: plot.Groups, **flags):
    curves = {
        (environment, setting): plot.curve(runs)
        for environment, settings in groups.items()
        for setting, runs in settings.items()
    }
    with plot.matplotlib.rc_context(plot.STYLE):
        figure = plot.draw(groups, curves, plot.Args(runs=(), **flags))
        FigureCanvasAgg(figure).draw()
    return figure


def legend(panel) -> list[str]:
    return [text.get_text() for text in panel.get_legend().get_texts()]


def test_legend_says_for_which_version_and_after_how_many_steps():
    own = run(episodes(np.full(1000, 2000.0), length=1000), "runs/HalfCheetah-v5__mine__1__1")
    (panel,) = drawn({"HalfCheetah-v5": {"mine": [own]}}, x="steps").axes
    assert legend(panel) == [
        "mine\n(1 seed)",
        "official code 2149\n(HalfCheetah-v2, 1M)",
        "CleanRL 1443\n(HalfCheetah-v4, 1M)",
    ]


def test_recurrent_runs_have_recurrent_twins():
    own = run(
        episodes(np.full(10_000, 100.0), length=1000), "runs/Breakout-v5__ppo_atari_lstm__1__1"
    )
    (panel,) = drawn({"Breakout-v5": {"ppo_atari_lstm": [own]}}, x="minutes").axes
    assert legend(panel)[1:] == [
        "official code LSTM 139.0\n(BreakoutNoFrameskip-v4, 10M)",
        "CleanRL LSTM 113.4\n(BreakoutNoFrameskip-v4, 10M)",
    ]


def test_each_row_has_the_published_results_of_its_network():
    settings = {
        "separate": [run(episodes(np.full(200, 490.0)))],
        "shared": [run(episodes(np.full(200, 249.0)))],
    }
    separate, shared = plot.final_returns({"CartPole-v1": settings}).to_dict("records")
    assert (separate["official code mean"], separate["CleanRL mean"]) == (497.54, 490.04)
    assert (shared["official code mean"], shared["CleanRL mean"]) == (202.9, 284.0)
    # None was published for a shared network in MountainCar.
    (row,) = plot.final_returns({"MountainCar-v0": {"shared": settings["shared"]}}).to_dict(
        "records"
    )
    assert "official code mean" not in row


def test_run_that_is_not_far_yet_keeps_its_scale():
    own = run(episodes(np.linspace(0, 10, 1000), length=1000), "runs/Breakout-v5__mine__1__1")
    (panel,) = drawn({"Breakout-v5": {"mine": [own]}}, x="steps").axes
    assert panel.get_ylim()[1] < 12
    assert legend(panel)[1] == "official code 406.6 ↑\n(BreakoutNoFrameskip-v4, 10M)"
    (panel,) = drawn({"Breakout-v5": {"mine": [own]}}, x="steps", published_curves=True).axes
    assert legend(panel)[1] == "official code\n(BreakoutNoFrameskip-v4)"
    official = panel.get_lines()[1]
    assert official.get_xdata()[-1] == 1_000_000
    assert official.get_ydata()[-1] == pytest.approx(17.43)


def test_a_published_curve_goes_as_far_as_the_runs_and_no_further():
    """Breakout's is published at 200,000, 400,000, ... steps, with 12.24 and 14.57 on both sides of 700,000."""
    for longest, end in ((700, 13.405), (100, np.nan), (20_000, np.nan)):
        own = run(
            episodes(np.linspace(0, 10, longest), length=1000), "runs/Breakout-v5__mine__1__1"
        )
        (panel,) = drawn({"Breakout-v5": {"mine": [own]}}, x="steps", published_curves=True).axes
        official = panel.get_lines()[1]
        assert official.get_xdata()[-1] == 1000 * longest
        assert official.get_ydata()[-1] == pytest.approx(end, abs=1e-3, nan_ok=True)


@pytest.mark.parametrize("x", ["steps", "both"])
def test_nothing_overlaps(x):
    environments = ("CartPole-v1", "Hopper-v5", "HalfCheetah-v5", "Breakout-v5", "Walker2d-v5")
    content = episodes(np.linspace(0, 3000, 1000), length=1000)
    groups = {
        environment: {"ppo_continuous_action": [run(content)], "another": [run(content)]}
        for environment in environments
    }
    figure = drawn(groups, x=x)
    panels = [panel for panel in figure.axes if panel.get_visible()]
    assert len(panels) == len(environments) * (2 if x == "both" else 1)
    boxes = [panel.bbox for panel in panels]
    boxes += [panel.title.get_window_extent() for panel in panels]
    boxes += [panel.xaxis.label.get_window_extent() for panel in panels]
    boxes += [panel.get_legend().get_window_extent() for panel in panels if panel.get_legend()]
    for box, other in combinations(boxes, 2):
        assert not box.overlaps(other)
    for box in boxes:
        assert figure.bbox.containsx(box.x0)
        assert figure.bbox.containsx(box.x1)
        assert figure.bbox.containsy(box.y0)
    assert min(panel.bbox.height for panel in panels) > 1.2 * figure.dpi


def test_files_hold_what_was_drawn_and_are_the_same_again(capsys):
    rng = np.random.default_rng(0)
    for seed in range(8):
        write_csv(Path(f"results/plan/CartPole-v1__a__{seed}.csv"), episodes(rng.normal(9, 1, 300)))
    Path("results/plan/meta.json").write_text("{}", encoding="utf-8")
    written = []
    for output in ("one", "two/three.png"):
        plot.main(plot.Args(runs=(Path("results/plan"),), output=Path(output)))
        prefix = output.removesuffix(".png")
        names = [prefix + end for end in (".png", ".csv", "_table.md", "_table.csv")]
        assert capsys.readouterr().out.splitlines()[-1] == f"wrote {' '.join(names)}"
        written.append([Path(name).read_bytes() for name in names])
    assert written[0][1:] == written[1][1:]
    points = pd.read_csv("one.csv")
    assert list(points)[:2] == ["environment", "setting"]
    assert (len(points), set(points["setting"]), set(points["seeds"])) == (30, {"a"}, {8})
    assert ((points["low"] <= points["mean"]) & (points["mean"] <= points["high"])).all()
    (row,) = pd.read_csv("one_table.csv").to_dict("records")
    assert (row["environment"], row["setting"], row["seeds"]) == ("CartPole-v1", "a", 8)
    assert row["official code mean"] == 497.54
    assert plot.matplotlib.image.imread("one.png").shape[1] == 1800


def test_run_of_a_script_is_drawn_at_once(tmp_path):
    def python(command: str) -> str:
        done = subprocess.run(
            f"{sys.executable} {ROOT}/{command}",
            shell=True,  # it replaces runs/CartPole* by the names
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    python("ppo.py --total-timesteps 5000")
    output = python("benchmark/plot.py runs/CartPole*")
    assert output.splitlines()[2].startswith("| CartPole-v1 | ppo | 4.")
    assert output.splitlines()[-1] == "wrote plot.png plot.csv plot_table.md plot_table.csv"
    assert len(pd.read_csv("plot.csv")) > 10


# Bad input

HEADER = "step,return,length,seconds\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("CartPole-v1__a__1.csv", "", "not a result file"),
        ("CartPole-v1__a__1.csv", "a,b\n1,2\n", "not a result file"),
        ("CartPole-v1__a__1.csv", "return,step,length,seconds\n1,2,3,4\n", "not a result file"),
        ("CartPole-v1__a__1.csv", HEADER + "1,2,3,4,5\n" * 4, "not a result file"),
        ("CartPole-v1__a__1.csv", HEADER + "1,2,3,x\n", "not a result file"),
        ("CartPole-v1__a__1.csv", HEADER + "1,2,3,4\n1,2\n", "not a result file"),
        ("CartPole-v1__a__1.csv", "\0\udcff", "not a result file"),
        ("CartPole-v1__a__1.csv", HEADER, "no episode has finished; train longer"),
        ("CartPole-v1__a__1.csv", HEADER + "10,nan,10,1\n", "not finite"),
        ("returns.csv", HEADER + "10,1,10,1\n", "ENVIRONMENT__SETTING__SEED.csv"),
        ("CartPole-v1__a__1__5/notes.txt", "", "no TensorBoard log"),
        ("CartPole-v1__a__1__5/events.out.tfevents.1", "", "no episode has finished"),
        ("CartPole-v1__a__1__5/events.out.tfevents.1", "garbage " * 99, "no episode has finished"),
        ("mine/events.out.tfevents.1", "", "no run folders and no result files"),
        ("runs/notes.txt", "", "no run folders and no result files"),
        ("", "", "there is no such run"),
    ],
)
def test_bad_run_is_skipped_with_one_line(name, content, message, capsys):
    bad = Path(name.split("/")[0] or "runs/CartPole*")
    if name:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(SystemExit) as stopped:
        plot.main(plot.Args(runs=(bad,)))
    assert stopped.value.code.startswith("nothing to draw: give run folders")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"skipped {bad}: ")
    assert message in line
    assert not Path("plot.png").exists()

    # Beside a good one, it does no harm.
    write_csv(Path("good/CartPole-v1__a__2.csv"), episodes(np.ones(50)))
    plot.main(plot.Args(runs=(bad, Path("good"))))
    assert Path("plot.png").exists()


def test_output_that_cannot_be_written_is_one_line():
    write_csv(Path("CartPole-v1__a__2.csv"), episodes(np.ones(50)))
    Path("file").touch()
    with pytest.raises(SystemExit, match=r"cannot write file/plot: .*; choose another --output"):
        plot.main(plot.Args(runs=(Path("CartPole-v1__a__2.csv"),), output=Path("file/plot")))
