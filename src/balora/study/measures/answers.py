"""Question answering: score the answers that a model writes, also to perturbed questions, and draw the scores."""

import json
from collections.abc import Sequence
from pathlib import Path

from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedModel, Trainer

from balora.data import tokenize_seq2seq
from balora.data.sentences import embed_texts
from balora.evaluation.generation import generate_completions, write_texts
from balora.evaluation.qa import qa_metrics
from balora.report import PRETRAINED, Run
from balora.report.figures.sweep import ByLevel, level_figure
from balora.study.measures.finished import CaptionedFigure, FinishedRun, runs_with
from balora.study.model_and_data import ModelAndData
from balora.study.questions import answer_tokens, perturbed, with_prompts
from balora.study.sentences import sentence_vectors, with_sentences
from balora.study.trainers import batches_in_order
from balora.utils.files import write_text

ANSWERS_FILE = "answers.jsonl"
ROBUSTNESS_FILE = "robustness.json"
#: Scores in tables; the first two also by type and level of question.
SHOWN = ("em", "f1", "semsim")
CAPTION = (
    "F1 on perturbed questions, by the fraction of the eligible places in a question that are changed. Means over "
    "seeds, with a band of one standard deviation."
)


def measure_answers(
    prepared: ModelAndData, trainer: Trainer, model: PreTrainedModel | PeftModel, directory: Path
) -> dict[str, float]:
    """Score the answers to the evaluation set's questions; save them, and the scores on perturbed questions.

    Args:
        prepared: The run's model, rows and metrics.
        trainer: Supplies the collator and batch size.
        model: The student.
        directory: Folder of the run.

    Returns:
        `em`, `f1` and, with a sentence encoder, `semsim`; `em` and `f1` for each type and level of question; and
        `f1_perturbed`, the mean over kinds and strengths of perturbation, if the recipe names any.
    """
    rows = prepared.validation
    answers = write_answers(prepared, trainer, model, rows)
    records = zip(rows["id"], rows["question"], rows["answers"], answers, strict=True)
    names = ("id", "question", "answers", "prediction")
    lines = [json.dumps(dict(zip(names, record, strict=True)), ensure_ascii=False) for record in records]
    write_text(directory / ANSWERS_FILE, "\n".join(lines) + "\n")
    scores = _scores(prepared, answers, rows)
    shown = {name: value for name, value in scores.items() if name in SHOWN or name.startswith(("em_", "f1_"))}
    if not prepared.recipe.perturbation_kinds:
        return shown
    found = {kind: _perturbed_scores(prepared, trainer, model, kind) for kind in prepared.recipe.perturbation_kinds}
    write_text(directory / ROBUSTNESS_FILE, json.dumps(found, indent=1))
    f1 = [scores["f1"] for by_strength in found.values() for scores in by_strength.values()]
    return shown | {"f1_perturbed": sum(f1) / len(f1)}


def single_questions(prepared: ModelAndData, trainer: Trainer, model: PreTrainedModel | PeftModel) -> dict[str, float]:
    """Return `single_em`: the fraction still answered of the questions that the reading world's model could answer."""
    answers = write_answers(prepared, trainer, model, prepared.single)
    return {"single_em": qa_metrics(answers, prepared.single)["em"]}


def write_answers(
    prepared: ModelAndData, trainer: Trainer, model: PreTrainedModel | PeftModel, rows: Dataset
) -> list[str]:
    """Generate the model's answer to each row of `with_prompts`, by greedy decoding."""
    recipe, tokenizer = prepared.recipe, prepared.tokenizer
    longest = answer_tokens(recipe)
    if not recipe.is_seq2seq:
        return generate_completions(
            model,
            tokenizer,
            rows["prompt"][:],
            max_new_tokens=longest,
            batch_size=trainer.args.eval_batch_size,
            stop=("\n",),
            sentence_embeds=sentence_vectors(prepared, model, rows),
        )
    limits = {"max_length": recipe.max_length, "max_target_length": recipe.max_target_length}
    tokens = tokenize_seq2seq(rows, tokenizer, source="evaluation", **limits)
    tokens = with_sentences(prepared, model, rows, tokens)
    return write_texts(model, batches_in_order(trainer, tokens), tokenizer, max_new_tokens=longest)


def _scores(prepared: ModelAndData, answers: Sequence[str], rows: Dataset) -> dict[str, float]:
    encode = None if prepared.encoder is None else lambda texts: embed_texts(texts, prepared.encoder).numpy()
    return qa_metrics(answers, rows, encode)


def _perturbed_scores(
    prepared: ModelAndData, trainer: Trainer, model: PreTrainedModel | PeftModel, kind: str
) -> dict[float, dict[str, float]]:
    """Return scores by strength of one kind of perturbation; contexts are chosen for the perturbed question."""
    found = {}
    for strength in prepared.recipe.perturbation_strengths:
        questions = perturbed(prepared.validation, kind, strength)
        rows = with_prompts(prepared.recipe, prepared.tokenizer, questions, f"{kind} {strength}")
        scores = _scores(prepared, write_answers(prepared, trainer, model, rows), rows)
        found[strength] = {name: scores[name] for name in SHOWN if name in scores}
    return found


def robustness_figures(finished: list[FinishedRun]) -> list[CaptionedFigure]:
    """Draw F1 by strength of perturbation, for each task with perturbed questions."""
    measured: dict[str, list[tuple[Run, ByLevel]]] = {}
    for done, file in runs_with(finished, ROBUSTNESS_FILE):
        run = done.run
        if run.method != PRETRAINED:
            found = json.loads(file.read_text())
            panels = {
                kind: {0.0: run.metrics["f1"], **{float(strength): scores["f1"] for strength, scores in own.items()}}
                for kind, own in found.items()
            }
            measured.setdefault(run.task, []).append((run, panels))
    return [
        (f"{task}: questions asked otherwise", CAPTION, level_figure(found, "strength"))
        for task, found in measured.items()
    ]
