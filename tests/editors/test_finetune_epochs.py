"""Fine-tuning as MALMEN's tables compare with (section 7 of the notes) against a plain loop."""

import pytest
import torch

from lib.backbones.passes.fact_passes import FactPasses
from lib.backbones.sources import loading
from lib.editors.finetune import FineTuneEpochs, FtEpochsConfig
from lib.editors.parts.sites import Site
from tests.editors.hypernet.malmen_cases import facts_for, gap, sites
from tests.editors.hypernet.reference_malmen import Passes


@pytest.mark.parametrize("name", ["tiny-gpt2", "tiny-t5", "tiny-bert"])
def test_five_epochs_of_adamw_over_mini_batches_of_the_edits(name: str, monkeypatch) -> None:
    """Token-mean cross-entropy of the edit prompts, decoupled decay, no locality term."""
    backbone, chosen = loading.load(name, dtype=torch.float64), []
    config = FtEpochsConfig(
        sites=tuple(Site(**site) for site in sites(backbone)), lr=5e-3, weight_decay=0.1,
        epochs=5, batch_rows=2,
    )  # fmt: skip
    facts = facts_for(backbone, 5)
    reference = Passes(backbone, [site.path(backbone) for site in config.sites])
    weights = {path: W.clone().requires_grad_() for path, W in reference.original.items()}
    inner = FactPasses.in_order
    monkeypatch.setattr(
        FactPasses, "in_order", lambda self, pairs, n: chosen.append(pairs) or inner(self, pairs, n)
    )
    editor = FineTuneEpochs(backbone, config)
    report = editor.edit(facts)
    pairs = [(fact.prompt, fact.target) for fact in facts]
    assert len(chosen) == 5 and all(sorted(epoch) == sorted(pairs) for epoch in chosen)
    assert chosen[0] != chosen[1]
    adamw = torch.optim.AdamW(weights.values(), lr=5e-3, weight_decay=0.1)
    losses = []
    for epoch in chosen:
        for at in (0, 2, 4):
            loss = reference.edit_loss([reference.row(*p) for p in epoch[at : at + 2]], weights)
            adamw.zero_grad()
            loss.backward()
            adamw.step()
            losses.append(float(loss.detach()))
    assert report.loss_first == pytest.approx(losses[0], rel=1e-9)
    assert report.loss_last == pytest.approx(losses[-1], rel=1e-6)
    for path, trained in weights.items():
        own = backbone.model.get_submodule(path).weight
        assert gap(reference.turn(path, own.detach()), trained.detach()) < 1e-6
        assert gap(trained.detach(), reference.original[path]) > 1e-3


def test_defaults_are_the_published_ones() -> None:
    config = FtEpochsConfig()
    assert (config.lr, config.weight_decay, config.epochs, config.batch_rows) == (5e-4, 5e-4, 5, 32)
