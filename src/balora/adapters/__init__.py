"""Low-rank adapters on PEFT: initialization, the teacher, gates and task routing, saving and loading."""
