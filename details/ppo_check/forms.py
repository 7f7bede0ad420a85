"""The official form of each part of PPO in NumPy, and what it becomes when it is got wrong.

A part has a list of forms: what is wrong, as (label, name) pairs of the catalogue, none of them in
the official form, and a function of the part's inputs. Functions return tuples of float64 arrays.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import product

import numpy as np

Fault = tuple[str, str]  # ("Core 5", the variant's name), or ("Core 5", "without")
Form = tuple[tuple[Fault, ...], Callable]
WITHOUT = "without"

OTHER_EPSILONS = (1e-5, 1e-6, 1e-7, 1e-10, 1e-12)
# Forms that are not in the catalogue's list of variants. Sound ones are no mistakes.
SOUND = {
    ("Core 13", WITHOUT): (
        "The official code shares one body too, unless it is asked for two, as its settings for "
        "MuJoCo do."
    ),
    ("Core 5", "time limits are bootstrapped from the final observation"): (
        "The official code treats a time limit like any other end. Adding the value of what would "
        "have followed is right in theory, and what --bootstrap-truncated does here."
    ),
    ("Core 12", "the approximate KL is the mean of ratio - 1 - log ratio"): (
        "Another estimate of the same quantity, and never negative; the official one is half the "
        "mean square of the log-ratio."
    ),
    ("Core 12", "the approximate KL is the mean of old minus new log-probability"): (
        "Another estimate of the same quantity, noisier, and sometimes negative; the official one "
        "is half the mean square of the log-ratio."
    ),
    ("Core 7", "the standard deviation counts as 1e-6 at least"): (
        "The official code adds 1e-8 to it. The two differ only where the advantages of a "
        "minibatch are nearly equal."
    ),
    **{
        ("Core 7", f"{epsilon} is added to the standard deviation"): (
            "The official code adds 1e-8 to it. The two differ only where the advantages of a "
            "minibatch are nearly equal."
        )
        for epsilon in OTHER_EPSILONS
    },
    ("Atari 7", "the stack of a new episode starts black"): (
        "So it is in the official training, whose VecFrameStack fills up with black; the official "
        "FrameStack, which was recorded, starts with four copies of the first image."
    ),
    ("Aux 3", "the threshold is target_kl itself"): (
        "Spinning Up stops at 1.5 times target_kl; the scripts here stop at target_kl."
    ),
}
# Variants of the catalogue whose numbers are those of another form
SAME = {
    # Of that error and the unclipped one, the unclipped one is always the larger.
    ("Core 9", WITHOUT): "the value is clipped around the return",
}
OTHERS = {
    ("Core 9", "the clipped value error alone counts"): (
        "Of the errors with and without clipping the larger one counts. If only the clipped one "
        "does, a value that has moved further than epsilon gets no gradient, not even back towards "
        "its target."
    ),
    ("Core 7", "nothing is added to the standard deviation"): (
        "Where all advantages of a minibatch are equal, the division by 0 makes them NaN, and with "
        "them every weight."
    ),
    ("Core 10", "there is no entropy bonus"): (
        "Nothing holds the policy back from becoming certain. For MuJoCo the official weight of the "
        "bonus is 0, too."
    ),
    ("Core 10", "the value loss is smooth L1"): (
        "Beyond an error of 1 the gradient no longer grows, so returns with rare large values pull "
        "less at the value function than in the official code."
    ),
    ("Continuous 6", "the variance is that of a sample"): (
        "Each batch's variance is divided by n - 1. With the few environments of one step it comes "
        "out too large, and observations too small."
    ),
    ("Continuous 6", "the statistics begin with the weight of a whole row"): (
        "The official mean 0 and variance 1 that the statistics begin with weigh 1e-4 of a row; "
        "the first observations are normalised otherwise."
    ),
}


def choices(*groups: tuple[str, dict[str, object]], of: Callable) -> list[Form]:
    """Return forms for one choice out of every group: its label, and its choices by name.

    A group's first choice is the official one; `of` makes a function of the chosen ones. A name
    that has two choices ends with a space in one of them.
    """
    forms = []
    for combination in product(*(choice.items() for _, choice in groups)):
        faults = []
        for (label, choice), (name, _) in zip(groups, combination, strict=True):
            if name != next(iter(choice)):
                faults.append((label, name.strip()))
        forms.append((tuple(faults), of(*(value for _, value in combination))))
    # The simplest explanation comes first.
    return sorted(forms, key=lambda form: len(form[0]))


# -------------------------------------------------------------------------------------------------
# Core 5: advantages


def advantages_of(
    rewards, following, values, delta_ends, sum_ends, gamma: float, gae_lambda: float
) -> np.ndarray:
    """Return GAE, where the ends of episodes may count in one place and not in the other."""
    advantages = np.zeros_like(rewards)
    advantage = np.zeros_like(rewards[0])
    for t in reversed(range(len(rewards))):
        delta = rewards[t] + gamma * (1 - delta_ends[t]) * following[t] - values[t]
        advantage = delta + gamma * gae_lambda * (1 - sum_ends[t]) * advantage
        advantages[t] = advantage
    return advantages


def next_values(values, next_value) -> np.ndarray:
    return np.concatenate([values[1:], next_value[None]])


def late(flags, first) -> np.ndarray:
    """Return flags that come one step later."""
    return np.concatenate([first[None], flags[:-1]])


def gae(*changes: Callable | None) -> Callable:
    """Return GAE of its inputs; `changes` get them first, with the two sorts of ends."""

    def form(rewards, values, dones, next_value, gamma, gae_lambda):
        x = {
            "rewards": rewards,
            "values": values,
            "next_value": next_value,
            "delta_ends": dones,
            "sum_ends": dones,
            "gamma": gamma,
            "gae_lambda": gae_lambda,
        }
        for change in filter(None, changes):
            x |= change(x)
        return (advantages_of(following=next_values(x["values"], x.pop("next_value")), **x),)

    return form


def no_ends(*names: str) -> Callable:
    return lambda x: {name: 0 * x[name] for name in names}


def late_ends(x, first: Callable) -> dict:
    ends = late(x["sum_ends"], first(x["sum_ends"]))
    return {"delta_ends": ends, "sum_ends": ends}


THROUGH = "the value of the next episode's first observation is bootstrapped through an end"
PAST = "the sum runs on past the end of an episode"
LATE = "the flag of an episode's end counts one step late"


LAMBDAS = {"": None, WITHOUT: lambda x: {"gae_lambda": 1.0}}
ENDS = {
    "": None,
    PAST: no_ends("sum_ends"),
    THROUGH: no_ends("delta_ends"),
    # The first flag may be the last one of the rollout, or none.
    LATE: partial(late_ends, first=lambda ends: ends[-1]),
    f"{LATE} ": partial(late_ends, first=lambda ends: 0 * ends[0]),
}
SEGMENT_ENDS = {
    "": None,
    "nothing stands for what follows the rollout": lambda x: {"next_value": 0 * x["next_value"]},
    "the rollout is bootstrapped from its last observation instead of the next one": lambda x: {
        "next_value": x["values"][-1]
    },
}
ADVANTAGES = choices(
    ("Core 5", LAMBDAS),
    ("Core 5", ENDS),
    ("Core 5", SEGMENT_ENDS),
    of=gae,
)
# The two together are GAE without any ends.
ADVANTAGES.append(((("Core 5", PAST), ("Core 5", THROUGH)), gae(no_ends("delta_ends", "sum_ends"))))

# What is added to the advantages
TARGETS = [
    ((), lambda values, **_: (values,)),
    (
        (("Core 5", "the value targets are those of the step after"),),
        lambda values, next_value, **_: (next_values(values, next_value),),
    ),
]


def truncated_gae(cut: Callable, final: Callable | None = None) -> Callable:
    """Return GAE that adds `final` values where `cut`, functions of the inputs, says so."""

    def form(**x):
        worth = (final or (lambda x: x["gamma"] * x["final_values"]))(x)
        rewards = x["rewards"] + np.where(cut(x) > 0, worth, 0)
        ends = np.maximum(x["terminated"], x["truncated"])
        following = next_values(x["values"], x["next_value"])
        args = (rewards, following, x["values"], ends, ends, x["gamma"], x["gae_lambda"])
        return (advantages_of(*args),)

    return form


def past_time_limits(rewards, values, terminated, next_value, gamma, gae_lambda, **_):
    return gae()(rewards, values, terminated, next_value, gamma, gae_lambda)


def by_time_alone(x) -> np.ndarray:
    return x["truncated"] * (1 - x["terminated"])


def changed(form: Callable, *changes: Callable | None) -> Callable:
    def with_changes(**x):
        for change in filter(None, changes):
            x |= change(x)
        return form(**x)

    return with_changes


TIME_LIMITS = {
    "": truncated_gae(lambda x: 0 * x["truncated"]),
    "time limits are bootstrapped from the final observation": truncated_gae(by_time_alone),
    "the sum runs on past a time limit": past_time_limits,
    "the final observation of a time limit is taken from the next episode": truncated_gae(
        by_time_alone, lambda x: x["gamma"] * next_values(x["values"], x["next_value"])
    ),
    "true ends are bootstrapped like time limits": truncated_gae(
        lambda x: np.maximum(x["terminated"], x["truncated"])
    ),
    "an end that is also a time limit is bootstrapped": truncated_gae(lambda x: x["truncated"]),
    "the value of a final observation is not discounted": truncated_gae(
        by_time_alone, lambda x: x["final_values"]
    ),
}
TRUNCATED = choices(
    ("Core 5", TIME_LIMITS), ("Core 5", LAMBDAS), ("Core 5", SEGMENT_ENDS), of=changed
)


# -------------------------------------------------------------------------------------------------
# Core 7: advantages normalised


def normalized(scope: str, ddof: int, centre: bool, guard: Callable) -> Callable:
    def form(advantages, minibatches):
        results = []
        for rows in minibatches:
            x = advantages[rows]
            of = x if scope == "minibatch" else advantages
            with np.errstate(invalid="ignore", divide="ignore"):
                results.append((x - of.mean() * centre) / guard(of.std(ddof=ddof)))
        return (np.stack(results),)

    return form


SAMPLE = "the advantages are divided by the sample standard deviation"
NORMALIZED = choices(
    (
        "Core 7",
        {"": "minibatch", "the advantages are normalised over the whole batch": "batch"},
    ),
    ("Core 7", {"": 0, SAMPLE: 1}),
    ("Core 7", {"": True, "the advantages keep their mean": False}),
    (
        "Core 7",
        {
            "": lambda std: std + 1e-8,
            "nothing is added to the standard deviation": lambda std: std,
            "the standard deviation counts as 1e-6 at least": lambda std: np.maximum(std, 1e-6),
            **{
                f"{epsilon} is added to the standard deviation": partial(np.add, epsilon)
                for epsilon in OTHER_EPSILONS
            },
        },
    ),
    of=normalized,
)
NORMALIZED.insert(
    1,
    (
        (("Core 7", WITHOUT),),
        lambda advantages, minibatches: (np.stack([advantages[rows] for rows in minibatches]),),
    ),
)


# -------------------------------------------------------------------------------------------------
# Core 8 to 10: the terms of the loss, for each row


def slope(function: Callable, x: np.ndarray) -> np.ndarray:
    """Return the derivative of a function of each entry by itself."""
    h = 1e-6
    return (function(x + h) - function(x - h)) / (2 * h)


def surrogate(worse, lower: float, upper: float, sign: int, logratio, advantages, clip_coef):
    ratio = np.exp(sign * logratio)
    clipped = np.clip(ratio, 1 - lower * clip_coef, 1 + upper * clip_coef)
    return -worse(advantages * ratio, advantages * clipped)


def second(_, clipped):
    return clipped


def first(unclipped, _):
    return unclipped


SURROGATES = {
    "": partial(surrogate, np.minimum, 1, 1, 1),
    WITHOUT: partial(surrogate, first, 1, 1, 1),
    "the better of the clipped and the unclipped objective counts": partial(
        surrogate, np.maximum, 1, 1, 1
    ),
    "the clipped objective alone counts, so that a policy that has gone too far is not called back": (
        partial(surrogate, second, 1, 1, 1)
    ),
    "the ratio is clipped from above only": partial(surrogate, np.minimum, np.inf, 1, 1),
    "the log-ratio is upside down": partial(surrogate, np.minimum, 1, 1, -1),
}


def policy_term(term: Callable, ddof: int, gradient: bool) -> Callable:
    def form(logprobs, old_logprobs, advantages, clip_coef, **_):
        # They come normalised, so a loss that normalises them once more changes nothing but this.
        scaled = advantages * np.sqrt(1 - ddof / len(advantages))

        def rows(x):
            return term(x - old_logprobs, scaled, clip_coef)

        if gradient:
            return (slope(rows, logprobs) / len(logprobs),)
        return (rows(logprobs).mean(),)

    return form


def policy_forms(gradient: bool) -> list[Form]:
    return choices(
        ("Core 8", SURROGATES),
        ("Core 7", {"": 0, SAMPLE: 1}),
        of=partial(policy_term, gradient=gradient),
    )


def value_errors(larger, clipped: Callable, error, values, old_values, returns, clip_coef):
    near = clipped(values, old_values, returns, clip_coef)
    return larger(error(values - returns), error(near - returns))


def around_old(values, old_values, returns, clip_coef):
    return old_values + np.clip(values - old_values, -clip_coef, clip_coef)


def around_new(values, old_values, returns, clip_coef):
    return values + np.clip(old_values - values, -clip_coef, clip_coef)


def half_square(x):
    return 0.5 * x**2


def smooth_l1(x):
    return np.where(np.abs(x) < 1, 0.5 * x**2, np.abs(x) - 0.5)


VALUE_ERRORS = {
    "": partial(value_errors, np.maximum, around_old),
    WITHOUT: partial(value_errors, first, around_old),
    "the smaller of the clipped and the unclipped value error counts": partial(
        value_errors, np.minimum, around_old
    ),
    "the value is clipped around the new prediction": partial(value_errors, np.maximum, around_new),
    "the clipped value error alone counts": partial(value_errors, second, around_old),
}
WEIGHTS = {"": lambda vf_coef: vf_coef, "the value loss has no weight": lambda vf_coef: 1.0}
SHARES = {"": 1, "the value loss is the whole squared error instead of its half": 2}


def value_term(errors: Callable, error: Callable, weight, share, gradient: bool) -> Callable:
    def form(values, old_values, returns, clip_coef, vf_coef, **_):
        def rows(x):
            return share * weight(vf_coef) * errors(error, x, old_values, returns, clip_coef)

        if gradient:
            return (slope(rows, values) / len(values),)
        return (rows(values).mean(),)

    return form


def value_forms(gradient: bool) -> list[Form]:
    return choices(
        ("Core 9", VALUE_ERRORS),
        ("Core 10", {"": half_square, "the value loss is smooth L1": smooth_l1}),
        ("Core 10", WEIGHTS),
        ("Core 10", SHARES),
        of=partial(value_term, gradient=gradient),
    )


def entropy_term(sign: int, gradient: bool) -> Callable:
    def form(entropies, ent_coef, **_):
        if gradient:
            return (np.full(len(entropies), sign * ent_coef / len(entropies)),)
        return (sign * ent_coef * entropies.mean(),)

    return form


def entropy_forms(gradient: bool) -> list[Form]:
    return choices(
        (
            "Core 10",
            {
                "": -1,
                "there is no entropy bonus": 0,
                "the entropy has the wrong sign, so that certainty is rewarded": 1,
            },
        ),
        of=partial(entropy_term, gradient=gradient),
    )


def whole_loss(**x) -> tuple[np.ndarray]:
    terms = policy_forms(False)[0][1], value_forms(False)[0][1], entropy_forms(False)[0][1]
    return (sum(term(**x)[0] for term in terms),)


# -------------------------------------------------------------------------------------------------
# Core 3 and 11: the optimiser's steps


def clip_together(gradients: Sequence[np.ndarray], largest: float) -> list[np.ndarray]:
    norm = np.sqrt(sum((x**2).sum() for x in gradients))
    return [x * min(1, largest / max(norm, 1e-12)) for x in gradients]


def clip_each(gradients: Sequence[np.ndarray], largest: float) -> list[np.ndarray]:
    return [clip_together([x], largest)[0] for x in gradients]


def clip_none(gradients: Sequence[np.ndarray], largest: float) -> list[np.ndarray]:
    return list(gradients)


def epsilon_before(value: float) -> Callable:
    """TensorFlow's place: added to sqrt(v), before the bias correction."""
    return lambda t: value


