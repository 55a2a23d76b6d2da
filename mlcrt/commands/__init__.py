"""One module per verb of `mlcrt`. They import heavy modules only when they run."""
