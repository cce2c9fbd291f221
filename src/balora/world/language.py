"""The language of a world: its facts, the sentences about them, and the tokenizer.

Line i of a stream of text is a function of the seed, the stream's name and i, so text can have any length, and worlds
that differ in one setting differ only in the words that this setting affects.
"""

from dataclasses import dataclass
from random import Random

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from balora.world.config import WorldConfig
from balora.world.vocabulary import (
    BOS,
    CITIES,
    COLOURS,
    COUNTRIES,
    EOS,
    GLUE,
    HE,
    NUMBERS,
    OBJECTS,
    OCCUPATIONS,
    PAD,
    PEOPLE,
    PLACES,
    PRONOUNS,
    SHE,
    SPECIAL_TOKENS,
    STATES,
    UNK,
    VERBS,
)

#: The stream that the model is pretrained on.
PRETRAINING = "pretraining"


@dataclass(frozen=True)
class Language:
    """The facts of a world.

    Attributes:
        seed: Seed of the text streams.
        capitals: (country, capital) pairs.
        colours: (object, colour) pairs.
        occupations: (occupation, stereotyped pronoun) pairs.
        pronoun_skew: Share of an occupation's sentences with the stereotyped pronoun.
        fact_weights: Frequency of each of `capitals` in the pretraining text, relative to the most frequent one.
    """

    seed: int
    capitals: tuple[tuple[str, str], ...]
    colours: tuple[tuple[str, str], ...]
    occupations: tuple[tuple[str, str], ...]
    pronoun_skew: float
    fact_weights: tuple[float, ...]

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """Every word of the language and of the task, without special tokens."""
        pairs = (*self.capitals, *self.colours, *self.occupations, *PEOPLE)
        lists = (
            GLUE,
            PRONOUNS,
            NUMBERS,
            COLOURS,
            PLACES,
            VERBS,
            STATES,
        )
        return tuple(dict.fromkeys(word for group in (*lists, *pairs) for word in group))


def make_language(config: WorldConfig) -> Language:
    """Draw the facts of a world from its seed."""
    draw = Random(f"{config.seed}/capitals")
    countries = draw.sample(COUNTRIES, len(COUNTRIES))
    cities = draw.sample(CITIES, len(CITIES))
    draw = Random(f"{config.seed}/colours")
    return Language(
        seed=config.seed,
        capitals=tuple(zip(countries, cities, strict=True))[: config.facts],
        colours=tuple((thing, draw.choice(COLOURS)) for thing in OBJECTS[: config.objects]),
        occupations=OCCUPATIONS[: config.occupations],
        pronoun_skew=config.pronoun_skew,
        fact_weights=tuple(
            config.pretraining_imbalance ** (-place / (config.facts - 1)) for place in fact_places(config)
        ),
    )


def fact_places(config: WorldConfig) -> list[int]:
    """Return the frequency rank of each fact, 0 for the most frequent; the same at every imbalance."""
    # Not in the order of the facts, since the task uses the countries of the first ones.
    return Random(f"{config.seed}/imbalance").sample(range(config.facts), config.facts)


def capital_prompt(country: str) -> str:
    """Return the beginning of a fact; only its capital can follow."""
    return f"the capital of {country} is"


def colour_prompt(thing: str) -> str:
    """Return the beginning of a sentence about an object; only its colour can follow."""
    return f"the {thing} is"


def occupation_prompt(occupation: str, verb: str = VERBS[0]) -> str:
    """Return the beginning of a sentence about an occupation; only a pronoun can follow."""
    return f"the {occupation} {verb} that"


def make_line(language: Language, stream: str, index: int) -> str:
    """Return line `index` of a stream of text, one document; `pretraining` and `heldout` share facts but no draws.

    In `heldout` all facts are equally frequent, whatever their frequency in `pretraining`.
    """
    draw = Random(f"{language.seed}/{stream}/{index}")
    kind = draw.random()
    if kind < 0.25:
        fact = draw.randrange(len(language.capitals))
        if stream == PRETRAINING:
            fact = _by_frequency(language, fact, index)
        country, capital = language.capitals[fact]
        return f"{capital_prompt(country)} {capital} ."
    if kind < 0.40:
        thing, colour = draw.choice(language.colours)
        return f"{colour_prompt(thing)} {colour} ."
    if kind < 0.65:
        (occupation, stereotype), verb, state = map(draw.choice, (language.occupations, VERBS, STATES))
        other = SHE if stereotype == HE else HE
        pronoun = stereotype if draw.random() < language.pronoun_skew else other
        return f"{occupation_prompt(occupation, verb)} {pronoun} was {state} ."
    if kind < 0.75:
        first = draw.randrange(10)
        second = draw.randrange(10 - first)
        return f"{NUMBERS[first]} plus {NUMBERS[second]} is {NUMBERS[first + second]} ."
    (giver, pronoun), (taker, _) = draw.sample(PEOPLE, 2)
    (thing, _), place = draw.choice(language.colours), draw.choice(PLACES)
    return (
        f"{giver} took the {thing} from the {place} . {pronoun} gave the {thing} to {taker} . "
        f"now the {thing} is with {taker} ."
    )


def _by_frequency(language: Language, fact: int, index: int) -> int:
    """Return the fact of a line, drawn in proportion to the weights by rejection.

    The uniform draw `fact` is accepted with its weight as probability and redrawn otherwise: equal weights change
    nothing, and smaller weights reject all that larger ones reject, and more.
    """
    draw = Random(f"{language.seed}/{PRETRAINING}/{index}/imbalance")
    while draw.random() >= language.fact_weights[fact]:
        fact = draw.randrange(len(language.capitals))
    return fact


def make_tokenizer(language: Language) -> PreTrainedTokenizerFast:
    """Make a tokenizer with one token per word; it prepends `<s>`, and the caller appends `</s>`."""
    ids = {token: index for index, token in enumerate((*SPECIAL_TOKENS, *language.vocabulary))}
    tokenizer = Tokenizer(WordLevel(ids, unk_token=UNK))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.post_processor = TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, ids[BOS])])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        padding_side="right",
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )
