"""Teacher features once: in classification the teacher's encoder sees every example each epoch and says the same.

`store` keeps features by key, `features` finds what to keep and turns it back into logits, `cache` puts them together.
"""

from balora.teacher_cache.cache import TeacherCache
from balora.teacher_cache.store import FeatureStore

__all__ = ["FeatureStore", "TeacherCache"]
