"""The parts of transformers' continuous batching that it does not document. All of Hone's imports of them are here.

The engine subclasses, replaces and reads these parts, and transformers may change them in any release. INTERFACE lists
the signatures that the engine's modules rely on: a test compares them with the installed release, so that an upgrade
fails there, by name, and not in an answer.
"""

from transformers.generation.continuous_batching.cache import ATTN_TYPE_TO_ALLOCATOR
from transformers.generation.continuous_batching.cache_allocators import FULL_ATTENTION
from transformers.generation.continuous_batching.cb_logits_processors import ContinuousBatchingLogitsProcessorList
from transformers.generation.continuous_batching.requests import (
    FutureRequestState,
    GenerationOutput,
    RequestState,
    RequestStatus,
)
from transformers.integrations.eager_paged import repeat_kv

__all__ = [
    "ATTN_TYPE_TO_ALLOCATOR",
    "FULL_ATTENTION",
    "ContinuousBatchingLogitsProcessorList",
    "FutureRequestState",
    "GenerationOutput",
    "RequestState",
    "RequestStatus",
    "repeat_kv",
]

# By module of transformers.generation.continuous_batching and method: its parameters after `self`.
INTERFACE = {
    "cache:PagedAttentionCache.search_prefix_match": "request_id prompt_ids",
    "cache:PagedAttentionCache.update": "key_states value_states layer_idx kwargs",
    "cache:PagedAttentionCache.compute_free_capacity": "relative",
    "cache:CacheAllocator.mark_complete_blocks": "request_id token_ids new_new_blocks",
    "scheduler:Scheduler.schedule_batch": "token_budget cache_budget",
    "scheduler:Scheduler.add_waiting_request": "state",
    "scheduler:Scheduler.finish_request": "request_id",
    "model_runner:ModelRunner.compute_batch": "model batch_data",
    "continuous_api:ContinuousBatchProcessor.update_batch": "",
    "continuous_api:ContinuousBatchProcessor.handle_batch_error": "error",
    "continuous_api:ContinuousBatchProcessor._handle_request_error": "error state",
    "continuous_api:ContinuousBatchingManager._generation_step": "",
    "continuous_api:ContinuousBatchingManager._generation_loop_body": "batch_processor bootstrapping",
    "continuous_api:ContinuousBatchingManager.register_result_handler": "request_id callback",
    "cb_logits_processors:ContinuousBatchingLogitsProcessorList.check_kwargs": "kwargs",
    "cb_logits_processors:ContinuousBatchingLogitsProcessorList.prepare_tensor_args": "requests_in_batch arg_storage",
    "cb_logits_processors:ContinuousBatchingLogitsProcessorList.__call__": "input_ids scores logits_processor_args",
}
# Attributes of a request's state, and of its part of one step.
STATE_FIELDS = frozenset(
    "request_id initial_tokens generated_tokens logit_processor_kwargs position_offset _true_initial_tokens".split()
)
STEP_FIELDS = frozenset("state has_new_token complete_blocks query_length".split())
