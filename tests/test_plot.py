"""benchmark/plot.py and tables.py: curves and tables with known answers, and what was published."""

import csv
import lzma
from itertools import combinations
from pathlib import Path

import matplotlib.style
import numpy as np
import pandas as pd
import plot
import pytest
import tables
from episodes import write_csv
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[1]


def episodes(returns, length: int = 10, steps_per_second: float = 10.0) -> pd.DataFrame:
    """Return a run of one environment in which all episodes have the same length."""
    steps = length * np.arange(1.0, len(returns) + 1)
    seconds = steps / steps_per_second
    columns = {"step": steps, "return": returns, "length": length, "seconds": seconds}
    return pd.DataFrame(columns).astype(float)


def run(content: pd.DataFrame, setting: str = "a", environment: str = "CartPole-v1") -> plot.Run:
    return plot.Run(environment, setting, 1, Path("runs/x"), content)


def own_bootstrap(scores: np.ndarray) -> np.ndarray:
    rng = np.random.default_rng(1)
    draws = scores[rng.integers(len(scores), size=(20_000, len(scores)))]
    return np.percentile(draws.mean(axis=1), [2.5, 97.5])


def drawn(groups: dict[str, plot.Settings]) -> Figure:
    with matplotlib.style.context(plot.STYLE):
        figure = plot.draw(groups)
        FigureCanvasAgg(figure).draw()
    return figure


# Curves


def test_curve_of_constant_returns_is_constant_and_its_interval_has_no_width():
    points = plot.curve([run(episodes(np.full(2000, 7.0))) for _ in range(3)])
    np.testing.assert_allclose(points, 7.0)
    np.testing.assert_allclose(points.index, np.arange(100, 20_000, 200))


def test_curve_of_linear_returns_is_their_line_in_windows_of_ten_episodes():
    # Those that end in a window (0, 200] do so at 105 on average: on an edge they count before it.
    points = plot.curve([run(episodes(3.0 * 10 * np.arange(1, 2001)))])
    np.testing.assert_allclose(points["mean"], 3 * (points.index + 5))
    assert points.low.isna().all()  # one seed has no interval
    points = plot.curve([run(episodes(np.arange(400.0)))])
    np.testing.assert_allclose(points["mean"], np.arange(40) * 10 + 4.5)


def test_window_has_the_mean_of_its_episodes_and_an_empty_one_lies_between_its_neighbours():
    content = episodes(np.arange(300.0))
    content = content[(content.step <= 1000) | (content.step > 2000)]
    means = plot.window_means(content, np.array([0, 100, 1000, 2000, 3000, 4000]))
    np.testing.assert_allclose(means, [4.5, 54.5, (54.5 + 249.5) / 2, 249.5, np.nan])


def test_curve_has_the_interval_of_the_seeds_at_every_point():
    finals = np.random.default_rng(0).normal(100, 20, size=12)
    # Twice as high in the second half
    points = plot.curve([run(episodes(np.repeat([final, 2 * final], 500))) for final in finals])
    points = points.div(np.repeat([1, 2], 50), axis=0)
    low, high = own_bootstrap(finals)
    np.testing.assert_allclose(points["mean"], finals.mean())
    np.testing.assert_allclose(points.low, low, atol=0.1 * (high - low))
    np.testing.assert_allclose(points.high, high, atol=0.1 * (high - low))


def test_unfinished_seed_counts_as_far_as_it_came():
    runs = [run(episodes(np.full(2000, 1.0))), run(episodes(np.full(1000, 3.0)))]
    points = plot.curve(runs)
    early = points.index < 10_000
    assert (len(points), early.sum()) == (100, 50)
    np.testing.assert_allclose(points["mean"], np.where(early, 2.0, 1.0))
    assert (points.low.isna() == ~early).all()
    assert plot.cells("CartPole-v1", "a", runs)[:2] == ["10k to 20k", "2"]


# Tables


