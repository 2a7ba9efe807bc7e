"""Experiments: models go through stages (stock, swapped, calibrated, healed, control), and each stage is measured.

`stages` defines each stage once. `comparison` takes one model through them with several schemes and seeds, `healing`
with one scheme, and saves the healed model. `settings` needs no torch, so that the command line reads it at once.
"""
