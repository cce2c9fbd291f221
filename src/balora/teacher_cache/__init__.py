"""Cache of teacher features: in classification the teacher's encoder runs on each example once, not every epoch.

`cache` has the `TeacherCache`, `features` extracts the vectors to keep and computes logits from them, and `store`
keeps them by key in memory and files.
"""

from balora.teacher_cache.cache import TeacherCache
from balora.teacher_cache.store import FeatureStore

__all__ = ["FeatureStore", "TeacherCache"]
