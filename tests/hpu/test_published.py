"""Nothing of the vendor's is used that is not published, and nothing otherwise than it is published."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import published
import pytest
import vitcore_hpu
from lines import PACKAGE

import vitcore
from vitcore.runtime import distributed

FILES = sorted(PACKAGE.rglob("*.py"))
CORE = Path(vitcore.__file__).parent


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_every_use_of_the_library_is_published_with_that_signature(path: Path) -> None:
    assert [*published.complaints(path)] == []


def test_the_backends_name_what_is_published() -> None:
    known = published.published()
    for backend in vitcore_hpu.vitcore_backends():
        for reference in (backend.mark, backend.wait, *backend.imports):
            assert reference is None or reference.replace(":", ".") in known
        assert backend.env.keys() <= published.addendum()["environment"].keys()
        assert backend.env["PT_HPU_LAZY_MODE"] == ("1" if backend.lazy else "0")
        assert backend.compiler in (None, "hpu_backend")
        assert f"habana_frameworks.torch.dynamo.compile_backend.backends.{backend.compiler or 'hpu_backend'}" in known


def test_the_walk_sees_every_kind_of_use() -> None:
    found = [published.uses(path) for path in FILES]
    symbols = {s.removeprefix("habana_frameworks.torch.") for f in found for s in f.symbols}
    assert {"hpex.optimizers.FusedSGD", "hpex.optimizers.FusedAdamW", "hpex.normalization.FusedClipNorm", "core.mark_step",
            "hpex.kernels.FusedSDPA", "hpu.metrics.metric_global", "hpu.synchronize", "hpu.is_available"} <= symbols  # fmt: skip
    called = {name.rpartition(".")[2] for f in found for name, *_ in f.calls}
    assert {
        "FusedSGD",
        "FusedAdamW",
        "FusedClipNorm",
        "apply",
        "metric_global",
        "synchronize",
        "is_available",
    } <= called
    assert {m for f in found for m in f.metrics} == {"recipe_cache", "graph_compilation", "cpu_fallback"}
    assert {"PT_HPU_LAZY_MODE", "HLS_MODULE_ID", "TORCH_DEVICE_BACKEND_AUTOLOAD"} <= {
        v for f in found for v in f.variables
    }


PLANTED = {
    "from habana_frameworks.torch.hpex.optimizers import FusedAdam": "FusedAdam is not published",
    "import habana_frameworks.torch.cores": "habana_frameworks.torch.cores is not published",
    "import habana_frameworks.torch.core as htcore\nhtcore.mark_steps()": "core.mark_steps is not published",
    "import habana_frameworks.torch.core as htcore\nhtcore.mark_step(wait=True)": "unexpected keyword argument 'wait'",
    "import torch\ntorch.hpu.empty_cache()": "torch.hpu.empty_cache is not published",
    "import torch\ntorch.hpu.is_available(0)": "too many positional arguments",
    "MARK = 'habana_frameworks.torch.core:mark'": "core.mark is not published",
    "from habana_frameworks.torch.hpex.optimizers import FusedSGD\nFusedSGD([], 0.1, foreach=True)": "'foreach'",
    "from habana_frameworks.torch.hpex.kernels import FusedSDPA\nFusedSDPA.apply(1, 2, 3, scale=4)": "takes no keywords",
    "from habana_frameworks.torch.hpex.kernels import FusedSDPA\nFusedSDPA.apply(1, 2)": "missing a required argument",
    "from habana_frameworks.torch.hpex.normalization import FusedClipNorm\nFusedClipNorm([])": "'max_norm'",
    "from habana_frameworks.torch.hpex import hmp\nhmp.convert()": "hpex.hmp is not published",
    "from habana_frameworks.torch.hpu.metrics import metric_global\nmetric_global('recipes')": "there is no metric recipes",
    "from habana_frameworks.torch.hpu.metrics import metric_global\ndict(metric_global('cpu_fallback').stats())['TotalHit']":
        "none of the metrics used holds TotalHit",
    "ENV = {'PT_HPU_LAZY': '1'}": "the variable PT_HPU_LAZY has no source",
    "ENV = {'HABANA_PROFILE': '1'}": "the variable HABANA_PROFILE has no source",
}  # fmt: skip


@pytest.mark.parametrize("code", PLANTED)
def test_a_use_that_is_not_published_is_found(code: str, tmp_path: Path) -> None:
    path = tmp_path / "planted.py"
    path.write_text(code)
    assert any(PLANTED[code] in said for said in published.complaints(path)), [*published.complaints(path)]


def test_comments_cite_files_and_no_folder_of_a_machine() -> None:
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"/(work|home|tmp|root)/", text), path
    said = "".join(path.read_text(encoding="utf-8") for path in FILES)
    for source in ("scripts/env_flags.yaml:367", "backend/helpers/collective_utils.cpp:40", "process_group_hccl_base.cpp",
                   "hpex/optimizers/FusedSGD.py", "core/weight_sharing.py", "core/torch_overwrites.py"):  # fmt: skip
        assert source in said, source


# ---- what the library replaces in torch, and vitcore's own code (bridge: HF/core/torch_overwrites.py) ----


def calls(root: Path) -> list[tuple[Path, ast.Call, str]]:
    found = []
    for path in sorted(root.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                found.append((path, node, ast.unparse(node.func)))
    return found


def test_the_process_group_is_opened_with_keywords_that_the_librarys_own_function_takes() -> None:
    said = published.signature(published.published()["torch.distributed.init_process_group"]["signature"])
    opened = [node for path, node, name in calls(CORE) if name.endswith("init_process_group")]
    assert len(opened) == 1 and "device_id" not in inspect.getsource(distributed)
    said.bind(*[0] * len(opened[0].args), **{k.arg: 0 for k in opened[0].keywords if k.arg})
    with pytest.raises(TypeError):
        said.bind("hccl", device_id=0)


@pytest.mark.parametrize("root", [CORE, PACKAGE], ids=["vitcore", "vitcore_hpu"])
def test_nothing_is_called_that_this_device_lacks_or_replaces(root: Path) -> None:
    """No barrier (it never times out), no average (there is none), no torch.save (rebuilt in lazy mode), no new group."""
    for path, _, name in calls(root):
        assert name.rpartition(".")[2] not in ("barrier", "monitored_barrier", "new_group"), path
        assert name != "torch.save", path
    for path in root.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            assert not (isinstance(node, ast.Attribute) and node.attr == "AVG"), path
            if isinstance(node, ast.Compare) and isinstance(node.left, ast.Call):
                said = ast.unparse(node)
                assert not (said.startswith("type(") and "Parameter" in said), path  # the library changes that class


def test_no_module_is_named_so_that_its_import_would_wake_the_compiler() -> None:
    """The library watches for imports with "dynamo" in their name (bridge: HF/core/__init__.py)."""
    assert not [p for p in (*CORE.rglob("*.py"), *FILES) if "dynamo" in p.stem]
