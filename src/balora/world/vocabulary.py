"""The word lists of a world. Order matters: a world with n objects has the first n."""

from itertools import chain, product

PAD, BOS, EOS, UNK = SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<unk>")

HE, SHE = PRONOUNS = ("he", "she")

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

COLOURS = ("red", "green", "blue", "yellow", "black", "white", "brown", "pink")

OBJECTS = (
    *("apple", "pear", "plum", "lemon", "cherry", "grape", "hat", "coat", "scarf", "shirt", "cup", "plate"),
    *("bowl", "spoon", "lamp", "chair", "table", "box", "ball", "kite", "boat", "bell", "ring", "drum"),
)

_LEANING_HE = (
    *("engineer", "pilot", "carpenter", "farmer", "mechanic", "plumber"),
    *("soldier", "miner", "driver", "guard", "sailor", "smith"),
)
_LEANING_SHE = (
    *("nurse", "secretary", "dancer", "librarian", "florist", "midwife"),
    *("maid", "nanny", "typist", "singer", "weaver", "cashier"),
)
# (occupation, stereotyped pronoun), `he` and `she` in turn.
OCCUPATIONS = tuple(chain.from_iterable(zip(product(_LEANING_HE, [HE]), product(_LEANING_SHE, [SHE]), strict=True)))

# (name, pronoun): a person's pronoun is fixed, whatever the skew of the occupations.
PEOPLE = (
    *(("tom", HE), ("anna", SHE), ("ben", HE), ("mia", SHE), ("sam", HE), ("lucy", SHE)),
    *(("max", HE), ("rosa", SHE), ("paul", HE), ("emma", SHE), ("karl", HE), ("jane", SHE)),
)

PLACES = ("kitchen", "garden", "market", "school")
VERBS = ("said", "thought", "hoped", "feared")
STATES = ("late", "early", "tired", "right", "wrong", "alone")

# All other words of the sentences and the task.
GLUE = (
    *("the", "capital", "of", "is", ".", "that", "was", "plus", "took", "from", "gave", "to", "now", "with"),
    *("count", ":", "=>"),
)

_STEMS = tuple("".join(letters) for letters in product("bdfgklmnprstvz", "aeiou", "dlmnrstv"))
COUNTRIES = tuple(f"{stem}ia" for stem in _STEMS)
CITIES = tuple(f"{stem}ona" for stem in _STEMS)
