"""The advisor: what fits this machine and this task, what is wrong with a run, how to compare models. It answers with measured numbers."""
