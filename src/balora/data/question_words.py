"""The words of a question, which of them are names that a perturbation must not change, and their synonyms."""

import re
from bisect import bisect_right
from typing import NamedTuple

#: White space and opening marks; the word from its first letter or digit to its last; closing marks.
TOKEN = re.compile(r"(\s*[^\w\s]*)(\S*\w)?(\S*)")
QUOTED = re.compile(r"\"[^\"]*\"|“[^”]*”|‘[^’]*’|(?<!\w)'[^']*'(?!\w)")
_JOINING = "a an and at de del der des di du for in la le of on the to van von with y"
_OPENERS = """
    a according after although among an and are as at because before besides between both by can considered could did
    do does during following for former from had has have how if in is it many name near of on one other out since that
    the these they this though through to under was were what when where which while who whom whose why will with
    within would
"""
_NEGATED = "are could did do does had has have is should was were would"
_WITH_IS = "he how it she that there what where who"

#: Words that join two names into one, as in "University of Louisville".
JOINING = frozenset(_JOINING.split())
#: First words of questions. Another capitalised word at the start is a name.
OPENERS = frozenset(_OPENERS.split())
CONTRACTIONS = {
    **{f"{word}'s": f"{word} is" for word in _WITH_IS.split()},
    **{f"{word}n't": f"{word} not" for word in _NEGATED.split()},
    "can't": "cannot",
    "won't": "will not",
}


class Word(NamedTuple):
    """A word with the marks and white space around it; `before + core + after` of all words is the question."""

    before: str
    core: str
    after: str
    is_name: bool


def split_words(question: str) -> list[Word]:
    """Split a question into words and mark those that belong to names.

    Part of a name is: a word with an upper-case letter, except one of `OPENERS` at the start; a word with a digit;
    everything in quotation marks; and up to two of `JOINING` between capitalised words without marks between them. A
    possessive `'s` is not part of its word. Marks without a word have an empty core and count as a name, so that they
    are not changed.
    """
    tokens = [match for match in TOKEN.finditer(question) if match[0]]
    quotes = [match.span() for match in QUOTED.finditer(question)]
    words = []
    for number, token in enumerate(tokens):
        before, core, after = token.groups(default="")
        if core.lower().endswith(("'s", "’s")) and core.lower().replace("’", "'") not in CONTRACTIONS:
            core, after = core[:-2], core[-2:] + after
        # The first quotation that ends after the word's start; quotations are sorted and do not overlap.
        after_it = bisect_right(quotes, token.start() + len(before), key=lambda span: span[1])
        quoted = after_it < len(quotes) and quotes[after_it][0] < token.end()
        capital = any(map(str.isupper, core)) and not (number == 0 and core.lower() in OPENERS)
        words.append(Word(before, core, after, not core or quoted or capital or any(map(str.isdigit, core))))
    return _with_joining_words(words)


def join_words(words: list[Word]) -> str:
    """Return the question made of the words."""
    return "".join(word.before + word.core + word.after for word in words)


def names_in(question: str) -> list[str]:
    """Return the names as written in a question: runs of name words without marks between, and quotations."""
    names: list[str] = []
    open_name = False
    for word in split_words(question):
        if word.is_name and open_name and not word.before.strip():
            names[-1] += word.before + word.core
        elif word.is_name:
            names.append(word.core)
        if word.is_name and word.after == ".":
            names[-1] += word.after
        open_name = word.is_name and word.after in ("", ".")
    stripped = [name.strip(" .") for name in names]
    return [name for name in stripped if name] + [match[0] for match in QUOTED.finditer(question)]


def recased(text: str, like: str) -> str:
    """Return a text that starts with a capital letter if, and only if, `like` does."""
    return (text[0].upper() if like[0].isupper() else text[0].lower()) + text[1:]


def _with_joining_words(words: list[Word]) -> list[Word]:
    capital = [word.is_name and word.core[:1].isupper() for word in words]
    joined = list(words)
    for start in range(len(words)):
        for end in (start + 2, start + 3):
            between = words[start + 1 : end]
            if (
                end < len(words)
                and capital[start]
                and capital[end]
                and not words[start].after
                and all(word.core in JOINING and not word.before.strip() and not word.after for word in between)
            ):
                joined[start + 1 : end] = [word._replace(is_name=True) for word in between]
    return joined