def test_row_has_the_mean_and_the_interval_of_the_last_hundred_episodes():
    finals = np.random.default_rng(0).normal(50, 5, size=10)
    runs = [
        run(episodes(np.append(np.full(300, -1e6), np.full(100, final)), steps_per_second=5))
        for final in finals
    ]
    steps, seeds, cell, minutes, speed, *others = plot.cells("CartPole-v1", "a", runs)
    mean, low, high = [float(word.strip("()")) for word in cell.replace(" to ", " ").split()]
    assert mean == pytest.approx(finals.mean(), abs=0.051)
    expected = own_bootstrap(finals)
    assert (low, high) == pytest.approx(expected, abs=0.05 + 0.1 * np.diff(expected)[0])
    assert (steps, seeds, minutes, speed) == ("4k", "10", f"{4000 / 5 / 60:.1f}", "5")
    assert others == ["497.5 ± 4.0 (500k)", "490.0 ± 6.1 (500k)"]
    # A shared network has published results of its own, and MountainCar's has none.
    assert plot.cells("CartPole-v1", "shared", runs)[-2:] == ["202.9 (500k)", "284.0 (500k)"]
    assert plot.cells("MountainCar-v0", "shared", runs)[-2:] == ["", ""]
    assert plot.cells("CartPole-v1", "a", runs[:1])[2] == plot.number(finals[0])  # one seed


def test_numbers_are_short():
    steps = [0, 500, 1500, 499_712, 999_712, 1e7]
    assert " ".join(map(plot.short, steps)) == "0 500 1.5k 500k 1M 10M"
    assert " ".join(map(plot.number, [2465.2, 490.26, 0.534])) == "2465 490.3 0.53"


def test_tables_of_results_are_up_to_date():
    text = tables.PAGE.read_text(encoding="utf-8")
    assert text == tables.page(), "run: python benchmark/tables.py"


def test_a_milestone_is_the_mean_of_the_last_100_games_until_then():
    """Recomputed from the file with the csv module alone."""
    path = tables.RESULTS / "atari" / "Breakout-v5__ppo_atari_envpool__1.csv.xz"
    with lzma.open(path, "rt", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if int(row["step"]) <= 1_000_000]
    mean = sum(float(row["return"]) for row in rows[-100:]) / 100
    assert f"| seed 1 | {mean:.1f} | " in tables.milestones()


# What belongs together


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("CartPole-v1__ppo__1__1795565255", ("CartPole-v1", "ppo", 1)),
        ("CartPole-v1__ppo__12__1795565255-2", ("CartPole-v1", "ppo", 12)),
        ("ALE-Breakout-v5__my__own__3__4__1795565255", ("ALE-Breakout-v5", "my__own__3", 4)),
        ("Hopper-v5__no__mask__3", ("Hopper-v5", "no__mask", 3)),
        ("Hopper-v5__no__mask__3.csv.xz", ("Hopper-v5", "no__mask", 3)),
    ],
)
def test_name_of_a_run_is_split_from_both_ends(name, expected):
    environment, setting, seed = plot.NAME.fullmatch(name).groups()[:3]
    assert (environment, setting, int(seed)) == expected


def test_folders_are_searched_and_the_newest_run_of_the_same_seed_counts():
    times = ("1795565255-10", "1795565255-2", "1795565255", "1795565254-3")
    names = [f"CartPole-v1__a__1__{time}" for time in times] + ["CartPole-v1__a__2__1795565255"]
    for name in names:
        Path("runs", name).mkdir(parents=True)
    assert [path.name for path in plot.find((Path("runs"),))] == [names[0], names[-1]]
    with pytest.raises(SystemExit, match="is no run"):
        plot.find((Path("notes"),))


def test_same_setting_in_two_folders_is_two_settings():
    runs = [run(episodes([1.0])), run(episodes([1.0]))]
    assert list(plot.group(runs)["CartPole-v1"]) == ["a"]
    runs[1].path = Path("classic/x")
    assert list(plot.group(runs)["CartPole-v1"]) == ["runs/a", "classic/a"]


# Published results


@pytest.mark.parametrize(
    ("environment", "returns"),
    [("Breakout-v5", [18, 42, 92, 142, 172]), ("Pong-v5", [-11.4, 10.0, 17.1, 18.9, 19.5])],
)
def test_published_curves_pass_through_the_published_milestones(environment, returns):
    _, cleanrl = plot.published("curves", environment, "default")
    milestones = np.interp(np.arange(1, 6) * 1e6, cleanrl["steps"], cleanrl["returns"])
    np.testing.assert_allclose(milestones, returns, atol=0.5 if returns[0] == 18 else 0.05)


@pytest.mark.parametrize("kind", ["returns", "curves"])
def test_every_published_result_has_its_source_and_one_of_each_code_is_drawn(kind):
    for entry in plot.PUBLISHED[kind]:
        assert "github" in entry["source"]
        codes = [e["code"] for e in plot.published(kind, entry["environment"], entry["network"])]
        assert codes == [code for code in plot.CODES if code in codes]


