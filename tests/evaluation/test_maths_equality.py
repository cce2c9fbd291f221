"""Which answers are the same and which are not, and what a hostile one can do: nothing."""

import multiprocessing
import time
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from balora.errors import BALoraError
from balora.evaluation import maths
from balora.evaluation.maths import same_answer

pytest.importorskip("math_verify")

EQUAL = [
    ("1/2", "0.5"),
    (r"\frac{1}{2}", "0.5"),
    (r"\dfrac12", r"\frac{1}{2}"),
    (r"\tfrac{2}{4}", ".5"),
    ("1 1/2", r"1\frac{1}{2}"),
    ("1,000", "1000"),
    (r"10,\!080", "10080"),
    ("$18", "18"),
    (r"\$18.00", "18"),
    ("18 dollars", "18"),
    ("−3", "-3"),
    ("0.3333333333", r"\frac{1}{3}"),
    ("50%", "50"),
    (r"50\%", "50"),
    ("50 percent", r"50\%"),
    ("5 miles per hour", "5"),
    (r"864 \mbox{ inches}^2", "864"),
    (r"5.4 \text{ cents}", "5.4"),
    (r"15\,\mathrm{cm}", "15"),
    (r"90^\circ", "90"),
    ("90°", r"90^{\circ}"),
    (r"\frac{270}7\text{ degrees}", r"\frac{270}{7}"),
    ("(0, 3)", r"\left( 0,3 \right)"),
    ("0, 3", "(0,3)"),
    ("3, 1", "1, 3"),
    (r"\{2, 1\}", r"\{1,2\}"),
    ("1 or 2", r"1,\, 2"),
    (r"\left(\frac{3}{5},\frac{8}{3}\right]", "(0.6, 8/3]"),
    (r"(3,\infty) \cup (-\infty,2)", r"(-\infty, 2) \cup (3, \infty)"),
    ("x = 5", "5"),
    ("5", "x=5"),
    ("[-2,7]", r"x \in [-2,7]"),
    ("2x+3", "y = 2x + 3"),
    (r"2\sqrt{3}", r"\sqrt{12}"),
    ("2*sqrt(3)", r"2\sqrt3"),
    (r"\frac{1}{\sqrt2}", r"\frac{\sqrt{2}}{2}"),
    (r"1 - \sqrt{19}, 1 + \sqrt{19}", r"1 \pm \sqrt{19}"),
    ("(x+1)^2", "x^2+2x+1"),
    (r"\begin{bmatrix} 0.5 \\ 2 \end{bmatrix}", r"\begin{pmatrix} 1/2 \\ 2 \end{pmatrix}"),
    ("East", r"\text{east}"),
    ("C", r"\text{(C)}"),
    (r"\textbf{(C)}", r"\text{(C)}"),
    ("52", "52_8"),
    ("52_{8}", "52_8"),
]
NOT_EQUAL = [
    ("3", "3.1"),
    ("-3", "3"),
    ("1/3", "0.33"),
    (".0000673", ".0000672"),
    ("3.14159", r"\pi"),
    ("0.5", r"50\%"),
    ("5 million", "5"),
    ("3", "3h"),
    ("(1,2)", "(2,1)"),
    ("[0,1]", "(0,1)"),
    ("(0,1]", "[0,1)"),
    ("1, 2", "1, 2, 3"),
    ("1000", "1, 0"),
    ("y = 5", "x = 5"),
    (r"\sqrt{11}", r"2\sqrt{3}"),
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix} 2 \\ 1 \end{pmatrix}"),
    (r"\begin{pmatrix} 1 & 2 \end{pmatrix}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}"),
    ("seat", r"\text{east}"),
    ("5", r"\text{east}"),
    ("53_8", "52_8"),
    ("52_7", "52_8"),
    ("", "0"),
    ("5 )", "5"),
    ("5 and more", "6"),
]


@pytest.mark.parametrize(("one", "other"), EQUAL)
def test_equal_answers(one, other):
    assert same_answer(one, other)
    assert same_answer(other, one)


@pytest.mark.parametrize(("one", "other"), NOT_EQUAL)
def test_unequal_answers(one, other):
    assert not same_answer(one, other)
    assert not same_answer(other, one)


def test_a_list_is_a_tuple_only_in_its_order():
    assert same_answer("1, 2", "(1,2)")
    assert not same_answer("2, 1", "(1,2)")


@settings(max_examples=40, deadline=None)
@given(*[st.integers(-6, 6)] * 2, *[st.integers(1, 4)] * 2, st.booleans())
def test_fractions_are_equal_where_arithmetic_says_so(a, c, b, d, latex):
    written = rf"\frac{{{a}}}{{{b}}}" if latex else f"{a}/{b}"
    assert same_answer(written, rf"\dfrac{{{c}}}{{{d}}}") == (Fraction(a, b) == Fraction(c, d))


@pytest.mark.parametrize(
    "text",
    [
        "9**9**9**9",
        "9^{9^{9^{9}}}",
        r"\operatorname{zeros}(100000,100000)",
        "1" * 100_000,
        "\ud800",
        "3\n4",
        r"\operatorname{__import__}('os')",
    ],
)
def test_hostile_answers_are_wrong_within_seconds_and_the_next_is_judged(text):
    start = time.monotonic()
    assert not same_answer(text, "3")
    assert time.monotonic() - start < 30  # 2 seconds of processor time, on a busy machine
    assert same_answer("1/2", "0.5")


def test_nothing_is_evaluated_as_a_program(tmp_path):
    mark = tmp_path / "mark"
    for command in (f"__import__('pathlib').Path('{mark}').touch()", f"open('{mark}','w')"):
        for answer in (command, f"({command})", rf"\text{{{command}}}", f"f({command})", rf"x_{{{command}}}"):
            assert not same_answer(answer, "3")
    assert not mark.exists()


def test_threads_and_forked_processes_have_their_own_answers():
    pairs = [(str(i), str(i + i % 2)) for i in range(40)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda pair: same_answer(*pair), pairs)) == [i % 2 == 0 for i in range(40)]
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.starmap(same_answer, pairs, chunksize=5) == [i % 2 == 0 for i in range(40)]
    assert same_answer("1/2", "0.5")


def test_the_judge_ends_with_its_input_and_another_takes_its_place():
    assert same_answer("1/2", "0.5")
    judge = maths._process
    judge.stdin.close()
    assert judge.wait(timeout=30) == 0
    assert same_answer("1/2", "0.5")
    assert maths._process is not judge


def test_without_the_library_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(maths, "_process", None)
    monkeypatch.setattr(maths.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BALoraError, match=r"balora\[evaluation\]"):
        same_answer("1/2", "0.5")