def epsilon_after(value: float) -> Callable:
    """PyTorch's place: added to sqrt(v / (1 - beta2^t))."""
    return lambda t: value * np.sqrt(1 - 0.999**t)


def adam(epsilon: Callable, clip: Callable) -> Callable:
    """Return how far the parameters move in all steps."""

    def form(parameters, gradients, learning_rate, max_grad_norm):
        moves = [np.zeros_like(x) for x in parameters]
        means = [np.zeros_like(x) for x in parameters]
        squares = [np.zeros_like(x) for x in parameters]
        for t, gradient in enumerate(gradients, start=1):
            rate = learning_rate * np.sqrt(1 - 0.999**t) / (1 - 0.9**t)
            for i, x in enumerate(clip(gradient, max_grad_norm)):
                means[i] = 0.9 * means[i] + 0.1 * x
                squares[i] = 0.999 * squares[i] + 0.001 * x**2
                moves[i] = moves[i] - rate * means[i] / (np.sqrt(squares[i]) + epsilon(t))
        return tuple(moves)

    return form


OPTIMIZERS = choices(
    (
        "Core 3",
        {
            "": epsilon_before(1e-5),
            WITHOUT: epsilon_after(1e-8),
            "Adam's epsilon of 1e-5 is added after the bias correction": epsilon_after(1e-5),
            "Adam's epsilon is 1e-8, before the bias correction": epsilon_before(1e-8),
        },
    ),
    (
        "Core 11",
        {
            "": clip_together,
            WITHOUT: clip_none,
            "the gradient of each parameter is clipped by its own norm": clip_each,
        },
    ),
    of=adam,
)


