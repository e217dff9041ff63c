"""`personal`: addresses, numbers and keys that belong to somebody. Masked by a placeholder, or a reason to drop.

Each kind is a pattern of bounded length and a check: a payment card must have its issuer's length and Luhn's check
digit, an IBAN its country's length and remainder 1 modulo 97 (ISO 13616), an IP address its ranges.
"""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace

from fledge.data.cleaning.config import PersonalConfig, PersonalKind
from fledge.data.cleaning.step import Dropped
from fledge.data.document import Document

Span = tuple[int, int]  # first character, and the one after the last

# The patterns begin with a set of characters and look back from there, which lets the search skip what can't begin one.
DOMAIN = re.compile(r"@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.){1,8}[A-Za-z]{2,24}(?![\w-])")
LOCAL = re.compile(r"(?<![\w.%+-])[A-Za-z0-9](?:[\w.%+-]{0,62}[\w+-])?\Z")
IPV4 = re.compile(r"\d(?<![\w.-]\d)\d{0,2}(?:\.\d{1,3}){3}(?![\w-]|\.\w)")
COLONS = re.compile(r":[0-9A-Fa-f]{0,4}:")
IPV6 = re.compile(
    r"[0-9A-Fa-f:](?<![\w:.].)(?:(?<=:)|[0-9A-Fa-f]{0,3}:)(?:[0-9A-Fa-f]{0,4}:){1,6}[0-9A-Fa-f]{0,4}(?![\w:]|\.\d)"
)
CARD = re.compile(r"\d(?<![\w.,-]\d)[ -]?(?:\d[ -]?){10,17}\d(?![\w-]|[.,]\d)")
IBAN = re.compile(r"[A-Z](?<!\w.)[A-Z]\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,4})?(?!\w)")
# Telephone numbers are told from other numbers by a country's code, or by how the digits of national ones are parted.
PHONE = re.compile(
    r"[+(0-9](?<![\w./@#$€£=+-].)(?<!\d,.)(?:"
    r"(?:(?<=\+)[1-9]\d{0,3}|(?<=\()\+[1-9]\d{0,3}\))(?:[ \u00a0./()\u2010-\u2013-]{0,3}\d{1,5}){2,6}"
    r"|(?:(?<=\()[2-9]\d\d\) ?|(?<=[2-9])\d\d[ .-]|(?<=1)[ .-]?[2-9]\d\d[ .-])[2-9]\d\d[ .-]\d{4}"  # North America
    r"|(?<=\()0?\d{2,5}\) ?\d{2,4}(?:[ -]?\d{2,4}){1,3}"  # an area code in brackets
    r"|(?<=0)(?:\d{1,4}[ /-]\d{2,4}(?:[ -]\d{2,4}){1,3}|\d{2,4}[ /-]\d{5,8})"  # a trunk prefix
    r"|(?<=0)\d(?:[ .-]\d{2}){4}"  # France
    r")(?:\s?(?:x|ext\.?)\s?\d{1,6})?(?![\w@%]|[.,-]\d)"
)
DECIMAL = re.compile(r"\+\d+\.\d+")
KEY_STARTS = (
    *("PRIVATE KEY-----", "AKIA", "ASIA", "AIza", "gho_", "ghp_", "ghr_", "ghs_", "ghu_", "github_pat_", "glpat-"),
    *("xox", "sk-", "k_live_", "k_test_", "ya29.", "hf_", "npm_", "pypi-", "eyJ"),
)
KEY = re.compile(
    r"-----BEGIN (?:[A-Z]{1,12} ){0,3}PRIVATE KEY-----"
    r"(?:[^-]|-(?!----)){0,16384}-----END (?:[A-Z]{1,12} ){0,3}PRIVATE KEY-----"
    r"|[AghxsrpynepA](?<![A-Za-z0-9_-].)(?:"
    r"(?<=A)(?:KIA|SIA)[0-9A-Z]{16}|(?<=A)Iza[\w-]{35}"
    r"|(?<=g)(?:h[pousr]_[A-Za-z0-9]{36,251}|ithub_pat_\w{22,250}|lpat-[\w-]{20,64})"
    r"|(?<=x)ox[abeprs]-[A-Za-z0-9-]{10,250}"
    r"|(?<=s)k-[A-Za-z0-9_-]{20,250}|(?<=[rsp])k_(?:live|test)_[A-Za-z0-9]{16,250}"
    r"|(?<=y)a29\.[\w-]{20,250}|(?<=h)f_[A-Za-z0-9]{30,64}"
    r"|(?<=n)pm_[A-Za-z0-9]{36}|(?<=p)ypi-[\w-]{40,250}"
    r"|(?<=e)yJ[\w-]{10,2000}\.eyJ[\w-]{10,4000}\.[\w-]{10,1000}"
    r")(?![A-Za-z0-9_-])"
)
# Length of an IBAN by country (SWIFT's registry).
IBAN_LENGTHS = {
    **dict.fromkeys(("NO",), 15),
    **dict.fromkeys(("BE",), 16),
    **dict.fromkeys(("DK", "FI", "FO", "GL", "NL", "SD", "FK"), 18),
    **dict.fromkeys(("MK", "SI"), 19),
    **dict.fromkeys(("AT", "BA", "EE", "KZ", "LT", "LU", "XK", "MN"), 20),
    **dict.fromkeys(("CH", "CR", "HR", "LI", "LV"), 21),
    **dict.fromkeys(("BG", "BH", "DE", "GB", "GE", "IE", "ME", "RS", "VA"), 22),
    **dict.fromkeys(("AE", "GI", "IL", "IQ", "TL", "OM", "SO"), 23),
    **dict.fromkeys(("AD", "CZ", "ES", "MD", "PK", "RO", "SA", "SE", "SK", "TN", "VG"), 24),
    **dict.fromkeys(("LY", "PT", "ST"), 25),
    **dict.fromkeys(("IS", "TR"), 26),
    **dict.fromkeys(("BI", "DJ", "FR", "GR", "IT", "MC", "MR", "SM"), 27),
    **dict.fromkeys(("AL", "AZ", "BY", "CY", "DO", "GT", "HU", "LB", "NI", "PL", "SV"), 28),
    **dict.fromkeys(("BR", "EG", "PS", "QA", "UA"), 29),
    **dict.fromkeys(("JO", "KW", "MU", "YE"), 30),
    **dict.fromkeys(("MT", "SC"), 31),
    **dict.fromkeys(("LC",), 32),
    **dict.fromkeys(("RU",), 33),
}
CARD_ISSUERS = (  # first digits and lengths
    (re.compile("4"), (13, 16, 19)),  # Visa
    (re.compile("5[1-5]|222[1-9]|22[3-9]|2[3-6]|27[01]|2720"), (16,)),  # Mastercard
    (re.compile("3[47]"), (15,)),  # American Express
    (re.compile("30[0-5]|36|3[89]"), (14, 16)),  # Diners Club
    (re.compile("6011|64[4-9]|65"), (16, 19)),  # Discover
    (re.compile("35"), (16, 17, 18, 19)),  # JCB
    (re.compile("1800|2131"), (15,)),  # JCB
    (re.compile("62"), (16, 17, 18, 19)),  # UnionPay
    (re.compile("50|5[6-9]|6[0-9]"), (12, 13, 14, 15, 16, 17, 18, 19)),  # Maestro
)


