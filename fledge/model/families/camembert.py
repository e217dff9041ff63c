"""CamemBERT (Martin et al. 2019, arXiv 1911.03894): RoBERTa on French, under another name."""

from __future__ import annotations

from fledge.model.families.xlm_roberta import preset, renamed

FAMILY = renamed(
    "camembert",
    "camembert",
    "Camembert",
    {"camembert-base": preset("camembert", 32005), "camembert-large": preset("camembert", 32005, "large")},
)