# -------------------------------------------------------------------------------------------------
# Core 4 and Aux 1: schedules


def linear(update, num_updates, initial):
    return (np.asarray(initial * (1 - update / num_updates)),)


def early(update, num_updates, initial):
    return linear(update + 1, num_updates, initial)


def constant(update, num_updates, initial):
    return (np.asarray(initial),)


LEARNING_RATES = [
    ((), linear),
    ((("Core 4", WITHOUT),), constant),
    ((("Core 4", "the learning rate is already lowered before the first update"),), early),
]
CLIP_RANGES = [
    ((), constant),
    ((("Aux 1", "the clip range falls with the learning rate, unasked"),), linear),
]


# -------------------------------------------------------------------------------------------------
# Core 12 and Aux 3: debug variables, early stopping


def scalar(function: Callable) -> Callable:
    return lambda **x: (np.asarray(function(**x), dtype=float),)


def of_logratio(function: Callable) -> Callable:
    return scalar(lambda logprobs, old_logprobs: function(logprobs - old_logprobs).mean())


KLS = [
    ((), of_logratio(lambda x: 0.5 * x**2)),
    (
        (("Core 12", "the approximate KL is the mean of ratio - 1 - log ratio"),),
        of_logratio(lambda x: np.exp(x) - 1 - x),
    ),
    (
        (("Core 12", "the approximate KL is the mean of old minus new log-probability"),),
        of_logratio(lambda x: -x),
    ),
    ((("Core 12", "the approximate KL has the wrong sign"),), of_logratio(lambda x: x)),
    (
        (("Core 12", "the approximate KL is that of new to old policy"),),
        of_logratio(lambda x: np.exp(x) * x),
    ),
]


