"""ONNX files with the shapes of the real networks and fixed outputs."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from wan_orchestration.preprocess.estimators.vitpose import DETECTOR, POSE
from wan_orchestration.preprocess.keypoints import Pose


def heatmap_cells(pose: Pose, centre: np.ndarray, size: np.ndarray) -> np.ndarray:
    """(133, 2) cells of the 48x64 maps in which a pose has its peaks, for a window."""
    whole = np.full((133, 2), 20.0)
    order = {
        0: 0,
        2: 6,
        5: 5,
        3: 8,
        4: 10,
        6: 7,
        7: 9,
        8: 12,
        9: 14,
        10: 16,
        11: 11,
        12: 13,
        13: 15,
        14: 2,
        15: 1,
        16: 4,
        17: 3,
    }
    for ours, theirs in order.items():
        whole[theirs] = (pose.body[ours, :2] - centre + size / 2) / size * (48, 64)
    for toe, (big, small) in {18: (17, 18), 19: (20, 21)}.items():
        whole[[big, small]] = (pose.body[toe, :2] - centre + size / 2) / size * (48, 64)
    for part, first in (("face", 23), ("left_hand", 91), ("right_hand", 112)):
        points = getattr(pose, part)[:, :2]
        whole[first : first + len(points)] = (points - centre + size / 2) / size * (48, 64)
    return whole


def write_snapshot(folder: Path, rows: np.ndarray, cells: np.ndarray, batch: int | str = "batch") -> Path:
    """A detector whose output is always `rows` (n, 6), and a pose network whose peaks are always at `cells`."""
    boxes = np.zeros((1, 300, 6), np.float32)
    boxes[0, : len(rows)] = rows
    ys, xs = np.mgrid[:64, :48]
    maps = np.exp(-((xs - cells[:, 0, None, None]) ** 2 + (ys - cells[:, 1, None, None]) ** 2) / 8)[None] * 0.9
    _write(folder / DETECTOR, "images", (3, 640, 640), boxes, batch)
    _write(folder / POSE, "input", (3, 256, 192), maps.astype(np.float32), batch)
    return folder


def _write(path: Path, name: str, shape: tuple[int, ...], answer: np.ndarray, batch: int | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    ones = [1] * (answer.ndim - 1)
    nodes = [
        helper.make_node("ReduceMean", [name, "axes"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "zero"], ["nothing"]),
        helper.make_node("Reshape", ["nothing", "shape"], ["column"]),
        helper.make_node("Add", ["column", "answer"], ["output"]),
    ]
    constants = {
        "axes": np.array([1, 2, 3]),
        "zero": np.array(0, np.float32),
        "shape": np.array([-1, *ones]),
        "answer": answer.astype(np.float32),
    }
    graph = helper.make_graph(
        nodes,
        "stub",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, *shape])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [batch, *answer.shape[1:]])],
        [numpy_helper.from_array(value, key) for key, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, path)
