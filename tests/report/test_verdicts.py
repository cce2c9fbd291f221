"""Verdicts rest on all metrics of their kind, and contradict neither the table nor the sentences beside them."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from balora.report import PRETRAINED, Run, headline, paired_difference, sentence, summarize
from balora.report.glossary import better_direction
from balora.report.paired import ENOUGH_PAIRS
from balora.report.verdicts import KEPT, LEARNED, lead_of


def run(method, seed, task="mrpc", rows=None, **metrics):
    return Run(method, seed, task, metrics, 10.0, 500.0, 100, rows={} if rows is None else {"validation": rows})


def test_the_headline_names_every_metric_of_a_kind(runs):
    assert headline(summarize(runs)[0], "accuracy", "kl_to_base") == (
        "On mrpc, balora does best on the task by accuracy (0.855 ± 0.010); balora keeps most of the original model "
        "by kl_to_base (0.210 ± 0.042) and perplexity. 2 seeds are too few to rule out chance."
    )


def test_no_method_keeps_most_where_metrics_disagree():
    made = [run("lora", seed, accuracy=0.5, perplexity=2.8, fact_recall=0.85) for seed in range(6)]
    made += [run("ba-lora", seed, accuracy=0.7, perplexity=2.2, fact_recall=0.69) for seed in range(6)]
    assert headline(summarize(made)[0], "accuracy", "perplexity") == (
        "On mrpc, ba-lora does best on the task by accuracy (0.700 ± 0.000); which method keeps most of the original "
        "model depends on the metric: ba-lora by perplexity (2.20 ± 0.00), lora by fact_recall. "
        "Leads without a remark are clear: over 6 seeds their 95 % intervals exclude 0."
    )


def test_other_metrics_are_a_second_measure_of_the_task():
    made = [run(name, seed, f1=0.5, hatecheck_recall=0.6 + 0.1 * i) for i, name in enumerate("ab") for seed in (1, 2)]
    text = headline(summarize(made)[0], "f1", "hatecheck_recall")
    assert (
        "a and b are equal by f1 (0.500 ± 0.000); b does best in the second measure by hatecheck_recall (0.7" in text
    )
    assert "keeps" not in text


def test_the_headline_says_when_fine_tuning_did_not_help():
    made = [run(PRETRAINED, 1, accuracy=0.9), run("lora", 1, accuracy=0.6), run("pissa", 1, accuracy=0.7)]
    text = headline(summarize(made)[0], "accuracy", "kl_to_base")
    assert "; no method improved on the untouched model by accuracy (0.900)." in text
    assert "a lead may be chance" in text


def test_a_headline_without_results_to_compare():
    (summary,) = summarize([run("lora", 1, accuracy=0.6)])
    assert "too few results to compare" in headline(summary, "accuracy", "kl_to_base")


def test_noise_and_size_limit_a_lead():
    made = [run("lora", seed, accuracy=0.700, f1=0.5 + 0.1 * (-1) ** seed) for seed in range(6)]
    made += [run("ba-lora", seed, accuracy=0.704, f1=0.51) for seed in range(6)]
    text = headline(summarize(made)[0], "accuracy", "kl_to_base")
    assert "by accuracy (0.704 ± 0.000; too close to lora to matter) and f1 (within noise of lora)." in text
    assert "clear" not in text


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (5, "5 evaluated rows are too few to tell methods apart."),
        (1, "1 evaluated row is too few to tell methods apart."),
        (400, "Evaluated on 400 rows."),
    ],
)
def test_the_number_of_rows_is_part_of_a_verdict(rows, said):
    made = [run(name, seed, rows=rows, accuracy=0.6 + 0.1 * i) for i, name in enumerate("ab") for seed in range(8)]
    text = headline(summarize(made)[0], "accuracy", "kl_to_base")
    assert text.endswith(said)
    assert ("clear" in text) == (rows == 400)
    difference = paired_difference(made, "b", "a", "accuracy")
    assert difference.clear == (rows == 400)
    assert ("to tell methods apart" in sentence(difference)) == (rows < 400)


@pytest.mark.parametrize(("rows", "small"), [(20, True), (21, False), (None, False)])
def test_two_rows_are_no_difference(rows, small):
    made = [run(name, seed, rows=rows, accuracy=0.6 + 0.096 * i) for i, name in enumerate("ab") for seed in range(8)]
    assert paired_difference(made, "b", "a", "accuracy").small == small


def test_a_difference_too_small_to_matter_is_no_lead():
    made = [run(name, seed, accuracy=0.7 + 0.004 * i) for i, name in enumerate("ab") for seed in range(8)]
    assert sentence(paired_difference(made, "b", "a", "accuracy")).endswith("8 pairs), too little to matter.")


METRICS = ["accuracy", "f1", "eval_loss", "perplexity", "kl_to_base", "fact_recall", "top1_agreement_auxiliary"]
#: Few distinct values, so that ties and metrics that disagree are common.
VALUE = st.sampled_from([0.5, 0.501, 0.52, 0.6, 0.9])


@st.composite
def studies(draw):
    methods = draw(
        st.lists(st.sampled_from(["lora", "pissa", "ba-lora", "full"]), min_size=2, max_size=4, unique=True)
    )
    metrics = draw(st.lists(st.sampled_from(METRICS), min_size=1, unique=True))
    seeds = range(draw(st.integers(1, 7)))
    rows = draw(st.sampled_from([None, 3, 30, 3000]))
    steady = draw(st.booleans())
    made = []
    for method in methods:
        same = {name: draw(VALUE) for name in metrics}
        made += [
            run(method, seed, rows=rows, **(same if steady else {name: draw(VALUE) for name in metrics}))
            for seed in seeds
        ]
    return made, draw(st.sampled_from(["accuracy", "eval_loss"])), draw(st.sampled_from(["perplexity", "kl_to_base"]))


@settings(max_examples=200, deadline=None)
@given(studies())
def test_no_sentence_contradicts_the_table(study):
    made, task_metric, drift_metric = study
    (summary,) = summarize(made)
    text = headline(summary, task_metric, drift_metric)
    means = {name: {row.method: row.metrics[name].mean for row in summary.methods} for name in summary.metrics}
    best = {}
    for name, of in means.items():
        top = (max if better_direction(name) == "higher" else min)(of.values())
        best[name] = {method for method, value in of.items() if abs(value - top) < 1e-12}
    body = text.split(". ")[0].removeprefix("On mrpc, ")
    # Every metric is named once, and by the methods whose mean is best in the table.
    for name in summary.metrics:
        assert len(re.findall(rf"(?<![a-z_0-9]){name}(?![a-z_0-9])", body)) == 1
        assert set(lead_of(summary, name).methods) == best[name]
    for claim, kind in (("does best on the task", LEARNED), ("keeps most of the original model", KEPT)):
        own = [name for name in summary.metrics if name.removesuffix("_auxiliary") in kind]
        alone = re.search(rf"(?:^|; )([a-z-]+) {claim} by", body)
        if alone:
            assert all(alone.group(1) in best[name] for name in own)
        if f"which method {claim} depends" in body:
            assert len(own) > 1
    # Confidence is that of the sentences on pairs of methods.
    for name in summary.metrics:
        lead = lead_of(summary, name)
        for rival in set(means[name]) - set(lead.methods):
            said = sentence(paired_difference(made, lead.methods[0], rival, name))
            assert ("within noise" in said) == (rival in lead.noise)
            assert "behind" not in said
            if rival in lead.small:
                assert "too little to matter" in said or "to tell methods apart" in said
            if "are clear" in text and not lead.remark:
                assert "too few" not in said
                assert "too little" not in said
    if "are clear" in text:
        assert len({one.seed for one in made}) >= ENOUGH_PAIRS
        assert "too few to rule out" not in text
