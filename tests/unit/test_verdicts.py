"""Which verdict is shown, of a server's own and the one that Redis keeps, and which of them belongs in Redis."""

from time import time
from typing import Any

import pytest

from audit_stream.chain import Head, Verdict
from audit_stream.errors import Unreachable
from audit_stream.tally import Tally
from audit_stream.verdicts import (
    REASON_LENGTH,
    LastVerdict,
    Verdicts,
    format_verdict,
    parse_verdict,
    summary,
)
from audit_stream.verifier import Report

HEAD = Head(6, b"a" * 64)


def intact(at: float, **more: Any) -> LastVerdict:
    return LastVerdict(valid=True, head=(6, "a" * 64), checked=6, at=at, **{"whole_at": at} | more)


def broken(at: float, first_break_at: int = 3) -> LastVerdict:
    return LastVerdict(
        valid=False, head=(first_break_at - 1, "a" * 64), first_break_at=first_break_at, reason="r", at=at
    )


def walk(*, valid: bool = True, took_s: float = 0.0) -> Report:
    verdict = Verdict(True, 6, None, None, HEAD) if valid else Verdict(False, 4, 5, "own", HEAD)
    return Report(verdict, 1, "agree", took_s)


@pytest.fixture
def verdicts() -> Verdicts:
    return Verdicts(Tally())


def test_a_break_that_was_read_is_shown_until_a_whole_walk_holds_and_a_part_does_not_hide_it(
    verdicts: Verdicts,
) -> None:
    stored = broken(time() - 60)
    assert verdicts.hear(stored) is None
    assert (verdicts.last, verdicts.own) == (stored, None)
    verdicts.found(walk(), whole=False)
    assert verdicts.last == stored
    assert verdicts.hear(stored) is None
    verdicts.found(walk(), whole=True)
    assert verdicts.last == verdicts.own
    assert verdicts.hear(stored) == verdicts.own  # and that is what others are told


def test_a_whole_walk_that_began_before_the_break_was_known_proves_nothing_against_it(verdicts: Verdicts) -> None:
    stored = broken(time())
    verdicts.hear(stored)
    verdicts.found(walk(took_s=60), whole=True)
    assert (verdicts.last, verdicts.own) == (stored, None)
    verdicts.found(walk(valid=False), whole=True)
    assert verdicts.own
    verdicts.found(walk(took_s=60), whole=True)
    assert verdicts.own.valid is False


def test_an_intact_that_was_read_is_shown_and_schedules_nothing(verdicts: Verdicts) -> None:
    stored = intact(time())
    verdicts.hear(stored)
    assert (verdicts.last, verdicts.own) == (stored, None)


def test_an_intact_that_was_read_never_hides_a_break_of_this_server_s_own(verdicts: Verdicts) -> None:
    verdicts.found(walk(valid=False), whole=True)
    own = verdicts.own
    assert own
    for stored in (intact(own.at - 1), intact(own.at + 1)):
        # The older one is overwritten; the newer one stays for those who know of no break.
        assert verdicts.hear(stored) == (own if stored.at < own.at else None)
        assert verdicts.last == own
    assert verdicts.disputed
    verdicts.forget()
    assert verdicts.own == own


@pytest.mark.parametrize(
    "stored",
    [None, intact(100.0), intact(300.0, whole_at=100.0), intact(300.0, whole_at=None)],
    ids=["nothing", "older", "only a part walked since", "never walked whole"],
)
def test_a_break_that_was_read_outlives_the_loss_of_the_key_and_an_older_copy(
    verdicts: Verdicts, stored: LastVerdict | None
) -> None:
    known = broken(200.0)
    verdicts.hear(known)
    back = verdicts.hear(stored)
    assert verdicts.last == known
    assert back == (known if stored is None or stored.at < known.at else None)


def test_a_break_that_was_read_ends_with_a_newer_whole_walk_of_another_server(verdicts: Verdicts) -> None:
    verdicts.hear(broken(200.0))
    assert verdicts.hear(intact(300.0)) is None
    assert verdicts.last == intact(300.0)


