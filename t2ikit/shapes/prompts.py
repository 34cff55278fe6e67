"""GenEval's six tasks as prompts for the embedded data set."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Literal, get_args

from t2ikit.data.datamodule import DataModule
from t2ikit.metrics.geneval.rules import TASKS
from t2ikit.prompts import Prompt, PromptSource
from t2ikit.rng import permutation
from t2ikit.shapes.captions import NUMBERS, plural, with_article
from t2ikit.shapes.extension import extended_prompt
from t2ikit.shapes.geometry import class_name
from t2ikit.shapes.scenes import COLORS_OF, RELATIONS, SHAPES_OF, TEXTURES_OF, held_out

Difficulty = Literal["simple", "imagenet", "full"]
Pairs = Literal["held_out", "seen"]
COUNTS = (2, 3, 4)


def geneval_prompts(difficulty: str, per_task: int, seed: int = 0, pairs: Pairs = "held_out") -> list[dict[str, Any]]:
    """The six tasks on shapes: metadata in the official format, ``per_task`` lines a task.

    At difficulty "imagenet" prompts with two objects ask for pairs of classes that never occur in the training, or with
    ``pairs`` "seen" for the others; the other difficulties hold no pair out.

    Combinations come in random order, all of a task before any comes again: at difficulty "simple" there are six single
    objects, so that prompt comes several times, each time with other noise.

    Raises:
        ValueError: unknown difficulty, or ``per_task`` below 1.
    """
    if difficulty not in SHAPES_OF:
        raise ValueError(f"unknown difficulty {difficulty!r}; choose one of {', '.join(SHAPES_OF)}")
    if per_task < 1:
        raise ValueError(f"per_task must be at least 1; got {per_task}")
    shapes, colors = SHAPES_OF[difficulty], COLORS_OF[difficulty]
    names = [class_name(shape, texture) for texture in TEXTURES_OF[difficulty] for shape in shapes]
    both = [(a, b) for a, b in itertools.permutations(names, 2) if a.split()[-1] != b.split()[-1]]
    if difficulty == "imagenet":
        both = [pair for pair in both if held_out(*pair) == (pairs == "held_out")]
    options: tuple[Sequence[Any], ...] = (
        names,
        both,
        list(itertools.product(COUNTS, names)),
        list(itertools.product(colors, names)),
        list(itertools.product(RELATIONS, both)),
        [(first, second, pair) for first, second in itertools.permutations(colors, 2) for pair in both],
    )
    prompts = []
    for index, (task, combinations) in enumerate(zip(TASKS, options, strict=True)):
        order = permutation(seed, "shapes-geneval", index, len(combinations))
        prompts += [_metadata(task, combinations[int(order[i % len(order)])]) for i in range(per_task)]
    return prompts


class ShapesGenEvalPrompts(PromptSource):
    """GenEval's six tasks in the words of the embedded data set.

    Args:
        per_task: prompts of each task.
        difficulty: which shapes, textures and colours; None takes those of the data.
        seed: which combinations, and which facts extend them.
        extended: lengthen every prompt into a caption like those of the training, which also names colours, places and
            background: what was not asked for is random. The verdict asks for the same as without.
        tasks: some of GenEval's tasks; None takes all six. At difficulty "simple" no image of the training has more
            than one object, so only single_object and colors ask for something that it shows.
        pairs: at difficulty "imagenet", whether prompts of two objects ask for pairs of classes that the training never
            shows together ("held_out") or for those that it does ("seen").
    """

    def __init__(
        self,
        per_task: int = 32,
        difficulty: Difficulty | None = None,
        seed: int = 0,
        extended: bool = False,
        tasks: Sequence[str] | None = None,
        pairs: Pairs = "held_out",
    ) -> None:
        if per_task < 1:
            raise ValueError(f"ShapesGenEvalPrompts: per_task must be at least 1, got {per_task}")
        self.tasks = TASKS if tasks is None else tuple(tasks)
        if not self.tasks or not set(self.tasks) <= set(TASKS):
            raise ValueError(f"ShapesGenEvalPrompts: tasks are some of {', '.join(TASKS)}; got {list(self.tasks)}")
        self.per_task = per_task
        self.difficulty = difficulty
        self.seed = seed
        self.extended = extended
        if pairs not in get_args(Pairs):
            raise ValueError(f"ShapesGenEvalPrompts: pairs is held_out or seen; got {pairs!r}")
        self.pairs = pairs

    def prompts(self) -> list[Prompt]:
        """The prompts, task by task.

        Raises:
            ValueError: no difficulty was given, and none is known of the data.
        """
        if self.difficulty is None:
            raise ValueError(
                "ShapesGenEvalPrompts: set difficulty, or take that of the data: with_data(data).prompts()"
            )
        lines = list(enumerate(geneval_prompts(self.difficulty, self.per_task, self.seed, self.pairs)))
        lines = [(index, line) for index, line in lines if line["tag"] in self.tasks]
        if not self.extended:
            return [Prompt(line["prompt"], line) for _, line in lines]
        return [Prompt(extended_prompt(line, self.difficulty, self.seed, index), line) for index, line in lines]

    def with_data(self, data: DataModule) -> PromptSource:
        """These prompts in the difficulty of the data, unless one was given.

        Raises:
            ValueError: the data is not the embedded data set, and no difficulty was given.
        """
        difficulty = self.difficulty or source_difficulty(data.manifest.source)
        return ShapesGenEvalPrompts(self.per_task, difficulty, self.seed, self.extended, self.tasks, self.pairs)


def source_name(difficulty: str) -> str:
    """What a manifest of the embedded data set says about where its images come from."""
    return f"t2ikit shapes, {difficulty}"


def source_difficulty(source: str) -> Difficulty:
    """The inverse of `source_name`.

    Raises:
        ValueError: the images come from elsewhere.
    """
    for difficulty in get_args(Difficulty):
        if source == source_name(difficulty):
            return difficulty
    raise ValueError(
        f"ShapesGenEvalPrompts needs the shapes data set, but the data comes from {source}: set difficulty"
    )


def _metadata(task: str, option: Any) -> dict[str, Any]:
    include: list[dict[str, Any]]
    metadata: dict[str, Any] = {"tag": task}
    if task == "single_object":
        include, text = [{"class": option, "count": 1}], with_article(option)
    elif task == "two_object":
        include, text = [{"class": name, "count": 1} for name in option], " and ".join(map(with_article, option))
    elif task == "counting":
        count, name = option
        include, text = [{"class": name, "count": count}], f"{NUMBERS[count]} {plural(name)}"
        metadata["exclude"] = [{"class": name, "count": count + 1}]
    elif task == "colors":
        color, name = option
        include, text = [{"class": name, "count": 1, "color": color}], with_article(f"{color} {name}")
    elif task == "position":
        relation, (name, target) = option
        include = [{"class": target, "count": 1}, {"class": name, "count": 1, "position": [relation, 0]}]
        text = f"{with_article(name)} {relation} {with_article(target)}"
    else:
        first, second, names = option
        include = [
            {"class": name, "count": 1, "color": color} for name, color in zip(names, (first, second), strict=True)
        ]
        text = " and ".join(with_article(f"{clause['color']} {clause['class']}") for clause in include)
    return {**metadata, "include": include, "prompt": f"a photo of {text}"}
