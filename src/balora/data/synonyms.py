"""Common words of questions, each with words that can stand in its place. Written for this project.

A word is here only if one of its meanings is by far the most frequent in questions about facts, and the others fit the
same sentence in the same form (number, tense). Which replacement is taken is the caller's choice.
"""

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
