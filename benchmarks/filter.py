"""How well does the quality gate tell clean pages from six kinds of dirt? Beside a 5-gram model of words by KenLM, and zlib.

A megabyte of clean pages is fitted. Other clean pages of the same text are told from boilerplate, lists of spam, text as a scanner misreads it, other
languages, source code, and loops as language models make them. All scorers see the same pages. AUC: the probability that a dirty page is odder than a clean one.

KenLM is trained on the same pages by `lmplz -o 5`, of words in lower case, digits as zeros, punctuation split off, a paragraph a line, much as CCNet does (Wenzek et
al. 2020). Its score is the perplexity, where high is bad; and, because loops and boilerplate may have a low one, the distance from the median to either side,
in units of the 5 % and 95 % quantiles of other clean pages. The better of the two means counts. zlib's ratio has the same choice, with low as bad.

Nothing of a page is tuned to a scorer: paragraphs of the clean text are unwrapped, so that no scorer can tell pages by their line ends. The real pages are
other languages (manual pages of this system, without markup) and code (Python's standard library); the other kinds are made, from templates
or from clean pages that are used nowhere else. Nothing is taken out of the clean text: a few of Dickens's pages are Project Gutenberg's licence, which the
gate calls odd, since the fitted pages have it too and it is cheap; that costs half a percent of AUC. `--lmplz PATH`, or BTLM_LMPLZ, says where lmplz is, with KenLM's `query` beside it.
"""

from __future__ import annotations

import ast
import gzip
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import harness
import numpy as np
from numpy.typing import NDArray

from bit_transformer.data.sources import named_file, stdlib_files
from bit_transformer.errors import BitTransformerError
from bit_transformer.quality.model import QualityModel
from bit_transformer.quality.scoring import score_texts
from bit_transformer.service.operations import call
from bit_transformer.service.workspace import Workspace

SHORTEST, LONGEST = 300, 3000  # characters of a page
GOALS = {"auc_over_kenlm": ">= 0", "auc_over_zlib": ">= 0", "mb_per_s": ">= 1"}
Random = np.random.Generator


# ---- clean text ----


def clean_text() -> tuple[str, str]:
    """Dickens where it can be had, else what Python's standard library says of itself: a name, and paragraphs with blank lines between them."""
    try:
        text = named_file("dickens").read_bytes().decode("latin-1").replace("\r\n", "\n")
        return "dickens", "\n\n".join(unwrapped(text))
    except BitTransformerError:
        return "documentation of Python's standard library", "\n\n".join(documentation())


def unwrapped(text: str) -> list[str]:
    """Paragraphs, each on a line."""
    parts = (" ".join(part.split()) for part in re.split(r"\n\s*\n", text))
    return [part for part in parts if part]


def documentation() -> list[str]:
    """Paragraphs of pydoc's topics, of docstrings and of long comments."""
    from pydoc_data.topics import topics

    found = [p for topic in topics.values() for p in unwrapped(topic)]
    for path in stdlib_files():
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                doc = ast.get_docstring(node) or ""
                found += [p for p in unwrapped(doc) if ">>>" not in p and len(p) > 60]
    return list(dict.fromkeys(found))


def cut(text: str, random: Random) -> list[str]:
    """Pages, one after the other, of lengths that are even in their logarithm; in any order. A page begins and ends with a word."""
    pages, at = [], 0
    while at < len(text) - LONGEST - 100:
        end = text.find(" ", at + length(random))
        pages.append(text[at:end].strip())
        at = end
    return [pages[i] for i in random.permutation(len(pages))]


def length(random: Random) -> int:
    """Characters of a page."""
    return int(math.exp(random.uniform(math.log(SHORTEST), math.log(LONGEST))))


def fitted(text: str, size: int) -> str:
    """Text cut to about a length, after a word."""
    if len(text) <= size:
        return text
    end = text.rfind(" ", SHORTEST, size)
    return text[: end if end > 0 else size].strip()


# ---- dirt ----

