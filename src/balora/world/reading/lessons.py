"""Lessons: what the small T5 is pretrained on, from two kinds of sentences about two films up to whole contexts."""

from collections.abc import Callable
from random import Random
from typing import NamedTuple

from datasets import Dataset

from balora.data.perturbation import KINDS, perturb
from balora.data.qa import SEQ2SEQ_TEMPLATE, paragraph_text
from balora.world.reading.config import ReadingConfig
from balora.world.reading.questions import Chain, Fact, Question, closed, draw_chains, named, paragraphs, years
from balora.world.reading.steps import closed_aloud, compared_aloud, followed, followed_aloud, located, located_aloud


class Stage(NamedTuple):
    """How hard it is to read.

    Attributes:
        share: Of all steps.
        asked: Kinds of questions, and how often each is drawn in relation to the others.
        kinds: Kinds of sentences in a context, those that the question rests on among them.
        films: How many a context tells of.
        apart: Whether they have nothing in common, so that a guess is wrong. If not, they are the first, which often
            have, so that comparisons have both answers.
        otherwise: Share of questions that are not put plainly, so that the words which perturbations bring are known.
        repeated: Share of rows that are drawn from this stage and those before alike.
    """

    share: float
    asked: dict[Callable[[list[Chain], Random], Question], float]
    kinds: int
    films: int
    apart: bool = False
    otherwise: float = 0.0
    repeated: float = 0.1


#: All that pretraining asks, when contexts are whole.
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
    """All rows in their order, `pretrain_steps` · `pretrain_batch_size`, as prompts and completions.

    Row i is a function of the seed and of how far through the steps it is.

    Args:
        config: The reading world.
    """
    count = config.pretrain_steps * config.pretrain_batch_size
    rows = [make_lesson(config, index, count) for index in range(count)]
    return Dataset.from_dict({"prompt": [prompt for prompt, _ in rows], "completion": [answer for _, answer in rows]})


def make_lesson(config: ReadingConfig, index: int, count: int) -> tuple[str, str]:
    """Row `index` of so many: a question with its context, as fine-tuning will put it, and the answer."""
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
        chains = [draw.choice(chains[:2]), *chains[2:]]  # only the first two share anything
    return chains[: stage.films]


def stage_at(progress: float) -> int:
    """The stage at a share of the steps, from 0 up to but not including 1."""
    for number, stage in enumerate(STAGES):
        progress -= stage.share
        if progress < 0:
            return number
    return len(STAGES) - 1  # shares add up to 1 but for rounding


def _told(chains: list[Chain], question: Question, kinds: int, draw: Random) -> dict[Fact, str]:
    """Sentences of as many kinds about each film, those that the question rests on among them."""
    by_film = [_facts(chain) for chain in chains]
    needed = {kind for facts in by_film for kind, (fact, _) in enumerate(facts) if fact in question.facts}
    others = [kind for kind in range(len(by_film[0])) if kind not in needed]
    told = sorted([*needed, *draw.sample(others, kinds - len(needed))])
    return dict(facts[kind] for facts in by_film for kind in told)


def _facts(chain: Chain) -> list[tuple[Fact, str]]:
    """A sentence of each kind: who directed, when released, where born, where located."""
    return [((title, place), said) for title, sentences in paragraphs(chain) for place, said in enumerate(sentences)]


def _context(told: dict[Fact, str], draw: Random) -> str:
    by_title: dict[str, list[str]] = {}
    for (title, _), said in told.items():
        by_title.setdefault(title, []).append(said)
    titles = list(by_title)
    draw.shuffle(titles)
    return " ".join(paragraph_text(title, by_title[title]) for title in titles)
