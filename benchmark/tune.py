"""Search for better flags of a script: Optuna proposes, Ray Tune trains and ends bad trials early.

    python benchmark/tune.py ppo.py --env CartPole-v1:0:500 --env Acrobot-v1:-500:-80 \\
        --search learning-rate=log:1e-4:1e-2 --search num-steps=64,128,256 \\
        --search ent-coef=0:0.02 --seeds 3 --trials 30 --total-timesteps 100000

Each --env is ENVIRONMENT:LOW:HIGH, with the returns that count as 0 and as 1; lower ones count as 0
too. Each --search is one
of these, for any flag of the script:

    FLAG=LOW:HIGH        numbers between the two; whole numbers if the flag takes those
    FLAG=log:LOW:HIGH    the same, with as many tries between 0.001 and 0.01 as up to 0.1
    FLAG=A,B,C           one of these; true,false for a switch; a single one sets the flag

A trial trains every environment with seed 1, then with seed 2, and so on, one run at a time on one
core. Its score is the mean of the normalised returns, each that of the last 100 episodes. When every
environment has been trained once, and again when twice, four times, ... as much is done, a trial ends
if it is worse than the median of the trials before it (asynchronous successive halving). The first
trial has the script's own defaults if they lie within the search. The best score is a little too good,
being the best of many: train its flags on other seeds before you believe it.

Ctrl-C stops; started again with the same arguments, the search goes on. (Only the halving begins
anew: it compares the trials that follow with each other.) The search's state is in runs/.tune/, and
trials.csv, trials.json and trials.png go to benchmark/results/tune_NAME/ after every trial. All paths
begin in the current folder.
"""

import argparse
import csv
import json
import logging
import os
import re
import shlex
import signal
import sys
import warnings
from dataclasses import asdict, dataclass, fields
from pathlib import Path

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the imports below: no traceback

from run import (
    LOGS,
    NAME,
    RESULTS,
    Job,
    check_flags,
    circumstances,
    fail,
    find_folder,
    load_script,
    say,
    start_ray,
    train,
    write_json,
)

# isort: split
import matplotlib
import numpy as np
import optuna
import ray
from episodes import read_run
from filelock import FileLock, Timeout
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch

matplotlib.use("Agg")
import matplotlib.pyplot as plt

STATES = Path("runs/.tune")
# State of a trial: colour and marker in the picture. The colours (Okabe and Ito's) and the markers
# differ for colour-blind readers, too.
LOOKS = {"finished": ("#0072B2", "o"), "pruned": ("#E69F00", "x"), "error": ("#000000", "v")}


@dataclass(frozen=True)
class Search:
    """What was asked for; a search that goes on must be the same."""

    script: str
    envs: list[str]
    search: list[str]
    seeds: int
    trials: int
    total_timesteps: int


@dataclass(frozen=True)
class Goal:
    """An environment, and the returns that count as 0 and as 1."""

    env_id: str
    low: float
    high: float


# -------------------------------------------------------------------------------------------------
# The arguments


def read_goal(text: str) -> Goal:
    env_id, *bounds = text.rsplit(":", 2)
    try:
        low, high = map(float, bounds)
    except ValueError:
        fail(f"--env {text}: write ENVIRONMENT:LOW:HIGH, as in CartPole-v1:0:500")
    if not low < high:
        fail(f"--env {text}: the first return counts as 0, the second one, higher, as 1")
    return Goal(env_id, low, high)