COMPANIES = [
    "Acme",
    "Brightside",
    "Northwind",
    "Contoso",
    "Bluepeak",
    "Everline",
    "Fernway",
    "Globex",
    "Harbor",
    "Initech",
    "Juniper",
    "Kestrel",
    "Lumen",
    "Maplewood",
    "Nimbus",
    "Orchard",
]
ENDINGS = ("Media", "Group", "Inc.", "Ltd", "LLC", "Online", "News", "Digital", "Holdings", "Network", "Labs", "Store")
SECTIONS = [
    "Home",
    "About us",
    "Contact",
    "News",
    "Sports",
    "Business",
    "Opinion",
    "Lifestyle",
    "Travel",
    "Weather",
    "Video",
    "Podcasts",
    "Jobs",
    "Subscribe",
    "Log in",
    "My account",
    "Shop",
    "Cart",
    "Help",
    "FAQ",
    "Careers",
    "Press",
    "Advertise",
    "Newsletters",
    "Events",
    "Archive",
    "RSS",
    "Mobile apps",
    "Gift cards",
    "Store locator",
    "Blog",
    "Forum",
    "Downloads",
    "Support",
    "Community",
    "Partners",
    "Investors",
    "Sitemap",
    "Terms of use",
    "Privacy policy",
    "Cookie settings",
    "Accessibility",
    "Do not sell my personal information",
]
BOILERPLATE = (
    "We use cookies to {purpose}. By {action}, you agree to our use of cookies as described in our {policy}.",
    "This website uses cookies. {company} and our {n} partners store and access information on your device to {purpose}. You can change your preferences at any time.",
    "We value your privacy. Click \"Accept all\" to consent to the use of ALL the cookies, or \"Manage preferences\" to {purpose2}.",
    "Strictly necessary cookies are always active. Functional cookies help {purpose}. Marketing cookies are used to track visitors across websites.",
    "© {year} {company}. All rights reserved.",
    "Copyright © {year0}-{year} {company}. All Rights Reserved. Reproduction in whole or in part without permission is prohibited.",
    "{company} is a registered trademark of {company2}. Other product names may be trademarks of their respective owners.",
    "Sign up for our newsletter and get {offer}. You can unsubscribe at any time.",
    "Enter your email address to subscribe to {company} and receive notifications of new posts by email. Join {n},{n3} other subscribers.",
    "Share this: Facebook Twitter LinkedIn Pinterest WhatsApp Email Print",
    "Share on Facebook (Opens in new window) Click to share on Twitter (Opens in new window) Click to email a link to a friend (Opens in new window)",
    "Follow us on social media: Facebook | Instagram | YouTube | TikTok | X",
    "Please enable JavaScript in your browser to {purpose2}.",
    "Your browser is out of date. Please update it to {purpose2}.",
    "You have reached your limit of {n2} free articles this month. Subscribe now for unlimited access from ${n2}.99 a month.",
    "Already a subscriber? Log in. Not a member? Create a free account to continue reading.",
    "Posted by {name} on {month} {n2}, {year} at {n2}:{n0} PM | Filed under: {section}, {section2} | {n} Comments",
    "{month} {n2}, {year} - {n2} min read - Updated {n2} hours ago",
    "Leave a reply. Your email address will not be published. Required fields are marked *",
    "Comment * Name * Email * Website Save my name, email, and website in this browser for the next time I comment.",
    "You must be logged in to post a comment.",
    "Related articles: Read more » | Previous post | Next post | Back to top",
    "Page {n2} of {n} « First < Previous 1 2 3 4 5 Next > Last »",
    "Showing {n2}-{n} of {n},{n3} results. Sort by: Relevance | Newest | Price: low to high | Price: high to low | Rating",
    "Free shipping on orders over ${n}. Returns within {n2} days. See details.",
    "Add to cart  Add to wishlist  Compare  Quick view  In stock  Ships within {n2} business days",
    "This page may contain affiliate links. {company} may earn a commission if you buy through links on our site.",
    "The information on this site is provided for general purposes only and does not constitute {advice} advice. {company} accepts no liability for {loss}.",
    "Use of this site constitutes acceptance of our {policy} and {policy2}. Your California Privacy Rights.",
    "If you believe that content on this site infringes your copyright, please contact our designated agent at legal@{domain}.",
    "Need help? Call 1-800-{n3}-{n4} or email support@{domain}. Our team is available Monday to Friday, 9 am to {n2} pm.",
    "{company}, {n3} Main Street, Suite {n}, {city} | Tel: ({n3}) {n3}-{n4} | info@{domain}",
    "404 - Page not found. The page you are looking for might have been removed, had its name changed, or is temporarily unavailable.",
    "Advertisement - Continue reading below. Sponsored content by {company2}.",
    "Powered by WordPress | Theme: {company} by {company2} | Entries (RSS) and Comments (RSS)",
    "Last modified: {month} {n2}, {year}. Print this page. Report a problem with this page. Was this page helpful? Yes No",
)  # fmt: skip
FILL: dict[str, Sequence[str]] = {
    "purpose": ("improve your experience", "personalise content and ads", "analyse our traffic", "remember your preferences and repeat visits", "provide social media features", "measure the performance of our content", "keep this site secure"),
    "purpose2": ("view this content", "continue", "enjoy the full experience of this site", "provide controlled consent", "play this video", "complete your purchase"),
    "action": ("continuing to browse", "clicking \"I agree\"", "closing this banner", "using our site", "scrolling this page"),
    "policy": ("Privacy Policy", "Cookie Policy", "Cookie Statement", "Privacy Notice", "Terms of Service"),
    "policy2": ("Terms of Use", "User Agreement", "Community Guidelines", "Conditions of Sale"),
    "offer": ("10% off your first order", "the latest news in your inbox", "weekly updates", "exclusive deals and early access", "our free e-book"),
    "advice": ("legal", "medical", "financial", "professional", "investment"),
    "loss": ("any loss arising from its use", "errors or omissions", "the content of external sites", "damages of any kind"),
    "name": ("admin", "Sarah", "editor", "guest author", "John M.", "staff writer", "Priya K."),
    "month": ["January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December"],
    "city": ("Springfield, IL 62701", "Austin, TX 78701", "Portland, OR 97201", "London EC1A 1BB", "Toronto, ON M5V 2T6", "Dublin 2"),
}  # fmt: skip
PRODUCTS = ["car insurance", "payday loans", "running shoes", "weight loss pills", "replica watches", "online casino", "web hosting", "mattress", "laptop battery", "wedding dresses", "dentist", "plumber", "locksmith", "real estate", "hotel", "flights", "used cars", "solar panels", "protein powder", "essay writing service", "credit repair", "mortgage rates", "phone cases", "hair extensions", "vpn", "dog food", "air conditioner repair", "roof repair", "personal injury lawyer", "cbd oil", "e-cigarette", "gold coins", "garage doors", "pest control", "carpet cleaning", "moving company", "teeth whitening", "contact lenses", "printer ink", "backlinks", "seo services", "forex trading", "crypto wallet", "dating site", "poker", "sports betting", "nike air max", "handbags", "sunglasses", "generic viagra", "cialis", "antivirus download", "free ringtones", "movie streaming", "torrent", "iphone unlock", "data recovery", "cheap tickets", "vacation packages", "yoga mats"]  # fmt: skip
PLACES = ["New York", "Los Angeles", "Chicago", "Houston", "Phoenix", "Dallas", "San Diego", "Austin", "Seattle", "Denver", "Boston", "Miami", "Atlanta", "Las Vegas", "Portland", "Orlando", "Tampa", "Toronto", "London", "Manchester", "Sydney", "Dubai", "Delhi", "Mumbai", "Singapore", "near me", "Ohio", "Texas", "Florida", "UK", "online"]  # fmt: skip
BEFORE = ["cheap", "best", "buy", "discount", "top 10", "affordable", "free", "order", "wholesale", "#1", "cheapest", "compare", "local", "24/7", "emergency", "top rated", "low cost", "no prescription", "review", "how to get"]  # fmt: skip
AFTER = ["for sale", "reviews", "coupon", "prices", "deals", "2024", "free shipping", "quotes", "no credit check", "download", "discount code", "best price", "online store", "company", "services", "wholesale", "outlet", "free trial", "near me", "forum"]  # fmt: skip