@scalar
def clip_fraction(logprobs, old_logprobs, clip_coef):
    return (np.abs(np.exp(logprobs - old_logprobs) - 1) > clip_coef).mean()


CLIP_FRACTIONS = [((), clip_fraction)]
EXPLAINED = [
    ((), scalar(lambda values, returns: 1 - (returns - values).var() / returns.var())),
    (
        (("Core 12", "the explained variance is that of the values themselves"),),
        scalar(lambda values, returns: 1 - values.var() / returns.var()),
    ),
]


def epochs_until(kl_of: Callable, factor: float) -> Callable:
    def epochs(kls, target_kl):
        for epoch in range(len(kls)):
            if kl_of(kls, epoch) > factor * target_kl:
                return epoch + 1
        return len(kls)

    return scalar(epochs)


EPOCHS = [
    ((), epochs_until(lambda kls, epoch: kls[epoch].mean(), 1.5)),
    (
        (("Aux 3", "the threshold is target_kl itself"),),
        epochs_until(lambda kls, epoch: kls[epoch].mean(), 1.0),
    ),
    ((("Aux 3", "the threshold is never reached"),), scalar(lambda kls, target_kl: len(kls))),
]
for factor in (1.0, 1.5):
    EPOCHS.append(
        (
            (("Aux 3", "the KL is that of the epoch's last minibatch"),),
            epochs_until(lambda kls, epoch: kls[epoch, -1], factor),
        )
    )
    EPOCHS.append(
        (
            (("Aux 3", "the KL is the mean of all epochs so far"),),
            epochs_until(lambda kls, epoch: kls[: epoch + 1].mean(), factor),
        )
    )