def test_its_own_break_that_redis_keeps_is_no_news_and_ends_with_the_next_whole_walk(verdicts: Verdicts) -> None:
    verdicts.found(walk(valid=False), whole=True)
    own = verdicts.own
    assert verdicts.hear(None) == own
    assert verdicts.hear(own) is None
    verdicts.found(walk(), whole=True)
    assert verdicts.last
    assert verdicts.last.valid
    assert verdicts.hear(own) == verdicts.last


def test_the_newer_of_two_intacts_is_shown_and_kept(verdicts: Verdicts) -> None:
    verdicts.found(walk(), whole=True)
    own = verdicts.own
    assert own
    assert verdicts.hear(intact(own.at - 1)) == own
    assert verdicts.hear(intact(own.at + 1)) is None
    assert verdicts.last == intact(own.at + 1)


def test_an_attempt_that_could_not_tell_is_not_kept_for_others(verdicts: Verdicts) -> None:
    verdicts.found(walk(), whole=True)
    verdicts.cannot_tell(Unreachable("Redis is away"))
    assert verdicts.last
    assert verdicts.last.valid is None
    assert verdicts.hear(None) is None


def test_what_is_written_is_read_back_whatever_is_in_the_reason(verdicts: Verdicts) -> None:
    for reason in ("r" * 10_000, "\x00" * 10_000, "🔗" * 10_000, '"\\' * 5000):
        verdicts.found(walk(valid=False)._replace(verdict=Verdict(False, 4, 5, reason, HEAD)), whole=True)
        own = verdicts.own
        assert own
        assert own.reason == reason[:REASON_LENGTH]
        assert parse_verdict(format_verdict(own)) == own


@pytest.mark.parametrize(
    "text",
    [
        b"x",
        b"[]",
        b"{}",
        b"null",
        b'{"valid":null,"at":1}',
        b'{"valid":true,"at":1,"first_break_at":3}',
        b'{"valid":false,"at":1}',
        b'{"valid":true,"at":-1}',
        b'{"valid":true,"at":1e300}',
        b'{"valid":false,"at":1,"first_break_at":1e99}',
        b'{"valid":false,"at":1,"first_break_at":3,"reason":"%b"}' % (b"r" * 501),
        b'{"valid":true,"at":1,"head":[1,"%b"]}' % (b"a" * 65),
        b'{"valid":true,"at":1}' + b" " * 5000,
        format_verdict(intact(253_402_300_000)),
    ],
)
def test_what_no_server_has_written_is_not_a_verdict(text: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - what is wrong with it is the reader's to say
        parse_verdict(text)


@pytest.mark.parametrize(
    ("valid", "age_s", "text"),
    [
        (True, -5, "intact up to #42, just now"),
        (True, 59, "intact up to #42, just now"),
        (True, 185, "intact up to #42, 3 min ago"),
        (True, 7 * 3600, "intact up to #42, 7 h ago"),
        (True, 49 * 3600, "intact up to #42, 2 days ago"),
        (False, 60, "BROKEN at #43, found 1 min ago"),
        (None, 60, "could not be checked; intact up to #42, 1 min ago"),
    ],
)
def test_a_verdict_is_told_in_a_few_words(valid: bool | None, age_s: float, text: str) -> None:
    assert summary(valid, 42, 43 if valid is False else None, age_s) == text


def test_a_good_verdict_on_a_part_heals_no_break_that_this_server_found(verdicts: Verdicts) -> None:
    verdicts.found(walk(valid=False), whole=True)
    verdicts.found(walk(), whole=False)
    assert verdicts.own
    assert verdicts.own.valid is False
    verdicts.found(walk(), whole=True)
    assert verdicts.own.valid is True


def test_a_walk_that_could_not_compare_the_indexes_heals_no_break_and_is_no_whole_one(
    verdicts: Verdicts, caplog: pytest.LogCaptureFixture
) -> None:
    links = walk()._replace(indexes="not checked", unchecked="Redis is slow")
    verdicts.found(links, whole=True)
    assert verdicts.own
    assert (verdicts.own.valid, verdicts.own.whole_at) == (True, None)
    assert "was not checked: Redis is slow" in caplog.text
    verdicts.found(walk(valid=False), whole=True)
    verdicts.found(links, whole=True)
    assert verdicts.own.valid is False
    verdicts.found(walk(), whole=True)
    assert verdicts.own.valid is True