def pick(choices: Sequence[str], random: Random) -> str:
    """One of several."""
    return choices[int(random.integers(len(choices)))]


def boilerplate(random: Random) -> str:
    """What is around the text of a web page."""

    def company() -> str:
        return f"{pick(COMPANIES, random)} {pick(ENDINGS, random)}"

    def fill(found: re.Match[str]) -> str:
        name = found[1]
        if name in FILL:
            return pick(FILL[name], random)
        if name.startswith("company"):
            return company()
        if name.startswith("section"):
            return pick(SECTIONS, random)
        if name == "domain":
            return f"{pick(COMPANIES, random).lower()}{pick(('.com', '.org', '.net', '.co.uk'), random)}"
        low, high = {"year": (2005, 2025), "year0": (1995, 2005), "n": (20, 900), "n0": (10, 59), "n2": (2, 12), "n3": (100, 999), "n4": (1000, 9999)}[name]  # fmt: skip
        return str(int(random.integers(low, high + 1)))

    size, parts = length(random), [""]
    while len("\n".join(parts)) < size + 100:
        if random.random() < 0.25:
            joint = pick((" | ", "\n", " ", " > ", " · "), random)
            menu = random.choice(len(SECTIONS), int(random.integers(4, 16)), replace=False)
            parts.append(joint.join(SECTIONS[i] for i in menu))
        else:
            parts.append(re.sub(r"\{(\w+)\}", fill, pick(BOILERPLATE, random)))
    return fitted("\n".join(parts[1:]), size)


