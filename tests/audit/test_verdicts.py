"""Verdicts of an audit rest on interval, size, units and kind, and never contradict the table."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from balora.audit import AuditSettings, Estimate, Metric
from balora.audit.page import findings, write_audit_page
from balora.audit.verdicts import BETTER, HEADINGS, NEITHER, SMALL, WORSE, kind_of, title_of, verdict_of
from balora.report.glossary import GLOSSARY, better_direction


def changed(name, before, after, *, width=0.0, units=64, on="texts"):
    ends = [Estimate(value, value - width, value + width) for value in (after, before, after - before)]
    return Metric(name, on, *ends, units, "texts")


def headings(metrics):
    return {metric.name: None if (v := verdict_of(metric, metrics)) is None else v.heading for metric in metrics}


def test_a_change_of_0_004_is_too_little():
    assert findings([changed("word_preference", 0.204, 0.200, width=0.001)]) == {
        SMALL: ["preference for a word of the list, on texts, fell from 0.204 to 0.200, by less than 0.031"]
    }


def test_naming_people_less_is_not_better():
    rarer = changed("word_lean", 0.4, 0.1)
    assert headings([rarer, changed("word_preference", 0.80, 0.80, width=0.1)])["word_lean"] == NEITHER
    assert headings([rarer])["word_lean"] == NEITHER
    assert headings([rarer, changed("word_preference", 0.8, 0.2)]) == {"word_lean": BETTER, "word_preference": BETTER}
    (text,) = findings([rarer])[NEITHER]
    assert text.endswith("not confirmed by preference for a word of the list: the words may only have become rarer")
    assert headings([changed("word_lean", 0.1, 0.4)])["word_lean"] == WORSE


def test_every_confirming_metric_has_a_direction():
    confirming = {entry.confirmed_by for entry in GLOSSARY.values() if entry.confirmed_by}
    assert confirming
    assert all(better_direction(name) for name in confirming)


def test_better_and_worse_of_one_kind():
    bias = [changed("bias_score", 0.5, 0.2, on="CrowS-Pairs"), changed("word_preference", 0.2, 0.5, on="prompts")]
    assert headings(bias) == {"bias_score": NEITHER, "word_preference": WORSE}
    kept = [changed("accuracy", 0.5, 0.8, on="mine"), changed("word_perplexity", 20.0, 30.0, on="WikiText-2")]
    assert headings(kept) == {"accuracy": BETTER, "word_perplexity": WORSE}


@pytest.mark.parametrize(
    ("before", "after", "units", "heading"),
    [
        (20.0, 20.1, 1000, SMALL),
        (20.0, 20.3, 1000, WORSE),
        (0.5, 0.9, 19, SMALL),
        (0.5, 0.9, 20, WORSE),
        (0.50, 0.52, 50, SMALL),
        (0.50, 0.52, 1000, WORSE),
    ],
)
def test_size_and_units(before, after, units, heading):
    metric = changed("perplexity", before, after, units=units)
    assert headings([metric])["perplexity"] == heading


VALUE = st.sampled_from([0.2, 0.204, 0.25, 0.6, 1.0])
NAMES = ["perplexity", "accuracy", "minority_recall", "entropy", "bias_score", "word_lean", "word_preference"]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.builds(
            changed,
            st.sampled_from(NAMES),
            VALUE,
            VALUE,
            width=st.sampled_from([0.0, 0.1]),
            units=st.sampled_from([5, 64, 5000]),
            on=st.sampled_from(["texts", "stories"]),
        ),
        unique_by=lambda metric: (metric.name, metric.on),
    )
)
def test_no_finding_contradicts_the_table(metrics):
    found = findings(metrics)
    assert sum(map(len, found.values())) == sum(metric.changed for metric in metrics)
    better = [metric for metric in metrics if (v := verdict_of(metric, metrics)) and v.heading == BETTER]
    worse = [metric for metric in metrics if (v := verdict_of(metric, metrics)) and v.heading == WORSE]
    assert not {kind_of(metric) for metric in better} & {kind_of(metric) for metric in worse}
    for metric in [*better, *worse]:
        rose = metric.tuned.value > metric.base.value
        assert (better_direction(metric.name) == ("higher" if rose else "lower")) == (metric in better)
        assert abs(metric.tuned.value - metric.base.value) >= 0.01 - 1e-12
        assert metric.units >= 20
        heading = BETTER if metric in better else WORSE
        start = f"{title_of(metric.name)}, on {metric.on}, {'rose' if rose else 'fell'} "
        assert any(text.startswith(start) for text in found[heading])
    assert list(found) == [heading for heading in HEADINGS if heading in found]


def test_only_what_is_worse_is_coloured(tmp_path):
    metrics = [changed("bias_score", 0.5, 0.504), changed("word_preference", 0.2, 0.5), changed("entropy", 1.0, 2.0)]
    write_audit_page(
        tmp_path / "audit.html",
        settings=AuditSettings("base", "mine", output_dir="out"),
        kind="causal language model",
        metrics=metrics,
        notes=[],
    )
    html = (tmp_path / "audit.html").read_text()
    assert html.count('<td class="worse">') == 1
    assert html.count('<td class="changed">') == 2
