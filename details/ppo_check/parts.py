"""What can be checked: each part's inputs and outputs, and the cases that tell its forms apart."""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ppo_check import forms
from ppo_check.forms import WITHOUT, Fault, Form

HERE = Path(__file__).resolve().parent
# The recordings of the official code: in a wheel, or in the repository
RECORDINGS = next(p for p in (HERE / "data", HERE.parents[1] / "tests" / "data") if p.is_dir())


class AdapterError(Exception):
    """What is wrong with the adapter, in one line."""


@dataclass(eq=False)
class Case:
    name: str
    inputs: dict
    recorded: tuple | None = None  # what the official code made of it, where that is known
    rtol: float | None = None  # for this case alone


class Check(NamedTuple):
    """Outputs are compared with those of all forms; the first form that fits all cases is named."""

    labels: tuple[str, ...]  # reported even where nothing is wrong
    forms: list[Form]
    cases: list[Case]
    transform: Callable | None = None  # of the inputs and the adapter's outputs, before comparing
    # If the official form fits all cases but this one, this is wrong.
    telling: dict[str, Fault] = {}  # noqa: RUF012
    of_the_whole: bool = False  # made only if all checks before it found nothing


class Result(NamedTuple):
    """What a judge says of one detail."""

    label: str
    fault: str | None = None  # a variant's name, or None
    deviation: float | None = None
    message: str = ""  # where it differs in an unknown way


class Part(NamedTuple):
    name: str
    arguments: str
    returns: str
    text: str  # shapes and conventions
    checks: tuple[Check, ...] = ()
    judge: Callable | None = None  # in place of checks: gets the adapter's function
    labels: tuple[str, ...] = ()  # of a judge

    @property
    def details(self) -> list[str]:
        """Return the labels of all details that the part can tell something about."""
        labels = list(self.labels)
        for check in self.checks:
            labels += check.labels
            labels += [label for faults, _ in check.forms for label, _ in faults if label]
        return list(dict.fromkeys(labels))


def single(x) -> np.ndarray:
    """Return numbers that single precision can hold, so that both precisions get the same."""
    return np.asarray(x, dtype=np.float32).astype(np.float64)


def load(name: str) -> dict[str, np.ndarray]:
    with np.load(RECORDINGS / f"{name}.npz") as file:
        return dict(file)


def normal(seed: int, *shape: int, scale: float = 1.0) -> np.ndarray:
    return single(np.random.default_rng(seed).normal(size=shape) * scale)


# -------------------------------------------------------------------------------------------------
# Advantages


def gae_cases() -> list[Case]:
    cases = []
    for name, steps, ends in [
        ("no episode ends", 8, []),
        ("an episode ends inside the rollout", 12, [(5, 0), (7, 1), (8, 1)]),
        ("an episode ends at the start of the rollout", 8, [(0, 0), (0, 2)]),
        ("an episode ends at the end of the rollout", 8, [(7, 0), (7, 1)]),
        ("a rollout of one step", 1, [(0, 1)]),
    ]:
        dones = np.zeros((steps, 3))
        for step, env in ends:
            dones[step, env] = 1
        inputs = {
            "rewards": normal(steps, steps, 3),
            "values": normal(steps + 1, steps, 3),
            "dones": dones,
            "next_value": normal(steps + 2, 3),
            "gamma": 0.9,
            "gae_lambda": 0.75,
        }
        cases.append(Case(name, inputs))
    return cases


def truncated_cases() -> list[Case]:
    inputs = gae_cases()[0].inputs
    del inputs["dones"]
    cases = []
    for name, terminated, truncated in [
        ("a time limit", [], [(3, 0), (7, 1)]),
        ("a true end and a time limit", [(2, 0)], [(5, 0), (0, 2)]),
        ("an end that is both", [(4, 1)], [(4, 1), (6, 2)]),
    ]:
        flags = {}
        for key, places in [("terminated", terminated), ("truncated", truncated)]:
            flags[key] = np.zeros((8, 3))
            for step, env in places:
                flags[key][step, env] = 1
        final = np.where(flags["terminated"] + flags["truncated"] > 0, normal(4, 8, 3) + 2, 0)
        cases.append(Case(name, inputs | flags | {"final_values": single(final)}))
    return cases


GAE = Part(
    "gae",
    "rewards, values, dones, next_value, gamma, gae_lambda",
    "advantages, returns",
    "rewards, values, dones, advantages, returns: (steps, envs); next_value: (envs,), "
    "the value of the observation after the last step. dones is 1 where the step ended an episode. "
    "returns are the targets of the value function. Advantages are not normalised.",
    checks=(
        Check(("Core 5",), forms.ADVANTAGES, gae_cases(), lambda x, out: out[:1]),
        Check((), forms.TARGETS, gae_cases(), lambda x, out: (out[1] - out[0],)),
    ),
)
GAE_TRUNCATED = Part(
    "gae_truncated",
    "rewards, values, terminated, truncated, final_values, next_value, gamma, gae_lambda",
    "advantages",
    "Arrays are (steps, envs), next_value is (envs,). What your code does at time limits. terminated "
    "and truncated may both be 1. final_values are the values of the observations with which "
    "episodes ended, 0 elsewhere; values[t + 1] after an end is that of the next episode's first "
    "observation.",
    checks=(Check(("Core 5",), forms.TRUNCATED, truncated_cases()),),
)


