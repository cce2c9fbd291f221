"""lm-evaluation-harness's model, with options scored in chunks of tokens in place of whole logits.

It imports the harness, so it is imported where that is used.
"""

from collections.abc import Sequence

import torch
from lm_eval.models.huggingface import HFLM

from balora.evaluation.perplexity import IGNORED, padded_batches
from balora.fused import TokenScorer, token_scores
from balora.utils.progress import tracked

#: The texts of a context and its continuation, and the tokens of both.
Request = tuple[tuple[str, str] | None, list[int], list[int]]


class ChunkedLM(HFLM):
    """The harness's model of Transformers; a causal model's log-likelihoods are computed without whole logits."""

    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        """Return log P(continuation | context), and whether the continuation is greedy decoding's, of each request.

        A context too long for the model loses its beginning. Requests that read the same tokens, such as options of
        one token, share a row, as in the parent class.
        """
        if self.backend != "causal":
            return super()._loglikelihood_tokens(requests, disable_tqdm, override_bs)
        rows: dict[tuple[int, ...], list[int]] = {}  # the tokens that are read, and whose requests they are
        for number, (_, context, continuation) in enumerate(requests):
            rows.setdefault(tuple((context + continuation)[-(self.max_length + 1) : -1]), []).append(number)
        score, found = TokenScorer(self.model), [(0.0, False)] * len(requests)
        windows = [([*ids], [IGNORED] * len(ids)) for ids in rows]
        askers = [*rows.values()]
        for part, batch in tracked([*padded_batches(windows, self.batch_size)], "reading options"):
            inputs = {name: batch[name].to(self.device) for name in ("input_ids", "attention_mask")}
            for own, _, [hidden] in score.passes(inputs):  # (b, S, d)
                asked = [(row, number) for row, window in enumerate(part[own]) for number in askers[window]]
                ends = [len(windows[part[own][row]][0]) for row, _ in asked]
                continuations = [requests[number][2] for _, number in asked]
                states = [
                    hidden[row, end - len(ids) : end]
                    for (row, _), end, ids in zip(asked, ends, continuations, strict=True)
                ]
                targets = torch.tensor([token for ids in continuations for token in ids], device=self.device)
                scores = token_scores(torch.cat(states), score.student.head, targets)
                sizes = [len(ids) for ids in continuations]
                each = zip(asked, scores.log_p.split(sizes), (scores.top1 == targets).split(sizes), strict=True)
                for (_, number), log_p, greedy in each:
                    found[number] = log_p.sum().item(), bool(greedy.all())
                    if (texts := requests[number][0]) is not None:  # the harness's own cache of answers
                        self.cache_hook.add_partial("loglikelihood", texts, found[number])
        return found