# -------------------------------------------------------------------------------------------------
# Continuous 6 to 9: observations and rewards


class Moments:
    """Mean and variance of all rows so far, by the definition; a prior weighs 1e-4 of a row."""

    def __init__(self, shape: tuple[int, ...], *, ddof=0, prior=1e-4, spread=True):
        self.mean = np.zeros(shape)
        self.var = np.ones(shape)
        self.count = prior
        self.ddof = ddof
        self.spread = spread

    def add(self, rows: np.ndarray) -> None:
        n, total = len(rows), self.count + len(rows)
        delta = rows.mean(axis=0) - self.mean
        between = delta**2 * self.count * n / total if self.spread else 0
        squares = self.var * self.count + rows.var(axis=0, ddof=min(self.ddof, n - 1)) * n + between
        self.mean = self.mean + delta * n / total
        self.var = squares / total
        self.count = total


def clipped(bound: float) -> Callable:
    return lambda x: np.clip(x, -bound, bound)


def observations(how: dict, variance: dict, prior: dict, clip: Callable) -> Callable:
    """`how`: arguments of Moments, and which rows are counted when."""
    how = how | variance | prior
    count = how.get("count", lambda rows: rows)
    moments_args = {
        key: value for key, value in how.items() if key not in ("count", "before", "off")
    }

    def form(observations):
        if how.get("off"):
            return (clip(observations),)
        moments = Moments(observations.shape[2:], **moments_args)
        results = []
        for rows in observations:
            counted = count(rows)
            if not how.get("before"):
                moments.add(counted)
            results.append(clip((rows - moments.mean) / np.sqrt(moments.var + 1e-8)))
            if how.get("before"):
                moments.add(counted)
        return (np.stack(results),)

    return form