def minibatch_cases() -> list[Case]:
    rng = np.random.default_rng(7)
    minibatches = rng.permutation(24).reshape(3, 8)
    advantages = single(rng.normal(size=24) * 3 + 5)
    equal = advantages.copy()
    equal[minibatches[1]] = 0.5
    return [
        Case("advantages of any size", {"advantages": advantages, "minibatches": minibatches}),
        Case("equal advantages", {"advantages": equal, "minibatches": minibatches}),
        Case(
            "tiny advantages",
            {"advantages": single(normal(8, 24) * 1e-7), "minibatches": minibatches},
        ),
    ]


NORMALIZE = Part(
    "normalize_advantages",
    "advantages, minibatches",
    "normalized",
    "advantages: (rows,), all of a batch; minibatches: (minibatches, size), rows of each; "
    "normalized: (minibatches, size), the advantages that the loss of each minibatch uses.",
    checks=(Check(("Core 7",), forms.NORMALIZED, minibatch_cases()),),
)


# -------------------------------------------------------------------------------------------------
# The loss


def loss_inputs(seed: int, rows: int = 32) -> dict:
    """Return rows whose ratios and values lie on both sides of the clip range, and far outside."""
    rng = np.random.default_rng(seed)
    # Distances from the old policy, none of them at the edge of the range; each with both signs.
    size = np.resize([0.02, 0.1, 0.3, 0.5, 1.0, 2.5], rows) * rng.uniform(0.9, 1.1, rows)
    logratios = size * rng.choice([-1, 1], rows)
    old_logprobs = rng.normal(size=rows) - 3
    advantages = rng.normal(size=rows)
    advantages = (advantages - advantages.mean()) / advantages.std()
    old_values = rng.normal(size=rows)
    moves = np.resize([0.05, 0.15, 0.4, 1.5], rows) * rng.choice([-1, 1], rows)
    return {
        "logprobs": single(old_logprobs + logratios),
        "old_logprobs": single(old_logprobs),
        "advantages": single(advantages),
        "values": single(old_values + moves),
        "old_values": single(old_values),
        "returns": single(old_values + rng.normal(size=rows) * 1.2),
        "entropies": single(rng.uniform(0.5, 1.5, rows)),
        "clip_coef": 0.2,
        "ent_coef": 0.02,
        "vf_coef": 0.3,
    }


def policy_cases() -> list[Case]:
    cases = []
    for seed, clip_coef in enumerate((0.2, 0.1)):
        name = f"ratios in and far outside a clip range of {clip_coef}"
        inputs = loss_inputs(seed) | {"clip_coef": clip_coef}
        # Nothing but the policy's term is left.
        inputs |= {"values": inputs["returns"], "old_values": inputs["returns"]}
        cases.append(Case(name, inputs | {"entropies": np.zeros(32)}))
    return cases


def value_cases() -> list[Case]:
    cases = []
    for seed, clip_coef in [(2, 0.2), (3, 0.1)]:
        name = f"values that moved by less and by more than {clip_coef}"
        inputs = loss_inputs(seed) | {"clip_coef": clip_coef}
        cases.append(Case(name, inputs | {"advantages": np.zeros(32), "entropies": np.zeros(32)}))
    return cases


def entropy_cases() -> list[Case]:
    inputs = loss_inputs(4)
    inputs |= {"values": inputs["returns"], "old_values": inputs["returns"]}
    return [Case("an entropy alone", inputs | {"advantages": np.zeros(32)})]


def recorded_loss() -> list[Case]:
    recording = load("mlp")
    policy_loss, value_loss, entropy, *_ = recording["stats"].astype(float)
    _, clip_coef, ent_coef, vf_coef, _ = recording["hyper"].astype(float).round(7).tolist()
    inputs = {
        "logprobs": single(-recording["neglogp"]),
        "old_logprobs": single(-recording["old_neglogp"]),
        "advantages": single(recording["advs"]),
        "values": single(recording["value"]),
        "old_values": single(recording["old_values"]),
        "returns": single(recording["returns"]),
        "entropies": single(np.full(64, entropy)),  # their mean is what was recorded
        "clip_coef": clip_coef,
        "ent_coef": ent_coef,
        "vf_coef": vf_coef,
    }
    loss = policy_loss - ent_coef * entropy + vf_coef * value_loss
    return [Case("a minibatch of the official code", inputs, (np.asarray(loss),))]


