"""Many runs and searches: nothing is trained twice, nothing is lost, what is written is what was logged."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
from tensorboard.compat.proto.event_pb2 import SessionLog

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmark"))
import run
import tune
from episodes import read_csv

ROOT = Path(__file__).resolve().parents[1]
BENCHMARK = ROOT / "benchmark"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")

SETTING = f"""
[[settings]]
script = "{ROOT / "ppo.py"}"
env_ids = ["CartPole-v1"]
seeds = [1]
steps = 1_024
"""


# What the tests do with processes


def start(program: str, *arguments: str) -> subprocess.Popen:
    """Start a program of benchmark/ in a session of its own, its output in out.txt and err.txt."""
    with open("out.txt", "w") as out, open("err.txt", "w") as err:
        command = [sys.executable, str(BENCHMARK / program), *arguments]
        return subprocess.Popen(command, stdout=out, stderr=err, start_new_session=True)


def finish(process: subprocess.Popen) -> tuple[int, str, str]:
    """Wait for a program; return its exit code and its output."""
    code = process.wait(timeout=120)
    return code, Path("out.txt").read_text(), Path("err.txt").read_text()


def wait_for(condition: Callable[[], object], seconds: float = 120):
    """Return what `condition` returns as soon as that is something."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if result := condition():
            return result
        time.sleep(0.05)
    raise AssertionError(f"waited {seconds} s: {Path('err.txt').read_text()}")