OBSERVATIONS = choices(
    (
        "Continuous 6",
        {
            "": {},
            WITHOUT: {"off": True},
            "observations are clipped before they are counted": {"count": clipped(10)},
            "observations are normalised by what was seen before them": {"before": True},
            "the statistics are those of the first environment": {"count": lambda rows: rows[:1]},
            "the spread between batches is missing from the variance": {"spread": False},
        },
    ),
    ("Continuous 6", {"": {}, "the variance is that of a sample": {"ddof": 1}}),
    ("Continuous 6", {"": {}, "the statistics begin with the weight of a whole row": {"prior": 1}}),
    (
        "Continuous 7",
        {
            "": clipped(10),
            WITHOUT: clipped(np.inf),
            "observations are clipped at 5": clipped(5),
        },
    ),
    of=observations,
)


def rewards_of(how: str, clip: Callable) -> Callable:
    def form(rewards, dones, gamma):
        if how == "off":
            return (clip(rewards),)
        moments = Moments(())
        discount = 1.0 if how == "undiscounted" else gamma
        returns = np.zeros(rewards.shape[1])
        results = []
        for row, done in zip(rewards, dones, strict=True):
            returns = returns * discount + row
            if how == "reset first":
                returns = np.where(done > 0, 0, returns)
            counted = {"own": row, "first": returns[:1]}.get(how, returns)
            moments.add(counted)
            centre = moments.mean if how == "centred" else 0
            results.append(clip((row - centre) / np.sqrt(moments.var + 1e-8)))
            if how != "runs on":
                returns = np.where(done > 0, 0, returns)
        return (np.stack(results),)

    return form


