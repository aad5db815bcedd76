"""Stand-ins for the published ONNX files: random weights, but the real inputs, outputs and amount of arithmetic.

Their outputs are constant, so both flows see the same person in every frame.
"""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from wan_orchestration.preprocess.estimators.vitpose import DETECTOR, POSE

WIDTH, HEADS, TOKENS = 1280, 16, 16 * 12
"""ViT-H on patches of 16 px of 192x256."""
BLOCKS = 32


class _Graph:
    def __init__(self) -> None:
        self.nodes, self.weights, self.count = [], {}, 0
        self.random = np.random.default_rng(0)

    def weight(self, name: str, *shape: int) -> str:
        if name not in self.weights:
            self.weights[name] = (self.random.standard_normal(shape) * 0.02).astype(np.float32)
        return name

    def constant(self, name: str, value: np.ndarray) -> str:
        self.weights[name] = value
        return name

    def add(self, kind: str, *inputs: str, **attributes: object) -> str:
        self.count += 1
        output = f"{kind}_{self.count}"
        self.nodes.append(helper.make_node(kind, list(inputs), [output], **attributes))
        return output

    def linear(self, x: str, name: str, into: int, out: int) -> str:
        return self.add(
            "Add", self.add("MatMul", x, self.weight(f"{name}.w", into, out)), self.weight(f"{name}.b", out)
        )

    def norm(self, x: str) -> str:
        return self.add("LayerNormalization", x, self.weight("norm.w", WIDTH), self.weight("norm.b", WIDTH), axis=-1)

    def convolution(self, x: str, name: str, into: int, out: int, side: int = 3, stride: int = 1) -> str:
        kernel = self.weight(f"{name}.k", out, into, side, side)
        made = self.add("Conv", x, kernel, strides=[stride] * 2, pads=[side // 2] * 4)
        return self.add("Relu", made)

    def save(self, path: Path, x: str, rank: int, shape: tuple[int, ...], answer: np.ndarray) -> None:
        """Writes a network whose output is `answer` plus zero times `x`, so that no runtime can skip the arithmetic."""
        axes = self.constant("axes", np.arange(1, rank))
        mean = self.add("ReduceMean", x, axes, keepdims=0)
        nothing = self.add("Mul", mean, self.constant("zero", np.array(0, np.float32)))
        column = self.add("Reshape", nothing, self.constant("column", np.array([-1] + [1] * (answer.ndim - 1))))
        output = self.add("Add", column, self.constant("answer", answer.astype(np.float32)))
        graph = helper.make_graph(
            self.nodes,
            "stand-in",
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", *shape])],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["batch", *answer.shape[1:]])],
            [numpy_helper.from_array(value, name) for name, value in self.weights.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        path.parent.mkdir(parents=True, exist_ok=True)
        onnx.save(model, path)


def write_networks(snapshot: Path, box: tuple[float, ...], cells: np.ndarray, blocks: int = BLOCKS) -> None:
    """`box` in px of the detector's 640x640, `cells` (133, 2) in the 48x64 maps. Blocks share their weights."""
    rows = np.zeros((1, 300, 6), np.float32)
    rows[0, 0] = *box, 0.9, 0
    _detector(snapshot / DETECTOR, rows)
    ys, xs = np.mgrid[:64, :48]
    maps = 0.9 * np.exp(-((xs - cells[:, 0, None, None]) ** 2 + (ys - cells[:, 1, None, None]) ** 2) / 8)
    _pose(snapshot / POSE, maps[None], blocks)


def _detector(path: Path, answer: np.ndarray) -> None:
    """59 GFLOP, like YOLOv10m: plain convolutions at strides 4, 8, 16 and 32."""
    graph = _Graph()
    x, width = graph.convolution("input", "stem", 3, 48, stride=2), 48
    for stage, (out, repeats) in enumerate([(96, 4), (192, 4), (384, 4), (576, 3)]):
        x = graph.convolution(x, f"down{stage}", width, out, stride=2)
        for repeat in range(repeats):
            x = graph.convolution(x, f"stage{stage}.{repeat}", out, out)
        width = out
    graph.save(path, x, 4, (3, 640, 640), answer)


def _pose(path: Path, answer: np.ndarray, blocks: int) -> None:
    """122 GFLOP with 32 blocks, like ViTPose-H without the head's two upsamplings (4 %)."""
    graph = _Graph()
    head = WIDTH // HEADS
    patches = graph.add("Conv", "input", graph.weight("patch.k", WIDTH, 3, 16, 16), strides=[16, 16])
    flat = graph.constant("flat", np.array([0, WIDTH, TOKENS]))
    x = graph.add("Transpose", graph.add("Reshape", patches, flat), perm=[0, 2, 1])
    split = graph.constant("split", np.array([0, TOKENS, HEADS, head]))
    join = graph.constant("join", np.array([0, TOKENS, WIDTH]))
    scale = graph.constant("scale", np.array(head**-0.5, np.float32))
    for _ in range(blocks):
        inner = graph.norm(x)
        q, k, v = (
            graph.add("Transpose", graph.add("Reshape", graph.linear(inner, name, WIDTH, WIDTH), split), perm=perm)
            for name, perm in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3]))
        )
        attention = graph.add("Softmax", graph.add("Mul", graph.add("MatMul", q, k), scale), axis=-1)
        mixed = graph.add("Transpose", graph.add("MatMul", attention, v), perm=[0, 2, 1, 3])
        x = graph.add("Add", x, graph.linear(graph.add("Reshape", mixed, join), "out", WIDTH, WIDTH))
        wide = graph.add("Gelu", graph.linear(graph.norm(x), "up", WIDTH, 4 * WIDTH))
        x = graph.add("Add", x, graph.linear(wide, "down", 4 * WIDTH, WIDTH))
    graph.save(path, x, 3, (3, 256, 192), answer)
