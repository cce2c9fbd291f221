"""Lessons: what the small T5 is pretrained on, from two or three sentences of one kind up to whole contexts."""

from random import Random
from typing import NamedTuple

from datasets import Dataset

from balora.data.perturbation import KINDS, perturb
from balora.data.qa import SEQ2SEQ_TEMPLATE
from balora.data.qa_context import paragraph_text
from balora.world.reading.config import ReadingConfig
from balora.world.reading.questions import Chain, Fact, Question, both, draw_chains, followed, paragraphs, single

#: Kinds of sentences that a followed question takes: who directed, where born.
FOLLOWED = (0, 2)


class Stage(NamedTuple):
    """How hard it is to read.

    Attributes:
        share: Of all steps.
        kinds: Kinds of sentences in a context: who directed, when released, where born, where located.
        films: The fewest that it tells of, and the most.
        followed: Share of questions that one sentence leads to another for; contexts then tell of both kinds.
        both: Share of these that ask for the name on the way too: the decoder looks up what it has written as it does
            a word of the question, and so learns to look up what it has only found.
        apart: Whether its films have nothing in common, so that a guess is wrong.
        closed: Share of the others that are answered by yes or no, or are about years alone.
        otherwise: Share of questions that are not put plainly, so that the words which perturbations bring are known.
        repeated: Share of rows that are drawn from this stage and those before alike.
    """

    share: float
    kinds: int
    films: tuple[int, int]
    followed: float = 0.0
    both: float = 0.0
    apart: bool = False
    closed: float = 0.0
    otherwise: float = 0.0
    repeated: float = 0.3


STAGES = (
    Stage(0.18, kinds=1, films=(2, 3)),
    Stage(0.24, kinds=2, films=(2, 2), followed=0.9, both=0.4, apart=True, repeated=0.1),
    Stage(0.16, kinds=1, films=(2, 3), closed=0.7),
    Stage(0.14, kinds=2, films=(2, 3), followed=0.4, closed=0.6),
    Stage(0.12, kinds=4, films=(3, 3), followed=0.3, closed=0.4),
    Stage(0.16, kinds=4, films=(3, 3), followed=0.3, closed=0.4, otherwise=0.5),
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
    chains = draw_chains(config, draw)
    if stage.apart:
        chains = [draw.choice(chains[:2]), *chains[2:]]  # only the first two share anything
    chains = draw.sample(chains, min(len(chains), draw.randint(*stage.films)))
    needed = FOLLOWED if stage.followed else ()
    kinds = [*needed, *draw.sample([kind for kind in range(4) if kind not in needed], stage.kinds - len(needed))]
    told = {fact: said for chain in chains for fact, said in _facts(chain, kinds)}
    if draw.random() < stage.followed:
        question = (both if draw.random() < stage.both else followed)(chains, draw)
    else:
        question = _single(chains, told, draw.random() < stage.closed, draw)
    text = question.text
    if draw.random() < stage.otherwise:
        text = perturb(text, draw.choice(list(KINDS)), draw.random(), index)
    return SEQ2SEQ_TEMPLATE.format(question=text, context=_context(told, draw)), question.answer


def _single(chains: list[Chain], told: dict[Fact, str], closed: bool, draw: Random) -> Question:
    """One that what is told answers, by yes or no or without looking, or by a word of it."""
    question = single(chains, draw)
    while _is_closed(question) != closed or not all(fact in told for fact in question.facts):
        question = single(chains, draw)
    return question


def _is_closed(question: Question) -> bool:
    return not question.facts or question.answer in ("yes", "no")


def stage_at(progress: float) -> int:
    """The stage at a share of the steps, from 0 up to but not including 1."""
    for number, stage in enumerate(STAGES):
        progress -= stage.share
        if progress < 0:
            return number
    return len(STAGES) - 1  # shares add up to 1 but for rounding


def _facts(chain: Chain, kinds: list[int]) -> list[tuple[Fact, str]]:
    facts = [((title, place), said) for title, sentences in paragraphs(chain) for place, said in enumerate(sentences)]
    return [facts[kind] for kind in sorted(kinds)]


def _context(told: dict[Fact, str], draw: Random) -> str:
    by_title: dict[str, list[str]] = {}
    for (title, _), said in told.items():
        by_title.setdefault(title, []).append(said)
    titles = list(by_title)
    draw.shuffle(titles)
    return " ".join(paragraph_text(title, by_title[title]) for title in titles)
