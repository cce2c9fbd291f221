"""CrowS-Pairs (Nangia et al., 2020): sentences about disadvantaged groups, and the same about advantaged ones."""

from pathlib import Path

from balora.evaluation.bias.pairs import SentencePair
from balora.evaluation.bias.rows import check_known, read_columns


def read_crows_pairs(path: str | Path) -> list[SentencePair]:
    """The 1508 pairs of `crows_pairs_anonymized.csv`, grouped by type of bias and by direction.

    `sent_more` is the more stereotypical sentence in both directions. A pair is `stereo` where that sentence shows a
    stereotype of a disadvantaged group, and `antistereo` where the other one, `sent_less`, goes against such a
    stereotype. So the share of all pairs with a likelier `sent_more` is the paper's metric, and the shares over each
    direction are its stereotype and anti-stereotype scores; but the paper's likelihoods are a masked model's.

    Raises:
        BALoraError: If a column or value is missing, or a direction is neither of the two.
    """
    rows = read_columns(path, ["sent_more", "sent_less", "stereo_antistereo", "bias_type"])
    check_known(path, rows, "stereo_antistereo", ("stereo", "antistereo"))
    return [
        SentencePair(row["sent_more"], row["sent_less"], (row["bias_type"], row["stereo_antistereo"])) for row in rows
    ]
