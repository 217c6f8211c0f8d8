"""The family: cells from the literature, each one step in plain torch (docs/cells.md)."""

from . import block_gru, coupled, indrnn, layer_norm, ligru, minimal, peephole, slstm

FAMILY = (
    layer_norm.layer_norm_lstm,
    layer_norm.layer_norm_gru,
    layer_norm.layer_norm_gru_joint,
    peephole.peephole_lstm,
    coupled.coupled_lstm,
    indrnn.indrnn_relu,
    indrnn.indrnn_tanh,
    ligru.ligru,
    minimal.min_lstm,
    minimal.min_lstm_positive,
    minimal.min_gru,
    minimal.min_gru_positive,
    slstm.slstm,
    block_gru.block_gru,
    block_gru.block_gru_layer_norm,
    block_gru.block_gru_no_norm,
)