LOSS_ARGUMENTS = (
    "logprobs, old_logprobs, advantages, values, old_values, returns, entropies,"
    " clip_coef, ent_coef, vf_coef"
)
LOSS_TEXT = (
    "Arrays are (rows,). logprobs, values and entropies are those of the network that learns, "
    "old_logprobs and old_values those of the rollout. advantages are normalised already: turn "
    "your own normalisation off, or leave it. "
)
LOSS = Part(
    "loss",
    LOSS_ARGUMENTS,
    "loss",
    LOSS_TEXT + "loss: a number, which the optimiser makes smaller.",
    checks=(
        Check(("Core 8",), forms.policy_forms(gradient=False), policy_cases()),
        Check(("Core 9", "Core 10"), forms.value_forms(gradient=False), value_cases()),
        Check(("Core 10",), forms.entropy_forms(gradient=False), entropy_cases()),
        Check(("Core 10",), [((), forms.whole_loss)], recorded_loss(), of_the_whole=True),
    ),
)
GRADIENTS = Part(
    "loss_gradients",
    LOSS_ARGUMENTS,
    "of_logprobs, of_values, of_entropies",
    LOSS_TEXT + "Each of the three: (rows,), the derivatives of the loss.",
    checks=(
        Check(
            ("Core 8",),
            forms.policy_forms(gradient=True),
            policy_cases(),
            lambda x, out: out[:1],
        ),
        Check(
            ("Core 9", "Core 10"),
            forms.value_forms(gradient=True),
            value_cases(),
            lambda x, out: out[1:2],
        ),
        Check(
            ("Core 10",),
            forms.entropy_forms(gradient=True),
            entropy_cases(),
            lambda x, out: out[2:],
        ),
    ),
)


def kl_case(**more) -> list[Case]:
    inputs = loss_inputs(5)
    kept = {name: inputs[name] for name in ("logprobs", "old_logprobs")}
    return [Case("log-ratios of all sizes", kept | more)]


def recorded_kl(key: int, **more) -> list[Case]:
    recording = load("mlp")
    inputs = {
        "logprobs": single(-recording["neglogp"]),
        "old_logprobs": single(-recording["old_neglogp"]),
    }
    expected = (recording["stats"][key].astype(float),)
    return [Case("a minibatch of the official code", inputs | more, expected)]


KL = Part(
    "approx_kl",
    "logprobs, old_logprobs",
    "kl",
    "logprobs, old_logprobs: (rows,); kl: a number, what you log as the KL divergence of the old "
    "policy from the new one.",
    checks=(Check(("Core 12",), forms.KLS, kl_case() + recorded_kl(3)),),
)
CLIP_FRACTION = Part(
    "clip_fraction",
    "logprobs, old_logprobs, clip_coef",
    "fraction",
    "logprobs, old_logprobs: (rows,); fraction: a number, of the rows whose ratio is outside the "
    "clip range.",
    checks=(
        Check(
            ("Core 12",),
            forms.CLIP_FRACTIONS,
            kl_case(clip_coef=0.2) + recorded_kl(4, clip_coef=0.1),
        ),
    ),
)
EXPLAINED = Part(
    "explained_variance",
    "values, returns",
    "explained",
    "values, returns: (rows,); explained: a number.",
    checks=(
        Check(
            ("Core 12",),
            forms.EXPLAINED,
            [
                Case(
                    "values that explain a part",
                    {"values": normal(1, 50), "returns": normal(2, 50)},
                )
            ],
        ),
    ),
)


def kl_epochs() -> list[Case]:
    # Each epoch's mean and its last minibatch are on different sides of once and 1.5 times 0.01.
    gradual = [[0.001, 0.001], [0.020, 0.004], [0.030, 0.002], [0.090, 0.010], [0.050, 0.050]]
    sudden = [[0.001, 0.020], [0.004, 0.004], [0.030, 0.002], [0.040, 0.001], [0.050, 0.050]]
    return [
        Case("a KL that grows", {"kls": single(gradual), "target_kl": 0.01}),
        Case("a KL that jumps", {"kls": single(sudden), "target_kl": 0.01}),
    ]


EARLY_STOP = Part(
    "epochs_before_stop",
    "kls, target_kl",
    "epochs",
    "kls: (epochs, minibatches), the approximate KL of each; epochs: how many of the epochs run, "
    "the one after which training stops included.",
    checks=(Check(("Aux 3",), forms.EPOCHS, kl_epochs()),),
)


# -------------------------------------------------------------------------------------------------
# The optimiser and its rate


def official_parameter(name: str, shape: np.ndarray) -> np.ndarray:
    """Return the parameter that the recorded step began with; tests/data/README.md has the rule."""
    generator = np.random.RandomState(zlib.crc32(f"ppo2_model/{name}:0".encode()) % 2**31)
    fan_in = np.prod(shape[:-1])
    scale = 0.1 if len(shape) == 1 or fan_in == 1 else 1 / np.sqrt(fan_in)
    x = single(generator.normal(size=shape) * scale).flatten()
    return x[np.sort(np.random.RandomState(0).permutation(x.size)[:2000])]


def optimizer_cases() -> list[Case]:
    shapes = [(6, 4), (4,), (4, 2)]
    # Tiny gradients show the epsilon, and large ones of one parameter how the norm is clipped.
    scales = [1e-6, 1e-4, 3.0]
    steps = [
        [normal(10 * t + i, *shape, scale=scales[(i + t) % 3]) for i, shape in enumerate(shapes)]
        for t in range(4)
    ]
    small = [[single(x * 1e-4) for x in step] for step in steps]
    inputs = {
        "parameters": [normal(i, *shape, scale=0.01) for i, shape in enumerate(shapes)],
        "gradients": steps,
        "learning_rate": 1e-3,
        "max_grad_norm": 0.5,
    }
    cases = [
        # PyTorch adds 1e-6 to the norm that it divides by.
        Case("gradients beyond the norm", inputs, rtol=1e-5),
        Case("small gradients", inputs | {"gradients": small}, rtol=1e-5),
    ]
    recording = load("mlp")
    names = [name.removeprefix("after/") for name in recording if name.startswith("after/")]
    before = [official_parameter(name, recording[f"shape/{name}"]) for name in names]
    recorded = {
        "parameters": before,
        "gradients": [[single(recording[f"grad/{name}"]) for name in names]],
        "learning_rate": float(recording["hyper"][0].round(7)),
        "max_grad_norm": 1.0,  # these are clipped already
    }
    pairs = zip(names, before, strict=True)
    moves = tuple(recording[f"after/{name}"].astype(float) - x for name, x in pairs)
    # The recording is the difference of two single-precision numbers.
    return [*cases, Case("a step of the official code", recorded, moves, rtol=2e-3)]


