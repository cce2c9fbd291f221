"""Audit of any fine-tune: what it kept, lost and skewed compared with its base.

    from balora.audit import AuditSettings, audit
    audit(AuditSettings("Qwen/Qwen2.5-0.5B", "my-adapter", output_dir="outputs/audit"))

`plan` lists the parts, those of `parts` and of `benchmarks`; `kinds` and `models` load the two models. `texts`,
`classes`, `layers`, `weights` and `words` have a measurement each; `benchmarks` takes any of
`balora.evaluation.benchmarks`. `metrics` has the statistics; `page` and `terminal` show them.
"""

from balora.audit.metrics import Estimate, Metric
from balora.audit.run import audit
from balora.audit.settings import AuditSettings

__all__ = ["AuditSettings", "Estimate", "Metric", "audit"]
