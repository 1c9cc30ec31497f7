"""Characters as tokens: the symbol table of CHAIN-VSE (Wehrmann, Barros, CVPR 2018, released code).

Ids 0 to 2 are padding, start and end, then come 72 symbols: 75 in all. ``-`` is listed twice there; its later id, 65,
is the one in use, so no text gives id 40.
"""

from __future__ import annotations

START, END = 1, 2
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
SYMBOLS: tuple[str, ...] = (
    *("<pad>", "<start>", "<end>"),
    *f" {_LETTERS}0123456789",
    *"-,;.!?:'\"´/\\|_@#$£%^&*~`+-=<>()[]{}",
)
_ID = {symbol: number for number, symbol in enumerate(SYMBOLS)}
_PLAIN = str.maketrans("àáâãäéèêẽëíìîĩïóòôõöúùûũüçñ", "aaaaaeeeeeiiiiiooooouuuuucn")


def _normal(text: str) -> str:
    """Lower case without outer white space, accents of the table folded."""
    return text.lower().strip().translate(_PLAIN)


def characters(text: str) -> list[str]:
    """Symbols of ``text``, each of :data:`SYMBOLS`; a character that is not among them is a space.

    Grave, acute, circumflex, tilde and diaeresis on a vowel, and ç and ñ, fold to the plain letter; other accented
    letters and combining accents do not. Spaces inside the text all count.

    >>> characters("Café №5")
    ['c', 'a', 'f', 'e', ' ', ' ', '5']
    """
    return [symbol if symbol in _ID else " " for symbol in _normal(text)]


def ids(text: str) -> list[int]:
    """Ids of :func:`characters`, without :data:`START` and :data:`END`.

    >>> ids("a-b")
    [4, 65, 5]
    """
    return [_ID[symbol] for symbol in characters(text)]


def unknown(text: str) -> list[str]:
    """Characters of ``text`` that :func:`characters` loses: those that became a space and are no white space.

    >>> unknown("Straße 5 €")
    ['ß', '€']
    """
    return [symbol for symbol in _normal(text) if symbol not in _ID and not symbol.isspace()]