OPTIMIZER = Part(
    "optimizer_steps",
    "parameters, gradients, learning_rate, max_grad_norm",
    "parameters",
    "parameters: a list of arrays; gradients: for each step, a list of arrays of their shapes; "
    "returned: the parameters after all steps of a new optimiser, gradients clipped.",
    checks=(
        Check(
            ("Core 3", "Core 11"),
            forms.OPTIMIZERS,
            optimizer_cases(),
            lambda x, out: tuple(a - b for a, b in zip(out, x["parameters"], strict=True)),
        ),
    ),
)


def schedule_cases(initial: float) -> list[Case]:
    return [
        Case(
            f"update {update} of {updates}",
            {"update": update, "num_updates": updates, "initial": initial},
        )
        for update, updates in [(0, 10), (1, 10), (5, 10), (9, 10), (0, 1)]
    ]


LEARNING_RATE = Part(
    "learning_rate",
    "update, num_updates, initial",
    "rate",
    "update: 0 in the first of num_updates updates; rate: the optimiser's, in all of that update.",
    checks=(Check(("Core 4",), forms.LEARNING_RATES, schedule_cases(2.5e-4)),),
)
CLIP_RANGE = Part(
    "clip_range",
    "update, num_updates, initial",
    "clip_coef",
    "update: 0 in the first of num_updates updates; clip_coef: by your defaults.",
    checks=(Check(("Aux 1",), forms.CLIP_RANGES, schedule_cases(0.2)),),
)


# -------------------------------------------------------------------------------------------------
# Minibatches


def judge_minibatches(call: Callable) -> list[Result]:
    (epochs,) = call({"batch_size": 32, "num_minibatches": 4, "epochs": 5}, [(5, 4, 8)])
    orders = epochs.reshape(5, 32)
    if (np.sort(orders) != np.arange(32)).any():
        inside = ((orders >= 0) & (orders < 32)).all()
        if inside:
            return [Result("Core 6", "rows are drawn with replacement")]
        return [Result("Core 6", message="there are rows outside the batch")]
    if (orders == np.arange(32)).all():
        return [Result("Core 6", WITHOUT)]
    if (orders == orders[0]).all():
        return [Result("Core 6", "all epochs have the same minibatches")]
    return [Result("Core 6")]


MINIBATCHES = Part(
    "minibatches",
    "batch_size, num_minibatches, epochs",
    "rows",
    "rows: (epochs, num_minibatches, batch_size / num_minibatches), numbers from 0: the rows of "
    "each minibatch of one update.",
    judge=judge_minibatches,
    labels=("Core 6",),
)


def judge_sequences(call: Callable) -> list[Result]:
    steps, envs = 6, 8
    inputs = {"num_steps": steps, "num_envs": envs, "num_minibatches": 4}
    (minibatches,) = call(inputs, [(4, 6, 2)])
    if (np.sort(minibatches.flatten()) != np.arange(steps * envs)).any():
        return [Result("LSTM 4", message="an epoch does not visit every row once")]

    def whole(rows) -> bool:  # (steps, envs): each column is an environment, from its first step
        step, env = np.divmod(rows, envs)
        return bool((env == env[0]).all() and (step == np.arange(steps)[:, None]).all())

    if all(whole(rows) for rows in minibatches):
        return [Result("LSTM 4")]
    if all(whole(rows.reshape(2, steps).T) for rows in minibatches):
        name = (
            "the rows of a minibatch lie environment by environment, "
            "while the LSTM takes them step by step"
        )
        return [Result("LSTM 4", name)]
    return [Result("LSTM 4", WITHOUT)]


SEQUENCES = Part(
    "sequence_minibatches",
    "num_steps, num_envs, num_minibatches",
    "rows",
    "rows: (num_minibatches, num_steps, num_envs / num_minibatches), of one epoch, as the LSTM "
    "takes them; row = step * num_envs + env.",
    judge=judge_sequences,
    labels=("LSTM 4",),
)


# -------------------------------------------------------------------------------------------------
# Initial weights


def gain(weight: np.ndarray) -> float | None:
    """Return the gain of an orthogonal matrix, or None for another one."""
    values = np.linalg.svd(weight, compute_uv=False)
    return float(values.mean()) if np.ptp(values) <= 1e-3 * values.mean() else None


def by_pytorch(weight: np.ndarray, fan_in: int) -> bool:
    """Whether entries are uniform up to 1 / sqrt(fan_in), as far as one can see."""
    x = np.abs(weight) * np.sqrt(fan_in)
    return bool(x.max() <= 1.0001 and x.max() > 0.8 and 0.4 < x.mean() < 0.6)