def spam(random: Random) -> str:
    """Lists of keywords, for search engines."""
    size, joint = length(random), pick((", ", " | ", "\n", " - ", " "), random)
    few = [PRODUCTS[i] for i in random.choice(len(PRODUCTS), int(random.integers(1, 12)), replace=False)]
    made: list[str] = []
    while len(joint.join(made)) < size + 60:
        product, place = pick(few, random), pick(PLACES, random)
        forms = (
            f"{pick(BEFORE, random)} {product}",
            f"{product} {pick(AFTER, random)}",
            f"{product} {place}",
            f"{pick(BEFORE, random)} {product} {place}",
            f"{pick(BEFORE, random)} {product} {pick(AFTER, random)}",
            f"{product} in {place} {pick(AFTER, random)}",
        )
        made.append(pick(forms, random))
    return fitted(joint.join(made), size)


CONFUSED = [
    ("rn", "m"), ("m", "rn"), ("cl", "d"), ("d", "cl"), ("l", "1"), ("l", "I"), ("i", "l"), ("I", "l"), ("O", "0"), ("o", "0"), ("e", "c"), ("c", "e"), ("h", "b"), ("b", "h"),
    ("u", "n"), ("n", "u"), ("s", "5"), ("S", "5"), ("t", "f"), ("f", "t"), ("vv", "w"), ("w", "vv"), ("a", "o"), ("g", "q"), ("y", "v"), ("B", "8"), ("ii", "n"), ("li", "h"), ("ri", "n"), ("fi", "fl"), (",", "."), (".", ","), ("'", "`"), ("i", "!"), ("t", "+"),
]  # fmt: skip
BY_FIRST: dict[str, list[tuple[str, str]]] = {}
for wrong in CONFUSED:
    BY_FIRST.setdefault(wrong[0][0], []).append(wrong)


def scanned(page: str, random: Random) -> str:
    """A page as a scanner misreads it: 5 to 10 % of the characters are confused, words are broken or joined, hyphens are left from line ends."""
    rate, made, at = random.uniform(0.05, 0.10), list[str](), 0
    while at < len(page):
        character = page[at]
        if random.random() >= rate:
            made.append(character)
            at += 1
            continue
        fits = [(a, b) for a, b in BY_FIRST.get(character, ()) if page.startswith(a, at)]
        what = random.random()
        if fits and what < 0.7:
            a, b = fits[int(random.integers(len(fits)))]
            made.append(b)
            at += len(a)
        elif character == " ":
            made.append("" if what < 0.5 else pick(("  ", " . ", " ' "), random))
            at += 1
        elif what < 0.85 and character.isalpha():
            made.append(character + pick(("- ", "-", " ", "-\n"), random))
            at += 1
        else:
            made.append(pick(("", "", "~", "|", "^", "*", "."), random))
            at += 1
    return "".join(made)


