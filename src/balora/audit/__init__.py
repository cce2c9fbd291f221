"""What a fine-tune kept, lost and skewed against its base, whoever trained it and however.

    from balora.audit import AuditSettings, audit
    audit(AuditSettings("Qwen/Qwen2.5-0.5B", "my-adapter", output_dir="outputs/audit"))

`models` loads the two, `parts` says what is measured, and a file each measures it: `texts`, `classes`, `layers`,
`weights`, `pairs`, `words`, `hate`. `figures` has the statistics, `definitions` the meaning, `page` the page.
"""

from balora.audit.figures import Estimate, Figure
from balora.audit.run import audit
from balora.audit.settings import AuditSettings

__all__ = ["AuditSettings", "Estimate", "Figure", "audit"]