def near(x: float | None, value: float) -> bool:
    return x is not None and abs(x - value) <= 1e-3 * value


def judge_layers(policy: list, value: list, obs_size: int) -> list[Result]:
    """Return what is wrong with layers, lists of weight and bias."""
    weights = [weight for weight, _ in policy + value]
    gains = [gain(weight) for weight in weights]
    if None in gains:
        fans = []
        for network in (policy, value):
            fan_in = obs_size
            for weight, _ in network:
                fans.append(fan_in)
                fan_in = weight.shape[0] if weight.shape[1] == fan_in else weight.shape[1]
        if all(by_pytorch(*pair) for pair in zip(weights, fans, strict=True)):
            return [Result("Core 2", WITHOUT)]
        return [
            Result("Core 2", message=f"weights are not orthogonal in {gains.count(None)} layers")
        ]
    results = []
    *hidden, head = gains[: len(policy)]
    *value_hidden, value_head = gains[len(policy) :]
    if any(np.abs(bias).max() > 0 for _, bias in policy + value):
        results.append(Result("Core 2", message="not all biases are 0"))
    if all(near(x, 1.0) for x in hidden + value_hidden):
        results.append(Result("Core 2", "the gain of hidden layers is 1"))
    elif not all(near(x, 2**0.5) for x in hidden + value_hidden):
        found = ", ".join(f"{x:.3g}" for x in hidden + value_hidden)
        results.append(Result("Core 2", message=f"gains of hidden layers are {found}, not sqrt(2)"))
    if near(head, 1.0):
        results.append(Result("Core 2", "the gain of the policy's last layer is 1"))
    elif not near(head, 0.01):
        message = f"the gain of the policy's last layer is {head:.3g}, not 0.01"
        results.append(Result("Core 2", message=message))
    if not near(value_head, 1.0):
        message = f"the gain of the value's last layer is {value_head:.3g}, not 1"
        results.append(Result("Core 2", message=message))
    return results or [Result("Core 2")]


def as_layers(layers, name: str) -> list[tuple[np.ndarray, np.ndarray]]:
    try:
        pairs = [(np.asarray(w, float), np.asarray(b, float)) for w, b in layers]
        if pairs and all(w.ndim == 2 and b.ndim == 1 and len(b) in w.shape for w, b in pairs):
            return pairs
    except (TypeError, ValueError):
        pass
    raise AdapterError(f"{name}: expected a list of pairs, weight (in, out) or (out, in) and bias")


def shared(policy: list, value: list) -> bool:
    return np.array_equal(policy[0][0], value[0][0])


def judge_discrete(call: Callable) -> list[Result]:
    policy, value = call({"obs_size": 5, "num_actions": 3}, 2)
    policy, value = as_layers(policy, "policy"), as_layers(value, "value")
    separate = Result("Core 13", WITHOUT if shared(policy, value) else None)
    return [*judge_layers(policy, value, 5), separate]


def judge_continuous(call: Callable) -> list[Result]:
    policy, value, logstd = call({"obs_size": 5, "action_size": 3}, 3)
    policy, value = as_layers(policy, "policy"), as_layers(value, "value")
    results = judge_layers(policy, value, 5)
    results.append(Result("Continuous 4", WITHOUT if shared(policy, value) else None))
    if logstd is None:
        results.append(Result("Continuous 2", WITHOUT))
        return results
    logstd = np.asarray(logstd, float)
    if logstd.shape != (3,):
        raise AdapterError(f"logstd has the shape {logstd.shape}, expected (3,)")
    if np.abs(logstd).max() == 0:
        results.append(Result("Continuous 2"))
    elif np.allclose(logstd, -0.5):
        name = "the initial standard deviation is 0.6"
        results.append(Result("Continuous 2", name, 0.5))
    else:
        message = "the log standard deviation does not start at 0"
        results.append(Result("Continuous 2", None, float(np.abs(logstd).max()), message))
    return results


LAYERS = (
    "policy, value: lists of the layers' (weight, bias), from the first to the last; a weight is "
    "(in, out) or (out, in). "
)
INITIAL = Part(
    "initial_weights",
    "obs_size, num_actions",
    "policy, value",
    LAYERS + "Of a new network for vectors and discrete actions. If the two share layers, both "
    "lists have them.",
    judge=judge_discrete,
    labels=("Core 2", "Core 13"),
)
INITIAL_CONTINUOUS = Part(
    "initial_weights_continuous",
    "obs_size, action_size",
    "policy, value, logstd",
    LAYERS + "Of a new network for vectors and continuous actions. logstd: (action_size,), or "
    "None if it depends on the observation.",
    judge=judge_continuous,
    labels=("Core 2", "Continuous 2", "Continuous 4"),
)