def other_languages() -> tuple[str, dict[str, str]]:
    """Real text of other languages: manual pages of this system or, without them, translations of programs' messages. Where from, and by language."""
    made: dict[str, str] = {}
    for code in ("de", "fr", "es", "it", "pl", "nl", "pt_BR", "sv", "ru", "tr"):
        pages = sorted(Path("/usr/share/man", code).glob("man*/*.gz"))
        texts = [plain_manual(gzip.decompress(page.read_bytes()).decode(errors="replace")) for page in pages]
        text = "\n\n".join(dict.fromkeys(p for text in texts for p in text))
        if len(text) > 50_000:
            made[code] = text
    if made:
        return "manual pages of this system", made
    import gettext

    for folder in (Path("/usr/share/locale"), *map(Path, sys.path)):
        for file in sorted(folder.glob("**/LC_MESSAGES/*.mo")) if folder.is_dir() else []:
            code = file.parts[-3]
            if code.partition("_")[0] in ("de", "fr", "es", "it", "pl", "nl", "pt", "sv", "ru", "tr"):
                with file.open("rb") as opened:
                    catalog = gettext.GNUTranslations(opened)._catalog  # type: ignore[attr-defined]
                lines = [" ".join(text.split()) for key, text in catalog.items() if key and len(text) > 40]
                made[code] = made.get(code, "") + "\n".join(lines)
    return "translated messages of programs", {code: text for code, text in made.items() if len(text) > 50_000}


def plain_manual(page: str) -> list[str]:
    """The paragraphs of a manual page, without its markup."""
    kept: list[str] = []
    for line in page.splitlines():
        if line.startswith((".", "'")):
            if re.match(r"\.(PP|P|SH|SS|TP|IP|LP|br|sp)", line):
                kept.append("")
            continue
        line = (
            re.sub(r"\\f[BIRP]|\\f\(..|\\&|\\\||\\/|\\c|\\m\[[^\]]*\]", "", line).replace("\\-", "-").replace("\\(", "")
        )
        kept.append(re.sub(r"\\\[?\w{1,2}\]?|\\", "", line))
    return [p for p in unwrapped("\n".join(kept)) if len(p) > 60]