REWARDS = choices(
    (
        "Continuous 8",
        {
            "": "official",
            WITHOUT: "off",
            "rewards are divided by their own standard deviation instead of the return's": "own",
            "rewards are centred": "centred",
            "the discounted return runs on past an end": "runs on",
            "the discounted return is reset before it is counted": "reset first",
            "the return is that of the first environment": "first",
            "the return is not discounted": "undiscounted",
        },
    ),
    ("Continuous 9", {"": clipped(10), WITHOUT: clipped(np.inf)}),
    of=rewards_of,
)


# -------------------------------------------------------------------------------------------------
# Distributions


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def taken(logprobs: np.ndarray, actions: np.ndarray) -> np.ndarray:
    return np.take_along_axis(logprobs, actions[:, None], axis=-1)[:, 0]


def entropy(logprobs: np.ndarray) -> np.ndarray:
    return -(np.exp(logprobs) * logprobs).sum(axis=-1)


def categorical(sign: int) -> Callable:
    def form(logits, actions):
        logprobs = log_softmax(logits)
        return taken(logprobs, actions), sign * entropy(logprobs)

    return form


CATEGORICAL = choices(("", {"": 1, "the entropy lacks its minus": -1}), of=categorical)


def masked(change: Callable) -> Callable:
    def form(logits, mask, actions):
        logprobs = log_softmax(change(logits, mask))
        return np.exp(logprobs), np.maximum(taken(logprobs, actions), LEAST), entropy(logprobs)

    return form


NEVER = -1e30  # whose exp is 0
LEAST = -60  # log-probabilities below are all the same: how unlikely is an impossible action?
MASKED = choices(
    (
        "Aux 4",
        {
            "": lambda logits, mask: np.where(mask, logits, NEVER),
            WITHOUT: lambda logits, mask: logits,
            "the mask is upside down": lambda logits, mask: np.where(mask, NEVER, logits),
            "invalid actions are only unlikely": lambda logits, mask: np.where(mask, logits, -10),
        },
    ),
    of=masked,
)


def multidiscrete(combine: Callable) -> Callable:
    def form(logits, actions):
        parts = [log_softmax(x) for x in logits]
        logprobs = sum(taken(x, actions[:, i]) for i, x in enumerate(parts))
        return logprobs, combine([entropy(x) for x in parts])

    return form


MULTIDISCRETE = choices(
    (
        "MultiDiscrete 1",
        {
            "": sum,
            "the entropy is that of the first component": lambda entropies: entropies[0],
            "the entropy is averaged over components": lambda entropies: np.mean(entropies, axis=0),
        },
    ),
    of=multidiscrete,
)