def judge_lstm(call: Callable) -> list[Result]:
    inputs, hidden, biases, state = call({}, 4)
    inputs, hidden, state = (np.asarray(x, float) for x in (inputs, hidden, state))
    size = min(hidden.shape, default=0)
    if sorted(hidden.shape) != [size, 4 * size]:
        raise AdapterError(f"hidden_weights has the shape {hidden.shape}, expected (4 size, size)")
    if inputs.ndim != 2 or 4 * size not in inputs.shape:
        shape = f"({4 * size}, input size)"
        raise AdapterError(f"input_weights has the shape {inputs.shape}, expected {shape}")
    biases = [np.asarray(bias, float) for bias in biases]
    results = []
    gains = gain(inputs), gain(hidden)
    uniform = by_pytorch(inputs, size), by_pytorch(hidden, size)
    if uniform == (True, True):
        results.append(Result("LSTM 1", WITHOUT))
    elif uniform[0] and near(gains[1], 1.0):
        results.append(Result("LSTM 1", "the weights of the inputs are PyTorch's"))
    elif near(gains[0], 1.0) and near(gains[1], 2**0.5):
        results.append(Result("LSTM 1", "the gain of the recurrent weights is sqrt(2)"))
    elif not (near(gains[0], 1.0) and near(gains[1], 1.0)):
        results.append(Result("LSTM 1", message="weights are not orthogonal with gain 1"))
    if len(biases) > 1:
        results.append(Result("LSTM 1", "two biases learn, so that their sum moves twice as far"))
    if any(np.abs(bias).max() > 0 for bias in biases) and WITHOUT not in [r.fault for r in results]:
        results.append(Result("LSTM 1", message="not all biases are 0"))
    results = results or [Result("LSTM 1")]
    if np.abs(state).max() == 0:
        results.append(Result("LSTM 2"))
    elif (state == 1).all():
        results.append(Result("LSTM 2", "the first state is all ones", 1.0))
    else:
        results.append(Result("LSTM 2", WITHOUT, float(np.abs(state).max())))
    return results


INITIAL_LSTM = Part(
    "initial_lstm",
    "",
    "input_weights, hidden_weights, biases, state",
    "Of a new LSTM: input_weights: (4 size, input size), hidden_weights: (4 size, size), or "
    "transposed; biases: a list of those that learn; state: hidden and cell state at the start "
    "of training, of any shape.",
    judge=judge_lstm,
    labels=("LSTM 1", "LSTM 2"),
)


# -------------------------------------------------------------------------------------------------
# Normalisation of observations and rewards


def observation_cases() -> list[Case]:
    recording = load("normalize")
    recorded = Case(
        "a stream of the official code",
        {"observations": single(recording["obs"])},
        (recording["out_obs"].astype(float),),
    )
    rng = np.random.default_rng(3)
    stream = rng.normal(size=(40, 3, 2)) * [1, 20] + [2, -50]
    stream[-1, 0] = [500, -3000]  # beyond the clip
    stream[-5, 1, 0] = 12  # beyond 5, not beyond 10
    # 16 bits are enough for the spread of a large number, and single precision for no mean of them.
    large = rng.normal(size=(200, 3, 2)) + 20_000
    return [
        recorded,
        Case("values beyond the clip", {"observations": single(stream)}),
        Case("large numbers that hardly vary", {"observations": single(large)}),
    ]


OBSERVATIONS = Part(
    "normalize_observations",
    "observations",
    "normalized",
    "observations: (steps + 1, envs, size), a stream, that of the first reset first; normalized: "
    "the same shape, what the network gets, with the statistics of that moment.",
    checks=(
        Check(
            ("Continuous 6", "Continuous 7"),
            forms.OBSERVATIONS,
            observation_cases(),
            telling={
                "large numbers that hardly vary": (
                    "Continuous 6",
                    "the statistics are kept in float32",
                )
            },
        ),
    ),
)


def reward_cases() -> list[Case]:
    recording = load("normalize")
    recorded = Case(
        "a stream of the official code",
        {
            "rewards": single(recording["rewards"]),
            "dones": recording["dones"].astype(float),
            "gamma": 0.99,
        },
        (recording["out_rew"].astype(float),),
    )
    rng = np.random.default_rng(5)
    rewards = rng.normal(size=(30, 3)) + 0.5
    rewards[0] = [1000, -3, 2]  # a first reward before there is a deviation
    rewards[-2, 1] = 1e4
    dones = (rng.uniform(size=(30, 3)) < 0.2).astype(float)
    small = {"rewards": single(rewards[1:-2] * 0.1), "dones": dones[1:-2], "gamma": 0.9}
    inputs = {"rewards": single(rewards), "dones": dones, "gamma": 0.9}
    return [recorded, Case("values beyond the clip", inputs), Case("small rewards", small)]


REWARDS = Part(
    "normalize_rewards",
    "rewards, dones, gamma",
    "normalized",
    "rewards, dones, normalized: (steps, envs), a stream; dones is 1 where the step ended an "
    "episode; normalized: what the learner gets, with the statistics of that moment.",
    checks=(Check(("Continuous 8", "Continuous 9"), forms.REWARDS, reward_cases()),),
)


# -------------------------------------------------------------------------------------------------
# Distributions and actions


def categorical_case() -> Case:
    actions = np.random.default_rng(2).integers(0, 4, 6)
    return Case("logits of all sizes", {"logits": normal(1, 6, 4, scale=2), "actions": actions})


CATEGORICAL = Part(
    "categorical",
    "logits, actions",
    "logprobs, entropies",
    "logits: (rows, num_actions); actions, logprobs, entropies: (rows,).",
    checks=(Check(("",), forms.CATEGORICAL, [categorical_case()]),),
)


