"""A comparison -> one HTML file that opens offline, in the style of the reports."""

from bench.compare import comparison as words
from bench.compare.comparison import FASTER, FIXED, LESS_ACCURATE, NEWLY_WRONG, SAME, SLOWER, UNCLEAR, Comparison
from bench.page.templating import Card, scripts, style, templates
from bench.results.intervals import FALSE_ALARMS, MOST

# Of each list; a page of some megabytes still opens on a telephone, and --json has every cell.
ROWS = 1000

# The lists, in this order: the word, the title, and what the list means.
LISTS = (
    (NEWLY_WRONG, "Newly wrong", "Cells that were ok in A and are not in B."),
    (SLOWER, "Slower", "Cells whose whole interval lies beyond the threshold."),
    (
        LESS_ACCURATE,
        "Less accurate",
        "Cells ok in both runs, with errors that grew beyond luck; the worst tensor of each.",
    ),
    (FASTER, "Faster", "Cells whose whole interval lies beyond the threshold."),
    (FIXED, "Fixed", "Cells that were not ok in A and are in B."),
    (UNCLEAR, "Unclear", "Cells of which the times say neither that they changed nor that they did not."),
)

METHOD = (
    ("change", "B's time over A's, less 1: the median of all ratios of one of B's samples to one of A's (Hodges and "
     "Lehmann's estimate). Where there are no samples, the ratio of the two medians."),
    ("interval", "From the Mann-Whitney test's ranks and Student's t. It holds for all cells of the comparison "
     f"together: the chance that any one misses its cell's true change is {FALSE_ALARMS:.0%} (Bonferroni)."),
    ("between runs", "What all providers of a case share is measured on its other providers and taken away; what "
     "single cells scatter by beyond their samples widens every interval. Both withhold claims and make none."),
    (SLOWER + ", " + FASTER, "The whole interval lies beyond the threshold."),
    (SAME, f"The interval reaches the threshold, and no change of {words.EXCLUDED:.0%} (or twice the threshold)."),
    (UNCLEAR, "Everything else, with the reason."),
    (NEWLY_WRONG, f"The cell was ok in A; in B it is one of {', '.join(words.FAILED)}."),
    (LESS_ACCURATE, "floor_ratio (fp16, bf16) grew by more than 1%, or rel_l2_error (fp32) by more than 5%, in some "
     "tensor. With another seed what two draws differ by is allowed on top."),
    ("typical change", "The median over a provider's cells, the drift of the whole run included."),
    ("samples", f"Times of calls whose data is not in the cache. More than {MOST} a cell are taken in batches, each "
     "by its median."),
)  # fmt: skip


def html(comparison: Comparison) -> str:
    """Returns the whole page."""
    lists = {word.lower().replace(" ", "-"): (word, *about) for word, *about in LISTS if word in comparison.said}
    only = [(run, cells) for run, cells in (("A", comparison.only_a), ("B", comparison.only_b)) if cells]
    sections = {name: title for name, (_, title, _) in lists.items()} | ({"only": "In only one run"} if only else {})
    page = templates().get_template("compare.html.j2")
    return page.render(
        found=comparison,
        sections={"verdict": "Verdict", **sections, "conditions": "Conditions", "method": "Method"},
        style=style(),
        scripts=scripts("theme"),
        a=comparison.a.resolve().name,
        b=comparison.b.resolve().name,
        cards=_cards(comparison),
        bad=(SLOWER, NEWLY_WRONG),
        speed=(SLOWER, FASTER, UNCLEAR),
        lists=lists,
        only=only,
        method=METHOD,
        rows=ROWS,
    )


def _cards(comparison: Comparison) -> list[Card]:
    """Returns the verdicts, what matters most first."""
    of = len(comparison.pairs)
    cards = [_card(comparison, "Newly wrong", NEWLY_WRONG, of, "bad", "No cell that was ok has failed.")]
    if comparison.between:
        judged = sum(pair.verdict != "" for pair in comparison.pairs)
        cards.append(_card(comparison, "Slower", SLOWER, judged, "bad", "No slowdown is beyond doubt."))
        cards.append(_card(comparison, "Faster", FASTER, judged, "good", "No speedup is beyond doubt.", "plain"))
        cards.append(_card(comparison, "Unclear", UNCLEAR, judged, "caution", "Every cell is told.", "plain"))
    else:
        cards.append(Card("Speed", "not compared", "That needs a GPU's clock in both runs."))
    cards.append(_card(comparison, "Less accurate", LESS_ACCURATE, of, "caution", "No error grew beyond luck."))
    alone = len(comparison.only_a) + len(comparison.only_b)
    detail = f"{len(comparison.only_a):,} only in A, {len(comparison.only_b):,} only in B"
    cards.append(Card("Cells in both", f"{of:,}", detail, "caution" if alone else "plain"))
    return cards


def _card(comparison: Comparison, title: str, word: str, of: int, tone: str, none: str, without: str = "good") -> Card:
    by = [f"{count[word]:,} of {name}" for name, count in comparison.counts.items() if count[word]]
    return Card(title, f"{comparison.total(word):,} of {of:,}", ", ".join(by) or none, tone if by else without)
