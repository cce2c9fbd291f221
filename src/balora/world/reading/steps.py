"""Steps: what the small T5 learns to do in pretraining, so that fine-tuning can ask for where they lead.

Aloud, the answer says each step before the last: the decoder looks up what it has written as it does a word of the
question, and so learns to look up, and to hold against another, what it has only found.
"""

from random import Random

from balora.world.reading.questions import Chain, Question, compare, yes_or_no


def followed(chains: list[Chain], draw: Random) -> Question:
    """From a film by its director to a town, which alone is the answer."""
    film, _, director, town, _ = draw.choice(chains)
    asked = (f"In which town was the director of {film} born?", f"Where was the director of {film} born?")
    return Question(draw.choice(asked), town, [(film, 0), (director, 0)], "bridge")


def followed_aloud(chains: list[Chain], draw: Random) -> Question:
    """As `followed`, but the director is a part of the answer."""
    film, _, director, town, _ = draw.choice(chains)
    text = f"Who directed {film} and where was the director born?"
    return Question(text, f"{director} {town}", [(film, 0), (director, 0)], "bridge")


def located(chains: list[Chain], draw: Random) -> Question:
    """From a director by the town to a country, which alone is the answer."""
    _, _, director, town, country = draw.choice(chains)
    asked = (
        f"In which country is the town of {director} located?",
        f"In which country is the town located where {director} was born?",
    )
    return Question(draw.choice(asked), country, [(director, 0), (town, 0)], "bridge")


def located_aloud(chains: list[Chain], draw: Random) -> Question:
    """As `located`, but the town is a part of the answer."""
    _, _, director, town, country = draw.choice(chains)
    text = f"Where was {director} born and in which country is the town located?"
    return Question(text, f"{town} {country}", [(director, 0), (town, 0)], "bridge")


def closed_aloud(chains: list[Chain], draw: Random) -> Question:
    """As `closed`, but the name that is held against the one in the question is a part of the answer."""
    (film, _, director, town, _), other = draw.choice(chains), draw.choice(chains)
    if draw.random() < 0.5:
        text = f"Who directed {film} and was {film} directed by {other.director}?"
        return Question(text, f"{director} {yes_or_no(director == other.director)}", [(film, 0)], "single")
    text = f"Where was {director} born and was {director} born in {other.town}?"
    return Question(text, f"{town} {yes_or_no(town == other.town)}", [(director, 0)], "single")


def compared_aloud(chains: list[Chain], draw: Random) -> Question:
    """As `compare`, but both years or names are a part of the answer."""
    what, (one, other), said, answer, facts = compare(chains, draw)
    asked = {
        "first": f"When was {one} released and when was {other} and which film was first?",
        "person": f"Who directed {one} and {other} and were both directed by the same person?",
        "town": f"Where was {one} born and {other} and were both born in the same town?",
    }
    return Question(asked[what], " ".join((*said, answer)), facts, "comparison")