def masked_cases() -> list[Case]:
    rng = np.random.default_rng(4)
    cases = []
    for name, logits in [
        ("logits around 0", normal(5, 8, 5)),
        ("invalid actions with large logits", normal(6, 8, 5, scale=8) - 20),
    ]:
        mask = rng.uniform(size=(8, 5)) < 0.5
        actions = rng.integers(0, 5, 8)
        mask[np.arange(8), actions] = True
        mask[np.arange(8), (actions + 1) % 5] = False
        logits = single(logits + np.where(mask, 0, 30) * (name != "logits around 0"))
        cases.append(Case(name, {"logits": logits, "mask": mask, "actions": actions}))
    return cases


MASKED = Part(
    "masked_categorical",
    "logits, mask, actions",
    "probabilities, logprobs, entropies",
    "logits, mask, probabilities: (rows, num_actions), mask is True where an action is valid; "
    "actions, logprobs, entropies: (rows,), the actions are valid.",
    checks=(
        Check(
            ("Aux 4",),
            forms.MASKED,
            masked_cases(),
            lambda x, out: (out[0], np.maximum(out[1], forms.LEAST), out[2]),
        ),
    ),
)


def multidiscrete_case() -> Case:
    rng = np.random.default_rng(6)
    logits = [normal(7 + k, 6, k) for k in (3, 2, 5)]
    actions = np.stack([rng.integers(0, k, 6) for k in (3, 2, 5)], axis=1)
    return Case("three components", {"logits": logits, "actions": actions})


MULTIDISCRETE = Part(
    "multidiscrete",
    "logits, actions",
    "logprobs, entropies",
    "logits: a list of arrays (rows, choices), one for each component; actions: (rows, components); "
    "logprobs, entropies: (rows,).",
    checks=(Check(("MultiDiscrete 1",), forms.MULTIDISCRETE, [multidiscrete_case()]),),
)
GAUSSIAN = Part(
    "gaussian",
    "means, logstds, actions",
    "logprobs, entropies",
    "means, actions: (rows, size); logstds: (size,); logprobs, entropies: (rows,).",
    checks=(
        Check(
            ("Continuous 1", "Continuous 3"),
            forms.GAUSSIAN,
            [
                Case(
                    "three components",
                    {
                        "means": normal(1, 6, 3),
                        "logstds": normal(2, 3, scale=0.5),
                        "actions": normal(3, 6, 3),
                    },
                )
            ],
        ),
    ),
)


def moments(x: dict, out: tuple) -> tuple:
    (draws,) = out
    return draws.mean(axis=0), draws.std(axis=0), np.corrcoef(draws.T)[0, 1]


SAMPLES = Part(
    "gaussian_samples",
    "means, logstds, count",
    "actions",
    "means, logstds: (size,); actions: (count, size), 20,000 draws from the policy: draw them at "
    "once if you can.",
    checks=(
        Check(
            ("Continuous 1", "Continuous 3"),
            forms.DRAWS,
            [
                Case(
                    "20,000 draws",
                    {
                        "means": single([0.5, -1.0]),
                        "logstds": single([-0.5, 0.5]),
                        "count": 20_000,
                    },
                    rtol=0.05,
                )
            ],
            moments,
        ),
    ),
)
ACTIONS = Part(
    "actions",
    "sampled, low, high",
    "taken, stored",
    "sampled: (envs, size), drawn by the policy; low, high: (size,), the environment's bounds; "
    "taken: what the environment gets; stored: what the learner gets.",
    checks=(
        Check(
            ("Continuous 5",),
            forms.ACTIONS,
            [
                Case(
                    "actions beyond the bounds",
                    {
                        "sampled": normal(1, 8, 2, scale=2),
                        "low": single([-1, -0.5]),
                        "high": single([1, 2]),
                    },
                )
            ],
        ),
    ),
)


# -------------------------------------------------------------------------------------------------
# The recurrent network


def lstm_cases(training: bool) -> list[Case]:
    steps, envs, inputs, hidden = 7, 3, 4, 5
    x = {
        "inputs": normal(1, steps, envs, inputs),
        "hidden": normal(3, envs, hidden),
        "cell": normal(4, envs, hidden),
    }
    if training:
        x["after"] = (normal(8, envs, hidden), normal(9, envs, hidden))
    x |= {
        "input_weights": normal(5, 4 * hidden, inputs, scale=0.5),
        "hidden_weights": normal(6, 4 * hidden, hidden, scale=0.5),
        "bias": normal(7, 4 * hidden, scale=0.5),
    }
    cases = []
    for name, places in [
        ("no episode begins", []),
        ("an episode begins inside the rollout", [(3, 0), (5, 1), (6, 2)]),
        ("an episode begins with the rollout", [(0, 0), (4, 1)]),
    ]:
        starts = np.zeros((steps, envs))
        for place in places:
            starts[place] = 1
        cases.append(Case(name, x | {"starts": starts}))
    return cases


