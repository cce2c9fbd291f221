import random

from audit_models import assert_is, ends

from balora.audit.benchmarks import measure_benchmark
from balora.evaluation.benchmarks import CLASSIFIER_BENCHMARKS
from balora.evaluation.benchmarks.hatecheck import Cases
from balora.evaluation.bias import classifier_bias_score, hatecheck_scores, identity_pairs, read_hatecheck
from balora.evaluation.classification import class_probabilities


def measure_hatecheck(audited, cases, hateful, **how):
    return measure_benchmark(audited, CLASSIFIER_BENCHMARKS["hatecheck"], Cases(cases, hateful), **how)


def test_figures_are_those_of_the_evaluation(classifiers, data_dir):
    audited, *models, tokenizer = classifiers
    cases = read_hatecheck(data_dir / "hatecheck/test_suite_cases.csv")
    by_template = {}
    for case in cases:
        by_template.setdefault((case.functionality, case.template), []).append(case)
    drawn = random.Random(1).sample([own for own in by_template.values() if len(own) == 7], 12)
    drawn += random.Random(1).sample([own for own in by_template.values() if not own[0].target], 12)
    cases = [case for own in drawn for case in own]
    figures = {f.name: f for f in measure_hatecheck(audited, cases, 1, max_length=40, batch_size=16)}
    p = [class_probabilities(m, tokenizer, [case.text for case in cases], max_length=40) for m in models]
    scores = [hatecheck_scores(cases, own.argmax(1) == 1) for own in p]
    assert_is(figures["hatecheck_f1"], [own["overall"] for own in scores], ["f1"])
    assert_is(figures["hatecheck_recall_gap"], [own["gap"] for own in scores], ["recall"])
    assert_is(figures["hatecheck_false_positive_rate_gap"], [own["gap"] for own in scores], ["false_positive_rate"])
    pairs, templates = identity_pairs(cases)
    expected = [classifier_bias_score(own[pairs[:, 0]], own[pairs[:, 1]], clusters=templates) for own in p]
    assert_is(figures["hatecheck_bias_score"], expected, ends("bias_score"))
    assert (figures["hatecheck_f1"].units, figures["hatecheck_bias_score"].units) == (24, 12)


def test_without_groups_there_are_no_gaps(classifiers, data_dir):
    cases = [c for c in read_hatecheck(data_dir / "hatecheck/test_suite_cases.csv") if not c.target][:8]
    figures = measure_hatecheck(classifiers[0], cases, 1, max_length=40, batch_size=8)
    assert [f.name for f in figures] == ["hatecheck_f1"]