def processes() -> dict[int, tuple[int, int, str]]:
    """Return parent, session and command line of each process that is not a zombie."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, parent, _, session = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:  # it has just ended
            continue
        if state != "Z":
            found[int(folder.name)] = (int(parent), int(session), command)
    return found


def find_training(session: int, exp_name: str, seed: int) -> int | None:
    """Return the process that trains this seed, if it is running."""
    words = f"--exp-name {exp_name} --seed {seed} "
    for pid, (_, other, command) in processes().items():
        if other == session and words in command:
            return pid
    return None


def none_left(session: int) -> bool:
    return all(other != session for _, other, _ in processes().values())


def starts(folder: Path) -> list[int]:
    """Return the steps at which a run was begun and resumed, from its log."""
    steps = []
    for file in sorted(folder.glob("events.*")):
        for event in LegacyEventFileLoader(str(file)).Load():
            if event.session_log.status == SessionLog.START:
                steps.append(event.step)
    return steps


def assert_equal_to_log(csv: Path, folder: Path) -> None:
    """Compare a CSV to the log as TensorBoard shows it."""
    log = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    log.Reload()
    returns = log.Scalars("charts/episodic_return")
    lengths = log.Scalars("charts/episodic_length")
    episodes = read_csv(csv)
    assert len(episodes.steps) == len(returns) > 5
    np.testing.assert_array_equal(episodes.steps, [event.step for event in returns])
    np.testing.assert_allclose(episodes.returns, [event.value for event in returns], atol=0.005)
    np.testing.assert_array_equal(episodes.lengths, [event.value for event in lengths])
    assert (np.diff(episodes.seconds) >= 0).all()


# Plans


def test_a_plan_goes_on_after_ctrl_c_and_kill_9_and_leaves_its_results():
    steps = 20_000
    good = SETTING.replace("1_024", str(steps)).replace("[1]", "[1, 2]")
    good += 'name = "a"\nflags = "--save-every 1"\n'
    bad = SETTING.replace("CartPole-v1", "NoSuch-v1")
    Path("plan.toml").write_text(good)
    results = Path("benchmark/results/plan")
    keys = {1: "CartPole-v1__a__1", 2: "CartPole-v1__a__2"}  # by seed

    def folder(seed: int) -> Path:
        (only,) = Path("runs").glob(f"CartPole-v1__plan.a__{seed}__*")
        return only

    def step(seed: int) -> int:
        return torch.load(folder(seed) / "checkpoint.pt", weights_only=True)["global_step"]

    program = start("run.py", "plan.toml")
    wait_for(lambda: len(list(Path("runs").glob("*/checkpoint.pt"))) == 2)
    program.send_signal(signal.SIGINT)
    code, _, err = finish(program)
    assert code == 130
    assert "to go on: python" in err
    wait_for(lambda: none_left(program.pid), 10)
    stopped = {seed: step(seed) for seed in keys}
    assert all(0 < value < steps for value in stopped.values())

    # What there is by now
    assert run.main(["plan.toml", "--export"]) == 0
    meta = json.loads((results / "meta.json").read_text())
    for seed, key in keys.items():
        assert not meta[key]["finished"]
        assert_equal_to_log(results / f"{key}.csv", folder(seed))

    # The worker of one run and the training of the other one die, each after it has got further;
    # a run that cannot be made is no reason to stop.
    Path("plan.toml").write_text(good + bad)
    program = start("run.py", "plan.toml")
    for seed in keys:
        wait_for(lambda seed=seed: step(seed) > stopped[seed])
        training = find_training(program.pid, "plan.a", seed)
        parent = processes()[training][0]
        os.kill(parent if seed == 1 else training, signal.SIGKILL)
        wait_for(lambda training=training: training not in processes(), 3)
    code, out, err = finish(program)
    assert code == 1
    assert "plan: 2 of 3 runs are finished" in out
    (error,) = [line for line in err.splitlines() if "error" in line]
    assert "NoSuch-v1 plan.ppo seed 1: NoSuch-v1: Environment `NoSuch` doesn't exist" in error
    wait_for(lambda: none_left(program.pid), 10)

    meta = json.loads((results / "meta.json").read_text())
    assert meta.keys() == set(keys.values())
    for seed, key in keys.items():
        begun, resumed, resumed_again = starts(folder(seed))  # in one folder, the only one
        assert begun == 1
        assert resumed == stopped[seed] + 1 < resumed_again
        assert step(seed) == steps - steps % 512
        assert_equal_to_log(results / f"{key}.csv", folder(seed))
        entry = meta[key]
        assert entry["finished"]
        assert entry["command"].endswith(f"--seed {seed} --total-timesteps 20000 --save-every 1")
        assert entry["steps"] == step(seed)
        assert entry["threads"] == 1
        assert "resumed" not in entry  # with the same code on the same machine
        assert entry["machine"].keys() >= {"cpu", "cores"}
        assert entry["versions"]["torch"] == torch.__version__
        assert entry["versions"].keys() >= {"python", "gymnasium", "numpy", "envpool"}
        assert isinstance(entry["dirty"], bool)
        assert len(entry["commit"]) == 40
        assert entry["minutes"] > 0
        assert entry["steps_per_second"] > 0
        returns = read_csv(results / f"{key}.csv").returns
        assert entry["last_100"] == pytest.approx(returns[-100:].mean(), abs=0.01)

    # A second start does nothing.
    Path("plan.toml").write_text(good)
    before = {path: path.stat().st_mtime_ns for path in Path().rglob("*")}
    assert run.main(["plan.toml"]) == 0
    assert before == {path: path.stat().st_mtime_ns for path in Path().rglob("*")}


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (SETTING + "sedes = 3", "there is no key 'sedes'"),
        (SETTING.replace("ppo.py", "pppo.py"), "there is no script"),
        (SETTING.replace("ppo.py", "benchmark/run.py"), "is no training script"),
        (SETTING + 'flags = "--shared-netwrok"', "does not take `--shared-netwrok`"),
        (SETTING + 'flags = "--gamma big"', "does not take `--gamma big`"),
        (SETTING + 'flags = "--gamma 2"', "--gamma must lie between 0 and 1"),
        (SETTING + 'flags = "--seed 2"', "--seed cannot be among the flags"),
        (SETTING + 'flags = "--exp-name \'x"', "No closing quotation"),
        (SETTING.replace("1_024", "100"), "less than one update"),
        (SETTING.replace("[1]", '["1"]'), "seeds must be whole numbers"),
        (SETTING.replace("[1]", "[1.5]"), "seeds must be whole numbers"),
        (SETTING.replace("[1]", "1"), "seeds must be a list"),
        (SETTING.replace("seeds", "# seeds"), "seeds is missing"),
        (SETTING.replace("[1]", "[]"), "has no runs"),
        (SETTING + 'name = "../x"', "write its name with letters"),
        (SETTING + "stop_at = 2_000", "stop_at must lie between"),
        (SETTING + "threads = 0", "threads must be at least 1"),
        (SETTING + SETTING, "in the plan twice"),
        ("settings = [1]", "begin each setting with"),
        ("[settings]\na = 1", "must consist of"),
        ("steps = = 3", "is not TOML"),
        (None, "cannot read the plan"),
    ],
)
def test_a_bad_plan_ends_in_one_line(plan, message, capsys):
    if plan is not None:
        Path("bad.toml").write_text(plan)
    with pytest.raises(SystemExit) as end:
        run.main(["bad.toml"])
    assert_one_line(end.value.code, capsys, message)
    assert not Path("runs").exists()


def assert_one_line(code: int, capsys, message: str) -> None:
    out, err = capsys.readouterr()
    assert code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1, err
    assert message in err


def test_a_cluster_that_does_not_answer_ends_in_one_line(capsys):
    Path("p.toml").write_text(SETTING)
    with pytest.raises(SystemExit) as end:
        run.main(["p.toml", "--address", "127.0.0.1:1"])
    assert_one_line(end.value.code, capsys, "cannot reach Ray at 127.0.0.1:1")


def test_every_plan_of_this_repository_can_be_read(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    plans = sorted((BENCHMARK / "plans").glob("*.toml"))
    assert len(plans) >= 4
    for plan in plans:
        assert run.read_plan(plan)


def test_a_setting_that_was_changed_is_not_taken_for_the_finished_one(capsys):
    Path("p.toml").write_text(SETTING)
    (job,) = run.read_plan(Path("p.toml"))
    results = Path("benchmark/results/p")
    results.mkdir(parents=True)
    (results / "CartPole-v1__ppo__1.csv").touch()
    entry = {"finished": True, "command": run.command_of(job)}
    (results / "meta.json").write_text(json.dumps({"CartPole-v1__ppo__1": entry}))
    assert run.main(["p.toml"]) == 0
    capsys.readouterr()
    Path("p.toml").write_text(SETTING + 'flags = "--gamma 0.9"')
    with pytest.raises(SystemExit) as end:
        run.main(["p.toml"])
    assert_one_line(end.value.code, capsys, "give the setting another name")


@pytest.fixture
def begun():
    """A finished run of the plan p, which has only the setting SETTING."""
    Path("p.toml").write_text(SETTING)
    (job,) = run.read_plan(Path("p.toml"))
    assert run.train(job, lambda step, status: None) == ""
    return job


def test_a_run_that_was_begun_with_other_arguments_is_not_taken_over(begun, capsys):
    for changed in (
        SETTING.replace("1_024", "2_048"),
        SETTING + 'flags = "--shared-network"',
        SETTING + 'flags = "--no-anneal-lr"',
    ):
        Path("p.toml").write_text(changed)
        with pytest.raises(SystemExit) as end:
            run.main(["p.toml", "--export"])
        assert_one_line(end.value.code, capsys, "give the setting another name")
    assert not Path("benchmark/results").exists()
    # What changes nothing about the result may change.
    Path("p.toml").write_text(SETTING + 'flags = "--save-every 1"')
    assert run.main(["p.toml", "--export"]) == 0


def test_results_name_the_code_that_a_run_was_begun_with_and_the_code_it_went_on_with(
    begun, monkeypatch
):
    noted = run.noted_circumstances(begun)
    assert [set(facts) for facts in noted] == [
        {"commit", "dirty", "versions", "machine", "threads"}
    ]
    for commit in ("b", "b", "c"):
        facts = {"commit": commit}
        monkeypatch.setattr(run, "circumstances", lambda script, threads, facts=facts: facts)
        run.note_circumstances(begun)
    assert run.write_results("p", begun) == ""
    entry = json.loads(Path("benchmark/results/p/meta.json").read_text())["CartPole-v1__ppo__1"]
    assert entry["commit"] == noted[0]["commit"]
    assert entry["resumed"] == [{"commit": "b"}, {"commit": "c"}]
    # A run that is begun anew has nothing of the old one.
    monkeypatch.setattr(run, "find_folder", lambda job: None)
    run.note_circumstances(begun)
    assert run.noted_circumstances(begun) == [{"commit": "c"}]


def test_results_of_a_run_that_is_stopped_early_end_there(begun):
    job = replace(begun, stop_at=700)
    assert run.write_results("p", job) == ""
    (folder,) = Path("runs").glob("CartPole*")
    steps = run.read_run(folder).steps
    written = read_csv(Path("benchmark/results/p/CartPole-v1__ppo__1.csv")).steps
    np.testing.assert_array_equal(written, steps[steps <= 700])
    assert len(steps) > len(written) > 5
    entry = json.loads(Path("benchmark/results/p/meta.json").read_text())["CartPole-v1__ppo__1"]
    assert entry["steps"] == 700


def test_a_script_that_git_does_not_know_is_no_clean_commit():
    for command in ("init -q", "config user.name a", "config user.email a@b.c"):
        subprocess.run(["git", *command.split()], check=True)
    Path("known.py").touch()
    subprocess.run(["git", "add", "known.py"], check=True)
    subprocess.run(["git", "commit", "-qm", "known"], check=True)
    assert run.circumstances(Path("known.py"))["dirty"] is False
    Path("unknown.py").touch()
    assert run.circumstances(Path("unknown.py"))["dirty"] is True
    assert run.circumstances(Path("known.py"))["dirty"] is False
    Path("known.py").write_text("pass")
    assert run.circumstances(Path("known.py"))["dirty"] is True


def test_the_time_left_leaves_out_waiting_and_what_a_run_had_before_it_was_resumed(
    monkeypatch, capsys
):
    job = run.Job(Path("ppo.py"), "E-v0", "p.x", 1, (), 1_000_000)
    other = replace(job, seed=2)
    clock = [0.0]
    monkeypatch.setattr(run.time, "monotonic", lambda: clock[0])
    progress = run.Progress("p", [job, other], [job, other])
    for clock[0], step in ((60.0, 900_000), (160.0, 980_000)):
        progress.show({job.name: (step, ""), other.name: (step, "")})
    # 2 x 20,000 steps at 2 x 80,000 in 100 s
    assert capsys.readouterr().err.splitlines()[-1].endswith("0 of 2 runs finished, 00:25 left")
    progress.end(other, "too bad")
    clock[0] = 300.0
    progress.show({job.name: (980_000, "")})
    assert "0 of 2 runs finished, 1 failed" in capsys.readouterr().err


def test_dry_run_prints_the_commands_and_names_are_legal(capsys):
    Path("dry.toml").write_text(SETTING.replace('"CartPole-v1"', '"CartPole-v1", "ALE/Pong-v5"'))
    assert run.main(["dry.toml", "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rest = "--exp-name dry.ppo --seed 1 --total-timesteps 1024"
    assert [line.split(maxsplit=2)[2] for line in lines] == [
        f"--env-id CartPole-v1 {rest}",
        f"--env-id ALE/Pong-v5 {rest}",
    ]
    assert not Path("runs").exists()
    job = run.read_plan(Path("dry.toml"))[1]
    assert job.name == "ALE-Pong-v5__dry.ppo__1"
    assert run.key_of("dry", job) == "ALE-Pong-v5__ppo__1"


def test_a_run_that_dies_when_it_is_stopped_early_is_not_finished():
    body = """
