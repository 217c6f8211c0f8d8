"""The family's cells (rnnfast.cells.family, docs/cells.md) as layers."""

from __future__ import annotations

from typing import Any

from .own_modules import Recurrent


class LayerNormLSTM(Recurrent):
    """The LSTM with layer normalisation, arguments as ``rnnfast.Recurrent``'s after its cell.

    Gates i, f, g, o = LN(W_ih x) + LN(W_hh h) + shift; c' = f c + i g; h' = o tanh(LN(c')): a norm
    over all gates at once, eps 1e-5 (Ba et al., arXiv:1607.06450).

    ``bias`` is False by default: with it b_ih and b_hh stand inside the norms, where the paper has
    none. Parameters beside torch.nn's: ``gain_ih``, ``gain_hh`` (ones) and ``shift`` (zeros) [4H],
    ``gain_c`` (ones) and ``shift_c`` (zeros) [H], each with its suffix ``_l0`` and so on.
    """

    _label = "LayerNormLSTM"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = False,
        *args: Any,
        **more: Any,
    ) -> None:
        super().__init__(
            "layer_norm_lstm", input_size, hidden_size, num_layers, bias, *args, **more
        )


class LayerNormGRU(Recurrent):
    """The GRU with layer normalisation, arguments as ``rnnfast.Recurrent``'s after its cell.

    r, z of LN(W_ih x) + LN(W_hh h); n = tanh(LN(W_in x) + r LN(W_hn h)); h' = (1 − z) n + z h: a
    norm over r and z at once, another over n, eps 1e-5 (Ba et al., arXiv:1607.06450).

    ``joint``: each norm is over all three gates at once, as haste has it. ``bias`` as
    :class:`LayerNormLSTM` has it. Parameters beside torch.nn's: ``gain_ih``, ``gain_hh`` (ones) and
    ``shift_ih``, ``shift_hh`` (zeros) [3H].
    """

    _label = "LayerNormGRU"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = False,
        *args: Any,
        joint: bool = False,
        **more: Any,
    ) -> None:
        cell = "layer_norm_gru_joint" if joint else "layer_norm_gru"
        super().__init__(cell, input_size, hidden_size, num_layers, bias, *args, **more)


class PeepholeLSTM(Recurrent):
    """The LSTM whose gates see the cell state: i and f also w_ci c and w_cf c, o w_co c' (Gers et
    al., JMLR 3, 2002, with tanh as Graves, arXiv:1308.0850).

    Arguments as ``rnnfast.Recurrent``'s after its cell. Parameters beside torch.nn's: ``w_ci``,
    ``w_cf``, ``w_co`` [H], U(±1/√H).
    """

    _label = "PeepholeLSTM"

    def __init__(self, input_size: int, hidden_size: int, *args: Any, **more: Any) -> None:
        super().__init__("peephole_lstm", input_size, hidden_size, *args, **more)


class CoupledLSTM(Recurrent):
    """The LSTM that forgets what it takes in: gates i, g, o, c' = (1 − i) c + i g; h' = o tanh(c')
    (CIFG of Greff et al., arXiv:1503.04069).

    Arguments as ``rnnfast.Recurrent``'s after its cell, parameters as torch.nn's of three gates.
    """

    _label = "CoupledLSTM"

    def __init__(self, input_size: int, hidden_size: int, *args: Any, **more: Any) -> None:
        super().__init__("coupled_lstm", input_size, hidden_size, *args, **more)


class IndRNN(Recurrent):
    """h' = relu(W_ih x + b_ih + u h), u a vector (Li et al., arXiv:1803.04831).

    Arguments as ``rnnfast.Recurrent``'s after its cell, and ``nonlinearity``: "relu" or "tanh".
    Parameters: ``weight_ih``, ``bias_ih`` and ``u`` [H], U(0, 1). The paper keeps
    |u| ≤ 2^(1/T) while it trains; that is the training loop's.
    """

    _label = "IndRNN"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *args: Any,
        nonlinearity: str = "relu",
        **more: Any,
    ) -> None:
        if nonlinearity not in ("relu", "tanh"):
            raise ValueError(
                f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh' or 'relu'."
            )
        super().__init__(f"indrnn_{nonlinearity}", input_size, hidden_size, *args, **more)


