"""Experiments: take a model through the stages stock, swapped, calibrated, healed and control, and measure each stage.

`stages` defines the stages. `comparison` runs them for several schemes and seeds. `healing` runs them for one scheme
and saves the healed model. `settings` does not import torch, so that the command line starts quickly.
"""
