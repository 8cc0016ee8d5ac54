"""Functions compiled once, by Numba, and read from the disk ever after.

Numba turns plain Python loops into machine code, but takes most of a second to start, also where
all that it compiled lies on the disk. So a function here is compiled in a form that needs nothing
of Numba's at run time: its arguments are NumPy arrays and integers, within it an array is a bare
pointer, it allocates nothing and raises nothing. What Numba made of it is kept as an object file;
a later process loads that by llvmlite, in a few milliseconds, and never imports Numba.
"""

import ctypes
import hashlib
import os
from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from types import FunctionType
from typing import Any, TypeVar

import numpy as np
from numpy.typing import DTypeLike

Function = TypeVar("Function", bound=Callable[..., Any])

_PACKAGE = Path(__file__).resolve().parent
SOURCES = (
    "compiled.py",
    "random.py",
    "masking/config.py",
    "masking/units.py",
    "masking/kernel_cpu.py",
)
"""Every module with compiled functions, or with constants that become part of them."""
_INLINED: set[Callable[..., Any]] = set()
_LOADED: list[Any] = []
"""LLVM's engines: the code lives as long as they do."""
_DATA = object.__basicsize__ // 8
"""Of a NumPy array's C structure (`PyArrayObject_fields`, part of NumPy's ABI): the eight-byte word
behind the object's header is the address of the data."""
_PROBE = np.zeros(1)
_ADDRESSES = ctypes.POINTER(ctypes.c_uint64)
assert ctypes.cast(id(_PROBE), _ADDRESSES)[_DATA] == _PROBE.ctypes.data, "another interpreter"
_ENTRY = "compiled_function"
_DIGEST_BYTES = hashlib.sha256().digest_size


def inlined(function: Function) -> Function:
    """A function that compiled ones call, and that becomes part of each of them."""
    _INLINED.add(function)
    return function


@inlined
def data(array):  # type: ignore[no-untyped-def]
    """Compiled code only: the pointer to an array argument's elements."""
    return array[_DATA]


@inlined
def pointer(block, offset, dtype):  # type: ignore[no-untyped-def]
    """Compiled code only: a pointer to `dtype`s, `offset` of `block`'s own elements behind it."""
    raise NotImplementedError


class Compiled:
    """A function of arrays and integers that gives an int64, in machine code.

    It is called with `id(array)` for every array: the address of the array's C structure, which is
    there at once, where NumPy takes microseconds to say that of the data. Arrays are contiguous,
    aligned and of exactly the declared type; nothing checks that. The GIL is released meanwhile.
    """

    def __init__(self, function: Callable[..., Any], arguments: str) -> None:
        self._function = function
        self._arguments = arguments.split()
        self._by_item: dict[Any, Callable[..., int]] = {}

    def of(self, item: DTypeLike | None = None) -> Callable[..., int]:
        """The code for one element type of the arrays declared as `item[]`."""
        found = self._by_item.get(item)
        if found is None:
            found = self._by_item[item] = self._load(np.dtype(item).name if item else "item")
        return found

    def _load(self, item: str) -> Callable[..., int]:
        types = [argument.replace("item", item) for argument in self._arguments]
        file = _folder() / f"{self._function.__name__.lstrip('_')}-{item}.o"
        code = object_code(file)
        if code is None:
            code = _compile(self._function, types)
            _write(file, code)
        prototype = ctypes.CFUNCTYPE(ctypes.c_int64, *map(_c_type, types))
        loaded: Callable[..., int] = prototype(_address(code))
        return loaded


def compiled(arguments: str) -> Callable[[Callable[..., Any]], Compiled]:
    """Makes a plain Python function a compiled one.

    Args:
        arguments: their types, in order: `int64`, `uint64`, or an array's as `uint32[]`; `item[]`
            for arrays whose element type the caller chooses (`Compiled.of`); `numbers` for bytes
            that hold several int64, which come in faster than one by one.
    """
    return lambda function: Compiled(function, arguments)


def _c_type(argument: str) -> Any:
    if argument == "numbers":
        return ctypes.c_char_p
    return ctypes.c_void_p if argument.endswith("[]") else getattr(ctypes, f"c_{argument}")


def _numba_type(argument: str) -> Any:
    types: Any = import_module("numba").types
    if argument == "numbers":
        return types.CPointer(types.int64)
    if argument.endswith("[]"):
        return types.CPointer(types.CPointer(getattr(types, argument[:-2])))
    return getattr(types, argument)