def gaussian(density: Callable, spread: Callable) -> Callable:
    def form(means, logstds, actions):
        scores = (actions - means) / np.exp(logstds)
        densities = -0.5 * scores**2 - logstds - 0.5 * np.log(2 * np.pi)
        entropies = np.broadcast_to(0.5 + 0.5 * np.log(2 * np.pi) + logstds, means.shape)
        return density(densities, axis=-1), spread(entropies, axis=-1)

    return form


GAUSSIAN = choices(
    ("Continuous 3", {"": np.sum, "the log-probability is averaged over components": np.mean}),
    ("Continuous 3", {"": np.sum, "the entropy is averaged over components": np.mean}),
    of=gaussian,
)


def draws(scale: Callable, shift: float, correlation: float) -> Callable:
    """Return mean, deviation and correlation of what is drawn."""

    def form(means, logstds, count):
        std = np.exp(logstds)
        return means + shift * std, scale(std), np.asarray(correlation)

    return form


DRAWS = [
    ((), draws(lambda std: std, 0, 0)),
    (
        (
            (
                "Continuous 1",
                "actions are drawn with the variance in place of the standard deviation",
            ),
        ),
        draws(lambda std: std**2, 0, 0),
    ),
    (
        (("Continuous 1", "the noise of actions is uniform"),),
        draws(lambda std: std / np.sqrt(12), 0.5, 0),
    ),
    (
        (("Continuous 3", "all components share the same noise"),),
        draws(lambda std: std, 0, 1),
    ),
]

ACTIONS = choices(
    (
        "Continuous 5",
        {
            "": (True, False),
            WITHOUT: (False, False),
            "the learner gets the clipped action": (True, True),
        },
    ),
    of=lambda clip: (
        lambda sampled, low, high: tuple(
            np.clip(sampled, low, high) if yes else sampled for yes in clip
        )
    ),
)


# -------------------------------------------------------------------------------------------------
# LSTM 3 and 5: the unrolled network


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def unroll(inputs, starts, hidden, cell, input_weights, hidden_weights, bias) -> np.ndarray:
    outputs = []
    for x, start in zip(inputs, starts, strict=True):
        hidden = hidden * (1 - start[:, None])
        cell = cell * (1 - start[:, None])
        gates = x @ input_weights.T + hidden @ hidden_weights.T + bias
        i, f, g, o = np.split(gates, 4, axis=-1)
        cell = sigmoid(f) * cell + sigmoid(i) * np.tanh(g)
        hidden = sigmoid(o) * np.tanh(cell)
        outputs.append(hidden)
    return np.stack(outputs)


def recurrent(change_starts: Callable, first_state: Callable) -> Callable:
    def form(starts, hidden, cell, after=None, **x):
        hidden, cell = first_state(hidden, cell, after)
        return (unroll(starts=change_starts(starts), hidden=hidden, cell=cell, **x),)

    return form


def given(hidden, cell, after):
    return hidden, cell


def start_forms(ignores: str) -> dict[str, Callable]:
    return {
        "": lambda starts: starts,
        ignores: lambda starts: 0 * starts,
        "the state is reset one step late": lambda starts: late(starts, starts[0]),
        # The same again, after a rollout that ended with no episode
        "the state is reset one step late ": lambda starts: late(starts, 0 * starts[0]),
    }


ROLLOUT_LSTM = choices(
    ("LSTM 3", start_forms("the rollout ignores the ends of episodes")),
    of=lambda starts: recurrent(starts, given),
)
TRAINING_LSTM = choices(
    ("LSTM 3", start_forms("training ignores the ends of episodes")),
    (
        "LSTM 5",
        {
            "": given,
            WITHOUT: lambda hidden, cell, after: (0 * hidden, 0 * cell),
            "training begins with the state after the rollout": lambda hidden, cell, after: after,
        },
    ),
    of=recurrent,
)
