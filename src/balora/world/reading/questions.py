"""The texts and questions of a reading world: paragraphs about films in HotpotQA's schema, and all kinds of questions.

A context draws its facts anew, so an answer can only be read, never remembered. Row i of a stream is a function of the
seed, the stream's name and i. Questions are of three types:

- `single`: one sentence has the answer, or no sentence is needed. Pretraining asks these.
- `bridge`: the answer needs two sentences, one leading to the other: from a film by its director to a town, or from a
  director by the town to a country, in wordings that pretraining never uses. Fine-tuning teaches these.
- `comparison`: two sentences about two films or two directors; the answer is a name, or yes or no. Pretraining
  only asks for comparisons whose answer states the compared things first. Fine-tuning teaches the rest.

Pretraining also asks the steps that lead to the last two types (`followed`, `located`, …). In the `_aloud` variants
the answer states each step before the last: the decoder looks up what it has written just like a word of the question,
and so learns to look up and compare what it has found itself.
"""

from itertools import product
from random import Random
from typing import Any, Literal, NamedTuple

from balora.world.reading.config import ReadingConfig

# The ending of a name tells what it names; no name is an English word.
_ALL = ["".join(letters).capitalize() for letters in product("bdfgklmnprstvz", "aeiou", "dlmnrstv")]
_STEMS = Random("names").sample(_ALL, len(_ALL))

FILMS, DIRECTORS, TOWNS, COUNTRIES = ([stem + end for stem in _STEMS] for end in ("uxo", "ek", "ona", "ia"))
YEARS = [str(year) for year in range(1960, 2000)]

Stream = Literal["train", "eval", "single"]
#: A sentence: the title of its paragraph and its index in it.
Fact = tuple[str, int]


class Chain(NamedTuple):
    """A film with its year, director, and the director's town and country."""

    film: str
    year: str
    director: str
    town: str
    country: str


class Question(NamedTuple):
    """A question, its answer, and the sentences that support it."""

    text: str
    answer: str
    facts: list[Fact]
    type: str


class Comparison(NamedTuple):
    """A comparison of two films or two directors.

    Attributes:
        what: The question: which film was first, or whether both have the same director or town.
        names: The two names.
        said: The compared value of each.
        answer: The result.
        facts: The supporting sentences.
    """

    what: Literal["first", "person", "town"]
    names: tuple[str, str]
    said: tuple[str, str]
    answer: str
    facts: list[Fact]


def make_row(config: ReadingConfig, stream: Stream, index: int) -> dict[str, Any]:
    """Return row `index` of a stream, in the schema of HotpotQA on the Hub (`balora.data.hotpotqa_rows`)."""
    draw = Random(f"{config.seed}/{stream}/{index}")
    chains = draw_chains(config, draw)
    if stream == "single":
        question = single(chains, draw)
    else:
        question = (_comparison if draw.random() < config.comparison_share else _bridge)(chains, draw)
    # By title, since films may share a director, and directors a town.
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
    """Draw the films of a context, with everything that belongs to them."""
    pools = (FILMS, DIRECTORS, TOWNS, COUNTRIES)
    films, directors, towns, countries = (draw.sample(pool[: config.names], config.chains) for pool in pools)
    released = draw.sample(YEARS, config.chains)
    chains = [Chain(*facts) for facts in zip(films, released, directors, towns, countries, strict=True)]
    # The first two often share something, so that questions about it have both answers.
    shared = draw.choice(((), ("director", "town", "country"), ("town", "country")))
    chains[1] = chains[1]._replace(**{name: getattr(chains[0], name) for name in shared})
    return chains


def paragraphs(chain: Chain) -> list[tuple[str, list[str]]]:
    """Return title and sentences of each paragraph about a film."""
    film, year, director, town, country = chain
    return [
        (film, [f"{film} is a film directed by {director}.", f"It was released in {year}."]),
        (director, [f"{director} is a director born in {town}."]),
        (town, [f"{town} is a town located in {country}."]),
    ]


def single(chains: list[Chain], draw: Random) -> Question:
    """Draw a question that one sentence answers; one in five needs no sentence."""
    ask = draw.choices((years, named, closed), (0.2, 0.64, 0.16))[0]
    return ask(chains, draw)


def named(chains: list[Chain], draw: Random) -> Question:
    """Draw a question whose answer is a word of a sentence."""
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
    """Draw a question that a sentence answers by yes or no."""
    (film, _, director, town, _), other = draw.choice(chains), draw.choice(chains)
    asked = (
        (f"Was {film} directed by {other.director}?", yes_or_no(director == other.director), (film, 0)),
        (f"Was {director} born in {other.town}?", yes_or_no(town == other.town), (director, 0)),
    )
    text, answer, fact = draw.choice(asked)
    return Question(text, answer, [fact], "single")


def years(_: list[Chain], draw: Random) -> Question:
    """Draw a question about the order of years, which needs no context."""
    first, second = draw.sample(YEARS, 2)
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
    """Draw a comparison of the first two films, which may have something in common."""
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
    """Return `yes` or `no`."""
    return "yes" if so else "no"


def followed(chains: list[Chain], draw: Random) -> Question:
    """Ask from a film by its director to a town; the answer is the town."""
    film, _, director, town, _ = draw.choice(chains)
    asked = (f"In which town was the director of {film} born?", f"Where was the director of {film} born?")
    return Question(draw.choice(asked), town, [(film, 0), (director, 0)], "bridge")


def followed_aloud(chains: list[Chain], draw: Random) -> Question:
    """Ask `followed` with the director in the answer too."""
    film, _, director, town, _ = draw.choice(chains)
    text = f"Who directed {film} and where was the director born?"
    return Question(text, f"{director} {town}", [(film, 0), (director, 0)], "bridge")


def located(chains: list[Chain], draw: Random) -> Question:
    """Ask from a director by the town to a country; the answer is the country."""
    _, _, director, town, country = draw.choice(chains)
    asked = (
        f"In which country is the town of {director} located?",
        f"In which country is the town located where {director} was born?",
    )
    return Question(draw.choice(asked), country, [(director, 0), (town, 0)], "bridge")


def located_aloud(chains: list[Chain], draw: Random) -> Question:
    """Ask `located` with the town in the answer too."""
    _, _, director, town, country = draw.choice(chains)
    text = f"Where was {director} born and in which country is the town located?"
    return Question(text, f"{town} {country}", [(director, 0), (town, 0)], "bridge")


def closed_aloud(chains: list[Chain], draw: Random) -> Question:
    """Ask `closed` with the name from the context in the answer too."""
    (film, _, director, town, _), other = draw.choice(chains), draw.choice(chains)
    if draw.random() < 0.5:
        text = f"Who directed {film} and was {film} directed by {other.director}?"
        return Question(text, f"{director} {yes_or_no(director == other.director)}", [(film, 0)], "single")
    text = f"Where was {director} born and was {director} born in {other.town}?"
    return Question(text, f"{town} {yes_or_no(town == other.town)}", [(director, 0)], "single")


def compared_aloud(chains: list[Chain], draw: Random) -> Question:
    """Ask a comparison with both years or names in the answer too."""
    what, (one, other), said, answer, facts = compare(chains, draw)
    asked = {
        "first": f"When was {one} released and when was {other} and which film was first?",
        "person": f"Who directed {one} and {other} and were both directed by the same person?",
        "town": f"Where was {one} born and {other} and were both born in the same town?",
    }
    return Question(asked[what], " ".join((*said, answer)), facts, "comparison")
