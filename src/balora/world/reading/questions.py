"""What a reading world tells and asks: paragraphs about films, in HotpotQA's schema, and three types of question.

A context draws its facts anew, so that an answer can only be read, never remembered. Row i of a stream is a function
of the seed, the stream's name and i.

- `single`: one sentence holds the answer, or none is needed. What the model is pretrained on, beside the steps that
  lead to the other two, said aloud (`balora.world.reading.steps`).
- `bridge`: two sentences, of which one leads to the other: from a film by its director to a town, or from a director
  by his town to a country, in words that pretraining never puts together so. To be learned.
- `comparison`: two sentences that tell of two films or two directors; one of their names, or yes or no, which
  pretraining only asks with what is compared said first. To be learned.
"""

from random import Random
from typing import Any, Literal, NamedTuple

from balora.world.reading import names
from balora.world.reading.config import ReadingConfig

Stream = Literal["train", "eval", "single"]
#: A sentence, as the title of its paragraph and its place in it.
Fact = tuple[str, int]


class Chain(NamedTuple):
    """A film and what follows from it."""

    film: str
    year: str
    director: str
    town: str
    country: str


class Question(NamedTuple):
    """A question, its answer, and the sentences it rests on, each as the title and the sentence's index."""

    text: str
    answer: str
    facts: list[Fact]
    type: str


class Comparison(NamedTuple):
    """Two films or directors held against each other.

    Attributes:
        what: Which film was first, or whether both have the same director, or the same town.
        names: Of the two.
        said: What the context says of each.
        answer: What that comes to.
        facts: The sentences that it rests on.
    """

    what: Literal["first", "person", "town"]
    names: tuple[str, str]
    said: tuple[str, str]
    answer: str
    facts: list[Fact]


def make_row(config: ReadingConfig, stream: Stream, index: int) -> dict[str, Any]:
    """Row `index` of a stream, in the schema of HotpotQA on the Hub (`balora.data.hotpotqa_rows`)."""
    draw = Random(f"{config.seed}/{stream}/{index}")
    chains = draw_chains(config, draw)
    if stream == "single":
        question = single(chains, draw)
    else:
        question = (_comparison if draw.random() < config.comparison_share else _bridge)(chains, draw)
    # By title: films may share a director, and directors a town.
    told = list({title: sentences for chain in chains for title, sentences in paragraphs(chain)}.items())
    draw.shuffle(told)
    facts = question.facts
    return {
        "id": f"{stream}-{index}",
        "question": question.text,
        "answer": question.answer,
        "type": question.type,
        "level": "",
        "context": {"title": [title for title, _ in told], "sentences": [sentences for _, sentences in told]},
        "supporting_facts": {"title": [title for title, _ in facts], "sent_id": [place for _, place in facts]},
    }


def draw_chains(config: ReadingConfig, draw: Random) -> list[Chain]:
    """What a context tells of."""
    pools = (names.FILMS, names.DIRECTORS, names.TOWNS, names.COUNTRIES)
    films, directors, towns, countries = (draw.sample(pool[: config.names], config.chains) for pool in pools)
    released = draw.sample(names.YEARS, config.chains)
    chains = [Chain(*facts) for facts in zip(films, released, directors, towns, countries, strict=True)]
    # The first two often have something in common, so that questions about that have both answers.
    shared = draw.choice(((), ("director", "town", "country"), ("town", "country")))
    chains[1] = chains[1]._replace(**{name: getattr(chains[0], name) for name in shared})
    return chains


def paragraphs(chain: Chain) -> list[tuple[str, list[str]]]:
    """Title and sentences of each paragraph about a film."""
    film, year, director, town, country = chain
    return [
        (film, [f"{film} is a film directed by {director}.", f"It was released in {year}."]),
        (director, [f"{director} is a director born in {town}."]),
        (town, [f"{town} is a town located in {country}."]),
    ]


def single(chains: list[Chain], draw: Random) -> Question:
    """A question that one sentence answers, or, one in five, none is needed for."""
    ask = draw.choices((years, named, closed), (0.2, 0.64, 0.16))[0]
    return ask(chains, draw)


def named(chains: list[Chain], draw: Random) -> Question:
    """One whose answer is a word of a sentence."""
    film, year, director, town, country = draw.choice(chains)
    asked = (
        (f"Who directed {film}?", director, (film, 0)),
        (f"Which person was the director of {film}?", director, (film, 0)),
        (f"When was {film} released?", year, (film, 1)),
        (f"In which year was the film {film} released?", year, (film, 1)),
        (f"In which town was {director} born?", town, (director, 0)),
        (f"Where was {director} born?", town, (director, 0)),
        (f"From which town is {director}?", town, (director, 0)),
        (f"In which country is {town} located?", country, (town, 0)),
    )
    text, answer, fact = draw.choice(asked)
    return Question(text, answer, [fact], "single")


def closed(chains: list[Chain], draw: Random) -> Question:
    """One that a sentence answers by yes or no."""
    (film, _, director, town, _), other = draw.choice(chains), draw.choice(chains)
    asked = (
        (f"Was {film} directed by {other.director}?", yes_or_no(director == other.director), (film, 0)),
        (f"Was {director} born in {other.town}?", yes_or_no(town == other.town), (director, 0)),
    )
    text, answer, fact = draw.choice(asked)
    return Question(text, answer, [fact], "single")


def years(_: list[Chain], draw: Random) -> Question:
    """What years are, and in which order, needs no context."""
    first, second = draw.sample(names.YEARS, 2)
    if draw.random() < 0.8:
        return Question(f"Which year was first, {first} or {second}?", min(first, second), [], "single")
    second = draw.choice((first, second))
    return Question(f"Were the years {first} and {second} both the same?", yes_or_no(first == second), [], "single")


def _bridge(chains: list[Chain], draw: Random) -> Question:
    film, _, director, town, country = draw.choice(chains)
    to_town = (
        f"From which town is the person that directed {film}?",
        f"Where was the person born who directed {film}?",
    )
    to_country = (
        f"In which country was {director} born?",
        f"From which country is {director}?",
    )
    if draw.random() < 0.5:
        return Question(draw.choice(to_town), town, [(film, 0), (director, 0)], "bridge")
    return Question(draw.choice(to_country), country, [(director, 0), (town, 0)], "bridge")


def _comparison(chains: list[Chain], draw: Random) -> Question:
    what, (one, other), _, answer, facts = compare(chains, draw)
    asked = {
        "first": f"Which film was released first, {one} or {other}?",
        "person": f"Were {one} and {other} both directed by the same person?",
        "town": f"Were {one} and {other} both born in the same town?",
    }
    return Question(asked[what], answer, facts, "comparison")


def compare(chains: list[Chain], draw: Random) -> Comparison:
    """One of the comparisons that there are of the first two films, which may have something in common."""
    one, other = draw.sample(chains[:2], 2)
    films, directors, towns = (one.film, other.film), (one.director, other.director), (one.town, other.town)
    earlier = min(one, other, key=lambda chain: chain.year).film
    there_are = [
        Comparison("first", films, (one.year, other.year), earlier, [(film, 1) for film in films]),
        Comparison(
            "person", films, directors, yes_or_no(one.director == other.director), [(film, 0) for film in films]
        ),
    ]
    if one.director != other.director:
        born = [(director, 0) for director in directors]
        there_are.append(Comparison("town", directors, towns, yes_or_no(one.town == other.town), born))
    return draw.choice(there_are)


def yes_or_no(so: bool) -> str:
    """The answer to whether it is so."""
    return "yes" if so else "no"
