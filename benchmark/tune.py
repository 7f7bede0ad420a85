"""Search for better flags of a script: Optuna proposes them, Ray trains one trial per core.

    python benchmark/tune.py ppo.py --env CartPole-v1:0:500 --env Acrobot-v1:-500:-80 \\
        --search learning-rate=log:1e-4:1e-2 --search num-steps=64,128 --search ent-coef=0.0:0.02

Each --env is ID:LOW:HIGH, with the returns that count as 0 and as 1. Each --search is one of

    FLAG=LOW:HIGH        numbers between the two; whole ones if both are written as such
    FLAG=log:LOW:HIGH    the same on a log scale: 0.001 to 0.01 is as likely as 0.01 to 0.1
    FLAG=A,B,C           one of these; true,false for a switch; a single one sets the flag

A trial trains all environments with seed 1, then with seed 2, and so on. Its score is the mean of
the normalised returns of the last 100 episodes; a run that ends with an error makes it 0. A trial
that is worse than the median of the others after a seed ends there. The best of many trials is
partly luck: train its flags on other seeds before you believe it.

Ctrl-C stops; started again with the same arguments, the search goes on. It is kept in
benchmark/results/tune_NAME: study.journal, which Optuna reads, trials.csv, and trials.png.
"""

import os
import shlex
import sys
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import optuna
import ray
import run
import tyro
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.storages.journal import JournalFileBackend, JournalStorage
from optuna.trial import TrialState
from optuna.visualization.matplotlib import plot_slice


@dataclass
class Args:
    script: tyro.conf.Positional[str]  # to train with
    env: list[str]  # ID:LOW:HIGH, see above
    search: list[str]  # FLAG=VALUES, see above
    seeds: int = 3  # runs per environment
    trials: int = 30  # settings to try
    total_timesteps: int = 100_000  # steps of each run
    name: str | None = None  # of the search; by default the script's
    address: str | None = None  # Ray cluster to use: HOST:PORT, or auto


def goal_of(text: str) -> tuple[str, float, float]:
    env_id, low, high = text.rsplit(":", 2)
    return env_id, float(low), float(high)


def distribution_of(values: str) -> BaseDistribution:
    if ":" not in values:
        return CategoricalDistribution(values.split(","))
    log = values.startswith("log:")
    low, high = values.removeprefix("log:").split(":")
    try:
        return IntDistribution(int(low), int(high), log)
    except ValueError:
        return FloatDistribution(float(low), float(high), log)


def flags_of(params: dict) -> str:
    """Return the values of a trial as flags of the script."""
    words = []
    for name, value in params.items():
        if value in ("true", "false"):
            words.append(f"--{name}" if value == "true" else f"--no-{name}")
        else:
            words += [f"--{name}", f"{value:.4g}" if isinstance(value, float) else str(value)]
    return shlex.join(words)


def results_of(name: str) -> Path:
    return run.RESULTS / f"tune_{name}"


def open_study(name: str) -> optuna.Study:
    storage = JournalStorage(JournalFileBackend(str(results_of(name) / "study.journal")))
    # The constant liar keeps trials that run at the same time apart.
    sampler = optuna.samplers.TPESampler(constant_liar=True)
    return optuna.create_study(
        storage=storage, sampler=sampler, study_name=name, direction="maximize", load_if_exists=True
    )


def score(trial: optuna.Trial, args: Args) -> float:
    """Train all runs of a trial, one after the other."""
    setting = run.Setting(args.script, [], [], args.total_timesteps, flags_of(trial.params))
    number = trial.user_attrs.get("number", trial.number)
    scores = []
    for seed in range(1, args.seeds + 1):
        if trial.should_prune():
            raise optuna.TrialPruned
        for env_id, low, high in map(goal_of, args.env):
            job = run.make_job(f"tune_{args.name}", f"trial{number}", setting, env_id, seed)
            try:
                last_100 = run.train(job)["return"][-100:].mean()
            except run.Failed as error:
                trial.set_user_attr("error", str(error))
                return 0.0
            trial.set_user_attr(f"{env_id} seed {seed}", round(last_100, 2))
            scores.append(max(0.0, (last_100 - low) / (high - low)))
        trial.report(float(np.mean(scores)), step=seed)
    return float(np.mean(scores))


@ray.remote
def work(args: Args, distributions: dict[str, BaseDistribution], root: str) -> str:
    """Run one trial, and return a line about it."""
    run.enter_worker(root)
    study = open_study(args.name)
    trial = study.ask(distributions)
    try:
        told = study.tell(trial, score(trial, args))
    except optuna.TrialPruned:
        told = study.tell(trial, state=TrialState.PRUNED)
    error = told.user_attrs.get("error", "")
    state = told.state.name.lower()
    return f"trial {told.number}, {state}: {told.value:.3f} {flags_of(told.params)} {error}"


def main(args: Args) -> None:
    args.name = args.name or Path(args.script).stem
    distributions = {}
    for text in args.search:
        flag, _, values = text.partition("=")
        distributions[flag] = distribution_of(values)
    results_of(args.name).mkdir(parents=True, exist_ok=True)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = open_study(args.name)
    asked = asdict(args) | {"trials": None, "address": None}  # these may change
    if study.user_attrs.get("arguments", asked) != asked:
        sys.exit(f"error: {results_of(args.name)} is another search: give this one a --name")
    study.set_user_attr("arguments", asked)
    study.set_user_attr("circumstances", run.circumstances(args.script))
    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        # It was stopped: its runs go on where they are, under the number of the folders.
        number = trial.user_attrs.get("number", trial.number)
        study.tell(trial.number, state=TrialState.FAIL)
        study.enqueue_trial(trial.params, user_attrs={"number": number})

    over = study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED))
    left = range(len(over), args.trials)
    if left:
        run.start_ray(args.address)
    tasks = {work.remote(args, distributions, os.getcwd()): number for number in left}
    for _, line, error in run.as_they_end(tasks):
        print(line or f"error: {error}", flush=True)
    study.trials_dataframe().to_csv(results_of(args.name) / "trials.csv", index=False)
    searched = [flag for flag, values in distributions.items() if not values.single()]
    plot_slice(study, searched, target_name="score")
    plt.savefig(results_of(args.name) / "trials.png", bbox_inches="tight")
    best = study.best_trial
    print(f"best, trial {best.number}: {best.value:.3f} {flags_of(best.params)}")


if __name__ == "__main__":
    main(tyro.cli(tyro.conf.UseAppendAction[Args], description=__doc__))