signal.signal(signal.SIGTERM, lambda signum, frame: sys.exit("error: disk full"))
print("1,500 of 9,984 steps, 00:10 left", flush=True)
time.sleep(60)
"""
    assert train_fake(body, stop_at=1_000)[0] == "disk full"


def train_fake(body: str, **changes) -> tuple[str, list]:
    """Run `train` on a script of a few lines; return its error and what it reported."""
    Path("fake.py").write_text(f"import signal, sys, time\n{body}")
    reports = []
    job = run.Job(Path("fake.py"), "E-v0", "x", 1, (), 10_000, **changes)
    return run.train(job, lambda *report: reports.append(report)), reports


def test_a_run_has_the_threads_of_its_plan_which_its_results_name():
    Path("p.toml").write_text(SETTING.replace("[1]", "[1, 2]") + "threads = 2")
    assert [job.threads for job in run.read_plan(Path("p.toml"))] == [2, 2]
    body = "import os\nsys.exit(os.environ['OMP_NUM_THREADS'] != '2')"
    assert train_fake(body, threads=2)[0] == ""
    (facts,) = json.loads((run.LOGS / "E-v0__x__1.json").read_text())
    assert facts["threads"] == 2


def test_more_threads_than_any_machine_has_cores_end_in_one_line(monkeypatch, capsys):
    Path("p.toml").write_text(SETTING + "threads = 3")
    monkeypatch.setattr(run, "start_ray", lambda address: None)
    machines = [{"Resources": {"CPU": 2.0}}, {"Resources": {}}]
    monkeypatch.setattr(run.ray, "nodes", lambda: machines)
    with pytest.raises(SystemExit) as end:
        run.main(["p.toml"])
    assert_one_line(end.value.code, capsys, "wants 3 threads, and no machine has over 2 cores")


def test_a_run_is_stopped_by_one_signal_once_it_has_passed_stop_at():
    args = {"num_envs": 4, "num_steps": 128}
    torch.save({"args": args, "global_step": 1_536}, "saved.pt")
    body = """
