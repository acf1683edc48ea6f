"""Digests of what a figure depends on, so that a kept one is read only while nothing has changed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from hwsim.networks.graph import FloatGraph
from hwsim.program import Program


def code_digest(*packages: str) -> str:
    """Short digest of the code of some packages or modules, of "golden" and "hwsim" by default: they decide a program.

    The command line of ``hwsim`` is left out of the package; a module of it can be named.
    """
    digest = hashlib.sha256()
    for package in packages or ("golden", "hwsim"):
        spec = find_spec(package)
        assert spec is not None
        if spec.submodule_search_locations is None:
            assert spec.origin is not None
            digest.update(Path(spec.origin).read_bytes())
            continue
        for folder in spec.submodule_search_locations:
            for path in sorted(Path(folder).rglob("*.py")):
                if "cli" not in path.relative_to(folder).parts:
                    digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def digest_of(code: str, graph: FloatGraph, arrays: Iterable[np.ndarray]) -> str:
    """Digest of code, a network with its weights, and arrays such as images and labels.

    Parameters
    ----------
    code : str
        Digest of the code.
    graph : FloatGraph
    arrays : iterable of ndarray
        In an order that is always the same.
    """
    digest = hashlib.sha256(code.encode())
    for node in graph.nodes:
        digest.update(f"{node.name} {node.operation} {sorted(node.attributes.items())}".encode())
        for name in sorted(node.parameters):
            digest.update(np.ascontiguousarray(node.parameters[name]).data)
    for array in arrays:
        digest.update(f"{array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def program_digest(program: Program) -> str:
    """Digest of all that decides what a program computes: nodes, specs and constants."""
    digest = hashlib.sha256()
    for node in program.nodes:
        digest.update(f"{node.name} {node.spec!r} {node.inputs}".encode())
        for name in sorted(node.constants):
            array = node.constants[name]
            digest.update(f"{name} {array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