def read_domain(text: str, module) -> tuple[str, object]:
    """Return the name of a flag and what Tune shall choose its value from."""
    name, _, values = text.partition("=")
    name = name.removeprefix("--").replace("_", "-")
    types = {field.name.replace("_", "-"): field.type for field in fields(module.Args)}
    if name not in types:
        fail(f"--search {text}: the script has no flag --{name}")
    if not values:
        fail(f"--search {text}: say which values, as in learning-rate=log:1e-4:1e-2, see --help")
    if ":" not in values:
        return name, tune.choice(values.split(","))
    log = values.startswith("log:")
    number = int if types[name] in (int, "int") else float
    try:
        low, high = map(number, values.removeprefix("log:").split(":"))
    except ValueError:
        fail(f"--search {text}: write LOW:HIGH or log:LOW:HIGH with numbers, or A,B,C")
    if not low < high or (log and low <= 0):
        above = "above 0 and " if log else ""
        fail(f"--search {text}: the first number must be {above}less than the second")
    if number is int:
        high += 1  # Tune leaves the end out
        return name, tune.lograndint(low, high) if log else tune.randint(low, high)
    return name, tune.loguniform(low, high) if log else tune.uniform(low, high)


def flags_of(config: dict) -> list[str]:
    """Return the values of a trial as flags."""
    flags = []
    for name, value in config.items():
        if value in ("true", "false"):
            flags.append(f"--{name}" if value == "true" else f"--no-{name}")
        else:
            flags += [f"--{name}", text_of(value)]
    return flags


def text_of(value) -> str:
    """Write a value as it is given to the script."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def limits(domain) -> list:
    """Return the choices, or the first and the last number."""
    if hasattr(domain, "categories"):
        return domain.categories
    last = domain.upper - 1 if isinstance(domain.upper, int) else domain.upper
    return [domain.lower, last]


def defaults(space: dict, module) -> list[dict]:
    """Return the script's own values as the one setting to begin with, if the search has them."""
    config = {}
    args = module.Args()
    for name, domain in space.items():
        default = getattr(args, name.replace("-", "_"))
        choices = getattr(domain, "categories", None)
        if choices:
            fixed = len(choices) == 1
            same = [value for value in choices if fixed or is_same(value, default)]
        else:
            low, high = limits(domain)
            same = [default] if default is not None and low <= default <= high else []
        if not same:
            return []
        config[name] = same[0]
    return [config]


def is_same(text: str, default) -> bool:
    """Whether a choice, as it was typed, is a flag's default."""
    if type(default) in (int, float):
        return re.fullmatch(r"[\d.e+-]+", text) is not None and float(text) == default
    return text.lower() == str(default).lower()


# -------------------------------------------------------------------------------------------------
# One trial, in a worker of Ray


def trial(config: dict, search: Search, name: str, folder: str) -> None:
    """Train all environments with all seeds, and report the score after each of these runs."""
    os.chdir(folder)
    scores = []
    result = {"error": "", "minutes": 0.0}
    for seed in range(1, search.seeds + 1):
        for goal in map(read_goal, search.envs):
            job = Job(
                script=Path(search.script),
                env_id=goal.env_id,
                exp_name=f"tune.{name}.{tune.get_context().get_trial_id()}",
                seed=seed,
                flags=tuple(flags_of(config)),
                steps=search.total_timesteps,
            )
            error = train(job, report=lambda step, status: None)
            if not error:
                episodes = read_run(find_folder(job))
                if len(episodes.returns) == 0:
                    error = f"no episode of {goal.env_id} finished: raise --total-timesteps"
            if error:  # such as a loss that became NaN: as bad as it gets
                tune.report(result | {"score": 0.0, "runs": len(scores), "error": error})
                return
            mean = float(episodes.returns[-100:].mean())
            scores.append(max(0.0, (mean - goal.low) / (goal.high - goal.low)))
            result[f"return {goal.env_id} seed {seed}"] = round(mean, 2)
            result["minutes"] += float(episodes.seconds[-1]) / 60
            tune.report(result | {"score": float(np.mean(scores)), "runs": len(scores)})


# -------------------------------------------------------------------------------------------------
# All trials


