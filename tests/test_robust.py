"""Nothing gets in, nothing is lost: a few dozen inputs of tests/long/attack.py, and what it cannot show."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import TINY

ROOT = Path(__file__).parent.parent
ATTACK = ROOT / "tests" / "long" / "attack.py"

# Inputs of attack.py, by category/target/name, and the column of its table that they belong to.
REFUSED = [
    "arguments/ppo/num_steps=99999999999999999999",
    "arguments/ppo/{'num_steps': 1000000000, 'total_timesteps': 1000000000000000}",
    "arguments/ppo/{'num_steps': 1000000000000000000000000000000, 'total_timesteps': ",
    "arguments/ppo/resume='runs/**'",
    "arguments/ppo/env_id=no_such_module:X-v0",
    "environments/ppo/import SyntaxError",
    "environments/ppo/import RecursionError",
    "environments/ppo/import Control",
    "environments/ppo/initKeyError",
    "environments/ppo/initTwoLines",
    "environments/ppo/resetRuntimeError",
    "environments/ppo/Gives_nan_obs",
    "environments/ppo/Gives_inf_obs",
    "environments/ppo/Gives_last_nan_obs",
    "environments/ppo/Gives_nan_reward",
    "environments/ppo/Reset_nan",
    "environments/ppo/Reset_none",
    "environments/ppo/no_render_mode with video",
    "environments/ppo/no_env",
    "environments/ppo/no_class",
    "environments/ppo/wrong_kwargs",
    "checkpoint/ppo/ppo: env_id payload:CartPole-v1",
    "checkpoint/ppo/ppo: env_id '\\x1b[31mred\\x07'",
    "checkpoint/ppo/ppo: seed 2147483648",
    "checkpoint/ppo/ppo: args without gamma",
    "checkpoint/ppo/ppo: moment is larger",
    "checkpoint/ppo/ppo: step is -100.0",
    "checkpoint/ppo/ppo: step is nan",
    "checkpoint/ppo/ppo: weight has a NaN",
    "checkpoint/ppo/ppo: weight is transposed",
    "checkpoint/ppo/ppo: weight renamed",
    "checkpoint/ppo/ppo: without optimizer",
    "checkpoint/ppo/ppo: rng is text",
    "checkpoint/ppo/ppo: iteration -5",
    "checkpoint/ppo/ppo: global_step -100",
    "checkpoint/ppo/ppo: version 99",
    "checkpoint/ppo/ppo: another script's",
    "checkpoint/ppo/ppo: is a trap",
    "checkpoint/ppo/ppo: is a folder",
    "checkpoint/ppo/ppo: is a pipe",
    "checkpoint/ppo/ppo: is torch's old format",
    "checkpoint/ppo/ppo: is a damaged pickle",
    "disk/ppo/runs is a file",
    "disk/ppo/a name of 300 characters",
    "disk/ppo/remove",
    "disk/ppo/full at the start",
    "disk/ppo/read-only",
    "checkpoint/evaluate/ppo: env_id payload:CartPole-v1",
    "checkpoint/evaluate/ppo: weight has a NaN",
    "checkpoint/evaluate/ppo: weight renamed",
    "checkpoint/evaluate/ppo: script '\\x1b[31mred'",
    "checkpoint/evaluate/ppo: is a pipe",
    "checkpoint/evaluate/ppo: is a trap",
    "checkpoint/evaluate/ppo: script 'payload'",
    "checkpoint/evaluate/ppo: weight is sparse",
    "checkpoint/evaluate/ppo: weight is on no device",
    "checkpoint/evaluate/ppo: without agent",
    "arguments/evaluate/seed=-1",
    "arguments/evaluate/run='runs/**'",
    "arguments/evaluate/run='xxxx",
    "arguments/ppo/resume='a/a/",
    "arguments/ppo/resume='xxx",
    "disk/ppo/a name of 5,000 characters",
    "disk/ppo/runs is a dead link",
    "arguments/ppo/env_id=xxxxxx",
    "arguments/ppo/clip_coef=1e39",
    "arguments/ppo/{'num_steps': 4611686018427387904",
    "checkpoint/ppo/ppo: global_step is tensor",
    "arguments/evaluate/an empty folder",
]
ACCEPTED = [
    "environments/ppo/Good",
    "environments/ppo/stepValueError",
    "environments/ppo/lateValueError",
    "environments/ppo/Obs Box(-np.inf, np.inf, (3,))",
    "environments/ppo/no_render_mode",
    "checkpoint/ppo/ppo: untouched",
    "checkpoint/ppo/ppo: exp_name '../../evil'",
    "checkpoint/ppo/ppo: group with lr x",
    "streams/ppo/both closed",
    "streams/ppo/head -1",
    "checkpoint/evaluate/ppo: untouched",
]


@pytest.fixture(scope="module")
def answers(tmp_path_factory) -> dict[str, dict]:
    """What all these inputs came to; one process tries them all, since the imports take the longest."""
    written = tmp_path_factory.mktemp("attack") / "answers.json"
    names = ["checkpoint/ppo/ppo: bit ", *REFUSED, *ACCEPTED]
    subprocess.run(
        [sys.executable, ATTACK, "--json", written, "--only", *names],
        check=True,
        capture_output=True,
    )
    found = json.loads(written.read_text())
    return {f"{answer['category']}/{answer['target']}/{answer['name']}": answer for answer in found}


def answer_to(name: str, answers: dict[str, dict]) -> dict:
    matching = [answer for key, answer in answers.items() if key.startswith(name)]
    if not matching and name.startswith("disk/"):
        pytest.skip("needs the rights to mount a file system")
    return min(matching, key=lambda answer: len(answer["name"]))


@pytest.mark.parametrize("name", REFUSED)
def test_bad_input_ends_in_one_line(name, answers):
    answer = answer_to(name, answers)
    assert answer["outcome"] == "one line", answer


@pytest.mark.parametrize("name", ACCEPTED)
def test_good_input_works(name, answers):
    answer = answer_to(name, answers)
    assert answer["outcome"] == "fine", answer


def test_every_flipped_bit_is_noticed_or_does_not_matter(answers):
    flipped = [answer for name, answer in answers.items() if "bit " in name]
    assert len(flipped) >= 20
    assert [answer for answer in flipped if answer["outcome"] not in ("one line", "fine")] == []
    assert len([answer for answer in flipped if answer["outcome"] == "one line"]) >= 10


# ---------------------------------------------------------------------------------------------------------------------
# Runs in this process


def train(**changes):
    import ppo

    return ppo.main(ppo.Args(**TINY["ppo"] | changes))


def command_line(monkeypatch, *arguments) -> None:
    """Do what `python ppo.py arguments` does."""
    import ppo

    monkeypatch.setattr(sys, "argv", ["ppo.py", *map(str, arguments)])
    ppo.main(ppo.parse_args())


def only_run() -> Path:
    (folder,) = Path("runs").iterdir()
    return folder


def saved_updates(folder: Path) -> int:
    return torch.load(folder / "checkpoint.pt", weights_only=True)["iteration"]


def test_second_resume_of_a_run_is_refused_until_the_first_is_killed(monkeypatch, capsys):
    long = [
        "--num-envs",
        "2",
        "--num-steps",
        "16",
        "--total-timesteps",
        "100000000",
        "--save-every",
        "1",
    ]
    training = subprocess.Popen([sys.executable, ROOT / "ppo.py", *long], stderr=subprocess.DEVNULL)
    try:
        while not list(Path("runs").glob("*/checkpoint.pt")):
            assert training.poll() is None
            time.sleep(0.05)
        run = only_run()
        with pytest.raises(SystemExit) as end:
            command_line(monkeypatch, "--resume", run)
        assert end.value.code == 2
        assert "in use" in capsys.readouterr().err
    finally:
        training.kill()
        training.wait()
    updates = saved_updates(run)
    command_line(monkeypatch, "--resume", run, "--total-timesteps", 32 * (updates + 2))
    assert saved_updates(run) == updates + 2


def test_lock_is_let_go_at_the_end_of_a_run(monkeypatch):
    """A notebook trains and resumes in one process."""
    train()
    command_line(monkeypatch, "--resume", only_run(), "--total-timesteps", 128)
    assert saved_updates(only_run()) == 4


def test_runs_that_start_in_the_same_second_get_folders_of_their_own(monkeypatch):
    import ppo

    monkeypatch.setattr(ppo.time, "time", lambda: 1_700_000_000.5)
    names = set()
    for _ in range(3):
        folder = ppo.new_run_dir(ppo.Args())
        folder.mkdir(parents=True)
        names.add(folder)
    assert len(names) == 3


def test_run_that_loses_the_race_for_a_folder_takes_the_next(monkeypatch):
    """Between the choice of a name and the making of the folder, another process can make it."""
    import ppo

    new_run_dir = ppo.new_run_dir
    taken = new_run_dir(ppo.Args())
    taken.mkdir(parents=True)
    answers = [taken]
    monkeypatch.setattr(
        ppo, "new_run_dir", lambda args: answers.pop() if answers else new_run_dir(args)
    )
    train()
    assert list(taken.iterdir()) == []
    assert len(list(Path("runs").glob("*/checkpoint.pt"))) == 1


@pytest.mark.parametrize(
    "env_id", ["CartPole-v1", "Jumanji/Cleaner-v0", "mypkg:MyEnv-v0", "a/b:c*?<>|\"'\\d-v0", "é-v1"]
)
@pytest.mark.parametrize(
    "exp_name", ["ppo", "../../evil", "/tmp/evil", "C:\\x", "two\nlines", "\x1b[31m", ""]
)
def test_folder_name_is_legal_on_windows_and_one_level_deep(env_id, exp_name):
    import ppo

    folder = ppo.new_run_dir(ppo.Args(env_id=env_id, exp_name=exp_name))
    assert folder.parent == Path("runs")
    assert not set(folder.name) & set('<>:"/\\|?*\n\x1b')
    assert folder.name.isprintable()
    assert folder.name[0] != "."
    assert folder.name[-1] not in ". "


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has no SIGHUP")
def test_closed_terminal_saves_as_a_stop_does(monkeypatch, capsys):
    import ppo

    compute_gae = ppo.compute_gae
    calls = []

    def hang_up(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGHUP)
        return compute_gae(*args, **kwargs)

    monkeypatch.setattr(ppo, "compute_gae", hang_up)
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup may have started these tests
    try:
        with pytest.raises(SystemExit) as end:
            train(save_every=100)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)
    assert end.value.code == 128 + signal.SIGHUP
    assert saved_updates(only_run()) == 2


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has no SIGHUP")
def test_nohup_keeps_its_word(monkeypatch):
    import ppo

    compute_gae = ppo.compute_gae

    def hang_up(*args, **kwargs):
        signal.raise_signal(signal.SIGHUP)
        return compute_gae(*args, **kwargs)

    monkeypatch.setattr(ppo, "compute_gae", hang_up)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        train()
    finally:
        signal.signal(signal.SIGHUP, before)
    assert saved_updates(only_run()) == 3


def dead_pipe():
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w")


def full_disk():
    return os.fdopen(os.open("/dev/full", os.O_WRONLY), "w")


STREAMS = {
    "full disk": full_disk,
    "dead reader": dead_pipe,
    "missing": lambda: None,
}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has /dev/full")
@pytest.mark.parametrize("stderr", STREAMS)
@pytest.mark.parametrize("stdout", STREAMS)
def test_dead_streams_do_not_stop_a_run(stdout, stderr, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", STREAMS[stdout]())
        patch.setattr(sys, "stderr", STREAMS[stderr]())
        train()
    assert saved_updates(only_run()) == 3


@pytest.mark.parametrize("terminal", [True, False])
def test_checkpoint_is_saved_before_anything_is_printed(terminal, monkeypatch):
    import ppo

    class Watch:
        """A stderr that notes how much is saved whenever something is printed."""

        def __init__(self):
            self.saved = []

        def write(self, text):
            folders = list(Path("runs").glob("*/checkpoint.pt"))
            self.saved.append(saved_updates(folders[0].parent) if folders else 0)

        def flush(self):
            pass

        def isatty(self):
            return terminal

    end_update = ppo.Run.end_update
    watch = Watch()

    def spy(self, *args, **kwargs):
        self.last_line = 0  # the last line was long ago: print one after this update
        watch.saved.clear()
        end_update(self, *args, **kwargs)
        assert watch.saved or terminal
        assert set(watch.saved) <= {self.iteration}

    monkeypatch.setattr(ppo.Run, "end_update", spy)
    monkeypatch.setattr(sys, "stderr", watch)
    train(save_every=1)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_never_saved(number, monkeypatch, capsys):
    import ppo

    end_update = ppo.Run.end_update

    def break_agent(self, iteration, *args):
        if iteration == 1:
            next(self.parts["agent"].parameters()).data.view(-1)[0] = number
        end_update(self, iteration, *args)

    monkeypatch.setattr(ppo.Run, "end_update", break_agent)
    with pytest.raises(SystemExit) as end:
        train(save_every=1)
    assert end.value.code == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("error: ")
    assert "update 2" in lines[-1]
    assert saved_updates(only_run()) == 1
    assert not list(only_run().glob("*.tmp"))


def test_message_is_one_line_without_control_characters(capsys):
    import ppo

    with pytest.raises(SystemExit):
        ppo.fail("two\nlines, \x1b[31mred\x07, \u202eturned and \x9b31m")
    assert capsys.readouterr().err == "error: two lines, [31mred , turned and 31m\n"
