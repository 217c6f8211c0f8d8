"""The family against packages that have the same cell: what they computed once, in float64.

Each ran by itself, with the weights and inputs that ``case`` makes (``waves``: numbers that any
language can repeat), gates in the package's order; the values below are rounded to nine places.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import rnnfast
from rnnfast.problem import Options, Scan
from rnnfast.scratch import scratch_scan

PUBLISHED = {
    "layer_norm_lstm": """
0.161170814 -0.297925558 0.276058430 -0.536036086 -0.587626182 0.174225133 0.028765820
0.332848425 -0.897293439 -0.157978069 0.576924936 -0.497136614 -0.682612365 0.187856224
-0.120083541 -0.691444087 -0.014020373 0.153482330
""",  # haste_pytorch_cpu 0.5.5, LayerNormLSTMScript
    "layer_norm_gru_joint": """
0.637841863 0.166592020 0.340429136 -0.427749141 -0.883549411 -0.657853933 0.678774092
-0.734415414 -0.004949239 -0.317473938 -0.405133758 -0.979522202 0.636713636 -0.777355186
-0.106973506 -0.368795002 -0.428111918 -0.544610506
""",  # haste_pytorch_cpu 0.5.5, LayerNormGRUScript
    "indrnn_tanh": """
0.832728090 -0.940936391 -0.990776595 0.376370644 -0.714283873 -0.852255086 -0.804246704
-0.190117851 0.760674550 -0.943570388 -0.400025042 0.859031862 -0.391110990 -0.862826655
-0.972966653 0.553964188 -0.869538321 -0.997539750
""",  # haste_pytorch_cpu 0.5.5, IndRNNScript
    "peephole_lstm": """
-0.022807081 -0.001016032 -0.065442758 -0.066086538 0.248066237 -0.041706126 0.065778219
-0.011452547 -0.010910106 0.011769870 0.071949338 -0.005572536 0.042861449 0.142277066
-0.176257465 -0.210222975 0.041567151 0.002809255
""",  # tensorflow_addons 0.23.0 (tensorflow 2.15.1), PeepholeLSTMCell
    "ligru": """
0.540030680 0.203406507 1.331650992 -0.107695987 0.565756019 -0.048578262 0.055368195
0.040567989 1.407738044 -0.016348158 0.156536182 -0.031443908 0.010428909 0.478037937
1.597239488 -0.009755356 1.434621368 1.389792571
""",  # speechbrain 1.1.2, LiGRU_Layer in evaluation
    "min_gru_positive": """
1.641154051 0.774452499 1.019112246 0.474984159 1.248833427 0.785640810 1.355941808 1.500626692
0.822816187 1.549095259 1.126721678 1.154785611 0.946939348 1.449955398 0.672374825 1.279734746
1.556172644 0.891961856
""",  # minGRU-pytorch 0.2.1, its parallel scan
    "min_lstm_positive": """
1.386962531 0.479606470 0.840198898 0.480487864 1.133855336 0.623885178 0.796344803 1.105472794
0.736672838 1.141019464 0.618708833 0.987918662 0.683467047 1.262905422 0.502242675 0.673752705
1.160353397 0.819167656
""",  # minGRU-pytorch 0.2.1, step by step
    "slstm": """
0.345952877 0.532912805 -0.706937781 -0.396307442 0.208867893 0.379599997 -0.653061161
-0.509500782 0.350592159 -0.190933404 0.353741078 -0.448980391 0.229605952 -0.146023576
0.280427150 -0.209131463 0.307924629 -0.165943059 0.226128369 -0.427737226 0.298473000
-0.010648399 0.277476689 -0.258043868
""",  # xlstm 2.0.6, sLSTMCell_vanilla
    "block_gru_layer_norm": """
0.885208031 0.819591998 0.475819740 -0.081928474 -0.547055332 -0.901939612 0.520763755
0.667835766 0.556771124 0.262809770 -0.327922281 -0.876567366 0.450467946 0.621841560
0.662912869 0.340762752 -0.215612594 -0.738956953
""",  # sheeprl 0.8.4, LayerNormGRUCell (DreamerV2's and V3's)
}
# The final states, where a package gives them: c, and sLSTM's c, n, m.
FINAL = {
    "layer_norm_lstm": """
-0.468348690 -0.228449043 -0.285422697 -1.186209120 -0.558839366 -0.453724892
""",
    "peephole_lstm": """
