"""Where the paper's data can be had, and what must come of it: addresses, checksums, Table 2.

The authors' pickles are those of the commit below; of one that could not be had here only the name
of its Git object is known, which is a checksum too. Those of the Amazon and Douban files are what
other public projects recorded of their downloads. Where none is known the one that is found is
reported.
"""

from __future__ import annotations

import dataclasses

_PDREC = (
    "https://raw.githubusercontent.com/hulkima/PDRec/fc557dd989aad85aaf4e4875f6d386bfd2c80184/"
    "Dataset/"
)
_AMAZON = "https://mcauleylab.ucsd.edu/public_datasets/data/amazon_v2/"
_DOUBAN = "https://recbole.s3-accelerate.amazonaws.com/CrossDomain/Douban.zip"


@dataclasses.dataclass(frozen=True)
class Remote:
    """A file that somebody else publishes.

    Attributes:
        name: its path on disk, below the folder of the downloads.
        urls: where it is, in order of preference.
        sha256: of its bytes; None where nobody has recorded it.
        git_blob: name of its Git object, the SHA-1 of a head and its bytes; None where `sha256` is
            known, or neither is.
    """

    name: str
    urls: tuple[str, ...]
    sha256: str | None
    git_blob: str | None = None


@dataclasses.dataclass(frozen=True)
class Domain:
    """One of the paper's four logs.

    Attributes:
        name: of the file, without its suffix.
        users: Table 2.
        items: Table 2.
        records: Table 2.
        sha256: of the unpacked `.inter` file that the authors' pickles make, without `timestamp`
            where it has `order`.
    """

    name: str
    users: int
    items: int
    records: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Pickles:
    """The authors' files of a pair: items and times of the first domain, and of both mixed.

    Attributes:
        items: of the first domain.
        times: of the first domain.
        mixed_items: of both.
        mixed_times: of both.
        times_needed: whether the pair is to be had with `mixed_times` alone. Otherwise the second
            log has a column `order` in any case, and times where the file is what it should be.
    """

    items: Remote
    times: Remote
    mixed_items: Remote
    mixed_times: Remote
    times_needed: bool = True


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two domains with the same users.

    Attributes:
        first: in the mixed log its items keep their numbers.
        second: in the mixed log its items are shifted by the first's.
        pickles: the authors' files.
        raw: what the authors began with: one choice of files a domain, the first being the one
            that is downloaded.
        core: fewest records of a user and of an item, in the raw data.
        longest: most records of a user, in the raw data; None for no limit.
    """

    first: Domain
    second: Domain
    pickles: Pickles
    raw: tuple[tuple[Remote, ...], tuple[Remote, ...]]
    core: int
    longest: int | None = None


def _pickle(folder: str, name: str, sha256: str | None, git_blob: str | None = None) -> Remote:
    # The folders are the authors', so that a clone's Dataset folder will do for a download.
    return Remote(f"{folder}/{name}", (f"{_PDREC}{folder}/{name}",), sha256, git_blob)


def _amazon(name: str, sha256: str) -> tuple[Remote, ...]:
    return (
        Remote(f"{name}.csv", (f"{_AMAZON}categoryFilesSmall/{name}.csv",), sha256),
        Remote(f"{name}.csv.gz", (), None),
        Remote(f"{name}.json.gz", (f"{_AMAZON}categoryFiles/{name}.json.gz",), None),
        Remote(f"{name}.json", (), None),
    )


def _douban(name: str, sha256: str) -> tuple[Remote, ...]:
    return (Remote(f"{name}.inter", (), sha256), Remote(f"{name}.inter.gz", (), None))


# RecBole-CDR's bundle; the first address has refused downloads at times, the second is a copy.
DOUBAN_ZIP = Remote(
    "Douban.zip",
    (_DOUBAN, f"https://web.archive.org/web/20240401023103id_/{_DOUBAN}"),
    "f6883d0ac6745876b92eae22977d3694993c52a83d1f039a833c083ed812551a",
)

AMAZON = Pair(
    first=Domain(
        "amazon_toy",
        7_996,
        37_868,
        114_487,
        "8e07d183c8ce3d37eeda10f2ae5bf25c2a13c4dbbc64fb569feaea63e8610234",
    ),
    second=Domain(
        "amazon_game",
        7_996,
        11_735,
        82_871,
        "b054474bdb924953053c8bf0d1e94027fab9b9738bdfeffc03b1a7bec4c587c9",
    ),
    pickles=Pickles(
        _pickle(
            "Amazon_toy",
            "toy_log_file_final.pkl",
            "3d440075188f0aaa1feb26352f9f851f63150bb0fa9b79337e2575e3888c606e",
        ),
        _pickle(
            "Amazon_toy",
            "toy_log_timestep_final.pkl",
            "570ae02a7156b4429f51641a089f30833c8379a55d772fce609d5373c2bd50e4",
        ),
        _pickle(
            "Amazon_toy",
            "mix_log_file_final.pkl",
            "7fca8a818843cc30196cb9d284521b5c505f919f16e711937d5960bfbcb56ede",
        ),
        _pickle(
            "Amazon_toy",
            "mix_log_timestep_final.pkl",
            "ae094f1e2e8f448b956e16155ff35ff29df5234dd551c722103fc3cafeab7c10",
        ),
    ),
    raw=(
        _amazon(
            "Toys_and_Games", "cfdf96d55b3d923c913f3b139e7fabdc20360989db38527ef5947982aa246d45"
        ),
        _amazon("Video_Games", "c3fec1cce4ee67f0d51f8b53a7e294d8bbe6f75ca1d8732256e900b3c46606d8"),
    ),
    core=3,
)

DOUBAN = Pair(
    first=Domain(
        "douban_book",
        12_170,
        33_697,
        514_015,
        "6ef5f9437da0db0b149810b01f24c5b66162faf6ae7643a3dd245284c357539d",
    ),
    second=Domain(
        "douban_music",
        12_170,
        30_707,
        558_352,
        "f3c3a3ef4359ad7d14794b9e53cf226dc46364842a1d3e769397d493f75b1aad",
    ),
    pickles=Pickles(
        _pickle(
            "Douban_book",
            "book_log_file_final.pkl",
            "073249f9aed4023c81e947a8ee215923570d6ddfa19871067fd4241edc80a2c0",
        ),
        _pickle(
            "Douban_book",
            "book_log_timestep_final.pkl",
            "7a5ebe9febc6512e101a0b70cc5682fac68ac09df3d794d3a8897a6ee9c2c4a1",
        ),
        _pickle(
            "Douban_book",
            "mix_log_file_final.pkl",
            "0338a3527cd10ad2c5e44d45dea8b4d0e07ee24696c2edbcae617ff9bf922e97",
        ),
        _pickle(
            "Douban_book",
            "mix_log_timestep_final.pkl",
            None,
            "3799cef021e7c8e0adb4e63c60779419560f3c3f",
        ),
        times_needed=False,
    ),
    raw=(
        _douban("DoubanBook", "760b815632e68fdec8a975cd5ead72e5b8cb03aa8b12f7979824d87ffd629e9e"),
        _douban("DoubanMusic", "f29cb8a2321cedbc84320eb1d97a00e73105f52e9def225b27a3a7d89b6a88ef"),
    ),
    core=5,
    longest=200,
)

PAIRS = {"amazon": AMAZON, "douban": DOUBAN}