LSTM_TEXT = (
    "inputs: (steps, envs, size); starts: (steps, envs), 1 where the observation begins an episode; "
    "hidden, cell: (envs, hidden), the state before the first step; input_weights: (4 hidden, "
    "size), hidden_weights: (4 hidden, hidden), bias: (4 hidden,), the gates in PyTorch's order "
    "input, forget, candidate, output; outputs: (steps, envs, hidden), the hidden states. "
)
LSTM_ROLLOUT = Part(
    "lstm_rollout",
    "inputs, starts, hidden, cell, input_weights, hidden_weights, bias",
    "outputs",
    LSTM_TEXT + "As your rollout does it, step by step.",
    checks=(Check(("LSTM 3",), forms.ROLLOUT_LSTM, lstm_cases(training=False)),),
)
LSTM_TRAINING = Part(
    "lstm_training",
    "inputs, starts, hidden, cell, after, input_weights, hidden_weights, bias",
    "outputs",
    LSTM_TEXT + "As your training does it; after: hidden and cell state after the rollout.",
    checks=(Check(("LSTM 3", "LSTM 5"), forms.TRAINING_LSTM, lstm_cases(training=True)),),
)


# -------------------------------------------------------------------------------------------------
# Atari

ATARI_DETAILS = ("Atari 2", "Atari 3", "Atari 4", "Atari 5", "Atari 6", "Atari 7")
GAMES = ("Breakout", "Pong", "Qbert")  # with lives, without, and with many
GREY = 0.1  # by how many grey levels an image may be off on average


def off_by(got: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> tuple[int, str] | None:
    """Return the first step at which a game goes another way, and in what."""
    first = []
    for key, x in got.items():
        wrong = np.abs(x.astype(float) - expected[key]) > (GREY if key == "means" else 0)
        if wrong.any():
            first.append((int(wrong.argmax()), key))
    return min(first, default=None)


def judge_atari(call: Callable) -> list[Result]:
    recording = load("atari")
    with np.load(HERE / "atari.npz") as file:
        variants = dict(file)
    played, differences = {}, {}
    for game in GAMES:
        inputs = {
            "env_id": f"{game}NoFrameskip-v4",
            "actions": recording[f"{game}/actions"].astype(int),
            "noops": int(recording["noops"]),
        }
        stacks, *numbers = call(inputs, 4)
        stacks = np.asarray(stacks)
        steps = len(inputs["actions"])
        images = stacks.shape[1:]
        if len(stacks) != steps + 1 or (84, 84) not in (images[:2], images[-2:]):
            raise AdapterError(
                f"stacks has the shape {stacks.shape}, expected ({steps + 1}, 84, 84, 4)"
            )
        if images[:2] != (84, 84):
            stacks = np.moveaxis(stacks, 1, -1)
        got = {"means": stacks.reshape(steps + 1, -1).mean(axis=1)}
        for key, x in zip(("rewards", "dones", "lives"), numbers, strict=True):
            got[key] = np.asarray(x)
            if got[key].shape != (steps,):
                raise AdapterError(f"{key} has the shape {got[key].shape}, expected ({steps},)")
        played[game] = got
        differences[game] = off_by(got, {key: recording[f"{game}/{key}"] for key in got})
        kept = recording[f"{game}/stacks"].astype(float)
        if differences[game] is None and stacks.shape[-1] == 4:
            errors = np.abs(stacks[recording[f"{game}/keep"]] - kept).mean(axis=(1, 2, 3))
            if errors.max() > GREY:
                differences[game] = int(recording[f"{game}/keep"][errors.argmax()]), "stacks"
    if not any(differences.values()) and stacks.shape[-1] == 4:
        return [Result(label) for label in ATARI_DETAILS]
    for i, name in enumerate(variants["names"]):
        label, _, fault = str(name).partition(": ")
        if not any(
            off_by(got, {key: variants[f"{i}/{game}/{key}"] for key in got})
            for game, got in played.items()
        ):
            return [Result(x, fault if x == label else None) for x in ATARI_DETAILS]
    places = [f"{game}: {x[1]} from step {x[0]} on" for game, x in differences.items() if x]
    return [Result("Atari", message=f"in one of Atari 2 to 7 or several: {'; '.join(places)}")]


ATARI = Part(
    "atari",
    "env_id, actions, noops",
    "stacks, rewards, dones, lives",
    "Make the environment, reset it with seed 123, and play the actions, (steps,). Reset it where "
    "an episode ended, without a seed. Every reset of a game takes as many no-ops as noops says. "
    "rewards, dones, lives: (steps,), those that the learner gets, and the lives left; stacks: "
    "(steps + 1, 84, 84, 4) or (steps + 1, 4, 84, 84) of bytes, that of the reset first, and after "
    "an end that of the new episode. Actions are never repeated at random.",
    judge=judge_atari,
    labels=ATARI_DETAILS,
)

PARTS = [
    GAE,
    GAE_TRUNCATED,
    NORMALIZE,
    LOSS,
    GRADIENTS,
    KL,
    CLIP_FRACTION,
    EXPLAINED,
    EARLY_STOP,
    OPTIMIZER,
    LEARNING_RATE,
    CLIP_RANGE,
    MINIBATCHES,
    SEQUENCES,
    INITIAL,
    INITIAL_CONTINUOUS,
    INITIAL_LSTM,
    OBSERVATIONS,
    REWARDS,
    CATEGORICAL,
    MASKED,
    MULTIDISCRETE,
    GAUSSIAN,
    SAMPLES,
    ACTIONS,
    LSTM_ROLLOUT,
    LSTM_TRAINING,
    ATARI,
]
