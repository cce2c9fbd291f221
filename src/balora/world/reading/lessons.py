"""Lessons: the pretraining curriculum of the small T5, from two sentences about two films up to whole contexts."""

from collections.abc import Callable
from random import Random
from typing import NamedTuple

from datasets import Dataset

from balora.data.perturbation import KINDS, perturb
from balora.data.qa import SEQ2SEQ_TEMPLATE, paragraph_text
from balora.world.reading.config import ReadingConfig
from balora.world.reading.questions import (
    Chain,
    Fact,
    Question,
    closed,
    closed_aloud,
    compared_aloud,
    draw_chains,
    followed,
    followed_aloud,
    located,
    located_aloud,
    named,
    paragraphs,
    years,
)


class Stage(NamedTuple):
    """A stage of the curriculum.

    Attributes:
        share: Share of all steps.
        asked: Kind of question to its relative frequency.
        kinds: Kinds of sentences in a context, including those that the question needs.
        films: Number of films in a context.
        apart: True if the films have nothing in common, so that a guess is wrong. Otherwise the first two often share
            a director or town, so that comparisons have both answers.
        otherwise: Share of perturbed questions, so that the words of perturbations are known.
        repeated: Share of rows that are drawn uniformly from this stage and all earlier ones.
    """

    share: float
    asked: dict[Callable[[list[Chain], Random], Question], float]
    kinds: int
    films: int
    apart: bool = False
    otherwise: float = 0.0
    repeated: float = 0.1


#: All questions of pretraining, for whole contexts.
_ALL = {
    named: 0.2,
    years: 0.05,
    closed: 0.15,
    closed_aloud: 0.05,
    followed: 0.1,
    followed_aloud: 0.05,
    located: 0.1,
    located_aloud: 0.1,
    compared_aloud: 0.2,
}
STAGES = (
    Stage(
        0.22,
        {named: 0.4, followed: 0.1, followed_aloud: 0.2, located_aloud: 0.15, closed_aloud: 0.15},
        kinds=2,
        films=2,
        apart=True,
    ),
    Stage(
        0.16,
        {named: 0.15, years: 0.05, closed: 0.3, closed_aloud: 0.2, followed: 0.1, located: 0.15, located_aloud: 0.05},
        kinds=2,
        films=2,
        apart=True,
    ),
    Stage(
        0.22,
        {
            named: 0.1,
            years: 0.05,
            closed: 0.1,
            closed_aloud: 0.05,
            followed: 0.1,
            located: 0.1,
            located_aloud: 0.1,
            compared_aloud: 0.4,
        },
        kinds=3,
        films=2,
    ),
    Stage(0.16, _ALL, kinds=4, films=3),
    Stage(0.24, _ALL, kinds=4, films=3, otherwise=0.5),
)


def make_lessons(config: ReadingConfig) -> Dataset:
    """Return all rows in their order, `pretrain_steps` · `pretrain_batch_size`, as prompts and completions.

    Row i is a function of the seed, i and its position in the schedule.

    Args:
        config: The reading world.
    """
    count = config.pretrain_steps * config.pretrain_batch_size
    rows = [make_lesson(config, index, count) for index in range(count)]
    return Dataset.from_dict({"prompt": [prompt for prompt, _ in rows], "completion": [answer for _, answer in rows]})


def make_lesson(config: ReadingConfig, index: int, count: int) -> tuple[str, str]:
    """Return row `index` of `count`: a question with its context, formatted as in fine-tuning, and the answer."""
    draw = Random(f"{config.seed}/pretraining/{index}")
    number = stage_at(index / count)
    if draw.random() < STAGES[number].repeated:
        number = draw.randrange(number + 1)
    stage = STAGES[number]
    chains = _films(stage, draw_chains(config, draw), draw)
    question = draw.choices(list(stage.asked), list(stage.asked.values()))[0](chains, draw)
    text = question.text
    if draw.random() < stage.otherwise:
        text = perturb(text, draw.choice(list(KINDS)), draw.random(), index)
    told = _told(chains, question, stage.kinds, draw)
    return SEQ2SEQ_TEMPLATE.format(question=text, context=_context(told, draw)), question.answer


def _films(stage: Stage, chains: list[Chain], draw: Random) -> list[Chain]:
    if stage.apart:
        chains = [draw.choice(chains[:2]), *chains[2:]]  # only the first two have anything in common
    return chains[: stage.films]


def stage_at(progress: float) -> int:
    """Return the index of the stage at a progress in [0, 1)."""
    for number, stage in enumerate(STAGES):
        progress -= stage.share
        if progress < 0:
            return number
    return len(STAGES) - 1  # shares sum to 1 up to rounding


def _told(chains: list[Chain], question: Question, kinds: int, draw: Random) -> dict[Fact, str]:
    """Return sentences of `kinds` kinds about each film, including those that the question needs."""
    by_film = [_facts(chain) for chain in chains]
    needed = {kind for facts in by_film for kind, (fact, _) in enumerate(facts) if fact in question.facts}
    others = [kind for kind in range(len(by_film[0])) if kind not in needed]
    told = sorted([*needed, *draw.sample(others, kinds - len(needed))])
    return dict(facts[kind] for facts in by_film for kind in told)


def _facts(chain: Chain) -> list[tuple[Fact, str]]:
    """Return one sentence of each kind: director, year of release, birthplace, location."""
    return [((title, place), said) for title, sentences in paragraphs(chain) for place, said in enumerate(sentences)]


def _context(told: dict[Fact, str], draw: Random) -> str:
    by_title: dict[str, list[str]] = {}
    for (title, _), said in told.items():
        by_title.setdefault(title, []).append(said)
    titles = list(by_title)
    draw.shuffle(titles)
    return " ".join(paragraph_text(title, by_title[title]) for title in titles)