class Personal:
    """Masks or drops what looks personal. `found` counts each kind."""

    def __init__(self, config: PersonalConfig):
        self.config = config
        self.found: Counter[str] = Counter()

    def __call__(self, document: Document) -> Document | Dropped:
        text, counts = mask(document.text, self.config.kinds)
        self.found.update(counts)
        if not counts:
            return document
        if self.config.action == "drop":
            return Dropped(f"personal data: {', '.join(sorted(counts))}")
        return replace(document, text=text)


def mask(text: str, kinds: tuple[PersonalKind, ...]) -> tuple[str, Counter[str]]:
    """The text with a placeholder for everything personal of these kinds, and how many of each were found."""
    counts: Counter[str] = Counter()
    for kind, find in KINDS.items():
        if kind not in kinds:
            continue
        parts, at = [], 0
        for start, end in find(text):
            parts += [text[at:start], f"[{kind}]"]
            at = end
            counts[kind] += 1
        text = "".join([*parts, text[at:]]) if parts else text
    return text, counts


def emails(text: str) -> Iterator[Span]:
    """From each @ with a domain after it, back over the name before it."""
    at = 0
    for domain in DOMAIN.finditer(text):
        start = max(at, domain.start() - LONGEST_LOCAL)
        local = LOCAL.search(text[start : domain.start()])
        if local:
            at = domain.end()
            yield start + local.start(), at