class LiGRU(Recurrent):
    """The light GRU: z of W_ih x + W_hh h, n = relu of the same; h' = z h + (1 − z) n (Ravanelli et
    al., arXiv:1803.10225), without the batch norm of W_ih x.

    Arguments as ``rnnfast.Recurrent``'s after its cell, parameters as torch.nn's of two gates, z
    and n.
    """

    _label = "LiGRU"

    def __init__(self, input_size: int, hidden_size: int, *args: Any, **more: Any) -> None:
        super().__init__("ligru", input_size, hidden_size, *args, **more)


class MinLSTM(Recurrent):
    """minLSTM: i, f, g of x alone, h' = f/(f + i) h + i/(f + i) g (Feng et al., arXiv:2410.01201).

    Arguments as ``rnnfast.Recurrent``'s after its cell, and ``positive``: g is a + 1/2 where
    a ≥ 0, else σ(a), as in the paper's version in log space. Parameters: ``weight_ih`` [3H, I],
    ``bias_ih``. One state, h.
    """

    _label = "MinLSTM"

    def __init__(
        self, input_size: int, hidden_size: int, *args: Any, positive: bool = False, **more: Any
    ) -> None:
        cell = "min_lstm_positive" if positive else "min_lstm"
        super().__init__(cell, input_size, hidden_size, *args, **more)


class MinGRU(Recurrent):
    """minGRU: z, n of x alone, h' = (1 − z) h + z n (Feng et al., arXiv:2410.01201).

    Arguments as ``rnnfast.Recurrent``'s after its cell, and ``positive`` as :class:`MinLSTM`'s, for
    n. Parameters: ``weight_ih`` [2H, I], ``bias_ih``.
    """

    _label = "MinGRU"

    def __init__(
        self, input_size: int, hidden_size: int, *args: Any, positive: bool = False, **more: Any
    ) -> None:
        cell = "min_gru_positive" if positive else "min_gru"
        super().__init__(cell, input_size, hidden_size, *args, **more)


class SLSTM(Recurrent):
    """sLSTM: exponential input gate, normaliser n, stabiliser m, states h, c, n, m (Beck et al.,
    arXiv:2405.04517).

    Arguments as ``rnnfast.Recurrent``'s after its cell, and ``heads``, which divides
    ``hidden_size``: ``weight_hh`` is [4, heads, H/heads, H/heads], gates i, f, g, o, each head's of
    its own part of h. Initial values U(±1/√H), states 0. The paper's block around it (convolution,
    group norm, projections) is left out.
    """

    _label = "SLSTM"

    def __init__(
        self, input_size: int, hidden_size: int, *args: Any, heads: int = 4, **more: Any
    ) -> None:
        super().__init__("slstm", input_size, hidden_size, *args, heads=heads, **more)


class BlockGRU(Recurrent):
    """DreamerV3's GRU: gates r, n, u of norm(W_ih x + W_hh h) with W_hh block-diagonal by heads,
    n = tanh(r ·), u = σ(· − 1); h' = u n + (1 − u) h (Hafner et al., arXiv:2301.04104).

    Arguments as ``rnnfast.Recurrent``'s after its cell, and ``heads``, which divides
    ``hidden_size``: ``weight_hh`` is [3, heads, H/heads, H/heads]; ``norm``: "rms" (parameter
    ``gain``, ones [3H]), "layer" (also ``shift``, zeros) or None, over all gates at once.
    """

    _label = "BlockGRU"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *args: Any,
        heads: int = 8,
        norm: str | None = "rms",
        **more: Any,
    ) -> None:
        cells = {"rms": "block_gru", "layer": "block_gru_layer_norm", None: "block_gru_no_norm"}
        if norm not in cells:
            raise ValueError(f"norm should be 'rms', 'layer' or None, got: {norm!r}")
        super().__init__(cells[norm], input_size, hidden_size, *args, heads=heads, **more)
