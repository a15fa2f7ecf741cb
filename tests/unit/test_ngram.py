"""The sum of hashed rows, and its gradient, against loops."""

import numpy as np
import pytest
import torch

from bit_transformer.nn.ngram import NgramEmbedding


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("dropout", [(), (0.5, 0.25, 0.0, 0.1)])
def test_rows_are_summed_and_dropped_as_in_loops(sparse: bool, dropout: tuple[float, ...]) -> None:
    torch.manual_seed(0)
    embedding = NgramEmbedding(8, (2, 3), 64, dropout, word_shift=0)
    torch.nn.init.normal_(embedding.table.weight)
    embedding.table.sparse = sparse
    context_BC = torch.randint(97, 100, (3, embedding.history + 11))
    row_BNO = embedding.rows_of(context_BC)
    to_BND = torch.randn(3, 11, 8)

    torch.manual_seed(7)
    made_BND = embedding.train()(context_BC)
    made_BND.backward(to_BND)
    assert embedding.table.weight.grad is not None
    assert embedding.table.weight.grad.is_sparse == sparse
    gradient = embedding.table.weight.grad.to_dense()

    torch.manual_seed(7)
    drawn = torch.rand(row_BNO.shape).numpy() if dropout else np.zeros(row_BNO.shape)
    keep = 1 - np.array(dropout or [0.0] * 4)
    rows = embedding.table.weight.detach().double().numpy()
    expected, expected_gradient = np.zeros((3, 11, 8)), np.zeros_like(rows)
    for b, n, o in np.ndindex(3, 11, 4):
        if drawn[b, n, o] < np.float32(keep[o]):
            row = int(row_BNO[b, n, o])
            expected[b, n] += rows[row] / keep[o]
            expected_gradient[row] += to_BND[b, n].double().numpy() / keep[o]
    np.testing.assert_allclose(made_BND.detach().numpy(), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(gradient.numpy(), expected_gradient, rtol=1e-5, atol=1e-5)

    whole = embedding.eval()(context_BC).detach().numpy()
    np.testing.assert_allclose(whole, rows[row_BNO.numpy()].sum(2), rtol=1e-5, atol=1e-5)