class Results(tune.Callback):
    """Writes the results after every trial, and one line about it."""

    def __init__(self, search: Search, name: str, facts: dict):
        self.search = search
        self.name = name
        self.facts = facts

    def on_trial_complete(self, iteration, trials, trial, **info) -> None:
        report = make_report(self.search, self.facts, trials, just_ended=trial)
        write_report(self.name, report)
        row = report["trials"][in_order(trials).index(trial)]
        state = "" if row["state"] == "finished" else f" ({row['state']})"
        best = best_of(report)
        so_far = f", best {best['score']:.3f} in trial {best['trial']}" if best else ""
        count = f"trial {row['trial']} of {self.search.trials}"
        say(f"{count}: score {row['score']:.3f}{state}{so_far}; {row['flags']} {row['error']}")

    on_trial_error = on_trial_complete


def make_report(search: Search, facts: dict, trials: list, just_ended=None) -> dict:
    """Return everything about a search; the trials in the order of their proposals."""
    rows = []
    for number, tried in enumerate(in_order(trials), start=1):
        result = tried.last_result or {}
        runs = result.get("runs", 0)
        error = result.get("error", "")
        if tried.status == "ERROR":
            error = "its process died again and again, or its results cannot be read: see runs/"
        if error:
            state = "error"
        elif runs == search.seeds * len(search.envs):
            state = "finished"
        elif tried.status == "TERMINATED" or tried is just_ended:  # by the scheduler
            state = "pruned"
        else:
            state = "unfinished"
        rows.append(
            {
                "trial": number,
                "state": state,
                "score": round(result.get("score", 0.0), 4),
                "runs": runs,
                "minutes": round(result.get("minutes", 0.0), 3),
                "ended": result.get("timestamp", 0),
                "error": error,
                "flags": shlex.join(flags_of(tried.config)),
                "values": {name: text_of(value) for name, value in tried.config.items()},
                "returns": {
                    key.removeprefix("return "): value
                    for key, value in result.items()
                    if key.startswith("return ")
                },
            }
        )
    return {"arguments": asdict(search)} | facts | {"trials": rows}


def in_order(trials: list) -> list:
    """Sort trials as they were proposed: Tune puts those that it takes up again elsewhere."""
    return sorted(trials, key=lambda tried: int(tried.experiment_tag.split("_")[0]))


def best_of(report: dict) -> dict | None:
    """Return the best of the trials that have all their runs."""
    whole = [row for row in report["trials"] if row["state"] == "finished"]
    return max(whole, key=lambda row: row["score"], default=None)


def write_report(name: str, report: dict) -> None:
    folder = RESULTS / f"tune_{name}"
    write_json(folder / "trials.json", report)

    flat = []
    for row in report["trials"]:
        nested = {"flags": None, "values": None, "returns": None}
        plain = {key: value for key, value in row.items() if key not in nested}
        flat.append(plain | row["values"] | row["returns"])
    columns = dict.fromkeys(column for row in flat for column in row)
    temporary = folder / "trials.tmp"
    with temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(flat)
    temporary.replace(folder / "trials.csv")
    if report["trials"]:
        draw(report, folder / "trials.png")


