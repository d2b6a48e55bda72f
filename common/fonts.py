"""Fonts for names in any script, and which signs none of the installed fonts has."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

# In this order, of those that are installed: the first has Latin, Greek and Cyrillic
FAMILIES = (
    "DejaVu Sans",
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Noto Sans CJK KR",
    "Noto Sans SC",
    "Noto Sans JP",
    "Noto Sans KR",
    "Source Han Sans",
    "WenQuanYi Zen Hei",
    "WenQuanYi Micro Hei",
    "Droid Sans Fallback",
    "IPAexGothic",
    "IPAGothic",
    "Microsoft YaHei",
    "Yu Gothic",
    "Malgun Gothic",
    "Hiragino Sans",
    "PingFang SC",
    "Arial Unicode MS",
    "Noto Sans Arabic",
    "Noto Sans Hebrew",
    "Noto Sans Devanagari",
    "Noto Sans Thai",
    "Noto Emoji",
)
MOST_SHOWN = 8


@lru_cache(maxsize=1)
def installed_families() -> tuple[str, ...]:
    """Families of FAMILIES that are installed; matplotlib takes each sign from the first that has
    it.
    """
    from matplotlib.font_manager import fontManager

    names = {font.name for font in fontManager.ttflist}
    return tuple(family for family in FAMILIES if family in names)


def missing_signs(texts: Iterable[str]) -> dict[str, str]:
    """Texts that no installed font can show whole, each with the signs that are missing."""
    signs = _known_signs()
    found = {text: "".join(dict.fromkeys(c for c in text if ord(c) not in signs)) for text in texts}
    return {text: missing for text, missing in found.items() if missing}


def missing_signs_warning(where: str, texts: Iterable[str]) -> str | None:
    """One line that names what cannot be shown, or None."""
    missing = missing_signs(texts)
    if not missing:
        return None
    names = list(missing)
    more = f" and {len(names) - MOST_SHOWN} more" if len(names) > MOST_SHOWN else ""
    signs = "".join(dict.fromkeys("".join(missing.values())))
    return (
        f"{where}: no installed font has the signs {signs[:MOST_SHOWN]} (in"
        f" {', '.join(names[:MOST_SHOWN])}{more}): boxes stand for them; install a font that has"
        " them, as fonts-noto-cjk"
    )


@lru_cache(maxsize=1)
def _known_signs() -> frozenset[int]:
    from matplotlib.font_manager import FontProperties, findfont, get_font

    paths = {findfont(FontProperties(family=[family])) for family in installed_families()}
    return frozenset(code for path in paths for code in get_font(path).get_charmap())
