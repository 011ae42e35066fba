"""Any model -> an ONNX file on which onnxruntime agrees with PyTorch, at lengths never traced."""

import gatec.onnx.routed  # noqa: F401 - makes its translation known
from gatec.onnx.exported import Exported, Parity
from gatec.onnx.operators import register_decomposition, register_translation
from gatec.onnx.remedies import register_form
from gatec.onnx.write import export

__all__ = ["Exported", "Parity", "export", "register_decomposition", "register_form", "register_translation"]
