"""One colour and one shape for each provider, the same in every report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import seaborn as sns

from bench.results.thresholds import SUBJECT


@dataclass(frozen=True)
class Key:
    """The colour and shape of a provider."""

    provider: str
    id: str  # of its marker in the page
    colour: str  # on light paper
    css: str  # the page's variable, which follows the paper
    marker: str  # matplotlib's name
    path: str  # the same shape for the page, in a box of 10 by 10


# Blue for the subject of most runs, grey for torch. Chosen by a search over OKLCH: each at least 3:1 against white, and
# as far as can be from those before it, as everyone sees them and under deuteranopia and protanopia (Machado et al.
# 2009). style.css has these, and a partner of each for dark paper, as --p0 to --p9.
COLOURS = ("#0173b2", "#6e6e6e", "#610c85", "#04510e", "#2aa033", "#a473ee", "#a4083c", "#cd718f", "#1640ad", "#844989")
# Orange where the subject is slower, blue where it is faster, white between.
DIVERGING = sns.diverging_palette(40, 245, s=85, l=58, n=41).as_hex()
HEAT_ENDS = [DIVERGING[0], DIVERGING[20], DIVERGING[40]]
SHAPES = (
    ("o", "M5 1a4 4 0 1 0 0 8a4 4 0 1 0 0-8z"),
    ("s", "M1.5 1.5h7v7h-7z"),
    ("^", "M5 1l4.2 7.6h-8.4z"),
    ("D", "M5 .6l4.4 4.4l-4.4 4.4l-4.4-4.4z"),
    ("v", "M5 9l4.2-7.6h-8.4z"),
    ("P", "M3.5 1h3v2.5h2.5v3h-2.5v2.5h-3v-2.5h-2.5v-3h2.5z"),
    ("X", "M1 3l2-2l2 2l2-2l2 2l-2 2l2 2l-2 2l-2-2l-2 2l-2-2l2-2z"),
    ("p", "M5 .8l4.2 3.1l-1.6 4.9h-5.2l-1.6-4.9z"),
    ("<", "M.8 5l7.8-4.2v8.4z"),
    (">", "M9.2 5l-7.8-4.2v8.4z"),
)
# A place in COLOURS and SHAPES for every provider of bench. There are more providers than colours that can be told
# apart: the formulas, which stand beside hard inputs, share those of peers that need a GPU.
_OWN = (SUBJECT, "torch", "torch_compile", "cudnn", "liger", "quack", "flash_linear_attention", "apex",
        "transformer_engine", "flag_gems")  # fmt: skip
PLACES = {name: place for place, name in enumerate(_OWN)} | {"one_pass": 2, "two_pass": 3, "welford": 4}


def keys(providers: Sequence[str], places: Mapping[str, int] = PLACES) -> dict[str, Key]:
    """Returns the key of each provider; one without a place, or whose place is taken, gets the first free one."""
    taken: dict[str, int] = {}
    for name in sorted(providers, key=lambda name: list(places).index(name) if name in places else len(places)):
        free = [place for place in range(len(COLOURS)) if place not in taken.values()]
        wanted = places.get(name)
        taken[name] = wanted if wanted in free and wanted is not None else free[0] if free else len(taken)
    return {
        name: Key(name, f"key{number}", COLOURS[place], f"var(--p{place})", *SHAPES[(place + turn) % len(SHAPES)])
        for number, name in enumerate(providers)
        for turn, place in [divmod(taken[name], len(COLOURS))]
    }