def cards(text: str) -> Iterator[Span]:
    return checked(CARD, is_card, text)


def ibans(text: str) -> Iterator[Span]:
    return checked(IBAN, is_iban, text)


def phones(text: str) -> Iterator[Span]:
    return checked(PHONE, is_phone, text)


def keys(text: str) -> Iterator[Span]:
    return checked(KEY, bool, text) if any(start in text for start in KEY_STARTS) else iter(())


def ips(text: str) -> Iterator[Span]:
    four = list(checked(IPV4, is_ip, text)) if "." in text else []
    six = list(checked(IPV6, is_ip, text)) if COLONS.search(text) else []
    return iter(sorted([*four, *six]))


def checked(pattern: re.Pattern[str], is_right: Callable[[str], bool], text: str) -> Iterator[Span]:
    return (match.span() for match in pattern.finditer(text) if is_right(match.group()))


def luhn(digits: str) -> bool:
    """Whether the last digit is the check digit of those before it (ISO/IEC 7812-1)."""
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit) * (1 + place % 2)
        total += value - 9 * (value > 9)
    return total % 10 == 0


def is_card(found: str) -> bool:
    digits = re.sub("[ -]", "", found)
    issued = any(first.match(digits) and len(digits) in lengths for first, lengths in CARD_ISSUERS)
    return issued and luhn(digits) and len(set(digits)) > 1


def is_iban(found: str) -> bool:
    letters = found.replace(" ", "")
    if IBAN_LENGTHS.get(letters[:2]) != len(letters):
        return False
    return int("".join(str(int(c, 36)) for c in letters[4:] + letters[:4])) % 97 == 1


def is_ip(found: str) -> bool:
    """An address of one machine on the internet or a private network: not 0.0.0.0, not a loopback, and for version 4
    not what is more likely a version number (1.2.3.4)."""
    try:
        address = ipaddress.ip_address(found)
    except ValueError:
        return False
    if address.is_unspecified or address.is_loopback or address.is_multicast:
        return False
    if isinstance(address, ipaddress.IPv6Address):
        return found.count(":") >= 3 or (found.count(":") == 2 and len(found) > 6)
    return max(address.packed) > LARGEST_VERSION


def is_phone(found: str) -> bool:
    """Whether it has as many digits as a number may have (ITU E.164), an extension aside, and is no decimal number."""
    if DECIMAL.fullmatch(found):
        return False
    return 7 <= len(re.sub(r"\D", "", re.split(r"\s?(?:x|ext)", found)[0])) <= 15


LONGEST_LOCAL = 64  # characters before the @ (RFC 5321)
LARGEST_VERSION = 31  # four numbers up to this are a version sooner than an address
# In this order: what is masked first is no part of the next.
KINDS: dict[PersonalKind, Callable[[str], Iterator[Span]]] = {
    "key": keys,
    "email": emails,
    "iban": ibans,
    "card": cards,
    "ip": ips,
    "phone": phones,
}
