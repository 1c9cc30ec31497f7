"""How a caption is cut into words.

Published vocabularies of this field count the tokens of NLTK's Penn Treebank word tokenizer on lower-cased captions;
:func:`tokenize` gives the same tokens as ``NLTKWordTokenizer().tokenize(text.lower())`` of NLTK 3.10 with `re` alone:
no dependency, no download, linear time. The conventions are those of the Penn Treebank (Marcus et al., "Building a
Large Annotated Corpus of English", Computational Linguistics 19(2), 1993).
"""

from __future__ import annotations

import re
import unicodedata

# Unicode's White_Space. Python's \s and str.split() also take the separators 0x1C-0x1F, which end a token (the last
# step splits with str.split) but are not the space that has to follow a clitic.
_BLANK = r"[^\S\x1c-\x1f]"
_BLANKS = "\t\n\v\f\r \x85\xa0\u1680" + "".join(map(chr, range(0x2000, 0x200B))) + "\u2028\u2029\u202f\u205f\u3000"
_AFTER_PERIOD = "])}>\"'»”’ "  # what may stand between the caption's final period and its end

_LETTER_CATEGORIES = frozenset(("Lu", "Ll", "Lm", "Lo", "Mn", "Mc", "Me", "Nd", "Nl", "Pc"))
_LETTER_EXTRA = frozenset("\u200c\u200d").union(
    chr(code) for first, last in ("ⓐⓩ", "🄰🅉", "🅐🅩", "🅰🆉") for code in range(ord(first), ord(last) + 1)
)
_CLITIC = re.compile(r"re|ve|ll|[mtsdn]", re.IGNORECASE)  # IGNORECASE: the long s counts as an s


def _is_letter(text: str, index: int) -> bool:
    """Whether ``text[index]`` exists and belongs to a word, in Unicode's sense: marks and joiners do, ² does not."""
    if not 0 <= index < len(text):
        return False
    return unicodedata.category(text[index]) in _LETTER_CATEGORIES or text[index] in _LETTER_EXTRA


def _cut_leading_apostrophe(match: re.Match[str]) -> str:
    """Take the apostrophe off ``'em``, but neither off a clitic that stands alone (``'s``) nor inside ``o'clock``."""
    text, here = match.string, match.start()
    if _is_letter(text, here - 1) or not _is_letter(text, here + 1):
        return "'"
    clitic = _CLITIC.match(text, here + 1)
    return "'" if clitic and not _is_letter(text, clitic.end()) else "' "


# Every rule sets spaces around a token; the order matters, because each sees the spaces that the earlier ones set.
_OPENING_RULES = (
    (re.compile(r"\A\""), "``"),
    (re.compile(r"``?|[«“‘„]"), r" \g<0> "),
    (re.compile(r"(?<=[ (\[{<])(?:\"|'')"), " `` "),
    (re.compile("'"), _cut_leading_apostrophe),
)
_SYMBOL_RULES = (
    # The next character is taken along, so that ",," is cut before its first comma only; "1,000" and "3:30" stay.
    (re.compile(r"([:,])(\D|\Z)"), r" \1 \2"),
    (re.compile(r"\.{2,}|[;@#$%&?!‒–—―]"), r" \g<0> "),
    (re.compile(r"(?<=[^'])'(?= )"), " '"),
    (re.compile(r"--|[][(){}<>*»”’]"), r" \g<0> "),
    (re.compile("''|\""), " '' "),
    (re.compile(f"{_BLANK}+"), " "),
)
_CONTRACTION_RULES = (
    (re.compile(r"(?<=[^' ])'[smd]?(?= )", re.ASCII | re.IGNORECASE), r" \g<0>"),
    (re.compile(r"(?<=[^' ])(?:'(?:ll|re|ve)|n't)(?= )", re.ASCII | re.IGNORECASE), r" \g<0>"),
    (
        re.compile(
            r"\b(?:(can)(not)|(d)('ye)|(gim|lem)(me)|(gon)(na)|(got)(ta)|(more)('n)|(wan)(na)(?=\s))\b", re.IGNORECASE
        ),
        lambda match: " " + " ".join(filter(None, match.groups())) + " ",
    ),
    (re.compile(r"(?<= )('t)(is)\b", re.IGNORECASE), r"\1 \2 "),
    (re.compile(r"(?<= )('t)(was)\b", re.IGNORECASE), r"\1 \2 "),
)


def _cut_final_period(text: str) -> str:
    """Set the period apart that ends the whole caption; periods inside it (``mr. x``) stay with their word."""
    body = text.rstrip(_BLANKS)
    head = body.rstrip(_AFTER_PERIOD)
    if len(head) > 1 and head[-1] == "." and head[-2] != ".":
        return f"{head[:-1]} . {body[len(head) :]} "
    return text


def tokenize(text: str, *, lower: bool = True) -> list[str]:
    """Word tokens of ``text``, lower-cased: clitics (``'s``, ``n't``), quotes and punctuation are tokens of their own.

    >>> tokenize('"Don\\'t run," she said.')
    ['``', 'do', "n't", 'run', ',', "''", 'she', 'said', '.']
    """
    text = text.lower() if lower else text
    for pattern, replacement in _OPENING_RULES:
        text = pattern.sub(replacement, text)
    text = _cut_final_period(text)
    for pattern, replacement in _SYMBOL_RULES:
        text = pattern.sub(replacement, text)
    text = f" {text} "
    for pattern, replacement in _CONTRACTION_RULES:
        text = pattern.sub(replacement, text)
    return text.split()


# Scripts whose words no space parts: Han and its extensions, kana, Thai, Lao, Tibetan, Myanmar, Khmer. A letter stands
# with the marks that follow it.
_UNSPACED = re.compile(
    "([\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff])"
)


def _cut_unspaced(token: str) -> list[str]:
    if not _UNSPACED.search(token):
        return [token]
    pieces: list[str] = []
    for piece in filter(None, _UNSPACED.split(token)):
        if pieces and unicodedata.category(piece[0]) in ("Mn", "Mc", "Me"):
            pieces[-1] += piece
        else:
            pieces.append(piece)
    return pieces


def words(text: str, *, lower: bool = True) -> list[str]:
    """:func:`tokenize`, with the text of languages that put no spaces between words cut into characters.

    >>> words("Two dogs run"), words("两只狗run")
    (['two', 'dogs', 'run'], ['两', '只', '狗', 'run'])
    """
    return [piece for token in tokenize(text, lower=lower) for piece in _cut_unspaced(token)]


def cased(text: str) -> list[str]:
    """:func:`words` in the case they are written in, for vectors of cased words (word2vec's GoogleNews)."""
    return words(text, lower=False)
