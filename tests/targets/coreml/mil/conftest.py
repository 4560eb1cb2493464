"""Programs in MIL's builder, saved by coremltools and opened again by the executor."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwen3_export.targets.coreml.mil import Package, open_package

Arrays = Mapping[str, np.ndarray]


class Programs:
    """Writes programs into a folder of its own; every one under another name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        from coremltools.converters.mil import Builder

        self.mb: Any = Builder

    def save(
        self,
        body: Callable[..., Mapping[str, Any]],
        inputs: Arrays,
        *,
        states: Mapping[str, tuple[tuple[int, ...], str]] | None = None,
        target: str = "iOS18",
    ) -> Path:
        """A package of the function ``body``, which gets a variable for each input and state, and returns outputs.

        Nothing is optimized or folded: the package has the operators that the body asks for.
        """
        import coremltools
        from coremltools.converters.mil import mil

        opset = getattr(coremltools.target, target)
        names = {"float32": "fp32", "float16": "fp16", "int32": "int32"}
        specs = {n: self.mb.placeholder(shape=a.shape, dtype=_type(names[a.dtype.name])) for n, a in inputs.items()}
        specs |= {
            name: self.mb.state_tensor_placeholder(shape=shape, dtype=_type(dtype))
            for name, (shape, dtype) in (states or {}).items()
        }
        program = mil.Program()
        with mil.Function(specs, opset_version=opset) as function:
            results = body(self.mb, **function.inputs)
            function.set_outputs([self._output(name, result) for name, result in results.items()])
        program.add_function("main", function)
        model = coremltools.convert(
            program,
            minimum_deployment_target=opset,
            compute_precision=coremltools.precision.FLOAT32,
            pass_pipeline=coremltools.PassPipeline.EMPTY,
            skip_model_load=True,
        )
        path = Path(tempfile.mkdtemp(dir=self.folder)) / "model.mlpackage"
        model.save(str(path))
        return path

    def open(self, body: Callable[..., Mapping[str, Any]], inputs: Arrays, **options: Any) -> Package:
        return open_package(self.save(body, inputs, **options))

    def run(self, body: Callable[..., Mapping[str, Any]], inputs: Arrays, **options: Any) -> Mapping[str, np.ndarray]:
        """The outputs of a new package, in exact arithmetic."""
        return self.open(body, inputs, **options).run(inputs)

    def _output(self, name: str, result: Any) -> Any:
        """Packages have no outputs of bools or small integers: those go out as int32."""
        from coremltools.converters.mil.mil import types

        if types.builtin_to_string(result.dtype) in ("fp32", "fp16", "int32"):
            return self.mb.identity(x=result, name=name)
        return self.mb.cast(x=result, dtype="int32", name=name)


def _type(name: str) -> Any:
    from coremltools.converters.mil.mil import types

    return types.string_to_builtin(name)


@pytest.fixture(scope="session", autouse=True)
def little_garbage() -> Iterator[None]:
    """coremltools collects garbage after each conversion; what the imports left is kept out of its way."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Programs:
    pytest.importorskip("coremltools")
    return Programs(tmp_path_factory.mktemp("programs"))