# Common words of questions, each with words that can replace it. Written for this project. A word is listed only if
# one of its meanings is by far the most frequent in questions about facts, and the replacements fit the same sentence
# in the same form (number, tense).
_TABLE = """
film: movie, picture / films: movies, pictures / movie: film, picture / movies: films, pictures
author: writer / authors: writers / writer: author / writers: authors / actor: performer / actors: performers
actress: female performer / actresses: female performers / singer: vocalist / singers: vocalists / vocalist: singer
musician: music artist / musicians: music artists / band: group / bands: groups / song: tune / songs: tunes
album: record / albums: records / novel: book / novels: books / book: volume / books: volumes / series: show
magazine: periodical / magazines: periodicals / newspaper: paper / documentary: factual film / role: part
roles: parts / character: figure / characters: figures / genre: category / genres: categories / nickname: moniker
company: firm, business / companies: firms, businesses / firm: company / corporation: company / business: company
occupation: profession, job / profession: occupation, job / job: occupation / founder: creator / owner: proprietor
leader: head / politician: political figure / politicians: political figures / king: monarch / queen: monarch
country: nation / countries: nations / nation: country / city: municipality / cities: municipalities
town: settlement / village: small settlement / area: region / region: area
birthplace: place of birth / nationality: citizenship / population: number of inhabitants / inhabitants: residents
residents: inhabitants / headquarters: head offices / river: waterway / mountain: peak / mountains: peaks
island: isle / islands: isles / street: road / road: street / stadium: arena / arena: stadium / airport: airfield
car: automobile / cars: automobiles / plane: aircraft / ship: vessel / ships: vessels / animal: creature
animals: creatures / team: squad / teams: squads / battle: fight / prize: award / award: prize
awards: prizes / type: kind, sort / types: kinds, sorts / kind: type, sort / sort: kind, type / amount: quantity
wife: spouse / husband: spouse / father: male parent / mother: female parent / child: kid / children: kids
brother: male sibling / brothers: male siblings / sister: female sibling / sisters: female siblings
son: male child / sons: male children / daughter: female child / daughters: female children / woman: lady
women: ladies / man: gentleman / men: gentlemen / person: individual / people: persons / individual: person
begin: start / begins: starts / began: started / happen: occur / happened: occurred / occur: happen
occurred: happened / founded: established, set up / established: founded, set up / create: make
created: made, conceived / creates: makes / formed: created, set up / located: situated / situated: located
built: constructed / build: construct / constructed: built / released: issued, brought out / published: issued
wrote: authored, penned / write: author, pen / writes: authors, pens / written: authored, penned / composed: written
starred: appeared / starring: with / sang: performed / sung: performed / hosted: presented / hosts: presents
aired: was shown / produced: made / developed: made / discovered: found / introduced: presented
portrayed: depicted / portrays: depicts / portray: depict / died: passed away / die: pass away / lived: resided
lives: resides / called: named / named: called / served: worked / serves: works / received: got / receive: get
awarded: given / bought: purchased / purchased: bought / buy: purchase / contains: holds / contain: hold
contained: held / includes: comprises / included: contained / provides: supplies / provided: supplied
connected: linked / linked: connected / married: wed / attended: went to
attend: go to / owned: possessed / owns: possesses / leads: heads / led: headed / moved: relocated
surpassed: exceeded / considered: deemed / employed: engaged / requires: needs / required: needed
famous: renowned / renowned: famous / large: big / larger: bigger / largest: biggest / big: large / bigger: larger
biggest: largest / smallest: tiniest / longest: lengthiest / fastest: quickest / tallest: highest
same: identical / different: distinct / multiple: several / various: several / former: previous / previous: earlier
current: present / main: principal / principal: main / entire: whole / whole: entire / annual: yearly
yearly: annual / fictional: made-up / popular: well-liked / final: last
currently: presently / formerly: previously / previously: formerly / originally: initially / initially: originally
mainly: mostly / mostly: mainly / primarily: mainly / approximately: roughly / frequently: often / often: frequently
usually: normally / commonly: widely / together: jointly / jointly: together / during: in the course of
near: close to / within: inside / until: till / throughout: all through
sitcom: situation comedy / rapper: rap artist / rappers: rap artists / footballer: football player
duo: pair / guitarist: guitar player / language: tongue / languages: tongues / headquartered: based
directed: helmed / won: claimed / death: passing / attraction: sight / replaced: succeeded / associated: connected
besides: apart from / alongside: together with / birthday: date of birth / chairman: chair / restaurant: eating place
episode: instalment / episodes: instalments / killed: slain / neighborhood: quarter / airline: air carrier
movement: campaign / sequel: follow-up / origin: provenance
"""

SYNONYMS: dict[str, tuple[str, ...]] = {
    word.strip(): tuple(other.strip() for other in others.split(","))
    for word, others in (entry.split(":") for line in _TABLE.strip().splitlines() for entry in line.split(" / "))
}
