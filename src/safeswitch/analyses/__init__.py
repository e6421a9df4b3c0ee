"""Analyses of a finished run, one file each: where probers read best, how states and scores move.

Every file here is found by itself: an analysis registers under its name
(:data:`safeswitch.analyses.base.ANALYSES`). The safety landscape beside them needs no run.
"""
