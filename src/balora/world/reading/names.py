"""The names in a reading world: each says by its ending what it names, and none is a word of English."""

from itertools import product
from random import Random

_ALL = ["".join(letters).capitalize() for letters in product("bdfgklmnprstvz", "aeiou", "dlmnrstv")]
_STEMS = Random("names").sample(_ALL, len(_ALL))

FILMS, DIRECTORS, TOWNS, COUNTRIES = ([stem + end for stem in _STEMS] for end in ("uxo", "ek", "ona", "ia"))
YEARS = [str(year) for year in range(1960, 2000)]
