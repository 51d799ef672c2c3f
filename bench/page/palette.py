"""One colour and one shape for each provider, the same in every report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import seaborn as sns
from matplotlib.colors import to_hex

from bench.results.thresholds import SUBJECT


@dataclass(frozen=True)
class Key:
    """The colour and shape of a provider."""

    provider: str
    colour: str
    marker: str  # matplotlib's name
    path: str  # the same shape for the page's legend, in a box of 10 by 10


# seaborn's palette for the colour-blind: blue for the subject, grey for torch; the faint ones on white come last.
COLOURS = [sns.color_palette("colorblind").as_hex()[i] for i in (0, 7, 1, 2, 3, 4, 9, 5, 6, 8)]
# Orange where the subject is slower, blue where it is faster, white between.
DIVERGING = sns.diverging_palette(40, 245, s=85, l=58, as_cmap=True)
HEAT_ENDS = [to_hex(DIVERGING(at)) for at in (0.0, 0.5, 1.0)]
SHAPES = (
    ("o", "M5 1a4 4 0 1 0 0 8a4 4 0 1 0 0-8z"),
    ("s", "M1.5 1.5h7v7h-7z"),
    ("^", "M5 1l4.2 7.6h-8.4z"),
    ("D", "M5 .6l4.4 4.4l-4.4 4.4l-4.4-4.4z"),
    ("v", "M5 9l4.2-7.6h-8.4z"),
    ("P", "M3.5 1h3v2.5h2.5v3h-2.5v2.5h-3v-2.5h-2.5v-3h2.5z"),
    ("X", "M1 3l2-2l2 2l2-2l2 2l-2 2l2 2l-2 2l-2-2l-2 2l-2-2l2-2z"),
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
        name: Key(name, COLOURS[taken[name] % len(COLOURS)], *SHAPES[taken[name] % len(SHAPES)]) for name in providers
    }