def _compile(function: Callable[..., Any], arguments: list[str]) -> bytes:
    """An object file with the function as `_ENTRY`."""
    import llvmlite.binding as llvm

    numba: Any = import_module("numba")  # typed in part, and not as it is used
    signature = numba.types.int64(*map(_numba_type, arguments))
    unit = numba.cfunc(signature, nopython=True, error_model="numpy")(_with_twins(function))
    module = llvm.parse_assembly(unit.inspect_llvm().replace(unit.native_name, _ENTRY))
    machine = _target().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=3,
        jit=True,
    )  # fmt: skip
    _without_exceptions(module, machine)
    foreign = [f.name for f in module.functions if f.is_declaration and f.name[:5] != "llvm."]
    assert not foreign, f"{function.__name__} needs {foreign} at run time"
    emitted: bytes = machine.emit_object(module)
    return emitted


def _without_exceptions(module: Any, machine: Any) -> None:
    """Removes what Numba puts around a function to report the exceptions that ours never raise."""
    import llvmlite.binding as llvm

    for function in module.functions:
        if not function.is_declaration and function.name != _ENTRY:
            function.linkage = "internal"
    passes = llvm.create_new_module_pass_manager()
    passes.add_ipsccp_pass()
    passes.add_simplify_cfg_pass()
    passes.add_global_dead_code_eliminate_pass()
    passes.add_strip_dead_prototype_pass()
    passes.run(module, llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options()))


@cache
def _twin(function: Callable[..., Any]) -> Any:
    """An inlined function as Numba wants it."""
    numba: Any = import_module("numba")
    if function is pointer:
        return numba.extending.intrinsic(_pointer_in_code)
    return numba.njit(inline="always", error_model="numpy")(_with_twins(function))


def _with_twins(function: Callable[..., Any]) -> FunctionType:
    """The same function, which calls the twins of those that it calls."""
    names = dict(function.__globals__)
    for name in function.__code__.co_names:
        called = names.get(name)
        if isinstance(called, FunctionType) and called in _INLINED:
            names[name] = _twin(called)
    return FunctionType(function.__code__, names, function.__name__)


def _pointer_in_code(typing_context, block, offset, dtype):  # type: ignore[no-untyped-def]
    types: Any = import_module("numba").types

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        place = builder.gep(arguments[0], [arguments[1]])
        return builder.bitcast(place, context.get_value_type(signature.return_type))

    return types.CPointer(dtype.dtype)(block, types.int64, dtype), generate


def _target() -> Any:
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm.Target.from_default_triple()


def _address(code: bytes) -> int:
    """Loads an object file; where its function is."""
    import llvmlite.binding as llvm

    machine = _target().create_target_machine(jit=True)
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    _LOADED.append(engine)
    address: int = engine.get_function_address(_ENTRY)
    return address


def object_code(file: Path) -> bytes | None:
    """What a file holds; None where there is none, or not whole."""
    try:
        content = file.read_bytes()
    except OSError:
        return None
    digest, code = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
    return code if hashlib.sha256(code).digest() == digest else None


def _write(file: Path, code: bytes) -> None:
    """Under its name at once or not at all; other processes may be about the same."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(f".{os.getpid()}.part")
        partial.write_bytes(hashlib.sha256(code).digest() + code)
        partial.replace(file)
    except OSError:
        pass  # a full or read-only disk: the next process compiles again


@cache
def _folder() -> Path:
    """Beside the package, or, where that cannot be written, in the user's cache; within
    $NUMBA_CACHE_DIR where it is set. Named by all that the code depends on."""
    import llvmlite.binding as llvm

    digest = hashlib.sha256()
    for name in SOURCES:
        digest.update((_PACKAGE / name).read_bytes())
    host = llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()
    for text in (version("numba"), version("llvmlite"), *host):
        digest.update(f"{text}\n".encode())
    name = f"mlmlab-{digest.hexdigest()[:16]}"
    if chosen := os.environ.get("NUMBA_CACHE_DIR"):
        return Path(chosen) / name
    if os.access(_PACKAGE, os.W_OK):
        return _PACKAGE / "__pycache__" / name
    cache_home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return cache_home / "mlmlab" / "compiled" / name
