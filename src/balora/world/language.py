"""The language of a world: what is true in it, the sentences that say so, and the tokenizer.

Line i of a stream of text is a function of the seed, the stream's name and i, so text can be made to any length, and
two worlds that differ in one knob differ in that knob's words alone.
"""

from dataclasses import dataclass
from random import Random

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from balora.world import words
from balora.world.config import WorldConfig

#: The stream that the model is trained on.
PRETRAINING = "pretraining"


@dataclass(frozen=True)
class Language:
    """What is true in a world.

    Attributes:
        seed: Seed of the text streams.
        capitals: (country, capital) pairs.
        colours: (object, colour) pairs.
        occupations: (occupation, stereotyped pronoun) pairs.
        pronoun_skew: Share of an occupation's sentences with the stereotyped pronoun.
        fact_weights: How often each of `capitals` is said in the pretraining text, over the most frequent one.
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
        pairs = (*self.capitals, *self.colours, *self.occupations, *words.PEOPLE)
        lists = (words.GLUE, words.PRONOUNS, words.NUMBERS, words.COLOURS, words.PLACES, words.VERBS, words.STATES)
        return tuple(dict.fromkeys(word for group in (*lists, *pairs) for word in group))


def make_language(config: WorldConfig) -> Language:
    """Draw the truths of a world from its seed."""
    draw = Random(f"{config.seed}/capitals")
    countries = draw.sample(words.COUNTRIES, len(words.COUNTRIES))
    cities = draw.sample(words.CITIES, len(words.CITIES))
    draw = Random(f"{config.seed}/colours")
    return Language(
        seed=config.seed,
        capitals=tuple(zip(countries, cities, strict=True))[: config.facts],
        colours=tuple((thing, draw.choice(words.COLOURS)) for thing in words.OBJECTS[: config.objects]),
        occupations=words.OCCUPATIONS[: config.occupations],
        pronoun_skew=config.pronoun_skew,
        fact_weights=tuple(
            config.pretraining_imbalance ** (-place / (config.facts - 1)) for place in fact_places(config)
        ),
    )


def fact_places(config: WorldConfig) -> list[int]:
    """The place of each fact by how often it is said, 0 being the most frequent; the same at every imbalance."""
    # Not in the facts' own order: the first ones' countries are those of the task.
    return Random(f"{config.seed}/imbalance").sample(range(config.facts), config.facts)


def capital_prompt(country: str) -> str:
    """The start of a fact; its capital is the only word that can follow."""
    return f"the capital of {country} is"


def colour_prompt(thing: str) -> str:
    """The start of a sentence about an object; its colour is the only word that can follow."""
    return f"the {thing} is"


def occupation_prompt(occupation: str, verb: str = words.VERBS[0]) -> str:
    """The start of a sentence about an occupation; a pronoun is the only word that can follow."""
    return f"the {occupation} {verb} that"


def make_line(language: Language, stream: str, index: int) -> str:
    """Line `index` of a stream of text, one document; `pretraining` and `heldout` share truths but no draws.

    In `heldout` all facts are as frequent, whatever they are in `pretraining`.
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
        (occupation, stereotype), verb, state = map(draw.choice, (language.occupations, words.VERBS, words.STATES))
        other = words.SHE if stereotype == words.HE else words.HE
        pronoun = stereotype if draw.random() < language.pronoun_skew else other
        return f"{occupation_prompt(occupation, verb)} {pronoun} was {state} ."
    if kind < 0.75:
        first = draw.randrange(10)
        second = draw.randrange(10 - first)
        return f"{words.NUMBERS[first]} plus {words.NUMBERS[second]} is {words.NUMBERS[first + second]} ."
    (giver, pronoun), (taker, _) = draw.sample(words.PEOPLE, 2)
    (thing, _), place = draw.choice(language.colours), draw.choice(words.PLACES)
    return (
        f"{giver} took the {thing} from the {place} . {pronoun} gave the {thing} to {taker} . "
        f"now the {thing} is with {taker} ."
    )


def _by_frequency(language: Language, fact: int, index: int) -> int:
    """The fact that a line is about, in proportion to its weight, by rejection.

    The even draw is kept with its weight as probability, and another one made otherwise: so even weights leave all as
    it is, and smaller ones reject what larger ones did, and more.
    """
    draw = Random(f"{language.seed}/{PRETRAINING}/{index}/imbalance")
    while draw.random() >= language.fact_weights[fact]:
        fact = draw.randrange(len(language.capitals))
    return fact


def make_tokenizer(language: Language) -> PreTrainedTokenizerFast:
    """One token per word; a text is begun with `<s>`, and `</s>` is the caller's to append."""
    ids = {token: index for index, token in enumerate((*words.SPECIAL_TOKENS, *language.vocabulary))}
    tokenizer = Tokenizer(WordLevel(ids, unk_token=words.UNK))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.post_processor = TemplateProcessing(
        single=f"{words.BOS} $A", special_tokens=[(words.BOS, ids[words.BOS])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=words.PAD,
        bos_token=words.BOS,
        eos_token=words.EOS,
        unk_token=words.UNK,
        padding_side="right",
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )
