"""Analyses of the paper on a finished run: where probers read best, how states move, how scores
move, what goes wrong."""