import os
def save(signum, frame):
    open("signals", "a").write("x")
    time.sleep(1.5)
    os.makedirs("runs/E-v0__x__1__1")
    os.rename("saved.pt", "runs/E-v0__x__1__1/checkpoint.pt")
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
for step in ("500", "1,500"):
    print(step, "of 10,000 steps, 00:10 left, mean return 3.0", file=sys.stderr, flush=True)
    time.sleep(0.7)
time.sleep(60)
"""
    error, reports = train_fake(body, stop_at=1_000)
    assert error == ""
    assert Path("signals").read_text() == "x"
    assert {step for step, _ in reports} == {500, 1500}
    assert reports[0][1] == "00:10 left, mean return 3.0"


def test_a_cancelled_run_saves_also_where_its_worker_was_born_ignoring_sigint():
    Path("fake.py").write_text("""
import signal, sys, time
def save(signum, frame):
    time.sleep(1)
    open("saved", "w")
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
open("started", "w")
time.sleep(10)
""")
    job = run.Job(Path("fake.py"), "E-v0", "x", 1, (), 10_000, None)

    def cancel():
        wait_for(Path("started").exists)
        signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    canceller = threading.Thread(target=cancel)
    canceller.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            run.work(job, ".", board=None)
    finally:
        canceller.join()
        signal.signal(signal.SIGINT, before)
    assert Path("saved").exists()


def test_how_a_script_ended_is_told_apart():
    assert train_fake("sys.exit(0)")[0] == ""
    said = 'print("error: too bad", file=sys.stderr); print("to go on: x"); sys.exit(1)'
    assert train_fake(said)[0] == "too bad"
    assert "ValueError: wrong" in train_fake("raise ValueError('wrong')")[0]
    assert "signal from elsewhere" in train_fake("sys.exit(143)")[0]
    with pytest.raises(run.Died, match="SIGKILL"):
        train_fake("import os\nos.kill(os.getpid(), signal.SIGKILL)")


# Searches

SEARCH = ["--env", "CartPole-v1:0:500", "--search", "learning-rate=1e-9,2.5e-3"]


def test_a_search_is_resumed_and_finds_the_better_of_two_settings(capsys):
    more = ["--seeds", "1", "--trials", "3", "--total-timesteps", "8192", "--name", "t"]
    arguments = [str(ROOT / "ppo.py"), *SEARCH, "--search", "save-every=1", *more]
    program = start("tune.py", *arguments)
    wait_for(lambda: "trial 1 of 3" in Path("out.txt").read_text())
    program.send_signal(signal.SIGINT)
    code, _, err = finish(program)
    assert code == 130, err
    wait_for(lambda: none_left(program.pid), 10)
    results = Path("benchmark/results/tune_t")
    first = json.loads((results / "trials.json").read_text())["trials"][0]
    checkpoints = {}
    for path in Path("runs").glob("*/checkpoint.pt"):
        checkpoints[path] = torch.load(path, weights_only=True)["global_step"]
    over = {path: path.stat().st_mtime_ns for path, step in checkpoints.items() if step == 8192}
    assert over

    program = start("tune.py", *arguments)
    code, out, err = finish(program)
    assert code == 0, err
    report = json.loads((results / "trials.json").read_text())
    trials = report["trials"]
    assert len(trials) == 3
    assert trials[0] == first
    assert {trial["values"]["learning-rate"] for trial in trials} == {"1e-9", "2.5e-3"}
    best = max(trials, key=lambda trial: trial["score"])
    assert best["values"]["learning-rate"] == "2.5e-3"
    command = "--total-timesteps 8192 --learning-rate 2.5e-3 --save-every 1"
    assert out.splitlines()[-1].endswith(command)
    for trial in trials:
        (mean,) = trial["returns"].values()
        assert trial["score"] == pytest.approx(mean / 500, abs=1e-4)
    # No run was begun twice, none was trained after its end.
    assert len(list(Path("runs").glob("*__tune.t.*/checkpoint.pt"))) == 3
    assert over == {path: path.stat().st_mtime_ns for path in over}
    for path, step in checkpoints.items():
        if step < 8192:
            assert starts(path.parent) == [1, step + 1]
    assert len((results / "trials.csv").read_text().splitlines()) == 4
    assert (results / "trials.png").stat().st_size > 10_000

    # Complete: nothing starts. With other arguments: nothing is overwritten.
    assert tune.main(arguments) == 0
    assert capsys.readouterr().out.splitlines()[-1] == out.splitlines()[-1]
    with pytest.raises(SystemExit) as end:
        tune.main([*arguments, "--env", "Acrobot-v1:-500:-80"])
    assert_one_line(end.value.code, capsys, "give this one another --name")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing.py", *SEARCH], "there is no script"),
        (["PPO", *SEARCH, "--search", "gama=0.9,1"], "the script has no flag --gama"),
        (["PPO", *SEARCH, "--search", "gamma"], "say which values"),
        (["PPO", *SEARCH, "--search", "gamma=1:0.9"], "must be less than the second"),
        (["PPO", *SEARCH, "--search", "gamma=log:0:1"], "above 0"),
        (["PPO", *SEARCH, "--search", "gamma=a:b"], "write LOW:HIGH"),
        (["PPO", *SEARCH, "--search", "gamma=0.9:1.1"], "--gamma must lie between 0 and 1"),
        (["PPO", *SEARCH, "--search", "num-steps=64,many"], "does not take `--num-steps many`"),
        (["PPO", *SEARCH, "--search", "seed=1,2"], "--seed cannot be among the flags"),
        (["PPO", *SEARCH, "--search", "learning_rate=1,2"], "is searched twice"),
        (["PPO", *SEARCH, "--env", "Acrobot-v1"], "write ENVIRONMENT:LOW:HIGH"),
        (["PPO", *SEARCH, "--env", "Acrobot-v1:-80:-500"], "counts as 0"),
        (["PPO", *SEARCH, "--env", "NoSuch-v1:0:1"], "doesn't exist"),
        (["PPO", *SEARCH, "--seeds", "0"], "--seeds must be at least 1"),
        (["PPO", *SEARCH, "--name", "a/b"], "write letters"),
        (["PPO", *SEARCH, "--trails", "3"], "unrecognized arguments"),
        (["PPO", "--env", "CartPole-v1:0:500"], "required: --search"),
    ],
)
def test_bad_arguments_of_a_search_end_in_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as end:
        tune.main([str(ROOT / "ppo.py") if word == "PPO" else word for word in arguments])
    assert_one_line(end.value.code, capsys, message)
    assert not Path("runs").exists()


def test_trials_are_numbered_as_they_were_proposed():
    """Tune puts a trial that it takes up again elsewhere in its list."""
    trials = [
        SimpleNamespace(
            experiment_tag=f"{number}_gamma=0.9", status="TERMINATED", last_result={}, config={}
        )
        for number in (10, 2, 1)
    ]
    trials[0].last_result = {"score": 0.5}
    report = tune.make_report(tune.Search("ppo.py", [], [], 1, 3, 1), {}, trials)
    assert [row["score"] for row in report["trials"]] == [0.0, 0.0, 0.5]


def test_values_become_flags():
    config = {"anneal-lr": "false", "clip-vloss": "true", "num-steps": 64, "gamma": 0.123456}
    flags = ["--no-anneal-lr", "--clip-vloss", "--num-steps", "64", "--gamma", "0.1235"]
    assert tune.flags_of(config) == flags