@pytest.mark.parametrize(
    ("environment", "versions"),
    [
        ("HalfCheetah-v5", ["HalfCheetah-v2", "HalfCheetah-v4"]),
        ("ALE/Breakout-v5", ["BreakoutNoFrameskip-v4"] * 2),
        ("MountainCarContinuous-v0", []),
        ("HumanoidStandup-v5", []),
        ("mypackage-CartPole-v1", []),
    ],
)
def test_published_twin_of_an_environment(environment, versions):
    found = plot.published("returns", environment, "default")
    assert [entry["environment"] for entry in found] == versions


def test_a_published_curve_goes_as_far_as_the_runs_and_no_further():
    """Breakout's has 12.24 and 14.57 on both sides of 700,000, and ends at 10M."""
    for longest, end in ((700, 13.405), (100, np.nan), (20_000, np.nan)):
        own = run(episodes(np.linspace(0, 10, longest), length=1000), "mine", "Breakout-v5")
        (panel,) = drawn({"Breakout-v5": {"mine": [own]}}).axes
        official = panel.get_lines()[1]
        assert official.get_label() == "official code"
        assert official.get_xdata()[-1] == 1000 * longest
        assert official.get_ydata()[-1] == pytest.approx(end, abs=1e-3, nan_ok=True)
        assert panel.get_title() == "Breakout-v5, 1\u00a0seed\nbeside BreakoutNoFrameskip-v4"


def test_a_published_final_return_is_drawn_beside_runs_that_are_that_far():
    for steps, lines in ((1_000_000, 2), (500_000, 1)):
        own = run(episodes(np.zeros(steps // 1000), length=1000), "a", "Pusher-v5")
        (panel,) = drawn({"Pusher-v5": {"a": [own]}}).axes
        assert len(panel.get_lines()) == lines
    own = run(episodes(np.zeros(700), length=1000), "ppo_atari_lstm", "Breakout-v5")
    (panel,) = drawn({"Breakout-v5": {"ours": [own]}}).axes  # known by the setting, not the label
    assert panel.get_lines()[1].get_label() == "official code, LSTM"


# Figures


def test_nothing_overlaps_and_one_legend_serves_all():
    environments = ("CartPole-v1", "Hopper-v5", "HalfCheetah-v5", "Breakout-v5", "Walker2d-v5")
    content = episodes(np.linspace(0, 3000, 1000), length=1000)
    settings = {"ppo_continuous_action": [run(content)] * 2, "another": [run(content)]}
    groups = dict.fromkeys(environments, settings)
    groups["CartPole-v1"] = {"another": [run(content)]}
    figure = drawn(groups)
    panels = [panel for panel in figure.axes if panel.get_visible()]
    titles = [panel.get_title() for panel in panels]
    assert titles[:2] == [
        "CartPole-v1, 1\u00a0seed",
        "Hopper-v5, 1 or 2\u00a0seeds\nbeside Hopper-v2",
    ]
    (legend,) = figure.legends
    labels = [text.get_text() for text in legend.get_texts()]
    assert labels == ["another", "ppo_continuous_action", *plot.CODES]
    boxes = [panel.bbox for panel in panels]
    boxes += [panel.title.get_window_extent() for panel in panels]
    boxes += [panel.xaxis.label.get_window_extent() for panel in panels]
    boxes += [legend.get_window_extent()]
    for box, other in combinations(boxes, 2):
        assert not box.overlaps(other)


def test_results_and_runs_are_drawn_from_the_command_line(run_program, capsys):
    for seed in range(2):
        write_csv(Path(f"classic/CartPole-v1__a__{seed}.csv.xz"), episodes(np.full(300, 9.0)))
    Path("classic/CartPole-v1__a__1.json").touch()
    Path("runs/CartPole-v1__b__1__1795565255").mkdir(parents=True)  # nothing is logged yet
    assert run_program(ROOT / "benchmark/plot.py", "classic", "runs", "--output", "x.png") == 0
    out, err = capsys.readouterr()
    assert "no episode has finished: runs/CartPole-v1__b__1" in err
    header, _, row, *rest = out.splitlines()
    assert header.startswith("| environment | setting | steps | seeds |")
    assert row.startswith("| CartPole-v1 | a | 3k | 2 | 9.00 (9.00 to 9.00) |")
    assert rest == ["", "wrote x.png"]
    assert matplotlib.image.imread("x.png").shape[1] == 1350


def test_file_with_other_columns_is_refused():
    Path("CartPole-v1__a__1.csv.xz").write_bytes(lzma.compress(b"a,b\n1,2\n"))
    with pytest.raises(KeyError, match="step"):
        plot.read(Path("CartPole-v1__a__1.csv.xz"))
