"""Answers found and scored: reference solutions as the oracle, then each place an answer can stand."""

import re
import time

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from balora.data import load_table
from balora.errors import BALoraError
from balora.evaluation.maths import extract_answer, grade_maths, gsm8k_rows, math_rows, same_answer

pytest.importorskip("math_verify")


@pytest.fixture(scope="module")
def gsm8k(data_dir) -> Dataset:
    return gsm8k_rows(load_table(str(data_dir / "gsm8k/test.jsonl")))


@pytest.fixture(scope="module")
def math500(data_dir) -> Dataset:
    return math_rows(load_table(str(data_dir / "math500/test.jsonl")))


def test_reference_solutions_are_all_right(gsm8k, math500):
    assert (len(gsm8k), len(math500)) == (1319, 500)
    for rows in (gsm8k, math500):
        assert all(grade_maths(rows["completion"], rows["answer"]))
    assert set(math500["level"]) == set(range(1, 6))
    assert len(set(math500["subject"])) == 7


def test_answers_off_by_one_are_wrong_in_gsm8k(gsm8k):
    """Every twentieth row; all of them were verified once."""
    references = gsm8k["answer"][::20]
    numbers = [int(reference.replace(",", "")) for reference in references]
    for write in ("#### {}", r"so it is \boxed{{{}}}", "The answer is: {}.", "{} apples"):
        wrong = [write.format(number + 1) for number in numbers]
        assert set(grade_maths(wrong, references)) == {False}
    assert set(grade_maths([f"#### {number:,}.00" for number in numbers], references)) == {True}
    assert set(grade_maths([f"#### {-number - 1}" for number in numbers], references)) == {False}


def test_other_problems_answers_are_wrong_in_math(math500):
    """Every sixth answer that is no integer: against the next one, and against itself in another writing, so that
    equal characters decide nothing."""
    answers = sorted({answer for answer in math500["answer"] if not re.fullmatch(r"-?\d+", answer)})
    answers = [answer for answer in answers if not answer.startswith(r"\text")][::6]
    assert len(answers) > 25
    for answer, other in zip(answers, answers[1:] + answers[:1], strict=True):
        assert same_answer(rf"\displaystyle {answer}", answer), answer
        assert not same_answer(other, answer), (other, answer)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{\frac{1}{2}} holds", r"\frac{1}{2}"),
        (r"first \boxed{1}, then \boxed{\left\{ 2 \right.}", r"\left\{ 2 \right."),
        (r"\boxed {3}. #### 4", "3"),
        (r"\boxed{\boxed{7}}", "7"),
        (r"\fbox{8}", "8"),
        (r"\boxed{5} and cut off \boxed{\frac{1}{", "5"),
        (r"\boxed{} #### 6", "6"),
        ("1 + 1 = 2\n#### 1,000\nand 5 more", "1,000"),
        ("#### 1\n#### 2", "2"),
        ("#### 18\nThe answer is: 19", "18"),
        ("5 - 2 = 3. The answer is: 3", "3"),
        ("The answer is: 2. Wait. The answer is: 3.5. There are 9.", "3.5"),
        ("The final answer is $x = -2$.", "$x = -2$"),
        ("the answer is **18 dollars**.\n4 more", "18 dollars"),
        ("She makes 9 * 2 = $18 every day.", "$18"),
        ("from 2,000 to -1,234.50!", "-1,234.50"),
        ("7-3", "3"),
        ("it is .5", ".5"),
        ("so 3/4 of it", "3/4"),
        ("about x=-3", "-3"),
        ("nothing at all", None),
        ("", None),
        ("The answer is:", None),
    ],
)
def test_extract_answer(text, answer):
    assert extract_answer(text) == answer


BALANCED = st.recursive(
    st.text("ab1 \\,", max_size=3), lambda inner: st.lists(inner.map("{{{}}}".format)).map("".join)
)


@settings(max_examples=50, deadline=None)
@given(BALANCED, BALANCED, st.text("ab1 {"))
def test_the_last_box_s_braces_are_matched(before, content, after):
    content = re.sub(r"\\+", r"\\\\", content) + "x"  # whole pairs, so that no brace is escaped
    text = rf"{re.sub(chr(92) * 2, '', before)}\boxed{{0}} \boxed{{{content}}}{after}"
    assert extract_answer(text) == content.strip()


@pytest.mark.parametrize("part", ["\\boxed{", "answer is ", "answer is\n", "#### \n", "1,", "(", "\\", "-.", " "])
def test_finding_takes_linear_time(part):
    start = time.monotonic()
    extract_answer(part * 100_000)
    assert time.monotonic() - start < 10


def test_no_answer_is_graded_none():
    completions, references = ["#### 1", "#### 3", "no idea", r"\boxed{\frac{4}{1}}"], ["1", "2", "3", "4"]
    assert grade_maths(completions, references) == [True, False, None, True]


def test_rows_have_one_form(gsm8k, math500):
    assert gsm8k.column_names == ["prompt", "completion", "answer"]
    assert gsm8k[0]["answer"] == "18"
    assert gsm8k[0]["prompt"].startswith("Janet")
    assert gsm8k[0]["completion"].endswith("#### 18")
    assert math500.column_names == ["prompt", "completion", "answer", "subject", "level"]
    assert math500[1]["answer"] == "p - q"
    assert (math500[1]["subject"], math500[1]["level"]) == ("Intermediate Algebra", 5)


def test_wrong_rows_are_named():
    with pytest.raises(BALoraError, match=r"file, row 2, field 'answer': does not end with '####'"):
        gsm8k_rows(Dataset.from_dict({"question": ["a", "b"], "answer": ["#### 1", "2"]}), source="file")
    with pytest.raises(BALoraError, match="file: no column 'solution'"):
        math_rows(Dataset.from_dict({"problem": ["a"]}), source="file")
