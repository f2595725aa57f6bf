"""Counting operations: against formulas, on whatever a module is called on."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import optdepth as od
from optdepth.networks import stage
from optdepth.networks.work import counted
from zoo import SIZES, TEXT, images, library, tokens

X = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=[torch.no_grad, torch.inference_mode], autouse=True)
def mode(request: pytest.FixtureRequest):
    with request.param():
        yield


def test_attention_counts_on_a_cpu_masked_or_not() -> None:
    heads = X.view(2, 5, 2, 4).transpose(1, 2)
    mask = torch.ones(5, 5, dtype=torch.bool)
    for given in ({}, {"attn_mask": mask}, {"is_causal": True}):
        work, _ = counted(lambda given=given: F.scaled_dot_product_attention(heads, heads, heads, **given))
        assert work == 2 * 2 * (2 * 2 * 5 * 5 * 4)


def test_layers_of_torch_that_run_as_one_operator() -> None:
    attention = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    projections, products = 2 * 10 * 4 * 64, 2 * 2 * (2 * 5 * 5 * 8)
    assert counted(lambda: attention(X, X, X))[0] == projections + products
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    expected = layer(X)
    work, found = counted(lambda: layer(X))
    assert work == projections + products + 2 * 10 * 2 * 8 * 16
    torch.testing.assert_close(found, expected)
    assert torch.backends.mha.get_fastpath_enabled()


def test_recurrent_layers() -> None:
    for kind, gates in ((nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)):
        layer = kind(8, 16, num_layers=2, batch_first=True, bidirectional=True)
        weights = 2 * gates * 16 * (8 + 16) + 2 * gates * 16 * (32 + 16)
        assert counted(lambda layer=layer: layer(X))[0] == 2 * 10 * weights


class OnParameters(nn.Module):
    """Calls its submodules on a parameter and on a view of one."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.query = nn.Parameter(torch.randn(6, 8)), nn.Parameter(torch.randn(1, 1, 8))
        self.norm, self.key, self.ask = nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        keys = self.key(self.norm(self.table))
        return x + self.ask(self.query.expand(len(x), -1, -1)) @ keys.T @ keys


def test_modules_that_are_called_on_parameters() -> None:
    work, _ = counted(lambda: OnParameters()(X))
    assert work == 2 * (6 * 64 + 2 * 64 + 2 * 2 * 6 * 8)


def test_library_models_that_do_so() -> None:
    """DeBERTa-v3 normalises its table of relative positions; a vision transformer's pooling asks with a parameter."""
    with torch.inference_mode(False), torch.enable_grad():
        timm, transformers = library("timm"), library("transformers")
        vit = timm.create_model(
            "vit_tiny_patch16_224", img_size=32, depth=2, global_pool="map", class_token=False, num_classes=5
        ).eval()
        config = transformers.DebertaV2Config(
            num_labels=5, relative_attention=True, position_buckets=8, pos_att_type=["p2c", "c2p"],
            norm_rel_ebd="layer_norm", share_att_key=True, position_biased_input=False, **SIZES, **TEXT,
        )  # fmt: skip
        deberta = transformers.DebertaV2ForSequenceClassification(config).eval()
        for model, example in ((vit, images()), (deberta, tokens())):
            network = stage(model, example=example, exits="all")
            costs = od.flops(network, example)
            assert [exit.trunk for exit in network.exits] == pytest.approx(costs.reach)
            assert costs.full > 0