0.208657843 0.321788358 -0.413470444 -0.309725871 0.207609317 0.037857655
""",
    "slstm": """
1.183395003 -0.481719617 0.360545234 -1.259984175 0.930939397 -0.028010995 0.370874746
-1.097370786 1.726365092 2.194541821 1.190561681 1.683948555 1.178918147 2.337816678 1.096303015
1.481199326 0.129235237 -1.449565814 0.165933613 -0.496169051 1.162789610 -1.351546731
0.063729458 -0.608024556
""",
}

T, B = 3, 2
ABOUT_ONE = ("gain", "gain_ih", "gain_hh", "gain_c")
WAVES = {  # the k of each weight; 0: a weight of zeros, which the package does not have
    "layer_norm_lstm": {"w_ih": 1, "w_hh": 2, "gain_ih": 3, "gain_hh": 4, "shift": 5, "gain_c": 6}
    | {"shift_c": 9},
    "layer_norm_gru_joint": {"w_ih": 1, "w_hh": 2, "gain_ih": 3, "gain_hh": 4, "shift_ih": 5}
    | {"shift_hh": 6},
    "indrnn_tanh": {"w_ih": 1, "b_ih": 3, "u": 2},
    "peephole_lstm": {"w_ih": 1, "w_hh": 2, "b_ih": 3, "b_hh": 0, "w_ci": 4, "w_cf": 5, "w_co": 6},
    "ligru": {"w_ih": 1, "w_hh": 2, "b_ih": 0, "b_hh": 0},
    "min_gru_positive": {"w_ih": 1},
    "min_lstm_positive": {"w_ih": 1},
    "slstm": {"w_ih": 1, "w_hh": 2, "b_ih": 3, "b_hh": 0},
    "block_gru_layer_norm": {"w_ih": 1, "w_hh": 2, "b_ih": 3, "b_hh": 0, "gain": 4, "shift": 5},
}


def waves(shape: tuple[int, ...], k: int) -> Tensor:
    """sin(0.7 n + k) for n = 1, 2, …, row by row."""
    n = torch.arange(1, math.prod(shape) + 1, dtype=torch.float64)
    return torch.sin(n * 0.7 + k).reshape(shape)


def case(name: str) -> Scan:
    heads = {"slstm": 2, "block_gru_layer_norm": 1}
    spec = rnnfast.CELLS[name]
    if name in heads:
        spec = spec.with_settings(heads=heads[name])  # type: ignore[attr-defined]
    H, I = (4 if name == "slstm" else 3), (3 if name.startswith("min") else 2)
    w = {}
    for weight, k in WAVES[name].items():
        shape = (spec.gates * H, I) if weight == "w_ih" else spec.weight_shape(weight, H)
        w[weight] = waves(shape, k) if k else torch.zeros(shape, dtype=torch.float64)
        if weight in ABOUT_ONE:
            w[weight] = 1 + w[weight] / 2
    names = spec.weight_names("dense", "b_ih" in w)
    assert set(w) == set(names)
    if name == "ligru":  # batch norm in evaluation: a scale and a shift of W_ih x
        scale = (1 + waves((2 * H,), 3) / 2) / torch.sqrt(1 + waves((2 * H,), 6) / 2 + 1e-5)
        w["w_ih"] = w["w_ih"] * scale.unsqueeze(1)
        w["b_ih"] = waves((2 * H,), 4) - waves((2 * H,), 5) * scale
    states = [waves((B, H), 7 + k) for k in range(len(spec.states))]
    if name.startswith("min"):
        states = [s.abs() for s in states]
    if name == "slstm":
        states = [torch.zeros_like(s) for s in states]
    weights, x = [w[weight] for weight in names], waves((T, B, I), 0)
    if name == "peephole_lstm":  # there batch first
        x = waves((B, T, I), 0).transpose(0, 1)
    return Scan(spec.name, "dense", x, states, weights, None, None, Options())


def numbers(text: str, like: Tensor) -> Tensor:
    return torch.tensor([float(word) for word in text.split()], dtype=like.dtype).view_as(like)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_cell_gives_what_its_package_gave(name: str) -> None:
    found = scratch_scan(case(name))
    torch.testing.assert_close(found.y, numbers(PUBLISHED[name], found.y), rtol=0, atol=1e-9)
    if name in FINAL:
        final = torch.stack(found.final[1:])
        torch.testing.assert_close(final, numbers(FINAL[name], final), rtol=0, atol=1e-9)
