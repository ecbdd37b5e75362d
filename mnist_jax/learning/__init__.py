"""Pure functions of arrays: the step, losses, optimizers, schedules, callbacks and metrics."""
