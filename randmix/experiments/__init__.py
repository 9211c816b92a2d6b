"""Runs side by side: statistics of any runs that differ in their seed.

This package knows no model, no data set and nothing of the paper.
"""
