"""Cache of the teacher's features, so that its body reads each example, or each anchor, once.

`cache` has the `TeacherCache` of classification: the vectors that the head reads, which `features` extracts and
computes logits from. `sequences` has the `SequenceCache` of generation: the hidden states of all tokens. `store` keeps
both by key in memory and files.
"""

from balora.teacher_cache.cache import TeacherCache
from balora.teacher_cache.sequences import SequenceCache
from balora.teacher_cache.store import FeatureStore

__all__ = ["FeatureStore", "SequenceCache", "TeacherCache"]
