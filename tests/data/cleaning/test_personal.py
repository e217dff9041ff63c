"""Personal data is masked where it stands; numbers that are none stay."""

from __future__ import annotations

import gzip
import json
from collections import Counter

import pytest

from fledge.data.cleaning.config import PERSONAL, PersonalConfig
from fledge.data.cleaning.personal import KINDS, Personal, is_iban, luhn, mask
from fledge.data.cleaning.step import Dropped
from fledge.data.document import Document

PLANTED = [
    ("email", "jane.doe+lists@mail.example.co.uk"),
    ("email", "j@example.org"),
    ("phone", "+49 30 901820"),
    ("phone", "+1 (415) 555-2671"),
    ("phone", "(212) 555-0199"),
    ("phone", "212-555-0199 x12"),
    ("phone", "030/901820"),
    ("phone", "06 12 34 56 78"),
    ("phone", "020 7946 0958"),
    ("ip", "192.168.17.254"),
    ("ip", "2001:db8::ff00:42:8329"),
    ("ip", "fe80::5054:ff:fe9"),
    ("card", "4111 1111 1111 1111"),
    ("card", "5500-0000-0000-0004"),
    ("card", "378282246310005"),
    ("iban", "DE89 3704 0044 0532 0130 00"),
    ("iban", "GB82WEST12345698765432"),
    ("iban", "FR1420041010050500013M02606"),
    ("key", "AKIAIOSFODNN7EXAMPLE"),
    ("key", "ghp_" + "a1B2" * 9),
    ("key", "sk-proj-abcdefghijklmnopqrstu"),
    ("key", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9P"),
    ("key", "-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----"),
]
OTHER_NUMBERS = [
    *("version 1.2.3.4", "Python 3.11.7", "10.0.19041.1", "127.0.0.1", "0.0.0.0", "1.2.3.4.5"),
    *("2026-11-28 10:30:45", "2001-2010", "(1990-1995)", "1999 2000 2001 2002", "28.11.2026", "11/28/2026"),
    *("ISBN 978-3-16-148410-0", "1,234,567,890", "1 000 000", "3.14159265358979", "+3.140000", "'+35236450.6'"),
    *("4111 1111 1111 1112", "1234 5678 9012 3456", "12345678901234567890", "0000 0000 0000 0000"),
    *("GB82WEST12345698765433", "DE00370400440532013000", "sha 9c1185a5c5e9fc54612808977ee8f548b2258d31"),
    *("std::vector::iterator", "a[::2]", "10:30:45", "00:11:22:33:44:55", "::", "::1"),
    *("user@localhost", "@decorator", "a@b", "x @ y.org", "sk-learn", "skeleton key", "eyJust"),
    *("100-200-3000", "page 12-34", "$212 555 0199", "0 10 20 30 40"),
]


@pytest.mark.parametrize(("kind", "text"), PLANTED)
@pytest.mark.parametrize("around", ["%s", "Write to %s.", "(%s)", "one: %s, two", '"%s"\n'])
def test_what_is_planted_is_masked_and_nothing_beside_it(kind, text, around):
    assert mask(around % text, PERSONAL) == (around % f"[{kind}]", {kind: 1})


@pytest.mark.parametrize("text", OTHER_NUMBERS)
def test_other_numbers_stay(text):
    for around in ("%s", "see %s.", "(%s)"):
        assert mask(around % text, PERSONAL) == (around % text, {})


def test_only_kinds_that_are_asked_for_are_masked():
    text = "j@example.org, 192.168.17.254"
    assert mask(text, ("ip",))[0] == "j@example.org, [ip]"


def test_a_document_is_dropped_when_that_is_asked_for():
    step = Personal(PersonalConfig(action="drop"))
    assert step(Document("a", "j@example.org or 192.168.17.254")) == Dropped("personal data: email, ip")
    assert step(Document("b", "nothing")) == Document("b", "nothing")
    assert step.found == {"email": 1, "ip": 1}


def test_check_digits_tell_one_wrong_digit():
    assert luhn("79927398713")
    assert [digit for digit in "0123456789" if luhn(f"7992739871{digit}")] == ["3"]
    right = "DE89370400440532013000"
    assert is_iban(right)
    wrong = [right[:at] + str((int(right[at]) + 1) % 10) + right[at + 1 :] for at in range(2, 22)]
    assert not any(map(is_iban, wrong))


def test_made_up_records_of_another_project_are_found(data_file):
    """Presidio's synthetic sentences: e-mail, cards and IP addresses whole, IBANs but for one in small letters; of the
    telephone numbers those with a country's code or parted as national numbers are."""
    names = {"EMAIL_ADDRESS": "email", "PHONE_NUMBER": "phone", "CREDIT_CARD": "card", "IBAN_CODE": "iban"}
    names["IP_ADDRESS"] = "ip"
    total: Counter[str] = Counter()
    found: Counter[str] = Counter()
    wrong: Counter[str] = Counter()
    with gzip.open(data_file("safety_pii_presidio") / "synth_dataset_v2.jsonl.gz", "rt", encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            spans = [(kind, *span) for kind, find in KINDS.items() for span in find(row["full_text"])]
            gold = [
                (names[s["entity_type"]], s["start_position"], s["end_position"])
                for s in row["spans"]
                if s["entity_type"] in names
            ]
            total.update(kind for kind, _, _ in gold)
            found.update(k for k, a, b in gold if any(k == kind and s <= a and b <= e for kind, s, e in spans))
            wrong.update(k for k, s, e in spans if not any(s < b and a < e for _, a, b in gold))
    assert total == {"card": 66, "phone": 64, "email": 27, "iban": 12, "ip": 6}
    assert {kind: total[kind] - found[kind] for kind in total} == {
        "card": 0,
        "phone": 22,
        "email": 0,
        "iban": 1,
        "ip": 0,
    }
    assert wrong == {"phone": 1}  # a social security number
