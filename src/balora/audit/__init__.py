"""What a fine-tune kept, lost and skewed against its base, whoever trained it and however.

    from balora.audit import AuditSettings, audit
    audit(AuditSettings("Qwen/Qwen2.5-0.5B", "my-adapter", output_dir="outputs/audit"))

`plan` says what is measured, of `parts` and `benchmarks`; `kinds` and `models` load the two, and a file each measures:
`texts`, `classes`, `layers`, `weights`, `pairs`, `items`, `words`, `hate`. `figures` has the statistics, `definitions`
the meaning, `page` and `terminal` show it.
"""

from balora.audit.metrics import Estimate, Metric
from balora.audit.run import audit
from balora.audit.settings import AuditSettings

__all__ = ["AuditSettings", "Estimate", "Metric", "audit"]
