"""The two networks that every server of benchmarks/serving.py serves. Their weights come from a seed, so that all serve the same."""

import torch
from torch import nn

COLUMNS = [f"f{number}" for number in range(32)]
SCORES = 3
SIDE, CLASSES = 64, 10


def mlp() -> nn.Module:
    """Numbers (rows, 32) -> scores (rows, 3)."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(len(COLUMNS), 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, SCORES)).eval()


def conv() -> nn.Module:
    """Pictures (rows, 3, 64, 64) -> scores (rows, 10)."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, CLASSES),
    ).eval()


def network(model: str) -> nn.Module:
    """tab, tabt: the MLP; img: the conv net. One thread, as each server has one core."""
    torch.set_num_threads(1)
    return conv() if model == "img" else mlp()
