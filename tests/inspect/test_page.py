"""The page and the text: whole, self-contained, and inert whatever the ids are."""

import dataclasses
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from pdrec_jax.inspect.explanation import Candidate, Event, Explanation, Negatives
from pdrec_jax.inspect.page import as_page
from pdrec_jax.inspect.text import as_text
from pdrec_jax.inspect.words import number, rank, shown, when

SCRIPT = "<script>alert(1)</script>"
VOID = {"meta", "link", "wbr"}


class Reader(HTMLParser):
    """Collects elements, attributes and text, and checks that what is opened is closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.open: list[str] = []
        self.ids: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attributes) -> None:
        self.elements.append(tag)
        self.attributes += attributes
        self.ids += [value for name, value in attributes if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes) -> None:
        self.elements.append(tag)
        self.attributes += attributes

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data) -> None:
        self.text += data


def with_id(told: Explanation, name: str) -> Explanation:
    """The explanation, with one id wherever an id can stand."""
    item = dataclasses.replace
    return item(
        told,
        user=name,
        events=tuple(item(event, item=name) for event in told.events),
        candidates=tuple(
            item(candidate, item=name, picked_by=(name,)) for candidate in told.candidates
        ),
        negatives=item(told.negatives, items=(name,) * len(told.negatives.items)),
        views=tuple(
            item(view, name=name, top=tuple(item(one, item=name) for one in view.top))
            for view in told.views
        ),
        notes=(name,),
    )


def test_a_page_is_whole_and_asks_for_nothing(told) -> None:
    page = as_page(told)
    read = Reader(page)
    assert page.startswith("<!doctype html>")
    assert read.open == []
    assert set(read.elements).isdisjoint(
        {"script", "img", "iframe", "object", "embed", "base", "form", "video", "audio", "image"}
    )
    for name, value in read.attributes:
        assert not name.startswith("on")
        assert name not in ("src", "srcset", "style", "xlink:href")
        if name == "href":
            assert value.startswith("#") or value == "data:,"
    assert "url(" not in page
    assert "@import" not in page
    assert "default-src 'none'" in page
    assert len(set(read.ids)) == len(read.ids)
    assert {value[1:] for name, value in read.attributes if name == "href" and value[0] == "#"} <= (
        set(read.ids)
    )


def test_a_page_can_be_heard(told) -> None:
    read = Reader(as_page(told))
    assert read.elements.count("h1") == 1
    assert read.elements.count("table") == 5
    assert read.elements.count("caption") == 5
    assert read.elements.count("svg") == 3
    # Each plot has a name and a description, which its label points to.
    labels = [value for name, value in read.attributes if name == "aria-labelledby"]
    assert {part for label in labels for part in label.split()} <= set(read.ids)
    assert ("lang", "en") in read.attributes
    assert ("role", "img") in read.attributes


@pytest.mark.parametrize(
    "name",
    [
        SCRIPT,
        '"><img src=x onerror=alert(1)>',
        "</style></title></svg><b>bold</b>",
        "' onmouseover='x()",
        "&lt;already&gt; &amp;",
        "<!-- no end",
        "]]><![CDATA[",
        "a" * 10_000,
        "back\u202eward \x00 \x1b[31m \ud800 \n line",
    ],
)
def test_an_id_is_text_and_nothing_else(told, name) -> None:
    plain, read = Reader(as_page(with_id(told, "plain"))), Reader(as_page(with_id(told, name)))
    assert read.elements == plain.elements
    assert len(read.attributes) == len(plain.attributes)
    assert read.text.count(shown(name)) == plain.text.count("plain")
    as_page(with_id(told, name)).encode("utf-8")


def test_the_nasty_ids_of_the_log_are_shown(run, told) -> None:
    page = as_page(told)
    names = {event.item for event in told.events} | set(told.negatives.items)
    assert SCRIPT in run.given.split.train.item_ids
    assert "<script" not in page.lower()
    text = Reader(page).text
    assert all(shown(name) in text for name in names)


def test_text_holds_no_control_characters(told) -> None:
    lines = as_text(with_id(told, "\x1b[31mred\u202e\nline\x00")).splitlines()
    assert all(line.isprintable() for line in lines)
    assert lines[0] == told.title
    assert lines[-1] == told.source


def test_text_has_what_the_page_has(told) -> None:
    text = as_text(told)
    for event in told.events[-30:]:
        assert shown(event.item, 28) in text
    for candidate in told.candidates:
        assert shown(candidate.item, 28) in text
    for view in told.views:
        assert re.search(rf"{re.escape(view.name)} +{rank(view.validation_rank)} ", text)
        assert f"Top of {view.name}" in text


def test_of_many_candidates_the_text_has_the_first_and_those_that_matter(told) -> None:
    many = [Candidate(f"item{number}", 0.5, (), "") for number in range(80)]
    many[60], many[70] = (
        Candidate("picked", 0.4, ("SASRec",), ""),
        Candidate("held", 0.3, (), "test"),
    )
    text = as_text(dataclasses.replace(told, candidates=tuple(many)))
    assert [number for number in range(80) if f"item{number} " in text] == list(range(50))
    assert "61  picked" in text
    assert "71  held" in text
    assert "  and 28 more" in text


def test_what_is_missing_is_said(told) -> None:
    bare = dataclasses.replace(
        told,
        candidates=(),
        negatives=None,
        curve=None,
        events=tuple(Event(event.item, None, event.part) for event in told.events),
        notes=("No preferences: the plugins have nothing of this user.",),
    )
    read = Reader(as_page(bare))
    assert "No preferences" in read.text
    assert read.elements.count("svg") == 1
    assert "DPA: no candidates" in as_text(bare)
    assert "NNS: no sample" in as_text(bare)


def test_a_borrowed_sample_has_no_ranks(told) -> None:
    borrowed = dataclasses.replace(
        told,
        candidates=(Candidate("it", None, (), ""),),
        negatives=Negatives(("one", "two"), None, None, 0),
        curve=None,
    )
    assert "one, two" in as_text(borrowed)
    assert Reader(as_page(borrowed)).elements.count("svg") == 2


def test_a_long_history_is_cut_and_says_so(told) -> None:
    event = told.events[0]
    long = dataclasses.replace(told, events=(event,) * 1000)
    assert "1,000 events, the latest 30 of them" in as_text(long)
    page = as_page(long)
    assert "The latest 200 are shown" in page
    assert len(page) < 250_000


@pytest.mark.parametrize(
    ("time", "written"),
    [(None, ""), (0.0, "0"), (17.0, "17"), (1.6e9, "2020-09-13 12:26"), (1e30, "1e+30")],
)
def test_times(time, written) -> None:
    assert when(time) == written


def test_numbers() -> None:
    assert (number(None), number(np.nan), number(0.12345)) == ("", "", "0.123")
    assert (rank(None), rank(1.0), rank(1234.5)) == ("-", "1", "1,234.5")