def draw(report: dict, path: Path) -> None:
    """Draw the score of every trial over time, and against every flag that was searched."""
    rows = [row for row in report["trials"] if row["state"] in LOOKS]
    rows.sort(key=lambda row: row["ended"])
    minutes = np.cumsum([row["minutes"] for row in rows])
    searched = []
    for text in report["arguments"]["search"]:
        name, _, values = text.partition("=")
        if ":" in values or "," in values:
            searched.append((name.removeprefix("--").replace("_", "-"), values))

    columns = max(1, min(4, len(searched)))
    lines = -(-len(searched) // columns)
    figure = plt.figure(figsize=(11, 4 + 2.9 * lines), layout="constrained")
    grid = figure.add_gridspec(1 + lines, columns, height_ratios=[1.3] + [1] * lines)
    top = figure.add_subplot(grid[0, :])
    scatter(top, minutes, rows)
    whole = [i for i, row in enumerate(rows) if row["state"] == "finished"]
    if whole:
        best = np.maximum.accumulate([rows[i]["score"] for i in whole])
        times = [*minutes[whole], minutes[-1]]
        top.step(times, [*best, best[-1]], where="post", color="#009E73", label="best so far")
    if report["first_trial_has_defaults"] and report["trials"][0]["state"] == "finished":
        score = report["trials"][0]["score"]
        top.axhline(score, color="0.5", linestyle=":", label="the script's defaults")
    top.set(xlabel="minutes of training, all trials together", ylabel="score")
    if rows:
        looks = {"loc": "outside upper center", "ncols": 5, "frameon": False}
        figure.legend(*top.get_legend_handles_labels(), title=title_of(report), **looks)

    for number, (name, values) in enumerate(searched):
        axes = figure.add_subplot(grid[1 + number // columns, number % columns], sharey=top)
        if ":" in values:
            if values.startswith("log:"):
                axes.set_xscale("log")
            scatter(axes, [float(row["values"][name]) for row in rows], rows)
        else:
            choices = values.split(",")
            places = np.array([choices.index(row["values"][name]) for row in rows], dtype=float)
            # A little apart, so that trials with the same value do not hide each other
            scatter(axes, places + np.linspace(-0.15, 0.15, len(rows)), rows)
            axes.set_xticks(range(len(choices)), choices)
            axes.set_xlim(-0.5, len(choices) - 0.5)
        axes.set_xlabel(f"--{name}")
        if number % columns == 0:
            axes.set_ylabel("score")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def title_of(report: dict) -> str:
    arguments = report["arguments"]
    names = ", ".join(read_goal(text).env_id for text in arguments["envs"])
    seeds = "1 seed" if arguments["seeds"] == 1 else f"{arguments['seeds']} seeds"
    return f"{arguments['script']}, {names}: {arguments['total_timesteps']:,} steps, {seeds}"


def scatter(axes, x, rows: list[dict]) -> None:
    """Draw the score of each trial, with its state."""
    for state, (color, marker) in LOOKS.items():
        chosen = [i for i, row in enumerate(rows) if row["state"] == state]
        if chosen:
            scores = [rows[i]["score"] for i in chosen]
            places = [x[i] for i in chosen]
            axes.scatter(places, scores, color=color, marker=marker, label=f"{state} trial")
    axes.grid(alpha=0.3)


def say_best(name: str, report: dict) -> int:
    """Print the best setting as a command, and return the exit code."""
    best = best_of(report)
    if best is None:
        errors = [row["error"] for row in report["trials"] if row["error"]]
        say(f"error: no trial finished: {errors[0] if errors else 'raise --trials'}", sys.stderr)
        return 1
    arguments = report["arguments"]
    command = [
        *("python", arguments["script"]),
        *("--env-id", read_goal(arguments["envs"][0]).env_id),
        *("--total-timesteps", str(arguments["total_timesteps"])),
    ]
    say(f"all {len(report['trials'])} trials: {RESULTS / f'tune_{name}' / 'trials.png'}")
    say(f"best: trial {best['trial']}, score {best['score']:.3f}")
    say(f"{shlex.join(command)} {best['flags']}")
    return 0


def earlier_report(search: Search, name: str) -> dict | None:
    """Return what is written of this search; end if another one has its name."""
    path = RESULTS / f"tune_{name}" / "trials.json"
    if not path.exists():
        return None
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        same = report["arguments"] == asdict(search)
    except (ValueError, KeyError, TypeError) as error:
        fail(f"{path} is damaged, restore it from git or delete it: {error}")
    if not same:
        fail(f"{path} is of a search with other arguments: give this one another --name")
    return report


def is_complete(report: dict) -> bool:
    ended = [row for row in report["trials"] if row["state"] != "unfinished"]
    return len(ended) == report["arguments"]["trials"]


def parse_args(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.error = fail
    parser.add_argument("script", help="script to train with")
    parser.add_argument(
        "--env", action="append", required=True, metavar="ENV:LOW:HIGH", help="see above"
    )
    parser.add_argument(
        "--search", action="append", required=True, metavar="FLAG=VALUES", help="see above"
    )
    parser.add_argument("--seeds", type=int, default=3, help="runs per environment (3)")
    parser.add_argument("--trials", type=int, default=30, help="settings to try (30)")
    parser.add_argument(
        "--total-timesteps", type=int, default=100_000, help="steps of each run (100000)"
    )
    parser.add_argument("--name", help="of the search (default: the script's)")
    parser.add_argument("--address", help="Ray cluster to use: HOST:PORT, or auto")
    args = parser.parse_args(argv)
    for name in ("seeds", "trials", "total_timesteps"):
        if getattr(args, name) < 1:
            fail(f"--{name.replace('_', '-')} must be at least 1, not {getattr(args, name)}")
    if args.name is None:
        args.name = Path(args.script).stem
    if not NAME.fullmatch(args.name):
        fail(f"--name {args.name}: write letters, digits and single - or _")
    return args


def main(argv: list[str]) -> int:
    """Search, or go on with the search of this name; return the exit code."""
    args = parse_args(argv)
    search = Search(
        args.script, args.env, args.search, args.seeds, args.trials, args.total_timesteps
    )
    module = load_script(Path(args.script))
    space = {}
    for text in args.search:
        name, domain = read_domain(text, module)
        if name in space:
            fail(f"--search {text}: --{name} is searched twice")
        space[name] = domain
        for value in limits(domain):
            flags = flags_of({name: value})
            check_flags(Path(args.script), module, flags, args.total_timesteps, f"--search {text}")
    for goal in map(read_goal, args.env):
        with module.one_line_errors(goal.env_id):
            module.make_envs(module.Args(env_id=goal.env_id), Path("runs")).close()

    LOGS.mkdir(parents=True, exist_ok=True)
    lock = FileLock(LOGS / f"tune_{args.name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        fail(f"the search {args.name} is under way in another process already")
    report = earlier_report(search, args.name)
    if report and is_complete(report):
        write_report(args.name, report)
        return say_best(args.name, report)
    state = STATES.absolute() / args.name
    can_restore = tune.Tuner.can_restore(state)
    if report and report["trials"] and not can_restore:
        fail(f"the state of this search, {state}, is gone: give the new one another --name")

    first = defaults(space, module)
    facts = circumstances(Path(args.script))
    facts["first_trial_has_defaults"] = bool(first)
    results = Results(search, args.name, facts)
    write_report(args.name, report or make_report(search, facts, []))
    # Quiet: what is worth knowing is in the lines of Results.
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", module="optuna")
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    start_ray(args.address)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # Tune's own takes its place
    signal.signal(signal.SIGTERM, lambda signum, frame: signal.raise_signal(signal.SIGINT))
    trainable = tune.with_parameters(trial, search=search, name=args.name, folder=os.getcwd())
    if can_restore:
        tuner = tune.Tuner.restore(str(state), trainable)
    else:
        tuner = tune.Tuner(
            trainable,
            param_space=space,
            tune_config=tune.TuneConfig(
                metric="score",
                mode="max",
                num_samples=args.trials,
                search_alg=OptunaSearch(points_to_evaluate=first, seed=1),
                scheduler=ASHAScheduler(
                    time_attr="runs",
                    grace_period=len(args.env),
                    max_t=args.seeds * len(args.env),
                    reduction_factor=2,
                ),
            ),
            run_config=tune.RunConfig(
                name=args.name,
                storage_path=str(STATES.absolute()),
                callbacks=[results],
                failure_config=tune.FailureConfig(max_failures=5),
                verbose=0,
            ),
        )
    tuner.fit()
    ray.shutdown()
    report = earlier_report(search, args.name)
    if not is_complete(report):
        command = shlex.join(["python", sys.argv[0], *argv])
        say(f"stopped; to go on: {command}", sys.stderr)
        return 130
    return say_best(args.name, report)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