def looped(page: str, lead: str, random: Random) -> str:
    """Text that goes round, as language models do: some normal text, then a sentence or a paragraph again and again, with or without small changes."""
    size = length(random)
    sentences = [s for s in re.split(r"(?<=[.!?;])\s+", page) if len(s) > 15] or [page[:80]]
    begin = int(random.integers(len(sentences)))
    told = sentences[begin]
    if random.random() < 0.3:
        told = " ".join(sentences[begin : begin + int(random.integers(2, 4))])
    before = fitted(lead, int(size * random.uniform(0.0, 0.4))) if random.random() < 0.7 else ""
    told = told[: max(30, (size - len(before)) // 3)]
    changes, joint = random.random() < 0.5, pick((" ", "\n", "\n\n"), random)
    words = page.split()
    made = [before] if before else []
    rounds = 0
    while len(joint.join(made)) < size or rounds < 3:
        rounds += 1
        again = told.split(" ")
        if changes and rounds > 1:
            again[int(random.integers(len(again)))] = pick(words, random)
            if random.random() < 0.3:
                again.insert(0, f"{rounds}.")
        made.append(" ".join(again))
    return joint.join(made)[: max(size, SHORTEST)]


def code(files: Sequence[Path], random: Random) -> str:
    """A stretch of source code, from a line on."""
    while True:
        text = files[int(random.integers(len(files)))].read_text(errors="replace")
        if len(text) > 2 * SHORTEST:
            start = text.find("\n", int(random.integers(0, len(text) - SHORTEST))) + 1
            page = text[start : start + length(random)].strip()
            if len(page) >= SHORTEST:
                return page


# ---- scorers ----


def words(text: str) -> list[str]:
    """Lines of words for KenLM: in lower case, digits as zeros, punctuation split off."""
    lines = (re.findall(r"\w+|[^\w\s]", re.sub(r"\d", "0", line.lower())) for line in text.splitlines())
    return [" ".join(line) for line in lines if line]


class KenLM:
    """A 5-gram of words. `lmplz`: the program that trains it; `query` is beside it."""

    def __init__(self, lmplz: Path, pages: Sequence[str], folder: Path) -> None:
        self.query, self.model = lmplz.with_name("query"), folder / "model.arpa"
        text = "\n".join(line for page in pages for line in words(page))
        command = [str(lmplz), "-o", "5", "-S", "1G", "-T", str(folder), "--discount_fallback"]
        with self.model.open("wb") as out:
            subprocess.run(command, input=text.encode(), stdout=out, stderr=subprocess.DEVNULL, check=True)

    def __call__(self, pages: Sequence[str]) -> NDArray[np.float64]:
        """The logarithm of the perplexity of each page; ends of lines count as words."""
        lines = [words(page) or ["."] for page in pages]
        text = "\n".join(line for page in lines for line in page) + "\n"
        told = subprocess.run(
            [str(self.query), "-v", "sentence", str(self.model)], input=text.encode(), capture_output=True, check=True
        ).stdout.decode()
        totals = [float(found) for found in re.findall(r"^Total: (\S+)", told, re.M)]
        assert len(totals) == sum(map(len, lines))
        made, at = [], 0
        for page in lines:
            count = sum(len(line.split()) + 1 for line in page)
            made.append(-sum(totals[at : at + len(page)]) * math.log(10) / count)
            at += len(page)
        return np.array(made)


def zlib_ratio(pages: Sequence[str]) -> NDArray[np.float64]:
    """Bytes before over bytes after: high is repetitive."""
    return np.array([len(data) / len(zlib.compress(data, 9)) for data in (page.encode() for page in pages)])


def either_side(clean: NDArray[np.float64]) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    """How far values are from the median of clean ones, in units of the 5 % or the 95 % quantile's distance."""
    low, middle, high = np.quantile(clean, (0.05, 0.5, 0.95))
    return lambda values: np.where(
        values > middle, (values - middle) / (high - middle), (middle - values) / (middle - low)
    )


def auc(clean: NDArray[np.float64], dirty: NDArray[np.float64]) -> float:
    """The probability that a dirty page scores higher than a clean one; ties count half."""
    below = np.searchsorted(np.sort(clean), dirty, side="left")
    upto = np.searchsorted(np.sort(clean), dirty, side="right")
    return float((below + upto).mean() / (2 * len(clean)))


def lmplz_path() -> Path | None:
    """Where lmplz is, with query beside it."""
    given = os.environ.get("BTLM_LMPLZ") or shutil.which("lmplz")
    return Path(given) if given and Path(given).is_file() and Path(given).with_name("query").is_file() else None


# ---- the benchmark ----


def main(quick: bool) -> int:
    """Print the table."""
    random = np.random.default_rng(0)
    each, fit_bytes = (100, 400_000) if quick else (500, 1_000_000)
    name, text = clean_text()
    pages = cut(text, random)
    sizes = np.cumsum([len(page.encode()) for page in pages])
    count = int(np.searchsorted(sizes, fit_bytes))
    if len(pages) - count < 5 * each:  # a smaller text: less of it is fitted
        count = max(len(pages) // 2, len(pages) - 5 * each)
        each = min(each, (len(pages) - count) // 5)
    fit, rest = pages[:count], iter(pages[count:])
    clean, others, to_scan, to_loop, leads = ([next(rest) for _ in range(each)] for _ in range(5))
    where, tongues = other_languages()
    files = stdlib_files()
    dirt: dict[str, list[str]] = {
        "boilerplate": [boilerplate(random) for _ in range(each)],
        "spam": [spam(random) for _ in range(each)],
        "ocr": [scanned(page, random) for page in to_scan],
        "code": [code(files, random) for _ in range(each)],
        "loops": [looped(page, lead, random) for page, lead in zip(to_loop, leads, strict=True)],
    }
    if tongues:
        codes = sorted(tongues)
        foreign = [cut(tongues[code], random) for code in codes]
        dirt["language"] = [
            foreign[i % len(codes)][i // len(codes) % len(foreign[i % len(codes)])] for i in range(each)
        ]
    report = harness.Report(
        "filter",
        f"fit: {count} pages, {sizes[count - 1] / 1e6:.2f} MB of {name}; {each} other clean pages, {each} of each kind of dirt; {SHORTEST} to {LONGEST} characters",
        dict(GOALS),
    )
    languages = (
        f"{where}: {', '.join(sorted(tongues))}" if tongues else "null: none on this system; the kind is left out"
    )
    report.row("other languages from", languages)

    began = time.perf_counter()
    model = QualityModel.fit(fit)
    report.figures["fit_s_per_mb"] = (time.perf_counter() - began) / (sizes[count - 1] / 1e6)

    def ours(some: Sequence[str]) -> NDArray[np.float64]:
        scores = list(score_texts(some, model))
        assert all(score.oddness is not None for score in scores)
        return np.array([score.oddness for score in scores])

    scorers: dict[str, Callable[[Sequence[str]], NDArray[np.float64]]] = {"ours": ours}
    with tempfile.TemporaryDirectory() as folder:
        lmplz = lmplz_path()
        raw: dict[str, Callable[[Sequence[str]], NDArray[np.float64]]] = {"zlib": zlib_ratio}
        if lmplz is not None:
            raw = {"kenlm": KenLM(lmplz, fit, Path(folder)), **raw}
        for which, score in raw.items():
            distance = either_side(score(others))
            scorers[which] = score
            scorers[f"{which} two-sided"] = lambda some, score=score, distance=distance: distance(score(some))  # type: ignore[misc]
        table = {which: compared(score, clean, dirt) for which, score in scorers.items()}
        speed(report, model, fit + clean + others, Path(folder), quick)
    show(report, table, dirt)
    for kind, some in {"clean pages": clean, **dirt}.items():
        odd = ours(some)  # -log2 of the fraction of clean pages that are as odd
        report.row(f"{kind} at a percentile of 95 or more", f"{(odd >= -math.log2(0.05)).mean():.1%}")
        report.row(f"{kind} at a percentile of 99 or more", f"{(odd >= -math.log2(0.01)).mean():.1%}")
    if lmplz is None:
        report.row("auc_kenlm", "null: no lmplz with query beside it in PATH. Try --lmplz PATH")
        del report.goals["auc_over_kenlm"]
    return report.finish()


def compared(
    score: Callable[[Sequence[str]], NDArray[np.float64]], clean: Sequence[str], dirt: dict[str, list[str]]
) -> dict[str, float]:
    """AUC by kind."""
    normal = score(clean)
    return {kind: auc(normal, score(some)) for kind, some in dirt.items()}


def show(report: harness.Report, table: dict[str, dict[str, float]], dirt: dict[str, list[str]]) -> None:
    """Rows and figures of all scorers."""
    width = max(map(len, dirt))
    report.row("AUC", "  ".join(f"{kind:>{width}}" for kind in dirt) + f"  {'mean':>{width}}")
    means = {which: float(np.mean(list(row.values()))) for which, row in table.items()}
    for which, row in table.items():
        report.row(
            f"  {which}", "  ".join(f"{row[kind]:>{width}.4f}" for kind in dirt) + f"  {means[which]:>{width}.4f}"
        )
    report.figures["auc"] = means["ours"]
    for which in ("kenlm", "zlib"):
        if which in means:
            best = max((which, f"{which} two-sided"), key=lambda name: means[name])
            report.figures[f"auc_{which}"] = means[best]
            report.figures[f"auc_over_{which}"] = means["ours"] - means[best]
            report.row(f"auc_{which}", "two-sided" if best != which else "one-sided")
            report.figures |= {f"auc_{which}_{kind}": value for kind, value in table[best].items()}
    report.figures |= {f"auc_{kind}": value for kind, value in table["ours"].items()}


def speed(report: harness.Report, model: QualityModel, pages: Sequence[str], folder: Path, quick: bool) -> None:
    """Figures of the whole operation on a file of JSON lines: reading, scoring, writing, on all cores."""
    model.save(folder / "quality.btlm")
    source, out = folder / "pages.jsonl", folder / "out.jsonl"
    rows = "".join(json.dumps({"id": i, "text": page}, ensure_ascii=False) + "\n" for i, page in enumerate(pages))
    source.write_text(rows * (1 if quick else 4))
    fields = {"names": (str(source),), "run": str(folder / "quality.btlm"), "out": str(out), "overwrite": True}
    best = min((call("filter", fields, Workspace(device="cpu")) for _ in range(3)), key=lambda done: done.seconds)
    report.figures["docs_per_s"] = best.documents / best.seconds
    report.figures["mb_per_s"] = best.bytes / best.seconds / 1e6
    report.row(
        "filter", f"{best.bytes / 1e6:.1f} MB in {best.seconds:.1f} s on {os.cpu_count()} cores, the best of three"
    )


if __name__ == "__main__":
    if "--lmplz" in sys.argv[:-1]:
        at = sys.argv.index("--lmplz")
        os.environ["BTLM_LMPLZ"] = sys.argv[at + 1]
        del sys.argv[at : at + 2]
    harness.run(main, __doc__)
