"""Running recipes: one run (a method and a seed) or a study of many, each resumable and none overwritten.

`plan` lists a study's runs and `pool` runs them in processes of their own; `run` trains and measures one: `prepared`
(model and rows), `student` (the model to train), `trainers`, `measures`. `comparison` puts the runs of a study side by
side, `evaluate` measures a saved adapter, `calibrate` finds the regularizers' weights. `launch` is for one run on
several processes.
"""
