"""What the plug-in uses of vLLM's insides, compared with a release: ``make test-vllm-symbols VERSION=...``.

Sources are read, not imported, so that a release can be compared for which no CPU build exists. Of a function its
signature is compared, of a field its annotation, of a class what its subclasses must define.
"""

from __future__ import annotations

import ast
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import typer

USED: Mapping[str, str] = {
    "vllm.config.vllm": (
        "VllmConfig: additional_config model_config parallel_config scheduler_config speculative_config"
    ),
    "vllm.config.parallel": (
        "ParallelConfig: data_parallel_size data_parallel_size_local data_parallel_external_lb "
        "data_parallel_hybrid_lb prefill_context_parallel_size distributed_executor_backend"
    ),
    "vllm.config.scheduler": "SchedulerConfig: async_scheduling get_scheduler_cls",
    "vllm.config.speculative": "SpeculativeConfig: enable_adaptive_verification",
    "vllm.distributed.parallel_state": "get_tp_group; GroupCoordinator: is_first_rank",
    "vllm.engine.arg_utils": "EngineArgs: create_engine_config get_batch_defaults",
    "vllm.entrypoints.openai.chat_completion.protocol": "ChatCompletionRequest: to_sampling_params",
    "vllm.parser.abstract_parser": "Parser: __init__ adjust_request parse",
    "vllm.parser.parser_manager": "ParserManager: get_parser",
    "vllm.model_executor.layers.utils": "dispatch_cpu_unquantized_gemm",
    "vllm.model_executor.layers.vocab_parallel_embedding": "ParallelLMHead",
    "vllm.tokenizers.registry": "cached_tokenizer_from_config",
    "vllm.usage.usage_lib": "UsageContext: LLM_CLASS",
    "vllm.v1.core.sched.async_scheduler": "AsyncScheduler",
    "vllm.v1.core.sched.output": "SchedulerOutput: num_scheduled_tokens total_num_scheduled_tokens",
    "vllm.v1.core.sched.scheduler": (
        "Scheduler: __init__ add_request schedule update_from_output finish_requests _update_request_with_output "
        "_free_request _handle_blocked_waiting_request _preempt_request requests running waiting "
        "kv_holding_waiting kv_cache_manager requires_kv_delivery max_num_running_reqs max_num_active_reqs "
        "num_spec_tokens use_v2_model_runner vllm_config"
    ),
    "vllm.v1.core.sched.request_queue": "RequestQueue",
    "vllm.v1.core.kv_cache_manager": "KVCacheManager: usage",
    "vllm.v1.engine": (
        "EngineCoreOutput: request_id new_token_ids new_logprobs finish_reason stop_reason events "
        "kv_transfer_params trace_headers; EngineCoreOutputs: outputs"
    ),
    "vllm.v1.engine.core": "EngineCore: model_executor scheduler shutdown",
    "vllm.v1.engine.llm_engine": (
        "LLMEngine: __init__ add_request abort_request step has_unfinished_requests collective_rpc "
        "reset_prefix_cache get_tokenizer output_processor engine_core"
    ),
    "vllm.v1.engine.output_processor": (
        "OutputProcessor: request_states; RequestState: detokenizer num_cached_tokens"
    ),
    "vllm.v1.executor.abstract": "Executor: get_class shutdown",
    "vllm.v1.outputs": "AsyncModelRunnerOutput: get_output; ModelRunnerOutput: req_ids req_id_to_index",
    "vllm.v1.request": (
        "Request: request_id sampling_params status client_index num_in_flight_tokens num_computed_tokens "
        "num_prompt_tokens num_output_tokens output_token_ids trace_headers take_events get_finished_reason; "
        "RequestStatus: FINISHED_STOPPED"
    ),
    "vllm.v1.worker.cpu_worker": "CPUWorker",
    "vllm.v1.worker.gpu_worker": (
        "Worker: load_model execute_model sample_tokens model_runner use_v2_model_runner device"
    ),
    "vllm.v1.worker.worker_base": "WorkerBase: model_config parallel_config vllm_config",
    # Runner V1, and V2.
    "vllm.v1.worker.gpu_input_batch": "InputBatch: req_ids num_reqs generators",
    "vllm.v1.worker.gpu_model_runner": (
        "ExecuteModelState: hidden_states sample_hidden_states logits spec_decode_metadata; "
        "GPUModelRunner: execute_model_state input_batch discard_request_mask reload_weights get_model"
    ),
    "vllm.v1.spec_decode.metadata": "SpecDecodeMetadata: num_draft_tokens",
    "vllm.v1.worker.gpu.input_batch": "InputBatch: req_ids num_draft_tokens cu_num_logits_np logits_indices",
    "vllm.v1.worker.gpu.model_runner": (
        "ExecuteModelState: hidden_states input_batch; GPUModelRunner: execute_model_state batch_sharder model "
        "sample sample_tokens reload_weights get_model"
    ),
}
"""By module: the functions, and the classes each with what is used of it."""

