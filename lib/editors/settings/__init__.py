"""Hyper-parameters of the editors on the backbones of the study, each once and with its source."""
