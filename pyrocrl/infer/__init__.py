"""Fitting programs: the objective, many chains at once, the loop and its checkpoints."""