HANDLED: Mapping[str, frozenset[str]] = {
    # 0.33's second one gives what a failed step has left; our wrapper hands it on.
    "vllm.v1.outputs AsyncModelRunnerOutput": frozenset(
        {"class with abstract get_output", "class with abstract get_output get_kv_connector_output"}
    ),
    # 0.32 and 0.33 name what 0.31 passed on to runner V1's method; we give the first by its name.
    "vllm.v1.worker.gpu.model_runner GPUModelRunner.reload_weights": frozenset(
        {
            "def(self, *args, **kwargs)",
            "def(self, weights_iterator: Iterable[tuple[str, torch.Tensor]] | None=None, "
            "weights_path: str | None=None, is_checkpoint_format: bool=True)",
        }
    ),
}
"""Symbols whose interface changed between releases, with the ones that the plug-in works with."""

Source = Callable[[str], str]
"""Gives a module's text, or raises KeyError."""

MISSING = "missing"


def names(used: Mapping[str, str] = USED) -> Iterator[tuple[str, str]]:
    """Each (module, name) that is used; names within a class as ``Class.name``."""
    for module, text in used.items():
        for entry in text.split(";"):
            owner, _, members = entry.strip().partition(":")
            yield module, owner
            for member in members.split():
                yield module, f"{owner}.{member}"


def differences(ours: Source, theirs: Source, used: Mapping[str, str] = USED) -> list[str]:
    """What is used and differs between two releases, a line each."""
    found = []
    for module, name in names(used):
        old, new = interface(ours, module, name), interface(theirs, module, name)
        if new == MISSING or (old != new and new not in HANDLED.get(f"{module} {name}", ())):
            found.append(f"{module} {name}: {old} -> {new}")
    return found


def interface(source: Source, module: str, name: str) -> str:
    """A symbol as its users see it, ``MISSING`` where there is none of this name."""
    try:
        body = _parsed(source(module))
    except KeyError:
        return MISSING
    owner, _, member = name.partition(".")
    node = _defined(body, owner)
    if not member:
        return MISSING if node is None else _shown(node)
    if not isinstance(node, ast.ClassDef):
        return MISSING
    found = _defined(node.body, member)
    return _assigned(node, member) if found is None else _shown(found)


@lru_cache(maxsize=4)
def _parsed(text: str) -> list[ast.stmt]:
    return ast.parse(text).body


def _defined(body: list[ast.stmt], name: str) -> ast.stmt | None:
    """The statement that defines a name; the last one, as overloads come before it."""
    found = None
    for node in body:
        if isinstance(node, ast.If):
            found = _defined(node.body + node.orelse, name) or found
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found = node if node.name == name else found
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found = node if any(isinstance(t, ast.Name) and t.id == name for t in targets) else found
    return found


def _shown(node: ast.stmt) -> str:
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        kind = "async def" if isinstance(node, ast.AsyncFunctionDef) else "def"
        marks = "".join(f"@{name} " for name in map(ast.unparse, node.decorator_list) if name in _KINDS)
        return f"{marks}{kind}({ast.unparse(node.args)})"
    if isinstance(node, ast.ClassDef):
        methods = [n for n in node.body if isinstance(n, ast.FunctionDef)]
        abstract = [n.name for n in methods if "abstractmethod" in map(ast.unparse, n.decorator_list)]
        return f"class with abstract {' '.join(abstract)}" if abstract else "class"
    return f"field: {ast.unparse(node.annotation)}" if isinstance(node, ast.AnnAssign) else "field"


_KINDS = ("abstractmethod", "staticmethod", "classmethod", "property", "cached_property")


def _assigned(node: ast.ClassDef, name: str) -> str:
    """An attribute that the methods of a class set on self."""
    for part in ast.walk(node):
        targets = part.targets if isinstance(part, ast.Assign) else []
        if isinstance(part, ast.AnnAssign):
            targets = [part.target]
        for target in (t for each in targets for t in (each.elts if isinstance(each, ast.Tuple) else [each])):
            if isinstance(target, ast.Attribute) and ast.unparse(target) == f"self.{name}":
                return "attribute"
    return MISSING


def installed(module: str) -> str:
    """A module of the installed vLLM, which is not imported."""
    root = find_spec("vllm")
    assert root is not None
    assert root.origin is not None
    return _text(lambda path: (Path(root.origin or "").parents[1] / path).read_text(), module)


def of_wheel(path: Path) -> Source:
    """The modules of a wheel."""
    wheel = zipfile.ZipFile(path)
    return lambda module: _text(lambda name: wheel.read(name).decode(), module)


def _text(read: Callable[[str], str], module: str) -> str:
    base = module.replace(".", "/")
    for path in (f"{base}.py", f"{base}/__init__.py"):
        try:
            return read(path)
        except (FileNotFoundError, KeyError):
            continue
    raise KeyError(module)


def main(wheel: Path) -> None:
    """Compare the installed vLLM with a release's wheel."""
    found = differences(installed, of_wheel(wheel))
    for line in found:
        typer.echo(line)
    typer.echo(f"{wheel.name}: {len(found) or 'none'} of {len(list(names()))} symbols in use differ(s)")
    sys.exit(bool(found))


if __name__ == "__main__":
    typer.run(main)
