"""Write docs/details.md: the table of the implementation details, with a link to the labelled line in every script.

    python benchmark/details.py

A label is a comment or a docstring such as `Core 7: ...`; the table links to its first place in each script.
"""

import io
import re
import tokenize
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "details.md"
SCRIPTS = [
    "ppo",
    "ppo_atari",
    "ppo_atari_envpool",
    "ppo_atari_multigpu",
    "ppo_continuous_action",
    "ppo_atari_lstm",
    "ppo_multidiscrete",
]
BASELINES = (
    "https://github.com/openai/baselines/blob/ea25b9e8b234e6ee1bca43083f8f3cf974143998/baselines"
)
SPINNING_UP = "https://github.com/openai/spinningup/blob/master/spinup/algos/pytorch/ppo"

# label: what it is, and where the official code has it
DETAILS = {
    "Core 1": ("N environments side by side; M steps per update, then they go on", "common/cmd_util.py#L22"),
    "Core 2": ("Orthogonal weights with a gain for each kind of layer, zero biases", "a2c/utils.py#L58"),
    "Core 3": ("Adam's epsilon is 1e-5", "ppo2/model.py#L100"),
    "Core 4": ("The learning rate falls linearly to 0", "ppo2/ppo2.py#L133-L135"),
    "Core 5": ("Generalized advantage estimation, with the value of the segment's end", "ppo2/runner.py#L56-L65"),
    "Core 6": ("Every epoch splits all rows into shuffled minibatches", "ppo2/ppo2.py#L157-L166"),
    "Core 7": ("Advantages are normalised in each minibatch", "ppo2/model.py#L139"),
    "Core 8": ("The clipped surrogate objective", "ppo2/model.py#L81-L86"),
    "Core 9": ("The value loss is clipped too", "ppo2/model.py#L68-L75"),
    "Core 10": ("Policy loss, entropy bonus and value loss are one loss with one optimiser", "ppo2/model.py#L91"),
    "Core 11": ("The norm of the whole gradient is clipped", "ppo2/model.py#L102-L108"),
    "Core 12": ("Debug variables: approximate KL, clipped fraction, losses", "ppo2/model.py#L115-L116"),
    "Core 13": ("Separate networks for policy and value, or a shared one", "common/policies.py#L156-L160"),
    "Atari 1": ("Up to 30 no-ops on reset", "common/atari_wrappers.py#L12"),
    "Atari 2": ("Each action is repeated 4 times; the maximum of the last two frames", "common/atari_wrappers.py#L97"),
    "Atari 3": ("A lost life ends the episode", "common/atari_wrappers.py#L61"),
    "Atari 4": ("FIRE is pressed on reset in games whose action 1 it is", "common/atari_wrappers.py#L41"),
    "Atari 5": ("Grey images of 84 x 84", "common/atari_wrappers.py#L134"),
    "Atari 6": ("Rewards are clipped to their sign", "common/atari_wrappers.py#L125"),
    "Atari 7": ("Four frames are stacked", "common/atari_wrappers.py#L188"),
    "Atari 8": ("One convolutional network for policy and value", "common/models.py#L15-L26"),
    "Atari 9": ("Images are scaled to [0, 1]", "common/models.py#L19"),
    "Continuous 1": ("Actions come from a normal distribution", "common/distributions.py#L103-L104"),
    "Continuous 2": ("Its log standard deviation depends on no state and starts at 0", "common/distributions.py#L104"),
    "Continuous 3": ("Action components are independent", "common/distributions.py#L238-L246"),
    "Continuous 4": ("Separate networks for policy and value", "common/policies.py#L160"),
    "Continuous 5": ("The environment gets the action clipped, the learner as sampled", "common/cmd_util.py#L99-L100"),
    "Continuous 6": ("Observations are normalised by running mean and variance", "common/vec_env/vec_normalize.py#L4"),
    "Continuous 7": ("Normalised observations are clipped to [-10, 10]", "common/vec_env/vec_normalize.py#L39"),
    "Continuous 8": ("Rewards are divided by the discounted return's deviation", "common/vec_env/vec_normalize.py#L28"),
    "Continuous 9": ("Scaled rewards are clipped to [-10, 10]", "common/vec_env/vec_normalize.py#L32"),
    "LSTM 1": ("Orthogonal LSTM weights with gain 1, zero biases", "a2c/utils.py#L84-L86"),
    "LSTM 2": ("Hidden and cell state start at zero", "common/models.py#L179"),
    "LSTM 3": ("The state is set to zero where an episode ended, in training too", "common/models.py#L141"),
    "LSTM 4": ("Minibatches are whole sequences of some of the environments", "a2c/utils.py#L81"),
    "LSTM 5": ("Training rebuilds the states from the one before the rollout", "a2c/utils.py#L81"),
    "MultiDiscrete 1": ("Action components are independent: entropies add up too", "common/distributions.py#L215-L220"),
    "Aux 1": ("The clip range can fall linearly to 0 (`--anneal-clip-coef`)", "ppo2/ppo2.py#L137"),
    "Aux 2": ("Gradients are averaged over processes", "ppo2/model.py#L97-L98"),
    "Aux 3": ("The epochs can stop early, by KL (`--target-kl`)", "ppo.py#L269-L271"),
    "Aux 4": ("Invalid actions are masked (Huang and Ontañón 2020)", ""),
}  # fmt: skip
INTRODUCTION = """# The 37 details

Every detail is marked where it happens, with its label in this table; the links lead to the official code and to the
labelled line in each script here. The four auxiliary details (Aux) are not among the 37.

"""
HEAD = "| label | detail | official code | here |\n|---|---|---|---|\n"


def labelled_lines(source: str) -> dict[str, int]:
    """Return the first line of each label in the comments and docstrings of a file."""
    found = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT or (
            token.type == tokenize.STRING and token.string.startswith('"""')
        ):
            for offset, line in enumerate(token.string.splitlines()):
                for label in re.findall(
                    r"\b((?:Core|Atari|Continuous|LSTM|MultiDiscrete|Aux) \d+): ", line
                ):
                    found.setdefault(label, token.start[0] + offset)
    return found


def table() -> str:
    """Return the table in Markdown."""
    places = {
        script: labelled_lines((ROOT / f"{script}.py").read_text(encoding="utf-8"))
        for script in SCRIPTS
    }
    rows = []
    for label, (sentence, official) in DETAILS.items():
        base = SPINNING_UP if label == "Aux 3" else BASELINES
        name = official.replace("#", " ")
        if base == SPINNING_UP:
            name = f"Spinning Up, {name}"
        origin = f"[{name}]({base}/{official})" if official else ""
        here = [
            f"[{script.removeprefix('ppo_').removeprefix('atari_')}](../{script}.py#L{lines[label]})"
            for script, lines in places.items()
            if label in lines
        ]
        rows.append(f"| {label} | {sentence} | {origin} | {', '.join(here)} |\n")
    return HEAD + "".join(rows)


def page() -> str:
    return INTRODUCTION + table()


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
